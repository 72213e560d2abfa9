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
from zarr.storage import LocalStore, ObjectStore, StorePath, ZipStore

from dasknmf.numerics.errors import StoreError

# What zarr raises, version by version, where there is nothing that it can open.
NOT_THERE = (FileNotFoundError, NotADirectoryError, KeyError, ValueError)
OBJECT_STORES = ("s3", "gs", "az")
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


def remote(store: Any) -> Any:
    """URLs of object stores by obstore, as checkpoints have it; what else is not local as it is.

    Without obstore such a URL is fsspec's.
    """
    if not isinstance(store, str) or store.split("://")[0] not in OBJECT_STORES:
        return store
    try:
        from obstore.store import from_url
    except ImportError:
        return store
    with explained(store, "opening"):
        return ObjectStore(from_url(store.rstrip("/")))


@contextmanager
def explained(where: Any, doing: str) -> Iterator[None]:
    """Turn what object stores raise into a StoreError that says where, what and what to do."""
    said = None
    try:
        yield
    except Exception as error:
        kinds = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
        unknown = isinstance(error, ImportError) and "://" in str(where)
        if not unknown and ("obstore" not in kinds or isinstance(error, FileNotFoundError)):
            raise
        said = str(error).partition("\n")[0]  # what follows is for obstore's developers
    if said is not None:  # with no context: obstore's own errors can't be unpickled everywhere
        raise StoreError(
            f"{doing} {where} failed: {said:.500}. Look at the URL, the credentials and the "
            "network; URLs of object stores need pip install 'dasknmf[cloud]'."
        )


def below(place: Any, name: str) -> Any:
    """The place of a group within a place."""
    return f"{place}/{name}" if isinstance(place, str) else StorePath(place, name)


def readable(store: Any) -> Any:
    """What zarr opens ``store`` by: an absolute path, a zip store, an object store, or itself."""
    path = local_path(store)
    if path is None:
        return remote(store)
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
    with explained(store, "looking for"):
        try:
            zarr.open(remote(store), mode="r")
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
        with explained(store, "writing"):
            yield remote(store)
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
