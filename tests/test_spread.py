"""Slabs of a wave on a cluster: each worker keeps its part of them."""

import ast
from collections import Counter

import dask
import dask.array as da
import numpy as np
import pytest
from conftest import planted
from distributed import wait
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dasknmf import NMF
from dasknmf.numerics import planning
from dasknmf.parallel.slabs import cut
from dasknmf.parallel.sources import _parts

SLOTS = st.dictionaries(st.integers(0, 6), st.integers(1, 4), min_size=1)


@example(slots={0: 1, 1: 3}, holders=[None] * 8, waves=2)
@given(
    slots=SLOTS,
    holders=st.lists(st.none() | st.integers(0, 8), min_size=1, max_size=60),
    waves=st.integers(1, 5),
)
@settings(deadline=None)
def test_each_worker_keeps_its_part_of_every_wave(slots, holders, waves):
    groups = [list(range(j, len(holders), waves)) for j in range(waves)]
    found = planning.spread(groups, holders, slots, uneven=np.inf)
    total = sum(slots.values())
    for group in groups:
        counts = Counter(found[slab] for slab in group)
        for w, n in slots.items():
            part = len(group) * n / total
            assert int(part) <= counts[w] <= int(part) + 1
            here = sum(holders[slab] == w for slab in group)
            stayed = sum(holders[slab] == w == found[slab] for slab in group)
            assert stayed == min(here, counts[w])  # none moves without need


@given(slots=SLOTS, waves=st.integers(1, 5), count=st.integers(1, 60))
@settings(deadline=None)
def test_slabs_that_nobody_has_fill_workers_evenly(slots, waves, count):
    groups = [list(range(j, count, waves)) for j in range(waves)]
    found = Counter(planning.spread(groups, [None] * count, slots, uneven=1.3))
    total = sum(slots.values())
    for w, n in slots.items():
        assert abs(found[w] - count * n / total) < 2


@example(holders=[0, 1, 2, 3] * 20, uneven=1.0)  # every wave is on one worker
@given(holders=st.lists(st.integers(0, 3), min_size=4, max_size=80), uneven=st.floats(1.0, 2.0))
@settings(deadline=None)
def test_no_worker_is_given_more_than_it_may_hold(holders, uneven):
    """Slabs that move stay where they were, too, as long as their chunks are the user's."""
    groups = [list(range(j, len(holders), 4)) for j in range(4)]
    found = planning.spread(groups, holders, dict.fromkeys(range(4), 1), uneven)
    had = Counter(holders)
    for w in range(4):
        came = sum(new == w != old for old, new in zip(holders, found, strict=True))
        assert came == 0 or had[w] + came <= uneven * len(holders) / 4


@pytest.fixture
def plans(monkeypatch):
    """Waves, and the worker that each slab is meant for."""
    made = []
    spread = planning.spread

    def noted(groups, *rest):
        made.append((groups, spread(groups, *rest)))
        return made[-1][1]

    monkeypatch.setattr(planning, "spread", noted)
    return made


@pytest.mark.usefixtures("many_slabs")
@pytest.mark.parametrize("kind", ["lazy", "in chunks", "persisted", "on one worker"])
def test_every_wave_is_spread_over_the_workers(client, plans, kind):
    V = planted(np.random.default_rng(0), 640, 20)
    X = da.from_array(V, chunks=(10, -1))
    if kind == "in chunks":  # of columns, too: what is put together for a slab
        X = da.from_array(V, chunks=(10, 7))
    elif kind == "persisted":
        X = X.persist()
    elif kind == "on one worker":
        X = X.persist(workers=[min(client.scheduler_info()["workers"])])
    wait(X)
    seen = {}

    def restrictions(dask_scheduler):
        return {
            str(key): (set(task.worker_restrictions or ()), task.loose_restrictions)
            for key, task in dask_scheduler.tasks.items()
            if str(key).startswith("('nmf-slab")
        }

    def look(info):
        found = client.run_on_scheduler(restrictions)
        seen.update({ast.literal_eval(key)[1]: where for key, where in found.items()})

    model = NMF(3, max_iter=2, tol=0, waves=4, random_state=0, compress=False, callbacks=[look])
    model.fit(X, client=client)
    ((waves, meant),) = plans
    counts = [sorted(Counter(meant[slab] for slab in wave).values()) for wave in waves]
    # What moves is on the first worker, too, as long as its chunks are: the other takes its part.
    assert counts == [[8, 8]] * 4
    assert seen == {slab: ({worker}, True) for slab, worker in enumerate(meant)}
    threads = NMF(3, max_iter=2, tol=0, waves=4, random_state=0, compress=False)
    with dask.config.set(scheduler="threads"):
        expected = threads.fit(da.from_array(V, chunks=(10, -1)))
    np.testing.assert_array_equal(model.components_, expected.components_)


def test_slabs_that_share_work_are_placed_by_dask(client):
    V = planted(np.random.default_rng(0), 64, 20)
    X = da.from_array(V, chunks=(8, -1))
    X = X - X.min()  # all wait for this
    slabs = cut(X)
    assert _parts(slabs.graph, slabs.blocks) is None
    found = NMF(3, max_iter=2, tol=0, random_state=0).fit(X, client=client)
    assert np.isfinite(found.components_).all()


def test_what_slabs_have_in_common_has_no_place():
    """The array itself, which every one of them is cut from."""
    slabs = cut(da.from_array(np.ones((64, 20)), chunks=(8, -1), name="common"))
    parts = _parts(slabs.graph, slabs.blocks)
    assert len(parts) == len(slabs)
    assert all(block in part for block, part in zip(slabs.blocks, parts, strict=True))
    assert sum(map(len, parts)) == len(set().union(*parts))
