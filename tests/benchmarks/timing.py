"""Cases, repetitions and the race to a loss."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .report import Row, Spread

CASES: dict[str, Case] = {}
MOST_PASSES = 400


class SkippedError(Exception):
    """What a case needs is not here; the message says what."""


@dataclass(frozen=True)
class Context:
    """What was asked for on the command line."""

    quick: bool
    repeat: int | None
    scratch: Path
    newsgroups: str | None = None
    pyplanc: str | None = None

    def seeds(self, *, big: bool = False) -> range:
        """One for each repetition."""
        if self.quick:
            return range(self.repeat or 1)
        return range(self.repeat or (2 if big else 5))

    def pick(self, full: Any, quick: Any) -> Any:
        """A size."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Case:
    """Something to measure: ``run(context)`` gives rows."""

    name: str
    title: str
    run: Callable[[Context], Iterator[Row]]


def case(name: str, title: str) -> Callable[[Any], Any]:
    """Register a function that gives rows."""

    def register(run: Callable[[Context], Iterator[Row]]) -> Any:
        CASES[name] = Case(name, title, run)
        return run

    return register


@dataclass(frozen=True)
class Run:
    """One factorisation. ``reads``: of V until the loss asked for, inf where it was not reached."""

    seconds: float
    loss: float
    reads: float = math.nan
    history: dict[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> bool:
        """Whether the loss asked for was reached."""
        return not math.isinf(self.reads)


def clock(work: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of a call, and what it gave; warnings, as of no convergence, are not wanted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        began = time.perf_counter()
        result = work()
        return time.perf_counter() - began, result


def fit_until(
    V: Any,
    k: int,
    seed: int,
    *,
    loss: float = 0.0,
    relative_error: float = 0.0,
    limit: float = math.inf,
    passes: int = MOST_PASSES,
    **parameters: Any,
) -> Run:
    """Fit dasknmf's NMF with its defaults until a loss is reached, or ``limit`` seconds passed."""
    from dasknmf import NMF

    def low_enough(losses: Any, errors: Any) -> Any:
        return (losses <= loss) | (errors <= relative_error)

    def enough(info: Any) -> bool:
        return bool(low_enough(info.loss, info.relative_error) or info.seconds > limit)

    given = {"tol": 0, "max_iter": passes, "callbacks": [enough], **parameters}
    model = NMF(k, random_state=seed, **given)
    seconds, _ = clock(lambda: model.fit_transform(V))
    history = model.history_
    there = np.flatnonzero(low_enough(history["loss"], history["relative_error"]))
    reads = float(history["reads"][there[0]]) if there.size else math.inf
    return Run(seconds, float(history["loss"][-1]), reads, history)


def fewest_passes(V: Any, k: int, seed: int, *, loss: float, **parameters: Any) -> Run:
    """Fit with the fewest passes that give a loss, as the number of a peer's iterations is fixed.

    A pass tells the loss of the pair that it ends with; the read after the last solves its rows
    anew, so that a pass less than :func:`fit_until` takes may be enough.
    """
    best = fit_until(V, k, seed, loss=loss, **parameters)
    while best.reached and len(best.history["loss"]) > 2:
        passes = len(best.history["loss"]) - 2
        run = fit_until(V, k, seed, loss=loss, **{**parameters, "passes": passes})
        if not run.reached:
            break
        best = run
    return best


Peer = Callable[[int], Run]


def race(
    what: str,
    V: Any,
    k: int,
    peer: Peer,
    seeds: range,
    target: float | None = None,
    **parameters: Any,
) -> Row:
    """Time of a peer over our time to its loss, repetition by repetition."""
    theirs, ours = [], []
    for seed in seeds:
        theirs.append(peer(seed))
        limit = 3 * theirs[-1].seconds + 10
        ours.append(fewest_passes(V, k, seed, loss=theirs[-1].loss, limit=limit, **parameters))
    missed = sum(not run.reached for run in ours)
    reads = Spread.of(run.reads for run in ours)
    note = f"reads {reads}"
    if missed:
        note += f"; loss not reached in {missed} of {len(ours)}"
    pairs = list(zip(theirs, ours, strict=True))
    return Row(
        what,
        Spread.of(them.seconds / us.seconds if us.reached else 0.0 for them, us in pairs),
        None if target is None else (">=", target),
        ours=Spread.of(run.seconds for run in ours),
        peer=Spread.of(run.seconds for run in theirs),
        note=note,
        details={
            "shape": list(V.shape),
            "dtype": str(V.dtype),
            "losses": [run.loss for run in ours],
            "peer_losses": [run.loss for run in theirs],
            "reads": reads,
        },
    )


def seconds_per_read(history: dict[str, Any]) -> list[float]:
    """Time of each pass, the first (which loads, inspects and compiles) left out."""
    reads, seconds = history["reads"].astype(float), history["seconds"]
    later = (np.diff(reads) > 0) & (reads[:-1] >= 1)
    return (np.diff(seconds)[later] / np.diff(reads)[later]).tolist()


def warm_up() -> None:
    """Imports and compilation, so that neither side is charged for them."""
    import scipy.sparse as sp
    from sklearn import decomposition

    rng = np.random.default_rng(0)
    dense = rng.random((200, 20)) + 0.1
    sparse = sp.random_array((200, 50), density=0.2, format="csr", rng=rng)
    for beta_loss in ("frobenius", "kullback-leibler"):
        for V in (dense, sparse):
            for dtype in (np.float32, np.float64):
                data = V.astype(dtype)
                fit_until(data, 3, 0, passes=4, beta_loss=beta_loss)
                fit_until(data, 3, 0, passes=4, beta_loss=beta_loss, solver="mu")
    for solver in ("cd", "mu"):
        model = decomposition.NMF(3, solver=solver, max_iter=3)
        clock(lambda model=model: model.fit_transform(dense))
