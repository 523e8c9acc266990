"""What a sweep costs before it is run, and whether it fits: a pure function of its cells and the hardware."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sd3_jax import flops as counts
from sd3_jax import hardware as machines
from sd3_jax import layout
from sd3_jax.config import RunConfig
from sd3_jax.errors import UserError
from sd3_jax.hardware import Hardware
from sd3_jax.sweep.compile import Compiled
from sd3_jax.sweep.spec import Cell, branch_step
from sd3_jax.units import size

CHECKPOINTS = 2  # that a run keeps beside those of keep_steps
MIN_STEPS = 1000
MIN_WARMUPS = 10


class Speed(NamedTuple):
    """The hardware, how fast it is, what it costs, and in words."""

    flops_per_second: float  # of one chip, sustained
    hardware: Hardware | None  # None: nothing is said of meshes and memory
    price: float | None  # of one chip for an hour
    label: str

    @property
    def chips(self) -> int:
        """How many chips work together on one cell."""
        return self.hardware.chips if self.hardware else 1


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
    hours: float  # on all chips
    chip_hours: float
    cost: float | None
    checkpoint_bytes: int  # of one checkpoint
    stored_bytes: int  # of all checkpoints that stay
    remat: str
    mesh: tuple[int, int] | None  # data x fsdp; None without hardware, or where it does not fit
    memory_bytes: int | None  # of one chip, estimated
    compiled: tuple[Compiled, ...] = ()  # the compiler's own, policy after policy
    refused: str | None = None  # why it cannot run as it is written


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
    def hours(self) -> float:
        """Hours on all chips, one cell after another."""
        return sum(cell.hours for cell in self.cells)

    @property
    def chip_hours(self) -> float:
        """Hours of one chip, all cells together."""
        return sum(cell.chip_hours for cell in self.cells)

    @property
    def cost(self) -> float | None:
        """In the unit of the price, all cells together."""
        return None if self.speed.price is None else self.speed.price * self.chip_hours

    @property
    def refusals(self) -> list[str]:
        """Each reason why cells cannot run as they are written, with their names."""
        names: dict[str, list[str]] = {}
        for cell in self.cells:
            if cell.refused:
                names.setdefault(cell.refused, []).append(cell.name)
        return [f"{', '.join(cells)}: {reason}" for reason, cells in names.items()]


def speed(
    hardware: str | None = None,
    mfu: float = 0.40,
    flops_per_second: float | None = None,
    price: float | None = None,
) -> Speed:
    """The sustained rate of one chip, its dense bf16 peak times the MFU, or as measured; without a name, an H100's.

    Raises UserError for unknown hardware and impossible numbers.
    """
    found = machines.find(hardware) if hardware is not None else None
    if price is not None and not 0 <= price < float("inf"):
        raise UserError(f"--price: {price} is not the price of a chip for an hour")
    name = found.name if found else "1 chip"
    if flops_per_second is not None:
        if not 0 < flops_per_second < float("inf"):
            raise UserError(f"--flops-per-second: {flops_per_second} is not a rate")
        return Speed(flops_per_second, found, price, f"{name} at {flops_per_second:.3g} FLOP/s a chip as measured")
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu: {mfu} is out of range; valid: above 0, to 1")
    peak = counts.PEAK_FLOPS[(found or machines.find("h100x1")).device_kind]
    label = f"{found.name} ({found.chips} chips)" if found else "one H100"
    return Speed(mfu * peak, found, price, f"{label} at MFU {mfu:.2f} of {peak / 1e12:.0f} TFLOP/s a chip")


def plan(cells: Sequence[Cell], rate: Speed, compiled: Mapping[str, Sequence[Compiled]] | None = None) -> Plan:
    """The cost of every cell. The steps that a cooldown branch shares with its parent are paid once, by the parent.

    ``compiled``: what :func:`sd3_jax.sweep.compile.compile_cells` found for cells, by name.
    """
    costs = [_cost(cell, rate, tuple((compiled or {}).get(cell.name, ()))) for cell in cells]
    return Plan(rate, costs, _passes(cells), [*_warnings(cells), *_memory_warnings(costs, rate)])


def mesh_on(config: RunConfig, hardware: Hardware) -> tuple[int, int]:
    """(data, fsdp) on this hardware. Raises UserError where it does not fit."""
    # JAX cuts the sides of a v5e's torus where it must; those of others are taken whole.
    sides = [] if hardware.generation == "v5e" else [int(side) for side in hardware.topology.split("x") if side]
    return layout.mesh_shape(config.mesh, config.batch, hardware.chips, [side for side in sides if side > 1])


def _cost(cell: Cell, rate: Speed, compiled: tuple[Compiled, ...]) -> CellCost:
    config = cell.config
    parameters = counts.parameters(config.model).total
    steps = counts.total_steps(config) - (branch_step(config) if cell.parent else 0)
    images = steps * config.batch
    flops = images * counts.image_flops(config)
    chip_hours = flops / rate.flops_per_second / 3600
    checkpoint = layout.STATE_BYTES * parameters
    mesh, memory, refused = None, None, None
    if rate.hardware:
        try:
            mesh = mesh_on(config, rate.hardware)
            memory = layout.estimate(config, *mesh).total
            refused = _too_large(compiled, rate.hardware)
        except UserError as error:
            refused = str(error)
    return CellCost(
        name=cell.name,
        depth=config.model.depth,
        width=config.model.width,
        parameters=parameters,
        batch=config.batch,
        steps=steps,
        images=images,
        flops=flops,
        hours=chip_hours / rate.chips,
        chip_hours=chip_hours,
        cost=None if rate.price is None else rate.price * chip_hours,
        checkpoint_bytes=checkpoint,
        stored_bytes=(CHECKPOINTS + len(config.keep_steps)) * checkpoint,
        remat=config.mesh.remat,
        mesh=mesh,
        memory_bytes=memory,
        compiled=compiled,
        refused=refused,
    )


def _too_large(compiled: Sequence[Compiled], hardware: Hardware) -> str | None:
    """Why a step that was compiled cannot run as it is written, and what would fit; None if it can."""
    if not compiled or compiled[0].fits:
        return None
    needs = "needs more" if compiled[0].bytes is None else f"needs {size(compiled[0].bytes)} a chip, more"
    reason = f"mesh.remat {compiled[0].remat} {needs} than the {size(hardware.hbm_bytes)} of {hardware.name}"
    last = compiled[-1]
    if last.fits:
        return f"{reason}; {last.remat} fits ({size(last.bytes or 0)})"
    return f"{reason}, and nothing that keeps less fits; a larger mesh.fsdp or slice, or a smaller batch, takes less"


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


def _memory_warnings(costs: Iterable[CellCost], rate: Speed) -> list[str]:
    """Cells that by the estimate do not fit and have not been compiled."""
    if rate.hardware is None:
        return []
    limit = rate.hardware.hbm_bytes
    proof = "; --compile tells for certain" if rate.hardware.topology else ""
    return [
        f"{cell.name}: about {size(cell.memory_bytes)} a chip, more than the {size(limit)} of {rate.hardware.name}, "
        f"with mesh.remat {cell.remat}{proof}"
        for cell in costs
        if cell.memory_bytes and cell.memory_bytes > limit and not cell.compiled
    ]


def to_json(result: Plan) -> dict[str, Any]:
    """The plan as plain data, whole numbers exact."""
    rate = result.speed
    return {
        "hardware": rate._asdict() | {"hardware": rate.hardware._asdict() if rate.hardware else None},
        "cells": [vars(cell) | {"compiled": [each._asdict() for each in cell.compiled]} for cell in result.cells],
        "total": {
            "images": result.images,
            "flops": result.flops,
            "hours": result.hours,
            "chip_hours": result.chip_hours,
            "cost": result.cost,
            "stored_bytes": sum(cell.stored_bytes for cell in result.cells),
        },
        "budgets": [
            {"flops": budget, "passed": [{"depth": depth, "step": step} for depth, step in reached]}
            for budget, reached in result.passes.items()
        ],
        "warnings": result.warnings,
        "refusals": result.refusals,
    }
