"""Indian Pines on disk, its fit on this machine's threads, and the batch systems."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import zarr

from clusters import batch_slurm
from dasknmf import NMF, open_matrix

CONFIGS = Path(__file__).parents[2] / "cluster_configs"
K, PASSES = 16, 3
OPTIONS = ["-k", str(K), "--tol", "0", "--max-iter", str(PASSES), "--seed", "0", "--quiet"]


@pytest.fixture(scope="session")
def pines(tmp_path_factory, indian_pines):
    """Indian Pines in a Zarr array of 21 slabs."""
    path = tmp_path_factory.mktemp("pines") / "V.zarr"
    zarr.create_array(path, data=indian_pines.astype(np.float32), chunks=(1024, 200))
    return path


@pytest.fixture(scope="session")
def local(pines):
    """The factors that threads give: every cluster has to give the same bits."""
    model = NMF(K, tol=0, max_iter=PASSES, random_state=0)
    W = model.fit_transform(open_matrix(str(pines)))
    return np.asarray(W), model.components_


@pytest.fixture(scope="session")
def shell():
    """The environment of a person in a shell: this Python's commands, this copy of the package."""
    root = str(Path(__file__).parents[2])
    return {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), batch_slurm.PATH]),
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "INTERFACE": "lo",
    }


@pytest.fixture(scope="session")
def slurm():
    """A SLURM cluster of two nodes, for the whole session: it takes seconds to start."""
    reason = batch_slurm.missing()
    if reason:
        pytest.skip(reason)
    # not pytest's folder: a socket's path has to stay short, and munged wants open parents
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        path = Path(folder)
        path.chmod(0o755)
        with batch_slurm.Slurm(path) as started:
            yield started
