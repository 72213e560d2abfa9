"""How many components? A study of ranks, whose fits share every read of the matrix."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from dasknmf import (
    criteria,
    events,
    parameters,
    progress,
    refitting,
    results,
    resuming,
    resuming_study,
    sharing,
    studying,
)
from dasknmf.criteria import best_of, checked_ranks
from dasknmf.estimator import NMF
from dasknmf.history import Callback
from dasknmf.numerics.choosing import choose
from dasknmf.numerics.errors import ParameterError
from dasknmf.numerics.kernels import Array
from dasknmf.numerics.lots import Lot
from dasknmf.numerics.memory import Job
from dasknmf.numerics.restarts import Consensus
from dasknmf.numerics.stopping import RelativeChange
from dasknmf.parallel import inputs, make_executor, starts
from dasknmf.parallel.observing import observed
from dasknmf.parallel.scarce import start_widths
from dasknmf.parallel.slabs import Slabs, cut
from dasknmf.settings import Settings
from dasknmf.storage import arrays, studies
from dasknmf.studying import Study
from dasknmf.validation import validated

logger = logging.getLogger("dasknmf")


class RankStudy(BaseEstimator):
    """All ranks and restarts as one ensemble: they share every read of X.

    No restart is dropped for losing: each begins by itself (on a sample of X, in memory) and goes
    on until it has converged, or the best of its rank has, so that what they agree on says
    something. Only solvers with rows that are solved anew in each pass can share reads: ``als`` and
    ``newton``.

    Parameters
    ----------
    ranks : iterable of int, default=range(2, 11)
        Numbers of components, all different, from 1 to min(n_samples, n_features); in any order,
        and sorted.
    n_init : int, default=10
        Restarts of each rank. With 1, stability is undefined: nan.
    solver : {'auto', 'als', 'newton'}, default='auto'
        ``als`` for 'frobenius', ``newton`` for 'kullback-leibler'.
    holdout : float, default=0.05
        Share of the observed entries hidden from all fits, by a hash of ``random_state``, row and
        column: their errors tell a rank too many. 0: none.
    folds : (int, int) or None, default=None
        Bi-cross-validation in the place of ``holdout``: rows and columns of X are cut into so many
        groups by a hash of ``random_state``, and every block of a group of rows and one of columns
        is held out of one more fit of each rank, in the same reads. Least squares only. Rows and
        columns of the block are then solved from the rest of their own columns and rows, as Owen &
        Perry 2009 do (see :mod:`dasknmf.numerics.blocks`); (2, 2) is what they advise. ``model``
        gives fits of all of X.
    waves, beta_loss, tol, max_iter, random_state, alpha_W, alpha_H, l1_ratio, verbose, callbacks, \
missing
        As for :class:`dasknmf.NMF`. Callbacks see the best model of those that still go on.
    checkpoint, checkpoint_every, resume, takeover, time_limit
        As for :class:`dasknmf.NMF`. ``dasknmf.load`` of the run gives the study, whether done or
        not. Only ``max_iter`` may change when it goes on.

    Attributes
    ----------
    best_rank_, runner_up_ : int
        By the rule in ``rule_`` (see :mod:`dasknmf.numerics.choosing`); no runner-up is None.
    rule_ : str
        What chose the rank, and the runner-up.
    ranks_ : tuple of int
        Ascending.
    stabilities_ : dict of ndarray
        For each rank the stability of every matched component, (k,); nan for n_init=1.
    consensus_ : dict of ndarray
        For each rank how often restarts put two samples together, for up to 1000 of them, drawn by
        ``random_state``: ``samples_``. Empty for n_init=1.
    reads_ : float
        Of X.
    n_iter_ : int
        Passes of the longest fit.
    history_ : dict of ndarray
        A pass an entry, as of NMF, of the best model that took part.
    fingerprint_ : str
        Digest of X's shape, dtype and values.

    Examples
    --------
    >>> import numpy as np
    >>> from dasknmf import RankStudy
    >>> rng = np.random.default_rng(0)
    >>> X = rng.gamma(0.5, 1.0, (200, 3)) @ rng.gamma(0.5, 1.0, (3, 40)) + 0.01 * rng.random((200, 40))
    >>> study = RankStudy(ranks=range(1, 6), n_init=4, random_state=0).fit(X)
    >>> study.best_rank_
    3
    """  # noqa: E501

    def __init__(
        self,
        ranks: Any = range(2, 11),
        *,
        n_init: int = 10,
        solver: str = "auto",
        beta_loss: str | float = "frobenius",
        tol: float = 1e-4,
        max_iter: int = 200,
        random_state: Any = None,
        holdout: float = 0.05,
        folds: tuple[int, int] | None = None,
        missing: str | None = None,
        waves: int | str = "auto",
        alpha_W: float = 0.0,
        alpha_H: float | str = "same",
        l1_ratio: float = 0.0,
        verbose: int = 0,
        callbacks: Sequence[Callback] | None = None,
        checkpoint: Any = None,
        checkpoint_every: Any = 1,
        resume: str = "auto",
        takeover: bool = False,
        time_limit: Any = None,
    ) -> None:
        self.ranks = ranks
        self.n_init = n_init
        self.solver = solver
        self.beta_loss = beta_loss
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.holdout = holdout
        self.folds = folds
        self.missing = missing
        self.waves = waves
        self.alpha_W = alpha_W
        self.alpha_H = alpha_H
        self.l1_ratio = l1_ratio
        self.verbose = verbose
        self.callbacks = callbacks
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every
        self.resume = resume
        self.takeover = takeover
        self.time_limit = time_limit

    def fit(self, X: Any, y: Any = None, *, client: Any = None, weights: Any = None) -> Self:
        """Fit all ranks, all restarts.

        Parameters and errors as for :meth:`dasknmf.NMF.fit`; ranks that are no integers, below 1,
        above min(n_samples, n_features) or given twice are a ParameterError, before X is read.
        """
        ranks = checked_ranks(self.ranks)
        template = self._model(ranks[-1])
        sharing.check(template, weights)
        folds = sharing.checked_folds(self.folds, template)
        resuming.check(template)
        known = dict(vars(self))
        try:
            X = validated(self, X, reset=True)
            if ranks[-1] > min(X.shape):
                raise ParameterError(
                    f"ranks up to {ranks[-1]} are larger than min(n_samples, n_features)="
                    f"{min(X.shape)}: fewer components reproduce X exactly. Use ranks up to that."
                )
            seed = resuming.seed_of(template)
            slabs = observed(
                cut(X),
                X,
                arrays.opened(inputs.unwrap(weights)),
                parameters.observing(template, seed),
            )
            planned = sharing.lots_of_ranks(template, ranks, folds, slabs, seed)
            found = self._study(template, planned, slabs, seed, client, self)
            self._take_in(found, ranks)
        except BaseException:  # an interrupt, too: what an earlier fit found stays
            self.__dict__.clear()
            self.__dict__.update(known)
            raise
        every: list[Any] = [*chain(*found.restarts), *found.folded]
        sharing.warn_unfinished(every, self)
        return self

    def _model(self, k: int) -> NMF:
        """An NMF of rank k with the parameters of the study."""
        given = self.get_params(deep=False)
        del given["ranks"], given["folds"]
        return NMF(k, **{**given, "holdout": 0.0 if self.folds is not None else self.holdout})

    def _study(
        self,
        template: NMF,
        lots: tuple[Lot, ...],
        slabs: Slabs,
        seed: int,
        client: Any,
        estimator: BaseEstimator,
    ) -> Study:
        loss, solver = parameters.check(template)
        request = starts.Request(
            n_components=max(lot.k for lot in lots),
            init="random" if self.missing == "unstored" else "sample",
            seed=seed,
            loss=loss,
            solver=solver,
            penalties=lots[-1].penalties,
            n_init=int(self.n_init),
        )
        one = parameters.make_job(template, solver, request.n_components, slabs, keep_rows=False)
        widths = start_widths(starts.probed(lots), slabs) if one.probes else {}
        job = Job(**{**vars(one), "models": sharing.models_of(lots), **widths})
        with ExitStack() as stack:
            callbacks = tuple(self.callbacks or ())
            if self.verbose:
                callbacks += (stack.enter_context(progress.bar(self.max_iter)),)
            executor = stack.enter_context(make_executor(slabs, client, job))
            ks = sorted({lot.k for lot in lots})
            callbacks += (events.teller(executor, estimator, solver.name, ks),)
            settings = Settings(
                start=request,
                stop=RelativeChange(self.tol * job.waves, floor=self.tol**2),
                max_iter=int(self.max_iter),
                keep_rows=False,
                waves=job.waves,
                name=type(estimator).__name__,
                callbacks=callbacks,
            )
            keeper = stack.enter_context(
                resuming_study.opened(self, template, lots, settings, executor)
            )
            return studying.study(executor, settings, lots, keeper)

    def _take_in(self, found: Study, ranks: tuple[int, ...]) -> None:
        """Set all that is known of a study."""
        self.ranks_ = ranks
        self.samples_ = found.samples
        self.reads_ = found.reads
        self.history_ = found.history
        self._restarts = dict(zip(ranks, found.restarts, strict=True))
        self.n_iter_ = max(r.n_iter for of_rank in found.restarts for r in of_rank)
        self.fingerprint_ = found.fingerprint
        self._n_samples = found.shape[0]
        self._best = {k: best_of(of_rank) for k, of_rank in self._restarts.items()}
        of_table = criteria.tabulated(self._restarts, found, blocks=self.folds is not None)
        self._table, self.stabilities_, self.consensus_ = of_table
        choice = choose(
            self._table["rank"], self._table["holdout_error"], self._table["silhouette"]
        )
        self.best_rank_, self.runner_up_, self.rule_ = choice
        logger.info("%s", self.rule_)

    def table(self) -> Array:
        """One row a rank.

        Returns
        -------
        table : structured array
            ``rank``; of the restart with the lowest objective ``loss``, ``explained_variance``
            (1 - ||X - WH||² / ||X||²), ``sparseness`` (Hoyer's, mean of the components) and
            ``holdout_error`` (mean squared error on hidden entries, or mean deviance; what is
            foreseen counts as at most the largest entry of X); of all restarts ``stability`` (mean
            cosine of matched components), ``silhouette``, ``cophenetic`` and ``dispersion`` (of the
            consensus of samples). With ``folds`` the hold-out error is that of all blocks, not cut
            off, and ``holdout_se`` its standard error, from the means of the blocks.
            nan: undefined. ``pandas.DataFrame`` takes it as it is.
        """
        check_is_fitted(self)
        return self._table.copy()

    def model(self, rank: int | None = None) -> NMF:
        """The best restart of a rank (by default ``best_rank_``) as a fitted NMF.

        ``transform`` gives its W: the study keeps none.
        """
        k = self._studied(rank)
        return sharing.as_fitted(self._unfitted(k), self._best[k], self)

    def consensus_components(
        self, rank: int | None = None, *, threshold: float = 0.5, neighbours: float = 0.3
    ) -> Consensus:
        """What the restarts of a rank have in common: cNMF's consensus (Kotliar et al. 2019).

        Components of all restarts, of unit length, are matched into k clusters. Those far from
        their neighbours are left out, and each cluster gives the median of what is left.

        Parameters
        ----------
        rank : int, optional
            By default ``best_rank_``.
        threshold : float
            A component whose mean Euclidean distance to its neighbours reaches it is an outlier
            (cNMF's ``density_threshold``); 2 keeps all.
        neighbours : float
            How many, as a part of the restarts, in (0, 1].

        Returns
        -------
        Consensus
            ``components`` (k, n_features), float64, of unit length, in the order of those of
            ``model(rank)``; ``kept`` (k,), the restarts behind each; ``density`` (n_init, k), the
            distances that ``threshold`` is compared to.

        Raises
        ------
        ParameterError
            The rank was not studied; n_init=1, of which there is no consensus.
        """
        k = self._studied(rank)
        components = np.stack([restart.H for restart in self._restarts[k]])
        best = min(range(len(components)), key=lambda r: self._restarts[k][r].objective)
        return refitting.consensus_of(components, best, threshold, neighbours)

    def consensus_model(
        self,
        X: Any,
        rank: int | None = None,
        *,
        threshold: float = 0.5,
        neighbours: float = 0.3,
        client: Any = None,
        weights: Any = None,
    ) -> NMF:
        """A fitted NMF whose components are the consensus, with W solved anew: one read of X.

        ``W_``, ``reconstruction_err_`` and ``history_`` (of that read) are of X; a component is as
        long as that of ``model(rank)``. Parameters and errors as for ``consensus_components`` and
        :meth:`dasknmf.NMF.transform`.
        """
        found = self.consensus_components(rank, threshold=threshold, neighbours=neighbours)
        k = self._studied(rank)
        components = refitting.lengths(found.components, self._best[k].H)
        return refitting.refit(self._unfitted(k), components, X, client, weights)

    def _studied(self, rank: int | None) -> int:
        check_is_fitted(self)
        k = self.best_rank_ if rank is None else rank
        if k not in self._best:
            raise ParameterError(f"rank={rank!r} was not studied; expected one of {self.ranks_}.")
        return int(k)

    def _unfitted(self, k: int) -> NMF:
        """A model of rank k that knows the features of X; the run is the study's, not its own."""
        model = self._model(k).set_params(**resuming_study.NO_RUN)
        model.n_features_in_ = self.n_features_in_
        if hasattr(self, "feature_names_in_"):
            model.feature_names_in_ = self.feature_names_in_
        return model

    def plot(self, axes: Any = None) -> list[Any]:
        """A panel for each column of the table, with ``best_rank_`` marked (matplotlib)."""
        check_is_fitted(self)
        from dasknmf.plotting import plot_ranks

        return plot_ranks(self._table, self.best_rank_, axes)

    def report(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write one self-contained HTML file: the choice, table, pictures, how to repeat it."""
        check_is_fitted(self)
        from dasknmf.report_study import report_study

        return report_study(self, path, overwrite=overwrite)

    def save(self, store: Any, *, overwrite: bool = False) -> None:
        """Write the table, and the model of every rank as group ``rank_<k>`` below ``store``.

        ``dasknmf.load(f"{store}/rank_7")`` gives the model of rank 7.
        """
        check_is_fitted(self)
        records = {k: results.record_of(self.model(k), None) for k in self.ranks_}
        about = {
            "best_rank": self.best_rank_,
            "runner_up": self.runner_up_,
            "rule": self.rule_,
            "reads": self.reads_,
            "n_init": int(self.n_init),
            "fingerprint": self.fingerprint_,
            "provenance": results.provenance(),
        }
        table = {name: self._table[name] for name in self._table.dtype.names or ()}
        studies.write(records, table, about, store, overwrite)
