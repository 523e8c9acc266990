"""Where each cell of a sweep stands, read from its run directory alone."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from sd3_jax import flops as counts
from sd3_jax import lease, records
from sd3_jax.errors import UserError
from sd3_jax.sweep.spec import Cell, branch_step

State = Literal["waiting", "running", "stalled", "interrupted", "done", "failed"]
_STYLES = {
    "done": "green",
    "running": "cyan",
    "stalled": "yellow",  # its holder has been silent for longer than a lease
    "interrupted": "yellow",
    "failed": "red",
    "waiting": "",
}


@dataclass(frozen=True)
class CellState:
    """One cell, as its records tell it. Numbers are None until there is a row that says them."""

    cell: Cell
    state: State
    step: int  # the last step in the records
    steps: int  # of the whole run
    loss: float | None  # of training
    ema_loss: float | None  # of validation, newest
    images_per_second: float | None
    seconds: float
    why: str = ""  # why it failed, or is not running

    @property
    def flops_total(self) -> float:
        """Training FLOPs that this cell itself pays for: a branch starts where its parent left."""
        first = branch_step(self.cell.config) if self.cell.parent else 0
        return (self.steps - first) * self.cell.config.batch * counts.image_flops(self.cell.config)

    @property
    def flops_left(self) -> float:
        """Training FLOPs that are not in the records yet."""
        if self.state == "done":
            return 0
        left = (self.steps - self.step) * self.cell.config.batch * counts.image_flops(self.cell.config)
        return min(left, self.flops_total)

    @property
    def flops_per_second(self) -> float | None:
        """Training speed at the newest row."""
        rate = self.images_per_second
        return rate * counts.image_flops(self.cell.config) if rate else None


def read_state(cell: Cell, runs_dir: Path) -> CellState:
    """The state of one cell. Only the end of its metrics is read, so that it can be asked for every second."""
    run_dir = runs_dir / cell.name
    steps = counts.total_steps(cell.config)
    rows = _newest_rows(run_dir / "metrics.jsonl")
    train = records.last_row(rows, "train") or {}
    validation = records.last_row((row for row in rows if row.get("weights") == "ema"), "validation") or {}
    on_disk = records.status(run_dir)
    step = train.get("step", 0)
    state: State
    silent = lease.silent_seconds(run_dir)
    if on_disk == "done" and _steps_on_disk(run_dir) == steps:
        state = "done"  # whether or not its holder has left yet
    elif silent is not None:
        state = "running" if abs(silent) < lease.LEASE_SECONDS else "stalled"
    elif on_disk in ("started", "done"):  # done, but of a shorter sweep
        state = "interrupted"
    else:
        state = "failed" if on_disk == "failed" else "waiting"
    why = ""
    if state == "stalled" and silent is not None:
        said = (
            f"has been silent for {silent:.0f} s" if silent > 0 else f"wrote {-silent:.0f} s from now: a clock is off"
        )
        why = f"{lease.holder(run_dir)} {said}"
    if state == "failed":
        why = (run_dir / "FAILED").read_text(encoding="utf-8", errors="replace").strip()
    return CellState(
        cell=cell,
        state=state,
        step=steps if state == "done" else step,
        steps=steps,
        loss=train.get("loss"),
        ema_loss=validation.get("loss"),
        images_per_second=train.get("images_per_second"),
        seconds=train.get("seconds") or 0.0,
        why=why,
    )


def table(states: Sequence[CellState], title: str) -> Table:
    """One row per cell: status, steps, EMA validation loss, minutes, time left, and why it failed."""
    with_left = any(state.state == "running" for state in states)
    with_why = any(state.why for state in states)
    chart = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    chart.add_column("cell", no_wrap=True)
    chart.add_column("status", no_wrap=True)
    chart.add_column("steps", justify="right", no_wrap=True)
    chart.add_column("EMA loss", justify="right", no_wrap=True)
    chart.add_column("minutes", justify="right", no_wrap=True)
    if with_left:
        chart.add_column("left", justify="right", no_wrap=True)
    if with_why:
        chart.add_column("why", overflow="fold")
    for state in states:
        left = seconds_left([state])
        cells = [
            state.cell.name,
            f"[{_STYLES[state.state]}]{state.state}[/]" if _STYLES[state.state] else state.state,
            f"{state.step:,}/{state.steps:,}",
            "" if state.ema_loss is None else f"{state.ema_loss:.4f}",
            f"{state.seconds / 60:.1f}" if state.seconds else "",
        ]
        cells += ["" if left is None or not left else f"{left / 60:.1f}"] if with_left else []
        cells += [state.why.replace("[", r"\[")] if with_why else []
        chart.add_row(*cells)
    return chart


def summary(states: Sequence[CellState]) -> str:
    """One line: how many cells are in which state, and an estimate of the time left."""
    counted = [f"{n} {name}" for name in _STYLES if (n := sum(state.state == name for state in states))]
    left = seconds_left(states)
    return ", ".join(counted) + (f"; about {left / 60:.0f} minutes left" if left else "")


def seconds_left(states: Iterable[CellState]) -> float | None:
    """Time to finish these cells at the speed of those that run now; None if none runs."""
    states = list(states)
    rate = sum(state.flops_per_second or 0.0 for state in states if state.state == "running")
    return sum(state.flops_left for state in states if state.state != "failed") / rate if rate else None


def to_json(states: Sequence[CellState]) -> list[dict[str, Any]]:
    """The states as plain data."""
    return [
        {
            "cell": state.cell.name,
            "state": state.state,
            "step": state.step,
            "steps": state.steps,
            "loss": state.loss,
            "ema_loss": state.ema_loss,
            "images_per_second": state.images_per_second,
            "seconds": state.seconds,
            "why": state.why,
        }
        for state in states
    ]


def _steps_on_disk(run_dir: Path) -> int:
    try:
        return counts.total_steps(records.load_config(run_dir))
    except UserError:
        return 0


def _newest_rows(path: Path, size: int = 1 << 15) -> list[dict[str, Any]]:
    """The rows in the last ``size`` bytes, or all of them if those hold no row of validation."""
    try:
        with open(path, "rb") as file:
            start = max(0, os.fstat(file.fileno()).st_size - size)
            file.seek(start)
            lines = file.read().splitlines()[1 if start else 0 :]
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # being written, or cut short by a crash
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    if start and not any(row.get("split") == "validation" for row in rows):
        return records.read_rows(path)[0]
    return rows
