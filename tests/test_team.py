"""Threads that share short work with the one that asks for it, and trees of sums."""

import threading

import numpy as np
import pytest
from dask.callbacks import Callback
from hypothesis import given, settings
from hypothesis import strategies as st

from dasknmf import NMF
from dasknmf.numerics import planning
from dasknmf.parallel import executors
from dasknmf.parallel.team import Team, run_tree

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("many", [0, 1, 7])
def test_every_item_is_worked_on_once_and_kept_in_its_place(threads, many):
    done = []
    with Team(threads) as team:
        assert team.map(lambda n: done.append(n) or 2 * n, range(many)) == [
            2 * n for n in range(many)
        ]
    assert sorted(done) == list(range(many))


def test_the_thread_that_asks_takes_part():
    """So that two threads meet at a barrier where there is but one other."""
    meeting, seen = threading.Barrier(2, timeout=30), set()

    def work(_):
        meeting.wait()
        seen.add(threading.get_ident())

    with Team(2) as team:
        team.map(work, range(2))
    assert threading.get_ident() in seen
    assert len(seen) == 2


def test_nobody_waits_for_one_that_is_busy_elsewhere():
    """The asking thread does all, and what the other does ends when it is asked for."""
    end = threading.Event()
    with Team(2) as team:
        result = team.begin(lambda word: end.wait(30) and word, "done")
        assert team.map(lambda n: n + 1, range(3)) == [1, 2, 3]
        end.set()
        assert result() == "done"
    with Team(1) as alone:
        assert alone.begin(lambda word: word, "at once")() == "at once"


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_is_raised_and_no_more_is_begun(threads):
    begun, failing = [], threading.Event()

    def work(n):
        begun.append(n)
        if n == 0:
            failing.set()
            raise ValueError("the first")
        failing.wait(30)

    with Team(threads) as team, pytest.raises(ValueError, match="the first"):
        team.map(work, range(10_000))
    assert len(begun) < 5_000


@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.integers(1, 70), min_size=1, max_size=4), threads=st.integers(1, 4))
def test_trees_give_what_their_functions_give_in_the_order_of_the_parts(sizes, threads):
    graph, roots, held, most = {}, [], set(), 0
    lock = threading.Lock()

    def leaf(name):
        nonlocal most
        with lock:
            held.add(name)
            most = max(most, len(held))
        return (name,)

    def merge(parts):
        with lock:
            held.difference_update(*parts)
        return sum(parts, ())

    for tree, size in enumerate(sizes):
        keys = [(tree, n) for n in range(size)]
        graph.update({key: (lambda key=key: leaf(key),) for key in keys})
        for depth, level in enumerate(planning.tree_levels(size)):
            nodes = [("node", tree, depth, j) for j in range(len(level))]
            graph.update(
                {n: (merge, [keys[m] for m in of]) for n, of in zip(nodes, level, strict=True)}
            )
            keys = nodes
        roots += keys
    with Team(threads) as team:
        found = run_tree(team, graph, roots)
    assert found == [tuple((tree, n) for n in range(size)) for tree, size in enumerate(sizes)]
    assert most <= planning.FAN_IN * threads


def test_dask_looks_on_where_it_is_asked_to(rng, many_slabs, monkeypatch):
    """With its callbacks, as of a progress bar, tasks are Dask's own; the bits stay."""
    X, tasks = rng.random((300, 12)), []
    plain = NMF(3, random_state=0, max_iter=3, tol=0).fit(X)
    with Callback(posttask=lambda key, *_: tasks.append(key)):
        watched = NMF(3, random_state=0, max_iter=3, tol=0).fit(X)
    assert tasks
    np.testing.assert_array_equal(watched.components_, plain.components_)
    monkeypatch.setattr(executors, "run_tree", None)  # which the plain one needs
    with pytest.raises(TypeError):
        NMF(3, random_state=0, max_iter=3, tol=0).fit(X)
