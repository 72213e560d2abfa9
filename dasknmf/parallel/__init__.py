"""Layer 1: slabs, executors and starts. Knows Dask, knows no formula."""

from __future__ import annotations

import logging
import sys
from typing import Any

from dasknmf.numerics.errors import ClusterError
from dasknmf.parallel.executors import Executor, ThreadsExecutor
from dasknmf.parallel.slabs import Slabs

logger = logging.getLogger("dasknmf")


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


def make_executor(slabs: Slabs, client: Any = None) -> Executor:
    """Choose threads or cluster, resident or streaming, and log the choice with its numbers."""
    client = active_client() if client is None else client
    if client is None:
        budget = _memory_here() // 2 if slabs.graph is not None else 0
        logger.info(
            "threads: %d slabs, %s bytes, %d tasks at a time, %d bytes may stay loaded",
            len(slabs), slabs.nbytes or "unknown", ThreadsExecutor.slots(), budget,
        )  # fmt: skip
        return ThreadsExecutor(slabs, budget)
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

    limits = [w["memory_limit"] for w in client.scheduler_info(n_workers=-1)["workers"].values()]
    memory = sum(limits) if all(limits) else None
    resident = slabs.nbytes is None or memory is None or slabs.nbytes <= memory // 2
    logger.info(
        "cluster: %d slabs, %s bytes, %d workers, %s bytes of memory: %s",
        len(slabs), slabs.nbytes or "unknown", len(limits), memory or "unlimited",
        "resident" if resident else "streaming",
    )  # fmt: skip
    return ClusterExecutor(slabs, client, resident)


def _memory_here() -> int:
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT)
