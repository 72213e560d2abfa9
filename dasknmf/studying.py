"""The passes of a study: many ranks, several restarts of each, one read of V for all of them.

No model is dropped for losing: each goes on until it has converged by the rule of a fit of its own,
or the best restart of its rank has. One that is done takes no part in later passes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dasknmf.checkpointing import Keeper
from dasknmf.compression import Progress
from dasknmf.ensemble import ACCURACY, Model, best_of
from dasknmf.history import History
from dasknmf.numerics.inspection import Inspection
from dasknmf.numerics.kernels import Array
from dasknmf.numerics.labelling import Int64, LabelledStep, labels_of, some_samples
from dasknmf.numerics.stopping import RESIDUAL_BELOW, Outcome
from dasknmf.numerics.terms import Normal
from dasknmf.numerics.work import ModelSums
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

    ``labels`` (samples,): hard clusters of the study's samples. ``residual``: ||X - WH||², as far
    as it is observed. ``held``: mean error on held-out entries, nan without any.
    """

    H: Array
    loss: float
    residual: float
    held: float
    n_iter: int
    outcome: Outcome
    history: dict[str, Array]
    labels: Int64

    @property
    def objective(self) -> float:
        """Loss and penalties: by it restarts compare."""
        return float(self.history["objective"][-1])


@packable
@dataclass(frozen=True)
class Study:
    """What a study ends with; ``restarts[k]``: all of rank k, in the order of their numbers.

    ``shape``: of X. ``fingerprint``: digest of its shape, dtype and values.
    """

    restarts: dict[int, list[Restart]]
    samples: Int64
    inspection: Inspection
    shape: tuple[int, int]
    fingerprint: str
    reads: float
    history: dict[str, Array]


def study(
    executor: Executor, settings: Settings, ranks: tuple[int, ...], keeper: Keeper | None = None
) -> Study:
    """Factorise the executor's matrix at every rank, ``settings.start.n_init`` times each."""
    with one_thread():
        return _Study(executor, settings, ranks, keeper or Keeper()).study()


def so_far(
    state: StudyState, ranks: tuple[int, ...], shape: tuple[int, int], fingerprint: str | None
) -> Study:
    """A study that is not done, without labels; the short factors have to be those of features."""
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
    each = len(restarts) // len(ranks)
    return Study(
        restarts={k: restarts[i * each :][:each] for i, k in enumerate(ranks)},
        samples=np.empty(0, dtype=np.int64),
        inspection=state.inspection,
        shape=shape,
        fingerprint=fingerprint or "",
        reads=float(state.reads),
        history=state.history.as_arrays(),
    )


class _Study(Loop):
    """The loop with another end: that of each model."""

    state: StudyState

    def __init__(
        self, executor: Executor, settings: Settings, ranks: tuple[int, ...], keeper: Keeper
    ) -> None:
        self.ranks = ranks
        self.courses: list[History] = []
        super().__init__(executor, settings, keeper)
        if not self.courses:  # a commit has them
            self.courses = [history_of(course) for course in restored(self.state).courses]
        self.models = self.state.every
        self.outcomes = self.state.outcomes

    def _first_state(self) -> State:
        start, errors = study_start(
            self.settings.start, self.ranks, self.executor, self.settings.name
        )
        models = [
            Model(n, F, [None] * len(self.waves), ACCURACY, error)
            for n, (F, error) in enumerate(zip(start.short, errors, strict=True))
        ]
        self.courses = [History() for _ in models]
        state = StudyState(
            models,
            smallest=start.smallest,
            compression=Progress(on=False),
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
            self._record(best_of(state.models))
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
        course, seen = self.courses[model.number], self.state.inspection
        assert seen is not None
        course.loss.append(model.loss)
        course.objective.append(model.objectives[-1])
        course.relative_error.append(self.settings.loss.relative(model.loss, seen.squares))
        course.models.append(len(self.state.models))
        course.holdout.append(model.held.mean)
        course.reads.append(self.executor.reads)
        course.seconds.append(self.state.history.seconds[-1])

    def _ended(self, model: Model) -> bool:
        """Whether a model has converged, or is as close as its loss by Gram matrices can tell."""
        assert self.state.inspection is not None
        normal = self.settings.loss.kind is Normal
        size = 0.5 * self.state.inspection.squares if normal else 0.0
        exact = RESIDUAL_BELOW[self.executor.slabs.dtype] * size
        outcome = self.settings.stop.judge(model.objectives, exact, size)
        if outcome is not None:
            self.outcomes[model.number] = outcome
            model.waves = []  # its sums are of no more use
        return outcome is not None

    def _not_overtaken(self, models: list[Model]) -> list[Model]:
        """Those that may still become the best of their rank: its leader has not converged.

        Else the slowest of all restarts would say how often V is read.
        """
        going_on, each = [], self.settings.start.n_init
        running = {model.number for model in models}
        for model in models:
            first = model.number - model.number % each
            leader = best_of(self.models[first : first + each])
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
        state.models, state.ended = self.models, []
        counts = [len(course.loss) for course in self.courses]
        normal = self.settings.loss.kind is Normal
        tiny = RESIDUAL_BELOW[slabs.dtype]
        measured = not normal or any(
            course.relative_error[-1] ** 2 < tiny for course in self.courses
        )
        samples = some_samples(self.settings.start.seed, slabs.shape[slabs.transposed], SAMPLES)
        step = replace(
            self.step,
            fixed=tuple(model.short for model in self.models),
            inspect=bool(self.unchecked),
            residual=measured,
        )
        self.executor.begin(FINAL)
        work = LabelledStep(step, samples[:0] if slabs.transposed else samples)
        visit = self.executor.run(work, keep=slabs.transposed)
        if visit.sums.step.inspection is not None:
            self._saw(visit.sums.step.inspection)
        sums, labels = visit.sums.step.models, visit.sums.labels
        long = None
        if slabs.transposed:
            assert visit.rows is not None
            long = self.executor.fetch(visit.rows)
            for model, found in zip(self.models, sums, strict=True):
                self._move_short_exactly(model, found)
        for model, found in zip(self.models, sums, strict=True):
            model.measure(found, self._problem, residual=measured and normal)
        self._record(best_of(self.models))
        for model in self.models:
            self._note(model)
        restarts = []
        for model, found in zip(self.models, sums, strict=True):
            H = model.short.T.copy()
            own = labels[model.number]
            if long is not None:
                tall = np.concatenate([rows[model.number] for rows in long])
                H, own = tall.T.copy(), labels_of(model.short[samples], tall)
            restarts.append(self._restart(model, found, counts[model.number], H, own))
        each = self.settings.start.n_init
        state.found = Study(
            restarts={k: restarts[i * each :][:each] for i, k in enumerate(self.ranks)},
            samples=samples,
            inspection=state.inspection,
            shape=slabs.shape[::-1] if slabs.transposed else slabs.shape,
            fingerprint=state.inspection.fingerprint(slabs.shape, slabs.dtype),
            reads=self.executor.reads,
            history=state.history.as_arrays(),
        )
        self.keeper.finish(ending, self._now())
        return state.found

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
