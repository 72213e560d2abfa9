"""``dasknmf ranks`` with a run: stopped, watched, resumed; weights from a file."""

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from conftest import planted

import dasknmf
from dasknmf.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def command(folder, *more):
    return [
        "ranks", f"{folder}/V.npy", "--ranks", "2:4", "--n-init", "2", "-o", f"{folder}/study.zarr",
        "--max-iter", "6", *more,
    ]  # fmt: skip


def call(*words):
    return CliRunner().invoke(main, list(map(str, words)))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder with a matrix, and what an undisturbed study of it says and saves."""
    folder = tmp_path_factory.mktemp("undisturbed")
    np.save(folder / "V.npy", planted(np.random.default_rng(3), 640, 20, 3, noise=0.2))
    done = call(*command(folder, "-q"))
    assert done.exit_code == 0, done.output
    return folder, saved(folder)


def saved(folder):
    """Every array of a study on disk; histories without their times."""
    group = zarr.open_group(str(folder / "study.zarr"), mode="r")
    arrays = {"": dict(group.arrays()), **{n: dict(g.arrays()) for n, g in group.groups()}}
    return {
        (where, name): array[:].tobytes()
        for where, found in arrays.items()
        for name, array in found.items()
        if name != "history_seconds"
    }


@pytest.fixture
def folder(tmp_path, stored):
    (tmp_path / "V.npy").symlink_to(stored[0] / "V.npy")
    return tmp_path


def test_the_same_command_goes_on_and_the_run_can_be_looked_at(folder, stored):
    run = folder / "run"
    more = ("--checkpoint", run, "--seed", "0")
    stopped = call(*command(folder, *more, "-q", "--time-limit", "1ms"))
    assert stopped.exit_code == 75, stopped.output
    assert "the same call again goes on" in stopped.output
    early = call("info", run)
    assert "3 ranks (2, 3, 4) × 2 restarts, als" in early.output
    assert "no pass has ended yet" in early.output
    done = call(*command(folder, *more))
    assert done.exit_code == 0, done.output
    assert "*    3 " in done.output
    assert saved(folder) == stored[1]
    assert call("verify", run).exit_code == 0
    seen = call("watch", run).output
    assert seen == call("info", run).output
    assert "started 2 times" in seen
    assert "pass 6 of 6" in seen
    table, lines = dasknmf.load(run).table(), seen.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("ranks:"))
    for row, line in zip(table, lines[first + 1 :], strict=False):
        told = line.split()
        assert [int(told[0]), told[1:4], float(told[5])] == [
            row["rank"], ["0", "of", "2"], pytest.approx(row["loss"]),
        ]  # fmt: skip
    assert lines[-1].startswith("ended:   ")


def test_watch_tells_who_goes_on(folder, monkeypatch):
    from test_resume import Interrupts

    Interrupts(monkeypatch).next(6)
    run = folder / "run"
    assert call(*command(folder, "--checkpoint", run, "--tol", "0", "-q")).exit_code == 75
    lines = call("watch", run, "--once").output.splitlines()
    assert any(line.split()[:4] == ["2", "2", "of", "2"] for line in lines)
    assert any(line.startswith("commit:") and "pass " in line for line in lines)
    assert lines[-1].startswith("left:    ")


def test_a_study_has_no_model_to_transform_with(folder):
    run = folder / "run"
    assert call(*command(folder, "--checkpoint", run, "-q")).exit_code == 0
    refused = call("transform", run, folder / "V.npy", "-o", folder / "W.zarr")
    assert refused.exit_code == 2
    assert "is the run of a study" in refused.output
    assert not (folder / "W.zarr").exists()


@pytest.fixture
def weights(folder):
    """Weights that leave a fifth out, as a Zarr array of two chunks."""
    M = np.random.default_rng(8).random((640, 20)) > 0.2
    array = zarr.create_array(str(folder / "M.zarr"), shape=M.shape, chunks=(320, 20), dtype=bool)
    array[:] = M
    return M


def test_weights_of_a_study_from_a_file(folder, weights):
    done = call(*command(folder, "--weights", folder / "M.zarr", "-q"))
    assert done.exit_code == 0, done.output
    X = np.load(folder / "V.npy")
    study = dasknmf.RankStudy((2, 3, 4), n_init=2, max_iter=6, random_state=0, verbose=0)
    expected = study.fit(dasknmf.open_matrix(folder / "V.npy"), weights=weights)
    found = dasknmf.load(folder / "study.zarr" / "rank_3")
    np.testing.assert_array_equal(found.components_, expected.model(3).components_)
    W = found.transform(X, weights=weights)
    error = np.sum((weights * (X - W @ found.components_)) ** 2) / np.sum((weights * X) ** 2)
    assert error < 0.05


def test_weights_of_a_fit_from_a_file(folder, weights):
    words = ("fit", folder / "V.npy", "-k", "3", "-o", folder / "model.zarr", "-q")
    done = call(*words, "--weights", folder / "M.zarr")
    assert done.exit_code == 0, done.output
    X = dasknmf.open_matrix(folder / "V.npy")
    expected = dasknmf.NMF(3, random_state=0).fit(X, weights=weights)
    found = dasknmf.load(folder / "model.zarr")
    np.testing.assert_array_equal(found.components_, expected.components_)


@pytest.mark.parametrize("verb", ["fit", "ranks"])
def test_bad_weights_are_refused_and_nothing_is_written(verb, folder, weights):
    rank = ("-k", "2") if verb == "fit" else ("--ranks", "2:3")
    words = [verb, folder / "V.npy", *rank, "-o", folder / "out.zarr", "-q"]
    np.save(folder / "short.npy", np.ones((640, 19)))
    np.save(folder / "negative.npy", -np.ones((640, 20)))
    for name, code, what in (
        ("none.zarr", 1, "none.zarr does not exist"),
        ("short.npy", 1, "weights have shape (640, 19); expected (640, 20)"),
        ("negative.npy", 1, "negative value"),
        ("out.zarr", 2, "would replace the input"),
    ):
        refused = call(*words, "--weights", folder / name)
        assert refused.exit_code == code, refused.output
        assert what in refused.output
    assert not (folder / "out.zarr").exists()


@pytest.mark.parametrize(
    ("more", "code", "what"),
    [
        (("--checkpoint-every", "often"), 2, "checkpoint_every='often'"),
        (("--resume", "must"), 1, "holds no run"),
        (("--checkpoint", "OUT"), 2, "would replace"),
    ],
)
def test_what_is_refused(more, code, what, folder):
    out = str(folder / "study.zarr")
    words = command(folder, "--checkpoint", folder / "run", "-q", *more)
    answer = call(*(out if word == "OUT" else word for word in words))
    assert answer.exit_code == code, answer.output
    assert what in answer.output
