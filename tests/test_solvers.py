"""The contract of every (loss, solver) pair, each found by itself."""

import pickle

import naive
import numpy as np
import pytest
import scipy.sparse as sp
from conftest import planted, sparse_counts
from pairs import PAIRS, SMOOTH

from dasknmf.numerics import kernels
from dasknmf.numerics.errors import ParameterError
from dasknmf.numerics.inspection import Place
from dasknmf.numerics.kernels import walk
from dasknmf.numerics.losses import make_loss
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers import available, make_solver
from dasknmf.numerics.work import Step

PLAIN = Penalty()
DTYPES = {np.float64: 1e-10, np.float32: 2e-5}


def half_step(V, F, fixed, name, beta, penalty=PLAIN):
    """One update of the tall factor F (rows of V × k) given the tall factor of the columns."""
    loss = make_loss(beta)
    solver = make_solver(name, loss)
    (terms,) = loss.terms(V, (F,), (fixed,))
    return solver.half_step(F, terms, penalty)


def problem(rng, dtype=np.float64, sparse=False, rows=9, columns=7, k=3):
    """A small positive problem: V, W, Ht."""
    V = sparse_counts(rng, rows, columns, 0.4) if sparse else planted(rng, rows, columns, k)
    W, Ht = rng.random((rows, k)) + 0.1, rng.random((columns, k)) + 0.1
    return V.astype(dtype), W.astype(dtype), Ht.astype(dtype)


def test_every_solver_has_a_scalar_twin():
    assert set(available()) == set(naive.UPDATES)


@pytest.mark.parametrize("penalty", [Penalty(), Penalty(0.3, 0.0), Penalty(0.2, 0.7)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize(("name", "beta"), PAIRS)
def test_update_equals_its_scalar_twin(name, beta, sparse, dtype, penalty, rng):
    if sparse and beta <= 0:
        pytest.skip("beta <= 0 is infinite at the zeros of a sparse matrix")
    V, W, Ht = problem(rng, dtype, sparse)
    dense = V.toarray() if sparse else V
    settings = make_solver(name, make_loss(beta))
    expected = naive.UPDATES[name](
        dense.tolist(), W.tolist(), Ht.T.tolist(), penalty.l1, penalty.l2, beta, settings
    )
    found = half_step(V, W, Ht, name, beta, penalty)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=DTYPES[dtype] * 50, atol=DTYPES[dtype])
    # The H half is the W half on the transpose.
    expected = naive.UPDATES[name](
        dense.T.tolist(), Ht.tolist(), W.T.tolist(), penalty.l1, penalty.l2, beta, settings
    )
    found = half_step(V.T, Ht, W, name, beta, penalty)
    np.testing.assert_allclose(found, expected, rtol=DTYPES[dtype] * 50, atol=DTYPES[dtype])


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("beta", [2.0, 1.0, 0.0, 0.5, 1.5, 3.0])
def test_value_of_the_loss_equals_its_scalar_twin(beta, sparse, rng):
    if sparse and beta <= 0:
        pytest.skip("beta <= 0 is infinite at the zeros of a sparse matrix")
    V, W, Ht = problem(rng, sparse=sparse)
    dense = V.toarray() if sparse else V
    loss = make_loss(beta)
    (terms,) = loss.terms(V.T, (Ht,), (W,))
    found = loss.value(terms, Ht, float(np.sum(dense**2)))
    expected = naive.divergence(dense.tolist(), W.tolist(), Ht.T.tolist(), beta)
    assert found == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_squared_residual_equals_the_sum_over_entries(dtype, sparse, rng):
    V, W, Ht = problem(rng, dtype, sparse, rows=500)
    dense = V.toarray() if sparse else V
    expected = 2 * naive.divergence(dense.tolist(), W.tolist(), Ht.T.tolist(), 2)
    found = kernels.squared_residual(V, W, Ht)
    assert found == pytest.approx(expected, rel=1e-12 if dtype == np.float64 else 1e-5)


@pytest.mark.parametrize("power", range(-9, 10, 3))
@pytest.mark.parametrize(("name", "beta"), PAIRS)
def test_scaling_the_data_scales_the_update(name, beta, power, rng):
    """V·c with both factors times sqrt(c) gives sqrt(c) times the same update."""
    V, W, Ht = problem(rng)
    c = 10.0**power
    plain = half_step(V, W, Ht, name, beta)
    scaled = half_step(V * c, W * c**0.5, Ht * c**0.5, name, beta)
    np.testing.assert_allclose(scaled / c**0.5, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize(("name", "beta"), PAIRS)
def test_float32_neither_vanishes_nor_overflows(name, beta, size, rng):
    V, W, Ht = problem(rng, np.float32)
    root = np.float32(size**0.5)
    found = half_step(V * np.float32(size), W * root, Ht * root, name, beta)
    expected = half_step(V.astype(float), W.astype(float), Ht.astype(float), name, beta)
    np.testing.assert_allclose(found / root, expected, rtol=1e-3, atol=1e-4)


def _misaligned(array):
    raw = np.empty(array.nbytes + 1, dtype=np.uint8)
    shifted = raw[1:].view(array.dtype).reshape(array.shape)
    shifted[...] = array
    assert not shifted.flags.aligned
    return shifted


def _read_only(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


@pytest.mark.parametrize("wrap", [_misaligned, _read_only, np.asfortranarray])
@pytest.mark.parametrize(("name", "beta"), SMOOTH)
def test_bits_do_not_depend_on_how_arrays_were_delivered(name, beta, wrap, rng):
    V, W, Ht = problem(rng, rows=64, columns=40)
    expected = half_step(V, W, Ht, name, beta)
    found = half_step(np.ascontiguousarray(wrap(V)), wrap(W), wrap(Ht), name, beta)
    np.testing.assert_array_equal(found, expected)
    # Below a rule, slabs are C-contiguous or transposes; their memory may still be misaligned.
    if wrap is not np.asfortranarray:
        np.testing.assert_array_equal(half_step(wrap(V), W, Ht, name, beta), expected)
        S = sp.csr_array(V)
        shifted = sp.csr_array((wrap(S.data), wrap(S.indices), wrap(S.indptr)), shape=S.shape)
        np.testing.assert_array_equal(
            half_step(shifted, W, Ht, name, beta), half_step(S, W, Ht, name, beta)
        )


@pytest.mark.parametrize(("name", "beta"), SMOOTH)
def test_a_row_does_not_depend_on_its_neighbours(name, beta, rng):
    """Whatever part of a slab it comes in."""
    V, W, Ht = problem(rng, sparse=True, rows=53, columns=31)
    whole = half_step(V, W, Ht, name, beta)
    for start, stop in ((0, 1), (1, 20), (20, 53)):
        part = half_step(V[start:stop], W[start:stop], Ht, name, beta)
        np.testing.assert_allclose(part, whole[start:stop], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("condition", [1e1, 1e4, 1e7])
def test_exact_rows_satisfy_kkt_even_when_ill_conditioned(seed, condition):
    """Gradient >= 0, and zero where a coefficient is positive, at every condition number."""
    rng = np.random.default_rng(seed)
    k, rows = 8, 37
    basis = np.linalg.qr(rng.standard_normal((50, k)))[0]
    Ht = np.abs(basis * np.geomspace(1, condition**-0.5, k) @ rng.random((k, k))) + 1e-3
    (terms,) = make_loss(2.0).terms(rng.random((rows, 50)), (np.zeros((rows, k)),), (Ht,))
    F = make_solver("als", make_loss(2.0)).update(np.zeros((rows, k)), terms)
    C, G = terms
    gradient = F @ G - C
    scale = np.sqrt(np.diag(G)) * np.max(np.abs(C) / np.sqrt(np.diag(G)), axis=1, keepdims=True)
    assert (F >= 0).all()
    assert (gradient >= -1e-12 * scale).all()
    assert (np.abs(gradient)[F > 0] <= (1e-12 * scale * np.ones_like(F))[F > 0]).all()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("penalty", [Penalty(0.0, 0.0), Penalty(0.3, 0.2)])
def test_a_walk_by_tiles_is_that_over_the_whole_slab(sparse, penalty, rng, monkeypatch):
    """Rows and sums of two models at once; nothing is copied of a CSR slab's entries."""
    V = sparse_counts(rng, 301, 40, 6) if sparse else planted(rng, 301, 40)
    loss = make_loss(2.0)
    fixed = (rng.random((40, 5)), rng.random((40, 3)))
    old = tuple(np.zeros((301, F.shape[1])) for F in fixed)
    solver, prices = make_solver("als", loss), (penalty, penalty)
    whole = solver.visit(loss, V, old, fixed, prices)
    monkeypatch.setattr(walk, "WALK_BYTES", 1 << 10)
    assert [(a, b) for a, b, _ in walk.row_tiles(V, 8)] == [
        (0, 64), (64, 128), (128, 192), (192, 256), (256, 301)
    ]  # fmt: skip
    for a, b, tile in walk.row_tiles(V, 8):
        values, entries = (tile.data, V.data) if sparse else (tile, V)
        assert np.shares_memory(values, entries)
        difference = tile - V[a:b]
        assert not (difference.nnz if sparse else difference.any())
    tiled = solver.visit(loss, V, old, fixed, prices)
    alone = solver.rows(loss, V, old, fixed, prices)
    for part, W, same in zip(whole[0], tiled[0], alone, strict=True):
        np.testing.assert_allclose(W, part, rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(W, same)
    for terms, of_tiles, W in zip(whole[1], tiled[1], tiled[0], strict=True):
        np.testing.assert_allclose(of_tiles.cross, terms.cross, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(of_tiles.cross, V.T @ W, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(of_tiles.gram, W.T @ W, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("penalty", [Penalty(0.0, 0.0), Penalty(0.3, 0.2)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sparse", [False, True])
def test_last_rows_tell_their_loss_without_the_other_product(
    sparse, dtype, penalty, rng, monkeypatch
):
    """Rows of two models, tile by tile; to the loss that the residual itself has."""
    monkeypatch.setattr(walk, "WALK_BYTES", 1 << 10)
    V = (sparse_counts if sparse else planted)(rng, 301, 40).astype(dtype)
    loss, fixed = make_loss(2.0), tuple(rng.random((40, k)).astype(dtype) for k in (5, 3))
    old, prices = tuple(np.zeros((301, F.shape[1])) for F in fixed), (penalty, penalty)
    expected = make_solver("als", loss).visit(loss, V, old, fixed, prices)
    monkeypatch.setattr(walk.Walk, "add", None)
    found = make_solver("als", loss).ending().visit(loss, V, old, fixed, prices)
    dense = np.asarray(V.todense() if sparse else V, np.float64)
    for W, same, terms, theirs, F in zip(
        found[0], expected[0], found[1], expected[1], fixed, strict=True
    ):
        np.testing.assert_array_equal(W, same)
        left = loss.value(terms, F, np.sum(dense**2))
        np.testing.assert_array_equal(terms.gram, theirs.gram)
        exact = 0.5 * np.sum((dense - W.astype(np.float64) @ F.T.astype(np.float64)) ** 2)
        assert left == pytest.approx(exact, rel=1e-12 if dtype == np.float64 else 1e-5)
        assert left == pytest.approx(loss.value(theirs, F, np.sum(dense**2)), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e9, 1e30])
def test_a_tiles_share_stays_in_the_range_of_float32(scale, rng):
    """Where the square of the data does not."""
    V = planted(rng, 90, 12).astype(np.float32)
    fixed = (rng.random((12, 3)).astype(np.float32),)
    solver, loss = make_solver("als", make_loss(2.0)), make_loss(2.0)
    _, (plain,) = solver.visit(loss, V, (), fixed, (Penalty(),))
    scaled = (V * np.float32(scale)).astype(np.float32)
    (W,), (terms,) = solver.visit(loss, scaled, (), fixed, (Penalty(),))
    assert W.dtype == np.float32
    np.testing.assert_allclose(terms.cross / scale / scale, plain.cross, rtol=1e-5)


def test_what_rows_are_solved_with_is_made_once_for_all_slabs(rng, monkeypatch):
    made = []
    row_system = kernels.row_system
    monkeypatch.setattr(kernels, "row_system", lambda G: made.append(1) or row_system(G))
    V, loss = planted(rng, 90, 12), make_loss(2.0)
    step = Step(loss, make_solver("als", loss), Penalty(0.0, 0.0), (rng.random((12, 3)),))
    for i in range(3):
        step(V[30 * i : 30 * i + 30], None, Place(i, 30 * i, 30 * i + 30))
    assert len(made) == 1
    assert "_ready" not in pickle.loads(pickle.dumps(step)).__dict__


@pytest.mark.parametrize("sparse", [False, True])
def test_visits_share_scratch_one_after_the_other_and_no_result(sparse, rng):
    """What a slab brought stays as it is while others are visited, also of another height."""
    loss, price = make_loss(2.0), (Penalty(),)
    solver, fixed = make_solver("als", loss), (rng.random((12, 3)),)
    ready = solver.ready(fixed, price)
    slabs = [sparse_counts(rng, n, 12, 4) if sparse else planted(rng, n, 12) for n in (70, 90, 30)]
    alone = [solver.visit(loss, V, (), fixed, price) for V in slabs]
    with ready.side.scratch() as busy:  # a thread that is in the middle of a visit
        after = [solver.visit(loss, V, (), fixed, price, None, ready) for V in slabs]
        assert len(ready.side._idle) == 1
        assert ready.side._idle[0] is not busy
    for ((W,), (terms,)), ((same,), (others,)) in zip(alone, after, strict=True):
        np.testing.assert_array_equal(W, same)
        np.testing.assert_array_equal(terms.cross, others.cross)
        np.testing.assert_array_equal(terms.gram, others.gram)


def test_tiles_are_large_where_what_each_brings_is():
    """Columns × width, which every tile costs."""
    V = np.zeros((800, 20_000), np.float32)
    assert len(list(walk.row_tiles(V, 20))) < 6
    assert len(list(walk.row_tiles(np.zeros((16_000, 1000), np.float32), 20))) == 16


@pytest.mark.parametrize("name", ["als", "hals", "pg"])
def test_a_solver_that_needs_a_gram_matrix_refuses_other_losses(name):
    with pytest.raises(ParameterError, match=f"solver='{name}' can't minimise.*Use solver='mu'"):
        make_solver(name, make_loss("kullback-leibler"))


@pytest.mark.parametrize("name", sorted(available()))
def test_dead_components_and_empty_rows_give_zeros_not_nan(name, rng):
    V, W, Ht = problem(rng)
    V[2], Ht[:, 1] = 0.0, 0.0
    beta = 1.0 if name == "newton" else 2.0
    found = half_step(V, W, Ht, name, beta)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[:, 1][:2] if name == "mu" else [0, 0], [0, 0])
    np.testing.assert_allclose(half_step(V, W * 0 + 1e-9, Ht, name, beta)[2], 0, atol=1e-9)
