"""The results of a vote: a table, a picture, a page."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from analysis import markup
from analysis.drawing import CAPTION, STYLE, Drawing, below, interval_bars, save
from analysis.markup import tag

COLOUR = "#0072B2"
NAMES = {"following": "prompt following", "quality": "quality", "typography": "typography"}
LONGEST = 22  # characters of a system's name in a picture
_ROW = 0.085  # of a panel's height, for one system
_GAP = 0.5  # inches, for the labels under the upper row


def votes_figure(results: Mapping[str, Any], out: str | Path | None = None) -> Drawing:
    """Win rates against the reference (above) and Elo scores (below) of every system, a column for each question.

    ``results`` are those of ``sd3-jax votes --json``. Bars are 95 % intervals over prompts.
    """
    systems, axes = results["systems"], results["axes"]
    numbers = {"figure": "votes", **results, "caption": textwrap.fill(" ".join(sentences(results)), CAPTION)}
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        panels = figure.subplots(2, len(axes), squeeze=False, sharey=True, sharex="row")
        for column, one in enumerate(axes):
            for row in one["models"]:
                place, rate = systems.index(row["model"]), row.get("against_reference")
                if row["model"] == results["reference"]:
                    panels[0, column].plot(0.5, place, "o", ms=3.8, mfc="white", mec=COLOUR)
                elif rate and rate["n"]:
                    interval_bars(panels[0, column], place, rate["value"], None, rate["ci95"], COLOUR, horizontal=True)
                if row.get("elo") is not None:
                    filled = row["model"] != results["reference"]
                    ends = row["elo_ci95"] if filled else None
                    interval_bars(panels[1, column], place, row["elo"], None, ends, COLOUR, True, filled)
            panels[0, column].set_title(NAMES.get(one["axis"], _plain(one["axis"])))
            panels[0, column].set(xlim=(-0.03, 1.03), xticks=(0, 0.5, 1), xlabel="win rate")
            panels[1, column].set(xlabel="Elo")
            for panel, even in zip(panels[:, column], (0.5, 1000), strict=True):
                panel.axvline(even, color="0.75", lw=0.7, ls=":", zorder=0)
                panel.tick_params(axis="y", length=0)
        panels[0, 0].set_yticks(range(len(systems)), [_plain(name) for name in systems])
        panels[0, 0].set_ylim(len(systems) - 0.4, -0.6)
        longest = max(min(len(name), LONGEST) for name in systems)
        rows = 2 * (_ROW * len(systems) + 0.1)
        below(figure, [], 1, textwrap.fill(_plain(numbers["caption"], 10_000), CAPTION), rows, 0.04 + 0.0095 * longest)
        height = figure.get_figheight()
        figure.subplots_adjust(wspace=0.12, top=1 - 0.26 / height)
        inches = (figure.subplotpars.top - figure.subplotpars.bottom) * height
        figure.subplots_adjust(hspace=2 * _GAP / (inches - _GAP))  # in units of a panel
    if out is not None:
        save(figure, numbers, out)
    return Drawing(figure, numbers)


def votes_page(results: Mapping[str, Any]) -> str:
    """One HTML file that needs no other: the picture, and every number of it."""
    parts: list[markup.Html] = []
    for one in results["axes"]:
        header, *rows = cells(one, results["reference"])
        pairs = [[row["a"], row["b"], *_cells(row), row["ties"], row["n"], row["prompts"]] for row in one["pairs"]]
        heads = ["first", "second", "the first wins", "95 %", "ties", "votes", "prompts"]
        parts += [
            tag("h2", NAMES.get(one["axis"], one["axis"]).capitalize()),
            tag("p", one["question"], class_="soft"),
            markup.table(header, rows),
            tag("p", of_raters(one)),
            markup.folded("Pair by pair", markup.table(heads, pairs)),
        ]
    figure = markup.figure(votes_figure(results), "Win rates and Elo scores by question", "Open: the reference.")
    lead = tag("p", " ".join(sentences(results)), class_="lead")
    return markup.document("Results of the vote", tag("h1", "Results of the vote"), lead, figure, *parts)


def sentences(results: Mapping[str, Any]) -> list[str]:
    """What the numbers are."""
    said = [
        f"{_number(results['votes'], 'vote')} by {_number(results['raters'], 'rater')}.",
        f"Win rates against {results['reference']}, a tie half; Elo of all votes, {results['reference']} at 1000; 95 % "
        "intervals of a bootstrap over prompts.",
    ]
    return [*said, *([f"Partial: {results['partial']}."] if results.get("partial") else [])]


def of_raters(one: Mapping[str, Any]) -> str:
    """How raters voted on one question: how many, how alike, whether a side drew them."""
    said = (
        f"{_number(one['votes'], 'vote')} by {_number(one['raters'], 'rater')} on {_number(one['prompts'], 'prompt')}"
    )
    said += f", {one['ties']} ties, {one['skipped']} skipped."
    if one["agreement"] is not None:
        error = f" ± {100 * one['agreement_se']:.0f} %" if one["agreement_se"] == one["agreement_se"] else ""
        said += f" Two raters of one pair say the same in {100 * one['agreement']:.0f} %{error}"
        said += f" of {one['asked_twice']:,} cases."
    if one["left_wins"] is not None:
        said += f" The left picture won {100 * one['left_wins']:.0f} % of decided votes."
    return said


def cells(one: Mapping[str, Any], reference: str) -> list[list[str]]:
    """The table of one question as text: headings, then win rates and Elo of each system, with 95 % intervals."""
    lines = [["system", f"against {reference}", "95 %", "in all", "95 %", "Elo", "95 %", "votes"]]
    for row in one["models"]:
        elo = [f"{row['elo']:.0f}", _span(row["elo_ci95"], 0)] if "elo" in row else ["", ""]
        elo[1] = "" if row["model"] == reference else elo[1]  # at 1000 by definition
        against, overall = _cells(row.get("against_reference")), _cells(row["overall"])
        lines.append([row["model"], *against, *overall, *elo, str(row["overall"]["n"])])
    return lines


def _cells(rate: Mapping[str, Any] | None) -> list[str]:
    if not rate or not rate["n"]:
        return ["", ""]
    return [f"{rate['value']:.3f}", _span(rate["ci95"], 3)]


def _span(ends: Any, digits: int) -> str:
    if not ends or ends[0] is None or ends[0] != ends[0]:
        return ""
    return f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}"


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _plain(text: str, longest: int = LONGEST) -> str:
    """Text for a picture, in which a dollar begins no formula; a long name keeps its ends."""
    half = longest // 2
    text = text if len(text) <= longest else text[: half - 1] + "…" + text[-half:]
    return text.replace("$", r"\$")
