"""What a run says: refusals, messages, liveness, readers beside a writer, workers' objects."""

import os
import pickle
import subprocess
import sys

import pytest

from dasknmf import (
    MissingError,
    ParameterError,
    ProblemMismatchError,
    RunBusyError,
    StoreError,
)
from dasknmf.storage import epochs
from dasknmf.storage.objects import is_key, open_objects, probe
from dasknmf.storage.runs import Entry, Run, put_entry, read_newest, status, verify

PROBLEM = {"k": 3, "data": {"shape": [40, 30], "dtype": "float64"}}


@pytest.fixture(params=["posix", "memory"])
def objects(request, tmp_path):
    if request.param == "posix":
        return open_objects(tmp_path / "new" / "run")
    pytest.importorskip("obstore")
    return open_objects(f"memory://{tmp_path.name}{os.getpid()}")


def save(run, state=1, **meta):
    draft = run.draft()
    return run.commit({"state": state, **meta}, [draft.put("H/c/0/0", b"%d" % state)], draft)


def test_a_run_goes_on_where_it_was(objects):
    with Run.start(objects, PROBLEM) as run:
        assert run.newest is None
        losses = [0.1 + 0.2, 5e-324, 1.7976931348623157e308, 1 / 3]
        save(run, 1, losses=losses)
    with Run.start(pickle.loads(pickle.dumps(objects)), PROBLEM, resume="must") as run:
        assert run.newest.meta == {"state": 1, "losses": losses}
        assert run.newest.read(objects, run.newest.entries[0].key) == b"1"
    found = status(objects)
    assert found.problem == PROBLEM
    assert [e.state for e in found.epochs] == ["ended", "ended"]
    assert {e.pid for e in found.epochs} == {os.getpid()}
    assert verify(objects) == []


def test_two_good_states_are_kept_and_shared_data_outlives_its_first_commit(objects):
    with Run.start(objects, PROBLEM, keep=2) as run:
        first = save(run, 1)
        for state in (2, 3, 4):
            draft = run.draft()
            entries = [*first.entries, draft.put("H", b"x")]
            run.commit({"state": state}, entries, draft)
    assert [c.meta["state"] for c in status(objects).commits] == [3, 4]
    assert len(objects.names("data")) == 3
    assert verify(objects) == []


def test_another_problem_is_refused_by_field(objects):
    Run.start(objects, PROBLEM).close()
    other = {"k": 4, "data": {"shape": [40, 31], "dtype": "float64"}}
    with pytest.raises(ProblemMismatchError) as caught:
        Run.start(objects, other)
    assert "data.shape is [40, 30] there, and [40, 31] was given" in str(caught.value)
    assert "k is 3 there, and 4 was given" in str(caught.value)
    assert epochs.newest(objects) == 1


def test_resume_must_and_never(objects):
    with pytest.raises(StoreError, match="holds no run, and resume='must'"):
        Run.start(objects, PROBLEM, resume="must")
    assert objects.names() == []
    Run.start(objects, PROBLEM, resume="never").close()
    with pytest.raises(StoreError, match="holds a run, and resume='never'"):
        Run.start(objects, PROBLEM, resume="never")
    with pytest.raises(ParameterError, match="resume='yes'"):
        Run.start(objects, PROBLEM, resume="yes")


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=r"holds 'thesis.tex' and is no run"):
        Run.start(open_objects(tmp_path), PROBLEM)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(StoreError, match="failed: Not a directory"):
        Run.start(open_objects(tmp_path / "thesis.tex"), PROBLEM)


def test_a_living_run_is_refused_and_can_be_read(objects):
    with Run.start(objects, PROBLEM) as run:
        with pytest.raises(MissingError, match="nothing is committed yet"):
            read_newest(objects)
        save(run)
        with pytest.raises(RunBusyError, match=rf"process {os.getpid()} on .* takeover=True"):
            Run.start(objects, PROBLEM)
        assert read_newest(objects).meta == {"state": 1}
        assert [e.state for e in status(objects).epochs] == ["alive"]


@pytest.mark.parametrize(("age", "living"), [(5, True), (3600, False)])
def test_life_on_another_machine_is_told_by_its_heartbeat(tmp_path, monkeypatch, age, living):
    objects = open_objects(tmp_path)
    with monkeypatch.context() as there:
        there.setattr("socket.gethostname", lambda: "elsewhere")
        Run.start(objects, PROBLEM, heartbeat=0)
    now = objects.now()
    os.utime(tmp_path / "epochs" / "000001.alive", (now - age, now - age))
    if living:
        with pytest.raises(RunBusyError, match=r"on elsewhere .* last heard of [56] s ago"):
            Run.start(objects, PROBLEM)
    else:
        Run.start(objects, PROBLEM).close()


def test_a_reused_process_id_is_no_sign_of_life(tmp_path, monkeypatch):
    objects = open_objects(tmp_path)
    monkeypatch.setattr(epochs, "_started", lambda pid: "1")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    monkeypatch.setattr(os, "getpid", lambda: child.pid)
    run = Run.start(objects, PROBLEM, heartbeat=0)
    monkeypatch.undo()
    try:
        assert epochs.state(objects, run.token.number, objects.now)[0] == "lost"
    finally:
        child.communicate()


def test_heartbeats_go_on(tmp_path):
    objects = open_objects(tmp_path)
    with Run.start(objects, PROBLEM, heartbeat=0.01) as run:
        alive = tmp_path / "epochs" / "000001.alive"
        first = alive.stat().st_ino
        while alive.stat().st_ino == first:
            pass
        assert run.newest is None
    assert (tmp_path / "epochs" / "000001.end").exists()


@pytest.mark.parametrize(
    "key",
    ["", "/", "a/", "/a", "a//b", "../a", "a/../b", ".", "a/.", ".tmp-x", "a\\b", "a\0b", "a\n",
     "ä", "a b", "x" * 201, "/".join("x" * 500), None, 5, b"a"],
)  # fmt: skip
def test_wrong_keys_are_refused_by_every_call(tmp_path, key):
    objects = open_objects(tmp_path)
    assert not is_key(key)
    calls = [
        lambda: objects.put(key, b""),
        lambda: objects.create(key, b""),
        lambda: objects.delete(key),
        lambda: objects.get(key),
        lambda: objects.clear(key),
        lambda: put_entry(objects, key, b""),
    ]
    for call in calls:
        with pytest.raises(StoreError):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Entry("data/../x", 1, "0" * 64), "does not lie in data/"),
        (Entry("data/000009-000001-0123456789abcdef/H", 1, "0" * 64), "neither in the draft"),
        (Entry("data/000009-000001-0123456789abcdef/H", -1, "0" * 64), "no count of bytes"),
        (Entry("data/000009-000001-0123456789abcdef/H", 1, "xyz"), "sha256"),
    ],
)
def test_entries_of_elsewhere_are_refused(tmp_path, entry, message):
    with Run.start(open_objects(tmp_path), PROBLEM) as run:
        with pytest.raises(StoreError, match=message):
            run.commit({}, [entry], run.draft())
        assert save(run).number == 2


@pytest.mark.parametrize("meta", [{"loss": float("nan")}, {"loss": float("inf")}, {"H": b"x"}])
def test_a_meta_that_is_no_json_is_refused(tmp_path, meta):
    with Run.start(open_objects(tmp_path), PROBLEM) as run:
        with pytest.raises(StoreError, match="must be JSON"):
            run.commit(meta, [], run.draft())
        assert save(run).number == 2


def test_places(tmp_path, monkeypatch):
    assert open_objects(f"file://{tmp_path}").url == str(tmp_path)
    with pytest.raises(StoreError, match="no place for checkpoints"):
        open_objects("ftp://host/run")
    with pytest.raises(StoreError, match="no place for checkpoints"):
        open_objects(5)
    with pytest.raises(StoreError, match="Options are for URLs"):
        open_objects(tmp_path, {"region": "x"})
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(StoreError, match=r"pip install 'dasknmf\[cloud\]'"):
        open_objects("s3://bucket/run")


def test_a_probe_leaves_nothing_and_refuses_what_it_cant_write(objects, tmp_path):
    probe(objects)
    assert objects.list() == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="choose another path"):
        probe(open_objects(tmp_path / "file" / "run"))


def test_leftovers_go_with_the_next_start(tmp_path):
    objects = open_objects(tmp_path)
    with Run.start(objects, PROBLEM) as run:
        run.draft().put("H", b"never committed")
        (tmp_path / "commits" / ".tmp-1").write_text("")
        discarded = run.draft()
        discarded.put("H", b"x")
        discarded.discard()
        assert len(objects.names("data")) == 1
    Run.start(objects, PROBLEM).close()
    assert objects.names("data") == []
    assert not (tmp_path / "commits" / ".tmp-1").exists()
