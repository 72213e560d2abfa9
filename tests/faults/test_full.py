"""A disk that is really full: a small tmpfs."""

import os
import subprocess

import pytest
from faults.scenario import PROBLEM, check, save, state_of

from dasknmf.numerics.errors import StoreError
from dasknmf.storage.posix import PosixObjects
from dasknmf.storage.runs import Run, read_newest, verify


@pytest.fixture
def small_disk(tmp_path):
    """Call with a size in KiB for a fresh disk of that size; each replaces the one before."""
    place = tmp_path / "disk"
    place.mkdir()

    def unmount():
        if os.path.ismount(place):
            subprocess.run(["umount", str(place)], check=True)

    def mount(size):
        unmount()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode:
            pytest.skip(f"mounting a tmpfs is refused: {done.stderr.strip()}")
        return place

    yield mount
    unmount()


def explained(error):
    assert "No space left on device. Free space on that disk" in str(error)


def filled(place, size):
    """States grow until the disk is full; then smaller ones must fit again."""
    objects = PosixObjects(str(place / "run"))
    acknowledged, failed = 0, 0
    try:
        run = Run.start(objects, PROBLEM, heartbeat=0)
    except StoreError as error:
        explained(error)
        return 0
    with run:
        for state in range(1, 300):
            try:
                save(run, state, size=state * 1024)
                acknowledged = state
            except StoreError as error:
                explained(error)
                failed = state
                break
        assert failed
        if acknowledged:
            assert state_of(objects, read_newest(objects)) == acknowledged
        assert verify(objects) == []
    (place / "ballast").unlink()
    check(objects, acknowledged, failed)
    return 1


def fill(small_disk, sizes):
    full = 0
    for size in sizes:
        place = small_disk(size)
        (place / "ballast").write_bytes(bytes(64 * 1024))
        full += filled(place, size)
    assert full >= len(sizes) // 2


def test_a_full_disk(small_disk, cases):
    fill(small_disk, [160, 200])
    cases("disk full", 2)


@pytest.mark.faults
def test_full_disks_of_24_sizes(small_disk, cases):
    sizes = range(84, 84 + 24 * 12, 12)
    fill(small_disk, sizes)
    cases("disk full", len(sizes))
