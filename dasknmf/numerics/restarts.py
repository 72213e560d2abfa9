"""Do restarts find the same components? Matching, stability, silhouettes, consensus components.

The components of R restarts, all of unit length, fall into k clusters, each with exactly one of
every restart: the clustering of NMFk (Alexandrov 2013), here with optimal assignments, from the
restart most like all the others, so that no seed and no order of the restarts matters. With
cosines s_ij and distances 1 - s_ij,

    stability of a cluster   = mean of s_ij over its pairs of restarts
    silhouette of a member i = (b_i - a_i) / max(a_i, b_i)
        a_i: mean distance to its own cluster; b_i: to the nearest other one (Rousseeuw 1987)

Consensus components are medians of the clusters without outliers, as in cNMF (Kotliar 2019): those
whose mean Euclidean distance to their 0.3 R nearest neighbours is 0.5 or more are left out.

L. B. Alexandrov et al.: Deciphering signatures of mutational processes operative in human cancer,
Cell Reports 3, 2013.
D. Kotliar et al.: Identifying gene expression programs of cell-type identity and cellular activity
with single-cell RNA-Seq, eLife 8, 2019.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from dasknmf.numerics.consensus import need_restarts
from dasknmf.numerics.errors import DataError, ParameterError
from dasknmf.numerics.interpretation import unit_rows
from dasknmf.numerics.kernels import Array, Float64

Int64 = npt.NDArray[np.int64]
ROUNDS = 100  # of assignment; a handful in practice
DENSITY = 0.5  # cNMF's default threshold; distances of unit vectors >= 0 go up to sqrt(2)
NEIGHBOURS = 0.3  # of the restarts; cNMF's default


class Agreement(NamedTuple):
    """What restarts agree on, a cluster of matched components a column.

    ``order[r, c]``: which component of restart r is in cluster c. ``stability`` (k,) in [0, 1] and
    ``silhouette`` (k,) in [-1, 1] by cluster: their means (or, stricter, minima) are the rank's.
    """

    order: Int64
    stability: Float64
    silhouette: Float64


class Consensus(NamedTuple):
    """Medians of the clusters, of unit length, and how many restarts stand behind each."""

    components: Float64
    kept: Int64
    density: Float64


def agreement(components: Array) -> Agreement:
    """Match the components of restarts, and say how far they agree.

    Parameters
    ----------
    components : array of shape (R, k, n)
        H of R >= 2 restarts of one rank. A component that is zero is like no other.

    Returns
    -------
    Agreement
        Silhouettes are nan at rank 1: there is no other cluster.

    Raises
    ------
    ParameterError
        Fewer than two restarts.
    """
    similarity, (restarts, k) = _similarity(components)
    order = _clusters(similarity, restarts, k)
    members = order + k * np.arange(restarts)[:, None]
    stability = np.empty(k)
    for c in range(k):
        own = similarity[np.ix_(members[:, c], members[:, c])]
        stability[c] = (own.sum() - np.trace(own)) / (restarts * (restarts - 1))
    labels = np.empty(restarts * k, dtype=np.int64)
    labels[members] = np.arange(k)
    values = silhouettes(1.0 - similarity, labels)
    return Agreement(order, stability, np.array([values[members[:, c]].mean() for c in range(k)]))


def silhouettes(distances: Float64, labels: Int64) -> Float64:
    """Silhouette of every object (Rousseeuw 1987, eq. 1), from all pairwise distances (N × N).

    0 for an object alone in its cluster, and where it is at distance 0 from two clusters; nan where
    there is one cluster only.
    """
    number = int(labels.max()) + 1
    if number < 2:
        return np.full(len(labels), np.nan)
    belongs = (labels[:, None] == np.arange(number)).astype(np.float64)
    sizes = belongs.sum(axis=0)
    sums = distances @ belongs
    here = np.arange(len(labels))
    alone = sizes[labels] < 2
    own = (sums[here, labels] - np.diag(distances)) / np.where(alone, 1.0, sizes[labels] - 1.0)
    others = sums / np.where(sizes > 0, sizes, np.nan)
    others[here, labels] = np.inf
    nearest = np.nanmin(others, axis=1)
    largest = np.maximum(own, nearest)
    value = (nearest - own) / np.where(largest > 0, largest, 1.0)
    return np.asarray(np.where(alone, 0.0, value), dtype=np.float64)


def consensus_components(
    components: Array, order: Int64, threshold: float = DENSITY, neighbours: float = NEIGHBOURS
) -> Consensus:
    """Median of each cluster of matched components, outliers left out.

    A cluster of which nothing is left gets the median of all that is in it, and ``kept`` 0: no
    neighbourhood of restarts agrees on it.

    Parameters
    ----------
    components : array of shape (R, k, n)
    order : array of shape (R, k)
        That of :func:`agreement`.
    threshold : float
        Mean distance to the neighbours from which on a component is an outlier; 2: keep all.
    neighbours : float
        How many, as a part of R in (0, 1].

    Returns
    -------
    Consensus
        Components (k, n) of unit length (zero where the median is), restarts kept (k,), and mean
        distances to neighbours (R, k), by cluster.
    """
    if not threshold > 0 or not 0 < neighbours <= 1:
        raise ParameterError(
            f"threshold={threshold!r} and neighbours={neighbours!r}; expected a threshold above 0 "
            "and neighbours in (0, 1]."
        )
    similarity, (restarts, k) = _similarity(components)
    distances = np.sqrt(np.maximum(2.0 - 2.0 * similarity, 0.0))
    np.fill_diagonal(distances, 0.0)
    near = max(1, int(neighbours * restarts))
    nearest = np.partition(distances, near, axis=1)[:, : near + 1]  # itself, at 0, among them
    members = order + k * np.arange(restarts)[:, None]
    density = (nearest.sum(axis=1) / near)[members]
    density[np.diag(similarity)[members] == 0] = np.inf  # zero components have no direction
    units = unit_rows(np.asarray(components).reshape(restarts * k, -1))
    medians = np.empty((k, units.shape[1]))
    kept = density < threshold
    for c in range(k):
        chosen = members[kept[:, c], c] if kept[:, c].any() else members[:, c]
        medians[c] = np.median(units[chosen], axis=0)
    return Consensus(unit_rows(medians), kept.sum(axis=0, dtype=np.int64), density)


def _similarity(components: Array) -> tuple[Float64, tuple[int, int]]:
    """Cosines of all components of all restarts, (R k) × (R k); a zero one has 0, even to itself.

    The diagonal of the others is 1 exactly.
    """
    components = np.asarray(components)
    if components.ndim != 3 or 0 in components.shape:
        raise DataError(
            f"components have shape {components.shape}; expected (restarts, components, features): "
            "the H of every restart of one rank."
        )
    restarts, k, n = components.shape
    need_restarts(restarts, "the agreement")
    units = unit_rows(components.reshape(restarts * k, n))
    similarity = np.clip(units @ units.T, 0.0, 1.0)
    np.fill_diagonal(similarity, units.any(axis=1))
    return np.asarray(similarity, dtype=np.float64), (restarts, k)


def _clusters(similarity: Float64, restarts: int, k: int) -> Int64:
    """Which component of each restart belongs to which cluster, (R, k), by turns as in k-means."""
    order = _first_order(similarity, restarts, k)
    offset = k * np.arange(restarts)[:, None]
    for _ in range(ROUNDS):
        members = order + offset
        pull = similarity[:, members].sum(axis=1)  # of each component to the sum of each cluster
        length = np.sqrt([similarity[np.ix_(m, m)].sum() for m in members.T])
        pull /= np.where(length > 0, length, 1.0)
        new = np.stack([_assign(pull[r * k : (r + 1) * k].T) for r in range(restarts)])
        if np.array_equal(new, order):
            break
        order = new
    return order


def _first_order(similarity: Float64, restarts: int, k: int) -> Int64:
    """All restarts matched to the one that is most like the others."""
    blocks = similarity.reshape(restarts, k, restarts, k)
    total = np.zeros(restarts)
    for r in range(restarts):
        for s in range(r):
            pairs = blocks[r, :, s]
            worth = pairs[np.arange(k), _assign(pairs)].sum()
            total[r] += worth
            total[s] += worth
    reference = int(total.argmax())
    return np.stack([_assign(blocks[reference, :, r]) for r in range(restarts)])


def _assign(worth: Float64) -> Int64:
    """For each row its column, each once, so that the sum is largest."""
    return np.asarray(linear_sum_assignment(worth, maximize=True)[1], dtype=np.int64)
