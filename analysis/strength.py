"""Is preference linear in the loss? Strengths theta as Bradley and Terry have them.

Run i is preferred to j with probability 1 / (1 + exp(theta_j - theta_i)).

Two readings of the same pictures. Elo scores, theta = (elo - 1000) ln 10 / 400, are fitted to all pairs of runs; their
rows do not have the prompts, so that intervals resample depths alone. The logit of a win rate against the reference is
theta_i - theta_reference if the model holds, and its rows have each prompt's wins: depths and prompts are resampled.
Slopes that disagree say that wins do not follow from one strength a run.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import special

from analysis.propagation import percentiles
from analysis.resampling import averaged, draw, resampled
from analysis.scores import OVERALL, constant_rate
from sd3_jax.errors import UserError

ELO = "proxy-preference-elo"
PER_ELO = math.log(10) / 400
MIN_DEPTHS = 3


class Line(NamedTuple):
    """theta = intercept + slope x loss, by least squares over (depth, step) points."""

    of: str  # elo or wins
    slope: float  # of theta by the loss, negative where a lower loss is preferred
    low: float  # 95 %, expanded percentiles over depths (and prompts); nan without resamples
    high: float
    intercept: float
    residual_rms: float  # of theta
    noise: float  # rms of theta's standard errors: what the residual would be if the line were exact
    points: int
    depths: int
    span: float  # of the losses
    wins: tuple[float, float, float]  # that the lowest loss wins over the highest, and its interval


def of_elo(scores: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> Line:
    """The line through the Elo scores. Raises UserError without any, or for fewer than three depths."""
    own = constant_rate(scores, ELO)
    own = own[own["group"] == OVERALL]
    if own.empty:
        raise UserError(f"no score {ELO!r}: sd3-jax evaluate of several runs makes it")
    table = own.groupby(["depth", "step"], as_index=False)[["loss", "value", "se"]].mean()
    depths, place = np.unique(table["depth"], return_inverse=True)
    counts = np.random.default_rng(seed).multinomial(len(depths), np.full(len(depths), 1 / len(depths)), resamples)
    theta = (table["value"].to_numpy(float) - 1000) * PER_ELO
    draws = np.tile(theta, (resamples, 1))
    errors = table["se"].to_numpy(float) * PER_ELO
    return _line("elo", table["loss"].to_numpy(float), theta, errors, draws, counts[:, place], len(depths))


def of_wins(points: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> Line:
    """The line through the logits of win rates, points as :func:`analysis.score_points` has them.

    Logits are log((n w + 1/2) / (n (1 - w) + 1/2)), n pictures. Raises UserError for fewer than three depths.
    """
    table = averaged(points, ["depth", "step"])
    weight, group = (np.asarray(points[name].iloc[0]) for name in ("weight", "group"))
    drawn = draw(np.unique(table.depth), weight, group, resamples, np.random.default_rng(seed))
    values, counts = resampled(table, drawn)
    n = float(points["n"].median())
    theta, draws = (np.log((n * one + 0.5) / (n * (1 - one) + 0.5)) for one in (table.value, values))
    errors = table.se / np.maximum(table.value * (1 - table.value), 0.5 / n)
    return _line("wins", table.loss, theta, errors, draws, counts, len(drawn.depths))


def _line(
    of: str,
    loss: Float[np.ndarray, " m"],
    theta: Float[np.ndarray, " m"],
    errors: Float[np.ndarray, " m"],
    draws: Float[np.ndarray, "r m"],
    counts: Float[np.ndarray, "r m"],
    depths: int,
) -> Line:
    if depths < MIN_DEPTHS or len(np.unique(loss)) < MIN_DEPTHS:
        raise UserError(f"a line of strengths needs {MIN_DEPTHS} depths; there are {depths}")
    slope = float(_slopes(loss, theta[None], np.ones((1, len(loss))))[0])
    low, high = (float(end) for end in percentiles(_slopes(loss, draws, counts), depths))
    residual = theta - theta.mean() - slope * (loss - loss.mean())
    span = float(np.ptp(loss))
    wins = tuple(float(special.expit(-one * span)) for one in (slope, high, low))
    return Line(
        of,
        slope,
        low,
        high,
        float(theta.mean() - slope * loss.mean()),
        float(np.sqrt(np.mean(residual**2))),
        float(np.sqrt(np.nanmean(errors**2))) if np.isfinite(errors).any() else math.nan,
        len(loss),
        depths,
        span,
        wins,  # type: ignore[arg-type]
    )


def _slopes(
    loss: Float[np.ndarray, " m"], theta: Float[np.ndarray, "r m"], counts: Float[np.ndarray, "r m"]
) -> Float[np.ndarray, " r"]:
    """The slope of each row, point i counted counts_i times; nan where one loss alone is drawn."""
    total = counts.sum(axis=1)
    apart = loss - (counts @ loss / total)[:, None]
    squares = (counts * apart**2).sum(axis=1)
    return (counts * apart * theta).sum(axis=1) / np.where(squares > 1e-12 * total, squares, np.nan)


def describe(lines: tuple[Line, ...]) -> list[str]:
    """Each line in words."""
    names = {"elo": "Bradley-Terry strength, elo ln 10 / 400", "wins": "logit of the win rate"}
    over = {"elo": "depths, prompts not in it", "wins": "depths and prompts"}
    found = []
    for one in lines:
        interval = f" [{one.low:.1f}, {one.high:.1f}]" if math.isfinite(one.low) else ""
        win, low, high = one.wins
        ends = f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) else ""
        found.append(
            f"  {names[one.of]}: slope {one.slope:.1f}{interval} per unit of loss (95 % over {over[one.of]}), residual "
            f"rms {one.residual_rms:.2f} (standard error {one.noise:.2f}), {one.points} points of {one.depths} depths; "
            f"the lowest loss wins {win:.2f}{ends} against the highest"
        )
    if len(lines) == 2 and all(math.isfinite(one.low) for one in lines):
        apart = lines[0].low > lines[1].high or lines[1].low > lines[0].high
        found += ["  the two slopes disagree: wins do not follow from one strength a run"] if apart else []
    return found
