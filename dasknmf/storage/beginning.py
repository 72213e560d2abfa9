"""The first steps of a start: what is there, is it this problem, and who else is at it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from dasknmf.numerics.errors import MissingError, ProblemMismatchError, StoreError
from dasknmf.storage import epochs
from dasknmf.storage.manifests import VERSION, digest, sealed, timestamp
from dasknmf.storage.objects import Objects
from dasknmf.storage.survey import TRIES, read_about

PAUSE = 0.05  # seconds, for listings of a file server that lag behind


def existing(objects: Objects, given: dict[str, Any], resume: str) -> str | None:
    """Id of the run that is there, None if the path is free; refuses everything else."""
    try:
        about = read_about(objects)
    except MissingError:
        others = [name for name in objects.names() if not name.startswith("probe-")]
        if others:
            raise StoreError(
                f"{objects.url} holds {', '.join(others[:5])!r:.300} and is no run (there is no "
                "run.json). Choose an empty or new path. Nothing was changed."
            ) from None
        if resume == "must":
            raise StoreError(
                f"{objects.url} holds no run, and resume='must' was given. Look at the path, or "
                "pass resume='auto' to begin."
            ) from None
        return None
    if resume == "never":
        raise StoreError(
            f"{objects.url} holds a run, and resume='never' was given. Choose another path, or "
            "pass resume='auto' to go on with it. Nothing was changed."
        )
    _refuse_mismatch(objects, about.problem, given)
    return about.id


def begun(objects: Objects, given: dict[str, Any], resume: str) -> str:
    """Create ``run.json``, or take the one that another start has created meanwhile: its id."""
    run = uuid.uuid4().hex
    document = {
        "format": "dasknmf-run",
        "version": VERSION,
        "id": run,
        "created": timestamp(),
        "problem": given,
        "problem_digest": digest(given),
    }
    if objects.create("run.json", sealed(document)):
        return run
    found = existing(objects, given, resume)
    assert found is not None
    return found


def _refuse_mismatch(objects: Objects, stored: Any, given: Any) -> None:
    differing = list(_differences("", stored, given))
    if differing:
        raise ProblemMismatchError(
            f"{objects.url} holds a run of another problem: {'; '.join(differing[:10])}. Give the "
            "same matrix and parameters, or choose another path. Nothing was changed."
        )


def _differences(name: str, stored: Any, given: Any) -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(given, dict):
        for part in sorted({*stored, *given}):
            below = f"{name}.{part}" if name else part
            yield from _differences(below, stored.get(part), given.get(part))
    elif stored != given or type(stored) is not type(given):
        yield f"{name} is {stored!r:.100} there, and {given!r:.100} was given"


def entered(objects: Objects, takeover: bool) -> epochs.Token:
    """Create the next epoch: of several starts at once, one wins each number."""
    for _ in range(TRIES):
        token = epochs.own(epochs.newest(objects) + 1)
        epochs.OPEN.add(token.id)  # before anyone can see it
        try:
            won = objects.create(epochs.key(token.number), token.encoded())
        except BaseException:
            epochs.OPEN.discard(token.id)
            raise
        if won:
            return token
        epochs.OPEN.discard(token.id)
        if not takeover:
            epochs.refuse_living(objects, epochs.newest(objects))
        time.sleep(PAUSE)
    raise StoreError(
        f"{objects.url}: {TRIES} other starts were faster, or its listings are out of date. Look "
        "who else starts runs there, then try again."
    )
