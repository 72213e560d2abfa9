"""Paths of regularisation: each model is the fit that it would be alone, for the reads of one."""

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from distributed import Client
from sklearn.base import clone

from dasknmf import NMF, AlphaPath, ParameterError
from tests.conftest import planted, sparse_counts

ALPHAS = (0.0, 0.003, 0.05)


@pytest.fixture(scope="module")
def X():
    return planted(np.random.default_rng(5), 160, 36, 3, noise=0.2)


@pytest.fixture(scope="module")
def path(X):
    return AlphaPath(3, ALPHAS, l1_ratio=0.5, random_state=0).fit(X)


def hoyer(x):
    root = np.sqrt(x.size)
    return (root - x.sum() / np.linalg.norm(x)) / (root - 1)


@pytest.mark.parametrize("kind", ["dense", "wide", "csr", "chunks", "kullback-leibler"])
def test_each_model_is_that_of_a_fit_alone(X, rng, kind):
    given = {
        "dense": X, "wide": X.T.copy(), "csr": sparse_counts(rng),
        "chunks": da.from_array(X, (40, -1)),
        "kullback-leibler": rng.poisson(3 * X[:, :20]).astype(float),
    }[kind]  # fmt: skip
    loss = kind if kind == "kullback-leibler" else "frobenius"
    held = 0.0 if kind in ("dense", "chunks") else 0.05
    settings = {"beta_loss": loss, "l1_ratio": 0.5, "holdout": held, "random_state": 0}
    path = AlphaPath(3, ALPHAS, **settings).fit(given)
    reads = []
    for row, alpha in zip(path.table(), ALPHAS, strict=True):
        alone = NMF(3, alpha_W=alpha, compress=False, **settings).fit(given)
        model = path.model(alpha)
        tight = 1e-4 if kind == "kullback-leibler" else 1e-9
        assert row["loss"] == pytest.approx(alone.history_["loss"][-1], rel=tight)
        assert row["objective"] == pytest.approx(alone.history_["objective"][-1], rel=tight)
        near = 1e-2 if kind == "kullback-leibler" else 1e-5
        H = alone.components_
        np.testing.assert_allclose(model.components_, H, atol=near * H.max())
        assert model.n_iter_ == alone.n_iter_
        reads.append(alone.history_["reads"][-1])
        if held:
            error = alone.history_["holdout"][-1]
            assert row["holdout_error"] == pytest.approx(error, rel=10 * tight)
    assert path.reads_ == max(reads)


@pytest.mark.parametrize("kind", ["tall", "wide", "csr"])
def test_the_table_is_what_the_models_say(X, rng, kind):
    given = {"tall": X, "wide": X.T.copy(), "csr": sparse_counts(rng)}[kind]
    path = AlphaPath(3, ALPHAS, alpha_H=0.01, l1_ratio=0.25, holdout=0, random_state=0).fit(given)
    dense = given.toarray() if sp.issparse(given) else given
    m, n = dense.shape
    for row in path.table():
        model = path.model(row["alpha"])
        H, W = model.components_, model.transform(given)
        loss = 0.5 * np.sum((dense - W @ H) ** 2)
        assert row["loss"] == pytest.approx(loss, rel=1e-5)
        price = row["alpha"] * n * (0.25 * W.sum() + 0.375 * np.sum(W**2))
        price += 0.01 * m * (0.25 * H.sum() + 0.375 * np.sum(H**2))
        assert row["objective"] == pytest.approx(loss + price, rel=1e-5)
        assert row["explained_variance"] == pytest.approx(1 - 2 * loss / np.sum(dense**2), abs=1e-6)
        assert row["sparseness_H"] == pytest.approx(np.mean([hoyer(h) for h in H]), rel=1e-9)
        assert row["sparseness_W"] == pytest.approx(np.mean([hoyer(w) for w in W.T]), abs=1e-4)
        assert np.isnan(row["stability"])
        assert np.isnan(row["holdout_error"])


def test_more_of_it_fits_worse_and_has_smaller_factors(X):
    path = AlphaPath(3, (0.1, 0, 0.01), l1_ratio=1, n_init=2, random_state=0).fit(X)
    assert path.alphas_.tolist() == [0, 0.01, 0.1]
    table = path.table()
    assert (np.diff(table["loss"]) > 0).all()
    sizes = [
        160 * path.model(a).components_.sum() + 36 * path.model(a).transform(X).sum()
        for a in path.alphas_[1:]
    ]
    assert sizes[0] > sizes[1]
    price = table["objective"][1:] - table["loss"][1:]
    np.testing.assert_allclose(price, path.alphas_[1:] * sizes, rtol=1e-2)
    assert np.isfinite(table["stability"]).all()
    errors = table["holdout_error"]
    assert path.best_alpha_ == table["alpha"][errors.argmin()]
    assert path.model().alpha_W == path.best_alpha_


def test_everything_is_zero_where_the_penalty_outweighs_the_data(X):
    path = AlphaPath(2, (0.0, 1e4), l1_ratio=1, holdout=0, random_state=0).fit(X)
    assert not path.model(1e4).components_.any()
    row = path.table()[1]
    assert row["loss"] == pytest.approx(0.5 * np.sum(X**2))
    assert row["explained_variance"] == pytest.approx(0, abs=1e-12)
    assert np.isnan(row["sparseness_H"])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_same_bits_on_a_cluster(X, cluster, many_slabs):
    chunks = da.from_array(X, chunks=(20, -1))
    asked = AlphaPath(3, ALPHAS, random_state=0, tol=0, max_iter=2)
    here = asked.fit(chunks).table()
    with Client(cluster) as client:
        assert asked.fit(chunks, client=client).table().tobytes() == here.tobytes()


@pytest.mark.parametrize(
    ("alphas", "message"),
    [
        (0.1, "alphas=0.1; expected different"),
        ([], "has none; expected"),
        ([0, -1], "has -1; expected"),
        ([0, np.inf], "has inf; expected"),
        (["a"], "has 'a'; expected"),
        ([0.1, 0.1], r"has \[0.1\] more than once"),
    ],
)
def test_alphas_that_can_not_be_are_refused(X, alphas, message):
    asked = AlphaPath(2, alphas, random_state=0)
    with pytest.raises(ParameterError, match=message):
        asked.fit(X)
    assert not hasattr(asked, "n_features_in_")


def test_what_else_can_not_be_is_refused(X, path):
    with pytest.raises(ParameterError, match=r"alpha=7 is not on the path; expected one of \[0.0"):
        path.model(7)
    with pytest.raises(ParameterError, match="n_components=37 is larger than"):
        AlphaPath(37, ALPHAS).fit(X)
    with pytest.raises(ParameterError, match="n_components='auto'; expected an integer"):
        AlphaPath("auto", ALPHAS).fit(X)
    with pytest.raises(ParameterError, match=r"solver='hals'.*Use solver='als'"):
        AlphaPath(2, ALPHAS, solver="hals", holdout=0).fit(X)
    bad = X.copy()
    bad[3, 4] = -1
    with pytest.raises(ValueError, match="data passed to AlphaPath: X has 1 negative value, the"):
        path.fit(bad)
    assert path.table().size == 3  # what it had found
    unheld = AlphaPath(2, ALPHAS, holdout=0, random_state=0).fit(X)
    with pytest.raises(ParameterError, match="with holdout=0 there is no best one"):
        unheld.model()


def test_it_is_an_estimator_with_a_picture(path):
    pytest.importorskip("matplotlib")
    assert clone(path).get_params() == path.get_params()
    axes = path.plot()
    titles = [ax.get_title() for ax in axes]
    assert "hold-out error" in titles
    assert "Hoyer sparseness of W" in titles
    assert "stability of components" not in titles  # of one restart
    assert axes[0].get_xscale() == "symlog"
