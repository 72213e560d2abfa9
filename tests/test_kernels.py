"""Pieces below the solvers: precision of sums, tiles, random numbers, plans, merging."""

import os
import subprocess
import sys
from itertools import chain, pairwise

import naive
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from dasknmf.numerics import kernels, planning, random
from dasknmf.numerics.inspection import Inspection, Place, inspect_slab
from dasknmf.numerics.kernels.compiled import STRETCH
from dasknmf.numerics.stopping import Outcome, RelativeChange
from dasknmf.numerics.terms import Exponent, Normal, Split, add


def test_gram_of_float32_is_summed_in_float64(rng):
    F = (rng.random((20_000, 3)) * 1e4).astype(np.float32)
    exact = F.astype(np.longdouble).T @ F.astype(np.longdouble)
    found = kernels.gram(F)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, exact.astype(float), rtol=1e-13)


def test_sums_of_float32_slabs_are_added_in_float64():
    """2^24 + 1 + 1 ... in float32 stays at 2^24."""
    parts = [np.array([2.0**24], np.float32)] + [np.ones(1, np.float32)] * 40
    total = add(parts)
    assert total.dtype == np.float64
    assert total[0] == 2.0**24 + 40


def test_adding_keeps_what_belongs_to_the_loss_and_adds_the_rest():
    part = Split(np.ones((2, 2)), np.full((2, 2), 2.0), 3.0, Exponent(0.5))
    total = add([part, part, part])
    assert (total.neg == 3).all()
    assert (total.pos == 6).all()
    assert (total.value, total.exponent) == (9.0, 0.5)
    nested = add([(Normal(np.ones(2), np.ones(2)), None, 1)] * 4)
    assert (nested[0].cross == 4).all()
    assert nested[1:] == (None, 4)
    assert (part.neg == 1).all()  # the parts themselves are not touched


@pytest.mark.parametrize("beta", [2.0, 1.0, 1.5])
@pytest.mark.parametrize("side", ["rows", "columns"])
def test_tiles_change_nothing(beta, side, rng, monkeypatch):
    V, W, Ht = rng.random((50, 9)), rng.random((50, 3)), rng.random((9, 3))
    args = (V, W, Ht) if side == "rows" else (V.T, Ht, W)
    expected = kernels.beta_terms(*args, beta), kernels.squared_residual(V, W, Ht)
    monkeypatch.setattr(kernels, "TILE_BYTES", 1)
    assert len(kernels.tiles(V.shape, 8)) == 4
    found = kernels.beta_terms(*args, beta), kernels.squared_residual(V, W, Ht)
    for a, b in zip(found[0], expected[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    assert found[1] == pytest.approx(expected[1], rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", [np.asarray, sp.csr_array])
def test_products_equal_their_scalar_twin(dtype, kind, rng):
    V = (rng.random((13, 8)) * (rng.random((13, 8)) < 0.6)).astype(dtype)
    F, G = 9 * rng.random((8, 3)).astype(dtype), rng.random((13, 3)).astype(dtype) / 9
    tolerance = 1e-13 if dtype == np.float64 else 1e-6
    expected = naive.product(V.tolist(), F.tolist())
    np.testing.assert_allclose(kernels.matmul(kind(V), F), expected, rtol=tolerance)
    expected = naive.product(V.T.tolist(), G.tolist())
    np.testing.assert_allclose(kernels.matmul(kind(V).T, G), expected, rtol=tolerance)


def _inspection(V, start=0):
    return inspect_slab(V, Place(0, start, start + V.shape[0]))


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_array])
def test_inspection_counts_places_and_sums(kind, rng):
    V = rng.random((20, 6)) * (rng.random((20, 6)) < 0.5)
    seen = _inspection(kind(V))
    assert not seen.bad
    assert seen.positive == (V > 0).sum()
    assert seen.total == pytest.approx(V.sum(), rel=1e-14)
    assert seen.squares == pytest.approx((V**2).sum(), rel=1e-14)
    assert seen.maximum == V.max()
    V[7, 3], V[12, 1], V[15, 0], V[15, 5] = np.nan, np.inf, -0.5, -np.inf
    seen = _inspection(kind(V), start=100)
    assert [f.amount for f in seen.findings] == [1, 2, 1]
    assert [(f.row, f.column) for f in seen.findings] == [(107, 3), (112, 1), (115, 0)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inspection_of_long_slabs_equals_that_of_numpy(dtype, rng):
    """Stretches with and without bad values, zeros of both signs, and numbers next to infinity."""
    rows, columns = 3 * STRETCH // 20 + 7, 20
    V = (rng.random((rows, columns)) * (rng.random((rows, columns)) < 0.5)).astype(dtype)
    V[5, 5], V[6, 6], V[7, 7] = -0.0, np.finfo(dtype).tiny / 4, 1e30
    one, other = (rows // 2, 3), (rows - 1, 19)
    for bad in ({}, {one: -1.0}, {one: np.inf}, {one: np.nan}, {(0, 0): np.nan, other: -np.inf}):
        W = V.copy()
        for place, value in bad.items():
            W[place] = value
        seen, good = _inspection(W), np.isfinite(W) & (W >= 0)
        assert sum(f.amount for f in seen.findings) == len(bad)
        assert {(f.row, f.column) for f in seen.findings if f.amount} == set(bad)
        wide = W[good].astype(np.float64)
        assert seen.positive == (W[good] > 0).sum()
        assert seen.maximum == wide.max()
        assert seen.total == pytest.approx(wide.sum(), rel=1e-12)
        assert seen.squares == pytest.approx((wide**2).sum(), rel=1e-12)
    top = np.full((2, 2), np.finfo(dtype).max)
    assert not _inspection(top).bad
    assert _inspection(top).maximum == np.finfo(dtype).max
    assert not _inspection(np.zeros((0, 3), dtype)).bad


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int64, ">f4", np.float64])
def test_values_of_any_kind_are_inspected(dtype, rng):
    """Weights are of any kind."""
    values = (rng.integers(0, 250, 9000) * (rng.random(9000) < 0.5)).astype(dtype)
    counts, _, sums = kernels.inspect_values(values)
    wide = values.astype(np.float64)
    assert counts.tolist() == [0, 0, 0, (wide > 0).sum()]
    assert sums.tolist() == [wide.sum(), (wide**2).sum(), wide.max()]


def test_merged_inspections_keep_the_first_place_and_all_counts(rng):
    V = rng.random((30, 4))
    V[[5, 17, 25], 2] = -1
    parts = [inspect_slab(V[a : a + 10], Place(i, a, a + 10)) for i, a in enumerate((0, 10, 20))]
    whole = Inspection.merge(parts)
    assert whole.findings[2].amount == 3
    assert (whole.findings[2].row, whole.findings[2].place) == (5, Place(0, 0, 10))
    assert whole.checksums == tuple(p.checksums[0] for p in parts)


def test_the_fingerprint_sees_one_changed_bit_and_not_the_memory_layout(rng):
    V = rng.random((40, 5))
    base = _inspection(V).fingerprint(V.shape, V.dtype)
    assert _inspection(V.copy()).fingerprint(V.shape, V.dtype) == base
    changed = V.copy()
    changed[39, 4] = np.nextafter(changed[39, 4], 2)
    assert _inspection(changed).fingerprint(V.shape, V.dtype) != base


@given(
    seed=st.integers(0, 2**40),
    columns=st.integers(1, 9),
    cuts=st.lists(st.integers(0, 60), max_size=5),
)
@settings(deadline=None, max_examples=50)
def test_random_rows_do_not_depend_on_the_slabs(seed, columns, cuts):
    whole = random.uniform_rows(seed, "rows", 0, 0, 60, columns)
    edges = [0, *sorted(cuts), 60]
    parts = [random.uniform_rows(seed, "rows", 0, a, b, columns) for a, b in pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert ((whole > 0) & (whole < 1)).all()
    assert len(np.unique(whole)) == whole.size


def test_random_rows_differ_by_seed_purpose_and_model():
    streams = [
        random.normal_rows(*key, 0, 500, 4)
        for key in [(1, "rows", 0), (2, "rows", 0), (1, "columns", 0), (1, "rows", 1)]
    ]
    for i, a in enumerate(streams):
        assert abs(a.mean()) < 0.1
        assert abs(a.std() - 1) < 0.1
        for b in streams[:i]:
            assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.1


@given(rows=st.integers(1, 10**7), row_bytes=st.integers(1, 10**6))
@settings(deadline=None)
def test_even_chunks_cover_all_rows_within_the_size(rows, row_bytes):
    if rows * row_bytes > 10**12:
        rows = 1 + 10**12 // row_bytes
    chunks = planning.even_chunks(rows, row_bytes)
    assert sum(chunks) == rows
    assert min(chunks) >= 1
    assert max(chunks) - min(chunks) <= 1
    assert max(chunks) * row_bytes <= max(planning.LARGEST, row_bytes)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=200), st.integers(1, 10**4))
@settings(deadline=None)
def test_merged_chunks_use_every_chunk_once(chunks, row_bytes):
    groups = planning.merged_chunks(tuple(chunks), row_bytes)
    assert sum(groups) == len(chunks)
    assert min(groups) >= 1


@given(leaves=st.integers(1, 700))
@settings(deadline=None)
def test_the_merge_tree_reaches_every_slab_once_in_order(leaves):
    items = [[i] for i in range(leaves)]
    for level in planning.tree_levels(leaves):
        assert max(map(len, level)) <= 8
        items = [list(chain.from_iterable(items[m] for m in members)) for members in level]
    assert items == [list(range(leaves))]


def test_the_stop_rule_needs_patience_and_looks_only_at_recent_passes():
    rule = RelativeChange(tol=0.01)
    assert rule.judge([100.0, 99.9], 0.0) is None
    assert rule.judge([100.0, 99.9, 50.0, 49.9], 0.0) is None
    assert rule.judge([100.0, 50.0, 49.9, 49.8], 0.0) is Outcome.CONVERGED
    assert rule.judge([50.0, 49.9, 49.8], 0.0) is Outcome.CONVERGED  # after a warm start
    assert RelativeChange(tol=0.0).judge([1.0, 1.0, 1.0, 1.0], 0.0) is None
    assert rule.judge([1e-20], 1e-15) is Outcome.EXACT
    exact_rank = [1.0, 0.5, 0.4, 0.3]
    assert rule.judge(exact_rank, 0.0, size=1e6) is None
    assert RelativeChange(0.01, floor=1e-6).judge(exact_rank, 0.0, size=1e6) is Outcome.CONVERGED


def test_every_array_is_aligned_before_it_is_used(rng):
    raw = np.empty(81, dtype=np.uint8)[1:].view(np.float64)
    assert not raw.flags.aligned
    assert kernels.own(raw).flags.aligned
    assert kernels.own(rng.random((4, 3)).T).flags.c_contiguous
    kept = rng.random((4, 3))
    assert np.shares_memory(kernels.own(kept), kept)
    assert kept.flags.writeable


ROWS = """
import hashlib
import numpy as np
import scipy.sparse as sp
from dasknmf.numerics.kernels import loops, own
from dasknmf.numerics.kullback import Kept
rng = np.random.default_rng(0)
V = sp.csr_array(rng.poisson(1.0, (20_000, 16)) * rng.gamma(1.0, 1.0, (20_000, 16)))
F, rows, none = own(rng.random((16, 3))), np.zeros((20_000, 3)), np.zeros((0, 3))
data = (own(V.indptr), own(V.indices), own(V.data))
weight = own(F.sum(axis=0)[None])
loops("kl").csr_rows(*data, F, weight, 0.0, (2, 60, 1e-7), rows, none, none, tuple(Kept.room(0, 0)))
print(hashlib.sha256(rows).hexdigest())
"""


def test_what_was_just_compiled_gives_the_bits_of_what_is_cached(tmp_path):
    """One row in thousands differed while helpers were compiled apart from their callers."""
    known = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    digests = [subprocess.check_output([sys.executable, "-c", ROWS], env=known) for _ in range(2)]
    assert len(list(tmp_path.rglob("*.nbc"))) == 1  # the second was loaded
    assert digests[0] == digests[1]
