"""A study of ranks as one Zarr v3 group.

    rank, loss, holdout_error, ...   (rank)
    rank_2, rank_3, ...              groups: the model of each rank, as ``storage.models`` has it
    attributes: dasknmf = {format, version, complete, best_rank, rule, ...}

``complete`` is set last.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import zarr

from dasknmf.numerics.errors import StoreError
from dasknmf.numerics.kernels import Array
from dasknmf.storage import arrays, models
from dasknmf.storage.places import below, staged

FORMAT = "dasknmf-study"
VERSION = 1


def write(
    records: Mapping[int, models.ModelRecord],
    table: Mapping[str, Array],
    about: Mapping[str, Any],
    store: Any,
    overwrite: bool,
) -> None:
    """Write a study; on a local disk the path appears only when all of it is there.

    Raises
    ------
    StoreError
        The path exists, or it is no path; nothing was written.
    """
    if not isinstance(store, str | os.PathLike):
        raise StoreError(f"store={store!r}; expected a path or a URL for a group of models.")
    known = {"format": FORMAT, "version": VERSION, "complete": False, **about}
    with staged(store, overwrite) as place:
        root = os.fspath(place) if isinstance(place, os.PathLike) else place
        group = zarr.create_group(root, attributes={"dasknmf": known}, overwrite=True)
        for name, column in table.items():
            arrays.write(root, name, column, ("rank",))
        for rank, record in records.items():
            models.write_into(below(root, f"rank_{rank}"), record)
        group.update_attributes({"dasknmf": {**known, "complete": True}})
