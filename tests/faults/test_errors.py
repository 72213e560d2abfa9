"""ENOSPC, EIO, EACCES and EROFS at every step, once and for good."""

import errno
import os
import shutil
from contextlib import suppress

import pytest
from faults.scenario import PROBLEM, Tap, check, prepared, save

from dasknmf.numerics.errors import StoreError
from dasknmf.storage.posix import PosixObjects
from dasknmf.storage.runs import Run

CODES = [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS]


def disturbed(root, code, step, for_good):
    """Start and save with a failing step, as an engine would: a failed save is not the end.

    Gives the last acknowledged and the last attempted state, and whether the step came at all.
    """
    reached = []

    def hook(number, name, args, call):
        if number == step or (for_good and number > step):
            reached.append(name)
            raise OSError(code, os.strerror(code))
        return call()

    objects = PosixObjects(str(root), Tap(hook))
    try:
        run = Run.start(objects, PROBLEM, heartbeat=0)
    except StoreError as error:
        explained(error, root, code)
        return 3, 3, True
    acknowledged = attempted = 3
    for state in range(4, 8):
        attempted = state
        try:
            save(run, state)
            acknowledged = state
        except StoreError as error:
            explained(error, root, code)
    run.close()
    return acknowledged, attempted, bool(reached)


def explained(error, root, code):
    message = str(error)
    assert str(root) in message
    assert os.strerror(code) in message
    assert "Nothing that was committed before is lost" in message
    assert isinstance(error.__cause__, OSError)
    assert error.__cause__.errno == code


def fail_everywhere(tmp_path, code, for_good, every=1, offset=0):
    template = tmp_path / "template"
    prepared(template)
    for checked, step in enumerate(range(1 + offset, 10_000, every)):
        root = tmp_path / f"run-{step}"
        shutil.copytree(template, root)
        acknowledged, attempted, reached = disturbed(root, code, step, for_good)
        if not reached:
            assert acknowledged == 7
            return checked
        if not for_good and acknowledged > 3:
            assert acknowledged >= 6  # at most one save in the middle failed, or the last one
        check(PosixObjects(str(root)), acknowledged, attempted, takeover=True)
        shutil.rmtree(root)
    raise AssertionError("the steps never end")


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_errors_at_every_41st_step(tmp_path, cases, code, for_good):
    offset = 5 * CODES.index(code) + for_good
    cases("errors of the file system", fail_everywhere(tmp_path, code, for_good, 41, offset))


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_errors_at_every_step(tmp_path, cases, code, for_good):
    checked = fail_everywhere(tmp_path, code, for_good)
    assert checked >= 100
    cases("errors of the file system", checked)


def test_a_lost_reply_to_a_link_is_no_loss(tmp_path):
    def hook(number, name, args, call):
        call_result = call()
        if name == "link":
            raise OSError(errno.EIO, "the reply is lost")
        return call_result

    objects = PosixObjects(str(tmp_path / "run"), Tap(hook))
    with Run.start(objects, PROBLEM, heartbeat=0) as run:
        assert save(run, 1).number == 2
    with suppress(FileNotFoundError):
        assert not [name for name in os.listdir(tmp_path / "run" / "commits") if "tmp" in name]
    check(PosixObjects(str(tmp_path / "run")), 1, 1)
