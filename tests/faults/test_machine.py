"""Random sequences of saves, crashes, power cuts, takeovers and damage, against a plain oracle."""

import random

import pytest
from faults.disk import Disk
from faults.scenario import PROBLEM, Tap, save, state_of
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dasknmf.numerics.errors import FencedError, MissingError, RunBusyError, StoreError
from dasknmf.storage.posix import PosixObjects
from dasknmf.storage.runs import Run, read_newest, status, verify

COUNT = {"steps": 0, "machines": 0}


class Life(RuleBasedStateMachine):
    """One run on one disk; ``low`` is the last acknowledged state, ``high`` the last attempted."""

    def __init__(self):
        super().__init__()
        COUNT["machines"] += 1
        self.disk, self.run, self.zombies = Disk(), None, []
        self.disk.mkdir("/data")
        self.disk.fsync_dir("/")
        self.low = self.high = 0
        self.fault = None
        self.keep = 2

    def objects(self):
        def hook(number, name, args, call):
            if self.fault is not None:
                self.fault -= 1
                if self.fault < 0:
                    self.fault = None
                    raise OSError(5, "Input/output error")
            return call()

        return PosixObjects("/data/run", Tap(hook, self.disk))

    @property
    def plain(self):
        return PosixObjects("/data/run", self.disk)

    def found(self, run):
        state = state_of(self.plain, run.newest)
        assert self.low <= state <= self.high
        self.low = self.high = state
        self.run = run

    @precondition(lambda self: self.run is None)
    @rule(keep=st.integers(1, 3))
    def start(self, keep):
        self.keep = keep
        self.found(Run.start(self.objects(), PROBLEM, keep=keep, heartbeat=0, takeover=True))

    @precondition(lambda self: self.run is not None)
    @rule()
    def save(self):
        self.high += 1
        save(self.run, self.high)
        self.low = self.high

    @precondition(lambda self: self.run is not None)
    @rule(step=st.integers(0, 60))
    def save_with_an_error(self, step):
        self.high += 1
        self.fault = step
        try:
            save(self.run, self.high)
            self.low = self.high
        except FencedError:
            raise AssertionError("nobody took over") from None
        except StoreError:
            pass
        self.fault = None

    @precondition(lambda self: self.run is not None)
    @rule()
    def close(self):
        self.run.close()
        self.run = None

    @precondition(lambda self: self.run is not None)
    @rule()
    def start_beside(self):
        with pytest.raises(RunBusyError):
            Run.start(self.objects(), PROBLEM, heartbeat=0)

    @precondition(lambda self: self.run is not None)
    @rule()
    def take_over(self):
        self.zombies.append(self.run)
        self.found(Run.start(self.objects(), PROBLEM, keep=self.keep, heartbeat=0, takeover=True))

    @precondition(lambda self: self.zombies)
    @rule()
    def a_zombie_saves(self):
        with pytest.raises(FencedError):
            save(self.zombies[-1], 999)

    @rule()
    def crash(self):
        """The process is gone, the machine goes on."""
        self.run = None

    @rule(seed=st.integers(0, 2**32))
    def power_cut(self, seed):
        self.disk, _ = self.disk.power_cut(random.Random(seed))
        self.run, self.zombies = None, []

    @precondition(lambda self: self.run is not None)
    @rule(seed=st.integers(0, 2**32), step=st.integers(1, 60))
    def power_cut_in_a_save(self, seed, step):
        class OffError(BaseException):
            pass

        left = [step]

        def hook(number, name, args, call):
            left[0] -= 1
            if left[0] == 0:
                raise OffError
            return call()

        self.high += 1
        self.run.objects.steps.hook = hook
        try:
            save(self.run, self.high)
            self.low = self.high
        except OffError:
            pass
        self.power_cut(seed)

    @invariant()
    def what_is_readable_was_committed(self):
        COUNT["steps"] += 1
        try:
            state = state_of(self.plain, read_newest(self.plain))
        except MissingError:
            state = 0
        assert self.low <= state <= self.high
        if self.low:
            assert verify(self.plain) == []
            assert len(status(self.plain).commits) <= 2 * self.keep + 12


def lives(examples, steps):
    COUNT.update(steps=0, machines=0)
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return COUNT["steps"]


def test_lives(cases):
    cases("steps of random lives", lives(8, 20))


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_200_lives_of_50_steps(cases):
    steps = lives(200, 50)
    assert COUNT["machines"] >= 200
    cases("steps of random lives", steps)
