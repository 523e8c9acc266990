"""Who runs a cell: numbered claims with a heartbeat, in a directory that any number of machines may share.

::

    RUN/.lease/000001    a claim: its holder, who writes to it again every few seconds while it lives
    RUN/.lease/000002    the next, made when the first was given up, or had not been written to for LEASE_SECONDS

The highest number holds the run. A claim is made by creating the next number, which the file system lets one process
do alone; so nobody takes a run over twice, and a claim is never taken back. A process that was stopped, taken for dead
and woken finds a higher number than its own: :func:`check`, which precedes whatever it writes, says so, and it ends.

Clocks of different machines are not compared: a claim is dead once this process has seen it unchanged for
LEASE_SECONDS of its own time, or at once if its holder was a process of this machine that is gone. A claim that one
process makes and another works under (:func:`adopt`) is not over with the second: the first has yet to say how it
ended, and gives it up then. Only if that is gone too is it.
"""

import json
import os
import pwd
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from sd3_jax import records
from sd3_jax.errors import LeaseLost, UserError

LEASE_SECONDS = float(os.environ.get("SD3_JAX_LEASE_SECONDS", "90"))
BEATS = 6  # to a lease
FOLDER = ".lease"


@dataclass(frozen=True)
class Lease:
    """A claim of this process."""

    run_dir: Path
    number: int
    keeper: dict[str, Any] | None = None  # the process that gives it up, if it is not the one that works under it

    @property
    def path(self) -> Path:
        """Its file."""
        return _path(self.run_dir, self.number)

    def check(self) -> None:
        """Raises LeaseLost if another process has taken the run over, or the claim's file is gone."""
        newest = _newest(self.run_dir)
        if newest != self.number:
            who = "nobody" if newest is None else _named(_read(_path(self.run_dir, newest)) or {})
            raise LeaseLost(f"{self.run_dir}: this process was taken for dead, and {who} has the run now")


@dataclass
class Watch:
    """What one process has seen of other processes' claims, and when by its own clock."""

    seen: dict[Path, tuple[Any, float]] = field(default_factory=dict)

    def is_alive(self, run_dir: Path) -> bool:
        """Whether a process holds the run; of a claim seen for the first time it is assumed."""
        now = time.monotonic()  # before the look: a claim that was not written to since was silent at least so long
        claim = newest(run_dir)
        if claim is None or claim.get("given_up") or _is_gone(claim):
            return False
        mark = tuple(claim.get(key) for key in ("number", "pid", "beat"))
        if self.seen.get(run_dir, (None, 0.0))[0] != mark:
            self.seen[run_dir] = (mark, now)
        return now - self.seen[run_dir][1] < LEASE_SECONDS


def newest(run_dir: Path) -> dict[str, Any] | None:
    """The newest claim as its holder wrote it, with its number; None if there never was one."""
    number = _newest(run_dir)
    if number is None:
        return None
    return {**(_read(_path(run_dir, number)) or {}), "number": number}


def silent_seconds(run_dir: Path) -> float | None:
    """How long ago the holder last wrote; None if nobody holds the run.

    Of a process of this machine, by time since the boot. Of another, by its file's time and this machine's clock, of
    which one may be wrong: then this is too, and may be negative. Nothing but a display depends on it.
    """
    claim = newest(run_dir)
    if claim is None or claim.get("given_up") or _is_gone(claim):
        return None
    if claim.get("machine") == _machine() and isinstance(claim.get("uptime"), float):
        return time.monotonic() - claim["uptime"]
    with suppress(OSError):
        return time.time() - _path(run_dir, claim["number"]).stat().st_mtime
    return None


def claim(run_dir: Path, watch: Watch) -> Lease | None:
    """Take a run that nobody holds; None if somebody does.

    Raises UserError where this user may not claim.
    """
    folder = run_dir / FOLDER
    temporary = records.beside(folder / "claim")
    try:
        if watch.is_alive(run_dir):
            return None
        number = (_newest(run_dir) or 0) + 1
        path = _path(run_dir, number)
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(_self(0)) + "\n")
        os.link(temporary, path)  # whole at once, and for one process alone, on network file systems too
    except FileExistsError:
        return None
    except OSError as error:
        raise UserError(f"{folder}: cannot be claimed ({error.strerror}{_owner(folder)})") from None
    finally:
        with suppress(OSError):
            temporary.unlink()
    for old in range(number - 2, 0, -1):  # the one before stays, for who still holds it to find itself outnumbered
        try:
            _path(run_dir, old).unlink()
        except OSError:
            break
    return Lease(run_dir, number)


def claim_patiently(run_dir: Path) -> Lease | None:
    """Take a run, waiting for as long as it takes to know whether its holder is alive; None if it is."""
    watch, first = Watch(), newest(run_dir)
    while (own := claim(run_dir, watch)) is None:
        if newest(run_dir) != first:
            return None
        time.sleep(LEASE_SECONDS / (4 * BEATS))
    return own


def adopt(run_dir: Path, number: int) -> Lease:
    """Take over the claim that the process which started this one has made for it. Raises LeaseLost if it is past."""
    found = _read(_path(run_dir, number)) or {}
    keeper = {key: found.get(key) for key in ("pid", "born")}
    own = Lease(run_dir, number, keeper if keeper["pid"] not in (None, os.getpid()) else None)
    own.check()
    return own


def give_up(lease: Lease) -> None:
    """Say that nobody holds this claim any more, whose holder has ended; a newer claim is left alone."""
    with suppress(OSError, LeaseLost):
        lease.check()
        lease.path.write_text(json.dumps(_self(-1) | {"given_up": True}) + "\n")


def holder(run_dir: Path) -> str:
    """Who holds a run, in words."""
    return _named(newest(run_dir) or {})


@contextmanager
def held(lease: Lease) -> Iterator[Lease]:
    """Keep a claim alive from a thread of its own while the block runs, then give it up, if its keeper is not to."""
    # Its own file and no path: whatever happened meanwhile, a process that wakes writes to nobody else's claim.
    with open(lease.path, "r+") as file:
        over = threading.Event()
        kept = {"keeper": lease.keeper} if lease.keeper else {}

        def beat(number: int, given_up: bool = False) -> None:
            text = json.dumps(_self(number) | kept | ({"given_up": True} if given_up else {}))
            file.seek(0)
            file.write(text + "\n")
            file.truncate()
            file.flush()

        def keep() -> None:
            number = 1
            while not over.wait(LEASE_SECONDS / BEATS):
                with suppress(OSError):  # a full disk for a moment: others wait for a whole lease
                    beat(number)
                number += 1

        beat(0)
        thread = threading.Thread(target=keep, name="lease", daemon=True)
        thread.start()
        try:
            yield lease
        finally:
            over.set()
            thread.join()
            with suppress(OSError):
                beat(-1, given_up=not (lease.keeper and _runs(lease.keeper)))


def _path(run_dir: Path, number: int) -> Path:
    return run_dir / FOLDER / f"{number:06d}"


def _newest(run_dir: Path) -> int | None:
    try:
        names = os.listdir(run_dir / FOLDER)
    except FileNotFoundError:
        return None
    return max((int(name) for name in names if re.fullmatch(r"\d{6,}", name)), default=None)


def _read(path: Path) -> dict[str, Any] | None:
    """A claim's file; None where it is just being written. (An unreadable one never changes, and so goes stale.)"""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return tree if isinstance(tree, dict) else None


def _self(beat: int) -> dict[str, Any]:
    own = {"machine": _machine(), "pid": os.getpid(), "born": _born(os.getpid())}
    now = {"beat": beat, "uptime": time.monotonic()}
    return own | {"host": os.uname().nodename, "user": _user(os.getuid())} | now


def _named(claim: dict[str, Any]) -> str:
    return f"process {claim.get('pid')} of {claim.get('user')} on {claim.get('host')}"


@cache
def _machine() -> str:
    """This boot of this machine, and within it this space of process numbers (a container has its own)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux: nobody is known to be gone, and a lease runs out
        return f"{os.uname().nodename}/{os.getpid()}"


def _born(pid: int) -> int | None:
    """When a process started, in ticks since the boot: with its number, a name used once. None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _is_gone(claim: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that no longer runs, and its keeper, if it has one, too."""
    if claim.get("machine") != _machine():
        return False
    return not _runs(claim) and not ("keeper" in claim and _runs(claim["keeper"]))


def _runs(process: Any) -> bool:
    """Whether a process of this machine runs; one that no number is known of may."""
    known = isinstance(process, dict) and isinstance(process.get("pid"), int)
    return not known or _born(process["pid"]) == process.get("born")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _owner(folder: Path) -> str:
    try:
        return f"; it is {_user(folder.stat().st_uid)}'s"
    except OSError:
        return ""
