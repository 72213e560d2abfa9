"""Rows of V for a start: some of every slab, or drawn by their norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dasknmf.numerics import kernels, random, weighted
from dasknmf.numerics.inspection import Inspection, Place, inspect_slab
from dasknmf.numerics.kernels import Float64, Slab
from dasknmf.numerics.observed import Observed
from dasknmf.numerics.solvers.base import Rows
from dasknmf.numerics.terms import add

Int64 = npt.NDArray[np.int64]


class Taken(NamedTuple):
    """Rows of V, slab by slab, dense or CSR; ``names`` are their global numbers."""

    blocks: tuple[Slab, ...]
    names: Int64

    @staticmethod
    def merge(parts: Sequence[Taken]) -> Taken:
        """Put pieces together in the order of the slabs."""
        names = np.concatenate([part.names for part in parts])
        return Taken(tuple(block for part in parts for block in part.blocks), names)


@dataclass(frozen=True)
class TakeRows:
    """``share`` of the rows of a slab, chosen by a stream of numbers that belongs to the slab."""

    share: float
    seed: int
    name: str = "nmf-sample"

    def __call__(self, V: Slab, rows: Rows | None, place: Place) -> tuple[None, Taken]:
        """Visit one slab."""
        count = min(V.shape[0], int(np.ceil(self.share * V.shape[0])))
        stream = random.generator(self.seed, "sample", 0, place.slab << 32)
        chosen = np.sort(stream.choice(V.shape[0], count, replace=False))
        return None, Taken((V[chosen],), chosen + place.start)


class Wanted(NamedTuple):
    """How many rows: ``rows``; more, up to ``most``, until they store so many ``entries``."""

    rows: int
    most: int
    entries: int = 0

    def count(self, stored: Int64) -> int:
        """How many of rows that store so many entries, one behind the other, are enough."""
        found = self.rows
        if self.entries:
            found = max(found, int(np.searchsorted(np.cumsum(stored), self.entries)) + 1)
        return min(found, self.most, stored.size)

    def of_one(self, slabs: int) -> Wanted:
        """What one of so many slabs has to offer: no more than four times its part, or 50 rows."""
        rows, most = (max(50, 4 * many // slabs) for many in (self.rows, self.most))
        return Wanted(rows, most, -(-4 * self.entries // slabs))


class Drawn(NamedTuple):
    """Rows of V with the keys by which they were drawn: those with the largest keys stay.

    ``names`` are their global numbers.
    """

    inspection: Inspection
    wanted: Wanted
    keys: Float64
    blocks: tuple[Slab, ...]
    names: Int64

    @staticmethod
    def merge(parts: Sequence[Drawn]) -> Drawn:
        """Keep the rows with the largest keys, in the order of the slabs."""
        keys = np.concatenate([part.keys for part in parts])
        stored = np.concatenate([_stored(block) for part in parts for block in part.blocks])
        order = np.argsort(-keys, kind="stable")
        wanted = parts[0].wanted
        many = wanted.count(stored[order])
        least = keys[order[many - 1]] if many else -np.inf
        blocks = []
        for part in parts:
            edges = np.cumsum([0, *(block.shape[0] for block in part.blocks)])
            for start, block in zip(edges, part.blocks, strict=False):
                kept = part.keys[start : start + block.shape[0]] >= least
                blocks.append(block if kept.all() else block[np.flatnonzero(kept)])
        inspection = add([part.inspection for part in parts])
        names = np.concatenate([part.names for part in parts])[keys >= least]
        return Drawn(inspection, wanted, keys[keys >= least], tuple(blocks), names)


def _stored(block: Slab) -> Int64:
    """Entries that each row stores, of which dense rows count as none."""
    if isinstance(block, Observed):
        block = block.weights if kernels.is_sparse(block.weights) else block.values
    if kernels.is_sparse(block):
        lengths: Int64 = np.diff(block.indptr).astype(np.int64)
        return lengths
    return np.zeros(block.shape[0], np.int64)


@dataclass(frozen=True)
class DrawByNorm:
    """Rows of V, drawn without replacement with weights ||v||², while V is validated.

    Row i gets the key log(u_i) / ||v_i||², u_i uniform by global row; the largest keys win, so many
    as are ``wanted`` in all. A slab offers ``limit`` of its rows. ``root`` draws from the square
    roots of the entries.

    P. S. Efraimidis, P. G. Spirakis: Weighted random sampling with a reservoir, Information
    Processing Letters 97(5), 2006. The weights: A. Frieze, R. Kannan, S. Vempala: Fast Monte-Carlo
    algorithms for finding low-rank approximations, J. ACM 51(6), 2004.
    """

    wanted: Wanted
    limit: Wanted
    seed: int
    root: bool = False
    name: str = "nmf-sample"

    def __call__(self, V: Slab, rows: Rows | None, place: Place) -> tuple[None, Drawn]:
        """Visit one slab."""
        inspection = inspect_slab(V, place)
        if inspection.unfit(V.dtype):
            return None, Drawn(
                inspection, self.wanted, np.zeros(0), (V[:0],), np.zeros(0, np.int64)
            )
        if self.root:
            V = V.root() if isinstance(V, Observed) else np.sqrt(V)
        weights = weighted.squared_norms(V)
        uniform = random.uniform_rows(self.seed, "draw", 0, place.start, place.stop, 1)[:, 0]
        used = np.flatnonzero(weights > 0.0)
        keys = np.log(uniform[used]) / weights[used]
        order = np.argsort(-keys, kind="stable")
        best = np.sort(order[: self.limit.count(_stored(V)[used[order]])])
        names = used[best] + place.start
        return None, Drawn(inspection, self.wanted, keys[best], (V[used[best]],), names)
