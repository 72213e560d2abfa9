"""What a pass costs beside its kernels and beside reading; memory; the scheduler's tasks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np

from . import data
from .bare import bare_pass, count_tasks, local_cluster, peak_memory, recorded_gains
from .report import Row, Spread
from .timing import Context, SkippedError, case, clock, fit_until, seconds_per_read

SLABS = 64
RANK = 32
PASSES = 6


def resident_size(context: Context) -> tuple[int, int]:
    """Of the matrix that stays in memory."""
    return context.pick((200_000, 1000), (64 * 640, 100))


def slabs_of(V: np.ndarray) -> list[np.ndarray]:
    """The same slabs that dasknmf cuts."""
    return np.split(V, SLABS)


def pass_rows(context: Context, what: str, V: np.ndarray, X: Any, most: float) -> Iterator[Row]:
    """A pass over X, in whatever executor is active, against the bare kernels on V's slabs."""
    ours, bare, exact = [], [], []
    slabs = slabs_of(V)
    size = f"{V.shape[0]} × {V.shape[1]}, k={RANK}"
    for seed in context.seeds():
        with recorded_gains() as gains:
            run, model = fit_passes(X, seed)
        ours.append(median(seconds_per_read(run)))
        Ht = np.ascontiguousarray(model.T, dtype=V.dtype)
        gain = median(gains)  # rows as accurate as those of the passes that were timed
        bare.append(sorted(bare_pass(slabs, Ht, gain) for _ in range(3))[1])  # by seconds
        exact.append(bare_pass(slabs, Ht, 0.0))
    yield Row(
        f"one pass, {what} / its kernels bare on two threads, {size}",
        Spread.of(us / them.seconds for us, them in zip(ours, bare, strict=True)),
        ("<=", most),
        ours=Spread.of(ours),
        peer=Spread.of(them.seconds for them in bare),
    )
    for which, passes, bound in (
        ("as accurate as in that pass", bare, ("<=", 0.5)),
        ("solved exactly", exact, None),
    ):
        yield Row(
            f"row solves, {which} / products within the bare kernels ({what})",
            Spread.of(them.solves / them.products for them in passes),
            bound,
            ours=Spread.of(them.solves for them in passes),
            peer=Spread.of(them.products for them in passes),
            note="seconds of both threads together",
        )


def fit_passes(X: Any, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """History and H of a few passes."""
    from dasknmf import NMF

    model = NMF(RANK, random_state=seed, tol=0, max_iter=PASSES, compress=False)
    clock(lambda: model.fit(X))
    return model.history_, model.components_


@case("pass-threads", "one resident pass on threads against its bare kernels (<= 1.15)")
def pass_threads(context: Context) -> Iterator[Row]:
    V = data.planted(resident_size(context), RANK, blocks=SLABS)
    yield from pass_rows(context, "threads", V, V, 1.15)


@case("pass-workers", "one resident pass on two workers against its bare kernels (<= 1.3)")
def pass_workers(context: Context) -> Iterator[Row]:
    from distributed import wait

    V = data.planted(resident_size(context), RANK, blocks=SLABS)
    with local_cluster():
        X = data.planted_dask(V.shape, RANK, SLABS).persist()
        wait(X)
        yield from pass_rows(context, "two workers", V, X, 1.3)


@case("streaming", "a pass over 8 GB in Zarr against summing it, workers of 1 GB in all (<= 1.5)")
def streaming(context: Context) -> Iterator[Row]:
    rows = context.pick(2_000_000, 152_000)  # the fewest that are streamed, and not kept
    shape, limit = (rows, 1000), 500_000_000
    needed = rows * 1000 * 4
    if shutil.disk_usage(context.scratch).free < 1.2 * needed:
        raise SkippedError(f"--scratch has no room for {needed / 1e9:.1f} GB")
    store = str(context.scratch / "V.zarr")
    with local_cluster() as client:  # writing is not what is limited
        save(shape, store)
        del client
    with local_cluster(limit) as client:
        yield from streamed_rows(context, client, store, shape, 2 * limit)
    shutil.rmtree(store)


def save(shape: tuple[int, int], store: str) -> None:
    """Draw the matrix on the workers and write it in chunks of 16 MB."""
    from dasknmf.storage.matrices import save_matrix

    save_matrix(data.planted_dask(shape, 16, shape[0] // 4000), store, overwrite=True)


def streamed_rows(
    context: Context, client: Any, store: str, shape: tuple[int, int], limit: int
) -> Iterator[Row]:
    """Passes and sums in turn; then the workers' peak memory."""
    from dasknmf import NMF, open_matrix

    passes, sums, peaks, peaks_of_sums = [], [], [], []
    client.run(peak_memory)
    open_matrix(store)[:8000].sum().compute()  # imports
    fit_until(open_matrix(store)[: shape[0] // 20], 16, 0, passes=2)  # compiled code is loaded
    for seed in context.seeds(big=True):
        client.run(peak_memory)
        sums.append(clock(open_matrix(store).sum().compute)[0])
        peaks_of_sums.append(sum(client.run(peak_memory).values()))
        model = NMF(16, random_state=seed, tol=0, max_iter=3)
        clock(lambda model=model: model.fit(open_matrix(store)))
        peaks.append(sum(client.run(peak_memory).values()))
        passes.append(median(seconds_per_read(model.history_)))
    size = f"{shape[0] * shape[1] * 4 / 1e9:.1f} GB in Zarr"
    yield Row(
        f"one pass / reading and summing, {size}, k=16, two workers",
        Spread.of(us / them for us, them in zip(passes, sums, strict=True)),
        ("<=", 1.5),
        ours=Spread.of(passes),
        peer=Spread.of(sums),
        note="both from the page cache, as far as it holds the file",
    )
    yield Row(
        f"workers' peak memory / their limit, {size}",
        Spread.of(peak / limit for peak in peaks),
        ("<=", 1),
        ours=Spread.of(peak / 1e6 for peak in peaks),
        peer=Spread.of(peak / 1e6 for peak in peaks_of_sums),
        unit="MB",
        note=f"sampled resident sizes, added up; limit {limit / 1e6:.0f} MB; peer: summing",
    )


@case("tasks", "the scheduler's tasks over 100 passes: flat")
def tasks(context: Context) -> Iterator[Row]:
    passes = context.pick(100, 20)
    V = data.planted(context.pick((40_000, 100), (8000, 100)), 8)
    with local_cluster() as client:
        for solver in ("als", "mu"):
            counts: list[int] = []

            def count(info: Any, counts: list[int] = counts) -> None:
                counts.append(client.run_on_scheduler(count_tasks))

            fit_until(V, 8, 0, passes=passes, solver=solver, callbacks=[count])
            quarter = passes // 4
            early, late = median(counts[quarter : 2 * quarter]), median(counts[-quarter:])
            yield Row(
                f"tasks that the scheduler keeps of each pass, {passes} passes, {solver}",
                Spread.of([(late - early) / (passes / 2)]),
                ("<=", 0.02),
                ours=Spread.of(counts),
                unit="tasks",
            )


@case("checkpoint", "a fit that commits after every pass over one that does not (<= 1.05)")
def checkpoint(context: Context) -> Iterator[Row]:
    from dasknmf import NMF

    V = data.tiled_pines(context.pick(16, 2))
    kept, plain = [], []
    for seed in context.seeds():
        given = {"random_state": seed, "tol": 0, "max_iter": 10}
        run = context.scratch / f"run-{seed}"
        plain.append(clock(lambda given=given: NMF(16, **given).fit(V))[0])
        kept.append(clock(lambda given=given, run=run: NMF(16, checkpoint=run, **given).fit(V))[0])
        shutil.rmtree(run)
    yield Row(
        f"10 passes with a commit after each / without, {V.shape[0]} × {V.shape[1]}, k=16",
        Spread.of(ours / theirs for ours, theirs in zip(kept, plain, strict=True)),
        ("<=", 1.05),
        ours=Spread.of(kept),
        peer=Spread.of(plain),
        note="local disk",
    )
