"""The command line, ``sd3-jax``: the only place that knows both training and analysis.

JAX and the analysis are imported inside the commands that need them, so that the others answer at once.
"""

import logging
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import absl.logging  # noqa: F401  its logger has a class of its own, if it is made first
import typer

import sd3_jax
from sd3_jax.cli import (
    autoencoding,
    converting,
    distance,
    emoji,
    evaluating,
    figures,
    flows,
    pictures,
    preparing,
    reading,
    reporting,
    scoring,
    sweeps,
    training,
    voting,
)
from sd3_jax.errors import LeaseLost, RunFailed, Stopped, UserError

app = typer.Typer(
    help="Scaling laws of text-to-image rectified-flow transformers: plan, run, read and extrapolate sweeps.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
COMMANDS = (
    training.train,
    training.scenes,
    flows.formulations,
    pictures.sample,
    evaluating.evaluate,
    scoring.geneval,
    scoring.leaderboard,
    distance.distance,
    voting.vote,
    voting.votes,
    converting.convert,
    emoji.emoji,
    preparing.prepare,
    autoencoding.autoencoder,
    autoencoding.reconstruct,
    reading.fit,
    reading.isoflop,
    reading.predict,
    reading.correlate,
    figures.figure,
    figures.table,
    reporting.report,
)
for _command in COMMANDS:
    app.command()(_command)
app.add_typer(sweeps.app, name="sweep")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    0 done, 1 a run failed, 2 bad input, 42 told to stop (the same command goes on), 75 another process has the run,
    130 interrupted.
    """
    for name in ("absl", "asyncio"):  # a full disk is one line of ours, and was three thousand of Orbax's
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable
    try:
        app(args=None if arguments is None else list(arguments), prog_name="sd3-jax")
    except UserError as error:
        _die(str(error))
    except RunFailed as error:
        _die(str(error), status=1)
    except Stopped as error:
        _die(str(error), status=42)
    except LeaseLost as error:
        _die(str(error), status=75)
    except OSError as error:
        _die(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _unraisable(found: Any) -> None:
    """Orbax's threads may report to a loop that a failed save has closed: what failed is said in a line of ours."""
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)


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
