"""The system calls of :mod:`~dasknmf.storage.posix`, one by one."""

from __future__ import annotations

import os

READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class Steps:
    """The system calls, one method each; fault tests put their own in its place."""

    def open(self, path: str, flags: int) -> int:
        return os.open(path, flags, 0o666)

    def write(self, fd: int, data: memoryview) -> int:
        return os.write(fd, data)

    def read(self, fd: int, size: int) -> bytes:
        return os.read(fd, size)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def fstat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def stat(self, path: str) -> os.stat_result:
        return os.stat(path)

    def rename(self, old: str, new: str) -> None:
        os.replace(old, new)

    def link(self, old: str, new: str) -> None:
        os.link(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def mkdir(self, path: str) -> None:
        os.mkdir(path)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def listdir(self, path: str) -> list[tuple[str, bool]]:
        """Names, and whether each is a folder."""
        with os.scandir(path) as found:
            return sorted((e.name, e.is_dir(follow_symlinks=False)) for e in found)

    def fsync_dir(self, path: str) -> None:
        if os.name == "nt":
            return  # NTFS logs its directories; they can't be opened
        fd = os.open(path, READ)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
