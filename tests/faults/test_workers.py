"""Workers killed at any moment of a fit: the bits of the undisturbed run, and a line per retry.

The moment is an event, not a time: the n-th transition of a task of the fit on the scheduler, n
drawn from all those that an undisturbed run has.
"""

from __future__ import annotations

import logging
import os
import signal
from contextlib import contextmanager

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from conftest import planted, sparse_counts
from distributed import Client, LocalCluster
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.utils import get_mp_context

from dasknmf import NMF, ClusterError
from dasknmf.parallel import cluster as clusters

pytestmark = [pytest.mark.usefixtures("twelve_slabs"), pytest.mark.timeout(120)]

PRELOAD = ["distributed", "distributed.nanny", "dasknmf.estimator", "numba", "dask.array"] + [
    f"dasknmf.numerics.kernels.{name}" for name in ("columns", "compiled", "kl", "nnls")
]
KINDS = {
    "als": ("dense", {"solver": "als"}),
    "newton": ("numpy", {"solver": "newton", "beta_loss": 1.0}),
    "mu": ("numpy", {"solver": "mu", "beta_loss": 1.0, "init": "random"}),
    "csr": ("csr", {"solver": "als"}),
    "streaming": ("dense", {"solver": "als"}),
}
FEW = [(kind, seed) for seed in range(4) for kind in KINDS]
MANY = [(kind, seed) for seed in range(4, 44) for kind in KINDS]
retries = []


@pytest.fixture
def twelve_slabs(monkeypatch):
    monkeypatch.setattr("dasknmf.numerics.planning.SMALLEST", 1)
    monkeypatch.setattr("dasknmf.numerics.planning.SHORTEST", 1)
    monkeypatch.setattr("dasknmf.numerics.planning.AIM", 12)


def matrix(kind):
    rng = np.random.default_rng(11)
    if kind == "csr":
        chunks = da.from_array(sparse_counts(rng, 240, 20, 0.3).toarray(), chunks=(20, -1))
        return chunks.map_blocks(sp.csr_array, meta=sp.csr_array((0, 0)))
    X = planted(rng, 240, 20)
    return X if kind == "numpy" else da.from_array(X, chunks=(20, -1))


class Killer(SchedulerPlugin):
    """Sends ``number`` to a random worker at each of some transitions of this client's tasks."""

    name = "killer"

    def __init__(self, cluster, moments=(), seed=0, number=signal.SIGKILL):
        self.cluster, self.moments, self.number = cluster, set(moments), number
        self.rng = np.random.default_rng(seed)
        self.seen, self.useful, self.hit = 0, 0, []

    def transition(self, key, start, finish, *args, **kwargs):
        if "nmf-" not in str(key):
            return
        self.seen += 1
        if self.seen in self.moments:
            living = [nanny.pid for nanny in self.cluster.workers.values() if nanny.pid]
            if living:
                self.hit.append(int(self.rng.choice(living)))
                os.kill(self.hit[-1], self.number)


@contextmanager
def workers(**config):
    """Two workers, which come back as forks of a process that has everything imported."""
    config["distributed.worker.multiprocessing-method"] = "forkserver"
    with dask.config.set(config):
        get_mp_context().set_forkserver_preload(PRELOAD)
        with LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as started:
            yield started


def wait_for_both(cluster, client, patience=40):
    """Dask's nanny does not always start a killed worker again: new ones then."""
    try:
        client.wait_for_workers(2, timeout=patience)
    except TimeoutError:
        cluster.scale(0)
        cluster.scale(2)
        client.wait_for_workers(2, timeout=60)


@pytest.fixture(scope="module")
def nannies():
    with workers() as started:
        yield started


def fit(kind, client, killer, monkeypatch):
    """W and H of a fit with the killer at work."""
    form, parameters = KINDS[kind]
    if kind == "streaming":
        executor = clusters.ClusterExecutor
        monkeypatch.setattr(
            clusters,
            "ClusterExecutor",
            lambda slabs, client, resident: executor(slabs, client, False),
        )
    scheduler = killer.cluster.scheduler
    carries = parameters["solver"] in ("mu", "newton")

    def note(info):
        if info.number < 3 or not carries:
            killer.useful = killer.seen

    model = NMF(3, tol=0, max_iter=3, random_state=1, callbacks=[note], **parameters)
    scheduler.add_plugin(killer)
    try:
        W = model.fit_transform(matrix(form), client=client)
    finally:
        scheduler.remove_plugin(killer.name)
    return np.asarray(W), model.components_


@pytest.fixture(scope="module")
def undisturbed(nannies):
    """Factors by kind, and up to which transition a fit of that kind can lose a worker.

    That is the end, or where a last pass begins whose rows exist only once: after it they can't be
    made again.
    """
    found = {}

    def of(kind, client, monkeypatch):
        if kind not in found:
            counter = Killer(nannies)
            found[kind] = fit(kind, client, counter, monkeypatch), counter.useful
        return found[kind]

    return of


@pytest.fixture
def undisturbed_bits(nannies, undisturbed, monkeypatch):
    def of(kind):
        with Client(nannies) as client:
            return undisturbed(kind, client, monkeypatch)

    return of


@pytest.fixture
def losses(monkeypatch):
    """Work or data that was lost, as the executor counts it."""
    counted = []
    count = clusters.ClusterExecutor._count_failure

    def counting(self, what, error):
        counted.append(what)
        count(self, what, error)

    monkeypatch.setattr(clusters.ClusterExecutor, "_count_failure", counting)
    return counted


def check_killed(kind, seed, nannies, undisturbed, monkeypatch, losses, caplog):
    rng = np.random.default_rng([seed, *map(ord, kind)])
    with Client(nannies) as client:
        wait_for_both(nannies, client)
        expected, length = undisturbed(kind, client, monkeypatch)
        killer = Killer(nannies, 1 + rng.integers(0, length, 1 + seed % 2), seed)
        with caplog.at_level(logging.WARNING, "dasknmf"):
            found = fit(kind, client, killer, monkeypatch)
    for factor, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(factor, other, strict=True)
    assert killer.hit
    told = [r.message for r in caplog.records if "lost work or data on the cluster" in r.message]
    begun = [r.message for r in caplog.records if "begins again" in r.message]
    assert len(told) + len(begun) == len(losses)
    retries.extend(losses)


@pytest.mark.parametrize(("kind", "seed"), FEW)
def test_killed_workers_change_no_bit(
    kind, seed, nannies, undisturbed, monkeypatch, losses, caplog
):
    check_killed(kind, seed, nannies, undisturbed, monkeypatch, losses, caplog)


@pytest.mark.faults
@pytest.mark.parametrize(("kind", "seed"), MANY)
def test_killed_workers_change_no_bit_at_any_moment(
    kind, seed, nannies, undisturbed, monkeypatch, losses, caplog
):
    check_killed(kind, seed, nannies, undisturbed, monkeypatch, losses, caplog)


def test_some_of_the_kills_cost_a_retry():
    """Else the tests above would show nothing (they run first, in this process)."""
    assert retries


@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        ("als", 1),
        *[
            pytest.param(kind, seed, marks=pytest.mark.faults)
            for kind, seed in [("mu", 2), ("newton", 3), ("csr", 4), ("streaming", 5)]
        ],
    ],
)
def test_a_frozen_worker_is_given_up_by_the_scheduler(kind, seed, undisturbed_bits, monkeypatch):
    """Then the fit goes on; a worker that is as good as dead holds up nothing else meanwhile."""
    expected, length = undisturbed_bits(kind)
    ttl = {"distributed.scheduler.worker-ttl": "1s", "dasknmf.watchdog": "30s"}
    with workers(**ttl) as cluster, Client(cluster) as client:
        client.wait_for_workers(2)
        moment = np.random.default_rng(seed).integers(length // 4, length)
        killer = Killer(cluster, [moment], seed, signal.SIGSTOP)
        found = fit(kind, client, killer, monkeypatch)
        assert killer.hit
    for factor, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(factor, other, strict=True)


@pytest.mark.faults
def test_a_frozen_worker_that_nobody_gives_up_ends_in_an_error_that_names_it(monkeypatch):
    with (
        workers(**{"distributed.scheduler.worker-ttl": None}) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(2)
        warm = Killer(cluster)
        fit("als", client, warm, monkeypatch)
        killer = Killer(cluster, [warm.seen // 2], 1, signal.SIGSTOP)
        try:
            with (
                dask.config.set({"dasknmf.watchdog": "8s"}),
                pytest.raises(ClusterError, match=r"no heartbeat for \d+"),
            ):
                fit("als", client, killer, monkeypatch)
        finally:
            for pid in killer.hit:
                os.kill(pid, signal.SIGKILL)
