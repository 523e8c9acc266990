"""What a link predicts: from draws of its constants, and of the loss, to an interval of the score.

Draws are refits to resamples of the link's points. They are kept row by row, so that they can be joined with draws of
the loss from the same resamples: C -> L -> M with both uncertainties.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import special, stats

from analysis.flags import FAILED
from analysis.links import TINY, Link, curve, maximise
from sd3_jax.errors import UserError

MIN_DRAWS = 20  # fewer give no interval


class Score(NamedTuple):
    """Score that a link predicts at a loss, with the 95 % interval of its mean (no scatter of a new run)."""

    value: Float[np.ndarray, "..."]
    low: Float[np.ndarray, "..."]
    high: Float[np.ndarray, "..."]


def with_draws(
    link: Link,
    weights: Float[np.ndarray, "r m"],
    values: Float[np.ndarray, "r m"] | None = None,
    clusters: int | None = None,
) -> Link:
    """The link with joint draws: refitted, in its kind, to each row of resample ``weights`` of its points.

    ``values`` has the scores of each row, where prompts are resampled too. ``clusters`` is how many independent units
    (depths, runs) the weights resample; the points if not given. A row keeps its place, so that draws of a loss from
    the same resample can be joined with it; it is nan where fewer losses than constants have weight or the fit does
    not converge.
    """
    loss, value, trials = link.points
    if weights.ndim != 2 or weights.shape[1] != len(loss) or (values is not None and values.shape != weights.shape):
        raise UserError(f"resample weights and values need a column for each of the {len(loss)} points of the link")
    present = weights @ (loss[:, None] == np.unique(loss)) > 0
    enough = present.sum(axis=1) >= len(link.vector)
    start = np.repeat(link.vector[None], enough.sum(), axis=0)
    drawn = np.broadcast_to(value, weights.shape) if values is None else values
    found = maximise(link.form, start, loss - link.form.centre, drawn[enough], trials * weights[enough])
    draws = np.full((len(weights), len(link.vector)), np.nan)
    draws[enough] = np.where(found.converged[:, None], found.vector, np.nan)
    flags = tuple(flag for flag in link.flags if flag != "link resamples failed")
    if len(draws) and np.isnan(draws[:, 0]).mean() > FAILED:
        flags = (*flags, "link resamples failed")
    return replace(link, draws=draws, clusters=len(loss) if clusters is None else clusters, flags=flags)


def predict(link: Link, loss: ArrayLike, level: float = 0.95) -> Score:
    """The score at each loss, with the interval of the draws, or of the covariance where there are none."""
    x = np.asarray(loss, float).reshape(1, -1)
    mean, jacobian = curve(link.form, link.vector[None], x - link.form.centre)
    if len(link.draws):
        low, high = propagate(link, np.repeat(x, len(link.draws), axis=0), level)
    else:
        spread = np.sqrt(np.maximum(np.einsum("mi,ij,mj->m", jacobian[0], link.covariance, jacobian[0]), 0))
        share = np.clip(mean[0], TINY, 1 - TINY)
        reach = stats.norm.ppf((1 + level) / 2) * spread / (share * (1 - share))  # on the logit: stays in (0, 1)
        low, high = special.expit(special.logit(share) - reach), special.expit(special.logit(share) + reach)
    shape = np.shape(loss)
    return Score(np.clip(mean[0], 0, 1).reshape(shape), low.reshape(shape), high.reshape(shape))


def propagate(
    link: Link, loss_draws: Float[np.ndarray, "r m"], level: float = 0.95
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Interval of the score at losses that are draws themselves: C -> L -> M with both uncertainties.

    Row r of ``loss_draws`` meets row r of the link's draws: pass draws of the same resample for a joint interval.
    """
    if not len(link.draws) or len(loss_draws) != len(link.draws):
        raise UserError(f"{len(loss_draws)} draws of the loss and {len(link.draws)} of the link: they must pair")
    return percentiles(score_draws(link, loss_draws), link.clusters, level)


def score_draws(link: Link, loss_draws: Float[np.ndarray, "r m"]) -> Float[np.ndarray, "r m"]:
    """The score of each draw of the link at the losses of the same row, in [0, 1]; nan where the draw failed."""
    return np.clip(curve(link.form, link.draws, loss_draws - link.form.centre)[0], 0, 1)


def percentiles(
    draws: Float[np.ndarray, "r *m"], clusters: int | None, level: float = 0.95
) -> tuple[Float[np.ndarray, "*m"], Float[np.ndarray, "*m"]]:
    """Expanded percentile interval over the rows that are not nan; nan with fewer than twenty such rows.

    A bootstrap over n clusters is too narrow by sqrt((n - 1) / n) and by z over Student's t. Hesterberg (2015, The
    American Statistician 69:371) therefore takes the percentiles at Phi(-+ sqrt(n / (n - 1)) t): of 6 clusters 0.2 %
    and 99.8 % instead of 2.5 % and 97.5 %; of four, practically the extremes. Where ``clusters`` is None they are
    left as they are.
    """
    good = draws[np.isfinite(draws).all(axis=tuple(range(1, draws.ndim)))]
    if len(good) < MIN_DRAWS or (clusters is not None and clusters < 2):
        return np.full(draws.shape[1:], np.nan), np.full(draws.shape[1:], np.nan)
    tail = (1 - level) / 2
    if clusters is not None:
        tail = stats.norm.sf(math.sqrt(clusters / (clusters - 1)) * stats.t.ppf(1 - tail, clusters - 1))
    low, high = np.quantile(good, [tail, 1 - tail], axis=0)
    return low, high
