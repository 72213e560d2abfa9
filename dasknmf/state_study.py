"""What a study has to know to go on, and what a commit shows of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from dasknmf.ensemble import Model, best_of
from dasknmf.history import History
from dasknmf.numerics.errors import StoreError
from dasknmf.numerics.kernels import Array, Float64
from dasknmf.numerics.lots import Lot, by_lot
from dasknmf.numerics.stopping import Outcome
from dasknmf.packing import Packed, pack, packable, unpack
from dasknmf.parallel.slabs import Slabs
from dasknmf.snapshots import Shown, Snapshot
from dasknmf.state import State

if TYPE_CHECKING:
    from dasknmf.studying import Study

COURSE = ("loss", "objective", "relative_error", "reads", "models", "seconds", "holdout")


@packable
@dataclass
class StudyState(State):
    """Where a study is. ``models`` are those that go on.

    ended
        Those that do not.
    lots
        What the models are fits of: the first ``lots[0].many`` of the first, and so on.
    courses
        History of each model, by number: columns of :data:`COURSE` × passes.
    outcomes
        Why each ended, by number; of those that go on it means nothing.
    found
        What the study ended with, once it has.
    """

    ended: list[Model] = field(default_factory=list)
    lots: list[Lot] = field(default_factory=list)
    courses: list[Float64] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    found: Study | None = None

    @property
    def every(self) -> list[Model]:
        """All models, by number."""
        return sorted([*self.models, *self.ended], key=lambda model: model.number)


@packable
@dataclass(frozen=True)
class RankShown:
    """One rank: losses of its best restart, whose hold-out error is ``held``; who goes on.

    Fits of its folds are neither among ``running`` nor among ``restarts``.
    """

    rank: int
    losses: list[float]
    held: float
    running: int
    restarts: int


@packable
@dataclass(frozen=True)
class StudyShown(Shown):
    """What a commit tells of a study; history and loss are those of the best model."""

    ranks: list[RankShown]


def course_of(history: History) -> Float64:
    """A history as one array, which a commit keeps as such."""
    return np.array([getattr(history, name) for name in COURSE], dtype=np.float64)


def history_of(course: Array) -> History:
    """The same as lists that grow."""
    columns = dict(zip(COURSE, course.tolist(), strict=True))
    return History(**{**columns, "models": [int(n) for n in columns["models"]]})


def study_snapshot(slabs: Slabs, state: State, ending: Packed | None) -> Snapshot:
    """What is kept of a study.

    ``ending``: where the passes ended, if they have; with it the commit keeps what was found.
    """
    assert isinstance(state, StudyState)
    shown = pack(_shown(slabs, state, done=ending is not None)).tree
    if ending is not None:
        kept = unpack(ending)  # the last read has moved the state on from there
        state = replace(kept, found=state.found)
    return Snapshot(state=pack(state), shown=shown, factor=None)


def _shown(slabs: Slabs, state: StudyState, *, done: bool) -> StudyShown:
    seen = state.inspection
    running = set() if done else {model.number for model in state.models}
    told = []
    for lot, models in zip(state.lots, by_lot(state.every, state.lots), strict=True):
        if lot.fold is not None:
            continue
        best = best_of(models) if models[0].objectives else models[0]
        course = history_of(state.courses[best.number])
        going_on = sum(model.number in running for model in models)
        told.append(RankShown(lot.k, course.loss, best.held.mean, going_on, lot.many))
    return StudyShown(
        history=state.history,
        loss=state.history.loss[-1] if state.history.loss else float("nan"),
        number=len(state.history.loss) - done,
        outcome=outcome_of(state.outcomes) if done else Outcome.UNFINISHED,
        fingerprint=None if seen is None else seen.fingerprint(slabs.shape, slabs.dtype),
        ranks=told,
    )


def outcome_of(outcomes: list[Outcome]) -> Outcome:
    """How a study ended: as those of its fits that could have gone on."""
    for first in (Outcome.INTERRUPTED, Outcome.MAX_ITER, Outcome.CONVERGED):
        if first in outcomes:
            return first
    return Outcome.EXACT


def restored(state: State) -> StudyState:
    """The state of a study that a commit held."""
    if not isinstance(state, StudyState) or not (
        len(state.every)
        == len(state.courses)
        == len(state.outcomes)
        == sum(lot.many for lot in state.lots)
    ):
        raise StoreError("the state of a checkpoint is not that of a study")
    return state
