"""A sweep survives: three workers share it while they are killed, stopped and told to stop, in the midst of saves too,
and it ends with the records and the numbers, bit for bit, of a sweep that nobody disturbed.

``SD3_JAX_FAULT_ROUNDS`` faults are injected, into as many sweeps as that takes; ``SD3_JAX_FAULT_SEED`` chooses them.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_resume import final_state, history
from tiny import tiny

from sd3_jax import config as configs
from sd3_jax import lease, platform, records
from sd3_jax.config import cooldown_start
from sd3_jax.sweep import launch, spec, status
from sd3_jax.sweep.run import worker_environments
from sd3_jax.training import checkpoint

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("SD3_JAX_FAULT_ROUNDS", "60"))
SEED = int(os.environ.get("SD3_JAX_FAULT_SEED", "0"))
WORKERS = 3
LEASE_SECONDS = 6.0
STEPS = 1000
SWEEP = f"""\
experiment: tiny.json
set: {{steps: {STEPS}}}
cells:
  - {{model.depth: 2}}
  - {{model.depth: 2, optimizer.cooldown: 0.25}}
  - {{model.depth: 3, keep_steps: [[{STEPS // 5}, {STEPS // 2}]]}}
"""

KILL, STOP, TERM = signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM
DECK = [  # of every ten faults: the signal, and whether the worker, the cell that it runs or both get it
    *[(KILL, "cell")] * 2,
    *[(KILL, "both")] * 2,
    (KILL, "worker"),
    (STOP, "cell"),
    (STOP, "both"),
    (TERM, "worker"),
    (TERM, "cell"),
    (TERM, "both"),
]
MOMENTS = ("any time", "training", "saving", "saving")


@dataclass(eq=False)
class Child:
    """A process that runs a cell."""

    pid: int
    born: int | None
    cell: str
    number: int  # of its worker
    worker: subprocess.Popen
    lives: int  # of the cell, when this one was first seen
    rows: int | None = None  # bytes of metrics when its own life began

    @property
    def runs(self) -> bool:
        return self.born is not None and lease._born(self.pid) == self.born

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            if self.runs:
                os.kill(self.pid, number)


class Workers:
    """The workers of a sweep, each on a core, started again when they end; watched from outside."""

    def __init__(self, file: Path, runs: Path) -> None:
        self.runs, self.cells = runs, [cell.name for cell in spec.load(file)]
        command = [sys.executable, "-m", "sd3_jax.cli", "sweep", "run", str(file), "--runs", str(runs)]
        self.command = [*command, "--workers", "1"]
        cores = platform.cores()
        (common,) = worker_environments(1, runs)
        self.environments = [common | {"SD3_JAX_CPUS": str(cores[n % len(cores)])} for n in range(WORKERS)]
        self.ended: Counter[int] = Counter()  # exit statuses
        self.takeovers = 0
        self.children: dict[str, Child] = {}  # the newest of each cell
        self.every: list[Child] = []
        self.saved: dict[str, set[int]] = {cell: set() for cell in self.cells}
        self.finished: dict[str, set[tuple[int, int]]] = {cell: set() for cell in self.cells}  # DONE files seen
        self.processes: list[subprocess.Popen | None] = [self.start(n) for n in range(WORKERS)]

    def start(self, number: int) -> subprocess.Popen:
        return launch._start(self.command, self.environments[number], self.log(number))

    def log(self, number: int) -> Path:
        return self.runs / f"worker-{number}.log"

    @property
    def is_done(self) -> bool:
        return all((self.runs / cell / "DONE").exists() for cell in self.cells)

    def look(self) -> None:
        """See what is there, start again what has ended."""
        for number, process in enumerate(self.processes):
            if process is None:
                continue
            if process.poll() is not None:
                self.ended[process.returncode] += 1
                words = self.log(number).read_text()[-2000:]
                assert process.returncode in (0, 1, 42, -KILL, -TERM), f"{process.returncode}: {words}"
                self.processes[number] = None if self.is_done else self.start(number)
                continue
            for pid, cell in _cells_of(process.pid):
                last = self.children.get(cell)
                if last is None or last.pid != pid or not last.runs:
                    child = Child(pid, lease._born(pid), cell, number, process, self.lives(cell))
                    if child.runs and not any(other.pid == pid and other.runs for other in self.every):
                        self.takeovers += last is not None and last.number != number
                        self.children[cell] = child
                        self.every.append(child)
        for cell in self.cells:
            run_dir = self.runs / cell
            assert not (run_dir / "FAILED").exists(), (run_dir / "FAILED").read_text()
            self.saved[cell] |= {int(name) for name in _names(run_dir / "checkpoints") if name.isdigit()}
            with suppress(FileNotFoundError):
                found = (run_dir / "DONE").stat()
                self.finished[cell].add((found.st_ino, found.st_mtime_ns))

    def wait(self, condition: Callable[[], object], seconds: float = 180.0) -> bool:
        """Look until it holds; whether it did in time."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.look()
            time.sleep(0.005)
        return True

    def lives(self, cell: str) -> int:
        with suppress(FileNotFoundError):
            return (self.runs / cell / "lives.jsonl").read_bytes().count(b"\n")
        return 0

    def trains(self, child: Child) -> bool:
        """Whether it has written rows of its own."""
        if child.rows is None and self.lives(child.cell) == child.lives:
            return False
        path = self.runs / child.cell / "metrics.jsonl"
        size = path.stat().st_size if path.exists() else 0
        if child.rows is None:
            child.rows = size
        return size > child.rows

    def saves(self, cell: str) -> bool:
        """Whether a checkpoint of the cell has been begun and is not whole."""
        folder = self.runs / cell / "checkpoints"
        begun = (name for private in _names(folder) if private.startswith(".") for name in _names(folder / private))
        return any(name[0].isdigit() for name in begun)

    def target(self, who: str, moment: str, order: list[str]) -> Child | None:
        """A child that can be hit now."""
        for child in (self.children[cell] for cell in order if cell in self.children):
            if not child.runs or (who != "cell" and child.worker.poll() is not None):
                continue
            if moment == "any time" or (self.trains(child) and (moment == "training" or self.saves(child.cell))):
                return child
        return None

    def end(self) -> None:
        for process in filter(None, self.processes):
            process.kill()
            process.wait()
        for child in self.every:
            child.send(KILL)


def _cells_of(pid: int) -> Iterator[tuple[int, str]]:
    """The children of a worker, and the cells that they run."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with suppress(FileNotFoundError, ProcessLookupError):
                words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
                if "--run" in words:
                    yield int(child), Path(words[words.index("--run") + 1]).name


def _names(folder: Path) -> list[str]:
    with suppress(FileNotFoundError, NotADirectoryError):
        return os.listdir(folder)
    return []


def _exit_status(pid: int) -> int:
    """Of a process that has ended, and that its parent, which is stopped, has not asked for yet."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[49]) >> 8


class Faults:
    """Injects one fault after another, and counts."""

    def __init__(self) -> None:
        self.random = random.Random(SEED)
        self.deck: list[tuple[signal.Signals, str]] = []
        self.count: Counter[str] = Counter()
        self.misses = 0  # rounds in a row that hit nothing
        self.lost: Counter[str] = Counter()  # lives that a cell lost in the sweep at hand
        self.began = time.monotonic()

    def strike(self, workers: Workers) -> bool:
        """One round, or none where there is nothing to hit for a minute; False if the sweep has ended."""
        if not self.deck:
            self.deck = self.random.sample(DECK, len(DECK))
        number, who = self.deck[-1]
        moment = self.random.choice(MOMENTS)
        order = self.random.sample(workers.cells, len(workers.cells))
        if moment == "any time":
            workers.wait(lambda: workers.is_done, self.random.uniform(0, 6))
        found: list[Child] = []

        def hit() -> bool:
            child = workers.target(who, moment, order)
            found.extend([child] if child else [])
            return child is not None or workers.is_done

        workers.wait(hit, 60)
        if not found:
            self.misses += 1
            assert self.misses < 10, f"nothing to hit {moment}: the sweep makes no progress"
            self.deck.insert(0, self.deck.pop())
            return not workers.is_done
        child, self.misses = found[0], 0
        time.sleep(self.random.uniform(0, {"any time": 0, "training": 0.5, "saving": 0.05}[moment]))
        self.deck.pop()
        self.count.update(["rounds", f"{number.name} {who}", f"at {moment}"])
        print(f"{time.monotonic() - self.began:5.0f} s  {number.name} {who} of {child.cell}, {moment}", flush=True)
        trained = workers.trains(child)
        if who != "cell":
            child.worker.send_signal(number)
        if who != "worker":
            child.send(number)
        if number == STOP:
            ended = self._wake_taken_over(workers, child, who == "both")
        else:
            ended = number == TERM or who != "worker"  # a cell outlives its killed worker, under its lease
            assert not ended or workers.wait(lambda: not child.runs), f"{child} does not end"
            if number == KILL and ended:
                self.count["saves broken off"] += workers.saves(child.cell)
        if who != "cell" and number != STOP:
            assert workers.wait(lambda: child.worker.poll() is not None), f"{child.worker} does not end"
            is_done = (workers.runs / child.cell / "DONE").exists()
            assert number == KILL or is_done or child.worker.returncode == 42
        self.lost[child.cell] += ended and trained and not (workers.runs / child.cell / "DONE").exists()
        return True

    def _wake_taken_over(self, workers: Workers, child: Child, worker_too: bool) -> bool:
        """Let another worker take the cell of a stopped one over, then wake it; whether it was."""
        run_dir = workers.runs / child.cell
        log = run_dir / "log.txt"

        def claim() -> int:
            return (lease.newest(run_dir) or {"number": 0})["number"]

        number, was_done, said = claim(), (run_dir / "DONE").exists(), log.stat().st_size
        self.count["saves stopped"] += workers.saves(child.cell)
        workers.wait(lambda: claim() > number or workers.is_done, 4 * LEASE_SECONDS)
        taken = claim() > number and not was_done
        workers.wait(lambda: workers.is_done, self.random.uniform(0, 5))
        child.send(signal.SIGCONT)
        if taken:
            assert workers.wait(lambda: not child.runs), f"{child} goes on"
            self.count["taken over and woken"] += 1
            assert b"was taken for dead" in log.read_bytes()[said:]
            assert not worker_too or _exit_status(child.pid) == 75
        if worker_too:
            child.worker.send_signal(signal.SIGCONT)
        return taken


def check(truth: Path, runs: Path, workers: Workers, lost: Counter[str], cells: list[spec.Cell]) -> None:
    """One history, the records and numbers of the undisturbed sweep, and nothing left behind."""
    for cell in cells:
        ours, theirs = runs / cell.name, truth / cell.name
        assert status.read_state(cell, runs).state == "done"
        assert lease.silent_seconds(ours) is None  # nobody holds it
        assert len(workers.finished[cell.name]) == 1  # it was done once
        done, done_theirs = (json.loads((path / "DONE").read_text()) for path in (ours, theirs))
        assert done | {"seconds": 0} == done_theirs | {"seconds": 0}
        assert (ours / "config.json").read_bytes() == (theirs / "config.json").read_bytes()

        assert history(ours) == history(theirs)
        seconds = [row["seconds"] for row in records.read_rows(ours / "metrics.jsonl")[0]]
        assert seconds == sorted(seconds)
        assert seconds[-1] <= done["seconds"]

        lives, torn = records.read_rows(ours / "lives.jsonl")
        starts = [life["resumed_from"] for life in lives]
        first = cooldown_start(cell.config.optimizer, STEPS) if cell.parent else 0
        assert torn == 0
        assert starts == sorted(starts)
        assert set(starts) <= {first} | workers.saved[cell.name]
        assert 1 + lost[cell.name] <= len(lives) <= (lease.newest(ours) or {})["number"]

        kept = set(cell.config.keep_steps) | {STEPS}
        names = {path.name for path in (ours / "checkpoints").iterdir()}
        assert all(name.isdigit() for name in names), names
        assert sorted(map(int, names)) == checkpoint.saved_steps(ours / "checkpoints")
        assert {str(step) for step in kept} <= names
        assert len(names) <= len(kept) + 1
        for step in kept:
            for a, b in zip(final_state(ours, step), final_state(theirs, step), strict=True):
                assert a.tobytes() == b.tobytes()


def finish(workers: Workers) -> None:
    assert workers.wait(lambda: workers.is_done and not any(workers.processes), 1800), "the sweep does not end"


def test_a_sweep_ends_as_if_nobody_had_disturbed_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "")  # one device to a process, as without the tests
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("SD3_JAX_LEASE_SECONDS", str(LEASE_SECONDS))
    monkeypatch.setattr(lease, "LEASE_SECONDS", LEASE_SECONDS)
    # A row for every step, and a save as soon as the last one is over.
    (tmp_path / "tiny.json").write_text(json.dumps(configs.to_dict(tiny(checkpoint_seconds=0.3))))
    file = tmp_path / "sweep.yaml"
    file.write_text(SWEEP)
    cells, truth, faults = spec.load(file), tmp_path / "truth", Faults()
    truth.mkdir()
    workers = Workers(file, truth)
    try:
        finish(workers)
    finally:
        workers.end()
    assert workers.ended == {0: WORKERS}
    print(f"\n{time.monotonic() - faults.began:5.0f} s  undisturbed: {len(cells)} cells of {STEPS} steps")

    runs, totals, sweeps = tmp_path / "runs", Counter[str](), 0
    while faults.count["rounds"] < ROUNDS:
        sweeps += 1
        for cell in cells:  # all but the cache
            shutil.rmtree(runs / cell.name, ignore_errors=True)
        runs.mkdir(exist_ok=True)
        faults.lost.clear()
        workers = Workers(file, runs)
        try:
            while faults.count["rounds"] < ROUNDS and faults.strike(workers):
                pass
            finish(workers)
            print(f"{time.monotonic() - faults.began:5.0f} s  sweep {sweeps} has ended", flush=True)
            check(truth, runs, workers, faults.lost, cells)
            before = [(runs / cell.name / "metrics.jsonl").stat().st_mtime_ns for cell in cells]
            subprocess.run(workers.command, check=True, capture_output=True)
            assert before == [(runs / cell.name / "metrics.jsonl").stat().st_mtime_ns for cell in cells]
        finally:
            workers.end()
        totals.update(takeovers=workers.takeovers, restarts=sum(workers.ended.values()) - WORKERS)
        totals.update(lives=sum(map(workers.lives, workers.cells)), saves=sum(map(len, workers.saved.values())))
    seconds = time.monotonic() - faults.began
    print(f"seed {SEED}: {faults.count.pop('rounds')} faults in {seconds:.0f} s")
    for name, count in sorted(faults.count.items()):
        print(f"  {count:3} {name}")
    print(f"  {totals['takeovers']} takeovers by another worker, {totals['restarts']} workers started again")
    print(f"  {totals['lives']} lives of {sweeps * len(cells)} cells (sweeps: {sweeps}), {totals['saves']} checkpoints")
    print("  every cell done once, its records one history, its state bit for bit that of the undisturbed sweep")
