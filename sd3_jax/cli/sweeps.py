"""Plan, run and follow a sweep."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from sd3_jax import records, terminal
from sd3_jax.cli import submitting
from sd3_jax.cli.options import JsonOption, RunsOption, SweepArgument, WorkersOption
from sd3_jax.experiments import find_sweep

app = typer.Typer(help="Plan, run and follow a sweep: many runs from one YAML file.", no_args_is_help=True)
app.command("submit")(submitting.submit)


@app.command("plan")
def plan(
    file: SweepArgument,
    hardware: Annotated[str, typer.Option(help="h100, h200, a100, v4, v5e, v5p or v6e.")] = "h100",
    chips: Annotated[int, typer.Option(min=1, help="How many of them, as JAX counts devices.")] = 1,
    mfu: Annotated[float, typer.Option(help="Model FLOPs utilisation: the share of the peak that is reached.")] = 0.40,
    flops_per_second: Annotated[
        float | None,
        typer.Option(help="A rate that was measured, instead of hardware and MFU; 3e10 for two CPU cores."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Show what every cell of a sweep will cost, and name cells too short to mean anything. Nothing is run.

    Example: sd3-jax sweep plan figure8 --hardware v5p --chips 64
    """
    from sd3_jax.sweep import plan as plans

    path, cells = _load_sweep(file)
    result = plans.plan(cells, plans.speed(hardware, chips, mfu, flops_per_second))
    table = plans.table(result, f"{path}: {len(cells)} cells")
    warnings = [Text(f"warning: {warning}", style="yellow") for warning in result.warnings]
    terminal.show([table, *plans.budget_lines(result), *warnings], plans.to_json(result), json_file)


@app.command("run")
def run(file: SweepArgument, runs: RunsOption = None, workers: WorkersOption = None) -> None:
    """Run every cell that is not done: interrupted cells resume, failed ones are listed and left.

    Example: sd3-jax sweep run figure8_cpu
    """
    from sd3_jax.sweep import run as runner

    path, cells = _load_sweep(file)
    _finish_sweep(runner.run(cells, _runs_dir(path, runs), Console(stderr=True), workers), path)


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
def status(file: SweepArgument, runs: RunsOption = None, json_file: JsonOption = None) -> None:
    """Show where every cell stands: waiting, running, interrupted, done or failed.

    Example: sd3-jax sweep status figure8_cpu
    """
    from sd3_jax.sweep import status

    path, cells = _load_sweep(file)
    runs_dir = _runs_dir(path, runs)
    for cell in cells:
        records.check_run(runs_dir / cell.name, cell.config)
    states = [status.read_state(cell, runs_dir) for cell in cells]
    table = status.table(states, f"{runs_dir}: {status.summary(states)}")
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
