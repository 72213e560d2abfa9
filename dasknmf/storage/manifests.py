"""What a run writes as JSON, and the distrust with which it is read back.

Canonical JSON: sorted keys, no blanks, ASCII, no NaN; a file must be the canonical form of what it
says, and must carry the SHA-256 of all but its ``digest``. So any changed byte shows. Types are
checked by hand; whatever is wrong is a :class:`DamagedError`, never another traceback.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from dasknmf.numerics.errors import DamagedError, StoreError
from dasknmf.storage.objects import Objects, checked, is_key

if TYPE_CHECKING:
    from typing_extensions import Buffer

VERSION = 1
LARGEST = 64 << 20
HEX = re.compile(r"[0-9a-f]{64}")
FOLDER = re.compile(r"([0-9]{6,18})-([0-9]{6,18})-[0-9a-f]{16}")
NUMBER = re.compile(r"([0-9]{6,18})\.json")


class Entry(NamedTuple):
    """One stored object: its key, bytes and SHA-256 in hexadecimal."""

    key: str
    size: int
    sha256: str

    @property
    def folder(self) -> str:
        """The folder below ``data/`` that it lies in."""
        return self.key.split("/")[1]


def put_entry(objects: Objects, key: str, data: Buffer) -> Entry:
    """Write an object and tell what a manifest needs to know of it. For the client and workers."""
    view = memoryview(data).cast("B")
    entry = Entry(checked(key), view.nbytes, hashlib.sha256(view).hexdigest())
    objects.put(key, view)
    return entry


def read_entry(objects: Objects, entry: Entry) -> bytes:
    """Read an object; :class:`DamagedError` unless it has the entry's size and digest."""
    data = objects.get(entry.key, limit=entry.size)
    if len(data) != entry.size:
        raise DamagedError(
            f"{objects.url}/{entry.key} has {len(data)} bytes; {entry.size} were written."
        )
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise DamagedError(f"{objects.url}/{entry.key} holds other bytes than were written.")
    return data


@dataclass(frozen=True)
class Commit:
    """One committed state.

    number, epoch : its place in the order of commits, and the start that made it
    writer : random id of that start
    meta : what the engine said of it; None before the first state (a start's first mark)
    entries : its objects, in the engine's order
    fences : (epoch, number) of the first commit of each start that went before
    """

    number: int
    epoch: int
    writer: str
    run: str
    meta: dict[str, Any] | None
    entries: tuple[Entry, ...]
    fences: tuple[tuple[int, int], ...]
    created: str = field(default_factory=lambda: timestamp())

    @cached_property
    def state(self) -> str:
        """Digest of meta and objects: equal for a state and its copies by later starts."""
        return digest({"meta": self.meta, "objects": [list(e) for e in self.entries]})

    @cached_property
    def folders(self) -> set[str]:
        """Folders below ``data/`` that it refers to."""
        return {entry.folder for entry in self.entries}

    def owner(self, number: int) -> int:
        """Which epoch owns a commit number, as far as this commit knows; 0: none."""
        return max((e for e, first in self.fences if first <= number), default=0)

    def read(self, objects: Objects, key: str) -> bytes:
        """One of its objects, checked against size and digest."""
        for entry in self.entries:
            if entry.key == key:
                return read_entry(objects, entry)
        raise StoreError(f"commit {self.number} of {objects.url} has no object {key!r:.300}.")

    def encoded(self) -> bytes:
        """The manifest: :class:`StoreError` if it would be larger than a reader takes."""
        data = sealed(
            {
                "format": "dasknmf-commit",
                "version": VERSION,
                "number": self.number,
                "epoch": self.epoch,
                "writer": self.writer,
                "run": self.run,
                "created": self.created,
                "fences": [list(pair) for pair in self.fences],
                "meta": self.meta,
                "objects": [entry._asdict() for entry in self.entries],
            }
        )
        if len(data) > LARGEST:
            raise StoreError(
                f"the manifest of commit {self.number} would have {len(data)} bytes; at most "
                f"{LARGEST} are read back. Write larger chunks, or put less into its meta."
            )
        return data


def decoded(data: bytes, number: int, run: str) -> Commit:
    """Read a manifest; :class:`DamagedError` says what is wrong with it."""
    found = opened(data, "dasknmf-commit")
    meta = found.get("meta")
    if meta is not None and not isinstance(meta, dict):
        raise DamagedError("meta is no object")
    commit = Commit(
        number=_integer(found, "number"),
        epoch=_integer(found, "epoch"),
        writer=text(found, "writer"),
        run=text(found, "run"),
        meta=meta,
        entries=tuple(_entry(item) for item in _items(found, "objects")),
        fences=tuple(_pair(item) for item in _items(found, "fences")),
        created=text(found, "created"),
    )
    if commit.number != number:
        raise DamagedError(f"it says that it is commit {commit.number}")
    if commit.run != run:
        raise DamagedError("it belongs to another run")
    if commit.owner(number) != commit.epoch:
        raise DamagedError(f"its epoch {commit.epoch} is not the one that its fences name")
    if len({entry.key for entry in commit.entries}) < len(commit.entries):
        raise DamagedError("it names an object twice")
    return commit


def canonical(document: Any) -> bytes:
    """Canonical JSON; :class:`StoreError` for what JSON can't hold (NaN, arrays, bytes)."""
    try:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(
            f"a checkpoint's description must be JSON without NaN and infinity: {error}. "
            "Nothing was written."
        ) from error
    return text.encode("ascii")


def digest(document: Any) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical(document)).hexdigest()


def sealed(document: dict[str, Any]) -> bytes:
    """Canonical JSON that carries its own digest."""
    return canonical({**document, "digest": digest(document)})


def opened(data: bytes, form: str) -> dict[str, Any]:
    """Undo :func:`sealed`; :class:`DamagedError` if a byte, the format or the version is wrong."""
    try:
        found = json.loads(data, parse_constant=_refused)
        if not isinstance(found, dict):
            raise DamagedError("it is no JSON object")
        same = canonical(found) == data
    except DamagedError:
        raise
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"it is no JSON ({error!s:.100})") from error
    if found.get("format") != form:
        raise DamagedError(f"its format is {found.get('format')!r:.50}; expected {form!r}")
    if type(found.get("version")) is not int or found["version"] != VERSION:
        raise DamagedError(
            f"it has version {found.get('version')!r:.50}; this dasknmf reads {VERSION}"
        )
    if not same or found.pop("digest", None) != digest(found):
        raise DamagedError("its digest does not fit")
    return found


def text(found: dict[str, Any], name: str) -> str:
    """A field that must be text of at most 1000 characters."""
    value = found.get(name)
    if not isinstance(value, str) or len(value) > 1000:
        raise DamagedError(f"{name} is no text")
    return value


def timestamp() -> str:
    """Now, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def numbers(names: Sequence[str]) -> list[int]:
    """Numbers of ``NNNNNN.json`` among the names, sorted."""
    return sorted(int(match[1]) for name in names if (match := NUMBER.fullmatch(name)))


def _refused(constant: str) -> Any:
    raise DamagedError(f"it holds {constant}")


def _integer(found: dict[str, Any], name: str) -> int:
    value = found.get(name)
    if type(value) is not int or not 0 < value < 10**18:
        raise DamagedError(f"{name} is no positive integer")
    return value


def _items(found: dict[str, Any], name: str) -> list[Any]:
    value = found.get(name)
    if not isinstance(value, list):
        raise DamagedError(f"{name} is no list")
    return value


def _pair(item: Any) -> tuple[int, int]:
    if not isinstance(item, list) or len(item) != 2 or any(type(part) is not int for part in item):
        raise DamagedError("a fence is no pair of integers")
    return item[0], item[1]


def _entry(item: Any) -> Entry:
    if not isinstance(item, dict) or set(item) != set(Entry._fields):
        raise DamagedError("an object is not described by key, size and sha256")
    entry = Entry(**item)
    refuse_entry(entry)
    return entry


def refuse_entry(entry: Entry) -> None:
    """Raise :class:`DamagedError` unless the entry is well formed, and lies in ``data/``."""
    parts = entry.key.split("/") if is_key(entry.key) else []
    if len(parts) < 3 or parts[0] != "data" or not FOLDER.fullmatch(parts[1]):
        raise DamagedError(f"the key {entry.key!r:.300} does not lie in data/")
    if type(entry.size) is not int or entry.size < 0:
        raise DamagedError(f"the size of {entry.key} is no count of bytes")
    if not isinstance(entry.sha256, str) or not HEX.fullmatch(entry.sha256):
        raise DamagedError(f"the sha256 of {entry.key} is none")
