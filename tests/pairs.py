"""Every (loss, solver) pair that the package can serve, found from its own registries."""

import pytest

from dasknmf.numerics.errors import ParameterError
from dasknmf.numerics.losses import make_loss
from dasknmf.numerics.solvers import available, make_solver

BETAS = [2.0, 1.0, 0.0, 0.5, 1.5, 3.0, -1.0]


def _pairs():
    for name in available():
        for beta in BETAS:
            try:
                yield name, beta, make_solver(name, make_loss(beta))
            except ParameterError:
                continue


PAIRS = [pytest.param(name, beta, id=f"{name}-{beta:g}") for name, beta, _ in _pairs()]
SMOOTH = [p for p in PAIRS if p.values[1] >= 0.5]  # losses that are finite at zero entries
