"""Starts for Kullback-Leibler: what is made of a factor of the square roots, and from how much."""

import numpy as np
import pytest
import scipy.sparse as sp

from dasknmf.numerics.inspection import Place, inspect_slab
from dasknmf.numerics.losses import BetaDivergence
from dasknmf.numerics.observed import UNSTORED, Observed, Rule
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers.newton import Newton
from dasknmf.parallel import sample, starts
from dasknmf.parallel.executors import ThreadsExecutor
from dasknmf.parallel.slabs import from_memory

MEANS = np.linspace(1.0, 8.0, 1500)  # of the columns, up to a factor


def start_of(V):
    """One component, after the race and before any pass."""
    newton = Newton()
    request = starts.Request(1, "sample", 0, BetaDivergence(1.0), newton, (Penalty(), Penalty()))
    with ThreadsExecutor(from_memory(V, False)) as executor:
        return starts.make_start(request, executor, "NMF").short[0][:, 0]


def power(found):
    """With which power of the means it goes."""
    return np.polyfit(np.log(MEANS), np.log(found), 1)[0]


def test_where_most_is_zero_the_start_goes_with_the_means(rng):
    """Of zeros and large numbers: what differs is how often there is one, and so for the roots."""
    V = 50.0 * (rng.random((4000, 1500)) < 0.01 * MEANS)
    density = np.count_nonzero(V) / V.size
    assert power(start_of(sp.csr_array(V))) == pytest.approx(1.0 + 2.0 * density, abs=0.05)


def test_where_nothing_is_zero_the_start_is_between_the_roots_and_the_means(rng):
    V = rng.poisson(100.0 * MEANS, (2000, 1500)).astype(float)
    assert power(start_of(V)) == pytest.approx(0.5 * 1.5, abs=0.01)


def test_zeros_that_do_not_count_are_none(rng):
    """Of ratings all that are there are positive; with zeros among them that count, fewer are."""
    V = sp.csr_array(rng.poisson(3.0, (50, 20)) * (rng.random((50, 20)) < 0.3), dtype=float)
    V.eliminate_zeros()
    names = np.arange(50)
    some = Observed(V, None, Rule(missing=UNSTORED), names)
    assert inspect_slab(some, Place(0, 0, 50)).density(V.shape) == 1.0
    weights = (rng.random((50, 20)) < 0.5).astype(float)
    weighed = Observed(V, weights, Rule(), names)
    known = np.count_nonzero(V.toarray()[weights > 0.0]) / np.count_nonzero(weights)
    assert inspect_slab(weighed, Place(0, 0, 50)).density(V.shape) == known
    assert inspect_slab(V, Place(0, 0, 50)).density(V.shape) == V.nnz / 1000
    assert inspect_slab(V[:0], Place(0, 0, 0)).density((0, 20)) == 0.0


def test_sparse_rows_are_drawn_until_they_have_two_entries_for_each_of_the_factor(rng):
    V = sp.csr_array(sp.random_array((9000, 600), density=0.01, rng=rng))
    with ThreadsExecutor(from_memory(V, False)) as executor:
        roots = sample.draw(10, 0, root=True, executor=executor, name="NMF")
        plain = sample.draw(10, 0, root=False, executor=executor, name="NMF")
        most = sample.draw(50, 0, root=True, executor=executor, name="NMF")
    assert plain.rows.shape[0] == 1000
    longest = int(np.diff(V.indptr).max())
    assert 2 * 600 * 10 <= roots.rows.nnz < 2 * 600 * 10 + longest
    assert most.rows.shape[0] == 4500  # half of V
    assert roots.density == roots.rows.nnz / (roots.rows.shape[0] * 600)
