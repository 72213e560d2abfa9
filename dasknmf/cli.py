"""The command line: ``dasknmf fit | transform | info``, also as ``dask nmf ...``.

Exit codes: 0 done, 1 error, 2 usage.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import click
import numpy as np

import dasknmf
from dasknmf.numerics.losses import NAMES as LOSSES
from dasknmf.parallel.starts import NAMES as STARTS
from dasknmf.storage import matrices, models, places

USER_ERRORS = (ValueError, TypeError, RuntimeError, OSError)


class _Loss(click.ParamType):
    """A name or an exponent."""

    name = "NAME|BETA"

    def convert(self, value: Any, param: Any, ctx: Any) -> str | float:
        """Give the name, or the number."""
        if value in LOSSES or isinstance(value, float):
            return value
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is neither one of {sorted(LOSSES)} nor a number", param, ctx)


def _plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what the library raises into one line and exit code 1; --debug shows where."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except USER_ERRORS as error:
            if click.get_current_context().find_root().params.get("debug"):
                raise
            raise click.ClickException(str(error)) from error

    return run


def _cluster_options(command: Callable[..., None]) -> Callable[..., None]:
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
            type=click.Path(exists=True, dir_okay=False),
            help="The same, by the file that the scheduler wrote.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@contextmanager
def _cluster(
    workers: int | None, threads: int | None, scheduler: str | None, scheduler_file: str | None
) -> Iterator[Any]:
    """Give the client that the options ask for, or None for threads."""
    if sum(choice is not None for choice in (workers, scheduler, scheduler_file)) > 1:
        raise click.UsageError("use one of --workers, --scheduler and --scheduler-file")
    if workers is None and scheduler is None and scheduler_file is None:
        import dask

        with dask.config.set({} if threads is None else {"num_workers": threads}):
            yield None
        return
    if workers is None and threads is not None:
        raise click.UsageError("--threads is for workers started here, not for a running cluster")
    from distributed import Client, LocalCluster

    if workers is None:
        with Client(scheduler, scheduler_file=scheduler_file) as client:
            yield client
        return
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=threads or 1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        click.echo(f"dashboard: {client.dashboard_link}", err=True)
        yield client


@click.group(name="nmf", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(dasknmf.__version__, prog_name="dasknmf")
@click.option("--debug", is_flag=True, help="Log decisions, and show where an error came from.")
def main(debug: bool) -> None:
    """Non-negative matrix factorisation V ≈ W H of matrices too big for one machine."""
    logger = logging.getLogger("dasknmf")
    logger.setLevel("INFO" if debug else "WARNING")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
    warnings.showwarning = _show_warning


def _show_warning(message: Any, category: Any, *rest: Any, **options: Any) -> None:
    click.echo(f"warning: {message}", err=True)


@main.command()
@click.argument("matrix")
@click.option("-k", "--n-components", type=click.IntRange(min=1), required=True, help="Rank.")
@click.option("-o", "--output", required=True, metavar="PATH", help="Zarr group for the model.")
@click.option("--component", metavar="PATH", help="Path of the matrix within a Zarr group.")
@click.option("--solver", default="auto", show_default=True, metavar="NAME")
@click.option("--loss", "beta_loss", type=_Loss(), default="frobenius", show_default=True)
@click.option("--init", type=click.Choice([n for n in STARTS if n != "custom"]), help="Start.")
@click.option("--seed", "random_state", type=int, help="Seed of the start.")
@click.option("--tol", type=float, default=1e-4, show_default=True, help="Change to stop at.")
@click.option("--max-iter", type=int, default=200, show_default=True, help="Passes at most.")
@click.option("--alpha-w", "alpha_W", type=float, default=0.0, help="Penalty of W.")
@click.option("--alpha-h", "alpha_H", type=float, help="Penalty of H (default: as W's).")
@click.option("--l1-ratio", type=float, default=0.0, help="0: L2 penalty, 1: L1.")
@click.option("--overwrite", is_flag=True, help="Replace what is at the output path.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar, no summary.")
@_cluster_options
@_plain_errors
def fit(
    matrix: str,
    output: str,
    component: str | None,
    overwrite: bool,
    quiet: bool,
    alpha_H: float | None,
    workers: int | None,
    threads: int | None,
    scheduler: str | None,
    scheduler_file: str | None,
    **parameters: Any,
) -> None:
    """Factorise MATRIX: a Zarr array or group, .npy or .npz; save W and H."""
    places.refuse_existing(output, overwrite)
    X = matrices.open_matrix(matrix, component)
    model = dasknmf.NMF(
        **parameters, alpha_H="same" if alpha_H is None else alpha_H, verbose=not quiet
    )
    with _cluster(workers, threads, scheduler, scheduler_file) as client:
        model.fit_transform(X, client=client)
        model.save(output, overwrite=overwrite)
    if not quiet:
        _echo_summary(output, models.about(output)[1], X.shape)


@main.command()
@click.argument("model")
@click.argument("matrix")
@click.option("-o", "--output", required=True, metavar="PATH", help="Zarr array for W.")
@click.option("--component", metavar="PATH", help="Path of the matrix within a Zarr group.")
@click.option("--overwrite", is_flag=True, help="Replace what is at the output path.")
@_cluster_options
@_plain_errors
def transform(
    model: str,
    matrix: str,
    output: str,
    component: str | None,
    overwrite: bool,
    workers: int | None,
    threads: int | None,
    scheduler: str | None,
    scheduler_file: str | None,
) -> None:
    """Give W of MATRIX for the components of MODEL."""
    places.refuse_existing(output, overwrite)
    fitted = dasknmf.load(model)
    X = matrices.open_matrix(matrix, component)
    with _cluster(workers, threads, scheduler, scheduler_file) as client:
        W = fitted.transform(X, client=client)
        matrices.save_matrix(W, output, ("sample", "component"), overwrite=overwrite)
    click.echo(f"W {W.shape[0]} × {W.shape[1]} -> {output}", err=True)


@main.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON on standard output.")
@_plain_errors
def info(model: str, as_json: bool) -> None:
    """Shapes, parameters, loss history and provenance of MODEL."""
    group, about = models.about(model)
    history = {
        name.removeprefix(models.PREFIX): np.asarray(array[...]).tolist()
        for name, array in group.arrays()
        if name.startswith(models.PREFIX)
    }
    shapes = {name: list(group[name].shape) for name in ("W", "H") if name in group}
    if as_json:
        click.echo(json.dumps({**about, "shapes": shapes, "history": history}, indent=2))
        return
    _echo_summary(model, about, (about["fitted"]["n_samples"], shapes["H"][1]))
    click.echo("factors:     " + ", ".join(f"{n} {a} × {b}" for n, (a, b) in shapes.items()))
    given = {k: v for k, v in about["parameters"].items() if k not in ("verbose", "shuffle")}
    click.echo("parameters:  " + ", ".join(f"{k}={v!r}" for k, v in given.items()))
    origin = about["provenance"]
    click.echo(f"created:     {origin['created']}, Python {origin['python']}, {origin['machine']}")
    click.echo("versions:    " + ", ".join(f"{k} {v}" for k, v in origin["versions"].items()))
    click.echo(f"fingerprint: {about['fitted']['fingerprint']}")
    click.echo("\n pass  reads            loss  relative error  seconds")
    columns = [history[n] for n in ("pass", "reads", "loss", "relative_error", "seconds")]
    for number, reads, loss, error, seconds in zip(*columns, strict=True):
        click.echo(f"{number:5d}  {reads:5d}  {loss:14.8g}  {error:14.6f}  {seconds:7.2f}")


def _echo_summary(path: str, about: dict[str, Any], shape: tuple[int, int]) -> None:
    fitted = about["fitted"]
    click.echo(f"model:       {path}")
    click.echo(f"data:        {shape[0]} × {shape[1]}")
    click.echo(
        f"fit:         {fitted['n_iter']} passes; {dasknmf.Outcome[fitted['outcome']].value}"
    )
    click.echo(f"error:       {fitted['reconstruction_err']:.9g}  (sqrt of twice the loss)")
