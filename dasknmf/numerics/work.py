"""What is done to one slab while it is in memory: plain functions of (slab, rows, place).

Each work object is frozen, carries the factors it needs, and gives (new rows or None, sums). The
executors run it on every slab and add the sums up along a fixed tree (:func:`terms.add`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from dasknmf.numerics import kernels, nndsvd, random, weighted
from dasknmf.numerics.inspection import Inspection, Place, inspect_slab
from dasknmf.numerics.kernels import Array, Float64, Slab
from dasknmf.numerics.losses import Loss
from dasknmf.numerics.observed import Observed
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers import Solver
from dasknmf.numerics.solvers.base import Rows as Rows
from dasknmf.numerics.terms import Normal, Terms, add
from dasknmf.numerics.weighted import Held


class Work(Protocol):
    """One kind of visit to a slab. ``name`` is what the Dask dashboard shows."""

    @property
    def name(self) -> str:
        """Task name."""
        ...

    def __call__(self, V: Slab, rows: Rows | None, place: Place) -> tuple[Rows | None, Any]:
        """Visit one slab."""
        ...


@dataclass(frozen=True)
class RandomRows:
    """Start of carried rows: |N(0, 1)| times ``scale``, drawn by global row."""

    seed: int
    scale: float

    def __call__(self, model: int, place: Place, k: int) -> Float64:
        """Rows of one slab for one model."""
        drawn = random.normal_rows(self.seed, "rows", model, place.start, place.stop, k)
        return np.abs(drawn) * self.scale


class ModelSums(NamedTuple):
    """One model's share of a pass: terms of the H half, penalty of the rows, squared residual.

    ``held``: the error on entries that are held out. ``squares``: of the entries that the model
    sees, where it does not see all.
    """

    terms: Terms | None
    penalty: float
    residual: float
    held: Held = Held()
    squares: float | None = None


class StepSums(NamedTuple):
    """What a pass brings: the inspection when V is read for the first time, and the models."""

    inspection: Inspection | None
    models: tuple[ModelSums, ...]

    @staticmethod
    def merge(parts: Sequence[StepSums]) -> StepSums:
        """Add up; slabs with bad values bring no terms, and then the pass has none."""
        inspection = add([p.inspection for p in parts])
        if not all(p.models for p in parts):
            return StepSums(inspection, ())
        return StepSums(inspection, add([p.models for p in parts]))


@dataclass(frozen=True)
class Step:
    """The fused visit: new rows from (V_i, H), and at once their share of the H half.

    fixed
        H of every model, tall: columns of V × k.
    models
        Which model of the ensemble each of ``fixed`` is; others have dropped out, and their rows
        are empty. None: all, in order.
    gains
        What rows of each model may leave to gain; None: nothing.
    penalties
        Of the rows of each model; None: ``penalty`` for all.
    ceiling
        The largest value that a model is taken to foresee for entries held out.
    start
        Where carried rows come from when there are none yet.
    move
        False takes the carried rows as they are, and brings only their terms.
    """

    loss: Loss
    solver: Solver
    penalty: Penalty
    fixed: tuple[Array, ...]
    start: RandomRows | None = None
    move: bool = True
    inspect: bool = False
    residual: bool = False
    models: tuple[int, ...] | None = None
    gains: tuple[float, ...] | None = None
    penalties: tuple[Penalty, ...] | None = None
    ceiling: float = np.inf

    @property
    def prices(self) -> tuple[Penalty, ...]:
        """The penalty of the rows of each model."""
        return (self.penalty,) * len(self.fixed) if self.penalties is None else self.penalties

    @cached_property
    def _ready(self) -> Any:
        """Made by the first slab that a process visits."""
        return self.solver.ready(self.fixed, self.prices)

    def __getstate__(self) -> dict[str, Any]:
        """Without what each process makes itself: arrays may be delivered misaligned."""
        return {name: value for name, value in self.__dict__.items() if name != "_ready"}

    @property
    def name(self) -> str:
        """Such as ``nmf-als-pass``."""
        return f"nmf-{self.solver.name}-pass"

    def __call__(self, V: Slab, rows: Rows | None, place: Place) -> tuple[Rows | None, StepSums]:
        """Visit one slab."""
        inspection = inspect_slab(V, place) if self.inspect else None
        if inspection is not None and inspection.unfit(V.dtype):
            return rows, StepSums(inspection, ())
        old = self.starting_rows(rows, place)
        if self.move:
            ready = None if isinstance(V, Observed) else self._ready
            new, terms = self.solver.visit(
                self.loss, V, old, self.fixed, self.prices, self.gains, ready
            )
        else:
            new, terms = old, self.loss.share(V, self.fixed, old)
        models = tuple(
            ModelSums(t, price.value(W), self._residual(V, W, Ht), held)
            for t, W, Ht, held, price in zip(
                terms, new, self.fixed, self._held(V, new), self.prices, strict=True
            )
        )
        return self._among_all(new), StepSums(inspection, models)

    def _numbers(self) -> tuple[int, ...]:
        return tuple(range(len(self.fixed))) if self.models is None else self.models

    def _among_all(self, rows: Rows) -> Rows:
        """Rows by number of their model, empty for those that have dropped out."""
        if self.models is None:
            return rows
        placed = [np.empty((0, 0), rows[0].dtype)] * (max(self.models) + 1)
        for number, block in zip(self.models, rows, strict=True):
            placed[number] = block
        return tuple(placed)

    def starting_rows(self, rows: Rows | None, place: Place) -> Rows:
        """Rows to begin with: those that are carried, or the start's."""
        if rows is not None:
            return tuple(rows[number] for number in self._numbers())
        height = place.stop - place.start
        if self.start is None:
            return tuple(np.zeros((height, Ht.shape[1]), Ht.dtype) for Ht in self.fixed)
        return tuple(
            self.start(model, place, Ht.shape[1]).astype(Ht.dtype)
            for model, Ht in zip(self._numbers(), self.fixed, strict=True)
        )

    def _residual(self, V: Slab, W: Array, Ht: Array) -> float:
        if self.residual and isinstance(V, Observed):
            return weighted.squared_residual(V, W, Ht)
        return kernels.squared_residual(V, W, Ht) if self.residual else 0.0

    def _held(self, V: Slab, rows: Rows) -> list[Held]:
        if not isinstance(V, Observed) or V.rule.holdout is None:
            return [Held()] * len(rows)
        squared = self.loss.kind is Normal
        return weighted.held_errors(V, rows, self.fixed, squared=squared, ceiling=self.ceiling)


@dataclass(frozen=True)
class SolveRows:
    """Rows given H, to convergence, each on its own: ``transform``.

    With exact rows one update is the solution; a loss may have a row solver of its own. Otherwise
    multiplicative steps go on until a row changes by at most ``tol`` of its largest entry. A row's
    result is the same in any batch.
    """

    loss: Loss
    solver: Solver
    penalty: Penalty
    fixed: tuple[Array, ...]
    max_iter: int = 200
    tol: float = 1e-4

    @property
    def name(self) -> str:
        """Task name."""
        return "nmf-transform"

    def __call__(self, V: Slab, rows: Rows | None, place: Place) -> tuple[Rows | None, Inspection]:
        """Visit one slab."""
        inspection = inspect_slab(V, place)
        if inspection.unfit(V.dtype):
            return rows, inspection
        return tuple(self._solve(V, Ht) for Ht in self.fixed), inspection

    def check(self, seen: Inspection, columns: int, name: str) -> None:
        """Raise :class:`DataError` for what no rows could be solved from."""
        seen.raise_if_bad(False, name, empty=True)
        if seen.unfit(self.fixed[0].dtype):
            seen.raise_if_out_of_range(self.fixed[0].dtype)
        self.loss.check_zeros(seen.rows * columns - seen.positive)

    def _solve(self, V: Slab, Ht: Array) -> Array:
        exact = self.loss.exact_rows(V, Ht, (self.penalty.l1, self.penalty.l2))
        if exact is not None:
            return exact.astype(Ht.dtype, copy=False)
        start = np.zeros((V.shape[0], Ht.shape[1]), dtype=Ht.dtype)
        if not self.solver.carries_rows:
            return self.solver.rows(self.loss, V, (start,), (Ht,), (self.penalty,))[0]
        return self._iterate(V, start, Ht)

    def _step(self, V: Slab, rows: Array, Ht: Array) -> Array:
        terms = self.loss.terms(V, (rows,), (Ht,))[0]
        return self.solver.half_step(rows, terms, self.penalty)

    def _iterate(self, V: Slab, start: Array, Ht: Array) -> Array:
        """Multiplicative steps from rows of the right mass, on the rows that still move."""
        mass = np.asarray(V.sum(axis=1), dtype=np.float64).reshape(-1, 1)
        whole = float(np.sum(Ht, dtype=np.float64))
        if whole <= 0.0:
            return start
        rows: Array = start + (mass / whole).astype(Ht.dtype)
        live = np.flatnonzero(mass.ravel() > 0.0)
        for _ in range(self.max_iter):
            if not live.size:
                break
            everyone = live.size == V.shape[0]
            new = self._step(V if everyone else V[live], rows[live], Ht)
            change = np.max(np.abs(new - rows[live]), axis=1)
            rows[live] = new
            live = live[change > self.tol * np.max(new, axis=1)]
        return rows


class RangeSums(NamedTuple):
    """First read of the range finder."""

    inspection: Inspection
    product: Float64


@dataclass(frozen=True)
class RangeFinder:
    """First read of NNDSVD: validate, and VᵀV times random probes."""

    probes: Float64
    name: str = "nmf-range-finder"

    def __call__(self, V: Slab, rows: Rows | None, place: Place) -> tuple[None, RangeSums]:
        """Visit one slab."""
        inspection = inspect_slab(V, place)
        if inspection.unfit(V.dtype):
            return None, RangeSums(inspection, np.zeros(self.probes.shape))
        return None, RangeSums(inspection, nndsvd.power_product(V, self.probes))


@dataclass(frozen=True)
class PowerProducts:
    """VᵀV times vectors that are near its singular ones: what Nyström's approximation is made of.

    ``probes``: one array a rank, columns of V × l.
    """

    probes: tuple[Array, ...]
    name: str = "nmf-singular-vectors"

    def __call__(
        self, V: Slab, rows: Rows | None, place: Place
    ) -> tuple[None, tuple[Float64, ...]]:
        """Visit one slab."""
        return None, tuple(nndsvd.power_product(V, probes) for probes in self.probes)


@dataclass(frozen=True)
class Project:
    """Second read of NNDSVD: keep V_i @ basis as rows, bring its Gram matrix."""

    basis: Float64
    name: str = "nmf-project"

    def __call__(self, V: Slab, rows: Rows | None, place: Place) -> tuple[Rows, Float64]:
        """Visit one slab."""
        projected, squares = nndsvd.projected(V, self.basis)
        return (projected,), squares


@dataclass(frozen=True)
class MeasureHalves:
    """Squared norms of both halves of the left vectors, from the projected rows."""

    turn: Float64
    name: str = "nmf-nndsvd-norms"

    def __call__(
        self, V: Slab, rows: Rows | None, place: Place
    ) -> tuple[Rows | None, tuple[Float64, Float64]]:
        """Visit the rows of one slab."""
        assert rows is not None
        return rows, nndsvd.half_norms(rows[0] @ self.turn)


@dataclass(frozen=True)
class KeepHalves:
    """The long factor of NNDSVD, from the projected rows."""

    turn: Float64
    halves: nndsvd.Halves
    fill: nndsvd.Fill
    dtype: Any
    name: str = "nmf-nndsvd-rows"

    def __call__(self, V: Slab, rows: Rows | None, place: Place) -> tuple[Rows, float]:
        """Visit the rows of one slab."""
        assert rows is not None
        kept = nndsvd.keep_halves(rows[0] @ self.turn, self.halves.sign, self.halves.left)
        return (self.fill(kept, "rows", place.start).astype(self.dtype),), 0.0


@dataclass(frozen=True)
class Inspect:
    """Only look: for starts that need the mean of V before anything can begin."""

    name: str = "nmf-inspect"

    def __call__(self, V: Slab, rows: Rows | None, place: Place) -> tuple[None, Inspection]:
        """Visit one slab."""
        return None, inspect_slab(V, place)
