"""How kernels are compiled: entry points are cached on disk, and what they call is part of them.

A helper that is a function of its own is optimised once alone and once more within every caller;
which copy a process runs then depends on what it found in its cache, and where sums may be
regrouped the copies differ in their last bits. So helpers are put into their callers whole, and
are not cached: the machine code of an entry point is one piece, compiled once per machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from numba import njit

CONTRACT = frozenset({"contract"})  # a product and a sum may become one instruction
# Sums may be regrouped for vector registers; infinities and NaN keep their meaning.
REGROUP = frozenset({"reassoc", "contract", "nsz"})


def _compile(
    function: Callable[..., Any], *, cache: bool, forceinline: bool, fastmath: frozenset[str]
) -> Any:
    options: dict[str, Any] = {
        "nogil": True,
        "error_model": "numpy",
        "cache": cache,
        "forceinline": forceinline,
        "fastmath": set(fastmath) or False,
        # Ways in from Python and C that nobody takes would be compiled, too.
        "no_cpython_wrapper": forceinline,
        "no_cfunc_wrapper": True,
    }
    return njit(**options)(function)


def entry(fastmath: frozenset[str] = frozenset()) -> Any:
    """Decorate what Python calls."""
    return partial(_compile, cache=True, forceinline=False, fastmath=fastmath)


def helper(fastmath: frozenset[str] = frozenset()) -> Any:
    """Decorate what only other kernels call; ``fastmath`` holds for its own lines."""
    return partial(_compile, cache=False, forceinline=True, fastmath=fastmath)
