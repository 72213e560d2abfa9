"""Whole fits: clients killed, asked to stop, and everything that must not change the bits."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
import zarr

import dasknmf
from dasknmf import NMF
from dasknmf.storage.objects import open_objects
from dasknmf.storage.survey import verify

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

CHILD = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import numpy as np
import dasknmf
from tests.faults.test_fits import KINDS, bits, made
kind, run, workers, kill = json.loads(sys.argv[1])
met = [0]
from dasknmf.checkpointing import CheckpointKeeper
boundary = CheckpointKeeper.boundary
def counted(self, state, *, ended):
    boundary(self, state, ended=ended)
    met[0] += 1
    print("boundary", met[0], flush=True)
    if met[0] == kill:
        os.kill(os.getpid(), 9)
CheckpointKeeper.boundary = counted
def main():
    X, parameters = made(kind)
    model = dasknmf.NMF(checkpoint=run, **parameters)
    if workers:
        from distributed import Client, LocalCluster
        with LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=False,
            dashboard_address="127.0.0.1:0", silence_logs=50,
        ) as cluster, Client(cluster) as client:
            W = np.asarray(model.fit_transform(X, client=client))
    else:
        W = np.asarray(model.fit_transform(X))
    print("bits", bits(model, W), flush=True)
if __name__ == "__main__":
    main()
"""

# What a shell starts in the background ignores SIGINT, and so would what it starts.
COMMAND = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from dasknmf.cli import main; main()"
)
KINDS = {
    "als": {"init": "random"},
    "newton": {"beta_loss": "kullback-leibler", "init": "random"},
    "mu": {"solver": "mu"},
    "sparse hals": {"solver": "hals"},
}


def made(kind, *, lazy=True):
    """A matrix of 32 slabs and the parameters of its fit; the same in every process."""
    rng = np.random.default_rng(7)
    V = rng.gamma(1.0, 1.0, (3200, 4)) @ rng.gamma(1.0, 1.0, (4, 25)) + 0.2 * rng.random((3200, 25))
    parameters = {"n_components": 4, "random_state": 3, "tol": 0, "max_iter": 5, **KINDS[kind]}
    if kind == "sparse hals":
        return sp.csr_array(np.where(rng.random(V.shape) < 0.3, V, 0.0)), parameters
    return (da.from_array(V, chunks=(100, -1)) if lazy else V), parameters


def bits(model, W):
    """Digest of factors and losses."""
    parts = (np.asarray(W), model.components_, model.history_["loss"])
    return hashlib.sha256(b"".join(np.ascontiguousarray(p).tobytes() for p in parts)).hexdigest()


@pytest.fixture(scope="module")
def undisturbed():
    """Bits by kind."""
    found = {}

    def give(kind):
        if kind not in found:
            X, parameters = made(kind)
            model = NMF(**parameters)
            found[kind] = bits(model, np.asarray(model.fit_transform(X)))
        return found[kind]

    return give


def child(kind, run, workers, kill):
    """Run a fit in a process that kills itself after its n-th boundary; its exit code and bits."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([kind, str(run), workers, kill])],
        capture_output=True, text=True, timeout=110, cwd=os.path.dirname(os.path.dirname(
            os.path.dirname(os.path.abspath(__file__)))),
    )  # fmt: skip
    said = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("bits")]
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, said[0] if said else None


def chain(kind, run, seed, length):
    """Kill the client again and again, other workers each time, then let it end."""
    draw = random.Random(seed)
    for _ in range(length):
        code, found = child(kind, run, draw.choice([0, 1, 2, 3]), draw.randint(1, 3))
        if code == 0:
            return found
        assert verify(open_objects(run)) == []
    return child(kind, run, 0, 0)[1]


@pytest.mark.timeout(300)
def test_a_client_killed_again_and_again_ends_with_the_bits_of_the_undisturbed(
    tmp_path, undisturbed, cases
):
    assert chain("als", tmp_path / "run", 0, 3) == undisturbed("als")
    cases("chains of client kills and resumes", 1)


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(20))
def test_chains_of_kills(seed, tmp_path, undisturbed, cases):
    kind = sorted(KINDS)[seed % len(KINDS)]
    assert chain(kind, tmp_path / "run", seed, 10) == undisturbed(kind)
    cases("chains of client kills and resumes", 1)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A matrix on disk for the command line."""
    path = tmp_path_factory.mktemp("stored") / "V.npy"
    np.save(path, made("als", lazy=False)[0])
    return path


def told_to_stop(stored, run, out, number, seed):
    """Start the command, signal it at a drawn commit, and give its exit code and errors."""
    command = [
        sys.executable, "-c", COMMAND, "fit", str(stored), "-k", "4", "-o", str(out),
        "--checkpoint", str(run), "--tol", "0", "--max-iter", "100000", "--solver", "hals", "-q",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        there = [int(c.stem) for c in (run / "commits").glob("*.json")]
        target = max(there, default=0) + random.Random(seed).randint(2, 8)
        try:
            while process.poll() is None:
                if any(int(c.stem) >= target for c in (run / "commits").glob("*.json")):
                    process.send_signal(number)
                    break
                time.sleep(0.005)
            _, errors = process.communicate(timeout=100)
        finally:
            process.kill()  # where it did not hear
        return process.returncode, errors


def check_stops(stored, tmp_path, number, seed):
    run, out = tmp_path / "run", tmp_path / "model.zarr"
    code, errors = told_to_stop(stored, run, out, number, seed)
    assert code == 75, errors
    assert "the same call again goes on from there" in errors
    assert not out.exists()
    assert verify(open_objects(run)) == []
    before = dasknmf.load(run).n_iter_
    code, errors = told_to_stop(stored, run, out, number, seed + 1000)
    assert code == 75, errors
    assert dasknmf.load(run).n_iter_ >= before


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.faults)]
)
def test_a_signal_ends_in_a_commit_and_75(number, stored, tmp_path, cases):
    check_stops(stored, tmp_path, number, 0)
    cases("signals at random times", 1)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(20))
def test_signals_at_random_times(seed, stored, tmp_path, cases):
    check_stops(stored, tmp_path, signal.SIGTERM if seed % 4 else signal.SIGINT, seed)
    cases("signals at random times", 1)


def hash_of(kind, where, resident, tmp_path):
    """Bits of a fit on threads (0) or so many workers, with slabs kept or loaded each time."""
    from distributed import Client, LocalCluster

    X, parameters = made(kind)
    if not sp.issparse(X):
        path = str(tmp_path / "V.zarr")
        if not os.path.exists(path):
            zarr.create_array(path, data=X.compute(), chunks=(100, X.shape[1]))  # X's chunks
        X = dasknmf.open_matrix(path)
    model = NMF(**parameters)
    if where == 0:
        return bits(model, np.asarray(model.fit_transform(X)))
    with (
        LocalCluster(
            n_workers=where, threads_per_worker=1, processes=False,
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("dasknmf.numerics.memory.is_resident", lambda *_: resident)
            W = model.fit_transform(X, client=client)
        return bits(model, np.asarray(W))


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("resident", [True, False])
def test_one_hash_on_any_cluster(kind, resident, tmp_path, undisturbed, cases):
    places = (0, 1, 2, 3, 4, 2)
    found = {hash_of(kind, where, resident, tmp_path) for where in places}
    assert found == {undisturbed(kind)}
    cases("determinism: where it ran", len(places))
