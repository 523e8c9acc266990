"""Systems beside each other and beside the paper's Table 5, and what leaving a text encoder out costs each.

A system is a directory with an ``evals.jsonl``: a run, or a folder of anyone's pictures. Official scores and those of
exact judges of scenes are never in one table.
"""

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from analysis import published
from analysis.drawing import CAPTION, STYLE, Drawing, below, interval_bars
from sd3_jax import records
from sd3_jax.errors import UserError

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")  # in Table 5's order
HEADINGS = ("overall", "single", "two", "counting", "colors", "position", "color attr.")
OVERALL = "overall"
PUBLISHED = "published"  # the judge of what the paper prints
SETTING = ("step", "sampler", "steps", "guidance", "shift", "weights", "seed", "grid", "model", "without")
COLOUR, GREY = "#0072B2", "0.45"
_ROW = 0.085  # of a panel's height, for one system


class Entry(NamedTuple):
    """One system in one setting, and its scores by name and group."""

    system: str
    label: str  # with what tells its settings apart
    setting: Mapping[str, Any]
    scores: Mapping[tuple[str, str], Mapping[str, Any]]


class Line(NamedTuple):
    """One line of a table of GenEval's tasks: values with their errors (nan: none), overall first."""

    label: str
    judge: str
    values: Mapping[str, tuple[float, float]]
    partial: str | None = None


def load(systems: Mapping[str, Path]) -> list[Entry]:
    """The scores of systems, a system once for each setting that its pictures were drawn in.

    Of a name that some have over other prompts, or against another system, each such score is called after that too.
    Raises UserError for a system without scores.
    """
    read = {name: records.read_scores(path / "evals.jsonl")[0] for name, path in systems.items()}
    for name, rows in read.items():
        if not rows:
            raise UserError(f"{systems[name]}: has no scores (evals.jsonl); sd3-jax evaluate writes them")
    called = _names([row for rows in read.values() for row in rows])
    found = []
    for name, rows in read.items():
        settings = {_key(row): {key: row[key] for key in SETTING if key in row} for row in rows}
        for key, setting in settings.items():
            scores = {(called(row), row["group"]): row for row in rows if _key(row) == key}
            found.append(Entry(name, name + _differing(setting, list(settings.values())), setting, scores))
    return found


def _names(rows: Sequence[Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], str]:
    """What scores are called, so that those of one name are on one scale: GenEval's are, of however many pictures."""
    kinds = {"prompt_list": "on", "reference": "against", "compared": "among", "digest": "by"}

    def said(row: Mapping[str, Any], key: str) -> str:
        return ", ".join(row[key]) if key == "compared" else str(row[key])

    values = {
        (row["name"], row["group"], key, said(row, key)) for row in rows for key in kinds if row.get(key) is not None
    }
    many = {one for one, number in Counter(value[:3] for value in values).items() if number > 1}

    def called(row: Mapping[str, Any]) -> str:
        if row["name"].startswith("scene-"):
            return row["name"]
        told = ["digest"] if is_official(row["name"]) else list(kinds)
        own = [key for key in told if (row["name"], row["group"], key) in many and row.get(key) is not None]
        return " ".join([row["name"], *(f"{kinds[key]} {said(row, key)}" for key in own)])

    return called


def _key(row: Mapping[str, Any]) -> str:
    return repr([row.get(key) for key in SETTING])


def _differing(setting: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """What tells a setting from the others of its system, in words."""
    words = {"step": "step {:,}", "steps": "{} steps", "guidance": "guidance {:g}", "shift": "shift {:g}"}
    said = []
    for key in SETTING:
        if len({repr(one.get(key)) for one in others}) > 1 and setting.get(key) not in (None, []):
            value = setting[key]
            said.append(
                "without " + ", ".join(value) if key == "without" else words.get(key, f"{key} {{}}").format(value)
            )
    return ", " + ", ".join(said) if said else ""


def is_official(name: str) -> bool:
    """Whether a score is GenEval's, by its own detector or by one of the same kind."""
    return name == "geneval" or name.startswith("geneval-")


def geneval(entries: Sequence[Entry]) -> list[Line]:
    """Table 5 and the systems that have GenEval's score, the best first; whose detector it was is each line's judge."""
    lines = [
        Line(name, PUBLISHED, {key: (value, math.nan) for key, value in zip((OVERALL, *TASKS), row, strict=True)})
        for name, row in published.TABLE_5.items()
    ]
    lines += [line for entry in entries for line in _lines(entry, is_official)]
    return sorted(lines, key=lambda line: -line.values[OVERALL][0])


def of_scenes(entries: Sequence[Entry]) -> list[Line]:
    """The systems that draw scenes, by the exact judge, the best first."""
    lines = [line for entry in entries for line in _lines(entry, lambda name: name == "scene-geneval")]
    return sorted(lines, key=lambda line: -line.values[OVERALL][0])


def _lines(entry: Entry, wanted: Any) -> list[Line]:
    found = []
    for name in dict.fromkeys(name for name, group in entry.scores if wanted(name) and group == OVERALL):
        own = {group: row for (other, group), row in entry.scores.items() if other == name}
        values = {group: (row["value"], _error(row)) for group, row in own.items() if group in (OVERALL, *TASKS)}
        found.append(
            Line(entry.label, name, values, next((r["partial"] for r in own.values() if "partial" in r), None))
        )
    return found


def _error(row: Mapping[str, Any]) -> float:
    return math.nan if row.get("se") is None else float(row["se"])


def cells(lines: Sequence[Line]) -> list[list[str]]:
    """A table of text: a heading, then a line each, partial ones with a star."""
    rows = [["system", "scored by", *HEADINGS]]
    for line in lines:
        values = [_shown(*line.values[key]) if key in line.values else "" for key in (OVERALL, *TASKS)]
        rows.append([line.label + "*" * bool(line.partial), line.judge, *values])
    return rows


def others(entries: Sequence[Entry]) -> list[list[str]]:
    """Every other score of any system as text, a system a line: those over all prompts, and CompBench's categories."""
    each = other_scores(entries)
    names = dict.fromkeys((one.name, one.group) for one in each)
    rows = [["system", *(name if group == OVERALL else f"{name} {group}" for name, group in names)]]
    for label in dict.fromkeys(one.label for one in each):
        own = {(one.name, one.group): one for one in each if one.label == label}
        rows.append(
            [label, *(_shown(*own[key][3:5]) + "*" * bool(own[key].partial) if key in own else "" for key in names)]
        )
    return rows if each else []


class Other(NamedTuple):
    """Any other score of a system."""

    label: str
    name: str
    group: str
    value: float
    se: float  # nan: none
    partial: str | None


def other_scores(entries: Sequence[Entry]) -> list[Other]:
    """What :func:`others` is the table of."""
    return [
        Other(entry.label, name, group, row["value"], _error(row), row.get("partial"))
        for entry in entries
        for (name, group), row in entry.scores.items()
        if not is_official(name) and name != "scene-geneval" and "/" not in name
        if group == OVERALL or name.startswith("compbench")
    ]


def _shown(value: float, error: float) -> str:
    """Of a size that table columns hold.

    >>> _shown(0.5, 0.02), _shown(0.5, math.nan), _shown(1034.2, 12.3)
    ('0.500±0.020', '0.500', '1034±12')
    """
    digits = 0 if abs(value) >= 100 else 3
    return f"{value:.{digits}f}" + ("" if math.isnan(error) else f"±{error:.{digits}f}")


# --- what a text encoder is worth -----------------------------------------------------------------------------------


class Cost(NamedTuple):
    """A score without an encoder and with it, and in how many prompts the one without is better (a tie counts half)."""

    label: str
    score: str
    group: str
    without: float
    given: float
    difference: float
    se: float  # of the difference, over prompts; nan where they are not told apart
    better: float  # share of prompts; nan likewise
    prompts: int


LOW_IS_GOOD = ("fd-", "kid-", "cmmd", "scene-frechet", "picture-frechet")


def costs(entries: Sequence[Entry]) -> list[Cost]:
    """Each score of each system without a text encoder, beside that of the same system and setting with it."""
    found = []
    for entry in entries:
        if not entry.setting.get("without"):
            continue
        whole = next((one for one in entries if one.system == entry.system and _is_whole(one, entry)), None)
        for key, row in entry.scores.items() if whole else ():
            other = whole.scores.get(key) if whole else None
            if other is not None and _comparable(row, other):
                found.append(_cost(entry.label, key, row, other))
    return found


def _is_whole(one: Entry, entry: Entry) -> bool:
    """Whether ``one`` is as ``entry``, but with all text encoders."""
    same = all(one.setting.get(key) == entry.setting.get(key) for key in SETTING if key != "without")
    return same and not one.setting.get("without")


def _comparable(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    keys = ("prompt_list", "reference", "digest", "judge")
    return all(row.get(key) == other.get(key) for key in keys) and not row["name"].startswith("path-length")


def _cost(label: str, key: tuple[str, str], row: Mapping[str, Any], other: Mapping[str, Any]) -> Cost:
    one, two = (np.asarray(each.get("by_prompt") or [], float) for each in (row, other))
    whole = not (row.get("partial") or other.get("partial"))  # or the n-th prompt of one may not be that of the other
    paired = whole and len(one) == len(two) > 1 and row.get("images_by_prompt") == other.get("images_by_prompt")
    if paired:
        better = float(np.mean((one > two) + 0.5 * (one == two)))
        if key[0].startswith(LOW_IS_GOOD):
            better = 1 - better
        weights = np.asarray(row["images_by_prompt"], float)
        apart = (one - two - np.average(one - two, weights=weights)) * weights
        error = math.sqrt(len(one) / (len(one) - 1) * float(apart @ apart)) / weights.sum()
    else:
        better, error = math.nan, math.hypot(_error(row), _error(other))
    return Cost(
        label,
        *key,
        row["value"],
        other["value"],
        row["value"] - other["value"],
        error,
        better,
        len(one) if paired else 0,
    )


def cost_cells(found: Sequence[Cost]) -> list[list[str]]:
    """What leaving out costs as text, and the paper's win rates of people below."""
    rows = [["system", "score", "of", "without", "with", "difference", "better on"]]
    for one in found:
        better = "" if math.isnan(one.better) else f"{one.better:.0%}"
        rows.append(
            [one.label, one.score, one.group, _shown(one.without, math.nan), _shown(one.given, math.nan)]
            + [_shown(one.difference, one.se), better]
        )
    return rows


def paper_sentence() -> str:
    """What the paper says of people."""
    rates = ", ".join(f"{100 * value:.0f} % in {name}" for name, value in published.WITHOUT_T5.items())
    return f"people preferred the paper's model without T5 to that with it: {rates} (win rates; published)"


# --- the picture ----------------------------------------------------------------------------------------------------


def picture_of(lines: Sequence[Line]) -> Drawing:
    """Scores overall and by task, best at the top, with 95 % intervals over prompts; what is published is hollow."""
    scenes = all(line.judge == "scene-geneval" for line in lines)
    judges = ", ".join(dict.fromkeys(line.judge for line in lines if line.judge != PUBLISHED))
    caption = "Share of right pictures, overall (the mean of the six tasks) and by task"
    caption += f", by {judges}" if judges else ""
    caption += "; bars: 95 %, prompts as clusters."
    caption += "" if scenes else " Hollow: published (Table 5 of the paper), without intervals."
    caption += " * partial: pictures are missing." if any(line.partial for line in lines) else ""
    caption = textwrap.fill(caption, CAPTION)
    judged = Counter(line.label for line in lines)  # one system by several judges is as many lines
    labels = [line.label + f" ({line.judge})" * (judged[line.label] > 1) + "*" * bool(line.partial) for line in lines]
    numbers = {
        "figure": "leaderboard",
        "lines": [
            {"label": line.label, "judge": line.judge, "partial": line.partial}
            | {key: {"value": value, "se": error} for key, (value, error) in line.values.items()}
            for line in lines
        ],
        "caption": caption,
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        panels = figure.subplots(1, 1 + len(TASKS), squeeze=False, sharey=True)[0]
        for panel, key, heading in zip(panels, (OVERALL, *TASKS), HEADINGS, strict=True):
            for place, line in enumerate(lines):
                if key in line.values:
                    value, error = line.values[key]
                    ours = line.judge != PUBLISHED
                    ends = (value - 1.96 * error, value + 1.96 * error) if math.isfinite(error) else None
                    interval_bars(panel, place, value, None, ends, COLOUR if ours else GREY, True, ours)
            panel.set_title(heading)
            panel.set(xlim=(-0.06, 1.06))
            panel.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
            panel.tick_params(axis="y", length=0)
            panel.grid(axis="y", color="0.92", lw=0.6)
            panel.set_axisbelow(True)
        panels[0].set_yticks(range(len(lines)), labels)
        panels[0].set_ylim(len(lines) - 0.4, -0.6)
        longest = max(map(len, labels))
        below(figure, [], 1, caption, _ROW * len(lines) + 0.15, min(0.45, 0.04 + 0.0095 * longest))
        figure.subplots_adjust(wspace=0.14, top=1 - 0.26 / figure.get_figheight())
    return Drawing(figure, numbers)
