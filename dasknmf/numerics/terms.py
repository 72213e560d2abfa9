"""What a half-step needs from the data, and how such pieces add up over slabs.

A reduction is a value: whatever a slab gives is a number, an array or a named tuple of those, and
:func:`add` is the one way to merge them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import numpy as np

from dasknmf.numerics.kernels import Array, Float64, gram, loops, own
from dasknmf.numerics.kullback import Kept

T = TypeVar("T")
Share = Callable[[Callable[[slice], None], int], Any]  # of n columns among threads, a slice each
LEAST = 1e-3  # of the mean mass: what a component is taken to have in slabs not seen yet
NOTHING = 1e-200  # of the mass: an entry so small is zero, or what divides by it would overflow


class Normal(NamedTuple):
    """Least squares in a moving factor F: the minimum of 1/2 <F G, F> - <C, F>.

    ``cross`` C = V @ fixed, shape (rows of F, k); ``gram`` G = fixedᵀ fixed, shape (k, k).
    """

    cross: Float64
    gram: Float64

    def part(self, some: slice) -> Normal:
        """Terms of some of the rows."""
        return Normal(self.cross[some], self.gram)


class Each(NamedTuple):
    """Least squares in which every row of F has a Gram matrix of its own: weights, missing entries.

    ``cross`` as in :class:`Normal`; row j has the matrix ``gram`` + ``packed``[j], the latter the
    lower triangle row by row, shape (rows of F, k (k + 1) / 2).
    """

    cross: Float64
    gram: Float64
    packed: Float64

    def norm(self, F: Float64) -> float:
        """Σ_j f_j G_j f_jᵀ: the model's weighted squared norm."""
        deviation = loops("each").quadratic(own(self.packed), own(F))
        return float(np.sum(self.gram * gram(F))) + float(deviation)

    def part(self, some: slice) -> Each:
        """Terms of some of the rows."""
        return Each(self.cross[some], self.gram, self.packed[some])


class Fitted(NamedTuple):
    """Least squares of a pair from which no other factor follows: what is left to know is its loss.

    ``explained`` <V, W H>, of whose two factors both are known; ``gram`` WᵀW, shape (k, k).
    """

    explained: float
    gram: Float64


class Split(NamedTuple):
    """Any loss: its gradient in F is ``pos - neg``, both non-negative, shaped like F.

    ``value`` is the loss at the factors for which the terms were formed; ``exponent`` is the
    majorise-minimise power of the multiplicative update.
    """

    neg: Float64
    pos: Float64
    value: float
    exponent: Exponent


class Columns(NamedTuple):
    """Kullback-Leibler in the short factor: what slabs visited at different H may add up.

    ``counts`` H ∘ neg, shape (columns, k), and ``mass`` Σ_i w_i: EM's sufficient statistics, whose
    sum over slabs gives H = counts / mass wherever each slab met its own H (Neal & Hinton 1998).
    ``pull`` C h - gradient and ``curvature`` C = Σ_i v_ij w_i w_iᵀ / y_ij², the lower triangle of
    every column packed: quadratic models, which add up likewise; None without curvature.
    ``mass`` has a row a column of V where not every entry counts the same.
    ``value``: the loss at the factors met. ``ridge``: the L2 penalty, once it is applied.
    ``constant``: what :meth:`told` leaves out; ``anchor``: what :meth:`bound` does; of :meth:`met`.
    """

    counts: Float64
    mass: Float64
    pull: Float64 | None
    curvature: Float64 | None
    value: float
    ridge: float = 0.0
    constant: float = 0.0
    anchor: float = 0.0

    @staticmethod
    def of(
        H: Array, neg: Float64, mass: Float64, curvature: Float64 | None, value: float
    ) -> Columns:
        """From Σ v w / y of every column, at the factor H that slabs have met."""
        pull = None if curvature is None else 2.0 * neg - mass  # C_j h_j is neg_j: y is linear in h
        return Columns(H * neg, mass, pull, curvature, value)

    def met(self, H: Array, *, bounded: bool = False) -> Columns:
        """With the constant by which :meth:`told` is the loss itself at ``H``, which slabs met.

        ``bounded``: and the one of :meth:`bound`.
        """
        wide = H.astype(np.float64, copy=False)
        if self.pull is None:
            constant = self.value - self._expected(wide)
            return self._replace(constant=constant, anchor=constant)
        told = float(np.sum(self.mass * wide)) - 1.5 * float(np.sum(self.counts))  # C_j h_j = neg_j
        anchor = self.value - self._expected(wide) if bounded else 0.0
        return self._replace(constant=self.value - told, anchor=anchor)

    def bound(self, H: Array) -> float:
        """EM's: the loss at ``H`` is not above it, and where slabs met ``H`` it is the loss."""
        return self._expected(H.astype(np.float64, copy=False)) + self.anchor

    def _expected(self, H: Float64) -> float:
        log = np.log(H, out=np.zeros(H.shape), where=H > 0.0)
        return float(np.sum(self.mass * H)) - float(np.vdot(self.counts, log))

    def told(self, H: Float64) -> float:
        """The loss at ``H``, but for the constant: by the quadratic models, or by EM's bound.

        Both add up over slabs that met different H, and over parts of the columns.
        """
        if self.pull is None or self.curvature is None:
            return self._expected(H)
        bent = loops("each").quadratic(own(self.curvature), own(H))
        return 0.5 * float(bent) - float(np.vdot(self.pull, H))

    def part(self, some: slice) -> Columns:
        """Terms of some of the columns; ``value`` stays that of all."""
        return self._replace(
            counts=self.counts[some],
            mass=self.mass[some] if self.mass.ndim == 2 else self.mass,
            pull=None if self.pull is None else self.pull[some],
            curvature=None if self.curvature is None else self.curvature[some],
        )

    @staticmethod
    def merge(parts: Sequence[Columns | Listed]) -> Columns:
        """Add up; models of some of the slabs alone would be wrong, so then there are none."""
        formed = [p for p in parts if not isinstance(p, Listed)]
        lists = [p for p in parts if isinstance(p, Listed)]
        if lists:
            formed.append(Listed.formed_of(lists, _share.get()))
        curved = all(p.curvature is not None for p in formed)
        return Columns(
            counts=add([p.counts for p in formed]),
            mass=add([p.mass for p in formed]),
            pull=add([p.pull for p in formed]) if curved else None,
            curvature=add([p.curvature for p in formed]) if curved else None,
            value=add([p.value for p in formed]),
            ridge=formed[0].ridge,
            constant=sum(p.constant for p in formed),
            anchor=sum(p.anchor for p in formed),
        )


class Listed(NamedTuple):
    """:class:`Columns` that are still to be formed, of slabs that met the same ``short`` factor.

    Where slabs have few entries for their columns, lists of those are less to write, to add up and
    to move than k(k+1)/2 + 2k numbers a column: ``kept``, in the order of the columns, and the
    ``rows`` W that they are in. ``mass`` and ``value`` as there. Lists that are added up stay one,
    or become sums where those are smaller: nothing here ever takes more bytes than the sums.
    """

    short: Array
    kept: Kept
    rows: Float64
    mass: Float64
    value: float

    @staticmethod
    def pays(columns: int, entries: int, height: int, k: int, slabs: int = 1) -> bool:
        """Whether the list of so many slabs like this takes fewer bytes than the sums."""
        sums = 8 * columns * (k * (k + 1) // 2 + 2 * k)
        return slabs * (20 * entries + 8 * height * k) + 8 * columns * (k + 1) <= sums

    def formed(self, share: Share | None = None) -> Columns:
        """The sums. ``share(work, n)`` may share n columns among threads."""
        return Listed.formed_of([self], share)

    @staticmethod
    def formed_of(lists: Sequence[Listed], share: Share | None = None) -> Columns:
        """The sums of all; beside the lists nothing else is held, so they go in one by one."""
        short = lists[0].short
        columns, k = short.shape
        neg, curvature = np.zeros((columns, k)), np.zeros((columns, k * (k + 1) // 2))

        def form(some: slice) -> None:
            first, last, _ = some.indices(columns)
            for part in lists:
                starts, *entries = (own(array) for array in part.kept)
                of = (own(starts[first : last + 1]), *entries, own(part.rows))
                loops("columns").add_formed(*of, neg[some], curvature[some])

        if share is None:
            form(slice(columns))
        else:
            share(form, columns)
        mass, value = add([p.mass for p in lists]), add([p.value for p in lists])
        return Columns.of(short, neg, mass, curvature, value)

    @staticmethod
    def together(lists: Sequence[Listed]) -> Listed:
        """One list of all."""
        starts = add([p.kept.starts for p in lists])
        kept = Kept(starts, *Kept.room(0, int(starts[-1]))[1:])
        place, first = starts[:-1].copy(), 0
        for p in lists:
            entries = [own(array) for array in p.kept]
            loops("columns").put_behind(*entries, first, place, tuple(kept[1:]))
            first += p.rows.shape[0]
        return Listed(
            lists[0].short,
            kept,
            np.concatenate([p.rows for p in lists]),
            add([p.mass for p in lists]),
            add([p.value for p in lists]),
        )

    @staticmethod
    def merge(parts: Sequence[Columns | Listed]) -> Columns | Listed:
        """One list, as long as that is less than the sums."""
        lists = [p for p in parts if isinstance(p, Listed)]
        columns, k = lists[0].short.shape
        entries = sum(p.kept.rows.size for p in lists)
        height = sum(p.rows.shape[0] for p in lists)
        if len(lists) < len(parts) or not Listed.pays(columns, entries, height, k):
            return Columns.merge(parts)
        return Listed.together(lists)


class Foreseen(NamedTuple):
    """:class:`Columns` of slabs not seen yet, as if they agreed with the ``short`` factor.

    There the gradient is zero and counts are H ∘ mass. Their curvature is that of the EM step's
    bound, mass / h on the diagonal, so that a factor moves towards what was seen by about the part
    of V that it was. It is never held whole. ``mass`` (k,), positive.
    """

    short: Array
    mass: Float64
    curved: bool

    @staticmethod
    def of(
        found: Sequence[Columns], short: Array, ratio: float, total: float | None = None
    ) -> Foreseen | None:
        """From sums of a part of V; None if they are empty.

        The rest is what it lacks of ``total``, ΣV; where that is not known, ``ratio`` times it.
        """
        mass: Float64 = sum((np.atleast_2d(p.mass).mean(axis=0) for p in found), np.zeros(()))
        if not mass.any():
            return None
        if total is not None:
            seen = sum(float(np.sum(p.counts)) for p in found)
            ratio = max(total / seen - 1.0, LEAST) if seen > 0.0 else ratio
        mass = mass * ratio
        mass = np.maximum(mass, LEAST * mass.mean())  # of a component that only others may need
        return Foreseen(short, mass, all(p.curvature is not None for p in found))

    def part(self, some: slice) -> Columns:
        """The terms of some of the columns."""
        H = self.short[some].astype(np.float64)
        pull = np.broadcast_to(self.mass, H.shape)
        if not self.curved:
            return Columns(H * self.mass, self.mass, None, None, 0.0)
        k = self.mass.size
        curvature = np.zeros((H.shape[0], k * (k + 1) // 2))
        diagonal = np.cumsum(np.arange(1, k + 1)) - 1
        there = pull * NOTHING < H  # what is zero stays so
        curvature[:, diagonal] = np.divide(pull, H, out=np.zeros(H.shape), where=there)
        return Columns(H * self.mass, self.mass, np.where(there, pull, 0.0), curvature, 0.0)


class Exponent(float):
    """A power that belongs to the loss, not to a slab: merging keeps it instead of adding it."""


Terms = Normal | Each | Fitted | Split | Columns | Listed


def add(parts: Sequence[T]) -> T:
    """Sum pieces of one shape in the order given: arrays in float64, tuples field by field."""
    first: Any = parts[0]
    if first is None or isinstance(first, Exponent):
        return parts[0]
    merge = getattr(first, "merge", None)
    if merge is not None:
        merged: T = merge(parts)
        return merged
    if isinstance(first, tuple):
        fields = [add(column) for column in zip(*parts, strict=True)]
        make: Any = type(first)
        result: T = make(*fields) if hasattr(first, "_fields") else make(fields)
        return result
    if isinstance(first, np.ndarray):
        return _sum.get()(parts)  # type: ignore[arg-type, return-value]
    total: Any = parts[0]
    for part in parts[1:]:
        total = total + part
    return total  # type: ignore[no-any-return]


def add_arrays(parts: Sequence[Array]) -> Array:
    """Sum arrays into a new one, in the order given."""
    wide = np.float64 if parts[0].dtype.kind == "f" else parts[0].dtype
    if len(parts) == 1:
        return parts[0].astype(wide)
    total = np.add(parts[0], parts[1], dtype=wide)
    for part in parts[2:]:
        total += part
    return total


_sum: ContextVar[Callable[[Sequence[Array]], Array]] = ContextVar("sum", default=add_arrays)
_share: ContextVar[Share | None] = ContextVar("share", default=None)


def add_by(
    arrays: Callable[[Sequence[Array]], Array], parts: Sequence[T], share: Share | None = None
) -> T:
    """:func:`add`, with another way to the same sums of arrays, also within parts that merge.

    ``share``: how lists that become sums are shared among threads.
    """
    before = _sum.set(arrays), _share.set(share)
    try:
        return add(parts)
    finally:
        _sum.reset(before[0])
        _share.reset(before[1])
