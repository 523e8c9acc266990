"""Figure 10 of the paper: how far samples are from true pictures, by depth, for latents of several channels."""

import math
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from analysis.drawing import CAPTION, STYLE, Drawing, below, save, sequential_colours
from analysis.runs import find
from analysis.scores import OVERALL, SETTING, commonest, only_setting, read_rows
from sd3_jax.errors import UserError

NAMES = ("picture-frechet", "scene-frechet")
Setting = dict[str, object]


def load_channels(path: str | Path, setting: Setting | None = None, name: str | None = None) -> pd.DataFrame:
    """One row per (channels, depth): the distance at each run's last step that was evaluated, the mean over seeds.

    Columns: channels, depth, value, se (of pictures, or of seeds where there are several, whichever is larger), seeds,
    ceiling, n, step. Raises UserError if there is no such score, or of fewer than two numbers of channels.
    """
    found = find(path)
    rows, notes = read_rows(found)
    table = pd.DataFrame([row for row in rows if row["group"] == OVERALL])
    there = sorted(set(table["name"])) if len(table) else []
    name = name or next((one for one in NAMES if one in there), "")
    if name not in there:
        raise UserError(f"{path}: no distance of pictures ({', '.join(NAMES)}); sd3-jax evaluate {path} makes it")
    configs = {run: config for run, (_, _, config) in found.runs.items()}
    own, left_out = commonest(
        only_setting(table[table["name"] == name], setting or {}),
        SETTING,
        "scores left out, of another setting",
    )
    own = own.sort_values("step").groupby("run", as_index=False).last()
    own = own.assign(
        channels=[configs[run].model.latent_channels for run in own["run"]],
        depth=[configs[run].model.depth for run in own["run"]],
    )
    if own["channels"].nunique() < 2:
        raise UserError(f"{path}: latents of {own['channels'].iloc[0]} channels alone; figure 10 compares several")
    if own["step"].nunique() > 1:
        notes.append(f"distances are of different steps: {', '.join(map(str, sorted(own['step'].unique())))}.")
    if own["prompt_list"].nunique() > 1:
        notes.append("distances are of different prompts.")
    places = sorted(set(zip(own["channels"], own["depth"], strict=True)))
    cells = pd.DataFrame([_cell(c, d, own[(own["channels"] == c) & (own["depth"] == d)]) for c, d in places])
    cells.attrs |= {"notes": [*notes, *left_out], "name": name}
    cells.attrs["setting"] = {key: own[key].iloc[0] for key in SETTING}
    return cells


def _cell(channels: int, depth: int, part: pd.DataFrame) -> dict[str, float]:
    value, seeds = part["value"].to_numpy(float), len(part)
    of_pictures = float(np.sqrt(np.square(part["se"].to_numpy(float)).sum()) / seeds)
    of_seeds = float(value.std(ddof=1) / math.sqrt(seeds)) if seeds > 1 else 0.0
    mean = {"value": float(value.mean()), "se": max(of_pictures, of_seeds), "ceiling": float(part["ceiling"].mean())}
    return {"channels": channels, "depth": depth, **mean, "seeds": seeds, "n": int(part["n"].min()),
            "step": int(part["step"].max())}  # fmt: skip


def figure10(cells: pd.DataFrame, out: str | Path | None = None) -> Drawing:
    """The distance against depth, a line for each number of channels; dotted, what true pictures have."""
    numbers = {
        "figure": "10",
        "name": cells.attrs["name"],
        "cells": cells.to_dict(orient="records"),
        "gaps": _gaps(cells),
        "setting": cells.attrs["setting"],
        "notes": cells.attrs["notes"],
    }
    numbers["caption"] = _caption(numbers)
    colours = sequential_colours(cells["channels"].unique())
    handles = []
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        axes = figure.subplots()
        for channels, part in cells.groupby("channels"):
            colour, part = colours[channels], part.sort_values("depth")
            axes.errorbar(part["depth"], part["value"], yerr=part["se"], color=colour, marker="o", ms=3.5, lw=1.2)
            axes.plot(part["depth"], part["ceiling"], color=colour, lw=0.8, ls=":")
            handles.append(Line2D([], [], color=colour, marker="o", ms=3.5, lw=1.2, label=f"{channels} channels"))
        axes.set_xlabel("depth")
        axes.set_ylabel(f"{numbers['name']} ↓")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(FixedLocator(sorted(cells["depth"].unique())))
        below(figure, handles, len(handles), str(numbers["caption"]))
    if out is not None:
        save(figure, numbers, out)
    return Drawing(figure, numbers)


def _gaps(cells: pd.DataFrame) -> list[dict[str, float]]:
    """At each depth: the distance of the most channels over that of the fewest, and its error."""
    gaps = []
    for depth in sorted(cells["depth"].unique()):
        part = cells[cells["depth"] == depth].sort_values("channels").to_dict(orient="records")
        few, many = part[0], part[-1]
        if few["channels"] < many["channels"]:
            ratio = many["value"] / few["value"]
            error = ratio * math.hypot(many["se"] / many["value"], few["se"] / few["value"])
            gaps.append(
                {"depth": int(depth), "few": few["channels"], "many": many["channels"], "ratio": ratio, "se": error}
            )
    return gaps


def describe_channels(numbers: dict) -> list[str]:
    """What the figure says, in lines."""
    lines = [
        f"depth {gap['depth']}: {gap['many']} channels over {gap['few']}: {gap['ratio']:.2f}±{gap['se']:.2f}"
        for gap in numbers["gaps"]
    ]
    if len(numbers["gaps"]) > 1:
        first, last = numbers["gaps"][0], numbers["gaps"][-1]
        apart = (first["ratio"] - last["ratio"]) / math.hypot(first["se"], last["se"])
        how = "falls" if apart > 2 else "rises" if apart < -2 else "does not change measurably"
        lines.append(f"the gap {how} with depth ({apart:+.1f} errors); in the paper it falls, to nothing by depth 22")
    return [*lines, *(f"note: {note}" for note in numbers["notes"])]


def _caption(numbers: dict) -> str:
    said = numbers["setting"]
    text = (
        f"{numbers['name']} of samples (the lower the better) against depth, after equal steps, by channels of the "
        f"latents: {said['steps']} {said['sampler']} steps, guidance {said['guidance']}, {said['weights']} weights. "
        "Bars: one standard error. Dotted: as many true pictures. All is compared as each autoencoder gives it back: "
        "what it loses itself is in none of the distances."
    )
    return "\n".join(textwrap.wrap(text, CAPTION))
