"""The plan of a fit from its slabs and from the cluster that is there."""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import Any

from dasknmf.numerics import memory
from dasknmf.numerics.memory import Machines, Matrix, Plan
from dasknmf.parallel.slabs import Slabs

logger = logging.getLogger("dasknmf")


def matrix_of(slabs: Slabs, nbytes: int | None = None) -> Matrix:
    """What the plan has to know of V; ``nbytes`` of all slabs, where they can't know it."""
    edges, item = slabs.edges, slabs.dtype.itemsize
    largest = 0
    for layout in slabs.layouts:
        largest = max(largest, max(layout.heights) * max(layout.widths) * item)
    return Matrix(
        columns=slabs.shape[1],
        itemsize=item,
        heights=tuple(b - a for a, b in pairwise(edges)),
        nbytes=slabs.nbytes if nbytes is None else nbytes,
        chunk=largest,
        sparse=slabs.sparse,
        lazy=slabs.graph is not None,
        transposed=slabs.transposed,
    )


def machines_of(client: Any) -> Machines:
    """The workers that are there: as many, the fewest threads and the least memory of any."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    limits = [worker["memory_limit"] for worker in workers]
    return Machines(
        workers=max(len(limits), 1),
        threads=max((worker["nthreads"] for worker in workers), default=1),
        memory=min(limits) if limits and all(limits) else None,
        client_memory=memory_here(),
    )


def memory_here() -> int:
    """Bytes that this process may use, cgroups considered."""
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT)


def room_here() -> int:
    """Bytes of slabs that threads may keep loaded between passes."""
    return memory_here() // 2


def announce(plan: Plan) -> None:
    """Log the choice with its numbers; warn where task slots stay idle or memory gets short."""
    matrix, machines = plan.matrix, plan.machines
    size = "an unknown number of bytes" if matrix.nbytes is None else f"{matrix.nbytes} bytes"
    logger.info(
        "%s: %d slabs, %s, %d tasks at a time: %s; planned peaks: worker %d, client %d bytes",
        f"cluster of {machines.workers} workers" if machines.workers else "threads",
        len(matrix.heights), size, machines.slots,
        "resident" if plan.resident else "streaming", plan.worker_peak, plan.client_peak,
    )  # fmt: skip
    slabs, slots = len(matrix.heights), machines.slots
    if machines.workers and plan.wave_slabs < slots <= slabs and plan.job.waves > 1:
        logger.warning(
            "a wave has %d slabs, and the cluster runs %d tasks at a time: %d of them stay idle. "
            "waves=%d would use them all, with fewer updates a pass",
            plan.wave_slabs, slots, slots - plan.wave_slabs, slabs // slots,
        )  # fmt: skip
    if plan.worker and machines.memory and plan.worker_peak > memory.PAUSE * machines.memory:
        logger.warning(
            "workers may need %s of the %s that they have: above 80 %% Dask lets them wait. "
            "Smaller chunks, fewer threads a worker or more memory avoid that",
            memory.megabytes(plan.worker_peak), memory.megabytes(machines.memory),
        )  # fmt: skip
