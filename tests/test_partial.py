"""Batches: one is a fit, many lead to it, and what they leave is a bound that can be checked."""

import pickle

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from conftest import planted, sparse_counts
from sklearn.base import clone

import dasknmf
from dasknmf import NMF, DataError, ParameterError
from dasknmf.numerics.losses import make_loss
from dasknmf.numerics.majorants import Sums, bound, majorant

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
LOSSES = ["frobenius", "kullback-leibler", 0.0, 0.5, 1.5, 3.0]
KINDS = [{}, {"solver": "hals"}, {"solver": "mu"}, {"beta_loss": "kullback-leibler"}]


def in_batches(model, X, size=40, rounds=1):
    for _ in range(rounds):
        for start in range(0, X.shape[0], size):
            model.partial_fit(X[start : start + size])
    return model


def error_of(model, X):
    return np.linalg.norm(X - model.transform(X) @ model.components_)


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("kind", [np.asarray, sp.csr_array, lambda X: da.from_array(X, (30, -1))])
def test_one_batch_is_a_fit(options, kind, rng):
    X = kind(planted(rng, noise=0.2))
    model = NMF(3, random_state=0, max_iter=20, **options).partial_fit(X)
    fitted = NMF(3, random_state=0, max_iter=20, **options).fit(X)
    np.testing.assert_array_equal(model.components_, fitted.components_)
    assert model.reconstruction_err_ == fitted.reconstruction_err_
    assert (model.n_samples_seen_, model.n_features_in_, model.n_iter_) == (120, 30, fitted.n_iter_)
    assert not hasattr(model, "W_")


@pytest.mark.parametrize("options", KINDS)
def test_batches_over_and_over_lead_to_the_error_of_fit(options, rng):
    X = planted(rng, rows=120, noise=0.3)
    fitted = NMF(3, random_state=0, max_iter=60, **options).fit(X)
    model = in_batches(NMF(3, random_state=0, max_iter=60, **options), X, rounds=1)
    once = error_of(model, X)
    in_batches(model, X, rounds=4)
    assert error_of(model, X) < min(1.05 * error_of(fitted, X), 1.01 * once)
    assert model._seen.past(0.0).samples == pytest.approx(120)
    assert model.n_samples_seen_ == 600
    assert len(model.history_["loss"]) == 15


def test_the_sums_are_those_of_the_rows_of_every_batch(rng):
    """Rows of the second batch solved by the model's own transform, at the components met last."""
    X = planted(rng, noise=0.3)
    model = NMF(3, random_state=0, max_iter=1, tol=0).partial_fit(X[:70])
    first = model.transform(X[:70])
    H = model.components_
    met = model.transform(X[70:])
    model.partial_fit(X[70:])
    gram = first.T @ first + met.T @ met
    cross = X[:70].T @ first + X[70:].T @ met
    terms = model._seen.sums.terms
    np.testing.assert_allclose(terms.gram, gram, rtol=1e-6)
    np.testing.assert_allclose(terms.cross, cross, rtol=1e-6)
    gradient = model.components_.T @ gram - cross  # KKT of the components given the sums
    assert gradient.min() > -1e-6 * np.abs(cross).max()
    assert np.abs(gradient * model.components_.T).max() < 1e-6 * np.abs(cross).max()
    assert not np.array_equal(H, model.components_)


@pytest.mark.parametrize("beta", LOSSES)
def test_a_majorant_touches_the_loss_and_is_nowhere_below(beta, rng):
    loss = make_loss(beta)
    V, W = rng.gamma(1.0, 1.0, (9, 6)) + 0.1, rng.gamma(1.0, 1.0, (9, 3)) + 0.1
    H = rng.gamma(1.0, 1.0, (6, 3)) + 0.1
    sums = Sums(majorant(loss, loss.share(V, (H,), (W,))[0], H), 0.0, float(np.sum(V**2)), 9.0)

    def value(F):
        return loss.value(loss.share(V, (F,), (W,))[0], F, sums.squares)

    assert bound(loss, sums, H) == pytest.approx(value(H), rel=1e-9)
    for _ in range(50):
        other = H * np.exp(rng.normal(0, 1, H.shape))
        assert bound(loss, sums, other) >= value(other) * (1 - 1e-9)


@pytest.mark.parametrize("beta", ["frobenius", "kullback-leibler", 1.5])
def test_the_loss_told_is_no_less_than_that_of_all_rows_solved_anew(beta, rng):
    X = planted(rng, noise=0.3)
    model = in_batches(NMF(3, random_state=0, beta_loss=beta, max_iter=50), X)
    loss = make_loss(beta)
    W, Ht = model.transform(X), model.components_.T
    least = loss.value(loss.share(X, (Ht,), (W,))[0], Ht, float(np.sum(X**2)))
    assert 0.98 * least < model.history_["loss"][-1] * (1 + 1e-3)
    assert model.history_["loss"][-1] > 0.9999 * least


def test_a_feature_that_comes_late_is_learnt_where_steps_multiply(rng):
    X = sparse_counts(rng, rows=160, density=0.5).toarray()
    X[:80, 7] = 0
    model = in_batches(NMF(3, random_state=0, beta_loss="kullback-leibler"), X, 80, rounds=3)
    expected = (model.transform(X) @ model.components_)[:, 7].sum()
    assert expected == pytest.approx(X[:, 7].sum(), rel=0.5)


def test_missing_entries_are_missing_in_batches_too(rng):
    X = planted(rng, rows=200, noise=0.05)
    holed = np.where(rng.random(X.shape) < 0.2, np.nan, X)
    model = in_batches(NMF(4, random_state=0, missing="nan"), holed, 50, rounds=3)
    W = model.transform(holed)
    hidden = np.isnan(holed)
    assert np.linalg.norm((X - W @ model.components_)[hidden]) < 0.1 * np.linalg.norm(X[hidden])


def test_what_batches_left_goes_on_to_the_same_bits_pickled_saved_or_not(rng, tmp_path):
    X = planted(rng)
    for number, options in enumerate((KINDS[0], KINDS[3], {"beta_loss": 1.5, "max_iter": 10})):
        model = in_batches(NMF(3, random_state=0, **options), X[:80], rounds=1 + number % 2)
        model.save(tmp_path / f"{number}.zarr", W=model.transform(X))
        others = [pickle.loads(pickle.dumps(model)), dasknmf.load(tmp_path / f"{number}.zarr")]
        model.partial_fit(X[80:])
        for other in others:
            other.partial_fit(X[80:])
            np.testing.assert_array_equal(other.components_, model.components_)
            assert other.n_samples_seen_ == model.n_samples_seen_
            np.testing.assert_array_equal(other.history_["loss"], model.history_["loss"])
        assert not hasattr(clone(model), "_seen")


def test_a_fit_forgets_batches_and_batches_go_on_from_a_fit(rng):
    X = planted(rng)
    model = NMF(3, random_state=0).fit(X)
    before = error_of(model, X)
    assert error_of(model.partial_fit(X), X) < 1.001 * before
    assert not hasattr(model.fit(X), "n_samples_seen_")


def test_a_batch_that_is_refused_changes_nothing(rng):
    X = planted(rng)
    new = NMF(3, random_state=0)
    with pytest.raises(DataError, match="NaN"):
        new.partial_fit(np.where(X.mean() < X, np.nan, X))
    assert not [name for name in vars(new) if name.endswith("_") or name.startswith("_")]
    model = clone(new).partial_fit(X[:60])
    before = dict(vars(model))
    bad = X[60:].copy()
    bad[5, 2] = -1
    for batch, says in ((X[60:, :7], "7 features"), (bad, "row 5, column 2"), (X[:0], "0 sample")):
        with pytest.raises(ValueError, match=says):
            model.partial_fit(batch)
    for name, value in (("holdout", 0.1), ("checkpoint", "run"), ("n_components", 5)):
        with pytest.raises(ParameterError, match=name):
            _with(model, name, value).partial_fit(X[60:])
    with pytest.warns(RuntimeWarning, match="first call"):
        pickle.loads(pickle.dumps(model)).partial_fit(X[60:], H=np.ones((3, 30)))
    assert vars(model) == before


def _with(model, name, value):
    return pickle.loads(pickle.dumps(model)).set_params(**{name: value})


def test_output_and_names_are_those_that_scikit_learn_users_expect(rng):
    pd = pytest.importorskip("pandas")
    X = pd.DataFrame(planted(rng), columns=[f"band{j}" for j in range(30)])
    model = in_batches(NMF(3, random_state=0).set_output(transform="pandas"), X)
    W = model.transform(X[20:])
    assert list(W.columns) == list(model.get_feature_names_out()) == ["nmf0", "nmf1", "nmf2"]
    assert list(W.index) == list(range(20, 120))
    with pytest.raises(ValueError, match="feature names"):
        model.partial_fit(X[X.columns[::-1]])
    assert set(model.top_features(3)[0]) <= set(X.columns)


# ---- names of samples and features --------------------------------------------------------------


@pytest.fixture
def spectra(rng):
    xr = pytest.importorskip("xarray")
    coordinates = {
        "pixel": [f"p{i}" for i in range(60)],
        "band": np.linspace(400, 900, 12),
        "region": ("pixel", np.arange(60) // 20),
        "instrument": "a",
    }
    return xr.DataArray(planted(rng, 60, 12, 3), dims=("pixel", "band"), coords=coordinates)


def test_a_fit_keeps_the_coordinates_of_a_data_array(spectra):
    model = NMF(3, random_state=0)
    model.fit_transform(spectra)
    found = pickle.loads(pickle.dumps(model)).to_xarray()
    assert found["W"].dims == ("pixel", "component")
    assert found["components"].dims == ("component", "band")
    for name in ("pixel", "band", "region", "instrument"):
        np.testing.assert_array_equal(found[name], spectra[name])
    assert spectra["band"].values[0] == min(map(min, model.top_features(12)))
    others = model.to_xarray(W=model.transform(spectra[:5]))  # perhaps of other samples
    assert "pixel" not in others.coords
    np.testing.assert_array_equal(others["band"], spectra["band"])
    model.fit(spectra.values)
    assert set(model.to_xarray().coords) == {"component", "pass"}


def test_names_are_stored_with_the_model(spectra, tmp_path):
    model = NMF(3, random_state=0)
    model.fit_transform(spectra)
    model.save(tmp_path / "m.zarr")
    found = dasknmf.load(tmp_path / "m.zarr").to_xarray()
    np.testing.assert_array_equal(found["pixel"], spectra["pixel"])
    np.testing.assert_array_equal(found["band"], spectra["band"])
    xr = pytest.importorskip("xarray")
    with xr.open_zarr(tmp_path / "m.zarr") as opened:
        assert opened["sample"].values.tolist() == spectra["pixel"].values.tolist()


def test_an_anndata_gives_its_names_to_the_fit_and_gets_them_back(spectra):
    anndata, pd = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    adata = anndata.AnnData(
        spectra.values,
        obs=pd.DataFrame(index=[f"cell {i}" for i in range(60)]),
        var=pd.DataFrame(index=[f"gene {j}" for j in range(12)]),
    )
    model = NMF(3, random_state=0)
    W = model.fit_transform(adata)
    made = model.to_anndata()
    assert made.obs_names.tolist() == adata.obs_names.tolist()
    assert made.var_names.tolist() == adata.var_names.tolist()
    np.testing.assert_array_equal(made.obsm["X_nmf"], W)
    np.testing.assert_array_equal(made.varm["NMF"], model.components_.T)
    assert "history" in made.uns["nmf"]
    assert model.to_xarray()["sample"].values[-1] == "cell 59"
    assert model.top_features(1)[0][0].startswith("gene")


# ---- HyperSpy -----------------------------------------------------------------------------------


def test_hyperspy_takes_the_estimator_for_signals_in_memory_and_lazy_ones(rng):
    api = pytest.importorskip("hyperspy.api", reason="HyperSpy is not installed")
    X = planted(rng, 120, 30, 3, noise=0.0)
    cube = X.reshape(12, 10, 30)
    signal = api.signals.Signal1D(cube)
    model = NMF(3, random_state=0)
    signal.decomposition(algorithm=model, output_dimension=3, print_info=False)
    found = signal.learning_results
    np.testing.assert_array_equal(found.factors, model.components_.T)
    np.testing.assert_array_equal(found.loadings, model.W_)
    lazy = api.signals.Signal1D(da.from_array(cube, chunks=(6, 5, 30))).as_lazy()
    model = NMF(3, random_state=0)
    lazy.decomposition(algorithm=model, output_dimension=3, print_info=False)
    found = lazy.learning_results
    assert model.n_samples_seen_ == 120
    np.testing.assert_array_equal(found.factors, model.components_.T)
    left = np.linalg.norm(found.loadings @ found.factors.T - X)  # in the order of the pixels
    assert left < 0.05 * np.linalg.norm(X)
