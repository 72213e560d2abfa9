"""What a user of Dask expects: its command line, configuration, events, spans, names and report."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import yaml
import zarr
from click.testing import CliRunner
from conftest import planted

import dasknmf
from dasknmf import NMF, ParameterError, RankStudy, cli
from dasknmf.checkpointing import CheckpointKeeper
from dasknmf.parallel import configuration, make_executor
from dasknmf.parallel.slabs import cut

pytestmark = pytest.mark.usefixtures("many_slabs")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def X():
    return planted(np.random.default_rng(7), 320, 12)


def lazily(X):
    return da.from_array(X, chunks=(40, -1))


def fitted(X, **more):
    return NMF(3, **{"max_iter": 3, "tol": 0, "random_state": 0, **more}).fit(X)


# ---- dask nmf


def test_nmf_is_a_command_of_dask(tmp_path, X):
    """The group itself, not a copy: options, exit codes and messages are those of `dasknmf`."""
    zarr.create_array(tmp_path / "x.zarr", data=X, chunks=(40, 12))
    done = subprocess.run(
        [Path(sys.executable).parent / "dask", "nmf", "fit", "x.zarr", "-k3", "--tol=0",
         "--max-iter=2", "-o", "m.zarr", "-q"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    from importlib.metadata import entry_points

    assert dasknmf.load(tmp_path / "m.zarr").n_iter_ == 2
    assert [e.load() for e in entry_points(group="dask_cli", name="nmf")] == [cli.main]


# ---- configuration


def fresh(code, **environment):
    """What another Python prints, with nothing configured but that."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("DASK_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, check=True, timeout=100,
    ).stdout  # fmt: skip


def test_defaults_are_dasks_and_the_environment_overrides_them(tmp_path):
    code = (
        "import dasknmf, dask; from dasknmf.parallel import configuration as c; "
        "print(c.seconds('watchdog'), c.count('checkpoint.keep', 1), dask.config.get('dasknmf'))"
    )
    found = fresh(code, DASK_CONFIG=str(tmp_path), DASK_DASKNMF__WATCHDOG="60")
    assert found.startswith("60.0 2 {")
    assert "'failures': 3" in found
    copy = (tmp_path / "dasknmf.yaml").read_text()  # for the user to change: all commented out
    assert yaml.safe_load(copy) is None
    assert "watchdog: 300s" in copy
    (tmp_path / "dasknmf.yaml").write_text("dasknmf: {watchdog: 5m, checkpoint: {keep: 4}}")
    assert fresh(code, DASK_CONFIG=str(tmp_path)).startswith("300.0 4 {")
    assert "5m" in (tmp_path / "dasknmf.yaml").read_text(), "a user's file stays"


def leaves(tree, above=()):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*above, key))
        else:
            yield ".".join((*above, key))


def test_every_default_has_a_reason_and_a_use_and_every_use_a_default():
    text = configuration.DEFAULTS.read_text()
    settings = set(leaves(yaml.safe_load(text)["dasknmf"]))
    for line in text.splitlines():
        setting = not line.startswith("#") and not line.rstrip().endswith(":")
        assert not setting or "  # " in line, f"no reason: {line}"
    sources = [path.read_text() for path in (ROOT / "dasknmf").rglob("*.py")]
    for setting in settings:
        used = sum(f'configuration.seconds("{setting}"' in t for t in sources)
        used += sum(f'configuration.count("{setting}"' in t for t in sources)
        assert used == 1, setting
    assert not any('config.get("dasknmf.' in text for text in sources)


@pytest.mark.parametrize(
    ("setting", "given", "expected"),
    [
        ("watchdog", "soon", "expected a time such as 300s"),
        ("watchdog", 0, "DASK_DASKNMF__WATCHDOG in the environment"),
        ("watchdog", None, "expected a time"),
        ("checkpoint.keep", 0, "expected a whole number of at least 1"),
        ("checkpoint.keep", "two", "DASK_DASKNMF__CHECKPOINT__KEEP"),
        ("checkpoint.failures", -1, "at least 0"),
        ("checkpoint.failures", True, "whole number"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(setting, given, expected):
    read = configuration.seconds if setting == "watchdog" else configuration.count
    more = () if setting == "watchdog" else (int(setting == "checkpoint.keep"),)
    with (
        dask.config.set({f"dasknmf.{setting}": given}),
        pytest.raises(ParameterError, match=expected),
    ):
        read(setting, *more)


def test_a_setting_reaches_the_run(tmp_path, X, monkeypatch):
    boundary = CheckpointKeeper.boundary

    def settled(self, state, *, ended):  # of states that come faster than the disk, one is saved
        boundary(self, state, ended=ended)
        self._settle()

    monkeypatch.setattr(CheckpointKeeper, "boundary", settled)
    with dask.config.set({"dasknmf.checkpoint.keep": 0}), pytest.raises(ParameterError):
        fitted(X, checkpoint=tmp_path / "run")
    with dask.config.set({"dasknmf.checkpoint.keep": 4}):
        fitted(X, checkpoint=tmp_path / "run", max_iter=6)
    assert len(list((tmp_path / "run" / "commits").iterdir())) == 4


def test_the_wheel_carries_the_defaults(tmp_path):
    wheel = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    (path,) = wheel.build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(io.BytesIO(Path(path).read_bytes())) as built:
        packed = built.read("dasknmf/dasknmf.yaml")
    assert packed == configuration.DEFAULTS.read_bytes()


# ---- on a cluster


def test_every_pass_is_an_event(X, client):
    before = len(client.get_events("dasknmf"))
    seen = []
    model = fitted(lazily(X), callbacks=[seen.append])
    told = [event for _, event in client.get_events("dasknmf")[before:]]
    assert [(e["number"], e["phase"]) for e in told] == [(i.number, i.phase) for i in seen]
    assert [e["loss"] for e in told] == model.history_["loss"].tolist()
    assert [e["reads"] for e in told] == model.history_["reads"].tolist()
    assert len({e["fit"] for e in told}) == 1
    about = [told[0][name] for name in ("estimator", "shape", "n_components", "solver")]
    assert about == ["NMF", (320, 12), 3, "als"]
    assert told[0]["checkpoint"] is None


def test_a_wide_matrix_and_a_study_tell_their_own_shape_and_ranks(X, client):
    fitted(lazily(X).T, max_iter=1)
    assert client.get_events("dasknmf")[-1][1]["shape"] == (12, 320)
    RankStudy((2, 3), n_init=1, max_iter=1, tol=0, random_state=0, holdout=0.0).fit(X)
    told = client.get_events("dasknmf")[-1][1]
    assert (told["estimator"], told["n_components"]) == ("RankStudy", (2, 3))


def test_a_fit_does_not_fail_on_an_event_that_does(X, client, monkeypatch, caplog):
    async def broken(**event):
        raise OSError("no")

    before = len(client.get_events("dasknmf"))
    monkeypatch.setattr(client.scheduler, "log_event", broken, raising=False)
    with caplog.at_level("DEBUG", "dasknmf"):
        assert fitted(lazily(X)).n_iter_ == 3
    assert "a pass is not logged on the scheduler" in caplog.text
    assert len(client.get_events("dasknmf")) == before


def spans(dask_scheduler):
    """Every span below "dasknmf": its phase, its root, and the prefixes of its tasks."""
    known = dask_scheduler.extensions["spans"].spans_search_by_tag["dasknmf"]
    return [
        (s.name, s.annotation["ids"][0], sorted({g.prefix.name for g in s.groups})) for s in known
    ]


def test_each_phase_of_a_fit_is_one_span(X, client, tmp_path):
    before = len(client.run_on_scheduler(spans))
    fitted(lazily(X), solver="mu", checkpoint=tmp_path / "run", checkpoint_every=2)
    found = client.run_on_scheduler(spans)[before:]
    names = [name for name, *_ in found]
    phases = ["start", "pass 1", "pass 2", "pass 3", "commits"]
    assert sorted(names) == sorted([("dasknmf",), *(("dasknmf", phase) for phase in phases)])
    assert len({root for _, root, _ in found}) == 1, "of one fit, one root"
    prefixes = dict(zip(names, (tasks for *_, tasks in found), strict=True))
    assert "nmf-mu-pass" in prefixes["dasknmf", "pass 2"]
    assert prefixes["dasknmf", "commits"] == ["nmf-commit"]


def test_the_spans_of_als_end_with_the_final_rows_within_those_of_the_caller(X, client):
    from distributed import span

    before = len(client.run_on_scheduler(spans))
    with span("mine"):
        fitted(lazily(X), max_iter=1)
    names = {name for name, *_ in client.run_on_scheduler(spans)[before:]}
    assert ("mine", "dasknmf", "pass 1") in names
    assert ("mine", "dasknmf", "final rows") in names


def test_spans_change_neither_keys_nor_bits(X, client, monkeypatch):
    """A span is an annotation: the slabs of one matrix keep their key, so that Dask shares them."""
    from dasknmf.parallel.spans import Phases

    expected = fitted(lazily(X)).components_
    keys = []
    for phase in ("pass 1", "pass 2"):
        with make_executor(cut(lazily(X))) as executor:
            executor.begin(phase)
            executor.sources.resident = True
            keys.append([future.key for future in executor.sources.load(executor.phases)])
    assert keys[0] == keys[1]
    monkeypatch.setattr(Phases, "__call__", lambda *_: dask.annotate())
    np.testing.assert_array_equal(fitted(lazily(X)).components_, expected)


NAMES = {
    "nmf-sample", "nmf-als-pass", "nmf-mu-pass", "nmf-merge", "nmf-slab", "nmf-factors", "nmf-W",
    "nmf-held", "nmf-work", "nmf-rows", "nmf-commit", "nmf-restore", "nmf-range-finder",
    "nmf-project", "nmf-nndsvd-norms", "nmf-nndsvd-rows", "nmf-inspect", "nmf-study-labels",
    "nmf-transform", "nmf-observed", "nmf-weights",
}  # fmt: skip


def test_names_of_tasks_say_what_they_do(X, client, tmp_path):
    """What the dashboard shows is the prefix of a key, the number of a run or a wave cut off."""
    before = set(client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.task_prefixes)))
    weights = da.ones((320, 12), chunks=(40, -1), dtype=bool)
    model = fitted(lazily(X))
    model.transform(lazily(X)).compute()
    NMF(3, max_iter=1, tol=0, random_state=0).fit(lazily(X), weights=weights)
    for _ in range(2):
        NMF(3, solver="mu", max_iter=2, tol=0, checkpoint=tmp_path / "run").fit_transform(lazily(X))
    now = set(client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.task_prefixes)))
    ours = {name for name in now if name.startswith("nmf")}
    assert ours - before <= NAMES  # others ran on this cluster before
    assert {"nmf-als-pass", "nmf-mu-pass", "nmf-merge", "nmf-factors", "nmf-commit"} <= ours
    others = now - before - ours
    dask_own = ("array", "ones", "asarray", "original", "finalize")
    assert not {name for name in others if not name.startswith(dask_own)}


# ---- the performance report


def report(tmp_path, *options):
    return CliRunner().invoke(
        cli.main,
        ["fit", str(tmp_path / "x.zarr"), "-k3", "--max-iter=1", "-q", "-o",
         str(tmp_path / "m.zarr"), *map(str, options)],
    )  # fmt: skip


@pytest.fixture
def stored(tmp_path, X):
    zarr.create_array(tmp_path / "x.zarr", data=X, chunks=(40, 12))
    return tmp_path


def test_a_fit_writes_dasks_performance_report(stored, cluster):
    path = stored / "report.html"
    where = ("--scheduler", cluster.scheduler_address, "--performance-report", path)
    done = report(stored, *where)
    assert done.exit_code == 0, done.output
    text = path.read_text()
    assert "Dask Performance Report" in text
    assert "nmf-als-pass" in text
    assert "exists; pass --overwrite" in report(stored, "--workers", 1, *where[2:]).output
    assert report(stored, *where, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--performance-report", "r.html"], "use it with --workers"),
        (["--workers", 1, "--performance-report", "no/r.html"], "in a folder that exists"),
    ],
)
def test_a_report_that_could_not_be_written_is_refused_first(stored, options, message):
    done = report(stored, *options)
    assert done.exit_code == 2
    assert message in done.output
    assert not (stored / "m.zarr").exists()


def test_a_report_that_fails_costs_a_warning_not_the_model(stored, cluster, monkeypatch):
    async def broken(*args, **kwargs):
        raise RuntimeError("no bokeh there")

    from distributed import performance_report

    monkeypatch.setattr(performance_report, "__aexit__", broken)
    path = stored / "report.html"
    done = report(stored, "--scheduler", cluster.scheduler_address, "--performance-report", path)
    assert done.exit_code == 0, done.output
    assert "is not written: RuntimeError('no bokeh there')" in done.stderr
    assert (stored / "m.zarr").exists()


def test_without_bokeh_the_report_says_what_to_install(stored, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = report(stored, "--workers", 1, "--performance-report", stored / "r.html")
    assert done.exit_code == 2
    assert "pip install 'dasknmf[dashboard]'" in done.output
