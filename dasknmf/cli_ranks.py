"""``dasknmf ranks``: a study of ranks on the command line."""

from __future__ import annotations

import math
import re
from typing import Any

import click

import dasknmf
from dasknmf import cli_run
from dasknmf.cli_cluster import cluster_options, connected
from dasknmf.storage import matrices, places

LOSSES = ("frobenius", "kullback-leibler")


class _Folds(click.ParamType):
    """``2x2``: groups of rows and of columns."""

    name = "RxC"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """Give both numbers; the study itself refuses what makes no sense."""
        if not isinstance(value, str):
            return tuple(value)
        if not re.fullmatch(r"\d+x\d+", value):
            self.fail(f"{value!r}; expected such as 2x2 or 3x4", param, ctx)
        return tuple(map(int, value.split("x")))


class _Ranks(click.ParamType):
    """``2:12`` (both ends are in), ``2:12:2``, or ``5,8,13``."""

    name = "A:B[:STEP]|A,B,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """Give the ranks; the study itself refuses what makes no sense."""
        if not isinstance(value, str):
            return tuple(value)
        if re.fullmatch(r"\d+:\d+(:\d+)?", value):
            first, last, *step = map(int, value.split(":"))
            if last < first or step == [0]:
                self.fail(f"{value!r} has no rank; expected such as 2:12 or 2:20:2", param, ctx)
            return tuple(range(first, last + 1, *step))
        if re.fullmatch(r"\d+(,\d+)*", value):
            return tuple(map(int, value.split(",")))
        self.fail(f"{value!r}; expected such as 2:12, 2:20:2 or 5,8,13", param, ctx)


@click.argument("matrix")
@click.option("--ranks", "of", type=_Ranks(), required=True, help="Such as 2:12, both ends in.")
@click.option("--n-init", type=click.IntRange(min=1), default=10, show_default=True,
              help="Restarts of each rank.")  # fmt: skip
@click.option("-o", "--output", metavar="PATH", help="Zarr group for the table and the models.")
@click.option("--report", metavar="PATH", help="HTML file for the report.")
@click.option("--component", metavar="PATH", help="Path of the matrix within a Zarr group.")
@click.option("--loss", "beta_loss", type=click.Choice(LOSSES), default="frobenius",
              show_default=True)  # fmt: skip
@click.option("--holdout", type=float, default=0.05, show_default=True,
              help="Share of the entries hidden from the fits.")  # fmt: skip
@click.option("--folds", type=_Folds(), help="Hold out blocks of rows and columns instead: 2x2.")
@click.option("--weights", metavar="PATH", help="Matrix of MATRIX's shape: how much entries count.")
@click.option("--seed", "random_state", type=int, default=0, show_default=True, help="Of it all.")
@click.option("--tol", type=float, default=1e-4, show_default=True, help="Change to stop at.")
@click.option("--max-iter", type=int, default=200, show_default=True, help="Passes at most.")
@click.option("--overwrite", is_flag=True, help="Replace what is at the output paths.")
@click.option("-q", "--quiet", is_flag=True, help="Warnings and errors only.")
@cli_run.run_options
@cluster_options
def ranks(  # noqa: PLR0913 - click passes every option by name
    matrix: str,
    of: tuple[int, ...],
    output: str | None,
    report: str | None,
    component: str | None,
    weights: str | None,
    overwrite: bool,
    quiet: bool,
    cluster: dict[str, Any],
    **parameters: Any,
) -> None:
    """Fit MATRIX at many ranks in the same reads, and say which rank to take and why."""
    for path in filter(None, (output, report)):
        cli_run.refuse_inputs(path, *filter(None, (matrix, weights, parameters["checkpoint"])))
    if output is not None:
        places.refuse_existing(output, overwrite)
    if report is not None:
        _refuse_report(report, overwrite)
    X = matrices.open_matrix(matrix, component)
    M = None if weights is None else matrices.open_matrix(weights)
    study = dasknmf.RankStudy(of, **parameters, verbose=int(not quiet))
    with connected(cluster, quiet) as client:
        study.fit(X, client=client, weights=M)
    if output is not None:
        study.save(output, overwrite=overwrite)
    if report is not None:
        study.report(report, overwrite=overwrite)
    if not quiet:
        _echo(study)


def _refuse_report(report: str, overwrite: bool) -> None:
    """Refuse a path, or a lack of pictures, before anything is fitted."""
    import dasknmf.plotting  # noqa: F401 - says what to install

    path = places.local_path(report)
    if path is None or path.is_dir() or not path.absolute().parent.is_dir():
        raise click.UsageError(f"--report={report}; expected a file in a folder that exists")
    if path.exists() and not overwrite:
        raise click.UsageError(f"--report={report} exists; pass --overwrite, or another path")


def _echo(study: Any) -> None:
    """The table, the chosen rank marked, and the rule."""
    table = study.table()
    names = table.dtype.names[1:]
    click.echo("  rank " + " ".join(f"{name:>{max(len(name), 9)}}" for name in names))
    for row in table:
        mark = "*" if row["rank"] == study.best_rank_ else " "
        cells = (
            f"{row[n]:{max(len(n), 9)}.5g}" if math.isfinite(row[n]) else "-".rjust(max(len(n), 9))
            for n in names
        )
        click.echo(f"{mark} {row['rank']:4d} " + " ".join(cells))
    click.echo(f"{study.rule_}; {study.reads_:.4g} reads of the data")
