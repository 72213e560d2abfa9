"""Arrays as the objects of a Zarr v3 group, in memory: names and bytes, and back.

Who makes the bytes is not who makes them durable: a checkpoint writes objects by its own protocol,
and Zarr only says what is in them. Every chunk carries a CRC-32C, nothing is compressed, and chunks
of zeros are written, too: a missing one would read as valid numbers.
"""

from __future__ import annotations

import json
import math
import struct
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.buffer import cpu
from zarr.storage import MemoryStore

from dasknmf.numerics.errors import StoreError
from dasknmf.numerics.kernels import Array

CHUNK = 64 << 20  # bytes
CODECS = frozenset({"bytes", "crc32c"})
DTYPES = frozenset({"bool", "uint8", "int64", "float32", "float64"})
META = "zarr.json"


def group_object(attributes: dict[str, Any]) -> bytes:
    """The ``zarr.json`` of a group."""
    about = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return json.dumps(about, sort_keys=True, allow_nan=False).encode()


def array_objects(name: str, array: Array, dims: tuple[str, ...]) -> dict[str, bytes]:
    """The objects of one array within a group, by name."""
    rows = max(1, CHUNK // max(1, array[:1].nbytes)) if array.size else 1
    chunks = (max(1, min(rows, array.shape[0])), *(max(1, n) for n in array.shape[1:]))
    objects = {f"{name}/{META}": _about(array.shape, chunks, array.dtype.str, dims)}
    if array.size:
        for n, start in enumerate(range(0, array.shape[0], chunks[0])):
            key = ".".join(["c", str(n), *["0"] * (array.ndim - 1)])
            objects[f"{name}/{key}"] = _encoded(array[start : start + chunks[0]], chunks[0])
    return objects


@lru_cache(maxsize=256)
def _about(shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str, dims: Any) -> bytes:
    """The ``zarr.json`` of an array, as Zarr makes it: slow, and the same in every commit."""
    files: dict[str, cpu.Buffer] = {}
    zarr.create_array(
        MemoryStore(files),  # type: ignore[arg-type]
        shape=shape,
        chunks=chunks,
        dtype=np.dtype(dtype),
        serializer=BytesCodec(),
        compressors=[Crc32cCodec()],
        filters=None,
        fill_value=_fill(np.dtype(dtype)),
        dimension_names=dims,
        chunk_key_encoding={"name": "default", "separator": "."},  # no folder for each dimension
    )
    return files[META].to_bytes()


def _fill(dtype: np.dtype[Any]) -> float:
    return np.nan if dtype.kind == "f" else 0


def _encoded(block: Array, rows: int) -> bytes:
    """A chunk as the codecs ``bytes`` and ``crc32c`` write it.

    Zarr itself takes 5 ms of Python for it, which threads that compute would wait for.
    """
    if block.shape[0] < rows:
        whole = np.full((rows, *block.shape[1:]), _fill(block.dtype), block.dtype)
        whole[: block.shape[0]] = block
        block = whole
    data = block.astype(block.dtype.newbyteorder("<"), copy=False).tobytes()
    return data + struct.pack("<I", google_crc32c.value(data))


def read_array(name: str, objects: Mapping[str, bytes]) -> Array:
    """The array of that name from the objects of its group.

    Raises
    ------
    StoreError
        It is not there, is of a kind that dasknmf does not write, or its bytes are damaged.
    """
    prefix = f"{name}/"
    mine = {key: value for key, value in objects.items() if key.startswith(prefix)}
    try:
        shape = _checked(json.loads(mine[prefix + META]), sum(map(len, mine.values())))
        files = {key: cpu.Buffer.from_bytes(value) for key, value in mine.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = zarr.open_array(MemoryStore(files), path=name, mode="r")  # type: ignore[arg-type]
            chunks = math.prod(-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True))
            if array.shape != shape or len(mine) != 1 + (chunks if array.size else 0):
                raise ValueError("chunks are missing")
            return np.asarray(array[...])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise StoreError(f"the array {name} of a checkpoint is damaged: {error!r}") from error


def _checked(about: Any, held: int) -> tuple[int, ...]:
    """Shape from the metadata of an array, which must be such as are written here."""
    codecs = [codec["name"] for codec in about["codecs"]]
    if not CODECS.issuperset(codecs) or about["data_type"] not in DTYPES:
        raise ValueError(f"codecs {codecs} and data type {about['data_type']!r} are not expected")
    if about.get("storage_transformers") or about["chunk_grid"]["name"] != "regular":
        raise ValueError("storage transformers or irregular chunks are not expected")
    shape = about["shape"]
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"the shape {shape}")
    if math.prod(shape) * np.dtype(about["data_type"]).itemsize > held:
        raise ValueError(f"the shape {shape} is more than {held} bytes hold")
    return tuple(shape)
