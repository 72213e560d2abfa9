"""``partial_fit``: the model of X that comes in batches, one call a batch."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from dasknmf import parameters, resuming
from dasknmf.history import History
from dasknmf.numerics.errors import ParameterError, warn
from dasknmf.numerics.inspection import Inspection
from dasknmf.numerics.kernels import Array
from dasknmf.numerics.losses import Loss
from dasknmf.numerics.majorants import Sums, added, as_terms, bound, majorant
from dasknmf.numerics.penalties import make_penalties
from dasknmf.numerics.solvers import Solver, make_solver
from dasknmf.numerics.stopping import EXACT_BELOW, Outcome, RelativeChange
from dasknmf.numerics.terms import Normal
from dasknmf.numerics.work import SolveRows, Step
from dasknmf.parallel import inputs, make_executor
from dasknmf.parallel.blas import one_thread
from dasknmf.parallel.driver import half_step
from dasknmf.parallel.executors import Executor
from dasknmf.parallel.observing import observed
from dasknmf.parallel.slabs import cut
from dasknmf.parts import Seen
from dasknmf.validation import validated

if TYPE_CHECKING:
    from dasknmf.estimator import NMF

LIFT = 1e-3  # of the mean of a feature's coefficients
ALTERNATIONS = 10  # of rows and components on one batch, at most, where others have been seen


class Partial:
    """The method ``partial_fit`` of :class:`dasknmf.NMF`."""

    n_samples_seen_: int
    components_: Array

    def partial_fit(
        self, X: Any, y: Any = None, W: Any = None, H: Any = None, *, client: Any = None
    ) -> Self:
        """Learn from one batch of rows, and go on from what earlier batches have left.

        The first call is ``fit`` on its batch, so that one batch alone gives the model of ``fit``;
        it should have more rows than there are components. A later call solves the batch's rows
        exactly, as ``transform`` does, and the components from the sums of all batches so far
        (WᵀV and WᵀW; Kullback-Leibler: the numerators and denominators of its EM step), in turns
        until the objective of everything seen falls by at most ``tol`` of itself, ten times at
        most. Every row weighs the same; nothing fades. Earlier batches are not looked at again:
        their sums are those of the components that they met.

        A batch that comes again (the same values, in the same chunks) is not counted twice: it
        begins a new round, whose rows take the place of as many of the rounds before. Going through
        all batches over and over, in any order, so leads towards where ``fit`` goes.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            One batch, in any form that ``fit`` takes.
        y : ignored
        W, H : arrays of shape (n_samples, k) and (k, n_features)
            Start of the first call, for init='custom'.
        client : distributed.Client, optional

        Notes
        -----
        Afterwards ``n_samples_seen_`` counts the rows of all calls. ``history_`` has one entry a
        call: 'loss' and 'objective' are those of all that was seen, with rows as they were found in
        their call, so no less than ``transform`` of it all would give. ``n_iter_`` counts passes
        over batches. There is no ``W_``: ask ``transform``. The state is part of the model: it is
        pickled, saved and loaded with it, and ``fit`` drops it. After a ``fit`` without it the
        components are where it starts, and what was fitted has no weight.

        With ``missing`` as in ``fit``. ``checkpoint`` and ``holdout`` are for ``fit`` alone;
        ``callbacks`` see the passes of the first call.

        Raises
        ------
        DataError, ParameterError
            Another number of features or components, bad values, or parameters that do
            not go with batches. The estimator is then as it was before.
        """
        before = dict(vars(self))
        try:
            _partial_fit(self, X, (W, H), client)  # type: ignore[arg-type]
        except BaseException:  # an interrupt, too
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        return self


class Batch(NamedTuple):
    """One batch, ready to be visited with the components as they are."""

    model: NMF
    executor: Executor
    loss: Loss
    solver: Solver
    n_samples: int

    def visit(self, Ht: Array, *, look: bool) -> tuple[Sums, Inspection | None]:
        """Solve the rows for ``Ht``, and give what they leave behind."""
        loss, executor = self.loss, self.executor
        short = np.ascontiguousarray(Ht, dtype=executor.slabs.dtype)
        penalty = self._penalties(self.n_samples)[0]
        rows_solver = make_solver("auto", loss).safest()
        if rows_solver.carries_rows:
            model = self.model
            args = (loss, rows_solver, penalty, (short,), int(model.max_iter), float(model.tol))
            first = executor.run(SolveRows(*args), keep=True)
            self._refuse(first.sums)
            step = Step(loss, rows_solver, penalty, (short,), move=False)
            found, seen = executor.run(step, first.rows).sums, first.sums
        else:
            step = Step(loss, rows_solver, penalty, (short,), inspect=look)
            found = executor.run(step).sums
            seen = found.inspection
            if seen is not None:
                self._refuse(seen)
        squares = float("nan") if seen is None else seen.squares
        terms = majorant(loss, found.models[0].terms, short)
        return Sums(terms, found.models[0].penalty, squares, float(self.n_samples)), seen

    def lifted(self, Ht: Array) -> Array:
        """The components without exact zeros, where steps multiply and could not leave them.

        A feature that no batch has had yet is zero in all components, and equally lifted in all.
        """
        if not self._multiplies:
            return Ht
        mean = np.mean(Ht, axis=1, keepdims=True)
        floor = LIFT * np.where(mean > 0.0, mean, np.mean(Ht))
        return np.maximum(Ht, floor).astype(Ht.dtype, copy=False)

    def move(self, Ht: Array, sums: Sums) -> Array:
        """Step of the components."""
        penalty = self._penalties(sums.samples)[1]
        kl = self.loss.kind is not Normal  # whichever its solver: one kind of sums
        solver = make_solver("auto", self.loss).safest() if kl else self.solver
        return half_step(solver, Ht, as_terms(self.loss, sums.terms, Ht), penalty)

    def objective(self, Ht: Array, sums: Sums) -> float:
        """Of everything in ``sums``."""
        of_H = self._penalties(sums.samples)[1].value(Ht)
        return bound(self.loss, sums, Ht) + sums.penalty + of_H

    @property
    def _multiplies(self) -> bool:
        return self.loss.kind is not Normal or self.solver.name == "mu"

    def _penalties(self, samples: float) -> Any:
        m = self.model
        shape = (samples, m.n_features_in_)
        return make_penalties(m.alpha_W, m.alpha_H, m.l1_ratio, shape)  # type: ignore[arg-type]

    def _refuse(self, seen: Inspection) -> None:
        slabs, name = self.executor.slabs, type(self.model).__name__
        seen.raise_if_bad(False, name)
        seen.raise_if_out_of_range(slabs.dtype)
        self.loss.check_zeros(slabs.shape[0] * slabs.shape[1] - seen.positive)


def drop(model: Any) -> None:
    """Forget all batches."""
    for name in ("_seen", "n_samples_seen_"):
        model.__dict__.pop(name, None)


def _partial_fit(model: NMF, X: Any, start: tuple[Any, Any], client: Any) -> None:
    began = time.perf_counter()
    loss, solver = _checked(model)
    first = not hasattr(model, "components_")
    seen: Seen = getattr(model, "_seen", None) or Seen()
    if first:
        model._fit(X, start, client, None, keep_rows=False)
    elif any(factor is not None for factor in start):
        warn("W and H start the first call of partial_fit, and are ignored here.", RuntimeWarning)
    given = X
    X = validated(model, X, reset=False)
    slabs = observed(cut(X, whole_rows=True), X, None, parameters.observing(model))
    with one_thread(), make_executor(slabs, client) as executor:
        batch = Batch(model, executor, loss, solver, X.shape[0])
        found = _first(batch) if first else _next(batch, seen)
    _take_in(model, seen, found, began)
    if first or not hasattr(model, "_names"):
        model._names = inputs.labels_of(given).of_features()
    else:
        model._names = model._names.of_features()


def _checked(model: NMF) -> tuple[Loss, Solver]:
    """Refuse parameters that batches can't follow."""
    loss, solver = parameters.check(model)
    parameters.check_observing(model, None)
    resuming.check(model)
    if model.holdout:
        raise ParameterError(
            f"holdout={model.holdout!r} judges a fit by entries of the whole X, of which "
            "partial_fit sees one batch at a time. Use holdout=0, or fit."
        )
    if model.checkpoint is not None:
        raise ParameterError(
            f"checkpoint={model.checkpoint!r} keeps the runs of fit; what partial_fit has learnt "
            "is in the model. Use checkpoint=None, and save() it between the calls."
        )
    k = len(getattr(model, "components_", ()))
    wanted = model.n_components
    if k and wanted not in (None, "auto", k):
        raise ParameterError(
            f"n_components={wanted!r}, but the model has learnt {k} components from earlier "
            f"batches. Set n_components={k}, or begin with a new model."
        )
    return loss, solver


class Found(NamedTuple):
    """What a call ends with. ``sums``: of everything seen; ``passes``: over the batch."""

    Ht: Array
    sums: Sums
    kept: Seen
    batch: str
    loss: float
    objective: float
    passes: int
    outcome: Outcome
    n_samples: int


def _first(batch: Batch) -> Found:
    """The components are those of a fit; one more visit brings their sums."""
    model = batch.model
    Ht = model.components_.T
    sums, inspection = batch.visit(Ht, look=True)
    assert inspection is not None
    name = inspection.fingerprint(batch.executor.slabs.shape, batch.executor.slabs.dtype)
    loss, objective = (float(model.history_[which][-1]) for which in ("loss", "objective"))
    kept = Seen(sums, batches=frozenset({name}))
    return Found(
        Ht, sums, kept, name, loss, objective, model.n_iter_, model.outcome_, batch.n_samples
    )


def _next(batch: Batch, seen: Seen) -> Found:
    """Rows and components in turns, over the batch and the sums of those before."""
    model, slabs = batch.model, batch.executor.slabs
    Ht = batch.lifted(model.components_.T)
    sums, inspection = batch.visit(Ht, look=True)
    assert inspection is not None
    name = inspection.fingerprint(slabs.shape, slabs.dtype)
    seen = seen.started(name)
    past = seen.past(sums.samples)
    most = int(model.max_iter) if past is None else min(ALTERNATIONS, int(model.max_iter))
    rule = RelativeChange(float(model.tol), patience=1, floor=float(model.tol) ** 2)
    total = added(past, sums)
    size = 0.5 * total.squares if batch.loss.kind is Normal else 0.0
    objectives: list[float] = []
    while True:
        Ht = batch.move(Ht, total)
        objectives.append(batch.objective(Ht, total))
        done = rule.judge(objectives, EXACT_BELOW[slabs.dtype] * size, size)
        if done or len(objectives) == most:
            break
        sums, _ = batch.visit(Ht, look=False)
        sums = sums._replace(squares=inspection.squares)
        total = added(past, sums)
    loss = bound(batch.loss, total, Ht)
    kept = replace(seen, sums=added(seen.sums, sums), batches=seen.batches | {name})
    return Found(
        Ht,
        total,
        kept,
        name,
        loss,
        objectives[-1],
        len(objectives),
        Outcome.PARTIAL,
        batch.n_samples,
    )


def _take_in(model: NMF, seen: Seen, found: Found, began: float) -> None:
    """Set the attributes."""
    loss = parameters.make_loss(model.beta_loss)
    history, calls = seen.history, len(seen.history.loss)
    passes = (history.reads[-1] if calls else 0.0) + found.passes
    entry = {
        "loss": found.loss,
        "objective": found.objective,
        "relative_error": loss.relative(found.loss, found.sums.squares),
        "reads": passes,
        "models": 1,
        "seconds": (history.seconds[-1] if calls else 0.0) + time.perf_counter() - began,
        "holdout": float("nan"),
    }
    history = History(**{name: [*getattr(history, name), value] for name, value in entry.items()})
    earlier = model.fingerprint_ if calls else ""
    digest = hashlib.blake2b(f"{earlier} {found.batch}".encode(), digest_size=16).hexdigest()
    samples = getattr(model, "n_samples_seen_", 0) + found.n_samples
    model.__dict__.pop("W_", None)
    model.__dict__.update(
        components_=np.ascontiguousarray(found.Ht.T),
        n_components_=found.Ht.shape[1],
        reconstruction_err_=loss.error(found.loss),
        n_iter_=int(passes),
        history_=history.as_arrays(),
        outcome_=found.outcome,
        fingerprint_=digest,
        n_samples_seen_=samples,
        _n_samples=samples,
        _seen=replace(found.kept, history=history),
    )
