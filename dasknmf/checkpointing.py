"""Commits of a running fit: when, what, and how it goes on from one.

A fit meets its keeper at every boundary (between waves, between passes). The keeper takes the state
apart at once, which copies nothing, and a thread of its own makes it durable while the next wave
computes; of states that come faster than the store takes them, the newest one waits. The protocol
is ``storage.runs``; what is in a commit is ``snapshots``.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dasknmf.numerics.errors import (
    FencedError,
    ProblemMismatchError,
    RowsLostError,
    StoppedError,
    StoreError,
    StoreWarning,
)
from dasknmf.numerics.inspection import Inspection
from dasknmf.packing import Packed, pack
from dasknmf.parallel.executors import Carried, Executor
from dasknmf.parallel.slabs import Slabs
from dasknmf.signals import Stop
from dasknmf.snapshots import Snapshot, objects_of, place_of, read_state
from dasknmf.state import State
from dasknmf.storage.manifests import Entry
from dasknmf.storage.rows import RowWriter
from dasknmf.storage.runs import Draft, Run

logger = logging.getLogger("dasknmf")

GOES_ON = (StoreError, OSError, RowsLostError)
LATE = 1.2  # times the longest wave so far: what the next one may take


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
    """What a fit meets that keeps nothing.

    ``between_waves``: whether it has anything to do there.
    """

    commits = 0
    between_waves = False

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
                    f"{known[slab]:#010x}. Give the same X and weights, or another checkpoint "
                    "path; nothing was written."
                )

    def mark(self, state: State) -> Packed | None:
        """Before the last read: what :meth:`finish` gets as the place where the passes ended."""
        return None

    def finish(self, ending: Packed | None, state: State) -> None:
        """After the last read."""


@dataclass
class CheckpointKeeper(Keeper):
    """Commits to one run.

    about
        JSON of the estimator that every commit carries: parameters, names, shape, versions.
    snapshot
        Of a state, and of what :meth:`mark` gave where all is done.
    """

    run: Run
    slabs: Slabs
    cadence: Cadence
    about: dict[str, Any]
    stop: Stop
    snapshot: Callable[[State, Packed | None], Snapshot]
    failures: int = 3
    between_waves = True
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
        self._save(self.snapshot(found, None))
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
        self._save(self.snapshot(state, ending))
        self._settle()

    def close(self) -> None:
        """Let the thread go; whatever it still writes is finished first."""
        self._thread.shutdown(wait=True)

    def _number(self) -> int:
        return 0 if self.run.newest is None else self.run.newest.number

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
            "long": None if long is None else place_of(long, carried, present, snapshot.model),
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
