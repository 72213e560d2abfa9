"""Slab layout as arithmetic: a function of the matrix alone, never of workers or threads."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from functools import cache
from math import factorial

import numpy as np

SMALLEST = 2 << 20  # bytes; below, the overhead of a task (0.2 to 2.6 ms) outweighs its work
USUAL = 32 << 20  # at most, while that makes no more than MANY slabs: small workers can take it
LARGEST = 64 << 20
AIM = 64  # slabs a matrix is cut into where the sizes above allow
MANY = 1024  # slabs above which the scheduler's time is worth larger ones
FEWEST = 16  # slabs of a small matrix, so that it has waves, too
SHORTEST = 100  # rows of such a slab
BATCH = 4 << 20  # bytes of chunks that are made at a time while a slab is filled, at least
WAVES = 4  # updates of the short factor a pass, at most: after a start by sample more gain nothing
WAVE_SLABS = 4  # slabs of a wave, at least
FAN_IN = 8  # of the merge tree
RUNS = 4  # stretches of V that a wave consists of
BUNDLE = 64 << 20  # bytes of slabs that one task may visit one after the other
TREE_BYTES = 16 << 20  # of the sums of a whole tree that one task may add up
TASKS = 2  # of a wave for each task slot, at least, where slabs share them


def slab_bytes(total: int) -> int:
    """Bytes of a slab for a matrix of ``total`` bytes."""
    usual = min(max(total // AIM, min(SMALLEST, total // FEWEST)), USUAL)
    return max(usual, min(total // MANY, LARGEST))


def even_chunks(rows: int, row_bytes: int) -> tuple[int, ...]:
    """Cut ``rows`` rows of ``row_bytes`` bytes into slabs of (almost) equal height."""
    total = rows * row_bytes
    shortest = min(SHORTEST, LARGEST // max(row_bytes, 1)) if total < AIM * SMALLEST else 1
    height = max(1, shortest, slab_bytes(total) // max(row_bytes, 1))
    count = -(-rows // height)
    edges = [rows * i // count for i in range(count + 1)]
    return tuple(b - a for a, b in itertools.pairwise(edges))


def merged_chunks(chunks: tuple[int, ...], row_bytes: int) -> tuple[int, ...]:
    """How many neighbouring chunks of rows form one slab: small chunks are put together."""
    target = slab_bytes(sum(chunks) * row_bytes)
    groups: list[int] = []
    members, size = 0, 0
    for chunk in chunks:
        if members and size + chunk * row_bytes > target:
            groups.append(members)
            members, size = 0, 0
        members += 1
        size += chunk * row_bytes
    groups.append(members)
    return tuple(groups)


def count_waves(slabs: int, tall: int | None = None) -> int:
    """How often a pass updates the short factor.

    ``tall``: rows for each column, where every update needs the curvature of every column. The
    fewer rows there are for each, the more of a pass those updates would be.

    From V alone: a cluster with more task slots than a wave has slabs leaves some idle, but gets
    the same bits.
    """
    most = WAVES if tall is None else max(2, min(WAVES, tall))
    return min(most, max(1, slabs // WAVE_SLABS))


def waves(slabs: int, count: int, generator: np.random.Generator) -> list[list[int]]:
    """Which slabs form each wave: ``RUNS`` runs of neighbours, drawn from as many parts of V.

    Every wave has slabs from all over V, so that sorted data do no harm. Neighbours mostly are on
    different workers, so that a wave keeps all of them busy (slabs drawn one by one, two workers:
    5 to 3 of 8, and a quarter of the time spent waiting).
    """
    runs = max(1, min(RUNS, slabs // count))
    edges = [slabs * i // (runs * count) for i in range(runs * count + 1)]
    cut = [list(range(a, b)) for a, b in itertools.pairwise(edges)]
    groups: list[list[int]] = [[] for _ in range(count)]
    for part in range(runs):
        for group, place in enumerate(generator.permutation(count)):
            groups[group] += cut[part * count + int(place)]
    return groups


@cache
def most_together(items: int, places: int) -> float:
    """How many of so many items are in the place with the most of them, expected by chance.

    Σ P(most >= t), with P(most <= t) from the exponential series of one place cut off at t.
    """
    found = 0.0
    for most in range(items):
        series = np.array([1 / factorial(i) / places**i for i in range(most + 1)])
        whole = np.ones(1)
        for bit in f"{places:b}":
            whole = np.convolve(whole, whole)[: items + 1]
            whole = np.convolve(whole, series)[: items + 1] if bit == "1" else whole
        found += 1.0 - (factorial(items) * float(whole[items]) if len(whole) > items else 0.0)
    return found


def most_in_bundle(slabs: int, slots: int, largest: int | None) -> int:
    """How many slabs one task may visit: a task costs the scheduler and the client milliseconds.

    ``slabs`` are visited at a time, ``slots`` tasks run at a time, ``largest`` is the bytes of the
    largest slab (None: unknown, and then a task visits one).
    """
    if largest is None:
        return 1
    return max(1, min(slabs // (TASKS * max(slots, 1)), BUNDLE // max(largest, 1), FAN_IN))


def bundles(holders: Sequence[Hashable], most: int) -> list[list[list[int]]]:
    """Which leaves of the merge tree share a task: for each node of its first level, its bundles.

    ``holders`` says where the slab of each leaf is: those of a bundle are in one place. Every leaf
    keeps its place in the tree, so bundles change no bit of a sum.
    """
    found = []
    for node in tree_levels(len(holders))[0]:
        same: dict[Hashable, list[int]] = {}
        for leaf in node:
            same.setdefault(holders[leaf], []).append(leaf)
        cut = []
        for leaves in same.values():
            pieces = -(-len(leaves) // most)
            edges = [len(leaves) * i // pieces for i in range(pieces + 1)]
            cut += [leaves[a:b] for a, b in itertools.pairwise(edges)]
        found.append(sorted(cut))
    return found


def tree_levels(leaves: int, fan_in: int = FAN_IN) -> list[list[range]]:
    """Fixed-shape merge tree: for each level, which items of the level below form each node."""
    levels: list[list[range]] = []
    count = leaves
    while count > 1 or not levels:
        level = [range(i, min(i + fan_in, count)) for i in range(0, count, fan_in)]
        levels.append(level)
        count = len(level)
    return levels


def merged_at_once(leaves: int, sum_bytes: int) -> bool:
    """Whether one task adds up the sums of all leaves: small ones cost less than a task's way.

    The order of the additions stays that of the tree.
    """
    return leaves <= FAN_IN**2 and leaves * sum_bytes <= TREE_BYTES


def tasks_of_wave(slabs: int, workers: int, most: int, *, resident: bool, at_once: bool) -> int:
    """Visits, and what merges their sums; ``at_once``: one task does.

    Threads (no workers) have a task a slab. On workers up to ``most`` slabs share one that are on
    one of them (of the few that meet in a node of the tree, each worker is taken to have some), or
    that are loaded anew.
    """
    levels = tree_levels(slabs)
    if not workers:
        return slabs + sum(map(len, levels))
    count = 1 if at_once else sum(map(len, levels[1:]))
    for node in map(len, levels[0]):
        places = min(node, workers) if resident and most > 1 else 1
        shared = max(places, -(-node // most))
        count += shared + (shared > 1 and not at_once)
    return count


def sums_moved(slabs: int, workers: int, most: int, *, resident: bool, at_once: bool) -> float:
    """How many sums go from one worker to another on their way up the tree of a wave.

    Of those that meet, the ones that were formed there do not move. The scheduler weighs the move
    against the wait: they meet where most of them are (by chance), or just anywhere. This is
    half-way (4 workers, 8 that meet: 4.5 to 5.6 of them were seen to move, where these two would be
    4.5 and 6). Sums of slabs that share a task come as one, and meet where most are (70 to 77 MB
    where this says 73); where one task visits all that meet, none of them moves. ``at_once``: all
    meet in one place.
    """
    moved = 0.0
    levels = tree_levels(slabs)
    if at_once:
        levels = [[range(slabs if resident or most < FAN_IN else len(levels[0]))]]
    for depth, level in enumerate(levels):
        for meet in map(len, level):
            together = most_together(meet, workers)
            stay = together if most > 1 else (together + meet / workers) / 2
            whole = depth == 0 and most >= meet > 1 and not (resident or at_once)
            moved += 0.0 if whole else meet - stay
    return moved
