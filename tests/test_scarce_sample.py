"""Starts where a sparse sample has fewer entries than the factor: singular vectors of all of V."""

from dataclasses import replace

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from test_memory import DENSE, TWO

from dasknmf import NMF, RankStudy, passes, studying
from dasknmf.numerics import exchange, memory, nndsvd, nystrom
from dasknmf.numerics.memory import Job, make_plan
from dasknmf.numerics.work import Step
from dasknmf.parallel import race, sample, scarce, starts, vectors
from dasknmf.parallel.executors import ThreadsExecutor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def short_texts(rng, rows=6000, columns=1500, topics=12, words=5):
    """Documents of a few words each, of a topic or two: words as rare as in language."""
    use = rng.gamma(0.3, 1.0, (topics, columns)) / np.arange(1, columns + 1) ** 0.8
    edges = np.cumsum(use / use.sum(axis=1, keepdims=True), axis=1)
    two, first = rng.integers(0, topics, (2, rows, 1)), rng.random((rows, words)) < 0.7
    of = np.where(first, two[0], two[1])
    found = np.empty((rows, words), np.int64)
    for topic in range(topics):
        here = of == topic
        drawn = np.searchsorted(edges[topic], rng.random(here.sum()))
        found[here] = np.minimum(drawn, columns - 1)
    entries = np.ones(rows * words), (np.repeat(np.arange(rows), words), found.ravel())
    return sp.csr_array(sp.coo_array(entries, shape=(rows, columns)), dtype=np.float64)


@pytest.fixture(scope="module")
def texts():
    return short_texts(np.random.default_rng(3))


@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(1, 30), columns=st.integers(1, 20), width=st.integers(1, 8),
    rank=st.integers(1, 20), count=st.integers(1, 9), seed=st.integers(0, 99),
    scale=st.sampled_from([1e-100, 1.0, 1e100]),
)  # fmt: skip
def test_the_approximation_is_nystroms(rows, columns, width, rank, count, seed, scale):
    """Of A = VᵀV: Y (QᵀY)⁺ Yᵀ, its eigenvectors and the roots of its eigenvalues."""
    rng = np.random.default_rng(seed)
    V = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
    Q = rng.standard_normal((columns, min(width, columns)))
    Y = V.T @ (V @ Q)
    values, right = nystrom.leading(Y * scale, Q, count)
    whole = Y @ np.linalg.pinv(Q.T @ Y, rcond=1e-11, hermitian=True) @ Y.T
    known, there = np.linalg.eigvalsh(whole)[::-1], min(count, *V.shape, rank, Q.shape[1])
    np.testing.assert_allclose(
        values[:there] / values[0], np.sqrt(np.maximum(known[:there], 0) / known[0]), atol=1e-4
    )
    assert not values[there:].any()
    assert not right[:, there:].any()
    some = right[:, :there]
    np.testing.assert_allclose(some.T @ some, np.eye(there), atol=1e-5)
    found = np.linalg.norm(whole @ some, axis=0)
    np.testing.assert_allclose(found / known[0], (values[:there] / values[0]) ** 2, atol=1e-4)


def test_vectors_that_are_exact_stay_so_and_near_ones_get_nearer(rng):
    V = rng.standard_normal((300, 60)) * 0.8 ** np.arange(60)
    exact = np.linalg.svd(V)[2][:5].T

    def off(Q):
        near = V.T @ (V @ Q)
        right = nystrom.leading(near, Q, 5)[1]
        return np.linalg.norm(exact - right @ (right.T @ exact)), right

    values, right = nystrom.leading(V.T @ (V @ exact), exact, 5)
    np.testing.assert_allclose(np.abs(np.sum(right * exact, axis=0)), 1.0, rtol=1e-12)
    known = np.linalg.svd(V)[1][:5]
    np.testing.assert_allclose(values / values[0], known / known[0], rtol=1e-12)
    near = np.linalg.qr(exact + 0.03 * rng.standard_normal(exact.shape))[0]
    before = np.linalg.norm(exact - near @ (near.T @ exact))
    assert off(near)[0] < 0.5 * before


def test_whitening_leaves_out_what_is_rounding(rng):
    Y = rng.standard_normal((50, 3)) @ rng.standard_normal((3, 7))
    turn = nystrom.whitening(Y.T @ Y)
    assert turn.shape == (7, 3)
    np.testing.assert_allclose((Y @ turn).T @ (Y @ turn), np.eye(3), atol=1e-6)
    assert nystrom.whitening(np.zeros((4, 4))).shape == (4, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probes_are_the_samples_leading_vectors(dtype, rng):
    V = short_texts(rng, 900, 400).astype(dtype)
    V = sp.csr_array(V @ sp.diags_array((rng.random(400) > 0.2).astype(dtype)))
    V.eliminate_zeros()
    found = vectors.probes(V, 6, 0)
    assert found.shape == (400, 16)
    assert found.dtype == dtype
    assert not found[np.asarray(V.sum(axis=0)) == 0].any()
    exact = np.linalg.svd(V.toarray())[2][:6].T
    inside = np.linalg.norm(found.T @ exact, axis=0)
    assert inside.min() > 0.99
    again = vectors.probes(V, 6, 1)
    assert not np.array_equal(found, again)


def test_a_sample_of_low_rank_has_no_more_vectors_than_that(rng):
    V = sp.csr_array(np.kron(np.diag([2.0, 1.0, 3.0]), rng.random((40, 1)) * np.ones(9)))
    found = vectors.probes(V, 5, 0)
    assert found.shape == (27, 3)
    np.testing.assert_allclose(found.T @ found, np.eye(3), atol=1e-6)


@pytest.mark.parametrize("small", [1e-1, 1e-3, 1e-4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_singular_values_are_found_beside_a_large_one(small, dtype, rng):
    """Six blocks of columns, one of them of large entries; as a column of other units is."""
    rows = np.arange(6000)
    columns = 500 * (rows % 6) + rng.integers(0, 5, rows.size)
    sizes = np.where(rows % 6, small, 1.0).astype(dtype)
    V = sp.csr_array((sizes, (rows, columns)), shape=(6000, 3000))
    found = vectors.probes(V, 6, 0)
    assert found.shape[1] == 16
    exact = np.linalg.svd(V[:, :505].toarray())[2][:5].T
    inside = np.linalg.norm(np.linalg.qr(found)[0][:505].T @ exact, axis=0)
    assert inside[0] > 1.0 - 1e-6
    model = NMF(6, random_state=0, tol=0, max_iter=3).fit(V)
    assert model.history_["reads"][0] == 4.0
    blocks = model.components_.reshape(6, 6, 500).any(axis=(0, 2))
    assert blocks.all()


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_any_number_of_threads_gives_the_same_bits(threads, texts, monkeypatch):
    one = vectors.probes(texts, 9, 0)
    monkeypatch.setattr(vectors, "CPU_COUNT", threads)
    np.testing.assert_array_equal(vectors.probes(texts, 9, 0), one)


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 20), columns=st.integers(1, 20), k=st.integers(1, 5), seed=st.integers(0, 9)
)
def test_the_heavier_halves_are_those_of_the_definition(rows, columns, k, seed):
    """Boutsidis & Gallopoulos, one triple after the other."""
    rng = np.random.default_rng(seed)
    left, right = rng.standard_normal((rows, k)), rng.standard_normal((columns, k))
    values = rng.random(k) + 0.1
    twin = np.empty((columns, k))
    for a in range(k):
        halves = []
        for sign in (1.0, -1.0):
            u, v = np.maximum(sign * left[:, a], 0.0), np.maximum(sign * right[:, a], 0.0)
            halves.append((np.linalg.norm(u) * np.linalg.norm(v), v))
        best = max(halves, key=lambda half: half[0])
        twin[:, a] = np.sqrt(values[a] * best[0]) * best[1] / (np.linalg.norm(best[1]) or 1.0)
    twin[twin == 0.0] = 0.01 * twin.mean()
    np.testing.assert_allclose(nndsvd.heavier_halves(left, values, right), twin, rtol=1e-9)


def test_a_scarce_sample_costs_two_reads_more(texts, many_slabs):
    """1500 rows of 5 entries for 1500 × 12; they are enough for 1500 × 4."""
    model = NMF(12, random_state=0, tol=0, max_iter=1).fit(texts)
    assert model.history_["reads"].tolist() == [4.0, 5.0]
    ample = NMF(4, random_state=0, tol=0, max_iter=1).fit(texts)
    assert ample.history_["reads"].tolist() == [2.0, 3.0]
    kl = NMF(12, beta_loss="kullback-leibler", random_state=0, tol=0, max_iter=1).fit(texts)
    assert kl.history_["reads"].tolist() == [2.0, 3.0]


def test_plenty_counts_entries_for_each_of_the_factors(texts):
    rows = texts[:1000]
    drawn = sample.Sampled(rows, np.arange(1000), None, 6.0, root=False, density=0.01)
    assert drawn.plenty(4) == rows.nnz / (1500 * 4)
    assert replace(drawn, root=True).plenty(4) == np.inf
    assert replace(drawn, rows=rows.toarray()).plenty(4) == np.inf
    assert drawn.plenty(76) == np.inf  # fewer than 20 columns for each
    assert drawn.plenty(75) < 1.0
    stored = rows.copy()
    stored.data[::2] = 0.0
    assert replace(drawn, rows=stored).plenty(4) == np.count_nonzero(stored.data) / 6000


def test_the_start_gets_closer_in_as_many_reads(monkeypatch):
    """Than the race on the sample, on the mean of four matrices: after five reads, and at last."""
    ours, races = [], []
    for seed in range(4):
        V = short_texts(np.random.default_rng(seed), 20_000, 3000, 15)
        for found in (ours, races):
            with monkeypatch.context() as patch:
                if found is races:
                    patch.setattr(sample.Sampled, "plenty", lambda self, k: np.inf)
                history = NMF(20, random_state=seed, tol=0, max_iter=10).fit(V).history_
            found.append(history["loss"][[np.searchsorted(history["reads"], 5.0), -1]])
    gained = np.mean(np.array(races) / np.array(ours), axis=0) - 1.0
    assert (gained > 2e-5).all(), gained


def test_exchanged_components_get_a_start_closer(monkeypatch):
    """Than the first ones would; on the mean of four matrices, after one pass and after ten."""
    losses = {5: [], 10**6: []}
    for seed in range(4):
        V = short_texts(np.random.default_rng(seed), 20_000, 3000, 30)
        for part, found in losses.items():
            with monkeypatch.context() as patch:
                patch.setattr(exchange, "PART", part)
                if part > 5:
                    patch.setattr(scarce, "joining", lambda *given: 0)
                history = NMF(30, random_state=seed, tol=0, max_iter=10).fit(V).history_
            assert history["reads"][0] == 4.0
            found.append(history["loss"][[0, -1]])
    gained = np.mean(np.array(losses[10**6]) / np.array(losses[5]), axis=0) - 1.0
    assert gained[0] > 2e-4, gained
    assert gained[1] > 5e-5, gained


def exact_rows(V, F):
    """Non-negative least squares, row by row, by another algorithm (Lawson & Hanson)."""
    R = np.linalg.cholesky(F.T @ F).T
    return np.array([nnls(R, c)[0] for c in np.linalg.solve(R.T, F.T @ V.T).T])


def test_a_start_is_the_best_factor_for_the_rows_of_those_that_stay(texts, monkeypatch):
    """And knows the error of that pair."""
    wide, begun, run = [], [], ThreadsExecutor.run

    def kept(self, work, *given, **more):
        wide.extend(work.fixed if isinstance(work, Step) and not begun else ())
        return run(self, work, *given, **more)

    def made(*given):
        begun.append(starts.make_start(*given))
        return begun[0]

    monkeypatch.setattr(ThreadsExecutor, "run", kept)
    monkeypatch.setattr(passes, "make_start", made)
    NMF(15, random_state=0, tol=0, max_iter=1).fit(texts)
    assert [F.shape for F in wide] == [(1500, 18)]
    W = exact_rows(texts.toarray(), wide[0])
    stay = exchange.most_useful(W.T @ W, wide[0], 15)
    assert stay[-1] > 14
    W = W[:, stay]
    F = exact_rows(texts.toarray().T, W)
    np.testing.assert_allclose(begun[0].short[0], F, atol=2e-2 * F.max())
    squares = np.sum(texts.data**2)
    error = np.sum((texts.toarray() - W @ F.T) ** 2) / squares
    assert begun[0].relative == pytest.approx(error, rel=1e-4)


@pytest.mark.filterwarnings("ignore::dasknmf.numerics.errors.FactorWarning")
def test_a_rank_that_there_is_not_goes_to_the_race(monkeypatch):
    """Two kinds of rows, one entry each; and vectors of all of V that are rounding."""
    races, run, refined = [], starts.run_race, vectors.refined

    def raced(sample, k, *given, **more):
        races.append(k)
        return run(sample, k, *given, **more)

    monkeypatch.setattr(starts, "run_race", raced)
    kinds = np.arange(4000) % 2
    V = sp.csr_array((np.ones(4000), (2 * np.arange(4000), 3000 * kinds)), shape=(8000, 6000))
    for k, reads in ((2, 4.0), (4, 2.0)):
        model = NMF(k, random_state=0, max_iter=20).fit(V)
        assert model.history_["reads"][0] == reads
        assert model.history_["relative_error"][-1] < 1e-6
    assert races == [4]

    def one_left(*given):
        return [(values * (np.arange(values.size) < 1), right) for values, right in refined(*given)]

    monkeypatch.setattr(vectors, "refined", one_left)
    assert NMF(2, random_state=0, max_iter=20).fit(V).history_["relative_error"][-1] < 1e-6
    assert races == [4, 2]


@pytest.mark.parametrize(("plenty", "most"), [(0.01, 4), (0.5, 6), (0.99, 11)])
def test_a_scarce_sample_is_fitted_for_few_iterations(plenty, most, texts, monkeypatch):
    """Two before components join, and then the more of them the more entries there are."""
    seen, run = [], race.Candidate.run
    monkeypatch.setattr(
        race.Candidate, "run", lambda self, *given: seen.append(given[2]) or run(self, *given)
    )
    monkeypatch.setattr(sample.Sampled, "plenty", lambda self, k: plenty)
    NMF(12, random_state=0, max_iter=1, tol=0).fit(texts)
    assert seen == [2, most]


@pytest.mark.parametrize("layout", ["csr", "csc", "wide", "dask"])
def test_layouts_and_restarts_begin_alike(layout, texts):
    """Model 0 of an ensemble is the one start of a fit; so no ensemble ends higher."""
    X = {
        "csr": lambda: texts, "csc": lambda: sp.csc_array(texts), "wide": lambda: texts.T.tocsr(),
        "dask": lambda: da.from_array(texts, chunks=(6000, 1500), asarray=False),
    }[layout]()  # fmt: skip
    one = NMF(12, random_state=1, tol=0, max_iter=4).fit(X)
    many = NMF(12, random_state=1, tol=0, max_iter=4, n_init=3).fit(X)
    assert one.history_["reads"].tolist() == many.history_["reads"].tolist()
    assert many.history_["loss"][-1] <= one.history_["loss"][-1] * (1.0 + 1e-9)
    known = NMF(12, random_state=1, tol=0, max_iter=4).fit(texts)
    first = (model.history_["loss"][0] for model in (one, known))
    np.testing.assert_allclose(*first, rtol=1e-9)


def test_a_cluster_gives_the_same_bits(texts, cluster, many_slabs):
    here = NMF(12, random_state=0, tol=0, max_iter=3).fit(texts)
    with Client(cluster):
        there = NMF(12, random_state=0, tol=0, max_iter=3).fit(texts)
    np.testing.assert_array_equal(there.components_, here.components_)
    assert there.history_["reads"][0] == 4.0


def test_ranks_of_a_study_share_the_read(texts, monkeypatch):
    """And each begins as a fit of its rank does."""
    began = {}

    def kept(name, begin):
        def starting(*given):
            began[name] = begin(*given)
            return began[name]

        return starting

    monkeypatch.setattr(studying, "study_start", kept("study", studying.study_start))
    monkeypatch.setattr(passes, "make_start", kept("fit", passes.make_start))
    given = {"random_state": 0, "max_iter": 2, "tol": 0}
    study = RankStudy([10, 12], n_init=1, holdout=0, **given).fit(texts)
    assert study.history_["reads"][0] == 4.0
    for k, short in zip((10, 12), began["study"][0].short, strict=True):
        NMF(k, **given).fit(texts)
        np.testing.assert_array_equal(short, began["fit"].short[0])


def test_the_plan_counts_what_the_read_brings():
    sparse = replace(DENSE, columns=100_000, sparse=True, nbytes=64 * 10**6)
    with_probes, without = Job(k=2, waves=4, probes=12), Job(k=2, waves=4)
    assert memory.probe_bytes(sparse, with_probes) == 100_000 * 12 * 8
    assert memory.probe_bytes(sparse, without) == 0
    wide = memory.work_bytes(sparse, replace(with_probes, widest=3))
    assert wide == memory.work_bytes(sparse, replace(with_probes, k=3))
    for machines in (TWO, replace(TWO, workers=0)):
        more, less = (make_plan(sparse, job, machines) for job in (with_probes, without))
        assert more.client_peak > less.client_peak
        if machines.workers:
            assert more.worker["sums"] > 5 * less.worker["sums"]
            assert more.worker["loading or arithmetic"] > less.worker["loading or arithmetic"]
