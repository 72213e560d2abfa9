"""The command line: the same bits on threads and clusters, honest exit codes, clean output."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from conftest import planted, sparse_counts

import dasknmf
from dasknmf import cli
from dasknmf.storage import models

OPTIONS = ("-k", "3", "--tol", "0", "--max-iter", "4", "--seed", "1")
BIN = Path(sys.executable).parent


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of matrices and one fitted model, never written to again."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(3)
    V = planted(rng, rows=90, columns=12)
    zarr.create_array(folder / "x.zarr", data=V, chunks=(20, 12))
    np.save(folder / "cube.npy", np.ones((3, 4, 5)))
    V[17, 5] = np.nan
    np.save(folder / "nan.npy", V)
    counts = zarr.create_group(folder / "group.zarr")
    counts.create_array("counts", data=sparse_counts(rng).toarray())
    counts.create_array("other", data=np.ones((5, 5)))
    run("fit", folder / "x.zarr", "-o", folder / "m.zarr", *OPTIONS)
    return folder


def same_models(one, other):
    one, other = dasknmf.load(one), dasknmf.load(other)
    np.testing.assert_array_equal(one.components_, other.components_, strict=True)
    np.testing.assert_array_equal(one.W_, other.W_, strict=True)
    for name in set(one.history_) - {"seconds"}:
        np.testing.assert_array_equal(one.history_[name], other.history_[name])
    return True


@pytest.fixture(params=["threads", "one thread", "workers", "scheduler", "scheduler file"])
def where(request, tmp_path):
    if request.param == "threads":
        return ()
    if request.param == "one thread":
        return ("--threads", 1)
    if request.param == "workers":
        return ("--workers", 2)
    address = request.getfixturevalue("cluster").scheduler_address
    if request.param == "scheduler":
        return ("--scheduler", address)
    (tmp_path / "scheduler.json").write_text(json.dumps({"address": address}))
    return ("--scheduler-file", tmp_path / "scheduler.json")


def test_fit_and_transform_give_the_same_bits_wherever_they_run(data, tmp_path, where):
    shown = run("fit", data / "x.zarr", "-o", tmp_path / "m.zarr", *OPTIONS, *where)
    assert same_models(tmp_path / "m.zarr", data / "m.zarr")
    assert "4 passes; stopped: max_iter reached" in shown.stdout
    assert "reads" in shown.stderr  # the bar
    assert "reads" not in shown.stdout
    where = () if "--workers" in where else where  # starting them once is enough
    run("transform", tmp_path / "m.zarr", data / "x.zarr", "-o", tmp_path / "w.zarr", *where)
    model = dasknmf.load(data / "m.zarr")
    W = zarr.open_array(tmp_path / "w.zarr")
    expected = model.transform(zarr.open_array(data / "x.zarr", mode="r")[...])
    np.testing.assert_array_equal(W[...], expected)
    assert W.metadata.dimension_names == ("sample", "component")


def test_fit_is_the_estimator_with_the_options_as_parameters(data, tmp_path):
    options = "--solver hals --init nndsvd --alpha-w .01 --alpha-h .02 --l1-ratio .5 --seed 4"
    run("fit", data / "x.zarr", "-o", tmp_path / "m", *OPTIONS, *options.split())
    model = dasknmf.NMF(
        3, solver="hals", init="nndsvd", alpha_W=0.01, alpha_H=0.02, l1_ratio=0.5, random_state=4,
        tol=0, max_iter=4, verbose=1,
    )  # fmt: skip
    assert dasknmf.load(tmp_path / "m").get_params() == model.get_params()
    model.set_params(verbose=0).fit(dasknmf.open_matrix(data / "x.zarr"))
    np.testing.assert_array_equal(dasknmf.load(tmp_path / "m").components_, model.components_)


def test_a_fit_without_a_seed_can_be_repeated(data, tmp_path):
    for name in "ab":
        run("fit", data / "x.zarr", "-o", tmp_path / name, "-k2", "--tol=0", "--max-iter=2")
    assert same_models(tmp_path / "a", tmp_path / "b")


def test_component_and_loss_reach_the_fit(data, tmp_path):
    options = ("--component", "counts", "--loss", "kullback-leibler", *OPTIONS)
    run("fit", data / "group.zarr", "-o", tmp_path / "m", *options)
    run("fit", data / "group.zarr", "-o", tmp_path / "m", *options, "--overwrite", "--loss", "1.0")
    assert dasknmf.load(tmp_path / "m").n_features_in_ == 30
    shown = run("info", tmp_path / "m").stdout
    assert "nan" not in shown
    about = json.loads(run("info", "--json", tmp_path / "m").stdout, parse_constant=pytest.fail)
    assert about["history"]["relative_error"] == [None] * 5  # 4 passes, and the final rows
    assert about["parameters"]["beta_loss"] == 1.0


def test_info_tells_everything_as_json(data):
    about = json.loads(run("info", "--json", data / "m.zarr").stdout, parse_constant=pytest.fail)
    model = dasknmf.load(data / "m.zarr")
    assert about["shapes"] == {"W": [90, 3], "H": [3, 12]}
    assert about["fitted"]["outcome"] == "MAX_ITER"
    assert about["fitted"]["fingerprint"] == model.fingerprint_
    assert about["parameters"]["random_state"] == 1
    assert about["provenance"]["versions"]["zarr"] == zarr.__version__
    for name, column in model.history_.items():
        assert about["history"][name] == column.tolist()


def test_info_shows_shapes_history_and_provenance(data):
    shown = run("info", data / "m.zarr").stdout
    for text in ("90 × 12", "W 90 × 3, H 3 × 12", "n_components=3", f"zarr {zarr.__version__}"):
        assert text in shown
    rows = [line for line in shown.splitlines() if re.match(r"\s+\d+\s+[\d.]+\s+\d", line)]
    assert len(rows) == len(dasknmf.load(data / "m.zarr").history_["pass"])


def test_quiet_prints_nothing(data, tmp_path):
    fit = run("fit", data / "x.zarr", "-o", tmp_path / "m", *OPTIONS, "-q")
    transform = run("transform", tmp_path / "m", data / "x.zarr", "-o", tmp_path / "w", "-q")
    assert fit.output + transform.output == ""


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        (("-k2", "--max-iter=1"), "warning: Maximum number of iterations 1 reached"),
        (("-k13", "--max-iter=1", "--tol=0"), "warning: n_components=13 is larger than"),
    ],
)
def test_warnings_are_lines_on_stderr_and_no_failure(data, tmp_path, options, warning):
    result = run("fit", data / "x.zarr", "-o", tmp_path / "m", "-q", *options)
    assert result.stdout == ""
    assert result.stderr.startswith(warning)
    assert result.stderr.count("\n") == result.stderr.count("warning: ")


def test_nothing_of_the_calling_process_stays_changed(data, tmp_path):
    logger = logging.getLogger("dasknmf")
    before = warnings.showwarning, list(warnings.filters), logger.level, list(logger.handlers)
    run("--debug", "fit", data / "x.zarr", "-o", tmp_path / "m", *OPTIONS)
    run("fit", data / "nan.npy", "-o", tmp_path / "n", *OPTIONS, code=1)
    after = warnings.showwarning, list(warnings.filters), logger.level, list(logger.handlers)
    assert after == before
    assert warnings.showwarning is not cli._show_warning


def test_debug_logs_decisions_and_raises_with_a_traceback(data, tmp_path):
    shown = run("--debug", "fit", data / "x.zarr", "-o", tmp_path / "m", *OPTIONS)
    assert "threads: " in shown.stderr
    arguments = ["--debug", "info", str(tmp_path / "missing")]
    assert isinstance(CliRunner().invoke(cli.main, arguments).exception, dasknmf.StoreError)


FIT = ("fit", "{data}/x.zarr", "-o", "{out}/m", *OPTIONS)
ERRORS = {
    "matrix missing": (1, "does not exist", ("fit", "{data}/no", "-o", "{out}/m", "-k2")),
    "matrix is a model": (1, "saved model", ("fit", "{data}/m.zarr", "-o", "{out}/m", "-k2")),
    "several matrices": (1, "Name one", ("fit", "{data}/group.zarr", "-o", "{out}/m", "-k2")),
    "no such component": (1, "nope", (*FIT, "--component", "nope")),
    "a cube": (1, "Reshape your data", ("fit", "{data}/cube.npy", "-o", "{out}/m", "-k2")),
    "NaN": (1, "row 17, column 5", ("fit", "{data}/nan.npy", "-o", "{out}/m", "-k2")),
    "loss that the solver lacks": (2, "als", (*FIT, "--loss", "0.5", "--solver", "als")),
    "NaN as tol": (2, "tol=nan", (*FIT, "--tol", "nan")),
    "unknown solver": (2, "'magic' is not one of 'auto', 'als'", (*FIT, "--solver", "magic")),
    "unknown loss": (2, "'magic' is neither", (*FIT, "--loss", "magic")),
    "unknown init": (2, "'custom' is not one of", (*FIT, "--init", "custom")),
    "no rank": (2, "Missing option '-k'", ("fit", "{data}/x.zarr", "-o", "{out}/m")),
    "rank 0": (2, "0 is not in the range", (*FIT, "-k", "0")),
    "no output": (2, "Missing option '-o'", ("fit", "{data}/x.zarr", "-k2")),
    "unknown command": (2, "No such command", ("factor",)),
    "two clusters": (2, "use one of", (*FIT, "--workers", "2", "--scheduler", "tcp://x:1")),
    "threads of others": (2, "--threads is for", (*FIT, "--threads=2", "--scheduler=tcp://x:1")),
    "no scheduler file": (2, "does not exist", (*FIT, "--scheduler-file", "{data}/no")),
    "bad scheduler file": (1, "is no scheduler file", (*FIT, "--scheduler-file", "{data}/nan.npy")),
    "output is the matrix": (
        2, "would replace the input", (*FIT, "-o", "{data}/x.zarr", "--overwrite"),
    ),
    "output in the matrix": (2, "inside the input", (*FIT, "-o", "{data}/x.zarr/model")),
    "output holds the matrix": (2, "would replace", (*FIT, "-o", "{data}", "--overwrite")),
    "output is the model": (
        2, "would replace the input",
        ("transform", "{data}/m.zarr", "{data}/x.zarr", "-o", "{data}/m.zarr", "--overwrite"),
    ),
    "output exists": (1, "--overwrite", ("fit", "{data}/x.zarr", "-o", "{data}/m.zarr", "-k2")),
    "output exists, transform": (
        1, "--overwrite",
        ("transform", "{data}/m.zarr", "{data}/x.zarr", "-o", "{data}/group.zarr"),
    ),
    "output can't be there": (
        1, "is a file", ("fit", "{data}/x.zarr", "-o", "{data}/nan.npy/m", "-k2"),
    ),
    "model missing": (1, "does not exist", ("info", "{data}/no")),
    "model is a matrix": (1, "no model", ("info", "{data}/x.zarr")),
    "transform by a matrix": (
        1, "no model", ("transform", "{data}/x.zarr", "{data}/x.zarr", "-o", "{out}/w"),
    ),
    "features differ": (
        1, "30 features",
        ("transform", "{data}/m.zarr", "{data}/group.zarr/counts", "-o", "{out}/w"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(ERRORS))
def test_an_error_is_one_message_and_leaves_nothing_behind(data, tmp_path, case):
    code, message, arguments = ERRORS[case]
    before = sorted(data.rglob("*"))
    result = run(*(str(a).format(data=data, out=tmp_path) for a in arguments), code=code)
    assert message in re.sub(r"\s+", " ", result.stderr)
    assert "Error: " in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []
    assert sorted(data.rglob("*")) == before


def test_an_existing_output_is_refused_before_anything_is_read(data, tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    monkeypatch.setattr(cli.matrices, "open_matrix", lambda *_: pytest.fail("opened"))
    run("fit", data / "x.zarr", "-o", tmp_path / "m", *OPTIONS, code=1)
    run("transform", data / "m.zarr", data / "x.zarr", "-o", tmp_path / "m", code=1)


def test_overwrite_replaces_a_model_only_when_the_new_one_is_there(data, tmp_path):
    shutil.copytree(data / "m.zarr", tmp_path / "m")
    run("fit", data / "nan.npy", "-o", tmp_path / "m", "--overwrite", *OPTIONS, code=1)
    assert same_models(tmp_path / "m", data / "m.zarr")
    run("fit", data / "x.zarr", "-o", tmp_path / "m", "--overwrite", *OPTIONS, "-k2")
    assert dasknmf.load(tmp_path / "m").n_components_ == 2
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_scheduler_that_does_not_answer_is_an_error_in_bounded_time(data, tmp_path, free_port):
    address = f"tcp://127.0.0.1:{free_port}"
    result = run(*fit_to(data, tmp_path), "--scheduler", address, "--wait", "0.3", code=1)
    assert f"no Dask scheduler answers at {address} within 0.3 s" in result.stderr


def test_a_scheduler_without_workers_is_an_error_in_bounded_time(data, tmp_path):
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=0,
        processes=False,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        protocol="tcp",
    ) as empty:
        where = ("--scheduler", empty.scheduler_address, "--wait", "0.3")
        result = run(*fit_to(data, tmp_path), *where, code=1)
    assert "has no workers after 0.3 s" in result.stderr


def fit_to(data, tmp_path):
    return ("fit", data / "x.zarr", "-o", tmp_path / "m", *OPTIONS)


@pytest.fixture
def free_port():
    import socket

    with socket.socket() as probe:  # bound and never listening: connections are refused
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


def test_own_workers_listen_on_the_loopback_only_and_are_gone_afterwards(
    data, tmp_path, monkeypatch
):
    import psutil

    me, seen = psutil.Process(), {}
    before = {child.pid for child in me.children(recursive=True)}

    def look(*_, **__):
        mine = [c for c in me.children(recursive=True) if c.pid not in before]
        seen["children"] = mine
        seen["addresses"] = {
            connection.laddr.ip
            for process in (me, *mine)
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        raise RuntimeError("looked")

    monkeypatch.setattr(dasknmf.NMF, "fit_transform", look)
    run(*fit_to(data, tmp_path), "--workers", "1", code=1)
    assert seen["children"]
    assert seen["addresses"] == {"127.0.0.1"}
    left = [c for c in seen["children"] if c.is_running() and "spawn_main" in str(c.cmdline())]
    assert left == []


def shell(*command, **options):
    return subprocess.run(
        [str(c) for c in command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


@pytest.mark.skipif(not (BIN / "dasknmf").exists(), reason="the package is not installed")
def test_the_installed_command_starts_workers_and_prints_nothing_if_quiet(data, tmp_path):
    options = ("fit", "x.zarr", "-o", tmp_path / "m", *OPTIONS, "--workers", "1", "-q")
    done = shell(BIN / "dasknmf", *options, cwd=data)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert same_models(tmp_path / "m", data / "m.zarr")


@pytest.mark.skipif(not (BIN / "dasknmf").exists(), reason="the package is not installed")
@pytest.mark.parametrize(
    ("arguments", "code", "stdout", "stderr"),
    [
        (("info", "nowhere"), 1, "", "Error: nowhere does not exist"),
        (("fit",), 2, "", r"Usage: .*nmf fit .*Missing argument"),
    ],
)
def test_dask_nmf_is_the_same_command(tmp_path, arguments, code, stdout, stderr):
    done = shell(BIN / "dask", "nmf", *arguments, cwd=tmp_path)
    assert done.returncode == code
    for pattern, text in ((stdout, done.stdout), (stderr, done.stderr)):
        assert re.search(pattern, text, re.DOTALL) if pattern else text == ""


def test_every_field_of_the_record_is_json(data):
    record = models.read(data / "m.zarr")
    fields = [record.parameters, record.fitted, record.provenance]
    assert json.loads(json.dumps(fields, allow_nan=False)) == fields


@pytest.mark.parametrize(
    ("option", "expected"), [((), "auto"), (("--compress",), True), (("--no-compress",), False)]
)
def test_compression_is_chosen_asked_for_or_forbidden(data, tmp_path, option, expected):
    run("fit", data / "x.zarr", "-o", tmp_path / "m.zarr", *OPTIONS, *option)
    assert dasknmf.load(tmp_path / "m.zarr").compress == expected
