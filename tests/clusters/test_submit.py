"""``dasknmf submit``: the scripts of cluster_configs with sizes that the plan gives."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import dasknmf
from dasknmf import cli, cli_submit

from .conftest import OPTIONS

HOUR = ("--time", "1h")  # else the plan takes seconds to measure this machine
DEFAULT = cli_submit.Sizes(nodes=2, cores=8, memory=16, reserved=2, seconds=3600)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a matrix of 40 slabs."""
    monkeypatch.chdir(tmp_path)
    zarr.create_array("V.zarr", shape=(40_000, 1000), chunks=(1000, 1000), dtype="f4")
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.main, ["submit", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def directives(path):
    """The lines for the system, less their comments."""
    lines = Path(path).read_text().splitlines()
    return [
        line.split("  #")[0].strip() for line in lines if re.match(r"#(SBATCH|PBS|BSUB|\$) ", line)
    ]


@pytest.mark.parametrize("system", sorted(cli_submit.SUBMIT))
def test_the_sizes_of_the_templates_give_the_templates(system):
    """So every line that submit fills in is there, and nothing else is touched."""
    name = Path(cli_submit.FILES[system])
    original = cli_submit.template(system)
    given = cli_submit.filled(system, DEFAULT, "nmf", "V.zarr", ["-k", "16"])
    assert given == original.replace(name.name, f"nmf{name.suffix}")


@pytest.mark.parametrize(
    ("system", "script", "expected"),
    [
        ("slurm", "topics.sbatch",
         {"--nodes=4", "--cpus-per-task=3", "--mem=32G", "--time=02:30:00", "--job-name=topics"}),
        ("pbs", "topics.pbs",
         {"-N topics", "-l select=4:ncpus=3:mem=32gb", "-l walltime=02:30:00"}),
        ("lsf", "topics.lsf",
         {"-J topics", "-n 12", '-R "span[ptile=3]"', '-R "rusage[mem=32GB]"', "-W 02:30"}),
        ("sge", "topics.sge", {"-N topics", "-pe mpi 12", "-l h_rt=02:30:00"}),
    ],
)  # fmt: skip
def test_a_script_asks_for_what_was_given(system, script, expected, folder):
    run(
        "--system", system, "--nodes", "4", "--cores", "3", "--memory", "32GiB",
        "--time", "150min",
        "--name", "topics", "--directive", "-A lab",
        "--", "fit", "V.zarr", "-k", "5", "--seed", "1",
    )  # fmt: skip
    found = {line.split(" ", 1)[1] for line in directives(script)}
    assert expected | {"-A lab"} <= found
    text = Path(script).read_text()
    assert "\nFIT=(-k 5 --seed 1) " in text
    if system != "slurm":
        assert "\nCORES=3 " in text
        assert "\nMEMORY=30GiB " in text
        assert "\nLIMIT=145min " in text
    assert subprocess.run(["bash", "-n", script]).returncode == 0


def memory_of(*options):
    run("--system", "slurm", *HOUR, "--overwrite", *options)
    (line,) = [line for line in directives("nmf.sbatch") if "--mem=" in line]
    return int(re.sub(r"\D", "", line))


def test_the_plan_chooses_the_memory_and_the_nodes(folder):
    zarr.create_array("wide.zarr", shape=(40_000, 20_000), chunks=(1000, 20_000), dtype="f4")
    fit = ("--", "fit", "wide.zarr", "-k", "5")
    few, many = memory_of("--cores", "2", *fit), memory_of("--cores", "16", *fit)
    assert 2 < few < many, "slabs of 80 MB, one for each core"
    run("--system", "slurm", *HOUR, "--overwrite", "--", "fit", "V.zarr", "-k", "5")
    plan = "#SBATCH --nodes=2"  # a wave has a quarter of the 40 slabs: 10 tasks for 8 cores a node
    assert plan in directives("nmf.sbatch")


def test_the_time_has_room_for_the_passes_that_are_estimated(folder):
    run("--system", "slurm", "--", "fit", "V.zarr", "-k", "5")
    assert "#SBATCH --time=01:00:00" in directives("nmf.sbatch")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--", "transform", "m.zarr", "V.zarr"], "expected `-- fit MATRIX ...`"),
        (["--", "fit", "V.zarr"], "Missing option '-k'"),
        (["--", "fit", "V.zarr", "-k", "5", "-o", "m.zarr"], "--output is given by the script"),
        (["--", "fit", "V.zarr", "-k", "5", "--workers", "2"], "--workers is given by the script"),
        (["--", "fit", "V.zarr", "-k", "5", "--rank", "2"], "No such option"),
        (["--", "fit", "V.zarr", "-k", "5000"], "more than the smaller side"),
        (["--name", "a b", "--", "fit", "V.zarr", "-k", "5"], "--name 'a b': expected"),
        (["--time", "5min", "--", "fit", "V.zarr", "-k", "5"], "too short"),
        (["--time", "long", "--", "fit", "V.zarr", "-k", "5"], "is no time"),
    ],
)
def test_a_command_that_could_not_run_is_refused_here(arguments, message, folder):
    assert message in run("--system", "slurm", *arguments, code=2)
    assert not Path("nmf.sbatch").exists()


def test_too_little_memory_and_a_missing_matrix_are_refused_here(folder):
    fit = ("--", "fit", "V.zarr", "-k", "500")
    said = run("--system", "slurm", "--memory", "2.5GiB", "--cores", "64", *HOUR, *fit, code=1)
    assert "a worker would need" in said
    assert "no.zarr" in run("--system", "slurm", *HOUR, "--", "fit", "no.zarr", "-k", "5", code=1)
    assert not Path("nmf.sbatch").exists()


def test_a_script_is_replaced_on_request_only(folder):
    fit = (*HOUR, "--", "fit", "V.zarr", "-k", "5")
    run("--system", "slurm", *fit)
    assert "use --overwrite" in run("--system", "slurm", *fit, code=2)


STUB = '#!/bin/sh\necho "$0 $*" >> submitted\n[ "$1" ] || cat >> submitted\necho job 7\n'


@pytest.mark.parametrize("system", sorted(cli_submit.SUBMIT))
def test_now_submits(system, folder, monkeypatch):
    command = cli_submit.SUBMIT[system][0]
    stub = folder / "bin" / command
    stub.parent.mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}{os.pathsep}{os.environ['PATH']}")
    said = run("--system", system, "--now", *HOUR, "--", "fit", "V.zarr", "-k", "5")
    assert "submitted:   job 7" in said
    written = Path("submitted").read_text()
    script = next(path for path in folder.glob("nmf.*"))
    assert (
        script.read_text() in written if system == "lsf" else written.endswith(f"{script.name}\n")
    )
    stub.write_text("#!/bin/sh\necho no such queue >&2\nexit 3\n")
    again = ("--overwrite", "--now", *HOUR, "--", "fit", "V.zarr", "-k", "5")
    assert "no such queue" in run("--system", system, *again, code=1)


def test_a_machine_without_the_system_says_so(folder, monkeypatch):
    monkeypatch.setenv("PATH", str(folder))
    said = run("--system", "slurm", "--now", *HOUR, "--", "fit", "V.zarr", "-k", "5", code=1)
    assert "sbatch is not here" in said
    assert Path("nmf.sbatch").exists()


@pytest.mark.cluster
@pytest.mark.timeout(200)
def test_what_submit_writes_runs_on_slurm(slurm, shell, pines, local, tmp_path):
    command = [
        Path(sys.executable).parent / "dasknmf", "submit", "--system", "slurm", "--nodes", "2",
        "--cores", "2", "--time", "10min", "--name", "pines", "--now", "--", "fit", str(pines),
    ]  # fmt: skip
    done = subprocess.run(
        [*command, *OPTIONS], cwd=tmp_path, env={**slurm.environment, **shell},
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    number = done.stdout.split()[-1]
    job = slurm.wait(number)
    assert job["JobState"] == "COMPLETED", (tmp_path / "pines.log").read_text()
    assert job["NumNodes"] == "2"
    model = dasknmf.load(str(tmp_path / "pines.zarr"))
    np.testing.assert_array_equal(model.components_, local[1])
