"""What sets the models of one study apart beside their starts: rank, penalties, what they see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TypeVar

from dasknmf.numerics.blocks import Fold, FoldedStep
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.work import Step, Work

T = TypeVar("T")


@dataclass(frozen=True)
class Lot:
    """``many`` models that differ in their starts only.

    penalties
        Of the rows and of the short factor, in the streamed orientation.
    fold
        The block that they do not see; None: they see all.
    """

    k: int
    many: int
    penalties: tuple[Penalty, Penalty]
    fold: Fold | None = None


def by_lot(found: Sequence[T], lots: Sequence[Lot]) -> list[list[T]]:
    """Things of the models in their order, cut into those of each lot; of the first lots, too."""
    edges = accumulate((lot.many for lot in lots), initial=0)
    return [list(found[a:b]) for a, b in pairwise(edges) if a < len(found)]


def varied(step: Step, numbers: Sequence[int], lots: Sequence[Lot]) -> Work:
    """The step as each of the models called ``numbers`` needs it; ``lots``: of every model."""
    if not lots:
        return step
    own = [lots[number] for number in numbers]
    step = replace(step, penalties=tuple(lot.penalties[0] for lot in own))
    if all(lot.fold is None for lot in own):
        return step
    return FoldedStep(step, tuple(lot.fold for lot in own))
