"""Numbers from outside: R's NMF step by step, errors known for real data, the SVD floor."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from dasknmf import NMF

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

# R package NMF 0.25, method "brunet", rank 3, start W0[i,a] = 1 + (7i + 13a) mod 11,
# H0[a,j] = 1 + (5a + 3j) mod 7; one iteration updates H, then W. Golub ALL/AML, the first 200
# genes and all 5000: (iterations, Kullback-Leibler divergence, squared Frobenius error).
GOLDEN = {
    200: [
        (1, 833811.488473, 2393514661.3829),
        (2, 817416.950739, 2350661651.3453),
        (10, 722679.439051, 2073877564.7679),
        (100, 561325.093540, 1550654046.6386),
        (500, 543594.579010, 1535133429.5928),
    ],
    5000: [
        (1, 21153089.105041, 90540411521.2939),
        (2, 20830495.150818, 89464823524.6983),
        (10, 17936356.737283, 77180595890.8478),
        (100, 13833234.689069, 58863255604.4409),
        (500, 13806609.558630, 58797745348.3132),
    ],
}


@pytest.mark.parametrize("genes", GOLDEN)
def test_kullback_leibler_follows_the_golden_trace(genes, golub):
    V = golub[:genes]
    m, n = V.shape
    W0 = 1.0 + (7 * np.arange(m)[:, None] + 13 * np.arange(3)) % 11
    H0 = 1.0 + (5 * np.arange(3)[:, None] + 3 * np.arange(n)) % 7
    for iterations, kl, sse in GOLDEN[genes]:
        model = NMF(
            3, solver="mu", beta_loss="kullback-leibler", init="custom", tol=0, max_iter=iterations
        )
        W = model.fit_transform(V, W=W0, H=H0)
        precision = 1e-10 if iterations <= 100 else 1e-8
        assert model.history_["loss"][-1] == pytest.approx(kl, rel=precision)
        found = np.sum((V - W @ model.components_) ** 2)
        assert found == pytest.approx(sse, rel=precision)


# Relative Frobenius error ||V - WH||/||V||: the truncated SVD (no factorisation of this rank can
# be better), and the best of three runs of scikit-learn's coordinate descent, 500 iterations each.
BEST = [
    ("golub", 2, 0.555499, 0.556367),
    ("golub", 3, 0.501120, 0.502698),
    ("golub", 4, 0.454741, 0.457759),
    ("golub", 5, 0.426718, 0.431979),
    ("reuters", 10, 0.833147, 0.835812),
    ("reuters", 20, 0.775866, 0.781182),
    pytest.param("indian_pines", 4, 0.035722, 0.035728, marks=pytest.mark.slow),
    pytest.param("indian_pines", 8, 0.028221, 0.028290, marks=pytest.mark.slow),
    ("indian_pines", 16, 0.019610, 0.019924),
]
PASSES = {("indian_pines", 16): 60}


@pytest.mark.parametrize(("data", "k", "floor", "best"), BEST)
def test_errors_match_the_best_known_and_never_pass_the_floor(data, k, floor, best, request):
    X = request.getfixturevalue(data)
    errors = []
    for init, seed in [
        ("nndsvd", 0),
        *(("sample", seed) for seed in range(4)),
        *(("random", seed) for seed in range(8)),
    ]:
        model = NMF(k, init=init, random_state=seed, tol=1e-7, max_iter=PASSES.get((data, k), 300))
        model.fit(X)
        errors.append(model.history_["relative_error"][-1])
        if errors[-1] <= best + 0.01 * (best - floor):
            break
    assert min(errors) >= floor - 5e-7  # the floor is given to six digits
    assert min(errors) <= best + 0.01 * (best - floor)


@pytest.mark.skipif("DASKNMF_REFERENCE" not in os.environ, reason="DASKNMF_REFERENCE is not set")
def test_the_golden_numbers_are_those_of_the_reference_table():
    """Guards the copied figures, where the table they come from is at hand."""
    path = Path(os.environ["DASKNMF_REFERENCE"]) / "mu_golden_trace.csv"
    with path.open() as lines:
        rows = {
            (int(row["data"].removeprefix("golub")), int(row["iterations"])): row
            for row in csv.DictReader(lines)
        }
    for genes, trace in GOLDEN.items():
        for iterations, kl, sse in trace:
            row = rows[genes, iterations]
            assert (kl, sse) == (float(row["KL"]), float(row["SSE"]))
