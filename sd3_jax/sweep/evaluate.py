"""Evaluating many runs: dealt to as many processes as there are workers, each of which evaluates its share in turn."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sd3_jax import flops, records
from sd3_jax.errors import UserError
from sd3_jax.sweep.run import worker_environments
from sd3_jax.sweep.stopping import held, stoppable

LOG = "evaluate.log"
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
    costs: Mapping[Path, float],
    workers: int,
    console: Console,
    command: Command,
    folders: Sequence[Path],
    pictures: Mapping[Path, int],
) -> None:
    """Evaluate every run in processes of their own; ``folders`` will hold the pictures, ``pictures`` of each run.

    What a process prints is in the evaluate.log of the first of its runs. Raises UserError, once all have ended, if
    one of them failed: what the others wrote stays.
    """
    shares = deal(costs, workers)
    environments = worker_environments(len(shares), shares[0][0].resolve().parent)
    children = []
    with stoppable():
        try:
            for share, environment in zip(shares, environments, strict=True):
                with open(share[0] / LOG, "wb") as log, held():
                    children.append(
                        subprocess.Popen(
                            command(share),
                            stdin=subprocess.DEVNULL,
                            stdout=log,
                            stderr=subprocess.STDOUT,
                            env=os.environ | environment,
                            start_new_session=True,
                        )
                    )
            with _progress(console, folders, sum(pictures.values())) as report:
                while any(child.poll() is None for child in children):
                    report()
                    time.sleep(0.2)
        finally:
            for child in children:
                if child.poll() is None:
                    child.terminate()
            for child in children:
                child.wait()
    for share, child in zip(shares, children, strict=True):
        if child.returncode:
            raise UserError(_reason(share[0] / LOG))


def _reason(log: Path) -> str:
    """Our own message, or where to read what happened."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("sd3-jax: error: ")]
    if ours:
        return ours[-1].removeprefix("sd3-jax: error: ")[:500]
    return f"an evaluation ended early ({lines[-1][:300] if lines else 'without saying why'}); see {log}"


@contextmanager
def _progress(console: Console, folders: Sequence[Path], pictures: int) -> Iterator[Callable[[], None]]:
    """On a terminal a bar of the pictures that are on disk; nothing elsewhere."""
    if not console.is_terminal:
        yield lambda: None
        return
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("pictures")]
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("sampling and judging", total=pictures, completed=_count(folders))
        looked = 0.0

        def report() -> None:
            nonlocal looked
            if time.monotonic() - looked >= 1.0:
                looked = time.monotonic()
                bar.update(task, completed=_count(folders))

        yield report


def _count(folders: Sequence[Path]) -> int:
    return sum(1 for folder in folders for _ in folder.glob("[0-9]*/samples/[0-9]*.png"))


def runs_command(options: Sequence[str], steps: Mapping[Path, Sequence[int]]) -> Command:
    """The command line that evaluates runs with these options, in one process; of each the steps that it has."""
    start = [sys.executable, "-m", "sd3_jax.cli", "evaluate"]

    def command(runs: Sequence[Path]) -> list[str]:
        wanted = sorted({step for run in runs for step in steps[run]})
        chosen = [part for step in wanted for part in ("--step", str(step))]
        return [*start, *map(str, runs), "--workers", "1", "--no-preference", *options, *chosen]

    return command
