"""What a sweep costs before it is run: a pure function of its cells, and the table that shows it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.table import Table

from sd3_jax import flops as counts
from sd3_jax.errors import UserError
from sd3_jax.sweep.spec import Cell, branch_step

DEVICES = {  # --hardware -> as JAX names the device in flops.PEAK_FLOPS
    "h100": "NVIDIA H100 80GB HBM3",
    "h200": "NVIDIA H200",
    "a100": "NVIDIA A100-SXM4-80GB",
    "v4": "TPU v4",
    "v5e": "TPU v5 lite",
    "v5p": "TPU v5p",
    "v6e": "TPU v6e",
}
# Parameters, both Adam moments and the average of the weights, float32.
BYTES_PER_PARAMETER = 16
MIN_STEPS = 1000
MIN_WARMUPS = 10


class Speed(NamedTuple):
    """How fast the devices are, and in words."""

    flops_per_second: float  # of one device, sustained
    chips: int
    label: str


@dataclass(frozen=True)
class CellCost:
    """What one cell takes. ``steps``, ``images`` and ``flops`` are trained by this cell: a branch pays for its own."""

    name: str
    depth: int
    width: int
    parameters: int
    batch: int
    steps: int
    images: int
    flops: float
    device_hours: float
    checkpoint_bytes: int  # of one checkpoint


@dataclass(frozen=True)
class Plan:
    """The cells of a sweep, their sum, and what to think about before running it."""

    speed: Speed
    cells: list[CellCost]
    passes: dict[float, list[tuple[int, int]]]  # FLOP budget -> (depth, step) of the runs that reach it
    warnings: list[str]

    @property
    def images(self) -> int:
        """Images trained on, all cells together."""
        return sum(cell.images for cell in self.cells)

    @property
    def flops(self) -> float:
        """Training FLOPs, all cells together."""
        return sum(cell.flops for cell in self.cells)

    @property
    def device_hours(self) -> float:
        """Hours of one device, all cells together."""
        return sum(cell.device_hours for cell in self.cells)


def speed(hardware: str = "h100", chips: int = 1, mfu: float = 0.40, flops_per_second: float | None = None) -> Speed:
    """The sustained rate of one device: its dense bf16 peak times the MFU, or a rate that was measured.

    Raises UserError for unknown hardware and impossible numbers.
    """
    if chips < 1:
        raise UserError(f"--chips: {chips} is not a number of devices")
    if flops_per_second is not None:
        if not 0 < flops_per_second < float("inf"):
            raise UserError(f"--flops-per-second: {flops_per_second} is not a rate")
        return Speed(flops_per_second, chips, f"{chips} x {flops_per_second:.3g} FLOP/s as measured")
    if hardware not in DEVICES:
        raise UserError(f"--hardware: {hardware!r} is not one of {', '.join(DEVICES)}; or give --flops-per-second")
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu: {mfu} is out of range; valid: above 0, to 1")
    peak = counts.PEAK_FLOPS[DEVICES[hardware]]
    return Speed(mfu * peak, chips, f"{chips} x {hardware} at MFU {mfu:.2f} of {peak / 1e12:.0f} TFLOP/s")


def plan(cells: Sequence[Cell], rate: Speed) -> Plan:
    """The cost of every cell. The steps that a cooldown branch shares with its parent are paid once, by the parent."""
    return Plan(rate, [_cost(cell, rate) for cell in cells], _passes(cells), _warnings(cells))


def _cost(cell: Cell, rate: Speed) -> CellCost:
    config = cell.config
    parameters = counts.parameters(config.model).total
    steps = counts.total_steps(config) - (branch_step(config) if cell.parent else 0)
    images = steps * config.batch
    flops = images * counts.image_flops(config)
    return CellCost(
        name=cell.name,
        depth=config.model.depth,
        width=config.model.width,
        parameters=parameters,
        batch=config.batch,
        steps=steps,
        images=images,
        flops=flops,
        device_hours=flops / rate.flops_per_second / 3600,
        checkpoint_bytes=BYTES_PER_PARAMETER * parameters,
    )


def _passes(cells: Iterable[Cell]) -> dict[float, list[tuple[int, int]]]:
    passes: dict[float, list[tuple[int, int]]] = {}
    for cell in cells:
        for budget in cell.config.evaluation.budgets:
            step = counts.steps_within(cell.config, budget)
            reached = passes.setdefault(budget, [])
            if 1 <= step <= counts.total_steps(cell.config):
                reached.append((cell.config.model.depth, step))
    return {budget: sorted(reached) for budget, reached in sorted(passes.items())}


def _warnings(cells: Iterable[Cell]) -> list[str]:
    """Cells too short to mean anything, and budgets with too few depths for a valley."""
    warnings = []
    long_enough: dict[float, set[int]] = {}
    for cell in cells:
        steps, warmup = counts.total_steps(cell.config), cell.config.optimizer.warmup_steps
        if steps < MIN_STEPS:
            warnings.append(f"{cell.name} is too short to mean anything: {steps} steps, fewer than {MIN_STEPS}")
        elif steps < MIN_WARMUPS * warmup:
            warnings.append(
                f"{cell.name} is too short to mean anything: {steps} steps, "
                f"fewer than {MIN_WARMUPS} times its warm-up of {warmup}"
            )
        for budget in cell.config.evaluation.budgets:
            depths = long_enough.setdefault(budget, set())
            if MIN_WARMUPS * warmup <= counts.steps_within(cell.config, budget) <= steps:
                depths.add(cell.config.model.depth)
    for budget, depths in sorted(long_enough.items()):
        if len(depths) < 3:
            warnings.append(
                f"budget {budget:.2g}: only {len(depths)} depths train up to it, for at least {MIN_WARMUPS} times "
                "their warm-up; a valley needs three or more"
            )
    return warnings


def to_json(result: Plan) -> dict[str, Any]:
    """The plan as plain data, whole numbers exact."""
    return {
        "hardware": result.speed._asdict(),
        "cells": [dict(vars(cell)) for cell in result.cells],
        "total": {
            "images": result.images,
            "flops": result.flops,
            "device_hours": result.device_hours,
            "hours": result.device_hours / result.speed.chips,
            "checkpoint_bytes": sum(cell.checkpoint_bytes for cell in result.cells),
        },
        "budgets": [
            {"flops": budget, "passed": [{"depth": depth, "step": step} for depth, step in reached]}
            for budget, reached in result.passes.items()
        ],
        "warnings": result.warnings,
    }


def table(result: Plan, title: str) -> Table:
    """The plan as a Rich table, one row per cell and a total."""
    chart = Table(title=title, title_justify="left", caption=_caption(result), caption_justify="left", box=None)
    chart.add_column("cell", no_wrap=True)
    for heading in ("depth", "width", "params", "batch", "steps", "images", "FLOPs", "time", "saved"):
        chart.add_column(heading, justify="right", no_wrap=True)
    for cell in result.cells:
        chart.add_row(
            cell.name,
            str(cell.depth),
            str(cell.width),
            count(cell.parameters),
            str(cell.batch),
            f"{cell.steps:,}",
            count(cell.images),
            f"{cell.flops:.3e}".replace("e+", "e"),
            duration(cell.device_hours),
            size(cell.checkpoint_bytes),
        )
    stored = size(sum(cell.checkpoint_bytes for cell in result.cells))
    total = [count(result.images), f"{result.flops:.3e}".replace("e+", "e"), duration(result.device_hours), stored]
    chart.add_row("total", "", "", "", "", "", *total, style="bold")
    return chart


def budget_lines(result: Plan) -> list[str]:
    """One line per FLOP budget: the depths that pass it, and at which step."""
    return [
        f"budget {budget:.3g} passed by depth @ step: "
        + (", ".join(f"{d} @ {step:,}" for d, step in reached) or "none")
        for budget, reached in result.passes.items()
    ]


def _caption(result: Plan) -> str:
    wall = f"; {duration(result.device_hours / result.speed.chips)} on all of them" if result.speed.chips > 1 else ""
    return (
        f"time: of one device, training alone, {result.speed.label}{wall}. FLOPs: 3 x forward matmuls. "
        f"saved: one checkpoint, {BYTES_PER_PARAMETER} bytes a parameter."
    )


def duration(hours: float) -> str:
    """A time in the unit that suits it.

    >>> duration(20_486), duration(0.75), duration(0.001)
    ('20,500 h', '45 min', '3.6 s')
    """
    if hours * 60 >= 99.5:
        return f"{float(f'{hours:.3g}'):,g} h"
    return f"{hours * 60:.3g} min" if hours * 3600 >= 99.5 else f"{hours * 3600:.3g} s"


def count(number: float) -> str:
    """A count in words that fit a column.

    >>> count(496_066_624), count(2_048_000_000), count(640)
    ('496M', '2.05B', '640')
    """
    return _scaled(number, ("", "k", "M", "B", "T", "Q"))


def size(number: float) -> str:
    """Bytes in the nearest decimal unit.

    >>> size(16 * 8_056_617_792)
    '129 GB'
    """
    return _scaled(number, (" B", " kB", " MB", " GB", " TB", " PB"))


def _scaled(number: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:,.3g}{units[-1]}"
