"""Where things are written: paths and URLs, all-or-nothing on a local disk."""

from __future__ import annotations

import os
import shutil
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr
from zarr.storage import LocalStore, ZipStore

from dasknmf.numerics.errors import StoreError

# What zarr raises, version by version, where there is nothing that it can open.
NOT_THERE = (FileNotFoundError, NotADirectoryError, KeyError, ValueError)
NODE_FILES = ("zarr.json", ".zgroup", ".zarray")


def local_path(store: Any) -> Path | None:
    """The absolute path of a store on the local disk, None for URLs and other store objects.

    Absolute, since workers may run in another folder.
    """
    if isinstance(store, LocalStore):
        store = store.root
    if isinstance(store, str):
        store = store.removeprefix("file://")
        return None if "://" in store else Path(store).resolve()
    return Path(store).resolve() if isinstance(store, os.PathLike) else None


def readable(store: Any) -> Any:
    """What zarr opens ``store`` by: an absolute path, a zip store, or the store as it is."""
    path = local_path(store)
    if path is None:
        return store
    return ZipStore(path, mode="r") if path.suffix == ".zip" and path.is_file() else str(path)


def refuse_existing(store: Any, overwrite: bool) -> None:
    """Raise :class:`StoreError` if ``store`` can't be written, or holds what must not be replaced.

    Nothing is written. Even with ``overwrite`` only Zarr nodes and zip files are replaced: a slip
    of the pen must not cost a folder of other things.
    """
    path = local_path(store)
    if path is None:
        taken = _opens(store)
    else:
        _refuse_unwritable(path)
        taken = path.exists()
    if taken and not overwrite:
        raise StoreError(
            f"{store} exists; nothing was written. Choose another path, or pass overwrite=True "
            "(--overwrite on the command line)."
        )
    if taken and path is not None and not _replaceable(path):
        raise StoreError(
            f"{store} is no Zarr array, group or zip file, and to overwrite it would delete what "
            "it holds; nothing was written. Choose another path, or remove it yourself."
        )


def _opens(store: Any) -> bool:
    try:
        zarr.open(store, mode="r")
    except NOT_THERE:
        return False
    return True


def _replaceable(path: Path) -> bool:
    if path.is_file():
        return zipfile.is_zipfile(path)
    return any((path / name).is_file() for name in NODE_FILES) or not any(path.iterdir())


def _refuse_unwritable(path: Path) -> None:
    above = next(parent for parent in path.parents if parent.exists())
    if not above.is_dir():
        raise StoreError(f"{path} can't be written: {above} is a file. Choose another path.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise StoreError(f"{path} can't be written: no permission to write in {above}.")


@contextmanager
def staged(store: Any, overwrite: bool) -> Iterator[Any]:
    """Give the place to write to; on a local disk it becomes ``store`` only when all is written.

    On other stores readers tell a finished group by a mark that its writer sets last.
    """
    if isinstance(store, ZipStore):
        raise StoreError(
            "a ZipStore can't be written all-or-nothing. Pass its path, a name that ends in .zip."
        )
    refuse_existing(store, overwrite)
    path = local_path(store)
    if path is None:
        yield store
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft, packed = _beside(path), _beside(path)
    try:
        yield str(draft)
        if path.suffix == ".zip":
            _pack(draft, packed)
            _swap(packed, path, overwrite)
        else:
            _swap(draft, path, overwrite)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        packed.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


def _pack(folder: Path, target: Path) -> None:
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())


def _swap(new: Path, path: Path, overwrite: bool) -> None:
    """Rename ``new`` to ``path``; what was there goes only once ``new`` is in its place."""
    refuse_existing(path, overwrite)  # it may have come into being since
    old = _beside(path) if path.exists() else None
    if old is not None:
        path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        if old is not None:
            old.rename(path)
        raise
    if old is not None:
        shutil.rmtree(old) if old.is_dir() else old.unlink()
