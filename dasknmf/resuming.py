"""The run that a fit belongs to: opened for an estimator, and read again as a model."""

from __future__ import annotations

import hashlib
import os
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from dask.utils import parse_timedelta

from dasknmf import parameters, results
from dasknmf.checkpointing import Cadence, CheckpointKeeper, Keeper
from dasknmf.numerics.errors import (
    DamagedError,
    MissingError,
    ParameterError,
    ProblemMismatchError,
    StoreError,
)
from dasknmf.numerics.kernels import Array
from dasknmf.numerics.losses import make_loss
from dasknmf.packing import Packed, unpack
from dasknmf.parallel import configuration
from dasknmf.parallel.executors import Executor
from dasknmf.settings import Settings
from dasknmf.signals import Stop, listening
from dasknmf.snapshots import Shown, Snapshot, read_objects, snapshot_of
from dasknmf.state import State
from dasknmf.storage import blobs
from dasknmf.storage.manifests import Commit
from dasknmf.storage.objects import Objects, open_objects, probe
from dasknmf.storage.rows import RowReader
from dasknmf.storage.runs import RESUME, Run
from dasknmf.storage.survey import read_about, read_newest

if TYPE_CHECKING:
    from dasknmf.estimator import NMF
    from dasknmf.study import RankStudy


def cadence_of(every: Any) -> Cadence:
    """Passes from an integer, seconds from ``"90s"``, ``"10min"`` or a timedelta."""
    refusal = ParameterError(
        f"checkpoint_every={every!r}; expected passes as an integer >= 1, or a time such as "
        "'10min' or a timedelta."
    )
    if isinstance(every, bool) or every is None:
        raise refusal
    if isinstance(every, int | np.integer):
        if every < 1:
            raise refusal
        return Cadence(passes=int(every))
    return Cadence(None, _seconds(every, refusal))


def limit_of(time_limit: Any) -> float | None:
    """Seconds of a time limit; None: there is none."""
    if time_limit is None:
        return None
    refusal = ParameterError(
        f"time_limit={time_limit!r}; expected seconds, a time such as '55min', or a timedelta."
    )
    return _seconds(time_limit, refusal)


def _seconds(given: Any, refusal: ParameterError) -> float:
    if isinstance(given, str) and given.endswith("min"):
        given = given[:-2]  # what Dask calls "m"
    try:
        seconds = float(parse_timedelta(given))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise refusal from None
    if not (0.0 < seconds < float("inf")):
        raise refusal
    return seconds


def check(model: NMF) -> None:
    """Refuse parameters of a checkpoint that make no sense, or that need one."""
    cadence_of(model.checkpoint_every)
    limit_of(model.time_limit)
    if model.resume not in RESUME:
        raise ParameterError(f"resume={model.resume!r}; expected one of {list(RESUME)}.")
    if model.checkpoint is None:
        if model.time_limit is not None:
            raise ParameterError(
                f"time_limit={model.time_limit!r} needs checkpoint=...: what a fit has done by "
                "then would be lost."
            )
        if model.resume == "must":
            raise ParameterError("resume='must' needs checkpoint=...: the path to go on from.")
        return
    if not isinstance(model.checkpoint, str | os.PathLike):
        raise ParameterError(
            f"checkpoint={model.checkpoint!r:.200}; expected a folder, or a URL such as s3://..."
        )


def seed_of(model: NMF) -> int:
    """The seed of a fit: given, or that with which its run began, or drawn."""
    if model.random_state is None and model.checkpoint is not None:
        with suppress(MissingError):
            meta: Any = read_newest(open_objects(model.checkpoint)).meta
            if type(meta.get("seed")) is not int:
                raise StoreError(f"the newest commit of {model.checkpoint} holds no seed")
            return int(meta["seed"])
    return parameters.seed_of(model.random_state)


@dataclass(frozen=True)
class Kept:
    """What a run is told of what it keeps.

    problem
        What must be the same for a fit to go on.
    about
        JSON of the estimator that every commit carries.
    snapshot
        Of a state, and of one that is done.
    rows
        Whether workers write, too.
    """

    problem: dict[str, Any]
    about: dict[str, Any]
    snapshot: Callable[[State, Packed | None], Snapshot]
    rows: bool


@contextmanager
def opened(model: NMF, settings: Settings, executor: Executor) -> Iterator[Keeper]:
    """The keeper of a fit."""
    if model.checkpoint is None:
        yield Keeper()
        return
    slabs, carries = executor.slabs, settings.solver.carries_rows
    kept = Kept(
        problem=problem_of(model, settings, executor),
        about={"seed": settings.start.seed, "model": results.about(model, slabs)},
        snapshot=partial(snapshot_of, slabs, carries),
        rows=carries or settings.compress or slabs.transposed,
    )
    with keeping(model, kept, executor) as keeper:
        yield keeper


@contextmanager
def keeping(model: NMF, kept: Kept, executor: Executor) -> Iterator[Keeper]:
    """Start the run that ``model.checkpoint`` names, and end it."""
    objects = open_objects(model.checkpoint)
    stop = Stop(limit_of(model.time_limit))
    with ExitStack() as stack:
        stack.enter_context(listening(stop))  # a signal from now on waits for a commit
        _refuse_another_kind(objects, kept.problem)
        run = stack.enter_context(
            Run.start(
                objects,
                kept.problem,
                resume=model.resume,
                takeover=bool(model.takeover),
                keep=configuration.count("checkpoint.keep", 1),
            )
        )
        _probe(objects, executor, rows=kept.rows)
        keeper = CheckpointKeeper(
            run,
            executor.slabs,
            cadence_of(model.checkpoint_every),
            kept.about,
            stop,
            kept.snapshot,
            failures=configuration.count("checkpoint.failures", 0),
        )
        stack.callback(keeper.close)
        yield keeper


def _refuse_another_kind(objects: Objects, given: dict[str, Any]) -> None:
    """Say so where a study is given the run of a fit, before all that differs is named."""
    try:
        there = read_about(objects).problem.get("estimator")
    except MissingError:
        return
    if there != given["estimator"]:
        raise ProblemMismatchError(
            f"{objects.url} holds a run of {there}, and {given['estimator']} was given: neither "
            "goes on with what the other keeps. Choose another checkpoint path. Nothing was "
            "changed."
        )


def problem_of(model: NMF, settings: Settings, executor: Executor) -> dict[str, Any]:
    """What must be the same for a fit to go on: everything that the numbers depend on."""
    slabs, start = executor.slabs, settings.start
    heights = ",".join(str(place.stop - place.start) for place in slabs.places)
    state = model.random_state
    custom = [F for F in (start.long, start.short) if F is not None]
    return {
        "estimator": type(model).__name__,
        "shape": list(slabs.shape[::-1] if slabs.transposed else slabs.shape),
        "dtype": str(slabs.dtype),
        "sparse": bool(slabs.sparse),
        "blocks": f"{len(slabs)} ({zlib.crc32(heights.encode()):08x})",
        "n_components": start.n_components,
        "init": start.init,
        "custom": [_digest(F) for F in custom],
        "n_init": start.n_init,
        "waves": settings.waves,
        "compress": str(model.compress),
        "solver": settings.solver.name,
        "beta_loss": settings.loss.name,
        "alpha_W": float(model.alpha_W),
        "alpha_H": model.alpha_H if isinstance(model.alpha_H, str) else float(model.alpha_H),
        "l1_ratio": float(model.l1_ratio),
        "random_state": None if state is None else start.seed,
        "missing": model.missing,
        "holdout": float(model.holdout),
    }


def _digest(factor: Array) -> str:
    data = np.ascontiguousarray(factor, dtype=np.float64).tobytes()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@dataclass(frozen=True)
class _Look:
    """See what the client wrote, and write beside it."""

    objects: Objects
    key: str

    def __call__(self) -> str:
        """Name of what was written."""
        self.objects.get(self.key, 100)
        mine = f"{self.key}-{uuid.uuid4().hex[:16]}"
        self.objects.put(mine, b"worker")
        return mine


def _probe(objects: Objects, executor: Executor, *, rows: bool) -> None:
    """Refuse a path that can't be written to, or that workers which have to don't see."""
    probe(objects)
    if not rows:
        return
    key = f"probe-{uuid.uuid4().hex[:16]}"
    objects.put(key, b"client")
    found = executor.everywhere(_Look(objects, key))
    seen = set(objects.list())
    blind = {
        name: answer
        for name, answer in found.items()
        if isinstance(answer, BaseException) or answer not in seen
    }
    for written in (key, *(answer for answer in found.values() if isinstance(answer, str))):
        with suppress(StoreError):
            objects.delete(written)
    if blind:
        name, answer = next(iter(blind.items()))
        raise StoreError(
            f"{len(blind)} of {len(found)} workers can't use the checkpoint path {objects.url}, "
            f"{name} the first of them ({answer!r:.300}), and they have to write their rows there. "
            "Give a path on a file system that all machines share, or a URL such as s3://..."
        )


def is_run(store: Any) -> bool:
    """Whether a store is the path of a run."""
    if not isinstance(store, str | os.PathLike):
        return False
    try:
        open_objects(store).get("run.json", 1 << 26)
    except (StoreError, ImportError):
        return False
    return True


def load(store: Any) -> NMF | RankStudy:
    """The newest committed model, or study, of a run, whether that lives or not."""
    objects = open_objects(store)
    commit = read_newest(objects)
    try:
        return _read(objects, commit)
    except MissingError:  # retention was quicker: there is a newer one
        return _read(objects, read_newest(objects))


def _read(objects: Objects, commit: Commit) -> NMF | RankStudy:
    from dasknmf import resuming_study

    if resuming_study.is_study(commit):
        return resuming_study.load(objects, commit)
    return _model_of(objects, commit)


def _model_of(objects: Objects, commit: Commit) -> NMF:
    from dasknmf.estimator import NMF

    meta: Any = commit.meta
    try:
        about, shown = meta["model"], unpack(Packed(meta["shown"]))
        model = NMF(**about["parameters"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"commit {commit.number} does not make sense: {error!r}") from error
    if not isinstance(shown, Shown):
        raise DamagedError(f"commit {commit.number} holds no history")
    if about["transposed"]:
        model.W_ = blobs.read_array("W", read_objects(objects, commit, "W/"))
        model.components_ = np.ascontiguousarray(_long(objects, commit, meta["long"]).T)
    else:
        model.components_ = blobs.read_array("H", read_objects(objects, commit, "H/"))
    model.n_components_ = model.components_.shape[0]
    model.n_features_in_ = int(about["n_features"])
    model._n_samples = int(about["n_samples"])
    model.history_ = shown.history.as_arrays()
    model.reconstruction_err_ = make_loss(model.beta_loss).error(shown.loss)
    model.n_iter_ = shown.number
    model.outcome_ = shown.outcome
    model.fingerprint_ = shown.fingerprint
    if about["feature_names"] is not None:
        model.feature_names_in_ = np.array(about["feature_names"], dtype=object)
    return model


def _long(objects: Objects, commit: Commit, place: Any) -> Array:
    """The long factor, slab by slab."""
    if place is None:
        raise StoreError(
            f"commit {commit.number} of {objects.url} has W and not yet H: X has more features "
            "than samples, so that the features are streamed, and their factor is solved in the "
            "last read. Load the run when it has ended."
        )
    read = RowReader(objects, commit.entries, place["rows"], tuple(place["blocks"]))
    load_one = partial(_block, read, place["model"])
    return np.concatenate([load_one(i) for i in range(len(place["blocks"]))])


def _block(read: RowReader, model: int, slab: int) -> Array:
    rows = read(slab)
    if rows is None:
        raise DamagedError(f"the rows of slab {slab} are missing")
    return rows[model]
