"""Slabs on the workers of a distributed cluster.

What was measured, and shapes this file: one fused task a slab plus the merge tree, since a task
costs 2 ms; factors are scattered, never literal arguments (the scheduler keeps those for good);
carried rows are put in the worker's memory as data without ancestry, so that the scheduler's task
count stays flat; a lost worker costs a repeated pass from the factors that the client holds.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from functools import partial
from typing import Any, NamedTuple

import cloudpickle
from distributed import Client, Future, KilledWorker, get_client
from distributed.comm import CommClosedError

from dasknmf.numerics import planning
from dasknmf.numerics.errors import ClusterError, RowsLostError
from dasknmf.numerics.inspection import Place
from dasknmf.numerics.terms import add
from dasknmf.numerics.work import Rows, Work
from dasknmf.parallel.blas import ensure_one_thread
from dasknmf.parallel.executors import Carried, Executor, Visit, pick_rows
from dasknmf.parallel.loading import Recipe, recipes
from dasknmf.parallel.slabs import Slabs

logger = logging.getLogger("dasknmf")

LOST = (CancelledError, KilledWorker, CommClosedError)
RETRIES = 5
LARGE_RECIPE = 1 << 18  # bytes; a graph above it carries data


class Piece(NamedTuple):
    """What leaves a slab task: sums, and the key under which its rows stay on the worker."""

    sums: Any
    keys: tuple[str, ...]


_held: dict[str, list[Future]] = {}
_held_lock = threading.Lock()


def _hold(run: str, rows: Rows) -> str:
    """Keep rows in this worker's memory as data without ancestry; give their key.

    The worker's own client refers to them until the client of the fit does (``_release``).
    """
    with _held_lock:
        client = get_client()
    (future,) = client.scatter([rows], hash=False)  # inside a task: into this worker
    with _held_lock:
        _held.setdefault(run, []).append(future)
    return str(future.key)


def _release(runs: Sequence[str]) -> None:
    with _held_lock:
        for run in runs:
            _held.pop(run, None)


def visit_slab(work: Work, source: Any, rows: Rows | None, place: Place, run: str) -> Piece:
    """The task: load the slab if it is not here yet, do the work, leave the rows here."""
    ensure_one_thread()
    block = source.load() if isinstance(source, Recipe) else source
    new, sums = work(block, rows, place)
    keys = () if not run or new is None else (_hold(run, new),)
    return Piece(sums, keys)


def merge_pieces(pieces: Sequence[Piece]) -> Piece:
    """Add sums up in the order of the slabs."""
    keys = tuple(key for piece in pieces for key in piece.keys)
    return Piece(add([piece.sums for piece in pieces]), keys)


class ClusterExecutor(Executor):
    """Visits slabs on the workers that ``client`` is connected to.

    ``resident`` slabs are loaded once and stay in the workers' memory; otherwise each task loads
    its slab, so that no more slabs are in memory than tasks run.
    """

    def __init__(self, slabs: Slabs, client: Client, resident: bool) -> None:
        super().__init__(slabs)
        self.client = client
        self.resident = resident
        self.token = uuid.uuid4().hex[:8]
        self._sources: list[Any] | None = None
        self._runs: list[str] = []
        self._count = self._stored = 0

    @property
    def room(self) -> int | None:
        """A quarter of the workers' memory."""
        workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        limits = [worker["memory_limit"] for worker in workers]
        return sum(limits) // 4 if limits and all(limits) else None

    def _run(
        self, work: Work, rows: Carried | None, places: Sequence[Place], keep: bool, load: bool
    ) -> Visit:
        for attempt in range(RETRIES + 1):
            try:
                return self._attempt(work, rows, places, keep, load)
            except LOST as error:
                if rows is not None and any(h and h.status != "finished" for h in rows.handles):
                    raise RowsLostError(
                        "the workers that carried rows from pass to pass are gone"
                    ) from error
                self._sources = None
                logger.warning(
                    "%s: lost work or data on the cluster (%s); the pass is repeated from the "
                    "factors held here, attempt %d of %d",
                    work.name, type(error).__name__, attempt + 1, RETRIES,
                )  # fmt: skip
                last = error
        raise ClusterError(
            f"{work.name} lost work or data {RETRIES + 1} times in a row; last: {last!r}. "
            f"Workers now: {len(self.client.scheduler_info()['workers'])}. Check the workers' "
            "logs: a slab that does not fit in a worker's memory ends like this; use smaller "
            "chunks or more memory."
        ) from last

    def _attempt(
        self, work: Work, rows: Carried | None, places: Sequence[Place], keep: bool, load: bool
    ) -> Visit:
        self._count += 1
        run = f"{self.token}-{self._count}"
        sources = [self._load()[p.slab] for p in places] if load else [None] * len(places)
        scattered = self.client.scatter(work, hash=False)
        leaves = self.client.map(
            visit_slab,
            [scattered] * len(places),
            sources,
            [None] * len(places) if rows is None else [rows.handles[p.slab] for p in places],
            list(places),
            [run if keep else ""] * len(places),
            key=[(f"{work.name}-{run}", p.slab) for p in places],
            pure=False,
        )
        root = self._merge(leaves, run)
        piece = root.result()
        kept = None
        if keep:
            kept = self._with_old(rows, places, self._adopt(piece.keys))
            self._runs.append(run)
        self._forget(keep=2)
        return Visit(piece.sums, kept)

    def _merge(self, leaves: list[Future], run: str) -> Future:
        for depth, level in enumerate(planning.tree_levels(len(leaves))):
            leaves = self.client.map(
                merge_pieces,
                [[leaves[m] for m in members] for members in level],
                key=[(f"nmf-merge-{depth}-{run}", j) for j in range(len(level))],
                pure=False,
            )
        return leaves[0]

    def _adopt(self, keys: tuple[str, ...]) -> tuple[Future, ...]:
        """Refer to rows that the workers put into their memory under ``keys``."""
        futures: tuple[Future, ...] = tuple(Future(key, client=self.client) for key in keys)
        # Future() alone does not tell the scheduler that this client wants the key, too.
        self.client._send_to_scheduler({"op": "client-desires-keys", "keys": list(keys)})
        return futures

    def _forget(self, keep: int) -> None:
        """Let workers drop their own references to rows that this client now holds or dropped."""
        old, self._runs = self._runs[: len(self._runs) - keep], self._runs[-keep:] if keep else []
        if old:
            self.client.run(_release, old)

    def _load(self) -> list[Any]:
        """Futures of slabs, or recipes; made anew after a loss."""
        if self._sources is None:
            graph = self.slabs.graph
            if graph is None:
                self._sources = self._scatter(self.slabs.blocks)
            else:
                found = None if self.resident else small_recipes(self.slabs)
                if found is None:
                    self._sources = self.client.get(graph, list(self.slabs.blocks), sync=False)
                else:
                    self._sources = self._scatter(found)
        return self._sources

    def _scatter(self, blocks: Sequence[Any]) -> list[Future]:
        """One at a time: the client never holds a serialised copy of the whole."""
        return [self.client.scatter(block, hash=False) for block in blocks]

    def carry(self, blocks: Sequence[Rows]) -> Carried:
        """Scatter rows to the workers."""
        return Carried(tuple(self._scatter(blocks)))

    def fetch(self, rows: Carried) -> list[Rows]:
        """Gather rows from the workers."""
        try:
            return list(self.client.gather(list(rows.handles)))
        except LOST as error:
            raise RowsLostError("rows were lost with their worker") from error

    def store_rows(self, rows: Carried, write: Callable[[int, Rows], Any]) -> list[Any]:
        """Tasks beside those of the fit."""
        there = [(i, handle) for i, handle in enumerate(rows.handles) if handle is not None]
        if not there:
            return []
        self._stored += 1
        run = f"{self.token}-{self._stored}"
        numbers, handles = zip(*there, strict=True)
        keys = [(f"nmf-commit-{run}", i) for i in numbers]
        try:
            written = self.client.map(write, numbers, handles, key=keys, pure=False, priority=1)
            return list(self.client.gather(written))
        except LOST as error:
            raise RowsLostError(
                "rows were lost with their worker before they were saved"
            ) from error

    def load_rows(self, read: Any, count: int) -> Carried:
        """Tasks that read them, so that rows which die with a worker are read again."""
        self._stored += 1
        run = f"{self.token}-{self._stored}"
        return Carried(
            tuple(
                self.client.submit(read.only(i), i, key=(f"nmf-restore-{run}", i), pure=False)
                if read.blocks[i] >= 0
                else None
                for i in range(count)
            )
        )

    def everywhere(self, check: Callable[[], Any]) -> dict[str, Any]:
        """On every worker."""
        found: dict[str, Any] = self.client.run(check, on_error="return")
        return found

    def dask_chunks(self, rows: Carried, model: int) -> list[Any]:
        """Futures of one model's rows."""
        return self.client.map(
            partial(pick_rows, model=model),
            list(rows.handles),
            key=[(f"nmf-rows-{self.token}-{model}", i) for i in range(len(rows.handles))],
            pure=False,
        )

    def close(self) -> None:
        """Let the workers drop slabs and rows."""
        self._sources = None
        if self.client.status == "running":
            self._forget(keep=0)


def small_recipes(slabs: Slabs) -> list[Recipe] | None:
    """Give the recipes of all slabs; None where there are none, or they carry data."""
    found = recipes(slabs)
    if found is None:
        return None
    size = max(len(cloudpickle.dumps(recipe)) for recipe in found[:2])
    return found if size < LARGE_RECIPE else None
