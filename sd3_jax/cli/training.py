"""Train one run; look at what it is trained on."""

import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from sd3_jax import config as configs
from sd3_jax import platform, records
from sd3_jax.cli.options import ExperimentArgument, SetOption
from sd3_jax.errors import UserError
from sd3_jax.experiments import load_experiment
from sd3_jax.flops import total_steps


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
    except UserError:
        if is_new and records.status(run) == "waiting":  # it was refused before it began: leave nothing behind
            shutil.rmtree(run)
        raise
    loss = summary.get("loss_ema")
    print(f"{run}: {summary['steps']:,} steps" + ("" if loss is None else f", EMA validation loss {loss:.4f}"))


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
