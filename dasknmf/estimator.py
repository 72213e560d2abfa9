"""The estimator: scikit-learn's interface of NMF over the passes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from dasknmf import events, parameters, passes, progress, results, resuming
from dasknmf.history import Callback
from dasknmf.numerics.losses import Loss
from dasknmf.numerics.penalties import make_penalties
from dasknmf.numerics.solvers import Solver
from dasknmf.numerics.stopping import RelativeChange
from dasknmf.parallel import inputs, make_executor, starts
from dasknmf.parallel.observing import observed
from dasknmf.parallel.slabs import cut
from dasknmf.partial import Partial, drop
from dasknmf.reading import Reading
from dasknmf.settings import Result, Settings
from dasknmf.storage import arrays
from dasknmf.validation import validated

SEEN = ("n_features_in_", "feature_names_in_")  # set before the data's values are known


class NMF(Reading, Partial, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Non-negative matrix factorisation X ≈ W H, out of core and on clusters.

    Minimises, over W >= 0 (n_samples × k) and H >= 0 (k × n_features),

        D(X | WH) + alpha_W n_features (l1_ratio ||W||_1 + (1 - l1_ratio)/2 ||W||²)
                  + alpha_H n_samples  (l1_ratio ||H||_1 + (1 - l1_ratio)/2 ||H||²)

    with D the beta divergence (1/2 ||X - WH||² by default). Parameters that
    ``sklearn.decomposition.NMF`` has, too, mean the same here.

    Parameters
    ----------
    n_components : int, None or 'auto', default='auto'
        Number of components k. 'auto': that of W or H where they are given, else n_features.
        None: n_features.
    init : {'auto', 'sample', 'random', 'nndsvd', 'nndsvda', 'nndsvdar', 'custom'}, default=None
        Start. 'sample': restarts race in memory on some rows, and the best goes on. The rows come
        from a tenth of the chunks, or are drawn by their norms in one read (sparse and uneven X,
        Kullback-Leibler, for which their square roots race). By least squares it then exchanges
        components: some join from what is unexplained, and those that explain least leave. Where
        the rows of a sparse X have fewer entries than H (and X has 20 columns a component), a read
        more gives X's own singular vectors (Nyström's approximation), of which the first start is
        made (NNDSVD) in place of the race, and another one those that leave. 'custom' takes W and H
        from ``fit``, or one of them. The nndsvd family costs two reads. 'auto' and None: 'sample'
        for ``als`` and ``newton``, else 'nndsvda' ('random' where k > min(X.shape) or n_init > 1).
    n_init : int, default=1
        Starts. They share every read of X: they race on the sample, and at most 4 go on to X
        itself; with init='random' all do. After each pass the better half goes on, and always
        the one with which n_init=1 would have gone on: it decides when the fit ends, so more starts
        cost no read and end with no higher objective.
    waves : int or 'auto', default='auto'
        Updates of the components per pass over X, each after a group of row blocks in a seeded
        order (``als`` and ``newton``; the others have 1). 'auto': up to 4, of at least 4 blocks
        (``newton``: 2 where X is about square, since columns cost as much as rows there). A cluster
        with more task slots than a wave has blocks is used better with fewer waves.
    compress : bool or 'auto', default='auto'
        Leave X @ (2k + 10 columns) in memory at each pass, and go on with it between the reads, as
        long as that gains (dense X, ``als``). History counts reads only, and its losses are those
        on X. 'auto': where X is a Dask array of 128 MiB or more, has 8 columns for each one kept,
        and those fit in memory; True pays where reads are slow.
    solver : {'auto', 'als', 'newton', 'hals', 'pg', 'mu', 'cd'}, default='auto'
        ``als`` solves every row exactly and carries nothing between passes; ``hals`` (which
        scikit-learn calls 'cd'), ``pg`` and ``mu`` take a few steps a pass. ``newton`` is
        Kullback-Leibler's: exact rows, columns by curvature. 'auto': ``als`` for 'frobenius',
        ``newton`` for 'kullback-leibler', else ``mu``.
    beta_loss : float or {'frobenius', 'kullback-leibler', 'itakura-saito'}, default='frobenius'
        Loss. beta <= 0 needs X > 0.
    tol : float, default=1e-4
        Stop when the objective falls by at most ``tol`` of itself per update of the components
        (``tol * waves`` per pass), or ``tol²`` of ||X||²/2, in each of two passes in a row. 0: run
        ``max_iter`` passes.
    max_iter : int, default=200
        Passes over X at most.
    random_state : int, RandomState instance or None, default=None
        Seed of the start. With an int the result has the same bits on any number of workers.
    alpha_W, alpha_H : float, default=0.0 and 'same'
        Weights of the penalties. alpha_H='same' takes alpha_W.
    l1_ratio : float, default=0.0
        Mix of the penalties: 0 is L2, 1 is L1.
    verbose : int, default=0
        1 shows a progress bar with the loss and the time left.
    shuffle : bool, default=False
        Accepted for scikit-learn's sake. The order of coordinates is always fixed here.
    callbacks : sequence of callables or None, default=None
        Each is called after every pass with a :class:`dasknmf.PassInfo`; the fit stops after a
        pass for which one returns True.
    checkpoint : str, path or None, default=None
        Folder or URL (s3://, gs://, az://) of a run. The state is committed there while the fit
        goes on, and the same call again goes on from the newest commit, with the same bits. SIGTERM
        and SIGINT then finish the wave, commit and stop (:class:`StoppedError`, exit code 75).
    checkpoint_every : int, str or timedelta, default=1
        Passes, or a time such as '10min', between commits.
    resume : {'auto', 'must', 'never'}, default='auto'
        Go on where there is a run; refuse a path without one; refuse a path with one.
    takeover : bool, default=False
        Go on although another process that seems to live writes to the run; it can't any more.
    time_limit : float (seconds), str, timedelta or None, default=None
        Commit and stop before that much time has passed.
    missing : {'nan', 'unstored'} or None, default=None
        Entries of X that are not known, and count for nothing: those that are NaN, or those that a
        sparse X does not store (ratings; by default they are zeros). Needs ``als`` or ``newton``.
    holdout : float, default=0.0
        Share of the observed entries that are hidden from the fit, by a hash of ``random_state``,
        row and column: ``history_['holdout']`` is the error on them.

    Attributes
    ----------
    components_ : ndarray of shape (k, n_features)
        H.
    W_ : ndarray or dask.array of shape (n_samples, k)
        What ``fit_transform`` returned; absent after ``fit``.
    reconstruction_err_ : float
        sqrt(2 D(X | WH)) of the returned factors: ||X - WH|| for 'frobenius'.
    n_iter_ : int
        Passes done.
    history_ : dict of ndarray
        One entry a pass: 'pass', 'reads' (of X so far), 'loss' D, 'objective' (with penalties),
        'relative_error' (||X - WH|| / ||X||, nan for other losses), 'seconds' since the start.
        With ``als`` the last entry is the read that solves the final rows. With a hold-out also
        'holdout': the mean squared error on the hidden entries (Kullback-Leibler: mean deviance);
        what is foreseen counts as at most the largest entry of X, once a pass has seen all of X.
    outcome_ : Outcome
        Why the fit ended; ``outcome_.value`` is the message.
    fingerprint_ : str
        Digest of X's shape, dtype and values, slab by slab.
    n_components_, n_features_in_ : int
        k and the number of columns of X.
    n_samples_seen_ : int
        Rows of all batches so far; after ``partial_fit`` only.
    feature_names_in_ : ndarray of str
        Column names, where X is a data frame.

    Examples
    --------
    >>> import numpy as np
    >>> from dasknmf import NMF
    >>> X = np.array([[1.0, 1], [2, 1], [3, 1.2], [4, 1], [5, 0.8], [6, 1]])
    >>> model = NMF(n_components=2, random_state=0)
    >>> W = model.fit_transform(X)
    >>> float(abs(X - W @ model.components_).max()) < 1e-6
    True
    """

    def __init__(
        self,
        n_components: int | str | None = "auto",
        *,
        init: str | None = None,
        n_init: int = 1,
        waves: int | str = "auto",
        compress: bool | str = "auto",
        solver: str = "auto",
        beta_loss: str | float = "frobenius",
        tol: float = 1e-4,
        max_iter: int = 200,
        random_state: Any = None,
        alpha_W: float = 0.0,
        alpha_H: float | str = "same",
        l1_ratio: float = 0.0,
        verbose: int = 0,
        shuffle: bool = False,
        callbacks: Sequence[Callback] | None = None,
        checkpoint: Any = None,
        checkpoint_every: Any = 1,
        resume: str = "auto",
        takeover: bool = False,
        time_limit: Any = None,
        missing: str | None = None,
        holdout: float = 0.0,
    ) -> None:
        self.n_components = n_components
        self.init = init
        self.n_init = n_init
        self.waves = waves
        self.compress = compress
        self.solver = solver
        self.beta_loss = beta_loss
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.alpha_W = alpha_W
        self.alpha_H = alpha_H
        self.l1_ratio = l1_ratio
        self.verbose = verbose
        self.shuffle = shuffle
        self.callbacks = callbacks
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every
        self.resume = resume
        self.takeover = takeover
        self.time_limit = time_limit
        self.missing = missing
        self.holdout = holdout

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        W: Any = None,
        H: Any = None,
        client: Any = None,
        weights: Any = None,
    ) -> Self:
        """Learn the components of X.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            numpy, scipy.sparse, Dask (numpy or scipy.sparse chunks), zarr, xarray.DataArray,
            AnnData or a data frame; finite and >= 0.
        y : ignored
        W, H : arrays of shape (n_samples, k) and (k, n_features)
            Start for init='custom'.
        client : distributed.Client, optional
            Cluster to use; by default the active client if there is one, else threads.
        weights : array of shape (n_samples, n_features), optional
            How much each entry counts: booleans (True: observed) or numbers >= 0, in the kinds of
            X. What has weight 0 is not looked at, and neither is what a sparse one does not store.

        Raises
        ------
        DataError, ParameterError
            Both are ValueError. The estimator is then as it was before.
        TooLargeError
            The fit would run out of memory; nothing was read. A MemoryError.
        StoreError
            The checkpoint can't be used: another problem, another living process, no space.
        StoppedError
            A signal or the time limit ended the fit after a commit. A SystemExit with code 75.
        """
        self._fit(X, (W, H), client, weights, keep_rows=False)
        return self

    def fit_transform(
        self,
        X: Any,
        y: Any = None,
        W: Any = None,
        H: Any = None,
        *,
        client: Any = None,
        weights: Any = None,
    ) -> Any:
        """Learn the components of X and give W.

        Returns
        -------
        W : array of shape (n_samples, k)
            A Dask array with the row chunks of X, its blocks on the workers, where X is one;
            else numpy. Parameters as for ``fit``.
        """
        self._fit(X, (W, H), client, weights, keep_rows=True)
        return self.W_

    def _fit(
        self, X: Any, start: tuple[Any, Any], client: Any, weights: Any, *, keep_rows: bool
    ) -> None:
        """Fit, then set all attributes at once: a fit that fails leaves an earlier one usable."""
        loss, solver = parameters.check(self)
        parameters.check_observing(self, weights)
        resuming.check(self)
        known = {name: value for name, value in vars(self).items() if name in SEEN}
        try:
            found, fitted = self._fit_validated(
                X, start, client, weights, (loss, solver), keep_rows
            )
        except BaseException:  # an interrupt, too
            for name in SEEN:
                self.__dict__.pop(name, None)
            self.__dict__.update(known)
            raise
        self.__dict__.pop("W_", None)
        drop(self)
        self.__dict__.update(fitted, _names=inputs.labels_of(X))
        results.warn_of(self, found)

    def _fit_validated(
        self,
        X: Any,
        start: tuple[Any, Any],
        client: Any,
        weights: Any,
        using: tuple[Loss, Solver],
        keep_rows: bool,
    ) -> tuple[Result, dict[str, Any]]:
        X = validated(self, X, reset=True)
        loss, solver = using
        k = parameters.count_components(self, X.shape, *start)
        seed = resuming.seed_of(self)
        slabs = observed(
            cut(X), X, arrays.opened(inputs.unwrap(weights)), parameters.observing(self, seed)
        )
        factors = parameters.custom_factors(self, X.shape, k, *start)
        long, short = factors[::-1] if slabs.transposed else factors
        penalties = make_penalties(self.alpha_W, self.alpha_H, self.l1_ratio, X.shape)
        request = starts.Request(
            n_components=k,
            init=parameters.choose_init(self, solver, k, X.shape),
            seed=seed,
            loss=loss,
            solver=solver,
            penalties=penalties[::-1] if slabs.transposed else penalties,
            n_init=int(self.n_init),
            long=None if long is None else (long.T if slabs.transposed else long),
            short=None if short is None else (short if slabs.transposed else short.T),
        )
        with ExitStack() as stack:
            callbacks = tuple(self.callbacks or ())
            if self.verbose:
                callbacks += (stack.enter_context(progress.bar(self.max_iter)),)
            job = parameters.make_job(self, solver, k, slabs, keep_rows=keep_rows)
            executor = stack.enter_context(make_executor(slabs, client, job))
            callbacks += (events.teller(executor, self, solver.name, k),)
            settings = Settings(
                start=request,
                stop=RelativeChange(self.tol * job.waves, floor=self.tol**2),
                max_iter=int(self.max_iter),
                keep_rows=keep_rows,
                waves=job.waves,
                compress=parameters.choose_compression(self, request, executor),
                name=type(self).__name__,
                callbacks=callbacks,
            )
            keeper = stack.enter_context(resuming.opened(self, settings, executor))
            take = partial(results.fitted, self, executor=executor, X=X if keep_rows else None)
            return passes.fit(executor, settings, keeper, lambda found: (found, take(found)))

    def transform(self, X: Any, *, client: Any = None, weights: Any = None) -> Any:
        """Give W for X with the components as they are, each row on its own.

        Missing entries and ``weights`` mean what they mean in ``fit``; none is held out.

        Returns
        -------
        W : array of shape (n_samples, k)
            Where X is a Dask array, a lazy one with its row chunks: nothing is read until it is
            computed. Else numpy.

        Raises
        ------
        DataError
            X has another number of features, or bad values (for Dask: when computed).
        NotFittedError
            Before ``fit``.
        """
        check_is_fitted(self)
        X = validated(self, X, reset=False)
        parameters.check_observing(self, weights, fitting=False)
        rule = parameters.observing(self)
        slabs = observed(cut(X, whole_rows=True), X, arrays.opened(inputs.unwrap(weights)), rule)
        work = results.row_work(self, slabs, X.shape[0])
        if inputs.is_dask(X):
            return results.lazy_rows(slabs, work, X, type(self).__name__)
        with make_executor(slabs, client) as executor:
            return np.concatenate(results.solve_rows(executor, work, type(self).__name__))

    def save(self, store: Any, *, W: Any = None, overwrite: bool = False) -> None:
        """Write the model to one Zarr v3 group, which ``xarray.open_zarr`` opens.

        Parameters
        ----------
        store : str, path or zarr store
            Where to: a folder, or a URL that fsspec knows.
        W : array of shape (n_samples, k), optional
            Written along; by default ``W_`` where there is one.
        overwrite : bool
            Replace what is there.

        Raises
        ------
        StoreError
            The path exists; nothing was written.
        """
        check_is_fitted(self)
        results.save(self, store, getattr(self, "W_", None) if W is None else W, overwrite)

    @property
    def _n_features_out(self) -> int:
        return int(self.components_.shape[0])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.input_tags.sparse = True
        tags.input_tags.allow_nan = self.missing == "nan"
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
