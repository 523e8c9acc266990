"""From validation loss to a quality score: logistic and exponential links, fitted by maximum likelihood.

Three forms, with L the loss and M the score in [0, 1]:

- ``logistic``: M = lo + (hi - lo) / (1 + exp((L - L0) / s)), lo (chance) and hi (ceiling) given; L0 and s fitted.
- ``free``: the same with lo and hi fitted too.
- ``exponential``: M = 1 - eps + k exp(-g L), Gadre et al.'s Err = eps - k exp(-g L). With k, g > 0 it is what the
  logistic becomes far below its ceiling, with k, g < 0 what it becomes far above chance.

All are fitted by the binomial quasi-likelihood sum_i n_i (M_i log mu_i + (1 - M_i) log(1 - mu_i)), n_i the number of
independent trials that would have the score's standard error, M_i (1 - M_i) / se_i^2. Covariances are the inverse
Fisher information times the dispersion sum_i n_i (M_i - mu_i)^2 / (mu_i (1 - mu_i)) / (m - k), where that exceeds one.
"""

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import special, stats

from sd3_jax.errors import UserError

KINDS = {"logistic": ("L0", "s"), "free": ("L0", "s", "lo", "hi"), "exponential": ("eps", "k", "g")}
GAIN = 2.0  # a richer form must lower AICc by more than this
CONDITION = 1e4  # of the information scaled to a unit diagonal: above, constants cannot be told apart
SHARE = 0.25  # a free asymptote is known if its standard error is below this share of the span between the two
ITERATIONS = 200
TINY = 1e-9  # least distance of a mean from 0 and 1
CONVERGED = 1e-10  # Newton decrement: twice what a further step would add to the log likelihood

FLAGS = {
    "asymptotes not identified": "The points do not lie on both sides of the inflection, or do not fix the asymptotes: "
    "chance and ceiling are assumed, and so is what is predicted towards them.",
    "value outside asymptotes": "Some scores lie below the lower or above the upper asymptote that was given.",
    "slope zero": "The score does not change with the loss by more than two standard errors of the slope.",
    "score rises with loss": "The score rises as the loss rises: the link is the wrong way round.",
    "too few points": "Fewer than two points more than constants: the scatter about the link is not measured.",
    "overdispersed": "The points scatter about the link more than their standard errors explain; intervals are wider.",
    "not converged": "The likelihood has no optimum that the fit could reach: the constants are not to be believed.",
    "link resamples failed": "Over a fifth of the resamples could not be fitted: intervals are of the rest.",
}


class Form(NamedTuple):
    """Which curve, apart from the constants that are fitted."""

    kind: str
    lo: float  # asymptotes that were given
    hi: float
    centre: float  # the loss from which the fit counts
    tail: float = 1.0  # of the exponential: the sign of k


class Scored(NamedTuple):
    """The points of a link: a loss, a score, and the trials that have its standard error."""

    loss: Float[np.ndarray, " m"]
    value: Float[np.ndarray, " m"]
    trials: Float[np.ndarray, " m"]


@dataclass(frozen=True, eq=False)
class Link:
    """A fitted link. ``vector`` is as it was fitted: (a, b) of a + b (L - centre), then lo, hi; or (1 - eps, q, g)."""

    form: Form
    constants: dict[str, float]
    se: dict[str, float]
    vector: Float[np.ndarray, " k"]
    covariance: Float[np.ndarray, "k k"]  # of the vector
    dispersion: float  # nan without degrees of freedom
    points: Scored = field(repr=False)
    why: str  # how the kind was chosen
    draws: Float[np.ndarray, "r k"]  # vectors of resamples, nan where one could not be fitted; no rows without
    clusters: int  # that were resampled
    flags: tuple[str, ...]

    @property
    def kind(self) -> str:
        """logistic, free or exponential."""
        return self.form.kind


class Fit(NamedTuple):
    """What ``maximise`` found for each of a batch of problems."""

    vector: Float[np.ndarray, "r k"]
    deviance: Float[np.ndarray, " r"]
    converged: np.ndarray


def fit_link(
    loss: ArrayLike, value: ArrayLike, se_or_n: ArrayLike, lo: float = 0.0, hi: float = 1.0, kind: str | None = None
) -> Link:
    """Fit a link to scores ``value`` at losses ``loss``; ``se_or_n`` has standard errors (< 1) or trials (>= 1).

    Without ``kind`` the fixed logistic is kept unless a richer form is both identified and better. The free logistic
    is identified if two losses lie on each side of its inflection, its asymptotes lie in [0, 1] and the information
    fixes them (CONDITION, SHARE). Only where it is not identified is the exponential tried. Either must have a slope
    and two points more than constants, and lower AICc by more than GAIN, deviances divided by the smaller dispersion.
    A ``kind`` that is given is fitted whatever the data say, and flagged.

    Raises UserError for values outside [0, 1], losses that do not vary, or fewer points than constants.
    """
    points = _checked(loss, value, se_or_n, lo, hi)
    if kind is not None and kind not in KINDS:
        raise UserError(f"a link is one of {', '.join(KINDS)}; not {kind!r}")
    needed, losses = len(KINDS[kind or "logistic"]), len(np.unique(points.loss))
    if losses < needed:
        raise UserError(f"a {kind or 'logistic'} link has {needed} constants; there are {losses} different losses")
    if kind is not None:
        return _fit_kind(points, lo, hi, kind, "asked for")
    enough = len(points.loss) >= len(KINDS["exponential"]) + 2
    reason = "no richer form is identified and better" if enough else "too few points for another form"
    fixed = _fit_kind(points, lo, hi, "logistic", f"fixed asymptotes: {reason}")
    for rival_kind in ("free", "exponential"):
        if len(points.loss) < len(KINDS[rival_kind]) + 2:
            continue
        rival = _fit_kind(points, lo, hi, rival_kind, "")
        barred = {"not converged", "slope zero", *(["asymptotes not identified"] if rival_kind == "free" else [])}
        if barred & set(rival.flags):
            continue
        scale = max(1.0, min(fixed.dispersion, rival.dispersion))
        gain = _aicc(fixed, scale) - _aicc(rival, scale)
        if gain > GAIN:
            return replace(rival, why=f"{rival_kind}: AICc lower by {gain:.1f} than with fixed asymptotes")
        break  # the free form holds the exponential within it
    return fixed


def effective_trials(value: ArrayLike, se: ArrayLike, default: float | None = None) -> Float[np.ndarray, " m"]:
    """Independent trials that would have each standard error, M (1 - M) / se^2.

    A score of 0 or 1, or without spread, says nothing of them: it gets the median of the others, ``default`` where
    there are none.
    """
    value, se = np.broadcast_arrays(np.asarray(value, float), np.asarray(se, float))
    known = (se > 0) & (value > 0) & (value < 1)
    if not known.any() and default is None:
        raise UserError("no score is inside (0, 1) with a standard error: give the number of trials instead")
    trials = value * (1 - value) / np.where(known, se, 1.0) ** 2
    other = np.median(trials[known]) if known.any() else default
    return np.maximum(np.where(known, trials, other), 1.0)


def _checked(loss: ArrayLike, value: ArrayLike, se_or_n: ArrayLike, lo: float, hi: float) -> Scored:
    """Losses, scores and trials as arrays of one length."""
    x, y = np.asarray(loss, float), np.asarray(value, float)
    if x.ndim != 1 or x.shape != y.shape or np.shape(se_or_n) not in ((), x.shape):
        raise UserError(f"a link needs one loss, score and error for each point: {x.shape}, {y.shape}")
    noise = np.broadcast_to(np.asarray(se_or_n, float), x.shape)
    if not (np.isfinite(x).all() and np.isfinite(noise).all() and ((y >= 0) & (y <= 1)).all() and (noise >= 0).all()):
        raise UserError("losses and errors of a link must be finite, and scores lie in [0, 1]")
    if not 0 <= lo < hi <= 1:
        raise UserError(f"asymptotes must satisfy 0 <= lo < hi <= 1; they are {lo:g} and {hi:g}")
    if len(np.unique(x)) < 2:
        raise UserError("a link needs losses that differ")
    if (noise >= 1).any() and (noise < 1).any():
        raise UserError("give either standard errors, all below one, or numbers of trials, none below one")
    return Scored(x, y, noise if (noise >= 1).all() else effective_trials(y, noise))


def _fit_kind(points: Scored, lo: float, hi: float, kind: str, why: str) -> Link:
    """The best fit of one kind over its starts."""
    x, y, trials = points
    centre = float(np.average(x, weights=trials))
    tails = (1.0, -1.0) if kind == "exponential" else (1.0,)
    fits = []
    for form in (Form(kind, lo, hi, centre, tail) for tail in tails):
        starts = _starts(form, points)
        values, weights = (np.repeat(one[None], len(starts), axis=0) for one in (y, trials))
        found = maximise(form, starts, x - centre, values, weights)
        best = int(np.argmin(np.where(found.converged, found.deviance, found.deviance + 1e6)))
        fits.append((not found.converged[best], found.deviance[best], form, found.vector[best]))
    failed, _, form, vector = min(fits, key=lambda fit: fit[:2])

    mean, jacobian = (one[0] for one in curve(form, vector[None], x - centre))
    mean = np.clip(mean, TINY, 1 - TINY)
    information = jacobian.T @ (jacobian * (trials / (mean * (1 - mean)))[:, None])
    k = len(vector)
    pearson = float(np.sum(trials * (y - mean) ** 2 / (mean * (1 - mean))))
    dispersion = pearson / (len(x) - k) if len(x) > k else math.nan
    size = np.sqrt(np.maximum(np.diag(information), 1e-300))
    condition = float(np.linalg.cond(information / np.outer(size, size)))
    covariance = np.full((k, k), np.nan)
    if condition < 1e12:
        covariance = np.linalg.inv(information / np.outer(size, size)) / np.outer(size, size)
        covariance *= max(1.0, dispersion if len(x) > k else 1.0)
    constants, slopes = _natural(form, vector)
    with np.errstate(invalid="ignore"):
        se = np.sqrt(np.maximum(np.diag(slopes @ covariance @ slopes.T), 0))
    link = Link(
        form=form,
        constants=dict(zip(KINDS[kind], constants.tolist(), strict=True)),
        se=dict(zip(KINDS[kind], se.tolist(), strict=True)),
        vector=vector,
        covariance=covariance,
        dispersion=dispersion,
        points=points,
        why=why,
        draws=np.zeros((0, k)),
        clusters=0,
        flags=(),
    )
    rate = form.tail * vector[2] if kind == "exponential" else -vector[1]  # positive: the score falls with the loss
    spread = math.sqrt(covariance[2, 2] if kind == "exponential" else covariance[1, 1])
    raised = {
        "asymptotes not identified": not _identified(link, condition),
        "value outside asymptotes": kind == "logistic" and bool(((y < lo) | (y > hi)).any()),
        "slope zero": not abs(rate) > 2 * spread,
        "score rises with loss": rate < -2 * spread,
        "too few points": len(x) < k + 2,
        "overdispersed": len(x) > k and bool(stats.chi2.sf(pearson, len(x) - k) < 0.01),
        "not converged": bool(failed) or not np.isfinite(covariance).all(),
    }
    return replace(link, flags=tuple(name for name, on in raised.items() if on))


def _identified(link: Link, condition: float) -> bool:
    """Whether two losses lie on each side of the inflection, and free asymptotes are fixed by the data."""
    x, middle = link.points.loss, link.constants.get("L0", math.nan)
    if min(len(np.unique(x[x < middle])), len(np.unique(x[x > middle]))) < 2:
        return False
    if link.kind == "logistic":
        return True
    low, high = link.constants["lo"], link.constants["hi"]
    known = max(link.se["lo"], link.se["hi"]) < SHARE * (high - low)
    return bool(known and low >= -TINY and high <= 1 + TINY and condition < CONDITION)


def _aicc(link: Link, scale: float) -> float:
    """Akaike's criterion with its small-sample term, of a quasi-likelihood of this dispersion."""
    x, y, trials = link.points
    k, m = len(link.vector), len(x)
    mean = curve(link.form, link.vector[None], x - link.form.centre)[0]
    return float(_deviance(mean, y[None], trials[None])[0] / scale + 2 * k + 2 * k * (k + 1) / (m - k - 1))


def curve(
    form: Form, vector: Float[np.ndarray, "r k"], x: Float[np.ndarray, "*r m"]
) -> tuple[Float[np.ndarray, "r m"], Float[np.ndarray, "r m k"]]:
    """mu and d mu / d vector at x = L - centre."""
    if form.kind == "exponential":
        change = form.tail * np.exp(np.clip(vector[:, 1:2] - vector[:, 2:3] * x, -100, 100))
        return vector[:, :1] + change, np.stack([np.ones_like(change), change, -x * change], axis=-1)
    lo, hi = (vector[:, 2:3], vector[:, 3:4]) if form.kind == "free" else (form.lo, form.hi)
    share = special.expit(vector[:, :1] + vector[:, 1:2] * x)
    slope = (hi - lo) * share * (1 - share)
    free = [1 - share, share] if form.kind == "free" else []
    return lo + (hi - lo) * share, np.stack([slope, slope * x, *free], axis=-1)


def _natural(form: Form, vector: Float[np.ndarray, " k"]) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "k k"]]:
    """The constants of KINDS from the vector, and their derivatives by it."""
    slopes = np.eye(len(vector))
    if form.kind == "exponential":
        base, log_k, g = vector
        k = form.tail * np.exp(log_k + g * form.centre)
        slopes[0, 0], slopes[1] = -1, [0, k, k * form.centre]
        return np.array([1 - base, k, g]), slopes
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = vector[:2]
        slopes[0, :2], slopes[1, :2] = [-1 / b, a / b**2], [0, 1 / b**2]
        return np.array([form.centre - a / b, -1 / b, *vector[2:]]), slopes


def _starts(form: Form, points: Scored) -> Float[np.ndarray, "s k"]:
    """Weighted straight lines: of the empirical logit for each guess of the asymptotes, or in exp(-g x) for each g."""
    x, y, trials = points.loss - form.centre, points.value, points.trials
    starts = []
    if form.kind == "exponential":
        for g in form.tail * np.array([0.3, 1, 3, 10]) / np.ptp(x):
            slope, level = np.polyfit(np.exp(-g * x), y, 1, w=np.sqrt(trials))
            starts.append([level, math.log(max(form.tail * slope, 1e-6)), g])
        return np.array(starts)
    margins = np.array([0.02, 0.1, 0.4]) * max(float(np.ptp(y)), 1e-3)
    guesses = [(form.lo, form.hi)]
    if form.kind == "free":
        guesses = [(max(y.min() - margin, 0.0), min(y.max() + margin, 1.0)) for margin in margins]
    for lo, hi in guesses:
        share = np.clip((y - lo) / (hi - lo), 0, 1)
        logit = np.log((share + 0.5 / trials) / (1 - share + 0.5 / trials))
        slope, level = np.polyfit(x, logit, 1, w=np.sqrt(trials))
        starts.append([level, slope, *((lo, hi) if form.kind == "free" else ())])
    return np.array(starts)


def _deviance(
    mean: Float[np.ndarray, "r m"], value: Float[np.ndarray, "r m"], trials: Float[np.ndarray, "r m"]
) -> Float[np.ndarray, " r"]:
    """Twice the log likelihood that is missing to a perfect fit."""
    mean = np.clip(mean, TINY, 1 - TINY)
    missing = special.xlogy(value, value / mean) + special.xlogy(1 - value, (1 - value) / (1 - mean))
    return 2 * np.sum(trials * missing, axis=1)


def maximise(
    form: Form,
    start: Float[np.ndarray, "r k"],
    x: Float[np.ndarray, " m"],
    value: Float[np.ndarray, "r m"],
    trials: Float[np.ndarray, "r m"],
) -> Fit:
    """Fisher scoring with Levenberg-Marquardt's damping, a batch of problems; steps only where the deviance falls."""
    vector, damping = start.copy(), np.full(len(start), 1e-3)
    diagonal = np.arange(start.shape[1])
    mean, jacobian = curve(form, vector, x)
    deviance = _deviance(mean, value, trials)
    for _ in range(ITERATIONS):
        clipped = np.clip(mean, TINY, 1 - TINY)
        weight = trials / (clipped * (1 - clipped))
        score = np.einsum("rmk,rm->rk", jacobian, weight * (value - clipped))
        information = np.einsum("rmi,rm,rmj->rij", jacobian, weight, jacobian)
        size = np.sqrt(np.maximum(information[:, diagonal, diagonal], 1e-300))
        scaled = information / (size[:, :, None] * size[:, None, :])
        damped = scaled.copy()
        damped[:, diagonal, diagonal] += damping[:, None] + 1e-13
        scaled[:, diagonal, diagonal] += 1e-13
        gradient = (score / size)[..., None]
        decrement = np.einsum("rki,rki->r", gradient, np.linalg.solve(scaled, gradient))
        if (decrement < CONVERGED).all():
            break
        trial = vector + np.linalg.solve(damped, gradient)[..., 0] / size
        trial_mean, trial_jacobian = curve(form, trial, x)
        trial_deviance = _deviance(trial_mean, value, trials)
        better = trial_deviance <= deviance
        vector = np.where(better[:, None], trial, vector)
        mean = np.where(better[:, None], trial_mean, mean)
        jacobian = np.where(better[:, None, None], trial_jacobian, jacobian)
        deviance = np.where(better, trial_deviance, deviance)
        damping = np.clip(np.where(better, damping * 0.2, damping * 5), 1e-15, 1e12)
    return Fit(vector, deviance, decrement < 1e-6)
