"""One BLAS thread per task, set once per process.

Dask already runs one task a core; BLAS threads on top were six times slower, and the bits of a
product depend on their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import threadpoolctl

_lock = Lock()
_fits_here = 0
_limit: Any = None  # of the fits that run in this process, shared by all of them
_worker_limit: Any = None


def _take_control() -> None:
    """Let this thread change the limit: threadpoolctl 3.8 on obeys the first thread that did."""
    release = getattr(threadpoolctl.OpenBLASController, "clear_controlling_thread", None)
    if release is not None:
        release(force=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit BLAS in this process while any fit runs, and restore it after the last one."""
    global _fits_here, _limit
    with _lock:
        if _fits_here == 0:
            _take_control()
            _limit = threadpoolctl.threadpool_limits(limits=1)
        _fits_here += 1
    try:
        yield
    finally:
        with _lock:
            _fits_here -= 1
            if _fits_here == 0:
                _take_control()
                _limit.restore_original_limits()
                _limit = None


def ensure_one_thread() -> None:
    """Limit BLAS in a worker process at its first task, for good: the process belongs to Dask."""
    global _worker_limit
    if _fits_here or _worker_limit is not None:
        return
    with _lock:
        if not _fits_here and _worker_limit is None:
            _take_control()
            _worker_limit = threadpoolctl.threadpool_limits(limits=1)
