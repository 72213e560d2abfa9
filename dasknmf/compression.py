"""Between two passes over V: passes over its compressed rows, which cost no read.

A pass leaves Y = V @ probes behind, in memory (``numerics.compression``). The models go on from
where the pass ended, on Y Mᵀ instead of V, by the same waves, and with the same ||V||²: since
||V - WH||² <= ||Y Mᵀ - WH||² + ||V - Y Mᵀ||² (to first order, and in every case measured), the
objective found there says, before anything is read, whether the next pass would gain by it. Where
it would not (noise, that no few columns hold), the models stay as they were.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from dasknmf.ensemble import Model, Problem
from dasknmf.numerics import compression
from dasknmf.numerics.compression import LowRank, Sketch, Sketched, SketchedStep
from dasknmf.numerics.stopping import RelativeChange
from dasknmf.numerics.terms import add
from dasknmf.numerics.work import Step, StepSums
from dasknmf.parallel.executors import Carried, Executor
from dasknmf.parallel.starts import Request

logger = logging.getLogger("dasknmf")

LONGEST = 30  # compressed passes in a row
FINEST = 1e-6  # fall of the compressed objective below which more of them are no use
REFUSALS = 2  # by the prediction, in a row


class Compression:
    """The compressed rows of one fit, and what is known of their right factor."""

    def __init__(
        self,
        executor: Executor,
        request: Request,
        stop: RelativeChange,
        waves: list[list[int]],
        *,
        on: bool,
    ) -> None:
        self.executor = executor
        self.solver, self.penalty = request.solver, request.penalties[0]
        self.stop = replace(stop, tol=max(stop.tol, FINEST))
        self.waves = waves
        self.on = on
        self._sketching = False
        self._refused = 0
        self._handles: list[object] = []
        if not on:
            return
        columns = executor.slabs.shape[1]
        self._extra = min(compression.extra_probes(request.n_components), columns)
        self._others = compression.random_directions(request.seed, columns, self._extra)

    def begin(self, models: Sequence[Model], last: bool) -> None:
        """Choose the probes of a pass, unless it is the last one."""
        self._sketching = self.on and not last and models[0].trusting
        if not self._sketching:
            return
        self._probes = compression.probes([model.short for model in models], self._others)
        self._handles = [None] * len(self.executor.slabs)
        self._sketches: list[Sketch] = []

    def visit(self, step: Step, slabs: list[int]) -> StepSums:
        """One wave over V, which leaves compressed rows where those are wanted."""
        if not self._sketching:
            sums: StepSums = self.executor.run(step, only=slabs).sums
            return sums
        visit = self.executor.run(SketchedStep(step, self._probes), only=slabs, keep=True)
        assert visit.rows is not None
        for i in slabs:
            self._handles[i] = visit.rows.handles[i]
        found: Sketched = visit.sums
        self._sketches.append(found.sketch)
        return found.step

    def refine(self, models: Sequence[Model], problem: Problem) -> None:
        """Let the models go on from the compressed rows where that gains something."""
        if not self._sketching:
            return
        low_rank = LowRank.of(add(self._sketches))
        self._others = low_rank.leading(self._extra)
        rows = Carried(tuple(self._handles))
        trying = [model.copy() for model in models]
        while len(trying[0].objectives) < LONGEST:
            self._pass(trying, low_rank, rows, problem)
            if self.stop.judge(trying[0].objectives, 0.0):
                break
        taken = 0
        for model, tried in zip(models, trying, strict=True):
            assert model.current is not None
            assert tried.current is not None
            if model.trusting and tried.current < model.current:
                model.take_over(tried)
                taken += 1
        logger.info(
            "%d compressed passes over %d columns: objective foreseen %.9g after %.9g, %s",
            len(trying[0].objectives), self._probes.shape[1], trying[0].current,
            models[0].objectives[-1], "taken" if taken else "refused",
        )  # fmt: skip
        gain = models[0].objectives[-1] - (trying[0].current or 0.0)
        self._refused = 0 if taken else self._refused + 1
        least = self.stop.tol * models[0].objectives[-1]
        self.on = gain > least if taken else self._refused < REFUSALS
        self._handles = []

    def _pass(
        self, models: list[Model], low_rank: LowRank, rows: Carried, problem: Problem
    ) -> None:
        for number, slabs in enumerate(self.waves):
            solver = self.solver.loosened(min(model.gain for model in models))
            step = low_rank.step(solver, self.penalty, [model.target for model in models])
            sums = self.executor.run(step, rows, only=slabs, load=False).sums
            for model, found in zip(models, sums, strict=True):
                short_solver = self.solver.loosened(0.1 * model.gain, warm=True)
                model.visit(number, low_rank.widened(found), problem, short_solver)
        for model in models:
            model.close_pass(problem, self.solver)
