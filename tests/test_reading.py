"""Reading a model: each number against a slow twin, a closed form or an outside table."""

import itertools

import dask.array as da
import naive_reading as naive
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from conftest import planted, sparse_counts
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dasknmf import NMF, DataError, ParameterError
from dasknmf.numerics import coherence, consensus, interpretation, restarts
from dasknmf.numerics.inspection import Place
from dasknmf.numerics.terms import add

factor = arrays(np.float64, (5, 3), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0]))
few = settings(max_examples=40, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def fitted():
    X = planted(np.random.default_rng(3), rows=60, columns=12, k=3)
    model = NMF(3, random_state=0)
    model.fit_transform(X)
    return model, X


# scale, features, sparseness, clusters, matches


@few
@given(W=factor, H=factor, norm=st.sampled_from(interpretation.NORMS))
def test_scale_is_taken_apart_and_nothing_else_changes(W, H, norm):
    found = interpretation.separate_scale(W, H.T, norm)
    np.testing.assert_allclose((found.W * found.d) @ found.H, W @ H.T, atol=1e-12)
    assert (np.diff(found.d) <= 0).all()
    power = {"l2": 2, "l1": 1, "max": np.inf}[norm]
    for vectors in (found.W.T, found.H):
        norms = np.linalg.norm(vectors, power, axis=1)
        assert np.isclose(norms, 1).sum() + (norms == 0).sum() == 3


def test_equal_weights_keep_their_order_and_dtypes_stay():
    W, H = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[[2, 0, 1]]
    found = interpretation.separate_scale(W, H)
    np.testing.assert_array_equal(found.W, W)
    np.testing.assert_array_equal(found.H, H)
    assert found.W.dtype == found.H.dtype == np.float32
    assert found.d.tolist() == [1, 1, 1]


def test_norms_neither_overflow_nor_vanish():
    rows = np.array([[3e200, 4e200], [3e-200, 4e-200], [0, 0]])
    np.testing.assert_allclose(interpretation.row_norms(rows), [5e200, 5e-200, 0])
    np.testing.assert_allclose(interpretation.row_norms(rows, "l1"), [7e200, 7e-200, 0])
    with pytest.raises(ParameterError, match="norm='l3'; expected one of 'l2', 'l1', 'max'"):
        interpretation.row_norms(rows, "l3")


def test_top_features_are_positive_descending_and_stable():
    H = np.array([[1, 3, 0, 3], [0, 0, 0, 0], [0, 5, 1, 2]], float)
    assert interpretation.top_features(H, 3) == [[1, 3, 0], [], [1, 3, 2]]
    assert interpretation.top_features(H, 2, list("abcd")) == [["b", "d"], [], ["b", "d"]]
    assert interpretation.top_features(H, 99)[2] == [1, 3, 2]
    for bad in (0, -1, 1.5, "2"):
        with pytest.raises(ParameterError, match="an integer of at least 1"):
            interpretation.top_features(H, bad)
    with pytest.raises(DataError, match="names has 3 entries for 4 features"):
        interpretation.top_features(H, 2, list("abc"))


def test_hoyer_equals_its_twin_and_its_closed_forms(rng):
    rows = rng.random((6, 9)) ** 4
    np.testing.assert_allclose(interpretation.sparseness(rows), [naive.hoyer(r) for r in rows])
    special = np.array([[2.0, 2, 2, 2], [0, 0, 1e-300, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(interpretation.sparseness(special), [0, 1, np.nan], atol=1e-12)
    assert np.isnan(interpretation.sparseness(np.ones((2, 1)))).all()


def test_hard_clusters_leave_ties_and_zero_rows_out():
    W = np.array([[1.0, 2], [3, 1], [2, 2], [0, 0]])
    assert interpretation.hard_clusters(W).tolist() == [1, 0, -1, -1]
    assert interpretation.hard_clusters(W, [10, 1]).tolist() == [0, 0, 0, -1]
    assert interpretation.hard_clusters(np.empty((2, 0))).tolist() == [-1, -1]


@few
@given(A=factor, B=factor)
def test_matching_is_as_good_as_trying_everything(A, B):
    A, B = A.T, B.T
    found = interpretation.match(A, B)
    best = naive.best_match(A.tolist(), B.tolist())
    expected = sum(naive.cosine(a, B[i]) for a, i in zip(A.tolist(), best, strict=True))
    assert found.similarity.sum() == pytest.approx(expected, abs=1e-12)
    assert sorted(found.permutation) == [0, 1, 2]


def test_matching_undoes_a_permutation_and_says_what_is_left_over(rng):
    H = rng.random((4, 20))
    found = interpretation.match(H, 7 * H[[2, 0, 3, 1]])
    assert found.permutation.tolist() == [1, 3, 0, 2]
    np.testing.assert_allclose(found.similarity, 1)
    more = interpretation.match(H, H[:2])
    assert sorted(more.permutation) == [-1, -1, 0, 1]
    np.testing.assert_array_equal(np.isnan(more.similarity), more.permutation < 0)
    with pytest.raises(DataError, match="as many features"):
        interpretation.match(H, H[:, 1:])


def test_row_errors_of_dense_and_sparse_slabs(rng):
    V = sparse_counts(rng)
    W, H = rng.random((120, 3)), rng.random((3, 30))
    W[0] = 0
    dense = V.toarray()
    expected = np.linalg.norm(dense - W @ H, axis=1) / np.linalg.norm(dense, axis=1)
    for slab in (V, dense):
        np.testing.assert_allclose(interpretation.row_errors(slab, W, H), expected)
    zero = interpretation.row_errors(np.zeros((2, 30)), np.array([[0, 0, 0], [1, 0, 0]]), H)
    assert zero.tolist() == [0, np.inf]


def test_explained_variance_is_that_of_r(golub):
    rss = 1933273395.17235  # R's NMF on the first 200 genes, rank 2: rss and evar
    found = interpretation.explained_variance(rss, float(np.sum(golub[:200] ** 2)))
    assert found == pytest.approx(0.777482887672309, abs=1e-12)
    assert np.isnan(interpretation.explained_variance(0.0, 0.0))


# coherence


def test_coherence_equals_its_twin_however_the_documents_are_cut(rng):
    X = sparse_counts(rng, rows=40, columns=9, density=0.4)
    topics = [np.array([0, 3, 5]), np.array([5, 1]), np.array([2]), np.array([], int)]
    words = [5, 0, 3, 1, 2]
    dense = X.toarray()
    expected = [naive.npmi_of_topic(dense.tolist(), t) for t in topics[:2]]
    for make in (sp.csr_array, np.asarray):
        count = coherence.CountDocuments(tuple(words))
        edges = [0, 1, 17, 40]
        parts = [
            count(make(dense[a:b]), None, Place(i, a, b))[1]
            for i, (a, b) in enumerate(itertools.pairwise(edges))
        ]
        found = coherence.coherence(topics, words, add(parts))
        np.testing.assert_allclose(found[:2], expected)
        assert np.isnan(found[2:]).all()


def test_npmi_of_words_that_always_never_or_independently_meet():
    X = np.array([[1, 1, 0, 1, 1], [1, 1, 0, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0]])
    found = coherence.npmi(coherence.count_together(X, range(5)), 4)
    assert found[0, 1] == pytest.approx(1)
    assert found[0, 2] == -1
    assert found[0, 4] == pytest.approx(0)
    assert found[3, 3] == 0
    empty = coherence.npmi(coherence.count_together(np.zeros((3, 2)), range(2)), 3)
    assert (empty == -1).all()
    with pytest.raises(DataError, match="at least one row"):
        coherence.npmi(np.zeros((1, 1), np.int64), 0)


@pytest.mark.parametrize("kind", ["csr", "dask", "dask of csr"])
def test_a_model_s_coherence_reads_any_input_once(kind, reuters):
    model = NMF(5, beta_loss="kullback-leibler", random_state=0, max_iter=5, tol=0.01).fit(reuters)
    blocks = {
        "csr": reuters,
        "dask": da.from_array(reuters.toarray(), chunks=(100, 1000)),
        "dask of csr": da.from_array(reuters, chunks=(50, -1)),
    }
    topics = interpretation.top_indices(model.components_, 6)
    expected = [naive.npmi_of_topic(reuters[:, t].toarray().tolist(), range(6)) for t in topics]
    np.testing.assert_allclose(model.coherence(blocks[kind], 6), expected)


def test_coherence_refuses_other_data_bad_values_and_single_words(fitted):
    model, X = fitted
    with pytest.raises(ValueError, match="11 features"):
        model.coherence(X[:, 1:])
    bad = X.copy()
    bad[4, 2] = -1
    with pytest.raises(DataError, match="1 negative value, the first at row 4, column 2"):
        model.coherence(bad)
    with pytest.raises(ParameterError, match="at least 2: coherence is about pairs"):
        model.coherence(X, 1)


# restarts


@few
@given(labels=arrays(np.int64, (4, 7), elements=st.integers(-1, 2)))
def test_consensus_dispersion_and_cophenetic_equal_their_twins(labels):
    C = consensus.consensus(labels)
    np.testing.assert_allclose(C, naive.consensus(labels.tolist()))
    assert consensus.dispersion(C) == pytest.approx(naive.dispersion(C.tolist()))
    assert sorted(consensus.linkage_order(C)) == list(range(7))


def test_cophenetic_equals_its_twin_where_no_distances_tie(rng):
    C = 1 - rng.random((9, 9))
    C = (C + C.T) / 2
    np.fill_diagonal(C, 1)
    assert consensus.cophenetic(C) == pytest.approx(naive.cophenetic(C.tolist()))
    before = C.copy()
    consensus.linkage_order(C)
    np.testing.assert_array_equal(C, before)


def test_restarts_that_agree_and_restarts_that_tell_nothing():
    same = consensus.consensus(np.array([[0, 0, 1, 1, 2]] * 3))
    assert (consensus.cophenetic(same), consensus.dispersion(same)) == (1, 1)
    order = consensus.linkage_order(same)
    assert np.abs(np.diff(np.array([0, 0, 1, 1, 2])[order])).astype(bool).sum() == 2  # blocks
    rank_1 = consensus.consensus(np.zeros((3, 5), int))
    assert np.isnan(consensus.cophenetic(rank_1))
    assert np.isnan(consensus.cophenetic(np.eye(4)))
    assert np.isnan(consensus.cophenetic(np.eye(2)))
    half = np.array([[1, 0.5], [0.5, 1]])
    assert consensus.dispersion(half) == 0.5
    for labels in (np.zeros((1, 5), int), np.zeros((0, 5), int)):
        with pytest.raises(ParameterError, match=r"undefined: .* Use n_init of at least 2"):
            consensus.consensus(labels)
    with pytest.raises(DataError, match="expected integers of shape"):
        consensus.consensus(np.zeros((2, 5)))
    with pytest.raises(DataError, match="one row and one column for each sample"):
        consensus.cophenetic(np.zeros((2, 3)))


@pytest.fixture
def noisy(rng):
    """Six restarts of four components, each in an order of its own, and what they are."""
    truth = rng.random((4, 30)) ** 3
    orders = np.array([rng.permutation(4) for _ in range(6)])
    scale = rng.uniform(0.1, 10, (6, 4, 1))
    H = np.array([truth[o] for o in orders]) * scale * rng.uniform(0.9, 1.1, (6, 4, 30))
    return H, orders, truth


def test_components_of_restarts_are_matched(noisy):
    H, orders, _ = noisy
    found = restarts.agreement(H)
    which = np.take_along_axis(orders, found.order, axis=1)
    assert (which == which[0]).all()
    points = H.reshape(24, 30).tolist()
    members = found.order + 4 * np.arange(6)[:, None]
    labels = np.empty(24, int)
    labels[members] = np.arange(4)
    values = np.array(naive.silhouettes(points, labels.tolist()))
    np.testing.assert_allclose(found.silhouette, [values[m].mean() for m in members.T], atol=1e-9)
    pairs = [
        np.mean([naive.cosine(points[a], points[b]) for a in m for b in m if a != b])
        for m in members.T
    ]
    np.testing.assert_allclose(found.stability, pairs)
    assert (found.stability > 0.98).all()
    assert (found.silhouette > 0.9).all()


def test_agreement_does_not_depend_on_the_order_of_restarts(rng):
    for H in rng.random((5, 6, 4, 7)):  # restarts that agree on nothing
        expected = restarts.agreement(H)
        for order in (np.arange(6)[::-1], rng.permutation(6)):
            found = restarts.agreement(H[order])
            np.testing.assert_allclose(found.stability, expected.stability)
            np.testing.assert_array_equal(found.order, expected.order[order])


def test_agreement_of_identical_unlike_and_degenerate_restarts(rng):
    H = rng.random((3, 12))
    same = restarts.agreement(np.array([H, H[[1, 2, 0]], 5 * H]))
    np.testing.assert_allclose(same.stability, 1)
    np.testing.assert_allclose(same.silhouette, 1)
    unlike = restarts.agreement(np.eye(4).reshape(2, 2, 4))
    assert unlike.stability.tolist() == [0, 0]
    rank_1 = restarts.agreement(rng.random((3, 1, 12)))
    assert np.isnan(rank_1.silhouette).all()
    assert 0 < rank_1.stability[0] < 1
    H[1] = 0
    zero = restarts.agreement(np.array([H, H]))
    np.testing.assert_allclose(sorted(zero.stability), [0, 1, 1])
    with pytest.raises(ParameterError, match="agreement of 1 restart is undefined"):
        restarts.agreement(H[None])
    with pytest.raises(DataError, match=r"expected \(restarts, components, features\)"):
        restarts.agreement(H)


def test_consensus_components_leave_outliers_out(noisy, rng):
    H, _, truth = noisy
    agreed = restarts.agreement(H)
    strange = H.copy()
    strange[2, agreed.order[2, 1]] = rng.random(30) * (H[2, agreed.order[2, 1]] < 0.1)
    agreed = restarts.agreement(strange)
    found = restarts.consensus_components(strange, agreed.order)
    assert found.kept.sum() == 23
    assert found.kept.min() == 5
    np.testing.assert_allclose(np.linalg.norm(found.components, axis=1), 1)
    assert (interpretation.match(found.components, truth).similarity > 0.995).all()
    members = agreed.order + 4 * np.arange(6)[:, None]
    density = np.array(naive.local_density(strange.reshape(24, 30).tolist(), 1))
    np.testing.assert_allclose(found.density, density[members], atol=1e-7)
    units = interpretation.unit_rows(strange.reshape(24, 30))
    column = int(np.flatnonzero(found.kept == 6)[0])
    median = np.median(units[members[:, column]], axis=0)
    np.testing.assert_allclose(found.components[column], median / np.linalg.norm(median))


def test_consensus_components_of_nothing_in_common_and_of_zeros():
    found = restarts.consensus_components(np.eye(4).reshape(2, 2, 4), np.array([[0, 1], [0, 1]]))
    assert found.kept.tolist() == [0, 0]
    assert np.isfinite(found.components).all()
    zeros = np.zeros((3, 1, 4))
    found = restarts.consensus_components(zeros, np.zeros((3, 1), int))
    assert found.kept.tolist() == [0]
    assert not found.components.any()
    with pytest.raises(ParameterError, match="threshold=0 and neighbours"):
        restarts.consensus_components(zeros, np.zeros((3, 1), int), threshold=0)


# R's package NMF 0.25, method "brunet", 10 random runs on 200 genes: cophenetic and dispersion.
SURVEY = {2: (0.995476353166822, 0.936177285318559), 3: (0.994409452150411, 0.96808864265928)}


@pytest.mark.parametrize("k", SURVEY)
def test_restarts_on_golub_agree_as_much_as_those_of_r(k, golub):
    X = golub[:200].T
    labels, losses = [], []
    for seed in range(10):
        model = NMF(k, beta_loss="kullback-leibler", init="random", random_state=seed, tol=1e-5)
        model.fit_transform(X)
        labels.append(model.hard_clusters())
        losses.append(model.history_["loss"][-1])
    C = consensus.consensus(np.array(labels))
    cophenetic, dispersion = SURVEY[k]
    assert consensus.cophenetic(C) == pytest.approx(cophenetic, abs=0.01)
    assert consensus.dispersion(C) == pytest.approx(dispersion, abs=0.07)  # R's labels are unscaled


# methods of the estimator


def test_a_lazy_w_is_read_as_one_in_memory_is(fitted):
    model, X = fitted
    lazy = da.from_array(model.W_, chunks=(17, 2))
    for norm in interpretation.NORMS:
        one, other = model.separated(norm=norm), model.separated(lazy, norm)
        assert isinstance(other.W, da.Array)
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b)
    assert isinstance(model.hard_clusters(lazy), da.Array)
    np.testing.assert_array_equal(model.hard_clusters(), model.hard_clusters(lazy))
    for a, b in zip(model.sparseness(), model.sparseness(lazy), strict=True):
        np.testing.assert_allclose(a, b)
    errors = model.row_errors(X)
    expected = np.linalg.norm(X - model.W_ @ model.components_, axis=1) / np.linalg.norm(X, axis=1)
    np.testing.assert_allclose(errors, expected)
    for W in (model.W_, lazy):
        found = model.row_errors(da.from_array(X, chunks=(25, 5)), W)
        assert isinstance(found, da.Array)
        np.testing.assert_allclose(found, expected)
    sparse = da.from_array(sp.csr_array(X), chunks=(20, -1))
    np.testing.assert_allclose(model.row_errors(sparse), expected)


def test_labels_do_not_depend_on_scale(fitted):
    model, _ = fitted
    expected = model.hard_clusters()
    other = NMF(3)
    other.__dict__.update(vars(model))
    scale = np.array([100, 1, 0.01])
    other.components_, other.W_ = model.components_ / scale[:, None], model.W_ * scale
    np.testing.assert_array_equal(other.hard_clusters(), expected)
    assert set(expected) == {0, 1, 2}


def test_what_needs_w_says_so_where_there_is_none(fitted):
    X = fitted[1]
    model = NMF(3, random_state=0).fit(X)
    assert model.sparseness().W is None
    for method in (model.separated, model.hard_clusters, lambda: model.row_errors(X)):
        with pytest.raises(ParameterError, match=r"Pass W=model.transform\(X\)"):
            method()
    with pytest.raises(DataError, match=r"expected \(n_samples, 3\)"):
        model.separated(np.ones((5, 2)))
    with pytest.raises(DataError, match="X has 60 rows, but W has 5"):
        model.row_errors(X, np.ones((5, 3)))
    with pytest.raises(ValueError, match="not fitted"):
        NMF(3).top_features()


def test_models_are_matched_with_models_and_arrays(fitted):
    model, X = fitted
    other = NMF(3, random_state=5).fit(X)
    found = model.match(other)
    assert (found.similarity > 0.95).all()
    np.testing.assert_array_equal(model.match(other.components_).permutation, found.permutation)


def test_names_come_from_data_frames(fitted):
    X = pd.DataFrame(fitted[1], columns=[f"gene {j}" for j in range(12)])
    model = NMF(3, random_state=0).fit(X)
    positions = interpretation.top_features(model.components_, 4)
    other = [f"G{j}" for j in range(12)]
    assert model.top_features(4, other) == [[f"G{j}" for j in row] for row in positions]
    assert model.top_features(4) == [[f"gene {j}" for j in row] for row in positions]


def test_xarray_brings_its_dimensions_and_coordinates(fitted):
    xr = pytest.importorskip("xarray")
    model, values = fitted
    cube = xr.DataArray(
        values.reshape(6, 10, 12),
        dims=("y", "x", "band"),
        coords={"y": np.arange(6) * 2.0, "x": np.arange(10), "band": np.linspace(400, 900, 12)},
    )
    found = model.to_xarray(cube.stack(pixel=("y", "x")).transpose("pixel", "band"))
    assert found["components"].dims == ("component", "band")
    assert found["W"].dims == ("pixel", "component")
    np.testing.assert_array_equal(found["band"], cube["band"])
    maps = found["W"].unstack("pixel")
    np.testing.assert_array_equal(
        maps.transpose("y", "x", "component").values.reshape(60, 3), model.W_
    )
    np.testing.assert_allclose(sorted(found["weight"].values), sorted(model.separated().d))
    assert found["history_loss"].dims == ("pass",)
    plain = model.to_xarray()
    assert dict(plain.sizes) == {
        "component": 3, "feature": 12, "sample": 60, "pass": len(model.history_["pass"]),
    }  # fmt: skip
    odd = cube.stack(pixel=("y", "x")).transpose("pixel", "band").rename(band="component")
    assert model.to_xarray(odd)["components"].dims == ("component", "feature")
    bare = NMF(3, random_state=0).fit(values)
    assert "W" not in bare.to_xarray(pd.DataFrame(values))
    with pytest.raises(DataError, match="names of 11 features, but the model was fitted with 12"):
        model.to_xarray(pd.DataFrame(values[:, 1:]))


def test_anndata_gets_the_model_and_can_be_written(fitted, tmp_path):
    anndata = pytest.importorskip("anndata")
    model, X = fitted
    adata = anndata.AnnData(
        X,
        obs=pd.DataFrame(index=[f"cell {i}" for i in range(60)]),
        var=pd.DataFrame(index=[f"gene {j}" for j in range(12)]),
    )
    assert model.to_anndata(adata) is adata
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(back.obsm["X_nmf"], model.W_)
    np.testing.assert_array_equal(back.varm["NMF"], model.components_.T)
    np.testing.assert_array_equal(back.uns["nmf"]["history"]["loss"], model.history_["loss"])
    assert back.uns["nmf"]["params"]["n_components"] == 3
    table = model.to_xarray(adata)
    assert table["feature"].values[0] == "gene 0"
    assert table["sample"].values[-1] == "cell 59"
    model.to_anndata(adata, key="again")
    assert {"X_nmf", "X_again"} <= set(adata.obsm)


def test_an_anndata_of_other_cells_or_genes_is_refused_untouched(fitted):
    anndata = pytest.importorskip("anndata")
    X = pd.DataFrame(fitted[1], columns=[f"gene {j}" for j in range(12)])
    model = NMF(3, random_state=0)
    model.fit_transform(X)
    for rows, columns in ((X.index[:5], X.columns), (X.index, X.columns[::-1])):
        adata = anndata.AnnData(X.loc[rows, columns].rename(index=str))
        with pytest.raises(DataError, match=r"adata (has shape|\.var_names differ)|var_names"):
            model.to_anndata(adata)
        assert not adata.obsm
        assert not adata.varm
        assert not adata.uns
