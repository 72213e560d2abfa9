"""A model as one Zarr v3 group.

    H   (component, feature)        W   (sample, component), if it was saved
    history_reads, history_loss, ...   (pass)
    attributes: dasknmf = {format, version, complete, history, parameters, fitted, provenance}

``complete`` is set last: a group without it was never finished, and is refused.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import dask.array as da
import numpy as np
import zarr

from dasknmf.numerics.errors import StoreError
from dasknmf.numerics.kernels import Array
from dasknmf.storage import arrays
from dasknmf.storage.places import NOT_THERE, explained, local_path, readable, staged

FORMAT = "dasknmf-model"
VERSION = 1
PREFIX = "history_"
Parts = dict[str, tuple[Array, tuple[str, ...]]]  # arrays by name, with their dimensions
EXPECTED = "expected a model, as NMF.save() or `dasknmf fit -o` writes it"


@dataclass(frozen=True)
class ModelRecord:
    """What is stored. ``parameters``, ``fitted`` and ``provenance`` are JSON; ``parts``: others."""

    H: Array
    W: Any
    history: dict[str, Array]
    parameters: dict[str, Any]
    fitted: dict[str, Any]
    provenance: dict[str, Any]
    parts: Parts = field(default_factory=dict)


def write(record: ModelRecord, store: Any, overwrite: bool) -> None:
    """Write a model; on a local disk the path appears only when all of it is there."""
    with staged(store, overwrite) as place:
        W = record.W
        if overwrite and local_path(store) is None and isinstance(W, da.Array):
            W = W.persist()  # it may be lazy on what is about to be deleted
        write_into(place, replace(record, W=W))


def write_into(place: Any, record: ModelRecord) -> None:
    """Write a model to a place that nobody reads yet, or to which ``complete`` is the mark."""
    about = {
        "format": FORMAT,
        "version": VERSION,
        "complete": False,
        "history": list(record.history),
        "parameters": record.parameters,
        "fitted": record.fitted,
        "provenance": record.provenance,
        "parts": {name: list(dims) for name, (_, dims) in record.parts.items()},
    }
    zarr.create_group(place, attributes={"dasknmf": about}, overwrite=True)
    arrays.write(place, "H", record.H, ("component", "feature"))
    if record.W is not None:
        arrays.write(place, "W", record.W, ("sample", "component"))
    for name, column in record.history.items():
        arrays.write(place, PREFIX + name, column, ("pass",))
    for name, (array, dims) in record.parts.items():
        arrays.write(place, name, array, dims)
    with warnings.catch_warnings():  # of zarr, on consolidation being young in format 3
        warnings.simplefilter("ignore")
        group = zarr.consolidate_metadata(place)
    group.update_attributes({"dasknmf": {**about, "complete": True}})


def read(store: Any) -> ModelRecord:
    """Read a model; W stays on the store, as a lazy Dask array."""
    group, about = _open(store)
    try:
        H = np.asarray(group["H"][...])
        history = {name: np.asarray(group[PREFIX + name][...]) for name in about["history"]}
        W = arrays.lazy(group["W"]) if "W" in group else None
        parts: Parts = {
            name: (np.asarray(group[name][...]), tuple(dims))
            for name, dims in about.get("parts", {}).items()
        }
    except (KeyError, ValueError, RuntimeError) as error:
        raise StoreError(f"{store} is a damaged model: {error}. Save it again.") from error
    if not np.isfinite(H).all():
        raise StoreError(f"{store} is a damaged model: a part of H is missing. Save it again.")
    told = (about[n] for n in ("parameters", "fitted", "provenance"))
    parameters, fitted, provenance = told
    return ModelRecord(H, W, history, parameters, fitted, provenance, parts)


def _open(store: Any) -> tuple[Any, dict[str, Any]]:
    """Give the group of a finished model, and what its attributes say."""
    path = local_path(store)
    if path is not None and not path.exists():
        raise StoreError(f"{store} does not exist; {EXPECTED}.")
    with explained(store, "opening"):
        try:
            group = zarr.open(readable(store), mode="r")
        except NOT_THERE as error:
            raise StoreError(
                f"{store} is nothing that Zarr can open ({error}); {EXPECTED}."
            ) from error
    if isinstance(group, zarr.Array):
        raise StoreError(
            f"{store} is a Zarr array, perhaps a matrix, and no model; {EXPECTED}. "
            "dasknmf.open_matrix() opens matrices."
        )
    found: Any = dict(group.attrs).get("dasknmf")
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise StoreError(
            f"{store} is a Zarr group with {sorted(group.keys())}, and no model; {EXPECTED}. "
            "dasknmf.open_matrix() opens matrices."
        )
    if found.get("version") != VERSION:
        raise StoreError(
            f"{store} has model format version {found.get('version')}; this dasknmf reads "
            f"{VERSION}. Update dasknmf."
        )
    if found.get("complete") is not True:
        raise StoreError(
            f"{store} is a model whose writing was interrupted. Save it again with overwrite=True."
        )
    return group, found
