"""The batch scripts without their batch systems: shellcheck, and dry runs with stub commands."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dasknmf

from .conftest import CONFIGS, OPTIONS, changed

SCRIPTS = sorted(
    path
    for folder in ("slurm", "pbs", "lsf", "sge")
    for path in (CONFIGS / folder).iterdir()
    if path.suffix in (".sbatch", ".pbs", ".lsf", ".sge")
)
NAMES = [path.name for path in SCRIPTS]

# What each system starts a job with; how it starts the workers of two hosts, with an empty
# environment as the real one may; and what it makes of a job that is to go on.
CLEAN = 'env -i PATH=/usr/bin:/bin HOME="$HOME"'
SYSTEMS = {
    "fit.pbs": {
        "job": {"PBS_O_WORKDIR": ".", "PBS_JOBNAME": "nmf", "PBS_JOBID": "1.pbs"},
        "pbsdsh": f'shift; for i in 1 2; do {CLEAN} "$@" & done; wait',
        "resumable": (0, "qsub -V fit.pbs\n"),
    },
    "fit.lsf": {
        "job": {"LS_SUBCWD": ".", "LSB_JOBNAME": "nmf", "LSB_JOBID": "1"},
        "hosts": ("LSB_DJOB_HOSTFILE", "a\na\nb\nb\n"),
        "blaunch": '[ "$2" = "a b" ] || exit 9; shift 2; '
        f'for i in 1 2; do {CLEAN} "$@" & done; wait',
        "resumable": (75, ""),
    },
    "fit.sge": {
        "job": {"SGE_O_WORKDIR": ".", "JOB_NAME": "nmf", "JOB_ID": "1"},
        "hosts": ("PE_HOSTFILE", "a 8 all.q@a UNDEFINED\nb 8 all.q@b UNDEFINED\n"),
        "qrsh": f'[ "$1" = -inherit ] || exit 9; shift 3; exec {CLEAN} "$@"',
        "resumable": (99, ""),
    },
}
SUBMIT = ("qsub", "bsub", "qresub")


def program(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def job(tmp_path, shell):
    """Gives what a script of a system runs in: a folder with stub commands, an environment."""

    def prepare(name):
        system = SYSTEMS[name]
        bin_ = tmp_path / "bin"
        bin_.mkdir()
        for command in SUBMIT:
            program(bin_, command, f'echo "{command} $*" >> "{tmp_path}/submitted"')
        for command in ("pbsdsh", "blaunch", "qrsh"):
            if command in system:
                program(bin_, command, system[command])
        environment = {**os.environ, **shell, **system["job"]}
        if "hosts" in system:
            variable, hosts = system["hosts"]
            (tmp_path / "hosts").write_text(hosts)
            environment[variable] = str(tmp_path / "hosts")
        environment["PATH"] = f"{bin_}{os.pathsep}{environment['PATH']}"
        return bin_, environment

    return prepare


def submitted(folder):
    path = folder / "submitted"
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_shellcheck_finds_nothing(script):
    command = [Path(sys.executable).parent / "shellcheck", "-S", "warning", "-s", "bash", script]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_every_setting_of_the_head_is_two_lines_away_from_a_fit(script, tmp_path):
    text = script.read_text()
    assert text.count("change:") == 2
    assert "resumable" in text.splitlines()[1]
    for line in text.splitlines():
        assert len(line) <= 100, line


def part(text, first, last):
    return text[text.index(first) : text.index(last)]


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_what_the_scripts_share_is_the_same_in_all(script):
    """A person copies one file, so each has all of it; a change of one is a change of all."""
    one, other = SCRIPTS[0].read_text(), script.read_text()
    keys = ("# Who can connect", "export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION")
    assert part(one, *keys) == part(other, *keys)
    if script.name != "slurm_runner.sbatch":  # where srun starts all, SLURM signals the fit itself
        wait = ('[ -z "$told" ] || kill', "did not listen yet")
        assert part(one, *wait) == part(other, *wait)
        stop = ("stop() {", "network=(")
        assert part(one, *stop) == part(other, *stop)


DASK = """
case "$1" in
scheduler) while [ "$1" != --scheduler-file ]; do shift; done; echo '{}' > "$2";;
esac
exec sleep 60
"""


def stubs(bin_, fit):
    """A Dask that waits, and a fit of our own: what is left is the script."""
    program(bin_, "dask", DASK)
    program(bin_, "dasknmf", fit)
    program(bin_, "openssl", "exit 0")
    for command in ("pbsdsh", "blaunch", "qrsh"):
        program(bin_, command, "exec sleep 60")


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("code", [0, 1, 75])
def test_the_end_of_a_fit_is_the_end_of_the_job(name, code, job, tmp_path):
    bin_, environment = job(name)
    stubs(bin_, f'echo "$*" > arguments; exit {code}')
    script = changed(CONFIGS / name.split(".")[1] / name, tmp_path, "/data/my V.zarr", ["-k", "5"])
    done = subprocess.run(["bash", script], env=environment, cwd=tmp_path, timeout=30)
    expected, resubmitted = SYSTEMS[name]["resumable"] if code == 75 else (code, "")
    assert (done.returncode, submitted(tmp_path)) == (expected, resubmitted)
    given = (tmp_path / "arguments").read_text()
    assert given.startswith(
        "fit /data/my V.zarr -k 5 -o nmf.zarr --checkpoint nmf.run --time-limit"
    )
    assert not list(tmp_path.glob(".nmf*")), "no key is left behind"


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_notice_reaches_the_fit_and_its_exit_code_the_system(name, job, tmp_path):
    bin_, environment = job(name)
    commit = "trap 'sleep 0.3; exit 75' TERM; echo > running; while :; do sleep 0.1; done"
    stubs(bin_, commit)
    os.mkfifo(tmp_path / "running")
    script = changed(CONFIGS / name.split(".")[1] / name, tmp_path, "V.zarr", ["-k", "5"])
    with subprocess.Popen(["bash", script], env=environment, cwd=tmp_path) as running:
        (tmp_path / "running").read_text()  # returns once the fit has set its trap
        running.send_signal(signal.SIGTERM)
        code = running.wait(30)
    assert (code, submitted(tmp_path)) == SYSTEMS[name]["resumable"]


@pytest.mark.cluster
@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_dry_run_gives_the_bits_of_threads(name, job, pines, local, tmp_path):
    """Everything but the batch system is real: scheduler, workers, keys, fit."""
    _, environment = job(name)
    script = changed(CONFIGS / name.split(".")[1] / name, tmp_path, pines, OPTIONS)
    text = script.read_text().replace("CORES=8", "CORES=2").replace("MEMORY=14GiB", "MEMORY=3GiB")
    script.write_text(text)
    done = subprocess.run(
        ["bash", script], env=environment, cwd=tmp_path, timeout=180, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    model = dasknmf.load(str(tmp_path / "nmf.zarr"))
    np.testing.assert_array_equal(model.components_, local[1])
    np.testing.assert_array_equal(model.W_, local[0])


def test_the_two_lines_survive_names_with_spaces(tmp_path):
    script = changed(SCRIPTS[0], tmp_path, "/my data/V.zarr", ["-k", "5"])
    assert f"MATRIX={shlex.quote('/my data/V.zarr')}" in script.read_text()
