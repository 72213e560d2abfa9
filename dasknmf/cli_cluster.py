"""Where a command runs: threads, workers started here, or a running cluster."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

ENCRYPTED = ("tls", "wss")
INSIDE = ("inproc",)  # this process


def cluster_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options; the command gets them as the one argument ``cluster``."""
    options = [
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            help="Start this many worker processes on this machine, and close them again.",
        ),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            help="Threads of each worker (default 1); without --workers: threads in all.",
        ),
        click.option("--scheduler", metavar="ADDRESS", help="Use a running Dask cluster."),
        click.option(
            "--scheduler-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="The same, by the file that the scheduler wrote.",
        ),
        click.option(
            "--insecure",
            is_flag=True,
            help="Let data and code go unencrypted to a running cluster on other machines.",
        ),
        click.option(
            "--wait",
            type=click.FloatRange(min=0, min_open=True),
            default=30,
            show_default=True,
            metavar="SECONDS",
            help="For a running cluster to answer, and then for its first worker.",
        ),
        click.option(
            "--performance-report",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="HTML file for Dask's report of tasks, workers and time (on a cluster).",
        ),
    ]
    for option in reversed(options):
        command = option(command)

    @wraps(command)
    def run(*args: Any, **given: Any) -> None:
        running = ("scheduler", "scheduler_file", "insecure", "wait")
        names = ("workers", "threads", *running, "performance_report")
        cluster = {name: given.pop(name) for name in names}
        chosen = [n for n in ("workers", "scheduler", "scheduler_file") if cluster[n] is not None]
        if len(chosen) > 1:
            raise click.UsageError("use one of --workers, --scheduler and --scheduler-file")
        if cluster["threads"] is not None and chosen not in ([], ["workers"]):
            raise click.UsageError("--threads is for workers started here, not a running cluster")
        if cluster["insecure"] and chosen not in (["scheduler"], ["scheduler_file"]):
            raise click.UsageError("--insecure is for a running cluster (--scheduler)")
        if cluster["performance_report"] is not None:
            _refuse_report(cluster["performance_report"], bool(chosen), given.get("overwrite"))
        command(*args, cluster=cluster, **given)

    return run


def _refuse_report(report: Path, has_cluster: bool, overwrite: Any) -> None:
    """Refuse what could not be written, before anything is computed."""
    if not has_cluster:
        raise click.UsageError(
            "--performance-report is Dask's report of a cluster: use it with --workers, "
            "--scheduler or --scheduler-file"
        )
    if not report.absolute().parent.is_dir():
        raise click.UsageError(
            f"--performance-report={report}; expected a file in a folder that exists"
        )
    if report.exists() and not overwrite:
        raise click.UsageError(
            f"--performance-report={report} exists; pass --overwrite, or another path"
        )
    if not importlib.util.find_spec("bokeh"):
        raise click.UsageError(
            "--performance-report needs bokeh, here and where the scheduler runs: "
            "pip install 'dasknmf[dashboard]'"
        )


@contextmanager
def connected(cluster: dict[str, Any], quiet: bool) -> Iterator[Any]:
    """Give the client that the options ask for, or None for threads."""
    with _client_of(cluster, quiet) as client:
        report = cluster.get("performance_report")
        with nullcontext() if report is None else _reported(report):
            yield client


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Write Dask's report, however the work ends; a fit does not fail because that does."""
    from distributed import performance_report

    report = performance_report(filename=str(path), mode="inline")  # to be read with no network
    report.__enter__()
    try:
        yield
    finally:
        try:
            report.__exit__(None, None, None)
        except Exception as error:
            click.echo(f"warning: {path} is not written: {error!r:.300}", err=True)


@contextmanager
def _client_of(cluster: dict[str, Any], quiet: bool) -> Iterator[Any]:
    workers, threads = cluster["workers"], cluster["threads"]
    if cluster["scheduler_file"] is not None:
        cluster["scheduler"] = _address_in(cluster["scheduler_file"])
    if cluster["scheduler"] is not None:
        if not cluster["insecure"]:
            refuse_plain(cluster["scheduler"])
        with _running_cluster(cluster["scheduler"], cluster["wait"]) as client:
            yield client
    elif workers is None:
        import dask

        with dask.config.set({} if threads is None else {"num_workers": threads}):
            yield None
    else:
        from distributed import Client, LocalCluster

        with (
            LocalCluster(
                n_workers=workers,
                threads_per_worker=threads or 1,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
            ) as local,
            Client(local) as client,
        ):
            if not quiet and importlib.util.find_spec("bokeh"):
                click.echo(f"dashboard: {client.dashboard_link}", err=True)
            yield client


def stays_private(address: str) -> bool:
    """Whether nobody else on the network can read or alter what goes to this address.

    A name other than ``localhost`` is not looked up: what it means may change before it is used.
    """
    scheme, _, rest = address.rpartition("://")
    scheme = scheme.lower() or "tcp"
    if scheme in ENCRYPTED or scheme in INSIDE:
        return True
    try:
        host = urlsplit(f"//{rest}").hostname or ""
        if host == "localhost":
            return True
        found = ip_address(host)
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def refuse_plain(address: str) -> None:
    """Raise a usage error where data, and code to run, would travel for all to read and alter."""
    if not stays_private(address):
        raise click.UsageError(
            f"the scheduler at {address} is on another machine, and the connection would not be "
            "encrypted: whoever can reach it could read the data and run code. Use TLS (an address "
            "tls://..., with distributed.comm.tls.ca-file and distributed.comm.tls.client.cert and "
            ".key in Dask's configuration), or say --insecure on a network that you trust. Nothing "
            "was read."
        )


def _address_in(file: Path) -> str:
    try:
        return str(json.loads(file.read_text())["address"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is no scheduler file; expected what `dask scheduler --scheduler-file` writes."
        ) from error


@contextmanager
def _running_cluster(address: str, wait: float) -> Iterator[Any]:
    from distributed import Client

    try:
        client = Client(address, timeout=wait)
    except OSError as error:
        raise OSError(
            f"no Dask scheduler answers at {address} within {wait:g} s. Check that it runs, and "
            "that this machine can reach it; --wait sets the time."
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=wait)
        except TimeoutError as error:
            raise TimeoutError(
                f"the scheduler at {address} has no workers after {wait:g} s. Start some, or wait "
                "longer for them: --wait SECONDS."
            ) from error
        yield client
