"""Whole fits whose run is on an object store."""

import numpy as np
import pytest
from click.testing import CliRunner

import dasknmf
from dasknmf import NMF, StoppedError, StoreError, cli
from dasknmf.signals import Stop
from dasknmf.storage.matrices import save_matrix
from dasknmf.storage.objects import open_objects
from dasknmf.storage.survey import verify

from .test_fits import bits, made
from .test_s3 import moto  # noqa: F401  (a fixture)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture
def credentials(moto, monkeypatch):  # noqa: F811
    """As a user gives them: by the environment, which workers inherit."""
    host, port = moto.address
    for name, value in {
        "AWS_ENDPOINT": f"http://{host}:{port}", "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("kind", ["als", pytest.param("mu", marks=pytest.mark.faults)])
def test_a_fit_stopped_and_resumed_on_s3_by_workers_and_threads(kind, credentials, monkeypatch):
    from distributed import Client, LocalCluster

    X, parameters = made(kind)
    plain = NMF(**parameters)
    expected = bits(plain, np.asarray(plain.fit_transform(X)))
    url = f"s3://runs/fit-{kind}"
    asked = iter([None, "a test"])
    with monkeypatch.context() as patch:
        patch.setattr(Stop, "reason", lambda stop, ahead: next(asked))
        with (
            LocalCluster(
                n_workers=2, threads_per_worker=1, host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
            ) as cluster,
            Client(cluster) as client,
            pytest.raises(StoppedError),
        ):  # fmt: skip
            NMF(checkpoint=url, **parameters).fit(X, client=client)
    model = NMF(checkpoint=url, **parameters)
    assert bits(model, np.asarray(model.fit_transform(X))) == expected
    np.testing.assert_array_equal(dasknmf.load(url).components_, model.components_)
    assert verify(open_objects(url)) == []


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_matrix_checkpoint_and_model_on_s3_by_worker_processes(credentials):
    """Nothing of the fit is on a disk: what workers need they get by URL and environment."""
    X, parameters = made("als")
    X = np.asarray(X)
    place, url = "s3://runs/whole", "s3://runs/whole/V.zarr"
    save_matrix(X, url, overwrite=False)
    lazy = dasknmf.open_matrix(url)
    np.testing.assert_array_equal(lazy.compute(), X)
    options = ("-k", parameters["n_components"], "--seed", 3, "--tol", 0, "--max-iter", 3, "-q")
    fit = ("fit", url, *options, "--workers", 2, "--checkpoint", f"{place}/run")
    run(*fit, "-o", f"{place}/m.zarr")
    here = NMF(parameters["n_components"], random_state=3, tol=0, max_iter=3)
    W = np.asarray(here.fit_transform(lazy))
    model = dasknmf.load(f"{place}/m.zarr")
    np.testing.assert_array_equal(model.components_, here.components_)
    np.testing.assert_array_equal(np.asarray(model.W_), W)
    np.testing.assert_array_equal(dasknmf.load(f"{place}/run").components_, here.components_)
    assert "3 passes" in run("info", f"{place}/m.zarr")
    assert "exists; nothing was written" in run(*fit, "-o", f"{place}/m.zarr", code=1)
    run("transform", f"{place}/m.zarr", url, "-o", f"{place}/W.zarr", "-q")
    np.testing.assert_array_equal(dasknmf.open_matrix(f"{place}/W.zarr").compute(), W)
    model.save(f"{place}/m.zarr", overwrite=True)
    assert open_objects(f"{place}/m.zarr").list("W") != []
    assert verify(open_objects(f"{place}/run")) == []


def test_a_study_is_written_to_s3_and_read_again(credentials):
    X, _ = made("als")
    study = dasknmf.RankStudy((2, 3), n_init=1, max_iter=2, random_state=0, holdout=0.0)
    study.fit(np.asarray(X)).save("s3://runs/study.zarr")
    model = dasknmf.load("s3://runs/study.zarr/rank_3")
    np.testing.assert_array_equal(model.components_, study.model(3).components_)


def test_a_url_with_nothing_behind_it_says_so(credentials, monkeypatch):
    with pytest.raises(StoreError, match=r"s3://runs/none\.zarr is nothing that Zarr can open"):
        dasknmf.open_matrix("s3://runs/none.zarr")
    with pytest.raises(StoreError, match=r"s3://runs/none\.zarr is nothing that Zarr can open"):
        dasknmf.load("s3://runs/none.zarr")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "false")  # so that nothing reaches the server
    with pytest.raises(StoreError, match=r"opening s3://runs/V\.zarr failed: Generic S3 error"):
        dasknmf.open_matrix("s3://runs/V.zarr")
    with pytest.raises(StoreError, match=r"looking for s3://runs/V\.zarr failed"):
        save_matrix(np.ones((2, 2)), "s3://runs/V.zarr", overwrite=False)
