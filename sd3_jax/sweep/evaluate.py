"""Evaluating many runs: dealt to as many processes as there are workers, each of which evaluates its share in turn."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sd3_jax import flops, records
from sd3_jax.errors import UserError
from sd3_jax.sweep.run import stoppable, worker_environments

Command = Callable[[Sequence[Path]], list[str]]  # runs -> argv of the process that evaluates them


def deal(costs: Mapping[Path, float], workers: int) -> list[list[Path]]:
    """Share runs out so that the largest share is small: the costliest first, each to who has least.

    >>> [[path.name for path in share] for share in deal({Path("a"): 3.0, Path("b"): 2.0, Path("c"): 1.0}, 2)]
    [['a'], ['b', 'c']]
    """
    shares: list[list[Path]] = [[] for _ in range(min(workers, len(costs)))]
    loads = [0.0] * len(shares)
    for run_dir in sorted(costs, key=lambda path: -costs[path]):
        least = loads.index(min(loads))
        shares[least].append(run_dir)
        loads[least] += costs[run_dir]
    return shares


def cost(run_dir: Path, pictures: int) -> float:
    """Forward FLOPs of the pictures of one run, but for the sampler's steps, which all runs share."""
    return pictures * float(flops.train_flops(records.load_config(run_dir).model))


def evaluate(
    costs: Mapping[Path, float], runs_dir: Path, workers: int, console: Console, command: Command, pictures: int
) -> None:
    """Evaluate every run in processes of their own; ``pictures`` is how many there will be in all.

    Raises UserError, once all have ended, if one of them failed: what the others wrote stays.
    """
    shares = deal(costs, workers)
    environments = worker_environments(len(shares), runs_dir)
    with tempfile.TemporaryDirectory() as logs, stoppable():
        children = []
        for number, (share, environment) in enumerate(zip(shares, environments, strict=True)):
            with open(Path(logs) / f"{number}.txt", "wb") as log:
                child = subprocess.Popen(
                    command(share),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | environment,
                    start_new_session=True,
                )
            children.append(child)
        try:
            with _progress(console, list(costs), pictures) as report:
                while any(child.poll() is None for child in children):
                    report()
                    time.sleep(0.2)
        finally:
            for child in children:
                if child.poll() is None:
                    child.terminate()
            for child in children:
                child.wait()
        failed = [number for number, child in enumerate(children) if child.returncode]
        if failed:
            raise UserError(_reason((Path(logs) / f"{failed[0]}.txt").read_text(encoding="utf-8", errors="replace")))


def _reason(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("sd3-jax: error: ")]
    found = (ours or lines or ["an evaluation ended without saying why"])[-1]
    return found.removeprefix("sd3-jax: error: ")[:500]


@contextmanager
def _progress(console: Console, runs: Sequence[Path], pictures: int) -> Iterator[Callable[[], None]]:
    """On a terminal a bar of the pictures that are on disk; nothing elsewhere."""
    if not console.is_terminal:
        yield lambda: None
        return
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("pictures")]
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        began = _count(runs)
        task = bar.add_task("sampling and judging", total=pictures)
        looked = 0.0

        def report() -> None:
            nonlocal looked
            if time.monotonic() - looked >= 1.0:
                looked = time.monotonic()
                bar.update(task, completed=min(_count(runs) - began, pictures))

        yield report


def _count(runs: Sequence[Path]) -> int:
    return sum(1 for run_dir in runs for _ in run_dir.glob("samples/*/[0-9]*/samples/[0-9]*.png"))


def runs_command(options: Sequence[str]) -> Command:
    """The command line that evaluates runs with these options, in one process."""
    start = [sys.executable, "-m", "sd3_jax.cli", "evaluate"]
    return lambda runs: [*start, *map(str, runs), "--workers", "1", "--no-preference", *options]
