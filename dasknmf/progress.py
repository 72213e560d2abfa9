"""A progress bar over the passes, for terminals and notebooks."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import TqdmWarning

from dasknmf.history import Callback, PassInfo

with warnings.catch_warnings():
    # In a notebook without ipywidgets it warns, and draws the bar as text: that will do.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

LOG_INTERVAL = 10.0  # seconds between updates where they are lines of a log, not a moving bar


@contextmanager
def bar(max_iter: int) -> Iterator[Callback]:
    """Give a callback that moves a bar: passes, time left at most, reads, loss, relative error.

    It goes to stderr, and vanishes where the fit ends in an error.
    """
    live = sys.stderr.isatty() or "ipykernel" in sys.modules
    interval = 0.1 if live else LOG_INTERVAL
    with tqdm(
        total=max_iter, desc="nmf", unit="pass", dynamic_ncols=True, mininterval=interval
    ) as shown:

        def move(info: PassInfo) -> None:
            error = info.relative_error
            relative = f", error {error:.5f}" if math.isfinite(error) else ""
            shown.set_postfix_str(
                f"loss {info.loss:.6g}{relative}, {info.reads} reads", refresh=False
            )
            if info.phase == "pass":
                shown.update(info.number - shown.n)  # more than one where a run goes on

        try:
            yield move
        except BaseException:
            shown.leave = False
            raise
        shown.total = shown.n  # a fit that converged early is complete, not abandoned
        shown.refresh()
