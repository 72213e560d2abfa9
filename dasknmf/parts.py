"""What a stored model holds beside its factors: names of both axes, and the sums of batches."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dasknmf.history import History
from dasknmf.numerics.errors import StoreError
from dasknmf.numerics.kernels import Array
from dasknmf.numerics.majorants import Majorant, Sums, added, scaled
from dasknmf.numerics.terms import Columns, Each, Normal
from dasknmf.parallel.inputs import Labels
from dasknmf.storage.models import Parts

NOW, BEFORE = "sums_", "before_"
TERMS: dict[str, Any] = {kind.__name__: kind for kind in (Normal, Each, Columns, Majorant)}
DIMENSIONS = {"gram": ("component", "component_2"), "packed": ("feature", "pair")}


@dataclass(frozen=True)
class Seen:
    """What an estimator keeps of all batches: a few arrays of the size of the components.

    sums, before
        Of the batches of this round, and of all rounds before it.
    batches
        Fingerprints of this round's, by which a batch that comes again is known.
    history
        One entry a call.
    """

    sums: Sums | None = None
    before: Sums | None = None
    batches: frozenset[str] = frozenset()
    history: History = field(default_factory=History)

    def started(self, batch: str) -> Seen:
        """Ready for a batch: one that is in this round already begins the next one."""
        return (
            replace(self, sums=None, before=self.past(0.0), batches=frozenset())
            if (batch in self.batches)
            else self
        )

    def past(self, coming: float) -> Sums | None:
        """What goes on weighing beside ``coming`` rows: this round, and what it leaves of before.

        At the end of a round of the same batches nothing of before is left.
        """
        if self.before is None:
            return self.sums
        now = coming + (0.0 if self.sums is None else self.sums.samples)
        share = 1.0 - now / self.before.samples
        if share <= 1e-12:
            return self.sums
        return added(self.sums, scaled(self.before, share))


def of(model: Any) -> tuple[Parts, dict[str, Any]]:
    """Arrays to store, and JSON that belongs to them."""
    parts, about = _names(getattr(model, "_names", Labels()))
    seen: Seen | None = getattr(model, "_seen", None)
    if seen is None or seen.sums is None:
        return parts, about
    about["batches"] = {
        "sums": _split(seen.sums, NOW, parts),
        "before": None if seen.before is None else _split(seen.before, BEFORE, parts),
        "seen": sorted(seen.batches),
        "n_samples_seen": model.n_samples_seen_,
    }
    return parts, about


def _split(sums: Sums, prefix: str, parts: Parts) -> dict[str, Any]:
    """Put the arrays among the parts, and give the numbers."""
    numbers: dict[str, Any] = {}
    for name, value in sums.terms._asdict().items():
        if isinstance(value, np.ndarray):
            dims = DIMENSIONS.get(name, ("feature", "component")[-value.ndim :])
            parts[prefix + name] = (value, dims)
        else:
            numbers[name] = value
    told = {name: getattr(sums, name) for name in ("penalty", "squares", "samples")}
    return {"kind": type(sums.terms).__name__, "numbers": numbers, **told}


def _joined(kept: dict[str, Any], prefix: str, arrays: dict[str, Array]) -> Sums:
    found = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    if not all(np.isfinite(array).all() for array in found.values()):
        raise ValueError("a part of the sums of its batches is missing")
    terms = TERMS[kept["kind"]](**found, **kept["numbers"])
    return Sums(terms, kept["penalty"], kept["squares"], kept["samples"])


def put_back(model: Any, arrays: dict[str, Array], about: dict[str, Any]) -> None:
    """The other way; models of earlier versions have none of it."""
    if "dims" in about:
        samples, features = (arrays.get(name) for name in ("sample", "feature"))
        rows, columns = about["dims"]
        model._names = Labels((rows, columns), samples, features)
    kept = about.get("batches")
    if kept is None:
        return
    try:
        sums = _joined(kept["sums"], NOW, arrays)
        earlier = kept["before"]
        before = None if earlier is None else _joined(earlier, BEFORE, arrays)
        model.n_samples_seen_ = int(kept["n_samples_seen"])
        batches = frozenset(kept["seen"])
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"the store holds a damaged model: {error}. Save it again.") from error
    entries = {n: v.tolist() for n, v in model.history_.items() if n != "pass"}
    unknown = [float("nan")] * len(entries["loss"])
    model._seen = Seen(sums, before, batches, History(**{"holdout": unknown, **entries}))


def _names(labels: Labels) -> tuple[Parts, dict[str, Any]]:
    parts: Parts = {}
    for dim, names in (("sample", labels.samples), ("feature", labels.features)):
        found = None if names is None else _storable(names)
        if found is not None:
            parts[dim] = (found, (dim,))
    return parts, {"dims": [str(dim) for dim in labels.dims]}


def _storable(names: Any) -> Array | None:
    """Numbers and strings; an index with levels, dates and other objects are not stored."""
    array = np.asarray(names)
    if array.ndim == 1 and array.dtype.kind in "iuf":
        return array
    if array.ndim == 1 and all(isinstance(name, str) for name in array.tolist()):
        return array.astype(np.dtypes.StringDType())
    return None
