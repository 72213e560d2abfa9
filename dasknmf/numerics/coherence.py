"""Coherence of topics: whether their words turn up in the same documents.

Normalised pointwise mutual information of two words x, y, by the documents they are in,

    NPMI(x, y) = ln(p(x, y) / (p(x) p(y))) / -ln p(x, y),

is 1 where they only come together, 0 where they are independent, and -1 where they never meet; a
topic has the mean over the pairs of its top words. Only those words are counted, slab by slab.

G. Bouma: Normalized (pointwise) mutual information in collocation extraction, GSCL 2009.
M. Röder, A. Both, A. Hinneburg: Exploring the space of topic coherence measures, WSDM 2015
(there C_NPMI over sliding windows; here a document is the window).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dasknmf.numerics.errors import DataError
from dasknmf.numerics.inspection import Inspection, Place, inspect_slab
from dasknmf.numerics.kernels import Float64, Slab, is_sparse
from dasknmf.numerics.solvers.base import Rows

Int64 = npt.NDArray[np.int64]


class Documents(NamedTuple):
    """Counts that add up over slabs (``terms.add``).

    ``together`` (u × u): documents that hold both words; on the diagonal, those that hold the one.
    """

    inspection: Inspection
    number: int
    together: Int64


@dataclass(frozen=True)
class CountDocuments:
    """Visit to a slab of documents × words that counts where ``words`` (columns) turn up."""

    words: tuple[int, ...]
    name: str = "nmf-count-documents"

    def __call__(self, V: Slab, rows: Rows | None, place: Place) -> tuple[None, Documents]:
        """Visit one slab."""
        return None, Documents(inspect_slab(V, place), V.shape[0], count_together(V, self.words))


def count_together(V: Slab, words: Sequence[int]) -> Int64:
    """Documents (rows of V, dense or CSR) in which two of the words are, shape (u, u)."""
    columns = V[:, np.asarray(words, dtype=np.int64)]
    if is_sparse(columns):
        present = (columns > 0).astype(np.int64)
        return np.asarray((present.T @ present).toarray(), dtype=np.int64)
    dense = (np.asarray(columns) > 0).astype(np.float64)  # BLAS; exact up to 2**53 documents
    return np.asarray(np.rint(dense.T @ dense), dtype=np.int64)


def npmi(together: Int64, documents: int) -> Float64:
    """NPMI of every pair of words, shape (u, u).

    -1 for words that never meet (one that is in no document meets none); 0 where both are in every
    document, which tells nothing.
    """
    if documents < 1:
        raise DataError("there are no documents to count words in; expected at least one row.")
    p = together / documents
    single = np.diag(p)
    met = (p > 0) & (p < 1)
    safe = np.where(met, p, 0.5)
    information = np.log(safe) - np.log(np.where(met, np.outer(single, single), 1.0))
    return np.asarray(
        np.where(met, information / -np.log(safe), np.where(p > 0, 0.0, -1.0)), dtype=np.float64
    )


def coherence(topics: Sequence[Int64], words: Sequence[int], counts: Documents) -> Float64:
    """Mean NPMI over the pairs of words of each topic; nan for topics of fewer than two words.

    Parameters
    ----------
    topics : sequence of integer arrays
        Columns of X: the top words of each topic.
    words : sequence of int
        Columns that ``counts`` is about, in its order, those of all topics among them.
    counts : Documents
    """
    value = npmi(counts.together, counts.number)
    position = {word: i for i, word in enumerate(words)}
    found = np.full(len(topics), np.nan)
    for t, topic in enumerate(topics):
        if len(topic) < 2:
            continue
        at = np.array([position[int(word)] for word in topic])
        first, second = np.triu_indices(len(at), 1)
        found[t] = value[at[first], at[second]].mean()
    return found
