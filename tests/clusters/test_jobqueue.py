"""dask-jobqueue's settings: known to it, each with a reason, and what they make of a job script."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import dask
import numpy as np
import pytest
import yaml

import dasknmf

from .conftest import CONFIGS, PASSES, K

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # dask-jobqueue's own imports
    import dask_jobqueue

SYSTEMS = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "lsf": "LSFCluster",
    "sge": "SGECluster",
    "htcondor": "HTCondorCluster",
}
# The head of the job that each file gives, without the lines of the worker's own command.
HEADS = {
    "slurm": """\
#!/usr/bin/env bash

#SBATCH -J nmf-worker
#SBATCH -e logs/nmf-worker-%J.err
#SBATCH -o logs/nmf-worker-%J.out
#SBATCH -n 1
#SBATCH --cpus-per-task=8
#SBATCH --mem=15G
#SBATCH -t 01:00:00
#SBATCH --signal=TERM@120
""",
    "pbs": """\
#!/usr/bin/env bash

#PBS -N nmf-worker
#PBS -l select=1:ncpus=8:mem=16gb
#PBS -l walltime=01:00:00
#PBS -e logs/
#PBS -o logs/
""",
    "lsf": """\
#!/usr/bin/env bash

#BSUB -J nmf-worker
#BSUB -e logs/nmf-worker-%J.err
#BSUB -o logs/nmf-worker-%J.out
#BSUB -n 8
#BSUB -R "span[hosts=1]"
#BSUB -M 16
#BSUB -W 01:00
""",
    "sge": """\
#!/usr/bin/env bash

#$ -N nmf-worker
#$ -l h_vmem=2G
#$ -l h_rt=01:00:00
#$ -e logs/
#$ -o logs/
#$ -cwd
#$ -j y
#$ -pe smp 8
""",
    "htcondor": """\
#!/usr/bin/env condor_submit

MY.DaskWorkerName = "htcondor--$F(MY.JobId)--"
batch_name = nmf-worker
RequestCpus = MY.DaskWorkerCores
RequestMemory = floor(MY.DaskWorkerMemory / 1048576)
RequestDisk = floor(MY.DaskWorkerDisk / 1024)
MY.JobId = "$(ClusterId).$(ProcId)"
MY.DaskWorkerCores = 8
MY.DaskWorkerMemory = 16000000000
MY.DaskWorkerDisk = 20000000000
LogDirectory = logs
""",
}


def file(name):
    return CONFIGS / "jobqueue" / f"{name}.yaml"


@pytest.fixture
def configured(tmp_path):
    """Dask's configuration, as a person has it who copied the file."""

    def load(name):
        (tmp_path / "dask").mkdir()
        (tmp_path / "dask" / "nmf.yaml").write_text(file(name).read_text())
        found = dask.config.collect([str(tmp_path / "dask")], env={})
        return dask.config.set(dask.config.merge(dask.config.config, found))

    return load


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_file_gives_this_job(name, configured):
    with configured(name):
        cluster_class = getattr(dask_jobqueue, SYSTEMS[name])
        job = cluster_class.job_cls(scheduler="tls://10.0.0.1:8786", name="nmf-worker")
        script = job.job_script()
    assert script.startswith(HEADS[name])
    for words in (
        "distributed.cli.dask_worker tls://10.0.0.1:8786",
        "--nthreads 8",
        "--memory-limit 14.90GiB",
        "--death-timeout 300",
        "--local-directory /tmp",
        "--no-dashboard",
    ):
        assert words in script


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_setting_is_known_and_has_a_reason(name):
    path = file(name)
    given = yaml.safe_load(path.read_text())["jobqueue"]
    assert list(given) == [name]
    known = yaml.safe_load((Path(dask_jobqueue.__file__).parent / "jobqueue.yaml").read_text())[
        "jobqueue"
    ][name]
    assert set(given[name]) <= set(known)
    settings = [
        line for line in path.read_text().splitlines()[1:] if ": " in line and line[0] != "#"
    ]
    assert len(settings) >= 10
    for line in path.read_text().splitlines():
        a_list_or_section = line.rstrip().endswith(":")
        if line.startswith("    ") and not a_list_or_section:
            assert "  # " in line, f"no reason: {line}"


def test_the_options_of_the_worker_are_options_of_dask_worker():
    from distributed.cli.dask_worker import main

    known = {name for option in main.params for name in (*option.opts, *option.secondary_opts)}
    for name in SYSTEMS:
        given = yaml.safe_load(file(name).read_text())["jobqueue"][name]["worker-extra-args"]
        assert {option.split("=")[0] for option in given} <= known


@pytest.mark.cluster
@pytest.mark.timeout(200)
def test_workers_from_slurm_give_the_bits_of_threads(slurm, shell, pines, local, tmp_path):
    """The file's cluster, with jobs small enough for the nodes of the test."""
    program = tmp_path / "fit.py"
    program.write_text(
        "from dask_jobqueue import SLURMCluster\n"
        "from distributed import Client\n"
        "import dasknmf\n"
        "if __name__ == '__main__':\n"
        "    with SLURMCluster(security=True, cores=2, memory='4GB', interface='lo') as cluster:\n"
        "        cluster.scale(jobs=2)\n"
        "        with Client(cluster) as client:\n"
        "            client.wait_for_workers(2, timeout=100)\n"
        f"            model = dasknmf.NMF({K}, tol=0, max_iter={PASSES}, random_state=0)\n"
        f"            model.fit_transform(dasknmf.open_matrix({str(pines)!r}))\n"
        "            model.save('nmf.zarr')\n"
    )
    done = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True, timeout=180,
        env={**slurm.environment, **shell, "DASK_CONFIG": str(file("slurm").parent / "slurm.yaml")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    model = dasknmf.load(str(tmp_path / "nmf.zarr"))
    np.testing.assert_array_equal(model.components_, local[1])
    np.testing.assert_array_equal(model.W_, local[0])
