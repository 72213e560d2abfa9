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
from dataclasses import dataclass, field, replace

from dasknmf.ensemble import Model, Problem
from dasknmf.numerics import compression
from dasknmf.numerics.compression import LowRank, Sketch, Sketched, SketchedStep
from dasknmf.numerics.kernels import Float64
from dasknmf.numerics.stopping import RelativeChange
from dasknmf.numerics.terms import add
from dasknmf.numerics.work import Step
from dasknmf.packing import packable
from dasknmf.parallel.executors import Carried, Executor, Visit
from dasknmf.parallel.starts import Request

logger = logging.getLogger("dasknmf")

LONGEST = 30  # compressed passes in a row
FINEST = 1e-6  # fall of the compressed objective below which more of them are no use
REFUSALS = 2  # by the prediction, in a row


@packable
@dataclass
class Progress:
    """What is known between two waves.

    others
        Directions that probes have beside those of the factors.
    refused
        Predictions in a row that promised nothing.
    probes, sketches, rows
        Of the pass under way, where it leaves compressed rows: None, empty and None otherwise.
    """

    on: bool
    others: Float64 | None = None
    refused: int = 0
    probes: Float64 | None = None
    sketches: list[Sketch] = field(default_factory=list)
    rows: Carried | None = None


class Compression:
    """The compressed rows of one fit, and what is known of their right factor."""

    def __init__(
        self,
        executor: Executor,
        request: Request,
        stop: RelativeChange,
        waves: list[list[int]],
        progress: Progress,
    ) -> None:
        self.executor = executor
        self.solver, self.penalty = request.solver, request.penalties[0]
        self.stop = replace(stop, tol=max(stop.tol, FINEST))
        self.waves = waves
        self.progress = progress
        columns = executor.slabs.shape[1]
        self._extra = min(compression.extra_probes(request.n_components), columns)
        if progress.on and progress.others is None:
            progress.others = compression.random_directions(request.seed, columns, self._extra)

    def begin(self, models: Sequence[Model], last: bool) -> None:
        """Choose the probes of a pass, unless it is the last one."""
        now = self.progress
        now.probes, now.sketches, now.rows = None, [], None
        if now.on and not last and models[0].trusting:
            assert now.others is not None
            now.probes = compression.probes([model.short for model in models], now.others)

    def visit(self, step: Step, waves: Sequence[Sequence[int]], *, keep: bool) -> list[Visit]:
        """Waves over V, which leave compressed rows where those are wanted.

        ``keep``: give the rows, too; the first block of each handle is then the compressed one.
        """
        now = self.progress
        if now.probes is None:
            return self.executor.run_each(step, waves, keep=keep)
        work = SketchedStep(step, now.probes, keep)
        visits = []
        for visit in self.executor.run_each(work, waves, keep=True):
            assert visit.rows is not None
            now.rows = visit.rows if now.rows is None else now.rows.updated(visit.rows)
            found: Sketched = visit.sums
            now.sketches = [*now.sketches, found.sketch]
            visits.append(Visit(found.step, visit.rows if keep else None))
        return visits

    def refine(self, models: Sequence[Model], problem: Problem) -> None:
        """Let the models go on from the compressed rows where that gains something."""
        now = self.progress
        if now.probes is None:
            return
        assert now.rows is not None
        low_rank = LowRank.of(add(now.sketches))
        now.others = low_rank.leading(self._extra)
        trying = [model.copy() for model in models]
        while len(trying[0].objectives) < LONGEST:
            self._pass(trying, low_rank, now.rows, problem)
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
            len(trying[0].objectives), now.probes.shape[1], trying[0].current,
            models[0].objectives[-1], "taken" if taken else "refused",
        )  # fmt: skip
        gain = models[0].objectives[-1] - (trying[0].current or 0.0)
        now.refused = 0 if taken else now.refused + 1
        least = self.stop.tol * models[0].objectives[-1]
        now.on = gain > least if taken else now.refused < REFUSALS
        now.probes, now.sketches, now.rows = None, [], None

    def _pass(
        self, models: list[Model], low_rank: LowRank, rows: Carried, problem: Problem
    ) -> None:
        for number, slabs in enumerate(self.waves):
            solver = self.solver.loosened(min(model.gain for model in models))
            step = low_rank.step(solver, self.penalty, [model.target for model in models])
            sums = self.executor.run(step, rows, only=slabs, load=False).sums
            for model, found in zip(models, sums, strict=True):
                model.take_in(number, low_rank.widened(found), problem, self.solver)
        for model in models:
            model.close_pass(problem, self.solver)
