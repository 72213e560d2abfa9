"""What a slab of which not every entry counts tells: how much is observed, and bad weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dasknmf.numerics import kernels
from dasknmf.numerics.kernels import Array
from dasknmf.numerics.observed import NAN, Lists, Observed
from dasknmf.numerics.terms import add


class Observation(NamedTuple):
    """Observed entries of the rows seen: their number, their weight, and who has none.

    ``columns``: observed entries of every column. ``bad``: of the weights, how many are NaN,
    infinite and negative, and (row, column) of the first of each. ``hidden``: the largest entry
    held out.
    """

    amount: int
    weight: float
    empty_rows: int
    columns: Array
    bad: tuple[tuple[int, int, int], ...]
    hidden: float = 0.0

    @staticmethod
    def merge(parts: Sequence[Observation]) -> Observation:
        """Add up; the first place of each kind of bad weights stays, and the largest entry."""
        bad = []
        for kind in zip(*(part.bad for part in parts), strict=True):
            found = [one for one in kind if one[0]]
            row, column = min((one[1:] for one in found), default=(0, 0))
            bad.append((sum(one[0] for one in found), row, column))
        return Observation(
            amount=sum(part.amount for part in parts),
            weight=float(sum(part.weight for part in parts)),
            empty_rows=sum(part.empty_rows for part in parts),
            columns=add([part.columns for part in parts]),
            bad=tuple(bad),
            hidden=max(part.hidden for part in parts),
        )

    @property
    def empty_columns(self) -> int:
        """Columns in which nothing is observed."""
        return int(np.sum(self.columns == 0))


class Seen(NamedTuple):
    """Values of a slab that count: bad ones (amount and first position of each kind), and sums."""

    bad: tuple[tuple[int, int, int], ...]
    stored: int
    positive: int
    total: float
    squares: float
    maximum: float


def bad_entries(matrix: Any) -> list[tuple[Array, Array]]:
    """Rows and columns of the entries that are NaN, infinite and negative, in the order stored."""
    sparse = kernels.is_sparse(matrix)
    values: Array = matrix.data if sparse else matrix
    none = np.zeros(0, np.int64)
    if not kernels.inspect_values(values)[0][:3].any():
        return [(none, none)] * 3
    infinite = np.isinf(values)
    found = []
    for wrong in (np.isnan(values), infinite, (values < 0) & ~infinite):
        at = np.flatnonzero(wrong)
        if sparse:
            rows = np.searchsorted(matrix.indptr, at, side="right") - 1
            found.append((rows, matrix.indices[at].astype(np.int64)))
        else:
            found.append(np.divmod(at, matrix.shape[1]))
    return found


def look(V: Observed) -> tuple[Seen, Observation]:
    """Walk over the values and the weights of a slab."""
    weights = V.weights
    bad_weights: tuple[tuple[int, int, int], ...] = ((0, 0, 0),) * 3
    if weights is not None:
        bad_weights = tuple(_first(rows, columns, V) for rows, columns in bad_entries(weights))
    bad = []
    for kind, (rows, columns) in enumerate(bad_entries(V.values)):
        missing = kind == 0 and V.rule.missing == NAN
        counts = np.zeros(rows.size, bool) if missing else _count(V, rows, columns)
        bad.append(_first(rows[counts], columns[counts], V))
    if any(found[0] for found in (*bad, *bad_weights)):
        nothing = Observation(0, 0.0, 0, np.zeros(V.shape[1], np.int64), bad_weights)
        return Seen(tuple(bad), 0, 0, 0.0, 0.0, 0.0), nothing
    columns = np.zeros(V.shape[1], np.int64)
    empty, amount, weight = 0, 0, 0.0
    stored, positive, total, squares, maximum, hidden = 0, 0, 0.0, 0.0, 0.0, 0.0
    for tile in V.tiles():
        rows, seen = _counts(tile, V.shape[1])
        columns += seen
        empty += int(np.sum(rows == 0))
        amount += int(np.sum(rows))
        weight += float(np.sum(tile.base)) * V.shape[1] + float(np.sum(tile.deviation))
        stored += tile.value.size
        positive += int(np.sum(tile.value > 0.0))
        total += float(np.dot(tile.weight, tile.value))
        squares += float(np.dot(tile.weight, np.square(tile.value)))
        maximum = max(maximum, float(np.max(tile.value, initial=0.0)))
        hidden = max(hidden, float(np.max(tile.held[1], initial=0.0)))
    observation = Observation(amount, weight, empty, columns, bad_weights, hidden)
    return Seen(tuple(bad), stored, positive, total, squares, maximum), observation


def _first(rows: Array, columns: Array, V: Observed) -> tuple[int, int, int]:
    """How many, and the global row and the column of the first."""
    if not rows.size:
        return 0, 0, 0
    return int(rows.size), int(V.names[rows[0]]), int(columns[0])


def _count(V: Observed, rows: Array, columns: Array) -> Array:
    """Which of the listed entries have a weight."""
    if V.weights is None or not rows.size:
        return np.ones(rows.size, bool)
    found = V.weights[rows, columns]
    weights: Array = np.asarray(found.todense() if hasattr(found, "todense") else found).ravel()
    counting: Array = weights != 0
    return counting


def _counts(tile: Lists, width: int) -> tuple[Array, Array]:
    """Observed entries of every row of a tile, and of every column."""
    height = tile.stop - tile.start
    of = np.repeat(np.arange(height), np.diff(tile.marks[:, 1]))
    base = tile.base[of]
    change = np.where(base + tile.deviation > 0.0, 1.0, 0.0) - base
    rows = tile.base * width + np.bincount(of, change, minlength=height)
    columns = np.sum(tile.base) + np.bincount(tile.others, change, minlength=width)
    counts: tuple[Array, Array] = np.rint(rows).astype(int), np.rint(columns).astype(int)
    return counts
