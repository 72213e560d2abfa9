"""Counter-based random numbers: a function of (seed, purpose, model, global row), of nothing else.

Philox gives four 64-bit words a counter value, so row r of a k-column factor owns the counter
values from r * ceil(k / 4) on: any slab can draw its own rows, in any order, on any worker.

J. K. Salmon et al.: Parallel random numbers: as easy as 1, 2, 3, SC 2011.
"""

from __future__ import annotations

import zlib

import numpy as np
from scipy.special import ndtri

from dasknmf.numerics.kernels import Float64


def generator(seed: int, purpose: str, model: int, counter: int) -> np.random.Generator:
    """Give the stream that begins at ``counter``, four words of 64 bits a count."""
    key = [seed & (2**64 - 1), (zlib.crc32(purpose.encode()) << 32) | model]
    words = [counter & (2**64 - 1), counter >> 64, 0, 0]
    return np.random.Generator(
        np.random.Philox(
            key=np.array(key, dtype=np.uint64), counter=np.array(words, dtype=np.uint64)
        )
    )


def uniform_rows(
    seed: int, purpose: str, model: int, start: int, stop: int, columns: int
) -> Float64:
    """Uniform numbers in (0, 1) for rows ``start:stop``, shape (stop - start, columns)."""
    words = -(-columns // 4) * 4
    drawn = generator(seed, purpose, model, start * (words // 4)).random((stop - start, words))
    return drawn[:, :columns] + 2.0**-54  # never exactly zero


def normal_rows(
    seed: int, purpose: str, model: int, start: int, stop: int, columns: int
) -> Float64:
    """Standard normal numbers for rows ``start:stop``, shape (stop - start, columns)."""
    drawn: Float64 = ndtri(uniform_rows(seed, purpose, model, start, stop, columns))
    return drawn
