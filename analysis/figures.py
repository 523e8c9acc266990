"""Figures for print. Each function draws one and returns it with every number that it drew."""

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import frontier, laws, prediction, quality, report
from analysis.drawing import (
    CAPTION,
    DASHED,
    STYLE,
    Drawing,
    below,
    counted,
    plain_log_ticks,
    save,
    sequential_colours,
)
from analysis.runs import constant_rate, cooldown_ends, differences, points_on_law
from sd3_jax.errors import UserError

BEYOND = 4.0  # the frontier is drawn to this many times the largest C


def figure8(
    runs: pd.DataFrame,
    scores: pd.DataFrame | None = None,
    out: str | Path | None = None,
    weights: str = "ema",
    skip: float = 0.1,
    resamples: int = 1000,
) -> Drawing:
    """Validation loss against training steps and against training FLOPs, and scores of pictures against the loss.

    One colour for each depth, seeds as faint lines. In the right panel thin lines are the law at each depth, the
    black line is the frontier that it implies with its 95 % band, dashed where it leaves the data; open diamonds are
    the ends of cooldowns. With fewer than three depths the curves are drawn without a law. The lower panels, one for
    each score that ``scores`` (of :func:`analysis.load_scores`) has, are :mod:`analysis.quality`'s; without scores
    there are none. ``out`` is a stem to which :func:`save` writes .png, .pdf and .json. After the paper's Figure 8.
    """
    points = points_on_law(runs, weights, skip)  # type: ignore[arg-type]
    notes = list(points.attrs.get("notes", []))
    if scores is not None:
        attrs, scores = scores.attrs, scores[scores["depth"].isin(runs["depth"].unique())]
        scores.attrs = attrs
    law = hold_out = None
    try:
        law = laws.fit_points(points, resamples=resamples)
    except UserError as error:
        notes.append(f"no law is drawn: {error}")
    if law is not None:
        try:
            hold_out = prediction.hold_out_largest(points, resamples=resamples)
        except UserError as error:
            notes.append(f"nothing is held out: {error}")
    numbers: dict[str, Any] = {
        "figure": "8",
        "weights": weights,
        "skip": skip,
        "law": report.as_dict(law, hold_out) | report.details(law) if law else None,
        "differences": differences(runs),
        "notes": notes,
    }
    colours = sequential_colours(runs["depth"].unique())
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        panels = _panels_of(scores)
        left, right, *lower = _grid(figure, len(panels))
        numbers["curves"] = loss_against_steps(left, runs, points, colours, weights)
        numbers |= loss_against_flops(right, points, colours, law)
        numbers["cooldown_ends"] = _cooldowns(left, right, runs, colours, weights)
        _limits(left, right, numbers)
        numbers["caption"] = _caption(law, hold_out, numbers)
        if scores is not None and panels:
            numbers["scores"] = []
            for axes, (names, label) in zip(lower, panels.items(), strict=True):
                drawn = quality.draw_panel(axes, scores, names, colours, resamples)
                quality.finish_panel(axes, names, label, drawn)
                numbers["scores"] += drawn
            numbers["caption"] += "\n" + quality.caption(numbers["scores"], scores.attrs["setting"], CAPTION)
            numbers["notes"] += [note for note in scores.attrs.get("notes", []) if note not in numbers["notes"]]
        handles = _depth_handles(runs, colours, numbers)
        columns = min(5, math.ceil(len(handles) / 2)) if len(handles) > 5 else len(handles)
        below(figure, handles, columns, numbers["caption"], rows=2 if panels else 1)
    if out is not None:
        save(figure, numbers, out)
    return Drawing(figure, numbers)


def _panels_of(scores: pd.DataFrame | None) -> dict[tuple[str, ...], str]:
    """The lower panels that there are scores for."""
    if scores is None:
        return {}
    there = set(scores["name"])
    found = {tuple(name for name in names if name in there): label for names, label in quality.PANELS.items()}
    return {names: label for names, label in found.items() if names}


def _grid(figure: Figure, lower: int) -> list[Axes]:
    """Two panels, and under them as many as there are scores."""
    if not lower:
        return list(figure.subplots(1, 2, gridspec_kw={"wspace": 0.16}))
    rows = figure.add_gridspec(2, 1, hspace=0.32)
    upper = rows[0].subgridspec(1, 2, wspace=0.16).subplots(squeeze=False)[0]
    return [*upper, *rows[1].subgridspec(1, lower, wspace=0.36).subplots(squeeze=False)[0]]


def loss_against_steps(
    axes: Axes, runs: pd.DataFrame, points: pd.DataFrame, colours: Mapping[Any, Any], weights: str
) -> list[dict[str, Any]]:
    """Every constant-rate validation point after the warm-up, joined by run; dots are what the law is fitted to."""
    shown = constant_rate(runs[runs["weights"] == weights])
    drawn = []
    for (depth, run), own in shown.groupby(["depth", "run"]):
        fitted = own["step"].isin(points["step"][points["run"] == run]).to_numpy()
        repeated = own["run"].iloc[0] != shown[shown["depth"] == depth]["run"].iloc[0]
        axes.plot(own["step"], own["loss"], color=colours[depth], lw=1.0, alpha=0.35 if repeated else 0.9)
        if not repeated:
            axes.plot(own["step"][fitted], own["loss"][fitted], "o", ms=2.0, mew=0, color=colours[depth])
        columns = {key: own[key].tolist() for key in ("step", "images", "flops", "loss", "loss_se")}
        drawn.append(
            {
                "run": run,
                "depth": int(own["depth"].iloc[0]),
                "seed": int(own["seed"].iloc[0]),
                "params": int(own["params"].iloc[0]),
            }
            | columns
            | {"fitted": fitted.tolist()}
        )
    axes.set(xlabel="training steps", ylabel="validation loss", xscale="log", yscale="log")
    return drawn


def loss_against_flops(
    axes: Axes, points: pd.DataFrame, colours: Mapping[Any, Any], law: laws.Law | None
) -> dict[str, Any]:
    """The points on the law, the law through them at each depth, the implied frontier and the runs' envelope."""
    lines, front = [], None
    for depth, own in points.groupby("depth"):
        axes.plot(own["flops"], own["loss"], "o", ms=2.4, mew=0, color=colours[depth], alpha=0.8)
        first = own.sort_values("flops")[["flops", "loss"]].iloc[0]
        place: dict[str, Any] = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "va": "bottom"}
        axes.annotate(f"{depth}", tuple(first), fontsize=7.5, color=colours[depth], **place)
        if law is not None:
            images = np.geomspace(own["images"].min(), own["images"].max(), 40)
            flops = images * float((own["flops"] / own["images"]).iloc[0])
            loss = prediction.predict(law, own["params"].iloc[0], images).loss
            axes.plot(flops, loss, color=colours[depth], lw=0.8)
            lines.append({"depth": int(own["depth"].iloc[0]), "flops": flops.tolist(), "loss": loss.tolist()})
    envelope = frontier.envelope(points)
    if law is not None and law.family is not None:
        budgets = np.geomspace(points["flops"].min(), BEYOND * points["flops"].max(), 81)
        front = frontier.implied(law, budgets)
        front = front[~front["at_edge"]].reset_index(drop=True)
        axes.fill_between(front["flops"], front["loss_low"], front["loss_high"], color="0.55", alpha=0.35, lw=0)
        axes.plot(front["flops"], front["loss"], color="black", lw=1.1, ls=DASHED)
        inside = front["loss"].where(~front["extrapolated"])
        axes.plot(front["flops"], inside, color="black", lw=1.5)
    axes.set(xlabel="training FLOPs (3F x images)", xscale="log", yscale="log")
    return {
        "law_curves": lines,
        "frontier": None if front is None else front.to_dict(orient="list"),
        "envelope": {
            "table": envelope.table.to_dict(orient="list"),
            "exponent": envelope.exponent,
            "winners": envelope.winners,
            "decades": envelope.decades,
            "flags": list(envelope.flags),
        },
    }


def _cooldowns(
    left: Axes, right: Axes, runs: pd.DataFrame, colours: Mapping[Any, Any], weights: str
) -> list[dict[str, Any]]:
    ends = cooldown_ends(runs, weights)  # type: ignore[arg-type]
    keys = ["run", "depth", "step", "images", "flops", "loss", "loss_se", "offset"]
    drawn = [dict(zip(keys, row, strict=True)) for row in ends[keys].itertuples(index=False)]
    for end in drawn:
        for axes, x in ((left, end["step"]), (right, end["flops"])):
            axes.plot(x, end["loss"], "D", ms=4, mew=0.9, mfc="white", color=colours[end["depth"]])
    return drawn


def _limits(left: Axes, right: Axes, numbers: Mapping[str, Any]) -> None:
    """Room for every point, and for the frontier as far as it does not press them together."""
    ends = [row["loss"] for row in numbers["cooldown_ends"]]
    fitted = [
        loss for c in numbers["curves"] for loss, is_fitted in zip(c["loss"], c["fitted"], strict=True) if is_fitted
    ]
    shown = [loss for c in numbers["curves"] for loss in c["loss"]]
    steps = [step for c in numbers["curves"] for step in c["step"]]
    lowest = min(*fitted, *ends) if ends else min(fitted)
    if numbers["frontier"]:
        lowest = max(min([lowest, *numbers["frontier"]["loss"]]), 0.8 * lowest)
    for axes, losses in ((left, [*shown, *ends]), (right, [*fitted, lowest])):
        low, high = min(losses), max(losses)
        room = (high / low) ** 0.06
        axes.set_ylim(low / room, high * room)
        plain_log_ticks(axes, "y", axes.get_ylim())
    plain_log_ticks(left, "x", (min(steps) * 0.95, max(steps) * 1.05))


def _depth_handles(runs: pd.DataFrame, colours: Mapping[Any, Any], numbers: Mapping[str, Any]) -> list[Line2D]:
    params = runs.groupby("depth")["params"].first()
    handles = [
        Line2D([], [], color=colour, marker="o", ms=3, lw=1.2, label=f"depth {depth} ({counted(params[depth])})")
        for depth, colour in colours.items()
    ]
    outside = numbers["frontier"]["extrapolated"] if numbers["frontier"] else []
    if not all(outside):
        handles.append(Line2D([], [], color="black", lw=1.5, label="frontier of the law"))
    if any(outside):
        label = "extrapolated" if not all(outside) else "frontier, extrapolated"
        handles.append(Line2D([], [], color="black", lw=1.1, ls=DASHED, label=label))
    if numbers["cooldown_ends"]:
        handles.append(Line2D([], [], color="0.3", marker="D", ms=4, mfc="white", lw=0, label="after cooldown"))
    return handles


def _caption(law: laws.Law | None, hold_out: prediction.HoldOut | None, numbers: Mapping[str, Any]) -> str:
    if law is None:
        return textwrap.fill(next(note for note in numbers["notes"] if note.startswith("no law")), CAPTION)
    span = law.ci95.get("E")
    floor = f"E = {law.constants['E']:.4g}" + (f" [{span[0]:.4g}, {span[1]:.4g}]" if span else "")
    text = f"L = E + A/N^α + B/D^β, N* ~ C^a, D* ~ C^b: {floor}, {report.exponents_in_words(law)}; "
    text += f"95 % intervals from a {law.how}" if law.ci95 else law.how
    text += f"; residual rms {law.residual_rms:.1%}. "
    if hold_out is not None:
        text += report.held_out_sentence(hold_out)[0].upper() + report.held_out_sentence(hold_out)[1:] + ". "
    flags = [*law.flags, *numbers["envelope"]["flags"]]
    return textwrap.fill(text + (f"Flags: {', '.join(flags)}." if flags else ""), CAPTION)
