"""Runs on the command line: their options for ``fit``, and ``dasknmf verify`` and ``watch``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np

from dasknmf.history import History
from dasknmf.numerics.errors import MissingError, StoreError
from dasknmf.numerics.stopping import Outcome
from dasknmf.packing import Packed, unpack
from dasknmf.snapshots import Shown
from dasknmf.state_study import StudyShown
from dasknmf.storage import places
from dasknmf.storage.manifests import Commit
from dasknmf.storage.objects import open_objects
from dasknmf.storage.runs import RESUME
from dasknmf.storage.survey import RunStatus, status, verify

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60  # characters of the loss curve
OPTIONS = ("checkpoint", "checkpoint_every", "resume", "takeover", "time_limit")


def refuse_inputs(output: str, *inputs: str) -> None:
    """Refuse to replace what is still to be read."""
    target = places.local_path(output)
    for source in inputs:
        path = places.local_path(source)
        if target is None or path is None:
            same = output == source
        else:
            same = path.is_relative_to(target) or target.is_relative_to(path)
        if same:
            raise click.UsageError(
                f"the output {output} would replace the input {source}, or lie inside the input"
            )


def _every(context: Any, parameter: Any, value: str) -> int | str:
    return int(value) if value.isdigit() else value


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of a fit that keeps checkpoints."""
    options = [
        click.option(
            "--checkpoint",
            metavar="PATH",
            help="Folder or URL of a run: the same command again goes on from its last commit.",
        ),
        click.option(
            "--checkpoint-every",
            default="1",
            show_default=True,
            metavar="PASSES|TIME",
            callback=_every,
            help="Passes, or a time such as 10min, between commits.",
        ),
        click.option("--resume", type=click.Choice(RESUME), default="auto", show_default=True),
        click.option("--takeover", is_flag=True, help="Go on although another process holds it."),
        click.option("--time-limit", metavar="TIME", help="Commit and exit 75 before, e.g. 55min."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command(name="verify")
@click.argument("run")
def verify_run(run: str) -> None:
    """Check every commit and every object of RUN; exit code 1 if anything is wrong."""
    try:
        objects = open_objects(run)
        commits = status(objects).commits
        found = verify(objects)
    except (StoreError, OSError) as error:
        raise _explained(error) from error
    for finding in found:
        click.echo(str(finding))
    entries = {entry.key: entry.size for commit in commits for entry in commit.entries}
    size = sum(entries.values()) / 1e6
    click.echo(f"{len(commits)} commits, {len(entries)} objects, {size:.1f} MB: ", nl=False)
    click.echo(f"{len(found)} faults" if found else "all good")
    if found:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("run")
@click.option("--once", is_flag=True, help="Say how it is now, and end.")
@click.option(
    "--interval", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help="Seconds."
)
def watch(run: str, once: bool, interval: float) -> None:
    """Loss curve, pass, time left and last commit of RUN, whether it lives or not."""
    told = -1
    try:
        objects = open_objects(run)
        while True:
            found = status(objects)
            newest = newest_of(found)
            if (0 if newest is None else newest.number) != told:
                told = 0 if newest is None else newest.number
                click.echo("\n".join(lines(found, newest)))
            if once or not found.epochs or found.epochs[-1].state != "alive":
                return
            time.sleep(interval)
    except KeyboardInterrupt:
        return
    except (StoreError, OSError) as error:
        raise _explained(error) from error


def _explained(error: Exception) -> click.ClickException:
    """What went wrong, and what a run is where there is none."""
    if isinstance(error, MissingError):
        return click.ClickException(
            f"{error} Expected a run, as `fit` or `ranks --checkpoint RUN` begins it."
        )
    return click.ClickException(str(error))


def told(run: str) -> list[str]:
    """How a run is now."""
    found = status(open_objects(run))
    return lines(found, newest_of(found))


def newest_of(found: RunStatus) -> Commit | None:
    """The newest commit that holds a state."""
    there = [commit for commit in found.commits if commit.meta is not None]
    return max(there, key=lambda commit: commit.number, default=None)


def lines(found: RunStatus, newest: Commit | None) -> list[str]:
    """What there is to say."""
    said = [f"run:     {found.id}, started {len(found.epochs)} times; {_life(found)}"]
    problem = found.problem
    shape = " × ".join(map(str, problem.get("shape", ())))
    said.append(f"problem: {shape}, {_what(problem)}, {problem.get('solver')}")
    if newest is None:
        return [*said, "commits: none yet"]
    shown = shown_of(newest)
    about: Any = newest.meta
    limit = about["study" if "study" in about else "model"]["parameters"].get("max_iter")
    said.append(f"commit:  {newest.number} of {newest.created}, pass {shown.number} of {limit}")
    history = shown.history
    if not history.loss:
        return [*said, "loss:    no pass has ended yet"]
    said += _ranks(shown) if isinstance(shown, StudyShown) else _loss(history)
    if shown.outcome.name == "UNFINISHED":
        said.append(f"left:    {_left(shown, limit)}")
    else:
        said.append(f"ended:   {shown.outcome.value}")
    said += [f"damaged: commit {number}: {what}" for number, what in found.damaged.items()]
    return said


def _what(problem: dict[str, Any]) -> str:
    ranks = problem.get("ranks")
    if ranks is None:
        return f"k={problem.get('n_components')}"
    named = ", ".join(map(str, ranks)) if len(ranks) < 4 else f"{ranks[0]} to {ranks[-1]}"
    return f"{len(ranks)} ranks ({named}) × {problem.get('n_init')} restarts"


def _loss(history: History) -> list[str]:
    error = history.relative_error[-1]
    relative = f", {error:.6f} of the norm of the data" if np.isfinite(error) else ""
    return [
        f"loss:    {history.loss[-1]:.9g}{relative}, after {history.reads[-1]:.2f} reads",
        f"         {curve(history.loss)}",
    ]


def _ranks(shown: StudyShown) -> list[str]:
    """A line a rank: passes and loss of its best restart."""
    said = [
        f"reads:   {shown.history.reads[-1]:.2f}",
        "ranks:   rank  go on      passes  loss of the best  hold-out error",
    ]
    for rank in shown.ranks:
        on = f"{rank.running} of {rank.restarts}"
        held = f"{rank.held:14.6g}" if np.isfinite(rank.held) else f"{'-':>14}"
        passes = len(rank.losses) - (shown.outcome is not Outcome.UNFINISHED)  # the last is a read
        said.append(
            f"         {rank.rank:4d}  {on:10}  {passes:5d}  {rank.losses[-1]:16.9g}  {held}"
            f"  {curve(rank.losses)}"
        )
    return said


def shown_of(commit: Commit) -> Shown:
    """History and outcome that a commit tells."""
    meta: Any = commit.meta
    shown = unpack(Packed(meta.get("shown")))
    if not isinstance(shown, Shown):
        raise StoreError(f"commit {commit.number} holds no history")
    return shown


def _life(found: RunStatus) -> str:
    if not found.epochs:
        return "never begun"
    last = found.epochs[-1]
    heard = "" if last.age is None else f", last sign of life {last.age:.0f} s ago"
    return f"{last.state}: process {last.pid} on {last.host} since {last.since}{heard}"


def _left(shown: Shown, limit: Any) -> str:
    """An upper bound: the passes that may still come, at the pace of the last ones."""
    seconds = shown.history.seconds[-5:]
    if len(seconds) < 2 or type(limit) is not int:
        return "unknown"
    pace = (seconds[-1] - seconds[0]) / (len(seconds) - 1)
    most = (limit - len(shown.history.loss)) * pace
    return f"{most:.0f} s at most ({pace:.2g} s a pass), less if tol is reached before"


def curve(losses: list[float]) -> str:
    """A line of bars: how far the loss still was above its last value, on a logarithmic scale."""
    values = np.array(losses[-WIDTH:], dtype=float)
    above = values - values.min()
    least = above[above > 0].min(initial=np.inf)
    if not np.isfinite(least):
        return BARS[0] * len(values)
    scaled = np.log(np.maximum(above, least / 2) / (least / 2))
    places = np.round(scaled / scaled.max() * (len(BARS) - 1)).astype(int)
    return "".join(BARS[i] for i in places)
