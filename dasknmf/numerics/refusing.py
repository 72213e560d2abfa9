"""A fit that would run out of memory: refused before it reads, with what would fit."""

from __future__ import annotations

from dataclasses import replace

from dasknmf.numerics.errors import TooLargeError
from dasknmf.numerics.memory import (
    SPILLED,
    USABLE,
    Plan,
    client_parts,
    listed,
    megabytes,
    visit_parts,
    worker_parts,
)


def refuse(plan: Plan) -> None:
    """Raise :class:`TooLargeError` where a fit would run out of memory, before it reads anything.

    Slabs and rows that stay in memory are no reason: workers spill them to disk.
    """
    machines = plan.machines
    needed = plan.client_peak
    limit = machines.client_memory or (machines.memory if not machines.workers else None)
    if limit is not None and needed > limit:
        raise TooLargeError(
            f"the process of the fit would need {megabytes(needed)} ({listed(plan.client)}), and "
            f"has {megabytes(limit)}. {_advice(plan, limit)}"
        )
    if machines.workers and machines.memory is not None:
        parts = {what: size for what, size in plan.worker.items() if what not in SPILLED}
        parts["slabs at work"] = min(machines.threads, len(plan.matrix.heights)) * plan.matrix.slab
        needed, usable = sum(parts.values()), int(USABLE * machines.memory)
        if needed > usable:
            raise TooLargeError(
                f"a worker would need {megabytes(needed)} ({listed(parts)}) at its peak, tasks at "
                f"a time: {machines.threads}, and may use {megabytes(usable)} of its limit "
                f"of {megabytes(machines.memory)}. {_advice(plan, usable)}"
            )


def _advice(plan: Plan, limit: int) -> str:
    """What to do: the slab that would fit, or what else takes the memory."""
    height = fitting_height(plan, limit)
    row = plan.matrix.columns * plan.matrix.itemsize
    other = "give the workers more memory or fewer threads, or use fewer components or n_init"
    if height < 1 or height >= max(plan.matrix.heights):
        return f"No size of the slabs would fit: {other}, or waves=1."
    return (
        f"Slabs of {megabytes(plan.matrix.slab)} are too large, slabs of {height} rows of the long "
        f"side ({megabytes(height * row)}) would fit: store or rechunk X in chunks of that size; "
        f"or {other}."
    )


def fitting_height(plan: Plan, limit: int) -> int:
    """Rows of the tallest slab with which the plan stays within ``limit``; 0: none would."""
    low, high = 0, max(plan.matrix.heights)
    while low < high:
        middle = (low + high + 1) // 2
        parts = _with_height(plan, middle)
        low, high = (middle, high) if parts <= limit else (low, middle - 1)
    return low


def _with_height(plan: Plan, height: int) -> int:
    """The peak if all slabs had ``height`` rows, and chunks no more."""
    matrix, tallest = plan.matrix, max(plan.matrix.heights)
    count = -(-matrix.rows // height)
    heights = tuple([height] * (count - 1) + [matrix.rows - height * (count - 1)])
    chunk = min(matrix.chunk, matrix.chunk * height // tallest)
    smaller = replace(matrix, heights=heights, chunk=chunk)
    if plan.machines.workers:
        parts = worker_parts(smaller, plan.job, plan.machines, resident=False)
    else:
        parts = client_parts(smaller, plan.job, 0)
        parts |= visit_parts(smaller, plan.job, plan.machines, loads=matrix.lazy)
    return sum(size for what, size in parts.items() if what not in SPILLED)
