"""Validation and fingerprint of V, slab by slab, while V is read for the first real work."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dasknmf.numerics import kernels
from dasknmf.numerics.errors import DataError
from dasknmf.numerics.kernels import Slab
from dasknmf.numerics.observation import Observation, look
from dasknmf.numerics.observed import Observed
from dasknmf.numerics.terms import add

KINDS = ("NaN", "infinity (inf)", "negative")
RANGE = {4: (1e-35, 1e34), 8: (1e-140, 1e140)}  # of the largest value, by the bytes of a float
ADVICE = {
    "NaN": "Fill or drop the missing values first, or say what they are: missing='nan'.",
    "infinity (inf)": "Replace them by finite numbers first.",
    "negative": "Non-negative factorisation needs values >= 0: shift, clip or take magnitudes.",
}


class Place(NamedTuple):
    """Where a slab sits: its number and its rows ``start:stop`` of the streamed matrix."""

    slab: int
    start: int
    stop: int


class Finding(NamedTuple):
    """Bad values of one kind: how many, and where the first one is."""

    amount: int
    place: Place | None
    row: int
    column: int


@dataclass(frozen=True)
class Inspection:
    """What one walk over the values tells. ``merge`` puts slabs together in their order."""

    findings: tuple[Finding, ...]
    rows: int
    stored: int
    positive: int
    total: float
    squares: float
    maximum: float
    checksums: tuple[tuple[int, int], ...]  # (slab, CRC-32), by slab
    observation: Observation | None = None  # where not every entry counts

    @staticmethod
    def merge(parts: Sequence[Inspection]) -> Inspection:
        """Add counts and sums; keep the first place of each kind."""
        findings = []
        for kind in range(len(KINDS)):
            found = [p.findings[kind] for p in parts if p.findings[kind].amount]
            first = min(found, key=lambda f: (f.row, f.column)) if found else Finding(0, None, 0, 0)
            findings.append(first._replace(amount=sum(f.amount for f in found)))
        return Inspection(
            findings=tuple(findings),
            rows=sum(p.rows for p in parts),
            stored=sum(p.stored for p in parts),
            positive=sum(p.positive for p in parts),
            total=float(sum(p.total for p in parts)),
            squares=float(sum(p.squares for p in parts)),
            maximum=max(p.maximum for p in parts),
            checksums=tuple(sorted(c for p in parts for c in p.checksums)),
            observation=add([p.observation for p in parts]),
        )

    @property
    def bad(self) -> bool:
        """Whether any value, or any weight, is NaN, infinite or negative."""
        return any(f.amount for f in self.findings) or self.bad_weights

    @property
    def bad_weights(self) -> bool:
        """Whether any weight is NaN, infinite or negative."""
        return self.observation is not None and any(found[0] for found in self.observation.bad)

    @property
    def largest(self) -> float:
        """The largest entry that counts or is held out."""
        return max(self.maximum, 0.0 if self.observation is None else self.observation.hidden)

    def mean(self, shape: tuple[int, int]) -> float:
        """Mean of the entries that count."""
        if self.observation is None:
            return self.total / (shape[0] * shape[1])
        return self.total / (self.observation.weight or 1.0)

    def density(self, shape: tuple[int, int]) -> float:
        """How much of the entries that count is positive, as a part of 1."""
        seen = self.observation
        return self.positive / max(shape[0] * shape[1] if seen is None else seen.amount, 1)

    def unfit(self, dtype: np.dtype[Any]) -> bool:
        """Whether no slab arithmetic may be done: bad values, or larger than it can bear."""
        return self.bad or self.maximum > RANGE[dtype.itemsize][1]

    def raise_if_out_of_range(self, dtype: np.dtype[Any]) -> None:
        """Raise :class:`DataError` where squares of the data would leave the numbers there are."""
        least, most = RANGE[dtype.itemsize]
        if self.positive and not least <= self.maximum <= most:
            raise DataError(
                f"X has a largest value of {self.maximum:.3g}; in {dtype} expected one from "
                f"{least:g} to {most:g}, since sums of squares would vanish or overflow. Rescale "
                "X first, e.g. X / X.max()."
            )

    def fingerprint(self, shape: tuple[int, int], dtype: np.dtype[Any]) -> str:
        """Digest of shape, dtype and the checksums of the slabs, which depend on the slabs."""
        checks = tuple(check for _, check in self.checksums)
        text = f"{shape} {dtype.str} {self.rows} {checks}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _raise_of_weights(self, transposed: bool, name: str, empty: bool) -> None:
        """Raise :class:`DataError` for weights that are none, or leave nothing to look at."""
        seen = self.observation
        if seen is None:
            return
        found = [
            f"{amount} {kind} value{'s' * (amount > 1)}, the first at row "
            f"{(column if transposed else row)}, column {(row if transposed else column)}"
            for kind, (amount, row, column) in zip(KINDS, seen.bad, strict=True)
            if amount
        ]
        if found:
            raise DataError(
                f"weights passed to {name} have {' and '.join(found)}; expected finite numbers "
                ">= 0 or booleans (True: observed). Weight 0 is what leaves an entry out."
            )
        if not (self.bad or empty) and seen.amount == 0:
            raise DataError(
                f"nothing of X is observed: every entry passed to {name} is missing, held out or "
                "of weight 0. Check missing=, holdout= and weights= (True: observed)."
            )

    def raise_if_bad(self, transposed: bool, name: str, *, empty: bool = False) -> None:
        """Raise :class:`DataError` that names kind, count and place of the bad values.

        ``empty``: it is no error that nothing is observed at all.
        """
        self._raise_of_weights(transposed, name, empty)
        if not self.bad:
            return
        lines = []
        for kind, found in zip(KINDS, self.findings, strict=True):
            if found.place is None:
                continue
            row, column = (found.column, found.row) if transposed else (found.row, found.column)
            side = "columns" if transposed else "rows"
            slab, start, stop = found.place
            lines.append(
                f"{found.amount} {kind} value{'s' * (found.amount > 1)}, the first at row {row}, "
                f"column {column} (slab {slab}: {side} {start} to {stop - 1}). {ADVICE[kind]}"
            )
        only_negative = not (self.findings[0].amount or self.findings[1].amount)
        start_of_line = f"Negative values in data passed to {name}: X" if only_negative else "X"
        raise DataError(f"{start_of_line} has " + " It also has ".join(lines))


def _inspect_observed(V: Observed, place: Place) -> Inspection:
    seen, observation = look(V)
    findings = tuple(
        Finding(amount, place if amount else None, row, column) for amount, row, column in seen.bad
    )
    check = _checksum(V.values)
    if V.weights is not None:
        check = zlib.crc32(check.to_bytes(4, "big"), _checksum(V.weights))
    return Inspection(
        findings=findings,
        rows=V.shape[0],
        stored=seen.stored,
        positive=seen.positive,
        total=seen.total,
        squares=seen.squares,
        maximum=seen.maximum,
        checksums=((place.slab, check),),
        observation=observation,
    )


def inspect_slab(V: Slab, place: Place) -> Inspection:
    """Walk over the values of one slab (dense or CSR), in the streamed orientation."""
    if isinstance(V, Observed):
        return _inspect_observed(V, place)
    values = V.data if kernels.is_sparse(V) else V
    counts, first, sums = kernels.inspect_values(values)
    findings = []
    for kind in range(len(KINDS)):
        at = int(first[kind])
        if at < 0:
            findings.append(Finding(0, None, 0, 0))
            continue
        if kernels.is_sparse(V):
            row = int(np.searchsorted(V.indptr, at, side="right")) - 1
            column = int(V.indices[at])
        else:
            row, column = divmod(at, V.shape[1])
        findings.append(Finding(int(counts[kind]), place, place.start + row, column))
    return Inspection(
        findings=tuple(findings),
        rows=V.shape[0],
        stored=int(values.size),
        positive=int(counts[3]),
        total=float(sums[0]),
        squares=float(sums[1]),
        maximum=float(sums[2]),
        checksums=((place.slab, _checksum(V)),),
    )


def _checksum(V: Slab) -> int:
    arrays = (V.indptr, V.indices, V.data) if kernels.is_sparse(V) else (V,)
    check = 0
    for array in arrays:
        check = zlib.crc32(kernels.own(array).reshape(-1).view(np.uint8).data, check)
    return check
