"""The slabs of a matrix on a cluster: what visits to them depend on."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from distributed import Client, Future
from distributed.comm import CommClosedError

from dasknmf.parallel.bundling import Ask
from dasknmf.parallel.loading import Recipe, small_recipes
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
                with annotated():
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
        try:
            found = self.ask(send, what)
        except KeyError as error:  # the scheduler's: it no longer knows who took the data
            raise CommClosedError(f"{what}: worker {error} left while it took them") from error
        return [found[key] for key in named]

    def find_recipes(self) -> list[Recipe] | None:
        """How a task makes each slab by itself, where a small recipe says it."""
        if self.slabs.graph is None:
            return None
        return self.recipes or small_recipes(self.slabs)
