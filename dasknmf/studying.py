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
from dasknmf.parallel.blas import one_thread
from dasknmf.parallel.executors import Executor
from dasknmf.parallel.starts import study_start
from dasknmf.passes import FINAL, Loop
from dasknmf.settings import Settings
from dasknmf.state import State

logger = logging.getLogger("dasknmf")

SAMPLES = 1000  # of which a consensus matrix is made, at most


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


@dataclass(frozen=True)
class Study:
    """What a study ends with; ``restarts[k]``: all of rank k, in the order of their numbers."""

    restarts: dict[int, list[Restart]]
    samples: Int64
    inspection: Inspection
    reads: float
    history: dict[str, Array]


def study(executor: Executor, settings: Settings, ranks: tuple[int, ...]) -> Study:
    """Factorise the executor's matrix at every rank, ``settings.start.n_init`` times each."""
    with one_thread():
        return _Study(executor, settings, ranks).study()


class _Study(Loop):
    """The loop with another end: that of each model."""

    def __init__(self, executor: Executor, settings: Settings, ranks: tuple[int, ...]) -> None:
        self.ranks = ranks
        super().__init__(executor, settings, Keeper())
        self.models = list(self.state.models)
        self.courses = [History() for _ in self.models]
        self.outcomes = dict.fromkeys(range(len(self.models)), Outcome.MAX_ITER)

    def _first_state(self) -> State:
        start, errors = study_start(
            self.settings.start, self.ranks, self.executor, self.settings.name
        )
        models = [
            Model(n, F, [None] * len(self.waves), ACCURACY, error)
            for n, (F, error) in enumerate(zip(start.short, errors, strict=True))
        ]
        state = State(models, smallest=start.smallest, compression=Progress(on=False))
        if start.inspection is not None:
            self._check(start.inspection)
            state.inspection = start.inspection
        return state

    def study(self) -> Study:
        """All passes, and the read that brings exact rows."""
        state = self.state
        while state.models and state.number <= self.settings.max_iter:
            last = state.number == self.settings.max_iter
            self.executor.begin(f"pass {state.number}")
            self._pass_of_waves(state.number, last)
            for model in state.models:
                self._note(model)
            self._record(best_of(state.models))
            asked = self._call_back(state.number, "pass")
            going_on = self._not_overtaken([m for m in state.models if not self._ended(m)])
            logger.info("pass %d: %d of %d models go on", state.number, len(going_on),
                        len(self.models))  # fmt: skip
            if asked:
                for model in going_on:
                    self.outcomes[model.number] = Outcome.INTERRUPTED
                break
            state.models, state.wave, state.number = going_on, 0, state.number + 1
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
        course.seconds.append(self._now().seconds)

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
        state.models = self.models
        counts = [len(course.loss) for course in self.courses]
        normal = self.settings.loss.kind is Normal
        tiny = RESIDUAL_BELOW[slabs.dtype]
        measured = not normal or any(
            course.relative_error[-1] ** 2 < tiny for course in self.courses
        )
        samples = some_samples(self.settings.start.seed, slabs.shape[slabs.transposed], SAMPLES)
        step = replace(
            self.step, fixed=tuple(model.short for model in self.models), residual=measured
        )
        self.executor.begin(FINAL)
        work = LabelledStep(step, samples[:0] if slabs.transposed else samples)
        visit = self.executor.run(work, keep=slabs.transposed)
        sums, labels = visit.sums.step.models, visit.sums.labels
        long = None
        if slabs.transposed:
            assert visit.rows is not None
            long = self.executor.fetch(visit.rows)
            for model, found in zip(self.models, sums, strict=True):
                self._move_short_exactly(model, found)
        for model, found in zip(self.models, sums, strict=True):
            model.measure(found, self._problem, residual=measured and normal)
            self._note(model)
        self._record(best_of(self.models))
        restarts = []
        for model, found in zip(self.models, sums, strict=True):
            H = model.short.T.copy()
            own = labels[model.number]
            if long is not None:
                tall = np.concatenate([rows[model.number] for rows in long])
                H, own = tall.T.copy(), labels_of(model.short[samples], tall)
            restarts.append(self._restart(model, found, counts[model.number], H, own))
        each = self.settings.start.n_init
        return Study(
            restarts={k: restarts[i * each :][:each] for i, k in enumerate(self.ranks)},
            samples=samples,
            inspection=state.inspection,
            reads=self.executor.reads,
            history=state.history.as_arrays(),
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
