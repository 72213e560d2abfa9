"""Where a command runs: threads, workers started here, or a running cluster."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click


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
            "--wait",
            type=click.FloatRange(min=0, min_open=True),
            default=30,
            show_default=True,
            metavar="SECONDS",
            help="For a running cluster to answer, and then for its first worker.",
        ),
    ]
    for option in reversed(options):
        command = option(command)

    @wraps(command)
    def run(*args: Any, **given: Any) -> None:
        names = ("workers", "threads", "scheduler", "scheduler_file", "wait")
        cluster = {name: given.pop(name) for name in names}
        chosen = [n for n in ("workers", "scheduler", "scheduler_file") if cluster[n] is not None]
        if len(chosen) > 1:
            raise click.UsageError("use one of --workers, --scheduler and --scheduler-file")
        if cluster["threads"] is not None and chosen not in ([], ["workers"]):
            raise click.UsageError("--threads is for workers started here, not a running cluster")
        command(*args, cluster=cluster, **given)

    return run


@contextmanager
def connected(cluster: dict[str, Any], quiet: bool) -> Iterator[Any]:
    """Give the client that the options ask for, or None for threads."""
    workers, threads = cluster["workers"], cluster["threads"]
    if cluster["scheduler_file"] is not None:
        cluster["scheduler"] = _address_in(cluster["scheduler_file"])
    if cluster["scheduler"] is not None:
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
