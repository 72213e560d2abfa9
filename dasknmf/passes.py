"""The only loop: pass after pass over V until the rule says stop.

It counts, stops and calls back. It knows no formula (losses, solvers and penalties do) and no graph
(executors do). Everything is in the streamed orientation: *rows* belong to the long side of V and
are solved slab by slab, *short* is the other factor, updated here from the summed terms.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dasknmf.compression import Compression
from dasknmf.ensemble import ACCURACY, Model, Problem, best_of, survivors
from dasknmf.history import Callback, History, PassInfo
from dasknmf.numerics import planning, random
from dasknmf.numerics.errors import ClusterError, RowsLostError
from dasknmf.numerics.inspection import Inspection
from dasknmf.numerics.kernels import Array
from dasknmf.numerics.losses import Loss
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers import Solver
from dasknmf.numerics.stopping import Outcome, RelativeChange
from dasknmf.numerics.terms import Normal, add
from dasknmf.numerics.work import Inspect, ModelSums, Step
from dasknmf.parallel.blas import one_thread
from dasknmf.parallel.driver import half_step
from dasknmf.parallel.executors import Carried, Executor
from dasknmf.parallel.starts import Request, make_start

logger = logging.getLogger("dasknmf")

LIFT_EVERY = 10  # passes; as R's package NMF does
RESTARTS = 3  # of a fit whose carried rows died with their worker
RESIDUAL_BELOW = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-10}
EXACT_BELOW = {np.dtype(np.float32): 1e-13, np.dtype(np.float64): 1e-15}


@dataclass(frozen=True)
class Settings:
    """One fit. ``waves``: updates of the short factor a pass; ``compress``: between passes."""

    start: Request
    stop: RelativeChange
    max_iter: int
    keep_rows: bool
    waves: int = 1
    compress: bool = False
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


@dataclass(frozen=True)
class Result:
    """What a fit ends with: the best model of the ensemble."""

    short: Array
    rows: Carried | None
    model: int  # whose rows they are
    loss: float
    n_iter: int
    outcome: Outcome
    history: dict[str, Array]
    inspection: Inspection
    reads: float


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
        f"the fit began {RESTARTS + 1} times, and each time workers died with rows that "
        f"solver={settings.solver.name!r} carries between passes. solver='als' with compress=False "
        "carries none."
    ) from last


class _Loop:
    """State of one fit: its models, the carried rows, what was seen of V, and the history.

    Where the solver takes waves, a pass is a row of them; its loss is that of the pair it ends with
    (for losses whose terms can't tell it: the sum over the waves, each at the short factor that it
    met). Otherwise, and where so little is left of V that the loss has to be measured from its
    entries, a pass is one visit to all slabs, and its loss that of the factors before the short one
    moves.
    """

    def __init__(self, executor: Executor, settings: Settings) -> None:
        self.executor = executor
        self.settings = settings
        self.history = History()
        self.began = time.perf_counter()
        self.inspection: Inspection | None = None
        self.rows: Carried | None = None

    def run(self) -> Result:
        settings = self.settings
        self.start = make_start(settings.start, self.executor, settings.name)
        if self.start.inspection is not None:
            self._accept(self.start.inspection)
        self.rows = self.start.rows
        self.waves = planning.waves(
            len(self.executor.slabs),
            settings.waves,
            random.generator(settings.start.seed, "waves", 0, 0),
        )
        self.compression = Compression(
            self.executor, settings.start, settings.stop, self.waves, on=settings.compress
        )
        self.models = [
            Model(n, short, [None] * len(self.waves), ACCURACY, self.start.relative)
            for n, short in enumerate(self.start.short)
        ]
        self.step = Step(
            settings.loss,
            settings.solver,
            settings.penalties[0],
            self.start.short,
            self.start.random_rows,
        )
        outcome = Outcome.MAX_ITER
        for number in range(1, settings.max_iter + 1):
            last = number == settings.max_iter
            ended = self._pass(number, last)
            if ended:
                outcome = ended
                break
        best = best_of(self.models)
        if not settings.solver.carries_rows:
            self._final_rows(best)
        assert self.inspection is not None
        return Result(
            short=best.short,
            rows=self.rows,
            model=best.number if settings.solver.carries_rows else 0,
            loss=self.history.loss[-1],
            n_iter=number,
            outcome=outcome,
            history=self.history.as_arrays(),
            inspection=self.inspection,
            reads=self.executor.reads,
        )

    @property
    def _problem(self) -> Problem:
        squares = None if self.inspection is None else self.inspection.squares
        return Problem(self.settings.loss, self.settings.penalties[1], squares)

    def _accept(self, inspection: Inspection) -> None:
        """Refuse bad values, and zeros where the loss has no finite value at them."""
        slabs = self.executor.slabs
        inspection.raise_if_bad(slabs.transposed, self.settings.name)
        inspection.raise_if_out_of_range(slabs.dtype)
        self.settings.loss.check_zeros(slabs.shape[0] * slabs.shape[1] - inspection.positive)
        self.inspection = inspection

    def _pass(self, number: int, last: bool) -> Outcome | None:
        """One pass of all models still in the race; say whether the fit is done."""
        measured = self._wants_residual()
        whole = measured or not self.settings.solver.takes_waves
        if whole:
            sums = self._whole_pass(number, measured)
        else:
            self._pass_of_waves(number, last)
        best = best_of(self.models)
        self._record(best)
        ended = self._judge(number, best)
        if whole and not (self.settings.solver.carries_rows and (ended or last)):
            self._move_short(number, sums)
        self.models = [best] if ended else survivors(self.models)
        if not (ended or last or whole or self._wants_residual()):
            self.compression.refine(self.models, self._problem)
        return ended

    def _pass_of_waves(self, of: int, last: bool) -> None:
        """Visit the waves in turn; every model's short factor moves after each."""
        seen: list[Inspection] = []
        self.compression.begin(self.models, last)
        for number, slabs in enumerate(self.waves):
            solver = self._at(of - 1 + number / len(self.waves))
            step = replace(
                self.step,
                fixed=tuple(model.target for model in self.models),
                solver=solver,
                gains=tuple(model.gain for model in self.models),
                inspect=self.inspection is None,
            )
            sums = self.compression.visit(step, slabs)
            if sums.inspection is not None:
                seen.append(sums.inspection)
                self._look(seen, number)
            for model, found in zip(self.models, sums.models, strict=True):
                if self.settings.loss.kind is Normal:
                    warm = solver.loosened(0.1 * model.gain, warm=True)
                    model.visit(number, found, self._problem, warm)
                else:
                    careful = solver.safer(model.rejected) if model.rejected else solver
                    model.visit_columns(number, found, self._problem, careful)
        for model in self.models:
            model.close_pass(self._problem, self.settings.solver)

    def _look(self, seen: list[Inspection], wave: int) -> None:
        """Judge what the waves so far have seen; with bad values in it, see the other slabs too."""
        whole = add(seen)
        rest = [slab for slabs in self.waves[wave + 1 :] for slab in slabs]
        if rest and whole.unfit(self.executor.slabs.dtype):
            whole = add([whole, self.executor.run(Inspect(), only=sorted(rest)).sums])
        elif rest:
            return
        self._accept(whole)

    def _whole_pass(self, number: int, measured: bool) -> tuple[ModelSums, ...]:
        """Visit all slabs at once, without moving the short factors."""
        solver = self._solvers(number)[0]
        step = replace(
            self.step,
            fixed=tuple(model.short for model in self.models),
            models=tuple(model.number for model in self.models),
            solver=solver,
            inspect=self.inspection is None,
            residual=measured,
        )
        visit = self.executor.run(step, self.rows, keep=solver.carries_rows)
        if visit.sums.inspection is not None:
            self._accept(visit.sums.inspection)
        self.rows = visit.rows
        for model, sums in zip(self.models, visit.sums.models, strict=True):
            model.measure(sums, self._problem, residual=measured)
        sums_of_all: tuple[ModelSums, ...] = visit.sums.models
        return sums_of_all

    def _move_short(self, number: int, sums: tuple[ModelSums, ...]) -> None:
        solver, penalty = self._solvers(number)[1], self.settings.penalties[1]
        for model, found in zip(self.models, sums, strict=True):
            assert found.terms is not None
            model.short = half_step(solver, model.short, found.terms, penalty)

    def _at(self, reads: float) -> Solver:
        """The solver for a point of the fit, where that began from nothing."""
        solver = self.settings.solver
        return solver.at(reads) if self.settings.start.init == "random" else solver

    def _solvers(self, number: int) -> tuple[Solver, Solver]:
        """Of the rows and of the short factor; every tenth pass they lift vanishing entries."""
        solver = self.settings.solver
        if number % LIFT_EVERY:
            return solver, solver
        rows, short = self.start.smallest
        return solver.lifting(rows), solver.lifting(short)

    def _final_rows(self, model: Model) -> None:
        """Exact rows of the final short factor: the last read, and the loss of what is returned.

        A matrix that is streamed as its transpose gets the other factor solved from the same
        read, so that its W is what ``transform`` would give.
        """
        settings, transposed = self.settings, self.executor.slabs.transposed
        measured = self._wants_residual()
        step = replace(self.step, fixed=(model.short,), residual=measured and not transposed)
        visit = self.executor.run(step, keep=settings.keep_rows or transposed)
        self.rows = visit.rows
        if transposed:
            self._move_short_exactly(model, visit.sums.models[0])
        model.measure(visit.sums.models[0], self._problem, residual=step.residual)
        if transposed and measured:
            step = replace(step, fixed=(model.short,), move=False, residual=True)
            sums = self.executor.run(step, self.rows).sums.models[0]
            model.objectives.pop()
            model.measure(sums, self._problem, residual=True)
        self._record(model)
        self._call_back(len(self.history.loss), "final rows")

    def _move_short_exactly(self, model: Model, sums: ModelSums) -> None:
        assert sums.terms is not None
        penalty = self.settings.penalties[1]
        model.short = half_step(self.settings.solver, model.short, sums.terms, penalty)

    def _wants_residual(self) -> bool:
        """Whether the loss by Gram matrices would have lost its digits."""
        if not self.history.loss or self.settings.loss.kind is not Normal:
            return False
        return self.history.relative_error[-1] ** 2 < RESIDUAL_BELOW[self.executor.slabs.dtype]

    def _record(self, model: Model) -> None:
        assert self.inspection is not None
        self.history.loss.append(model.loss)
        self.history.objective.append(model.objectives[-1])
        relative = self.settings.loss.relative(model.loss, self.inspection.squares)
        self.history.relative_error.append(relative)
        self.history.models.append(len(self.models))
        self.history.holdout.append(model.held.mean)
        self.history.reads.append(self.executor.reads)
        self.history.seconds.append(time.perf_counter() - self.began)

    def _judge(self, number: int, best: Model) -> Outcome | None:
        """Whether the fit is done: by the rule, on the objectives of the first model.

        It is the one with which a fit of one model would go on, so an ensemble reads V as often.
        """
        assert self.inspection is not None
        size = 0.5 * self.inspection.squares if self.settings.loss.kind is Normal else 0.0
        exact = EXACT_BELOW[self.executor.slabs.dtype] * size
        asked = self._call_back(number, "pass")
        ended = self.settings.stop.judge(self.models[0].objectives, exact, size)
        if self.settings.stop.judge([best.objectives[-1]], exact):
            ended = Outcome.EXACT
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
