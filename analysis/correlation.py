"""Does the validation loss predict a quality score? Correlations over a sweep, with what few runs can support.

Primary are the last checkpoints, one point for each depth (its seeds averaged): depths are exchangeable if loss and
score have nothing to do with each other, so permutation p-values are exact. All (depth, step) points are given
besides, without p-values: points of one depth are not exchangeable, and both loss and score follow compute, so a
correlation near one is nearly guaranteed. The partial correlation given log C and the correlation within depths ask
for more. Intervals resample depths, and prompts within their group, the same prompts for all points. A resample adds
the noise of its prompts to that of the sample, which moves its correlation towards zero once more: an interval is
the percentiles and their mirror image about the estimate, and what lies between.

Scores g(M) are transformed with the empirical logit log((n M + 1/2) / (n (1 - M) + 1/2)) or log((n M + 1/2) / (n + 1)),
n the median over points of the trials M (1 - M) / se^2 that would have their standard errors: one monotone function
for all points, within +-log(2 n + 1) at scores of 0 and 1. Ranks do not depend on it.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import stats

from analysis import association
from analysis.association import CLOSED, MIN_POINTS, SIGMA, Estimate, Measures, Monotone
from analysis.links import Link, effective_trials, fit_link
from analysis.propagation import percentiles, predict, score_draws, with_draws
from analysis.resampling import Resamples, Table, averaged, draw, resampled
from sd3_jax.errors import UserError

COLUMNS = ("run", "depth", "seed", "step", "flops", "loss", "value", "se", "last", "by_prompt", "weight", "group")
TRANSFORMS = ("logit", "identity", "log")
MIN_DEPTHS = 3  # fewer have no correlation

FLAGS = {
    "too few depths": "Not even perfect order of so few depths has p below 0.05: no rank correlation is significant.",
    "few depths": "Fewer than six depths: intervals are of a bootstrap over few clusters, and no closed form is given.",
    "no variation": "The loss or the score does not vary: there is no correlation.",
    "ties": "Some depths share a loss or a score: fewer p-values can be reached than without.",
    "no difference resolved": "No two depths' scores differ by more than two standard errors.",
    "order violated": "Scores fall as the loss falls by more than two paired standard errors: at a last checkpoint, or "
    "in more pairs of points than chance alone would give (2.3 %).",
    "compute explains it": "Given log C, the partial correlation's interval holds zero, or it has the other sign.",
    "not beyond size and steps": "Given log C and log steps, the partial correlation's interval holds zero, or it has "
    "the other sign: at equal compute what was trained longer has both the lower loss and the better score.",
    "loss follows compute": "Loss and log C are nearly collinear: a correlation given C cannot be told.",
    "no depth followed": "No depth has three checkpoints: there is no correlation within depths.",
    "uneven ends": "Last checkpoints of one depth are at different steps: their average is of unequal training.",
    "resamples skipped": "Over a fifth of the resamples had fewer than three points or no variation.",
    "no hold-out": "Fewer than three depths below the largest, or too few losses for a link; or the score is no share.",
    "hold-out missed": "The largest depth's score lies outside the interval predicted from the smaller depths.",
}


class HeldOutScore(NamedTuple):
    """The largest depth's score at its last checkpoint, predicted by a link of all points of the smaller depths."""

    depth: int
    loss: float
    actual: float
    predicted: float
    low: float  # 95 % of a measured score: constants, prompts, scatter about the link; nan without resamples
    high: float
    covered: bool | None
    link: Link


@dataclass(frozen=True, eq=False)
class Correlation:
    """How loss and score go together over a sweep."""

    transform: str
    last: Measures  # last checkpoints, one for each depth: primary
    every: Measures  # all depths and steps
    partial: Estimate  # of loss and transformed score given log C, all points
    beyond: Estimate  # the same given log C and log steps: given the size and how long it was trained
    within: Estimate  # about each depth's mean, depths with at least three steps
    within_depths: dict[int, float]
    monotone_last: Monotone
    monotone_every: Monotone
    held_out: HeldOutScore | None
    smallest_p: float
    p_how: str
    n_depths: int
    n_points: int
    n_prompts: int
    trials: float  # n of the transform
    resamples: int
    flags: tuple[str, ...] = ()
    sentence: str = ""


def correlate(
    points: pd.DataFrame,
    transform: str = "logit",
    resamples: int = 1000,
    seed: int = 0,
    lo: float = 0.0,
    hi: float = 1.0,
) -> Correlation:
    """Correlations of loss and score over evaluated points (COLUMNS, one row for each run and step).

    ``by_prompt``, ``weight`` and ``group`` are arrays over the same prompts in every row, and value = by_prompt @
    weight. ``lo`` and ``hi`` are chance and ceiling of the score, for the link of the hold-out. A score that is no
    share, beyond 0 to 1 in some prompt, is taken as it is, and has no link. Raises UserError for
    fewer than three depths with a last checkpoint, or a table that contradicts itself.
    """
    if transform not in TRANSFORMS:
        raise UserError(f"a transform is one of {', '.join(TRANSFORMS)}; not {transform!r}")
    if resamples < 0:
        raise UserError(f"resamples must not be negative; there are {resamples}")
    weight, group = _checked(points)
    ends = points[points["last"].to_numpy(bool)]
    n = ends["depth"].nunique()
    if n < MIN_DEPTHS:
        raise UserError(f"a correlation needs the last checkpoints of {MIN_DEPTHS} depths; there are {n}")
    last, every = averaged(ends, ["depth"]), averaged(points, ["depth", "step"])
    rng = np.random.default_rng(seed)
    shares = bool(((every.by_prompt >= 0) & (every.by_prompt <= 1)).all())
    transform = transform if shares else "identity"
    trials = float(np.median(effective_trials(every.value, every.se, default=len(weight)))) if shares else math.nan
    drawn = draw(np.unique(every.depth), weight, group, resamples, rng)
    test = association.permutation_test(last.loss, _transformed(last.value, transform, trials), seed)

    primary = _measures(last, transform, trials, drawn, None if n > MIN_DEPTHS else 0)
    closed = association.closed_intervals(np.array([one.value for one in primary]), n)
    primary = Measures(*(one._replace(p=p, closed=c) for one, p, c in zip(primary, test[:3], closed, strict=True)))
    (partial, beyond), within, within_depths = _beyond_compute(every, transform, trials, drawn)
    found = Correlation(
        transform=transform,
        last=primary,
        every=_measures(every, transform, trials, drawn, len(drawn.depths)),
        partial=partial,
        beyond=beyond,
        within=within,
        within_depths=within_depths,
        monotone_last=association.monotone(last.loss, last.by_prompt, weight, group),
        monotone_every=association.monotone(every.loss, every.by_prompt, weight, group),
        held_out=_held_out(last, every, weight, group, resamples, rng, lo, hi) if shares else None,
        smallest_p=test.smallest,
        p_how=test.how,
        n_depths=n,
        n_points=len(every.loss),
        n_prompts=len(weight),
        trials=trials,
        resamples=resamples,
    )
    tied = min(len(np.unique(last.loss)), len(np.unique(last.value.round(12)))) < n
    uneven = bool((ends.groupby("depth")["step"].nunique() > 1).any())
    collinear = abs(association.pearson(every.loss, every.log_flops, np.ones(len(every.loss)))) > 0.999
    found = replace(found, flags=_flags(found, tied, uneven, bool(collinear)))
    return replace(found, sentence=_sentence(found))


def _checked(points: pd.DataFrame) -> tuple[Float[np.ndarray, " p"], Int[np.ndarray, " p"]]:
    """The prompts' weights and groups, where the table agrees with itself."""
    missing = [name for name in COLUMNS if name not in points]
    if missing or not len(points):
        raise UserError(f"points for a correlation lack {', '.join(missing) or 'rows'}")
    numbers = points[["flops", "loss", "value", "se"]].to_numpy(float)
    if not np.isfinite(numbers).all() or (numbers[:, 0] <= 0).any() or (numbers[:, 3] < 0).any():
        raise UserError("flops, loss, value and se of every point must be finite, flops positive, se not negative")
    if points.duplicated(["run", "step"]).any() or points.loc[points["last"].to_numpy(bool), "run"].duplicated().any():
        raise UserError("a run has two points at one step, or two last checkpoints")
    weight, group = (np.asarray(points[name].iloc[0]) for name in ("weight", "group"))
    for name, first in (("weight", weight), ("group", group)):
        if not all(np.array_equal(row, first) for row in points[name]):
            raise UserError(f"{name} of the prompts differs between points: they were not scored on the same prompts")
    if weight.ndim != 1 or weight.shape != group.shape or (weight < 0).any() or abs(weight.sum() - 1) > 1e-6:
        raise UserError("weights of the prompts must be one for each, not negative, and sum to one")
    if any(np.shape(row) != weight.shape for row in points["by_prompt"]):
        raise UserError(f"by_prompt must have one score for each of the {len(weight)} prompts at every point")
    by_prompt = np.stack(points["by_prompt"].to_list()).astype(float)
    if not np.isfinite(by_prompt).all() or np.abs(by_prompt @ weight - numbers[:, 2]).max() > 1e-6:
        raise UserError("scores must be finite, and value must be by_prompt @ weight, at every point")
    return weight.astype(float), group


def _transformed(value: Float[np.ndarray, "*r"], transform: str, trials: float) -> Float[np.ndarray, "*r"]:
    if transform == "identity":
        return value
    above = np.log(trials * value + 0.5)
    return above - (np.log(trials * (1 - value) + 0.5) if transform == "logit" else math.log(trials + 1))


def _rows(
    table: Table, transform: str, trials: float, drawn: Resamples
) -> tuple[Float[np.ndarray, "r+1 m"], Float[np.ndarray, "r+1 m"]]:
    """Transformed scores and counts of the points: as observed in the first row, as resampled in the others."""
    values, counts = resampled(table, drawn)
    scores = _transformed(np.vstack([table.value, values]), transform, trials)
    return scores, np.vstack([np.ones(len(table.loss)), counts])


def _measures(table: Table, transform: str, trials: float, drawn: Resamples, clusters: int | None) -> Measures:
    """The three correlations with bootstrap intervals; ``clusters`` as in _estimate."""
    found = association.correlations(table.loss, *_rows(table, transform, trials, drawn))
    return Measures(*(_estimate(one, clusters) for one in found))


def _estimate(rows: Float[np.ndarray, " r+1"], clusters: int | None) -> Estimate:
    """The observed statistic, which is the first, with the interval of the others that are finite.

    There is none with ``clusters`` = 0. The percentiles are expanded for few clusters, but not (None) where each depth
    is one point: few points, some of them drawn twice, have correlations that scatter too much already.
    """
    value, draws = float(rows[0]), rows[1:]
    low, high = percentiles(draws, clusters)
    ends = np.clip([min(low, 2 * value - high), max(high, 2 * value - low)], -1, 1)
    return Estimate(value, float(ends[0]), float(ends[1]), int((~np.isfinite(draws)).sum()))


def _beyond_compute(
    every: Table, transform: str, trials: float, drawn: Resamples
) -> tuple[tuple[Estimate, Estimate], Estimate, dict[int, float]]:
    """Partial correlations given log C, and log C and log steps; that within depths, pooled and of each depth.

    Of two controls one is taken out of all pairs first: r_xy.zw = (r_xy.z - r_xw.z r_yw.z) / sqrt(...).
    """
    x, (y, counts), pearson = every.loss, _rows(every, transform, trials, drawn), association.pearson
    z, w, given = every.log_flops, every.log_step, association.partial_correlation
    x_z, y_z, w_z = (pearson(one, z, counts) for one in (x, y, w))
    xy, xw, yw = pearson(x, y, counts), pearson(x, w, counts), pearson(y, w, counts)
    given_z = given(xy, x_z, y_z)
    given_both = given(given_z, given(xw, x_z, w_z), given(yw, y_z, w_z))
    enough = (counts > 0).sum(axis=1) >= np.array([[MIN_POINTS], [MIN_POINTS + 1]])
    partial, beyond = (
        _estimate(np.where(few, one, np.nan), len(drawn.depths))
        for few, one in zip(enough, (given_z, given_both), strict=True)
    )
    followed = [one for one in drawn.depths if (every.depth == one).sum() >= MIN_POINTS]
    if not followed:
        return (partial, beyond), Estimate(math.nan), {}
    x, y, use, own_r = x.copy(), y.copy(), np.isin(every.depth, followed), {}
    for one in followed:
        own = every.depth == one
        x[own] -= x[own].mean()
        y[:, own] -= y[:, own].mean(axis=1, keepdims=True)
        own_r[int(one)] = float(pearson(x[own], y[0, own], np.ones(own.sum())))
    pooled = pearson(x[use], y[:, use], counts[:, use])
    return (partial, beyond), _estimate(pooled, len(followed) if len(followed) >= MIN_DEPTHS else 0), own_r


def _held_out(
    last: Table,
    every: Table,
    weight: Float[np.ndarray, " p"],
    group: Int[np.ndarray, " p"],
    resamples: int,
    rng: np.random.Generator,
    lo: float,
    hi: float,
) -> HeldOutScore | None:
    """Fit a link to all points of the depths below the largest, predict the largest's last score.

    The interval joins draws of depths and prompts with the noise of a measured score: its standard error times the
    square root of the dispersion about the link, where that exceeds one.
    """
    largest = int(last.depth[-1])
    rest = Table(*(column[every.depth < largest] for column in every))
    depths = np.unique(rest.depth)
    if len(depths) < MIN_DEPTHS or len(np.unique(rest.loss)) < MIN_POINTS:
        return None
    loss, actual, se = (float(column[-1]) for column in (last.loss, last.value, last.se))  # depths are in order
    link = fit_link(rest.loss, rest.value, effective_trials(rest.value, rest.se, default=len(weight)), lo, hi)
    predicted = float(predict(link, loss).value)
    if not resamples:
        return HeldOutScore(largest, loss, actual, predicted, math.nan, math.nan, None, link)
    values, counts = resampled(rest, draw(depths, weight, group, resamples, rng))
    link = with_draws(link, counts, values, clusters=len(depths))
    noise = se * math.sqrt(max(1.0, link.dispersion))
    scores = score_draws(link, np.full((resamples, 1), loss))[:, 0] + noise * rng.standard_normal(resamples)
    low, high = (float(np.clip(end, 0, 1)) for end in percentiles(scores, len(depths)))
    covered = bool(low <= actual <= high) if math.isfinite(low) else None
    return HeldOutScore(largest, loss, actual, predicted, low, high, covered, link)


def _flags(found: Correlation, tied: bool, uneven: bool, collinear: bool) -> tuple[str, ...]:
    estimates = (*found.last, *found.every, found.partial)
    raw = found.every.pearson.value
    raised = {
        "too few depths": found.smallest_p > 0.05,
        "few depths": found.n_depths < CLOSED,
        "no variation": not math.isfinite(found.last.pearson.value),
        "ties": tied,
        "no difference resolved": found.monotone_last.resolved == 0,
        "order violated": found.monotone_last.violations > 0
        or found.monotone_every.violations > stats.norm.sf(SIGMA) * found.monotone_every.pairs,
        "compute explains it": _explained(found.partial, raw),
        "not beyond size and steps": _explained(found.beyond, raw),
        "loss follows compute": collinear,
        "no depth followed": not found.within_depths,
        "resamples skipped": max(one.skipped for one in estimates) > 0.2 * found.resamples,
        "uneven ends": uneven,
        "no hold-out": found.held_out is None,
        "hold-out missed": found.held_out is not None and found.held_out.covered is False,
    }
    return tuple(name for name, on in raised.items() if on)


def _explained(partial: Estimate, raw: float) -> bool:
    return partial.low <= 0 <= partial.high or partial.value * raw < 0


def _sentence(found: Correlation) -> str:
    """What the numbers say, and what so many depths cannot say."""
    rho, n = found.last.spearman, found.n_depths
    if "no variation" in found.flags:
        return f"The loss or the score does not vary over the {n} depths: no correlation is defined."
    numbers = f"rho = {rho.value:.2f}{_span(rho)}"
    if "too few depths" in found.flags:
        first = f"With {n} depths the smallest possible p is {found.smallest_p:.2g}"
        return f"{first}: no rank correlation can be significant ({numbers})."
    numbers += f", {found.p_how.partition(':')[0]} p = {rho.p:.2g}, n = {n} depths"
    if not rho.p < 0.05:
        return f"No rank correlation of loss and score is established: {numbers}."
    trend = "The score rises as the loss falls" if rho.value < 0 else "The score falls as the loss falls"
    if not math.isfinite(found.partial.value) or "loss follows compute" in found.flags:
        return f"{trend}: {numbers}; loss and compute cannot be told apart."
    given = f"given log C the partial correlation is {found.partial.value:.2f}{_span(found.partial)}"
    if "compute explains it" in found.flags or not math.isfinite(found.partial.low):
        return f"{trend}: {numbers}; {given}, so compute alone may explain it."
    given += f", given the steps too {found.beyond.value:.2f}{_span(found.beyond)}"
    if "not beyond size and steps" in found.flags or not math.isfinite(found.beyond.low):
        return f"{trend}: {numbers}; {given}: beyond size and steps nothing is established."
    return f"{trend}: {numbers}; {given}: the loss says more than size and steps do."


def _span(estimate: Estimate) -> str:
    return f" [{estimate.low:.2f}, {estimate.high:.2f}]" if math.isfinite(estimate.low) else ""
