"""Do restarts put the same samples together? Connectivity, consensus, cophenetic, dispersion.

The consensus C of R restarts is the part of them in which two samples share their hard cluster, an
m × m matrix: for many samples, take a sample of them (the same in every restart).

    cophenetic = Pearson correlation of 1 - C with the cophenetic distances of its average linkage
    dispersion = 1/m² Σ_ij 4 (C_ij - 1/2)²

both as ``cophcor`` and ``dispersion`` of R's package NMF.

J.-P. Brunet, P. Tamayo, T. R. Golub, J. P. Mesirov: Metagenes and molecular pattern discovery using
matrix factorization, PNAS 101, 2004.
H. Kim, H. Park: Sparse non-negative matrix factorizations via alternating non-negativity-
constrained least squares for microarray data analysis, Bioinformatics 23, 2007.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import cophenet, leaves_list, linkage
from scipy.spatial.distance import squareform

from dasknmf.numerics.errors import DataError, ParameterError
from dasknmf.numerics.kernels import Array, Float64


def connectivity(labels: Array) -> npt.NDArray[np.bool_]:
    """Whether two samples have one label, m × m. Label -1, no cluster: only with itself."""
    labels = np.asarray(labels)
    same = (labels[:, None] == labels[None, :]) & (labels[:, None] >= 0)
    np.fill_diagonal(same, True)
    return np.asarray(same, dtype=np.bool_)


def consensus(labels: Array) -> Float64:
    """Part of the restarts in which two samples share their cluster, m × m, ones on the diagonal.

    Parameters
    ----------
    labels : integer array of shape (R, m)
        Hard clusters of the same m samples by each of R >= 2 restarts; -1: no cluster.

    Raises
    ------
    ParameterError
        Fewer than two restarts: one agrees with itself, whatever it found.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise DataError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}; expected integers of "
            "shape (restarts, samples)."
        )
    need_restarts(len(labels), "a consensus")
    total = np.zeros((labels.shape[1], labels.shape[1]), dtype=np.int32)
    for row in labels:
        total += connectivity(row)
    return np.asarray(total / len(labels), dtype=np.float64)


def need_restarts(number: int, what: str) -> None:
    """Refuse what a single fit can't tell."""
    if number < 2:
        raise ParameterError(
            f"{what} of {number} restart{'s' * (number != 1)} is undefined: it says how far "
            "restarts agree, and one always agrees with itself. Use n_init of at least 2 (10 and "
            "more say something)."
        )


def cophenetic(matrix: Array) -> float:
    """Cophenetic correlation of a consensus matrix (Brunet 2004); 1: samples fall into clusters.

    nan where all pairs of samples are equally far apart (rank 1 among others; R says NA, or 1 for
    the identity), and for fewer than three samples: there is nothing to correlate.
    """
    distances = _distances(matrix)
    if distances.size < 2 or np.ptp(distances) == 0:
        return float("nan")
    tree = cophenet(linkage(distances, "average"))
    if np.ptp(tree) == 0:
        return float("nan")
    return float(np.corrcoef(distances, tree)[0, 1])


def dispersion(matrix: Array) -> float:
    """Dispersion of a consensus matrix (Kim & Park 2007): 1, all restarts agree; 0, none does.

    1 at rank 1, whatever the data.
    """
    _square(matrix)
    return float(np.mean(4.0 * np.square(np.asarray(matrix, dtype=np.float64) - 0.5)))


def linkage_order(matrix: Array) -> npt.NDArray[np.int64]:
    """Samples in the order of the leaves of the average linkage: clusters become blocks."""
    distances = _distances(matrix)
    if distances.size == 0:
        return np.arange(len(matrix), dtype=np.int64)
    return np.asarray(leaves_list(linkage(distances, "average")), dtype=np.int64)


def _distances(matrix: Array) -> Float64:
    _square(matrix)
    found = 1.0 - np.asarray(matrix, dtype=np.float64)
    np.fill_diagonal(found, 0.0)
    return np.asarray(squareform(found, checks=False), dtype=np.float64)


def _square(matrix: Array) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] < 1:
        raise DataError(
            f"a consensus matrix of shape {matrix.shape}; expected one row and one column for each "
            "sample, as consensus() gives it."
        )
