"""``dasknmf plan``: what a fit would need, and about how long a pass would take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click
import numpy as np
import scipy.sparse as sp

import dasknmf
from dasknmf import parameters
from dasknmf.numerics import kernels, memory, refusing
from dasknmf.numerics.memory import Machines, Plan, make_plan, megabytes
from dasknmf.numerics.solvers.als import ALS
from dasknmf.numerics.terms import Normal
from dasknmf.parallel import inputs, planned
from dasknmf.parallel.blas import one_thread
from dasknmf.parallel.executors import ThreadsExecutor
from dasknmf.parallel.loading import recipes
from dasknmf.parallel.slabs import Slabs, cut

TASK = {True: 2.5e-3, False: 2e-4}  # seconds that a task costs beside its work: cluster, threads
NETWORK = 1e9  # bytes a second that are taken for granted between machines
SECONDS = 1.2  # that each of the three probes may take
PROBE_ROWS = 2000
PROBE_BYTES = 64 << 20


class Bytes(click.ParamType):
    """A size such as ``16GB`` or ``500 MiB``."""

    name = "BYTES"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Give the number of bytes."""
        from dask.utils import parse_bytes

        try:
            size = value if isinstance(value, int) else parse_bytes(value)
        except (ValueError, TypeError):
            size = 0
        if size <= 0:
            self.fail(f"{value!r} is no amount of memory; expected one such as 16GB or 500MiB.")
        return int(size)


def plan_for(model: dasknmf.NMF, X: Any, given: dict[str, int | None]) -> tuple[Slabs, Plan]:
    """The slabs of an opened matrix, and the plan on the machines that the options describe."""
    solver = parameters.check(model)[1]
    X = inputs.checked_dask(X) if inputs.is_dask(X) else X
    if int(str(model.n_components)) > min(X.shape):
        raise dasknmf.ParameterError(
            f"-k {model.n_components} is more than the smaller side of the matrix, "
            f"{X.shape[0]} × {X.shape[1]}; expected at most {min(X.shape)}."
        )
    k = parameters.count_components(model, X.shape, None, None)
    slabs = cut(X)
    job = parameters.make_job(model, solver, k, slabs, keep_rows=True)
    here = planned.memory_here()
    workers = given["workers"] or 0
    threads = given["threads"] or (1 if workers else ThreadsExecutor.slots())
    limit = given["memory"] or (None if workers else here)
    machines = Machines(workers, threads, limit, here if workers else limit)
    return slabs, make_plan(planned.matrix_of(slabs, _stored(slabs)), job, machines)


def _stored(slabs: Slabs) -> int | None:
    """Bytes of a sparse matrix that nobody has read, from a few of its slabs."""
    if not slabs.sparse or slabs.graph is None:
        return None
    loaded, rows = 0, 0
    began = time.perf_counter()
    for load, place in _some_loads(slabs):
        block = load()
        loaded += block.data.nbytes + block.indices.nbytes + block.indptr.nbytes
        rows += place.stop - place.start
        if time.perf_counter() - began > SECONDS:
            break
    return -(-loaded * slabs.shape[0] // rows) if rows else None


def _some_loads(slabs: Slabs) -> list[tuple[Callable[[], Any], Any]]:
    """Up to three slabs, spread evenly, and how each is loaded."""
    found = recipes(slabs)
    if not found:
        return []
    some = sorted({len(found) * i // 6 for i in (1, 3, 5)})
    return [(found[i].load, slabs.places[i]) for i in some]


def probe(slabs: Slabs, plan: Plan) -> dict[str, float | None]:
    """Rates of one thread of this machine, in bytes, operations and rows a second."""
    with one_thread():
        read = None if plan.read == 0 and not slabs.graph else _read_rate(slabs)
        return {"read": read, **_rates(slabs, plan)}


def _read_rate(slabs: Slabs) -> float | None:
    began, size = time.perf_counter(), 0
    for load, _ in _some_loads(slabs):
        block = load()
        size += block.nbytes if hasattr(block, "nbytes") else block.data.nbytes * 2
        if time.perf_counter() - began > SECONDS:
            break
    return size / (time.perf_counter() - began) if size else None


def _rates(slabs: Slabs, plan: Plan) -> dict[str, float | None]:
    """Of products at this width (with this density), and of row solves."""
    job = plan.job
    height = min(PROBE_ROWS, slabs.shape[0])
    rng = np.random.default_rng(0)
    width = min(slabs.shape[1], max(1, PROBE_BYTES // (height * slabs.dtype.itemsize)))
    V: Any = rng.random((height, width), dtype=slabs.dtype.type)
    if slabs.sparse:
        density = min(1.0, _entries(plan) / (plan.matrix.rows * plan.matrix.columns))
        V = sp.random_array((height, width), density=density, format="csr", rng=rng)
        V = V.astype(slabs.dtype)
    H = rng.random((width, job.width), dtype=slabs.dtype.type)
    W = rng.random((height, job.k))
    gram = kernels.gram(W)
    cross = (W[rng.permutation(height)] - 0.1) @ gram  # every tenth coefficient is negative
    products = _times(lambda: kernels.matmul(V, H))
    solves = None
    if not job.split:
        solver, terms, old = ALS(), Normal(cross, gram), np.zeros(cross.shape, slabs.dtype)
        solves = height * _times(lambda: solver.update(old, terms))
    return {"products": 2.0 * max(V.size, 1) * job.width * products, "solves": solves}


def _entries(plan: Plan) -> int:
    """Stored entries of V."""
    matrix = plan.matrix
    if not matrix.sparse:
        return matrix.rows * matrix.columns
    return (matrix.nbytes or 0) // (matrix.itemsize + 4)


def _times(call: Callable[[], Any]) -> float:
    """Calls a second, the first (which may compile) left out."""
    call()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS / 2:
        call()
        count += 1
    return count / (time.perf_counter() - began)


def seconds_per_pass(plan: Plan, rates: dict[str, float | None]) -> dict[str, float]:
    """Estimate of a pass by what it is spent on."""
    matrix, job, machines = plan.matrix, plan.job, plan.machines
    slots = min(machines.slots, plan.wave_slabs)
    found = {"products": 4.0 * _entries(plan) * job.width / (rates["products"] or np.inf) / slots}
    if rates["solves"]:
        found["row solves"] = matrix.rows * job.models / rates["solves"] / slots
        found["short factor"] = job.waves * matrix.columns * job.models / rates["solves"]
    if plan.read and rates["read"]:
        found["reading"] = plan.read / rates["read"] / slots
    found["tasks"] = plan.tasks * TASK[bool(machines.workers)]
    found["network"] = plan.moved / NETWORK
    return found


def as_record(plan: Plan, rates: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
    """Everything, for machines."""
    matrix = asdict(plan.matrix)
    heights = matrix.pop("heights")
    return {
        "matrix": {**matrix, "rows": plan.matrix.rows, "slabs": len(heights), "slab": max(heights)},
        "slab_bytes": plan.matrix.slab,
        "job": asdict(plan.job),
        "machines": asdict(plan.machines),
        "resident": plan.resident,
        "tasks_per_pass": plan.tasks,
        "bytes_read_per_pass": plan.read,
        "bytes_moved_per_pass": plan.moved,
        "worker_memory": {**plan.worker, "peak": plan.worker_peak} if plan.worker else None,
        "client_memory": {**plan.client, "peak": plan.client_peak},
        "fits": refusal(plan) is None,
        "refusal": refusal(plan),
        "rates_of_one_thread": rates,
        "estimated_seconds_per_pass": {**seconds, "sum": sum(seconds.values())},
    }


def refusal(plan: Plan) -> str | None:
    """Why a fit would refuse to start, if it would."""
    try:
        refusing.refuse(plan)
    except dasknmf.TooLargeError as error:
        return str(error)
    return None


def lines(plan: Plan, seconds: dict[str, float]) -> list[str]:
    """The plan for people."""
    matrix, job, machines = plan.matrix, plan.job, plan.machines
    side = "columns" if matrix.transposed else "rows"
    kind = "sparse" if matrix.sparse else "dense"
    size = "unknown size" if matrix.nbytes is None else megabytes(matrix.nbytes)
    where = f"{machines.workers} workers × {machines.threads} threads"
    if not machines.workers:
        where = f"{machines.threads} threads of this machine"
    limit = "no limit given" if machines.memory is None else megabytes(machines.memory)
    choice = "resident (read once)" if plan.resident else "streaming (read in every pass)"
    read = "nothing after the first" if plan.read == 0 else megabytes(plan.read or 0)
    text = [
        f"matrix:      {matrix.rows} × {matrix.columns}, {kind}, {size} in memory; {side} streamed",
        f"slabs:       {len(matrix.heights)} of up to {max(matrix.heights)} {side}, "
        f"{megabytes(matrix.slab)} each",
        f"fit:         k={job.k}, {job.models} model{'s' * (job.models > 1)}, {job.waves} "
        f"wave{'s' * (job.waves > 1)} a pass of at least {plan.wave_slabs} slabs",
        f"machines:    {where}, {limit}{' each' if machines.workers else ''}; {choice}",
        f"a pass:      {plan.tasks} tasks, reads {read}, moves {megabytes(plan.moved)}",
    ]
    if plan.worker:
        text.append(
            f"worker:      {megabytes(plan.worker_peak)} at the peak: {memory.listed(plan.worker)}"
        )
    text.append(
        f"client:      {megabytes(plan.client_peak)} at the peak: {memory.listed(plan.client)}"
    )
    spent = ", ".join(f"{what} {s:.2g} s" for what, s in seconds.items() if s >= 1e-3)
    text.append(f"estimate:    {sum(seconds.values()):.2g} s a pass ({spent}), if all machines")
    text.append("             are as fast as this one, and the store serves all of them at once")
    return text
