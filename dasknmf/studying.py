"""The passes of a study: many ranks, several restarts of each, one read of V for all of them.

So with several penalties of a rank, and with fits that do not see all of V (``numerics.lots``).

No model is dropped for losing: each goes on until it has converged by the rule of a fit of its own,
or the best restart of its rank has. One that is done takes no part in later passes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dasknmf.checkpointing import Keeper
from dasknmf.compression import Progress
from dasknmf.ensemble import Model, beginners, best_of
from dasknmf.history import History
from dasknmf.numerics.blocks import FoldErrors, FoldSums, Together
from dasknmf.numerics.inspection import Inspection
from dasknmf.numerics.interpretation import sparseness
from dasknmf.numerics.kernels import Array, Float64
from dasknmf.numerics.labelling import (
    Int64,
    LabelledStep,
    labels_of,
    some_samples,
    sparseness_of,
)
from dasknmf.numerics.lots import Lot, by_lot
from dasknmf.numerics.stopping import RESIDUAL_BELOW, Outcome
from dasknmf.numerics.terms import Normal
from dasknmf.numerics.weighted import Held
from dasknmf.numerics.work import ModelSums, Work
from dasknmf.packing import packable
from dasknmf.parallel.blas import one_thread
from dasknmf.parallel.executors import Executor
from dasknmf.parallel.starts import study_start
from dasknmf.passes import FINAL, Loop
from dasknmf.settings import Settings
from dasknmf.state import State
from dasknmf.state_study import StudyState, course_of, history_of, restored

logger = logging.getLogger("dasknmf")

SAMPLES = 1000  # of which a consensus matrix is made, at most


@packable
@dataclass(frozen=True)
class Restart:
    """One model of a study, in the orientation of X.

    ``labels`` (samples,): hard clusters of the study's samples. ``sparse`` (k,): Hoyer's sparseness
    of the columns of W. ``residual``: ||X - WH||², as far as it is observed. ``held``: mean error
    on held-out entries, nan without any.
    """

    H: Array
    loss: float
    residual: float
    held: float
    n_iter: int
    outcome: Outcome
    history: dict[str, Array]
    labels: Int64
    sparse: Float64 | None = None

    @property
    def objective(self) -> float:
        """Loss and penalties: by it restarts compare."""
        return float(self.history["objective"][-1])


@packable
@dataclass(frozen=True)
class Folded:
    """A fit of the D of one fold, in the streamed orientation: H_D, its loss on D, error on A."""

    lot: Lot
    short: Array
    loss: float
    held: Held
    n_iter: int
    outcome: Outcome


@packable
@dataclass(frozen=True)
class Study:
    """What a study ends with: the restarts of each lot, and the fits of lots with folds.

    ``shape``: of X. ``fingerprint``: digest of its shape, dtype and values.
    """

    restarts: list[list[Restart]]
    folded: list[Folded]
    samples: Int64
    inspection: Inspection
    shape: tuple[int, int]
    fingerprint: str
    reads: float
    history: dict[str, Array]


def study(
    executor: Executor, settings: Settings, lots: Sequence[Lot], keeper: Keeper | None = None
) -> Study:
    """Factorise the executor's matrix for every lot; those without a fold come first."""
    with one_thread():
        return _Study(executor, settings, lots, keeper or Keeper()).study()


class _Study(Loop):
    """The loop with another end: that of each model."""

    state: StudyState

    def __init__(
        self, executor: Executor, settings: Settings, lots: Sequence[Lot], keeper: Keeper
    ) -> None:
        self.lots = list(lots)
        self.courses: list[History] = []
        of_models = tuple(lot for lot in lots for _ in range(lot.many))
        super().__init__(executor, replace(settings, lots=of_models), keeper)
        if not self.courses:  # a commit has them
            self.courses = [history_of(course) for course in restored(self.state).courses]
        self.models = self.state.every
        self.whole = [m for m in self.models if of_models[m.number].fold is None]
        self.outcomes = self.state.outcomes

    def _first_state(self) -> State:
        start, errors = study_start(
            self.settings.start, self.lots, self.executor, self.settings.name
        )
        models = beginners(start.short, errors, len(self.waves))
        self.courses = [History() for _ in models]
        state = StudyState(
            models,
            smallest=start.smallest,
            compression=Progress(on=False),
            lots=self.lots,
            outcomes=[Outcome.MAX_ITER] * len(models),
        )
        if start.inspection is not None:
            self._check(start.inspection)
            state.inspection = start.inspection
        return state

    def _now(self) -> StudyState:
        super()._now()
        self.state.courses = [course_of(course) for course in self.courses]
        return self.state

    def study(self) -> Study:
        """All passes, and the read that brings exact rows."""
        state = self.state
        state.found = None
        for model in state.models:  # more passes may be allowed than when they were stopped
            self.outcomes[model.number] = Outcome.MAX_ITER
        while state.models and state.number <= self.settings.max_iter:
            last = state.number == self.settings.max_iter
            self.executor.begin(f"pass {state.number}")
            self._pass_of_waves(state.number, last)
            self._record(
                best_of([m for m in state.models if m.number < len(self.whole)] or self.whole)
            )
            for model in state.models:
                self._note(model)
            asked = self._call_back(state.number, "pass")
            going_on = self._not_overtaken([m for m in state.models if not self._ended(m)])
            logger.info("pass %d: %d of %d models go on", state.number, len(going_on),
                        len(self.models))  # fmt: skip
            numbers = {model.number for model in going_on}
            for model in state.models:
                if model.number not in numbers:
                    model.good = None  # more sums of no more use
                    state.ended.append(model)
            state.models, state.wave, state.number = going_on, 0, state.number + 1
            if asked:
                for model in going_on:
                    self.outcomes[model.number] = Outcome.INTERRUPTED
                break
            self.keeper.boundary(self._now, ended=True)
        return self._finished()

    def _note(self, model: Model) -> None:
        """The history of one model, as that of a fit of its own."""
        course, squares = self.courses[model.number], self._squares(model)
        course.loss.append(model.loss)
        course.objective.append(model.reported)
        course.relative_error.append(self.settings.loss.relative(model.loss, squares))
        course.models.append(len(self.state.models))
        course.holdout.append(model.held.mean)
        course.reads.append(self.executor.reads)
        course.seconds.append(self.state.history.seconds[-1])

    def _squares(self, model: Model) -> float:
        """Of the entries that a model sees."""
        squares = model.of(self._problem).squares
        assert squares is not None
        return squares

    def _ended(self, model: Model) -> bool:
        """Whether a model has converged, or is as close as its loss by Gram matrices can tell."""
        normal = self.settings.loss.kind is Normal
        size = 0.5 * self._squares(model) if normal else 0.0
        exact = RESIDUAL_BELOW[self.executor.slabs.dtype] * size
        outcome = self.settings.stop.judge(model.objectives, exact, size)
        if outcome is not None:
            self.outcomes[model.number] = outcome
            model.waves = []  # its sums are of no more use
        return outcome is not None

    def _not_overtaken(self, models: list[Model]) -> list[Model]:
        """Those that may still become the best of their lot: its leader has not converged.

        Else the slowest of all restarts would say how often V is read.
        """
        going_on = []
        running = {model.number for model in models}
        leaders = {n: leader for lot in by_lot(self.models, self.lots)
                   for leader in [best_of(lot)] for n in [m.number for m in lot]}  # fmt: skip
        for model in models:
            leader = leaders[model.number]
            if leader.number in running:
                going_on.append(model)
            else:
                self.outcomes[model.number] = Outcome.OVERTAKEN
                model.waves = []
        return going_on

    def _finished(self) -> Study:
        state, slabs = self.state, self.executor.slabs
        assert state.inspection is not None
        ending = self.keeper.mark(self._now())
        state.models, state.ended = self.whole, self.models[len(self.whole) :]
        counts = [len(course.loss) for course in self.courses]
        normal = self.settings.loss.kind is Normal
        tiny = RESIDUAL_BELOW[slabs.dtype]
        measured = not normal or any(
            self.courses[model.number].relative_error[-1] ** 2 < tiny for model in self.whole
        )
        samples = some_samples(self.settings.start.seed, slabs.shape[slabs.transposed], SAMPLES)
        step = replace(
            self.step,
            fixed=tuple(model.short for model in self.whole),
            penalties=tuple(self.settings.lots[m.number].penalties[0] for m in self.whole),
            inspect=bool(self.unchecked),
            residual=measured,
        )
        self.executor.begin(FINAL)
        labelled = LabelledStep(step, samples[:0] if slabs.transposed else samples)
        visit = self.executor.run(self._with_folds(labelled), keep=slabs.transposed)
        folds: tuple[FoldSums, ...] = ()
        found_labels = visit.sums
        if len(self.whole) < len(self.models):
            found_labels, folds = visit.sums
        if found_labels.step.inspection is not None:
            self._saw(found_labels.step.inspection)
        sums, labels = found_labels.step.models, found_labels.labels
        sparse = [sparseness_of(norms, slabs.shape[0]) for norms in found_labels.norms]
        long = None
        if slabs.transposed:
            assert visit.rows is not None
            long = self.executor.fetch(visit.rows)
            sums = tuple(
                model.finish(found, self._problem_of(model), self.settings.solver)
                for model, found in zip(self.whole, sums, strict=True)
            )
        for model, found in zip(self.whole, sums, strict=True):
            model.measure(found, self._problem_of(model), residual=measured and normal)
        self._record(best_of(self.whole))
        for model in self.whole:
            self._note(model)
        restarts = []
        for model, found in zip(self.whole, sums, strict=True):
            H = model.short.T.copy()
            own = labels[model.number]
            if long is not None:
                tall = np.concatenate([rows[model.number] for rows in long])
                H, own = tall.T.copy(), labels_of(model.short[samples], tall)
                sparse[model.number] = sparseness(model.short.T)
            restart = self._restart(model, found, counts[model.number], H, own)
            restarts.append(replace(restart, sparse=sparse[model.number]))
        folded = self.models[len(self.whole) :]
        state.found = Study(
            restarts=by_lot(restarts, self.lots),
            folded=[self._folded(m, found) for m, found in zip(folded, folds, strict=True)],
            samples=samples,
            inspection=state.inspection,
            shape=slabs.shape[::-1] if slabs.transposed else slabs.shape,
            fingerprint=state.inspection.fingerprint(slabs.shape, slabs.dtype),
            reads=self.executor.reads,
            history=state.history.as_arrays(),
        )
        self.keeper.finish(ending, self._now())
        return state.found

    def _with_folds(self, labelled: LabelledStep) -> Work:
        """The last visit, to which the fits of folds bring what their errors are made of."""
        folded = self.models[len(self.whole) :]
        if not folded:
            return labelled
        lots = [self.settings.lots[model.number] for model in folded]
        fixed = tuple(model.short for model in folded)
        prices = tuple(lot.penalties[0] for lot in lots)
        step = replace(self.step, fixed=fixed, penalties=prices)
        return Together(labelled, FoldErrors(step, tuple(lot.fold for lot in lots if lot.fold)))

    def _folded(self, model: Model, sums: FoldSums) -> Folded:
        lot = self.settings.lots[model.number]
        assert lot.fold is not None
        return Folded(
            lot=lot,
            short=model.short,
            loss=model.loss,
            held=sums.error(lot.fold, self.settings.solver, lot.penalties[1]),
            n_iter=len(self.courses[model.number].loss),
            outcome=self.outcomes[model.number],
        )

    def _restart(
        self, model: Model, sums: ModelSums, n_iter: int, H: Array, labels: npt.NDArray[np.int64]
    ) -> Restart:
        normal = self.settings.loss.kind is Normal
        return Restart(
            H=H,
            loss=model.loss,
            residual=2.0 * model.loss if normal else sums.residual,
            held=model.held.mean,
            n_iter=n_iter,
            outcome=self.outcomes[model.number],
            history=self.courses[model.number].as_arrays(),
            labels=labels,
        )
