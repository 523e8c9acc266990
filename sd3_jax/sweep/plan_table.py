"""The plan of a sweep as a table and lines of text."""

from collections.abc import Sequence

from rich.table import Table

from sd3_jax.sweep.plan import CHECKPOINTS, CellCost, Plan
from sd3_jax.units import count, duration, size


def table(result: Plan, title: str) -> Table:
    """One row per cell and a total, with the columns that the hardware, the price and the compiler give."""
    rate = result.speed
    headings = ["depth", "params", "steps", "FLOPs", "hours", "chip-hours", "stored"]
    headings[2:2] = ["mesh", "a chip"] if rate.hardware else []
    headings += ["memory"] if rate.hardware else []
    headings += ["compiled"] if any(cell.compiled for cell in result.cells) else []
    if rate.price is not None:
        headings.insert(headings.index("stored"), "cost")
    chart = Table(title=title, title_justify="left", caption_justify="left", box=None, padding=(0, 1, 0, 0))
    chart.caption = _caption(result, headings)
    chart.add_column("cell", no_wrap=True)
    for heading in headings:
        chart.add_column(heading, justify="right", no_wrap=True)
    for cell in result.cells:
        values = _row(cell)
        chart.add_row(cell.name, *(values[heading] for heading in headings), style="red" if cell.refused else None)
    total = {
        "FLOPs": _power(result.flops),
        "hours": duration(result.hours),
        "chip-hours": _number(result.chip_hours),
        "cost": _number(result.cost or 0.0),
        "stored": size(sum(cell.stored_bytes for cell in result.cells)),
    }
    chart.add_row("total", *(total.get(heading, "") for heading in headings), style="bold")
    return chart


def budget_lines(result: Plan) -> list[str]:
    """One line per FLOP budget: the depths that pass it, and at which step."""
    return [
        f"budget {budget:.3g} passed by depth @ step: "
        + (", ".join(f"{d} @ {step:,}" for d, step in reached) or "none")
        for budget, reached in result.passes.items()
    ]


def _row(cell: CellCost) -> dict[str, str]:
    return {
        "depth": str(cell.depth),
        "params": count(cell.parameters),
        "mesh": f"{cell.mesh[0]}x{cell.mesh[1]}" if cell.mesh else "none",
        "a chip": f"{cell.batch / (cell.mesh[0] * cell.mesh[1]):g}" if cell.mesh else "",
        "steps": f"{cell.steps:,}",
        "FLOPs": _power(cell.flops),
        "hours": duration(cell.hours),
        "chip-hours": _number(cell.chip_hours),
        "cost": _number(cell.cost or 0.0),
        "stored": size(cell.stored_bytes),
        "memory": size(cell.memory_bytes) if cell.memory_bytes else "",
        "compiled": _compiled(cell),
    }


def _compiled(cell: CellCost) -> str:
    """What the last policy that was tried needs; ``>`` where it does not fit."""
    if not cell.compiled:
        return ""
    last = cell.compiled[-1]
    sign = "" if last.fits else ">" if last.bytes is None else "> "
    return f"{sign}{size(last.bytes) if last.bytes else ''} {last.remat}".strip()


def _power(flops: float) -> str:
    return f"{flops:.3e}".replace("e+", "e")


def _number(number: float) -> str:
    """Three digits, written out.

    >>> _number(20_486), _number(1.2345), _number(0.00123)
    ('20,500', '1.23', '0.00123')
    """
    return f"{float(f'{number:.3g}'):,g}"


def _caption(result: Plan, headings: Sequence[str]) -> str:
    said = [
        f"hours: of {result.speed.label}, training alone",
        "FLOPs: 3 x forward matmuls",
        f"stored: the {CHECKPOINTS} newest checkpoints and those that are kept",
    ]
    if "mesh" in headings:
        said += ["mesh: data x fsdp", "a chip: images", "memory: of one chip, estimated"]
    if "compiled" in headings:
        said += ["compiled: the compiler's own count, with mesh.remat"]
    return "; ".join(said) + "."
