"""Arrays into Zarr: the array is created first, then each chunk is written by exactly one task.

``dask.array.to_zarr(chunks=...)`` is avoided: tasks that share a chunk corrupt it (dask#12583).
"""

from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import numpy as np

CHUNK_BYTES = 16 << 20


def row_chunks(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Chunks of whole rows, about 16 MiB each."""
    row = int(np.prod(shape[1:])) * itemsize
    height = max(1, min(shape[0], CHUNK_BYTES // max(row, 1)))
    return (height, *shape[1:])


def write(group: Any, name: str, array: Any, dimensions: tuple[str, ...]) -> None:
    """Write a numpy or Dask array into ``group`` under ``name``, with named dimensions."""
    target = group.create_array(
        name,
        shape=array.shape,
        chunks=row_chunks(array.shape, array.dtype.itemsize),
        dtype=array.dtype,
        dimension_names=dimensions,
    )
    fill(target, array)


def fill(target: Any, array: Any) -> None:
    """Write ``array`` to the Zarr array ``target``, one task a chunk."""
    if not isinstance(array, da.Array):
        target[...] = array
        return
    height = target.chunks[0]
    aligned = array.rechunk({0: height, **dict.fromkeys(range(1, array.ndim), -1)})
    put = dask.delayed(_put, pure=False)
    blocks = aligned.to_delayed().ravel()
    dask.compute(*[put(target, i * height, block) for i, block in enumerate(blocks)])


def _put(target: Any, start: int, block: Any) -> None:
    target[start : start + block.shape[0]] = block
