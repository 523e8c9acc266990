"""Figures that set what was measured beside what others published, where the axes mean the same."""

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import published
from analysis.approaches import Comparison
from analysis.drawing import CAPTION, STYLE, Drawing, below, interval_bars, save
from analysis.scores import OVERALL

OWN, OTHERS = "#0072B2", "0.45"
ROW = 0.062  # of a panel's height, for one exponent
GENEVAL = "geneval"  # the official score; stand-ins have other names, and other axes
PAPER_DEPTHS = (18, 24, 30, 38)  # of Table 5, at 512 px without DPO


def exponents_figure(comparison: Comparison, out: str | Path | None = None) -> Drawing:
    """The exponent a of N* ~ C^a by each approach, with 80 % and 95 % intervals, above those that others published."""
    own: list[dict[str, Any]] = [
        {
            "name": one.name,
            "a": one.exponents.get("a"),
            "ci80": list(one.intervals["a"].ci80) if one.intervals else None,
            "ci95": list(one.intervals["a"].ci95) if one.intervals else None,
            "why": one.why,
        }
        for one in comparison.approaches
    ]
    others: list[dict[str, Any]] = [
        {
            "name": name,
            "a": row.a,
            "ci80": row.interval and list(row.interval),
            "of": row.of,
            "source": row.source.where,
        }
        for name, row in published.ALLOCATION.items()
    ]
    numbers: dict[str, Any] = {"figure": "exponents", "approaches": own, "published": others}
    numbers["agree"] = comparison.agree
    numbers["caption"] = textwrap.fill(_exponents_caption(comparison), CAPTION)
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        axes = figure.subplots()
        names = []
        for place, row in enumerate([*own, *others]):
            colour = OWN if place < len(own) else OTHERS
            names.append(row["name"] + (f" ({row['of']})" if "of" in row else ""))
            if row["a"] is not None:
                interval_bars(axes, place, row["a"], row["ci80"], row.get("ci95"), colour, horizontal=True)
            axes.text(
                1.02, place, _words(row), transform=axes.get_yaxis_transform(), va="center", fontsize=7.5, color=colour
            )
        axes.axhline(len(own) - 0.5, color="0.8", lw=0.7)
        drawn = [
            x for row in [*own, *others] for x in (row["a"], *(row.get("ci95") or row["ci80"] or ())) if x is not None
        ]
        low, high = min([0.2, *drawn]), max([0.8, *drawn])
        axes.set(xlim=(max(low, -0.5) - 0.03, min(high, 1.5) + 0.03), ylim=(len(names) - 0.4, -0.6))
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("a, of N* ~ C^a")
        handles = [Line2D([], [], color=OWN, marker="o", ms=3.8, lw=2.4, label="these runs: 80 %")]
        handles.append(Line2D([], [], color=OWN, lw=0.8, label="95 %"))
        handles.append(
            Line2D([], [], color=OTHERS, marker="o", ms=3.8, lw=2.4, label="published, with 80 % where printed")
        )
        below(figure, handles, 3, numbers["caption"], rows=ROW * len(names) + 0.1, left=0.325)
        figure.subplots_adjust(right=0.8)
    if out is not None:
        save(figure, numbers, out)
    return Drawing(figure, numbers)


def _words(row: dict[str, Any]) -> str:
    """The number with its widest interval, or that there is none."""
    if row["a"] is None:
        return "no exponent"
    ends = row.get("ci95") or row["ci80"]
    return f"{row['a']:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


def _exponents_caption(comparison: Comparison) -> str:
    none = [f"{one.name}: {one.why}" for one in comparison.approaches if not one.exponents]
    text = f"{comparison.sentence} " + (f"No exponent by {'; '.join(none)}. " if none else "")
    return text + (
        "Language models: C = 6 N D, D tokens, some N without embeddings; Liang et al.: images in one stream, "
        "C = 6 N D. Here, of run directories: C = 3F x images, N all parameters."
    )


def geneval_by_depth(scores: pd.DataFrame, out: str | Path | None = None) -> Drawing | None:
    """The official GenEval score of the last checkpoints by depth, beside Table 5 of the paper; None without any.

    Stand-ins, whatever they resemble, are not drawn: their axes mean something else.
    """
    rows = scores[(scores["name"] == GENEVAL) & (scores["group"] == OVERALL) & scores["last"]]
    rows = rows.sort_values(["depth", "run"])
    if rows.empty:
        return None
    paper = {depth: published.TABLE_5[f"MM-DiT depth {depth}, 512 px"].overall for depth in PAPER_DEPTHS}
    kept = ["run", "depth", "step", "value", "se", "n"]
    numbers: dict[str, Any] = {"figure": "geneval", "runs": rows[kept].to_dict(orient="list"), "paper": paper}
    setting = scores.attrs.get("setting")
    text = "GenEval of the last checkpoint of each run, bars of one standard error, prompts as clusters"
    if setting:
        text += f"; {setting['steps']} {str(setting['sampler']).capitalize()} steps, guidance {setting['guidance']:g}"
    text += ". Grey: Table 5 of the paper, 512 px, without DPO; its data, length and resolution differ from these."
    numbers["caption"] = textwrap.fill(text, CAPTION)
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        axes = figure.subplots()
        axes.plot(list(paper), list(paper.values()), "s-", color=OTHERS, ms=4, lw=0.9)
        axes.errorbar(rows["depth"], rows["value"], rows["se"].astype(float), fmt="o", ms=4, lw=0.9, color=OWN)
        axes.set(xlabel="depth", ylabel="GenEval", ylim=(0, 1))
        handles = [
            Line2D([], [], color=OWN, marker="o", ms=4, lw=0, label="these runs"),
            Line2D([], [], color=OTHERS, marker="s", ms=4, lw=0.9, label="the paper"),
        ]
        below(figure, handles, 2, numbers["caption"])
    if out is not None:
        save(figure, numbers, out)
    return Drawing(figure, numbers)
