"""Where things are written: paths and URLs, all-or-nothing on a local disk."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr

from dasknmf.numerics.errors import StoreError


def local_path(store: Any) -> Path | None:
    """The path of a store on the local disk, None for URLs and store objects."""
    if isinstance(store, os.PathLike):
        return Path(store)
    if isinstance(store, str):
        if store.startswith("file://"):
            return Path(store.removeprefix("file://"))
        return None if "://" in store else Path(store)
    return None


def refuse_existing(store: Any, overwrite: bool) -> None:
    """Raise :class:`StoreError` if ``store`` holds anything and may not be replaced."""
    if overwrite:
        return
    path = local_path(store)
    if path is not None:
        taken = path.exists()
    else:
        try:
            zarr.open(store, mode="r")
            taken = True
        except (FileNotFoundError, KeyError, ValueError):
            taken = False
    if taken:
        raise StoreError(
            f"{store} exists; nothing was written. Choose another path, or pass overwrite=True "
            "(--overwrite on the command line)."
        )


@contextmanager
def staged(store: Any, overwrite: bool) -> Iterator[Any]:
    """Give the place to write to; on a local disk it becomes ``store`` only when all is written.

    On other stores readers tell a finished group by a mark that its writer sets last.
    """
    refuse_existing(store, overwrite)
    path = local_path(store)
    if path is None:
        yield store
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield str(draft)
        replaced = None
        if path.exists():
            replaced = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
            path.rename(replaced)
        draft.rename(path)
        if replaced is not None:
            _remove(replaced)
    finally:
        if draft.exists():
            _remove(draft)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
