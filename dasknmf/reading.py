"""What a fitted model tells: its components by weight and by name, their quality, and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import dask.array as da
import numpy as np
import scipy.sparse as sp
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from dasknmf import exports
from dasknmf.numerics import interpretation
from dasknmf.numerics.coherence import CountDocuments, coherence
from dasknmf.numerics.errors import DataError, ParameterError
from dasknmf.numerics.interpretation import Match, Separated
from dasknmf.numerics.kernels import Array, Float64
from dasknmf.parallel import inputs, make_executor
from dasknmf.parallel.inputs import Labels
from dasknmf.parallel.slabs import cut
from dasknmf.validation import validated

if TYPE_CHECKING:
    from pathlib import Path


class Sparseness(NamedTuple):
    """Hoyer's sparseness of every component in [0, 1]; ``W`` is None where no W is at hand."""

    W: Float64 | None
    H: Float64


class Reading:
    """Methods of a fitted :class:`dasknmf.NMF` that read it and change nothing.

    Where W is asked for and not given, it is ``W_``, which ``fit_transform`` leaves.
    """

    components_: Array
    n_components_: int
    history_: dict[str, Array]

    def top_features(self, n: int = 10, names: Sequence[Any] | None = None) -> list[list[Any]]:
        """Features of the largest weights of every component, descending.

        Parameters
        ----------
        n : int
        names : sequence of n_features names, optional
            By default those of the fitted data, or positions where it had none.

        Returns
        -------
        names : list of k lists
            Features of weight 0 are left out.
        """
        check_is_fitted(self)
        names = self._labels(None).features if names is None else names
        return interpretation.top_features(self.components_, n, names)

    def inverse_transform(self, X: Any) -> Any:
        """Give the approximation W H of the data for W = ``X``, (n_samples, n_features).

        Lazy where ``X`` is a Dask array.
        """
        check_is_fitted(self)
        if not inputs.is_dask(X):
            X = X if sp.issparse(X) else check_array(X, dtype=[np.float64, np.float32])
        if X.ndim != 2 or X.shape[1] != self.n_components_:
            raise DataError(
                f"W has {X.shape[-1] if X.ndim else 0} columns (shape {X.shape}), but "
                f"{type(self).__name__} has {self.n_components_} components. Pass what transform() "
                "or fit_transform() gave."
            )
        return X @ self.components_

    def separated(self, W: Any = None, norm: str = "l2") -> Separated:
        """Scale apart from shape: (W, d, H) with W diag(d) H the model, heaviest component first.

        Parameters
        ----------
        W : array of shape (n_samples, k), optional
        norm : {'l2', 'l1', 'max'}
            What is one for columns of W and rows of H; d is then the Frobenius norm, the sum, or
            the largest entry of each component w hᵀ.

        Returns
        -------
        W, d, H : named tuple
            W is lazy where it was (its norms cost one read of it).
        """
        W = self._rows(W)
        if not inputs.is_dask(W):
            return interpretation.separate_scale(W, self.components_, norm)
        return interpretation.scaled(W, exports.column_norms(W, norm), self.components_, norm)

    def hard_clusters(self, W: Any = None) -> Any:
        """Component with the largest part ‖w_ik h_k‖ in each sample; -1 for zero rows and for ties.

        Returns
        -------
        labels : int64 array of shape (n_samples,)
            Lazy where W is.
        """
        W = self._rows(W)
        weights = interpretation.row_norms(self.components_)
        if not inputs.is_dask(W):
            return interpretation.hard_clusters(W, weights)
        whole = W.rechunk({1: -1})
        return whole.map_blocks(interpretation.hard_clusters, weights, drop_axis=1, dtype=np.int64)

    def sparseness(self, W: Any = None) -> Sparseness:
        """Hoyer's sparseness of the columns of W and the rows of H: 0 all equal, 1 a single entry.

        nan for components that are zero.
        """
        check_is_fitted(self)
        of_H = interpretation.sparseness(self.components_)
        if W is None and not hasattr(self, "W_"):
            return Sparseness(None, of_H)
        W = self._rows(W)
        if not inputs.is_dask(W):
            return Sparseness(interpretation.sparseness(W.T), of_H)
        l1, l2 = exports.column_norms(W, "l1"), exports.column_norms(W, "l2")
        return Sparseness(interpretation.hoyer(l1, l2, W.shape[0]), of_H)

    def coherence(self, X: Any, n: int = 10, *, client: Any = None) -> Float64:
        """NPMI coherence of each component as a topic: how far its top n words share documents.

        1: they only come together; 0: as by chance; -1: they never meet. One read of X, of which
        only whether entries are positive is looked at.

        Parameters
        ----------
        X : matrix of documents × words
            Any that ``fit`` takes; the fitted one or another with the same words.
        n : int, at least 2
        client : distributed.Client, optional

        Returns
        -------
        coherence : ndarray of shape (k,)
            nan for components with fewer than two words.

        Raises
        ------
        DataError
            X has other features, or bad values.
        """
        check_is_fitted(self)
        topics = interpretation.top_indices(self.components_, n)
        if n < 2:
            raise ParameterError(
                f"n={n!r}; expected at least 2: coherence is about pairs of words."
            )
        words = sorted({int(word) for topic in topics for word in topic})
        slabs = cut(validated(self, X, reset=False), whole_rows=True)
        with make_executor(slabs, client) as executor:
            counts = executor.run(CountDocuments(tuple(words))).sums
        counts.inspection.raise_if_bad(False, type(self).__name__)
        return coherence(topics, words, counts)

    def row_errors(self, X: Any, W: Any = None) -> Any:
        """Relative error ‖x - wH‖ / ‖x‖ of each sample: where the model fails.

        Parameters
        ----------
        X : the matrix that W belongs to
        W : array of shape (n_samples, k), optional

        Returns
        -------
        errors : float64 array of shape (n_samples,)
            Lazy where X is a Dask array.
        """
        W = self._rows(W)
        X = validated(self, X, reset=False)
        if X.shape[0] != W.shape[0]:
            raise DataError(
                f"X has {X.shape[0]} rows, but W has {W.shape[0]}; expected W of the same samples. "
                "Pass W=model.transform(X)."
            )
        H = self.components_
        if not inputs.is_dask(X):
            return interpretation.row_errors(X, np.asarray(W), H)
        X = X.rechunk({1: -1})
        rows = W if inputs.is_dask(W) else da.from_array(W, chunks=(X.chunks[0], -1))
        rows = rows.rechunk((X.chunks[0], -1))
        return da.map_blocks(
            interpretation.row_errors, X, rows, H=H, drop_axis=1, dtype=np.float64,
            meta=np.empty(0),
        )  # fmt: skip

    def match(self, other: Any) -> Match:
        """Pair the components with those of another model, each at most once, by their cosines.

        Parameters
        ----------
        other : NMF or array of shape (l, n_features)

        Returns
        -------
        permutation, similarity : named tuple of arrays of shape (k,)
            ``other.components_[permutation]`` is in the order of this model; -1 and nan where
            nothing is left of ``other``.
        """
        check_is_fitted(self)
        if hasattr(other, "get_params"):
            check_is_fitted(other)
            other = other.components_
        return interpretation.match(self.components_, other)

    def to_xarray(self, X: Any = None, W: Any = None) -> Any:
        """Give the model as an xarray.Dataset with dimensions sample, component and feature.

        Variables: ``components``, ``W`` where there is one, ``weight`` (d of :meth:`separated`,
        with W) and the history over ``pass``.

        Parameters
        ----------
        X : the data that W belongs to, optional
            Not read. A DataArray, AnnData or data frame brings names of samples and features, a
            DataArray those of its dimensions and all its coordinates, too. By default those of the
            fitted data, which the model keeps.
        W : array of shape (n_samples, k), optional
            It may be of other samples, so that their names come from X alone.
        """
        labels = self._labels(X)
        if W is not None and X is None:
            labels = labels.of_features()
        W = self._rows(W) if W is not None or hasattr(self, "W_") else None
        return exports.as_dataset(self, W, labels)

    def to_anndata(self, adata: Any = None, W: Any = None, *, key: str = "nmf") -> Any:
        """Write the model into an AnnData: ``obsm["X_nmf"]``, ``varm["NMF"]``, ``uns["nmf"]``.

        Parameters
        ----------
        adata : AnnData, optional
            Of the fitted samples and features; changed in place. By default a new one without X,
            with the names that the fitted data had.
        W : array of shape (n_obs, k), optional
        key : str
            Another one writes ``obsm["X_key"]``, ``varm["KEY"]``, ``uns["key"]``.

        Returns
        -------
        adata : AnnData
            The same object, or the new one.

        Raises
        ------
        DataError
            It has other observations or variables; nothing was written.
        """
        if adata is None:
            labels = self._labels(None) if W is None else self._labels(None).of_features()
            adata = exports.empty_anndata(self._rows(W), labels, self.components_.shape[1])
        return exports.into_anndata(self, self._rows(W), adata, key)

    def report(
        self,
        path: str | Path,
        X: Any = None,
        *,
        names: Sequence[Any] | None = None,
        shape: tuple[int, int] | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write one self-contained HTML file about the fit (see :mod:`dasknmf.report`).

        Parameters
        ----------
        path : str or path
        X : the fitted data, optional
            Not read; brings names, as in :meth:`to_xarray`.
        names : sequence of n_features names, optional
            Of the features, where X does not tell them.
        shape : (rows, columns), optional
            Of the image whose pixels the samples are: maps of the components are drawn, too.
        overwrite : bool
            Replace what is there.

        Raises
        ------
        StoreError
            The path exists; nothing was written.
        """
        from dasknmf.report_fit import report_fit  # a leaf, opened when asked for

        check_is_fitted(self)
        labels = self._labels(X, names)
        return report_fit(self, path, labels, shape=shape, overwrite=overwrite)

    def _rows(self, W: Any) -> Any:
        """W as numpy or Dask, one column a component."""
        check_is_fitted(self)
        if W is None:
            W = getattr(self, "W_", None)
            if W is None:
                raise ParameterError(
                    "the model has no W_: fit() does not keep it. Pass W=model.transform(X), or "
                    "fit with fit_transform(X)."
                )
        W = W if inputs.is_dask(W) else np.asarray(W)
        k = len(self.components_)
        if W.ndim != 2 or W.shape[1] != k:
            raise DataError(
                f"W has shape {W.shape}; expected (n_samples, {k}): one column for each component, "
                "as transform() gives it."
            )
        return W

    def _labels(self, X: Any, names: Sequence[Any] | None = None) -> Labels:
        """Names as given, else from X where it is given, else those that the fit has kept."""
        found = getattr(self, "_names", Labels()) if X is None else inputs.labels_of(X)
        if names is not None or found.features is None:
            kept = getattr(self, "feature_names_in_", None)
            found = found._replace(features=kept if names is None else names)
        n = self.components_.shape[1]
        if found.features is not None and len(found.features) != n:
            raise DataError(
                f"there are names of {len(found.features)} features, but the model was fitted with "
                f"{n}; expected the fitted data, or one name for each feature."
            )
        return found
