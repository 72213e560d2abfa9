"""Whole fits whose run is on an object store."""

import numpy as np
import pytest

import dasknmf
from dasknmf import NMF, StoppedError
from dasknmf.signals import Stop
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


@pytest.mark.parametrize("kind", ["als", "mu"])
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
