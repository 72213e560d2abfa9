"""A model as one Zarr v3 group.

    H   (component, feature)        W   (sample, component), if it was saved
    history_reads, history_loss, ...   (pass)
    attributes: dasknmf = {format, version, complete, parameters, fitted, provenance}

``complete`` is set last: a group without it was never finished, and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import zarr

from dasknmf.numerics.errors import StoreError
from dasknmf.numerics.kernels import Array
from dasknmf.storage import arrays
from dasknmf.storage.places import staged

FORMAT = "dasknmf-model"
VERSION = 1
PREFIX = "history_"


@dataclass(frozen=True)
class ModelRecord:
    """What is stored. ``parameters``, ``fitted`` and ``provenance`` are JSON."""

    H: Array
    W: Any
    history: dict[str, Array]
    parameters: dict[str, Any]
    fitted: dict[str, Any]
    provenance: dict[str, Any]


def write(record: ModelRecord, store: Any, overwrite: bool) -> None:
    """Write a model; on a local disk the path appears only when all of it is there."""
    about = {
        "format": FORMAT,
        "version": VERSION,
        "complete": False,
        "parameters": record.parameters,
        "fitted": record.fitted,
        "provenance": record.provenance,
    }
    with staged(store, overwrite) as place:
        group = zarr.create_group(place, attributes={"dasknmf": about}, overwrite=True)
        arrays.write(group, "H", record.H, ("component", "feature"))
        if record.W is not None:
            arrays.write(group, "W", record.W, ("sample", "component"))
        for name, column in record.history.items():
            arrays.write(group, PREFIX + name, column, ("pass",))
        group.update_attributes({"dasknmf": {**about, "complete": True}})


def about(store: Any) -> tuple[Any, dict[str, Any]]:
    """Open a model group; give it and what its attributes say."""
    try:
        group = zarr.open_group(store, mode="r")
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise StoreError(f"{store} holds no Zarr group; expected a saved model.") from error
    found = dict(group.attrs).get("dasknmf")
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise StoreError(
            f"{store} is a Zarr group with {sorted(group.keys())}, and no model of dasknmf. "
            "Expected what NMF.save() or `dasknmf fit -o` wrote."
        )
    if found["version"] > VERSION:
        raise StoreError(
            f"{store} has model format version {found['version']}; this dasknmf reads up to "
            f"{VERSION}. Update dasknmf."
        )
    if not found["complete"]:
        raise StoreError(f"{store} is a model whose writing was interrupted; save it again.")
    return group, found


def read(store: Any) -> ModelRecord:
    """Read a model; W stays on the store, as a lazy Dask array."""
    group, found = about(store)
    history = {
        name.removeprefix(PREFIX): np.asarray(array[...])
        for name, array in group.arrays()
        if name.startswith(PREFIX)
    }
    return ModelRecord(
        H=np.asarray(group["H"][...]),
        W=da.from_zarr(group["W"]) if "W" in group else None,
        history=history,
        parameters=found["parameters"],
        fitted=found["fitted"],
        provenance=found["provenance"],
    )
