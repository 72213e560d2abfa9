"""Writing a run: start, commit, retention. :mod:`~dasknmf.storage.survey` has the layout.

Nothing is overwritten; one manifest decides; the writer with the highest epoch wins. The first
thing that a start does after creating its epoch is to commit the newest good state once more,
under the next free number: the number that an older writer would take next is gone.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dasknmf.numerics.errors import (
    DamagedError,
    FencedError,
    MissingError,
    ParameterError,
    StoreError,
)
from dasknmf.storage import epochs
from dasknmf.storage.beginning import PAUSE, begun, entered, existing
from dasknmf.storage.manifests import (
    FOLDER,
    Commit,
    Entry,
    canonical,
    put_entry,
    read_entry,
    refuse_entry,
)
from dasknmf.storage.objects import Objects
from dasknmf.storage.survey import (
    TRIES,
    EpochStatus,
    Finding,
    RunStatus,
    Survey,
    manifest_key,
    newest_good,
    read_manifest,
    read_newest,
    status,
    verify,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

RESUME = ("auto", "must", "never")
COPIES = 2  # manifests kept of one state: its own and the last start's
OLD = 3600.0  # seconds after which a temporary file that another start may write is left over


@dataclass
class Draft:
    """A commit in the making: objects under ``folder``, which nobody else writes to."""

    objects: Objects
    folder: str
    attempted: bool = field(default=False, repr=False)

    def put(self, name: str, data: Buffer) -> Entry:
        """Write the object ``folder/name``, durable on return."""
        return put_entry(self.objects, f"{self.folder}/{name}", data)

    def discard(self) -> None:
        """Remove what was written, unless its commit may have come into being."""
        if not self.attempted:
            self.objects.clear(self.folder)


class Run:
    """A run that this process may write to. A context manager; make it with :meth:`start`."""

    def __init__(self, objects: Objects, run: str, token: epochs.Token, keep: int) -> None:
        self.objects = objects
        self.id = run
        self.token = token
        self.keep = keep
        self.newest: Commit | None = None
        self._base: Commit | None = None  # the last manifest that is ours
        self._last = 0  # the highest commit number known to be taken
        self._known = Survey()
        self._sound: set[int] = set()  # commits known to be good
        self._fenced = False
        self._heartbeat: epochs.Heartbeat | None = None

    @classmethod
    def start(
        cls,
        objects: Objects,
        problem: dict[str, Any],
        *,
        resume: str = "auto",
        takeover: bool = False,
        keep: int = 2,
        heartbeat: float = epochs.BEAT,
    ) -> Run:
        """Begin a run, or go on with one.

        problem : JSON that a resumed run must share: parameters, shape, dtype, fingerprint, ...
        resume : "auto" goes on where there is a run, else begins; "must" refuses a path without,
            "never" a path with one.
        takeover : go on although another process that seems to live writes to it.
        keep : distinct good states to keep, at least 1.
        heartbeat : seconds between signs of life; 0: only one.

        :class:`ProblemMismatchError`, :class:`RunBusyError`, :class:`DamagedError` (no good state
        left), :class:`FencedError` (another start came in between), or :class:`StoreError`.
        """
        if resume not in RESUME or keep < 1:
            raise ParameterError(
                f"resume={resume!r:.50}, keep={keep!r:.50}: expected resume of {RESUME}, keep >= 1."
            )
        given = json.loads(canonical(problem))
        run = existing(objects, given, resume)
        newest = epochs.newest(objects)
        if newest and not takeover:
            epochs.refuse_living(objects, newest)
        objects.check_exclusive()
        run = run or begun(objects, given, resume)
        started = cls(objects, run, entered(objects, takeover), keep)
        try:
            started._fence()
        except BaseException:
            started._beats(0.0).stop()
            raise
        with suppress(StoreError):
            started._clean()
        started._heartbeat = started._beats(heartbeat)
        started._heartbeat.start()
        return started

    def folder(self, number: int) -> str:
        """A new unique folder for the objects of commit ``number``."""
        return f"data/{number:06d}-{self.token.number:06d}-{uuid.uuid4().hex[:16]}"

    def draft(self) -> Draft:
        """A folder for the next commit's objects; :class:`FencedError` if there can be none."""
        self._refuse_fenced()
        return Draft(self.objects, self.folder(self._last + 1))

    def commit(self, meta: dict[str, Any], entries: Sequence[Entry], draft: Draft) -> Commit:
        """Make a state the newest; durable on return.

        meta : JSON; what the engine needs to go on.
        entries : objects of ``draft``, or of commits that are still kept.

        :class:`FencedError` if another start has taken over. After any other
        :class:`StoreError` the state may or may not be there, whole; commits before it are, and
        the next call goes on.
        """
        self._refuse_fenced()
        entries = tuple(entries)
        self._check_entries(entries, draft)
        meta = json.loads(canonical(meta))
        commit = self._created(meta, entries, draft)
        self._known.good[commit.number] = commit
        self._refuse_fenced()
        self._sound.add(commit.number)
        self.newest = self._base = commit
        with suppress(StoreError):
            self._retain()
        return commit

    def close(self) -> None:
        """Stop the signs of life, and leave word that this was a clean end."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _created(
        self, meta: dict[str, Any] | None, entries: tuple[Entry, ...], draft: Draft
    ) -> Commit:
        base = self._base
        assert base is not None
        while True:
            commit = Commit(
                number=self._last + 1,
                epoch=self.token.number,
                writer=self.token.id,
                run=self.id,
                meta=meta,
                entries=entries,
                fences=base.fences,
            )
            data = commit.encoded()
            draft.attempted = True
            won = self.objects.create(manifest_key(commit.number), data)
            if won:
                self._last = commit.number
                return commit
            # Taken: by us, in a call that failed at its last step, or by who has taken over.
            self._adopt(commit.number)

    def _adopt(self, number: int) -> None:
        try:
            found = read_manifest(self.objects, self.id, number)
        except (DamagedError, MissingError):
            found = None
        if found is None or found.writer != self.token.id:
            self._fenced = True
            self._refuse_fenced()
        else:
            self._known.good[number] = found
        self._last = number

    def _refuse_fenced(self) -> None:
        newest = epochs.newest(self.objects) if not self._fenced else 0
        if self._fenced or newest > self.token.number:
            self._fenced = True
            raise FencedError(
                f"{self.objects.url} was taken over by another start (epoch "
                f"{newest or 'unknown'}; this is {self.token.number}): this process can't commit "
                "any more. Its last committed state is safe; stop it."
            )

    def _check_entries(self, entries: tuple[Entry, ...], draft: Draft) -> None:
        kept = {folder for commit in self._known.good.values() for folder in commit.folders}
        for entry in entries:
            try:
                refuse_entry(entry)
            except DamagedError as error:
                raise StoreError(f"{error}. Pass what Draft.put or put_entry gave.") from error
            if f"data/{entry.folder}" != draft.folder and entry.folder not in kept:
                raise StoreError(
                    f"{entry.key} lies neither in the draft {draft.folder} nor in a commit that "
                    "is kept. Pass what Draft.put or put_entry gave."
                )

    def _fence(self) -> None:
        """Commit the newest good state again, as the first commit of this epoch."""
        for _ in range(TRIES):
            base, found, last = newest_good(self.objects, self.id)
            fence = Commit(
                number=last + 1,
                epoch=self.token.number,
                writer=self.token.id,
                run=self.id,
                meta=base.meta if base else None,
                entries=base.entries if base else (),
                fences=(*(base.fences if base else ()), (self.token.number, last + 1)),
            )
            won = self.objects.create(manifest_key(fence.number), fence.encoded())
            self._refuse_fenced()
            if won:
                break
            time.sleep(PAUSE)  # an older writer was faster: its commit is the newest now
        else:
            raise StoreError(
                f"{self.objects.url}: {TRIES} commit numbers in a row were taken by others, or "
                "its listings are out of date. Stop the other writer, then start again."
            )
        self._known, self._base, self._last = found, fence, fence.number
        self._known.good[fence.number] = fence
        self._sound = {fence.number} if fence.meta is not None else set()
        self.newest = fence if fence.meta is not None else None

    def _beats(self, every: float) -> epochs.Heartbeat:
        told = lambda: self._base.number if self._base else 0  # noqa: E731
        return epochs.Heartbeat(self.objects, self.token, every, told)

    def _retain(self) -> None:
        """Remove commits beyond the newest ``keep`` good states: manifests first, data after."""
        states: dict[str, int] = {}
        sound: set[str] = set()
        dropped: list[int] = []
        for number, commit in sorted(self._known.good.items(), reverse=True):
            copies = states.get(commit.state, 0)
            if copies >= COPIES or (len(sound) >= self.keep and commit.state not in sound):
                dropped.append(number)
                continue
            states[commit.state] = copies + 1
            if number in self._sound:
                sound.add(commit.state)
        if len(sound) >= self.keep:
            lowest = min(set(self._known.good) - set(dropped))
            dropped += [n for n in self._known.damaged if n < lowest]
        self._forget(sorted(dropped))

    def _forget(self, dropped: list[int]) -> None:
        folders = set()
        for number in dropped:
            self.objects.delete(manifest_key(number), durable=True)
            folders |= self._known.good[number].folders if number in self._known.good else set()
            self._known.good.pop(number, None)
            self._known.damaged.pop(number, None)
        kept = {folder for commit in self._known.good.values() for folder in commit.folders}
        for folder in sorted(folders - kept):
            self.objects.clear(f"data/{folder}")

    def _clean(self) -> None:
        """Remove what older epochs left: fenced by now, they can't commit it any more."""
        for number in self._known.stale:
            self.objects.delete(manifest_key(number), durable=True)
        self.objects.sweep("commits", 0.0)
        self.objects.sweep("epochs", OLD)
        self.objects.sweep("", OLD)
        for name in self.objects.names():
            written = self.objects.modified(name) if name.startswith("probe-") else None
            if written is not None and self.objects.now() - written > OLD:
                self.objects.delete(name)
        kept = {folder for commit in self._known.good.values() for folder in commit.folders}
        for folder in self.objects.names("data"):
            match = FOLDER.fullmatch(folder)
            if not match or folder in kept or int(match[1]) in self._known.damaged:
                continue  # what an unreadable manifest refers to may still be of use
            if int(match[2]) < self.token.number:
                with suppress(StoreError):
                    self.objects.clear(f"data/{folder}")


__all__ = [
    "Commit",
    "Draft",
    "Entry",
    "EpochStatus",
    "Finding",
    "Run",
    "RunStatus",
    "put_entry",
    "read_entry",
    "read_newest",
    "status",
    "verify",
]
