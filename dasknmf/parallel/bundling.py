"""The tasks of a visit to slabs: which of them share one, and the tree that adds their sums up.

Slabs share one that are on one worker, or that tasks load themselves: a task costs the scheduler
and the client milliseconds. Where slabs are, and how many tasks run at a time, is asked once a
phase of the fit: it may change, and nothing but time depends on it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any

from distributed import Client, Future

from dasknmf.numerics import planning
from dasknmf.numerics.inspection import Place
from dasknmf.parallel.remote import merge_bundles, merge_pieces, merge_tree, visit_slabs

Ask = Callable[[Callable[[], Awaitable[Any]], str], Any]  # wait for a coroutine; what it is for
Nodes = list[list[list[int]]]  # of the merge tree's first level: bundles of leaves


def singly(count: int) -> Nodes:
    """Every leaf has a task of its own."""
    return planning.bundles(range(count), 1)


class Bundling:
    """``ask`` waits for the scheduler's answers, ``largest``: bytes of the largest slab."""

    def __init__(self, client: Client, ask: Ask, largest: int | None) -> None:
        self.client, self.ask, self.largest = client, ask, largest
        self._slots: int | None = None
        self._holders: dict[str, str] = {}

    def forget(self) -> None:
        """Ask anew: workers came and went, or slabs moved."""
        self._slots, self._holders = None, {}

    def nodes(self, sources: Sequence[Any], places: Sequence[Place], *, anywhere: bool) -> Nodes:
        """Bundles for a visit to ``places``; ``sources``: futures of all slabs, or their recipes.

        ``anywhere``: they are recipes, which any worker can follow.
        """
        if self._slots is None:
            threads = self.ask(self.client.scheduler.ncores, "the workers' threads")
            self._slots = sum(threads.values())
        most = planning.most_in_bundle(len(places), self._slots, self.largest)
        if most == 1:
            return singly(len(places))
        if anywhere:
            return planning.bundles([0] * len(places), most)
        keys = [sources[place.slab].key for place in places]
        return planning.bundles(self._where(keys), most)

    def _where(self, keys: Sequence[Any]) -> list[Hashable]:
        """The worker that has each of these; what nobody has yet is alone in its place."""
        unknown = [key for key in keys if key not in self._holders]
        if unknown:
            found = self.ask(lambda: self.client.scheduler.who_has(keys=unknown), "places of slabs")
            self._holders |= {key: min(workers) for key, workers in found.items() if workers}
        return [self._holders.get(key, ("nowhere", key)) for key in keys]


def sums_of(
    client: Client,
    work: Future,
    leaves: tuple[list[Any], list[Any], list[Place]],
    nodes: Nodes,
    name: tuple[str, str, int],
    *,
    keep: bool,
    at_once: bool = False,
) -> Future:
    """The root of the tree: visits, a task a bundle, and what merges their sums.

    ``leaves``: sources, old rows and places. ``name``: of the work, of this run of it, and
    which of its groups of slabs this is. ``at_once``: one task does all of the merging.
    """
    what, run, group = name
    bundles = [bundle for node in nodes for bundle in node]
    alone = [len(node) == 1 for node in nodes for _ in node]
    visits = client.map(
        visit_slabs,
        [work] * len(bundles),
        *([[of[leaf] for leaf in bundle] for bundle in bundles] for of in leaves),
        [run if keep else ""] * len(bundles),
        [None if whole else bundle for whole, bundle in zip(alone, bundles, strict=True)],
        key=[(f"{what}-{run}", leaves[2][bundle[0]].slab) for bundle in bundles],
        pure=False,
    )
    if at_once and len(visits) > 1:
        counts, keys = [len(node) for node in nodes], [(f"nmf-merge-0-{run}", group, 0)]
        (root,) = client.map(merge_tree, [visits], [counts], key=keys, pure=False)
        return root
    found = iter(visits)
    parts = [[next(found) for _ in node] for node in nodes]
    several = [j for j, node in enumerate(nodes) if len(node) > 1]
    merged = client.map(
        merge_bundles,
        [parts[j] for j in several],
        key=[(f"nmf-merge-0-{run}", group, j) for j in several],
        pure=False,
    )
    sums = dict(zip(several, merged, strict=True))
    return _root(client, [sums.get(j, parts[j][0]) for j in range(len(nodes))], run, group)


def _root(client: Client, sums: list[Future], run: str, group: int) -> Future:
    """The levels of the tree above the first."""
    levels = planning.tree_levels(len(sums)) if len(sums) > 1 else []
    for depth, level in enumerate(levels, start=1):
        sums = client.map(
            merge_pieces,
            [[sums[m] for m in members] for members in level],
            key=[(f"nmf-merge-{depth}-{run}", group, j) for j in range(len(level))],
            pure=False,
        )
    return sums[0]
