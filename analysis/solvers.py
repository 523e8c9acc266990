"""Sums of power laws fitted to positive data: variable projection for the start, Levenberg-Marquardt to the end.

The law is L = E + sum_k A_k x_k^-p_k, with one feature x_k for each term: (N, D) gives the joint law, a single
feature the saturating power law. The objective is sum_i w_i huber_delta(log L_i - log L(x_i)), a sum and not a
mean: a fit must not change with the scale of its objective. Many problems that differ only in their weights w (the
resamples of a bootstrap) are solved as one batch. For given exponents the law is linear in E and A, which gives
every problem its own start from a grid of exponents; features are centred in the logarithm throughout, so the
result does not depend on their units.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

EXPONENTS = (0.01, 3.0)  # bounds; a fit that ends on one says so
FLOOR = 1e-6  # least E, as a share of the smallest loss
ITERATIONS = 400
CHUNK = 250  # problems that are in memory at once


class Solution(NamedTuple):
    """Fitted constants of a batch of problems; rows of ``constants`` are (log E, log A_1.., p_1..), natural units."""

    constants: Float[np.ndarray, "r 2k+1"]
    objective: Float[np.ndarray, " r"]  # inf: the problem could not be fitted
    gradient: Float[np.ndarray, " r"]  # largest entry, as a share of what it would be if no residual cancelled
    moved: Float[np.ndarray, " r"]  # largest change of an exponent or log constant from the start


def predict_log(
    constants: Float[np.ndarray, "*batch 2k+1"], features: Float[np.ndarray, "k n"]
) -> Float[np.ndarray, "*batch n"]:
    """log(E + sum_k A_k x_k^-p_k), by log-sum-exp."""
    log_terms = _log_terms(constants, np.log(features))
    top = log_terms.max(axis=-2)
    return top + np.log(np.exp(log_terms - top[..., None, :]).sum(axis=-2))


def solve(
    features: Float[np.ndarray, "k n"],
    loss: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, "r n"],
    delta: float = 1e-3,
    cells: int = 40,
) -> Solution:
    """The fit of each row of ``weights``, polished from the best cell of its own grid of exponents."""
    log_features, centre, log_loss, scale = _centred(features, loss)
    parts = []
    for i in range(0, len(weights), CHUNK):
        some = weights[i : i + CHUNK]
        start = _grid_starts(log_features, log_loss, some, cells, starts=1)[:, 0]
        parts.append(_polish(start, log_features, log_loss, some, delta))
    return _natural(Solution(*(np.concatenate(field) for field in zip(*parts, strict=True))), centre, scale)


def optima(
    features: Float[np.ndarray, "k n"], loss: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"], delta: float
) -> Solution:
    """Where each of the best 16 starts of a fine grid ends, best first: one optimum, or a choice of them."""
    log_features, centre, log_loss, scale = _centred(features, loss)
    start = _grid_starts(log_features, log_loss, weights[None], cells=96, starts=16)[0]
    ends = _polish(start, log_features, log_loss, np.repeat(weights[None], len(start), 0), delta)
    order = np.argsort(ends.objective)
    return _natural(Solution(*(field[order] for field in ends)), centre, scale)


def _centred(
    features: Float[np.ndarray, "k n"], loss: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "k n"], Float[np.ndarray, " k"], Float[np.ndarray, " n"], float]:
    """log x and log L less their means, and the means."""
    log_features, log_loss = np.log(features), np.log(loss)
    centre, scale = log_features.mean(axis=1), log_loss.mean()
    return log_features - centre[:, None], centre, log_loss - scale, scale


def _natural(solution: Solution, centre: Float[np.ndarray, " k"], scale: float) -> Solution:
    """Undo the centring: log A = log A' + p * centre + scale."""
    constants = solution.constants.copy()
    terms = len(centre)
    constants[:, : terms + 1] += scale
    constants[:, 1 : terms + 1] += constants[:, terms + 1 :] * centre
    return solution._replace(constants=constants)


def _grid_starts(
    log_features: Float[np.ndarray, "k n"],
    log_loss: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, "r n"],
    cells: int,
    starts: int,
) -> Float[np.ndarray, "r s 2k+1"]:
    """Constants at the best ``starts`` cells of the grid of exponents (nan: no cell has E >= 0 and every A > 0).

    Minimises sum_i w_i (L_i - E - sum_k A_k x_k^-p_k)^2 / L_i^2, whose Gram entries on the whole grid are matrix
    products. E is eliminated first; where it comes out negative it is zero and the A's are solved without it.
    """
    grid = np.geomspace(2 * EXPONENTS[0], 0.8 * EXPONENTS[1], cells)
    loss = np.exp(log_loss)
    w = weights / loss**2
    powers = np.exp(-grid[None, :, None] * log_features[:, None, :])  # [k, cells, n]
    sw, sl, sll = w.sum(1), w @ loss, w @ loss**2
    u, v = powers[0], powers[-1]
    if len(powers) == 1:
        su, suu, sul = w @ u.T, w @ (u * u).T, (w * loss) @ u.T
        cuu, cul = suu - su**2 / sw[:, None], sul - su * (sl / sw)[:, None]
        slope = np.stack([cul / np.maximum(cuu, 1e-300), sul / suu])  # with E, without
        floor = np.stack([(sl[:, None] - slope[0] * su) / sw[:, None], np.zeros_like(su)])
        error = np.stack([(sll - sl**2 / sw)[:, None] - slope[0] * cul, sll[:, None] - slope[1] * sul])
        scales, axes = [slope], [np.arange(cells)]
    else:
        su, sv = (w @ u.T)[:, :, None], (w @ v.T)[:, None, :]
        suu, svv = (w @ (u * u).T)[:, :, None], (w @ (v * v).T)[:, None, :]
        sul, svl = ((w * loss) @ u.T)[:, :, None], ((w * loss) @ v.T)[:, None, :]
        suv = (u[None] * w[:, None, :]) @ v.T
        n, m, q = sw[:, None, None], sl[:, None, None], sll[:, None, None]
        first = _two_by_two(
            suu - su**2 / n, svv - sv**2 / n, suv - su * sv / n, sul - su * m / n, svl - sv * m / n, q - m**2 / n
        )
        second = _two_by_two(suu, svv, suv, sul, svl, q)
        slope_u, slope_v, error = (np.stack(pair) for pair in zip(first, second, strict=True))
        floor = np.stack([(m - first[0] * su - first[1] * sv) / n, np.zeros_like(first[0])])
        scales, axes = [slope_u, slope_v], list(np.indices((cells, cells)).reshape(2, -1))
    valid = (floor >= 0) & np.isfinite(error) & np.all([slope > 0 for slope in scales], axis=0)
    error = np.where(valid, error, np.inf)
    free = error[0] <= error[1]  # E > 0 wherever that is possible: it has one more freedom
    error, floor, *scales = (
        np.where(free, with_floor, without).reshape(len(w), -1) for with_floor, without in (error, floor, *scales)
    )
    if starts > 1:
        error = _best_of_blocks(error, axes)
    order = np.argsort(error, axis=1)[:, :starts]
    error, floor, *scales = (np.take_along_axis(array, order, axis=1) for array in (error, floor, *scales))
    found = np.isfinite(error)
    logs = [np.maximum(floor, FLOOR * loss.min()), *(np.where(found, scale, 1.0) for scale in scales)]
    constants = np.stack([*np.log(logs), *(grid[axis[order]] for axis in axes)], axis=-1)
    return np.where(found[..., None], constants, np.nan)


def _best_of_blocks(error, axes):
    """Of each block of 4 x 4 neighbouring cells only the best stays finite, so that several starts are not one."""
    block = sum(axis // 4 * 1000**i for i, axis in enumerate(axes))
    kept = np.full_like(error, np.inf)
    for label in np.unique(block):
        inside = np.flatnonzero(block == label)
        best = inside[error[:, inside].argmin(axis=1)][:, None]
        np.put_along_axis(kept, best, np.take_along_axis(error, best, axis=1), axis=1)
    return kept


def _two_by_two(suu, svv, suv, sul, svl, sll):
    """A, B and the squared error of L ~ A u + B v, given the sums of products."""
    determinant = np.maximum(suu * svv - suv**2, 1e-300)
    a, b = (svv * sul - suv * svl) / determinant, (suu * svl - suv * sul) / determinant
    return a, b, sll - a * sul - b * svl


def _log_terms(constants, log_features):
    k = len(log_features)
    powers = constants[..., 1 : k + 1, None] - constants[..., k + 1 :, None] * log_features
    floor = np.broadcast_to(constants[..., :1, None], (*powers.shape[:-2], 1, powers.shape[-1]))
    return np.concatenate([floor, powers], axis=-2)


def _evaluate(constants, log_features, log_loss, weights, delta):
    """Residuals, their derivatives and the objective of each problem of a batch."""
    log_terms = _log_terms(constants, log_features)
    top = log_terms.max(axis=-2)
    terms = np.exp(log_terms - top[:, None, :])
    total = terms.sum(axis=-2)
    residual = log_loss - top - np.log(total)
    shares = terms / total[:, None, :]
    slopes = np.concatenate([shares, -shares[:, 1:] * log_features], axis=1)  # d log L / d constants
    size = np.abs(residual)
    huber = np.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * min(delta, 1e300)))
    return residual, slopes, (weights * huber).sum(axis=1)


def _polish(
    start: Float[np.ndarray, "r 2k+1"],
    log_features: Float[np.ndarray, "k n"],
    log_loss: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, "r n"],
    delta: float,
) -> Solution:
    """Levenberg-Marquardt on the Huber objective, all problems at once; finished ones leave the batch.

    Two curvatures take turns: iteratively reweighted least squares (weight min(1, delta/|r|)), which decreases from
    afar, and Newton's (weight 1 within delta, nearly 0 beyond), which converges near the end, where the first is slow
    because a Huber fit with a small delta is nearly an absolute-value fit.
    """
    delta = float(min(delta, 1e6))
    rows, width = start.shape
    low = np.full(width, -np.inf)
    low[0] = np.log(FLOOR) + log_loss.min()
    high = np.full(width, np.inf)
    low[width // 2 + 1 :], high[width // 2 + 1 :] = EXPONENTS
    objective, moved = np.full(rows, np.inf), np.zeros(rows)
    theta = start.copy()
    active = np.flatnonzero(np.isfinite(start).all(axis=1))
    damping = np.full((2, rows), 1e-3)
    stalled = np.zeros(rows, dtype=int)
    state = _evaluate(theta[active], log_features, log_loss, weights[active], delta)
    objective[active] = state[2]
    for iteration in range(ITERATIONS):
        if not len(active):
            break
        mode = int(iteration >= 10 and iteration % 2)
        residual, slopes, value = state
        w, size = weights[active], np.abs(residual)
        curvature = w * np.where(size <= delta, 1.0, (1e-3 if mode else 1.0) * delta / np.maximum(size, 1e-300))
        gradient = slopes @ (w * np.clip(residual, -delta, delta))[..., None]
        held = _held(theta[active], gradient[..., 0], low, high)[..., None]  # they must not bend the others' step
        slopes, gradient = np.where(held, 0.0, slopes), np.where(held, 0.0, gradient)
        hessian = (slopes * curvature[:, None, :]) @ slopes.transpose(0, 2, 1)
        diagonal = np.einsum("rii->ri", hessian)
        ridge = damping[mode, active][:, None] * diagonal + 1e-14 * diagonal.max(axis=1, keepdims=True) + 1e-300
        step = np.linalg.solve(hessian + ridge[:, :, None] * np.eye(width), gradient)[..., 0]
        trial = np.clip(theta[active] + np.clip(step, -2, 2), low, high)
        candidate = _evaluate(trial, log_features, log_loss, w, delta)
        better = candidate[2] < value
        gained = np.where(better, value - candidate[2], 0.0)
        theta[active[better]] = trial[better]
        damping[mode, active] = np.clip(damping[mode, active] * np.where(better, 0.3, 4.0), 1e-12, 1e12)
        state = tuple(
            np.where(better.reshape(-1, *(1,) * (old.ndim - 1)), new, old)
            for new, old in zip(candidate, state, strict=True)
        )
        objective[active] = state[2]
        stalled[active] = np.where(gained > 1e-13 * value, 0, stalled[active] + 1)
        going = stalled[active] < 14
        if not going.all():
            active, state = active[going], tuple(field[going] for field in state)
    gradient = _relative_gradient(theta, low, high, log_features, log_loss, weights, delta)
    moved = np.abs(theta - start).max(axis=1)
    return Solution(theta, objective, gradient, moved)


def _relative_gradient(theta, low, high, log_features, log_loss, weights, delta):
    """The gradient along each constant that is not held by its bound, relative to the sum of absolute terms."""
    residual, slopes, _ = _evaluate(theta, log_features, log_loss, weights, delta)
    pull = np.clip(residual, -delta, delta)
    worst = np.clip(np.abs(residual).max(axis=1), 1e-9, delta)[:, None]  # rounding is not a gradient
    gradient = (slopes @ (weights * pull)[..., None])[..., 0]
    scale = (np.abs(slopes) @ weights[..., None])[..., 0] * worst
    held = _held(theta, gradient, low, high)
    return np.where(held, 0.0, np.abs(gradient) / np.maximum(scale, 1e-300)).max(axis=1)


def _held(theta, gradient, low, high):
    """Which constants are on a bound that the gradient pushes them against."""
    return ((theta <= low) & (gradient < 0)) | ((theta >= high) & (gradient > 0))
