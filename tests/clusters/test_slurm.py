"""The scripts on a real SLURM cluster: same bits as threads, resumable, nothing left behind."""

from __future__ import annotations

import numpy as np
import pytest

import dasknmf

from .conftest import CONFIGS, MPI, changed

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(500)]

SCRIPTS = ["scheduler_file.sbatch", "slurm_runner.sbatch", "dask_mpi.sbatch"]
SMALL = ["--cpus-per-task=2", "--time=10"]  # as people do: sizes on the command line
LONG = ["-k", "16", "--tol", "0", "--max-iter", "12", "--seed", "0", "--quiet"]


def finished(slurm, number, folder):
    job = slurm.wait(number)
    assert job["JobState"] == "COMPLETED", (folder / "nmf.log").read_text()
    return job


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_gives_the_bits_of_threads(name, slurm, shell, pines, local, tmp_path):
    number = slurm.submit(
        changed(CONFIGS / "slurm" / name, tmp_path, pines), *SMALL, **shell, **MPI
    )
    assert finished(slurm, number, tmp_path)["NumNodes"] == "2"
    model = dasknmf.load(str(tmp_path / "nmf.zarr"))
    np.testing.assert_array_equal(model.components_, local[1])
    np.testing.assert_array_equal(model.W_, local[0])
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {name, "nmf.log", "nmf.zarr", "nmf.run"}, "no key is left behind"


@pytest.fixture(scope="session")
def long_fit(pines):
    """What an undisturbed fit of ``LONG`` gives."""
    model = dasknmf.NMF(16, tol=0, max_iter=12, random_state=0)
    model.fit_transform(dasknmf.open_matrix(str(pines)))
    return model.components_


def committed(folder):
    """Whether there is a state to go on from: the first commit only opens the run."""
    return len(list((folder / "nmf.run" / "commits").glob("*.json"))) > 1


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_job_that_is_told_to_stop_commits_requeues_itself_and_ends_right(
    name, slurm, shell, pines, long_fit, tmp_path
):
    number = slurm.submit(
        changed(CONFIGS / "slurm" / name, tmp_path, pines, LONG), *SMALL, **shell, **MPI
    )
    slurm.until(lambda: committed(tmp_path), "a commit", 200)
    to = [] if name == "slurm_runner.sbatch" else ["--batch"]  # as its line --signal asks for
    slurm.call("scancel", "--signal=TERM", *to, number)
    job = finished(slurm, number, tmp_path)
    assert job["Restarts"] == "1"
    assert "goes back into the queue" in (tmp_path / "nmf.log").read_text()
    model = dasknmf.load(str(tmp_path / "nmf.zarr"))
    np.testing.assert_array_equal(model.components_, long_fit)


def test_a_job_that_its_owner_cancels_stays_cancelled(slurm, shell, pines, tmp_path):
    script = changed(CONFIGS / "slurm" / "scheduler_file.sbatch", tmp_path, pines, LONG)
    number = slurm.submit(script, *SMALL, **shell)
    slurm.until(lambda: committed(tmp_path), "a commit", 200)
    slurm.call("scancel", number)
    slurm.until(
        lambda: "EndTime" in slurm.job(number) and not slurm.running(number), "the end", 100
    )
    job = slurm.job(number)
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0")
