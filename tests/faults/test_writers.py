"""Several writers on one path: starts at once, takeovers, writers that wake up late."""

import os
import signal
import warnings

import pytest
from faults.disk import Disk
from faults.scenario import PROBLEM, Tap, check, save, state_of
from faults.test_kill import in_child

from dasknmf.numerics.errors import FencedError, RunBusyError, StoreError
from dasknmf.storage.posix import PosixObjects
from dasknmf.storage.runs import Run, read_newest, status, verify


def forked(work, *args):
    """Run ``work`` in a child, which exits with what it returns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work(*args)
        finally:
            os._exit(code)
    return pid


def contend(root, gate, told, over):
    """Wait for the gate, start, tell, and stay until all others have tried."""
    os.read(gate, 1)
    try:
        run = Run.start(PosixObjects(str(root)), PROBLEM, heartbeat=0)
        save(run, run.newest.meta["state"] + 1 if run.newest else 1)
        result = "won"
    except RunBusyError:
        result = "refused"
    except BaseException as error:  # told, so that nobody waits for it
        result = repr(error).replace(" ", "_")
    os.write(told, f"{result} ".encode())
    os.read(over, 1)
    return 0


def starts_at_once(tmp_path, rounds, processes=3):
    for number in range(rounds):
        root = tmp_path / str(number % 10)  # a new run, or one whose last writer died
        (gate, opened), (told, tell), (over, end) = os.pipe(), os.pipe(), os.pipe()
        pids = [forked(contend, root, gate, tell, over) for _ in range(processes)]
        os.close(tell)
        os.write(opened, b"x" * processes)
        results = b""
        while results.count(b" ") < processes and (part := os.read(told, 100)):
            results += part
        os.write(end, b"x" * processes)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        for fd in (gate, opened, told, over, end):
            os.close(fd)
        assert codes == [0] * processes
        assert sorted(results.split()) == [b"refused"] * (processes - 1) + [b"won"]
        objects = PosixObjects(str(root))
        assert verify(objects) == []
        assert state_of(objects, read_newest(objects)) == number // 10 + 1
    return rounds


@pytest.mark.faults
def test_takeover_of_a_frozen_writer(tmp_path, cases):
    """The writer is stopped in the middle of a save, at any step; it wakes up to be refused."""
    checked = 0
    for step in range(45, 120, 5):
        root = tmp_path / f"run-{step}"
        reader, writer = os.pipe()
        pid = forked(freezing, root, step, writer)
        os.close(writer)
        _, how = os.waitpid(pid, os.WUNTRACED)
        assert os.WIFSTOPPED(how)
        objects = PosixObjects(str(root))
        with pytest.raises(RunBusyError, match=f"process {pid} on "):
            Run.start(objects, PROBLEM, heartbeat=0)
        with Run.start(objects, PROBLEM, takeover=True, heartbeat=0) as run:
            first = run.newest.meta["state"] if run.newest else 0
            for state in range(101, 104):
                save(run, state)
            os.kill(pid, signal.SIGCONT)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
            with os.fdopen(reader, "rb") as told:
                assert len(told.read()) <= first
            assert state_of(objects, read_newest(objects)) == 103
            save(run, 104)
        assert state_of(objects, read_newest(objects)) == 104
        assert verify(objects) == []
        check(objects, 104, 104)
        checked += 1
    cases("takeover of a frozen writer", checked)


def freezing(root, step, pipe):
    """Save until told that the run was taken over (7); at one step, freeze."""

    def hook(number, name, args, call):
        if number == step:
            os.kill(os.getpid(), signal.SIGSTOP)
        return call()

    try:
        run = Run.start(PosixObjects(str(root), Tap(hook)), PROBLEM, heartbeat=0)
        for state in range(1, 30):
            save(run, state)
            os.write(pipe, b"+")
    except FencedError:
        return 7
    except StoreError:
        # Its draft was cleaned away: then the next one is refused.
        with pytest.raises(FencedError):
            save(run, 99)
        return 7
    return 9


class RenamingDisk(Disk):
    """A disk on which link() replaces what is there."""

    def link(self, old, new):
        node = self._node(old)
        folder, name = self._parent(new)
        node.links += 1
        self._set(folder, name, node)


def takeovers(kind, saves, limit=None):
    """A second start takes over, with some saves, before each step of the first's third save.

    How many steps there were, and what broke a promise.
    """
    broken = []
    for checked, step in enumerate(range(1, 1000)):
        disk = kind()
        counting, taken = [], []

        def hook(number, name, args, call, disk=disk, step=step, counting=counting, taken=taken):
            if counting:
                counting.append(name)
                if len(counting) - 1 == step:
                    other = Run.start(
                        PosixObjects("/run", disk), PROBLEM, takeover=True, heartbeat=0
                    )
                    taken.append((other, other.newest.meta["state"]))
                    for state in range(11, 11 + saves):
                        save(other, state)
            return call()

        first = Run.start(PosixObjects("/run", Tap(hook, disk)), PROBLEM, heartbeat=0)
        save(first, 1)
        save(first, 2)
        counting.append("begin")
        try:
            save(first, 3)
            acknowledged = 3
        except StoreError:  # FencedError, or its draft was cleaned away
            acknowledged = 2
        if not taken:
            return checked, broken
        other, base = taken[0]
        objects = PosixObjects("/run", disk)
        try:
            assert base >= acknowledged, "a commit was acknowledged after the takeover"
            with pytest.raises(FencedError):
                save(first, 4)
            assert state_of(objects, read_newest(objects)) == (10 + saves if saves else base)
            if saves:
                assert [c.meta["state"] for c in status(objects).commits][-2:] == [12, 13]
            assert verify(objects) == []
            save(other, 14)
            assert state_of(objects, read_newest(objects)) == 14
        except (AssertionError, StoreError) as error:
            broken.append((step, repr(error)))
            if len(broken) == limit:
                return checked, broken
    raise AssertionError("the steps never end")


@pytest.mark.parametrize("saves", [0, pytest.param(3, marks=pytest.mark.faults)])
def test_takeover_at_every_step_of_a_save(cases, saves):
    checked, broken = takeovers(Disk, saves)
    assert broken == []
    assert checked > 30
    cases("takeover at a step", checked)


@pytest.mark.filterwarnings("ignore::dasknmf.StoreWarning")
def test_fencing_needs_exclusive_links(cases):
    _, broken = takeovers(RenamingDisk, saves=0, limit=1)
    assert broken
    cases("control: a fault is found", 1)


def test_starts_at_once(tmp_path, cases):
    cases("starts at once", starts_at_once(tmp_path, 5))


@pytest.mark.faults
def test_60_starts_at_once(tmp_path, cases):
    cases("starts at once", starts_at_once(tmp_path, 60))


def test_of_two_starts_one_wins_at_every_interleaving(cases):
    """The other start runs whole before each step of the first: exactly one of them may write."""
    for checked, step in enumerate(range(1, 1000)):
        disk, others = Disk(), []

        def hook(number, name, args, call, disk=disk, step=step, others=others):
            if number == step:
                others.append(attempt(PosixObjects("/run", disk)))
            return call()

        one = attempt(PosixObjects("/run", Tap(hook, disk)))
        if not others:
            cases("starts at once, interleaved", checked)
            return
        assert [one, others[0]].count(None) == 1
        winner = one or others[0]
        save(winner, 1)
        assert verify(PosixObjects("/run", disk)) == []


def attempt(objects):
    try:
        return Run.start(objects, PROBLEM, heartbeat=0)
    except RunBusyError:
        return None


def test_a_killed_writer_is_not_waited_for(tmp_path):
    code, acknowledged = in_child(_killed, tmp_path / "run")
    assert code == -signal.SIGKILL
    check(PosixObjects(str(tmp_path / "run")), acknowledged, 1)


def _killed(root, pipe):
    run = Run.start(PosixObjects(str(root)), PROBLEM, heartbeat=0)
    save(run, 1)
    os.write(pipe, b"+")
    os.kill(os.getpid(), signal.SIGKILL)
