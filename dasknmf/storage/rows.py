"""Rows of slabs to objects and back, by whoever holds them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dasknmf.numerics.work import Rows
from dasknmf.storage import blobs
from dasknmf.storage.manifests import Entry, put_entry, read_entry
from dasknmf.storage.objects import Objects


@dataclass(frozen=True)
class RowWriter:
    """Writes the blocks of one slab, an array each, and says what it wrote."""

    objects: Objects
    folder: str

    def __call__(self, slab: int, rows: Rows) -> tuple[int, int, list[Entry]]:
        """Slab, number of blocks, objects."""
        entries = []
        for model, block in enumerate(rows):
            files = blobs.array_objects(f"{slab}-{model}", block, ("row", "component"))
            entries += [put_entry(self.objects, f"{self.folder}/{n}", b) for n, b in files.items()]
        return slab, len(rows), entries


@dataclass(frozen=True)
class RowReader:
    """Reads rows number ``number`` of a commit again. ``blocks``: how many a slab has, -1: none."""

    objects: Objects
    entries: tuple[Entry, ...]
    number: int
    blocks: tuple[int, ...]

    def only(self, slab: int) -> RowReader:
        """A reader that knows of one slab alone: what travels to a worker."""
        mine = f"/rows/{self.number}/{slab}-"
        return replace(self, entries=tuple(entry for entry in self.entries if mine in entry.key))

    def __call__(self, slab: int) -> Rows | None:
        """The blocks of one slab."""
        count, mine = self.blocks[slab], f"/rows/{self.number}/{slab}-"
        if count < 0:
            return None
        files = {
            f"{slab}-{entry.key.split(mine)[1]}": read_entry(self.objects, entry)
            for entry in self.entries
            if mine in entry.key
        }
        return tuple(blobs.read_array(f"{slab}-{model}", files) for model in range(count))
