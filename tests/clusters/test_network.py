"""What the plan says of the network, held against bytes counted between hosts and processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from clusters import network

from dasknmf import cli

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ROWS, COLUMNS, K, SLABS, PASSES = 6400, 4000, 40, 64, 5
EACH = 2  # workers of a host


@pytest.fixture(scope="module")
def hosts():
    reason = network.missing()
    if reason:
        pytest.skip(reason)
    with network.TwoHosts() as made:
        yield made


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    """102 MB: 64 slabs of 100 rows."""
    path = tmp_path_factory.mktemp("network") / "V.zarr"
    V = np.random.default_rng(0).random((ROWS, COLUMNS), dtype=np.float32)
    zarr.create_array(path, data=V, chunks=(ROWS // SLABS, COLUMNS))
    return path


def environment(shell, folder):
    return {
        **os.environ, **shell, "DASK_CONFIG": str(folder),
        "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "10 minutes",
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "120s",
    }  # fmt: skip


@pytest.fixture(scope="module")
def dask_cluster(hosts, shell, tmp_path_factory):
    """A scheduler on host 0, two workers on each host; its address and the environment of a fit."""
    folder = tmp_path_factory.mktemp("dask")
    bare = environment(shell, folder)
    address = f"tcp://{network.ADDRESSES[0]}:8786"
    logs = (folder / "log").open("wb")
    quiet = {"env": bare, "cwd": folder, "stdout": logs, "stderr": logs}
    dask = (sys.executable, "-m", "dask")
    hosts.start(
        0, *dask, "scheduler", "--host", network.ADDRESSES[0], "--port", 8786, "--no-dashboard",
        **quiet,
    )  # fmt: skip
    for host in (0, 1):
        for _ in range(EACH):
            hosts.start(
                host, *dask, "worker", address, "--host", network.ADDRESSES[host], "--nthreads", 1,
                "--no-nanny", "--no-dashboard", "--memory-limit", "2GB", **quiet,
            )  # fmt: skip
    yield address, bare
    logs.close()


def counted(hosts, cluster, matrix):
    """Bytes of each pass: between hosts, and between any two processes."""
    address, bare = cluster
    script = Path(__file__).with_name("fit_counted.py")
    fit = hosts.start(
        0, sys.executable, script, address, matrix, 2 * EACH, K, PASSES,
        env=bare, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    said, between, within = [], [], []
    for line in fit.stdout:
        said.append(line.strip())
        between.append(hosts.carried())
        within.append(hosts.within())
        fit.stdin.write("\n")
        fit.stdin.flush()
    assert fit.wait() == 0
    assert said == [*(f"pass {i + 1}" for i in range(PASSES)), f"final rows {PASSES + 1}"]
    return np.diff(between[:-1]), np.diff(np.add(between, within)[:-1])


def planned(matrix):
    options = ("-k", K, "--workers", 2 * EACH, "--memory", "2GB", "--json")
    said = CliRunner().invoke(cli.main, ["plan", str(matrix), *map(str, options)])
    assert said.exit_code == 0, said.output
    return json.loads(said.stdout)


SERVER = """
import socket, sys
with socket.create_server((sys.argv[1], 0)) as server:
    print(server.getsockname()[1], flush=True)
    with server.accept()[0] as there:
        for _ in range(3):
            there.sendall(there.recv(1))
        size = 0
        while size < int(sys.argv[2]):
            size += len(there.recv(1 << 16))
        there.sendall(b"!")
"""
CLIENT = """
import json, socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as there:
    trips = []
    for _ in range(3):
        began = time.perf_counter()
        there.sendall(b"?")
        there.recv(1)
        trips.append(time.perf_counter() - began)
    began = time.perf_counter()
    there.sendall(bytes(int(sys.argv[3])))
    there.recv(1)
    print(json.dumps([min(trips), time.perf_counter() - began]))
"""


def test_the_link_delays_holds_back_and_counts(hosts):
    """Or the test below would be one of the loopback."""
    size = 5_000_000
    out = {"stdout": subprocess.PIPE}
    server = hosts.start(1, sys.executable, "-c", SERVER, network.ADDRESSES[1], size, **out)
    port = server.stdout.readline().strip()
    before = hosts.carried()
    sender = (sys.executable, "-c", CLIENT, network.ADDRESSES[1], port, size)
    trip, seconds = json.loads(hosts.start(0, *sender, **out).stdout.readline())
    assert hosts.carried() - before == size + 3 + 3 + 1
    assert trip >= 2 * network.DELAY
    assert seconds >= 0.9 * size / 12.5e6


def test_a_pass_moves_what_the_plan_says(hosts, dask_cluster, matrix):
    plan = planned(matrix)
    assert plan["resident"]
    assert plan["matrix"]["slabs"] == SLABS
    link, everything = counted(hosts, dask_cluster, matrix)
    print(f"\nplanned {plan['bytes_moved_per_pass'] / 1e6:.2f} MB a pass")
    print(f"between processes {everything / 1e6} MB, of it over the link {link / 1e6} MB")
    assert np.mean(everything) == pytest.approx(plan["bytes_moved_per_pass"], rel=0.1)
    assert (everything < 1.25 * plan["bytes_moved_per_pass"]).all()
    assert 0 < link.mean() < everything.mean()
