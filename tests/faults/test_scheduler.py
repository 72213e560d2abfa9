"""A scheduler that is killed under a fit: a plain error within seconds, at whatever moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import dask
import dask.array as da
import numpy as np
import pytest
from conftest import planted
from distributed import Client

from dasknmf import NMF, ClusterError

pytestmark = [pytest.mark.usefixtures("many_slabs"), pytest.mark.timeout(90)]


@pytest.fixture
def processes(tmp_path):
    """Process ids and the file of a scheduler and a worker that run on their own."""
    file = tmp_path / "scheduler.json"
    loopback = ["--host", "127.0.0.1", "--no-dashboard"]
    commands = [
        ["distributed.cli.dask_scheduler", "--port", "0", "--scheduler-file", str(file)],
        ["distributed.cli.dask_worker", "--scheduler-file", str(file), "--no-nanny",
         "--death-timeout", "20", "--nthreads", "1", "--local-directory", str(tmp_path)],
    ]  # fmt: skip
    with ExitStack() as stack:
        started = []
        for module, *options in commands:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *options, *loopback],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            started.append(process.pid)
            while not file.exists():  # pytest's timeout bounds it
                time.sleep(0.02)
        yield started[0], json.loads(file.read_text())["address"]


def killing(pid, at, number):
    """A chunk whose making ends the scheduler; nested, since the processes can't import it."""

    def kill_at(block, block_info=None):
        if block_info and block_info[0]["chunk-location"][0] == at:
            os.kill(pid, number)
        return block

    return kill_at


def failed_fit(pid, address, at_pass=None, at_chunk=None, number=signal.SIGKILL):
    """The error of a fit whose scheduler gets a signal, and for how long it was waited for."""
    hit = []

    def strike(info):
        if info.number == at_pass:
            hit.append(time.monotonic())
            os.kill(pid, number)

    X = da.from_array(planted(np.random.default_rng(3), 160, 20), chunks=(20, -1))
    if at_chunk is not None:
        X = X.map_blocks(killing(pid, at_chunk, number), meta=np.empty((0, 0)))
    with Client(address) as client:
        client.wait_for_workers(1)
        began = time.monotonic()
        with pytest.raises(ClusterError) as caught:
            NMF(3, random_state=1, tol=0, max_iter=4, callbacks=[strike]).fit(X, client=client)
        ended = time.monotonic()
    return str(caught.value), ended - (hit[0] if hit else began)


MOMENTS = [{"at_pass": 2}, {"at_pass": 1}, {"at_pass": 3}, {"at_chunk": 0}, {"at_chunk": 7}]


@pytest.mark.parametrize(
    "moment",
    [pytest.param(m, marks=pytest.mark.faults if i else ()) for i, m in enumerate(MOMENTS)],
)
def test_a_killed_scheduler_is_a_prompt_error(processes, moment):
    message, waited = failed_fit(*processes, **moment)
    assert f"the scheduler {processes[1]} is gone" in message
    assert "Nothing of this fit is kept" in message
    assert waited < 20


@pytest.mark.faults
def test_a_scheduler_that_does_not_answer_is_an_error(processes):
    with dask.config.set({"dasknmf.watchdog": "4s", "distributed.comm.timeouts.tcp": "60s"}):
        try:
            message, waited = failed_fit(*processes, at_pass=2, number=signal.SIGSTOP)
        finally:
            os.kill(processes[0], signal.SIGKILL)
    assert "the scheduler does not answer" in message
    assert waited < 40
