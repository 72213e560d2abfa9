"""What batches leave behind when V comes in pieces: sums from which the short factor H follows.

A batch that was visited at H' with rows W' leaves a function of H that is nowhere below its loss
min_W D(V | W H), and equal to D(V | W' H') at H = H'. Such functions add up, and scale:

    least squares        1/2 ||V - W'H||², by VᵀW' and W'ᵀW'
    Kullback-Leibler     const + Σ m h - Σ c log h         c = h' neg,         m = pos
    beta < 1             const + Σ b h + Σ a h^(β-1)/(1-β)      a = h'^(2-β) neg,   b = pos
    1 < beta <= 2        const + Σ b h^β/β - Σ a h^(β-1)/(β-1)  a = h'^(2-β) neg,   b = h'^(1-β) pos
    beta > 2             const + Σ b h^β/β - Σ a h              a = neg,            b = h'^(1-β) pos

J. Mairal, F. Bach, J. Ponce, G. Sapiro: Online learning for matrix factorization and sparse coding,
JMLR 11, 2010 (least squares). C. Févotte, J. Idier: Neural Computation 23(9), 2011, table 1 (the
rest). A. Lefèvre, F. Bach, C. Févotte: Online algorithms for NMF with the Itakura-Saito divergence,
WASPAA 2011.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dasknmf.numerics.kernels import Array, Float64
from dasknmf.numerics.losses import BetaDivergence, Loss
from dasknmf.numerics.terms import Columns, Each, Exponent, Listed, Normal, Split, Terms, add


class Majorant(NamedTuple):
    """Any beta divergence: ``a`` and ``b`` as above, shape (columns, k), and the constant."""

    a: Float64
    b: Float64
    constant: float


class Sums(NamedTuple):
    """Batches added up.

    terms
        Their majorants; for Kullback-Leibler ``value`` is the constant.
    penalty, squares, samples
        Penalty of their rows, ||V||², and how many rows they weigh.
    """

    terms: Normal | Each | Columns | Majorant
    penalty: float
    squares: float
    samples: float


def _powers(beta: float) -> tuple[float, float]:
    """Powers of h' that a and b are multiplied by."""
    return (2.0 - beta if beta <= 2.0 else 0.0), (1.0 - beta if beta > 1.0 else 0.0)


def _times(power: float, H: Float64, factor: Float64) -> Float64:
    """H^power times a factor, 0 where H is: what has become zero stays so."""
    if not power:
        return factor
    raised = np.power(H, power, out=np.zeros_like(H), where=H > 0.0)
    return np.asarray(raised * factor)


def _wide(H: Array) -> Float64:
    return H.astype(np.float64, copy=False)


def majorant(loss: Loss, terms: Terms, H: Array) -> Normal | Each | Columns | Majorant:
    """What a batch leaves, from its terms of the H half at ``H``, shape (columns, k)."""
    if isinstance(terms, Normal | Each):
        return terms
    if isinstance(terms, Listed):
        terms = terms.formed()
    if isinstance(terms, Split) and loss.degree == 1.0:
        terms = Columns(_wide(H) * terms.neg, terms.pos, None, None, terms.value)
    if isinstance(terms, Columns):
        bare = terms._replace(value=0.0, pull=None, curvature=None)
        return bare._replace(value=terms.value - _columns_value(bare, _wide(H)))
    assert isinstance(loss, BetaDivergence)
    assert isinstance(terms, Split)
    wide = _wide(H)
    up, down = _powers(loss.beta)
    found = Majorant(_times(up, wide, terms.neg), _times(down, wide, terms.pos), 0.0)
    return found._replace(constant=terms.value - _value(found, wide, loss.beta))


def bound(loss: Loss, sums: Sums, H: Array) -> float:
    """The loss of all batches at ``H`` is nowhere above; for one batch at its own H equal."""
    if isinstance(sums.terms, Normal | Each):
        return loss.value(sums.terms, H, sums.squares)
    if isinstance(sums.terms, Columns):
        return max(_columns_value(sums.terms, _wide(H)), 0.0)
    assert isinstance(loss, BetaDivergence)
    return max(_value(sums.terms, _wide(H), loss.beta), 0.0)


def _columns_value(terms: Columns, H: Float64) -> float:
    log = np.log(H, out=np.zeros_like(H), where=H > 0.0)
    return terms.value + float(np.sum(terms.mass * H)) - float(np.sum(terms.counts * log))


def _value(terms: Majorant, H: Float64, beta: float) -> float:
    if beta < 1.0:
        convex, concave = _times(beta - 1.0, H, terms.a) / (1.0 - beta), terms.b * H
        return terms.constant + float(np.sum(convex)) + float(np.sum(concave))
    up = _times(beta, H, terms.b) / beta
    down = terms.a * H if beta > 2.0 else _times(beta - 1.0, H, terms.a) / (beta - 1.0)
    return terms.constant + float(np.sum(up)) - float(np.sum(down))


def as_terms(loss: Loss, terms: Normal | Each | Columns | Majorant, H: Array) -> Terms:
    """Terms of a half-step at ``H`` whose solution is where the majorant is least."""
    if not isinstance(terms, Majorant):
        return terms
    assert isinstance(loss, BetaDivergence)
    wide = _wide(H)
    up, down = _powers(loss.beta)
    neg, pos = _times(-up, wide, terms.a), _times(-down, wide, terms.b)
    return Split(neg, pos, 0.0, Exponent(loss.exponent))


def scaled(sums: Sums, share: float) -> Sums:
    """As if only ``share`` of the rows had been seen."""
    terms = sums.terms
    fields = [None if field is None else share * field for field in terms]
    made = type(terms)(*fields)  # type: ignore[arg-type]
    return Sums(made, share * sums.penalty, share * sums.squares, share * sums.samples)


def added(past: Sums | None, batch: Sums) -> Sums:
    """Both together."""
    return batch if past is None else add([past, batch])
