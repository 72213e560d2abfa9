"""A study that was stopped anywhere goes on to the bits of the undisturbed one."""

import signal

import dask.array as da
import numpy as np
import pytest
from conftest import planted, sparse_counts
from test_resume import Interrupts

import dasknmf
from dasknmf import NMF, ParameterError, ProblemMismatchError, RankStudy, StoppedError, StoreError
from dasknmf.ensemble import Model
from dasknmf.packing import Packed, pack, unpack
from dasknmf.state import State
from dasknmf.state_study import StudyState, restored
from dasknmf.storage.objects import open_objects
from dasknmf.storage.survey import read_newest, verify

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

SMALL = {"ranks": (2, 4), "n_init": 2, "random_state": 1, "tol": 1e-3, "max_iter": 6}


def tall(rng):
    return da.from_array(planted(rng, 160, 20, 3, noise=0.2), chunks=(10, -1))


def wide(rng):
    return da.from_array(planted(rng, 160, 20, 3, noise=0.2).T, chunks=(-1, 20))


def counts(rng):
    return sparse_counts(rng, 160, 20)


TWO = (2, 2)
FOLDED = {"folds": TWO, "max_iter": 3, "n_init": 1}
KINDS = {
    "tall": (tall, {}, 3),
    "wide": (wide, {"holdout": 0, "max_iter": 3}, 3),
    "counts": (counts, {"beta_loss": "kullback-leibler", "max_iter": 3}, 2),
    "mostly missing": (counts, {"missing": "unstored", "max_iter": 3}, 2),
    "folds": (tall, FOLDED, 2),
    "wide folds": (wide, {**FOLDED, "ranks": (3,), "max_iter": 2}, 2),
}


def bits(study):
    """Everything that a study says but its times."""
    parts = [study.table().tobytes(), study.best_rank_, study.rule_, study.fingerprint_]
    parts += [study.history_["loss"].tobytes(), study.reads_, study.n_iter_]
    parts += [study.samples_.tobytes(), study.n_features_in_, study.runner_up_]
    for k in study.ranks_:
        model = study.model(k)
        parts += [model.components_.tobytes(), model.history_["objective"].tobytes()]
        parts += [model.outcome_, model.n_iter_, study.stabilities_[k].tobytes()]
        parts += [study.consensus_[k].tobytes() if k in study.consensus_ else None]
    return parts


@pytest.fixture
def interrupts(monkeypatch):
    return Interrupts(monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_again_and_again_it_ends_with_the_bits_of_the_undisturbed(
    kind, rng, tmp_path, interrupts
):
    make, given, every = KINDS[kind]
    X, given, run, stops = make(rng), {**SMALL, **given}, tmp_path / "run", 0
    expected = bits(RankStudy(**given).fit(X))
    while True:
        interrupts.next(every)
        study = RankStudy(**given, checkpoint=run)
        try:
            study.fit(X)
            break
        except StoppedError:
            stops += 1
    assert stops >= 2
    assert bits(study) == expected
    assert verify(open_objects(run)) == []
    interrupts.next(0)
    assert bits(RankStudy(**given, checkpoint=run).fit(X)) == expected
    assert bits(dasknmf.load(run)) == expected


def test_on_a_cluster_and_off_it_the_bits_are_the_same(rng, tmp_path, client, interrupts):
    for kind in ("tall", "wide"):
        make, given, _ = KINDS[kind]
        X, given, run = make(rng), {**SMALL, "max_iter": 3, **given}, tmp_path / kind
        interrupts.next(0)
        with client.as_current():
            there = bits(RankStudy(**given).fit(X, client=client))
        interrupts.next(3)
        with pytest.raises(StoppedError):
            RankStudy(**given, checkpoint=run).fit(X, client=client)
        interrupts.next(0)
        resumed, here = (in_threads(RankStudy(**given, checkpoint=c), X) for c in (run, None))
        assert there == here == resumed


def in_threads(study, X):
    """Bits of a study without the client that is active."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dasknmf.parallel.active_client", lambda: None)
        return bits(study.fit(X))


def test_what_was_stopped_by_max_iter_or_a_callback_goes_on(rng, tmp_path):
    X, given, run = tall(rng), {**SMALL, "tol": 1e-6}, tmp_path / "run"
    expected = bits(RankStudy(**given).fit(X))
    once = [True, False]
    first = RankStudy(**given, checkpoint=run, callbacks=[lambda info: once.pop(0)]).fit(X)
    assert first.model(2).outcome_ is dasknmf.Outcome.INTERRUPTED
    short = RankStudy(**{**given, "max_iter": 3}, checkpoint=run).fit(X)
    assert short.n_iter_ == 3
    assert short.model(4).checkpoint is None
    assert short.model(4).outcome_ is dasknmf.Outcome.MAX_ITER
    assert bits(RankStudy(**given, checkpoint=run).fit(X)) == expected


def test_a_study_with_folds_goes_on_after_a_callback_and_max_iter(rng, tmp_path):
    X, given, run = tall(rng), {**SMALL, "folds": (2, 3), "n_init": 2}, tmp_path / "run"
    expected = RankStudy(**given).fit(X)
    once = [True, False]
    for change in ({"callbacks": [lambda info: once.pop(0)]}, {"max_iter": 3}, {}):
        study = RankStudy(**{**given, **change}, checkpoint=run).fit(X)
    assert bits(study) == bits(expected)
    assert np.isfinite(study.table()["holdout_se"]).all()
    for found in (study, dasknmf.load(run)):
        consensus = found.consensus_components(4)
        assert consensus.components.tobytes() == expected.consensus_components(4)[0].tobytes()
    assert dasknmf.load(run).consensus_model(X, 2).checkpoint is None


def test_folds_that_are_not_done_have_no_errors_yet(rng, tmp_path, interrupts):
    X, given, run = tall(rng), {**SMALL, "tol": 0, **FOLDED, "max_iter": 9}, tmp_path / "run"
    interrupts.next(7)
    with pytest.raises(StoppedError):
        RankStudy(**given, checkpoint=run).fit(X)
    seen, whole = dasknmf.load(run), RankStudy(**{**given, "holdout": 0, "folds": None})
    assert seen.rule_.startswith("not done")
    for name in ("holdout_error", "holdout_se"):
        assert np.isnan(seen.table()[name]).all()
    passes = len(seen.history_["loss"])
    whole.set_params(max_iter=passes).fit(X)
    for k in (2, 4):
        loss = seen.model(k).history_["loss"]
        np.testing.assert_allclose(loss, whole.model(k).history_["loss"][:passes], rtol=1e-9)
    shown = read_newest(open_objects(run)).meta["shown"]
    assert [rank["of"]["restarts"] for rank in shown["of"]["ranks"]] == [1, 1]


def test_a_drawn_seed_is_that_of_the_run(rng, tmp_path, interrupts):
    X, given = tall(rng), {**SMALL, "random_state": None, "max_iter": 2}
    interrupts.next(2)
    with pytest.raises(StoppedError):
        RankStudy(**given, checkpoint=tmp_path / "run").fit(X)
    seed = read_newest(open_objects(tmp_path / "run")).meta["seed"]
    interrupts.next(0)
    resumed = RankStudy(**given, checkpoint=tmp_path / "run").fit(X)
    assert bits(resumed) == bits(RankStudy(**{**given, "random_state": seed}).fit(X))


def test_another_matrix_is_refused_by_place_even_by_a_study_that_is_done(rng, tmp_path, interrupts):
    V, small = planted(rng, 160, 20, 3), {**SMALL, "max_iter": 2}
    for value, stop, folds in ((1e3, 3, None), (1e3, 0, None), (np.nan, 0, None), (np.nan, 0, TWO)):
        given, run = {**small, "folds": folds}, tmp_path / f"run of {folds}"
        changed = V.copy()
        changed[77, 7] = value
        interrupts.next(stop)
        study = RankStudy(**given, checkpoint=run)
        if stop:
            with pytest.raises(StoppedError):
                study.fit(V)
        else:
            study.fit(V)
        before = read_newest(open_objects(run)).entries
        interrupts.next(0)
        with pytest.raises(ProblemMismatchError, match=r"X has changed.*slab \d+ \(rows"):
            RankStudy(**given, checkpoint=run).fit(changed)
        assert read_newest(open_objects(run)).entries == before


def test_other_weights_are_another_matrix(rng, tmp_path):
    X, given = tall(rng), {**SMALL, "max_iter": 2, "checkpoint": tmp_path / "run"}
    RankStudy(**given).fit(X, weights=np.ones(X.shape))
    with pytest.raises(ProblemMismatchError, match="Give the same X and weights"):
        RankStudy(**given).fit(X, weights=np.full(X.shape, 0.5))
    with pytest.raises(ProblemMismatchError, match="Give the same X and weights"):
        RankStudy(**given).fit(X)


def test_other_parameters_are_refused_by_name(rng, tmp_path):
    X, given = tall(rng), {**SMALL, "max_iter": 1, "checkpoint": tmp_path / "run"}
    RankStudy(**given).fit(X)
    for change, what in (
        ({"ranks": (2, 3)}, r"ranks is \[2, 4\] there, and \[2, 3\] was given"),
        ({"n_init": 3}, "n_init is 2 there"),
        ({"tol": 1e-5}, "tol is 0.001 there"),
        ({"holdout": 0.1}, "holdout is 0.05 there"),
        ({"holdout": 0.05, "folds": (2, 2)}, r"folds is None there, and \[2, 2\] was given"),
        ({"random_state": 2}, "random_state is 1 there"),
        ({"waves": 1}, "waves is"),
    ):
        with pytest.raises(ProblemMismatchError, match=what):
            RankStudy(**{**given, **change}).fit(X)
    assert RankStudy(**{**given, "ranks": [4, 2]}).fit(X).n_iter_ == 1


def test_a_study_and_a_fit_do_not_share_a_run(rng, tmp_path):
    X = tall(rng)
    NMF(2, random_state=0, max_iter=1, checkpoint=tmp_path / "fit").fit(X)
    RankStudy(**{**SMALL, "max_iter": 1}, checkpoint=tmp_path / "study").fit(X)
    with pytest.raises(ProblemMismatchError, match="holds a run of NMF, and RankStudy was given"):
        RankStudy(**SMALL, checkpoint=tmp_path / "fit").fit(X)
    with pytest.raises(ProblemMismatchError, match="holds a run of RankStudy, and NMF was given"):
        NMF(2, random_state=0, checkpoint=tmp_path / "study").fit(X)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"checkpoint_every": 0}, "checkpoint_every=0; expected passes"),
        ({"resume": "yes"}, "resume='yes'; expected one of"),
        ({"time_limit": "1h", "checkpoint": None}, "needs checkpoint="),
        ({"checkpoint": 7}, "checkpoint=7; expected a folder"),
    ],
)
def test_bad_parameters_are_refused_before_anything_is_written(given, what, rng, tmp_path):
    with pytest.raises(ParameterError, match=what):
        RankStudy((2, 3), **{"checkpoint": tmp_path / "run", **given}).fit(tall(rng))
    assert not (tmp_path / "run").exists()


def test_a_study_that_is_not_done_is_one_as_far_as_it_has_come(rng, tmp_path, interrupts):
    X, given, run = tall(rng), {**SMALL, "tol": 0}, tmp_path / "run"
    undisturbed = RankStudy(**given).fit(X)
    interrupts.next(2)
    with pytest.raises(StoppedError):
        RankStudy(**given, checkpoint=run).fit(X)
    with pytest.raises(StoreError, match="no pass has ended yet"):
        dasknmf.load(run)
    interrupts.next(6)
    with pytest.raises(StoppedError):
        RankStudy(**given, checkpoint=run).fit(X)
    seen, table = dasknmf.load(run), undisturbed.table()
    passes = len(seen.history_["loss"])
    assert seen.rule_.startswith(f"not done, after pass {passes}: ")
    assert seen.table()["rank"].tolist() == [2, 4]
    assert np.isnan(seen.table()["cophenetic"]).all()
    for name in ("loss", "explained_variance", "holdout_error", "stability"):
        np.testing.assert_allclose(seen.table()[name], table[name], rtol=0.2)
    model = seen.model(4)
    assert model.outcome_ is dasknmf.Outcome.UNFINISHED
    assert model.history_["loss"].size == passes
    assert model.reconstruction_err_ == np.sqrt(2 * seen.table()["loss"][1])
    assert seen.table()["loss"][1] <= model.history_["loss"][-1]  # half a pass further
    assert model.get_params()["checkpoint"] is None
    assert model.transform(X[:10]).compute().shape == (10, 4)
    report = pytest.importorskip("dasknmf.report_study")
    text = report.report_study(seen, tmp_path / "study.html").read_text(encoding="utf8")
    assert "The study is not done" in text


def test_wide_studies_have_no_components_before_their_end(rng, tmp_path, interrupts):
    interrupts.next(4)
    with pytest.raises(StoppedError):
        RankStudy(**{**SMALL, "tol": 0}, checkpoint=tmp_path / "run").fit(wide(rng))
    with pytest.raises(StoreError, match=r"H comes with the last read.*dasknmf watch"):
        dasknmf.load(tmp_path / "run")


def test_what_a_commit_can_not_mean_is_refused():
    kept = {2: [np.arange(3)], 3: []}
    found = unpack(pack(kept))
    assert list(found) == [2, 3]
    np.testing.assert_array_equal(found[2][0], kept[2][0])
    for tree in ([[[1], 2]], [1], [[1, 2, 3]], None):
        with pytest.raises(StoreError, match="does not make sense"):
            unpack(Packed({"!": "dict", "of": tree}))
    model = Model(0, np.ones((2, 2)), [], 0.0, 0.0)
    for state in (State([model]), StudyState([model])):  # of a fit; without its courses
        with pytest.raises(StoreError, match="is not that of a study"):
            restored(state)


def test_sigterm_ends_in_a_commit(rng, tmp_path):
    X, run = tall(rng), tmp_path / "run"
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        ask = lambda info: signal.raise_signal(signal.SIGTERM)  # noqa: E731
        with pytest.raises(StoppedError, match=r"SIGTERM: stopped.*same call again") as stopped:
            RankStudy(**SMALL, checkpoint=run, callbacks=[ask]).fit(X)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 75
    assert bits(RankStudy(**SMALL, checkpoint=run).fit(X)) == bits(RankStudy(**SMALL).fit(X))
