"""How two quantities go together over a few points: correlations, their p-values and closed intervals, and the order.

Statistics of arrays, without a bootstrap: points may be counted several times, as a resample of them is. ``monotone``
asks of scores by prompt what a correlation does not: which differences between points are more than noise.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, stats

EXACT = 9  # points up to which all n! orders are counted
PERMUTATIONS = 19_999  # drawn above that
MIN_POINTS = 3  # fewer have no correlation
CLOSED = 6  # points from which closed-form intervals are given
SIGMA = 2.0  # a difference beyond so many standard errors counts
CHUNK = 2_000_000  # entries of a resample's table of pairs that are in memory at once


class Estimate(NamedTuple):
    """A correlation; nan where it is not defined, or where there is no interval or no permutation test."""

    value: float
    low: float = math.nan  # 95 %, bootstrap over depths and prompts
    high: float = math.nan
    skipped: int = 0  # degenerate resamples
    p: float = math.nan  # two-sided permutation p-value
    closed: tuple[float, float] = (math.nan, math.nan)  # 95 %, Fisher z (Pearson) or Bonett and Wright (the others)


class Measures(NamedTuple):
    """Three correlations of loss and score; Pearson's after the transform of the score."""

    pearson: Estimate
    spearman: Estimate
    kendall: Estimate


class Permutation(NamedTuple):
    """Two-sided permutation p-values, and how they were found."""

    pearson: float
    spearman: float
    kendall: float
    smallest: float  # that can be reached without ties
    how: str


class Monotone(NamedTuple):
    """Pairs of points in order of their losses: does the score rise as the loss falls?"""

    pairs: int  # whose losses differ
    resolved: int  # whose scores differ by more than SIGMA paired standard errors
    violations: int  # of these, where the lower loss has the lower score
    worst: float  # z of the lowest, negative where the order is violated
    residual: float  # weighted rms of the scores about the best function that never rises with the loss
    noise: float  # what their standard errors alone would have it at most: their rms with the same weights


def correlations(
    x: Float[np.ndarray, " m"], y: Float[np.ndarray, "r m"], counts: Float[np.ndarray, "r m"]
) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"], Float[np.ndarray, " r"]]:
    """Pearson's r, Spearman's rho, Kendall's tau-b of each row, point i counted counts_i times.

    With s_ij = sign(y_i - y_j), the mid-rank of i is sum_j counts_j s_ij / 2 + constant, and tau-b is the correlation
    of the s_ij of x and y over all pairs.
    """
    r = pearson(x, y, counts)
    sign_x = np.sign(np.subtract.outer(x, x))
    rho, tau = np.empty(len(y)), np.empty(len(y))
    size = max(1, CHUNK // len(x) ** 2)
    for i in range(0, len(y), size):
        rounded, w = y[i : i + size].round(12), counts[i : i + size]
        sign_y = np.sign(rounded[:, :, None] - rounded[:, None, :])
        rho[i : i + size] = pearson(w @ sign_x.T, np.einsum("rij,rj->ri", sign_y, w), w)
        shared = np.einsum("ri,rij,rj->r", w, sign_x * sign_y, w)
        of_x, of_y = np.einsum("ri,ij,rj->r", w, sign_x**2, w), np.einsum("ri,rij,rj->r", w, sign_y**2, w)
        tau[i : i + size] = shared / np.sqrt(np.where(of_x * of_y > 0, of_x * of_y, np.nan))
    bad = (counts > 0).sum(axis=1) < MIN_POINTS
    return np.where(bad, np.nan, r), np.where(bad, np.nan, rho), np.where(bad, np.nan, tau)


def pearson(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> Float[np.ndarray, "*r"]:
    """Weighted correlation along the last axis; nan where either does not vary."""
    total = np.maximum(counts.sum(axis=-1, keepdims=True), 1e-300)
    dx = x - (x * counts).sum(axis=-1, keepdims=True) / total
    dy = y - (y * counts).sum(axis=-1, keepdims=True) / total
    xx, yy, xy = ((counts * one).sum(axis=-1) for one in (dx * dx, dy * dy, dx * dy))
    flat = (xx <= 1e-24 * (counts * x * x).sum(axis=-1)) | (yy <= 1e-24 * (counts * y * y).sum(axis=-1))
    return np.clip(xy / np.sqrt(np.where(flat, np.nan, xx * yy)), -1, 1)


def permutation_test(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], seed: int = 0) -> Permutation:
    """Two-sided p-values of Pearson's r, Spearman's rho and Kendall's tau-b: all orders of y up to n = 9.

    p is twice the smaller tail, so it cannot be below 2 / n!, also for r, whose null is not symmetric. Above n = 9
    orders are drawn, and the observed one is added to them: p cannot be zero.
    """
    n = len(x)
    if n <= EXACT:
        orders = _orders(n)
        how = f"exact: all {len(orders):,} orders of {n} depths"
    else:
        drawn = np.random.default_rng(seed).permuted(np.tile(np.arange(n), (PERMUTATIONS, 1)), axis=1)
        orders = np.vstack([np.arange(n), drawn])
        how = f"Monte Carlo: {PERMUTATIONS:,} random orders, add-one rule"
    smallest = 2 / len(orders)
    if not math.isfinite(pearson(x, y, np.ones(n))):
        return Permutation(math.nan, math.nan, math.nan, smallest, how)
    rank_x, rank_y = stats.rankdata(x), stats.rankdata(y.round(12))
    statistics = []
    for left, right in ((x, y), (rank_x, rank_y)):
        left, right = left - left.mean(), right - right.mean()
        statistics.append(right[orders] @ left / math.sqrt((left @ left) * (right @ right)))
    sign_x, sign_y = (np.sign(np.subtract.outer(one, one)) for one in (rank_x, rank_y))
    pairs = np.argwhere(np.triu(sign_x))
    statistics.append(np.asarray(sum(sign_x[i, j] * sign_y[orders[:, i], orders[:, j]] for i, j in pairs)))
    p = []
    for one in statistics:  # the first of each is the observed one
        tail = min((one <= one[0] + 1e-9).sum(), (one >= one[0] - 1e-9).sum())
        p.append(min(1.0, 2 * float(tail) / len(orders)))
    return Permutation(p[0], p[1], p[2], smallest, how)


def closed_intervals(values: Float[np.ndarray, " 3"], n: int) -> list[tuple[float, float]]:
    """95 % intervals of r, rho and tau on Fisher's z; nan below six depths, and of a value of 1 or -1.

    Standard errors are 1 / sqrt(n - 3) of r, sqrt((1 + rho^2 / 2) / (n - 3)) of rho (Bonett and Wright 2000) and
    sqrt(0.437 / (n - 4)) of tau (Fieller, Hartley and Pearson 1957).
    """
    if n < CLOSED:
        return [(math.nan, math.nan)] * 3
    errors = np.array([1 / math.sqrt(n - 3), math.sqrt((1 + values[1] ** 2 / 2) / (n - 3)), math.sqrt(0.437 / (n - 4))])
    z = np.arctanh(np.where(np.abs(values) < 1 - 1e-12, values, np.nan))
    reach = stats.norm.ppf(0.975) * errors
    return [(float(low), float(high)) for low, high in zip(np.tanh(z - reach), np.tanh(z + reach), strict=True)]


def partial_correlation(
    r_xy: Float[np.ndarray, "*r"], r_xz: Float[np.ndarray, "*r"], r_yz: Float[np.ndarray, "*r"]
) -> Float[np.ndarray, "*r"]:
    """Correlation of x and y given z, (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2)(1 - r_yz^2))."""
    rest = (1 - r_xz**2) * (1 - r_yz**2)
    return (r_xy - r_xz * r_yz) / np.sqrt(np.where(rest > 1e-12, rest, np.nan))


def monotone(
    loss: Float[np.ndarray, " m"],
    by_prompt: Float[np.ndarray, "m p"],
    weight: Float[np.ndarray, " p"],
    group: Int[np.ndarray, " p"],
) -> Monotone:
    """Differences of scores between all pairs of points, in standard errors paired by prompt.

    It is the noise of prompts only: losses are taken as exact, and seeds of training differ by more. Weights of the
    residual are 1 / variance; a score without spread, as 0 and 1 are, gets the median of the others' variances.
    """
    covariance = prompt_covariance(by_prompt, weight, group)
    low, high = np.argwhere(np.subtract.outer(loss, loss) < 0).T
    if not len(low):
        return Monotone(0, 0, 0, math.nan, math.nan, math.nan)
    value, variance = by_prompt @ weight, np.diag(covariance)
    gain = value[low] - value[high]
    gain[np.abs(gain) < 1e-12] = 0
    se = np.sqrt(np.maximum(variance[low] + variance[high] - 2 * covariance[low, high], 1e-24))
    z = gain / se
    order = int((np.abs(z) > SIGMA).sum()), int((z < -SIGMA).sum()), float(z.min())
    known = variance[variance > 1e-24]
    weights = 1 / np.where(variance > 1e-24, variance, np.median(known)) if len(known) else np.ones(len(value))
    noise = math.sqrt(len(value) / weights.sum()) if len(known) else 0.0
    return Monotone(len(z), *order, isotonic_residual(loss, value, weights), noise)


def isotonic_residual(
    loss: Float[np.ndarray, " m"], value: Float[np.ndarray, " m"], weights: Float[np.ndarray, " m"]
) -> float:
    """Weighted rms of values about the best function that never rises with the loss (one value where losses tie).

    >>> isotonic_residual(np.array([1.0, 2.0, 3.0]), np.array([0.9, 0.3, 0.5]), np.ones(3))  # 0.9, 0.4, 0.4
    0.0816...
    """
    losses, place = np.unique(loss, return_inverse=True)
    total = np.bincount(place, weights)
    means = np.bincount(place, weights * value) / total
    best = optimize.isotonic_regression(means, weights=total, increasing=False).x[place]
    return math.sqrt(float(np.average((value - best) ** 2, weights=weights)))


def prompt_covariance(
    by_prompt: Float[np.ndarray, "m p"], weight: Float[np.ndarray, " p"], group: Int[np.ndarray, " p"]
) -> Float[np.ndarray, "m m"]:
    """Covariance of the scores of m systems on the same prompts, which are drawn within their group.

    Var sum_i w_i d_i = sum_groups n / (n - 1) sum_i (w_i (d_i - mean d))^2 of a difference d of two of them.
    """
    parts = prompt_parts(by_prompt, weight, group)
    return parts @ parts.T


def prompt_parts(
    by_prompt: Float[np.ndarray, "m p"], weight: Float[np.ndarray, " p"], group: Int[np.ndarray, " p"]
) -> Float[np.ndarray, "m p"]:
    """What each prompt adds to the noise of m scores: with z standard normal, parts @ z has their covariance."""
    parts = np.zeros_like(by_prompt, dtype=float)
    for one in np.unique(group):
        own, w = by_prompt[:, group == one], weight[group == one]
        if len(w) > 1 and w.sum() > 0:
            apart = w * (own - (own @ w / w.sum())[:, None])
            parts[:, group == one] = math.sqrt(len(w) / (len(w) - 1)) * apart
    return parts


def _orders(n: int) -> Int[np.ndarray, "f n"]:
    """All n! orders of 0..n-1, the first of them 0..n-1 itself."""
    rows = np.zeros((1, 1), np.int8)
    for k in range(1, n):
        rows = np.concatenate([np.insert(rows, i, k, axis=1) for i in range(k, -1, -1)])
    return rows
