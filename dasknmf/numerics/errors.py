"""Errors and warnings. Each message: what was given, what was expected, what to do."""

from __future__ import annotations


class DataError(ValueError):
    """The matrix can't be factorised as it is: bad values, shape, dtype or chunks."""


class ParameterError(ValueError):
    """A parameter, or a combination of parameters, makes no sense."""


class StoreError(ValueError):
    """A path holds something else than what was asked for, or already exists."""


class ClusterError(RuntimeError):
    """The cluster lost work more often than the fit is willing to repeat it."""


class RowsLostError(RuntimeError):
    """Rows that the workers carried from pass to pass are gone; the caller must start them anew."""


class FactorWarning(UserWarning):
    """The factorisation is valid, but a part of it is of no use (a dead component, say)."""
