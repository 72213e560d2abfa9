"""The only loop: pass after pass over V until the rule says stop.

It counts, stops and calls back. It knows no formula (losses, solvers and penalties do) and no graph
(executors do). Everything is in the streamed orientation: *rows* belong to the long side of V and
are solved slab by slab, *short* is the other factor, updated here from the summed terms.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from dasknmf.checkpointing import Keeper
from dasknmf.compression import Compression, Progress
from dasknmf.ensemble import Model, Problem, beginners, best_of, survivors
from dasknmf.numerics import planning, random
from dasknmf.numerics.errors import ClusterError, RowsLostError
from dasknmf.numerics.inspection import Inspection
from dasknmf.numerics.lots import varied
from dasknmf.numerics.solvers import Solver
from dasknmf.numerics.stopping import EXACT_BELOW, RESIDUAL_BELOW, Outcome
from dasknmf.numerics.terms import Normal, add
from dasknmf.numerics.work import Inspect, ModelSums, Step, StepSums
from dasknmf.parallel.blas import one_thread
from dasknmf.parallel.driver import half_step
from dasknmf.parallel.executors import Executor
from dasknmf.parallel.starts import make_start
from dasknmf.settings import Result, Settings
from dasknmf.state import State

logger = logging.getLogger("dasknmf")

LIFT_EVERY = 10  # passes; as R's package NMF does
FINAL = "final rows"  # what comes after the passes
RESTARTS = 3  # of a fit whose carried rows died with their worker


def fit(
    executor: Executor,
    settings: Settings,
    keeper: Keeper | None = None,
    take: Callable[[Result], Any] = lambda result: result,
) -> Any:
    """Factorise the executor's matrix, and give what ``take`` makes of the result.

    Rows that die with their worker come back from the last commit; without one the fit begins
    anew, also where they die while ``take`` fetches them. ``RESTARTS`` times at most without a
    commit in between.
    """
    keeper = keeper or Keeper()
    attempt, commits = 0, keeper.commits
    with one_thread():
        while attempt <= RESTARTS:
            try:
                return take(Loop(executor, settings, keeper).run())
            except RowsLostError as error:
                attempt, commits = 1 + (attempt if commits == keeper.commits else 0), keeper.commits
                logger.warning(
                    "%s: the fit %s, to the same numbers (%d of %d)",
                    error, keeper.way, attempt, RESTARTS,
                )  # fmt: skip
                last = error
    raise ClusterError(
        f"the fit began {RESTARTS + 1} times, and each time workers died with rows that solver="
        f"{settings.solver.name!r} carries. solver='als' carries none, checkpoint=... keeps them."
    ) from last


class Loop:
    """One fit: its state, and what is done to it, wave after wave.

    Where the solver takes waves, a pass is a row of them; its loss is that of the pair it ends with
    (Kullback-Leibler: as models of the waves tell it). Otherwise, and where so little is left of V
    that the loss has to be measured from its entries, a pass is one visit to all slabs, and its
    loss that of the factors before the short one moves.
    """

    def __init__(self, executor: Executor, settings: Settings, keeper: Keeper) -> None:
        self.executor = executor
        self.settings = settings
        self.keeper = keeper
        self.began = time.perf_counter()
        count = settings.waves
        seeded = random.generator(settings.start.seed, "waves", 0, 0)
        self.waves = planning.waves(len(executor.slabs), count, seeded)
        executor.begin("start")
        stored = keeper.restore(executor)
        self.state = self._first_state() if stored is None else stored
        if stored is not None:
            executor.go_on(stored.reads)
        self.began -= self.state.seconds
        self.unchecked = self.state.checksums if stored is not None else {}
        progress, start = self.state.compression, settings.start
        assert progress is not None
        self.compression = Compression(executor, start, settings.stop, self.waves, progress)
        self._step = Step(
            settings.loss,
            settings.solver,
            settings.penalties[0],
            tuple(model.short for model in self.state.models),
            self.state.random_rows,
        )
        if stored is None:
            keeper.boundary(self._now, ended=True)

    def _first_state(self) -> State:
        """Where a fit begins that has nothing to go on from."""
        start = make_start(self.settings.start, self.executor, self.settings.name)
        state = State(
            beginners(start.short, [start.relative] * len(start.short), len(self.waves)),
            rows=start.rows,
            random_rows=start.random_rows,
            smallest=start.smallest,
            compression=Progress(on=self.settings.compress),
        )
        if start.inspection is not None:
            self._check(start.inspection)
            state.inspection = start.inspection
        return state

    def run(self) -> Result:
        """All passes, and what they end with."""
        settings, state = self.settings, self.state
        if state.outcome is not None:
            self._reopen()
        while state.outcome is None:
            last = state.number >= settings.max_iter
            ended = self._pass(state.number, last)
            state.outcome = ended or (Outcome.MAX_ITER if last else None)
            if state.outcome is None:
                state.number, state.wave, state.pending = state.number + 1, 0, False
                self.keeper.boundary(self._now, ended=True)
        outcome, best = state.outcome, state.best
        ending = self.keeper.mark(self._now())
        if not settings.solver.carries_rows:
            self._final_rows(best)
        elif self.unchecked:
            self._saw(self.executor.run(Inspect()).sums)
        assert state.inspection is not None
        self.keeper.finish(ending, self.state)
        return Result(
            short=best.short,
            rows=state.rows,
            model=best.number if settings.solver.carries_rows else 0,
            loss=state.history.loss[-1],
            n_iter=state.number,
            outcome=outcome,
            history=state.history.as_arrays(),
            inspection=state.inspection,
            reads=self.executor.reads,
        )

    def _reopen(self) -> None:
        """Go on with a fit that had ended, where it would not end there now."""
        state, settings = self.state, self.settings
        if self._judged(state.best) or state.number >= settings.max_iter:
            return
        if state.pending:  # the last pass left the short factors where they were
            step = self._whole_step(move=False)
            self._move_short(state.number, self.executor.run(step, state.rows).sums.models)
        state.outcome, state.pending = None, False
        state.number, state.wave = state.number + 1, 0

    def _now(self) -> State:
        """The state, with the counts that others keep."""
        state = self.state
        state.reads = self.executor.reads_exactly
        state.seconds = time.perf_counter() - self.began
        return state

    @property
    def step(self) -> Step:
        """A visit to slabs. Nothing foreseen counts for more than the largest entry, once known."""
        seen = self.state.inspection
        return self._step if seen is None else replace(self._step, ceiling=seen.largest)

    @property
    def _problem(self) -> Problem:
        settings, seen = self.settings, self.state.inspection
        return Problem.of(settings.loss, settings.penalties[1], seen, settings.start.init)

    def _problem_of(self, model: Model) -> Problem:
        lots, problem = self.settings.lots, self._problem
        return replace(problem, penalty=lots[model.number].penalties[1]) if lots else problem

    def _check(self, inspection: Inspection) -> None:
        """Refuse bad values, and zeros where the loss has no finite value at them."""
        slabs = self.executor.slabs
        inspection.raise_if_bad(slabs.transposed, self.settings.name)
        inspection.raise_if_out_of_range(slabs.dtype)
        self.settings.loss.check_zeros(slabs.shape[0] * slabs.shape[1] - inspection.positive)

    def _looks(self, slabs: Iterable[int]) -> bool:
        """Whether a visit to these slabs has to look at their values."""
        return self.state.inspection is None or not self.unchecked.keys().isdisjoint(slabs)

    def _saw(self, inspection: Inspection, rest: Sequence[int] = ()) -> None:
        """Take in what a visit saw of V; ``rest``: slabs that were not visited yet.

        What a checkpoint knows of must not have changed. With bad values in what was seen so far,
        the other slabs are looked at, too, so that the error counts all.
        """
        self.keeper.compare(inspection, self.unchecked, self.executor.slabs)
        for slab, _ in inspection.checksums:
            self.unchecked.pop(slab, None)
        state = self.state
        if state.inspection is not None:
            return
        state.seen = [*state.seen, inspection]
        whole = add(state.seen)
        if rest and whole.unfit(self.executor.slabs.dtype):
            whole = add([whole, self.executor.run(Inspect(), only=sorted(rest)).sums])
        elif rest:
            return
        self._check(whole)
        state.inspection, state.seen = whole, []

    def _pass(self, number: int, last: bool) -> Outcome | None:
        """One pass of all models still in the race; say whether the fit is done."""
        self.executor.begin(f"pass {number}")
        measured = self._wants_residual()
        whole = measured or not self.settings.solver.takes_waves
        if whole:
            sums = self._whole_pass(number, measured)
        else:
            self._pass_of_waves(number, last)
        state = self.state
        best = best_of(state.models)
        self._record(best)
        ended = self._judge(number, best)
        if whole:
            state.pending = self.settings.solver.carries_rows and bool(ended or last)
            if not state.pending:
                self._move_short(number, sums)
        state.models = [best] if ended else survivors(state.models)
        if not (ended or last or whole or self._wants_residual()):
            self.compression.refine(state.models, self._problem)
        return ended

    def _pass_of_waves(self, of: int, last: bool) -> None:
        """Visit the waves in turn; every model's short factor moves after each."""
        state = self.state
        if not state.wave:
            self.compression.begin(state.models, last)
        while state.wave < len(self.waves):
            for number, sums in self._visits(self._together(of), of):
                solver, state.wave = self._solver_of(of, number), number + 1
                for model, found in zip(state.models, sums.models, strict=True):
                    model.take_in(number, found, self._problem_of(model), solver)
            if state.wave < len(self.waves):
                self.keeper.boundary(self._now, ended=False)
        for model in state.models:
            model.close_pass(self._problem_of(model), self.settings.solver)

    def _together(self, of: int) -> Sequence[int]:
        """The next wave; all that are left, where no short factor moves before the last."""
        rest = range(self.state.wave, len(self.waves))
        waits = self.settings.loss.kind is Normal and not self.keeper.between_waves
        unseen = all(model.waves[n] is None for model in self.state.models for n in rest)
        same = len({self._solver_of(of, n) for n in rest}) == 1
        return rest if waits and unseen and same else rest[:1]

    def _visits(self, numbers: Sequence[int], of: int) -> Iterator[tuple[int, StepSums]]:
        """What waves of a pass bring, each by itself; what they see of V is looked at."""
        models, slabs = self.state.models, [self.waves[number] for number in numbers]
        step = replace(
            self.step,
            fixed=tuple(model.target for model in models),
            solver=self._solver_of(of, numbers[0]),
            gains=tuple(model.gain for model in models),
            inspect=self._looks(chain(*slabs)),
        )
        work: Any = varied(step, [m.number for m in models], self.settings.lots)
        found = [visit.sums for visit in self.compression.visit(work, slabs, keep=False)]
        if step.inspect:
            self._saw(add([s.inspection for s in found]), [*chain(*self.waves[numbers[-1] + 1 :])])
        return zip(numbers, found, strict=True)

    def _whole_step(self, **changes: Any) -> Step:
        models = self.state.models
        fixed, numbers = tuple(m.short for m in models), tuple(m.number for m in models)
        return replace(self.step, fixed=fixed, models=numbers, **changes)

    def _whole_pass(self, number: int, measured: bool) -> tuple[ModelSums, ...]:
        """Visit all slabs at once, without moving the short factors."""
        solver, state = self._solvers(number)[0], self.state
        inspect = self._looks(range(len(self.executor.slabs)))
        step = self._whole_step(solver=solver, inspect=inspect, residual=measured)
        visit = self.executor.run(step, state.rows, keep=solver.carries_rows)
        if visit.sums.inspection is not None:
            self._saw(visit.sums.inspection)
        state.rows = visit.rows
        for model, sums in zip(state.models, visit.sums.models, strict=True):
            model.measure(sums, self._problem, residual=measured)
        sums_of_all: tuple[ModelSums, ...] = visit.sums.models
        return sums_of_all

    def _move_short(self, number: int, sums: tuple[ModelSums, ...]) -> None:
        solver, penalty = self._solvers(number)[1], self.settings.penalties[1]
        for model, found in zip(self.state.models, sums, strict=True):
            assert found.terms is not None
            model.short = half_step(solver, model.short, found.terms, penalty)

    def _solver_of(self, number: int, wave: int) -> Solver:
        """The solver for a wave of a pass, where the fit began from nothing."""
        solver, reads = self.settings.solver, number - 1 + wave / len(self.waves)
        return solver.at(reads) if self.settings.start.init == "random" else solver

    def _solvers(self, number: int) -> tuple[Solver, Solver]:
        """Of the rows and of the short factor; every tenth pass they lift vanishing entries."""
        solver = self.settings.solver
        if number % LIFT_EVERY:
            return solver, solver
        rows, short = self.state.smallest
        return solver.lifting(rows), solver.lifting(short)

    def _final_rows(self, model: Model) -> None:
        """Exact rows of the final short factor: the last read, and the loss of what is returned.

        A matrix that is streamed as its transpose gets the other factor solved from the same
        read, so that its W is what ``transform`` would give.
        """
        settings, transposed = self.settings, self.executor.slabs.transposed
        self.executor.begin(FINAL)
        measured = self._wants_residual()
        step = replace(
            self.step, fixed=(model.short,), inspect=bool(self.unchecked),
            solver=settings.solver if transposed else settings.solver.ending(),
            residual=measured and not transposed,
        )  # fmt: skip
        visit = self.executor.run(step, keep=settings.keep_rows or transposed)
        if visit.sums.inspection is not None:
            self._saw(visit.sums.inspection)
        self.state.rows, sums = visit.rows, visit.sums.models[0]
        if transposed:
            sums = model.finish(sums, self._problem_of(model), settings.solver)
        model.measure(sums, self._problem, residual=step.residual)
        if transposed and measured:
            step = replace(step, fixed=(model.short,), inspect=False, move=False, residual=True)
            sums = self.executor.run(step, visit.rows).sums.models[0]
            model.objectives.pop()
            model.measure(sums, self._problem, residual=True)
        self._record(model)
        self._call_back(len(self.state.history.loss), FINAL)

    def _wants_residual(self) -> bool:
        """Whether the loss by Gram matrices would have lost its digits."""
        errors = self.state.history.relative_error
        if not errors or self.settings.loss.kind is not Normal:
            return False
        return errors[-1] ** 2 < RESIDUAL_BELOW[self.executor.slabs.dtype]

    def _record(self, model: Model) -> None:
        history, seen = self.state.history, self.state.inspection
        assert seen is not None
        history.loss.append(model.loss)
        history.objective.append(model.reported)
        history.relative_error.append(self.settings.loss.relative(model.loss, seen.squares))
        history.models.append(len(self.state.models))
        history.holdout.append(model.held.mean)
        history.reads.append(self.executor.reads)
        history.seconds.append(time.perf_counter() - self.began)

    def _judge(self, number: int, best: Model) -> Outcome | None:
        """Whether the fit is done: by the rule, or because a callback asks for it."""
        asked = self._call_back(number, "pass")
        return self._judged(best) or (Outcome.INTERRUPTED if asked else None)

    def _judged(self, best: Model) -> Outcome | None:
        """By the rule, on the objectives of the first model.

        It is the one with which a fit of one model would go on, so an ensemble reads V as often.
        """
        seen = self.state.inspection
        assert seen is not None
        size = 0.5 * seen.squares if self.settings.loss.kind is Normal else 0.0
        exact = EXACT_BELOW[self.executor.slabs.dtype] * size
        if self.settings.stop.judge([best.objectives[-1]], exact):
            return Outcome.EXACT
        return self.settings.stop.judge(self.state.models[0].objectives, exact, size)

    def _call_back(self, number: int, phase: str) -> bool:
        info = self.state.history.last(number, self.settings.max_iter, phase)
        logger.debug("%s %d: loss %.9g", phase, number, info.loss)
        asked = [callback(info) for callback in self.settings.callbacks]  # every one is called
        return any(isinstance(answer, bool | np.bool_) and answer for answer in asked)
