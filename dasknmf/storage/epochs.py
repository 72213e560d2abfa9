"""Who writes to a run: one token per start, and signs of life.

A token (``epochs/NNNNNN.json``) is created exclusively; the highest number may write, whatever the
signs of life say. Those only decide whether a start is refused:

    same machine and boot     the process with that id and start time is there
    elsewhere                 ``NNNNNN.alive`` is younger than LOST_AFTER by the store's clock
    ``NNNNNN.end``            it has ended by itself
"""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import psutil

from dasknmf.numerics.errors import DamagedError, MissingError, RunBusyError, StoreError
from dasknmf.storage.manifests import VERSION, numbers, opened, sealed, text, timestamp
from dasknmf.storage.objects import Objects

LOST_AFTER = 60.0  # seconds without a sign of life, twelve beats
BEAT = 5.0
SMALL = 64 << 10
OPEN: set[str] = set()  # ids of this process's own epochs, from their start to their end


@dataclass(frozen=True)
class Token:
    """The process behind an epoch. ``boot``, ``space`` and ``started`` tell reused ids apart."""

    number: int
    host: str
    pid: int
    boot: str
    space: str  # process ids mean nothing in another container
    started: str
    id: str
    time: str

    def encoded(self) -> bytes:
        """As JSON."""
        return sealed({"format": "dasknmf-epoch", "version": VERSION, **asdict(self)})


def own(number: int) -> Token:
    """A token for this process."""
    pid = os.getpid()
    return Token(
        number=number,
        host=socket.gethostname(),
        pid=pid,
        boot=_boot(),
        space=_space(),
        started=_started(pid) or "",
        id=uuid.uuid4().hex,
        time=timestamp(),
    )


def key(number: int, kind: str = "json") -> str:
    """Key of a token, or of a sign of life (``alive``, ``end``)."""
    return f"epochs/{number:06d}.{kind}"


def newest(objects: Objects) -> int:
    """The highest epoch; 0: none."""
    return max(numbers(objects.names("epochs")), default=0)


def read(objects: Objects, number: int) -> Token:
    """Read a token; :class:`DamagedError` if it is not what a start wrote."""
    found = opened(objects.get(key(number), limit=SMALL), "dasknmf-epoch")
    pid = found.get("pid")
    if found.get("number") != number or type(pid) is not int or pid <= 0:
        raise DamagedError("its number or process id is wrong")
    words = {name: text(found, name) for name in ("host", "boot", "space", "started", "id", "time")}
    return Token(number=number, pid=pid, **words)


def state(objects: Objects, number: int, now: Callable[[], float]) -> tuple[str, float | None]:
    """Give "alive", "ended" or "lost", and the age of the last sign of life in seconds if asked.

    ``now`` is called only where the process itself can't be looked at.
    """
    if objects.modified(key(number, "end")) is not None:
        return "ended", None
    lives = None
    with suppress(DamagedError, MissingError):
        lives = _lives(read(objects, number))
    if lives is not None:
        return ("alive" if lives else "lost"), None
    seen = objects.modified(key(number, "alive")) or objects.modified(key(number))
    age = now() - seen if seen is not None else LOST_AFTER
    return ("alive" if age < LOST_AFTER else "lost"), max(age, 0.0)


def refuse_living(objects: Objects, number: int) -> None:
    """Raise :class:`RunBusyError` if that epoch's process lives."""
    verdict, age = state(objects, number, objects.now)
    if verdict != "alive":
        return
    who = "an unknown process"
    with suppress(DamagedError, MissingError):
        token = read(objects, number)
        who = f"process {token.pid} on {token.host} since {token.time}"
    beat = "" if age is None else f", last heard of {age:.0f} s ago"
    raise RunBusyError(
        f"{objects.url} is being written by {who}{beat} (epoch {number}). Stop it first, or take "
        "the run over with takeover=True: the other one can't commit from then on. If it is dead "
        f"on another machine, wait until it was silent for {LOST_AFTER:.0f} s. Nothing was changed."
    )


class Heartbeat:
    """A thread that keeps the epoch's sign of life fresh. What it writes is a hint only."""

    def __init__(self, objects: Objects, token: Token, every: float, told: Callable[[], int]):
        self.objects, self.every, self.told = objects, every, told
        self.number, self.id = token.number, token.id
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="dasknmf-heartbeat")

    def start(self) -> None:
        """Beat once, then every few seconds; 0 seconds: only once."""
        self.beat("alive")
        if self.every > 0:
            self._thread.start()

    def stop(self) -> None:
        """End the thread and say that this epoch has ended. Never raises for the store's sake."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)
        OPEN.discard(self.id)
        self.beat("end")

    def beat(self, kind: str) -> None:
        """Write the hint: the last commit that was acknowledged."""
        sign = {"format": "dasknmf-sign", "version": VERSION, "commit": self.told()}
        with suppress(StoreError):
            self.objects.put(key(self.number, kind), sealed(sign))

    def _run(self) -> None:
        while not self._stop.wait(self.every):
            self.beat("alive")


def promised(objects: Objects) -> int:
    """The highest commit number that a sign of life says was acknowledged; 0: none says so."""
    best = 0
    for sign in _signs(objects):
        with suppress(DamagedError, MissingError):
            best = max(best, _told(objects, sign))
    return best


def damaged_signs(objects: Objects) -> list[str]:
    """Keys of signs of life that are not what was written."""
    damaged = []
    for sign in _signs(objects):
        try:
            _told(objects, sign)
        except MissingError:
            continue
        except DamagedError:
            damaged.append(sign)
    return damaged


def _signs(objects: Objects) -> list[str]:
    return [f"epochs/{n}" for n in objects.names("epochs") if n.endswith((".alive", ".end"))]


def _told(objects: Objects, sign: str) -> int:
    number = opened(objects.get(sign, limit=SMALL), "dasknmf-sign").get("commit")
    if type(number) is not int or not 0 <= number < 10**17:
        raise DamagedError("its commit is no number")
    return number


def _lives(token: Token) -> bool | None:
    """Whether the process is there; None: it can't be seen from here."""
    if (token.host, token.space) != (socket.gethostname(), _space()):
        return None
    if token.boot != _boot():
        return False
    if token.pid == os.getpid():  # its end may not have been written: the disk was full
        return token.id in OPEN
    return _started(token.pid) == token.started


def _started(pid: int) -> str | None:
    """When a process started, None if there is none (or only its corpse)."""
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        ticks = Path(f"/proc/{pid}/stat")
        if ticks.exists():  # psutil's time moves with the clock
            return ticks.read_text().rpartition(")")[2].split()[19]
        return f"{process.create_time():.0f}"
    except (psutil.Error, OSError):
        return None


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{psutil.boot_time():.0f}"


@cache
def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
