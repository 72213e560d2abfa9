"""The only loop: pass after pass over V until the rule says stop.

It counts, stops and calls back. It knows no formula (losses, solvers and penalties do) and no graph
(executors do). Everything is in the streamed orientation: *rows* belong to the long side of V and
are solved slab by slab, *short* is the other factor, updated here from the summed terms.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dasknmf.numerics.errors import ClusterError, RowsLostError
from dasknmf.numerics.inspection import Inspection
from dasknmf.numerics.kernels import Array
from dasknmf.numerics.losses import Loss
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.safeguard import Place, Safeguard
from dasknmf.numerics.solvers import Solver
from dasknmf.numerics.stopping import Outcome, RelativeChange
from dasknmf.numerics.terms import Normal
from dasknmf.numerics.work import ModelSums, Step
from dasknmf.parallel.blas import one_thread
from dasknmf.parallel.executors import Carried, Executor
from dasknmf.parallel.starts import Request, Start, make_start

logger = logging.getLogger("dasknmf")

LIFT_EVERY = 10  # passes; as R's package NMF does
RESTARTS = 3  # of a fit whose carried rows died with their worker
RESIDUAL_BELOW = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-10}
EXACT_BELOW = {np.dtype(np.float32): 1e-13, np.dtype(np.float64): 1e-15}


@dataclass(frozen=True)
class PassInfo:
    """What a callback gets after each pass."""

    number: int
    max_iter: int
    reads: int
    loss: float
    objective: float
    relative_error: float
    seconds: float
    phase: str


Callback = Callable[[PassInfo], bool | None]


@dataclass(frozen=True)
class Settings:
    """One fit. ``penalties``: of the rows, of the short factor."""

    start: Request
    stop: RelativeChange
    max_iter: int
    keep_rows: bool
    name: str = "NMF"
    callbacks: tuple[Callback, ...] = ()

    @property
    def loss(self) -> Loss:
        """The objective."""
        return self.start.loss

    @property
    def solver(self) -> Solver:
        """The algorithm."""
        return self.start.solver

    @property
    def penalties(self) -> tuple[Penalty, Penalty]:
        """Of the rows, of the short factor."""
        return self.start.penalties


@dataclass
class History:
    """One entry a pass; ``loss`` and ``objective`` are those of the factors of that pass."""

    loss: list[float] = field(default_factory=list)
    objective: list[float] = field(default_factory=list)
    relative_error: list[float] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def as_arrays(self) -> dict[str, Array]:
        """Columns for a data frame or a plot."""
        columns: dict[str, Array] = {"pass": np.arange(1, len(self.loss) + 1)}
        columns["reads"] = np.array(self.reads, dtype=np.int64)
        for name in ("loss", "objective", "relative_error", "seconds"):
            columns[name] = np.array(getattr(self, name), dtype=np.float64)
        return columns


@dataclass(frozen=True)
class Result:
    """What a fit ends with."""

    short: Array
    rows: Carried | None
    loss: float
    n_iter: int
    outcome: Outcome
    history: dict[str, Array]
    inspection: Inspection
    reads: int


def fit(executor: Executor, settings: Settings) -> Result:
    """Factorise the executor's matrix; carried rows that die with a worker begin anew."""
    with one_thread():
        for attempt in range(RESTARTS + 1):
            try:
                return _Loop(executor, settings).run()
            except RowsLostError as error:
                logger.warning(
                    "%s: the fit begins again from its start, with the same numbers (%d of %d)",
                    error, attempt + 1, RESTARTS,
                )  # fmt: skip
                last = error
    raise ClusterError(
        f"the fit began {RESTARTS + 1} times, and each time workers died with the rows that "
        f"solver={settings.solver.name!r} carries. solver='als' carries none."
    ) from last


class _Loop:
    """State of one fit: the short factor, the carried rows and the history."""

    def __init__(self, executor: Executor, settings: Settings) -> None:
        self.executor = executor
        self.settings = settings
        self.history = History()
        self.guard = Safeguard()
        self.began = time.perf_counter()

    def run(self) -> Result:
        settings = self.settings
        start = make_start(settings.start, self.executor, settings.name)
        inspection = self._inspected(start.inspection)
        short, rows = start.short[0], start.rows
        step = Step(
            settings.loss, settings.solver, settings.penalties[0], (short,), start.random_rows
        )
        carries = settings.solver.carries_rows
        outcome = Outcome.MAX_ITER
        for number in range(1, settings.max_iter + 1):
            row_solver, solver = self._solvers(number, start)
            step = replace(
                step,
                fixed=(short,),
                solver=row_solver,
                inspect=inspection is None,
                residual=self._wants_residual(),
            )
            visit = self.executor.run(step, rows, keep=carries)
            if inspection is None:
                inspection = self._inspected(visit.sums.inspection)
                assert inspection is not None
            rows = visit.rows
            self._record(visit.sums.models[0], step, inspection)
            ended = self._judge(number, inspection)
            outcome = ended or outcome
            if carries and (ended or number == settings.max_iter):
                break
            terms = visit.sums.models[0].terms
            assert terms is not None
            here = Place(short, terms, self.history.objective[-1])
            short = self._next_short(solver, here)
            if ended:
                break
        assert inspection is not None
        if not carries:
            short, rows = self._final_rows(step, short, inspection)
        return Result(
            short=short,
            rows=rows,
            loss=self.history.loss[-1],
            n_iter=number,
            outcome=outcome,
            history=self.history.as_arrays(),
            inspection=inspection,
            reads=self.executor.reads,
        )

    def _next_short(self, solver: Solver, here: Place) -> Array:
        """Step, with a look back where the solver can't promise descent by itself."""
        penalty = self.settings.penalties[1]
        if solver.monotone or solver != self.settings.solver:  # a stage's rows are not exact
            return solver.half_step(here.short, here.terms, penalty)
        return self.guard.step(solver, here, penalty)

    def _solvers(self, number: int, start: Start) -> tuple[Solver, Solver]:
        """Of the rows and of the short factor; every tenth pass they lift vanishing entries."""
        solver = self.settings.solver
        if self.settings.start.short is None and self.settings.start.long is None:
            solver = solver.at(number - 1)
        if number % LIFT_EVERY:
            return solver, solver
        rows, short = start.smallest
        return solver.lifting(rows), solver.lifting(short)

    def _inspected(self, inspection: Inspection | None) -> Inspection | None:
        """Refuse bad values, and zeros where the loss has no finite value at them."""
        if inspection is None:
            return None
        slabs = self.executor.slabs
        inspection.raise_if_bad(slabs.transposed, self.settings.name)
        inspection.raise_if_out_of_range(slabs.dtype)
        self.settings.loss.check_zeros(slabs.shape[0] * slabs.shape[1] - inspection.positive)
        return inspection

    def _final_rows(
        self, step: Step, short: Array, inspection: Inspection
    ) -> tuple[Array, Carried | None]:
        """Exact rows of the final short factor: the last read, and the loss of what is returned.

        A matrix that is streamed as its transpose gets the other factor solved from the same
        read, so that its W is what ``transform`` would give.
        """
        settings, transposed = self.settings, self.executor.slabs.transposed
        final = replace(step, fixed=(short,), inspect=False, residual=not transposed)
        visit = self.executor.run(final, keep=settings.keep_rows or transposed)
        if transposed:
            terms = visit.sums.models[0].terms
            short = settings.solver.half_step(short, terms, settings.penalties[1])
            final = replace(final, fixed=(short,))
        self._record(visit.sums.models[0], final, inspection)
        if transposed and self._wants_residual():
            self._measure(replace(final, move=False, residual=True), visit.rows, inspection)
        self._call_back(len(self.history.loss), "final rows")
        return short, visit.rows

    def _measure(self, step: Step, rows: Carried | None, inspection: Inspection) -> None:
        """One more read for a loss so small that the Gram matrices have lost its digits."""
        sums = self.executor.run(step, rows).sums
        for column in vars(self.history).values():
            column.pop()
        self._record(sums.models[0], step, inspection)

    def _wants_residual(self) -> bool:
        """Whether the loss by Gram matrices would have lost its digits."""
        if not self.history.loss or self.settings.loss.kind is not Normal:
            return False
        return self.history.relative_error[-1] ** 2 < RESIDUAL_BELOW[self.executor.slabs.dtype]

    def _record(self, sums: ModelSums, step: Step, inspection: Inspection) -> None:
        settings, short = self.settings, step.fixed[0]
        if step.residual and settings.loss.kind is Normal:
            loss = 0.5 * sums.residual
        else:
            assert sums.terms is not None
            loss = settings.loss.value(sums.terms, short, inspection.squares)
        self.history.loss.append(loss)
        self.history.objective.append(loss + sums.penalty + settings.penalties[1].value(short))
        self.history.relative_error.append(settings.loss.relative(loss, inspection.squares))
        self.history.reads.append(self.executor.reads)
        self.history.seconds.append(time.perf_counter() - self.began)

    def _judge(self, number: int, inspection: Inspection) -> Outcome | None:
        exact = 0.0
        if self.settings.loss.kind is Normal:
            exact = EXACT_BELOW[self.executor.slabs.dtype] * 0.5 * inspection.squares
        asked = self._call_back(number, "pass")
        ended = self.settings.stop.judge(self.history.objective, exact)
        return ended or (Outcome.INTERRUPTED if asked else None)

    def _call_back(self, number: int, phase: str) -> bool:
        history = self.history
        info = PassInfo(
            number=number,
            max_iter=self.settings.max_iter,
            reads=self.executor.reads,
            loss=history.loss[-1],
            objective=history.objective[-1],
            relative_error=history.relative_error[-1],
            seconds=history.seconds[-1],
            phase=phase,
        )
        logger.debug("%s %d: loss %.9g", phase, number, info.loss)
        asked = [callback(info) for callback in self.settings.callbacks]  # every one is called
        return any(isinstance(answer, bool | np.bool_) and answer for answer in asked)


def solve_rows(executor: Executor, work: Any, name: str) -> list[Array]:
    """Rows given the other factor, slab by slab: ``transform`` of a matrix in memory."""
    with one_thread():
        visit = executor.run(work, keep=True)
        work.check(visit.sums, executor.slabs.shape[1], name)
        assert visit.rows is not None
        return [rows[0] for rows in executor.fetch(visit.rows)]
