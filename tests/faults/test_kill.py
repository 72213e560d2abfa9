"""SIGKILL at every step of a start and its saves."""

import itertools
import os
import shutil
import signal
import warnings

import pytest
from faults.scenario import PROBLEM, Tap, check, parts, prepared, save

from dasknmf.storage.posix import PosixObjects
from dasknmf.storage.runs import Run


def disturbed(root, first, last, kill_at, half, pipe):
    """In a child: save states; before one step, or in the middle of one write, the kill comes."""
    writes = itertools.count(1)

    def hook(number, name, args, call):
        if half and name == "write" and next(writes) == kill_at:
            os.write(args[0], args[1][: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        if not half and number == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call()

    with Run.start(PosixObjects(str(root), Tap(hook)), PROBLEM, heartbeat=0) as run:
        for state in range(first, last + 1):
            save(run, state)
            os.write(pipe, b"+")


def in_child(work, *args):
    """Run ``work`` in a forked child: how it ended, and how many states it acknowledged."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads that the child won't use
        pid = os.fork()
    if pid == 0:
        try:
            work(*args, writer)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        acknowledged = len(told.read())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), acknowledged


def kill_everywhere(tmp_path, old, half=False, every=1):
    """Kill at each step until none is left: how many there were."""
    template = tmp_path / "template"
    if old:
        objects = prepared(template, range(1, old + 1))
        objects.put("data/000009-000001-0123456789abcdef/H/c/0/0", parts(9)["H/c/0/0"])  # orphan
    for checked, step in enumerate(range(1, 10_000, every)):
        root = tmp_path / f"run-{step}"
        if old:
            shutil.copytree(template, root)
        code, acknowledged = in_child(disturbed, root, old + 1, old + 4, step, half)
        if code == 0:
            assert acknowledged == 4
            return checked
        assert code == -signal.SIGKILL
        check(PosixObjects(str(root)), old + acknowledged, min(old + acknowledged + 1, old + 4))
        shutil.rmtree(root)
    raise AssertionError("the steps never end")


def test_sigkill_at_every_31st_step(tmp_path, cases):
    cases("SIGKILL at a step", kill_everywhere(tmp_path, old=3, every=31))


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("old", [0, 3], ids=["new run", "resumed run"])
@pytest.mark.parametrize("half", [False, True], ids=["whole writes", "half writes"])
def test_sigkill_at_every_step(tmp_path, cases, old, half):
    checked = kill_everywhere(tmp_path, old, half)
    assert checked >= (12 if half else 150)
    cases("SIGKILL at a step", checked)
