"""A pass with nothing around it: its kernels on the same slabs, in plain threads.

And what is asked of workers: memory, sums.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

THREADS = 2
SAMPLE_EVERY = 0.01  # seconds


class BarePass(NamedTuple):
    """Wall time, and the threads' seconds within products and within row solves."""

    seconds: float
    products: float
    solves: float


@contextmanager
def recorded_gains() -> Iterator[list[float]]:
    """What the rows of each wave after the first pass were allowed to leave to gain."""
    from dasknmf.numerics.work import Step
    from dasknmf.parallel.executors import Executor

    gains: list[float] = []
    run = Executor.run_each

    def recording(self: Executor, work: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(work, Step) and work.gains is not None and self.reads >= 1:
            gains.extend(work.gains)
        return run(self, work, *args, **kwargs)

    Executor.run_each = recording  # type: ignore[method-assign]
    try:
        yield gains
    finally:
        Executor.run_each = run  # type: ignore[method-assign]


def bare_pass(slabs: Sequence[np.ndarray], Ht: np.ndarray, gain: float) -> BarePass:
    """V Hᵀ, the rows to ``gain``, Vᵀ W of every slab: two threads, one BLAS thread each."""
    from dasknmf.numerics import kernels
    from dasknmf.numerics.penalties import make_penalties
    from dasknmf.numerics.solvers.als import ALS
    from dasknmf.numerics.terms import Normal
    from dasknmf.parallel.blas import one_thread

    solver, gram = ALS().loosened(gain), kernels.gram(Ht)
    none = make_penalties(0.0, "same", 0.0, (len(slabs), Ht.shape[0]))[0]
    waiting = list(slabs)
    spent: list[tuple[float, float]] = []

    def work() -> None:
        total = np.zeros(Ht.shape)
        products = solves = 0.0
        while waiting:
            try:
                V = waiting.pop()
            except IndexError:  # the other thread was quicker
                break
            began = time.perf_counter()
            cross = kernels.matmul(V, Ht)
            multiplied = time.perf_counter()
            old = np.zeros((V.shape[0], Ht.shape[1]), Ht.dtype)
            rows = solver.half_step(old, Normal(cross, gram), none)
            solved = time.perf_counter()
            total += kernels.matmul(V.T, rows)
            products += multiplied - began + time.perf_counter() - solved
            solves += solved - multiplied
        spent.append((products, solves))

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    with one_thread():
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
    if len(spent) < THREADS:
        raise RuntimeError("a thread of the bare pass failed")
    products, solves = (sum(column) for column in zip(*spent, strict=True))
    return BarePass(seconds, products, solves)


@contextmanager
def local_cluster(memory_limit: Any = 0) -> Iterator[Any]:
    """A client of two worker processes of one thread each."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=THREADS,
            threads_per_worker=1,
            memory_limit=memory_limit,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


class _Sampler:
    """Largest resident size of this process since the last question."""

    def __init__(self) -> None:
        import psutil

        self.process = psutil.Process()
        self.peak = 0
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, self.process.memory_info().rss)
            time.sleep(SAMPLE_EVERY)


_sampler: _Sampler | None = None


def peak_memory() -> int:
    """Bytes, the largest since the call before; the first call starts the sampling."""
    global _sampler
    if _sampler is None:
        _sampler = _Sampler()
    peak, _sampler.peak = _sampler.peak, 0
    return peak


def count_tasks(dask_scheduler: Any) -> int:
    """Tasks that the scheduler knows."""
    return len(dask_scheduler.tasks)
