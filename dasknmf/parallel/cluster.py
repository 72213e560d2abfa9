"""Slabs on the workers of a distributed cluster.

What was measured, and shapes this file: one fused task a slab, or a few small slabs, plus the merge
tree, since a task costs 2 ms; factors are scattered, never literal arguments (the scheduler keeps
those for good); carried rows are put in the worker's memory as data without ancestry, so that the
scheduler's task count stays flat; a lost worker costs a repeated visit from the factors that the
client holds. No task is bound to a worker: the death of that one would be waited for (and where
``allow_other_workers`` was set, new workers get none of those that were left when all had died).
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from dask.sizeof import sizeof
from distributed import Client, Future, KilledWorker
from distributed.client import ClosedClientError
from distributed.comm import CommClosedError

from dasknmf.numerics import planning
from dasknmf.numerics.errors import ClusterError, RowsLostError
from dasknmf.numerics.work import Rows, Work
from dasknmf.parallel import planned
from dasknmf.parallel.ancestry import Held, origins
from dasknmf.parallel.bundling import Bundling, singly, sums_of
from dasknmf.parallel.executors import Carried, Executor, Groups, Visit, pick_rows
from dasknmf.parallel.remote import Piece, release, release_all, rows_prefix
from dasknmf.parallel.slabs import Slabs
from dasknmf.parallel.sources import Sources
from dasknmf.parallel.spans import Phases
from dasknmf.parallel.watchdog import Watchdog

logger = logging.getLogger("dasknmf")

LOST = (CancelledError, KilledWorker, CommClosedError, ClosedClientError)
RETRIES = 5  # in a row: every visit that ends well refills them
LONGEST_PAUSE = 2.0  # seconds before a retry; the first one is at once
TOGETHER = 16  # slabs whose rows come in one request: it has to end now and then
LAST_WORD = 5.0  # seconds for workers or the scheduler to answer what a fit can do without
TOPIC = "dasknmf"  # of the events: client.get_events("dasknmf")
T = TypeVar("T")


class ClusterExecutor(Executor):
    """Visits slabs on the workers that ``client`` is connected to.

    ``resident`` slabs are loaded once and stay in the workers' memory; otherwise each task loads
    its slab, so that no more slabs are in memory than tasks run. Every wait is the watchdog's.
    """

    def __init__(self, slabs: Slabs, client: Client, resident: bool) -> None:
        super().__init__(slabs)
        self.client = client
        self.token = uuid.uuid4().hex[:8]
        self.watchdog = Watchdog(client, rows_prefix(self.token))
        self.phases = Phases()
        self._bundling = Bundling(client, self._wait, planned.matrix_of(slabs).slab or None)
        self.sources = Sources(
            client, slabs, resident=resident, ask=self._wait, patience=2 * self.watchdog.limit
        )
        self._runs: list[str] = []
        self._releases: list[Any] = []
        self._count = self._stored = 0
        self._failures = 0
        # What the last visit left on the cluster. Released before the next one is submitted, its
        # message would go first, and the client sends at most one in ten milliseconds.
        self._spent: tuple[Future, ...] = ()
        self._sum_bytes: dict[str, int] = {}  # by name of the work

    def begin(self, phase: str) -> None:
        """A span of its own."""
        self.phases.now = phase
        self._bundling.forget()

    def tell(self, event: dict[str, Any]) -> None:
        """Log it on the scheduler, as client.log_event does; a fit does not fail on that."""
        log = partial(
            self.client.scheduler.log_event, topic=TOPIC, msg={"fit": self.token, **event}
        )
        try:
            self.watchdog.ask_for(log, LAST_WORD)
        except Exception as error:
            logger.debug("a pass is not logged on the scheduler: %r", error)

    @property
    def room(self) -> int | None:
        """A quarter of the workers' memory."""
        found = self.watchdog.wait(lambda: self.client.scheduler.identity(n_workers=-1), "the plan")
        limits = [worker["memory_limit"] for worker in found["workers"].values()]
        return sum(limits) // 4 if limits and all(limits) else None

    def _run(
        self, work: Work, rows: Carried | None, groups: Groups, keep: bool, load: bool
    ) -> list[Visit]:
        handles = () if rows is None else rows.handles
        needed = [handles[place.slab] for places in groups for place in places if handles]
        attempt = partial(self._attempt, work, rows, groups, keep, load)
        visits = self._insist(work.name, attempt, [held for held in needed if held is not None])
        self._failures = 0
        return visits

    def _insist(self, what: str, attempt: Callable[[], T], needed: Sequence[Held] = ()) -> T:
        """Repeat ``attempt`` when workers die under it, and remake rows that it needs."""
        while True:
            try:
                return attempt()
            except LOST as error:
                error.__traceback__ = None  # its frames hold futures, and so tasks alive
                self._count_failure(what, error)
                last = error
            try:
                self._remake(needed)
            except LOST as error:
                last = error
            except RowsLostError as error:
                raise error from last
            logger.warning(
                "%s: lost work or data on the cluster (%s); repeated from the factors held here, "
                "attempt %d of %d",
                what, type(last).__name__, self._failures, RETRIES,
            )  # fmt: skip

    def _count_failure(self, what: str, error: Exception) -> None:
        """Raise where there is no sense in another attempt; else wait a little before it."""
        with suppress(CommClosedError):
            self.watchdog.check_connected()
        self._failures += 1
        if self._failures > RETRIES:
            raise ClusterError(
                f"{what} lost work or data {self._failures} times in a row; last: "
                f"{type(error).__name__}: {error}. "
                "Check the workers' logs: a slab that does not fit in a worker's memory ends like "
                "this; use smaller chunks or more memory.\n" + self.watchdog.workers_now()
            ) from error
        if self._failures > 1:
            time.sleep(min(0.1 * 2**self._failures, LONGEST_PAUSE))
        self._bundling.forget()
        self.sources.drop_lost(LOST)

    def _remake(self, needed: Sequence[Held]) -> None:
        """Make those rows again that were lost.

        Raises
        ------
        RowsLostError
            They came from other rows.
        """
        lost = self._lost(needed) if needed else []
        if any(held.work is None for held in lost):
            raise RowsLostError("the workers that carried rows from pass to pass are gone")
        for work in {id(held.work): held.work for held in lost}.values():
            assert work is not None
            same = [held for held in lost if held.work is work]
            places = [held.place for held in same]
            logger.warning(
                "%s: rows of %d slabs were lost, and are made again", work.name, len(same)
            )
            again = partial(self._attempt, work, None, [places], True, True)
            (visit,) = self._insist(work.name, again)
            assert visit.rows is not None
            for held in same:
                held.future = visit.rows.handles[held.place.slab].future

    def _lost(self, needed: Sequence[Held]) -> list[Held]:
        keys = [held.future.key for held in needed]
        holders = self._wait(lambda: self.client.scheduler.who_has(keys=keys), "rows of slabs")
        return [
            held
            for held in needed
            if not holders.get(held.future.key) or held.future.status in ("cancelled", "error")
        ]

    def _wait(self, ask: Callable[[], Awaitable[Any]], what: str) -> Any:
        """Wait for an answer in which no task's own error can be."""
        try:
            return self.watchdog.wait(ask, what)
        except LOST:
            raise
        except OSError as error:
            raise CommClosedError(f"{what}: {error!r}") from error

    def _attempt(
        self, work: Work, rows: Carried | None, groups: Groups, keep: bool, load: bool
    ) -> list[Visit]:
        self._count += 1
        run = f"{self.token}-{self._count}"
        sources = self.sources.load(self.phases) if load else self.sources.futures
        handles = [None] * len(self.slabs) if rows is None else list(rows.handles)
        (scattered,) = self.sources.scatter([work], "factors", work.name)
        if keep:
            self._runs.append(run)
        roots = []
        for group, places in enumerate(groups):
            nodes = singly(len(places))
            if load and rows is None and not keep:
                anywhere = self.sources.recipes is not None
                nodes = self._bundling.nodes(sources, places, anywhere=anywhere)
            leaves = (
                [sources[place.slab] if load else None for place in places],
                [held and held.future for held in (handles[place.slab] for place in places)],
                list(places),
            )
            with self.phases():
                root = sums_of(
                    self.client, scattered, leaves, nodes, (work.name, run, group),
                    keep=keep, at_once=self._at_once(work.name, len(places)),
                )  # fmt: skip
            roots.append(root)
        self._spent = (scattered, *roots)
        pieces = self.watchdog.wait(lambda: self.client.gather(roots, asynchronous=True), work.name)
        self._sum_bytes[work.name] = sizeof(pieces[0].sums)
        if not keep:
            return [Visit(piece.sums, None) for piece in pieces]
        return self._kept(work if load else None, rows, groups, pieces)

    def _kept(
        self, work: Work | None, rows: Carried | None, groups: Groups, pieces: Sequence[Piece]
    ) -> list[Visit]:
        """Visits with the rows that they left on the workers; ``work``: what makes them from V."""
        visits = []
        for places, piece in zip(groups, pieces, strict=True):
            there = [rows is not None and rows.handles[place.slab] is not None for place in places]
            futures = self._adopt(piece.keys)
            new = [
                Held(future, None if carried else work, place)
                for future, carried, place in zip(futures, there, places, strict=True)
            ]
            visits.append(Visit(piece.sums, self._with_old(rows, places, new)))
        self._forget()
        return visits

    def _at_once(self, name: str, leaves: int) -> bool:
        """Whether one task may add all sums up, going by what the work brought before."""
        size = self._sum_bytes.get(name)
        return size is not None and planning.merged_at_once(leaves, size)

    def _adopt(self, keys: tuple[str, ...]) -> tuple[Future, ...]:
        """Refer to rows that the workers put into their memory under ``keys``."""
        futures: tuple[Future, ...] = tuple(Future(key, client=self.client) for key in keys)
        # Future() alone does not tell the scheduler that this client wants the key, too.
        self.client._send_to_scheduler({"op": "client-desires-keys", "keys": list(keys)})
        return futures

    def _forget(self) -> None:
        """Let workers drop their own references to rows that this client now holds or dropped.

        Nobody waits for them: one that is frozen or dying would not answer.
        """
        old, self._runs = self._runs[:-2], self._runs[-2:]
        if old:
            ask = partial(self.client.run, release, old, on_error="ignore", asynchronous=True)
            self._releases = [job for job in self._releases if not job.done()]
            self._releases.append(self.watchdog.start(ask, self.watchdog.limit))

    def carry(self, blocks: Sequence[Rows]) -> Carried:
        """Scatter rows to the workers."""

        def scatter() -> Carried:
            futures = [self.sources.scatter([b], "rows", "rows given")[0] for b in blocks]
            places = self.slabs.places
            return Carried(tuple(Held(f, None, p) for f, p in zip(futures, places, strict=True)))

        return self._insist("rows given", scatter)

    def fetch(self, rows: Carried) -> list[Rows]:
        """Gather rows from the workers; those that died with one are made again.

        Raises
        ------
        RowsLostError
            They came from other rows.
        """
        found: list[Rows] = []
        for start in range(0, len(rows.handles), TOGETHER):
            part = rows.handles[start : start + TOGETHER]
            found += self._insist("rows", partial(self._gather, part), part)
            self._failures = 0
        return found

    def _gather(self, part: Sequence[Held]) -> list[Rows]:
        futures = [held.future for held in part]
        return list(self._wait(lambda: self.client.gather(futures, asynchronous=True), "rows"))

    def store_rows(self, rows: Carried, write: Callable[[int, Rows], Any]) -> list[Any]:
        """Tasks beside those of the fit."""
        there = [(i, held.future) for i, held in enumerate(rows.handles) if held is not None]
        if not there:
            return []
        self._stored += 1
        run = f"{self.token}-{self._stored}"
        numbers, futures = zip(*there, strict=True)
        keys = [(f"nmf-commit-{run}", i) for i in numbers]
        try:
            with self.phases("commits"):  # called by a thread of their own
                written = self.client.map(write, numbers, futures, key=keys, pure=False, priority=1)
            ask = partial(self.client.gather, written, asynchronous=True)
            return list(self.watchdog.wait(ask, "a commit"))
        except LOST as error:
            raise RowsLostError("rows died with their worker before they were saved") from error

    def load_rows(self, read: Any, count: int) -> Carried:
        """Tasks that read them, so that rows which die with a worker are read again."""
        self._stored += 1
        handles: list[Held | None] = [None] * count
        places = self.slabs.places
        for i in (i for i in range(count) if read.blocks[i] >= 0):
            key = (f"nmf-restore-{self.token}-{self._stored}", i)
            with self.phases():
                future = self.client.submit(read.only(i), i, key=key, pure=False)
            handles[i] = Held(future, None, places[i])
        return Carried(tuple(handles))

    def everywhere(self, check: Callable[[], Any]) -> dict[str, Any]:
        """On every worker."""
        ask = partial(self.client.run, check, on_error="return", asynchronous=True)
        found: dict[str, Any] = self.watchdog.wait(ask, "a look at the checkpoint path")
        return found

    def say_kept(self, what: str) -> None:
        """The end of the error that a lost scheduler is."""
        self.watchdog.kept = what

    def dask_chunks(self, rows: Carried, model: int) -> list[Any]:
        """Futures of one model's rows, made again by the scheduler where slabs alone tell how."""
        self._insist("rows", partial(self._remake, rows.handles))
        self._failures = 0
        keys = [(f"nmf-rows-{self.token}-{model}", i) for i in range(len(rows.handles))]
        pick = partial(pick_rows, model=model)
        made = origins(rows.handles, self.sources.find_recipes)
        picked = {key: (pick, h.future.key) for key, h in zip(keys, rows.handles, strict=True)}
        with self.phases():
            if made:
                return list(self.client.get({**made, **picked}, keys, sync=False))
            futures = [held.future for held in rows.handles]
            return list(self.client.map(pick, futures, key=keys, pure=False))

    def close(self) -> None:
        """Let the workers drop slabs and rows."""
        self.sources.clear()
        self._spent = ()
        for job in self._releases:
            job.cancel()
        if self.client.status == "running" and self._runs:
            ask = partial(
                self.client.run, release_all, self.token, on_error="ignore", asynchronous=True
            )
            with suppress(Exception):  # a fit that has ended well does not fail on this
                self.watchdog.ask_for(ask, LAST_WORD)
