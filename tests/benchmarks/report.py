"""What a case gives, as a Markdown table and as JSON, and what machine it was measured on."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

PACKAGES = (
    "dasknmf", "numpy", "scipy", "scikit-learn", "dask", "distributed", "zarr", "numba",
    "threadpoolctl",
)  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """Repetitions of one number. ``inf`` stands for "not reached"."""

    values: tuple[float, ...]

    @staticmethod
    def of(values: Iterable[float]) -> Spread:
        """Any numbers."""
        return Spread(tuple(float(v) for v in values))

    @property
    def median(self) -> float:
        """The number to report."""
        return median(self.values)

    def __str__(self) -> str:
        if len(set(self.values)) == 1:
            return number(self.values[0])
        low, high = number(min(self.values)), number(max(self.values))
        return f"{number(self.median)} ({low} to {high})"

    def as_json(self) -> dict[str, Any]:
        """Strict JSON knows no infinity: null."""
        values = [v if math.isfinite(v) else None for v in self.values]
        middle = self.median if math.isfinite(self.median) else None
        return {"median": middle, "values": values}


def number(value: float) -> str:
    """Three digits of what is small, whole numbers of what is large."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass
class Row:
    """One line of the table.

    value
        What is compared with the target: a ratio of times, reads, ... ; None for a case skipped.
    target
        Such as ``(">=", 10)``; None where there is none.
    ours, peer
        What the ratio was formed from, in ``unit``.
    """

    what: str
    value: Spread | None = None
    target: tuple[str, float] | None = None
    ours: Spread | None = None
    peer: Spread | None = None
    unit: str = "s"
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    case: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median meets the target; None where either is missing."""
        if self.value is None or self.target is None:
            return None
        relation, bound = self.target
        return self.value.median >= bound if relation == ">=" else self.value.median <= bound

    def cells(self) -> list[str]:
        """One line of the table."""
        verdict = {True: "yes", False: "**no**", None: ""}[self.met]
        target = "" if self.target is None else f"{self.target[0]} {self.target[1]:g}"
        sides = [f"{side} {self.unit}".strip() if side else "" for side in (self.ours, self.peer)]
        value = "" if self.value is None else str(self.value)
        return [self.case, self.what, value, target, verdict, *sides, self.note]

    def as_json(self) -> dict[str, Any]:
        """Everything, the single repetitions included."""
        spreads = {"value": self.value, "ours": self.ours, "peer": self.peer}
        return {
            "case": self.case,
            "what": self.what,
            **{name: s if s is None else s.as_json() for name, s in spreads.items()},
            "unit": self.unit,
            "target": None if self.target is None else list(self.target),
            "met": self.met,
            "note": self.note,
            "details": finite(self.details),
        }


def finite(value: Any) -> Any:
    """Bring details into what strict JSON can hold."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, Spread):
        return value.as_json()
    if value is None or isinstance(value, str | bool | int):
        return value
    return float(value) if math.isfinite(value) else None


HEADER = ("case", "what", "median (min to max)", "target", "met", "dasknmf", "peer", "note")


def markdown(cells: Iterable[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def header() -> str:
    """The two lines above all rows."""
    return markdown(HEADER) + "\n" + markdown("---" for _ in HEADER)


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    import psutil
    import sklearn  # noqa: F401  (loads the BLAS libraries that are listed)
    from threadpoolctl import threadpool_info

    pools = {
        f"{pool['internal_api']} {pool['version'] or ''}, {pool['num_threads']} threads"
        for pool in threadpool_info()
    }
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": load(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "blas": sorted(pools),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def load() -> float:
    """Processes that wanted a core during the last minute, on average."""
    import psutil

    return round(psutil.getloadavg()[0], 2)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The state that was measured; None outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def describe(found: dict[str, Any]) -> str:
    """The machine in a few lines above the table."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items() if number)
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB, {found['system']}, "
        f"load {found['load_before']} before the first case.\n"
        f"Python {found['python']}, {versions}; {'; '.join(found['blas'])}; "
        f"commit {found['commit']}."
    )
