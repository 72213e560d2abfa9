"""Everything that a fit has to know to go on: between two waves, or between two passes."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from dasknmf.compression import Progress
from dasknmf.ensemble import Model, best_of
from dasknmf.history import History
from dasknmf.numerics.inspection import Inspection
from dasknmf.numerics.stopping import Outcome
from dasknmf.numerics.work import RandomRows
from dasknmf.packing import packable
from dasknmf.parallel.executors import Carried


@packable
@dataclass
class State:
    """Where a fit is: a value, but for ``rows``, which lie where the slabs are.

    number, wave
        The pass under way, from 1, and the waves of it that are done. 0 waves: it has not begun.
    pending
        Whether the short factors still have to move by what that pass brought, as they do unless
        it was the last one.
    seen
        What the waves so far saw of V, until all of it was seen.
    rows
        Rows that the solver carries.
    smallest
        Of the entries of the start, rows and short factor (see ``Start``).
    reads, seconds
        Of V, and of time, up to here.
    outcome
        Why the fit ended, if it did.
    """

    models: list[Model]
    number: int = 1
    wave: int = 0
    pending: bool = False
    history: History = field(default_factory=History)
    inspection: Inspection | None = None
    seen: list[Inspection] = field(default_factory=list)
    rows: Carried | None = None
    random_rows: RandomRows | None = None
    smallest: tuple[float, float] = (0.0, 0.0)
    compression: Progress | None = None
    reads: Fraction = Fraction(0)
    seconds: float = 0.0
    outcome: Outcome | None = None

    @property
    def best(self) -> Model:
        """The model with the lowest objective; before the first pass ended, the first one."""
        return best_of(self.models) if self.models[0].objectives else self.models[0]

    @property
    def checksums(self) -> dict[int, int]:
        """What is known of the slabs' values, by slab."""
        known = [self.inspection] if self.inspection is not None else self.seen
        return dict(check for found in known for check in found.checksums)
