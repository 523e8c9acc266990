"""Plan, run and follow a sweep."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from sd3_jax import platform, records, terminal
from sd3_jax.cli import submitting
from sd3_jax.cli.options import JsonOption, RunsOption, SweepArgument, WorkersOption
from sd3_jax.cli.reading import load_runs
from sd3_jax.errors import UserError
from sd3_jax.experiments import find_sweep

WATCH_SECONDS = 2.0  # between two looks at a sweep
_HARDWARE_HELP = "A TPU slice or GPUs: v5p-128, v6e-256, v5e-256, h100x8; of one H100, and no memory, unless given."
_COMPILE_HELP = "Compile each step for the TPU slice, which need not be here, and refuse what does not fit."
_PROPOSE_HELP = "Instead: print a sweep of isoFLOP valleys, in this one's setting, that takes so many FLOPs in all."
app = typer.Typer(help="Plan, run and follow a sweep: many runs from one YAML file.", no_args_is_help=True)
app.command("submit")(submitting.submit)


@app.command("plan")
def plan(
    file: SweepArgument,
    hardware: Annotated[str | None, typer.Option(metavar="NAME", help=_HARDWARE_HELP)] = None,
    compile_: Annotated[bool, typer.Option("--compile", help=_COMPILE_HELP)] = False,
    mfu: Annotated[float, typer.Option(help="Model FLOPs utilisation: the share of the peak that is reached.")] = 0.40,
    flops_per_second: Annotated[
        float | None,
        typer.Option(help="A chip's rate that was measured, instead of the MFU; 3e10 for two CPU cores."),
    ] = None,
    price: Annotated[float | None, typer.Option(help="Of one chip for an hour, in any currency.")] = None,
    propose: Annotated[float | None, typer.Option(metavar="FLOPS", help=_PROPOSE_HELP)] = None,
    law: Annotated[Path | None, typer.Option(metavar="RUNS", help="For --propose: fit the law to these runs.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Show what every cell will cost and whether it fits, before it is paid for. Nothing is run.

    Exit status 2 if a cell cannot run as it is written: its mesh or, with --compile, its memory.

    Example: sd3-jax sweep plan figure8 --hardware v5p-128 --compile --price 4.2
    """
    from sd3_jax.sweep import plan as plans
    from sd3_jax.sweep import plan_table

    if law is not None and propose is None:
        raise UserError("--law: is for --propose, which says how much to spend in all")
    if propose is not None:
        _propose(find_sweep(file), propose, law)
        return
    path, cells = _load_sweep(file)
    rate = plans.speed(hardware, mfu, flops_per_second, price)
    compiled = None
    if compile_:
        from sd3_jax.sweep import compile as compiler

        slice_ = compiler.compilable(rate.hardware)
        fitting = [cell for cell, cost in zip(cells, plans.plan(cells, rate).cells, strict=True) if not cost.refused]
        compiled = compiler.compile_cells(fitting, slice_, lambda line: print(line, file=sys.stderr, flush=True))
    result = plans.plan(cells, rate, compiled)
    table = plan_table.table(result, f"{path}: {len(cells)} cells")
    warnings = [Text(f"warning: {warning}", style="yellow") for warning in result.warnings]
    terminal.show([table, *plan_table.budget_lines(result), *warnings], plans.to_json(result), json_file)
    if result.refusals:
        refused = sum(cell.refused is not None for cell in result.cells)
        raise UserError(f"{path}: {refused} of {len(cells)} cells cannot run as written: {'; '.join(result.refusals)}")


def _propose(path: Path, total: float, runs: Path | None) -> None:
    """Print a sweep's YAML of isoFLOP valleys for a total of FLOPs."""
    from sd3_jax.sweep import propose

    if runs is None:
        print(propose.proposal(path, total), end="")
        return
    if not 0 < total < float("inf"):
        raise UserError(f"--propose: {total} is not a number of FLOPs")
    import numpy as np

    import analysis

    budgets = np.geomspace(total / 1e5, total, 200)
    best = np.log(analysis.implied(analysis.fit(load_runs(runs)), budgets)["params"].to_numpy(float))
    optimum = propose.Optimum(
        lambda _, budget: float(np.exp(np.interp(np.log(budget), np.log(budgets), best))), f"the law of {runs}"
    )
    print(propose.proposal(path, total, optimum), end="")


@app.command("run")
def run(
    file: SweepArgument,
    runs: RunsOption = None,
    workers: WorkersOption = None,
    cells: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only the I-th of N parts, where workers share no file system."),
    ] = None,
) -> None:
    """Run every cell that is not done: interrupted cells resume, failed ones are listed and left.

    Any number of these commands may share a sweep. Exit status: 0 all cells are done, 1 some are not, 42 stopped by
    SIGTERM, to be started again.

    Example: sd3-jax sweep run figure8_cpu
    """
    from sd3_jax.sweep import hosts
    from sd3_jax.sweep import run as runner

    path, every = _load_sweep(file)
    chosen, runs_dir = every if cells is None else runner.share(every, cells), _runs_dir(path, runs)
    if not platform.is_one_of_many():
        _finish_sweep(runner.run(chosen, runs_dir, Console(stderr=True), workers), path)
        return
    if workers not in (None, 1):
        raise UserError(f"--workers: {workers} cells at once; a worker that spans hosts runs one at a time")
    part = ["--cells", cells] if cells else []
    argv = [sys.executable, "-m", "sd3_jax.cli", "sweep", "turn", str(path), "--runs", str(runs_dir), *part]
    raise typer.Exit(hosts.supervise(argv, runs_dir))


@app.command("turn", hidden=True)
def turn(file: str, runs: Annotated[Path, typer.Option()], cells: Annotated[str | None, typer.Option()] = None) -> None:
    """One cell of a sweep, by the processes of several hosts; ``sweep run`` starts it on each."""
    from sd3_jax.sweep import run as runner

    path, every = _load_sweep(file)
    chosen = every if cells is None else runner.share(every, cells)
    platform.prepare()
    import jax

    from sd3_jax.sweep import status as states
    from sd3_jax.sweep import turn as turns

    code = turns.turn(chosen, runs)
    if code in (0, 1) and jax.process_index() == 0:
        _finish_sweep([states.read_state(cell, runs) for cell in chosen], path)
    raise typer.Exit(code)


@app.command("retry")
def retry(file: SweepArgument, runs: RunsOption = None, workers: WorkersOption = None) -> None:
    """Run the failed cells again, from their last good checkpoints.

    Example: sd3-jax sweep retry figure8_cpu
    """
    from sd3_jax.sweep import run as runner

    path, cells = _load_sweep(file)
    states = runner.retry(cells, _runs_dir(path, runs), Console(stderr=True), workers)
    if not states:
        print("no cell has failed")
    else:
        _finish_sweep(states, path)


@app.command("status")
def status(
    file: SweepArgument,
    runs: RunsOption = None,
    json_file: JsonOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every few seconds, until no cell runs.")] = False,
) -> None:
    """Show where every cell stands: waiting, running, stalled (its holder is silent), interrupted, done or failed.

    Example: sd3-jax sweep status figure8_cpu
    """
    from sd3_jax.sweep import status

    path, cells = _load_sweep(file)
    runs_dir = _runs_dir(path, runs)
    for cell in cells:
        records.check_run(runs_dir / cell.name, cell.config)

    def look() -> tuple[list[Any], Any]:
        states = [status.read_state(cell, runs_dir) for cell in cells]
        return states, status.table(states, f"{runs_dir}: {status.summary(states)}")

    states, table = look()
    if watch:
        with Live(table, console=Console(), auto_refresh=False) as live:
            while any(state.state in ("running", "stalled") for state in states):
                time.sleep(WATCH_SECONDS)
                states, table = look()
                live.update(table, refresh=True)
        if json_file is None:
            return
    terminal.show(table, status.to_json(states), json_file)


def _load_sweep(file: str) -> tuple[Path, list[Any]]:
    from sd3_jax.sweep import spec

    path = find_sweep(file)
    return path, spec.load(path)


def _runs_dir(path: Path, given: Path | None) -> Path:
    return given if given is not None else Path("runs") / path.stem


def _finish_sweep(states: Sequence[Any], path: Path) -> None:
    from sd3_jax.sweep import status

    terminal.show(status.table(states, f"{path}: {status.summary(states)}"), None, None)
    if any(state.state != "done" for state in states):
        raise typer.Exit(1)
