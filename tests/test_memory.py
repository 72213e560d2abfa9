"""The memory plan: closed forms, measured peaks, refusals, and slabs that are filled in place."""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
import weakref
from dataclasses import replace

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
import zarr
from click.testing import CliRunner
from conftest import planted
from distributed import Client, LocalCluster

from dasknmf import NMF, ClusterError, TooLargeError, cli
from dasknmf.numerics import memory, planning, refusing
from dasknmf.numerics.memory import Job, Machines, Matrix, make_plan
from dasknmf.numerics.work import Inspect
from dasknmf.parallel import loading, planned
from dasknmf.parallel.executors import ThreadsExecutor
from dasknmf.parallel.loading import recipes
from dasknmf.parallel.slabs import cut

MB = 10**6
DENSE = Matrix(1000, 4, (5000,) * 64, 64 * 5000 * 1000 * 4, 4 * MB)
TWO = Machines(2, 1, 10**9, 10**10)


def test_tasks_and_bytes_are_those_of_hand_counts():
    here, many = Machines(0, 2), Machines(100, 4, 10**9)
    longer = replace(DENSE, heights=(5000,) * 65)
    assert memory.tasks_per_pass(DENSE, Job(k=9, waves=8), here, True) == 64 + 8 * 1
    assert memory.tasks_per_pass(longer, Job(k=9), here, True) == 65 + 9 + 2 + 1
    assert memory.tasks_per_pass(longer, Job(k=9), many, True) == 65 + 8 + 2 + 1  # one is alone
    small, four = replace(DENSE, nbytes=64 * MB), replace(TWO, workers=4)
    # 20 MB a slab: three of them in 64 MB, so three tasks for the eight slabs of a node
    for k, node, root in ((90, 1, 1), (9, 0, 1)):  # sums of 50 MB go up the tree, of 5 MB at once
        carrying = Job(k=k, carries_rows=True)
        assert memory.tasks_per_pass(DENSE, Job(k=k), TWO, False) == 8 * (3 + node) + root
        assert memory.tasks_per_pass(DENSE, Job(k=k), four, True) == 8 * (4 + node) + root
        assert memory.tasks_per_pass(small, carrying, TWO, True) == 8 * (8 + node) + root
        assert memory.tasks_per_pass(small, Job(k=k), TWO, False) == 8 * 1 + root
    waves = Job(k=300, waves=4)
    assert memory.tasks_per_pass(small, waves, TWO, True) == 4 * (2 * (2 + 1) + 1)
    assert memory.tasks_per_pass(small, replace(waves, k=90), TWO, True) == 4 * (2 * 2 + 1)
    assert memory.wave_sizes(10, 4) == [3, 3, 2, 2]
    job = Job(k=10)
    factors, sums = 1000 * 10 * 4, (1000 + 10) * 10 * 8
    one = replace(TWO, workers=1)
    assert memory.moved_per_pass(DENSE, job, here, True) == 0
    assert memory.moved_per_pass(DENSE, job, one, True) == 2 * (factors + sums)
    waves = replace(job, waves=8)
    assert memory.moved_per_pass(DENSE, waves, one, True) == 16 * (factors + sums)
    for slab, task in ((70 * MB, "its own"), (20 * MB, "shared"), (MB, "for a node")):
        sized = replace(DENSE, nbytes=64 * slab)
        for k, meetings, meet in ((100, 9, 8), (10, 1, 64)):  # up the tree, or at once
            job = Job(k=k)
            factors, sums = 1000 * k * 4, (1000 + k) * k * 8
            if task == "for a node":
                meetings, meet = 1, 8
            together = planning.most_together(meet, 2)
            stay = (together + meet / 2) / 2 if task == "its own" else together
            expected = 3 * factors + (meetings * (meet - stay) + 2) * sums
            assert memory.moved_per_pass(sized, job, TWO, False) == round(expected), task
    assert make_plan(DENSE, job, TWO).read == DENSE.nbytes
    assert make_plan(DENSE, job, replace(TWO, memory=4 * 10**9)).read == 0


@pytest.mark.parametrize(("items", "places"), [(1, 3), (5, 1), (8, 2), (6, 3), (4, 5)])
def test_the_most_in_one_place_is_the_mean_over_all_ways(items, places):
    ways = itertools.product(range(places), repeat=items)
    mean = np.mean([max(way.count(place) for place in range(places)) for way in ways])
    assert planning.most_together(items, places) == pytest.approx(mean, rel=1e-12)
    assert 1 <= planning.most_together(items, 10_000) < 1.1


@pytest.mark.usefixtures("many_slabs")
@pytest.mark.parametrize("waves", [1, 8])
def test_planned_tasks_are_those_that_run(monkeypatch, waves):
    counts = []

    def compute(executor, graph, roots, many):
        counts.append(len(graph))
        return dask.get(graph, roots)

    monkeypatch.setattr(ThreadsExecutor, "_compute", compute)
    X = da.from_array(planted(np.random.default_rng(0), 640, 20), chunks=(10, -1))
    NMF(3, max_iter=1, tol=0, waves=waves, init="random").fit(X)
    matrix = planned.matrix_of(cut(X))
    planned_tasks = memory.tasks_per_pass(matrix, Job(k=3, waves=waves), Machines(0, 2), True)
    assert counts[0] == planned_tasks  # no wave of the first pass waits for another


def test_more_of_anything_never_needs_less():
    job = Job(k=100, models=2, waves=4)
    base = make_plan(DENSE, job, TWO)
    for more in (
        replace(job, k=200), replace(job, models=4), replace(job, split=True),
        replace(job, curvature=1 << 28),
    ):  # fmt: skip
        assert make_plan(DENSE, more, TWO).worker_peak > base.worker_peak
    for more in (replace(job, waves=8), replace(job, commits=True)):
        assert make_plan(DENSE, more, TWO).client_peak > base.client_peak
    assert make_plan(DENSE, job, replace(TWO, threads=2)).worker_peak > base.worker_peak
    double = replace(DENSE, itemsize=8, nbytes=2 * DENSE.nbytes, chunk=8 * MB)
    assert make_plan(double, job, TWO).worker_peak > base.worker_peak


def test_the_choice_is_resident_up_to_half_of_the_memory():
    large = replace(DENSE, heights=DENSE.heights * 10, nbytes=10 * DENSE.nbytes)
    for memory_of_one, resident in (
        (large.nbytes, True),  # two workers
        (large.nbytes - 1, False),
        (None, True),
    ):
        plan = make_plan(large, Job(k=10), replace(TWO, memory=memory_of_one))
        assert plan.resident == resident
    tight = replace(TWO, memory=DENSE.nbytes)  # half of it would do, but for the process
    assert not make_plan(DENSE, Job(k=10), tight).resident


def test_a_refusal_names_the_slab_that_would_fit():
    tall = Matrix(1000, 4, (50_000,) * 10, 10 * 200 * MB, 200 * MB)
    machines = replace(TWO, memory=700 * MB)
    with pytest.raises(TooLargeError, match=r"slabs at work 200 MB.*would fit") as caught:
        refusing.refuse(make_plan(tall, Job(k=10), machines))
    rows = int(str(caught.value).split("slabs of ")[1].split()[0])
    for height, fits in ((rows, True), (rows + 500, False)):
        count = -(-tall.rows // height)
        heights = (height,) * (count - 1) + (tall.rows - height * (count - 1),)
        cut_anew = replace(tall, heights=heights, chunk=height * 4000)
        plan = make_plan(cut_anew, Job(k=10), machines)
        if fits:
            refusing.refuse(plan)
        else:
            with pytest.raises(TooLargeError):
                refusing.refuse(plan)


def test_a_refusal_that_no_slab_would_cure_says_so():
    with pytest.raises(TooLargeError, match="No size of the slabs would fit"):
        refusing.refuse(make_plan(DENSE, Job(k=900, models=20), TWO))
    small = replace(TWO, client_memory=500 * MB)
    wide = replace(DENSE, columns=300_000, nbytes=300 * DENSE.nbytes)
    with pytest.raises(TooLargeError, match=r"process of the fit would need .*sums of the waves"):
        refusing.refuse(make_plan(wide, Job(k=100, waves=8), small))


def test_a_fit_that_cannot_fit_reads_nothing():
    loads = []

    def load(height):
        loads.append(height)
        return np.ones((height, 1000), np.float32)

    blocks = [
        da.from_delayed(dask.delayed(load)(50_000), (50_000, 1000), np.float32) for _ in range(8)
    ]
    X = da.concatenate(blocks)
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, memory_limit="700MB",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
        pytest.raises(TooLargeError, match="Slabs of 200 MB are too large") as caught,
    ):  # fmt: skip
        NMF(4).fit(X, client=client)
    assert isinstance(caught.value, MemoryError)
    assert isinstance(caught.value, ClusterError)
    assert not loads


def start_watch():
    """Sample this process's resident size until :func:`stop_watch`."""
    import builtins

    state = {"on": True, "peak": 0}
    process = psutil.Process()

    def watch():
        while state["on"]:
            state["peak"] = max(state["peak"], process.memory_info().rss)
            time.sleep(0.002)

    threading.Thread(target=watch, daemon=True).start()
    builtins.watched = state


def stop_watch():
    import builtins

    builtins.watched["on"] = False
    return builtins.watched["peak"]


@pytest.fixture(scope="module")
def tall_store(tmp_path_factory):
    """300 MB in three chunks, which are the slabs."""
    path = str(tmp_path_factory.mktemp("memory") / "x.zarr")
    X = planted(np.random.default_rng(0), 500, 500, dtype=np.float32)
    array = zarr.create_array(path, shape=(150_000, 500), chunks=(50_000, 500), dtype="f4")
    for i in range(3):
        array[i * 50_000 : (i + 1) * 50_000] = np.tile(X, (100, 1)) * np.float32(i + 1)
    return path


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # two passes
def test_measured_peaks_are_within_the_plan(tall_store, monkeypatch):
    plans = []
    monkeypatch.setattr(planned, "announce", plans.append)
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit="2GB", host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        for resident in (False, True):
            monkeypatch.setattr(memory, "is_resident", lambda *_, answer=resident: answer)
            client.run(start_watch)
            model = NMF(20, max_iter=2, tol=1e-2, random_state=0, init="random")
            model.fit(da.from_zarr(tall_store))
            (peak,) = client.run(stop_watch).values()
            plan = plans.pop()
            assert plan.resident == resident
            assert peak <= plan.worker_peak <= 2 * peak, (resident, peak / MB, plan.worker)


LAYOUTS = {
    "rows": lambda V: da.from_array(V, chunks=((7, 50, 3, 60), -1)),
    "grid": lambda V: da.from_array(V, chunks=((30, 90), (5, 15))),
    "wide": lambda V: da.from_array(V.T.copy(), chunks=((5, 15), (30, 90))),
    "one": lambda V: da.from_array(V, chunks=-1),
    "integers": lambda V: da.from_array((V * 10).astype(int), chunks=((30, 90), (5, 15))),
    "shared in a slab": lambda V: da.from_array(V, chunks=(60, 20)).rechunk((60, 5)),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 1 << 30])
def test_a_slab_that_is_filled_has_the_bits_of_one_that_dask_makes(name, batch, monkeypatch):
    monkeypatch.setattr(planning, "BATCH", batch)
    X = LAYOUTS[name](planted(np.random.default_rng(0), 120, 20))
    slabs = cut(X)
    whole = np.asarray(X, dtype=float)
    whole = whole.T if slabs.transposed else whole
    for recipe, place in zip(recipes(slabs), slabs.places, strict=True):
        slab = recipe.load()
        assert slab.flags.c_contiguous
        np.testing.assert_array_equal(slab, whole[place.start : place.stop], strict=True)
        np.testing.assert_array_equal(slab, dask.get(slabs.graph, recipe.key), strict=True)


def test_a_chunk_of_another_shape_than_dask_was_told_is_refused():
    odd = dask.delayed(lambda: np.ones((1, 4)))()
    X = da.concatenate([da.ones((10, 4), chunks=-1), da.from_delayed(odd, (10, 4), float)])
    with pytest.raises(ValueError, match=r"shape \(1, 4\); expected \(10, 4\)"):
        NMF(2).fit(X)


@pytest.mark.usefixtures("many_slabs")
def test_streaming_has_the_bits_of_resident_on_a_cluster(client, tmp_path, monkeypatch):
    V = planted(np.random.default_rng(0), 600, 40)
    zarr.create_array(tmp_path / "x.zarr", data=V, chunks=(30, 25))
    found = []
    for resident in (True, False):
        monkeypatch.setattr(memory, "is_resident", lambda *_, answer=resident: answer)
        model = NMF(4, random_state=0, max_iter=3, tol=0)
        found.append(model.fit(da.from_zarr(tmp_path / "x.zarr")).components_)
    np.testing.assert_array_equal(*found)


@pytest.mark.usefixtures("many_slabs")
@pytest.mark.parametrize("kept", [0, 5])
def test_threads_hold_no_more_slabs_than_they_are(monkeypatch, kept):
    slabs = cut(da.from_array(planted(np.random.default_rng(0), 640, 20), chunks=(5, 10)))
    alive, most = weakref.WeakSet(), []
    fill = loading._filled

    class Slab(np.ndarray):
        def __hash__(self):
            return id(self)

    def filled(*arguments):
        slab = fill(*arguments).view(Slab)
        alive.add(slab)
        most.append(len(alive))
        return slab

    monkeypatch.setattr(loading, "_filled", filled)
    size = slabs.nbytes // len(slabs)
    with dask.config.set(num_workers=3), ThreadsExecutor(slabs, kept * size) as executor:
        for _ in range(2):
            executor.run(Inspect())
    assert max(most) <= kept + 3


@pytest.mark.usefixtures("many_slabs")
def test_waves_that_leave_task_slots_idle_are_warned_of(client, caplog, monkeypatch):
    machines = Machines(5, 2, 10**9, 10**10)
    monkeypatch.setattr(planned, "machines_of", lambda _: machines)
    X = da.from_array(planted(np.random.default_rng(0), 640, 20), chunks=(20, -1))
    with caplog.at_level(logging.WARNING, "dasknmf"):
        NMF(3, max_iter=1, tol=0).fit(X)
        assert "a wave has 8 slabs, and the cluster runs 10 tasks at a time" in caplog.text
        assert "waves=3" in caplog.text
        caplog.clear()
        NMF(3, max_iter=1, tol=0, waves=3).fit(X)
        assert "a wave has" not in caplog.text


def plan_of(*arguments, code=0):
    result = CliRunner().invoke(cli.main, ["plan", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_the_command_prints_the_plan(tmp_path):
    V = planted(np.random.default_rng(0), 900, 30, dtype=np.float32)
    zarr.create_array(tmp_path / "x.zarr", data=V, chunks=(100, 30))
    options = ("-k", 5, "--workers", 10, "--memory", "16GB", "--threads", 4, "--n-init", 3)
    began = time.perf_counter()
    record = json.loads(plan_of(tmp_path / "x.zarr", *options, "--json").stdout)
    assert time.perf_counter() - began < 20  # with a compilation; the probe takes up to 5
    assert record["machines"] == {
        "workers": 10, "threads": 4, "memory": 16 * 10**9, "client_memory": planned.memory_here()
    }  # fmt: skip
    slabs = cut(da.from_zarr(tmp_path / "x.zarr"))
    assert record["matrix"]["slabs"] == len(slabs)
    assert record["matrix"]["nbytes"] == V.nbytes
    assert record["job"]["models"] == 3
    job, machines = Job(5, models=3, waves=record["job"]["waves"]), Machines(10, 4, 16 * 10**9)
    tasks = memory.tasks_per_pass(planned.matrix_of(slabs), job, machines, True)
    assert record["tasks_per_pass"] == tasks >= len(slabs)
    assert record["worker_memory"]["peak"] >= memory.PROCESS
    assert record["fits"]
    assert all(seconds >= 0 for seconds in record["estimated_seconds_per_pass"].values())
    shown = plan_of(tmp_path / "x.zarr", *options).stdout
    assert "10 workers × 4 threads, 16.0 GB each; resident" in shown
    assert "estimate:" in shown
    assert "refused" not in shown
    assert "refused" in plan_of(tmp_path / "x.zarr", *options, "--memory", "50MB").stdout


def test_the_command_refuses_what_makes_no_sense(tmp_path):
    zarr.create_array(tmp_path / "x.zarr", data=np.ones((90, 12)), chunks=(20, 12))
    assert "does not exist" in plan_of(tmp_path / "no.zarr", "-k", 3, code=1).output
    assert "at most 12" in plan_of(tmp_path / "x.zarr", "-k", 13, code=2).output
    for size in ("much", "-1GB", "0"):
        options = ("-k", 3, "--workers", 2, "--memory", size)
        assert "amount of memory" in plan_of(tmp_path / "x.zarr", *options, code=2).output
    assert plan_of(tmp_path / "x.zarr", "-k", 0, code=2)
    assert plan_of(tmp_path / "x.zarr", "-k", 3, "--solver", "magic", code=2)
