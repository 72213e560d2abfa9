"""Commits of a running fit: when, what, and how it goes on from one.

A fit meets its keeper at every boundary (between waves, between passes). The keeper takes the state
apart at once, which copies nothing, and a thread of its own makes it durable while the next wave
computes; of states that come faster than the store takes them, the newest one waits. The protocol
is ``storage.runs``; what is in an object is ``storage.blobs``.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dasknmf.history import History
from dasknmf.numerics.errors import (
    FencedError,
    ProblemMismatchError,
    RowsLostError,
    StoppedError,
    StoreError,
    StoreWarning,
)
from dasknmf.numerics.inspection import Inspection
from dasknmf.numerics.kernels import Array
from dasknmf.numerics.stopping import Outcome
from dasknmf.packing import Packed, pack, packable, unpack
from dasknmf.parallel.executors import Carried, Executor
from dasknmf.parallel.slabs import Slabs
from dasknmf.signals import Stop
from dasknmf.state import State
from dasknmf.storage import blobs
from dasknmf.storage.manifests import Commit, Entry
from dasknmf.storage.rows import RowReader, RowWriter
from dasknmf.storage.runs import Draft, Run

logger = logging.getLogger("dasknmf")

ALONE = 1 << 20  # bytes of an array that is an object of its own
GOES_ON = (StoreError, OSError, RowsLostError)
LATE = 1.2  # times the longest wave so far: what the next one may take


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
class Cadence:
    """How often: after so many passes, or at the first boundary after so many seconds."""

    passes: int | None = 1
    seconds: float | None = None

    def due(self, passes: int, seconds: float, *, ended: bool) -> bool:
        """Whether to save, so many passes and seconds after the last time."""
        if self.seconds is not None:
            return seconds >= self.seconds
        return ended and self.passes is not None and passes >= self.passes


class Keeper:
    """What a fit meets that keeps nothing."""

    commits = 0

    @property
    def way(self) -> str:
        """How a fit starts anew."""
        return "begins again from its start"

    def restore(self, executor: Executor) -> State | None:
        """Give the state to go on from, rows on the workers; None: begin."""
        return None

    def boundary(self, state: Callable[[], State], *, ended: bool) -> None:
        """Between two waves, or two passes (``ended``)."""

    def compare(self, seen: Inspection, known: dict[int, int], slabs: Slabs) -> None:
        """Raise :class:`ProblemMismatchError` where a slab is not what it was."""
        for slab, check in seen.checksums:
            if known.get(slab, check) != check:
                start, stop = slabs.places[slab][1:]
                side = "columns" if slabs.transposed else "rows"
                raise ProblemMismatchError(
                    f"X has changed since its checkpoint was begun: slab {slab} ({side} {start} to "
                    f"{stop - 1}) has checksum {check:#010x}, and the checkpoint knows "
                    f"{known[slab]:#010x}. Give the same X, or another checkpoint path; nothing "
                    "was written."
                )

    def mark(self, state: State) -> Packed | None:
        """Before the last read: what :meth:`finish` gets as the place where the passes ended."""
        return None

    def finish(self, ending: Packed | None, state: State) -> None:
        """After the last read."""


@dataclass(frozen=True)
class Snapshot:
    """A state taken apart, and the model that it is."""

    state: Packed
    shown: Any  # JSON of a Shown
    factor: Array  # the short one
    long: Carried | None = None
    model: int = 0  # whose rows of ``long`` those of the model are


@dataclass
class CheckpointKeeper(Keeper):
    """Commits to one run.

    about
        JSON of the estimator that every commit carries: parameters, names, shape, versions.
    carries
        Whether the solver carries rows.
    """

    run: Run
    slabs: Slabs
    cadence: Cadence
    about: dict[str, Any]
    stop: Stop
    carries: bool
    failures: int = 3
    commits: int = 0
    _executor: Executor | None = None
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "nmf-commit"))
    _writing: Future[None] | None = None
    _waiting: Snapshot | None = None
    _failed: int = 0
    _saved_at: tuple[int, float] = (0, 0.0)  # pass, time
    _met: float = 0.0  # time of the last boundary
    _longest: float = 0.0  # seconds between two
    _slowest: float = 0.0  # seconds of a save

    @property
    def way(self) -> str:
        """How a fit starts anew."""
        if self.run.newest is None:
            return "begins again from its start"
        return f"goes on from commit {self._number()}"

    def restore(self, executor: Executor) -> State | None:
        """The newest good commit's state, with its rows back on the workers."""
        self._executor = executor
        self._met = time.monotonic()
        executor.say_kept(
            f"The run at {self.run.objects.url} is as its last commit left it: start the same "
            "call again once a scheduler runs."
        )
        self._settle()
        commit = self.run.newest
        if commit is None or commit.meta is None:
            return None
        state = read_state(self.run.objects, commit, executor)
        self._saved_at = (state.number, time.monotonic())
        where = f"pass {state.number}" + (f", wave {state.wave}" if state.wave else "")
        logger.info("goes on from commit %d of %s: %s", commit.number, self.run.objects.url, where)
        return state

    def boundary(self, state: Callable[[], State], *, ended: bool) -> None:
        """Save where it is time to; stop where that was asked for, after a commit."""
        now = time.monotonic()
        self._longest = max(self._longest, now - self._met)
        self._met = now
        self._collect()
        wanted = self.stop.reason(LATE * self._longest + self._slowest)
        found = state()
        number, at = self._saved_at
        due = self.cadence.due(found.number - number, now - at, ended=ended)
        if not (wanted or due or at == 0.0):
            return
        self._saved_at = (found.number, now)
        self._save(self._snapshot(found))
        if wanted:
            self._settle()
            if self._failed:
                raise StoreError(f"{wanted}; the state could not be committed before stopping")
            message = (
                f"{wanted}: stopped in pass {found.number} after commit {self._number()} of "
                f"{self.run.objects.url}; the same call again goes on from there"
            )
            raise KeyboardInterrupt(message) if wanted == "SIGINT" else StoppedError(message)

    def mark(self, state: State) -> Packed | None:
        """Take the state apart."""
        return pack(state)

    def finish(self, ending: Packed | None, state: State) -> None:
        """Commit the result, and wait for it."""
        self._save(self._snapshot(state, ending))
        self._settle()

    def close(self) -> None:
        """Let the thread go; whatever it still writes is finished first."""
        self._thread.shutdown(wait=True)

    def _number(self) -> int:
        return 0 if self.run.newest is None else self.run.newest.number

    def _snapshot(self, state: State, ending: Packed | None = None) -> Snapshot:
        best, seen = state.best, state.inspection
        shown = Shown(
            state.history,
            best.loss,
            state.number,
            state.outcome or Outcome.UNFINISHED,
            None if seen is None else seen.fingerprint(self.slabs.shape, self.slabs.dtype),
        )
        known = self.carries or ending is not None
        return Snapshot(
            state=pack(state) if ending is None else ending,
            shown=pack(shown).tree,
            factor=best.short,
            long=state.rows if self.slabs.transposed and known else None,
            model=best.number if self.carries else 0,
        )

    def _save(self, snapshot: Snapshot) -> None:
        self._waiting = snapshot
        self._collect()

    def _settle(self) -> None:
        """Wait until everything is written that was to be written."""
        self._collect()
        while self._writing is not None:
            self._writing.exception()
            self._collect()

    def _collect(self) -> None:
        """Take note of a save that ended; begin the one that waits."""
        if self._writing is not None:
            if not self._writing.done():
                return
            error, self._writing = self._writing.exception(), None
            self._judge(error)
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._writing = self._thread.submit(self._write, waiting)

    def _judge(self, error: BaseException | None) -> None:
        """Count failures in a row; raise what a fit can't go on with."""
        if error is None:
            self._failed = 0
            self.commits += 1
        elif isinstance(error, FencedError) or not isinstance(error, GOES_ON):
            self._waiting = None
            raise error
        else:
            self._failed += 1
            if self._failed > self.failures:
                self._waiting = None
                raise StoreError(
                    f"{self._failed} commits in a row failed, the last one with: {error}. The last "
                    f"good one is {self._number()}; the same call again goes on from there."
                ) from error
            warnings.warn(
                f"a commit failed, and the fit goes on ({self._failed} of at most {self.failures} "
                f"in a row): {error}",
                StoreWarning,
                stacklevel=2,
            )

    def _write(self, snapshot: Snapshot) -> None:
        began = time.monotonic()
        draft = self.run.draft()
        try:
            self._write_to(draft, snapshot)
        except BaseException:
            with suppress(StoreError):
                draft.discard()
            raise
        self._slowest = max(self._slowest, time.monotonic() - began)

    def _write_to(self, draft: Draft, snapshot: Snapshot) -> None:
        entries = [draft.put(name, data) for name, data in objects_of(snapshot, self.slabs)]
        carried, long = list(snapshot.state.carried), snapshot.long
        if long is not None and not any(rows is long for rows in carried):
            carried.append(long)
        present = [self._put_rows(draft, n, rows, entries) for n, rows in enumerate(carried)]
        meta = {
            **self.about,
            "state": snapshot.state.tree,
            "arrays": [[str(a.dtype), list(a.shape)] for a in snapshot.state.arrays],
            "carried": present[: len(snapshot.state.carried)],
            "shown": snapshot.shown,
            "long": None if long is None else _place(long, carried, present, snapshot.model),
        }
        self.run.commit(meta, entries, draft)

    def _put_rows(self, draft: Draft, n: int, rows: Carried, entries: list[Entry]) -> list[int]:
        """Let the rows be written where they are; give the number of blocks of every slab."""
        assert self._executor is not None
        writer = RowWriter(self.run.objects, f"{draft.folder}/state/rows/{n}")
        blocks = [-1] * len(rows.handles)
        for slab, count, found in self._executor.store_rows(rows, writer):
            blocks[slab] = count
            entries.extend(found)
        return blocks


def _place(
    long: Carried, carried: Sequence[Carried], present: Sequence[list[int]], model: int
) -> dict[str, Any]:
    """Where the long factor of the model lies: which rows, their blocks, and which of those."""
    number = next(n for n, rows in enumerate(carried) if rows is long)
    return {"rows": number, "blocks": present[number], "model": model}


def objects_of(snapshot: Snapshot, slabs: Slabs) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of what the client writes."""
    about = {"dasknmf": {"format": "dasknmf-checkpoint"}}
    numbers = range(len(snapshot.state.carried) + (snapshot.long is not None))
    for group in ("", "state/", "state/rows/", *(f"state/rows/{n}/" for n in numbers)):
        yield f"{group}{blobs.META}", blobs.group_object({} if group else about)
    if slabs.transposed:
        yield from blobs.array_objects("W", snapshot.factor, ("sample", "component")).items()
    else:
        H = np.ascontiguousarray(snapshot.factor.T)
        yield from blobs.array_objects("H", H, ("component", "feature")).items()
    table = [(str(a.dtype), list(a.shape)) for a in snapshot.state.arrays]
    for name, members in _pieces(table).items():
        flat = [snapshot.state.arrays[i].ravel() for i in members]
        whole = flat[0] if len(flat) == 1 else np.concatenate(flat)
        yield from blobs.array_objects(f"state/{name}", whole, ("entry",)).items()


def _pieces(table: Sequence[Any]) -> dict[str, list[int]]:
    """Which arrays of a state lie together: small ones by dtype, large ones alone.

    So a commit copies one large array at a time, and many small ones are one object.
    """
    pieces: dict[str, list[int]] = {}
    for i, (dtype, shape) in enumerate(table):
        large = math.prod(shape) * np.dtype(dtype).itemsize >= ALONE
        pieces.setdefault(f"{dtype}-{i}" if large else dtype, []).append(i)
    return pieces


def read_objects(objects: Any, commit: Commit, prefix: str) -> dict[str, bytes]:
    """Objects of a commit below ``prefix``, by their name within its group, verified."""
    found = {}
    for entry in commit.entries:
        name = entry.key.split("/", 2)[2]
        if name.startswith(prefix):
            found[name] = commit.read(objects, entry.key)
    return found


def read_state(objects: Any, commit: Commit, executor: Executor) -> State:
    """Put a state together from a commit; carried rows are read by the workers."""
    meta: Any = commit.meta
    try:
        if not {dtype for dtype, _ in meta["arrays"]} <= blobs.DTYPES:
            raise ValueError("unknown dtypes")
        arrays = _arrays(objects, commit, meta["arrays"])
        carried = [
            executor.load_rows(RowReader(objects, commit.entries, n, tuple(blocks)), len(blocks))
            for n, blocks in enumerate(meta["carried"])
        ]
        state = unpack(Packed(meta["state"], arrays, carried))
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"commit {commit.number} does not make sense: {error!r}") from error
    if not isinstance(state, State):
        raise StoreError(f"commit {commit.number} holds a {type(state).__name__} and no state")
    return state


def _arrays(objects: Any, commit: Commit, table: Sequence[Any]) -> list[Array]:
    """Read the pieces, and cut them up again."""
    arrays: list[Array] = [np.empty(0)] * len(table)
    for name, members in _pieces(table).items():
        flat = blobs.read_array(f"state/{name}", read_objects(objects, commit, f"state/{name}/"))
        edges = np.cumsum([0, *(math.prod(table[i][1]) for i in members)])
        for i, start, stop in zip(members, edges, edges[1:], strict=False):
            arrays[i] = flat[start:stop].reshape(table[i][1])
    return arrays
