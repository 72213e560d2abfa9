"""The run that a study belongs to: opened for it, and read again as a study."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dasknmf import results, resuming
from dasknmf.checkpointing import Keeper
from dasknmf.numerics.errors import DamagedError, StoreError
from dasknmf.numerics.stopping import Outcome
from dasknmf.packing import Packed, unpack
from dasknmf.parallel.executors import Executor
from dasknmf.settings import Settings
from dasknmf.snapshots import read_state
from dasknmf.state_study import StudyShown, restored, study_snapshot
from dasknmf.storage.manifests import Commit
from dasknmf.storage.objects import Objects
from dasknmf.studying import Study, so_far

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
    ranks: tuple[int, ...],
    settings: Settings,
    executor: Executor,
) -> Iterator[Keeper]:
    """The keeper of a study; ``template``: an NMF with its parameters."""
    if study.checkpoint is None:
        yield Keeper()
        return
    slabs = executor.slabs
    about = {**results.about(template, slabs), "parameters": results.plain_parameters(study)}
    about["parameters"]["ranks"] = list(ranks)
    names = getattr(study, "feature_names_in_", None)
    about["feature_names"] = None if names is None else [str(name) for name in names]
    kept = resuming.Kept(
        problem=problem_of(study, template, ranks, settings, executor),
        about={"seed": settings.start.seed, "study": about},
        snapshot=partial(study_snapshot, slabs, ranks),
        rows=False,
    )
    with resuming.keeping(template, kept, executor) as keeper:
        yield keeper


def problem_of(
    study: RankStudy,
    template: NMF,
    ranks: tuple[int, ...],
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
        "ranks": list(ranks),
        "tol": float(study.tol),
    }


def is_study(commit: Commit) -> bool:
    """Whether a commit is that of a study."""
    return isinstance(commit.meta, dict) and "study" in commit.meta


def load(objects: Objects, commit: Commit) -> RankStudy:
    """The study of a commit: as ``fit`` left it, or as far as it has come.

    Of one that is not done, what takes the last read is nan: consensus of samples, explained
    variance of losses that are no squares.
    """
    from dasknmf.study import RankStudy, checked_ranks

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
        found = so_far(state, ranks, shape, shown.fingerprint)
    if not isinstance(found, Study) or tuple(found.restarts) != ranks:
        raise DamagedError(f"commit {commit.number} holds no study of the ranks {ranks}")
    study._take_in(found, ranks)
    if shown.outcome is Outcome.UNFINISHED:
        study.rule_ = f"not done, after pass {shown.number}: {study.rule_}"
    return study


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
