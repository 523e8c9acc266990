"""Train one run; look at what it is trained on."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from sd3_jax import lease, overlays, platform, records
from sd3_jax.cli.options import ExperimentArgument, SetOption
from sd3_jax.errors import LeaseLost, UserError
from sd3_jax.experiments import load_experiment
from sd3_jax.flops import total_steps
from sd3_jax.lease import Lease


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
    config = overlays.resolve(load_experiment(experiment), overlays.parse_assignments(set_ or []))
    is_new = not run.exists()
    total_steps(config)
    records.check_run(run, config)
    platform.prepare()
    with ExitStack() as holding:
        # A sweep's claim is kept alive from here on: on a busy machine it takes as long as a lease to import JAX.
        own = holding.enter_context(_lease(run)) if "SD3_JAX_LEASE" in os.environ else None
        import jax

        from sd3_jax.train import train as run_training
        from sd3_jax.training import group

        group.start()
        if own is None and jax.process_index() == 0:  # one process writes for the group
            own = holding.enter_context(_lease(run))
        try:
            summary = run_training(config, run, branch_from, own)
        except Exception as error:
            if own:
                own.check()  # whatever it was: a process that has lost its run says just that
                if isinstance(error, UserError) and is_new and records.status(run) == "waiting":
                    shutil.rmtree(run)  # it was refused before it began: leave nothing behind
            raise
    if own is None:
        return
    loss = summary.get("loss_ema")
    print(f"{run}: {summary['steps']:,} steps" + ("" if loss is None else f", EMA validation loss {loss:.4f}"))


@contextmanager
def _lease(run: Path) -> Iterator[Lease]:
    """This process's claim on the run: the one that a sweep has made for it, or its own.

    Raises LeaseLost if another process holds the run.
    """
    number = os.environ.pop("SD3_JAX_LEASE", None)
    if number is not None:
        own = lease.adopt(run, int(number))
    else:
        found = lease.claim_patiently(run)
        if found is None:
            raise LeaseLost(f"{run}: {lease.holder(run)} is running this run")
        own = found
    with lease.held(own):
        yield own


def scenes(
    experiment: ExperimentArgument,
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="The picture to write (.png, .pdf or .svg).")],
    set_: SetOption = None,
    number: Annotated[int, typer.Option(min=1, max=200, help="How many scenes.")] = 12,
) -> None:
    """Draw training scenes with their captions, and below each what the linear autoencoder keeps of it.

    Example: sd3-jax scenes scenes_cpu --out scenes.png
    """
    overlay = overlays.parse_assignments(set_ or [])
    config = overlays.resolve({"steps": 1}, load_experiment(experiment), overlay)
    platform.prepare()
    from sd3_jax.contact import contact_sheet

    contact_sheet(config, number, out)
    print(out)
