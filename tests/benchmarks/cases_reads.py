"""How many reads of V an error takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from . import data
from .report import Row, Spread
from .timing import Context, case, fit_until

PASSES = 200
NEAR = 1.005  # times the best error known


def reads_until(
    context: Context, what: str, V: Any, k: int, error: float, most: float | None = None
) -> Row:
    """Reads until a relative error, one fit a seed."""
    passes = context.pick(PASSES, 10)
    runs = [fit_until(V, k, seed, relative_error=error, passes=passes) for seed in context.seeds()]
    missed = sum(not run.reached for run in runs)
    return Row(
        f"reads of {what} until {error:.4f}",
        Spread.of(run.reads for run in runs),
        None if most is None else ("<=", most),
        ours=Spread.of(run.seconds for run in runs),
        note=f"not reached within {passes} passes in {missed} of {len(runs)}" if missed else "",
        details={
            "shape": list(V.shape),
            "k": k,
            "error": error,
            "last_errors": [float(run.history["relative_error"][-1]) for run in runs],
        },
    )


def best_error(context: Context, V: Any, k: int) -> float:
    """Smallest relative error of three long fits of ours, seeds that the rows do not use."""
    passes = context.pick(300, 5)
    seeds = range(100, context.pick(103, 101))
    runs = [fit_until(V, k, seed, passes=passes, tol=1e-6) for seed in seeds]
    return min(float(run.history["relative_error"].min()) for run in runs)


def reads_until_near(context: Context, what: str, V: Any, k: int) -> Row:
    """Reads until 0.5 % above the best error known."""
    best = best_error(context, V, k)
    row = reads_until(context, f"{what}, k={k},", V, k, NEAR * best)
    row.note = "; ".join(filter(None, [f"{NEAR:g} × the best of long fits, {best:.5f}", row.note]))
    return row


@case("reads-indian-pines", "reads until an error, Indian Pines, k=16")
def reads_indian_pines(context: Context) -> Iterator[Row]:
    V = data.indian_pines()
    yield reads_until(context, "Indian Pines, k=16,", V, 16, 0.0197, most=3)


@case("reads-digits", "reads until an error, digits, k=16")
def reads_digits(context: Context) -> Iterator[Row]:
    yield reads_until(context, "digits, k=16,", data.digits(), 16, 0.26, most=4)


@case("reads-newsgroups", "reads until an error, 20 Newsgroups tf-idf, k=20")
def reads_newsgroups(context: Context) -> Iterator[Row]:
    V = data.tf_idf(data.newsgroups(context))
    yield reads_until(context, "20 Newsgroups tf-idf, k=20,", V, 20, 0.9727, most=5)


def near(name: str, what: str, ranks: tuple[int, ...], load: Callable[[Context], Any]) -> None:
    """Register a data set that nothing was tuned on."""

    @case(f"reads-near-{name}", f"reads until near the best error, {what}")
    def rows(context: Context) -> Iterator[Row]:
        V = load(context)
        for k in context.pick(ranks, ranks[:1]):
            yield reads_until_near(context, what, V, k)


near("indian-pines", "Indian Pines", (8, 32), lambda context: data.indian_pines())
near("digits", "digits by class", (10, 32), lambda context: data.digits(by_class=True))
near("photos", "photographs in 12 × 12 patches", (16,), lambda context: data.photo_patches())
near("golub", "Golub's leukaemia", (3, 8), lambda context: data.golub())
near("reuters", "Reuters counts", (20,), lambda context: data.reuters())
near(
    "newsgroups-test", "20 Newsgroups test tf-idf", (20,),
    lambda context: data.tf_idf(data.newsgroups(context, "test")),
)  # fmt: skip
near(
    "planted", "planted gamma", (16,),
    lambda context: data.planted(context.pick((20000, 200), (1000, 50)), 16),
)  # fmt: skip
