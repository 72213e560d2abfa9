"""Compiled row solves from the unconstrained solution, where few of its coefficients are negative.

    min over w >= 0 of 1/2 w G wᵀ - c wᵀ        x = c G⁻¹ is known

With the coefficients of a set Z bound to zero, the others follow from x by Z's part of G⁻¹ alone:
w = x + Σ_z m_z G⁻¹_z, where the multipliers m solve G⁻¹[Z, Z] m = -x[Z]. That is |Z|³/6 + k |Z|
operations, where the free coefficients themselves would take (k - |Z|)³/6. Z changes as in block
principal pivoting: all that are on the wrong side of zero change sides at once, and where that
does not help, only the last of them, which ends after finitely many exchanges.

J. J. Júdice, F. M. Pires: Computers & Operations Research 21(5), 1994; J. Kim, H. Park: Fast
nonnegative matrix factorization, SIAM J. Sci. Comput. 33(6), 2011.
"""

import numpy as np

from dasknmf.numerics.kernels.active import DEPENDENT
from dasknmf.numerics.kernels.compiling import CONTRACT, entry, helper

PATIENCE = 3  # exchanges of all that do not lower their number, before one by one
EXCHANGES = 12  # of one row; a row that needs more is left to the sweeps
WRONG = 1e-13  # of the largest coefficient: nearer to zero is no wrong side


@helper(CONTRACT)
def _multipliers(inverse, x, bound, size, chol, m):
    """Solve G⁻¹[Z, Z] m = -x[Z] by Cholesky; False where that is as good as singular."""
    for i in range(size):
        p = bound[i]
        for j in range(i):
            s = inverse[p, bound[j]]
            for n in range(j):
                s -= chol[i, n] * chol[j, n]
            chol[i, j] = s * chol[j, j]
        s = inverse[p, p]
        for n in range(i):
            s -= chol[i, n] * chol[i, n]
        if s <= DEPENDENT * inverse[p, p]:
            return False
        chol[i, i] = 1.0 / np.sqrt(s)  # the diagonal is kept inverted
        s = -x[p]
        for n in range(i):
            s -= chol[i, n] * m[n]
        m[i] = s * chol[i, i]
    for i in range(size - 1, -1, -1):
        m[i] *= chol[i, i]
        for n in range(i):
            m[n] -= chol[i, n] * m[i]
    return True


@helper(CONTRACT)
def _wrong_sides(inverse, units, w, is_bound, bound, size, m, largest, wrong):
    """List bound coefficients with a negative multiplier, and free ones that are negative."""
    count = 0
    for a in range(w.size):
        if not is_bound[a] and w[a] < -WRONG * largest * units[a]:
            wrong[count] = a
            count += 1
    for i in range(size):
        z = bound[i]
        if m[i] * inverse[z, z] < -WRONG * largest * units[z]:
            wrong[count] = z
            count += 1
    return count


@helper(CONTRACT)
def _pivot(inverse, units, x, w, is_bound, bound, wrong, chol, m):
    """Solve one row into ``w``; False where it is better left to sweeps."""
    k, most = x.size, bound.size
    largest, total, fewest, patience = 0.0, 0.0, k + 1, PATIENCE
    for a in range(k):
        is_bound[a] = x[a] < 0.0
        total += abs(x[a])
        if units[a] > 0.0:
            largest = max(largest, abs(x[a]) / units[a])
    if not total < np.inf:  # nor where it is no number
        return False
    for _ in range(EXCHANGES):
        size = 0
        for a in range(k):
            if is_bound[a]:
                if size == most:
                    return False
                bound[size] = a
                size += 1
        if not _multipliers(inverse, x, bound, size, chol, m):
            return False
        w[:] = x
        for i in range(size):
            for a in range(k):
                w[a] += m[i] * inverse[bound[i], a]
        count = _wrong_sides(inverse, units, w, is_bound, bound, size, m, largest, wrong)
        if count == 0:
            return True
        patience = PATIENCE if count < fewest else patience - 1
        fewest = min(fewest, count)
        if patience >= 0:
            for i in range(count):
                is_bound[wrong[i]] = not is_bound[wrong[i]]
        else:
            last = 0
            for i in range(count):
                last = max(last, wrong[i])
            is_bound[last] = not is_bound[last]
    return False


@helper(CONTRACT)
def _refine(c, gram, inverse, w, is_bound, bound, chol, m, left, step):
    """One step of refinement, the same coefficients bound; ``left`` and ``step`` are scratch."""
    k, size = w.size, 0
    left[:] = c
    step[:] = 0.0
    for a in range(k):
        if is_bound[a]:
            w[a] = 0.0
            bound[size] = a
            size += 1
    for b in range(k):
        for a in range(k):
            left[a] -= w[b] * gram[b, a]
    for b in range(k):
        if is_bound[b]:
            continue  # its gradient is its multiplier's business, and would drown the others
        for a in range(k):
            step[a] += left[b] * inverse[b, a]
    _multipliers(inverse, step, bound, size, chol, m)
    for i in range(size):
        for a in range(k):
            step[a] += m[i] * inverse[bound[i], a]
    for a in range(k):
        w[a] += step[a]


@entry(CONTRACT)
def pivot_rows(cross, gram, inverse, units, most, refine, rows, solved):
    """Replace unconstrained solutions by constrained ones where at most ``most`` are bound.

    A row that is not ``solved`` so stays as it is. ``units``: what counts as one, for each
    coefficient (zero: for none). ``refine`` where G is so ill-conditioned that
    its inverse leaves more than rounding of the gradient.
    """
    k = gram.shape[0]
    w, step, left = np.empty(k), np.empty(k), np.empty(k)
    m, chol = np.empty(most), np.empty((most, most))
    is_bound, bound, wrong = np.empty(k, np.bool_), np.empty(most, np.int64), np.empty(k, np.int64)
    for i in range(rows.shape[0]):
        x = rows[i]
        solved[i] = _pivot(inverse, units, x, w, is_bound, bound, wrong, chol, m)
        if not solved[i]:
            continue
        if refine:
            _refine(cross[i], gram, inverse, w, is_bound, bound, chol, m, left, step)
        for a in range(k):
            x[a] = 0.0 if is_bound[a] else max(w[a], 0.0)
