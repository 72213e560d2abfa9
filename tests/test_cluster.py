"""Distributed: the bits of threads on any workers, through kills, with a flat scheduler."""

import gc
import os
import signal
import time
import warnings
from contextlib import contextmanager

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from conftest import planted, sparse_counts
from distributed import Client, LocalCluster

from dasknmf import NMF, ClusterError
from dasknmf.numerics.terms import Listed
from dasknmf.parallel import make_executor
from dasknmf.parallel.slabs import cut

pytestmark = pytest.mark.usefixtures("many_slabs", "sixteen_at_most")


@pytest.fixture
def sixteen_at_most(monkeypatch):
    monkeypatch.setattr("dasknmf.numerics.planning.AIM", 16)


def tasks(client):
    return client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))


def run(X, name="als", beta=2.0, passes=6, client=None, **more):
    model = NMF(
        4,
        solver=name,
        beta_loss=beta,
        **{
            "init": None if name in ("als", "newton") else "random",
            "random_state": 1,
            "tol": 0,
            "max_iter": passes,
            **more,
        },
    )
    W = model.fit_transform(X, client=client)
    return np.asarray(W), model.components_, model


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A dense and a sparse matrix, each to be read in slabs."""
    rng = np.random.default_rng(5)
    path = str(tmp_path_factory.mktemp("cluster") / "x.zarr")
    X = planted(rng, 600, 40)
    array = zarr.create_array(path, shape=X.shape, chunks=(50, 40), dtype="f8")
    array[...] = X
    return path, sparse_counts(rng, 600, 40, 0.3)


def sources(store, kind):
    path, counts = store
    if kind == "words":  # so few that Kullback-Leibler's sums are lists
        few = da.from_array(sparse_counts(np.random.default_rng(6), 1200, 1000, 0.003).toarray())
        few = few.rechunk((75, -1))
        return few.map_blocks(sp.csr_array, meta=sp.csr_array((0, 0)))
    if kind == "zarr":
        return da.from_zarr(path)
    if kind == "numpy":
        return np.asarray(zarr.open(path)[...])
    if kind == "wide":
        return da.from_zarr(path).T
    chunks = da.from_array(counts.toarray(), chunks=(50, -1))
    return chunks.map_blocks(sp.csr_array, meta=sp.csr_array((0, 0)))


KINDS = ["zarr", "numpy", "wide", "csr"]
SOLVERS = [("als", 2.0), ("hals", 2.0), ("mu", 1.0), ("newton", 1.0)]
# Rows that are solved anew and rows that are carried; the others run the same tasks.
MOST_DIFFERENT = [
    ("als", 2.0),
    ("mu", 1.0),
    pytest.param("hals", 2.0, marks=pytest.mark.slow),
    pytest.param("newton", 1.0, marks=pytest.mark.slow),
]


@contextmanager
def seen_lists():
    """What lists were added up to meanwhile, in this process."""
    seen, merge = [], Listed.merge
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Listed, "merge", staticmethod(lambda parts: seen.append(1) or merge(parts)))
        yield seen


def assert_same_bits(store, client, expected):
    for (kind, *solver), factors in expected.items():
        found = run(sources(store, kind), *solver, passes=3, client=client)
        for a, b in zip(found, factors, strict=False):
            np.testing.assert_array_equal(a, b, err_msg=f"{kind} {solver}")


def test_same_bits_on_threads_and_any_workers(store):
    with dask.config.set(scheduler="synchronous"):
        expected = {
            (kind, *solver): run(sources(store, kind), *solver, passes=3)[:2]
            for kind in KINDS
            for solver in SOLVERS
            if solver[0] == "als" or kind == ("csr" if solver[0] == "mu" else "zarr")
        }
        with seen_lists() as lists:
            few = sources(store, "words")
            expected["words", "newton", 1.0] = run(few, "newton", 1.0, passes=3)[:2]
        assert lists
    assert_same_bits(store, None, expected)
    with LocalCluster(
        n_workers=4, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as cluster:
        for workers in (4, 1):
            cluster.scale(workers)
            with Client(cluster) as client:
                client.wait_for_workers(workers)
                assert_same_bits(store, client, expected)
                assert len(client.scheduler_info()["workers"]) == workers


def test_same_bits_on_the_threads_of_one_worker_in_this_process(store):
    chosen = {
        ("zarr", *solver): run(sources(store, "zarr"), *solver, passes=3)[:2] for solver in SOLVERS
    }
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=3, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        assert_same_bits(store, client, chosen)


def test_chunks_of_a_wide_sparse_array_are_put_together_on_workers(client):
    """Not by what workers exchange pieces of numpy arrays by."""
    counts = sparse_counts(np.random.default_rng(7), 60, 240, 0.1)
    chunks = da.from_array(counts.toarray(), chunks=(7, -1))
    X = chunks.map_blocks(sp.csr_array, meta=sp.csr_array((0, 0)))
    for found, theirs in zip(run(X, client=client)[:2], run(counts)[:2], strict=True):
        np.testing.assert_allclose(found, theirs, rtol=1e-6, atol=1e-8)


def test_the_active_client_is_used_and_none_is_kept(store, client):
    X = sources(store, "zarr")
    with make_executor(cut(X)) as executor:
        assert executor.client is client
    model = run(X)[2]
    assert not any(isinstance(value, Client) for value in vars(model).values())


@pytest.mark.parametrize(("name", "beta"), MOST_DIFFERENT)
def test_scheduler_tasks_stay_flat_over_50_passes(store, client, name, beta):
    counts = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the large-graph warning among them
        run(
            sources(store, "zarr"),
            name,
            beta,
            50,
            callbacks=[lambda _: counts.append(tasks(client))],
        )
    assert max(counts[25:50]) <= max(counts[2:25])
    assert max(counts) < 200


def test_nothing_is_left_on_the_cluster_after_a_fit(store, client):
    def kept():
        return set(
            client.run_on_scheduler(
                lambda dask_scheduler: [str(k) for k in dask_scheduler.tasks if "nmf" in str(k)]
            )
        )

    def left():
        return kept() - before

    before = kept()  # of other tests, whose models may still hold their rows
    for solver in SOLVERS:
        run(sources(store, "zarr"), *solver)
    gc.collect()

    # Futures are released through the event loop: round trips until it is done, or too late.
    until = time.monotonic() + 60
    while left() and time.monotonic() < until:
        gc.collect()
    assert not left()


@pytest.mark.parametrize(
    ("name", "beta"),
    [("mu", 1.0), *[pytest.param(*pair, marks=pytest.mark.faults) for pair in SOLVERS[:2]]],
)
def test_a_killed_worker_changes_nothing_in_the_result(store, name, beta, caplog):
    expected = run(sources(store, "zarr"), name, beta)[:2]
    killed = []

    def kill(info):
        if info.number == 3 and not killed:
            killed.append(next(iter(client.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        found = run(sources(store, "zarr"), name, beta, callbacks=[kill])
    assert killed
    for a, b in zip(found[:2], expected, strict=True):
        np.testing.assert_array_equal(a, b)
    if name != "als":
        assert "begins again from its start" in caplog.text


def test_streaming_holds_no_slab_between_tasks(store, client):
    """With a budget below the matrix, workers load each slab for its task and let it go."""
    slabs = cut(sources(store, "zarr"))
    from dasknmf.numerics.work import Inspect
    from dasknmf.parallel.cluster import ClusterExecutor

    with ClusterExecutor(slabs, client, resident=False) as executor:
        executor.run(Inspect())
        held = client.run(
            lambda dask_worker: [k for k in dask_worker.data if "from-zarr" in str(k)]
        )
        assert not any(held.values())
        streamed = executor.run(Inspect()).sums
    with ClusterExecutor(slabs, client, resident=True) as executor:
        assert executor.run(Inspect()).sums == streamed
        held = client.run(lambda dask_worker: [k for k in dask_worker.data if "slab" in str(k)])
        assert len(set().union(*held.values())) == len(slabs)


def test_a_graph_with_shared_work_is_not_repeated_for_every_slab(store, client, tmp_path):
    """Slabs that all need one mean are computed by Dask as a whole, not recipe by recipe."""
    from dasknmf.parallel.loading import recipes

    X = sources(store, "zarr")
    assert recipes(cut(X)) is not None
    centred = abs(X - X.mean(axis=0))
    assert recipes(cut(centred)) is None
    expected = run(centred, passes=2)[1]
    np.testing.assert_allclose(run(centred, passes=2, client=client)[1], expected)


def test_a_persisted_array_is_used_where_it_is(store, client):
    X = sources(store, "zarr").persist()
    expected = run(sources(store, "zarr"))[1]
    np.testing.assert_array_equal(run(X)[1], expected)


def test_transform_on_a_cluster_gives_the_bits_of_threads(store, client):
    X = sources(store, "zarr")
    _, _, model = run(X)
    lazy = model.transform(X)
    here = lazy.compute(scheduler="threads")
    np.testing.assert_array_equal(lazy.compute(), here)
    np.testing.assert_array_equal(model.transform(np.asarray(X)), here)


def test_bad_data_on_a_worker_is_one_value_error_here(store, client):
    X = sources(store, "zarr")
    spoiled = da.where(da.arange(600)[:, None] == 333, -1.0, X).rechunk((50, -1))
    with pytest.raises(ValueError, match=r"40 negative values, the first at row 333, column 0"):
        run(spoiled)


def test_an_asynchronous_client_is_refused_with_advice(store):
    class Fake:
        asynchronous = True

    with pytest.raises(TypeError, match="asynchronous=False"):
        make_executor(cut(sources(store, "zarr")), Fake())


def test_a_fit_inside_a_task_runs_on_that_workers_threads(store, client):
    """Also after a fit for which the worker opened a client, which would wait for itself."""
    run(sources(store, "zarr"), "hals")
    X = sources(store, "numpy")
    expected = run(X, client=None, passes=2, waves=1, init="random")[1]
    found = client.submit(lambda: run(X, passes=2, waves=1, init="random")[1], pure=False).result(
        timeout=60
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9)  # the worker cuts other slabs


def test_a_client_that_is_closed_or_none_at_all_is_refused_with_advice(store, cluster):
    client = Client(cluster)
    client.close()
    with pytest.raises(ClusterError, match="the client is closed"):
        run(sources(store, "numpy"), client=client)
    with pytest.raises(TypeError, match=r"expected a distributed\.Client"):
        run(sources(store, "numpy"), client="tcp://127.0.0.1:8786")
