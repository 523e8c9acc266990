"""What a budget that is not yet spent would give: the best size, its loss, and the scores that follow from the loss.

C -> L -> M in two steps: the law gives the loss of a new run of the best size, the link the score at that loss. One
resample of the runs refits both, so what they share is counted once.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis import frontier, links, prediction, propagation, quality
from analysis.laws import Law
from analysis.resampling import clusters, draw
from analysis.scores import score_points
from sd3_jax.errors import UserError

LEVELS = {"ci80": 0.80, "ci95": 0.95}


class Expected(NamedTuple):
    """One quantity at a budget, with central intervals (nan where there are none)."""

    value: float
    ci80: tuple[float, float]
    ci95: tuple[float, float]


class Outlook(NamedTuple):
    """The best that a budget buys. Steps are None where the runs do not share one batch size, depth of a table."""

    flops: float
    reach: float  # flops over the most of any run
    best: dict[str, Expected]  # depth, params, images, steps of the best size; loss of a new run of it
    scores: dict[str, Expected]  # of the pictures of such a run
    extrapolated: bool
    at_edge: bool
    notes: tuple[str, ...]


def outlook(
    law: Law, points: pd.DataFrame, flops: Sequence[float], scores: pd.DataFrame | None = None
) -> tuple[Outlook, ...]:
    """The best size at each budget for a joint law of these points, with the loss of a new run, and its scores.

    Intervals of the size are those of the law; those of the loss hold the residuals of the points too; those of a
    score the constants of its link, prompts, and what scatter about the link the prompts do not explain. The noise
    of the pictures that a new run would be judged by is not in them.

    Raises UserError for a law that says nothing of sizes, or budgets that are not positive.
    """
    if not all(0 < budget < math.inf for budget in flops):
        raise UserError("--flops: a budget is a positive number")
    family = frontier.sizes_in(points) if law.family is None else None
    tables = {name: frontier.implied(law, flops, family, level) for name, level in LEVELS.items()}
    batches = {config.batch for config in points.attrs.get("configs", {}).values()}
    found = []
    for i, budget in enumerate(flops):
        rows = {name: table.iloc[i] for name, table in tables.items()}
        best = {name: _of(rows, name) for name in ("depth", "params", "images")}
        if law.family is None:
            del best["depth"]
        if len(batches) == 1:
            batch = batches.copy().pop()
            images = best["images"]
            best["steps"] = Expected(images.value / batch, *(_scaled(ends, 1 / batch) for ends in images[1:]))
        size = {name: best[name].value for name in ("params", "images")} | {"flops": float(budget)}
        features = law.form.features(pd.DataFrame(size, index=[0]))
        new = {name: prediction.predict(law, **size, level=level) for name, level in LEVELS.items()}
        ends = ((float(one.low), float(one.high)) for one in new.values())
        best["loss"] = Expected(float(new["ci95"].loss), *ends)
        expected, notes = _scores(law, points, scores, features, best["loss"].value)
        row = rows["ci95"]
        found.append(
            Outlook(
                flops=float(budget),
                reach=float(budget / law.ranges["flops"][1]),
                best=best,
                scores=expected,
                extrapolated=bool(row["extrapolated"]),
                at_edge=bool(row["at_edge"]),
                notes=notes,
            )
        )
    return tuple(found)


def _of(rows: dict[str, pd.Series], name: str) -> Expected:
    ends = ((float(row[f"{name}_low"]), float(row[f"{name}_high"])) for row in rows.values())
    return Expected(float(rows["ci95"][name]), *ends)


def _scaled(ends: tuple[float, float], by: float) -> tuple[float, float]:
    return ends[0] * by, ends[1] * by


def _scores(
    law: Law, points: pd.DataFrame, scores: pd.DataFrame | None, features: Float[np.ndarray, "2 1"], loss: float
) -> tuple[dict[str, Expected], tuple[str, ...]]:
    """Each score at the loss of a new run, and what is to be said of it."""
    found: dict[str, Expected] = {}
    notes: list[str] = []
    if scores is None:
        return found, ()
    for name in (name for names in quality.PANELS for name in names if name in set(scores["name"])):
        try:
            found[name], flags = _score(law, points, score_points(scores, name), features, loss)
        except UserError as error:
            notes.append(f"{name}: not predicted: {error}")
            continue
        notes += [f"{name}, {flag}: {links.FLAGS[flag]}" for flag in flags]
    return found, tuple(notes)


def _score(
    law: Law, points: pd.DataFrame, scored: pd.DataFrame, features: Float[np.ndarray, "2 1"], loss: float
) -> tuple[Expected, tuple[str, ...]]:
    """One score of a new run, from draws of the law and of the link that are refits to the same resamples of runs."""
    low, high = quality.asymptotes(scored)
    link = links.fit_link(scored["loss"], scored["value"], quality.errors(scored), lo=low, hi=high)
    value = float(propagation.predict(link, loss).value)
    none = (math.nan, math.nan)
    runs = clusters(points["run"], 0).names
    place = np.searchsorted(runs, scored["run"].astype(str))
    known = (place < len(runs)) & (runs[np.minimum(place, len(runs) - 1)] == scored["run"].astype(str).to_numpy())
    if not len(law.draws) or law.units != "runs" or not known.all():
        return Expected(value, none, none), link.flags
    rng = np.random.default_rng(0)
    prompts = draw(np.zeros(1), scored["weight"].iloc[0], scored["group"].iloc[0], len(law.draws), rng).prompts
    values = np.clip(prompts @ np.stack(scored["by_prompt"].to_list()).T, 0, 1)
    drawn = propagation.with_draws(link, law.drawn[:, place], values, clusters=scored["run"].nunique())
    losses = np.exp(prediction.log_draws(law, features))
    mean = propagation.score_draws(drawn, losses)[:, 0]
    excess = max(link.dispersion - 1, 0.0) if math.isfinite(link.dispersion) else 0.0
    scatter = np.sqrt(excess * mean * (1 - mean) / float(np.median(link.points.trials)))
    samples = np.clip(mean + scatter * rng.standard_normal(len(mean)), 0, 1)
    ends = (propagation.percentiles(samples, drawn.clusters, level) for level in LEVELS.values())
    return Expected(value, *((float(one), float(other)) for one, other in ends)), drawn.flags
