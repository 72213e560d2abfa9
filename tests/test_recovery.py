"""A cluster in trouble: a fit goes on with the same bits, or ends in an error that says why."""

from __future__ import annotations

import json
import logging
import time

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
import zarr
from click.testing import CliRunner
from conftest import planted
from distributed import Client, LocalCluster
from distributed.comm import CommClosedError

from dasknmf import NMF, ClusterError, cli
from dasknmf.cli_cluster import connected, stays_private
from dasknmf.numerics.errors import RowsLostError
from dasknmf.numerics.losses import Frobenius
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers.als import ALS
from dasknmf.numerics.work import Inspect, Step
from dasknmf.parallel import make_executor
from dasknmf.parallel.cluster import RETRIES, ClusterExecutor, Held
from dasknmf.parallel.executors import Carried
from dasknmf.parallel.slabs import cut
from dasknmf.parallel.watchdog import _Patience

pytestmark = [pytest.mark.usefixtures("many_slabs"), pytest.mark.timeout(60)]


def start(**options):
    """A cluster that may be harmed: in this process, so that it starts at once."""
    return LocalCluster(
        **{
            "n_workers": 2,
            "threads_per_worker": 1,
            "processes": False,
            "protocol": "tcp://",
            "host": "127.0.0.1",
            "dashboard_address": "127.0.0.1:0",
            **options,
        }
    )


@pytest.fixture
def shaky():
    """A client of two workers."""
    with start() as cluster, Client(cluster) as client:
        yield client


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "x.zarr"
    zarr.create_array(path, data=planted(np.random.default_rng(7), 120, 20), chunks=(20, 20))
    return str(path)


@pytest.fixture
def watchdog():
    """A short one."""
    with dask.config.set({"dasknmf.watchdog": "1s"}):
        yield


def model(**parameters):
    return NMF(3, **{"random_state": 1, "max_iter": 2, "tol": 0, **parameters})


def lose_one_worker(client):
    """Close a worker that hands over nothing; none comes in its place."""
    address = min(client.scheduler_info()["workers"])

    async def lose(dask_scheduler):
        await dask_scheduler.remove_worker(address, stimulus_id="lost", close=True)

    client.run_on_scheduler(lose)


def als_rows(executor):
    """Rows that are a function of the slabs and of H."""
    H = np.random.default_rng(3).random((20, 3))
    return executor.run(Step(Frobenius(), ALS(), Penalty(), (H,)), keep=True).rows


class WhenLogged(logging.Handler):
    """Do something once when a log line comes: an event of the waiting fit itself."""

    def __init__(self, text, action):
        super().__init__()
        self.text, self.action = text, action

    def emit(self, record):
        if self.text in record.getMessage() and self.action:
            action, self.action = self.action, None
            action()

    def __enter__(self):
        logging.getLogger("dasknmf").addHandler(self)

    def __exit__(self, *error):
        logging.getLogger("dasknmf").removeHandler(self)


def test_a_worker_that_leaves_while_it_takes_factors_costs_an_attempt(stored, shaky, caplog):
    """The scheduler's answer to that is a KeyError."""
    expected = model().fit(da.from_zarr(stored)).components_

    def forget(dask_scheduler):
        update = dask_scheduler.update_data

        def late(*, who_has, **given):
            dask_scheduler.update_data = update
            return update(who_has={key: ["tcp://127.0.0.1:1"] for key in who_has}, **given)

        dask_scheduler.update_data = late

    shaky.run_on_scheduler(forget)
    found = model().fit(da.from_zarr(stored), client=shaky)
    np.testing.assert_array_equal(found.components_, expected)
    assert "attempt 1 of" in caplog.text


# lost rows


def test_rows_of_a_finished_fit_are_made_again_by_the_scheduler(stored, shaky):
    expected = model().fit_transform(da.from_zarr(stored)).compute()
    W = model().fit_transform(da.from_zarr(stored), client=shaky)
    lose_one_worker(shaky)
    np.testing.assert_array_equal(W.compute(), expected)


def test_a_fit_leaves_rows_without_computing_them_twice(stored, shaky):
    W = model().fit_transform(da.from_zarr(stored), client=shaky)
    W.compute()
    made = shaky.run_on_scheduler(
        lambda dask_scheduler: [
            key for key, ts in dask_scheduler.tasks.items() if "nmf-work" in str(key) and ts.who_has
        ]
    )
    assert len(made) <= 1  # the scheduler may run that one: it loads nothing
    with make_executor(cut(da.from_zarr(stored)), shaky) as executor:
        rows = als_rows(executor)
        calls = shaky.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter)
        chunks = executor.dask_chunks(rows, 0)
        shaky.gather(chunks)
        moved = shaky.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter)
    assert moved - calls < 5 * (len(chunks) + 2)  # nothing but the picking


def test_rows_that_died_are_made_again_when_they_are_fetched(stored, shaky, caplog):
    with make_executor(cut(da.from_zarr(stored)), shaky) as executor:
        rows = als_rows(executor)
        expected = executor.fetch(rows)
        lose_one_worker(shaky)
        found = executor.fetch(rows)
        np.testing.assert_array_equal(np.concatenate(found, 1), np.concatenate(expected, 1))
    assert "are made again" in caplog.text


def test_rows_that_came_from_rows_are_lost_for_good(stored, shaky):
    with make_executor(cut(da.from_zarr(stored)), shaky) as executor:
        rows = als_rows(executor)
        step = Step(Frobenius(), ALS(), Penalty(), (np.ones((20, 3)),))
        carried = executor.run(step, rows, keep=True).rows
        lose_one_worker(shaky)
        with pytest.raises(RowsLostError, match="are gone"):
            executor.fetch(carried)


@pytest.mark.parametrize(
    "made_by", [None, Step(Frobenius(), ALS(), Penalty(), (np.eye(20)[:, :3],))]
)
def test_rows_that_died_before_anybody_knew_them_are_not_waited_for(stored, shaky, made_by):
    """A worker can die between its answer and the message that its rows are wanted."""
    with make_executor(cut(da.from_zarr(stored)), shaky) as executor:
        keys = tuple(f"nmf-held-{executor.token}-{i}" for i in range(len(executor.slabs)))
        places = executor.slabs.places
        futures = executor._adopt(keys)
        rows = Carried(tuple(Held(f, made_by, p) for f, p in zip(futures, places, strict=True)))
        if made_by is None:
            with pytest.raises(RowsLostError):
                executor.fetch(rows)
        else:
            assert sum(block[0].shape[0] for block in executor.fetch(rows)) == 120


# retries


class Flaky(ClusterExecutor):
    """Loses ``bad`` of every ``bad + 1`` attempts."""

    bad, calls = 1, 0

    def _attempt(self, *args):
        self.calls += 1
        if self.calls % (self.bad + 1):
            raise CommClosedError("a worker died")
        return super()._attempt(*args)


def test_a_visit_that_ends_well_refills_the_retries(stored, shaky, caplog):
    with Flaky(cut(da.from_zarr(stored)), shaky, True) as executor:
        expected = executor.run(Inspect()).sums
        for _ in range(2 * RETRIES):
            assert executor.run(Inspect()).sums == expected
    assert caplog.text.count("attempt 1 of") == 2 * RETRIES + 1
    assert "attempt 2 of" not in caplog.text


def test_work_that_is_always_lost_is_an_error_that_shows_the_workers(stored, shaky, caplog):
    with Flaky(cut(da.from_zarr(stored)), shaky, True) as executor:
        executor.bad = 10**9
        with pytest.raises(ClusterError, match=r"6 times in a row(.|\n)*127\.0\.0\.1:\d+: running"):
            executor.run(Inspect())
    assert caplog.text.count("lost work or data on the cluster") == RETRIES


class Unloadable:
    """What the scheduler can't unpickle, as a module that only the client has."""

    def __reduce__(self):
        return eval, ("1 / 0",)

    def __dask_tokenize__(self):
        return "unloadable"

    def __call__(self, block):
        return block


def test_a_graph_that_the_scheduler_cannot_read_is_its_own_error_at_once(stored, shaky, caplog):
    X = da.from_zarr(stored).map_blocks(Unloadable(), meta=np.empty((0, 0)))
    with pytest.raises(RuntimeError, match="deserialization of the task graph"):
        model().fit(X, client=shaky)
    assert "attempt" not in caplog.text


# waits that would never end


def test_without_workers_a_fit_waits_and_goes_on_when_they_come(stored, caplog):
    X = da.from_zarr(stored)
    expected = model().fit_transform(X).compute()
    with start(n_workers=1) as cluster, Client(cluster) as client:

        def leave(info):
            if info.number == 1:
                cluster.scale(0)
                cluster.sync(cluster._correct_state)

        with WhenLogged("there are no workers", lambda: cluster.scale(1)):
            W = model(callbacks=[leave]).fit_transform(X, client=client)
            np.testing.assert_array_equal(W.compute(), expected)
    assert caplog.text.count("waits: there are no workers") == 1


def test_without_workers_for_good_a_fit_ends_in_an_error(stored, watchdog):
    with start(n_workers=0) as cluster, Client(cluster) as client:
        began = time.monotonic()
        with pytest.raises(ClusterError, match=r"nothing has moved.*There are no workers: start"):
            model().fit(da.from_zarr(stored), client=client)
        assert time.monotonic() - began < 20


PAUSING = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.memory.pause": 0.001,
}


def test_workers_paused_by_their_memory_are_named_with_it(stored, watchdog, caplog):
    with (
        dask.config.set(PAUSING),
        start(n_workers=1, memory_limit="2GiB") as cluster,
        Client(cluster) as client,
    ):
        for _ in range(500):  # round trips, until the worker's own monitor has looked
            states = [w["status"] for w in client.scheduler_info()["workers"].values()]
            paused = states == ["paused"]
            if paused:
                break
            time.sleep(0.02)
        assert paused
        with pytest.raises(ClusterError, match=r"Every worker is paused(.|\n)*of 2\.00 GiB"):
            model().fit(da.from_zarr(stored), client=client)
    assert "every worker is paused for lack of memory" in caplog.text


def stall(block, flag):
    """A chunk that takes until a file is there."""
    while not flag.exists():
        time.sleep(0.01)
    return block


def test_a_task_that_never_ends_is_named_with_its_worker(tmp_path, stored, watchdog):
    flag = tmp_path / "go"
    X = da.from_zarr(stored).map_blocks(stall, flag, meta=np.empty((0, 0)))
    with start(n_workers=1) as cluster, Client(cluster) as client:
        try:
            with pytest.raises(ClusterError, match=r"running: .*stall-.* for \d") as caught:
                model(init="random").fit(X, client=client)
        finally:
            flag.touch()
    assert "dasknmf.watchdog" in str(caught.value)


def look(tasks=("a",), silent=0.0, ttl=None, around=0):
    workers = [{"address": "w", "state": "running", "silent": silent}]
    return {"tasks": tasks, "around": around, "workers": workers, "silence": 5.0, "ttl": ttl}


def patience(monkeypatch, *looks, limit=10.0):
    """After how many seconds a wait ends that sees these looks, one a second."""
    now = [100.0]
    monkeypatch.setattr("dasknmf.parallel.watchdog.time.monotonic", lambda: now[0])
    waiting = _Patience(limit)
    for second, seen in enumerate(looks):
        now[0] = 100.0 + second
        if not waiting.note(seen):
            return second
    return None


def test_a_wait_lasts_while_something_moves_and_no_longer(monkeypatch):
    still, moving = [look()] * 200, [look((i,)) for i in range(200)]
    assert patience(monkeypatch, *moving) is None
    assert patience(monkeypatch, *still) == 11
    assert patience(monkeypatch, *moving[:50], *still) == 50 + 11
    assert patience(monkeypatch, *[None] * 200) == 11  # the scheduler does not answer
    around = [look(around=i) for i in range(200)]  # workers come and go, and nothing is done
    assert patience(monkeypatch, *around) == 101


def test_a_wait_leaves_a_silent_worker_to_the_scheduler(monkeypatch):
    silent = [look(silent=float(i), ttl=20.0) for i in range(200)]
    assert patience(monkeypatch, *silent) == 2 * 20 + 10 // 2 + 1
    alive = [look(silent=0.5, ttl=20.0)] * 200
    assert patience(monkeypatch, *alive) == 11


# the command line's connections


@pytest.mark.parametrize(
    "address",
    [
        "tcp://127.0.0.1:8786", "127.3.2.1:8786", "tcp://localhost:8786", "tcp://[::1]:8786",
        "tls://192.0.2.7:8786", "wss://example.org:8786", "inproc://192.0.2.7/1/1",
        "tcp://[::ffff:127.0.0.1]:8786", "TLS://192.0.2.7:1", "localhost:8786",
    ],
)  # fmt: skip
def test_connections_that_stay_private(address):
    assert stays_private(address)


@pytest.mark.parametrize(
    "address",
    [
        "tcp://192.0.2.7:8786", "192.0.2.7:8786", "tcp://0.0.0.0:8786", "example.org:8786",
        "ws://192.0.2.7:1", "ucx://192.0.2.7:1", "tcp://[2001:db8::1]:8786", "tcp://[::]:1",
        "tcp://127.0.0.1.example.org:1", "tcp://localhost.example.org:1", "", "tcp://", "tcp://[",
        "x://tls://192.0.2.7:1", "tls.example.org:1",
    ],
)  # fmt: skip
def test_connections_that_others_could_read(address):
    assert not stays_private(address)


@pytest.mark.parametrize("by_file", [False, True])
def test_a_plain_scheduler_elsewhere_is_refused_unless_told(stored, tmp_path, by_file):
    where = ["--scheduler", "tcp://192.0.2.7:8786"]
    if by_file:
        (tmp_path / "s.json").write_text(json.dumps({"address": where[1]}))
        where = ["--scheduler-file", str(tmp_path / "s.json")]
    command = ["fit", stored, "-k2", "-o", str(tmp_path / "m"), "--wait", "0.2", *where]
    refused = CliRunner().invoke(cli.main, command)
    assert refused.exit_code == 2
    assert "--insecure" in refused.output
    assert "distributed.comm.tls" in refused.output
    told = CliRunner().invoke(cli.main, [*command, "--insecure"])
    assert told.exit_code == 1
    assert "no Dask scheduler answers" in told.output
    alone = CliRunner().invoke(cli.main, [*command[: -len(where)], "--insecure"])
    assert alone.exit_code == 2


def test_clusters_started_here_listen_on_the_loopback_only():
    given = {
        "workers": 1, "threads": 1, "scheduler": None, "scheduler_file": None,
        "insecure": False, "wait": 1,
    }  # fmt: skip
    mine = psutil.Process()
    before = {c.laddr for c in mine.net_connections() if c.status == psutil.CONN_LISTEN}
    with connected(given, quiet=True) as client:
        client.wait_for_workers(1)
        heard = [
            c.laddr
            for process in [mine, *mine.children(recursive=True)]
            for c in process.net_connections()
            if c.status == psutil.CONN_LISTEN and c.laddr not in before
        ]
    assert len(heard) >= 3  # scheduler, dashboard, worker
    assert {address.ip for address in heard} <= {"127.0.0.1", "::1"}
