"""Hard kinds of data: defaults against scikit-learn's CD, and whether the objective falls."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import data
from .peers import frobenius_loss, sklearn_nmf
from .report import Row, Spread
from .timing import Context, Run, SkippedError, case, clock

ZERO = 1e-7  # relative errors below are alike: rounding
MUCH_WORSE = 1.01  # local minima of other starts differ by less
MOST_ITERATIONS = 3000


def needs_parameter(name: str) -> None:
    """Skip where dasknmf.NMF does not have a parameter."""
    from dasknmf import NMF

    if name not in inspect.signature(NMF).parameters:
        raise SkippedError(f"NMF has no parameter {name}")


def default_fit(V: Any, k: int, seed: int, **parameters: Any) -> Run:
    """``NMF(k, random_state=seed).fit_transform(V)``, with its loss formed anew from W and H."""
    from dasknmf import NMF

    model = NMF(k, random_state=seed, **parameters)
    seconds, W = clock(lambda: model.fit_transform(V))
    loss = frobenius_loss(V, W, model.components_)
    return Run(seconds, loss, float(model.history_["reads"][-1]), model.history_)


def squares(V: Any) -> float:
    """||V||²."""
    return float(np.sum(np.square(V.data if hasattr(V, "indptr") else V, dtype=np.float64)))


def rise(history: dict[str, Any], norm: float) -> float:
    """Largest relative rise of the objective from a pass to the next; rounding of V² is none."""
    objective = history["objective"]
    before, after = objective[:-1], objective[1:]
    rises = np.where(after - before > 1e-15 * norm, after / np.maximum(before, 1e-300) - 1, 0.0)
    return float(np.max(rises, initial=0.0))


def in_the_same_time(V: Any, k: int, seed: int, seconds: float) -> tuple[Run, int]:
    """Coordinate descent for about so many seconds: more iterations until they take as long."""
    iterations = 5
    while True:
        run = sklearn_nmf(V, k, iterations)(seed)
        share = seconds / run.seconds
        if share <= 1.2 or iterations >= MOST_ITERATIONS:
            return run, iterations
        iterations = min(int(iterations * min(share, 4.0)) + 1, MOST_ITERATIONS)


def compare(context: Context, what: str, V: Any, k: int) -> Iterator[Row]:
    """Errors of our defaults over those of CD: at 20 iterations, and in the same time."""
    norm = squares(V)

    def error(run: Run) -> float:
        return max(math.sqrt(2 * max(run.loss, 0.0) / norm), ZERO)

    ours, twenty, timed, iterations = [], [], [], []
    for seed in context.seeds():
        ours.append(default_fit(V, k, seed))
        twenty.append(sklearn_nmf(V, k, 20)(seed))
        run, count = in_the_same_time(V, k, seed, ours[-1].seconds)
        timed.append(run)
        iterations.append(count)
    for side, runs in (("20 it.", twenty), ("same time", timed)):
        yield Row(
            f"error / error of CD ({side}), {what}, k={k}",
            Spread.of(error(us) / error(them) for us, them in zip(ours, runs, strict=True)),
            ("<=", MUCH_WORSE),
            ours=Spread.of(run.seconds for run in ours),
            peer=Spread.of(run.seconds for run in runs),
            note=f"error {Spread.of(map(error, ours))} against {Spread.of(map(error, runs))}"
            + (f"; {Spread.of(iterations)} iterations" if runs is timed else ""),
            details={"shape": list(V.shape)},
        )
    rises = Spread.of(rise(run.history, norm) for run in ours)
    yield Row(
        f"largest rise of the objective in a pass, {what}, k={k}",
        Spread.of([max(rises.values)]),
        ("<=", 1e-9),
        note=f"{Spread.of(len(run.history['loss']) for run in ours)} entries in history_",
    )


def hard(name: str, what: str, k: int, load: Callable[[Context], Any]) -> None:
    """Register a kind of data."""

    @case(f"hard-{name}", f"our defaults against scikit-learn's CD, {what}")
    def rows(context: Context) -> Iterator[Row]:
        yield from compare(context, what, load(context), k)


def wide(context: Context) -> np.ndarray:
    """Few rows and many columns."""
    return np.ascontiguousarray(data.planted(context.pick((50000, 80), (1000, 30)), 10, float).T)


def pines_by_class(context: Context) -> np.ndarray:
    """All pixels of one land use, then those of the next."""
    order = np.argsort(data.indian_pines_labels(), kind="stable")
    return data.indian_pines()[order][:: context.pick(1, 20)]


hard(
    "tall", "planted, tall", 10,
    lambda context: data.planted(context.pick((100_000, 40), (2000, 20)), 10, float),
)  # fmt: skip
hard("wide", "planted, wide", 10, wide)
hard("sorted-pines", "Indian Pines by class", 16, pines_by_class)
hard("sorted-digits", "digits by class", 16, lambda context: data.digits(by_class=True))
hard("columns", "digits, columns badly scaled", 16, lambda _: data.stretched(data.digits(), 1))
hard("rows", "digits, rows badly scaled", 16, lambda _: data.stretched(data.digits(), 0))
hard(
    "exact", "exactly of rank 8", 8,
    lambda context: data.exact(*context.pick((5000, 300), (500, 60)), 8),
)  # fmt: skip
hard(
    "sparse", "sparse Poisson counts", 12,
    lambda context: data.sparse_blocks(*context.pick((20_000, 1000), (500, 100)), 12),
)  # fmt: skip
hard("reuters", "Reuters counts", 20, lambda _: data.reuters())
