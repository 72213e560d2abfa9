"""The parameters of a fit: what is refused, and what is chosen where nothing is said."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import scipy.sparse as sp
from sklearn.utils import check_random_state

from dasknmf.numerics import compression, planning
from dasknmf.numerics.errors import FactorWarning, ParameterError, warn
from dasknmf.numerics.kernels import Array
from dasknmf.numerics.losses import Loss, make_loss
from dasknmf.numerics.memory import Job
from dasknmf.numerics.observed import NAN, UNSTORED, ZERO, Holdout, Rule
from dasknmf.numerics.penalties import make_penalties
from dasknmf.numerics.solvers import Solver, make_solver
from dasknmf.numerics.terms import Normal, Split
from dasknmf.parallel import starts
from dasknmf.parallel.executors import Executor
from dasknmf.parallel.scarce import start_widths

if TYPE_CHECKING:
    from dasknmf.estimator import NMF
    from dasknmf.parallel.slabs import Slabs

MISSING = {None: ZERO, "nan": NAN, "unstored": UNSTORED}


def check(model: NMF) -> tuple[Loss, Solver]:
    """Refuse parameters that make no sense; give the loss and the solver that they name."""
    _expect_integer("max_iter", model.max_iter, 1)
    _expect_number("tol", model.tol, "a finite number >= 0")
    _expect_number("alpha_W", model.alpha_W, "a finite number >= 0")
    if not isinstance(model.alpha_H, str):
        _expect_number("alpha_H", model.alpha_H, "a finite number >= 0 or 'same'")
    _expect_number("l1_ratio", model.l1_ratio, "a number from 0 (L2) to 1 (L1)")
    if not isinstance(model.solver, str):
        raise ParameterError(f"solver={model.solver!r}; expected its name, e.g. 'auto'.")
    if model.init is not None and not (isinstance(model.init, str) and model.init in starts.NAMES):
        raise ParameterError(
            f"init={model.init!r} is unknown; expected None or one of {list(starts.NAMES)}."
        )
    if isinstance(model.n_components, str):
        if model.n_components != "auto":
            raise ParameterError(
                f"n_components={model.n_components!r}; expected an integer >= 1, None or 'auto'."
            )
    elif model.n_components is not None:
        _expect_integer("n_components", model.n_components, 1)
    _expect_callables(model.callbacks)
    _expect_integer("n_init", model.n_init, 1)
    loss = make_loss(model.beta_loss)
    solver = make_solver(model.solver, loss)
    make_penalties(model.alpha_W, model.alpha_H, model.l1_ratio, (1, 1))
    check_random_state(model.random_state)
    _expect_waves(model.waves, solver)
    _expect_starts(model, solver)
    _expect_compression(model.compress, solver, loss)
    if solver.name == "mu" and model.init == "nndsvd":
        warn(
            "solver='mu' can't move the exact zeros of init='nndsvd'. Use 'nndsvda' or 'nndsvdar'.",
            UserWarning,
        )
    return loss, solver


def observing(model: NMF, seed: int | None = None) -> Rule:
    """The rule by which entries count; nothing is held out without a ``seed``."""
    held = None if seed is None or not model.holdout else Holdout(float(model.holdout), seed)
    return Rule(MISSING[model.missing], held)


def check_observing(model: NMF, weights: Any, *, fitting: bool = True) -> None:
    """Refuse missing entries, weights and hold-outs that solver, start or loss can't follow."""
    missing = model.missing
    if not (missing is None or isinstance(missing, str)) or missing not in MISSING:
        raise ParameterError(
            f"missing={missing!r}; expected None (no entry is), 'nan' (those that are NaN) or "
            "'unstored' (those that a sparse X does not store)."
        )
    _expect_number("holdout", model.holdout, "a share from 0 (none) to below 1")
    if model.holdout >= 1:
        raise ParameterError(
            f"holdout={model.holdout!r}; expected a share from 0 (none) to below 1."
        )
    if weights is None and missing is None and not model.holdout:
        return
    loss = make_loss(model.beta_loss)
    solver = make_solver(model.solver, loss)
    if solver.name not in ("als", "newton"):
        raise ParameterError(
            f"solver={solver.name!r} with beta_loss={loss.name!r} takes every entry for equal: "
            "missing=, holdout= and weights= need rows that are solved anew in each pass. Use "
            "solver='als' with beta_loss='frobenius', or 'newton' with 'kullback-leibler'."
        )
    if fitting and str(model.init).startswith("nndsvd"):
        raise ParameterError(
            f"init={model.init!r} needs the singular vectors of a whole X: missing=, holdout= and "
            "weights= leave entries out. Use init='sample' or 'random'."
        )


def count_components(model: NMF, shape: tuple[int, int], W: Any, H: Any) -> int:
    """Give k, with a warning where fewer would do."""
    if model.n_components not in (None, "auto"):
        k = int(model.n_components)
        if k > min(shape):
            warn(
                f"n_components={k} is larger than min(n_samples, n_features)={min(shape)}: "
                "fewer reproduce X exactly.",
                FactorWarning,
            )
        return k
    if model.n_components == "auto" and model.init == "custom":
        if H is not None:
            return int(np.shape(H)[0]) if np.ndim(H) == 2 else shape[1]
        if W is not None:
            return int(np.shape(W)[1]) if np.ndim(W) == 2 else shape[1]
    return shape[1]


def choose_init(model: NMF, solver: Solver, k: int, shape: tuple[int, int]) -> str:
    """Give the start; where none is named, the best that this solver has."""
    if model.init not in (None, "auto"):
        return str(model.init)
    if solver.takes_waves:  # of what is mostly missing a sample knows too little of each column
        return "random" if model.missing == "unstored" else "sample"
    return "nndsvda" if model.n_init == 1 and k <= min(shape) else "random"


def count_waves(model: NMF, solver: Solver, slabs: Slabs, k: int) -> int:
    """How often a pass updates the short factor."""
    if model.waves != "auto":
        return min(int(model.waves), len(slabs))
    if not solver.takes_waves:
        return 1
    rows, columns = slabs.shape
    curved = solver.curvature_bytes(columns, k) > 0
    return planning.count_waves(len(slabs), rows // max(columns, 1) if curved else None)


def choose_compression(model: NMF, request: starts.Request, executor: Executor) -> bool:
    """Whether passes go on on compressed rows between the reads."""
    slabs, forced = executor.slabs, _forces(model.compress)
    able = request.loss.kind is Normal and not request.solver.carries_rows
    if slabs.observed:
        if forced:
            raise ParameterError(
                "compress=True with missing entries, weights or a hold-out: compressed columns "
                "know no single entries. Use compress='auto' or False."
            )
        return False
    if not model.compress or slabs.sparse or not able:
        if forced:
            raise ParameterError(
                f"compress=True with a sparse X: its {slabs.shape[1]} columns would become fewer, "
                "but dense ones. Use compress='auto' or False, or a dense X."
            )
        return False
    width = compression.width(request.n_components, min(request.n_init, starts.MODELS), slabs.shape)
    nbytes = slabs.shape[0] * width * slabs.dtype.itemsize
    fits = executor.room is None or nbytes <= executor.room
    pays = compression.pays(
        slabs.shape, slabs.dtype.itemsize, width, lazy=slabs.graph is not None, fits=fits
    )
    return forced or pays


def make_job(model: NMF, solver: Solver, k: int, slabs: Slabs, *, keep_rows: bool) -> Job:
    """What the memory plan has to know of a fit."""
    init = model.init
    if init in (None, "auto") and solver.takes_waves and model.missing != "unstored":
        init = "sample"
    probing = init == "sample" and may_probe(slabs, model.beta_loss)
    return Job(
        k=k,
        models=min(int(model.n_init), starts.MODELS) if init == "sample" else int(model.n_init),
        waves=count_waves(model, solver, slabs, k),
        carries_rows=solver.carries_rows,
        split=make_loss(model.beta_loss).kind is Split,
        curvature=_curvature(solver, slabs, k),
        commits=model.checkpoint is not None,
        keep_rows=keep_rows,
        **(start_widths([k], slabs) if probing else {}),
    )


def may_probe(slabs: Slabs, beta_loss: Any) -> bool:
    """Whether a start may come from singular vectors of all of V: where a sample may be scarce."""
    return slabs.sparse and not slabs.observed and make_loss(beta_loss).kind is Normal


def _curvature(solver: Solver, slabs: Slabs, k: int) -> int:
    """Bytes of what the terms of one model hold a column: its own Gram matrix, or its mass."""
    needed, columns = solver.curvature_bytes(slabs.shape[1], k), slabs.shape[1]
    if not slabs.observed:
        return needed
    return 8 * columns * k * (k + 1) // 2 if solver.name == "als" else needed + 8 * columns * k


def custom_factors(model: NMF, shape: tuple[int, int], k: int, W: Any, H: Any) -> tuple[Any, Any]:
    """Check W and H against the data; (None, None) unless they are to be used."""
    if model.init != "custom":
        if W is not None or H is not None:
            warn(
                "W and H are used with init='custom' only, and ignored here.",
                RuntimeWarning,
            )
        return None, None
    if W is None and H is None:
        raise ParameterError("init='custom' needs W, H or both: fit_transform(X, W=..., H=...).")
    checked = [
        None if factor is None else _checked_factor(name, factor, expected)
        for name, factor, expected in (("W", W, (shape[0], k)), ("H", H, (k, shape[1])))
    ]
    return checked[0], checked[1]


def _expect_waves(waves: Any, solver: Solver) -> None:
    if isinstance(waves, str):
        if waves != "auto":
            raise ParameterError(f"waves={waves!r}; expected an integer >= 1 or 'auto'.")
        return
    _expect_integer("waves", waves, 1)
    if waves > 1 and not solver.takes_waves:
        raise ParameterError(
            f"waves={waves} needs rows that are solved anew in each pass, which "
            f"solver={solver.name!r} does not. Use solver='als' or 'newton', or waves='auto'."
        )


def _forces(compress: Any) -> bool:
    return isinstance(compress, bool | np.bool_) and bool(compress)


def _expect_compression(compress: Any, solver: Solver, loss: Loss) -> None:
    if not isinstance(compress, bool | np.bool_) and not (
        isinstance(compress, str) and compress == "auto"
    ):
        raise ParameterError(f"compress={compress!r}; expected True, False or 'auto'.")
    if _forces(compress) and (solver.carries_rows or loss.kind is not Normal):
        raise ParameterError(
            f"compress=True with solver={solver.name!r} and beta_loss={loss.name!r}: compressed "
            "rows serve least squares with rows that are solved anew in each pass. Use "
            "solver='als' with beta_loss='frobenius', or compress='auto'."
        )


def _expect_starts(model: NMF, solver: Solver) -> None:
    """Refuse a start that the solver can't use, or more of them than there are."""
    if model.init == "sample" and not solver.takes_waves:
        raise ParameterError(
            f"init='sample' gives no rows, and solver={solver.name!r} begins with some. Use "
            "init='auto', or solver='als' or 'newton'."
        )
    if model.n_init > 1 and model.init not in (None, "auto", "sample", "random"):
        raise ParameterError(
            f"n_init={model.n_init} with init={model.init!r}, of which there is only one. Use "
            "n_init=1, or init='auto' or 'random'."
        )


def _expect_callables(callbacks: Any) -> None:
    if callbacks is None:
        return
    if callable(callbacks) or not all(callable(callback) for callback in callbacks):
        raise ParameterError(
            f"callbacks={callbacks!r}; expected a list of functions of one argument, a PassInfo."
        )


def _expect_integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral) or value < least:
        raise ParameterError(f"{name}={value!r}; expected an integer >= {least}.")


def _expect_number(name: str, value: Any, expected: str) -> None:
    number = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    if not number or not np.isfinite(value) or value < 0:
        raise ParameterError(f"{name}={value!r}; expected {expected}.")


def seed_of(random_state: Any) -> int:
    """Give the seed of the counter-based streams; a generator moves on by one draw."""
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def _checked_factor(name: str, factor: Any, expected: tuple[int, int]) -> Array:
    """Give a custom factor as numpy, or raise an error that says what is wrong with it."""
    if isinstance(factor, da.Array):
        factor = factor.compute()
    array = factor.toarray() if sp.issparse(factor) else np.asarray(factor)
    if array.shape != expected:
        raise ParameterError(
            f"custom {name} has shape {array.shape}; expected {expected}: "
            + ("(n_samples, k)." if name == "W" else "(k, n_features).")
        )
    if array.dtype.kind not in "biuf":
        raise ParameterError(f"custom {name} has dtype {array.dtype}; expected real numbers.")
    for what, wrong in (
        ("NaN", np.isnan(array)),
        ("inf", np.isinf(array)),
        ("negative", array < 0),
    ):
        if wrong.any():
            first = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise ParameterError(
                f"custom {name} has {int(wrong.sum())} {what} values, the first at {first}; "
                "expected finite values >= 0."
            )
    if not array.any():
        raise ParameterError(f"custom {name} is all zero, a start that nothing can leave.")
    return array
