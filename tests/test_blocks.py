"""Bi-cross-validation: blocks of rows and columns held out of fits that share every read."""

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from click.testing import CliRunner
from distributed import Client
from scipy.optimize import nnls

from dasknmf import NMF, ParameterError, RankStudy, cli, studying
from dasknmf.numerics.blocks import Blocks
from dasknmf.numerics.observed import NAN, Observed, Rule
from tests.conftest import planted, sparse_counts

FOLDS = (2, 3)
QUIET = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def X():
    return planted(np.random.default_rng(5), 160, 36, 3, noise=0.2)


@pytest.fixture
def seen(monkeypatch):
    """What the engine was asked, started with and found."""
    known = {}
    engine, begin = studying.study, studying.study_start

    def starting(request, lots, *rest):
        start, errors = begin(request, lots, *rest)
        known["start"] = start
        return start, [1e-2] * len(errors)  # as a fit from custom factors begins

    def studied(executor, settings, lots, keeper):
        known["found"] = engine(executor, settings, lots, keeper)
        return known["found"]

    monkeypatch.setattr(studying, "study_start", starting)
    monkeypatch.setattr(studying, "study", studied)
    return known


def rows_given(columns, targets, weights):
    """Non-negative least squares of every target (a row), one after the other."""
    found = []
    for target, m in zip(targets, weights, strict=True):
        root = np.sqrt(m)
        found.append(nnls(columns * root[:, None], target * root)[0])
    return np.array(found)


def error_of(V, M, H, rows, columns):
    """Owen & Perry's |A - W_A H_A|² of one fold, and the weight of A, entry by entry.

    H: columns × k, of which those of the held ``columns`` are not looked at.
    """
    H_D = H[~columns]
    W = rows_given(H_D, V[:, ~columns], M[:, ~columns])
    H_A = rows_given(W[~rows], V[~rows][:, columns].T, M[~rows][:, columns].T)
    A, m = V[np.ix_(rows, columns)], M[np.ix_(rows, columns)]
    return np.sum(m * (A - W[rows] @ H_A.T) ** 2), np.sum(m)


@QUIET
@pytest.mark.parametrize("kind", ["tall", "wide", "csr", "float32", "missing", "weights", "tiny"])
def test_errors_of_blocks_are_those_of_a_naive_twin(X, rng, seen, kind):
    M, given, more = np.ones(X.shape), X, {}
    if kind == "wide":
        given, M = X.T.copy(), M.T
    elif kind == "csr":
        given = sparse_counts(rng)
        M = np.ones(given.shape)
    elif kind == "float32":
        given = X.astype("f4")
    elif kind == "missing":
        M = (rng.random(X.shape) < 0.8).astype(float)
        given = np.where(M > 0, X, np.nan)
    elif kind == "weights":
        M = rng.random(X.shape) * (rng.random(X.shape) < 0.7)
        more = {"weights": M}
    elif kind == "tiny":  # too small for a start from a sample
        given, M = X[:14, :12].copy(), M[:14, :12]
    study = RankStudy(
        (2, 3), n_init=1, folds=FOLDS, random_state=1, max_iter=4,
        missing="nan" if kind == "missing" else None,
    ).fit(given, **more)  # fmt: skip
    V = np.nan_to_num(given.toarray() if sp.issparse(given) else given).astype(float)
    wide = V.shape[1] > V.shape[0]
    V, M = (V.T, M.T) if wide else (V, M)
    held = np.zeros(V.shape)
    for k in (2, 3):
        total, weight, means = 0.0, 0.0, []
        for fold in (fold for fold in seen["found"].folded if fold.lot.k == k):
            rows = fold.lot.fold.held_rows(0, len(V))
            columns = fold.lot.fold.held_columns(V.shape[1])
            held[np.ix_(rows, columns)] += 1
            assert not fold.short[columns].any()
            error, m = error_of(V, M, fold.short.astype(float), rows, columns)
            rough = 1e-4 if kind == "float32" else 1e-7
            assert fold.held.error == pytest.approx(error, rel=rough)
            assert fold.held.weight == pytest.approx(m, rel=1e-12)
            total, weight = total + fold.held.error, weight + m
            means.append(fold.held.error / m)
        row = study.table()[k - 2]
        assert row["holdout_error"] == pytest.approx(total / weight, rel=1e-12)
        spread = np.sqrt(np.var(means) * 6 / 5 / 6)
        assert row["holdout_se"] == pytest.approx(spread, rel=1e-9)
    assert (held == 2).all()  # each entry once for each rank


@QUIET
@pytest.mark.parametrize("alpha", [0.0, 0.01])
@pytest.mark.parametrize("wide", [False, True])
def test_the_fit_of_a_fold_is_a_fit_of_what_is_left_alone(X, seen, wide, alpha):
    given = X.T.copy() if wide else X
    settings = {"alpha_W": alpha, "l1_ratio": 0.5, "max_iter": 6, "tol": 0, "waves": 1}
    RankStudy((3,), n_init=1, folds=(2, 2), random_state=0, **settings).fit(given)
    for number, fold in enumerate(seen["found"].folded, 1):
        rows = fold.lot.fold.held_rows(0, X.shape[0])
        columns = fold.lot.fold.held_columns(X.shape[1])
        start = seen["start"].short[number][~columns].T
        assert not seen["start"].short[number][columns].any()
        D = X[np.ix_(~rows, ~columns)]
        model = NMF(3, init="custom", compress=False, **settings)
        if wide:
            model.fit(np.ascontiguousarray(D.T), W=start.T.copy())
        else:
            model.fit(D, H=start)
        assert fold.n_iter == 6
        assert fold.loss == pytest.approx(model.history_["loss"][5], rel=1e-9)
        if not wide:
            np.testing.assert_allclose(fold.short[~columns].T, model.components_, atol=1e-6)


def test_held_blocks_change_nothing_of_the_fits_that_do_not_see_them(X, seen):
    """The start, too: no entry of A has a say in H_D."""
    study = RankStudy((3,), n_init=1, folds=(2, 2), random_state=0).fit(X)
    before = seen["found"].folded[2]
    rows = before.lot.fold.held_rows(0, len(X))
    columns = before.lot.fold.held_columns(X.shape[1])
    other = X.copy()
    other[np.ix_(rows, columns)] = other[np.ix_(rows, columns)][::-1, ::-1]
    study.fit(other)
    np.testing.assert_allclose(seen["found"].folded[2].short, before.short, rtol=1e-9, atol=1e-12)
    assert seen["found"].folded[2].held.error > before.held.error


@QUIET
def test_folds_cost_no_read(X):
    reads = [
        RankStudy((2, 3, 4), n_init=3, holdout=0, folds=f, tol=0, max_iter=3, random_state=0)
        .fit(da.from_array(X, chunks=(40, -1))).reads_
        for f in (None, (2, 2), (3, 4))
    ]  # fmt: skip
    assert reads[0] == reads[1] == reads[2]


@pytest.mark.parametrize(
    ("seed", "kind"),
    [
        (0, "dense"),
        (0, "csr"),
        *(
            pytest.param(s, k, marks=pytest.mark.slow)
            for s in range(1, 6)
            for k in ("dense", "csr")
        ),
    ],
)
def test_the_planted_rank_is_the_smallest_within_a_standard_error_of_the_least(seed, kind):
    rng = np.random.default_rng(seed)
    W, H = (np.where(rng.random(s) < 0.5, rng.gamma(1, 1, s), 0.0) for s in ((200, 4), (4, 60)))
    X = W @ H
    X = np.maximum(X + 0.2 * X.mean() * rng.standard_normal(X.shape), 0)
    if kind == "csr":
        X = sp.csr_array(rng.poisson(5 * W @ H).astype(float))
    study = RankStudy(range(2, 7), n_init=1, folds=(2, 2), random_state=seed).fit(X)
    table = study.table()
    assert study.best_rank_ == 4
    best = table[table["rank"] == 4][0]
    assert (table["holdout_se"] > 0).all()
    assert best["holdout_error"] <= table["holdout_error"].min() + best["holdout_se"]
    fewer = table[table["rank"] < 4]
    assert (fewer["holdout_error"] > best["holdout_error"] + best["holdout_se"]).all()


@QUIET
def test_the_same_bits_on_a_cluster(X, cluster, many_slabs):
    chunks = da.from_array(X, chunks=(20, -1))
    asked = RankStudy((2, 3), n_init=1, folds=(2, 2), random_state=0, tol=0, max_iter=2)
    here = asked.fit(chunks).table()
    with Client(cluster) as client:
        assert asked.fit(chunks, client=client).table().tobytes() == here.tobytes()


def test_groups_are_a_hash_that_no_cut_changes():
    blocks = Blocks((3, 4), seed=7)
    whole = blocks.rows(0, 3000)
    np.testing.assert_array_equal(whole[1000:1200], blocks.rows(1000, 1200))
    np.testing.assert_array_equal(whole[[5, 70]], blocks.rows_of(np.array([5, 70])))
    counts = blocks.counts((3000, 400))
    assert [c.sum() for c in counts] == [3000, 400]
    assert abs(counts[0] / 3000 - 1 / 3).max() < 0.03
    swapped = Blocks((4, 3), seed=7, swapped=True)  # of the transpose: the same of X
    np.testing.assert_array_equal(swapped.rows(0, 400), blocks.columns(400))
    np.testing.assert_array_equal(swapped.columns(3000), whole)
    assert not np.array_equal(Blocks((3, 4), seed=8).rows(0, 3000), whole)
    assert not np.array_equal(blocks._groups(np.arange(50), 4, of_columns=False),
                              blocks.columns(50))  # fmt: skip


@pytest.mark.parametrize("kind", ["dense", "csr", "missing", "weights", "csr weights"])
def test_sums_of_blocks_are_those_of_their_entries(rng, kind):
    V = sparse_counts(rng, 50, 20)
    M = np.ones(V.shape)
    if "weights" in kind:
        M = rng.integers(0, 3, V.shape).astype(float)
    values = V if "csr" in kind else V.toarray()
    if kind == "missing":
        M = (rng.random(V.shape) < 0.8).astype(float)
        values = np.where(M > 0, values, np.nan)
    slab = values
    if "weights" in kind or kind == "missing":
        rule = Rule(NAN) if kind == "missing" else Rule()
        slab = Observed(values, None if kind == "missing" else M, rule, np.arange(30, 80))
    blocks = Blocks((2, 3), seed=1)
    squares, amount = blocks.sums(slab, 30)
    dense, rows, columns = V.toarray(), blocks.rows(30, 80), blocks.columns(20)
    for r in range(2):
        for c in range(3):
            part = np.ix_(rows == r, columns == c)
            assert squares[r, c] == pytest.approx(np.sum(M[part] * dense[part] ** 2), rel=1e-12)
            assert amount[r, c] == pytest.approx(np.sum(M[part]), rel=1e-12)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        (2, "folds=2; expected None or two integers"),
        ((2,), "expected None or two integers"),
        ((1, 2), "has 1; expected"),
        ((2, 2.5), "has 2.5; expected"),
        ("22", "folds='22'; expected"),
        ((2, 36), "groups of .* rows and .* columns; expected none empty"),
        ((80, 2), "expected none empty"),
    ],
)
def test_folds_that_can_not_be_are_refused(X, folds, message):
    with pytest.raises(ParameterError, match=message):
        RankStudy((2,), folds=folds, random_state=0).fit(X)


def test_a_rank_above_what_a_fold_leaves_and_other_losses_are_refused(X):
    with pytest.raises(ParameterError, match=r"at least 30 \(the largest rank\)"):
        RankStudy((2, 30), folds=(2, 2), random_state=0).fit(X)
    with pytest.raises(ParameterError, match="bi-cross-validation is of least squares"):
        RankStudy((2,), folds=(2, 2), beta_loss="kullback-leibler").fit(X)


def test_the_table_the_picture_and_the_store_have_the_standard_error(X, tmp_path):
    pytest.importorskip("matplotlib")
    study = RankStudy((2, 3), n_init=1, folds=(2, 2), random_state=0).fit(X)
    assert study.table().dtype.names[-1] == "holdout_se"
    bars = [ax for ax in study.plot() if ax.containers]
    assert [ax.get_title() for ax in bars] == ["hold-out error"]
    assert "standard error" in study.report(tmp_path / "s.html").read_text(encoding="utf8")
    study.save(tmp_path / "study.zarr")
    assert study.model(3).holdout == 0


def test_the_command_line_takes_folds(X, tmp_path):
    np.save(tmp_path / "V.npy", X)
    call = ["ranks", str(tmp_path / "V.npy"), "--ranks", "2:3", "--n-init", "1", "--folds"]
    done = CliRunner().invoke(cli.main, [*call, "2x2"])
    assert done.exit_code == 0, done.output
    assert "holdout_se" in done.output
    refused = CliRunner().invoke(cli.main, [*call, "22"])
    assert refused.exit_code == 2
    assert "expected such as 2x2" in refused.output
