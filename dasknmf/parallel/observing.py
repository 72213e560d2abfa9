"""Slabs of which not every entry counts: X cut as ever, its weights cut along with it.

Each block becomes an :class:`~dasknmf.numerics.observed.Observed`, in the task that loads it where
X is a Dask array. Everything behind it stays as it is.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import dask.array as da
import numpy as np
import scipy.sparse as sp
from dask.base import tokenize
from dask.sizeof import sizeof

from dasknmf.numerics.errors import DataError, ParameterError
from dasknmf.numerics.inspection import Place
from dasknmf.numerics.observed import UNSTORED, ZERO, Observed, Rule
from dasknmf.parallel.loading import as_csr
from dasknmf.parallel.slabs import Slabs

logger = logging.getLogger("dasknmf")

COPIED = 8 << 20  # bytes of weights that may travel inside a Dask graph


@sizeof.register(Observed)
def _sizeof_observed(slab: Observed) -> int:
    return slab.nbytes


def observed(slabs: Slabs, X: Any, weights: Any, rule: Rule) -> Slabs:
    """Give slabs that know which entries count; the slabs themselves where all do.

    Parameters
    ----------
    weights
        None, or numpy, scipy.sparse or Dask of the shape of X: booleans (True: observed) or
        numbers >= 0; of a sparse one, entries that are not stored weigh nothing.

    Raises
    ------
    DataError, ParameterError
        The weights have another shape or no real numbers; or the rule does not fit X.
    """
    if rule.missing == UNSTORED and not slabs.sparse:
        raise ParameterError(
            "missing='unstored' with a dense X, which stores every entry; expected a scipy.sparse "
            "matrix, or a Dask array of them. Mark missing entries by NaN and use missing='nan', "
            "or pass weights=."
        )
    if weights is None and rule == Rule(ZERO):
        return slabs
    weights = checked_weights(weights, X.shape)
    swapped = slabs.transposed
    wrap = [partial(_observe, rule=rule, place=p, swapped=swapped) for p in slabs.places]
    if slabs.graph is None:
        whole = _in_memory(weights, swapped)
        cut = [None if whole is None else whole[a:b] for a, b in pairwise(slabs.edges)]
        made = [make(V, M) for make, V, M in zip(wrap, slabs.blocks, cut, strict=True)]
        return replace(slabs, blocks=tuple(made), observed=True)
    graph = dict(slabs.graph)
    keys = [None] * len(slabs) if weights is None else _keys(weights, slabs, graph)
    name = f"nmf-observed-{tokenize(slabs.blocks[0], keys, rule)}"
    for i, (make, key, M) in enumerate(zip(wrap, slabs.blocks, keys, strict=True)):
        graph[(name, i)] = (make, key) if M is None else (make, key, M)
    blocks = [(name, i) for i in range(len(slabs))]
    extra = 0 if weights is None else weights.dtype.itemsize
    return replace(slabs, blocks=tuple(blocks), graph=graph, observed=True, extra=extra)


def checked_weights(weights: Any, shape: tuple[int, ...]) -> Any:
    """Give weights as numpy, CSR or Dask; refused by shape and dtype, before anything is read."""
    if weights is None:
        return None
    if isinstance(weights, np.ma.MaskedArray):
        raise DataError(
            "weights are a masked array; expected plain weights, or booleans (True: observed). "
            "Pass ~numpy.ma.getmaskarray(X) as weights for a masked X."
        )
    if not (sp.issparse(weights) or isinstance(weights, da.Array)):
        weights = np.asarray(weights)
    if weights.shape != tuple(shape):
        raise DataError(
            f"weights have shape {weights.shape}; expected {tuple(shape)}, that of X: one weight "
            "an entry. numpy.broadcast_to(w[:, None], X.shape) gives each row one weight."
        )
    if weights.dtype.kind not in "biuf":
        raise DataError(
            f"weights have dtype {weights.dtype}; expected booleans (True: observed) or real "
            "numbers >= 0. Convert them first, e.g. weights.astype(bool)."
        )
    return weights


def _observe(V: Any, weights: Any = None, *, rule: Rule, place: Place, swapped: bool) -> Observed:
    """Put one slab and its weights together."""
    return Observed(V, weights, rule, np.arange(place.start, place.stop), swapped)


def _oriented(block: Any, swapped: bool) -> Any:
    """Weights of one slab: C-contiguous in their own dtype, or CSR."""
    block = block.T if swapped else block
    if sp.issparse(block):
        return as_csr(block, np.dtype(np.float64))
    return np.require(block, requirements=["C", "A"])


def _in_memory(weights: Any, swapped: bool) -> Any:
    if weights is None:
        return None
    if isinstance(weights, da.Array):
        logger.info("weights are a Dask array, X is in memory: they are computed once")
        weights = weights.compute()
    return _oriented(weights, swapped)


def _keys(weights: Any, slabs: Slabs, graph: dict[Any, Any]) -> list[Any]:
    """Cut weights along the slabs, and give the key of each piece in ``graph``."""
    along, across = (1, 0) if slabs.transposed else (0, 1)
    heights = tuple(b - a for a, b in pairwise(slabs.edges))
    expected = {along: heights, across: (weights.shape[across],)}
    if not isinstance(weights, da.Array):
        size = weights.data.nbytes
        if size > COPIED:
            logger.warning(
                "weights of %d bytes are in memory, X is a Dask array: they travel inside its "
                "graph. Pass them as a Dask array chunked like X", size,
            )  # fmt: skip
        weights = sp.csr_array(weights) if sp.issparse(weights) else weights
        weights = da.from_array(weights, chunks=tuple(expected[axis] for axis in (0, 1)))
    wanted = tuple(expected[axis] for axis in (0, 1))
    if weights.chunks != wanted:
        logger.info(
            "weights have chunks %s: rechunked once to those of the slabs, %s",
            weights.chunksize, tuple(max(sizes) for sizes in wanted),
        )  # fmt: skip
        if sp.issparse(weights._meta):
            weights = da.map_blocks(sp.csr_array, weights, dtype=weights.dtype, meta=weights._meta)
        weights = weights.rechunk(wanted)
    graph.update(weights.__dask_graph__())
    name = f"nmf-weights-{tokenize(weights.name, slabs.transposed)}"
    for i in range(len(slabs)):
        key = (weights.name, 0, i) if slabs.transposed else (weights.name, i, 0)
        graph[(name, i)] = (partial(_oriented, swapped=slabs.transposed), key)
    return [(name, i) for i in range(len(slabs))]
