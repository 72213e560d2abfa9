"""Rows on a cluster: what refers to them, and the tasks that would make them again."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cloudpickle
from distributed import Future

from dasknmf.numerics.inspection import Place
from dasknmf.numerics.work import Work
from dasknmf.parallel.loading import Recipe
from dasknmf.parallel.remote import make_rows

LARGE_WORK = 4 << 20  # bytes of factors that the scheduler may keep for rows to be made again


@dataclass(eq=False)
class Held:
    """Rows of one slab on the cluster.

    ``work`` made them from the slab alone, and makes them again where they are lost; None where it
    took other rows for it.
    """

    future: Future
    work: Work | None
    place: Place


def origins(handles: Sequence[Held], find: Callable[[], Sequence[Recipe] | None]) -> dict[Any, Any]:
    """Tasks that would make these rows, which are there already; none where that is unknown.

    ``find`` gives the recipes of all slabs. The scheduler keeps a task that is given
    for data which it has, and runs it once they die.
    """
    recipes = None if any(held.work is None for held in handles) else find()
    if recipes is None:
        return {}
    works = {id(held.work): held.work for held in handles}
    if sum(len(cloudpickle.dumps(work)) for work in works.values()) > LARGE_WORK:
        return {}
    names = {number: f"nmf-work-{uuid.uuid4().hex}" for number in works}
    graph: dict[Any, Any] = {names[n]: (partial(_same, w),) for n, w in works.items()}
    for held in handles:
        make = partial(make_rows, source=recipes[held.place.slab], place=held.place)
        graph[held.future.key] = (make, names[id(held.work)])
    return graph


def _same(work: Work | None) -> Work | None:
    return work
