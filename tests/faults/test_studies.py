"""Whole studies on the command line, killed at their commits."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import planted
from test_cli_ranks import call, command, saved

from dasknmf.storage.objects import open_objects
from dasknmf.storage.survey import verify

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

ROOT = Path(__file__).parents[2]
CHILD = """
import json, os, sys
at, half, words = json.loads(sys.argv[1])
from dasknmf.storage.runs import Run
commit, met = Run.commit, [0]
def kill():
    os.kill(os.getpid(), 9)
def counted(self, *args):
    met[0] += 1
    if met[0] == at and half:  # its objects are there, its manifest is not
        kill()
    found = commit(self, *args)
    if met[0] == at:
        kill()
    return found
Run.commit = counted
from dasknmf.checkpointing import CheckpointKeeper
boundary = CheckpointKeeper.boundary
def settled(self, state, *, ended):  # else a slow disk would skip commits, and the kill with them
    boundary(self, state, ended=ended)
    self._settle()
CheckpointKeeper.boundary = settled
from dasknmf.cli import main
main(words)
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder with a matrix, and what a study of it saves."""
    folder = tmp_path_factory.mktemp("undisturbed")
    np.save(folder / "V.npy", planted(np.random.default_rng(3), 640, 20, 3, noise=0.2))
    done = call(*command(folder, "-q"))
    assert done.exit_code == 0, done.output
    return folder / "V.npy", saved(folder)


@pytest.fixture
def folder(tmp_path, undisturbed):
    shutil.copy(undisturbed[0], tmp_path)
    return tmp_path


def killed(folder, at, half):
    """Run the command in a process that kills itself at its n-th commit; its exit code."""
    words = command(folder, "--checkpoint", str(folder / "run"), "-q")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([at, half, words])],
        capture_output=True, text=True, timeout=110, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


@pytest.mark.timeout(300)
def test_a_client_killed_at_a_commit_ends_with_the_same_table_and_bits(folder, undisturbed, cases):
    assert killed(folder, 3, half=True) == -signal.SIGKILL
    assert verify(open_objects(folder / "run")) == []
    assert not (folder / "study.zarr").exists()
    done = call(*command(folder, "--checkpoint", folder / "run", "-q"))
    assert done.exit_code == 0, done.output
    assert saved(folder) == undisturbed[1]
    cases("studies killed at a commit and resumed", 1)


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("half", [True, False], ids=["before the manifest", "after it"])
def test_killed_at_every_commit(half, folder, undisturbed, cases):
    """Each process gets about one commit further, until none is left to be killed at."""
    kills = 0
    while killed(folder, 1 + (kills % 2), half):
        kills += 1
        assert verify(open_objects(folder / "run")) == []
        assert kills < 60
    assert kills >= 5
    assert saved(folder) == undisturbed[1]
    cases("studies killed at a commit and resumed", kills)
