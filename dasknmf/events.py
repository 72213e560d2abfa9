"""What a fit on a cluster tells of each pass: an event that ``client.get_events`` gives back.

Each is a dict of plain values, the same as a callback's :class:`dasknmf.PassInfo` (number,
max_iter, reads, loss, objective, relative_error, seconds, phase), with

    fit             of the scheduler's fits this one, as in the keys of its tasks
    estimator       class name
    shape           samples, features
    n_components    k, or those of all ranks of a study
    solver
    checkpoint      path or URL of the run, or None
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from dasknmf.history import Callback, PassInfo
from dasknmf.parallel.executors import Executor


def teller(executor: Executor, about: Any, solver: str, n_components: int | Sequence[int]) -> Any:
    """A callback that tells the cluster; ``about``: the estimator."""
    slabs, checkpoint = executor.slabs, getattr(about, "checkpoint", None)
    constant = {
        "estimator": type(about).__name__,
        "shape": [int(n) for n in (slabs.shape[::-1] if slabs.transposed else slabs.shape)],
        "n_components": n_components if isinstance(n_components, int) else list(n_components),
        "solver": solver,
        "checkpoint": None if checkpoint is None else str(checkpoint),
    }
    tell: Callback = partial(_tell, executor, constant)
    return tell


def _tell(executor: Executor, constant: dict[str, Any], info: PassInfo) -> None:
    told = {name: float(v) if isinstance(v, float) else v for name, v in asdict(info).items()}
    executor.tell({**constant, **told})
