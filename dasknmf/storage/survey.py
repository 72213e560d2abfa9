"""Reading a run: its newest good commit, its status, and a full check.

    RUN/run.json                  format, id and problem of the run
    RUN/epochs/NNNNNN.json        one per start (.alive and .end beside it are hints)
    RUN/data/<no>-<epoch>-<id>/   objects of one commit
    RUN/commits/NNNNNN.json       the manifest: a commit exists if, and only if, this does

A commit counts only if its epoch owns its number: each manifest names the first number of every
start before it. A writer that was taken over and wakes up later can still create a manifest under
an old number that retention has freed, but nobody will take it for a state of the run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dasknmf.numerics.errors import (
    DamagedError,
    MissingError,
    StoreWarning,
    warn,
)
from dasknmf.storage import epochs
from dasknmf.storage.manifests import (
    LARGEST,
    Commit,
    decoded,
    digest,
    numbers,
    opened,
    read_entry,
    text,
)
from dasknmf.storage.objects import Objects

TRIES = 100  # against retention that removes what is being read


class About(NamedTuple):
    """What ``run.json`` says."""

    id: str
    problem: dict[str, Any]


class Finding(NamedTuple):
    """Something wrong: where, and what."""

    key: str
    problem: str

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}"


class EpochStatus(NamedTuple):
    """One start. ``state`` is "alive", "ended", "lost" or "replaced"; ``age`` in seconds."""

    number: int
    state: str
    host: str
    pid: int
    since: str
    age: float | None


@dataclass(frozen=True)
class RunStatus:
    """What a run says of itself, read without locks: it may go on meanwhile."""

    id: str
    problem: dict[str, Any]
    epochs: tuple[EpochStatus, ...]
    commits: tuple[Commit, ...]
    damaged: dict[int, str]


@dataclass
class Survey:
    """All manifests of a run, by number."""

    good: dict[int, Commit] = field(default_factory=dict)
    damaged: dict[int, str] = field(default_factory=dict)
    stale: dict[int, Commit] = field(default_factory=dict)  # by writers that were taken over

    @property
    def last(self) -> int:
        """The highest number that is taken; 0: none."""
        return max([*self.good, *self.damaged, *self.stale], default=0)


def manifest_key(number: int) -> str:
    """Key of a commit's manifest."""
    return f"commits/{number:06d}.json"


def read_about(objects: Objects) -> About:
    """Read ``run.json``: :class:`MissingError`, or :class:`DamagedError` if it can't be trusted."""
    try:
        found = opened(objects.get("run.json", limit=LARGEST), "dasknmf-run")
        problem = found.get("problem")
        if not isinstance(problem, dict) or found.get("problem_digest") != digest(problem):
            raise DamagedError("its problem is not the one that was written")
        return About(text(found, "id"), problem)
    except DamagedError as error:
        raise DamagedError(
            f"{objects.url}/run.json is damaged: {error}. Restore it from a copy, or start a new "
            "run on another path."
        ) from error


def read_manifest(objects: Objects, run: str, number: int) -> Commit:
    """Read one manifest: :class:`MissingError`, or :class:`DamagedError` with what is wrong."""
    return decoded(objects.get(manifest_key(number), limit=LARGEST), number, run)


def survey(objects: Objects, run: str) -> Survey:
    """Read all manifests. Objects are not looked at."""
    found = Survey()
    for number in numbers(objects.names("commits")):
        try:
            found.good[number] = read_manifest(objects, run, number)
        except MissingError:
            continue  # retention was here
        except DamagedError as error:
            found.damaged[number] = str(error)
    if found.good:
        last = found.good[max(found.good)]
        for number, commit in list(found.good.items()):
            if last.owner(number) != commit.epoch:
                found.stale[number] = found.good.pop(number)
    return found


def faults(objects: Objects, commit: Commit) -> Iterator[Finding]:
    """What is wrong with a commit's objects: each is read whole."""
    for entry in commit.entries:
        try:
            read_entry(objects, entry)
        except MissingError:
            yield Finding(entry.key, f"is missing; commit {commit.number} needs it")
        except DamagedError as error:
            yield Finding(entry.key, f"is damaged: {error}")


def newest_good(objects: Objects, run: str) -> tuple[Commit | None, Survey, int]:
    """The newest commit all of whose bytes are right (None if there never was one).

    Also all manifests, and the highest number that is or was taken.

    Damaged ones that are newer are passed over with a :class:`StoreWarning`; if no good state is
    left, :class:`DamagedError`: a run never starts anew by itself.
    """
    for _ in range(TRIES):
        promised = epochs.promised(objects)  # first: a living writer goes on meanwhile
        found = survey(objects, run)
        commit, passed = _choose(objects, found)
        if not passed or survey(objects, run).good.keys() == found.good.keys():
            break  # else the writer or retention was here while we read
    if promised > found.last:
        passed[promised] = "it was committed, and its manifest is missing"
    last = max(found.last, promised)
    if not passed:
        return commit, found, last
    listed = "; ".join(f"commit {number}: {what}" for number, what in sorted(passed.items()))
    if commit is None or commit.meta is None:
        raise DamagedError(
            f"{objects.url} has no undamaged commit ({listed:.1000}). Restore it from a copy, or "
            "start a new run on another path. Nothing was changed."
        )
    warn(
        f"{objects.url}: damaged, and passed over: {listed:.1000}. Going on from commit "
        f"{commit.number}.",
        StoreWarning,
    )
    return commit, found, last


def _choose(objects: Objects, found: Survey) -> tuple[Commit | None, dict[int, str]]:
    passed: dict[int, str] = {}
    for number in sorted([*found.good, *found.damaged], reverse=True):
        if number in found.damaged:
            passed[number] = found.damaged[number]
            continue
        fault = next(faults(objects, found.good[number]), None)
        if fault is None:
            return found.good[number], passed
        passed[number] = str(fault)
    return None, passed


def read_newest(objects: Objects) -> Commit:
    """The newest undamaged commit of a run that may be going on. Nothing is written.

    :class:`MissingError` if there is no run, or none of its states is committed yet.
    """
    try:
        run = read_about(objects).id
    except MissingError as error:
        raise MissingError(f"{objects.url} holds no run: there is no run.json.") from error
    commit, _, _ = newest_good(objects, run)
    if commit is None or commit.meta is None:
        raise MissingError(f"{objects.url}: nothing is committed yet. Wait for the first commit.")
    return commit


def status(objects: Objects) -> RunStatus:
    """What a run says of itself. Manifests are checked, objects are not read."""
    about = read_about(objects)
    found = survey(objects, about.id)
    listed = numbers(objects.names("epochs"))
    return RunStatus(
        id=about.id,
        problem=about.problem,
        epochs=tuple(_epoch(objects, number, number == listed[-1]) for number in listed),
        commits=tuple(c for _, c in sorted(found.good.items()) if c.meta is not None),
        damaged=found.damaged,
    )


def _epoch(objects: Objects, number: int, last: bool) -> EpochStatus:
    # The store's clock can't be asked without writing.
    verdict, age = epochs.state(objects, number, time.time)
    if verdict == "alive" and not last:
        verdict = "replaced"
    try:
        token = epochs.read(objects, number)
    except (DamagedError, MissingError):
        return EpochStatus(number, verdict, "unknown", 0, "unknown", age)
    return EpochStatus(number, verdict, token.host, token.pid, token.time, age)


def verify(objects: Objects) -> list[Finding]:
    """Read everything that a run refers to; empty: all of it is good. Nothing is written."""
    try:
        about = read_about(objects)
    except (MissingError, DamagedError) as error:
        return [Finding("run.json", str(error))]
    findings = []
    for number in numbers(objects.names("epochs")):
        try:
            epochs.read(objects, number)
        except DamagedError as error:
            findings.append(Finding(epochs.key(number), f"is damaged: {error}"))
    findings += [Finding(key, "is damaged") for key in epochs.damaged_signs(objects)]
    promised = epochs.promised(objects)  # first: a living writer goes on meanwhile
    found = survey(objects, about.id)
    for number in sorted([*found.good, *found.damaged]):
        key = manifest_key(number)
        if number in found.damaged:
            findings.append(Finding(key, f"is damaged: {found.damaged[number]}"))
            continue
        wrong = list(faults(objects, found.good[number]))
        with suppress(MissingError):  # retention of a living run
            if wrong and read_manifest(objects, about.id, number):
                findings += wrong
    if promised > found.last:
        findings.append(Finding(manifest_key(promised), "is missing; it was committed"))
    return findings
