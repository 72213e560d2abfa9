"""Flipped bits, cut, swapped, stale and missing objects, edited manifests: all are noticed."""

import json
import os
import random
import shutil
import warnings

import pytest
from faults.scenario import PROBLEM, prepared, save, state_of

from dasknmf.numerics.errors import DamagedError, MissingError, StoreWarning
from dasknmf.storage import manifests
from dasknmf.storage.posix import PosixObjects
from dasknmf.storage.runs import Run, read_newest, verify


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("damage") / "run"
    prepared(root)
    return root


def flip(data, rng):
    at = rng.randrange(8 * len(data))
    return data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :]


def cut(data, rng):
    return data[: rng.randrange(len(data))]


def grown(data, rng):
    return data + bytes([rng.randrange(256)])


def zeros(data, rng):
    return bytes(len(data))


def harm(root, rng):
    """Damage one file of a run: its key, and whether the newest state needs it."""
    objects = PosixObjects(str(root))
    newest = read_newest(objects)
    used = [entry.key for entry in newest.entries]
    keys = [key for key in objects.list() if not key.endswith((".alive", ".end"))]
    key = rng.choice([*keys, *used])
    path = root / key
    kind = rng.choice([flip, flip, flip, cut, grown, zeros, "swap", "stale", "missing"])
    data = path.read_bytes()
    # An older manifest that is gone looks as if retention had removed it.
    old = key.startswith("commits/") and key != f"commits/{newest.number:06d}.json"
    if kind == "missing" and not key.startswith("epochs") and not old:
        path.unlink()
    elif kind == "swap":
        other = root / rng.choice([k for k in keys if (root / k).read_bytes() != data])
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
    elif kind == "stale" and key in used:
        name = key.split("/", 2)[2]
        old = next(k for k in keys if k.endswith(name) and k != key and k.startswith("data/"))
        changed = (root / old).read_bytes()
        path.write_bytes(changed if changed != data else flip(data, rng))
    else:
        path.write_bytes((kind if callable(kind) else flip)(data, rng))
    return key


def damages(tmp_path, good, seeds):
    for seed in seeds:
        rng = random.Random(seed)
        root = tmp_path / f"run-{seed}"
        shutil.copytree(good, root)
        key = harm(root, rng)
        objects = PosixObjects(str(root))
        findings = verify(objects)
        assert findings, (seed, key)
        # Whatever reading gives, it is a state, right to the last bit, or an error of ours.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                newest = read_newest(objects)
            except (DamagedError, MissingError):
                newest = None
        if newest is not None:
            state = state_of(objects, newest)
            assert state == 3 or [w for w in caught if w.category is StoreWarning], (seed, key)
        shutil.rmtree(root)
    return len(seeds)


def test_damage_is_found(tmp_path, good, cases):
    cases("damaged objects", damages(tmp_path, good, range(40)))


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_damage_is_found_1200_times(tmp_path, good, cases):
    cases("damaged objects", damages(tmp_path, good, range(1000, 2200)))


def edited(document, path, value):
    """The document with one field changed; an empty path is the whole."""
    if not path:
        return value
    changed = document.copy()
    changed[path[0]] = edited(document[path[0]], path[1:], value)
    return changed


OBJECT = ["objects", 0]
EDITS = [
    *[([*OBJECT, "key"], key) for key in (
        "../../etc/passwd", "/etc/passwd", "data/../run.json", "run.json", "epochs/000001.json",
        "data/x/H", "data\\H", "data//H", "", ".", None, 5, ["data"], "data/" + "x" * 2000,
        "data/000001-000001-0123456789abcdef", "data/000001-000001-0123456789abcdef/.tmp-1",
        "data/000001-000001-0123456789abcdef/H\n", "data/000001-000001-0123456789abcdef/missing",
    )],
    *[([*OBJECT, "size"], size) for size in (-1, 0, 5, 1.5, "14", None, True, 10**30, [])],
    *[([*OBJECT, "sha256"], text) for text in ("", "0" * 64, "F" * 64, None, 7, "0" * 63 + "\n")],
    *[(["objects"], value) for value in (None, {}, "x", [None], [[]], [{}], 3)],
    *[(["number"], value) for value in (0, -1, 3, 1.0, "4", None, True, 10**40)],
    *[(["epoch"], value) for value in (0, 2, "1", None)],
    *[(["fences"], value) for value in (None, [], [[1]], [["1", 1]], [[1, 99]], {}, [[2, 1]])],
    *[(["meta"], value) for value in ([], "x", 5, True)],
    *[(["run"], value) for value in (None, 5, [], "x" * 2000)],
    *[(["writer"], value) for value in (None, 5, [], "x" * 2000)],
    *[(["created"], value) for value in (None, 5, [], "x" * 2000)],
    *[(["version"], value) for value in (0, 2, "1", True, None)],
    *[(["format"], value) for value in (None, "dasknmf-model", 1)],
    (["run"], "another"),
    *[([], value) for value in (None, [], "x", 5, {})],
]  # fmt: skip


@pytest.mark.parametrize("sealed", [True, False], ids=["digest made anew", "digest left"])
def test_edited_manifests(tmp_path, good, cases, sealed):
    root = tmp_path / "run"
    shutil.copytree(good, root)
    objects = PosixObjects(str(root))
    path = root / "commits" / "000004.json"
    document = json.loads(path.read_bytes())
    for where, value in EDITS:
        changed = edited(document, where, value)
        if sealed and isinstance(changed, dict):
            changed.pop("digest", None)
            data = manifests.sealed(changed)
        else:
            data = manifests.canonical(changed)
        path.write_bytes(data)
        assert verify(objects), (where, value)
        with pytest.warns(StoreWarning, match="passed over: commit 4"):
            assert state_of(objects, read_newest(objects)) == 2
    cases("edited manifests", len(EDITS))


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe", b"{", b"[" * 100_000, b'{"a":NaN}', b'{"a":1e999}', b'{"a":1}{"a":1}',
     b'{"a":1,"a":1}', b"9" * 5000, b'{"\\ud800":1}', b"null"],
)  # fmt: skip
def test_manifests_that_are_no_json(tmp_path, good, data):
    root = tmp_path / "run"
    shutil.copytree(good, root)
    (root / "commits" / "000004.json").write_bytes(data)
    with pytest.warns(StoreWarning, match="commit 4"):
        assert state_of(PosixObjects(str(root)), read_newest(PosixObjects(str(root)))) == 2


def test_edited_loss_without_a_new_digest(tmp_path, good):
    root = tmp_path / "run"
    shutil.copytree(good, root)
    path = root / "commits" / "000004.json"
    path.write_bytes(path.read_bytes().replace(b'"loss":0.333', b'"loss":0.334'))
    assert "digest" in str(verify(PosixObjects(str(root)))[0])


def test_all_damaged_is_an_error_and_never_a_new_start(tmp_path, good):
    root = tmp_path / "run"
    shutil.copytree(good, root)
    for path in root.glob("data/*/H/c/0/0"):
        path.write_bytes(b"")
    before = sorted(root.rglob("*"))
    objects = PosixObjects(str(root))
    for _ in range(2):
        with pytest.raises(DamagedError, match="no undamaged commit"):
            Run.start(objects, PROBLEM, heartbeat=0)
    with pytest.raises(DamagedError, match="no undamaged commit"):
        read_newest(objects)
    assert set(before) <= set(root.rglob("*"))


@pytest.mark.parametrize("pattern", ["commits/*", "commits/000004.json"])
def test_lost_manifests_are_noticed(tmp_path, good, pattern):
    """A clean end left word of the last commit, so that it is missed."""
    root = tmp_path / "run"
    shutil.copytree(good, root)
    for path in root.glob(pattern):
        path.unlink()
    objects = PosixObjects(str(root))
    assert [f.key for f in verify(objects)] == ["commits/000004.json"]
    if pattern == "commits/*":
        with pytest.raises(DamagedError, match="commit 4: it was committed"):
            Run.start(objects, PROBLEM, heartbeat=0)
    else:
        with pytest.warns(StoreWarning, match="commit 4: it was committed"):
            run = Run.start(objects, PROBLEM, heartbeat=0)
        with run:
            assert state_of(objects, run.newest) == 2
            assert save(run, 3).number > 5


def test_a_damaged_newest_falls_back_and_its_number_is_not_used_again(tmp_path, good):
    root = tmp_path / "run"
    shutil.copytree(good, root)
    objects = PosixObjects(str(root))
    path = root / read_newest(objects).entries[1].key
    path.write_bytes(flip(path.read_bytes(), random.Random(1)))
    with pytest.warns(StoreWarning, match="Going on from commit 3"):
        run = Run.start(objects, PROBLEM, heartbeat=0)
    with run:
        assert (run.newest.number, state_of(objects, run.newest)) == (5, 2)
        numbers = [save(run, state).number for state in (3, 4, 5)]
    assert numbers == [6, 7, 8]
    assert verify(objects) == []
    assert len(list(root.glob("data/*"))) == 2


def test_links_and_pipes_are_not_followed(tmp_path, good):
    root = tmp_path / "run"
    shutil.copytree(good, root)
    objects = PosixObjects(str(root))
    first, second = (root / entry.key for entry in read_newest(objects).entries[:2])
    copy = tmp_path / "copy"
    shutil.copy(first, copy)
    first.unlink()
    first.symlink_to(copy)
    second.unlink()
    os.mkfifo(second)
    assert [f.problem.split(":")[0] for f in verify(objects)] == ["is damaged", "is damaged"]
