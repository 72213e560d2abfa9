"""How much regularisation? Several ``alpha`` of one rank, whose fits share every read of X."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from numbers import Real
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from dasknmf import parameters, sharing
from dasknmf.criteria import best_of, measured
from dasknmf.estimator import NMF
from dasknmf.history import Callback
from dasknmf.numerics import interpretation
from dasknmf.numerics.errors import ParameterError
from dasknmf.numerics.kernels import Array, Float64
from dasknmf.numerics.lots import Lot
from dasknmf.parallel import inputs
from dasknmf.parallel.observing import observed
from dasknmf.parallel.slabs import Slabs, cut
from dasknmf.storage import arrays
from dasknmf.study import RankStudy
from dasknmf.studying import Study
from dasknmf.validation import validated

PATH_COLUMNS = (
    "loss",
    "objective",
    "explained_variance",
    "holdout_error",
    "sparseness_W",
    "sparseness_H",
    "stability",
)


class AlphaPath(BaseEstimator):
    """All weights of the penalties as one ensemble: they share every read of X.

    All begin where a fit of this rank begins, and each goes on until it has converged, as a fit of
    its own would. Only solvers with rows that are solved anew in each pass can share reads: ``als``
    and ``newton``.

    Parameters
    ----------
    n_components : int
        k, from 1 to min(n_samples, n_features).
    alphas : iterable of float
        Values of ``alpha_W`` of :class:`dasknmf.NMF`, all different, finite and >= 0; in any order,
        and sorted. As there they are multiplied by n_features, and those of H by n_samples.
    alpha_H : float or 'same', default='same'
        The weight of H: the same along the path, or one number for all of it.
    l1_ratio : float, default=0.0
        Mix of the penalties: 0 is L2, 1 is L1, which makes zeros.
    n_init : int, default=1
        Restarts for each alpha; more of them tell the stability.
    holdout : float, default=0.05
        Share of the observed entries hidden from all fits, as for :class:`dasknmf.RankStudy`.
    solver, waves, beta_loss, tol, max_iter, random_state, verbose, callbacks, missing
        As for :class:`dasknmf.NMF`. Callbacks see the best model of those that still go on.

    Attributes
    ----------
    alphas_ : ndarray of float
        Ascending.
    best_alpha_ : float
        That of the lowest hold-out error; nan where nothing was held out.
    reads_ : float
        Of X.
    n_iter_ : int
        Passes of the longest fit.
    fingerprint_ : str
        Digest of X's shape, dtype and values.

    Examples
    --------
    >>> import numpy as np
    >>> from dasknmf import AlphaPath
    >>> X = np.random.default_rng(0).gamma(0.5, 1.0, (200, 40))
    >>> path = AlphaPath(3, alphas=[0, 0.001, 0.1], l1_ratio=1, random_state=0).fit(X)
    >>> bool(np.all(np.diff(path.table()["loss"]) > 0))
    True
    """

    def __init__(
        self,
        n_components: int,
        alphas: Any,
        *,
        alpha_H: float | str = "same",
        l1_ratio: float = 0.0,
        n_init: int = 1,
        solver: str = "auto",
        beta_loss: str | float = "frobenius",
        tol: float = 1e-4,
        max_iter: int = 200,
        random_state: Any = None,
        holdout: float = 0.05,
        missing: str | None = None,
        waves: int | str = "auto",
        verbose: int = 0,
        callbacks: Sequence[Callback] | None = None,
    ) -> None:
        self.n_components = n_components
        self.alphas = alphas
        self.alpha_H = alpha_H
        self.l1_ratio = l1_ratio
        self.n_init = n_init
        self.solver = solver
        self.beta_loss = beta_loss
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.holdout = holdout
        self.missing = missing
        self.waves = waves
        self.verbose = verbose
        self.callbacks = callbacks

    def fit(self, X: Any, y: Any = None, *, client: Any = None, weights: Any = None) -> Self:
        """Fit a model for every alpha.

        Parameters and errors as for :meth:`dasknmf.NMF.fit`; alphas that are no numbers, negative
        or given twice are a ParameterError, before X is read.
        """
        alphas = checked_alphas(self.alphas)
        template = self._model(alphas[-1])
        sharing.check(template, weights)
        k = self._rank()
        known = dict(vars(self))
        try:
            X = validated(self, X, reset=True)
            if k > min(X.shape):
                raise ParameterError(
                    f"n_components={k} is larger than min(n_samples, n_features)={min(X.shape)}: "
                    "fewer reproduce X exactly. Use at most that."
                )
            seed = parameters.seed_of(self.random_state)
            rule = parameters.observing(template, seed)
            slabs = observed(cut(X), X, arrays.opened(inputs.unwrap(weights)), rule)
            lots = tuple(
                Lot(k, int(self.n_init), sharing.prices_of(template, slabs, slabs.shape, alpha))
                for alpha in alphas
            )
            found = self._shared()._study(template, lots, slabs, seed, client, self)
            self._take_in(found, np.array(alphas), slabs)
        except BaseException:  # an interrupt, too: what an earlier fit found stays
            self.__dict__.clear()
            self.__dict__.update(known)
            raise
        sharing.warn_unfinished(list(chain(*found.restarts)), self)
        return self

    def _rank(self) -> int:
        k = self.n_components
        if not isinstance(k, int | np.integer) or isinstance(k, bool):
            raise ParameterError(f"n_components={k!r}; expected an integer >= 1.")
        return int(k)

    def _shared(self) -> RankStudy:
        """The study of one rank that a path is, but for its penalties."""
        given = self.get_params(deep=False)
        del given["n_components"], given["alphas"]
        return RankStudy((self.n_components,), **given)

    def _model(self, alpha: float) -> NMF:
        """An NMF with the parameters of the path at one point of it."""
        given = self.get_params(deep=False)
        del given["n_components"], given["alphas"]
        return NMF(self.n_components, alpha_W=alpha, **given)

    def _take_in(self, found: Study, alphas: Float64, slabs: Slabs) -> None:
        self.alphas_, self.reads_ = alphas, found.reads
        self.history_ = found.history
        self.n_iter_ = max(r.n_iter for of_alpha in found.restarts for r in of_alpha)
        self.fingerprint_ = found.inspection.fingerprint(slabs.shape, slabs.dtype)
        self._n_samples = slabs.shape[slabs.transposed]
        self._best = [best_of(of_alpha) for of_alpha in found.restarts]
        rows = []
        for alpha, best, of_alpha in zip(alphas, self._best, found.restarts, strict=True):
            row = measured(of_alpha)[0]
            squares = found.inspection.squares
            row["explained_variance"] = interpretation.explained_variance(best.residual, squares)
            row["objective"] = best.objective
            row["sparseness_W"], row["sparseness_H"] = mean_of(best.sparse), row["sparseness"]
            rows.append((alpha, *(row[name] for name in PATH_COLUMNS)))
        kinds = [("alpha", np.float64), *((name, np.float64) for name in PATH_COLUMNS)]
        self._table = np.array(rows, dtype=kinds)
        errors = self._table["holdout_error"]
        known = np.isfinite(errors)
        self.best_alpha_ = float(alphas[known][errors[known].argmin()]) if known.any() else np.nan

    def table(self) -> Array:
        """One row an alpha.

        Returns
        -------
        table : structured array
            ``alpha``; of the restart with the lowest objective ``loss``, ``objective`` (with the
            penalties), ``explained_variance`` (1 - ||X - WH||² / ||X||²), ``holdout_error`` (mean
            squared error on hidden entries, or mean deviance; what is foreseen counts as at most
            the largest entry of X), ``sparseness_W`` and ``sparseness_H`` (Hoyer's, means over
            components); of all restarts ``stability`` (mean cosine of matched components). nan:
            undefined.
        """
        check_is_fitted(self)
        return self._table.copy()

    def model(self, alpha: float | None = None) -> NMF:
        """The best restart of an alpha (by default ``best_alpha_``) as a fitted NMF.

        ``transform`` gives its W: the path keeps none.

        Raises
        ------
        ParameterError
            There is no such alpha on the path; or nothing was held out to choose one.
        """
        check_is_fitted(self)
        wanted = self.best_alpha_ if alpha is None else alpha
        at = np.flatnonzero(self.alphas_ == wanted)
        if not at.size:
            raise ParameterError(
                f"alpha={alpha!r} is not on the path; expected one of {self.alphas_.tolist()}"
                + (": with holdout=0 there is no best one." if alpha is None else ".")
            )
        return sharing.as_fitted(self._model(float(self.alphas_[at[0]])), self._best[at[0]], self)

    def plot(self, axes: Any = None) -> list[Any]:
        """A panel for each column of the table over alpha (matplotlib)."""
        check_is_fitted(self)
        from dasknmf.plotting import plot_path

        return plot_path(self._table, self.best_alpha_, axes)


def mean_of(values: Array | None) -> float:
    """Mean of what is defined; nan where nothing is."""
    known = np.zeros(0) if values is None else values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def checked_alphas(alphas: Any) -> tuple[float, ...]:
    """Give alphas ascending, or say which of them can't be."""
    expected = "expected different finite numbers >= 0, such as [0, 1e-4, 1e-3]"
    if isinstance(alphas, str | bytes) or not hasattr(alphas, "__iter__"):
        raise ParameterError(f"alphas={alphas!r}; {expected}.")
    given = list(alphas)
    if not given:
        raise ParameterError(f"alphas={alphas!r} has none; {expected}.")
    for alpha in given:
        number = isinstance(alpha, Real) and not isinstance(alpha, bool | np.bool_)
        if not number or not np.isfinite(alpha) or alpha < 0:
            raise ParameterError(f"alphas={alphas!r} has {alpha!r}; {expected}.")
    found = sorted(float(alpha) for alpha in given)
    twice = sorted({alpha for alpha in found if found.count(alpha) > 1})
    if twice:
        raise ParameterError(f"alphas={alphas!r} has {twice} more than once; {expected}.")
    return tuple(found)
