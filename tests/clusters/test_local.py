"""Workers on this machine: one script that runs here, and one for GPUs, of which there are none."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from distributed import LocalCluster

import dasknmf

from .conftest import CONFIGS, OPTIONS

FOLDER = CONFIGS / "local"


@pytest.mark.cluster
@pytest.mark.timeout(200)
def test_worker_processes_give_the_bits_of_threads(shell, pines, local, tmp_path):
    done = subprocess.run(
        [sys.executable, FOLDER / "fit_here.py", pines, "-o", "nmf.zarr", *OPTIONS],
        env={**os.environ, **shell, "WORKERS": "2", "THREADS": "1"},
        cwd=tmp_path, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = dasknmf.load(str(tmp_path / "nmf.zarr"))
    np.testing.assert_array_equal(found.components_, local[1])
    np.testing.assert_array_equal(found.W_, local[0])


def arguments(script, name):
    """The keywords that a script calls ``name`` with."""
    tree = ast.parse(script.read_text())
    (call,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name
    ]
    assert not call.args
    return {keyword.arg for keyword in call.keywords}


@pytest.mark.cluster
@pytest.mark.timeout(200)
def test_what_the_gpu_script_asks_of_dask_cuda_is_known(tmp_path):
    """Of the package's own text: it can't be imported without a GPU's driver."""
    download = ["pip", "download", "--quiet", "--no-deps", "--dest", tmp_path, "dask-cuda"]
    subprocess.run([sys.executable, "-m", *download], check=True, timeout=150)
    (wheel,) = tmp_path.glob("*.whl")
    text = zipfile.ZipFile(wheel).read("dask_cuda/local_cuda_cluster.py")
    (cluster,) = [
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef) and node.name == "LocalCUDACluster"
    ]
    (init,) = [node for node in cluster.body if getattr(node, "name", "") == "__init__"]
    known = {argument.arg for argument in (*init.args.args, *init.args.kwonlyargs)}
    assert init.args.kwarg, "the rest is LocalCluster's"
    given = arguments(FOLDER / "gpu_box.py", "LocalCUDACluster")
    assert {"threads_per_worker", "memory_limit", "local_directory"} <= given & known
    assert given <= known | set(inspect.signature(LocalCluster).parameters)


@pytest.mark.parametrize(
    ("script", "name"), [("fit_here", "LocalCluster"), ("gpu_box", "LocalCUDACluster")]
)
def test_nobody_else_can_connect(script, name):
    assert {"host", "dashboard_address"} <= arguments(FOLDER / f"{script}.py", name)
    assert (FOLDER / f"{script}.py").read_text().count('"127.0.0.1') == 2
