"""Waits on a cluster that end: in a result, or in an error that says how things stand there.

What is watched is progress, never time alone: a wait goes on while tasks of the fit move. The
scheduler is asked only when something has not come within a second, then ever more rarely. Nothing
here stops or restarts workers: those that are frozen are the scheduler's business (``worker-ttl``),
and a wait gives it the time for that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from dask.utils import format_bytes
from distributed import Client
from distributed.comm import CommClosedError

from dasknmf.numerics.errors import ClusterError
from dasknmf.parallel import configuration

logger = logging.getLogger("dasknmf")

FIRST, RAREST = 1.0, 30.0  # seconds between two looks at the scheduler
LONGEST = 10  # limits that workers which come and go may keep a wait alive without any task moving
RECONNECT = 3.0  # seconds for a connection that broke off
SHOWN = 20  # workers of an error


def look_at(client: str, prefix: str, dask_scheduler: Any = None) -> dict[str, Any]:
    """Run on the scheduler: how far the client's tasks are, and how every worker fares.

    Data are ``orphans`` whose keys begin with ``prefix`` and that nobody has: they died before the
    client said that it wants them, and no message will come.
    """
    from distributed.metrics import time
    from distributed.scheduler import heartbeat_interval

    scheduler, now = dask_scheduler, time()
    wanted = getattr(scheduler.clients.get(client), "wants_what", ())
    groups = {ts.group for ts in wanted}
    new = set(groups)
    while new:  # what the wanted tasks are made from
        new = {below for group in new for below in group.dependencies} - groups
        groups |= new
    tasks = [(g.name, tuple(g.states.items()), g.nbytes_total) for g in groups]
    workers = [
        {
            "address": worker.address,
            "state": worker.status.name,
            "silent": now - worker.last_seen,
            "memory": worker.metrics.get("memory", 0),
            "limit": worker.memory_limit,
            "running": [(str(ts.key), seconds) for ts, seconds in worker.executing.items()],
            "assigned": len(worker.processing),
        }
        for worker in scheduler.workers.values()
    ]
    busy = any(group.states["processing"] for group in groups)
    beat = heartbeat_interval(len(workers))
    return {
        "orphans": [
            str(ts.key)
            for ts in wanted
            if str(ts.key).startswith(prefix) and not ts.who_has and not ts.run_spec
        ],
        "tasks": sorted(map(str, tasks)),
        # What others do counts while this client's tasks wait for their turn.
        "around": (
            sorted((w["address"], w["state"]) for w in workers),
            None if busy else scheduler.transition_counter,
        ),
        "workers": workers,
        "silence": 10 * beat,
        "ttl": max(scheduler.worker_ttl, 10 * beat) if scheduler.worker_ttl else None,
    }


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"


def _line(worker: dict[str, Any], silence: float) -> str:
    """One worker, for an error."""
    state = worker["state"]
    if worker["silent"] > silence:
        state += f", no heartbeat for {_seconds(worker['silent'])}"
    limit = format_bytes(worker["limit"]) if worker["limit"] else "no limit"
    running = ", ".join(f"{key} for {_seconds(spent)}" for key, spent in worker["running"][:4])
    return (
        f"  {worker['address']}: {state}; memory {format_bytes(worker['memory'])} of {limit}; "
        f"{worker['assigned']} tasks assigned, running: {running or 'none'}"
    )


def _advice(look: dict[str, Any]) -> str:
    workers = look["workers"]
    if not workers:
        return "There are no workers: start some, and run the fit again."
    paused = [w for w in workers if w["state"] == "paused"]
    if len(paused) == len(workers):
        return (
            "Every worker is paused: its memory is above 80 % of its limit. Use smaller chunks, "
            "fewer threads a worker or more memory; restart workers that others' data fill."
        )
    silent = [w for w in workers if w["silent"] > look["silence"]]
    if silent:
        return (
            f"{len(silent)} of {len(workers)} workers gave no sign of life: restart them. Dask's "
            "distributed.scheduler.worker-ttl says after how long the scheduler does so itself."
        )
    return (
        "A task that takes longer than that needs a larger dasknmf.watchdog in Dask's "
        "configuration, or smaller chunks; else look into the workers' logs."
    )


def _report(look: dict[str, Any]) -> str:
    lines = [_line(worker, look["silence"]) for worker in look["workers"]]
    more = len(lines) - SHOWN
    lines = lines[:SHOWN] + ([f"  and {more} more"] if more > 0 else [])
    return "\n".join(["Workers:" if lines else "Workers: none", *lines])


@dataclass
class _Patience:
    """One wait: since when nothing moved, and what was said of it."""

    limit: float
    moved: float = field(default_factory=lambda: time.monotonic())  # anything
    tasks_moved: float = field(default_factory=lambda: time.monotonic())
    last: dict[str, Any] | None = None
    said: set[str] = field(default_factory=set)

    def note(self, look: dict[str, Any] | None) -> bool:
        """Take in a look; say whether the wait may go on."""
        now = time.monotonic()
        if look is None:
            return now - self.moved <= self.limit
        before, self.last = self.last, look
        if before is None or look["tasks"] != before["tasks"]:
            self.moved = self.tasks_moved = now
        elif look["around"] != before["around"]:
            self.moved = now
        allowed = self.limit
        quiet = min(look["silence"], self.limit / 2)  # a short limit ends before silence is sure
        if look["ttl"] and any(w["silent"] > quiet for w in look["workers"]):
            allowed = max(allowed, 2 * look["ttl"] + self.limit / 2)
        return now - self.moved <= allowed and now - self.tasks_moved <= max(
            LONGEST * self.limit, allowed
        )

    def tell(self, what: str) -> None:
        """Log once a wait what holds it up."""
        if self.last is None:
            return
        workers = self.last["workers"]
        quiet = max(self.last["silence"], self.limit / 10)  # busy machines forget a beat or two
        silent = [w["address"] for w in workers if w["silent"] > quiet]
        reasons = {
            "there are no workers": not workers,
            "every worker is paused for lack of memory": workers
            and all(w["state"] == "paused" for w in workers),
            f"no sign of life from {', '.join(silent)}": silent,
        }
        for reason, holds in reasons.items():
            if holds and reason not in self.said:
                self.said.add(reason)
                logger.warning("%s waits: %s", what, reason)


class Watchdog:
    """Waits for coroutines of one client; ``prefix`` is that of data which only workers have.

    kept
        What a user still has when the scheduler is gone, and how to go on: the end of that error.
    """

    kept = "Nothing of this fit is kept: start it again once a scheduler runs."

    def __init__(self, client: Client, prefix: str) -> None:
        self.client, self.prefix = client, prefix
        self.limit = configuration.seconds("watchdog")

    def wait(self, ask: Callable[[], Awaitable[Any]], what: str) -> Any:
        """Give the result of ``ask()``, a coroutine for the client's event loop.

        Raises
        ------
        ClusterError
            Nothing moved for ``dasknmf.watchdog``; or the scheduler is gone.
        CommClosedError
            Data that is waited for died with its worker.
        """
        self.check_connected()
        job = self._submit(ask)
        pause = min(FIRST, self.limit / 8)
        patience: _Patience | None = None
        try:
            while True:
                try:
                    return job.result(timeout=pause)
                except TimeoutError:
                    if job.done():  # the coroutine's own, or just in time
                        return job.result()
                self.check_connected()
                patience = patience or _Patience(self.limit)
                look = self._look()
                if look and look["orphans"] and not job.done():
                    raise CommClosedError(f"{len(look['orphans'])} pieces of data died unnoticed")
                if not patience.note(look) and not job.done():
                    raise self._stuck(patience, what)
                patience.tell(what)
                pause = min(2 * pause, RAREST, max(self.limit / 8, 0.1))
        finally:
            job.cancel()

    def ask_for(self, ask: Callable[[], Awaitable[Any]], timeout: float) -> Any:
        """Give the result of ``ask()``, or a TimeoutError."""
        job = self._submit(lambda: asyncio.wait_for(ask(), timeout))
        try:
            return job.result(timeout + 1)
        finally:
            job.cancel()

    def start(self, ask: Callable[[], Awaitable[Any]], timeout: float) -> Any:
        """Begin what nobody waits for; it ends by ``timeout`` at the latest, and fails silently."""

        async def quietly() -> None:
            try:
                await asyncio.wait_for(ask(), timeout)
            except Exception as error:
                logger.debug("left undone on the cluster: %r", error)

        return self._submit(quietly)

    def check_connected(self) -> None:
        """Raise unless the scheduler is there, or comes back within seconds.

        Raises
        ------
        ClusterError
            The connection is closed.
        CommClosedError
            It was closed, and is open again: futures from before are lost.
        """
        if self.client.status == "running":
            return
        deadline = time.monotonic() + RECONNECT
        while self.client.status == "connecting" and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.client.status == "running":
            raise CommClosedError("the connection to the scheduler was lost for a moment")
        scheduler = getattr(self.client.scheduler, "address", "")
        raise ClusterError(
            f"the scheduler {scheduler} is gone: the connection is {self.client.status}, and did "
            f"not come back within {RECONNECT:g} s. Look into the scheduler's log. {self.kept}"
        )

    def workers_now(self) -> str:
        """Lines about the workers, for an error; or why there are none."""
        look = self._look()
        return "Workers: the scheduler does not answer" if look is None else _report(look)

    def _submit(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        async def run() -> Any:  # made on the loop: one that has stopped leaves nothing unawaited
            return await ask()

        made: Coroutine[Any, Any, Any] = run()
        loop: Any = self.client.loop
        try:
            return asyncio.run_coroutine_threadsafe(made, loop.asyncio_loop)
        except BaseException:
            made.close()
            raise

    def _look(self) -> dict[str, Any] | None:
        """How things stand; None where the scheduler does not answer."""

        def ask() -> Awaitable[Any]:
            asked: Awaitable[Any] = self.client.run_on_scheduler(
                look_at, self.client.id, self.prefix, asynchronous=True
            )
            return asked

        try:
            look: dict[str, Any] = self.ask_for(ask, max(1.0, min(10.0, self.limit / 4)))
        except Exception as error:  # of whatever kind: the watchdog must outlive it
            logger.debug("the scheduler did not say how things stand: %r", error)
            return None
        return look

    def _stuck(self, patience: _Patience, what: str) -> ClusterError:
        spent = _seconds(time.monotonic() - patience.moved)
        head = f"{what} waits, and nothing has moved on the cluster for {spent}"
        limit = f"(dasknmf.watchdog: {_seconds(self.limit)})"
        look = self._look()
        if look is None:
            return ClusterError(
                f"{head} {limit}: the scheduler does not answer. Restart it, or look into its log. "
                f"{self.kept}"
            )
        return ClusterError(f"{head} {limit}. {_advice(look)}\n{_report(look)}")
