"""Command line: ``dasknmf fit | ranks | plan | transform | info | verify | watch``; ``dask nmf``.

Exit codes: 0 done, 1 error, 2 usage, 75 stopped after a commit: the same command goes on.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import click
from sklearn.exceptions import ConvergenceWarning

import dasknmf
from dasknmf import cli_plan, cli_ranks, cli_run, cli_submit, resuming
from dasknmf.cli_cluster import cluster_options, connected
from dasknmf.numerics.losses import NAMES as LOSSES
from dasknmf.numerics.solvers import ALIASES, available
from dasknmf.parallel.starts import NAMES as STARTS
from dasknmf.storage import matrices, models, places

USER_ERRORS = (ValueError, TypeError, RuntimeError, OSError, ImportError)
STOPPED = 75
SOLVERS = ("auto", *sorted(available()), *ALIASES)


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
        except dasknmf.ParameterError as error:
            raise click.UsageError(str(error)) from error
        except dasknmf.StoppedError as stopped:
            click.echo(str(stopped), err=True)
            raise
        except KeyboardInterrupt as stopped:
            if not stopped.args:  # at once, without a commit
                raise
            click.echo(str(stopped), err=True)
            raise click.exceptions.Exit(STOPPED) from stopped
        except USER_ERRORS as error:
            if click.get_current_context().find_root().params.get("debug"):
                raise
            raise click.ClickException(str(error) or repr(error)) from error

    return run


@click.group(name="nmf", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(dasknmf.__version__, prog_name="dasknmf")
@click.option("--debug", is_flag=True, help="Log decisions, and show where an error came from.")
def main(debug: bool) -> None:
    """Non-negative matrix factorisation V ≈ W H of matrices too big for one machine."""
    click.get_current_context().with_resource(_messages_on_stderr(debug))


@contextmanager
def _messages_on_stderr(debug: bool) -> Iterator[None]:
    """Log records and warnings as lines on stderr, for the length of a command."""
    logger, handler = logging.getLogger("dasknmf"), logging.StreamHandler(sys.stderr)
    level = logger.level
    with warnings.catch_warnings():
        for category in (ConvergenceWarning, dasknmf.FactorWarning):
            warnings.simplefilter("always", category)
        warnings.showwarning = _show_warning
        logger.setLevel("INFO" if debug else "WARNING")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


def _show_warning(message: Any, category: Any, *rest: Any, **options: Any) -> None:
    click.echo(f"warning: {message}", err=True)


def _fit_options(command: Callable[..., None]) -> Callable[..., None]:
    """What a fit and its plan have in common."""
    rank = click.IntRange(min=1)
    starts = click.Choice([name for name in STARTS if name != "custom"])
    options = [
        click.argument("matrix"),
        click.option("-k", "--n-components", type=rank, required=True, help="Rank."),
        click.option("--component", metavar="PATH", help="Path of the matrix within a Zarr group."),
        click.option("--solver", type=click.Choice(SOLVERS), default="auto", show_default=True),
        click.option("--loss", "beta_loss", type=_Loss(), default="frobenius", show_default=True),
        click.option("--init", type=starts, help="Start."),
        click.option("--n-init", type=rank, default=1, show_default=True, help="Starts."),
        click.option("--waves", type=rank, help="Updates of H a pass (default: chosen)."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@_fit_options
@click.option("-o", "--output", required=True, metavar="PATH", help="Zarr group for the model.")
@click.option(
    "--seed", "random_state", type=int, default=0, show_default=True, help="Seed of the start."
)
@click.option("--tol", type=float, default=1e-4, show_default=True, help="Change to stop at.")
@click.option("--max-iter", type=int, default=200, show_default=True, help="Passes at most.")
@click.option("--alpha-w", "alpha_W", type=float, default=0.0, help="Penalty of W.")
@click.option("--alpha-h", "alpha_H", type=float, help="Penalty of H (default: as W's).")
@click.option("--l1-ratio", type=float, default=0.0, help="0: L2 penalty, 1: L1.")
@click.option(
    "--missing", type=click.Choice(["nan", "unstored"]), help="Entries that count for nothing."
)
@click.option("--holdout", type=float, default=0.0, help="Share of entries hidden from the fit.")
@click.option("--weights", metavar="PATH", help="Matrix of MATRIX's shape: how much entries count.")
@click.option(
    "--compress/--no-compress",
    default=None,
    help="Passes on compressed rows between two reads (default: where that pays).",
)
@click.option("--overwrite", is_flag=True, help="Replace what is at the output path.")
@click.option("-q", "--quiet", is_flag=True, help="Warnings and errors only.")
@cli_run.run_options
@cluster_options
@_plain_errors
def fit(
    matrix: str,
    output: str,
    component: str | None,
    weights: str | None,
    overwrite: bool,
    quiet: bool,
    alpha_H: float | None,
    waves: int | None,
    compress: bool | None,
    cluster: dict[str, Any],
    **parameters: Any,
) -> None:
    """Factorise MATRIX: a Zarr array or group, .npy or .npz; save W and H."""
    run = parameters["checkpoint"]
    cli_run.refuse_inputs(output, *filter(None, (matrix, weights, run)))
    places.refuse_existing(output, overwrite)
    X = matrices.open_matrix(matrix, component)
    M = None if weights is None else matrices.open_matrix(weights)
    model = dasknmf.NMF(
        **parameters,
        alpha_H="same" if alpha_H is None else alpha_H,
        waves=waves or "auto",
        compress="auto" if compress is None else compress,
        verbose=int(not quiet),
    )
    with connected(cluster, quiet) as client:
        model.fit_transform(X, client=client, weights=M)
        model.save(output, overwrite=overwrite)
    if not quiet:
        _echo_summary(output, models.read(output))


@main.command()
@_fit_options
@click.option("--workers", type=click.IntRange(min=1), help="Workers (default: none, threads).")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of each worker, or in all.")
@click.option("--memory", type=cli_plan.Bytes(), help="Of each worker, or of this machine.")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON on standard output.")
@_plain_errors
def plan(
    matrix: str,
    component: str | None,
    workers: int | None,
    threads: int | None,
    memory: int | None,
    waves: int | None,
    as_json: bool,
    **parameters: Any,
) -> None:
    """Say what a fit of MATRIX would need: memory, reads, tasks, time. Nothing is fitted."""
    X = matrices.open_matrix(matrix, component)
    model = dasknmf.NMF(**parameters, waves=waves or "auto")
    given = {"workers": workers, "threads": threads, "memory": memory}
    slabs, found = cli_plan.plan_for(model, X, given)
    rates = cli_plan.probe(slabs, found)
    seconds = cli_plan.seconds_per_pass(found, rates)
    if as_json:
        click.echo(json.dumps(_finite(cli_plan.as_record(found, rates, seconds)), indent=2))
        return
    click.echo("\n".join(cli_plan.lines(found, seconds)))
    refusal = cli_plan.refusal(found)
    if refusal:
        click.echo(f"refused:     a fit would not start: {refusal}")


main.add_command(cli_run.verify_run)
main.add_command(cli_run.watch)
main.add_command(cli_submit.submit)
main.add_command(click.command(name="ranks")(_plain_errors(cli_ranks.ranks)))


@main.command()
@click.argument("model")
@click.argument("matrix")
@click.option("-o", "--output", required=True, metavar="PATH", help="Zarr array for W.")
@click.option("--component", metavar="PATH", help="Path of the matrix within a Zarr group.")
@click.option("--overwrite", is_flag=True, help="Replace what is at the output path.")
@click.option("-q", "--quiet", is_flag=True, help="Warnings and errors only.")
@cluster_options
@_plain_errors
def transform(
    model: str,
    matrix: str,
    output: str,
    component: str | None,
    overwrite: bool,
    quiet: bool,
    cluster: dict[str, Any],
) -> None:
    """Give W of MATRIX for the components of MODEL."""
    cli_run.refuse_inputs(output, model, matrix)
    places.refuse_existing(output, overwrite)
    fitted = dasknmf.load(model)
    if isinstance(fitted, dasknmf.RankStudy):
        raise click.UsageError(
            f"{model} is the run of a study, with a model for each rank. Give one of them: a "
            "group such as STUDY.zarr/rank_3 of what `ranks -o STUDY.zarr` wrote, or save it by "
            f"dasknmf.load({model!r}).model(3).save(...)"
        )
    X = matrices.open_matrix(matrix, component)
    with connected(cluster, quiet) as client:
        W = fitted.transform(X, client=client)
        matrices.save_matrix(W, output, ("sample", "component"), overwrite=overwrite)
    if not quiet:
        click.echo(f"W:           {output}\ndata:        {W.shape[0]} × {W.shape[1]}")


@main.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON on standard output.")
@_plain_errors
def info(model: str, as_json: bool) -> None:
    """Shapes, parameters, loss history and provenance of MODEL."""
    if not as_json and resuming.is_run(model):
        click.echo("\n".join(cli_run.told(model)))
        return
    record = models.read(model)
    factors = {"W": record.W, "H": record.H}
    shapes = {name: list(F.shape) for name, F in factors.items() if F is not None}
    history = {name: column.tolist() for name, column in record.history.items()}
    if as_json:
        everything = {
            "format": models.FORMAT,
            "version": models.VERSION,
            "shapes": shapes,
            "dtype": str(record.H.dtype),
            "parameters": record.parameters,
            "fitted": record.fitted,
            "provenance": record.provenance,
            "history": history,
        }
        click.echo(json.dumps(_finite(everything), indent=2, allow_nan=False))
        return
    _echo_summary(model, record)
    click.echo("factors:     " + ", ".join(f"{n} {a} × {b}" for n, (a, b) in shapes.items()))
    given = {k: v for k, v in record.parameters.items() if k not in ("verbose", "shuffle")}
    click.echo("parameters:  " + ", ".join(f"{k}={v!r}" for k, v in given.items()))
    origin = record.provenance
    click.echo(f"created:     {origin['created']}, Python {origin['python']}, {origin['machine']}")
    click.echo("versions:    " + ", ".join(f"{k} {v}" for k, v in origin["versions"].items()))
    click.echo(f"fingerprint: {record.fitted['fingerprint']}")
    click.echo("\n pass  reads            loss  relative error  seconds")
    columns = [history[n] for n in ("pass", "reads", "loss", "relative_error", "seconds")]
    for number, reads, loss, error, seconds in zip(*columns, strict=True):
        shown = f"{error:.6f}" if math.isfinite(error) else "-"
        click.echo(f"{number:5d}  {reads:5.2f}  {loss:14.8g}  {shown:>14}  {seconds:7.2f}")


def _finite(value: Any) -> Any:
    """The same with null for NaN and infinities, which JSON has no words for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _echo_summary(path: str, record: models.ModelRecord) -> None:
    fitted = record.fitted
    error = record.history["relative_error"][-1]
    relative = f", {error:.6f} of the norm of the data" if math.isfinite(error) else ""
    click.echo(f"model:       {path}")
    click.echo(f"data:        {fitted['n_samples']} × {record.H.shape[1]}")
    click.echo(
        f"fit:         {fitted['n_iter']} passes; {dasknmf.Outcome[fitted['outcome']].value}"
    )
    click.echo(
        f"error:       {fitted['reconstruction_err']:.9g} (sqrt of twice the loss){relative}"
    )
