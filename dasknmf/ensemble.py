"""The models of one fit: each with its short factor, the sums of its waves and its objective.

A wave is a group of slabs. A model keeps every wave's sums; a visit replaces those of its wave, and
the short factor is solved anew from all of them. The rows behind the sums of the other waves are
those of their last visit, so by least squares each step is exact block coordinate descent: (rows,
short) is a real pair at any time, and ``objective`` is its own. Kullback-Leibler's sums know the
loss of the factors that they met; of those that the others have led to they tell it by models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dasknmf.numerics.inspection import Inspection
from dasknmf.numerics.kernels import Array
from dasknmf.numerics.losses import Loss
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers import Solver
from dasknmf.numerics.stopping import BRAKE, faster, led
from dasknmf.numerics.terms import Columns, Foreseen, Normal, add
from dasknmf.numerics.weighted import Held
from dasknmf.numerics.work import ModelSums
from dasknmf.parallel.driver import formed, half_step, solve_columns, solve_least_squares

ACCURACY = 1e-4  # of the rows in the first pass: what they may leave to gain, in parts of the loss
GUARD = 1e-9  # of an objective: less than that is no rise, rows being solved to a tolerance
NEAREST = 0.3  # of an entry: what is ahead of it for Kullback-Leibler, at least; 0 has no way back
SURE = 0.5  # of the gain that quadratic models promise; mostly more than 0.7 of it comes true
ROUNDING = 64.0  # units in the last place of ||V||² that a loss by Gram matrices may be off


@dataclass(frozen=True)
class Problem:
    """What does not change: objective, penalty of the short factor, ||V||² once it is known.

    ``total``: ΣV, where that is known and all entries count. ``foresees``: whether the first pass
    may move a short factor by a part of V; not one that the user gave, which may have seen all.
    """

    loss: Loss
    penalty: Penalty
    squares: float | None = None
    total: float | None = None
    foresees: bool = True

    @staticmethod
    def of(loss: Loss, penalty: Penalty, seen: Inspection | None, init: str) -> Problem:
        """The problem of a fit that began with ``init``, after what was seen of V."""
        foresees = init != "custom"
        if seen is None:
            return Problem(loss, penalty, foresees=foresees)
        total = seen.total if seen.observation is None else None
        return Problem(loss, penalty, seen.squares, total, foresees)

    def seen(self, sums: ModelSums) -> Problem:
        """The problem of a model that sees a part of V only."""
        return self if sums.squares is None else replace(self, squares=sums.squares)


@dataclass
class Model:
    """One factorisation. ``accuracy``: what its rows may leave to gain, in parts of the loss."""

    number: int
    short: Array
    waves: list[ModelSums | None]
    accuracy: float
    relative: float  # squared relative error, or a guess of it; for Kullback-Leibler loss / ΣV
    loss: float = float("nan")
    objectives: list[float] = field(default_factory=list)
    current: float | None = None
    momentum: float = 0.5
    told: float | None = None  # the lowest objective that a pass was believed to end with
    good: tuple[float, float, list[ModelSums | None]] | None = None  # met, believed, and its sums
    paid: list[float] = field(default_factory=list)  # penalty of the short factor that a wave met
    rejected: int = 0
    ahead: Array | None = None
    stand_ins: frozenset[int] = frozenset()  # waves whose sums come from compressed data
    exact: Model | None = None  # what to go back to if those promised too much
    trusting: bool = True  # that compressed data help
    held: Held = field(default_factory=Held)  # error on held-out entries

    def copy(self) -> Model:
        """A model that goes on from the same short factor, with nothing seen yet."""
        unseen: list[ModelSums | None] = [None] * len(self.waves)
        return Model(self.number, self.short, unseen, self.accuracy, self.relative)

    def take_over(self, other: Model) -> None:
        """Go on from what ``other`` found on compressed data, until a pass has seen V again."""
        self.exact = replace(self)
        self.waves, self.short, self.accuracy = other.waves, other.short, other.accuracy
        self.stand_ins = frozenset(range(len(self.waves)))
        self.current, self.ahead, self.momentum = None, None, 0.5

    @property
    def target(self) -> Array:
        """The short factor for which rows are solved: ahead of the present one, where that pays."""
        return self.short if self.ahead is None else self.ahead

    def of(self, problem: Problem) -> Problem:
        """The problem with the squares that all waves of this model have seen."""
        parts = [sums.squares for sums in self.waves if sums is not None]
        squares = add(parts) if parts else None
        return problem if squares is None else replace(problem, squares=squares)

    @property
    def gain(self) -> float:
        """What the rows may leave to gain, in parts of ||V||²; for Kullback-Leibler of ΣV."""
        return self.accuracy * self.relative

    def take_in(self, wave: int, sums: ModelSums, problem: Problem, solver: Solver) -> None:
        """What a wave brought, and the short factor that follows from it."""
        if problem.loss.kind is Normal:
            self.visit(wave, sums, problem, solver.loosened(0.1 * self.gain, warm=True))
        else:
            careful = solver.safer(self.rejected) if self.rejected else solver
            self.visit_columns(wave, sums, problem, careful)

    def visit(self, wave: int, sums: ModelSums, problem: Problem, solver: Solver) -> None:
        """Take in what a wave brought, and solve the short factor from the sums of all waves.

        Where rows solved to ``accuracy`` would raise the objective, the wave keeps its old rows,
        and the accuracy rises. While waves are missing the short factor waits: it would forget what
        it knows of the others (sorted rows: 5 % above; text from a sample: two reads more).
        """
        waves = [*self.waves[:wave], sums, *self.waves[wave + 1 :]]
        if any(found is None for found in waves):
            self.waves = waves
            return
        found = [sums.terms for sums in waves if sums is not None and sums.terms is not None]
        others = add([sums._replace(terms=None) for sums in waves if sums is not None])
        problem = problem.seen(others)
        assert problem.squares is not None
        short, loss, ahead = solve_least_squares(
            solver, self.short, found, problem.penalty, problem.squares, self.momentum
        )
        self.stand_ins -= {wave}
        if self.stand_ins:
            self.waves, self.short = waves, short
            return
        objective = loss + others.penalty + problem.penalty.value(short)
        slack = ROUNDING * np.finfo(np.float64).eps * problem.squares
        if self.current is not None and objective > self.current + slack:
            if self.ahead is None:
                self.accuracy *= 0.1
            self.ahead = None
            self.momentum *= BRAKE
            return
        self.ahead, self.momentum = ahead, faster(self.momentum)
        self.waves, self.short = waves, short
        self.loss, self.current = loss, objective

    def visit_columns(self, wave: int, sums: ModelSums, problem: Problem, solver: Solver) -> None:
        """The same for Kullback-Leibler, whose terms are models of the loss near the factor met.

        While waves are missing they are taken to agree with the factor that there is: it moves a
        part of the way, which saves most of a read. (A factor that has converged, as one given by
        the user may have, would come back above where it began: it waits.)
        """
        if sums.terms is not None:  # once, for the half-steps after all waves of a pass
            terms = formed(sums.terms).met(self.target, bounded=problem.penalty.active)
            sums = sums._replace(terms=terms)
        self.paid = self.paid if wave else []
        self.paid = [*self.paid, problem.penalty.value(self.target)]
        self.waves = [*self.waves[:wave], sums, *self.waves[wave + 1 :]]
        found: list[Columns | Foreseen] = [*self._found()]
        missing = len(self.waves) - len(found)
        if missing and not problem.foresees:
            return
        if missing:
            total = problem.total if sums.squares is None else None
            foreseen = Foreseen.of(self._found(), self.short, missing / len(found), total)
            if foreseen is None:
                return
            found.append(foreseen)
        short, self.current = solve_columns(solver, self.short, found, problem.penalty)
        self.ahead = None
        if self.momentum:
            self.ahead = np.maximum(led(short, self.short, self.momentum), NEAREST * short)
        self.short = short

    def _found(self) -> list[Columns]:
        """What the waves have brought so far."""
        terms = [sums.terms for sums in self.waves if sums is not None]
        return [found for found in terms if isinstance(found, Columns)]

    @property
    def reported(self) -> float:
        """The objective of the pair, as far as it is known."""
        return self.objectives[-1] if self.told is None else self.told

    def close_columns(self, problem: Problem, solver: Solver) -> None:
        """Note two objectives of a pass: each wave's where it met the short factor, and the pair's.

        The first was measured, and the fit goes by it; the second is what sums tell of the pair
        that the pass ends with. Where both rose the pass is taken back: the short factor becomes
        what EM makes of the sums of the last good pass, rows are exact from then on, and nothing
        goes ahead any more; where nothing did, later steps are more careful.
        """
        seen, found = [sums for sums in self.waves if sums is not None], self._found()
        rows, price = sum(s.penalty for s in seen), problem.penalty
        met = sum(terms.value for terms in found)
        loss = self._believed(found, met, self.short, price)
        objective = met + rows + sum(self.paid) / len(self.paid)
        told = loss + rows + price.value(self.short)
        if self.good is not None and (
            objective > self.good[0] * (1.0 + GUARD) and told > self.good[1] * (1.0 + GUARD)
        ):
            objective, _, self.waves = self.good
            self.rejected += self.momentum == 0.0
            self.momentum, self.ahead = 0.0, None
            found, safest = self._found(), solver.safest()
            self.short, _ = solve_columns(safest, self.short, found, problem.penalty)
        else:
            self.good = (objective, told, self.waves)
            mass = sum(float(np.sum(terms.counts)) for terms in found)
            self.relative = met / mass if mass else 0.0
            if self.told is None or told < self.told:
                self.told, self.loss = told, loss
        self._ask_for(objective)

    def _believed(
        self, found: Sequence[Columns], met: float, short: Array, price: Penalty
    ) -> float:
        """The loss of the pair, from what the terms tell of it and what the waves have ``met``.

        EM's bound is one. Quadratic models have no terms of the third order, so no more than
        ``SURE`` of what they promise is counted, less where that is much, and nothing of a half.
        Where a price lets the loss rise they tell too little of that, and the bound counts.
        """
        assert self.current is not None
        told = max(self.current, 0.0)
        if told >= met and price.active:
            return max(told, sum(terms.bound(short) for terms in found))
        if told >= met or any(terms.pull is None for terms in found):
            return told
        promised = met - told
        return met - promised * max(min(SURE, 1.0 - 2.0 * promised / met), 0.0)

    def close_pass(self, problem: Problem, solver: Solver) -> None:
        """Note the objective of a pass, and how exact the rows of the next one have to be."""
        self.held = add([sums.held for sums in self.waves if sums is not None])
        problem = self.of(problem)
        if problem.loss.kind is not Normal:
            self.close_columns(problem, solver)
            return
        assert self.current is not None
        self._confirm()
        self._ask_for(self.current)
        if problem.squares:
            self.relative = 2.0 * self.loss / problem.squares

    def _ask_for(self, objective: float) -> None:
        """Note the objective of a pass; of its gain, rows of the next may leave a hundredth."""
        if self.objectives:
            fell = (self.objectives[-1] - objective) / (abs(objective) or 1.0)
            self.accuracy = min(self.accuracy, max(0.01 * fell, 0.0))
        self.objectives.append(objective)

    def _confirm(self) -> None:
        """Go back to the last exact state, if what compressed data promised is no better."""
        exact, self.exact = self.exact, None
        if exact is None or exact.current is None or self.current <= exact.current:  # type: ignore[operator]
            return
        self.waves, self.short, self.accuracy = exact.waves, exact.short, exact.accuracy
        self.loss, self.current, self.ahead = exact.loss, exact.current, None
        self.trusting = False

    def finish(self, sums: ModelSums, problem: Problem, solver: Solver) -> ModelSums:
        """Solve the short factor once more, from rows that stay; give sums that know its loss.

        Kullback-Leibler's step is one on models: where they promise nothing it is not taken.
        """
        assert sums.terms is not None
        if problem.loss.kind is Normal:
            self.short = half_step(solver, self.short, sums.terms, problem.penalty)
            return sums
        price = problem.penalty
        met = formed(sums.terms).met(self.short, bounded=price.active)
        short, self.current = solve_columns(solver, self.short, [met], price)
        loss = self._believed([met], met.value, short, price)
        if loss + price.value(short) >= met.value + price.value(self.short):
            return sums
        self.short = short
        return sums._replace(terms=met._replace(value=loss))

    def measure(self, sums: ModelSums, problem: Problem, *, residual: bool) -> None:
        """Note the objective of the factors from which ``sums`` were formed."""
        self.held = sums.held
        if residual:
            self.loss = 0.5 * sums.residual
        else:
            assert sums.terms is not None
            assert problem.squares is not None
            self.loss = problem.loss.value(sums.terms, self.short, problem.squares)
        self.told = None
        self.objectives.append(self.loss + sums.penalty + problem.penalty.value(self.short))


def beginners(shorts: Sequence[Array], relative: Sequence[float], waves: int) -> list[Model]:
    """Models that have seen nothing yet; ``relative``: guesses of their squared errors."""
    unseen: list[ModelSums | None] = [None] * waves
    starts = zip(shorts, relative, strict=True)
    return [Model(n, F, list(unseen), ACCURACY, guess) for n, (F, guess) in enumerate(starts)]


def survivors(models: list[Model]) -> list[Model]:
    """Who goes on after a pass: the better half, and always the first.

    A fit of one model would have gone on with the first, so no ensemble ends above that.
    """
    if len(models) == 1:
        return models
    ranked = sorted(models, key=lambda model: (model.reported, model.number))
    keep = {model.number for model in ranked[: -(-len(models) // 2)]} | {models[0].number}
    return [model for model in models if model.number in keep]


def best_of(models: list[Model]) -> Model:
    """The model with the lowest objective; of equals, the first."""
    return min(models, key=lambda model: (model.reported, model.number))
