"""Errors and warnings. Each message: what was given, what was expected, what to do."""

from __future__ import annotations

import sys
import warnings


class DataError(ValueError):
    """The matrix can't be factorised as it is: bad values, shape, dtype or chunks."""


class ParameterError(ValueError):
    """A parameter, or a combination of parameters, makes no sense."""


class StoreError(ValueError):
    """A path holds something else than what was asked for, or already exists."""


class ClusterError(RuntimeError):
    """The cluster lost work more often than the fit is willing to repeat it."""


class TooLargeError(ClusterError, MemoryError):
    """The fit would need more memory than there is; nothing was read."""


class RowsLostError(RuntimeError):
    """Rows that the workers carried from pass to pass are gone; the caller must start them anew."""


class StoppedError(SystemExit):
    """A fit stopped where it was asked to, after a commit: the same call again goes on.

    A ``SystemExit`` with the code 75 ("try again"), so that a batch script which does not catch it
    ends with that status.
    """

    def __init__(self, message: str) -> None:
        super().__init__(75)
        self.message = message

    def __str__(self) -> str:
        return self.message


class FactorWarning(UserWarning):
    """The factorisation is valid, but a part of it is of no use (a dead component, say)."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the caller's line: the first outside of the package and scikit-learn's wrappers."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and _is_internal(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def _is_internal(module: str) -> bool:
    return module.split(".")[0] in ("dasknmf", "sklearn", "contextlib")


class MissingError(StoreError):
    """There is no object under this key."""


class DamagedError(StoreError):
    """What is stored is not what was written: bytes, sizes, digests or types are wrong."""


class ProblemMismatchError(StoreError):
    """A stored run belongs to another matrix, or to other parameters."""


class RunBusyError(StoreError):
    """Another living process writes to this run."""


class FencedError(StoreError):
    """Another process has taken this run over; this one can't commit any more."""


class StoreWarning(UserWarning):
    """A run goes on, but something in its store is damaged or could not be written."""
