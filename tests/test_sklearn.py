"""scikit-learn's contract: its own estimator checks, and what its users rely on."""

import numpy as np
import pytest
import scipy.sparse as sp
from conftest import planted
from sklearn import decomposition
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from dasknmf import NMF

ESTIMATORS = [
    NMF(),
    NMF(2, solver="hals", max_iter=300),
    NMF(2, beta_loss="kullback-leibler", max_iter=300),
]


@parametrize_with_checks(ESTIMATORS)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::dasknmf.FactorWarning")
def test_estimator_checks(estimator, check):
    check(estimator)


quiet = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def test_parameters_and_defaults_are_scikit_learns():
    ours, theirs = NMF().get_params(), decomposition.NMF().get_params()
    assert set(theirs) <= set(ours)
    differ = {name for name in theirs if ours[name] != theirs[name]}
    assert differ == {"solver"}  # 'cd' is served, too, but 'auto' chooses better here


def test_the_toy_tutorial_runs_with_only_the_import_changed():
    X = np.array([[1, 1], [2, 1], [3, 1.2], [4, 1], [5, 0.8], [6, 1]])
    model = NMF(n_components=2, init="random", random_state=0)
    W = model.fit_transform(X)
    H = model.components_
    np.testing.assert_allclose(W @ H, X, atol=1e-4)
    X_new = np.array([[1, 0], [1, 6.1], [1, 0], [1, 4], [3.2, 1], [0, 4]])
    W_new = model.transform(X_new)
    assert W_new.shape == (6, 2)
    np.testing.assert_array_equal(model.inverse_transform(W_new), W_new @ H)
    assert list(model.get_feature_names_out()) == ["nmf0", "nmf1"]


@quiet
def test_image_compression_beats_scikit_learns_error_in_as_many_iterations():
    X = load_digits().data
    ours = NMF(16, random_state=0, max_iter=20).fit(X)
    theirs = decomposition.NMF(16, random_state=0, init="nndsvda", max_iter=20).fit(X)
    assert ours.reconstruction_err_ < theirs.reconstruction_err_
    compressed = ours.inverse_transform(ours.transform(X))
    assert np.linalg.norm(X - compressed) == pytest.approx(ours.reconstruction_err_, rel=1e-9)


@quiet
def test_topics_of_a_tf_idf_matrix_are_found():
    texts = ["apple banana fruit juice", "banana fruit salad apple", "fruit apple pie juice"] * 5
    texts += ["engine wheel car motor", "car motor road wheel", "wheel engine road car"] * 5
    vectorizer = TfidfVectorizer()
    tfidf = vectorizer.fit_transform(texts)
    for options in ({}, {"beta_loss": "kullback-leibler", "solver": "mu"}):
        model = NMF(n_components=2, random_state=1, max_iter=100, alpha_W=5e-5, **options)
        W = model.fit_transform(tfidf)
        words = vectorizer.get_feature_names_out()
        topics = [set(words[np.argsort(row)[-3:]]) for row in model.components_]
        fruit = next(t for t in topics if "fruit" in t)
        assert fruit <= {"apple", "banana", "fruit", "juice", "salad", "pie"}
        assert len(set(W[:15].argmax(axis=1)) | {0, 1}) == 2
        assert set(W[:15].argmax(axis=1)).isdisjoint(W[15:].argmax(axis=1))


@quiet
@pytest.mark.filterwarnings("ignore:1 of 3 components are zero")  # where L1 has its optimum
@pytest.mark.parametrize("solver", ["als", "hals", "pg", "mu", "cd"])
def test_regularisation_means_what_it_means_in_scikit_learn(solver, rng):
    """The same penalised objective: L1 brings zeros, L2 shrinks, either raises the error."""
    X = planted(rng, 40, 20)
    options = {"n_components": 3, "random_state": 0, "solver": solver, "max_iter": 200}
    plain = NMF(**options).fit(X)
    lasso = NMF(**options, alpha_W=0.5, l1_ratio=1.0)
    W = lasso.fit_transform(X)
    ridge = NMF(**options, alpha_W=0.5).fit(X)
    assert plain.reconstruction_err_ < min(lasso.reconstruction_err_, ridge.reconstruction_err_)
    theirs = decomposition.NMF(
        3, random_state=0, init="nndsvda", max_iter=2000, alpha_W=0.5, l1_ratio=1.0, tol=1e-8
    )
    W_theirs = theirs.fit_transform(X)

    def value(W, H):
        return np.sum((X - W @ H) ** 2) / 2 + 0.5 * (20 * W.sum() + 40 * H.sum())

    assert value(W, lasso.components_) <= value(W_theirs, theirs.components_) * 1.02


@quiet
@pytest.mark.parametrize("init", ["nndsvd", "nndsvda", "nndsvdar"])
@pytest.mark.parametrize("kind", [np.asarray, sp.csr_array, np.transpose])
def test_nndsvd_starts_near_the_data_and_scikit_learns_start(init, kind, rng, many_slabs):
    """One pass of MU from it stays near; on data of rank k the start is scikit-learn's own."""
    X = planted(rng, 60, 20, 3, noise=0.0)
    X /= X.max()  # where scikit-learn's fill, which does not scale with the data, is ours
    data = kind(X)
    expected = decomposition._nmf._initialize_nmf(X, 3, init=init, random_state=0)
    model = NMF(3, init=init, solver="mu", max_iter=1, random_state=0, tol=0)
    with pytest.warns(UserWarning, match="exact zeros") if init == "nndsvd" else no_warning():
        W = model.fit_transform(data)
    H = model.components_
    if kind is np.transpose:
        W, H = H.T, W.T
    # The short factor is not moved before the first pass: H is the start's H up to that pass.
    mask = expected[1] > 1e-6 * expected[1].max()
    if init != "nndsvdar":
        np.testing.assert_allclose(H[mask], expected[1][mask], rtol=1e-6)
    assert np.linalg.norm(X - W @ H) < np.linalg.norm(X - expected[0] @ expected[1]) * 1.001


def no_warning():
    from contextlib import nullcontext

    return nullcontext()


def test_a_fit_that_ran_out_of_passes_says_so(rng):
    with pytest.warns(ConvergenceWarning, match="Maximum number of iterations 2 reached"):
        NMF(3, max_iter=2, random_state=0).fit(planted(rng))


def test_it_works_in_a_pipeline_and_can_be_cloned(rng):
    X = planted(rng)
    pipe = make_pipeline(MinMaxScaler(), NMF(3, random_state=0, tol=0, max_iter=5))
    W = pipe.fit_transform(X)
    assert W.shape == (120, 3)
    again = clone(pipe).fit_transform(X)
    np.testing.assert_array_equal(W, again)


@pytest.mark.parametrize("state", [5, np.random.RandomState(5)])
def test_random_state_decides_the_result(state, rng):
    X = planted(rng)

    def components(state):
        return NMF(3, random_state=state, tol=0, max_iter=3).fit(X).components_

    if isinstance(state, int):
        np.testing.assert_array_equal(components(state), components(5))
        assert not np.array_equal(components(state), components(6))
    else:  # a stream moves on
        assert not np.array_equal(components(state), components(state))


def test_factors_without_custom_init_are_ignored_with_a_warning(rng):
    X = planted(rng)
    with pytest.warns(RuntimeWarning, match="init='custom' only"):
        NMF(3, random_state=0, tol=0, max_iter=2).fit_transform(
            X, W=np.ones((120, 3)), H=np.ones((3, 30))
        )


@quiet
def test_a_custom_start_at_the_solution_stays_there(rng):
    X = planted(rng)
    first = NMF(3, solver="hals", random_state=0, max_iter=300, tol=1e-7)
    W = first.fit_transform(X)
    again = NMF(3, solver="hals", init="custom", max_iter=1, tol=0)
    again.fit(X, W=W, H=first.components_)
    assert again.reconstruction_err_ == pytest.approx(first.reconstruction_err_, rel=1e-4)
    assert again.reconstruction_err_ <= first.reconstruction_err_ * (1 + 1e-12)
