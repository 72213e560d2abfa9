"""Durable, immutable objects under keys: the little that a checkpoint asks of a store.

``put`` is durable when it returns, ``create`` is exclusive and all-or-nothing, and no reader ever
sees a part of an object. Two kinds: :mod:`~dasknmf.storage.posix`, :mod:`~dasknmf.storage.cloud`.
"""

from __future__ import annotations

import builtins
import os
import re
import uuid
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from dasknmf.numerics.errors import StoreError
from dasknmf.storage.places import local_path

if TYPE_CHECKING:
    from typing_extensions import Buffer

PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,199}")
LONGEST_KEY = 900
CLOUD = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "memory")


def is_key(key: Any) -> bool:
    """Whether ``key`` is plain parts joined by ``/``; no part is empty or starts with a dot."""
    return (
        isinstance(key, str)
        and len(key) <= LONGEST_KEY
        and all(PART.fullmatch(part) for part in key.split("/"))
    )


def checked(key: Any) -> str:
    """Give the key back, or raise :class:`StoreError`."""
    if not is_key(key):
        raise StoreError(
            f"{key!r:.300} is no key of an object: expected parts of letters, digits and _.+=- "
            f"joined by /, at most {LONGEST_KEY} characters. Nothing was read or written."
        )
    return str(key)


class Objects(ABC):
    """Objects under one root. Picklable, cheap to open, usable from several threads.

    Every method raises :class:`StoreError` with the path, what failed and what to do (chained
    from the low-level error), and checks its keys.
    """

    url: str

    @abstractmethod
    def put(self, key: str, data: Buffer) -> None:
        """Write an object, durable on return. One that is there is replaced in one step."""

    @abstractmethod
    def create(self, key: str, data: Buffer) -> bool:
        """Write an object only if there is none: whether this call did so. Durable on return.

        After an unclear answer (a lost reply, say) the object is read back: the same bytes mean
        that this call wrote it, so ``data`` must hold something that no other writer's has.
        """

    @abstractmethod
    def get(self, key: str, limit: int | None = None) -> bytes:
        """Read an object whole.

        :class:`MissingError` if there is none; :class:`DamagedError` if it is no plain object, or
        has more than ``limit`` bytes (no more than that is read).
        """

    @abstractmethod
    def list(self, prefix: str = "") -> builtins.list[str]:
        """All keys below the folder ``prefix``, sorted; never a temporary file."""

    @abstractmethod
    def names(self, prefix: str = "") -> builtins.list[str]:
        """What lies directly in the folder ``prefix``: names of objects and folders, any name."""

    @abstractmethod
    def delete(self, key: str, *, durable: bool = False) -> None:
        """Remove an object; none there is fine. ``durable``: no power cut brings it back."""

    @abstractmethod
    def clear(self, prefix: str) -> None:
        """Remove all objects, temporary files and folders below ``prefix``, and itself."""

    @abstractmethod
    def sweep(self, prefix: str, age: float) -> None:
        """Remove temporary files directly in ``prefix`` that are older than ``age`` seconds."""

    @abstractmethod
    def modified(self, key: str) -> float | None:
        """When the object was written, in seconds by the store's own clock; None: not there."""

    @abstractmethod
    def now(self) -> float:
        """Seconds by the clock that :meth:`modified` goes by."""

    @abstractmethod
    def check_exclusive(self) -> None:
        """Raise :class:`StoreError` unless ``create`` is exclusive here (a store may ignore it)."""

    def __dask_tokenize__(self) -> Any:
        return (type(self).__name__, self.url)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"  # options may hold secrets


def open_objects(where: str | os.PathLike[str], options: dict[str, Any] | None = None) -> Objects:
    """Open the objects at a path or URL; nothing is read or written.

    where : a local path, ``file://``, ``s3://``, ``gs://``, ``az://`` or ``memory://`` (objects of
        this process, for tests).
    options : for URLs, what ``obstore.store.from_url`` takes (``region``, ``endpoint``, ...).
    """
    from dasknmf.storage.posix import PosixObjects

    path = local_path(where) if isinstance(where, str | os.PathLike) else None
    if path is not None:
        if options:
            raise StoreError(
                f"{where} is a local path, and storage options {sorted(options)} were given. "
                "Options are for URLs (s3://, gs://, az://): leave them out."
            )
        return PosixObjects(str(path))
    scheme = where.split("://")[0] if isinstance(where, str) else None
    if scheme not in CLOUD:
        raise StoreError(
            f"{where!r:.300} is no place for checkpoints: expected a local path or a URL of "
            f"{', '.join(CLOUD)} or file."
        )
    from dasknmf.storage.cloud import CloudObjects

    return CloudObjects(str(where), options or {})


def probe(objects: Objects) -> None:
    """Write, read and delete a small object; :class:`StoreError` where that does not work.

    To be called by the client and by every worker before work starts: a path that only one
    machine sees, or that can't be written, shows here and not hours later.
    """
    key, data = f"probe-{uuid.uuid4().hex}", uuid.uuid4().bytes
    objects.put(key, data)
    found = objects.get(key, limit=len(data))
    objects.delete(key)
    if found != data:
        raise StoreError(
            f"{objects.url}: what was written came back as other bytes. Choose another place for "
            "checkpoints; this one loses data."
        )
