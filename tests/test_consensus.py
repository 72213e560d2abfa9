"""Consensus components of a study: what its restarts have in common, and the W refitted to them."""

import re

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from distributed import Client
from scipy.optimize import nnls

from dasknmf import FactorWarning, ParameterError, RankStudy
from tests.conftest import planted, sparse_counts


def units(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def X():
    return planted(np.random.default_rng(5), 160, 30, 3, noise=0.2)


@pytest.fixture(scope="module")
def study(X):
    return RankStudy((2, 3), n_init=6, holdout=0, random_state=0).fit(X)


def test_they_are_medians_of_matched_components_in_the_order_of_the_best_model(study):
    found = study.consensus_components(3)
    best = units(study.model(3).components_)
    medians = []
    for own in best:  # restarts agree here: the nearest component of each is the cluster
        near = []
        for restart in study._restarts[3]:
            others = units(restart.H)
            near.append(others[np.argmax(others @ own)])
        medians.append(np.median(near, axis=0))
    np.testing.assert_allclose(found.components, units(np.array(medians)), rtol=1e-12)
    assert found.kept.tolist() == [6, 6, 6]
    assert found.density.shape == (6, 3)


def test_an_outlier_has_no_say_and_a_threshold_decides_what_is_one(study):
    found = study.consensus_components()
    assert study.best_rank_ == len(found.kept)
    strict = float(np.sort(found.density.ravel())[-1])  # the farthest one is out
    assert study.consensus_components(threshold=strict).kept.sum() == found.kept.sum() - 1
    with pytest.warns(FactorWarning, match=r"components \[0, 1, 2\] of 3 are medians of outliers"):
        study.consensus_components(3, threshold=1e-12)


@pytest.mark.parametrize("kind", ["dense", "wide", "csr", "chunks", "float32"])
def test_usages_are_least_squares_with_the_components_held(X, rng, kind):
    given = {
        "dense": X, "wide": X.T.copy(), "csr": sparse_counts(rng), "float32": X.astype("f4"),
        "chunks": da.from_array(X, chunks=(40, -1)),
    }[kind]  # fmt: skip
    study = RankStudy((3,), n_init=3, holdout=0, random_state=0).fit(given)
    model = study.consensus_model(given)
    H = model.components_
    consensus = study.consensus_components().components
    np.testing.assert_allclose(units(H), consensus, rtol=1e-4 if kind == "float32" else 1e-12)
    np.testing.assert_allclose(
        np.linalg.norm(H, axis=1), np.linalg.norm(study.model().components_, axis=1), rtol=1e-4
    )
    assert isinstance(model.W_, da.Array) == (kind == "chunks")
    dense = given.toarray() if sp.issparse(given) else np.asarray(given)
    expected = np.array([nnls(H.T.astype(float), row.astype(float))[0] for row in dense])
    tight = 2e-3 if kind == "float32" else 1e-8
    np.testing.assert_allclose(np.asarray(model.W_), expected, atol=tight * expected.max())
    error = np.linalg.norm(dense - expected @ H)
    assert model.reconstruction_err_ == pytest.approx(error, rel=1e-5)
    assert model.history_["reads"].tolist() == [1.0]
    np.testing.assert_array_equal(np.asarray(model.transform(given)), np.asarray(model.W_))


def test_kullback_leibler_and_weights(rng):
    X = rng.poisson(5 * planted(rng, 100, 20, 2, noise=0)).astype(float)
    M = rng.random(X.shape) < 0.9
    study = RankStudy((2,), beta_loss="kullback-leibler", n_init=3, random_state=0)
    study.fit(X, weights=M)
    model = study.consensus_model(X, weights=M)
    Y = model.W_ @ model.components_
    seen = np.where(X > 0, X, 1)
    divergence = np.sum(M * (X * np.log(seen / Y) - X + Y))
    assert model.reconstruction_err_ == pytest.approx(np.sqrt(2 * divergence), rel=1e-6)
    np.testing.assert_allclose(model.W_, model.transform(X, weights=M), rtol=1e-3, atol=1e-8)


def test_on_a_cluster_rows_have_the_same_bits(study, X, cluster):
    chunks = da.from_array(X, chunks=(40, -1))
    here = np.asarray(study.consensus_model(chunks, 2).W_)
    with Client(cluster) as client:
        there = np.asarray(study.consensus_model(chunks, 2, client=client).W_)
    np.testing.assert_array_equal(there, here)


def test_one_restart_has_no_consensus(X):
    study = RankStudy((2,), n_init=1, holdout=0, random_state=0).fit(X)
    with pytest.raises(ParameterError, match=r"of 1 restart is undefined.*n_init of at least 2"):
        study.consensus_components()
    with pytest.raises(ParameterError, match=r"of 1 restart is undefined"):
        study.consensus_model(X)


def test_what_can_not_be_is_refused(study, X):
    with pytest.raises(ParameterError, match=r"rank=7 was not studied; expected one of \(2, 3\)"):
        study.consensus_components(7)
    with pytest.raises(ParameterError, match=re.escape("threshold=0 and neighbours=0.3")):
        study.consensus_components(threshold=0)
    with pytest.raises(ValueError, match="29 features"):
        study.consensus_model(X[:, 1:])
    bad = X.copy()
    bad[5, 2] = np.nan
    with pytest.raises(ValueError, match="1 NaN value, the first at row 5, column 2"):
        study.consensus_model(bad)
