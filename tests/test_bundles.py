"""Slabs that share a task: which, in what order their sums are added, and how many tasks remain."""

from collections import Counter
from itertools import chain

import dask.array as da
import numpy as np
import pytest
from conftest import planted
from distributed import wait
from hypothesis import given, settings
from hypothesis import strategies as st

from dasknmf import NMF
from dasknmf.numerics import memory, planning
from dasknmf.numerics.memory import Job, Machines
from dasknmf.parallel import planned
from dasknmf.parallel.remote import Bundle, Piece, merge_bundles, merge_pieces, merge_tree
from dasknmf.parallel.slabs import cut


@given(holders=st.lists(st.integers(0, 3), min_size=1, max_size=70), most=st.integers(1, 8))
@settings(deadline=None)
def test_every_leaf_is_in_one_bundle_of_its_node_and_place(holders, most):
    nodes = planning.bundles(holders, most)
    members = planning.tree_levels(len(holders))[0]
    assert [sorted(chain.from_iterable(node)) for node in nodes] == [list(m) for m in members]
    for node in nodes:
        for bundle in node:
            assert 1 <= len(bundle) <= most
            assert len({holders[leaf] for leaf in bundle}) == 1
        places = Counter(holders[leaf] for bundle in node for leaf in bundle)
        assert len(node) == sum(-(-count // most) for count in places.values())


def test_a_task_visits_more_slabs_where_there_are_many_small_ones():
    small, large = 1 << 20, 40 << 20
    assert planning.most_in_bundle(16, 2, small) == 4  # two tasks for each slot
    assert planning.most_in_bundle(5000, 400, small) == 6
    assert planning.most_in_bundle(5000, 2, small) == planning.FAN_IN
    assert planning.most_in_bundle(5000, 2, large) == 1  # 64 MB at a time
    assert planning.most_in_bundle(5000, 2, 30 << 20) == 2
    assert planning.most_in_bundle(5000, 2, None) == 1  # nobody knows how large
    assert planning.most_in_bundle(3, 2, small) == 1


def test_pieces_are_added_in_the_order_of_their_leaves():
    """1e16 + 1 - 1e16 is 0 in this order, and 1 in another."""
    values = {0: 1e16, 1: 1.0, 2: -1e16}
    of = {leaf: Piece(np.array([value]), (f"rows {leaf}",)) for leaf, value in values.items()}
    bundles = [Bundle((1,), (of[1],)), Bundle((0, 2), (of[0], of[2]))]
    merged = merge_bundles(bundles)
    assert merged.sums.tolist() == [0.0]
    assert merged.keys == ("rows 0", "rows 1", "rows 2")


@given(
    holders=st.lists(st.integers(0, 3), min_size=1, max_size=64),
    most=st.integers(1, 8),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_one_task_adds_up_in_the_order_of_the_tree(holders, most, seed):
    rng = np.random.default_rng(seed)
    leaves = [Piece(rng.standard_cauchy(1), (f"rows {i}",)) for i in range(len(holders))]
    nodes = planning.bundles(holders, most)
    visits = [
        merge_pieces([leaves[leaf] for leaf in bundle])
        if len(node) == 1
        else Bundle(tuple(bundle), tuple(leaves[leaf] for leaf in bundle))
        for node in nodes
        for bundle in node
    ]
    found = merge_tree(visits, [len(node) for node in nodes])
    sums = leaves
    for level in planning.tree_levels(len(leaves)):
        sums = [merge_pieces([sums[m] for m in members]) for members in level]
    assert found.sums.tobytes() == sums[0].sums.tobytes()
    assert found.keys == tuple(f"rows {i}" for i in range(len(holders)))


def test_only_small_sums_are_added_up_by_one_task():
    assert planning.merged_at_once(16, 1 << 20)
    assert not planning.merged_at_once(17, 1 << 20)
    assert planning.merged_at_once(64, 1000)
    assert not planning.merged_at_once(65, 1000)


def tasks_of_a_pass(client, monkeypatch, X, waves):
    """Tasks that one pass submits, by what they do."""
    counts = Counter()
    submit = client.map

    def counting(function, *iterables, **options):
        made = submit(function, *iterables, **options)
        counts[function.__name__] += len(made)
        return made

    def start(info):
        counts.clear()

    monkeypatch.setattr(client, "map", counting)
    model = NMF(3, max_iter=2, tol=0, waves=waves, init="random", random_state=0, compress=False)
    seen = []
    model.set_params(callbacks=[lambda info: seen.append(Counter(counts)), start])
    model.fit(X, client=client)
    return seen[1], model.components_


@pytest.mark.usefixtures("many_slabs")
@pytest.mark.parametrize("persisted", [False, True])
def test_slabs_on_one_worker_share_tasks_and_the_bits_stay(client, monkeypatch, persisted):
    V = planted(np.random.default_rng(0), 640, 20)
    X = da.from_array(V, chunks=(10, -1))
    if persisted:
        X = X.persist()
        wait(X)
    counts, found = tasks_of_a_pass(client, monkeypatch, X, waves=2)
    slabs, machines = cut(X), planned.machines_of(client)
    matrix = planned.matrix_of(slabs)
    assert len(slabs) == 64
    plan = memory.tasks_per_pass(matrix, Job(k=3, waves=2), machines, True)
    assert (
        10 <= sum(counts.values()) <= plan == 2 * (4 * 2 + 1)
    )  # a task on each worker, for each node of the tree
    alone = Machines(machines.workers, machines.threads * 64)
    assert memory.tasks_per_pass(matrix, Job(k=3, waves=2), alone, True) > 64
    monkeypatch.setattr(planning, "most_in_bundle", lambda *_: 1)
    singly, same = tasks_of_a_pass(client, monkeypatch, X, waves=2)
    assert singly["visit_slabs"] == 64
    np.testing.assert_array_equal(found, same)
