"""The paper's Tables 1 and 2 from runs, beside what it prints; its Table 6 is :mod:`analysis.sampling`'s.

A table is a DataFrame of numbers. Its ``attrs`` have ``table`` (its number), ``title``, ``columns`` (what is shown of
it, and how), ``sentences`` (how it agrees with the paper's) and ``notes``.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis import published
from analysis.association import MIN_POINTS, correlations, permutation_test
from analysis.ranking import LEVEL, rank
from analysis.study import group_of, one_model, points, settings_of, usual
from sd3_jax import records
from sd3_jax.protocols import PROTOCOLS

STEPS = 25  # of Table 2
SIGNIFICANT = 0.05
# What the paper shows in Table 2 for its families, whatever their scores; rf is the plain one.
REPRESENTATIVE = ("rf", "edm(-1.20, 1.20)", "eps/linear", "v/cos", "v/linear")


class Column(NamedTuple):
    """What a column shows of a table's numbers."""

    heading: str
    value: str  # its column of numbers, or with ``to`` the lower end
    digits: int = 2
    error: str | None = None  # its column of standard errors
    to: str | None = None  # its column of upper ends


def table1(study: pd.DataFrame, resamples: int = 1000) -> pd.DataFrame:
    """Global rank of every formulation, best first: over all settings, and at the fewest and the most sampler steps.

    The settings are the study's own (``table1`` of :mod:`sd3_jax.protocols`), where any was evaluated; notes say which
    are lacking, and what else is left out.

    Columns: formulation, group; all, low and high (80 % interval, of pictures' errors and seeds), fewest and most
    (at one guidance, the paper's 5 where there are several step counts), best and worst rank in a setting, seeds,
    seed_low and seed_high (mean rank with one training seed alone); paper, paper_fewest, paper_most (at 5 and 50).

    Raises UserError for fewer than two formulations, several models, or if none has all settings.
    """
    notes = [*study.attrs["notes"], *one_model(study)]
    scored, others = settings_of(points(study), "table1")
    ranking = rank(scored, resamples)
    settings = ranking.settings
    notes += [*others, *_lacking(settings)]
    kept, unlike = usual(settings)
    counts = sorted(kept["steps"].unique())
    ends = {"fewest": counts[0], "most": counts[-1]}
    guidance, sampler = (kept[key].iloc[0] for key in ("guidance", "sampler"))
    low, high = ranking.interval()
    alone = [list(ranking.by_seed.get(name, {}).values()) for name in ranking.formulations]
    frame = pd.DataFrame(
        {
            "formulation": ranking.formulations,
            "group": [group_of(name) for name in ranking.formulations],
            "all": ranking.mean(),
            "low": low,
            "high": high,
        }
    )
    alike = ["sampler", "guidance"]
    same = settings[alike].eq(kept[alike].iloc[0]).all(axis=1)
    for column, steps in ends.items():
        frame[column] = ranking.mean((same & settings["steps"].eq(steps)).to_numpy())
    frame["best"], frame["worst"] = ranking.ranks.min(axis=0), ranking.ranks.max(axis=0)
    frame["seeds"] = [scored.loc[scored["formulation"] == name, "seed"].nunique() for name in ranking.formulations]
    frame["seed_low"], frame["seed_high"] = ([pick(own, default=math.nan) for own in alone] for pick in (min, max))
    for column, key in (("paper", "all"), ("paper_fewest", "steps_5"), ("paper_most", "steps_50")):
        frame[column] = _paper(published.TABLE_1, frame["formulation"], key)
    frame = frame.sort_values(["all", "formulation"], ignore_index=True)
    columns = [
        Column("rank", "all"),
        Column(f"{100 * LEVEL:.0f} % interval", "low", to="high"),
        *(Column(f"{steps} steps", column) for column, steps in ends.items() if len(counts) > 1),
        Column("over settings", "best", 0, to="worst"),
        *([Column("seeds alone", "seed_low", to="seed_high")] if any(map(len, alone)) else []),
        Column("paper", "paper"),
        Column("paper, 5 steps", "paper_fewest"),
        Column("paper, 50 steps", "paper_most"),
    ]
    pairs = [("rank", "all", "paper")]
    if len(counts) > 1:
        pairs += [(f"rank at {steps} steps", column, f"paper_{column}") for column, steps in ends.items()]
        notes += unlike
    else:
        notes.append(f"all settings are of {counts[0]} steps: there are no columns of few and of many.")
    many = settings["data_set"].nunique()
    title = (
        f"Global ranking of {len(frame)} formulations on {study.attrs['up']} (up) and {study.attrs['down']} (down), "
        f"mean over {len(settings)} settings of {many} data set{'s' if many > 1 else ''}; 1 is best"
    )
    if len(counts) > 1:
        title += f"; step columns at guidance {guidance:g}, {str(sampler).capitalize()}"
    return finish(frame, "1", title, columns, pairs, [*notes, *ranking.notes])


def _lacking(settings: pd.DataFrame) -> list[str]:
    """Notes on data sets that do not have all of Table 1's settings."""
    number = len(PROTOCOLS["table1"].samplers) * len(PROTOCOLS["table1"].weights)
    counts = settings.groupby("data_set").size()
    return [
        f"of Table 1's {number} settings {label} has {count}: ranks are over those alone."
        for label, count in counts.items()
        if count < number
    ]


def table2(study: pd.DataFrame) -> pd.DataFrame:
    """Both scores of every formulation on every data set after 25 sampler steps, averaged weights.

    Columns: formulation, group, ``shown`` (whether the printed table has it: the representative of each family, and
    the two best of every column), then for data set k up_k, up_se_k, down_k, down_se_k; paper_imagenet_clip, ...,
    and the means over data sets (up, down, paper_clip, paper_fid) by which the agreement is told. Training seeds are
    averaged. Where 25 steps were not evaluated, the nearest number is taken, and a note says so.

    Raises UserError for several models.
    """
    notes = [*study.attrs["notes"], *one_model(study)]
    scored, unlike = usual(points(study))
    counts = scored["steps"].unique()
    steps = min(counts, key=lambda one: abs(math.log(one / STEPS)))
    if steps != STEPS:
        notes.append(f"there are no scores after {STEPS} sampler steps, the paper's: these are after {steps}.")
    scored = scored[scored["steps"] == steps]
    sides = ["up", "up_se", "down", "down_se"]
    mean = scored.groupby(["formulation", "data_set"])[sides].mean().unstack()
    labels = sorted(scored["data_set"].unique())
    frame = pd.DataFrame({"formulation": mean.index, "group": [group_of(name) for name in mean.index]})
    columns = []
    best: set[str] = set()
    for k, label in enumerate(labels):
        for side in ("up", "down"):
            for key in (side, f"{side}_se"):
                frame[f"{key}_{k}"] = mean[key][label].to_numpy()
            arrow = "↑" if side == "up" else "↓"
            heading = f"{study.attrs[side]} {arrow}" + (f", {label}" if len(labels) > 1 else "")
            columns.append(Column(heading, f"{side}_{k}", 3, f"{side}_se_{k}"))
            ordered = frame.sort_values(f"{side}_{k}", ascending=side == "down").dropna(subset=f"{side}_{k}")
            best |= set(ordered["formulation"][:2])
    for key, heading in zip(published.Quality._fields, _PAPERS_COLUMNS, strict=True):
        frame[f"paper_{key}"] = _paper(published.TABLE_2, frame["formulation"], key)
        columns.append(Column(heading, f"paper_{key}", 3 if key.endswith("clip") else 1))
    frame["shown"] = frame["formulation"].isin(best | set(REPRESENTATIVE))
    for side, metric in (("up", "clip"), ("down", "fid")):
        frame[side] = frame[[f"{side}_{k}" for k in range(len(labels))]].mean(axis=1, skipna=False)
        frame[f"paper_{metric}"] = frame[[f"paper_imagenet_{metric}", f"paper_cc12m_{metric}"]].mean(axis=1)
    first = frame["formulation"].map({name: k for k, name in enumerate(REPRESENTATIVE)}).fillna(len(REPRESENTATIVE))
    order = frame.assign(first=first).sort_values(["first", "formulation"]).index
    frame = frame.loc[order].reset_index(drop=True)
    pairs = [(study.attrs["up"], "up", "paper_clip"), (study.attrs["down"], "down", "paper_fid")]
    sampler, guidance = (scored[key].iloc[0] for key in ("sampler", "guidance"))
    title = (
        f"Formulations after {steps} {str(sampler).capitalize()} steps, guidance {guidance:g}: the representative ones "
        "and the two best of every column"
    )
    return finish(frame, "2", title, columns, pairs, [*notes, *unlike])


_PAPERS_COLUMNS = ("paper, ImageNet CLIP ↑", "paper, ImageNet FID ↓", "paper, CC12M CLIP ↑", "paper, CC12M FID ↓")


def _paper(table: Any, names: Iterable[Any], key: str) -> list[float]:
    return [getattr(table[name], key) if name in table else math.nan for name in names]


def finish(
    frame: pd.DataFrame,
    number: str,
    title: str,
    columns: Sequence[Column],
    pairs: Sequence[tuple[str, str, str]],
    notes: Sequence[str],
) -> pd.DataFrame:
    """The table with what is told about it."""
    known = [column for column in columns if frame[column.value].notna().any()]
    frame.attrs = {
        "table": number,
        "title": title,
        "columns": known,
        "sentences": [agreement(what, frame[ours], frame[theirs]) for what, ours, theirs in pairs],
        "notes": list(dict.fromkeys(notes)),
    }
    return frame


def agreement(what: str, ours: Any, theirs: Any) -> str:
    """Whether two columns put the rows that have both in one order, in a sentence.

    >>> agreement("rank", [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.5, 3.0, 7.0, 9.0])
    "rank: in the paper's order (Spearman's rho 1.00 over 5 in common, p 0.017)."
    """
    n, rho, p = spearman(ours, theirs)
    if n < MIN_POINTS:
        return f"{what}: {n or 'none'} in common with the paper, of which no order can be told."
    if not math.isfinite(rho):
        return f"{what}: does not vary over the {n} in common with the paper: no order can be told."
    told = "in the paper's order" if rho > 0 else "against the paper's order"
    told = told if p < SIGNIFICANT else "no agreement with the paper is established"
    return f"{what}: {told} (Spearman's rho {rho:.2f} over {n} in common, p {p:.2g})."


def spearman(x: Any, y: Any) -> tuple[int, float, float]:
    """Pairs that have both, Spearman's rho of them and its two-sided permutation p; nan for fewer than three."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    both = np.isfinite(x) & np.isfinite(y)
    n, x, y = int(both.sum()), x[both], y[both]
    if n < MIN_POINTS:
        return n, math.nan, math.nan
    rho = float(correlations(x, y[None], np.ones((1, n)))[1][0])
    return n, rho, permutation_test(x, y).spearman if math.isfinite(rho) else math.nan


# --- what is shown --------------------------------------------------------------------------------------------------


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that are printed."""
    return frame[frame["shown"]] if "shown" in frame else frame


def cells(frame: pd.DataFrame) -> list[list[str]]:
    """Headings, then a line for each row that is printed; the first column names it."""
    columns = frame.attrs["columns"]
    name = frame.columns[0]
    lines = [[name, *(column.heading for column in columns)]]
    return lines + [[str(row[name]), *(_cell(row, c) for c in columns)] for row in shown(frame).to_dict("records")]


def _cell(row: dict[Any, Any], column: Column) -> str:
    """A number with its error, or two ends; empty where there is none.

    >>> _cell({"x": 0.25, "e": 0.02}, Column("x", "x", 3, "e")), _cell({"x": 1, "y": 3.5}, Column("x", "x", 1, to="y"))
    ('0.250 ± 0.020', '1.0 to 3.5')
    """
    ends = [row[key] for key in (column.value, column.error, column.to) if key is not None]
    if not math.isfinite(ends[0]):
        return ""
    written = [f"{end:.{column.digits}f}" for end in ends if math.isfinite(end)]
    return (" to " if column.to else " ± ").join(written)


def markdown(frame: pd.DataFrame) -> str:
    """The table with its title, what is told about it, and its notes."""
    head, *rows = cells(frame)
    lines = ["| " + " | ".join(row) + " |" for row in (head, [":--", *["--:"] * (len(head) - 1)], *rows)]
    told = [*frame.attrs["sentences"], *(f"Note: {note}" for note in frame.attrs["notes"])]
    title = f"Table {frame.attrs['table']}. {frame.attrs['title']}."
    return "\n".join([title, "", *lines, "", *(f"- {line}" for line in told)]) + "\n"


def as_dict(frame: pd.DataFrame) -> dict[str, Any]:
    """Every number of the table and every sentence, for JSON."""
    told = {key: frame.attrs[key] for key in ("table", "title", "sentences", "notes")}
    return told | {"rows": frame.to_dict("records")}


def write(frame: pd.DataFrame, stem: str | Path) -> list[Path]:
    """Write STEM.md as it is printed, and STEM.csv with every row and number."""
    stem = Path(stem)
    texts = {".md": markdown(frame), ".csv": frame.to_csv(index=False)}
    for suffix, text in texts.items():
        records.write_atomic(stem.with_name(stem.name + suffix), text)
    return [stem.with_name(stem.name + suffix) for suffix in texts]
