"""The benchmarks run, small, and write what can be read again."""

import json

import numpy as np
import pytest
from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.data import planted, planted_dask
from benchmarks.timing import seconds_per_read


def test_cases_run_and_their_json_parses(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DASKNMF_PYPLANC", raising=False)
    path = tmp_path / "found.json"
    names = ["reads-digits", "cd-dense", "planc"]
    assert main(["--quick", "--only", *names, "--json", str(path), "--scratch", str(tmp_path)]) == 0
    found = json.loads(path.read_text(encoding="utf8"))
    assert found["machine"]["versions"]["numpy"]
    rows = {row["case"]: row for row in found["rows"]}
    assert list(rows) == ["reads-digits", "cd-dense", "planc"]
    race = rows["cd-dense"]
    ratio = race["peer"]["values"][0] / race["ours"]["values"][0]
    assert race["value"]["median"] in (pytest.approx(ratio), 0.0)
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(found["rows"])
    assert {line.count(" | ") for line in table} == {len(report.HEADER) - 1}
    assert "skipped" in rows["planc"]["note"]
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_cases_are_refused():
    with pytest.raises(SystemExit, match="no-such-case"):
        main(["--only", "no-such-case"])


def test_a_target_is_met_by_the_median():
    row = report.Row("what", report.Spread.of([1, 5, float("inf")]), ("<=", 5))
    assert row.met is True
    assert row.as_json()["value"] == {"median": 5.0, "values": [1.0, 5.0, None]}
    row.target = (">=", 6)
    assert row.met is False
    assert "5 (1 to inf)" in row.cells()


def test_time_of_a_pass_is_per_read():
    history = {"reads": np.array([0.5, 1.0, 1.5, 1.5, 3.5])}
    history["seconds"] = np.array([8.0, 9.0, 10.0, 10.5, 14.5])
    assert seconds_per_read(history) == [2.0, 2.0]


def test_the_planted_matrix_is_the_same_drawn_anywhere():
    drawn = planted_dask((80, 7), 3, 4).compute(scheduler="sync")
    assert (drawn == planted((80, 7), 3, blocks=4)).all()
