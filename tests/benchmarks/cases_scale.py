"""A rehearsal of many slabs on one machine: real tasks around a kernel that does next to nothing.

What is left is what a thousand machines would load upon the one scheduler and the one client.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .report import Row, Spread
from .timing import Context, case

PASSES = 20
ROWS = 2  # of a slab
COLUMNS = 8
K = 2


@dataclass(frozen=True)
class Stub:
    """Visits a slab as a step of a fit does, and gives sums of its size; computes nothing."""

    fixed: np.ndarray
    name: str = "nmf-stub-pass"

    def __call__(self, V: Any, rows: Any, place: Any) -> tuple[None, tuple[np.ndarray, int]]:
        """No rows; sums, of them the second the count of the slabs."""
        return None, (self.fixed + V[0, 0], 1)


@dataclass(frozen=True)
class Usage:
    """What one process has spent so far, and what it holds."""

    cpu: float
    memory: int
    tasks: int


def usage(dask_scheduler: Any = None) -> Usage:
    """Run on the scheduler: its own; called here: that of the client."""
    import psutil

    process = psutil.Process()
    count = 0 if dask_scheduler is None else len(dask_scheduler.tasks)
    return Usage(time.process_time(), process.memory_info().rss, count)


@contextmanager
def processes(folder: Path) -> Iterator[Any]:
    """A client of a scheduler and two workers, each in a process of its own."""
    from distributed import Client

    file = folder / "scheduler.json"
    common = ("--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", file)
    worker = ("worker", *common, "--nthreads", "1", "--no-nanny", "--memory-limit", "0")
    started = []
    try:
        for words in (("scheduler", *common, "--port", "0"), worker, worker):
            command = [sys.executable, "-m", "dask", *map(str, words)]
            started.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        while not file.exists() and started[0].poll() is None:
            time.sleep(0.05)
        with Client(scheduler_file=str(file), timeout=120) as client:
            client.wait_for_workers(2, timeout=300)
            yield client
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait()
        file.unlink(missing_ok=True)


def passes_of(executor: Any, client: Any, waves: list[list[int]]) -> Iterator[tuple[Usage, Usage]]:
    """What the scheduler and the client have used after each pass."""
    for number in range(1, PASSES + 1):
        executor.begin(f"pass {number}")
        for wave in waves:
            fixed = np.full((COLUMNS, K), float(number))
            (total, count) = executor.run(Stub(fixed), only=wave).sums
            if count != len(wave) or total[0, 0] != len(wave) * (number + 1):
                raise RuntimeError(f"pass {number}: {count} slabs, sum {total[0, 0]}")
        yield client.run_on_scheduler(usage), usage()


@case("rehearsal", "20,000 slabs of next to no work: scheduler and client, each task and each pass")
def rehearsal(context: Context) -> Iterator[Row]:
    import dask.array as da

    from dasknmf.numerics import planning
    from dasknmf.numerics.memory import Job, Machines, tasks_per_pass
    from dasknmf.parallel import planned
    from dasknmf.parallel.cluster import ClusterExecutor
    from dasknmf.parallel.slabs import from_dask

    slabs_wanted = context.pick(20_000, 200)
    began = time.perf_counter()
    X = da.ones((ROWS * slabs_wanted, COLUMNS), chunks=(ROWS, COLUMNS), dtype="f4")
    slabs = from_dask(X, False, merge=False)  # the planner would merge so small ones
    waves = planning.waves(len(slabs), planning.count_waves(len(slabs)), np.random.default_rng(0))
    job = Job(k=K, waves=len(waves))
    tasks = tasks_per_pass(planned.matrix_of(slabs), job, Machines(2, 1), resident=False)
    planning_took = time.perf_counter() - began
    with (
        processes(context.scratch) as client,
        ClusterExecutor(slabs, client, resident=False) as executor,
    ):
        marks = [(time.perf_counter(), client.run_on_scheduler(usage), usage())]
        for scheduler, here in passes_of(executor, client, waves):
            marks.append((time.perf_counter(), scheduler, here))
    yield from rows_of(len(slabs), tasks, planning_took, marks)


def rows_of(slabs: int, tasks: int, planning_took: float, marks: list[Any]) -> Iterator[Row]:
    """The table; the first pass, which sends the slabs' recipes out, is left out of the rates."""
    pairs = list(pairwise(marks[1:]))
    walls = [(b[0] - a[0]) / tasks * 1e3 for a, b in pairs]
    scheduler = [(b[1].cpu - a[1].cpu) / tasks * 1e3 for a, b in pairs]
    client = [(b[2].cpu - a[2].cpu) / tasks * 1e3 for a, b in pairs]
    kept = [mark[1].tasks for mark in marks[1:]]
    memory = [mark[1].memory / 1e6 for mark in marks[1:]]
    what = f"{slabs} slabs, {tasks} tasks a pass, {PASSES} passes"
    seconds = [b[0] - a[0] for a, b in pairs]
    half = PASSES // 2
    growth = (median(memory[-3:]) - memory[half - 1]) / (PASSES - half - 1)
    # at the end of some passes the scheduler still lets go of tasks: of each half the least counts
    more = (min(kept[half:]) - min(kept[:half])) / (PASSES - half)
    yield Row(f"the scheduler's processor time a task, {what}", Spread.of(scheduler), unit="ms",
              ours=Spread.of(scheduler), note=f"planned in {planning_took:.1f} s")  # fmt: skip
    yield Row(f"wall time a pass, two workers, {what}", Spread.of(seconds), unit="s",
              ours=Spread.of(seconds))  # fmt: skip
    yield Row(f"the client's processor time a task, {what}", Spread.of(client), unit="ms",
              ours=Spread.of(client))  # fmt: skip
    yield Row(f"wall time a task, two workers, {what}", Spread.of(walls), unit="ms",
              ours=Spread.of(walls))  # fmt: skip
    yield Row(
        f"tasks that the scheduler keeps of each pass, {what}",
        Spread.of([more]), ("<=", 0.02),
        ours=Spread.of(kept), unit="tasks",
    )  # fmt: skip
    yield Row(f"the scheduler's memory at its end, {what}", Spread.of(memory[-1:]), unit="MB",
              ours=Spread.of(memory), note=f"{growth:.2f} MB a pass at the end")  # fmt: skip
