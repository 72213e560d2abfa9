"""One BLAS thread per task, set once per process.

Dask already runs one task a core; BLAS threads on top were six times slower, and the bits of a
product depend on their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from threadpoolctl import threadpool_limits

_lock = Lock()
_fits_here = 0
_worker_limit: Any = None


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit BLAS in this process for the whole of a fit, and restore it afterwards."""
    global _fits_here
    with _lock:
        _fits_here += 1
        limit = threadpool_limits(limits=1)
    try:
        yield
    finally:
        with _lock:
            _fits_here -= 1
            limit.restore_original_limits()


def ensure_one_thread() -> None:
    """Limit BLAS in a worker process at its first task, for good: the process belongs to Dask."""
    global _worker_limit
    if _fits_here or _worker_limit is not None:
        return
    with _lock:
        if not _fits_here and _worker_limit is None:
            _worker_limit = threadpool_limits(limits=1)
