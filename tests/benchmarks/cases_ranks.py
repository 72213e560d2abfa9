"""Does a rank study find the rank that was planted?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from . import data, peers
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
    for what, first in (("", 0), (", other seeds", 1000), (", seeds that set no rule", 5000)):
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


@case("rank-study", "reads and time of a study of Indian Pines, ranks 2 to 12 (<= 2; >= 8 x)")
def rank_study(context: Context) -> Iterator[Row]:
    """Against scikit-learn: one fit a rank and restart, to the median loss of ours of that rank.

    scikit-learn can't stop at a loss: of runs with 25, 50, ... iterations the first that gets there
    counts, alone. One restart in five is run, and counts for five.
    """
    from dasknmf import NMF, RankStudy

    V = data.indian_pines(np.float32)[:: context.pick(1, 20)]
    ranks, n_init = range(2, context.pick(13, 4)), context.pick(10, 2)
    ours = {}
    for holdout in (0.0, 0.05):
        study = RankStudy(ranks, n_init=n_init, random_state=0, holdout=holdout)
        seconds, _ = clock(lambda study=study: study.fit(V))
        ours[holdout] = seconds, study
    single = NMF(ranks[-1], random_state=0, holdout=0.05).fit(V)
    study = ours[0.05][1]
    reads = study.reads_ / single.history_["reads"][-1]
    yield Row("reads of the study / of a fit of its largest rank", Spread.of([reads]), ("<=", 2))
    theirs, run, missed = 0.0, 0, 0
    for k, restarts in ours[0.0][1]._restarts.items():
        enough = float(np.median([restart.loss for restart in restarts])) * (1 + 1e-4)
        for seed in range(0, n_init, 5):
            for iterations in (25, 50, 100, 200, 400):
                found = peers.sklearn_nmf(V, k, iterations)(seed)
                if found.loss <= enough:
                    break
            theirs, run = theirs + found.seconds * min(5, n_init), run + 1
            missed += found.loss > enough
    for holdout, (seconds, _) in ours.items():
        yield Row(
            f"{len(ranks) * n_init} fits of CD / the study of them, hold-out {holdout:.0%}",
            Spread.of([theirs / seconds]), (">=", 8), ours=Spread.of([seconds]),
            peer=Spread.of([theirs]),
            note=f"{missed} of {run} runs of CD did not reach the loss in 400 iterations",
        )  # fmt: skip
