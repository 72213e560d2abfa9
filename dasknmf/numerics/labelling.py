"""The last visit of a study: every model's sums, and which clusters it puts some samples into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dasknmf.numerics import random
from dasknmf.numerics.inspection import Place
from dasknmf.numerics.interpretation import hard_clusters, hoyer, row_norms
from dasknmf.numerics.kernels import Array, Float64, Slab, gram
from dasknmf.numerics.solvers.base import Rows
from dasknmf.numerics.terms import add
from dasknmf.numerics.work import Step, StepSums

Int64 = npt.NDArray[np.int64]


def some_samples(seed: int, samples: int, most: int) -> Int64:
    """Up to ``most`` samples, ascending: all where there are no more."""
    if samples <= most:
        return np.arange(samples, dtype=np.int64)
    stream = random.generator(seed, "consensus", 0, 0)
    return np.sort(stream.choice(samples, most, replace=False)).astype(np.int64)


def labels_of(W: Array, short: Array) -> Int64:
    """Hard clusters of rows of W (m × k), whatever the scales: ``short`` is H, columns × k."""
    return hard_clusters(W, row_norms(short.T))


def sparseness_of(norms: Float64, rows: int) -> Float64:
    """Hoyer's sparseness of every column of W, from its Σ w and Σ w² over so many rows."""
    return hoyer(norms[0], np.sqrt(norms[1]), rows)


class Labelled(NamedTuple):
    """What a pass brings, and the labels of the chosen samples: models × samples.

    ``norms``: Σ w and Σ w² over the rows, of every component of every model.
    """

    step: StepSums
    labels: Int64
    norms: tuple[Float64, ...]

    @staticmethod
    def merge(parts: Sequence[Labelled]) -> Labelled:
        """Add up the sums; put labels together in the order of the slabs."""
        labels = np.concatenate([part.labels for part in parts], axis=1)
        known = all(part.norms for part in parts)  # not with bad values
        norms = add([part.norms for part in parts]) if known else ()
        return Labelled(add([part.step for part in parts]), labels, norms)


@dataclass(frozen=True)
class LabelledStep:
    """A step, and hard clusters of those of its rows whose global numbers are in ``samples``."""

    step: Step
    samples: Int64
    name: str = "nmf-study-labels"

    def __call__(self, V: Slab, rows: Rows | None, place: Place) -> tuple[Rows | None, Labelled]:
        """Visit one slab."""
        new, sums = self.step(V, rows, place)
        here = self.samples[(self.samples >= place.start) & (self.samples < place.stop)]
        labels = np.zeros((len(self.step.fixed), here.size), dtype=np.int64)
        if new is None:  # bad values, which the sums tell
            return new, Labelled(sums, labels, ())
        for found, W, short in zip(labels, new, self.step.fixed, strict=True):
            found[:] = labels_of(W[here - place.start], short)
        norms = tuple(np.stack([W.sum(axis=0, dtype=np.float64), np.diag(gram(W))]) for W in new)
        return new, Labelled(sums, labels, norms)
