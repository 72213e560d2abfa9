"""Notebooks and scripts of examples/: clean as stored, and every script runs.

Notebooks are executed as they are, by pytest's option --nbmake.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import dasknmf

nbformat = pytest.importorskip("nbformat")
FOLDER = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture
def script(monkeypatch):
    """Gives a script as a module; scripts import one another, as notebooks do."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_results(path):
    book = nbformat.read(path, 4)
    nbformat.validate(book)
    assert book.metadata.keys() == {"kernelspec", "language_info"}
    assert book.cells[0].source.startswith("# "), "a title"
    for cell in book.cells:
        assert cell.metadata == {}
        assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None)


def test_there_is_a_notebook_for_each_kind_of_use():
    assert [path.stem for path in NOTEBOOKS] == [
        "hyperspectral", "leave_and_come_back", "quick_start", "ratings", "single_cells", "topics",
    ]  # fmt: skip


def test_single_cells(script, tmp_path, capsys):
    """Programmes are where biology has them: the genes of B cells in B cells, and so on."""
    module = script("single_cells")
    module.main(["--out", str(tmp_path)])
    said = capsys.readouterr().out
    found = {}
    for block in said.split("programme ")[1:]:
        head, genes = block.splitlines()[:2]
        found |= dict.fromkeys(genes.split(), head.split("most in ")[1])
    assert (found["CD79A"], found["NKG7"]) == ("CD19+ B", "CD56+ NK")
    assert found["LST1"] == "CD14+ Monocyte"
    assert (tmp_path / "single_cells.png").stat().st_size > 20_000
    with pytest.raises(SystemExit, match="exists"):
        module.main(["--out", str(tmp_path)])


@pytest.mark.filterwarnings("ignore::dasknmf.FactorWarning")  # users of whom a fold knows nothing
def test_ratings(script, monkeypatch, capsys):
    """Of films rated often, and few candidates: closer than means of user and film."""
    module = script("ratings")
    monkeypatch.setattr(module, "RANKS", (2,))
    monkeypatch.setattr(module, "RIDGES", (5.0,))
    module.main(["--films", "50", "--folds", "5"])
    line = next(line for line in capsys.readouterr().out.splitlines() if "cross-validation" in line)
    error, plain = float(line.split("error ")[1].split()[0]), float(line[:-1].split()[-1])
    assert 0.7 < error < plain < 0.95


def test_topics(script, tmp_path, capsys):
    script("topics").main(["--out", str(tmp_path), "--topics", "4"])
    assert capsys.readouterr().out.count("NPMI") == 4
    assert {path.name for path in tmp_path.iterdir()} == {"topics.png", "topics.html"}


PASSES = 4


def started(cluster, folder, passes):
    """Run `start` of the script in a process of its own, which ends while the fit goes on."""
    command = [sys.executable, FOLDER / "leave_and_come_back.py"]
    start = ["start", cluster.scheduler_address, "--out", folder, "--passes", str(passes)]
    subprocess.run([*command, *start], check=True, capture_output=True, timeout=200)
    return command


def undisturbed(matrix, passes):
    model = dasknmf.NMF(16, tol=0, max_iter=passes, random_state=0)
    return model.fit(dasknmf.open_matrix(str(matrix))).components_


@pytest.mark.timeout(300)
def test_a_fit_outlives_the_script_that_started_it(cluster, tmp_path):
    command = started(cluster, tmp_path, PASSES)
    watched = subprocess.run(
        [*command, "watch", "--out", tmp_path], check=True, capture_output=True, text=True,
        timeout=200,
    )  # fmt: skip
    assert "relative error 0.0" in watched.stdout
    assert "max_iter reached" in watched.stdout
    assert (tmp_path / "cube.png").stat().st_size > 5_000
    found = dasknmf.load(tmp_path / "cube.run")
    assert found.n_iter_ == PASSES
    np.testing.assert_array_equal(found.components_, undisturbed(tmp_path / "cube.zarr", PASSES))


# The long forms: a fit of many passes, and somebody who dies in the middle of it.


def until(true):
    """Asks again and again; the test's own limit ends it."""
    while not true():
        pass


def ended(run):
    with suppress(dasknmf.StoreError):
        return dasknmf.load(run).outcome_ is not dasknmf.Outcome.UNFINISHED
    return False


def committed(run):
    with suppress(dasknmf.StoreError):
        return dasknmf.load(run).n_iter_
    return 0


@pytest.mark.cluster
@pytest.mark.timeout(500)
def test_a_fit_outlives_the_worker_that_leads_it(tmp_path):
    from distributed import Client, LocalCluster

    run = tmp_path / "cube.run"
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as own,
        Client(own) as client,
    ):
        started(own, tmp_path, 20)
        until(lambda: committed(run))
        pids = client.run(os.getpid)
        (leader,) = [
            worker
            for worker, keys in client.processing().items()
            if any(str(key).startswith("fit-") for key in keys)
        ]
        assert dasknmf.load(run).outcome_ is dasknmf.Outcome.UNFINISHED
        os.kill(pids[leader], signal.SIGKILL)
        until(lambda: ended(run))
    found = dasknmf.load(run).components_
    np.testing.assert_array_equal(found, undisturbed(tmp_path / "cube.zarr", 20))


def halves(path):
    """The notebook up to where it may be closed, and its first cell with what is after that."""
    book = nbformat.read(path, 4)
    (middle,) = [i for i, cell in enumerate(book.cells) if "## Come back" in cell.source]
    first, second = copy.deepcopy(book), copy.deepcopy(book)
    first.cells = first.cells[:middle]
    second.cells = [second.cells[1], *second.cells[middle:]]
    return first, second


@pytest.mark.cluster
@pytest.mark.timeout(500)
def test_a_killed_notebook_and_a_second_one_that_attaches(cluster, tmp_path, monkeypatch):
    """The scheduler is in this process, each notebook in one of its own."""
    from nbclient import NotebookClient
    from nbclient.exceptions import DeadKernelError

    monkeypatch.setenv("NMF_FOLDER", str(tmp_path))
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.scheduler_address)
    first, second = halves(FOLDER / "leave_and_come_back.ipynb")
    first.cells.append(nbformat.v4.new_code_cell("os.kill(os.getpid(), 9)"))
    place = {"metadata": {"path": str(FOLDER)}}
    with pytest.raises(DeadKernelError):
        NotebookClient(first, timeout=None, resources=place).execute()
    run = tmp_path / "cube.run"
    assert committed(run) < 12, "killed in mid-fit"

    NotebookClient(second, timeout=None, resources=place).execute()
    outputs = [output for cell in second.cells if "outputs" in cell for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    said = "".join(output.get("text", "") for output in outputs)
    assert "max_iter reached" in said
    assert "started 1 times" in said, "the fit went on by itself"
    found = dasknmf.load(run)
    assert found.n_iter_ == 12
    np.testing.assert_array_equal(found.components_, undisturbed(tmp_path / "cube.zarr", 12))
