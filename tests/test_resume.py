"""A fit that was stopped anywhere goes on to the bits of the undisturbed one."""

import signal
import threading
from datetime import timedelta

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from conftest import planted, sparse_counts

import dasknmf
from dasknmf import NMF, ParameterError, ProblemMismatchError, StoppedError, StoreError
from dasknmf.checkpointing import Cadence
from dasknmf.packing import Packed, pack, unpack
from dasknmf.resuming import cadence_of
from dasknmf.signals import Stop, listening
from dasknmf.storage import blobs
from dasknmf.storage.objects import open_objects
from dasknmf.storage.survey import read_newest, verify

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

K = 3


def dense(rng, *, wide=False):
    V = planted(rng, 640, 20, K, noise=0.3)
    return da.from_array(V.T.copy(), chunks=(-1, 40)) if wide else da.from_array(V, chunks=(40, -1))


def counts(rng):
    return sparse_counts(rng, 640, 30)


KINDS = {
    "als": (dense, {}),
    "restarts": (dense, {"n_init": 3, "init": "random"}),
    "compressed": (dense, {"compress": True, "init": "random", "waves": 2}),
    "newton": (counts, {"beta_loss": "kullback-leibler"}),
    "mu": (dense, {"solver": "mu", "beta_loss": "kullback-leibler"}),
    "hals, sparse": (counts, {"solver": "hals"}),
    "wide": (lambda rng: dense(rng, wide=True), {}),
    "wide, mu": (lambda rng: dense(rng, wide=True), {"solver": "mu"}),
    "penalties": (dense, {"alpha_W": 0.01, "l1_ratio": 0.5, "init": "nndsvda"}),
}


class Interrupts:
    """Ask a fit to stop at its n-th boundary."""

    def __init__(self, monkeypatch):
        self.at, self.met = 0, 0
        monkeypatch.setattr(Stop, "reason", lambda stop, ahead: self.reason())

    def reason(self):
        self.met += 1
        return "a test" if self.met == self.at else None

    def next(self, at):
        self.at, self.met = at, 0


def bits(model, W):
    return (
        *(np.asarray(x).tobytes() for x in (W, model.components_)),
        tuple(model.history_["loss"]),
    )


@pytest.mark.usefixtures("many_slabs")
@pytest.mark.parametrize("kind", KINDS)
def test_stopped_at_every_boundary_and_resumed_it_has_the_same_bits(
    kind, rng, tmp_path, monkeypatch
):
    make, parameters = KINDS[kind]
    X, parameters = make(rng), {"random_state": 1, "tol": 0, "max_iter": 4, **parameters}
    if kind == "restarts":  # every array an object of its own
        monkeypatch.setattr("dasknmf.snapshots.ALONE", 1)
    plain = NMF(K, **parameters)
    expected = bits(plain, plain.fit_transform(X))
    interrupts, stops = Interrupts(monkeypatch), 0
    run = tmp_path / "run"
    while True:
        interrupts.next(1)
        model = NMF(K, checkpoint=run, **parameters)
        try:
            W = model.fit_transform(X)
            break
        except StoppedError:
            stops += 1
    assert stops >= 3
    assert bits(model, W) == expected
    assert verify(open_objects(run)) == []
    again = NMF(K, checkpoint=run, **parameters)
    assert bits(again, again.fit_transform(X)) == expected
    loaded = dasknmf.load(run)
    np.testing.assert_array_equal(loaded.components_, model.components_)
    np.testing.assert_array_equal(loaded.history_["loss"], model.history_["loss"])
    assert loaded.reconstruction_err_ == model.reconstruction_err_
    assert loaded.outcome_ is model.outcome_


@pytest.mark.parametrize("kind", ["als", "mu", "newton"])
def test_a_finished_run_goes_on_when_more_passes_are_allowed(kind, rng, tmp_path):
    make, parameters = KINDS[kind]
    X, parameters = make(rng), {"random_state": 1, "tol": 0, **parameters}
    run = tmp_path / "run"
    NMF(K, checkpoint=run, max_iter=2, **parameters).fit(X)
    longer, plain = (NMF(K, checkpoint=c, max_iter=5, **parameters) for c in (run, None))
    assert bits(longer, longer.fit_transform(X)) == bits(plain, plain.fit_transform(X))


def test_a_drawn_seed_is_that_of_the_run(rng, tmp_path, monkeypatch):
    X, interrupts = dense(rng), Interrupts(monkeypatch)
    interrupts.next(2)
    with pytest.raises(StoppedError):
        NMF(K, checkpoint=tmp_path / "a", init="random", tol=0, max_iter=3).fit(X)
    seed = read_newest(open_objects(tmp_path / "a")).meta["seed"]
    interrupts.next(0)
    model = NMF(K, checkpoint=tmp_path / "a", init="random", tol=0, max_iter=3).fit(X)
    plain = NMF(K, init="random", tol=0, max_iter=3, random_state=seed).fit(X)
    np.testing.assert_array_equal(model.components_, plain.components_)


def test_other_numbers_of_workers_give_the_same_bits(rng, tmp_path, cluster, monkeypatch):
    from distributed import Client

    X, interrupts = dense(rng), Interrupts(monkeypatch)
    for kind in ("als", "mu", "compressed"):
        parameters = {"random_state": 1, "tol": 0, "max_iter": 6, **KINDS[kind][1]}
        plain = NMF(K, **parameters)
        expected = bits(plain, plain.fit_transform(X))
        run = tmp_path / kind
        interrupts.next(3)
        with Client(cluster) as client, pytest.raises(StoppedError):
            NMF(K, checkpoint=run, **parameters).fit(X, client=client)
        interrupts.next(2)
        with pytest.raises(StoppedError):
            NMF(K, checkpoint=run, **parameters).fit(X)
        interrupts.next(0)
        with Client(cluster) as client:
            model = NMF(K, checkpoint=run, **parameters)
            assert bits(model, model.fit_transform(X, client=client)) == expected


def test_another_matrix_is_refused_by_place(rng, tmp_path, monkeypatch, many_slabs):
    V = planted(rng, 640, 20, K)
    model = NMF(K, checkpoint=tmp_path / "run", random_state=0, tol=0, max_iter=3)
    interrupts = Interrupts(monkeypatch)
    interrupts.next(4)
    with pytest.raises(StoppedError):
        model.fit(V)
    before = read_newest(open_objects(tmp_path / "run"))
    interrupts.next(0)
    changed = V.copy()
    changed[333, 7] += 1e-9
    with pytest.raises(ProblemMismatchError, match=r"X has changed.*slab \d+ \(rows"):
        model.fit(changed)
    after = read_newest(open_objects(tmp_path / "run"))
    assert after.entries == before.entries


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"n_components": 4}, "n_components is 3 there, and 4 was given"),
        ({"alpha_W": 0.1}, "alpha_W is 0.0 there"),
        ({"random_state": 2}, "random_state is 1 there"),
        ({"solver": "hals"}, "solver is 'als' there"),
        ({"init": "random"}, "init is 'sample' there"),
    ],
)
def test_other_parameters_are_refused_by_name(change, what, rng, tmp_path):
    X = planted(rng, 100, 20, K)
    given = {"n_components": K, "random_state": 1, "checkpoint": tmp_path / "run", "tol": 1e-2}
    NMF(**given).fit(X)
    with pytest.raises(ProblemMismatchError, match=what):
        NMF(**{**given, **change}).fit(X)
    NMF(**{**given, "tol": 1e-3, "max_iter": 300, "checkpoint_every": "1h"}).fit(X)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"checkpoint_every": 0}, "checkpoint_every=0; expected passes"),
        ({"checkpoint_every": "soon"}, "checkpoint_every='soon'"),
        ({"checkpoint_every": -1.5}, "checkpoint_every=-1.5"),
        ({"resume": "yes"}, "resume='yes'; expected one of"),
        ({"time_limit": "1h", "checkpoint": None}, "needs checkpoint="),
        ({"time_limit": 0}, "time_limit=0; expected seconds"),
        ({"resume": "must", "checkpoint": None}, "resume='must' needs checkpoint="),
        ({"checkpoint": 7}, "checkpoint=7; expected a folder"),
    ],
)
def test_bad_parameters(given, what, tmp_path, rng):
    with pytest.raises(ParameterError, match=what):
        NMF(K, **{"checkpoint": tmp_path / "run", **given}).fit(planted(rng, 30, 10))
    assert not (tmp_path / "run").exists()


def test_a_path_that_must_or_must_not_hold_a_run(rng, tmp_path):
    X = planted(rng, 100, 20, K)
    with pytest.raises(StoreError, match="holds no run"):
        NMF(K, checkpoint=tmp_path / "a", resume="must").fit(X)
    NMF(K, checkpoint=tmp_path / "a", random_state=0, tol=0.1).fit(X)
    with pytest.raises(StoreError, match="resume='never'"):
        NMF(K, checkpoint=tmp_path / "a", random_state=0, resume="never").fit(X)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match=r"thesis\.tex"):
        NMF(K, checkpoint=tmp_path / "b").fit(X)


def test_cadences():
    assert cadence_of(3).due(3, 0.0, ended=True)
    assert not cadence_of(3).due(2, 1e9, ended=True)
    assert not cadence_of(1).due(1, 0.0, ended=False)
    assert cadence_of("2min") == cadence_of(timedelta(minutes=2)) == Cadence(None, 120.0)
    assert cadence_of("2min").due(0, 121.0, ended=False)


def test_the_time_limit_counts_what_lies_ahead():
    stop = Stop(limit=10.0)
    assert stop.reason(1.0) is None
    assert "10 s" in stop.reason(11.0)


@pytest.fixture
def usual_handlers():
    """Those of a fresh process: who runs the tests may have set others."""
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("usual_handlers")
def test_a_signal_asks_once_and_then_acts():
    stop = Stop()
    before = signal.getsignal(signal.SIGTERM)
    with listening(stop):
        assert signal.getsignal(signal.SIGTERM) is not before
        signal.raise_signal(signal.SIGTERM)
        assert stop.reason(0.0) == "SIGTERM"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_handlers_of_others_stay(monkeypatch):
    mine = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        handler = signal.getsignal(signal.SIGTERM)
        with listening(Stop()):
            assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, mine)
    thread = threading.Thread(target=lambda: listening(Stop()).__enter__())
    thread.start()
    thread.join()


def test_a_slow_store_does_not_stall_the_fit(rng, tmp_path, monkeypatch, many_slabs):
    """Commits are held until the fit is at its end: every boundary is met all the same."""
    from dasknmf.storage.runs import Run

    opened, commit = threading.Event(), Run.commit
    passes = []

    def slow(self, *args):
        assert opened.wait(60)
        return commit(self, *args)

    def note(info):
        passes.append(info.number)
        if info.phase == "final rows":
            opened.set()

    monkeypatch.setattr(Run, "commit", slow)
    X = planted(rng, 640, 20, K)
    run = tmp_path / "run"
    model = NMF(K, random_state=0, tol=0, max_iter=5, checkpoint=run, callbacks=[note]).fit(X)
    assert passes == [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(dasknmf.load(run).components_, model.components_)


def test_failed_commits_are_warned_of_and_then_end_the_fit(rng, tmp_path, monkeypatch):
    from dasknmf.storage.runs import Run

    X, run, commit = dense(rng), tmp_path / "run", Run.commit
    failing = []

    def fails(self, *args):
        if failing:
            failing.pop()
            raise StoreError("no space left on device")
        return commit(self, *args)

    monkeypatch.setattr(Run, "commit", fails)
    parameters = {"random_state": 0, "tol": 0, "max_iter": 8, "init": "random"}
    failing[:] = [1]  # a slow disk leaves time for two commits, the first and the last
    with pytest.warns(dasknmf.StoreWarning, match="a commit failed, and the fit goes on"):
        model = NMF(K, checkpoint=run, **parameters).fit(X)
    np.testing.assert_array_equal(dasknmf.load(run).components_, model.components_)
    failing[:] = [1] * 99
    with (
        pytest.warns(dasknmf.StoreWarning),
        pytest.raises(StoreError, match="commits in a row failed"),
    ):
        NMF(K, checkpoint=tmp_path / "other", **{**parameters, "max_iter": 2000}).fit(X)


def loaded_soon(run):
    """The first commit may still be on its way to the disk."""
    for _ in range(3000):
        try:
            return dasknmf.load(run)
        except dasknmf.MissingError:
            threading.Event().wait(0.01)
    raise AssertionError("no commit in 30 s")


def test_transform_works_with_a_run_that_goes_on(rng, tmp_path):
    X, seen = dense(rng), []

    def look(info):
        if info.phase == "pass" and info.number == 3:
            found = loaded_soon(tmp_path / "run")
            seen.append((found.outcome_, found.transform(X[:10]).compute().shape))

    NMF(
        K, random_state=0, tol=0, max_iter=4, checkpoint=tmp_path / "run", callbacks=[look]
    ).fit(X)  # fmt: skip
    assert seen == [(dasknmf.Outcome.UNFINISHED, (10, K))]


def test_packing_keeps_bits_and_refuses_what_it_does_not_know():
    from fractions import Fraction

    from dasknmf.numerics.terms import Exponent, Normal
    from dasknmf.numerics.work import ModelSums

    shared = np.array([0.1, np.nan, -0.0])
    terms = Normal(shared, shared)
    value = [ModelSums(terms, 0.1, float("inf")), (1, None, True), Fraction(1, 3), Exponent(0.5)]
    packed = pack(value)
    assert len(packed.arrays) == 1
    found = unpack(packed)
    assert found[0].terms.cross.tobytes() == shared.tobytes()
    assert found[0].residual == float("inf")
    assert found[1:] == value[1:]
    assert type(found[3]) is Exponent
    with pytest.raises(TypeError, match="can't be written"):
        pack(object())
    for tree in (
        {"!": "Popen", "of": {}}, {"!": "Normal", "of": {"cross": 1}}, {"a": 1},
        {"!": "array", "of": -1}, {"!": "array", "of": 0}, {"!": "Fraction", "of": "1/0"},
    ):  # fmt: skip
        with pytest.raises(StoreError, match="does not make sense"):
            unpack(Packed(tree))


@pytest.mark.parametrize("shape", [(4, 3), (5,), (0, 3)])
def test_blobs_are_checked(shape, rng):
    array = rng.random(shape)
    files = blobs.array_objects("a", array, ("x", "y")[: len(shape)])
    np.testing.assert_array_equal(blobs.read_array("a", files), array)
    meta = files["a/zarr.json"]
    for old, new in ((b'"crc32c"', b'"gzip"'), (b"float64", b"object"), (b'"shape"', b'"shap"')):
        with pytest.raises(StoreError, match="is damaged"):
            blobs.read_array("a", {**files, "a/zarr.json": meta.replace(old, new)})
    for key in files:
        with pytest.raises(StoreError, match="is damaged"):
            blobs.read_array("a", {k: v for k, v in files.items() if k != key})
        if key != "a/zarr.json":
            flipped = bytearray(files[key])
            flipped[0] ^= 1
            with pytest.raises(StoreError, match="is damaged"):
                blobs.read_array("a", {**files, key: bytes(flipped)})


@pytest.mark.parametrize("dtype", sorted(blobs.DTYPES))
@pytest.mark.parametrize(("shape", "chunk"), [((7, 3), 40), ((5,), 1), ((2, 2, 2), 1 << 20)])
def test_blobs_are_what_zarr_writes(shape, chunk, dtype, rng, monkeypatch):
    """Every chunk, also the last and padded one, byte for byte."""
    import zarr
    from zarr.core.buffer import cpu
    from zarr.storage import MemoryStore

    monkeypatch.setattr(blobs, "CHUNK", chunk)
    array = (rng.random(shape) * 9 - 4 * (dtype != "uint8")).astype(dtype)
    files = blobs.array_objects("a", array, ("x", "y", "z")[: len(shape)])
    written = {k: cpu.Buffer.from_bytes(v) for k, v in files.items() if k.endswith(blobs.META)}
    with zarr.config.set({"array.write_empty_chunks": True}):
        zarr.open_array(MemoryStore(written), path="a", mode="r+")[...] = array
    assert {k: v.to_bytes() for k, v in written.items()} == files
    np.testing.assert_array_equal(blobs.read_array("a", files), array)


def test_a_group_that_xarray_opens(rng, tmp_path):
    X = planted(rng, 100, 20, K)
    model = NMF(K, checkpoint=tmp_path / "run", random_state=0, tol=1e-2).fit(X)
    import xarray as xr

    newest = read_newest(open_objects(tmp_path / "run"))
    group = str(tmp_path / "run" / "/".join(newest.entries[0].key.split("/")[:2]))
    with xr.open_zarr(group, consolidated=False) as found:
        assert found["H"].dims == ("component", "feature")
        np.testing.assert_array_equal(found["H"].values, model.components_)


def test_sparse_wide_counts_resume(rng, tmp_path, monkeypatch):
    X = sp.csr_array(counts(rng).T)
    parameters = {"beta_loss": "kullback-leibler", "random_state": 0, "tol": 0, "max_iter": 3}
    plain = NMF(K, **parameters)
    expected = bits(plain, plain.fit_transform(X))
    interrupts = Interrupts(monkeypatch)
    interrupts.next(2)
    with pytest.raises(StoppedError):
        NMF(K, checkpoint=tmp_path / "run", **parameters).fit(X)
    with pytest.raises(StoreError, match="has W and not yet H"):
        dasknmf.load(tmp_path / "run")
    interrupts.next(0)
    model = NMF(K, checkpoint=tmp_path / "run", **parameters)
    assert bits(model, model.fit_transform(X)) == expected


@pytest.mark.parametrize("kept", [False, True])
def test_carried_rows_that_die_after_the_last_pass_come_back(kept, rng, tmp_path, monkeypatch):
    from dasknmf.numerics.errors import RowsLostError
    from dasknmf.parallel.executors import ThreadsExecutor

    X, parameters = rng.random((100, 20)), {"solver": "mu", "random_state": 1, "max_iter": 4}
    parameters |= {"tol": 0, "checkpoint": tmp_path / "run" if kept else None}
    plain = NMF(K, **{**parameters, "checkpoint": None})
    expected = bits(plain, plain.fit_transform(X))
    fetch, asked = ThreadsExecutor.fetch, []

    def lost(self, rows):
        asked.append(self.reads)
        if len(asked) == 1:
            raise RowsLostError("gone")
        return fetch(self, rows)

    monkeypatch.setattr(ThreadsExecutor, "fetch", lost)
    model = NMF(K, **parameters)
    assert bits(model, model.fit_transform(X)) == expected
    assert len(asked) == 2
    assert asked[1] - asked[0] <= (1 if kept else 7)
