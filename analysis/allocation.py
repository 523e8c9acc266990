"""Figures of how compute is best divided between size and data: isoFLOP valleys, and the frontier of a law."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter

from analysis import frontier, report
from analysis.drawing import (
    CAPTION,
    DASHED,
    STYLE,
    Drawing,
    below,
    counted,
    interval_bars,
    plain_log_ticks,
    save,
    scientific,
    sequential_colours,
)
from analysis.figures import BEYOND
from analysis.isoflop import IsoFlop, isoflop, isoflop_points
from analysis.laws import Law
from analysis.outlook import Outlook, outlook
from sd3_jax.errors import UserError

BUDGETS, GRID = 61, 200  # places at which a frontier, and an envelope, is drawn
BANDS = {"95": ("0.55", 0.30), "80": ("0.35", 0.35)}  # colour and opacity, the wider first
MARK, POINT = "#D55E00", "#0072B2"  # of what is predicted, and of points without a depth
STAR: dict[str, Any] = {"marker": "*", "ms": 7, "mew": 0.4, "mec": "black", "ls": ""}


def isoflop_figure(found: IsoFlop | pd.DataFrame, out: str | Path | None = None) -> Drawing:
    """Loss against parameters at each FLOP budget, with parabolas and minima, and the minima against FLOPs.

    ``found`` is a result of the isoFLOP analysis, or the runs or points to analyse. Open circles are points that no
    parabola used; a budget whose lowest loss is at an edge has no minimum.
    """
    if isinstance(found, pd.DataFrame):
        found = isoflop(found) if "weights" in found else isoflop_points(found)
    colours = sequential_colours(found.budgets["flops"])
    valleys = []
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.25, 1], "wspace": 0.3})
        row: Any
        for row in found.budgets.itertuples():
            colour, own = colours[row.flops], found.points[found.points["flops"] == row.flops]
            used = own["used"].to_numpy(bool)
            left.plot(own["params"][used], own["loss"][used], "o", ms=3, mew=0, color=colour)
            left.plot(own["params"][~used], own["loss"][~used], "o", ms=3, mew=0.7, mfc="none", color=colour)
            if row.interior:
                x = np.geomspace(own["params"][used].min(), own["params"][used].max(), 60)
                y = row.loss + row.curvature * (np.log(x) - np.log(row.params)) ** 2
                left.plot(x, y, color=colour, lw=0.9)
                left.plot(row.params, row.loss, color=colour, **STAR)
                right.plot(row.flops, row.params, color=colour, **STAR)
                valleys.append({"flops": row.flops, "params": x.tolist(), "loss": y.tolist()})
        numbers = report.isoflop_numbers(found) | {"valleys": valleys}
        if "exponent_params" in found.exponents:
            reached = found.budgets.loc[found.budgets["interior"], "flops"]
            x = np.geomspace(reached.min(), reached.max(), 20)
            y = found.exponents["coefficient_params"] * x ** found.exponents["exponent_params"]
            right.plot(x, y, color="black", lw=1)
            numbers["line"] = {"flops": x.tolist(), "params": y.tolist()}
        left.set(xlabel="parameters N", ylabel="validation loss", xscale="log", yscale="log")
        right.set(xlabel="training FLOPs C", ylabel="parameters at the minimum N*")
        right.set(xscale="log", yscale="log")
        if len(found.points):
            plain_log_ticks(left, "x", left.get_xlim(), counted)
            plain_log_ticks(left, "y", left.get_ylim())
        inside = found.budgets[found.budgets["interior"]]
        if len(inside):
            plain_log_ticks(right, "x", (inside["flops"].min() / 1.1, inside["flops"].max() * 1.1), scientific)
            plain_log_ticks(right, "y", (inside["params"].min() / 1.1, inside["params"].max() * 1.1), counted)
        else:
            right.set(xticks=[], yticks=[])
            right.minorticks_off()
            right.text(0.5, 0.5, "no budget has its minimum inside", transform=right.transAxes, ha="center")
        handles = [
            Line2D([], [], color=colours[flops], marker="o", ms=3, lw=0.9, label=f"{scientific(flops)} FLOPs")
            for flops in found.budgets["flops"]
        ]
        numbers["caption"] = textwrap.fill(_isoflop_caption(found), CAPTION)
        below(figure, handles, min(5, len(handles)), numbers["caption"])
    if out is not None:
        save(figure, numbers, out)
    return Drawing(figure, numbers)


def frontier_figure(
    law: Law,
    points: pd.DataFrame,
    budgets: Sequence[float] | None = None,
    at: float | Sequence[float] | None = None,
    out: str | Path | None = None,
) -> Drawing:
    """The best size N*(C), its data D*(C) and loss L*(C), with the law's 80 % and 95 % bands, dashed out of the data.

    Faint dots are the points that the law was fitted to, stars the minima of isoFLOP valleys and the thin grey line
    the envelope of the runs (of N* and D* where it is not censored), as far as there are any. ``at`` are FLOPs whose
    outlook is marked, with intervals of 80 % (thick) and 95 %; those of its loss are of a new run. ``budgets`` are the
    C to draw, from the points' least to four times their most unless given.

    Raises UserError for a law that says nothing of sizes.
    """
    targets = [] if at is None else np.atleast_1d(at).astype(float).tolist()
    if budgets is None:
        most = max([BEYOND * float(points["flops"].max()), *(1.5 * one for one in targets)])
        budgets = np.geomspace(points["flops"].min(), most, BUDGETS).tolist()
    family = frontier.sizes_in(points) if law.family is None else None
    front = frontier.implied(law, budgets, family)
    narrow = frontier.implied(law, budgets, family, level=0.80)
    front = front.join(narrow.filter(regex="_(low|high)$").add_suffix("80"))
    front = front[~front["at_edge"]].reset_index(drop=True)
    expected = outlook(law, points, targets)
    minima, envelope = _minima(points), _envelope(points)
    colours = sequential_colours(points["depth"].unique()) if "depth" in points else {}
    kept = [name for name in ("run", "depth", "params", "images", "flops", "loss") if name in points]
    numbers: dict[str, Any] = {
        "figure": "frontier",
        "law": report.as_dict(law),
        "frontier": front.to_dict(orient="list"),
        "points": points[kept].to_dict(orient="list"),
        "minima": minima.to_dict(orient="list"),
        "envelope": envelope.to_dict(orient="list"),
        "at": [report.outlook_dict(one, "depth" in points) for one in expected],
    }
    data = "images D*" if "depth" in points else "data D*"
    labels = {"params": "parameters N*", "images": data, "loss": "validation loss L*"}
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        panels = figure.subplots(1, 3, gridspec_kw={"wspace": 0.7 if law.family is not None else 0.5})
        for axes, (name, label) in zip(panels, labels.items(), strict=True):
            for key, own in points.groupby("depth") if colours else [(None, points)]:
                axes.plot(own["flops"], own[name], "o", ms=2, mew=0, alpha=0.45, color=colours.get(key, POINT))
            shown = envelope[name] if name == "loss" else envelope[name].where(envelope["censored"] == 0)
            axes.plot(envelope["flops"], shown, color="0.6", lw=0.9)
            _frontier(axes, front, name)
            axes.plot(minima["flops"], minima[name], color="#E69F00", **STAR)
            for one in expected:
                interval_bars(axes, one.flops, *one.best[name], colour=MARK)
            axes.set(xlabel="training FLOPs C", ylabel=label, xscale="log", yscale="log")
            plain_log_ticks(axes, "x", axes.get_xlim(), scientific)
            plain_log_ticks(axes, "y", axes.get_ylim(), None if name == "loss" else counted)
        if law.family is not None:
            _depth_axis(panels[0], frontier.sizes_of(law))
        handles = _handles(numbers, front, colours)
        numbers["caption"] = textwrap.fill(_caption(law, numbers, expected), CAPTION)
        below(figure, handles, min(6, math.ceil(len(handles) / 2)), numbers["caption"], left=0.095)
    if out is not None:
        save(figure, numbers, out)
    return Drawing(figure, numbers)


def _frontier(axes: Axes, front: pd.DataFrame, name: str) -> None:
    """One quantity along the frontier: bands, the line, and dashes where it leaves the data."""
    for level, (colour, opacity) in BANDS.items():
        suffix = "80" if level == "80" else ""
        low, high = front[f"{name}_low{suffix}"], front[f"{name}_high{suffix}"]
        axes.fill_between(front["flops"], low, high, color=colour, alpha=opacity, lw=0)
    axes.plot(front["flops"], front[name], color="black", lw=1.1, ls=DASHED)
    axes.plot(front["flops"], front[name].where(~front["extrapolated"]), color="black", lw=1.5)


def _depth_axis(axes: Axes, family: frontier.Sizes) -> None:
    """Whole depths of the family as a second axis of parameters."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    other = axes.twinx()
    other.set(yscale="log", ylim=(low, high))
    other.spines["right"].set_visible(True)
    logs = np.log(family.depth), np.log(family.params)
    depths = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256])
    places = np.exp(np.interp(np.log(depths), *logs))
    inside = (places >= low) & (places <= high) & (depths <= family.depth[-1])
    other.yaxis.set_major_locator(FixedLocator(places[inside]))
    other.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{np.exp(np.interp(np.log(value), *reversed(logs))):.0f}")
    )
    other.minorticks_off()
    other.set_ylabel("depth", labelpad=1)


def _minima(points: pd.DataFrame) -> pd.DataFrame:
    """The minima of the isoFLOP valleys inside their sizes; no rows where there is no valley."""
    try:
        found = isoflop_points(points, points.attrs.get("budgets") or None, resamples=0).budgets
    except UserError:
        return pd.DataFrame(columns=["flops", "params", "images", "loss"])
    return found.loc[found["interior"], ["flops", "params", "images", "loss"]].reset_index(drop=True)


def _envelope(points: pd.DataFrame) -> pd.DataFrame:
    """The lowest loss of any run at each C, with the size and data that reach it; nan where no run passes.

    No rows where runs of one point make no curve.
    """
    table = frontier.envelope(frontier.as_curves(points), GRID).table
    images = frontier.data_at(points)(table["flops"].to_numpy(), np.log(table["params"].to_numpy()))
    grid = pd.DataFrame({"flops": np.geomspace(points["flops"].min(), points["flops"].max(), GRID)})
    every = grid.merge(table.assign(images=images, censored=table["censored"].astype(float)), on="flops", how="left")
    there = every["loss"].notna()
    return every if (there & there.shift(fill_value=False)).any() else every.iloc[:0]


def _handles(numbers: dict[str, Any], front: pd.DataFrame, colours: dict[Any, Any]) -> list[Any]:
    handles: list[Any] = []
    if not front["extrapolated"].all():
        handles.append(Line2D([], [], color="black", lw=1.5, label="frontier of the law"))
    if front["extrapolated"].any():
        handles.append(Line2D([], [], color="black", lw=1.1, ls=DASHED, label="extrapolated"))
    if numbers["law"]["intervals"]:
        handles += [
            Patch(color=colour, alpha=opacity + (0.2 if level == "80" else 0), lw=0, label=f"{level} % band")
            for level, (colour, opacity) in reversed(BANDS.items())
        ]
    if numbers["minima"]["flops"]:
        handles.append(Line2D([], [], color="#E69F00", label="isoFLOP minimum", **STAR))
    if numbers["envelope"]["flops"]:
        handles.append(Line2D([], [], color="0.6", lw=0.9, label="envelope"))
    if numbers["at"]:
        handles.append(Line2D([], [], color=MARK, marker="o", ms=3.5, lw=1, label="predicted run"))
    for depth, colour in colours.items():
        handles.append(Line2D([], [], color=colour, marker="o", ms=3, lw=0, label=f"depth {depth}"))
    return (
        handles if colours else [*handles, Line2D([], [], color=POINT, marker="o", ms=3, lw=0, label="point of a run")]
    )


def _caption(law: Law, numbers: dict[str, Any], expected: Sequence[Outlook]) -> str:
    text = f"{law.form.formula}: {report.exponents_in_words(law)}; {law.how}. "
    if law.ci95:
        text += "Bands are of the law" + (", bars of the loss of a new run. " if expected else ". ")
    if not numbers["minima"]["flops"]:
        text += "No isoFLOP valley has its minimum inside. "
    for one in expected if len(expected) <= 2 else ():
        size = one.best.get("depth")
        named = f"depth {size.value:.3g}, " if size else ""
        loss = one.best["loss"]
        ends = f" [{loss.ci95[0]:.4g}, {loss.ci95[1]:.4g}]" if np.isfinite(loss.ci95[0]) else ""
        text += f"At {one.flops:.3g} FLOPs, {one.reach:.3g} times the most of any run: {named}"
        text += f"{counted(one.best['params'].value)} parameters, loss {loss.value:.4g}{ends}. "
    return text + (f"Flags: {', '.join(law.flags)}." if law.flags else "")


def _isoflop_caption(found: IsoFlop) -> str:
    if "exponent_params" not in found.exponents:
        text = "Fewer than two budgets have their minimum inside: no exponent. "
    else:
        words = []
        for name, key in (("N*", "exponent_params"), ("D*", "exponent_data")):
            ends = found.ci95.get(key)
            words.append(
                f"{name} ~ C^{found.exponents[key]:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")
            )
        text = f"{', '.join(words)}; {found.how}. "
    return text + (f"Flags: {', '.join(found.flags)}." if found.flags else "")
