"""Runs on the command line: resume, verify, watch, exit codes."""

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import planted

import dasknmf
from dasknmf.cli import main
from dasknmf.cli_run import BARS, curve


@pytest.fixture
def call(monkeypatch, tmp_path, rng):
    monkeypatch.chdir(tmp_path)
    np.save("V.npy", planted(rng, 640, 20, 3))
    return lambda *args: CliRunner().invoke(main, list(args), catch_exceptions=True)


def fit(*more):
    return ("fit", "V.npy", "-k", "3", "-o", "model.zarr", "--checkpoint", "run", "-q", *more)


def test_the_same_command_goes_on_and_ends_with_the_bits_of_one_fit(call, many_slabs):
    stopped = call(*fit("--time-limit", "1ms", "--tol", "0", "--max-iter", "6"))
    assert stopped.exit_code == 75
    assert "the same call again goes on" in stopped.output
    done = call(*fit("--tol", "0", "--max-iter", "6"))
    assert done.exit_code == 0, done.output
    model = dasknmf.NMF(3, random_state=0, tol=0, max_iter=6).fit(np.load("V.npy"))
    np.testing.assert_array_equal(dasknmf.load("model.zarr").components_, model.components_)
    assert call("verify", "run").exit_code == 0
    seen = call("watch", "run")  # it has ended: once is all
    assert seen.exit_code == 0
    assert "started 2 times" in seen.output
    assert "pass 6 of 6" in seen.output
    assert call("info", "run").output == call("watch", "run", "--once").output
    W = call("transform", "run", "V.npy", "-o", "W.zarr")
    assert W.exit_code == 0, W.output


def test_verify_finds_a_flipped_bit(call, tmp_path):
    assert call(*fit()).exit_code == 0
    chunks = sorted(p for p in (tmp_path / "run" / "data").rglob("*") if "/H/c." in str(p))
    chunk = next(p for p in chunks if p.is_file())
    data = bytearray(chunk.read_bytes())
    data[3] ^= 16
    chunk.chmod(0o644)
    chunk.write_bytes(data)
    found = call("verify", "run")
    assert found.exit_code == 1
    assert "/H/c." in found.output
    assert "faults" in found.output


@pytest.mark.parametrize(
    ("args", "code", "what"),
    [
        (fit("--checkpoint-every", "often"), 2, "checkpoint_every='often'"),
        (fit("--time-limit", "later"), 2, "time_limit='later'"),
        (fit("--resume", "must"), 1, "holds no run"),
        (("fit", "V.npy", "-k", "3", "-o", "m", "--time-limit", "1h"), 2, "needs checkpoint="),
        (("fit", "V.npy", "-k", "3", "-o", "m", "--checkpoint", "m"), 2, "would replace"),
        (("verify", "nothing"), 1, "Expected a run"),
        (("watch", "nothing"), 1, "Expected a run"),
    ],
)
def test_what_is_refused(call, args, code, what):
    answer = call(*args)
    assert answer.exit_code == code, answer.output
    assert what in answer.output


def test_curves():
    assert curve([3.0, 3.0]) == BARS[0] * 2
    assert curve([10.0, 1.0, 0.1, 0.0])[0] == BARS[-1]
    assert curve([10.0, 1.0, 0.1, 0.0])[-1] == BARS[0]
    assert len(curve(list(range(200, 0, -1)))) == 60
