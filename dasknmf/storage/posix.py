"""Objects as files: a synced temporary file, then rename or link, then a sync of the directory.

Works where link() is exclusive and rename() atomic: local disks, NFS, Lustre, GPFS. A sync that
failed is never tried again on the same file: the kernel may have dropped the dirty pages, and the
second try would report success (Rebello et al. 2020, "Can applications recover from fsync
failures?"). The temporary file is given up instead.
"""

from __future__ import annotations

import builtins
import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from dasknmf.numerics.errors import DamagedError, MissingError, StoreError
from dasknmf.storage.objects import PART, Objects, checked
from dasknmf.storage.steps import READ, Steps

if TYPE_CHECKING:
    from typing_extensions import Buffer

TEMPORARY = ".tmp-"
# A link or a pipe in the place of an object must not lead elsewhere, or block.
GET = READ | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | READ
BLOCK = 8 << 20
CANT_SYNC = (errno.EINVAL, errno.ENOTSUP)  # file systems that know no sync of directories
NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS, *CANT_SYNC)
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)

ADVICE = {
    errno.ENOSPC: "Free space on that disk, or choose another path",
    errno.EDQUOT: "The quota is used up: free space, or choose another path",
    errno.EACCES: "Give this user the right to write there, or choose another path",
    errno.EPERM: "Give this user the right to write there, or choose another path",
    errno.EROFS: "The file system is mounted read-only: remount it, or choose another path",
    errno.EIO: "The disk or its server failed: look at the system's log, then start again",
    errno.ESTALE: "The file server lost the folder: mount it again, then start again",
    errno.ENOTDIR: "A part of the path is a file: choose another path",
    errno.ENAMETOOLONG: "Choose a shorter path",
}


class PosixObjects(Objects):
    """Objects as files below the folder ``root``, an absolute path."""

    def __init__(self, root: str, steps: Steps | None = None) -> None:
        self.url = self.root = root
        self.steps = steps or Steps()
        self._durable: set[str] = set()  # folders whose own entries are known to be synced

    def __reduce__(self) -> Any:
        return type(self), (self.root, self.steps)

    def put(self, key: str, data: Buffer) -> None:
        path = self._path(key)
        with _told(path, "writing"):
            temporary = self._written(path, data)
            try:
                self.steps.rename(temporary, path)
            except OSError:
                self._drop(temporary)
                raise
            self._sync(os.path.dirname(path))

    def create(self, key: str, data: Buffer) -> bool:
        path = self._path(key)
        with _told(path, "creating"):
            temporary = self._written(path, data)
            try:
                won = self._linked(temporary, path)
            finally:
                self._drop(temporary)
            # Also for the one who lost: what it has seen must not vanish again.
            self._sync(os.path.dirname(path))
            return won

    def get(self, key: str, limit: int | None = None) -> bytes:
        path = self._path(key)
        with _told(path, "reading"):
            try:
                fd = self.steps.open(path, GET)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                raise DamagedError(f"{path} is a link, and no object.") from error
            try:
                return self._read(fd, path, limit)
            finally:
                self.steps.close(fd)

    def list(self, prefix: str = "") -> builtins.list[str]:
        found: builtins.list[str] = []
        with _told(self._path(prefix), "listing"):
            self._walk(prefix, found)
        return sorted(found)

    def names(self, prefix: str = "") -> builtins.list[str]:
        path = self._path(prefix)
        with _told(path, "listing"), suppress(FileNotFoundError):
            entries = self.steps.listdir(path)
            return [name for name, _ in entries if not name.startswith(TEMPORARY)]
        return []

    def delete(self, key: str, *, durable: bool = False) -> None:
        path = self._path(key)
        with _told(path, "removing"):
            with suppress(FileNotFoundError):
                self.steps.unlink(path)
            if durable:
                with suppress(FileNotFoundError):
                    self._sync(os.path.dirname(path))

    def clear(self, prefix: str) -> None:
        path = self._path(checked(prefix))
        with _told(path, "removing"):
            self._remove(path)

    def sweep(self, prefix: str, age: float) -> None:
        path = self._path(prefix)
        with _told(path, "cleaning"), suppress(FileNotFoundError):
            left = [name for name, _ in self.steps.listdir(path) if name.startswith(TEMPORARY)]
            now = self.now() if left and age > 0 else 0.0
            for name in left:
                file = os.path.join(path, name)
                with suppress(FileNotFoundError):
                    if age <= 0 or now - self.steps.stat(file).st_mtime > age:
                        self.steps.unlink(file)

    def modified(self, key: str) -> float | None:
        path = self._path(key)
        with _told(path, "looking at"), suppress(FileNotFoundError):
            return self.steps.stat(path).st_mtime
        return None

    def now(self) -> float:
        with _told(self.root, "writing"):
            self._ready(self.root)
            path = os.path.join(self.root, _temporary())
            self.steps.close(self.steps.open(path, NEW))
            try:
                return self.steps.stat(path).st_mtime
            finally:
                self._drop(path)

    def check_exclusive(self) -> None:
        """Nothing to ask: link() either is exclusive or fails."""

    def _path(self, key: str) -> str:
        return os.path.join(self.root, *checked(key).split("/")) if key else self.root

    def _written(self, path: str, data: Buffer) -> str:
        """Write a synced temporary file beside ``path``, and give its name."""
        folder = os.path.dirname(path)
        self._ready(folder)
        temporary = os.path.join(folder, _temporary())
        try:
            fd = self.steps.open(temporary, NEW)
            try:
                rest = memoryview(data).cast("B")
                while rest:
                    count = self.steps.write(fd, rest[:BLOCK])
                    if count <= 0:
                        raise OSError(errno.EIO, "the disk takes no more bytes", temporary)
                    rest = rest[count:]
                self.steps.fsync(fd)
            finally:
                self.steps.close(fd)
        except OSError:
            self._drop(temporary)
            raise
        return temporary

    def _linked(self, temporary: str, path: str) -> bool:
        """Link; whether we did: on NFS the answer to a link that was made may be lost."""
        try:
            self.steps.link(temporary, path)
        except OSError as error:
            if self.steps.stat(temporary).st_nlink > 1:
                return True
            if isinstance(error, FileExistsError):
                return False
            if error.errno in NO_LINKS:
                error.add_note("This file system may have no hard links, which checkpoints need.")
            raise
        return True

    def _read(self, fd: int, path: str, limit: int | None) -> bytes:
        about = self.steps.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise DamagedError(f"{path} is no plain file, and no object.")
        if limit is not None and about.st_size > limit:
            raise DamagedError(f"{path} has {about.st_size} bytes; expected at most {limit}.")
        parts, left = [], about.st_size
        while left:
            part = self.steps.read(fd, min(left, BLOCK))
            if not part:
                break
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _ready(self, folder: str) -> None:
        """Make a folder, and sync its entry and those above it, once per folder.

        Folders that are there are synced, too: who made them may have died before doing it.
        """
        if folder in self._durable:
            return
        above = os.path.dirname(folder)
        if above != folder:
            self._ready(above)
            made = self._made(folder)
            try:
                self._sync(above)
            except OSError as error:
                inside = len(above) >= len(self.root)
                if made or inside or error.errno not in NOT_OURS:
                    raise
        self._durable.add(folder)

    def _made(self, folder: str) -> bool:
        try:
            about = self.steps.stat(folder)
        except FileNotFoundError:
            with suppress(FileExistsError):
                self.steps.mkdir(folder)
            return True
        if not stat.S_ISDIR(about.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "a file is in the place of a folder", folder)
        return False

    def _sync(self, folder: str) -> None:
        try:
            self.steps.fsync_dir(folder)
        except OSError as error:
            if error.errno not in CANT_SYNC:
                raise

    def _drop(self, path: str) -> None:
        with suppress(OSError):
            self.steps.unlink(path)

    def _walk(self, prefix: str, found: builtins.list[str]) -> None:
        try:
            entries = self.steps.listdir(self._path(prefix))
        except (FileNotFoundError, NotADirectoryError):
            return  # removed meanwhile
        for name, folder in entries:
            if PART.fullmatch(name):
                key = f"{prefix}/{name}" if prefix else name
                if folder:
                    self._walk(key, found)
                else:
                    found.append(key)

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            for name, folder in self.steps.listdir(path):
                below = os.path.join(path, name)
                if folder:
                    self._remove(below)
                else:
                    with suppress(FileNotFoundError):
                        self.steps.unlink(below)
            self.steps.rmdir(path)
        self._durable.discard(path)


def _temporary() -> str:
    return f"{TEMPORARY}{uuid.uuid4().hex}"


@contextmanager
def _told(path: str, doing: str) -> Iterator[None]:
    """Turn an OSError into a StoreError that says where, what and what to do."""
    try:
        yield
    except FileNotFoundError as error:
        if doing != "reading":
            raise _error(path, doing, error) from error
        raise MissingError(f"{path} is not there.") from error
    except OSError as error:
        raise _error(path, doing, error) from error


def _error(path: str, doing: str, error: OSError) -> StoreError:
    advice = ADVICE.get(error.errno or 0, "Choose another path, or start again")
    notes = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
    return StoreError(
        f"{doing} {path} failed: {error.strerror or error}.{notes} {advice}. Nothing that was "
        "committed before is lost."
    )
