"""A progress bar over the passes, for terminals and notebooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from dasknmf.passes import Callback, PassInfo


@contextmanager
def bar(max_iter: int) -> Iterator[Callback]:
    """Give a callback that moves a bar: passes, time left at most, reads, loss, relative error."""
    with tqdm(total=max_iter, desc="nmf", unit="pass", dynamic_ncols=True) as shown:

        def move(info: PassInfo) -> None:
            error = (
                ""
                if info.relative_error != info.relative_error
                else (f", error {info.relative_error:.5f}")
            )
            shown.set_postfix_str(f"loss {info.loss:.6g}{error}, {info.reads} reads")
            if info.phase == "pass":
                shown.update(1)

        yield move
        shown.total = shown.n  # a fit that converged early is complete, not abandoned
        shown.refresh()
