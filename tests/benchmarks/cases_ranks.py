"""Does a rank study find the rank that was planted?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from .report import Row, Spread
from .timing import Context, case, clock

RANKS = (5, 10, 20)
NOISES = (0.05, 0.2, 0.5)
KINDS = ("dense", "counts")
CASES = 60
BESIDE = 3  # ranks on either side of the planted one are studied


@dataclass(frozen=True)
class Planted:
    """One matrix of known rank. ``noise``: ||V - WH|| / ||WH||, in expectation."""

    kind: str
    k: int
    noise: float
    seed: int

    def draw(self) -> Any:
        """Dense with normal noise, cut off at zero; or Poisson counts as CSR, mostly zeros.

        Sizes differ from seed to seed. The rarer the counts, the more noise: their depth is set.
        Dense factors are uneven (gamma of shape 1/2): of even ones, most of ||WH|| is their mean,
        and noise of 50 % of it hides single components of twenty from any method.
        """
        number = int(1000 * self.noise)
        rng = np.random.default_rng((self.seed, self.k, number, KINDS.index(self.kind)))
        rows, columns = 200 + 10 * self.k, 70 + 2 * self.k
        rows, columns = (int(n * rng.uniform(0.9, 1.2)) for n in (rows, columns))
        if self.kind == "dense":
            model = rng.gamma(0.5, 1.0, (rows, self.k)) @ rng.gamma(0.5, 1.0, (self.k, columns))
            scale = self.noise * np.sqrt(np.mean(model**2))
            return np.maximum(model + scale * rng.standard_normal(model.shape), 0.0)
        W = rng.gamma(1.0, 1.0, (rows, self.k)) * (rng.random((rows, self.k)) < 1.5 / self.k)
        H = rng.gamma(1.0, 1.0, (self.k, columns)) * (rng.random((self.k, columns)) < 0.2)
        model = W @ H
        depth = model.sum() / (self.noise**2 * np.sum(model**2))
        return sp.csr_array(rng.poisson(depth * model).astype(np.float64))

    @property
    def studied(self) -> range:
        """Ranks among which to choose."""
        return range(max(2, self.k - BESIDE), self.k + BESIDE + 1)


def planted(first: int, count: int = CASES) -> list[Planted]:
    """So many cases, every kind, rank and noise in turn, seeds from ``first`` on."""
    every = [(kind, noise, k) for noise in NOISES for kind in KINDS for k in RANKS]
    return [
        Planted(kind, k, noise, first + number // len(every))
        for number in range(count)
        for kind, noise, k in [every[number % len(every)]]
    ]


def studied(problem: Planted, n_init: int = 10) -> dict[str, Any]:
    """The study of one case: what it chose, and its table."""
    from dasknmf import RankStudy

    V = problem.draw()
    study = RankStudy(problem.studied, n_init=n_init, random_state=problem.seed)
    seconds, _ = clock(lambda: study.fit(V))
    table = study.table()
    return {
        **asdict(problem),
        "shape": list(V.shape),
        "chosen": int(study.best_rank_),
        "runner_up": study.runner_up_,
        "seconds": seconds,
        "table": {name: table[name].tolist() for name in table.dtype.names},
    }


def share(found: list[dict[str, Any]], away: int) -> float:
    """Of the studies whose choice is at most so far from the planted rank, in per cent."""
    return 100.0 * float(np.mean([abs(one["chosen"] - one["k"]) <= away for one in found]))


def confusion(found: list[dict[str, Any]]) -> str:
    """Chosen minus planted rank, with how often, by kind and noise."""
    parts = []
    for kind in KINDS:
        for noise in NOISES:
            some = [x for x in found if (x["kind"], x["noise"]) == (kind, noise)]
            counts = Counter(one["chosen"] - one["k"] for one in some)
            shown = (f"{away:+d} ({many})" for away, many in sorted(counts.items()))
            parts.append(f"{kind} {noise:.0%}: {', '.join(shown)}")
    return "; ".join(parts)


@case("planted-ranks", "best_rank_ of studies of planted ranks 5, 10 and 20")
def planted_ranks(context: Context) -> Iterator[Row]:
    count = context.pick(CASES, 2)
    for what, first in (("", 0), (", other seeds", 1000)):
        found = [studied(one, context.pick(10, 3)) for one in planted(first, count)]
        seconds = Spread.of(one["seconds"] for one in found)
        details = {"studies": found}
        yield Row(
            f"% of {count} planted ranks found exactly{what}", Spread.of([share(found, 0)]),
            (">=", 80), ours=seconds, note=confusion(found), details=details,
        )  # fmt: skip
        yield Row(
            f"% of {count} planted ranks found within one{what}", Spread.of([share(found, 1)]),
            (">=", 95), ours=seconds,
        )  # fmt: skip
