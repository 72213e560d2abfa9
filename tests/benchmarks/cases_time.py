"""Time to the loss of a peer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from . import data, peers
from .report import Row, Spread
from .timing import Context, Run, case, race

KL = "kullback-leibler"


def against_cd(name: str, what: str, k: int, target: float | None, big: bool, load: Callable):
    """Register a race to the loss of scikit-learn's CD after 200 iterations, in float32."""
    least = "" if target is None else f" (>= {target:g} x)"

    @case(f"cd-{name}", f"time to scikit-learn CD's loss, {what}{least}")
    def rows(context: Context) -> Iterator[Row]:
        V = load(context)
        iterations = context.pick(200, 10)
        peer = peers.sklearn_nmf(V, k, iterations)
        size = f"{V.shape[0]} × {V.shape[1]}"
        title = f"CD {iterations} it. / time to its loss, {what}, {size}, k={k}"
        yield race(title, V, k, peer, context.seeds(big=big), target)


def quick_pines(context: Context) -> np.ndarray:
    """Indian Pines, every tenth pixel where it has to be quick."""
    return data.indian_pines(np.float32)[:: context.pick(1, 10)]


def dense(context: Context, k: int) -> np.ndarray:
    """Gamma factors and noise, or noise alone for k = 0."""
    return data.planted(context.pick((50000, 1000), (1000, 100)), k)


against_cd("indian-pines", "Indian Pines", 16, 10, False, quick_pines)
against_cd(
    "tiled", "Indian Pines 16 times", 16, 15, True,
    lambda context: data.tiled_pines(16) if not context.quick else quick_pines(context),
)  # fmt: skip
against_cd("dense", "planted gamma", 32, 8, True, lambda context: dense(context, 32))
against_cd("noise", "gamma noise", 32, 8, True, lambda context: dense(context, 0))


@case("planc", "time to pyplanc's loss, Indian Pines, k=16 (ANLS-BPP 10 it. >= 4 x)")
def planc(context: Context) -> Iterator[Row]:
    V = quick_pines(context).astype(np.float64)
    for method, iterations, target in (("anlsbpp", 10, 4.0), ("hals", 100, None)):
        iterations = context.pick(iterations, 3)
        peer = peers.planc(context, V, 16, iterations, method)
        what = f"PLANC {method} {iterations} it. / time to its loss, Indian Pines, k=16"
        yield race(what, V, 16, peer, context.seeds(), target)


@case("others", "time to the loss of scikit-learn's MU, MiniBatchNMF, dask.array MU, Indian Pines")
def others(context: Context) -> Iterator[Row]:
    V = quick_pines(context)
    mu = context.pick(200, 5)
    sides = {
        f"scikit-learn MU {mu} it.": peers.sklearn_nmf(V, 16, mu, solver="mu"),
        "MiniBatchNMF": peers.sklearn_minibatch(V, 16),
        f"dask.array MU {mu} it.": peers.dask_mu(V, 16, mu),
    }
    for name, peer in sides.items():
        yield race(f"{name} / time to its loss, Indian Pines, k=16", V, 16, peer, context.seeds())


@case("short-texts", "time to scikit-learn CD's loss, tf-idf of 118000 short documents (>= 5 x)")
def short_texts(context: Context) -> Iterator[Row]:
    texts = data.short_texts(data.newsgroups(context), context.pick(118_000, 2000))
    V = data.tf_idf(texts, np.float32)
    iterations = context.pick(50, 5)
    for k in (20, 50):
        peer = peers.sklearn_nmf(V, k, iterations)
        what = f"CD {iterations} it. / time to its loss, {V.shape[0]} short documents, k={k}"
        row = race(what, V, k, peer, context.seeds(big=True), 5)
        row.details["nnz"] = int(V.nnz)
        yield row


def against_mu(name: str, what: str, big: bool, load: Callable) -> None:
    """Register a race to the Kullback-Leibler loss of scikit-learn's MU after 200 iterations."""

    @case(f"kl-{name}", f"time to scikit-learn MU's Kullback-Leibler loss, {what} (>= 30 x)")
    def rows(context: Context) -> Iterator[Row]:
        V = load(context)
        iterations = context.pick(200, 5)
        peer = peers.sklearn_nmf(V, 20, iterations, solver="mu", beta_loss=KL)
        title = f"MU {iterations} it. / time to its KL loss, {what}, k=20"
        row = race(title, V, 20, peer, context.seeds(big=big), 30, beta_loss=KL)
        yield row
        yield Row(f"reads until that loss, {what}", row.details["reads"], ("<=", 15))


against_mu("reuters", "Reuters counts", False, lambda context: data.reuters())
against_mu(
    "newsgroups", "20 Newsgroups counts", True,
    lambda context: data.word_counts(data.newsgroups(context)),
)  # fmt: skip


against_mu(
    "reuters-52", "Reuters-52 counts", True,
    lambda context: data.word_counts(data.corpus(context, "reuters-r52-train", 1)),
)  # fmt: skip
against_mu(
    "tweets", "election tweets' counts", True,
    lambda context: data.word_counts(data.corpus(context, "election-tweets-2016", 9)),
)  # fmt: skip


@case("cd-texts", "time to scikit-learn CD's loss, tf-idf of smaller corpora")
def texts(context: Context) -> Iterator[Row]:
    for what, name, column in (
        ("Reuters-52", "reuters-r52-train", 1),
        ("election tweets", "election-tweets-2016", 9),
    ):
        V = data.tf_idf(data.corpus(context, name, column), np.float32)
        for k in (20, 50):
            iterations = context.pick(50, 5)
            peer = peers.sklearn_nmf(V, k, iterations)
            title = f"CD {iterations} it. / time to its loss, {what}, {V.shape[0]} texts, k={k}"
            yield race(title, V, k, peer, context.seeds())


@case("n-init", "n_init=10 over n_init=1, Indian Pines, k=16 (<= 4 x)")
def n_init(context: Context) -> Iterator[Row]:
    from .cases_hard import default_fit, needs_parameter

    needs_parameter("n_init")
    V = quick_pines(context).astype(np.float64)
    pairs: list[tuple[Run, Run]] = [
        (default_fit(V, 16, seed, n_init=1), default_fit(V, 16, seed, n_init=10))
        for seed in context.seeds()
    ]
    yield Row(
        "time of n_init=10 / time of n_init=1, Indian Pines, k=16",
        Spread.of(ten.seconds / one.seconds for one, ten in pairs),
        ("<=", 4),
        ours=Spread.of(ten.seconds for _, ten in pairs),
        peer=Spread.of(one.seconds for one, _ in pairs),
    )
    for what, of in (("reads", lambda run: run.reads), ("loss", lambda run: run.loss)):
        yield Row(
            f"{what} of n_init=10 / {what} of n_init=1",
            Spread.of(of(ten) / of(one) for one, ten in pairs),
            ("<=", 1),
            ours=Spread.of(of(ten) for _, ten in pairs),
            peer=Spread.of(of(one) for one, _ in pairs),
            unit="",
        )
