"""What a commit holds of a state: its JSON, its objects, and the way back.

The state is taken apart into JSON and arrays (:mod:`dasknmf.packing`); what is in an object is
:mod:`dasknmf.storage.blobs`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dasknmf.history import History
from dasknmf.numerics.errors import StoreError
from dasknmf.numerics.kernels import Array
from dasknmf.numerics.stopping import Outcome
from dasknmf.packing import Packed, pack, packable, unpack
from dasknmf.parallel.executors import Carried, Executor
from dasknmf.parallel.slabs import Slabs
from dasknmf.state import State
from dasknmf.storage import blobs
from dasknmf.storage.manifests import Commit
from dasknmf.storage.rows import RowReader

ALONE = 1 << 20  # bytes of an array that is an object of its own
SMALL = "small"  # those that lie together


@packable
@dataclass(frozen=True)
class Shown:
    """What a commit tells as a model, beside its factors."""

    history: History
    loss: float
    number: int
    outcome: Outcome
    fingerprint: str | None


@dataclass(frozen=True)
class Snapshot:
    """A state taken apart, and the model that it is; a study is none."""

    state: Packed
    shown: Any  # JSON of a Shown
    factor: Array | None  # the short one
    long: Carried | None = None
    model: int = 0  # whose rows of ``long`` those of the model are


def snapshot_of(slabs: Slabs, carries: bool, state: State, ending: Packed | None) -> Snapshot:
    """What is kept of a fit, whose solver may carry rows; ``ending``: of one that is done."""
    best, seen = state.best, state.inspection
    shown = Shown(
        state.history,
        best.loss,
        state.number,
        state.outcome or Outcome.UNFINISHED,
        None if seen is None else seen.fingerprint(slabs.shape, slabs.dtype),
    )
    known = carries or ending is not None
    return Snapshot(
        state=pack(state) if ending is None else ending,
        shown=pack(shown).tree,
        factor=best.short,
        long=state.rows if slabs.transposed and known else None,
        model=best.number if carries else 0,
    )


def place_of(
    long: Carried, carried: Sequence[Carried], present: Sequence[list[int]], model: int
) -> dict[str, Any]:
    """Where the long factor of the model lies: which rows, their blocks, and which of those."""
    number = next(n for n, rows in enumerate(carried) if rows is long)
    return {"rows": number, "blocks": present[number], "model": model}


def objects_of(snapshot: Snapshot, slabs: Slabs) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of what the client writes."""
    about = {"dasknmf": {"format": "dasknmf-checkpoint"}}
    numbers = range(len(snapshot.state.carried) + (snapshot.long is not None))
    rows = [f"state/rows/{n}/" for n in numbers]
    for group in ("", "state/", *(["state/rows/"] if rows else []), *rows):
        yield f"{group}{blobs.META}", blobs.group_object({} if group else about)
    if snapshot.factor is None:
        pass
    elif slabs.transposed:
        yield from blobs.array_objects("W", snapshot.factor, ("sample", "component")).items()
    else:
        H = np.ascontiguousarray(snapshot.factor.T)
        yield from blobs.array_objects("H", H, ("component", "feature")).items()
    arrays = snapshot.state.arrays
    small, large = _parted([(str(a.dtype), list(a.shape)) for a in arrays])
    together = b"".join(arrays[i].tobytes() for i in small)
    yield from _state_objects(SMALL, np.frombuffer(together, np.uint8))
    for i in large:
        yield from _state_objects(str(i), arrays[i].ravel())


def _state_objects(name: str, flat: Array) -> Iterator[tuple[str, bytes]]:
    yield from blobs.array_objects(f"state/{name}", flat, ("entry",)).items()


def _parted(table: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Which arrays of a state lie together as bytes, and which alone.

    So a commit copies one large array at a time, and many small ones are one object: each object
    costs two syncs.
    """
    parts: tuple[list[int], list[int]] = [], []
    for i, (dtype, shape) in enumerate(table):
        parts[math.prod(shape) * np.dtype(dtype).itemsize >= ALONE].append(i)
    return parts


def read_objects(objects: Any, commit: Commit, prefix: str) -> dict[str, bytes]:
    """Objects of a commit below ``prefix``, by their name within its group, verified."""
    found = {}
    for entry in commit.entries:
        name = entry.key.split("/", 2)[2]
        if name.startswith(prefix):
            found[name] = commit.read(objects, entry.key)
    return found


def read_state(objects: Any, commit: Commit, executor: Executor | None) -> State:
    """Put a state together from a commit; carried rows are read by the workers, if there are."""
    meta: Any = commit.meta
    try:
        if not {dtype for dtype, _ in meta["arrays"]} <= blobs.DTYPES:
            raise ValueError("unknown dtypes")
        if not all(type(n) is int and n >= 0 for _, shape in meta["arrays"] for n in shape):
            raise ValueError("shapes that are none")
        arrays = _arrays(objects, commit, meta["arrays"])
        if executor is None and meta["carried"]:
            raise ValueError("carried rows where there are none")
        carried = [
            executor.load_rows(RowReader(objects, commit.entries, n, tuple(blocks)), len(blocks))
            for n, blocks in enumerate(meta["carried"])
            if executor is not None
        ]
        state = unpack(Packed(meta["state"], arrays, carried))
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"commit {commit.number} does not make sense: {error!r}") from error
    if not isinstance(state, State):
        raise StoreError(f"commit {commit.number} holds a {type(state).__name__} and no state")
    return state


def _arrays(objects: Any, commit: Commit, table: Sequence[Any]) -> list[Array]:
    """Read the state's arrays again, in the order of their table."""

    def read(name: str) -> Array:
        return blobs.read_array(f"state/{name}", read_objects(objects, commit, f"state/{name}/"))

    small, large = _parted(table)
    found = {i: read(str(i)) for i in large}
    together, start = read(SMALL).tobytes(), 0
    for i in small:
        dtype, count = np.dtype(table[i][0]), math.prod(table[i][1])
        found[i] = np.frombuffer(together, dtype, count, start).copy()
        start += found[i].nbytes
    if start != len(together):
        raise ValueError(f"{len(together)} bytes of small arrays; expected {start}")
    return [found[i].reshape(shape) for i, (_, shape) in enumerate(table)]
