"""Phases of a fit as Dask's spans: Fine Performance Metrics on the dashboard tell them apart.

A span is an annotation of tasks, no part of their keys. Each phase of a fit is one span of the tags
("dasknmf", phase) within what spans its caller has opened, however often it is come back to.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from threading import Lock
from typing import Any

import dask
from distributed import span

ROOT = "dasknmf"  # tag of all of them


class Phases:
    """The spans of one fit. Commits are made by another thread while the next pass runs."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._spans: dict[str, Any] = {}
        with span(ROOT):
            self._root = dask.get_annotations()["span"]
        self.now = ROOT

    def __call__(self, phase: str | None = None) -> AbstractContextManager[None]:
        """A context whose tasks belong to ``phase``, by default to the present one."""
        found: AbstractContextManager[None] = dask.annotate(span=self._span(phase or self.now))
        return found

    def _span(self, phase: str) -> Any:
        if phase == ROOT:
            return self._root
        with self._lock:
            if phase not in self._spans:
                with dask.annotate(span=self._root), span(phase):
                    self._spans[phase] = dask.get_annotations()["span"]
            return self._spans[phase]
