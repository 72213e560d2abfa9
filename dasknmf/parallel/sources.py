"""The slabs of a matrix on a cluster: where each is put, and what visits to it depend on."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import dask
from dask.core import flatten
from dask.optimization import cull
from distributed import Client, Future

from dasknmf.numerics import memory, planning
from dasknmf.parallel.bundling import Ask
from dasknmf.parallel.loading import Recipe, is_future, small_recipes, work_of
from dasknmf.parallel.slabs import Slabs

TOGETHER = 16  # recipes that go in one request: it has to end now and then


class Sources:
    """Futures of the slabs of one matrix, or of their recipes.

    ``resident`` slabs are loaded once and stay in the workers' memory. ``patience``: seconds to
    wait for a worker that takes what is scattered. ``ask`` waits for the scheduler's answers.
    """

    def __init__(
        self, client: Client, slabs: Slabs, *, resident: bool, ask: Ask, patience: float
    ) -> None:
        self.client, self.slabs, self.resident = client, slabs, resident
        self.ask, self.patience = ask, patience
        self.futures: list[Any] = [None] * len(slabs)
        self.recipes: list[Recipe] | None = None
        self.groups: Sequence[Sequence[int]] = ()  # slabs that are visited at a time

    def load(self, annotated: Callable[[], AbstractContextManager[None]]) -> list[Any]:
        """Futures of slabs, or of their recipes; those that were lost are made anew.

        ``annotated``: a context for the tasks that load them.
        """
        missing = [i for i, source in enumerate(self.futures) if source is None]
        if not missing:
            return self.futures
        graph, blocks = self.slabs.graph, list(self.slabs.blocks)
        if graph is not None:
            if self.recipes is None and not self.resident:
                self.recipes = small_recipes(self.slabs)
            if self.recipes is None:
                with annotated(), self._spread(graph, missing):
                    made = self.client.get(graph, [blocks[i] for i in missing], sync=False)
                for i, future in zip(missing, made, strict=True):
                    self.futures[i] = future
                return self.futures
            blocks = list(self.recipes)
        # Slabs one at a time, so that the client never holds a serialised copy of the whole.
        step = 1 if self.recipes is None else TOGETHER
        for start in range(0, len(missing), step):
            some = missing[start : start + step]
            for i, source in zip(some, self.scatter([blocks[i] for i in some]), strict=True):
                self.futures[i] = source
        return self.futures

    def drop_lost(self, errors: tuple[type[Exception], ...]) -> None:
        """Forget slabs that the scheduler can't make again by itself.

        An error of a slab that is none of ``errors`` is raised.
        """
        scattered = self.slabs.graph is None or self.recipes is not None
        gone = {"cancelled", "error"} | ({"lost", "pending"} if scattered else set())
        for i, source in enumerate(self.futures):
            if source is not None and source.status in gone:
                if source.status == "error" and not isinstance(source.exception(), errors):
                    raise source.exception()  # what made the tasks above it vanish
                self.futures[i] = None

    def clear(self) -> None:
        """Let the workers drop them."""
        self.futures = [None] * len(self.slabs)

    def scatter(self, data: Sequence[Any], name: str = "slab", what: str = "slabs") -> list[Future]:
        """Send data to the workers; ``name`` is what the dashboard shows, ``what`` what waits."""
        named = {f"nmf-{name}-{uuid.uuid4().hex}": item for item in data}
        send = partial(self.client.scatter, named, timeout=self.patience, asynchronous=True)
        found = self.ask(send, what)
        return [found[key] for key in named]

    def find_recipes(self) -> list[Recipe] | None:
        """How a task makes each slab by itself, where a small recipe says it."""
        if self.slabs.graph is None:
            return None
        return self.recipes or small_recipes(self.slabs)

    def _spread(self, graph: dict[Any, Any], missing: list[int]) -> AbstractContextManager[None]:
        """A context in which the tasks of each slab prefer the worker that is to keep it.

        Nothing depends on that but time: those that visit a group wait for the one with the most
        slabs of it. Where slabs share work, Dask places them.
        """
        parts = _parts(graph, [self.slabs.blocks[i] for i in missing])
        if parts is None or len(self.groups) == 0:
            return dask.annotate()
        threads = self.ask(self.client.scheduler.ncores, "the workers' threads")
        if len(threads) < 2:
            return dask.annotate()
        holders: list[Hashable] = [None] * len(self.slabs)
        for i, worker in zip(missing, self._holders(missing), strict=True):
            holders[i] = worker
        found = planning.spread(self.groups, holders, threads, memory.UNEVEN)
        # Loose: a worker that dies, or is full, is not waited for.
        everyone = tuple(threads)
        places = {key: (found[i],) for i, keys in zip(missing, parts, strict=True) for key in keys}
        return dask.annotate(workers=partial(_place, places, everyone), allow_other_workers=True)

    def _holders(self, slabs: list[int]) -> list[Hashable]:
        """The worker that has the first chunk of each slab; None where no worker has it yet."""
        chunks = [next(iter(flatten(self.slabs.layouts[i].grid)), None) for i in slabs]
        keys = [chunk.key for chunk in chunks if isinstance(chunk, Future)]
        if not keys:
            return [None] * len(slabs)
        known = self.ask(lambda: self.client.scheduler.who_has(keys=keys), "places of chunks")
        return [
            min(known.get(chunk.key) or (), default=None) if isinstance(chunk, Future) else None
            for chunk in chunks
        ]


def _place(places: dict[Any, Any], everyone: tuple[str, ...], key: Any) -> tuple[Any, ...]:
    found: tuple[Any, ...] = places.get(key, everyone)
    return found


def _parts(graph: dict[Any, Any], blocks: Sequence[Any]) -> list[set[Any]] | None:
    """Keys of the tasks that make each block and no other; None where blocks share work."""
    parts: list[set[Any]] = []
    seen: set[Any] = set()
    shared: set[Any] = set()
    for block in blocks:
        part, needs = cull(graph, [block])
        if not seen.isdisjoint(work_of(needs)):
            return None
        keys = {key for key in part if not is_future(part[key])}
        shared |= keys & seen
        seen |= keys
        parts.append(keys)
    return [keys - shared for keys in parts]
