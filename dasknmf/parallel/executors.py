"""How slabs are visited: one small interface, and the threads of this machine.

The cluster is in ``cluster.py``. Both run the same functions on the same slabs and add the sums up
along the same tree, so they give the same bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

import dask
import numpy as np
from dask.callbacks import Callback
from dask.local import get_async
from dask.sizeof import sizeof
from dask.system import CPU_COUNT
from dask.threaded import get as threaded_get
from dask.threaded import pack_exception

from dasknmf.numerics import planning
from dasknmf.numerics.inspection import Place
from dasknmf.numerics.kernels import Array
from dasknmf.numerics.work import Rows, Work
from dasknmf.parallel.blas import ensure_one_thread
from dasknmf.parallel.driver import add_up
from dasknmf.parallel.loading import Recipe, recipes
from dasknmf.parallel.slabs import Slabs
from dasknmf.parallel.team import Team, run_tree

SYNCHRONOUS = ("sync", "synchronous", "single-threaded")
Groups = Sequence[Sequence[Place]]  # of slabs, which have none in common


class Carried(NamedTuple):
    """Rows that stay where they were made: one handle a slab, None where there are none yet."""

    handles: tuple[Any, ...]

    def updated(self, newer: Carried) -> Carried:
        """The same with those handles that ``newer`` has."""
        pairs = zip(self.handles, newer.handles, strict=True)
        return Carried(tuple(old if new is None else new for old, new in pairs))


class Visit(NamedTuple):
    """What a run gives: the merged sums, and the rows if they were to be kept."""

    sums: Any
    rows: Carried | None


class Executor(ABC):
    """Visits the slabs of one matrix. ``reads`` counts the reads of V so far, in slabs of it."""

    def __init__(self, slabs: Slabs) -> None:
        self.slabs = slabs
        self._reads = Fraction(0)

    @property
    def reads_exactly(self) -> Fraction:
        """The same as a fraction, which sums do not blur."""
        return self._reads

    def begin(self, phase: str) -> None:
        """Say which phase of the fit what runs from now on belongs to: dashboards show it."""
        return

    def tell(self, event: dict[str, Any]) -> None:
        """Tell whoever watches the cluster what the fit has come to; nobody does by default."""
        return

    def go_on(self, reads: Fraction) -> None:
        """Count on from there."""
        self._reads = reads

    @property
    def reads(self) -> float:
        """Reads of V; a visit to some of the slabs is that part of a read."""
        return float(self._reads)

    def run(
        self,
        work: Work,
        rows: Carried | None = None,
        *,
        only: Sequence[int] | None = None,
        keep: bool = False,
        load: bool = True,
        share: Fraction | None = None,
    ) -> Visit:
        """Run ``work`` on every slab (with ``load=False`` on its carried rows alone).

        ``only`` names the slabs to visit: sums are then theirs, and other slabs keep the rows they
        have. ``share`` is the part of V that is read, where that is less than the slabs visited.
        """
        only = range(len(self.slabs)) if only is None else only
        (visit,) = self.run_each(work, [only], rows, keep=keep, load=load, share=share)
        return visit

    def run_each(
        self,
        work: Work,
        groups: Sequence[Sequence[int]],
        rows: Carried | None = None,
        *,
        keep: bool = False,
        load: bool = True,
        share: Fraction | None = None,
    ) -> list[Visit]:
        """``run`` on groups of slabs that have none in common: a visit each, with the same bits.

        Nobody waits for the end of a group to begin with the next.
        """
        places = [[self.slabs.places[i] for i in group] for group in groups]
        visits = self._run(work, rows, places, keep, load)
        if load:
            slabs = sum(map(len, groups))
            self._reads += Fraction(slabs, len(self.slabs)) if share is None else share
        return visits

    def _with_old(
        self, rows: Carried | None, places: Sequence[Place], new: Sequence[Any]
    ) -> Carried:
        """Put new rows in the place of old ones."""
        handles = [None] * len(self.slabs) if rows is None else list(rows.handles)
        for place, handle in zip(places, new, strict=True):
            handles[place.slab] = handle
        return Carried(tuple(handles))

    @property
    @abstractmethod
    def room(self) -> int | None:
        """Bytes that carried rows may take beside the slabs; None: as many as they need."""

    @abstractmethod
    def _run(
        self, work: Work, rows: Carried | None, groups: Groups, keep: bool, load: bool
    ) -> list[Visit]: ...

    @abstractmethod
    def carry(self, blocks: Sequence[Rows]) -> Carried:
        """Hand rows over to where the slabs are."""

    @abstractmethod
    def fetch(self, rows: Carried) -> list[Rows]:
        """Bring rows here."""

    @abstractmethod
    def store_rows(self, rows: Carried, write: Callable[[int, Rows], Any]) -> list[Any]:
        """What ``write(slab, rows)`` gives for each slab that has rows, run where those are."""

    @abstractmethod
    def load_rows(self, read: Any, count: int) -> Carried:
        """Rows that ``read(slab)`` gives; ``read.blocks[slab]`` is negative where there are none.

        ``read.only(slab)`` is what travels.
        """

    def say_kept(self, what: str) -> None:
        """What a user still has, and can do, where everything else is lost: for errors."""
        return

    @abstractmethod
    def everywhere(self, check: Callable[[], Any]) -> dict[str, Any]:
        """What ``check()`` gives, or the error that it raises, in every process that visits slabs.

        By the name of the process.
        """

    @abstractmethod
    def dask_chunks(self, rows: Carried, model: int) -> list[Any]:
        """Rows of one model as a graph node per slab, for a Dask array that leaves them there."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything that the executor holds."""

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def pick_rows(rows: Rows, model: int) -> Array:
    """Rows of one model."""
    return rows[model]


class ThreadsExecutor(Executor):
    """Dask's scheduler for one process, on threads: no network, no files.

    Slabs that come from a graph are kept once loaded while they fit in ``budget`` bytes together;
    the others are loaded anew in every pass, by the task that needs them: a slab a thread.
    """

    def __init__(self, slabs: Slabs, budget: int = 0) -> None:
        super().__init__(slabs)
        self._budget = self._room = budget
        self._lock = Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._team: Team | None = None
        self._blocks: list[Any] = [None] * len(slabs)
        self._recipes: list[Recipe] | None = None
        if slabs.graph is None:
            self._blocks = list(slabs.blocks)
        else:
            self._recipes = recipes(slabs)

    @property
    def room(self) -> int | None:
        """Half of what slabs may take; slabs given in memory say nothing about it."""
        return None if self.slabs.graph is None else self._budget // 2

    @staticmethod
    def slots() -> int:
        """Tasks that run at a time."""
        return int(dask.config.get("num_workers", None) or CPU_COUNT)

    def _run(
        self, work: Work, rows: Carried | None, groups: Groups, keep: bool, load: bool
    ) -> list[Visit]:
        kept: list[Any] = [None] * len(self.slabs)
        graph: dict[Any, Any] = {}
        makes: dict[Any, Any] = {}
        roots = []
        for group, places in enumerate(groups):
            leaves = []
            for place in places:
                i = place.slab
                old = None if rows is None else rows.handles[i]
                visit = partial(self._visit, work, old, place, kept if keep else None)
                key = (work.name, i)
                if load and self._blocks[i] is None and self._recipes is None:
                    graph[key] = (visit, self.slabs.blocks[i])
                    makes = self.slabs.graph or {}
                else:
                    graph[key] = (partial(visit, self._source(i) if load else None),)
                leaves.append(key)
            roots.append(self._merge(graph, leaves, group))
        sums = self._compute({**makes, **graph}, roots, bool(makes))
        if not keep:
            return [Visit(found, None) for found in sums]
        return [
            Visit(found, self._with_old(rows, places, [kept[place.slab] for place in places]))
            for found, places in zip(sums, groups, strict=True)
        ]

    def _compute(self, graph: dict[Any, Any], roots: list[Any], makes: bool) -> Any:
        """By the scheduler that Dask's configuration names, where that runs in this process.

        Where nobody looks on and slabs are at hand (no task ``makes`` them), without one: handed
        task by task, threads wait for the one that hands them out, which does nothing else.
        """
        if dask.config.get("scheduler", None) in SYNCHRONOUS:
            return dask.get(graph, roots)
        if dask.config.get("pool", None) is not None:
            return threaded_get(graph, roots)
        if not (makes or Callback.active):
            self._team = self._team or Team(self.slots())
            return run_tree(self._team, graph, roots)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.slots())
        submit, many = self._pool.submit, self.slots()
        return get_async(submit, many, graph, roots, pack_exception=pack_exception)

    def _source(self, slab: int) -> Any:
        block = self._blocks[slab]
        return self._recipes[slab] if block is None and self._recipes is not None else block

    def _visit(
        self, work: Work, rows: Rows | None, place: Any, kept: list[Any] | None, source: Any
    ) -> Any:
        ensure_one_thread()
        block = source.load() if isinstance(source, Recipe) else source
        if block is not None and self._blocks[place.slab] is None:
            self._keep_loaded(place.slab, block)
        new, sums = work(block, rows, place)
        if kept is not None:
            kept[place.slab] = new
        return sums

    def _keep_loaded(self, index: int, block: Any) -> None:
        with self._lock:
            if sizeof(block) <= self._room:
                self._room -= sizeof(block)
                self._blocks[index] = block

    def _merge(self, graph: dict[Any, Any], leaves: list[Any], group: int) -> Any:
        for depth, level in enumerate(planning.tree_levels(len(leaves))):
            nodes = [(f"nmf-merge-{depth}", group, j) for j in range(len(level))]
            for node, members in zip(nodes, level, strict=True):
                graph[node] = (add_up, [leaves[m] for m in members])
            leaves = nodes
        return leaves[0]

    def carry(self, blocks: Sequence[Rows]) -> Carried:
        """Keep the rows as they are."""
        return Carried(tuple(blocks))

    def fetch(self, rows: Carried) -> list[Rows]:
        """Give the rows back."""
        return list(rows.handles)

    def store_rows(self, rows: Carried, write: Callable[[int, Rows], Any]) -> list[Any]:
        """One after the other, in the thread that asks."""
        return [write(i, block) for i, block in enumerate(rows.handles) if block is not None]

    def load_rows(self, read: Any, count: int) -> Carried:
        """Read them now."""
        return Carried(tuple(read(i) for i in range(count)))

    def everywhere(self, check: Callable[[], Any]) -> dict[str, Any]:
        """In this process."""
        try:
            return {"this process": check()}
        except Exception as error:
            return {"this process": error}

    def dask_chunks(self, rows: Carried, model: int) -> list[Any]:
        """The arrays themselves."""
        return [np.asarray(block[model]) for block in rows.handles]

    def close(self) -> None:
        """Drop the slabs, and end the threads: at once those that have nothing to do."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        if self._team is not None:
            self._team.close(wait=False)
            self._team = None
        self._blocks = []
        self._recipes = None
