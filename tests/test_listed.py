"""Kullback-Leibler's columns from lists of entries: what slabs with few of them bring instead."""

import pickle
import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
from conftest import sparse_counts
from hypothesis import given, settings
from hypothesis import strategies as st

from dasknmf import NMF
from dasknmf.numerics import kullback, planning
from dasknmf.numerics.losses import make_loss
from dasknmf.numerics.majorants import majorant
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers.newton import Newton
from dasknmf.numerics.terms import Columns, Listed, add
from dasknmf.parallel import driver

KL = make_loss("kullback-leibler")
LAYOUTS = {
    "csr": sp.csr_array, "csc": lambda V: sp.csr_array(V.T).T, "dense": np.asarray,
}  # fmt: skip
RULE = (8, 60, 1e-7)


def one(V, Ht):
    """Terms of one visit."""
    return Newton().visit(KL, V, (), (Ht,), (Penalty(),))[1][0]


def summed(V, Ht):
    """The same visit without a list."""
    rows, neg, curvature, value = kullback.kl_rows(V, Ht, (0.0, 0.0), RULE, "curvature")
    return rows, Columns.of(Ht, neg, rows.sum(axis=0), curvature, value)


def assert_same(found, expected, rtol=1e-12):
    assert type(found) is type(expected) is Columns
    for name in ("counts", "mass", "pull", "curvature", "value"):
        theirs = np.asarray(getattr(expected, name))
        atol = rtol * np.abs(theirs).max(initial=0.0)
        np.testing.assert_allclose(getattr(found, name), theirs, rtol, atol, err_msg=name)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 30), columns=st.integers(1, 40), k=st.integers(1, 7),
    layout=st.sampled_from(sorted(LAYOUTS)), dtype=st.sampled_from([np.float32, np.float64]),
    mean=st.sampled_from([0.02, 0.5, 5.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_what_is_formed_from_a_list_is_what_a_slab_adds_up(
    rows, columns, k, layout, dtype, mean, seed
):
    """Any number of entries a column, none among them; zeros that are stored are not listed."""
    rng = np.random.default_rng(seed)
    V = rng.poisson(mean, (rows, columns)).astype(dtype)
    Ht = rng.random((columns, k)).astype(dtype)
    slab = LAYOUTS[layout](V)
    if layout == "csr" and slab.nnz:
        slab.data[0] = 0.0
    solved, kept, value = kullback.kl_lists(slab, Ht, (0.0, 0.0), RULE)
    expected, terms = summed(slab, Ht)
    np.testing.assert_array_equal(solved, expected)
    assert value == terms.value
    stored = np.asarray(slab.todense() if sp.issparse(slab) else slab)
    np.testing.assert_array_equal(np.diff(kept.starts), (stored > 0).sum(axis=0))
    of = [kept.rows[a:b].tolist() for a, b in zip(kept.starts, kept.starts[1:], strict=False)]
    assert of == [np.flatnonzero(column > 0).tolist() for column in stored.T]
    found = Listed(Ht, kept, solved, solved.sum(axis=0), value)
    assert_same(found.formed(), terms)


def test_lists_add_up_to_the_sums_of_all_rows(rng):
    V, Ht = sparse_counts(rng, 60, 3000, 0.01), rng.random((3000, 6))
    lists = [one(V[a : a + 12], Ht) for a in range(0, 60, 12)]
    merged = add(lists)
    assert all(type(terms) is Listed for terms in [*lists, merged])
    assert merged.kept.rows.max() == 59
    assert merged.rows.shape == (60, 6)
    assert_same(merged.formed(), add([terms.formed() for terms in lists]))
    assert_same(add([add(lists[:2]), add(lists[2:])]).formed(), merged.formed())


def test_lists_that_are_longer_than_the_sums_are_formed(rng):
    """And so are those that meet sums: of slabs with many entries, or without curvature."""
    V, Ht = sparse_counts(rng, 600, 300, 0.2), rng.random((300, 6))
    few = [one(V[a : a + 3], Ht) for a in range(0, 600, 3)]
    assert all(type(terms) is Listed for terms in few)
    formed = []
    with pytest.MonkeyPatch.context() as patch:
        once = Listed.formed_of
        patch.setattr(Listed, "formed_of", lambda ls, by: formed.append(len(ls)) or once(ls, by))
        merged = add(few)
    assert formed == [200]  # into one sum, not each into its own
    assert type(merged) is Columns
    assert_same(merged, add([terms.formed() for terms in few]))
    many = one(V, Ht)
    assert type(many) is Columns
    for pair in ([many, few[0]], [few[0], many]):
        assert_same(add(pair), add([many, few[0].formed()]))
    bare = many._replace(pull=None, curvature=None)
    assert add([few[0], bare]).curvature is None
    assert add([bare, few[0]]).pull is None


def test_a_list_pays_by_bytes(rng):
    """What is written, added up and moved: four are less than the sums, or there is none."""
    for density, k in ((0.004, 5), (0.015, 5), (0.015, 30), (0.5, 5)):
        V, Ht = sparse_counts(rng, 40, 2000, density), rng.random((2000, k))
        terms, (_, sums) = one(V, Ht), summed(V, Ht)
        size, whole = len(pickle.dumps(terms)), len(pickle.dumps(sums))
        assert (type(terms) is Listed) == (density < 0.5)
        assert size < 0.6 * whole if type(terms) is Listed else size == whole


@pytest.mark.parametrize("k", [1, 2, 5, 20])
@pytest.mark.parametrize("share", [0.01, 0.11, 0.2])
def test_a_merge_holds_no_more_than_the_plan_has_for_it(k, share, rng):
    """Inputs and one sum, FAN_IN + 1 in all, as where all are sums; none is more than that."""
    n = 4000
    sums = 8 * n * (k * (k + 1) // 2 + 2 * k)
    density = min(share * (sums - 8 * n * (k + 1)) / (20 * 15 * n), 1.0)  # of leaves as a list
    V, Ht = sparse_counts(rng, 960, n, density), rng.random((n, k))
    leaves = [one(V[a : a + 15], Ht) for a in range(0, 960, 15)]
    nodes = [add(leaves[a : a + planning.FAN_IN]) for a in range(0, 64, planning.FAN_IN)]
    for terms in (*leaves, *nodes):
        assert len(pickle.dumps(terms)) <= 1.02 * sums + 2000
    packed = pickle.dumps(nodes)
    del leaves, nodes, terms
    add(pickle.loads(packed))
    tracemalloc.start()
    try:
        merged = add(pickle.loads(packed))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 1.02 * (planning.FAN_IN + 1) * sums + (2 * k + 2) * 8 * n
    assert merged.value > 0


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_form_what_one_of_them_does(threads, rng, monkeypatch):
    monkeypatch.setattr(driver, "CPU_COUNT", threads)
    V = sparse_counts(rng, 50, 2 * driver.BLOCK + 77, 0.01)
    terms = one(V, rng.random((V.shape[1], 5)))
    assert type(terms) is Listed
    assert_same(driver.formed(terms), terms.formed(), 0.0)
    sums = terms.formed()
    assert driver.formed(sums) is sums


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_form_lists_that_a_merge_makes_sums_of(threads, rng, monkeypatch):
    """To the bits of one thread; without a driver there is but the thread of the merge itself."""
    n, share = 2 * driver.BLOCK + 77, []
    V, Ht = sparse_counts(rng, 300, n, 0.1), rng.random((n, 5))
    lists = [one(V[a : a + 10], Ht) for a in range(0, 300, 10)]
    expected = add(lists)
    assert {type(terms) for terms in lists} == {Listed}
    assert type(expected) is Columns
    monkeypatch.setattr(driver, "CPU_COUNT", threads)
    once = Listed.formed_of
    monkeypatch.setattr(Listed, "formed_of", lambda ls, by: share.append(by) or once(ls, by))
    found = driver.add_up(lists)
    assert_same(found, expected, 0.0)
    add(lists)
    assert [by is not None for by in share] == [True, False]


@pytest.mark.parametrize("penalty", [Penalty(), Penalty(0.2, 0.4)], ids=str)
def test_whoever_takes_terms_takes_lists(penalty, rng):
    V, Ht = sparse_counts(rng, 50, 900, 0.01), rng.random((900, 5))
    terms, solver = one(V, Ht), Newton()
    assert type(terms) is Listed
    expected = solver.half_step(Ht, terms.formed(), penalty)
    np.testing.assert_array_equal(solver.half_step(Ht, terms, penalty), expected)
    assert KL.value(terms, Ht, 0.0) == terms.value
    found, theirs = majorant(KL, terms, Ht), majorant(KL, terms.formed(), Ht)
    np.testing.assert_array_equal(found.counts, theirs.counts)
    assert found.value == theirs.value


def test_a_fit_by_lists_is_that_by_sums(rng, monkeypatch):
    """Few counts in long rows: every wave comes as a list, and the fit ends where it would."""
    V = sparse_counts(rng, 3000, 2000, 0.002)
    seen = []
    merge = Listed.merge

    def merged(parts):
        seen.append({type(part) for part in parts} | {type(merge(parts))})
        return merge(parts)

    def fit():
        model = NMF(20, beta_loss="kullback-leibler", random_state=0, max_iter=4, tol=0.0)
        return model, model.fit_transform(V)

    monkeypatch.setattr(Listed, "merge", staticmethod(merged))
    listed, W = fit()
    assert seen
    assert all(kinds == {Listed} for kinds in seen)
    monkeypatch.setattr(Listed, "pays", staticmethod(lambda *_: False))
    dense, theirs = fit()
    np.testing.assert_allclose(listed.history_["loss"], dense.history_["loss"], rtol=1e-12)
    np.testing.assert_allclose(W, theirs, rtol=1e-8, atol=1e-9 * theirs.max())
