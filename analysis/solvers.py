"""Laws fitted to positive data: a start of its own for each problem, Levenberg-Marquardt to the end.

The objective is sum_i w_i huber_delta(log L_i - log L(x_i)), a sum and not a mean: a fit must not change with the
scale of its objective. Many problems that differ only in their weights w (the resamples of a bootstrap) are solved as
one batch. Features and losses are centred in the logarithm, so the result does not depend on their units.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from analysis.forms import Form

ITERATIONS = 400
STALLED = 14  # steps in a row without gain that end a fit
OWN_STARTS = 4  # of each resample of a form with many optima
LOWER = 1e-3  # share of the objective by which another optimum must be lower to be one
CHUNK = 20_000  # entries (problem, point) that are in memory at once: a processor's cache, not its memory


class Solution(NamedTuple):
    """Fitted constants of a batch of problems, as the form has them (``theta``), in natural units."""

    theta: Float[np.ndarray, "r p"]
    objective: Float[np.ndarray, " r"]  # inf: the problem could not be fitted
    gradient: Float[np.ndarray, " r"]  # largest entry, as a share of what it would be if no residual cancelled
    moved: Float[np.ndarray, " r"]  # largest change of a constant from the start
    at_bound: Bool[np.ndarray, "r p"]  # constants that ended on a bound


def solve(
    form: Form,
    features: Float[np.ndarray, "k n"],
    loss: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, "r n"],
    delta: float = 1e-3,
    start: Float[np.ndarray, " p"] | None = None,
) -> Solution:
    """The fit of each row of ``weights``, from its own start, or all from one."""
    ends = _ends(form, features, loss, weights, delta, 1, start)
    return Solution(*(field[:, 0] for field in ends))


def refits(
    form: Form,
    features: Float[np.ndarray, "k n"],
    loss: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, "r n"],
    delta: float,
    near: Float[np.ndarray, " p"],
) -> tuple[Solution, float]:
    """The fit of each row of ``weights``, and the share of rows whose own starts end lower than the start ``near``.

    A form with many optima is fitted from its own starts and from ``near``. From there alone, of simulated broken laws
    of one break up to 15 % of the resamples ended above their lowest optimum, of two breaks 60 %, whose intervals of
    a loss beyond the data were 0.4 to 0.8 times as wide.
    """
    if not form.rough:
        return solve(form, features, loss, weights, delta), 0.0
    warm = solve(form, features, loss, weights, delta, near)
    ends = _ends(form, features, loss, weights, delta, OWN_STARTS)
    best = (np.arange(len(weights)), ends.objective.argmin(axis=1))
    lower = ends.objective[best] < (1 - LOWER) * warm.objective
    for old, new in zip(warm, ends, strict=True):
        old[lower] = new[best][lower]
    return warm, float(lower.mean()) if len(lower) else 0.0


def optima(
    form: Form,
    features: Float[np.ndarray, "k n"],
    loss: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
    delta: float,
) -> Solution:
    """Where each of the best 16 starts ends, best first: one optimum, or a choice of them."""
    ends = _ends(form, features, loss, weights[None], delta, 16, settle=8)
    order = np.argsort(ends.objective[0])
    return Solution(*(field[0, order] for field in ends))


def _ends(
    form: Form,
    features: Float[np.ndarray, "k n"],
    loss: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, "r n"],
    delta: float,
    number: int,
    start: Float[np.ndarray, " p"] | None = None,
    settle: int = 0,
) -> Solution:
    """The end of each of ``number`` starts (second axis) of each row of ``weights``."""
    log_features, log_loss = np.log(features), np.log(loss)
    centre, scale = log_features.mean(axis=1), log_loss.mean()
    log_features, log_loss = log_features - centre[:, None], log_loss - scale
    parts, rows = [], max(1, CHUNK // (number * len(loss)))
    for i in range(0, len(weights), rows):
        some = weights[i : i + rows]
        if start is None:
            starts = form.starts(log_features, log_loss, some, number)
        else:
            starts = np.tile(form.shift(start[None], -centre, -scale), (len(some), 1, 1))
        flat, repeated = starts.reshape(-1, starts.shape[-1]), np.repeat(some, starts.shape[1], axis=0)
        end = _polish(form, flat, log_features, log_loss, repeated, delta, settle)
        end = end._replace(theta=form.shift(end.theta, centre, scale))
        parts.append([field.reshape(*starts.shape[:2], *field.shape[1:]) for field in end])
    return Solution(*(np.concatenate(field) for field in zip(*parts, strict=True)))


def _polish(
    form: Form,
    start: Float[np.ndarray, "r p"],
    log_features: Float[np.ndarray, "k n"],
    log_loss: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, "r n"],
    delta: float,
    settle: int = 0,
) -> Solution:
    """Levenberg-Marquardt on the Huber objective, all problems at once; finished ones leave the batch.

    Two curvatures take turns: iteratively reweighted least squares (weight min(1, delta/|r|)), which decreases from
    afar, and Newton's (weight 1 within delta, nearly 0 beyond), which converges near the end, where the first is slow
    because a Huber fit with a small delta is nearly an absolute-value fit. ``settle`` more steps lower the gradient
    alone, for constants beyond the half of their digits that the objective can tell.
    """
    delta = float(min(delta, 1e6))
    rows, width = start.shape
    low, high = form.bounds(log_features, log_loss)
    objective = np.full(rows, np.inf)
    theta = start.copy()
    active = np.flatnonzero(np.isfinite(start).all(axis=1))
    damping = np.full((2, rows), 1e-3)
    stalled = np.zeros(rows, dtype=int)
    w = weights[active]
    state = _evaluate(form, theta[active], log_features, log_loss, w, delta)
    objective[active] = state[2]
    for iteration in range(ITERATIONS):
        if not len(active):
            break
        mode = int(iteration >= 10 and iteration % 2)
        residual, slopes, value = state
        step = _step(theta[active], residual, slopes, w, delta, low, high, damping[mode, active], mode)
        trial = np.clip(theta[active] + np.clip(step, -2, 2), low, high)
        candidate = _evaluate(form, trial, log_features, log_loss, w, delta)
        better = candidate[2] < value
        gained = np.where(better, value - candidate[2], 0.0)
        theta[active[better]] = trial[better]
        damping[mode, active] = np.clip(damping[mode, active] * np.where(better, 0.3, 4.0), 1e-12, 1e12)
        for old, new in zip(state, candidate, strict=True):
            old[better] = new[better]
        objective[active] = state[2]
        stalled[active] = np.where(gained > 1e-13 * value, 0, stalled[active] + 1)
        going = stalled[active] < STALLED
        if not going.all():
            active, w, state = active[going], w[going], tuple(field[going] for field in state)
    moved = np.abs(theta - start).max(axis=1)
    gradient = _relative_gradient(form, theta, low, high, log_features, log_loss, weights, delta)
    for _ in range(settle):  # the objective no longer tells which is lower, the gradient still does
        residual, slopes, _ = _evaluate(form, theta, log_features, log_loss, weights, delta)
        step = _step(theta, residual, slopes, weights, delta, low, high, np.zeros(rows), mode=1)
        trial = np.clip(theta + np.clip(step, -1e-4, 1e-4), low, high)
        new = _relative_gradient(form, trial, low, high, log_features, log_loss, weights, delta)
        theta = np.where((new < gradient)[:, None], trial, theta)
        gradient = np.fmin(new, gradient)
    return Solution(theta, objective, gradient, moved, (theta <= low + 1e-6) | (theta >= high - 1e-6))


def _step(theta, residual, slopes, weights, delta, low, high, damping, mode):
    """One damped step of each problem: 0 reweighted least squares, 1 Newton's."""
    size = np.abs(residual)
    curvature = weights * np.where(size <= delta, 1.0, (1e-3 if mode else 1.0) * delta / np.maximum(size, 1e-300))
    gradient = (slopes @ (weights * np.clip(residual, -delta, delta))[..., None])[..., 0]
    free = ~_held(theta, gradient, low, high)  # what is held must not bend the others' step
    hessian = (slopes * curvature[:, None, :]) @ slopes.transpose(0, 2, 1) * (free[:, :, None] & free[:, None, :])
    diagonal = np.einsum("rii->ri", hessian)
    ridge = damping[:, None] * diagonal + 1e-14 * diagonal.max(axis=1, keepdims=True) + 1e-300
    hessian = hessian + ridge[:, :, None] * np.eye(theta.shape[1])
    return np.linalg.solve(hessian, (gradient * free)[..., None])[..., 0]


def _evaluate(form, theta, log_features, log_loss, weights, delta):
    """Residuals, their derivatives (less the sign) and the objective of each problem of a batch."""
    predicted, slopes = form.evaluate(theta, log_features)
    residual = log_loss - predicted
    size = np.abs(residual)
    huber = np.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta))
    return residual, slopes, (weights * huber).sum(axis=1)


def _relative_gradient(form, theta, low, high, log_features, log_loss, weights, delta):
    """The gradient along each constant that is not held by its bound, relative to the sum of absolute terms."""
    residual, slopes, _ = _evaluate(form, theta, log_features, log_loss, weights, delta)
    pull = np.clip(residual, -delta, delta)
    worst = np.clip(np.abs(residual).max(axis=1), 1e-9, delta)[:, None]  # rounding is not a gradient
    gradient = (slopes @ (weights * pull)[..., None])[..., 0]
    scale = (np.abs(slopes) @ weights[..., None])[..., 0] * worst
    held = _held(theta, gradient, low, high)
    return np.where(held, 0.0, np.abs(gradient) / np.maximum(scale, 1e-300)).max(axis=1)


def _held(theta, gradient, low, high):
    """Which constants are on a bound that the gradient pushes them against."""
    return ((theta <= low) & (gradient < 0)) | ((theta >= high) & (gradient > 0))
