"""What a fit will need, as arithmetic: memory, bytes read and moved, tasks. Bytes throughout.

Everything is in the streamed orientation: V has ``rows`` × ``columns``, its long side first. Peaks
are upper bounds, held against what workers were measured to use (``tests/test_memory.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from dasknmf.numerics import planning

PROCESS = 340 << 20  # a process that has imported Dask, scikit-learn, numba: 300 to 330 MB
COPIES = 3  # of a chunk while it is read: compressed, decompressed, given out
USABLE = 0.95  # of a worker's limit: above, Dask ends the process
PAUSE = 0.8  # of a worker's limit: above, Dask starts no task
SPILLED = ("kept slabs", "rows")  # what workers move to their disks when memory gets short
SAMPLE = 64 << 20  # bytes of rows that a start brings to the client, at most
SAMPLED = {False: 5000, True: 25_000}  # rows of that sample, at most; of a sparse V
UNEVEN = 1.3  # slabs of the worker that keeps the most, to those of the average
DOUBLE = 8  # bytes of a float64


@dataclass(frozen=True)
class Matrix:
    """What is known of V before it is read.

    heights
        Rows of each slab.
    nbytes
        Of all slabs in memory; None where nobody knows (sparse chunks that were never read).
    chunk
        Bytes of the largest piece that is read at a time, in the dtype of the slabs.
    lazy
        Whether slabs have to be loaded at all; else they are in the client's memory.
    transposed
        Whether the long side is that of the features, whose factor the client gets.
    """

    columns: int
    itemsize: int
    heights: tuple[int, ...]
    nbytes: int | None
    chunk: int
    sparse: bool = False
    lazy: bool = True
    transposed: bool = False

    @property
    def rows(self) -> int:
        """Of the long side."""
        return sum(self.heights)

    @property
    def slab(self) -> int:
        """Bytes of the largest slab."""
        if self.nbytes is None:
            return 0
        return -(-self.nbytes * max(self.heights) // max(self.rows, 1))


@dataclass(frozen=True)
class Job:
    """What is asked of a fit: ``models`` factorisations of rank ``k``, ``waves`` a pass.

    split
        Whether the terms are two arrays (any loss but least squares) in place of one.
    curvature
        Bytes of second derivatives in the terms of one model.
    commits
        Whether states are committed while the fit goes on: one being written, one that waits.
    keep_rows
        Whether the factor of the samples is wanted in the end.
    probes
        Vectors with which a start may read V in search of its singular ones.
    widest
        Components with which it reads V a second time, to choose from: of all ranks together.
    """

    k: int
    models: int = 1
    waves: int = 1
    carries_rows: bool = False
    split: bool = False
    curvature: int = 0
    commits: bool = False
    keep_rows: bool = False
    probes: int = 0
    widest: int = 0

    @property
    def width(self) -> int:
        """Columns of all models' factors side by side."""
        return self.k * self.models


@dataclass(frozen=True)
class Machines:
    """Where it runs. ``workers`` = 0: threads of this process. None: no limit is known.

    memory, client_memory
        Bytes that each worker, and the process of the fit, may use.
    """

    workers: int
    threads: int
    memory: int | None = None
    client_memory: int | None = None

    @property
    def slots(self) -> int:
        """Tasks that run at a time."""
        return max(self.workers, 1) * self.threads


@dataclass(frozen=True)
class Plan:
    """What a fit will need.

    worker, client
        Bytes at the peak by what they are for; empty for workers where there are none.
    tasks, read, moved
        Of one pass: tasks, bytes of V that leave the disk (0 where V stays in memory), bytes
        between processes.
    """

    matrix: Matrix
    job: Job
    machines: Machines
    resident: bool
    worker: dict[str, int]
    client: dict[str, int]
    tasks: int
    read: int | None
    moved: int

    @property
    def worker_peak(self) -> int:
        """Bytes of one worker."""
        return sum(self.worker.values())

    @property
    def client_peak(self) -> int:
        """Bytes of the process of the fit."""
        return sum(self.client.values())

    @property
    def wave_slabs(self) -> int:
        """Slabs of the smallest wave."""
        return len(self.matrix.heights) // self.job.waves


def make_plan(matrix: Matrix, job: Job, machines: Machines) -> Plan:
    """Choose resident or streaming, and say what that needs."""
    resident = is_resident(matrix, job, machines)
    client = client_parts(matrix, job, machines.workers)
    worker: dict[str, int] = {}
    if machines.workers:
        worker = worker_parts(matrix, job, machines, resident)
    else:
        kept = kept_here(matrix, machines)
        client |= visit_parts(matrix, job, machines, loads=matrix.lazy)
        client["kept slabs"] = kept
    return Plan(
        matrix=matrix,
        job=job,
        machines=machines,
        resident=resident,
        worker=worker,
        client=client,
        tasks=tasks_per_pass(matrix, job, machines, resident),
        read=0 if resident else matrix.nbytes,
        moved=moved_per_pass(matrix, job, machines, resident),
    )


def is_resident(matrix: Matrix, job: Job, machines: Machines) -> bool:
    """Whether slabs stay in memory between passes: where they take at most half of it."""
    if not matrix.lazy or machines.memory is None or matrix.nbytes is None:
        return True
    if not machines.workers:
        return matrix.nbytes <= machines.memory // 2
    if matrix.nbytes > machines.workers * machines.memory // 2:
        return False
    needed = sum(worker_parts(matrix, job, machines, resident=True).values())
    return needed <= USABLE * machines.memory


def kept_here(matrix: Matrix, machines: Machines) -> int:
    """Bytes of slabs that threads keep loaded between passes."""
    if not matrix.lazy:
        return 0
    nbytes = matrix.nbytes or 0
    return nbytes if machines.memory is None else min(nbytes, machines.memory // 2)


def worker_parts(matrix: Matrix, job: Job, machines: Machines, resident: bool) -> dict[str, int]:
    """Peak of one worker, by what it is for."""
    share = -(-len(matrix.heights) // machines.workers)  # slabs of one worker
    parts = {"process": PROCESS}
    parts |= visit_parts(matrix, job, machines, loads=not resident or matrix.lazy)
    if resident:
        parts["kept slabs"] = int(UNEVEN * share * matrix.slab)
        parts["slabs at work"] = 0  # they are the kept ones
    height = share * max(matrix.heights) * matrix.itemsize
    if job.carries_rows:
        parts["rows"] = 3 * height * job.width
    elif job.keep_rows or matrix.transposed:
        parts["rows"] = 2 * height * job.k
    waves = 1 if job.commits else min(2, job.waves)  # the first pass goes on to the next at once
    held = min(-(-share * waves // job.waves), 2 * planning.FAN_IN) + planning.FAN_IN + 1
    leaves = wave_sizes(len(matrix.heights), job.waves)[0]
    if planning.merged_at_once(leaves, sum_bytes(matrix, job)):
        held = max(held, leaves + 1)
    sums = held * sum_bytes(matrix, job) + 2 * factor_bytes(matrix, job)
    probed = (min(share, 2 * planning.FAN_IN) + planning.FAN_IN + 1) * probe_bytes(matrix, job)
    parts["sums"] = max(sums, probed, sample_bytes(matrix, job))  # copied once no slab is at work
    return parts


def sample_bytes(matrix: Matrix, job: Job) -> int:
    """Rows with which a start may begin; where rows are carried it needs none."""
    if job.carries_rows:
        return 0
    if matrix.nbytes is None:
        return SAMPLE
    row = -(-matrix.nbytes // max(matrix.rows, 1)) * (2 if matrix.sparse else 1)  # heavier ones
    return min(SAMPLE, matrix.nbytes // 2, SAMPLED[matrix.sparse] * row)


def race_bytes(matrix: Matrix, job: Job) -> int:
    """Rows, products and what the solver copies of two starts that race on the sample.

    The winner has a fifth more components for a while.
    """
    if job.carries_rows:
        return 0
    most = min(SAMPLED[matrix.sparse], matrix.rows // 2)
    wanted = max(100 * job.k, 1000, matrix.columns if matrix.sparse else 0)
    rows = most if matrix.sparse and job.split else min(wanted, most)
    return 2 * rows * (job.k + job.k // 5 + 1) * (2 * matrix.itemsize + 4 * DOUBLE)


def visit_parts(matrix: Matrix, job: Job, machines: Machines, *, loads: bool) -> dict[str, int]:
    """Slabs being visited, and what loading or the arithmetic on them needs, whichever is more."""
    work = work_bytes(matrix, job)
    loading = loading_bytes(matrix) if loads else 0
    threads = min(machines.threads, len(matrix.heights))
    return {
        "slabs at work": threads * matrix.slab,
        "loading or arithmetic": threads * max(work, loading),
    }


def loading_bytes(matrix: Matrix) -> int:
    """Beside the slab itself: the chunk that is on its way into it, and its copies."""
    if matrix.sparse:
        return 2 * matrix.slab
    return COPIES * max(min(matrix.chunk, matrix.slab), min(planning.BATCH, matrix.slab))


def work_bytes(matrix: Matrix, job: Job) -> int:
    """Beside the slab: products, rows old and new, what the solver copies, the sums of a slab."""
    m, n, f, k = max(matrix.heights), matrix.columns, matrix.itemsize, job.k
    width = max(job.width, job.widest)
    if job.split:
        tiles = 4 << 20
        if job.curvature:  # and what is listed for it (kernels/kl_share.py)
            tiles += (4 << 20) + 40 * n + min(8 * 40 * n, 5 * job.curvature // 4)
        return m * (2 * width * f + 6 * k * DOUBLE) + 2 * sum_bytes(matrix, job) + tiles
    solve = (2 if job.models == 1 else 3) * k * DOUBLE
    rows = m * (width * (DOUBLE + 2 * f) + max(width * f, solve))
    short = m * (4 * width * f + k * DOUBLE) + n * width * (f + DOUBLE)
    probed = m * job.probes * DOUBLE + 2 * probe_bytes(matrix, job)
    return 2 * n * width * f + max(rows, short, probed)


def factor_bytes(matrix: Matrix, job: Job) -> int:
    """The short factors of all models."""
    return matrix.columns * job.width * matrix.itemsize


def sum_bytes(matrix: Matrix, job: Job) -> int:
    """What one visit to a slab brings, and so what every node of the merge tree holds."""
    arrays = 2 * matrix.columns if job.split else matrix.columns + job.k
    return arrays * job.width * DOUBLE + job.models * job.curvature


def probe_bytes(matrix: Matrix, job: Job) -> int:
    """What a visit to a slab brings in search of singular vectors."""
    return matrix.columns * job.probes * DOUBLE


def client_parts(matrix: Matrix, job: Job, workers: int) -> dict[str, int]:
    """Peak of the process of the fit, by what it is for."""
    factor = matrix.columns * job.k * DOUBLE
    here = matrix.transposed or (job.keep_rows and not (matrix.lazy and workers))
    rows = matrix.rows * job.k * matrix.itemsize if here else 0
    return {
        "process": PROCESS,
        "matrix": 0 if matrix.lazy else matrix.nbytes or 0,
        "sums of the waves": max(
            (job.waves + 3) * sum_bytes(matrix, job),
            (planning.FAN_IN + 3) * probe_bytes(matrix, job),  # the sample's take as many
        ),
        "commits": (2 * job.waves + 4) * sum_bytes(matrix, job) if job.commits else 0,
        "factors": 4 * factor_bytes(matrix, job) + 4 * factor,
        "sample": 3 * sample_bytes(matrix, job),
        "starts on it": race_bytes(matrix, job),
        "rows of the result": 2 * rows,
    }


def wave_sizes(slabs: int, waves: int) -> list[int]:
    """Slabs of each wave."""
    return [len(range(j, slabs, waves)) for j in range(waves)]


def _most_in_bundle(matrix: Matrix, job: Job, machines: Machines, size: int) -> int:
    """How many slabs of a wave of so many may share a task; none where rows are carried."""
    most = planning.most_in_bundle(size, machines.slots, matrix.slab or None)
    return 1 if job.carries_rows else most


def tasks_per_pass(matrix: Matrix, job: Job, machines: Machines, resident: bool) -> int:
    """Visits to slabs, and the tasks that merge their sums."""
    return sum(
        planning.tasks_of_wave(
            size,
            machines.workers,
            _most_in_bundle(matrix, job, machines, size),
            resident=resident,
            at_once=planning.merged_at_once(size, sum_bytes(matrix, job)),
        )
        for size in wave_sizes(len(matrix.heights), job.waves)
    )


def moved_per_pass(matrix: Matrix, job: Job, machines: Machines, resident: bool) -> int:
    """Factors to every worker that takes part in a wave, sums up the tree and to the client.

    Both pass through the scheduler on their way from and to the client.
    """
    if not machines.workers:
        return 0
    moved = 0.0
    for size in wave_sizes(len(matrix.heights), job.waves):
        most = _most_in_bundle(matrix, job, machines, size)
        at_once = planning.merged_at_once(size, sum_bytes(matrix, job))
        sums = planning.sums_moved(size, machines.workers, most, resident=resident, at_once=at_once)
        moved += (min(machines.workers, size) + 1) * factor_bytes(matrix, job)
        moved += (sums + 2) * sum_bytes(matrix, job)
    return round(moved)


def megabytes(size: int) -> str:
    """Such as ``512 MB`` or ``8.1 GB``."""
    return f"{size / 1e9:.1f} GB" if size >= 10**9 else f"{size / 1e6:.0f} MB"


def listed(parts: dict[str, int]) -> str:
    """The parts of a peak that are worth a word, largest first."""
    large = sorted(((size, what) for what, size in parts.items()), reverse=True)
    return ", ".join(f"{what} {megabytes(size)}" for size, what in large if size >= 500_000)
