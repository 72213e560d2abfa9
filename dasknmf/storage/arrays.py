"""Dask arrays from Zarr and into Zarr.

Written: the array is created first, then each chunk is written by exactly one task.
``dask.array.to_zarr(chunks=...)`` is avoided: tasks that share a chunk corrupt it (dask#12583).
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import dask
import dask.array as da
import numpy as np
import zarr
from dask.base import tokenize
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import FsspecStore, MemoryStore

from dasknmf.numerics.errors import StoreError
from dasknmf.storage.places import NOT_THERE, explained

CHUNK_BYTES = 16 << 20


def _here() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()


@dataclass(frozen=True)
class Source:
    """A Zarr array that refuses to be read from where its store can't be seen.

    To Zarr a chunk that isn't there is one of zeros, so a worker without the shared disk would
    factorise zeros. The array's metadata is always there.
    """

    array: zarr.Array[Any]
    home: tuple[str, int] = field(default_factory=_here, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the array."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the array."""
        return np.dtype(self.array.dtype)

    @property
    def ndim(self) -> int:
        """That of the array."""
        return len(self.shape)

    def __dask_tokenize__(self) -> Any:
        return tokenize(self.array)

    def __getitem__(self, index: Any) -> Any:
        """Read a part; :class:`StoreError` where the store can't be seen."""
        with explained(self.array.store_path, "reading"):
            if self.home == _here():
                return self.array[index]
            array = None
            with suppress(*NOT_THERE):
                array = zarr.open_array(self.array.store_path, mode="r")
            if array is not None:
                return array[index]
        # Raised with no context: zarr's own error can't be unpickled, and would hide this one.
        raise StoreError(
            f"{self.array.store_path} was opened on {self.home[0]}, but can't be seen by the "
            f"worker process {_here()[1]} on {_here()[0]}. Put it where all workers can read "
            "it (a shared disk, an object store), or use threads."
        )


def opened(X: Any) -> Any:
    """Give a zarr.Array as a lazy Dask array; anything else as it is."""
    return lazy(X) if isinstance(X, zarr.Array) else X


def lazy(array: Any) -> da.Array:
    """A Zarr array as a Dask array with the same chunks."""
    source = Source(array)
    name = f"read-zarr-{tokenize(source)}"
    meta = np.empty((0,) * source.ndim, dtype=source.dtype)
    return da.from_array(source, chunks=array.chunks, name=name, meta=meta)


def row_chunks(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Chunks of whole rows, about 16 MiB each."""
    row = int(np.prod(shape[1:])) * itemsize
    height = max(1, min(shape[0], CHUNK_BYTES // max(row, 1)))
    return (height, *shape[1:])


def write(place: Any, name: str | None, array: Any, dimensions: tuple[str, ...]) -> None:
    """Write a numpy or Dask array into the group ``place`` under ``name``, or as ``place`` itself.

    Chunks carry a checksum, and one that is missing reads as NaN: neither damage passes for data.
    """
    target = zarr.create_array(
        place,
        name=name,
        shape=array.shape,
        chunks=row_chunks(array.shape, array.dtype.itemsize),
        dtype=array.dtype,
        compressors=(ZstdCodec(), Crc32cCodec()),
        fill_value={"f": np.nan, "T": ""}.get(array.dtype.kind, 0),
        dimension_names=dimensions,
        overwrite=True,
    )
    _fill(target, array)


def _fill(target: Any, array: Any) -> None:
    """Write ``array`` to the Zarr array ``target``, one task a chunk."""
    if isinstance(array, da.Array) and _in_this_process(target.store):
        array = array.compute()
    if not isinstance(array, da.Array):
        target[...] = array
        return
    height = target.chunks[0]
    aligned = array.rechunk({0: height, **dict.fromkeys(range(1, array.ndim), -1)})
    put = dask.delayed(_put, pure=False)
    blocks = aligned.to_delayed().ravel()
    dask.compute(*[put(target, i * height, block) for i, block in enumerate(blocks)])
    if target.nchunks_initialized < target.nchunks:
        raise StoreError(
            f"{target.store_path}: workers wrote {target.nchunks} chunks, and "
            f"{target.nchunks_initialized} are here. Choose a path that this machine and all "
            "workers share."
        )


def _in_this_process(store: Any) -> bool:
    """Whether other processes would write to a copy of the store."""
    protocol = getattr(store.fs, "protocol", "") if isinstance(store, FsspecStore) else ""
    return isinstance(store, MemoryStore) or protocol == "memory" or "memory" in tuple(protocol)


def _put(target: Any, start: int, block: Any) -> None:
    target[start : start + block.shape[0]] = block
