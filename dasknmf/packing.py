"""A value as JSON and a list of arrays, and back: what a checkpoint keeps of a fit.

Only the types named in :data:`TYPES` are written or made again, by their fields, so that nothing
that a file says can run. Floats keep their bits; arrays are referred to by number, and an array
that is met twice is kept once. Carried rows stay where they are: the value says only their name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from fractions import Fraction
from typing import Any

import numpy as np

from dasknmf.ensemble import Model
from dasknmf.history import History
from dasknmf.numerics.blocks import Blocks, Fold
from dasknmf.numerics.compression import Sketch
from dasknmf.numerics.errors import StoreError
from dasknmf.numerics.inspection import Finding, Inspection, Place
from dasknmf.numerics.kernels import Array
from dasknmf.numerics.lots import Lot
from dasknmf.numerics.observation import Observation
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.stopping import Outcome
from dasknmf.numerics.terms import Columns, Each, Exponent, Normal, Split
from dasknmf.numerics.weighted import Held
from dasknmf.numerics.work import ModelSums, RandomRows
from dasknmf.parallel.executors import Carried

TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        Blocks, Columns, Each, Exponent, Finding, Fold, Fraction, Held, History, Inspection, Lot,
        Model, ModelSums, Normal, Observation, Outcome, Penalty, Place, RandomRows, Sketch, Split,
    )
}  # fmt: skip
KIND = "!"  # the key that marks what JSON has no word for
DEPTH = 50


def packable(kind: type) -> type:
    """Class decorator: let a dataclass be written, too."""
    TYPES[kind.__name__] = kind
    return kind


@dataclass
class Packed:
    """``tree`` is JSON; ``arrays`` what it refers to; ``carried`` rows that lie on the workers."""

    tree: Any
    arrays: list[Array] = field(default_factory=list)
    carried: list[Carried] = field(default_factory=list)


def pack(value: Any) -> Packed:
    """Take a value apart. Arrays are referred to, not copied: they must not change in place."""
    packed = Packed(None)
    packed.tree = _pack(value, packed, {})
    return packed


def _pack(value: Any, to: Packed, seen: dict[int, int]) -> Any:
    if isinstance(value, Exponent | Fraction):
        text = value.hex() if isinstance(value, float) else str(value)
        return {KIND: type(value).__name__, "of": text}
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer) and not isinstance(value, Enum):
        return int(value)
    if isinstance(value, float | np.floating):
        number = float(value)
        return number if math.isfinite(number) else {KIND: "float", "of": repr(number)}
    if isinstance(value, np.ndarray):
        if id(value) not in seen:
            seen[id(value)] = len(to.arrays)
            to.arrays.append(value)
        return {KIND: "array", "of": seen[id(value)]}
    return _pack_parts(value, to, seen)


def _pack_parts(value: Any, to: Packed, seen: dict[int, int]) -> Any:
    if isinstance(value, Carried):
        to.carried.append(value)
        return {KIND: "carried", "of": len(to.carried) - 1}
    name = type(value).__name__
    if isinstance(value, Enum):
        return {KIND: name, "of": value.name}
    if TYPES.get(name) is type(value):
        parts = {n: _pack(getattr(value, n), to, seen) for n in _field_names(type(value))}
        return {KIND: name, "of": parts}
    if type(value) is list:
        return [_pack(item, to, seen) for item in value]
    if type(value) is dict:
        pairs = [[_pack(key, to, seen), _pack(of, to, seen)] for key, of in value.items()]
        return {KIND: "dict", "of": pairs}
    if isinstance(value, tuple | frozenset) and type(value) in (tuple, frozenset):
        items = sorted(value) if isinstance(value, frozenset) else value
        return {KIND: name, "of": [_pack(item, to, seen) for item in items]}
    raise TypeError(f"{type(value).__name__} can't be written to a checkpoint")


def _field_names(kind: Any) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind)) if is_dataclass(kind) else kind._fields


def unpack(packed: Packed) -> Any:
    """Put a value together again.

    Raises
    ------
    StoreError
        The tree names a type, an array or rows that there are none of.
    """
    try:
        return _unpack(packed.tree, packed, 0)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise StoreError(f"the state of a checkpoint does not make sense: {error!r}") from error


def _unpack(tree: Any, packed: Packed, depth: int) -> Any:
    if depth > DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(tree, list):
        return [_unpack(item, packed, depth + 1) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if set(tree) != {KIND, "of"}:
        raise ValueError(f"an object with the keys {sorted(tree)}")
    kind, of = tree[KIND], tree["of"]
    simple = {
        "float": lambda: float(of),
        "array": lambda: packed.arrays[_index(of)],
        "carried": lambda: packed.carried[_index(of)],
        "Exponent": lambda: Exponent(float.fromhex(of)),
        "Fraction": lambda: Fraction(of),
        "Outcome": lambda: Outcome[of],
        "tuple": lambda: tuple(_unpack(item, packed, depth + 1) for item in of),
        "dict": lambda: {
            _unpack(key, packed, depth + 1): _unpack(part, packed, depth + 1) for key, part in of
        },
        "frozenset": lambda: frozenset(_unpack(item, packed, depth + 1) for item in of),
    }
    if kind in simple:
        return simple[kind]()
    made = TYPES[kind]
    if set(of) != set(_field_names(made)):
        raise ValueError(f"{kind} with the fields {sorted(of)}")
    return made(**{name: _unpack(part, packed, depth + 1) for name, part in of.items()})


def _index(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"{number!r} in the place of a number")
    return number
