"""Kullback-Leibler's two halves on one slab: rows solved, and what the columns need of them.

The compiled loops are ``kernels/kl.py``, ``kernels/kl_share.py`` and ``kernels/columns.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dasknmf.numerics.kernels import Array, Float64, Slab, csr_parts, is_sparse, loops, own


class Kept(NamedTuple):
    """Entries of a slab in the order of their columns: those of column j from ``starts``[j] on.

    ``rows`` of the slab they are in, and of every entry v/y and v/y² (kl_share.py).
    """

    starts: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int32]
    ratios: Float64
    bends: Float64

    @staticmethod
    def room(columns: int, entries: int) -> Kept:
        """Where to put so many; nothing at all for 0 columns."""
        starts = np.empty(columns + 1 if columns else 0, np.int64)
        return Kept(starts, np.empty(entries, np.int32), np.empty(entries), np.empty(entries))


def kl_rows(
    V: Slab,
    fixed: Array,
    penalty: tuple[float, float],
    rule: tuple[int, int, float],
    share: str = "none",
) -> tuple[Float64, Float64, Float64, float]:
    """Solve the rows of a slab for Kullback-Leibler; give (rows, neg, curvature, value).

    ``penalty``: (l1, l2) of the rows. ``rule``: EM steps, Newton steps, tolerance. ``share`` says
    what is collected for the H half at the new rows: "none", "gradient" or "curvature"; what is
    not asked for comes back empty. See :mod:`dasknmf.numerics.kernels.kl`.
    """
    columns, k = fixed.shape
    neg = np.zeros((0 if share == "none" else columns, k))
    curvature = np.zeros((columns if share == "curvature" else 0, k * (k + 1) // 2))
    rows, value = _kl_rows(V, fixed, penalty, rule, (neg, curvature, Kept.room(0, 0)))
    return rows, neg, curvature, value


def kl_lists(
    V: Slab, fixed: Array, penalty: tuple[float, float], rule: tuple[int, int, float]
) -> tuple[Float64, Kept, float]:
    """The same, but what the H half needs stays a list of entries: (rows, list, value)."""
    kept = Kept.room(fixed.shape[0], stored(V))
    none = np.empty((0, fixed.shape[1])), np.empty((0, 0))
    rows, value = _kl_rows(V, fixed, penalty, rule, (*none, kept))
    count = int(kept.starts[-1])  # zeros may be stored
    return rows, Kept(kept.starts, *(own(array[:count]) for array in kept[1:])), value


def stored(V: Slab) -> int:
    """Number of entries that a slab stores."""
    return int(V.nnz if is_sparse(V) else V.shape[0] * V.shape[1])


def _kl_rows(
    V: Slab,
    fixed: Array,
    penalty: tuple[float, float],
    rule: tuple[int, int, float],
    share: tuple[Float64, Float64, Kept],
) -> tuple[Float64, float]:
    sums: Float64 = np.sum(fixed, axis=0, dtype=np.float64)
    rows = np.zeros((V.shape[0], fixed.shape[1]))
    weight = own((sums + penalty[0])[None])
    wide = own(fixed.astype(np.float64, copy=False))  # one compiled variant for any factor
    rest = (wide, weight, float(penalty[1]), rule, rows, *share[:2], tuple(share[2]))
    if is_sparse(V):
        value = loops("kl").csr_rows(*csr_parts(V.tocsr()), *rest)
    else:
        value = loops("kl").dense_rows(own(V), *rest)
    mass = float(np.dot(np.sum(rows, axis=0), sums))
    return rows, float(value) + mass


def newton_columns(
    old: Array, counts: Array, pull: Array, curvature: Array, ridge: float, box: float, sweeps: int
) -> Float64:
    """Minimise the quadratic model of every column within a box around its old value."""
    out = np.empty(old.shape)
    wide = own(old.astype(np.float64, copy=False))
    loops("columns").newton_columns(
        wide, own(counts), own(pull), own(curvature), ridge, box, sweeps, out
    )  # fmt: skip
    return out
