"""``dasknmf submit``: a batch script for a fit, its sizes from the plan; nothing is fitted here.

The scripts are those of ``cluster_configs``, so what is written here is what a person would have
copied and changed, and is tested as that is.
"""

from __future__ import annotations

import math
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import dasknmf
from dasknmf import cli_plan
from dasknmf.numerics import memory, refusing
from dasknmf.numerics.memory import Machines, Plan, make_plan
from dasknmf.resuming import limit_of
from dasknmf.storage import matrices

GIB = 1 << 30
SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # GiB
MOST_NODES = 16  # that are asked for unless a number is given
PASSES = 50  # that a job without --time should have time for, twice
SPARE = 300  # seconds before the end of a job at which its fit stops, where nobody gives notice
GIVEN_BY_SCRIPT = (
    "checkpoint", "time_limit", "scheduler", "scheduler_file", "workers", "threads"
)  # fmt: skip
SUBMIT = {
    "slurm": ["sbatch"],
    "pbs": ["qsub", "-V"],
    "lsf": ["bsub"],  # reads its script from standard input
    "sge": ["qsub", "-V"],
}
FILES = {"slurm": "scheduler_file.sbatch", "pbs": "fit.pbs", "lsf": "fit.lsf", "sge": "fit.sge"}
PREFIX = {"slurm": "#SBATCH", "pbs": "#PBS", "lsf": "#BSUB", "sge": "#$"}


@dataclass(frozen=True)
class Sizes:
    """Of a job: ``memory`` and ``reserved`` in GiB of each node, ``seconds`` of its time limit."""

    nodes: int
    cores: int
    memory: int
    reserved: int
    seconds: int

    @property
    def clock(self) -> str:
        """Hours:minutes:seconds."""
        return f"{self.seconds // 3600:02d}:{self.seconds // 60 % 60:02d}:{self.seconds % 60:02d}"


class Duration(click.ParamType):
    """A time such as ``90min`` or ``12h``, in seconds."""

    name = "TIME"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Give the seconds: at least ten minutes, in which a cluster starts and a fit stops."""
        try:
            seconds = limit_of(value) or 0
        except dasknmf.ParameterError:
            self.fail(f"{value!r} is no time; expected one such as 90min or 12h.", param, ctx)
        if seconds < 600:
            self.fail(f"{value!r} is too short; expected at least 10min.", param, ctx)
        return int(seconds)


@click.command(context_settings={"ignore_unknown_options": False})
@click.option("--system", type=click.Choice(sorted(SUBMIT)), required=True, help="Batch system.")
@click.option("--nodes", type=click.IntRange(min=1), help="Default: as many as a wave can use.")
@click.option("--cores", type=click.IntRange(min=1), default=8, show_default=True, help="A node.")
@click.option("--memory", type=cli_plan.Bytes(), help="Of a node. Default: what the plan needs.")
@click.option(
    "--time", "seconds", type=Duration(), help="Of a job. Default: by the plan, 1 to 12h."
)
@click.option("--name", default="nmf", show_default=True, help="Of the job, NAME.zarr, NAME.run.")
@click.option("--directive", multiple=True, help="For the system, such as --account=x. Repeatable.")
@click.option("--now", is_flag=True, help="Submit the script, too.")
@click.option("--overwrite", is_flag=True, help="Replace a script of this name.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- fit ...")
def submit(
    system: str,
    nodes: int | None,
    cores: int,
    memory: int | None,
    seconds: int | None,
    name: str,
    directive: tuple[str, ...],
    now: bool,
    overwrite: bool,
    command: tuple[str, ...],
) -> None:
    """Write a batch script that fits, stops in time, and goes on; sizes come from the plan.

    Example: dasknmf submit --system slurm --nodes 4 --now -- fit V.zarr -k 50
    """
    if not re.fullmatch(r"[A-Za-z][\w.-]*", name):
        raise click.UsageError(
            f"--name {name!r}: expected a letter, then letters, digits, _ . or -"
        )
    fit = _parsed(command)
    script = Path(f"{name}.{FILES[system].rsplit('.', 1)[1]}")
    if script.exists() and not overwrite:
        raise click.UsageError(f"{script} exists; use --overwrite, or another --name")
    with _one_line():
        sizes, plan = _sizes(fit, (nodes, cores, memory, seconds))
        text = filled(system, sizes, name, fit["matrix"], _options(command, fit["matrix"]))
        script.write_text(with_directives(text, system, directive))
    where = f"{sizes.nodes} × {sizes.cores} cores, {sizes.memory} GiB each, {sizes.clock}"
    kept = "V stays in memory" if plan.resident else "V is read in every pass"
    click.echo(f"script:      {script}\njob:         {where}; {kept}")
    if now:
        _submit(system, script)
    else:
        shown = shlex.join(SUBMIT[system]) + (" < " if system == "lsf" else " ") + str(script)
        click.echo(f"submit with: {shown}")


def _parsed(command: tuple[str, ...]) -> dict[str, Any]:
    """What the options of ``dasknmf fit`` say; refuse those that the script itself gives."""
    if command[0] != "fit":
        raise click.UsageError(f"expected `-- fit MATRIX ...`, got `-- {shlex.join(command)}`")
    fit = click.get_current_context().find_root().command.commands["fit"]  # type: ignore[attr-defined]
    unset = "\0"
    context = fit.make_context("dasknmf fit", [*command[1:], "--output", unset])
    given = {**context.params, "output": None}
    known = context.params.get("cluster") or {}
    chosen = [n for n in GIVEN_BY_SCRIPT if {**known, **given}.get(n) is not None]
    if chosen or context.params["output"] != unset or _names_output(command):
        chosen = chosen or ["output"]
        raise click.UsageError(
            f"--{chosen[0].replace('_', '-')} is given by the script; results are called by --name"
        )
    return given


def _names_output(command: tuple[str, ...]) -> bool:
    return any(word == "-o" or word.split("=")[0] == "--output" for word in command)


def _options(command: tuple[str, ...], matrix: str) -> list[str]:
    words = list(command[1:])
    words.remove(matrix)
    return words


@contextmanager
def _one_line() -> Iterator[None]:
    """What the library raises, as one line and exit code 1."""
    try:
        yield
    except dasknmf.ParameterError as error:
        raise click.UsageError(str(error)) from error
    except (ValueError, TypeError, RuntimeError, OSError, ImportError, MemoryError) as error:
        raise click.ClickException(str(error) or repr(error)) from error


def _sizes(fit: dict[str, Any], given: tuple[int | None, ...]) -> tuple[Sizes, Plan]:
    """Of a job in which the fit runs; what is given is held against the plan."""
    nodes, cores, limit, seconds = given
    assert cores is not None
    X = matrices.open_matrix(fit["matrix"], fit["component"])
    names = ("n_components", "solver", "beta_loss", "init", "n_init")
    model = dasknmf.NMF(**{n: fit[n] for n in names}, waves=fit["waves"] or "auto")
    slabs, plan = cli_plan.plan_for(model, X, {"workers": 1, "threads": cores, "memory": None})
    nodes = nodes or min(MOST_NODES, -(-plan.wave_slabs // cores))
    reserved = max(2, -(-plan.client_peak // GIB))
    tried = SIZES if limit is None else (max(1, limit // GIB - reserved),)
    for size in tried:
        machines = Machines(nodes, cores, size * GIB, reserved * GIB)
        plan = make_plan(plan.matrix, plan.job, machines)
        enough = plan.worker_peak <= memory.PAUSE * size * GIB
        if cli_plan.refusal(plan) is None and (enough or limit is not None):
            break
    else:
        refusing.refuse(plan)
    if seconds is None:
        spent = sum(cli_plan.seconds_per_pass(plan, cli_plan.probe(slabs, plan)).values())
        wanted = 900 + 2 * min(fit["max_iter"], PASSES) * spent
        seconds = 1800 * math.ceil(min(max(wanted, 3600), 12 * 3600) / 1800)
    return Sizes(nodes, cores, size + reserved, reserved, seconds), plan


def template(system: str) -> str:
    """The script of ``cluster_configs``: within the package, or beside it in a checkout."""
    for folder in (Path(__file__).parent, Path(__file__).parents[1]):
        path = folder / "cluster_configs" / system / FILES[system]
        if path.exists():
            return path.read_text()
    raise FileNotFoundError(f"cluster_configs/{system}/{FILES[system]} is not installed")


def filled(system: str, sizes: Sizes, name: str, matrix: str, options: list[str]) -> str:
    """The script with its sizes, its name, its matrix and its options; its comments stay."""
    slots, limit = sizes.nodes * sizes.cores, f"{(sizes.seconds - SPARE) // 60}min"
    script = f"{name}.{FILES[system].rsplit('.', 1)[1]}"
    changes = {
        "slurm": {
            "--job-name=nmf": f"--job-name={name}",
            "--nodes=2": f"--nodes={sizes.nodes}",
            "--cpus-per-task=8": f"--cpus-per-task={sizes.cores}",
            "--mem=16G": f"--mem={sizes.memory}G",
            "--time=01:00:00": f"--time={sizes.clock}",
            "RESERVED=2048": f"RESERVED={1024 * sizes.reserved}",
        },
        "pbs": {
            "-N nmf": f"-N {name}",
            "select=2:ncpus=8:mem=16gb": (
                f"select={sizes.nodes}:ncpus={sizes.cores}:mem={sizes.memory}gb"
            ),
            "walltime=01:00:00": f"walltime={sizes.clock}",
        },
        "lsf": {
            "-J nmf": f"-J {name}",
            "-o nmf.log": f"-o {name}.log",
            "-n 16": f"-n {slots}",
            "ptile=8": f"ptile={sizes.cores}",
            "mem=16GB": f"mem={sizes.memory}GB",
            "-W 01:00": f"-W {sizes.clock[:-3]}",
        },
        "sge": {
            "-N nmf": f"-N {name}",
            "-o nmf.log": f"-o {name}.log",
            "-pe mpi 16": f"-pe mpi {slots}",
            "h_rt=01:00:00": f"h_rt={sizes.clock}",
        },
    }[system]
    changes |= {"MATRIX=V.zarr": f"MATRIX={shlex.quote(matrix)}"}
    changes |= {"FIT=(-k 16)": f"FIT=({shlex.join(options)})"}
    if system != "slurm":
        changes |= {
            "CORES=8": f"CORES={sizes.cores}",
            "MEMORY=14GiB": f"MEMORY={sizes.memory - sizes.reserved}GiB",
            "LIMIT=55min": f"LIMIT={limit}",
        }
    text = template(system).replace(FILES[system], script)
    for old, new in changes.items():
        pattern = rf"(?<=[\s\"\[,]){re.escape(old)}(?=[\s\"\]])"
        text, count = re.subn(pattern, new.replace("\\", r"\\"), text)
        if count != 1:
            raise RuntimeError(f"{FILES[system]} has {count} times {old!r}, expected once")
    return text


def with_directives(text: str, system: str, directives: tuple[str, ...]) -> str:
    """Lines for the batch system, before those that the script has."""
    lines = "".join(f"{PREFIX[system]} {directive}\n" for directive in directives)
    head, mark, rest = text.partition(f"\n{PREFIX[system]} ")
    return f"{head}\n{lines}{mark[1:]}{rest}"


def _submit(system: str, script: Path) -> None:
    command = SUBMIT[system]
    try:
        if system == "lsf":
            with script.open() as lines:
                done = subprocess.run(command, stdin=lines, capture_output=True, text=True)
        else:
            done = subprocess.run([*command, str(script)], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise click.ClickException(
            f"{command[0]} is not here; submit {script} where it is. The script is written."
        ) from error
    if done.returncode:
        raise click.ClickException(f"{command[0]} refused {script}: {done.stderr.strip()}")
    click.echo(f"submitted:   {done.stdout.strip()}")
