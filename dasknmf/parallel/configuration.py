"""dasknmf's part of Dask's configuration; its defaults, and their reasons, are in dasknmf.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
from dask.utils import parse_timedelta

from dasknmf.numerics.errors import ParameterError

DEFAULTS = Path(__file__).parents[1] / "dasknmf.yaml"


def load_defaults() -> None:
    """Make the defaults known to Dask, as its own packages do.

    A commented copy goes into the folder of Dask's configuration, where there is none yet and it
    can be written.
    """
    dask.config.ensure_file(source=str(DEFAULTS))
    dask.config.update_defaults(dask.config.merge(*dask.config.collect_yaml([str(DEFAULTS)])))


def seconds(key: str) -> float:
    """A time above 0.

    Raises
    ------
    ParameterError
        What is set is no time.
    """
    given = dask.config.get(f"dasknmf.{key}")
    try:
        found = float(parse_timedelta(given))
    except (ValueError, TypeError, KeyError, AttributeError):
        found = 0.0
    if not 0.0 < found < float("inf"):
        raise _refusal(key, given, "a time such as 300s or 10m")
    return found


def count(key: str, least: int) -> int:
    """A whole number.

    Raises
    ------
    ParameterError
        What is set is none, or below ``least``.
    """
    given = dask.config.get(f"dasknmf.{key}")
    if isinstance(given, bool) or not isinstance(given, int) or given < least:
        raise _refusal(key, given, f"a whole number of at least {least}")
    return given


def _refusal(key: str, given: Any, expected: str) -> ParameterError:
    variable = "DASK_DASKNMF__" + key.replace(".", "__").upper()
    return ParameterError(
        f"dasknmf.{key} is {given!r} in Dask's configuration; expected {expected}. It comes from "
        f"{variable} in the environment, a file in ~/.config/dask, or dask.config.set."
    )
