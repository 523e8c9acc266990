"""The command line, ``sd3-jax``: the only place that knows both training and analysis.

JAX and the analysis are imported inside the commands that need them, so that the others answer at once.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

import sd3_jax
from sd3_jax import config as configs
from sd3_jax import platform, records, terminal
from sd3_jax.errors import UserError
from sd3_jax.experiments import find_sweep, load_experiment
from sd3_jax.flops import total_steps

app = typer.Typer(
    help="Scaling laws of text-to-image rectified-flow transformers: plan, run, read and extrapolate sweeps.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
sweep_app = typer.Typer(help="Plan, run and follow a sweep: many runs from one YAML file.", no_args_is_help=True)
app.add_typer(sweep_app, name="sweep")

_EXPERIMENT_HELP = "A shipped experiment, a path to a .py with get_config(), or a run's config.json."
_SWEEP_HELP = "A sweep's YAML, or the name of a shipped sweep."
_SET_HELP = "Change a field, such as model.depth=4. May be repeated."
_RUNS_DIR_HELP = "Where the runs are kept, one directory per cell; runs/<sweep name> unless given."
_WORKERS_HELP = "Cells at once; one on an accelerator, on CPU as many as cores, unless given."
_RUNS_HELP = "A directory of runs."
_JSON_HELP = "Write the result as JSON to this file; - for standard output."

ExperimentArgument = Annotated[str, typer.Argument(metavar="EXPERIMENT", help=_EXPERIMENT_HELP)]
SweepArgument = Annotated[str, typer.Argument(metavar="FILE", help=_SWEEP_HELP)]
RunsArgument = Annotated[Path, typer.Argument(metavar="RUNS", help=_RUNS_HELP)]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=_SET_HELP)]
RunsOption = Annotated[Path | None, typer.Option("--runs", metavar="DIR", help=_RUNS_DIR_HELP)]
WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, metavar="N", help=_WORKERS_HELP)]
JsonOption = Annotated[str | None, typer.Option("--json", metavar="FILE", help=_JSON_HELP)]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 a run failed, 2 bad input, 130 interrupted."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="sd3-jax")
    except UserError as error:
        _die(str(error))
    except OSError as error:
        _die(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _die(message: str, status: int = 2) -> NoReturn:
    print(f"sd3-jax: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def _version(asked: bool) -> None:
    if asked:
        print(f"sd3-jax {sd3_jax.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


# --- training -----------------------------------------------------------------------------------------------------


@app.command()
def train(
    experiment: ExperimentArgument,
    run: Annotated[Path, typer.Option("--run", metavar="DIR", help="The run's directory, made or resumed.")],
    set_: SetOption = None,
    branch_from: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For a run with a cooldown: the same run without, whose steps it takes over."),
    ] = None,
) -> None:
    """Train one model, or resume it: the same command again goes on from the newest checkpoint.

    Example: sd3-jax train scenes_cpu --run runs/d4 --set model.depth=4 --set steps=500
    """
    config = configs.resolve(load_experiment(experiment), configs.parse_assignments(set_ or []))
    platform.prepare()
    from sd3_jax.sweep.status import hold
    from sd3_jax.train import Diverged
    from sd3_jax.train import train as run_training

    is_new = not run.exists()
    if os.environ.get("SD3_JAX_LOCKED") != str(run.resolve()):  # a sweep holds the lock of the cells it starts
        total_steps(config)
        records.check_run(run, config)
        run.mkdir(parents=True, exist_ok=True)
        if hold(run) is None:
            raise UserError(f"{run}: another process is running this run")
    try:
        summary = run_training(config, run, branch_from)
    except Diverged as error:
        _die(str(error), status=1)
    except UserError:
        if is_new and records.status(run) == "waiting":  # it was refused before it began: leave nothing behind
            shutil.rmtree(run)
        raise
    loss = summary.get("loss_ema")
    print(f"{run}: {summary['steps']:,} steps" + ("" if loss is None else f", EMA validation loss {loss:.4f}"))


@app.command()
def scenes(
    experiment: ExperimentArgument,
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="The picture to write (.png, .pdf or .svg).")],
    set_: SetOption = None,
    number: Annotated[int, typer.Option(min=1, max=200, help="How many scenes.")] = 12,
) -> None:
    """Draw training scenes with their captions, and below each what the linear autoencoder keeps of it.

    Example: sd3-jax scenes scenes_cpu --out scenes.png
    """
    overlay = configs.parse_assignments(set_ or [])
    config = configs.resolve({"steps": 1}, load_experiment(experiment), overlay)
    platform.prepare()
    from sd3_jax.contact import contact_sheet

    contact_sheet(config, number, out)
    print(out)


# --- sweeps -------------------------------------------------------------------------------------------------------


@sweep_app.command("plan")
def sweep_plan(
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


@sweep_app.command("run")
def sweep_run(file: SweepArgument, runs: RunsOption = None, workers: WorkersOption = None) -> None:
    """Run every cell that is not done: interrupted cells resume, failed ones are listed and left.

    Example: sd3-jax sweep run figure8_cpu
    """
    from sd3_jax.sweep import run as runner

    path, cells = _load_sweep(file)
    _finish_sweep(runner.run(cells, _runs_dir(path, runs), Console(stderr=True), workers), path)


@sweep_app.command("retry")
def sweep_retry(file: SweepArgument, runs: RunsOption = None, workers: WorkersOption = None) -> None:
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


@sweep_app.command("status")
def sweep_status(file: SweepArgument, runs: RunsOption = None, json_file: JsonOption = None) -> None:
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


# --- analysis -----------------------------------------------------------------------------------------------------


@app.command()
def fit(runs: RunsArgument, json_file: JsonOption = None) -> None:
    """Fit L = E + A / N^alpha + B / D^beta to the runs, with intervals, and predict the held-out largest depth.

    Example: sd3-jax fit runs/figure8_cpu
    """
    import analysis
    from analysis import report

    table = _load_runs(runs)
    points = analysis.points_on_law(table)
    law = analysis.fit_points(points)
    hold_out = _hold_out(points)
    other, cooled, curves = analysis.sensitivity(table), analysis.cooldown_ends(table), analysis.curves(points)
    numbers = report.as_dict(law, hold_out) | {
        "sensitivity": other.to_dict(orient="index"),
        "cooldowns": cooled[["run", "depth", "step", "loss", "offset"]].to_dict(orient="records"),
        "curves": {str(depth): curve._asdict() for depth, curve in curves.items()},
    }
    text = [analysis.describe(law, hold_out), *report.cooldown_lines(cooled), "under other choices:", other.to_string()]
    terminal.show(text, numbers, json_file)


@app.command()
def isoflop(
    runs: RunsArgument,
    json_file: JsonOption = None,
    figure_stem: Annotated[
        Path | None, typer.Option("--figure", metavar="STEM", help="Also draw it: STEM.png, STEM.pdf, STEM.json.")
    ] = None,
) -> None:
    """Find the best size at each FLOP budget, and how it grows with the budget.

    Example: sd3-jax isoflop runs/isoflop_cpu --figure figures/isoflop_cpu
    """
    import analysis
    from analysis import report

    table = _load_runs(runs)
    found = analysis.isoflop(table)
    numbers = report.isoflop_numbers(found)
    lines = terminal.isoflop_lines(found.budgets, found.exponents, found.ci95)
    terminal.show([*lines, f"intervals: {found.how}", *numbers["sentences"]], numbers, json_file)
    if figure_stem is not None:
        drawing = analysis.isoflop_figure(table)
        terminal.written(analysis.save(drawing.figure, drawing.numbers, figure_stem), json_file)


@app.command()
def predict(
    runs: RunsArgument,
    flops: Annotated[list[float], typer.Option(help="Training FLOPs to be spent, C = 3F x images. May be repeated.")],
    json_file: JsonOption = None,
) -> None:
    """Predict the best depth, images and loss at a budget not yet spent.

    Example: sd3-jax predict runs/figure8_cpu --flops 1e14
    """
    import analysis
    from analysis import report

    if not all(0 < budget < float("inf") for budget in flops):
        raise UserError("--flops: a budget is a positive number")
    points = analysis.points_on_law(_load_runs(runs))
    law = analysis.fit_points(points)
    hold_out = _hold_out(points)
    best = analysis.implied(law, flops)
    new = analysis.predict(law, best["params"], best["images"])
    best = best.assign(loss_low=new.low, loss_high=new.high, reach=best["flops"] / law.ranges["flops"][1])
    lines = terminal.prediction_lines(best)
    if hold_out is not None:
        lines.append(report.held_out_sentence(hold_out))
    numbers = report.as_dict(law, hold_out)
    value = {"predictions": best.to_dict(orient="records"), "law": numbers}
    terminal.show([*lines, *numbers["sentences"]], value, json_file)


@app.command()
def figure(
    number: Annotated[str, typer.Argument(metavar="N", help="Which figure of the paper: 8.")],
    runs: RunsArgument,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write it.")] = Path("figures"),
) -> None:
    """Draw a figure of the paper from runs, as .png and .pdf, with every number drawn as .json.

    Example: sd3-jax figure 8 runs/figure8_cpu
    """
    if number != "8":
        raise UserError(f"there is no figure {number!r}; there is 8 (loss against steps and FLOPs)")
    import analysis

    drawing = analysis.figure8(_load_runs(runs))
    terminal.written(analysis.save(drawing.figure, drawing.numbers, out / runs.resolve().name))


def _load_runs(runs: Path) -> Any:
    """The runs table; what was skipped is said on standard error."""
    import analysis

    table = analysis.load(runs)
    for note in table.attrs.get("notes", []):
        print(f"note: {note}", file=sys.stderr)
    return table


def _hold_out(points: Any) -> Any:
    import analysis

    try:
        return analysis.hold_out_largest(points)
    except UserError as error:  # too few depths to leave one out, which is no reason not to fit
        print(f"note: nothing is held out: {error}", file=sys.stderr)
        return None


if __name__ == "__main__":
    main()
