"""The run that a study belongs to: opened for it, and read again as a study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dasknmf import results, resuming
from dasknmf.checkpointing import Keeper
from dasknmf.numerics.errors import DamagedError, StoreError
from dasknmf.numerics.lots import Lot, by_lot
from dasknmf.numerics.stopping import Outcome
from dasknmf.packing import Packed, unpack
from dasknmf.parallel.executors import Executor
from dasknmf.settings import Settings
from dasknmf.snapshots import read_state
from dasknmf.state_study import StudyShown, StudyState, history_of, restored, study_snapshot
from dasknmf.storage.manifests import Commit
from dasknmf.storage.objects import Objects
from dasknmf.studying import Restart, Study

if TYPE_CHECKING:
    from dasknmf.estimator import NMF
    from dasknmf.study import RankStudy

NO_RUN = {
    "checkpoint": None, "checkpoint_every": 1, "resume": "auto", "takeover": False,
    "time_limit": None,
}  # fmt: skip


@contextmanager
def opened(
    study: RankStudy,
    template: NMF,
    lots: Sequence[Lot],
    settings: Settings,
    executor: Executor,
) -> Iterator[Keeper]:
    """The keeper of a study; ``template``: an NMF with its parameters."""
    if study.checkpoint is None:
        yield Keeper()
        return
    slabs, ranks = executor.slabs, _ranks_of(lots)
    about = {**results.about(template, slabs), "parameters": results.plain_parameters(study)}
    about["parameters"]["ranks"] = ranks
    names = getattr(study, "feature_names_in_", None)
    about["feature_names"] = None if names is None else [str(name) for name in names]
    kept = resuming.Kept(
        problem=problem_of(study, template, lots, settings, executor),
        about={"seed": settings.start.seed, "study": about},
        snapshot=partial(study_snapshot, slabs),
        rows=False,
    )
    with resuming.keeping(template, kept, executor) as keeper:
        yield keeper


def problem_of(
    study: RankStudy,
    template: NMF,
    lots: Sequence[Lot],
    settings: Settings,
    executor: Executor,
) -> dict[str, Any]:
    """What must be the same for a study to go on.

    Its tolerance, too: a model that has converged by one can't go on by another.
    """
    given = resuming.problem_of(template, settings, executor)
    del given["n_components"], given["custom"], given["compress"]
    return {
        **given,
        "estimator": type(study).__name__,
        "ranks": _ranks_of(lots),
        "folds": None if study.folds is None else [int(n) for n in study.folds],
        "tol": float(study.tol),
    }


def _ranks_of(lots: Sequence[Lot]) -> list[int]:
    return [lot.k for lot in lots if lot.fold is None]


def is_study(commit: Commit) -> bool:
    """Whether a commit is that of a study."""
    return isinstance(commit.meta, dict) and "study" in commit.meta


def load(objects: Objects, commit: Commit) -> RankStudy:
    """The study of a commit: as ``fit`` left it, or as far as it has come.

    Of one that is not done, what takes the last read is nan: consensus of samples, explained
    variance of losses that are no squares.
    """
    from dasknmf.criteria import checked_ranks
    from dasknmf.study import RankStudy

    meta: Any = commit.meta
    try:
        about, shown = meta["study"], unpack(Packed(meta["shown"]))
        study = RankStudy(**about["parameters"])
        ranks = checked_ranks(study.ranks)
        study.n_features_in_ = int(about["n_features"])
        if about["feature_names"] is not None:
            study.feature_names_in_ = np.array(about["feature_names"], dtype=object)
        shape = (int(about["n_samples"]), study.n_features_in_)
        transposed = bool(about["transposed"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"commit {commit.number} does not make sense: {error!r}") from error
    if not isinstance(shown, StudyShown):
        raise DamagedError(f"commit {commit.number} holds no history of a study")
    state = restored(read_state(objects, commit, None))
    found = state.found
    if found is None:
        _refuse_too_soon(objects, commit, shown, transposed)
        found = so_far(state, shape, shown.fingerprint)
    if not isinstance(found, Study) or _ranks_found(found) != ranks:
        raise DamagedError(f"commit {commit.number} holds no study of the ranks {ranks}")
    study._take_in(found, ranks)
    if shown.outcome is Outcome.UNFINISHED:
        study.rule_ = f"not done, after pass {shown.number}: {study.rule_}"
    return study


def so_far(state: StudyState, shape: tuple[int, int], fingerprint: str | None) -> Study:
    """A study that is not done, without labels; the short factors have to be those of features.

    Of its folds there is nothing: their errors come with the last read.
    """
    assert state.inspection is not None
    running = {model.number for model in state.models}
    restarts = []
    for model, course, outcome in zip(state.every, state.courses, state.outcomes, strict=True):
        history = history_of(course).as_arrays()
        squares = np.isfinite(history["relative_error"][-1])
        restarts.append(
            Restart(
                H=model.short.T.copy(),
                loss=model.loss,
                residual=2.0 * model.loss if squares else float("nan"),
                held=model.held.mean,
                n_iter=course.shape[1],
                outcome=Outcome.UNFINISHED if model.number in running else outcome,
                history=history,
                labels=np.empty(0, dtype=np.int64),
            )
        )
    cut = zip(state.lots, by_lot(restarts, state.lots), strict=True)
    return Study(
        restarts=[of_lot for lot, of_lot in cut if lot.fold is None],
        folded=[],
        samples=np.empty(0, dtype=np.int64),
        inspection=state.inspection,
        shape=shape,
        fingerprint=fingerprint or "",
        reads=float(state.reads),
        history=state.history.as_arrays(),
    )


def _ranks_found(found: Study) -> tuple[int, ...]:
    return tuple(of_rank[0].H.shape[0] for of_rank in found.restarts)


def _refuse_too_soon(objects: Objects, commit: Commit, shown: StudyShown, transposed: bool) -> None:
    if shown.number and not transposed:
        return
    what = (
        "no pass has ended yet"
        if not shown.number
        else "X has more features than samples, so that the features are streamed, and H comes "
        "with the last read"
    )
    raise StoreError(
        f"commit {commit.number} of {objects.url} has no components of the study yet: {what}. "
        f"`dasknmf watch {objects.url}` tells how far it is; start the same study again to go on, "
        "and load it when it has ended."
    )
