"""A study that was stopped anywhere goes on to the bits of the undisturbed one."""

import dask.array as da
import numpy as np
import pytest
from conftest import planted, sparse_counts
from test_resume import Interrupts

import dasknmf
from dasknmf import NMF, ProblemMismatchError, RankStudy, StoppedError, StoreError
from dasknmf.storage.objects import open_objects
from dasknmf.storage.survey import read_newest, verify

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RANKS = (2, 3, 5)


def tall(rng):
    return planted(rng, 320, 20, 3, noise=0.2)


def weighted(rng):
    X = tall(rng)
    return X, (rng.random(X.shape) > 0.2).astype(float)


KINDS = {
    "tall": (tall, {}),
    "wide": (lambda rng: tall(rng).T.copy(), {}),
    "in chunks, weighted": (lambda rng: da.from_array(tall(rng), chunks=(40, -1)), {}),
    "counts": (
        lambda rng: sparse_counts(rng, 320, 20),
        {"beta_loss": "kullback-leibler", "max_iter": 3, "ranks": (2, 3)},
    ),
    "at random, not all missing": (
        lambda rng: sparse_counts(rng, 320, 20),
        {"missing": "unstored", "n_init": 2, "max_iter": 3},
    ),
}


def study_of(given, **more):
    return RankStudy(
        **{"ranks": RANKS, "n_init": 3, "random_state": 1, "tol": 1e-3, **given}, **more
    )


def bits(study):
    """Everything that a study says but its times."""
    parts = [study.table().tobytes(), study.best_rank_, study.rule_, study.fingerprint_]
    parts += [study.history_["loss"].tobytes(), study.reads_, study.n_iter_]
    for k in study.ranks_:
        model = study.model(k)
        parts += [model.components_.tobytes(), model.history_["objective"].tobytes()]
        parts += [model.outcome_, model.n_iter_, study.stabilities_[k].tobytes()]
        parts += [study.consensus_[k].tobytes() if k in study.consensus_ else None]
    return parts


@pytest.fixture
def interrupts(monkeypatch):
    return Interrupts(monkeypatch)


@pytest.mark.usefixtures("many_slabs")
@pytest.mark.parametrize("kind", KINDS)
def test_stopped_at_every_boundary_and_resumed_it_has_the_same_bits(
    kind, rng, tmp_path, interrupts
):
    make, given = KINDS[kind]
    X, M = make(rng), None
    if "weighted" in kind:
        M = (rng.random(X.shape) > 0.2).astype(float)
    expected = bits(study_of(given).fit(X, weights=M))
    run, stops = tmp_path / "run", 0
    while True:
        interrupts.next(1)
        study = study_of(given, checkpoint=run)
        try:
            study.fit(X, weights=M)
            break
        except StoppedError:
            stops += 1
    assert stops >= 8
    assert bits(study) == expected
    assert verify(open_objects(run)) == []
    interrupts.next(0)
    assert bits(study_of(given, checkpoint=run).fit(X, weights=M)) == expected
    assert bits(dasknmf.load(run)) == expected
