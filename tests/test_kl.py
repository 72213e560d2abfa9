"""Kullback-Leibler rows and columns: kernels against their scalar twins, descent, optimality."""

from dataclasses import replace

import naive
import numpy as np
import pytest
import scipy.sparse as sp
from conftest import planted, sparse_counts

from dasknmf.ensemble import Model, Problem
from dasknmf.numerics import kernels, kullback
from dasknmf.numerics.errors import ParameterError
from dasknmf.numerics.kernels import kl_share
from dasknmf.numerics.losses import EXACT_ROWS, make_loss
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers.als import ALS
from dasknmf.numerics.solvers.newton import Newton
from dasknmf.numerics.stopping import extrapolated
from dasknmf.numerics.terms import Columns, add
from dasknmf.numerics.work import ModelSums
from dasknmf.parallel import driver

KL = make_loss("kullback-leibler")
FREE = Penalty()
LAYOUTS = {"csr": sp.csr_array, "dense": np.asarray}


def counts(rng, rows=9, columns=8, dtype=np.float64):
    """Counts with a zero row and a zero column."""
    V = rng.poisson(1.5, (rows, columns)).astype(dtype)
    V[2] = 0.0
    V[:, 3] = 0.0
    V[4] += 1.0  # a row without zeros
    V[5] += 2.0
    return V


def unpack(packed, k):
    full = np.zeros((packed.shape[0], k, k))
    full[:, *np.tril_indices(k)] = packed
    return full + np.tril(full, -1).transpose(0, 2, 1)


def one(V, Ht, penalty=FREE, solver=None):
    """One visit: rows and terms."""
    rows, terms = (solver or Newton()).visit(KL, V, (), (Ht,), (penalty,))
    return rows[0], terms[0]


def descend(V, Ht, passes, solver=None, penalty=FREE, fresh=False):
    """Objective of every pass of one slab; ends with the factors."""
    solver = solver or Newton()
    model, problem = Model(0, Ht, [None], 0.0, 1.0, momentum=0.0), Problem(KL, penalty)
    objectives = []
    for number in range(passes):
        stage = solver.at(number) if fresh else solver
        W, terms = one(V, model.short, penalty, stage)
        objectives.append(terms.value + penalty.value(W) + penalty.value(model.short))
        careful = stage.safer(model.rejected) if model.rejected else stage
        model.visit_columns(0, ModelSums(terms, penalty.value(W), 0.0), problem, careful)
        model.close_pass(problem, solver)
    return np.array(objectives), W, model.short, model


@pytest.mark.parametrize("penalty", [FREE, Penalty(0.7, 0.0), Penalty(0.3, 0.9)], ids=str)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_and_terms_equal_their_scalar_twins(layout, dtype, penalty, rng):
    V = counts(rng, dtype=dtype)
    Ht = rng.random((8, 3)).astype(dtype)
    Ht[1, 0] = 0.0
    rows, neg, packed, value = kullback.kl_rows(
        LAYOUTS[layout](V), Ht, (penalty.l1, penalty.l2), EXACT_ROWS, "curvature"
    )
    H = Ht.T.astype(float).tolist()
    expected = [naive.kl_row(v, H, penalty.l1, penalty.l2) for v in V.tolist()]
    np.testing.assert_allclose(rows, expected, atol=2e-5)
    assert not rows[2].any()
    V[2, :] = 0.0
    live = [i for i in range(9) if i != 2]  # the twin of the loss divides by the model
    assert value == pytest.approx(
        naive.divergence(V[live].tolist(), rows[live].tolist(), H, 1), rel=1e-9
    )
    numerator, curvature = naive.kl_terms(V.tolist(), rows.tolist(), H)
    np.testing.assert_allclose(neg, numerator, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(unpack(packed, 3), curvature, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("k", [3, 60])
def test_shares_of_a_slab_that_is_listed_in_many_parts_add_up(layout, k, rng):
    """More entries than are listed at a time, and (k = 60) more rows than outer products are."""
    V = rng.poisson(0.8, (400, 12)).astype(float)
    V[:, 5] = 0.0
    Ht = rng.random((12, k)) + 0.01
    assert V.size > 10 * kl_share.EACH * V.shape[1]
    assert (kl_share.OUTER_BYTES // (8 * (k * (k + 1) // 2)) < 400) == (k == 60)
    rows, neg, packed, _ = kullback.kl_rows(
        LAYOUTS[layout](V), Ht, (0.0, 0.0), (2, 1, 0.0), "curvature"
    )
    Y = rows @ Ht.T
    ratio = np.divide(V, Y, out=np.zeros(V.shape), where=V > 0)
    bend = np.divide(ratio, Y, out=np.zeros(V.shape), where=V > 0)
    np.testing.assert_allclose(neg, ratio.T @ rows, rtol=1e-9)
    expected = np.einsum("ij,ia,ib->jab", bend, rows, rows)
    np.testing.assert_allclose(unpack(packed, k), expected, rtol=1e-9, atol=1e-13)
    alone = kullback.kl_rows(LAYOUTS[layout](V), Ht, (0.0, 0.0), (2, 1, 0.0), "gradient")
    np.testing.assert_array_equal(alone[1], neg)


@pytest.mark.parametrize("threads", [1, 3])
def test_half_steps_are_the_same_for_any_number_of_threads(threads, rng, monkeypatch):
    """Sums of waves, added up by whoever solves the rows; least squares and Kullback-Leibler."""
    monkeypatch.setattr(driver, "CPU_COUNT", threads)
    columns, k = 2 * driver.BLOCK + 100, 4
    V = sparse_counts(rng, 90, columns, 9)
    Ht = rng.random((columns, k))
    for loss, solver in ((KL, Newton()), (make_loss(2.0), ALS())):
        waves = [
            driver.formed(solver.visit(loss, V[a : a + 30], (), (Ht,), (FREE,))[1][0])
            for a in range(0, 90, 30)
        ]
        for penalty in (FREE, Penalty(0.2, 0.4)):
            expected = solver.half_step(Ht, add(waves), penalty)
            found = [driver.half_step(solver, Ht, add(waves), penalty)]
            if loss is KL:
                found.append(driver.solve_columns(solver, Ht, waves, penalty)[0])
            for by_threads in found:
                np.testing.assert_allclose(by_threads, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("columns", [40, 5000, 40_000])
def test_least_squares_by_parts_are_those_of_all_rows(columns, rng, monkeypatch):
    """The factor, its loss and what is ahead of it; the same bits for any number of threads."""
    V, loss, solver = sparse_counts(rng, 60, columns, 9), make_loss(2.0), ALS()
    Ht, penalty = rng.random((columns, 4)), Penalty(0.02, 0.4)
    waves = [solver.visit(loss, V[a : a + 30], (), (Ht,), (FREE,))[1][0] for a in (0, 30)]
    Ht[:, 3] = 1e3  # would be led to zero, and is not
    expected = solver.half_step(Ht, add(waves), penalty)
    ahead, _ = extrapolated(expected, Ht, 0.7)
    squares, found = float(V.multiply(V).sum()), []
    for threads in (1, 3):
        monkeypatch.setattr(driver, "CPU_COUNT", threads)
        found.append(driver.solve_least_squares(solver, Ht, waves, penalty, squares, 0.7))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    value = loss.value(add(waves), expected, squares)
    assert 0.0 < found[0].loss == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(found[0].short, expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found[0].ahead, ahead, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_sums_that_nobody_else_needs_are_added_up_in_place(threads, parts, rng, monkeypatch):
    """To the same bits, also within what merges itself; arrays of others stay as they are."""
    monkeypatch.setattr(driver, "CPU_COUNT", threads)
    monkeypatch.setattr(driver, "LARGE", 0)
    monkeypatch.setattr(driver, "SHARED", 8 * 7 * 6)  # the curvature, and not the counts

    def draw():
        small = [rng.standard_cauchy((7, 3)) for _ in range(2)]
        return Columns(small[0], rng.random(3), small[1], rng.standard_cauchy((7, 6)), 1.5)

    found = [(draw(), np.float32(rng.random((2, 2))), 3) for _ in range(parts)]
    expected = add(found)
    first, narrow = found[0][0], [some[1].copy() for some in found]
    sums = driver.add_up(found)
    for name in ("counts", "mass", "pull", "curvature"):
        same = getattr(expected[0], name)
        assert getattr(sums[0], name).tobytes() == same.tobytes(), name
        assert getattr(sums[0], name) is getattr(first, name)
    assert sums[0].value == 1.5 * parts
    assert sums[2] == 3 * parts
    np.testing.assert_array_equal(sums[1], expected[1])
    np.testing.assert_array_equal([some[1] for some in found], narrow)  # float32: summed wider
    theirs = kernels.own(rng.random((7, 3)))
    assert driver.add_up([theirs, theirs]) is not theirs
    assert add([first, first]).counts is not first.counts  # and the way is forgotten afterwards


@pytest.mark.parametrize("k", [3, 11])
def test_soft_rows_share_through_every_component(k, rng):
    """All components alive (the dense share) give the same sums as few (the scattered one)."""
    V, Ht = counts(rng, 12), rng.random((8, k)) + 0.1
    for rule in [(3, 0, 1e-9), EXACT_ROWS]:
        rows, neg, packed, _ = kullback.kl_rows(sp.csr_array(V), Ht, (0.0, 0.0), rule, "curvature")
        numerator, curvature = naive.kl_terms(V.tolist(), rows.tolist(), Ht.T.tolist())
        np.testing.assert_allclose(neg, numerator, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(unpack(packed, k), curvature, rtol=1e-9, atol=1e-12)
    assert np.sum(rows > 0, axis=1).max() < k or k == 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_depends_on_nothing_but_itself(layout, rng):
    V, Ht = counts(rng, 30), rng.random((8, 4))
    whole = kullback.kl_rows(LAYOUTS[layout](V), Ht, (0.0, 0.0), EXACT_ROWS)[0]
    for part in (slice(0, 1), slice(7, 20), slice(4, 6)):
        found = kullback.kl_rows(LAYOUTS[layout](V[part]), Ht, (0.0, 0.0), EXACT_ROWS)[0]
        np.testing.assert_array_equal(found, whole[part])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_bit_depends_on_where_arrays_lie(layout, rng):
    """What is allocated before decides where; the loss took part in loops that store, and did."""
    V, Ht = rng.poisson(2.0, (40, 90)).astype(float), rng.gamma(0.3, 1.0, (90, 10))
    for row in V:
        slab, found = LAYOUTS[layout](row[None]), set()
        for _ in range(12):
            between = [np.empty(size) for size in rng.integers(1, 3000, rng.integers(20))]
            rows, kept, value = kullback.kl_lists(slab, Ht, (0.0, 0.0), EXACT_ROWS)
            found.add((rows.tobytes(), *(part.tobytes() for part in kept), value))
            del between
        assert len(found) == 1


def test_dense_and_csr_are_the_same_arithmetic(rng):
    V, Ht = counts(rng, 30), rng.random((8, 4))
    dense = kullback.kl_rows(V, Ht, (0.1, 0.2), EXACT_ROWS, "curvature")
    sparse = kullback.kl_rows(sp.csr_array(V), Ht, (0.1, 0.2), EXACT_ROWS, "curvature")
    for a, b in zip(dense, sparse, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_that_no_component_reaches_cost_but_never_break(layout, rng):
    V, Ht = counts(rng) + 1.0, rng.random((8, 3))
    Ht[[0, 6]] = 0.0
    rows, neg, _, value = kullback.kl_rows(
        LAYOUTS[layout](V), Ht, (0.0, 0.0), EXACT_ROWS, "gradient"
    )
    kept = [1, 2, 3, 4, 5, 7]
    expected = kullback.kl_rows(V[:, kept], Ht[kept], (0.0, 0.0), EXACT_ROWS)[0]
    np.testing.assert_allclose(rows, expected, rtol=1e-12)
    assert np.isfinite(value)
    assert not neg[[0, 6]].any()
    nothing = kullback.kl_rows(LAYOUTS[layout](V), np.zeros((8, 3)), (0.0, 0.0), EXACT_ROWS)
    assert not nothing[0].any()
    assert np.isfinite(nothing[3])


@pytest.mark.parametrize("penalty", [FREE, Penalty(0.5, 0.0), Penalty(0.2, 0.4)], ids=str)
def test_rows_end_within_the_gap_they_promise(penalty, rng):
    V, Ht = sparse_counts(rng, 200, 40), rng.random((40, 6))
    weights = (penalty.l1, penalty.l2)
    best = kullback.kl_rows(V, Ht, weights, (2, 200, 1e-13))
    for tol in (1e-2, 1e-4, 1e-7):
        loose = Newton(tol=1e-9)
        (rows,), (terms,) = loose.visit(KL, V, (), (Ht,), (penalty,), gains=(tol,))
        found = kullback.kl_rows(V, Ht, weights, (loose.soft, loose.steps, tol))
        np.testing.assert_array_equal(rows, found[0])
        excess = terms.value + penalty.value(rows) - best[3] - penalty.value(best[0])
        assert -1e-9 * best[3] <= excess <= tol * V.sum()


def data(name, rng):
    if name == "counts":
        return sparse_counts(rng, 150, 40)
    if name == "planted":
        return planted(rng, 100, 25, 4)
    return sp.csr_array(rng.poisson(planted(rng, 150, 30, 4)).astype(float))


@pytest.mark.parametrize("penalty", [FREE, Penalty(0.3, 0.2)], ids=str)
@pytest.mark.parametrize("solver", [Newton(), Newton(curved=False), Newton(limit=0)], ids=str)
@pytest.mark.parametrize("name", ["counts", "planted", "poisson"])
def test_exact_loss_never_rises(name, solver, penalty, rng):
    V = data(name, rng)
    objectives, *_, guard = descend(V, rng.random((V.shape[1], 5)), 25, solver, penalty)
    assert guard.rejected == 0
    assert np.all(np.diff(objectives) <= 1e-9 * objectives[:-1])
    assert objectives[-1] < 0.85 * objectives[0]


def test_curvature_gets_further_than_em(rng):
    V = data("poisson", rng)
    Ht = rng.random((V.shape[1], 4))
    newton = descend(V, Ht, 15)[0]
    em = descend(V, Ht, 15, Newton(curved=False))[0]
    assert newton[-1] < em[-1] - 0.01 * abs(em[-1])


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e9])
def test_scaled_data_give_the_same_iterations(scale, rng):
    V, Ht = data("counts", rng), rng.random((40, 5))
    plain = descend(V, Ht, 8, fresh=True)
    scaled = descend(V * scale, Ht, 8, fresh=True)
    np.testing.assert_allclose(scaled[0] / scale, plain[0], rtol=1e-9)
    np.testing.assert_allclose(
        scaled[2] / np.max(scaled[2]), plain[2] / np.max(plain[2]), atol=1e-6
    )


def test_kkt_at_convergence(rng):
    V = data("planted", rng)
    _, W, Ht, _ = descend(V, rng.random((25, 4)), 400, Newton(tol=1e-12))
    W, terms = one(V, Ht, solver=Newton(tol=1e-12))
    gradient = np.sum(W, axis=0) - V.T @ (W * 0) - (V / (W @ Ht.T)).T @ W
    unit = np.sum(W, axis=0)
    assert np.min(gradient / unit) > -1e-3
    assert np.max(np.abs(gradient * Ht) / (unit * Ht.max())) < 1e-4
    assert isinstance(terms, Columns)


def test_waves_that_met_different_factors_add_up(rng):
    """Old statistics with new ones descend, by EM surely: its free energy falls with every wave."""
    V = data("counts", rng).tocsr()
    parts = [V[:50], V[50:100], V[100:]]
    for solver in (Newton(), Newton(curved=False)):
        Ht = rng.random((40, 5)) + 0.1
        waves = [one(part, Ht, solver=solver)[1] for part in parts]
        before = sum(w.value for w in waves)
        for _ in range(4):
            for s, part in enumerate(parts):
                Ht = solver.half_step(Ht, add(waves), FREE)
                waves[s] = one(part, Ht, solver=solver)[1]
        after = sum(one(part, Ht)[1].value for part in parts)
        assert after < 0.9 * before


def test_a_sum_without_all_curvatures_has_none(rng):
    V, Ht = data("counts", rng).tocsr(), rng.random((40, 5))
    curved, plain = one(V, Ht)[1], one(V, Ht, solver=Newton(curved=False))[1]
    for parts in ([curved, plain], [plain, curved]):
        total = add(parts)
        assert total.curvature is None
        assert total.pull is None
        np.testing.assert_allclose(
            Newton().half_step(Ht, total, FREE), plain.counts / plain.mass, rtol=1e-12
        )


def test_a_pass_that_raised_both_objectives_is_taken_back(rng):
    """To what EM makes of the sums of the last good one."""
    V, Ht = data("counts", rng), rng.random((40, 5))
    solver, problem = Newton(), Problem(KL, FREE)
    model = Model(0, Ht, [None], 0.0, 1.0)
    seen, moves = [], []
    for more, ahead, rejected in ((0.0, True, 0), (1e4, False, 0), (1e4, False, 1)):
        terms = one(V, model.target)[1]
        seen.append(terms._replace(value=terms.value + more))
        model.visit_columns(0, ModelSums(seen[-1], 0.0, 0.0), problem, solver)
        moves.append(model.short)
        model.close_pass(problem, solver)
        assert (model.target is not model.short, model.rejected) == (ahead, rejected)
    back = seen[0].counts / seen[0].mass
    np.testing.assert_allclose(model.short, back, rtol=1e-12)
    assert np.any(moves[1] != back)
    assert np.any(moves[2] != back)
    assert model.objectives == [seen[0].value] * 3
    assert solver.safer(1).box < solver.box
    assert not solver.safer(3).curved


@pytest.mark.parametrize("higher", ["met", "told"])
def test_a_pass_that_raised_one_objective_alone_goes_on(higher, rng):
    """What was told may have been too low, and what was met that of waves on their own."""
    V, solver, problem = data("counts", rng), Newton(), Problem(KL, FREE)
    model = Model(0, rng.random((40, 5)), [None], 0.0, 1.0)
    for _ in range(2):
        sums = ModelSums(one(V, model.target)[1], 0.0, 0.0)
        model.visit_columns(0, sums, problem, solver)
        model.close_pass(problem, solver)
    lowest, (met, told, waves) = model.reported, model.good
    model.good = (0.5 * met, 2.0 * told, waves) if higher == "met" else (2.0 * met, 0.0, waves)
    model.told = 0.5 * lowest
    model.visit_columns(0, ModelSums(one(V, model.target)[1], 0.0, 0.0), problem, solver)
    moved = model.short
    model.close_pass(problem, solver)
    assert model.short is moved
    assert model.momentum == 0.5
    assert model.reported == 0.5 * lowest  # it does not rise
    assert model.objectives[-1] == pytest.approx(met, rel=0.2)


def test_entries_stay_in_the_box_and_zeros_can_leave(rng):
    V, Ht = data("poisson", rng), rng.random((30, 4)) + 0.5
    Ht[7, 2] = 0.0
    terms = one(V, Ht)[1]
    new = replace(Newton(), box=2.0).half_step(Ht, terms, FREE)
    assert np.all(new <= np.maximum(2.0 * Ht, 1e-3 * Ht.max(axis=1)[:, None]) * (1 + 1e-12))
    assert np.all(new[terms.counts > 0] >= 0.5 * Ht[terms.counts > 0] * (1 - 1e-12))
    pulled = terms._replace(pull=terms.pull + 1e3)
    assert Newton().half_step(Ht, pulled, FREE)[7, 2] > 0.0


def test_zero_data_give_zeros():
    for V in (np.zeros((4, 5)), sp.csr_array((4, 5))):
        W, terms = one(V, np.ones((5, 2)))
        assert not W.any()
        assert terms.value == 0.0
        assert not Newton().half_step(np.ones((5, 2)), terms, FREE).any()


@pytest.mark.parametrize("beta", [2.0, 0.0, 1.5])
def test_other_losses_are_refused(beta):
    with pytest.raises(ParameterError, match="solver='newton' can't minimise beta_loss="):
        Newton().check(make_loss(beta))
