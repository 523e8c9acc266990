"""Running a sweep: one process per cell, as many at once as there are workers, until every cell is settled.

A cell is settled by its run directory alone: done cells are skipped, interrupted ones resume, failed ones are
listed and left. Whoever runs a cell holds its lease (:mod:`sd3_jax.lease`), so that any number of ``sweep run``
commands, on any machines that share the directory, may share a sweep; each waits for the cells that another one runs,
and takes over those whose holder has died.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sd3_jax import bucket, lease, platform, records, trackers
from sd3_jax.errors import LeaseLost, UserError
from sd3_jax.lease import Lease, Watch
from sd3_jax.sweep.claims import Claim, claim_next
from sd3_jax.sweep.plan import plan, speed
from sd3_jax.sweep.spec import Cell
from sd3_jax.sweep.status import EXIT_STOPPED, CellState, read_state
from sd3_jax.sweep.stopping import held, stoppable

Command = Callable[[Path, Path | None], list[str]]  # (run directory, parent's directory) -> argv
GRACE_SECONDS = 120.0  # between asking a cell to stop, which saves a checkpoint, and stopping it


@dataclass
class _Child:
    """A cell that this process runs."""

    cell: Cell
    process: subprocess.Popen
    claim: Lease
    slot: int
    began: float
    log_start: int  # where in log.txt this life begins


@dataclass
class _Book:
    """What this command has tried, and how it went where the run directory does not say."""

    running: dict[str, _Child] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)
    why: dict[str, str] = field(default_factory=dict)
    watch: Watch = field(default_factory=Watch)


def train_command(run_dir: Path, parent: Path | None) -> list[str]:
    """The command that runs or resumes the cell of a run directory."""
    branch = ["--branch-from", str(parent)] if parent else []
    return [sys.executable, "-m", "sd3_jax.cli", "train", str(run_dir / "config.json"), "--run", str(run_dir), *branch]


def prepare(cells: Sequence[Cell], runs_dir: Path) -> None:
    """Write every cell's config.json, once all of them are known to fit what their directories hold.

    Raises UserError, having written nothing, if one does not.
    """
    for cell in cells:
        bucket.pull(runs_dir / cell.name, cell.config)
        records.check_run(runs_dir / cell.name, cell.config)
        trackers.check(cell.config.trackers)
        source = cell.config.init_from
        if source and not Path(source).exists() and not bucket.checkpoints(runs_dir / cell.name, cell.config).exists():
            raise UserError(f"{cell.name}: init_from: {source}: no such file or directory")
    _check_sets(cells)
    for cell in cells:
        run_dir = runs_dir / cell.name
        if not Watch().is_alive(run_dir):
            records.open_run(run_dir, cell.config)
        elif records.load_config(run_dir) != cell.config:
            raise UserError(f"{run_dir}: is running now, with another length or mesh: wait for it, or stop it")


def _check_sets(cells: Sequence[Cell]) -> None:
    """See that prepared sets are there and fit, before a cell fails for the lack of one."""
    for cell in cells:
        if cell.config.data.source == "encoded":
            from sd3_jax.training import encoded

            try:
                encoded.look(cell.config)
            except UserError as error:
                raise UserError(f"{cell.name}: {error}") from None


def run(
    cells: Sequence[Cell],
    runs_dir: Path,
    console: Console,
    workers: int | None = None,
    command: Command = train_command,
) -> list[CellState]:
    """Bring every cell to its end and return the states. An interruption stops the cells, to be resumed later.

    Raises UserError, before anything runs, if a run directory holds something else, and Stopped at SIGTERM.
    """
    prepare(cells, runs_dir)
    # As many workers for the last cell as for all: with other cores a resumed run would differ in its last digits.
    slots = worker_environments(default_workers(len(cells)) if workers is None else workers, runs_dir)
    book = _Book()
    cells = by_priority(cells)
    with stoppable(), _progress(console, cells, runs_dir) as report:
        try:
            while _advance(cells, runs_dir, slots, command, book, console) or book.running:
                report(book)
                time.sleep(0.2)
        finally:
            _stop(book)
    ordered = sorted(cells, key=lambda cell: cell.name)
    return [_explained(state, runs_dir, book) for state in _states(ordered, runs_dir)]


def retry(
    cells: Sequence[Cell],
    runs_dir: Path,
    console: Console,
    workers: int | None = None,
    command: Command = train_command,
) -> list[CellState]:
    """Run the failed cells again, and the branches that waited for them; the arguments are those of :func:`run`."""
    prepare(cells, runs_dir)
    failed = {cell.name for cell in cells if records.status(runs_dir / cell.name) == "failed"}
    for name in failed:
        (runs_dir / name / "FAILED").unlink(missing_ok=True)
    return run(
        [cell for cell in cells if cell.name in failed or cell.parent in failed], runs_dir, console, workers, command
    )


def default_workers(cells: int, environ: Mapping[str, str] = os.environ) -> int:
    """One on an accelerator; on CPU one per core, but no more than there are cells."""
    return 1 if platform.has_accelerator(dict(environ)) else max(1, min(len(platform.cores()), cells))


def share(cells: Sequence[Cell], part: str) -> list[Cell]:
    """The cells of part ``I/N``, I = 1 .. N: where workers share no file system, each runs its own part.

    Dealt by cost, a cell with its branches as one, so that parts cost about the same. Raises UserError for no part.
    """
    numbers = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", part)
    own, count = map(int, numbers.groups()) if numbers else (0, 0)
    if not 1 <= own <= count:
        raise UserError(f"--cells: {part!r} is not a part such as 1/4, 2/4, 3/4 or 4/4")
    families = [cell.name for cell in by_priority(cells) if not cell.parent]
    mine = set(families[own - 1 :: count])
    return [cell for cell in cells if (cell.parent or cell.name) in mine]


def _advance(
    cells: Sequence[Cell], runs_dir: Path, slots: list[dict[str, str]], command: Command, book: _Book, console: Console
) -> bool:
    """Reap what has ended, start what can start; whether there is anything to come back for."""
    for name, child in list(book.running.items()):
        if child.process.poll() is not None:
            del book.running[name]
            _settle(child, runs_dir, book)
            _announce(child, runs_dir, book, console)
    free = [slot for slot in range(len(slots)) if slot not in {child.slot for child in book.running.values()}]
    while free:
        claim = claim_next(cells, runs_dir, book.watch, book.tried, book.running)
        if not isinstance(claim, Claim):
            return claim
        name, parent, slot = claim.cell.name, claim.cell.parent, free.pop(0)
        argv = command(runs_dir / name, runs_dir / parent if parent else None)
        with held():
            book.running[name] = _start(claim, argv, slots[slot], slot)
        book.tried.add(name)
    return True


def _start(claim: Claim, argv: list[str], environ: dict[str, str], slot: int) -> _Child:
    """Start a cell in a process group of its own, which adopts the claim made here."""
    try:
        with open(claim.lease.run_dir / "log.txt", "ab") as log:
            log_start = log.tell()
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environ, "SD3_JAX_LEASE": str(claim.lease.number), "SD3_JAX_ALONE": "1"},
                start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the cells
            )
    except OSError:
        lease.give_up(claim.lease)
        raise
    return _Child(claim.cell, process, claim.lease, slot, time.monotonic(), log_start)


def _settle(child: _Child, runs_dir: Path, book: _Book) -> None:
    """Say why a cell that ended is not done. A cell that was killed may resume; one that gave up has failed."""
    run_dir, code = runs_dir / child.cell.name, child.process.returncode
    try:
        child.claim.check()
    except LeaseLost:
        book.why[child.cell.name] = "taken over by another worker"
        book.tried.discard(child.cell.name)  # to be waited for, and run if that worker dies too
        return
    if records.status(run_dir) not in ("done", "failed"):
        if code < 0:
            book.why[child.cell.name] = f"killed by {signal.Signals(-code).name}"
        elif code in (EXIT_STOPPED, 128 + signal.SIGINT, 128 + signal.SIGTERM):
            book.why[child.cell.name] = "stopped"
        else:
            why = _reason(run_dir / "log.txt", child.log_start) or f"exit status {code}"
            book.why[child.cell.name] = why
            with suppress(OSError, LeaseLost):  # the reason may be a full disk; the table still says it
                records.fail(run_dir, why, child.claim.check)
    lease.give_up(child.claim)


def _stop(book: _Book) -> None:
    """Ask the cells that still run to end, insist after a while, and let them go."""
    for request in (signal.SIGTERM, signal.SIGKILL):
        for child in book.running.values():
            if child.process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(child.process.pid, request)
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline and any(child.process.poll() is None for child in book.running.values()):
            time.sleep(0.05)
    for child in book.running.values():
        if child.process.poll() is not None:
            lease.give_up(child.claim)  # for another machine to go on at once


def by_priority(cells: Sequence[Cell]) -> list[Cell]:
    """The longest first, a parent counting for its longest branch too: so the last to end are the short ones."""
    cost = {cell.name: float(cell.flops) for cell in plan(cells, speed()).cells}
    branches = {cell.parent: max(cost[other.name] for other in cells if other.parent == cell.parent) for cell in cells}
    return sorted(cells, key=lambda cell: -(cost[cell.name] + branches.get(cell.name, 0.0)))


def worker_environments(workers: int, runs_dir: Path) -> list[dict[str, str]]:
    """The environment of each worker: its share of the cores, or of the GPUs, and the cache that all share."""
    if workers < 1:
        raise UserError(f"--workers: {workers} is not a number of workers")
    common = {}
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        common["JAX_COMPILATION_CACHE_DIR"] = str((runs_dir / ".cache").resolve())
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        common["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    if not platform.has_accelerator():
        common |= platform.memory_settings()
        return [common | {"SD3_JAX_CPUS": share} for share in _shares(list(map(str, platform.cores())), workers)]
    gpus = platform.gpus()
    if workers == 1 or not gpus:
        return [common] * workers
    if workers > len(gpus):  # several cells to a GPU: each takes its part of the memory
        common.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / -(-workers // len(gpus)):.2f}")
    return [common | {"CUDA_VISIBLE_DEVICES": share} for share in _shares(gpus, workers)]


def _shares(items: list[str], workers: int) -> list[str]:
    """Items dealt to workers, each at least one: ``["0", "1", "2"]`` to 2 gives ``["0,2", "1"]``."""
    return [",".join(items[worker::workers] or [items[worker % len(items)]]) for worker in range(workers)]


@contextmanager
def _progress(console: Console, cells: Sequence[Cell], runs_dir: Path) -> Iterator[Callable[[_Book], None]]:
    """On a terminal, a bar for the sweep, weighted by FLOPs, and a line for each cell that runs."""
    if not console.is_terminal:
        yield lambda book: None
        return
    columns = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[now]}")]
    with Progress(*columns, TimeRemainingColumn(), console=console, speed_estimate_period=600) as bar:
        states = _states(cells, runs_dir)
        total = sum(state.flops_total for state in states)
        overall = bar.add_task(runs_dir.name, total=total, completed=int(total - _left(states)), now="")
        lines: dict[str, TaskID] = {}
        looked = 0.0

        def report(book: _Book) -> None:
            nonlocal looked
            if time.monotonic() - looked < 1.0:
                return
            looked = time.monotonic()
            states = _states(cells, runs_dir)
            done = sum(state.state == "done" for state in states)
            bar.update(overall, completed=total - _left(states), now=f"{done} of {len(cells)} cells")
            for state in states:
                name = state.cell.name
                if name in book.running:
                    if name not in lines:
                        lines[name] = bar.add_task(f"  {name}", total=state.steps, now="")
                    bar.update(lines[name], completed=state.step, now=_now(state))
                elif name in lines:
                    bar.remove_task(lines.pop(name))

        yield report


def _now(state: CellState) -> str:
    if state.loss is None or state.images_per_second is None:
        return "compiling"
    return f"step {state.step:,}, loss {state.loss:.4f}, {state.images_per_second:,.0f} images/s"


def _announce(child: _Child, runs_dir: Path, book: _Book, console: Console) -> None:
    state = _explained(read_state(child.cell, runs_dir), runs_dir, book)
    loss = "" if state.ema_loss is None else f", EMA validation loss {state.ema_loss:.4f}"
    why = f": {state.why}" if state.why else ""
    seconds = time.monotonic() - child.began
    line = f"{state.cell.name} {state.state}{loss}, {seconds:.0f} s{why}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _states(cells: Sequence[Cell], runs_dir: Path) -> list[CellState]:
    return [read_state(cell, runs_dir) for cell in cells]


def _left(states: Sequence[CellState]) -> float:
    return sum(state.flops_left for state in states)


def _explained(state: CellState, runs_dir: Path, book: _Book) -> CellState:
    """With what this command knows of why a cell is not done, where its directory does not say."""
    why = state.why or book.why.get(state.cell.name, "")
    parent = state.cell.parent
    if not why and parent and state.state in ("waiting", "interrupted") and records.status(runs_dir / parent) != "done":
        why = f"its parent {parent} did not finish"
    return replace(state, why=why)


def _reason(path: Path, start: int) -> str:
    """Why a cell gave up, from what it wrote: our own message, else the exception of a traceback, else the end."""
    with open(path, "rb") as file:
        file.seek(start)
        text = file.read()[-16384:].decode("utf-8", errors="replace")
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("sd3-jax: error: ")]
    exceptions = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Exit|Interrupt)\b", line)]
    return next((found[-1].removeprefix("sd3-jax: error: ")[:500] for found in (ours, exceptions, lines) if found), "")
