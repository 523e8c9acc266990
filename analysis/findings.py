"""Everything that there is to say of a directory of runs, or a table of them, gathered once.

What cannot be said (too few depths, no scores) is there as well, as the reason why (:class:`Missing`): a report names
it instead of leaving it out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from analysis import frontier, quality, report
from analysis.allocation import frontier_figure, isoflop_figure
from analysis.approaches import Comparison, compare_approaches
from analysis.backbones import figure4
from analysis.beside import exponents_figure, geneval_by_depth
from analysis.checklist import Evidence, Item, checklist
from analysis.diagnostics import held_out_figure, levels_figure, residual_figure
from analysis.drawing import Drawing, jsonable
from analysis.figures import figure8
from analysis.frontier import Envelope
from analysis.isoflop import IsoFlop, isoflop, isoflop_points
from analysis.laws import MIN_RESAMPLES, Law, fit_points
from analysis.outlook import Outlook, outlook
from analysis.prediction import HoldOut, hold_out_largest, rolling
from analysis.quality import Relation
from analysis.robustness import sensitivity, sensitivity_of_points
from analysis.runs import Record, backbones, cooldown_ends, load, load_records, points_on_law
from analysis.scores import load_scores
from analysis.sheets import contact_sheet
from analysis.tables import read_points
from sd3_jax.errors import UserError

FARTHER = (2.0, 10.0)  # times the most FLOPs of any run, at which the law is asked
FEWER = 200  # resamples of what is repeated many times
RIVALS = ("equal-exponent", "saturating", "power")
POINTS = ("run", "depth", "seed", "step", "params", "images", "flops", "loss", "loss_se")

T = TypeVar("T")


@dataclass(frozen=True)
class Missing:
    """What there is not, and why."""

    why: str


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found; each part, where it cannot be had, is the reason why."""

    name: str
    of_runs: bool
    runs: pd.DataFrame | None  # every validation point
    records: Mapping[str, Record]
    notes: tuple[str, ...]
    points: pd.DataFrame | Missing  # on the law
    law: Law | Missing
    hold_out: HoldOut | Missing
    rolled: tuple[HoldOut, ...] | Missing
    envelope: Envelope | Missing
    valleys: IsoFlop | Missing
    compared: Comparison | Missing
    outlook: tuple[Outlook, ...] | Missing
    sensitivity: pd.DataFrame | Missing
    rivals: pd.DataFrame | Missing
    cooldowns: pd.DataFrame | Missing
    scores: pd.DataFrame | Missing
    relations: dict[str, Relation]
    figures: dict[str, Drawing | Missing]
    checklist: tuple[Item, ...]


def tried(function: Callable[..., T], *given: Any, **options: Any) -> T | Missing:
    """What the function makes of what was found, or the reason why not: its own, or that of what it was given."""
    for one in given:
        if isinstance(one, Missing):
            return one
    try:
        return function(*given, **options)
    except UserError as error:
        return Missing(str(error))


def gather(
    path: str | Path,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, Any] | None = None,
    resamples: int = 1000,
    say: Callable[[str], None] = lambda _: None,
) -> Findings:
    """All that there is to say of a directory of runs, or of a CSV (``columns`` as :func:`analysis.read_points`).

    ``where`` says which scores of pictures are meant; ``say`` hears what is being done. Raises UserError if there
    are neither runs nor a table, or none of the scores that were asked for.
    """
    if 0 < resamples < MIN_RESAMPLES:
        raise UserError(f"{resamples} resamples give no interval: {MIN_RESAMPLES} or more do, 0 asks for none")
    source = Path(path)
    of_runs, fewer = source.is_dir(), min(resamples, FEWER)
    say("reading")
    runs = load(source) if of_runs else None
    table = runs if runs is not None else read_points(source, columns)
    records = load_records(source) if of_runs else {}
    points = tried(points_on_law, table) if of_runs else table
    whole = tried(points_on_law, table, skip=0.0) if of_runs else table  # small budgets lie early in large runs
    sized = tried(_sized, whole)
    scores: pd.DataFrame | Missing = Missing("a table has no pictures, and so no scores of them")
    if of_runs:
        scores = load_scores(source, setting=where) if where else tried(load_scores, source)
    judged = None if isinstance(scores, Missing) else scores

    say("fitting the law")
    form: dict[str, Any] = {"law": "chinchilla" if {"params", "images"} <= set(table) else "saturating"}
    law = tried(fit_points, points, **form, resamples=resamples)
    say("predicting what was held out")
    hold_out = tried(lambda law, points: hold_out_largest(points, **form, resamples=resamples), law, points)
    rolled = tried(lambda law, points: rolling(points, **form, resamples=fewer), law, points)
    say("fitting in other ways")
    valleys = (
        tried(isoflop, runs, resamples=resamples) if of_runs else tried(isoflop_points, sized, resamples=resamples)
    )
    compared = tried(compare_approaches, sized, law, resamples=fewer)
    varied = tried(lambda law, points: _varied(runs, points, form), law, points)
    rivals = tried(rivals_of, law, points)
    say("looking ahead")
    ahead = tried(_outlook, law, points, scores=judged)
    say("relating scores to the loss")
    relations = {} if judged is None else _relations(judged, resamples)
    say("drawing")
    parts = {
        "points": points,
        "law": law,
        "hold_out": hold_out,
        "rolled": rolled,
        "compared": compared,
        "valleys": valleys,
    }
    figures = _figures(source, runs, scores, resamples, **parts)
    notes = points.attrs["notes"] if not isinstance(points, Missing) else table.attrs["notes"]
    notes = tuple(dict.fromkeys([*notes, *(judged.attrs["notes"] if judged is not None else ())]))
    evidence = Evidence(
        points=_or_none(points),
        records=records,
        law=_or_none(law),
        hold_out=_or_none(hold_out),
        compared=_or_none(compared),
        sensitivity=_or_none(varied),
        rivals=_or_none(rivals),
        reach=[one.reach for one in _or_none(ahead) or ()],
        notes=notes,
    )
    return Findings(
        name=source.resolve().name if of_runs else source.stem,
        of_runs=of_runs,
        runs=runs,
        records=records,
        notes=notes,
        points=points,
        law=law,
        hold_out=hold_out,
        rolled=rolled,
        envelope=tried(frontier.envelope, sized),
        valleys=valleys,
        compared=compared,
        outlook=ahead,
        sensitivity=varied,
        rivals=rivals,
        cooldowns=Missing("a table says nothing of cooldowns") if runs is None else cooldown_ends(runs),
        scores=scores,
        relations=relations,
        figures=figures,
        checklist=checklist(evidence),
    )


def _or_none(found: T | Missing) -> T | None:
    return None if isinstance(found, Missing) else found


def _sized(points: pd.DataFrame) -> pd.DataFrame:
    lacking = [name for name in ("params", "images", "flops") if name not in points]
    if lacking:
        raise UserError(f"the points have no {' and no '.join(lacking)}")
    return points


def _varied(runs: pd.DataFrame | None, points: pd.DataFrame, form: Mapping[str, Any]) -> pd.DataFrame:
    return sensitivity_of_points(points, points.iloc[:0], **form) if runs is None else sensitivity(runs, **form)


def _relations(scores: pd.DataFrame, resamples: int) -> dict[str, Relation]:
    """How each score that there is goes with the loss; those of several backbones go nowhere."""
    there = set(scores["name"])
    every = {
        name: tried(quality.relate, scores, name, resamples=resamples)
        for names in quality.PANELS
        for name in names
        if name in there
    }
    return {name: one for name, one in every.items() if not isinstance(one, Missing)}


def _outlook(law: Law, points: pd.DataFrame, scores: pd.DataFrame | None) -> tuple[Outlook, ...]:
    return outlook(law, points, _budgets(law), scores)


def _budgets(law: Law) -> list[float]:
    if not {"params", "images", "flops"} <= law.ranges.keys():
        raise UserError("the points have no sizes, data and FLOPs to go beyond")
    return [times * law.ranges["flops"][1] for times in FARTHER]


def rivals_of(law: Law, points: pd.DataFrame) -> pd.DataFrame:
    """Residuals on the same points, and the error on the same hold-out, of other forms."""
    rows = {}
    for name in (law.form.name, *(name for name in RIVALS if name != law.form.name)):
        other = tried(fit_points, points, law=name, resamples=0)
        if isinstance(other, Missing):
            continue
        held = tried(hold_out_largest, points, law=name, resamples=0)
        rows[name] = {
            "formula": other.form.formula,
            "constants": len(other.form.constants),
            "residual_rms": other.residual_rms,
            "held_out_error": np.nan if isinstance(held, Missing) else held.error,
            "held_out_rms": np.nan if isinstance(held, Missing) else held.rms,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _figures(
    source: Path, runs: pd.DataFrame | None, scores: pd.DataFrame | Missing, resamples: int, **parts: Any
) -> dict[str, Drawing | Missing]:
    """Every figure, or why there is none."""
    figures: dict[str, Drawing | Missing] = dict.fromkeys(("main", "levels", "sheet"), Missing("a table has no runs"))
    if runs is not None:
        judged = _or_none(scores)
        several = len(backbones(runs)) > 1
        figures = {
            "main": tried(figure4, runs, judged) if several else tried(figure8, runs, judged, resamples=resamples),
            "levels": Missing("its colours are depths, of one backbone") if several else tried(levels_figure, runs),
            "sheet": tried(contact_sheet, source),
        }
    law, points, rolled, held = (parts[name] for name in ("law", "points", "rolled", "hold_out"))
    several_held = tried(lambda one: (one,), held) if isinstance(rolled, Missing) else rolled
    official = tried(geneval_by_depth, scores)
    return figures | {
        "exponents": tried(exponents_figure, parts["compared"]),
        "isoflop": tried(isoflop_figure, parts["valleys"]),
        "frontier": tried(_frontier, law, points),
        "held_out": tried(held_out_figure, several_held),
        "residuals": tried(residual_figure, law, points),
        "geneval": official or Missing("no official GenEval score is in these records"),
    }


def _frontier(law: Law, points: pd.DataFrame) -> Drawing:
    return frontier_figure(law, points, at=_budgets(law))


# --- in numbers -----------------------------------------------------------------------------------------------------


def numbers(found: Findings) -> dict[str, Any]:
    """All of it for JSON, at full precision; what there is not is null, and ``missing`` says why."""
    law = found.law
    told: dict[str, Any] = {
        "source": found.name,
        "law": _told(law, lambda one: report.as_dict(one) | report.details(one)),
        "hold_out": _told(found.hold_out, report.held_out_dict),
        "rolling": _told(found.rolled, lambda several: [report.held_out_dict(one) for one in several]),
        "approaches": _told(found.compared, _approaches),
        "isoflop": _told(found.valleys, report.isoflop_dict),
        "outlook": _told(found.outlook, lambda several: [report.outlook_dict(one, found.of_runs) for one in several]),
        "sensitivity": _told(found.sensitivity, lambda table: table.to_dict(orient="index")),
        "rivals": _told(found.rivals, lambda table: table.to_dict(orient="index")),
        "cooldowns": _told(
            found.cooldowns, lambda table: table[["run", "depth", "step", "loss", "offset"]].to_dict(orient="records")
        ),
        "scores": [quality.numbers(name, relation) for name, relation in found.relations.items()],
        "points": _told(found.points, lambda table: raw(table).to_dict(orient="records")),
        "checklist": [item._asdict() for item in found.checklist],
        "notes": list(found.notes),
    }
    parts = {one.name: getattr(found, one.name) for one in fields(found)}
    told["missing"] = {name: part.why for name, part in parts.items() if isinstance(part, Missing)}
    return jsonable(told)


def raw(points: pd.DataFrame) -> pd.DataFrame:
    """The points that a law was fitted to, as :func:`analysis.read_points` takes them."""
    kept = points[[name for name in POINTS if name in points]]
    return kept.rename(columns={"images": "data"})


def _told(part: Any, told: Callable[[Any], Any]) -> Any:
    return None if isinstance(part, Missing) else told(part)


def _approaches(compared: Comparison) -> dict[str, Any]:
    return {
        "agree": compared.agree,
        "sentence": compared.sentence,
        "approaches": [
            {
                "name": one.name,
                "exponents": one.exponents,
                "ci95": {name: list(spread.ci95) for name, spread in one.intervals.items()},
                "why": one.why,
            }
            for one in compared.approaches
        ],
    }
