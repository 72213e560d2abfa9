"""Power cuts between any two steps, on a model of a disk; and the model against the real one."""

import os
import random

import pytest
from faults.disk import Disk
from faults.scenario import PROBLEM, Tap, check, prepared, save

from dasknmf.numerics.errors import StoreError
from dasknmf.storage.posix import PosixObjects
from dasknmf.storage.runs import Run, verify

ROOT = "/data/run"


class NoSync(Disk):
    """Files are not synced."""

    def fsync(self, fd):
        pass


class NoFolderSync(Disk):
    """Directories are not synced."""

    def fsync_dir(self, path):
        pass


class NoCommitFolderSync(Disk):
    """The manifests' directory is not synced: one call of all is missing."""

    def fsync_dir(self, path):
        if not path.endswith("/commits"):
            super().fsync_dir(path)


class NoDataFolderSync(Disk):
    """The entry of a commit's data folder is not synced."""

    def fsync_dir(self, path):
        if not path.endswith("/data"):
            super().fsync_dir(path)


def cut_everywhere(kind, samples, seed=0, every=1, limit=None, keep=2, size=300):
    """Cut the power after every step of two starts and six saves.

    Gives the distinct states that were checked, and those that broke a promise. A second start
    comes after a crash without a power cut: it builds upon what its forerunner had not synced.
    """
    rng = random.Random(seed)
    disk = kind()
    disk.mkdir("/data")
    Disk.fsync_dir(disk, "/")
    done = {"acknowledged": 0, "attempted": 0}
    seen, broken = set(), []

    def hook(number, name, args, call):
        answer = call()
        if name not in ("read", "stat", "fstat", "listdir", "close") and number % every == 0:
            for _ in range(samples):
                found, content = disk.power_cut(rng)
                key = hash((content, tuple(done.values())))
                if key in seen:
                    continue
                seen.add(key)
                try:
                    check(PosixObjects(ROOT, found), **done, takeover=True)
                except (AssertionError, StoreError) as error:
                    broken.append((number, name, repr(error)))
                    if limit and len(broken) >= limit:
                        raise EnoughError from error
        return answer

    try:
        for first in (1, 4):
            run = Run.start(
                PosixObjects(ROOT, Tap(hook, disk)), PROBLEM, takeover=True, heartbeat=0, keep=keep
            )
            for state in range(first, first + 3):
                done["attempted"] = state
                save(run, state, size)
                done["acknowledged"] = state
    except EnoughError:
        pass
    return len(seen), broken


class EnoughError(Exception):
    pass


def test_power_cuts(cases):
    count, broken = cut_everywhere(Disk, samples=2, every=3)
    assert broken == []
    assert count > 100
    cases("power cut", count)


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("keep", "size"), [(2, 300), (1, 100), (3, 1000), (2, 10_000)])
def test_power_cuts_after_every_step(cases, keep, size):
    count, broken = cut_everywhere(Disk, samples=60, seed=size, keep=keep, size=size)
    assert broken == []
    assert count > 2500
    cases("power cut", count)


@pytest.mark.parametrize("kind", [NoSync, NoFolderSync, NoCommitFolderSync, NoDataFolderSync])
def test_a_missing_sync_is_found(kind, cases):
    _, broken = cut_everywhere(kind, samples=4, limit=1)
    assert broken
    cases("control: a fault is found", 1)


def test_the_model_does_what_the_real_disk_does(tmp_path):
    """The same calls leave the same files on both."""
    disk = Disk()
    path = ""
    for part in tmp_path.parts[1:]:
        path += f"/{part}"
        disk.mkdir(path)
    names = []
    for steps in (disk, None):
        objects = PosixObjects(str(tmp_path / "run"), steps)
        with Run.start(objects, PROBLEM, heartbeat=0) as run:
            for state in range(1, 5):
                save(run, state)
            assert not objects.create("commits/000005.json", b"another")
            assert objects.create("free/a.json", b"one")
            assert not objects.create("free/a.json", b"")
            objects.put("free/b.json", b"old")
            objects.put("free/b.json", b"new")
            objects.delete("free/a.json")
            assert objects.get("free/b.json") == b"new"
        assert verify(objects) == []
        names.append([key.split("-")[0] + key[-8:] for key in objects.list()])
    assert names[0] == names[1]
    assert not [f for _, _, files in os.walk(tmp_path) for f in files if f.startswith(".tmp")]


def test_what_a_run_that_ended_leaves_is_all_synced(tmp_path):
    disk = Disk()
    disk.mkdir("/data")
    objects = PosixObjects(ROOT, disk)
    with Run.start(objects, PROBLEM, heartbeat=0) as run:
        save(run, 1)
    found, _ = disk.power_cut(random.Random(0))
    assert PosixObjects(ROOT, found).list() == objects.list()
    assert prepared(tmp_path / "run").list()[-1] == objects.list()[-1] == "run.json"
