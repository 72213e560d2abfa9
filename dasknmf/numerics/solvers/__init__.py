"""Solvers, one algorithm a file. The folder is the registry: a new file is found by itself."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from inspect import isabstract
from pkgutil import iter_modules

from dasknmf.numerics.errors import ParameterError
from dasknmf.numerics.losses import Loss
from dasknmf.numerics.solvers.base import Solver
from dasknmf.numerics.terms import Normal

__all__ = ["Solver", "available", "make_solver"]

NAMED = {"kullback-leibler": "newton"}  # the best solver of a loss, where that is not mu
ALIASES = {"cd": "hals"}  # scikit-learn's name of the same algorithm


@cache
def available() -> dict[str, type[Solver]]:
    """Every solver of the folder by name."""
    found: dict[str, type[Solver]] = {}
    for module in iter_modules(__path__, prefix=f"{__name__}."):
        for value in vars(import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, Solver) and not isabstract(value):
                found[value.name] = value
    return found


def make_solver(name: str, loss: Loss) -> Solver:
    """Give the solver called ``name``, refused if it can't serve ``loss``.

    ``auto`` is ``als`` for least squares, ``newton`` for Kullback-Leibler, ``mu`` for the rest.
    """
    if name == "auto":
        name = "als" if loss.kind is Normal else NAMED.get(loss.name, "mu")
    known = available()
    key = ALIASES.get(name, name)
    if key not in known:
        raise ParameterError(
            f"solver={name!r} is unknown; expected one of {['auto', *sorted(known), *ALIASES]}."
        )
    solver = known[key]()
    solver.check(loss)
    return solver
