"""The SLURM scripts on a real SLURM cluster: same bits as threads, resumable, nothing left behind."""

from __future__ import annotations

import shlex

import numpy as np
import pytest

import dasknmf

from .conftest import CONFIGS, OPTIONS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SCRIPTS = ["scheduler_file.sbatch"]


def changed(name, folder, matrix, options=OPTIONS, **replaced):
    """A copy of a script with the two lines changed that a person has to change, and no other."""
    text = (CONFIGS / "slurm" / name).read_text()
    lines = text.splitlines()
    (place,) = [i for i, line in enumerate(lines) if line.startswith("MATRIX=")]
    lines[place] = f"MATRIX={shlex.quote(str(matrix))}"
    (place,) = [i for i, line in enumerate(lines) if line.startswith("FIT=")]
    lines[place] = f"FIT=({shlex.join(options)})"
    script = folder / name
    script.write_text("\n".join(lines) + "\n")
    return script


SMALL = ["--cpus-per-task=2", "--mem=4G", "--time=10"]  # as people do: sizes on the command line


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_gives_the_bits_of_threads(name, slurm, shell, pines, local, tmp_path):
    number = slurm.submit(changed(name, tmp_path, pines), *SMALL, **shell)
    job = slurm.wait(number)
    log = (tmp_path / "nmf.log").read_text()
    assert job["JobState"] == "COMPLETED", log
    assert job["NumNodes"] == "2"
    model = dasknmf.load(str(tmp_path / "nmf.zarr"))
    np.testing.assert_array_equal(model.components_, local[1])
    np.testing.assert_array_equal(model.W_, local[0])
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {name, "nmf.log", "nmf.zarr", "nmf.run"}
