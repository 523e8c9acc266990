"""Copies of a run's metrics for TensorBoard and Weights & Biases. They are optional: ``metrics.jsonl`` is the truth.

A copy is made anew from ``metrics.jsonl`` whenever the run starts, so that however often it was killed and resumed, a
copy holds each step once, and one that fell behind catches up:

- TensorBoard: ``RUN/tensorboard`` is replaced. Times are seconds of training, so its axis "relative" skips the pauses.
- Weights & Biases, online: the run of the identifier in ``RUN/wandb/id`` goes on (``resume="allow"``). What the server
  has cannot be cut, and need not be: steps that are done again give the numbers they gave, and are not sent again.
- Offline (``WANDB_MODE=offline``) nobody knows what the server has, so the folder of the life before is replaced by
  one that holds the whole run, to be sent with ``wandb sync``.

A tracker that fails is dropped with one warning. The run goes on without it; the next start tries again.
"""

import importlib.util
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sd3_jax import records
from sd3_jax.errors import UserError

Row = Mapping[str, Any]
Track = Callable[[Row], None]
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
PATIENCE = 30  # seconds that a run waits for Weights & Biases at its start and at its end, which may be a preemption


def check(names: Sequence[str]) -> None:
    """Raises UserError for a tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(
                f"trackers: {name} needs the package {PACKAGES[name]}, which is not installed: "
                f"pip install 'sd3_jax[trackers]', or leave {name} out"
            )


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a row of ``metrics.jsonl``, named for a chart.

    >>> scalars({"split": "validation", "weights": "ema", "step": 4, "loss": 0.5, "phase": "constant", "mfu": None})
    {'validation/ema/loss': 0.5}
    """
    prefix = "/".join(row[key] for key in ("split", "weights") if key in row)
    numbers = ((key, value) for key, value in row.items() if key != "step" and isinstance(value, int | float))
    return {f"{prefix}/{key}": float(value) for key, value in numbers}


@contextmanager
def tracking(names: Sequence[str], run_dir: Path, config: Mapping[str, Any]) -> Iterator[Track]:
    """A function that copies a row of ``metrics.jsonl`` to every tracker named, which has the rows before already.

    ``config``: plain nested dictionaries, to be shown beside the charts. Nothing that a tracker does raises.
    """
    alive: dict[str, tuple[Track, Callable[[], None]]] = {}

    def attempt(name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # a disk, a network, a package of which we know nothing
            alive.pop(name, None)
            why = (" ".join(str(error).split()) or type(error).__name__)[:300]
            print(f"warning: {run_dir}: no more is copied to {name} in this life: {why}", file=sys.stderr)

    def start(name: str) -> None:
        alive[name] = _OPEN[name](run_dir, config)

    def track(row: Row) -> None:
        for name, (copy, _) in list(alive.items()):
            attempt(name, lambda copy=copy: copy(row))  # type: ignore[misc]

    for name in names:
        attempt(name, lambda name=name: start(name))  # type: ignore[misc]
    for row in records.read_rows(run_dir / "metrics.jsonl")[0] if names else ():
        track(row)
    try:
        yield track
    finally:
        for name, (_, close) in list(alive.items()):
            attempt(name, close)


def _tensorboard(run_dir: Path, config: Mapping[str, Any]) -> tuple[Track, Callable[[], None]]:
    # Not SummaryWriter: that writes from a thread, and once the thread has met a full disk, its queue never empties.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import Summary

    folder = run_dir / "tensorboard"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    writer = EventsWriter(str(folder / "events"))
    # A TensorBoard that is looking forgets what it has read of the file that is gone.
    writer.write_event(Event(step=0, session_log=SessionLog(status=SessionLog.START)))

    def copy(row: Row) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(row).items()]
        writer.write_event(Event(wall_time=row["seconds"], step=row["step"], summary=Summary(value=values)))
        writer.flush()

    return copy, writer.close


def _wandb(run_dir: Path, config: Mapping[str, Any]) -> tuple[Track, Callable[[], None]]:
    import wandb

    name = run_dir / "wandb" / "id"
    if not name.exists():
        records.write_atomic(name, uuid.uuid4().hex[:12])
    for folder in name.parent.glob("offline-run-*"):
        shutil.rmtree(folder, ignore_errors=True)
    run = wandb.init(
        dir=run_dir,
        id=name.read_text().strip(),
        resume="allow",
        project=os.environ.get("WANDB_PROJECT", "sd3_jax"),
        group=run_dir.resolve().parent.name,
        name=run_dir.resolve().name,
        config=dict(config),
        settings=wandb.Settings(silent=True, console="off", init_timeout=PATIENCE, finish_timeout=PATIENCE),
    )
    first = run.step  # that the server lacks

    def copy(row: Row) -> None:
        if row["step"] >= first:
            run.log(scalars(row), step=row["step"])

    return copy, run.finish


_OPEN = {"tensorboard": _tensorboard, "wandb": _wandb}
