"""Pictures of the paper's tables: ranks as dots, one score against the other, what few steps cost by depth."""

import math
import textwrap
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from analysis.drawing import CAPTION, PANEL, STYLE, WIDTH, Drawing, below, plain_log_ticks, sequential_colours
from analysis.paper_tables import as_dict
from analysis.ranking import LEVEL
from analysis.sampling import COLOURS, MARKS

LINE = 0.135  # inches of a line of ranks


def picture(table: pd.DataFrame) -> Drawing:
    """The picture of a table of :mod:`analysis.paper_tables` or :func:`analysis.sampling.table6`, with its numbers."""
    numbers = as_dict(table)
    bars = f"Bars: {100 * LEVEL:.0f} % intervals." if numbers["table"] == "1" else "Bars: one standard error."
    lines = [f"{numbers['title']}. {bars}", *(line.replace(", p ", ", p\u00a0") for line in numbers["sentences"])]
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        draw = {"1": _ranks, "2": _scatter, "6": _losses}[numbers["table"]]
        draw(figure, table, "\n".join(textwrap.fill(line, CAPTION) for line in lines))
    return Drawing(figure, numbers)


def _ranks(figure: Figure, table: pd.DataFrame, caption: str) -> None:
    """A line for each formulation: mean rank with its interval, ranks at few and many steps, the paper's rank."""
    axes = figure.subplots()
    y = np.arange(len(table))
    colours = [COLOURS[group] for group in table["group"]]
    axes.hlines(y, table["low"], table["high"], colors=colours, lw=1.6, alpha=0.45)
    marks = {"all": ("o", "all settings"), "fewest": ("<", "fewest steps"), "most": (">", "most steps")}
    columns = {c.value: c.heading for c in table.attrs["columns"]}
    handles = [Line2D([], [], color=colour, lw=2.5, label=group) for group, colour in _groups(table)]
    for column, (mark, label) in marks.items():
        if column not in columns and column != "all":
            continue
        face = colours if column == "all" else "white"
        size = 20 if column == "all" else 11
        axes.scatter(table[column], y, size, facecolors=face, edgecolors=colours, marker=mark, lw=0.8, zorder=3)
        label = columns[column] if column != "all" else label
        fill = "0.3" if column == "all" else "white"
        handles.append(Line2D([], [], color="0.3", marker=mark, ls="", ms=4, mfc=fill, label=label))
    if table["paper"].notna().any():
        axes.scatter(table["paper"], y, 16, color="0.55", marker="x", lw=1.0, zorder=2)
        handles.append(Line2D([], [], color="0.55", marker="x", ls="", ms=4, label="the paper, all settings"))
    axes.set_yticks(y, table["formulation"], fontsize=6.5)
    for tick, colour in zip(axes.get_yticklabels(), colours, strict=True):
        tick.set_color(colour)
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.set_xlim(0.5, None)
    axes.set_xlabel("mean rank (1 is best)")
    axes.grid(axis="x", lw=0.4, color="0.9")
    axes.set_axisbelow(True)
    rows = (len(table) * LINE + 0.15) / PANEL
    below(figure, handles, 4, caption, rows=rows, left=1.45 / WIDTH)


def _groups(table: pd.DataFrame) -> list[tuple[str, str]]:
    return [(group, colour) for group, colour in COLOURS.items() if group in set(table["group"])]


def _scatter(figure: Figure, table: pd.DataFrame, caption: str) -> None:
    """The score against the distance, a panel for each data set; the printed rows are named."""
    sets = sum(column.startswith("up_se_") for column in table.columns)
    headings = {column.value: column.heading for column in table.attrs["columns"]}
    axes = figure.subplots(1, sets, squeeze=False, gridspec_kw={"wspace": 0.26})[0]
    for k, one in enumerate(axes):
        own = table.dropna(subset=[f"up_{k}", f"down_{k}"])
        x, y = own[f"down_{k}"].to_numpy(), own[f"up_{k}"].to_numpy()
        colours = [COLOURS[group] for group in own["group"]]
        bars = {"fmt": "none", "elinewidth": 0.5, "alpha": 0.4}
        one.errorbar(x, y, own[f"up_se_{k}"], own[f"down_se_{k}"], ecolor=colours, **bars)
        one.scatter(x, y, np.where(own["shown"], 18, 7), c=colours, lw=0, zorder=3)
        one.set(xlabel=headings[f"down_{k}"], ylabel=headings[f"up_{k}"])
        one.yaxis.set_major_locator(MaxNLocator(6))
        if (x > 0).all() and x.max() / x.min() > 3:
            one.set_xscale("log")
            room = (x.max() / x.min()) ** 0.12
            one.set_xlim(x.min() / room, x.max() * room)
            plain_log_ticks(one, "x", one.get_xlim())
        else:
            one.margins(x=0.15)
    handles = [Line2D([], [], color=colour, marker="o", ls="", ms=4, label=group) for group, colour in _groups(table)]
    below(figure, handles, len(handles), caption, rows=1.35 if sets < 3 else 1)
    for k, one in enumerate(axes):
        _name(one, table.dropna(subset=[f"up_{k}", f"down_{k}"]), f"down_{k}", f"up_{k}")


def _name(axes: Axes, table: pd.DataFrame, x: str, y: str) -> None:
    """The name of each shown point, at the nearest of several places where it covers no other name or mark."""
    figure: Any = axes.figure
    renderer = figure._get_renderer()
    inside = axes.get_window_extent(renderer)
    taken = [axes.transData.transform((row[x], row[y])) for _, row in table.iterrows()]
    boxes: list[Any] = []
    for _, row in table[table["shown"]].sort_values(y, ascending=False).iterrows():
        for reach in (4, 9, 15, 22, 30, 40, 52):
            found = None
            for dx, dy, ha, va in _PLACES:
                offset = (dx * reach, dy * reach)
                label = axes.annotate(
                    row["formulation"],
                    (row[x], row[y]),
                    xytext=offset,
                    textcoords="offset points",
                    ha=ha,
                    va=va,
                    fontsize=6,
                    color=COLOURS[row["group"]],
                    path_effects=[withStroke(linewidth=1.2, foreground="white")],
                    arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "0.6", "shrinkA": 0, "shrinkB": 2}
                    if reach > 4
                    else None,
                )
                label.update_positions(renderer)
                box = Text.get_window_extent(label, renderer).padded(1)  # without its line
                free = not any(box.overlaps(other) for other in boxes) and not any(box.contains(*at) for at in taken)
                if free and inside.x0 <= box.x0 and box.x1 <= inside.x1 + 12 and inside.y0 <= box.y0:
                    found = box
                    break
                label.remove()
            if found is not None:
                boxes.append(found)
                break


_PLACES = (
    (1, 0, "left", "center"),
    (-1, 0, "right", "center"),
    (0, 1, "center", "bottom"),
    (0, -1, "center", "top"),
    (0.7, 0.7, "left", "bottom"),
    (0.7, -0.7, "left", "top"),
    (-0.7, 0.7, "right", "bottom"),
    (-0.7, -0.7, "right", "top"),
)


def _losses(figure: Figure, table: pd.DataFrame, caption: str) -> None:
    """What each lower number of steps loses, and the length of the path, against depth; the paper's are crosses."""
    steps = [int(column.removeprefix("loss_se_")) for column in table.columns if column.startswith("loss_se_")]
    measured = table["path_length"].notna().any()
    axes = figure.subplots(1, 2 if measured else 1, squeeze=False, gridspec_kw={"wspace": 0.26})[0]
    shades = sequential_colours(steps)
    families = list(table.groupby(table["model"].str.rpartition(", ")[0]))  # data sets and formulations, if several
    handles = []
    for place, (family, own) in enumerate(families):
        aside = 0.06 * (place - (len(families) - 1) / 2)  # of several at one depth all are seen
        look: Any = {"marker": MARKS[place % len(MARKS)], "ms": 3.5, "lw": 1.1}
        for k in steps:
            axes[0].errorbar(own["depth"] + aside, own[f"loss_{k}"], own[f"loss_se_{k}"], color=shades[k], **look)
        if measured:
            axes[1].errorbar(own["depth"] + aside, own["path_length"], own["path_length_se"], color="0.2", **look)
        if len(families) > 1:
            handles.append(Line2D([], [], color="0.2", marker=look["marker"], ms=3.5, ls="", label=family))
    for k in steps:
        handles.append(Line2D([], [], color=shades[k], lw=1.8, label=f"{k} steps"))
        if f"paper_{k}" in table and table[f"paper_{k}"].notna().any():
            axes[0].plot(table["depth"], table[f"paper_{k}"], "x", ms=5, color=shades[k])
    if any(line.get_marker() == "x" for line in axes[0].lines):
        handles.append(Line2D([], [], color="0.4", marker="x", ls="", ms=5, label="the paper's"))
    axes[0].axhline(0, color="0.7", lw=0.6, zorder=0)
    score = next(column.heading for column in table.attrs["columns"]).rpartition(",")[0]
    axes[0].set(ylabel=f"loss of {score}, %")
    if measured:
        axes[1].set(ylabel="path length")
    for one in axes:
        one.set_xlabel("depth")
        depths = sorted(table["depth"].unique())
        one.set_xticks(depths if len(depths) <= 12 else depths[:: math.ceil(len(depths) / 12)])
    below(figure, handles, min(4, len(handles)), caption)
