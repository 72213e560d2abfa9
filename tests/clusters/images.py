"""A container file without containers: its instructions, and what they make in a folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

CONTEXT = Path(__file__).parents[2]  # the folder that `podman build ... .` is called in


def instructions(path):
    """Pairs of instruction and argument, continued lines joined, comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


@dataclass
class Image:
    """The file system of an image below ``root``, its Python a clean virtual environment."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    place: str = "/"

    def at(self, path):
        return self.root / path.lstrip("/")

    def __post_init__(self):
        subprocess.run([sys.executable, "-m", "venv", self.at("venv")], check=True)
        self.environment["PATH"] = f"{self.at('venv')}/bin:/usr/bin:/bin"

    def build(self, path):
        for name, argument in instructions(path):
            getattr(self, name.lower())(argument)
        return self

    def workdir(self, argument):
        self.place = argument
        self.at(argument).mkdir(parents=True, exist_ok=True)

    def copy(self, argument):
        *sources, target = argument.split()
        for source in sources:
            to = self.at(target if target.startswith("/") else f"{self.place}/{target}")
            if target.endswith("/"):
                to = to / source
            to.parent.mkdir(parents=True, exist_ok=True)
            if (CONTEXT / source).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(CONTEXT / source, to, ignore=ignored)
            else:
                shutil.copy(CONTEXT / source, to)

    def run(self, argument):
        # with the machine's own settings of pip, as a build has those of its host
        outer = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment = {**outer, **self.environment}
        subprocess.run(
            argument, shell=True, cwd=self.at(self.place), env=environment, check=True, timeout=800
        )

    def env(self, argument):
        self.environment |= dict(pair.split("=", 1) for pair in argument.split())

    def user(self, argument):
        assert argument != "root"

    def __getattr__(self, name):
        if name == "from":
            return lambda argument: None
        raise AttributeError(name)
