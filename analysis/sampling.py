"""What few sampler steps cost: scores against their number (the paper's Figure 3), and by depth (its Table 6)."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import paper_tables, published
from analysis.association import prompt_covariance
from analysis.drawing import CAPTION, STYLE, Drawing, below, plain_log_ticks, save
from analysis.paper_tables import REPRESENTATIVE, Column
from analysis.scores import OVERALL, Prompts, of_tasks, prompts_of
from analysis.study import PATH_LENGTH, SAMPLER, group_of, one_model, points, usual
from sd3_jax.errors import UserError

# Okabe and Ito's colours: what is plain, reweighted, and the others.
COLOURS = {"rf": "#000000", "rf, reweighted": "#0072B2", "eps": "#D55E00", "v": "#009E73", "edm": "#CC79A7"}
MARKS = "osD^vP*X<>"
MANY = 12  # curves from which only the notable ones are named
NOTABLE = (*REPRESENTATIVE, "rf/lognorm(0.00, 1.00)")


def table6(study: pd.DataFrame) -> pd.DataFrame:
    """What few sampler steps cost at every depth: the share of the alignment score lost against the most steps.

    Columns: model (the depth; with the formulation and the data set, where there are several), depth, score and
    score_se at the most steps; for each lower number of steps k: loss_k = 100 (1 - score_k / score_most) and
    loss_se_k, in per cent; path_length and path_length_se, the mean over pictures of sum |dz| along the path of most
    steps; paper_5, paper_10, paper_20 and paper_path_length. Training seeds are averaged. Errors are of prompts,
    paired: the same prompts in every column; nan where the scores do not say several prompts of each task.

    Raises UserError for a single number of sampler steps.
    """
    kept, notes = usual(study, "table6")
    own = kept[kept["name"] == study.attrs["up"]]
    counts = sorted(int(steps) for steps in own["steps"].unique())
    if len(counts) < 2:
        raise UserError(
            f"table 6 compares numbers of sampler steps, and there are scores after {counts[0]} alone; "
            "sd3-jax evaluate --sampler-steps N makes others"
        )
    most = counts[-1]
    several = [key for key in ("data_set", "formulation") if own[key].nunique() > 1]
    keys = [*several, "depth"]
    lengths = kept[(kept["name"] == PATH_LENGTH) & (kept["steps"] == most) & (kept["group"] == OVERALL)]
    rows = []
    for key, part in own.groupby(keys):
        depth = int(part["depth"].iloc[0])
        values, covariance = _paired(part, counts)
        row: dict[str, Any] = {"model": ", ".join([*map(str, key[:-1]), f"depth {depth}"]), "depth": depth}
        row |= {"score": values[-1], "score_se": math.sqrt(covariance[-1, -1])}
        for k, steps in enumerate(counts[:-1]):
            row[f"loss_{steps}"], row[f"loss_se_{steps}"] = relative_loss(values, covariance, k)
        measured = lengths[(lengths[keys] == pd.Series(dict(zip(keys, key, strict=True)))).all(axis=1)]
        row |= {"path_length": measured["value"].mean(), "path_length_se": measured["se"].mean()}
        paper = published.TABLE_6.get(depth)
        for steps in (5, 10, 20):
            row[f"paper_{steps}"] = getattr(paper, f"steps_{steps}") if paper else math.nan
        rows.append(row | {"paper_path_length": paper.path_length if paper else math.nan})
    frame = pd.DataFrame(rows)
    notes = [*study.attrs["notes"], *notes]
    if frame["path_length"].isna().all():
        notes.append("path length: not measured.")
    if frame["score_se"].isna().any():
        notes.append("scores that do not say several prompts of each task have no error here.")
    columns = [
        Column(f"{study.attrs['up']}, {most} steps", "score", 3, "score_se"),
        *(Column(f"{steps}/{most} %", f"loss_{steps}", 2, f"loss_se_{steps}") for steps in counts[:-1]),
        Column("path length", "path_length", 2, "path_length_se"),
        *(Column(f"paper {steps}/50 %", f"paper_{steps}") for steps in (5, 10, 20)),
        Column("paper, path length", "paper_path_length"),
    ]
    sampler, guidance = (own[key].iloc[0] for key in ("sampler", "guidance"))
    title = (
        f"Loss of {study.attrs['up']} in per cent against {most} {str(sampler).capitalize()} steps, guidance "
        f"{guidance:g}, and length of the path, by depth"
    )
    frame = paper_tables.finish(frame, "6", title, columns, [], notes)
    frame.attrs["sentences"] = _by_depth(frame, counts)
    return frame


def _by_depth(frame: pd.DataFrame, counts: Sequence[int]) -> list[str]:
    """Whether the losses and the length fall with depth, as the paper's do."""
    told = {f"loss at {steps} of {counts[-1]} steps": f"loss_{steps}" for steps in counts[:-1]}
    sentences = []
    for what, column in (told | {"path length": "path_length"}).items():
        n, rho, p = paper_tables.spearman(frame["depth"], frame[column])
        if not math.isfinite(rho) or frame["depth"].nunique() < n:
            continue
        trend = "falls with depth, as in the paper" if rho < 0 else "rises with depth, against the paper"
        trend = trend if p < paper_tables.SIGNIFICANT else "no trend with depth is established"
        sentences.append(f"{what}: {trend} (Spearman's rho {rho:.2f} over {n} depths, p {p:.2g}).")
    return sentences


def _paired(part: pd.DataFrame, counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The overall score at each number of steps, and their covariance over prompts; seeds of training are averaged."""
    overall = part[part["group"] == OVERALL].groupby("steps")["value"].mean()
    values = overall.reindex(list(counts)).to_numpy(float)
    unknown = np.full((len(counts), len(counts)), math.nan)
    tasks = part[of_tasks(part)]
    found: dict[int, list[Prompts]] = {steps: [] for steps in counts}
    for _, own in tasks.groupby(["run", "steps"]):
        if not own["by_prompt"].map(bool).all():
            return values, unknown
        found[int(own["steps"].iloc[0])].append(prompts_of(own))
    every = [one for own in found.values() for one in own]
    runs = part["run"].nunique()
    whole = all(len(own) == runs for own in found.values()) and len({one.by_prompt.shape for one in every}) == 1
    if not whole or not all(np.array_equal(one.weight, every[0].weight) for one in every):
        return values, unknown
    if np.bincount(every[0].group).min() < 2:  # one prompt has no spread
        return values, unknown
    by_prompt = np.array([np.mean([one.by_prompt for one in own], axis=0) for own in found.values()])
    return values, prompt_covariance(by_prompt, every[0].weight, every[0].group)


def relative_loss(values: np.ndarray, covariance: np.ndarray, k: int) -> tuple[float, float]:
    """100 (1 - values_k / values_last) and its standard error, by the delta method from their covariance.

    >>> loss, error = relative_loss(np.array([0.4, 0.5]), np.diag([0.01, 0.0]) ** 2, 0)
    >>> round(loss, 6), round(error, 6)
    (20.0, 2.0)
    """
    score, base = values[k], values[-1]
    if not base > 0:
        return math.nan, math.nan
    slope = np.zeros(len(values))
    slope[k], slope[-1] = -1 / base, score / base**2
    return float(100 * (1 - score / base)), 100 * math.sqrt(np.maximum(slope @ covariance @ slope, 0.0))


# --- figure 3 -------------------------------------------------------------------------------------------------------


def figure3(study: pd.DataFrame, out: str | Path | None = None) -> Drawing:
    """The distance and the alignment score against the number of sampler steps, a row of panels for each data set.

    Colours are groups of formulations; of many, those that Table 2 shows and the best of each panel at its fewest and
    its most steps are named, and the rest are grey. Bars are one standard error of pictures; seeds are averaged.
    ``out`` is a stem to which :func:`analysis.save` writes .png, .pdf and .json. After the paper's Figure 3.

    Raises UserError for several models, or for a single number of sampler steps.
    """
    notes = [*study.attrs["notes"], *one_model(study)]
    table, unlike = usual(points(study))
    notes += unlike
    if table["steps"].nunique() < 2:
        raise UserError(
            f"figure 3 is over numbers of sampler steps, and there are scores after {table['steps'].iloc[0]} alone; "
            "sd3-jax evaluate --sampler-steps N makes others"
        )
    keys = ["data_set", "formulation", "steps"]
    mean = table.groupby(keys, as_index=False)[["up", "up_se", "down", "down_se"]].mean()
    named = _notable(mean)
    looks = _looks(named)
    labels = sorted(mean["data_set"].unique())
    numbers: dict[str, Any] = {
        "figure": "3",
        "up": study.attrs["up"],
        "down": study.attrs["down"],
        "setting": {key: table[key].iloc[0] for key in SAMPLER if key != "steps"},
        "named": named,
        "curves": [
            {"data_set": data_set, "formulation": name, "group": group_of(str(name))}
            | {key: own[key].tolist() for key in ("steps", "down", "down_se", "up", "up_se")}
            for (data_set, name), own in mean.groupby(["data_set", "formulation"])
        ],
        "notes": list(dict.fromkeys(notes)),
    }
    numbers["caption"] = _caption(numbers, mean["formulation"].nunique())
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        grid = figure.subplots(len(labels), 2, squeeze=False, gridspec_kw={"wspace": 0.22, "hspace": 0.16})
        for row, label in zip(grid, labels, strict=True):
            own = mean[mean["data_set"] == label]
            for axes, side, arrow in zip(row, ("down", "up"), "↓↑", strict=True):
                _curves(axes, own, side, looks)
                axes.set_ylabel(f"{study.attrs[side]} {arrow}" + (f", {label}" if len(labels) > 1 else ""))
        for axes in grid[-1]:
            axes.set_xlabel("sampler steps")
        handles = [
            Line2D([], [], color=colour, marker=mark, ms=3.5, lw=1.2, ls=style, label=name)
            for name, (colour, mark, style) in looks.items()
        ]
        if len(named) < mean["formulation"].nunique():
            handles.append(Line2D([], [], color="0.8", lw=0.8, label="others"))
        below(figure, handles, min(3, len(handles)), numbers["caption"], rows=len(labels))
    if out is not None:
        save(figure, numbers, out)
    return Drawing(figure, numbers)


def _notable(mean: pd.DataFrame) -> list[str]:
    """The formulations that are named, group by group: all of a few; of many the representative and the best."""
    every = sorted(mean["formulation"].unique())
    if len(every) > MANY:
        ends = [mean["steps"].min(), mean["steps"].max()]
        chosen = {name for name in NOTABLE if name in every}
        for _, own in mean[mean["steps"].isin(ends)].groupby(["data_set", "steps"]):
            chosen |= {own["formulation"].iloc[own["up"].argmax()], own["formulation"].iloc[own["down"].argmin()]}
        every = sorted(chosen)
    groups = list(COLOURS)
    return sorted(every, key=lambda name: (groups.index(group_of(name)), name))


def _looks(named: Sequence[str]) -> dict[str, tuple[Any, str, Any]]:
    """A shade of its group's colour for each formulation, and a mark and a line that no other of its group has."""
    looks: dict[str, tuple[Any, str, Any]] = {}
    lines = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
    for group, colour in COLOURS.items():
        own = [name for name in named if group_of(name) == group]
        for place, name in enumerate(own):
            lighter = 0.6 * place / max(len(own) - 1, 4)
            shade = tuple(1 - (1 - part) * (1 - lighter) for part in to_rgb(colour))
            looks[name] = (shade, MARKS[place % len(MARKS)], lines[place % len(lines)])
    return looks


def _curves(axes: Axes, own: pd.DataFrame, side: str, looks: Mapping[str, tuple[Any, str, Any]]) -> None:
    for name, curve in own.groupby("formulation"):
        if name not in looks:
            axes.plot(curve["steps"], curve[side], color="0.8", lw=0.7, zorder=1)
            continue
        colour, mark, line = looks[str(name)]
        axes.plot(curve["steps"], curve[side], color=colour, marker=mark, ms=3.4, mew=0, lw=1.1, ls=line, zorder=3)
        known = curve[np.isfinite(curve[f"{side}_se"])]
        axes.errorbar(
            known["steps"], known[side], known[f"{side}_se"], fmt="none", ecolor=colour, elinewidth=0.7, alpha=0.45
        )
    axes.set_xscale("log")
    steps = sorted(own["steps"].unique())
    plain_log_ticks(axes, "x", steps)
    axes.set_xticks(steps)
    if side == "down" and (own[side] > 0).all():
        axes.set_yscale("log")
        shown = own[own["formulation"].isin(list(looks))][side]
        low, high = own[side].min(), own[side].max()
        room = max((high / low) ** 0.06, 1.01)
        axes.set_ylim(low / room, min(high * room, shown.max() * 2))
        plain_log_ticks(axes, "y", axes.get_ylim())


def _caption(numbers: Mapping[str, Any], many: int) -> str:
    setting, named = numbers["setting"], numbers["named"]
    sampler, weights = str(setting["sampler"]).capitalize(), str(setting["weights"]).upper()
    weights += " weights" if setting["grid"] == "uniform" else f" weights, {setting['grid']} grid"
    text = f"{sampler}'s method, guidance {setting['guidance']:g}; {weights}. Bars: one standard error."
    if len(named) < many:
        text += f" Named are {len(named)} of {many}: those that Table 2 shows, and the best of a panel at an end."
    lines = [text, *(f"Note: {note}" for note in numbers["notes"][:6])]
    return "\n".join(textwrap.fill(line, CAPTION) for line in lines)
