"""What a fit tells of its passes: to callbacks while it runs, and as a table afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from dasknmf.numerics.kernels import Array


@dataclass(frozen=True)
class PassInfo:
    """What a callback gets after each pass."""

    number: int
    max_iter: int
    reads: float
    loss: float
    objective: float
    relative_error: float
    seconds: float
    phase: str


Callback = Callable[[PassInfo], bool | None]


@dataclass
class History:
    """One entry a pass; ``loss`` and ``objective`` are those of the best model of that pass."""

    loss: list[float] = field(default_factory=list)
    objective: list[float] = field(default_factory=list)
    relative_error: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)
    models: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    holdout: list[float] = field(default_factory=list)

    def last(self, number: int, max_iter: int, phase: str) -> PassInfo:
        """What a callback gets of the newest entry."""
        return PassInfo(
            number=number,
            max_iter=max_iter,
            reads=self.reads[-1],
            loss=self.loss[-1],
            objective=self.objective[-1],
            relative_error=self.relative_error[-1],
            seconds=self.seconds[-1],
            phase=phase,
        )

    def as_arrays(self) -> dict[str, Array]:
        """Columns for a data frame or a plot."""
        columns: dict[str, Array] = {"pass": np.arange(1, len(self.loss) + 1)}
        columns["models"] = np.array(self.models, dtype=np.int64)
        for name in ("reads", "loss", "objective", "relative_error", "seconds"):
            columns[name] = np.array(getattr(self, name), dtype=np.float64)
        if not np.isnan(self.holdout).all():
            columns["holdout"] = np.array(self.holdout, dtype=np.float64)
        return columns
