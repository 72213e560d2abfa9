"""A run that the fault tests disturb, and the oracle that says what may be left of it."""

from __future__ import annotations

import hashlib
from contextlib import suppress

from dasknmf.numerics.errors import StoreError
from dasknmf.storage.posix import PosixObjects
from dasknmf.storage.runs import Run, read_newest, verify
from dasknmf.storage.steps import Steps

PROBLEM = {"k": 3, "shape": [40, 30], "solver": {"name": "als", "tol": 1e-4}}
NAMES = [name for name in vars(Steps) if not name.startswith("_")]


class Tap(Steps):
    """Real steps (or those of ``below``), each of which first goes through ``hook``.

    ``hook(number, name, args, call)`` gives what the step gives, usually ``call()``.
    """

    def __init__(self, hook, below=None):
        self.hook, self.below, self.count = hook, below or Steps(), 0


def _tapped(name):
    def step(self, *args):
        self.count += 1
        return self.hook(self.count, name, args, lambda: getattr(self.below, name)(*args))

    return step


for _name in NAMES:
    setattr(Tap, _name, _tapped(_name))


def parts(state, size=300):
    """The objects of a state, by name: the same bytes each time."""
    seed = hashlib.sha256(str(state).encode()).digest()
    return {
        "zarr.json": b'{"state":%d}' % state,
        "H/c/0/0": (seed * (size // 32 + 1))[:size],
        "sums/c/0": seed[::-1],
    }


def save(run, state, size=300):
    """Commit a state; only when this returns is it acknowledged."""
    draft = run.draft()
    try:
        entries = [draft.put(name, data) for name, data in parts(state, size).items()]
        return run.commit({"state": state, "loss": 1 / state, "size": size}, entries, draft)
    except StoreError:
        with suppress(StoreError):
            draft.discard()
        raise


def state_of(objects, commit):
    """The state that a commit holds, every byte compared; 0: none."""
    if commit is None:
        return 0
    state = commit.meta["state"]
    expected = parts(state, commit.meta["size"])
    found = {
        entry.key.split("/", 2)[2]: commit.read(objects, entry.key) for entry in commit.entries
    }
    assert found == expected
    assert commit.meta["loss"] == 1 / state
    return state


def check(objects, acknowledged, attempted, takeover=False):
    """What is left was being committed, is no older than acknowledged, and the run goes on."""
    with Run.start(objects, PROBLEM, takeover=takeover, heartbeat=0) as run:
        state = state_of(objects, run.newest)
        assert acknowledged <= state <= attempted, (acknowledged, state, attempted)
        assert verify(objects) == []
        save(run, attempted + 1)
        assert state_of(objects, read_newest(objects)) == attempted + 1
    assert verify(objects) == []


def prepared(root, states=(1, 2, 3)):
    """A run with some states, ended cleanly."""
    objects = PosixObjects(str(root))
    with Run.start(objects, PROBLEM, heartbeat=0) as run:
        for state in states:
            save(run, state)
    return objects
