"""Some rows of V, in memory: what starts are made from."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from dasknmf.numerics import kernels, random
from dasknmf.numerics.inspection import Inspection, Place, inspect_slab
from dasknmf.numerics.kernels import Array, Slab
from dasknmf.numerics.lots import Lot
from dasknmf.numerics.memory import SAMPLE, SAMPLED
from dasknmf.numerics.observed import stacked
from dasknmf.numerics.sampling import DrawByNorm, Int64, TakeRows, Wanted
from dasknmf.numerics.terms import add
from dasknmf.numerics.weighted import squared_norms
from dasknmf.parallel.executors import Executor
from dasknmf.parallel.race import Candidate

ENTRIES = 2  # of a sparse sample of roots, for each of the factor
STEEPEST, STEEPER = 0.5, 2.0  # what is added to the power of a factor of roots: at most, by density
FLOOR = 0.1  # of its mean entry, below which none begins: an exact zero could not be left
MOST_COMPONENTS = 20  # columns for each, at least, where they come from singular vectors


class Begun(NamedTuple):
    """A short factor to begin with, and the squared relative error that it is known to have."""

    short: Array
    relative: float


def checked(inspection: Inspection, executor: Executor, name: str) -> Inspection:
    """What was seen of V, unless no fit can go on with it; ``name``: the estimator's."""
    inspection.raise_if_bad(executor.slabs.transposed, name)
    inspection.raise_if_out_of_range(executor.slabs.dtype)
    return inspection


@dataclass(frozen=True)
class Sampled:
    """Rows of V (their roots: ``root``), what was seen of V, and how many rows each stands for.

    ``names``: the global numbers of the rows; ``density``: how much of them is positive.
    """

    rows: Slab
    names: Int64
    inspection: Inspection | None
    growth: float
    root: bool
    density: float

    def seen_by(self, lot: Lot) -> Slab:
        """Those of the rows that a lot may see."""
        if lot.fold is None:
            return self.rows
        groups = lot.fold.blocks.rows_of(self.names)
        return self.rows[np.flatnonzero(groups != lot.fold.row)]

    @property
    def polish(self) -> bool:
        """Whether the fit goes on with the loss of the race: it does not where that is of roots."""
        return not self.root

    def plenty(self, k: int) -> float:
        """How many entries these rows have for each of the factor that is to be found from them.

        Below one, what the best of many starts has fitted is the sample, not V: singular vectors
        of all of V, which cost two reads more, are the better start. Infinite where they are not:
        for a dense V, another loss, or so many components that the last vectors are noise.
        """
        rows, columns = self.rows, self.rows.shape[1]
        if self.root or not kernels.is_sparse(rows) or k > columns / MOST_COMPONENTS:
            return np.inf
        return int(np.count_nonzero(rows.data)) / (columns * k)

    def begun(self, candidate: Candidate) -> Begun:
        """A start for V from a candidate that ran on these rows."""
        H = candidate.balanced(self.growth)
        if not self.root:
            return Begun(H, candidate.relative)
        # Where most of V is zero, its means say how often there is an entry more than how large
        # one is, and so do those of roots. Elsewhere they would be squared, but rows of roots do
        # not add up: of what is a sum in V, components get a mixture.
        power = 1.0 + min(STEEPEST, STEEPER * self.density)
        H = np.maximum(H, FLOOR * H.mean()) ** power
        return Begun(H, candidate.relative)


def draw(k: int, seed: int, root: bool, executor: Executor, name: str) -> Sampled | None:
    """Some rows of V; None where too few, or bad ones.

    Rows of a sparse or an uneven matrix (where few rows carry most of it) are drawn by their norms,
    in one read that validates V, too. Otherwise they come from all slabs where those are in
    memory, else from a tenth of the slabs, spread evenly.

    For Kullback-Leibler the entries' square roots are factorised: roots of counts have equal
    variance (M. S. Bartlett, J. Roy. Stat. Soc. Suppl. 3(1), 1936). Sparse rows are drawn then
    until they have two entries for each of the factor, as far as that is possible.
    """
    slabs = executor.slabs
    rows, columns = slabs.shape
    inspection = None
    if slabs.sparse:
        most = min(SAMPLED[True], rows // 2)
        entries = ENTRIES * columns * k if root else 0
        wanted = Wanted(min(max(100 * k, columns, 1000), most), most, entries)
    else:
        most = min(SAMPLED[False], rows // 4, SAMPLE // (columns * slabs.dtype.itemsize))
        wanted = Wanted(min(max(100 * k, 1000), most), most)
    if wanted.rows < 4 * k:
        return None
    sample, names = None, np.zeros(0, np.int64)
    if not (slabs.sparse or root):
        sample, names = _some_rows(wanted.rows, seed, executor)
    if sample is None or _uneven(sample):
        work = DrawByNorm(wanted, wanted.of_one(len(slabs)), seed, root)
        drawn = add([executor.run(work).sums])
        inspection = checked(drawn.inspection, executor, name)
        sample, names = stacked(drawn.blocks), drawn.names
    seen = inspect_slab(sample, Place(0, 0, 1))
    if sample.shape[0] < 4 * k or seen.unfit(slabs.dtype) or seen.squares == 0.0:
        return None  # the first pass will say how many bad values there are, and where
    density = seen.density(sample.shape)
    return Sampled(sample, names, inspection, rows / sample.shape[0], root, density)


def _some_rows(wanted: int, seed: int, executor: Executor) -> tuple[Slab, Int64]:
    """Rows with equal chances, and their numbers, from as little of V as can be read for them."""
    slabs = executor.slabs
    only = range(len(slabs)) if slabs.graph is None else _some_slabs(len(slabs), seed)
    reached = sum(slabs.edges[i + 1] - slabs.edges[i] for i in only)
    share = Fraction(wanted, slabs.shape[0]) if slabs.graph is None else None
    work = TakeRows(wanted / reached, seed)
    taken = executor.run(work, only=only, share=share).sums
    return stacked(taken.blocks), taken.names


def _uneven(sample: Slab) -> bool:
    """Whether few rows carry most of the matrix: so few that the others count for less than half.

    (Σ ||v||²)² / Σ ||v||⁴ is the number of rows where all weigh the same.
    """
    weights = squared_norms(sample)
    if not np.isfinite(weights).all() or not weights.any():
        return False
    weights = weights / weights.max()
    return bool(np.sum(weights) ** 2 < 0.5 * weights.size * np.sum(weights**2))


def _some_slabs(count: int, seed: int) -> list[int]:
    """A tenth of the slabs, or four of fewer than forty, one from each stretch of them."""
    some = max(-(-count // 10), min(4, -(-count // 3)))
    edges = np.linspace(0, count, some + 1).astype(int)
    stream = random.generator(seed, "sample-slabs", 0, 0)
    return [int(stream.integers(a, b)) for a, b in pairwise(edges)]
