"""A disk in memory that loses at a power cut what was not synced, as POSIX allows it.

A file's bytes since its last fsync may be there, partly there, old, or zeros; an entry of a
directory since that directory's last fsync may be there or not, each name by itself, in any order.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from dataclasses import dataclass, field
from types import SimpleNamespace

from dasknmf.storage.steps import Steps


@dataclass(eq=False)
class File:
    data: bytes = b""
    synced: bytes | None = None  # None: never
    links: int = 1
    written: float = 0.0


@dataclass(eq=False)
class Folder:
    entries: dict = field(default_factory=dict)
    synced: dict = field(default_factory=dict)
    pending: dict = field(default_factory=dict)  # name -> what it was since the last sync


class Disk(Steps):
    """The steps of PosixObjects on this disk; ``/`` is there."""

    def __init__(self, root=None):
        self.root = root or Folder()
        self.opened = {}
        self.numbers = itertools.count(3)
        self.clock = 0.0

    def open(self, path, flags):
        self.clock += 1
        folder, name = self._parent(path)
        node = folder.entries.get(name)
        if flags & os.O_CREAT:
            if node is not None:
                raise _error(errno.EEXIST, path)
            node = File(written=self.clock)
            self._set(folder, name, node)
        elif node is None:
            raise _error(errno.ENOENT, path)
        fd = next(self.numbers)
        self.opened[fd] = [node, 0]
        return fd

    def write(self, fd, data):
        node = self.opened[fd][0]
        count = max(1, len(data) // 2)  # short writes are allowed, so they come
        node.data += bytes(data[:count])
        return count

    def read(self, fd, size):
        node, start = self.opened[fd]
        part = node.data[start : start + size]
        self.opened[fd][1] += len(part)
        return part

    def fsync(self, fd):
        node = self.opened[fd][0]
        node.synced = node.data

    def close(self, fd):
        del self.opened[fd]

    def fstat(self, fd):
        return _about(self.opened[fd][0])

    def stat(self, path):
        return _about(self._node(path))

    def rename(self, old, new):
        folder, name = self._parent(old)
        node = self._node(old)
        target, target_name = self._parent(new)
        self._set(folder, name, None)
        self._set(target, target_name, node)

    def link(self, old, new):
        node = self._node(old)
        folder, name = self._parent(new)
        if name in folder.entries:
            raise _error(errno.EEXIST, new)
        node.links += 1
        self._set(folder, name, node)

    def unlink(self, path):
        folder, name = self._parent(path)
        node = self._node(path)
        if isinstance(node, Folder):
            raise _error(errno.EISDIR, path)
        node.links -= 1
        self._set(folder, name, None)

    def mkdir(self, path):
        folder, name = self._parent(path)
        if name in folder.entries:
            raise _error(errno.EEXIST, path)
        self._set(folder, name, Folder())

    def rmdir(self, path):
        folder, name = self._parent(path)
        if self._node(path).entries:
            raise _error(errno.ENOTEMPTY, path)
        self._set(folder, name, None)

    def listdir(self, path):
        node = self._node(path)
        if not isinstance(node, Folder):
            raise _error(errno.ENOTDIR, path)
        return sorted((name, isinstance(n, Folder)) for name, n in node.entries.items())

    def fsync_dir(self, path):
        node = self._node(path)
        node.synced = dict(node.entries)
        node.pending = {}

    def power_cut(self, rng):
        """A disk as it may be found after the power came back, and its content as one value."""
        kept = rng.choice([0.0, 0.2, 0.5, 0.8, 1.0])  # some cuts lose nearly all, some nearly none
        content = []
        root = _after(self.root, rng, kept, {}, "", content)
        found = Disk(root)
        found.clock = self.clock
        return found, tuple(content)

    def _node(self, path):
        node = self.root
        for part in [p for p in path.split("/") if p]:
            if not isinstance(node, Folder):
                raise _error(errno.ENOTDIR, path)
            if part not in node.entries:
                raise _error(errno.ENOENT, path)
            node = node.entries[part]
        return node

    def _parent(self, path):
        above, _, name = path.rpartition("/")
        folder = self._node(above)
        if not isinstance(folder, Folder):
            raise _error(errno.ENOTDIR, path)
        return folder, name

    def _set(self, folder, name, node):
        folder.pending.setdefault(name, []).append(node)
        if node is None:
            folder.entries.pop(name, None)
        else:
            folder.entries[name] = node


def _after(node, rng, kept, seen, path, content):
    if isinstance(node, File):
        if node not in seen:
            seen[node] = _bytes_after(node, rng, kept)
        content.append((path, seen[node].data))
        return seen[node]
    found = Folder()
    for name in sorted({*node.synced, *node.pending}):
        values = [node.synced.get(name), *node.pending.get(name, [])]
        value = values[-1] if rng.random() < kept else rng.choice(values)
        if value is not None:
            found.entries[name] = _after(value, rng, kept, seen, f"{path}/{name}", content)
    found.synced = dict(found.entries)
    content.append((path, None))
    return found


def _bytes_after(node, rng, kept):
    data = node.data
    if data != node.synced and rng.random() >= kept:
        cut = rng.randrange(len(data) + 1)
        old = node.synced or b""
        data = rng.choice([old, data[:cut], data[:cut].ljust(len(data), b"\0")])
    return File(data, data, written=node.written)


def _about(node):
    if isinstance(node, Folder):
        return SimpleNamespace(st_mode=stat.S_IFDIR, st_nlink=2, st_size=0, st_mtime=0.0)
    return SimpleNamespace(
        st_mode=stat.S_IFREG, st_nlink=node.links, st_size=len(node.data), st_mtime=node.written
    )


def _error(code, path):
    return OSError(code, os.strerror(code), path)
