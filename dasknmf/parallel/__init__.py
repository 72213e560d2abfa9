"""Layer 1: slabs, executors and starts. Knows Dask, knows no formula."""

from __future__ import annotations

import sys
from typing import Any

from dasknmf.numerics.errors import ClusterError
from dasknmf.numerics.memory import Job, Machines, Plan, make_plan
from dasknmf.numerics.refusing import refuse
from dasknmf.parallel import planned
from dasknmf.parallel.executors import Executor, ThreadsExecutor
from dasknmf.parallel.slabs import Slabs

ROWS_ONLY = Job(k=1)  # where nobody says what is to be done with the slabs


def active_client() -> Any:
    """The current ``distributed.Client``, or None; distributed is not imported for the answer.

    None inside a task, too: a fit that waits there for tasks of its own could wait for good.
    """
    if "distributed" not in sys.modules:
        return None
    from distributed import default_client, get_worker

    try:
        get_worker()
    except ValueError:
        pass
    else:
        return None
    try:
        return default_client()
    except ValueError:
        return None


def make_executor(slabs: Slabs, client: Any = None, job: Job = ROWS_ONLY) -> Executor:
    """Choose threads or cluster, resident or streaming, and log the choice with its numbers.

    Raises
    ------
    TooLargeError
        ``job`` would run out of memory; nothing was read.
    """
    client = active_client() if client is None else client
    matrix = planned.matrix_of(slabs)
    if client is None:
        memory = planned.memory_here()
        machines = Machines(0, ThreadsExecutor.slots(), memory, memory)
        _agree(make_plan(matrix, job, machines))
        return ThreadsExecutor(slabs, planned.room_here() if matrix.lazy else 0)
    if getattr(client, "asynchronous", False):
        raise TypeError(
            "client is asynchronous; expected a synchronous distributed.Client. Create it with "
            "asynchronous=False (the default) in a thread of its own."
        )
    if not hasattr(client, "scheduler_info"):
        raise TypeError(
            f"client={client!r}; expected a distributed.Client, or None for the active one. "
            "Create it with distributed.Client(address)."
        )
    if client.status != "running":
        raise ClusterError(
            f"the client is {client.status}; expected one that is connected. Create a new "
            "distributed.Client, or pass none to use threads."
        )
    from dasknmf.parallel.cluster import ClusterExecutor

    plan = make_plan(matrix, job, planned.machines_of(client))
    _agree(plan)
    return ClusterExecutor(slabs, client, plan.resident)


def _agree(plan: Plan) -> None:
    planned.announce(plan)
    refuse(plan)
