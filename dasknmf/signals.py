"""Requests to stop: signals and a time limit. A fit asks at its boundaries."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

logger = logging.getLogger("dasknmf")

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass
class Stop:
    """``limit``: seconds from ``began`` at which the fit has to have ended."""

    limit: float | None = None
    began: float = field(default_factory=time.monotonic)
    asked: str | None = None

    def reason(self, ahead: float) -> str | None:
        """Why to stop now, ``ahead`` being the seconds until it would be asked again."""
        if self.asked is not None:
            return self.asked
        if self.limit is not None and time.monotonic() - self.began + ahead > self.limit:
            return f"the time limit of {self.limit:g} s"
        return None


@contextmanager
def listening(stop: Stop) -> Iterator[None]:
    """Let SIGTERM and SIGINT ask for a stop; the second of them acts as if nobody listened.

    Only the main thread can listen, and only for signals that nobody else has a handler for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def ask(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        stop.asked = name
        for each, handler in before.items():
            if handler in usual:
                signal.signal(each, handler)
        logger.warning("%s: the wave is finished and committed; once more stops at once", name)

    try:
        for number, handler in before.items():
            if handler in usual:
                signal.signal(number, ask)
        yield
    finally:
        for number, handler in before.items():
            if handler in usual:
                signal.signal(number, handler)
