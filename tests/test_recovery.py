"""A cluster in trouble: a fit goes on with the same bits, or ends in an error that says why."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from conftest import planted
from distributed import Client, LocalCluster

from dasknmf import NMF

pytestmark = [pytest.mark.usefixtures("many_slabs"), pytest.mark.timeout(90)]


@pytest.fixture
def own_cluster():
    """Two workers that may be harmed: in this process, so that they start at once."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
    ) as started:
        yield started


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "x.zarr"
    zarr.create_array(path, data=planted(np.random.default_rng(7), 120, 20), chunks=(20, 20))
    return str(path)


def model(**parameters):
    return NMF(3, **{"random_state": 1, "max_iter": 2, "tol": 0, **parameters})


def lose_one_worker(client, cluster):
    """Close a worker without handing over what it holds; start no other."""
    address = next(iter(client.scheduler_info()["workers"]))
    client.run_on_scheduler(
        lambda dask_scheduler: dask_scheduler.remove_worker(
            address, stimulus_id="lost", safe=False, close=True
        )
    )
    return address


def test_the_rows_of_a_finished_fit_are_made_again_by_the_scheduler(stored, own_cluster):
    X = da.from_zarr(stored)
    expected = model().fit_transform(zarr.open_array(stored)[...])
    with Client(own_cluster) as client:
        W = model().fit_transform(X, client=client)
        lose_one_worker(client, own_cluster)
        np.testing.assert_array_equal(W.compute(), expected)
