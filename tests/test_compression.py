"""Compressed passes: what they find, what they cost, what they never say, and when they are off."""

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from conftest import planted

from dasknmf import NMF, DataError, ParameterError
from dasknmf.compression import Compression, Progress
from dasknmf.ensemble import ACCURACY, Model, Problem
from dasknmf.numerics import compression
from dasknmf.numerics.compression import CompressedStep, LowRank, SketchedStep, extra_probes
from dasknmf.numerics.errors import RowsLostError
from dasknmf.numerics.losses import Frobenius
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers.als import ALS
from dasknmf.numerics.stopping import RelativeChange
from dasknmf.numerics.work import Step
from dasknmf.parallel.executors import ThreadsExecutor
from dasknmf.parallel.slabs import cut
from dasknmf.parallel.starts import Request

pytestmark = [
    pytest.mark.usefixtures("many_slabs"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]
K = 4


@pytest.fixture(autouse=True)
def few_passes(monkeypatch):
    """Fits with tol=0 and small matrices: neither long in compression nor too small for it."""
    monkeypatch.setattr("dasknmf.compression.FINEST", 1e-3)
    monkeypatch.setattr("dasknmf.numerics.compression.SMALLEST", 1 << 19)


def fit(X, compress=True, client=None, **more):
    more = {"random_state": 0, "tol": 0, "max_iter": 4, "init": "random", **more}
    model = NMF(K, compress=compress, **more)
    W = np.asarray(model.fit_transform(X, client=client))
    return model, W


@pytest.fixture
def counted(monkeypatch):
    """Compressed visits so far, one entry a slab."""
    visits = []
    plain = CompressedStep.__call__

    def counting(self, V, rows, place):
        visits.append(V)
        return plain(self, V, rows, place)

    monkeypatch.setattr(CompressedStep, "__call__", counting)
    return visits


def one_pass(V, dtype=np.float64, waves=3):
    """A model after a pass over V, and the compressed rows that the pass has left."""
    V = np.asarray(V, dtype)
    executor = ThreadsExecutor(cut(V))
    loss, none, solver = Frobenius(), Penalty(), ALS()
    order = [list(range(i, len(executor.slabs), waves)) for i in range(waves)]
    request = Request(K, "random", 0, loss, solver, (none, none))
    found = Compression(executor, request, RelativeChange(1e-4), order, Progress(on=True))
    short = np.random.default_rng(1).random((V.shape[1], K)).astype(dtype)
    model = Model(0, short, [None] * waves, ACCURACY, 1e-2)
    problem = Problem(loss, none, float(np.sum(np.square(V, dtype=np.float64))))
    found.begin([model], last=False)
    for wave, slabs in enumerate(order):
        step = Step(loss, solver, none, (model.short,))
        (visit,) = found.visit(step, [slabs], keep=False)
        model.visit(wave, visit.sums.models[0], problem, solver)
    model.close_pass(problem, ALS())
    return executor, found, model, problem, order


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_on_a_low_rank_matrix_a_compressed_step_is_the_step_itself(rng, noise):
    V = rng.random((300, K + 3)) @ rng.random((K + 3, 60)) + noise * rng.random((300, 60))
    executor, found, model, *_ = one_pass(V)
    low_rank = LowRank.of(
        compression.Sketch(*(sum(part) for part in zip(*found.progress.sketches, strict=True)))
    )
    step = low_rank.step(ALS(), Penalty(), [model.short])
    ours = low_rank.widened(executor.run(step, found.progress.rows, load=False).sums[0]).terms
    plain = executor.run(Step(Frobenius(), ALS(), Penalty(), (model.short,))).sums.models[0].terms
    off = max(
        np.max(np.abs(ours.cross - plain.cross)) / np.max(plain.cross),
        np.max(np.abs(ours.gram - plain.gram)) / np.max(plain.gram),
    )
    assert off < 1e-10 if noise == 0 else 1e-10 < off < 1e-2


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_probes_hold_the_short_factors(rng, dtype):
    F = rng.random((50, K)).astype(dtype)
    F[:, 1] = 0.0  # a dead component
    basis = compression.probes([F], compression.random_directions(0, 50, extra_probes(K)))
    assert basis.shape == (50, 2 * K + 10 - 1)
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)
    np.testing.assert_allclose(basis @ (basis.T @ F), F, atol=1e-5)


def test_compressed_passes_save_reads_and_the_loss_is_that_on_v(rng, counted):
    X = planted(rng, 600, 200, k=K + 2, noise=0.3)
    plain, _ = fit(X, compress=False, max_iter=3)
    assert not counted
    model, W = fit(X, max_iter=3)
    assert counted
    assert all(V is None for V in counted)  # nothing was loaded for them
    assert model.history_["loss"][2] < plain.history_["loss"][2]
    true = np.linalg.norm(X - W @ model.components_)
    assert model.reconstruction_err_ == pytest.approx(true, rel=1e-9)
    assert model.history_["loss"][-1] == pytest.approx(0.5 * true**2, rel=1e-9)
    np.testing.assert_array_equal(model.history_["reads"], [1, 2, 3, 4])
    assert (np.diff(model.history_["objective"]) <= 0).all()


@pytest.mark.parametrize("alpha", [0.0, 0.002])
def test_noise_is_refused_and_the_fit_is_what_it_would_have_been(rng, alpha):
    X = rng.gamma(1.0, 1.0, (600, 200))
    first, _ = fit(X, compress=False, max_iter=6, alpha_W=alpha)
    second, _ = fit(X, max_iter=6, alpha_W=alpha)
    worse = second.history_["objective"][-1] / first.history_["objective"][-1] - 1
    assert worse < 1e-3
    assert (np.diff(second.history_["objective"]) <= 0).all()


@pytest.mark.parametrize(("current", "taken"), [(0.0, False), (np.inf, True)])
def test_models_stay_as_they_are_where_nothing_is_to_be_gained(rng, current, taken):
    _, found, model, problem, _ = one_pass(rng.gamma(1.0, 1.0, (300, 60)))
    start, short = np.random.default_rng(1).random((60, K)), model.short
    probes = found.progress.probes
    np.testing.assert_allclose(probes @ (probes.T @ start), start)
    model.current = current
    found.refine([model], problem)
    assert (model.short is short) is not taken
    assert (model.current is None) is taken


def test_a_promise_that_a_pass_does_not_confirm_is_taken_back(rng):
    _, found, model, problem, order = one_pass(planted(rng, 300, 60, k=K + 2))
    before, short = model.current, model.short
    liar = model.copy()
    liar.waves, liar.short = list(model.waves), np.ones_like(short)
    model.take_over(liar)
    found.begin([model], last=True)
    for wave, slabs in enumerate(order):
        assert model.current is None  # no objective is formed from stand-ins
        step = Step(Frobenius(), ALS(), Penalty(), (np.ones_like(short),))
        (visit,) = found.visit(step, [slabs], keep=False)
        model.visit(wave, visit.sums.models[0], problem, ALS())
    assert model.current > before
    model.close_pass(problem, ALS())
    assert model.objectives == [before, before]
    assert model.short is short
    assert not model.trusting


def test_callbacks_see_reads_of_v_only(rng):
    X, seen = planted(rng, 600, 200, k=K + 2), []
    model, _ = fit(X, callbacks=[seen.append])
    np.testing.assert_array_equal([info.loss for info in seen], model.history_["loss"])
    assert [info.phase for info in seen] == ["pass"] * 4 + ["final rows"]


def test_same_bits_on_threads_and_workers(rng, cluster, counted):
    from distributed import Client, LocalCluster

    X = da.from_array(planted(rng, 600, 200, k=K + 2), chunks=(75, -1))
    expected, W = fit(X, max_iter=3)
    assert counted
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as one:
        for workers in (one, cluster):
            with Client(workers) as client:
                model, found = fit(X, max_iter=3, client=client)
            np.testing.assert_array_equal(model.components_, expected.components_)
            np.testing.assert_array_equal(found, W)
            np.testing.assert_array_equal(model.history_["reads"], expected.history_["reads"])


def test_lost_rows_begin_the_fit_anew_with_the_same_numbers(rng, monkeypatch, caplog):
    X = planted(rng, 600, 200, k=K + 2)
    expected, W = fit(X)
    plain, losses = Compression._pass, []

    def losing(self, *args):
        losses.append(1)
        if len(losses) == 3:
            raise RowsLostError("gone")
        plain(self, *args)

    monkeypatch.setattr(Compression, "_pass", losing)
    model, found = fit(X)
    assert "begins again" in caplog.text
    np.testing.assert_array_equal(model.components_, expected.components_)
    np.testing.assert_array_equal(found, W)
    assert model.history_["reads"][-1] == expected.history_["reads"][-1] + 1


def test_bad_values_are_named_by_place(rng):
    X = planted(rng, 600, 200)
    X[401, 7] = np.nan
    with pytest.raises(DataError, match="row 401, column 7"):
        fit(X)


@pytest.mark.parametrize(
    ("X", "more", "what"),
    [
        (sp.random_array((50, 20), density=0.3, format="csr"), {}, "sparse"),
        (np.ones((50, 20)), {"solver": "hals"}, "solver='hals'"),
        (np.ones((50, 20)), {"beta_loss": "kullback-leibler"}, "kullback-leibler"),
        (np.ones((50, 20)), {"compress": "yes"}, "expected True, False or 'auto'"),
    ],
)
def test_what_can_not_be_compressed_is_refused(X, more, what):
    with pytest.raises(ParameterError, match=what):
        NMF(2, **{"compress": True, **more}).fit(X)
    if "compress" not in more:
        NMF(2, compress="auto", random_state=0, max_iter=2, **more).fit(X)


def test_auto_is_for_wide_lazy_matrices_that_fit(rng, counted, monkeypatch):
    X = planted(rng, 600, 200, k=K + 2)
    lazy = da.from_array(X, chunks=(40, -1))
    for off in (X, lazy[:, :100], lazy[:300]):
        fit(off, "auto", max_iter=2)
        assert not counted
    with monkeypatch.context() as full:
        full.setattr(ThreadsExecutor, "room", 0)
        fit(lazy, "auto", max_iter=2)
        assert not counted
    assert not compression.pays(cut(lazy).shape, 8, 22, lazy=True, fits=False)
    fit(lazy, "auto", max_iter=2)
    assert counted


def test_slabs_leave_rows_of_their_own_dtype(rng):
    V = planted(rng, 40, 30, dtype=np.float32)
    F = np.ones((30, K), np.float32)
    work = SketchedStep(Step(Frobenius(), ALS(), Penalty(), (F,)), np.eye(30)[:, :6])
    rows, _ = work(V, None, cut(V).places[0])
    assert rows[0].dtype == np.float32
    np.testing.assert_array_equal(rows[0], V[:, :6])
