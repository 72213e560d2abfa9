"""What runs on the workers of a cluster: visits to slabs, sums of sums, and the rows left there."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from distributed import Future, get_client

from dasknmf.numerics import planning
from dasknmf.numerics.inspection import Place
from dasknmf.numerics.terms import add
from dasknmf.numerics.work import Rows, Work
from dasknmf.parallel.blas import ensure_one_thread
from dasknmf.parallel.loading import Recipe


class Piece(NamedTuple):
    """What leaves a slab task: sums, and the key under which its rows stay on the worker."""

    sums: Any
    keys: tuple[str, ...]


class Bundle(NamedTuple):
    """What slabs brought that shared a task, and which leaves of the merge tree they are."""

    leaves: tuple[int, ...]
    pieces: tuple[Piece, ...]


_held: dict[str, list[Future]] = {}
_held_lock = threading.Lock()


def rows_prefix(token: str) -> str:
    """How the keys of rows begin that stay on workers for one executor, or for one of its runs."""
    return f"nmf-held-{token}-"


def _hold(run: str, rows: Rows) -> str:
    """Keep rows in this worker's memory as data without ancestry; give their key.

    The worker's own client refers to them until the client of the fit does (``release``).
    """
    key = rows_prefix(run) + uuid.uuid4().hex
    with _held_lock:  # two threads that make a worker's client at once fail in its handshake
        client = get_client()
    future = client.scatter({key: rows})[key]  # inside a task: into this worker
    with _held_lock:
        _held.setdefault(run, []).append(future)
    return key


def release(runs: Sequence[str]) -> None:
    """Let go of the rows of some runs."""
    with _held_lock:
        for run in runs:
            _held.pop(run, None)


def release_all(token: str) -> None:
    """Let go of the rows of every run of one executor, of those that failed, too."""
    with _held_lock:
        for run in [run for run in _held if run.startswith(f"{token}-")]:
            del _held[run]


def visit_slabs(
    work: Work, sources: Sequence[Any], rows: Sequence[Rows | None], places: Sequence[Place],
    run: str, leaves: Sequence[int] | None,
) -> Piece | Bundle:  # fmt: skip
    """The task: do the work on one slab after the other, and leave their rows here.

    A slab that is not here yet is loaded, and let go of before the next one. Where the slabs are a
    whole node of the tree (``leaves`` is None), their sums are added up at once.
    """
    ensure_one_thread()
    pieces = []
    for source, old, place in zip(sources, rows, places, strict=True):
        new, sums = work(source.load() if isinstance(source, Recipe) else source, old, place)
        keys = () if not run or new is None else (_hold(run, new),)
        pieces.append(Piece(sums, keys))
    return merge_pieces(pieces) if leaves is None else Bundle(tuple(leaves), tuple(pieces))


def make_rows(work: Work, source: Recipe, place: Place) -> Rows:
    """Rows that a visit left on a worker, made again."""
    ensure_one_thread()
    rows, _ = work(source.load(), None, place)
    assert rows is not None
    return rows


def merge_bundles(bundles: Sequence[Bundle]) -> Piece:
    """One node of the first level: the pieces of all its leaves, in their order."""
    pieces = {
        leaf: piece
        for bundle in bundles
        for leaf, piece in zip(bundle.leaves, bundle.pieces, strict=True)
    }
    return merge_pieces([pieces[leaf] for leaf in sorted(pieces)])


def merge_pieces(pieces: Sequence[Piece]) -> Piece:
    """Add sums up in the order of the slabs."""
    keys = tuple(key for piece in pieces for key in piece.keys)
    return Piece(add([piece.sums for piece in pieces]), keys)


def merge_tree(found: Sequence[Piece | Bundle], counts: Sequence[int]) -> Piece:
    """The whole tree: what ``merge_bundles`` makes of the next ``counts`` bundles, and so on up."""
    rest = iter(found)
    pieces = [_node([next(rest) for _ in range(count)]) for count in counts]
    for level in planning.tree_levels(len(pieces)) if len(pieces) > 1 else []:
        pieces = [merge_pieces([pieces[m] for m in members]) for members in level]
    return pieces[0]


def _node(parts: Sequence[Piece | Bundle]) -> Piece:
    """A node of the first level: visited by one task as a whole, or to be merged."""
    if len(parts) == 1 and isinstance(parts[0], Piece):
        return parts[0]
    return merge_bundles([part for part in parts if isinstance(part, Bundle)])
