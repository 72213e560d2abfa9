"""Arrays as the objects of a Zarr v3 group, in memory: names and bytes, and back.

Who makes the bytes is not who makes them durable: a checkpoint writes objects by its own protocol,
and Zarr only says what is in them. Every chunk carries a CRC-32C, nothing is compressed, and empty
chunks are written, too: a missing one would read as valid numbers.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.buffer import cpu
from zarr.storage import MemoryStore

from dasknmf.numerics.errors import StoreError
from dasknmf.numerics.kernels import Array

CHUNK = 64 << 20  # bytes
CODECS = frozenset({"bytes", "crc32c"})
DTYPES = frozenset({"bool", "int64", "float32", "float64"})
META = "zarr.json"


def group_object(attributes: dict[str, Any]) -> bytes:
    """The ``zarr.json`` of a group."""
    about = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return json.dumps(about, sort_keys=True, allow_nan=False).encode()


def array_objects(name: str, array: Array, dims: tuple[str, ...]) -> dict[str, bytes]:
    """The objects of one array within a group, by name."""
    files: dict[str, cpu.Buffer] = {}
    rows = max(1, CHUNK // max(1, array[:1].nbytes)) if array.size else 1
    chunks = (max(1, min(rows, array.shape[0])), *(max(1, n) for n in array.shape[1:]))
    with zarr.config.set({"array.write_empty_chunks": True}):
        made = zarr.create_array(
            MemoryStore(files),  # type: ignore[arg-type]
            name=name,
            shape=array.shape,
            chunks=chunks,
            dtype=array.dtype,
            serializer=BytesCodec(),
            compressors=[Crc32cCodec()],
            filters=None,
            fill_value=np.nan if array.dtype.kind == "f" else 0,
            dimension_names=dims,
        )
        if array.size:
            made[...] = array
    inside = {key: value for key, value in files.items() if key.startswith(f"{name}/")}
    return {key: value.to_bytes() for key, value in inside.items()}


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
