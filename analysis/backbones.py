"""Backbones against one another at matched training FLOPs: the loss, and scores of pictures (after the paper's Fig. 4).

A difference counts only beyond what seeds make: see ``told_apart`` in the numbers, and the notes.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.drawing import CAPTION, STYLE, Drawing, below, counted, plain, plain_log_ticks, save, scientific
from analysis.runs import BACKBONE, LABELS, backbones, check_one_study, differences
from analysis.scores import OVERALL
from sd3_jax.errors import UserError

APART = 0.05  # training FLOPs that differ by more are not matched
SIGMA = 2.0  # standard errors by which two backbones must differ to be told apart
LOSS = "validation loss"


class Panel(NamedTuple):
    """What a panel shows, and which way is better."""

    name: str
    label: str
    rises: bool


PANELS = (
    Panel(LOSS, "validation loss ↓", False),
    Panel("scene-geneval-soft", "scene-geneval-soft ↑", True),
    Panel("scene-frechet", "scene-frechet ↓", False),
)
# Okabe and Ito's colours, and a mark for each, so that they are told apart in grey too.
COLOURS = ("#E69F00", "#009E73", "#CC79A7", "#0072B2", "#000000")
LOOKS = dict(zip(LABELS.values(), zip(COLOURS, "os^Dv", strict=True), strict=True))


def figure4(
    runs: pd.DataFrame,
    scores: pd.DataFrame | None = None,
    out: str | Path | None = None,
    weights: str = "ema",
    x: Literal["flops", "step"] = "flops",
) -> Drawing:
    """Validation loss, an alignment score and a distance from true scenes over training, one colour a backbone.

    ``x`` is training FLOPs (3F x images), at which the paper matches models, or steps. Where a backbone has several
    seeds, they are faint lines and their mean is drawn; bars are one standard error of pictures. A panel whose score
    ``scores`` (of :func:`analysis.load_scores`) lacks is left out. ``out`` is a stem to which :func:`analysis.save`
    writes .png, .pdf and .json.

    Raises UserError for fewer than two backbones, for several sizes of one, or if the runs' losses are not comparable.
    """
    points, notes = _points(runs, weights)
    tables = {LOSS: points.assign(value=points["loss"], se=math.nan, ceiling=math.nan, n=0)}
    for panel in PANELS[1:]:
        own = None if scores is None else _scored(scores, panel.name, points)
        if own is not None and len(own):
            tables[panel.name] = own
        else:
            notes.append(f"no {panel.name} in these runs: its panel is left out; sd3-jax evaluate makes it.")
    panels = [panel for panel in PANELS if panel.name in tables]
    finals = [final(tables[panel.name], panel) for panel in panels]
    cost = points.groupby("run")["flops"].max()
    spread = float(cost.max() / cost.min() - 1)
    notes += _warnings(runs, tables, finals, spread)
    numbers: dict[str, Any] = {
        "figure": "4",
        "weights": weights,
        "x": x,
        "models": _models(points),
        "flops_spread": spread,
        "curves": {panel.name: _curves(tables[panel.name]) for panel in panels},
        "final": finals,
        "setting": None if scores is None else scores.attrs.get("setting"),
        "notes": notes,
    }
    numbers["caption"] = _caption(numbers)
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        axes = figure.subplots(1, len(panels), squeeze=False, gridspec_kw={"wspace": 0.42})[0]
        for one, panel in zip(axes, panels, strict=True):
            _draw(one, tables[panel.name], panel, x)
        handles = []
        for row in numbers["models"]:
            colour, mark = LOOKS[row["backbone"]]
            label = f"{row['backbone']} ({counted(row['params'])}; {counted(row['flops_per_image'])})"
            handles.append(Line2D([], [], color=colour, marker=mark, ms=3.5, lw=1.2, label=label))
        below(figure, handles, min(3, len(handles)), numbers["caption"])
    if out is not None:
        save(figure, numbers, out)
    return Drawing(figure, numbers)


def _points(runs: pd.DataFrame, weights: str) -> tuple[pd.DataFrame, list[str]]:
    """The validation points that are compared, with each run's backbone by name."""
    check_one_study(runs, across_backbones=True)
    notes = list(runs.attrs.get("notes", []))
    own = runs[(runs["weights"] == weights) & (runs["phase"] != "warmup")]
    cooled = sorted(own.loc[own["cooldown"], "run"].unique())
    if cooled:
        notes.append(f"runs that end in a cooldown, left out: {', '.join(cooled)}.")
        own = own[~own["cooldown"]]
    names = backbones(own)
    if len(names) < 2:
        there = ", ".join(names.values()) or f"none with a point of the {weights} weights"
        raise UserError(
            f"figure 4 compares backbones, and there is {there}; it needs two of {', '.join(LABELS.values())} "
            "(model.architecture, model.weight_sets)"
        )
    named = own.assign(backbone=[names[key] for key in zip(*(own[key] for key in BACKBONE), strict=True)])
    for name, part in named.groupby("backbone"):
        sizes = sorted({counted(params) for params in part["params"]})
        if len(sizes) > 1:
            raise UserError(f"{name} has {len(sizes)} sizes ({', '.join(sizes)} parameters): figure 4 takes one")
    return named, notes


def _scored(scores: pd.DataFrame, name: str, points: pd.DataFrame) -> pd.DataFrame:
    """The overall scores of the runs that are compared."""
    own = scores[(scores["name"] == name) & (scores["group"] == OVERALL) & scores["run"].isin(points["run"])]
    named = points.drop_duplicates("run").set_index("run")["backbone"]
    table = own.assign(backbone=own["run"].map(named)).sort_values(["run", "step"])
    return table.assign(**{key: table[key].astype(float) for key in ("value", "se", "ceiling")})


def _mean(own: pd.DataFrame) -> pd.DataFrame:
    """The mean over seeds at each step that all of them reached, and its standard error of pictures alone."""
    seeds = own["run"].nunique()
    table = own.groupby("step", as_index=False).agg(
        flops=("flops", "mean"), value=("value", "mean"), se=("se", lambda se: math.sqrt((se**2).sum()) / len(se)),
        seeds=("run", "nunique"),
    )  # fmt: skip
    return table[table["seeds"] == seeds]


def final(table: pd.DataFrame, panel: Panel) -> dict[str, Any]:
    """The value of every backbone at the last step that its seeds share, best first, and which neighbours differ.

    A value's error is the larger of what seeds make (pooled over the backbones that have several) and what pictures
    make; a loss of single seeds has none, and nothing is told apart by it. Told apart is no order: of three in a row
    the first and the last may be where neither neighbours are.
    """
    rows: list[dict[str, Any]] = []
    for name, every in table.groupby("backbone"):
        shared = set.intersection(*(set(run["step"]) for _, run in every.groupby("run")))
        own = every[every["step"] == max(shared)] if shared else every.loc[every.groupby("run")["step"].idxmax()]
        values, errors = own["value"].to_numpy(float), own["se"].to_numpy(float)
        rows.append(
            {
                "backbone": name,
                "value": float(values.mean()),
                "se": float(np.sqrt(np.sum(errors**2)) / len(errors)),
                "seeds": len(values),
                "by_seed": values.tolist(),
                "flops": float(own["flops"].mean()),
                "n": int(own["n"].min()),
            }
        )
    rows.sort(key=lambda row: -row["value"] if panel.rises else row["value"])
    freedom = sum(row["seeds"] - 1 for row in rows)
    squares = sum(float(np.sum((np.array(row["by_seed"]) - row["value"]) ** 2)) for row in rows)
    between = math.sqrt(squares / freedom) if freedom else math.nan
    for row in rows:
        noise = between / math.sqrt(row["seeds"])
        row["error"] = row["se"] if math.isnan(noise) else noise if math.isnan(row["se"]) else max(noise, row["se"])
    apart = [
        bool(abs(one["value"] - other["value"]) > SIGMA * math.hypot(one["error"], other["error"]))
        for one, other in zip(rows, rows[1:], strict=False)
    ]
    return {"name": panel.name, "order": rows, "seed_sd": between, "seed_freedom": freedom, "told_apart": apart}


def _warnings(
    runs: pd.DataFrame, tables: Mapping[str, pd.DataFrame], finals: Sequence[dict[str, Any]], spread: float
) -> list[str]:
    """What a reader must know before comparing."""
    notes = []
    if spread > APART:
        notes.append(f"the runs' training FLOPs differ by {spread:.1%}: they are not matched (within {APART:.0%}).")
    others = [key for key in differences(runs) if key.startswith(("optimizer.", "batch", "init_from"))]
    if others:
        notes.append(f"the runs also differ in {', '.join(others)}.")
    for one in finals:
        if len({row["n"] for row in one["order"]}) > 1:
            notes.append(f"{one['name']} is of different numbers of pictures: its bias differs between backbones.")
        steps = tables[LOSS].groupby("run")["step"].max()
        reached = tables[one["name"]].groupby("run")["step"].max().reindex(steps.index)  # nan: never scored
        if reached.isna().any():
            notes.append(f"{one['name']} is missing for the runs {', '.join(steps.index[reached.isna()])}.")
        if (reached < steps).any():
            notes.append(
                f"the last {one['name']} of {', '.join(steps.index[reached < steps])} is not of its last step."
            )
    if all(one["seed_freedom"] == 0 for one in finals):
        notes.append(
            "one seed of each backbone: no difference can be told from one between seeds; bars are of pictures alone."
        )
    return notes


def _models(points: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for name in (name for name in LABELS.values() if name in set(points["backbone"])):
        own = points[points["backbone"] == name]
        keys = ("architecture", "weight_sets", "depth", "width", "params", "flops_per_image")
        first = own.iloc[0]
        rows.append(
            {"backbone": name}
            | {key: first[key] if key == "architecture" else int(first[key]) for key in keys}
            | {"runs": sorted(own["run"].unique()), "flops": float(own.groupby("run")["flops"].max().mean())}
        )
    return rows


def _curves(table: pd.DataFrame) -> list[dict[str, Any]]:
    keys = ["step", "images", "flops", "value", "se", "ceiling"]
    return [
        {"backbone": own["backbone"].iloc[0], "run": run, "seed": int(own["seed"].iloc[0])}
        | {key: own[key].tolist() for key in keys}
        for run, own in table.groupby("run")
    ]


def _draw(axes: Axes, table: pd.DataFrame, panel: Panel, x: str) -> None:
    """One panel: the mean of each backbone's seeds, the seeds faint, the ceiling dotted."""
    for name, own in table.groupby("backbone"):
        colour, mark = LOOKS[str(name)]
        if own["run"].nunique() > 1:
            for _, seed in own.groupby("run"):
                axes.plot(seed[x], seed["value"], color=colour, lw=0.7, alpha=0.3)
        mean = _mean(own)
        size = 2.2 if panel.name == LOSS else 3.6
        axes.plot(mean[x], mean["value"], color=colour, marker=mark, ms=size, mew=0, lw=1.1, alpha=0.95)
        known = mean[np.isfinite(mean["se"])]
        axes.errorbar(known[x], known["value"], known["se"], fmt="none", ecolor=colour, elinewidth=0.7, alpha=0.8)
    ceiling = table["ceiling"].astype(float).mean()
    values = table["value"].to_numpy(float)
    log = panel.name == LOSS or (not panel.rises and (values > 0).all())
    if math.isfinite(ceiling) and not panel.rises:
        axes.axhline(ceiling, color="0.5", lw=0.8, ls=":", zorder=0)
        values = np.append(values, ceiling)
    axes.set(xlabel="training FLOPs (3F x images)" if x == "flops" else "training steps", ylabel=panel.label)
    axes.set_xscale("log")
    low, high = float(table[x].min()), float(table[x].max())
    room = max((high / low) ** 0.06, 1.02)
    axes.set_xlim(low / room, high * room)
    plain_log_ticks(axes, "x", axes.get_xlim(), scientific if x == "flops" else plain)
    if log:
        axes.set_yscale("log")
        room = max((values.max() / values.min()) ** 0.07, 1.005)
        axes.set_ylim(values.min() / room, values.max() * room)
        plain_log_ticks(axes, "y", axes.get_ylim())


def describe(numbers: Mapping[str, Any]) -> list[str]:
    """The figure in sentences: the order at the end of each panel with errors, what is told apart, and every note."""
    return [*(_sentence(one) for one in numbers["final"]), *(f"note: {note}" for note in numbers["notes"])]


def _sentence(one: Mapping[str, Any]) -> str:
    rows = one["order"]
    text = ""
    for row, apart in zip(rows, [True, *one["told_apart"]], strict=True):
        joint = "" if row is rows[0] else ", " if apart or math.isnan(row["error"]) else " ≈ "
        text += f"{joint}{row['backbone'].replace(', ', ' ')} {_value(row)}"
    if all(math.isnan(row["error"]) for row in rows):
        return f"{one['name']}, best first: {text}; one seed each, so no error."
    close = (
        f"≈: neighbours within {SIGMA:g} errors"
        if not all(one["told_apart"])
        else f"all {SIGMA:g} errors or more apart"
    )
    how = f"seeds differ by {one['seed_sd']:.2g}" if one["seed_freedom"] else "errors of pictures alone"
    return f"{one['name']}, best first: {text} ({close}; {how})."


def _value(row: Mapping[str, Any]) -> str:
    """A value with its error.

    >>> _value({"value": 0.2904, "error": 0.0004}), _value({"value": 0.83, "error": 0.012})
    ('0.2904 ± 0.0004', '0.830 ± 0.012')
    """
    if not math.isfinite(row["error"]):
        return f"{row['value']:.3f}"
    digits = 3 if row["error"] >= 0.002 else 4
    return f"{row['value']:.{digits}f} ± {row['error']:.{digits}f}"


def _caption(numbers: Mapping[str, Any]) -> str:
    """What is drawn, the order at the end of each panel, and the notes that bear on the comparison."""
    seeds = {len(model["runs"]) for model in numbers["models"]}
    many = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else str(*seeds)
    text = (
        f"In brackets: parameters; training FLOPs an image (3F). {numbers['weights'].upper()} weights; {many} "
        f"seed{'' if seeds == {1} else 's (faint)'} of each; total FLOPs within {numbers['flops_spread']:.1%} of each "
        "other. Bars: one standard error of pictures, prompts as clusters. "
    )
    shown = {one["name"]: one["order"] for one in numbers["final"]}
    if "scene-frechet" in shown:
        n = sorted({row["n"] for row in shown["scene-frechet"]})
        many = ", ".join(f"{k:,}" for k in n)
        text += f"Dotted: as many true scenes, through the autoencoder; scene-frechet of {many} pictures. "
    setting = numbers["setting"]
    if setting and len(shown) > 1:
        text += f"{setting['steps']} {str(setting['sampler']).capitalize()} steps, guidance {setting['guidance']:g}."
    lines = [text, *(_sentence(one) for one in numbers["final"])]
    said = ("the runs", "one seed", "the last", *shown)
    lines += [f"Note: {note}" for note in numbers["notes"] if note.startswith(said)]
    return "\n".join(textwrap.fill(line, CAPTION) for line in lines)
