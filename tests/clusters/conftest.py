"""Indian Pines on disk, its fit on this machine's threads, and the batch systems."""

from __future__ import annotations

import os
import shlex
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

MPI = {  # mpirun refuses root otherwise, and so does what it starts on each node
    f"{program}_ALLOW_RUN_AS_ROOT{confirm}": "1"
    for program in ("OMPI", "PRTE")
    for confirm in ("", "_CONFIRM")
}


def changed(script, folder, matrix, options=OPTIONS):
    """A copy of a script with the two lines changed that a person has to change, and no other."""
    lines = script.read_text().splitlines()
    for start, value in (
        ("MATRIX=", shlex.quote(str(matrix))),
        ("FIT=", f"({shlex.join(options)})"),
    ):
        (place,) = [i for i, line in enumerate(lines) if line.startswith(start)]
        lines[place] = start + value
    copy = folder / script.name
    copy.write_text("\n".join(lines) + "\n")
    return copy


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
