"""What the command line prints: tables, JSON, and the results of the analysis in words."""

import json
import math
import os
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

from sd3_jax import records


def show(parts: RenderableType | Sequence[RenderableType], value: Any, json_file: str | None) -> None:
    """Print the parts on standard output, and write the value as JSON if asked; ``-`` is JSON instead of the parts."""
    if json_file is not None:
        text = json.dumps(plain(value), indent=1, allow_nan=False) + "\n"
        if json_file == "-":
            sys.stdout.write(text)
            return
        records.write_atomic(Path(json_file), text)
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=160)  # a file or a pipe has no width, and half a table is of no use
    for part in parts if isinstance(parts, list) else [parts]:
        if isinstance(part, str):
            print(part)
        else:
            console.print(part)


def plain(value: Any) -> Any:
    """Numbers, strings and containers as JSON has them; nan and inf, which it lacks, become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def written(paths: Iterable[Path], json_file: str | None = None) -> None:
    """Say which files were written, where it does not disturb JSON."""
    print("wrote " + ", ".join(map(str, paths)), file=sys.stderr if json_file == "-" else sys.stdout)


def isoflop_lines(budgets: Any, exponents: Mapping[str, float], ci95: Mapping[str, tuple[float, float]]) -> list[str]:
    """The minimum of each budget, and how size and data grow with it; ``budgets`` is a table of the analysis."""
    lines = []
    for row in budgets.itertuples():
        best = f"N* {row.params:.4g}, D* {row.images:.4g}, loss {row.loss:.4f}"
        lines.append(f"budget {row.flops:.3g}: " + (best if row.interior else f"no minimum: {row.why}"))
    for name, value in exponents.items():
        interval = " (95 % interval {:.4g} to {:.4g})".format(*ci95[name]) if name in ci95 else ""
        lines.append(f"{name.replace('_', ' of ')} {value:.4g}{interval}")
    return lines


def score_tables(rows: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """Scores of pictures: of one system task by task, of several one a line; with what chance and truth would score.

    Of several settings of the sampler those of each apart.
    """
    if len({_sampler(row) for row in rows if "guidance" in row}) > 1:
        settings = dict.fromkeys(map(_sampler, rows))
        return [part for one in settings for part in score_tables([row for row in rows if _sampler(row) == one])]
    systems = dict.fromkeys((row["run"], row.get("step")) for row in rows)
    if not systems:
        return []
    if len(systems) == 1:
        return [_by_task(rows)]
    chart = _chart(_sampler(rows[0]), apart=1)  # all columns fit a terminal of 80
    columns = {heading: name for heading, name in _COLUMNS.items() if any(row["name"] == name for row in rows)}
    chart.add_column("run", overflow="fold")
    for heading in ("step", *columns):
        chart.add_column(heading, justify="right", no_wrap=True)
    for run, step in systems:
        own = {(row["name"], row["group"]): row for row in rows if (row["run"], row.get("step")) == (run, step)}
        values = [value(own.get((name, "overall")), brief=name in _DISTANCES) for name in columns.values()]
        chart.add_row(run, "" if step is None else f"{step:,}", *values)
    lines = [_range(rows, key) for key in ("chance", "ceiling", "other_caption")]
    compared = next((row for row in rows if "proxy_accuracy" in row), None)
    if compared is not None:
        line = "preferred: to {reference}, by a proxy that tells {accuracy:.1%} of held-out pairs right"
        lines.append(line.format(reference=compared["reference"], accuracy=compared["proxy_accuracy"]))
    partial = next((row["partial"] for row in rows if row.get("partial")), None)
    return [chart, *filter(None, lines), *([f"* partial: {partial}"] if partial else [])]


def _range(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    """What chance, or truth, scores: over all systems, as their pictures and prompts differ."""
    parts = []
    for heading, name in _COLUMNS.items():
        own = [row for row in rows if (row["name"], row["group"]) == (name, "overall")]
        values = [row[key] for row in own if row.get(key) is not None and math.isfinite(row[key])]
        if values:
            low, high = f"{min(values):.3f}", f"{max(values):.3f}"
            better = " (the lower the better)" if name in _DISTANCES else ""
            parts.append(f"{heading} {low}" + (f" to {high}" if high != low else "") + better)
    label = "rated by another caption" if key == "other_caption" else key
    return f"{label}: {', '.join(parts)}" if parts else ""


_DISTANCES = ("scene-frechet", "picture-frechet")  # the lower the better
_COLUMNS = {
    "geneval": "scene-geneval",
    "soft": "scene-geneval-soft",
    "compbench": "scene-compbench",
    "signs": "scene-sign",
    "signs, soft": "scene-sign-soft",
    "frechet": "scene-frechet",
    "frechet of pictures": "picture-frechet",
    "preferred": "proxy-preference",
    "Elo": "proxy-preference-elo",
}


def _by_task(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One system's scores group by group; what each clause contributes is in its records alone."""
    first = rows[0]
    step = f", step {first['step']:,}" if first.get("step") is not None else ""
    partial = f"; partial: {first['partial']}" if first.get("partial") else ""
    how = f": {_sampler(first)}" if "guidance" in first else ""
    chart = _chart(f"{first['run']}{step}{how}{partial}")
    chart.add_column("score")
    chart.add_column("of", overflow="fold")
    for heading in ("value", "chance", "above", "ceiling", "n"):
        chart.add_column(heading, justify="right", no_wrap=True)
    for heading, name in ({"geneval": "scene-geneval", "lenient": "scene-geneval-lenient"} | _COLUMNS).items():
        own = [row for row in rows if row["name"] == name]
        for number, row in enumerate(own):
            key = "chance" if row.get("chance") is not None else "other_caption"
            above = _plus_minus(row.get("above_chance"), row.get("above_chance_se"))
            by_chance, by_truth = (_plus_minus(row.get(column), None) for column in (key, "ceiling"))
            label = "" if number else heading + (" (low is good)" if name in _DISTANCES else "")
            chart.add_row(label, row["group"], value(row), by_chance, above, by_truth, str(row.get("n", "")))
    return chart


def value(row: Mapping[str, Any] | None, brief: bool = False) -> str:
    """A row's value and its error, with a star where it is partial; nothing where there is no row."""
    if row is None:
        return ""
    if row["name"].endswith("-elo"):
        return f"{row['value']:.0f}±{row['se'] or 0:.0f}"
    return _plus_minus(row["value"], None if brief else row["se"]) + ("*" if row.get("partial") else "")


def _plus_minus(value: float | None, error: float | None) -> str:
    """A score and its standard error.

    >>> _plus_minus(0.25, 0.02), _plus_minus(0.25, None), _plus_minus(None, None)
    ('0.250±0.020', '0.250', '')
    """
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:.3f}" + (f"±{error:.3f}" if error is not None and math.isfinite(error) else "")


def _sampler(row: Mapping[str, Any]) -> str:
    if "guidance" not in row:
        return "value±standard error"
    said = [f"{row['steps']} {row['sampler']} steps", f"guidance {row['guidance']:g}", f"{row['weights']} weights"]
    said += [f"shift {row['shift']:g}"] if row.get("shift", 1.0) != 1.0 else []
    said += [f"{row['grid']} grid"] if "grid" in row else []
    said += [f"seed {row['seed']}"] if row.get("seed") else []
    said += [f"without {', '.join(row['without'])}"] if row.get("without") else []
    return ", ".join(said)


def chart(title: str, cells: Sequence[Sequence[str]]) -> Table:
    """A table of text: headings, then lines, of which the first cell names each."""
    table = _chart(title)
    for number, (heading, *column) in enumerate(zip(*cells, strict=True)):
        # A heading takes no more room than what is under it, and breaks between its words alone.
        width = max(map(len, [*column, *heading.split()]))
        table.add_column(textwrap.fill(heading, width), justify="right" if number else "left", no_wrap=not number)
    for line in cells[1:]:
        table.add_row(*line)
    return table


def _chart(title: str, apart: int = 2) -> Table:
    return Table(title=title.strip(), title_justify="left", box=None, padding=(0, apart, 0, 0))
