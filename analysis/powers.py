"""Sums of power laws, L = E + sum_k A_k x_k^-p_k: values, derivatives, and where a fit of them starts.

Rows of constants are (log E, log A_1.., p_1..). With ``floor`` false there is no E; with ``tied`` true all terms have
one exponent. For given exponents such a law is linear in E and A, which gives every problem a start of its own from
a grid of exponents (variable projection).
"""

import numpy as np
from jaxtyping import Float

EXPONENTS = (0.01, 3.0)  # bounds; a fit that ends on one says so
FLOOR = 1e-6  # least E, as a share of the smallest loss


def evaluate(
    constants: Float[np.ndarray, "r p"], log_features: Float[np.ndarray, "k n"], floor: bool, tied: bool
) -> tuple[Float[np.ndarray, "r n"], Float[np.ndarray, "r p n"]]:
    """log L, by log-sum-exp, and its derivatives by the constants."""
    first, k = int(floor), len(log_features)
    log_terms = constants[:, first : first + k, None] - constants[:, first + k :, None] * log_features
    if floor:
        level = np.broadcast_to(constants[:, :1, None], (len(constants), 1, log_features.shape[1]))
        log_terms = np.concatenate([level, log_terms], axis=1)
    top = log_terms.max(axis=1)
    terms = np.exp(log_terms - top[:, None])
    total = terms.sum(axis=1)
    shares = terms / total[:, None]
    by_exponent = -shares[:, first:] * log_features
    if tied:
        by_exponent = by_exponent.sum(axis=1, keepdims=True)
    return top + np.log(total), np.concatenate([shares, by_exponent], axis=1)


def bounds(
    log_features: Float[np.ndarray, "k n"], log_loss: Float[np.ndarray, " n"], floor: bool, tied: bool
) -> tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
    """Lowest and highest constants: of E a share of the smallest loss, of exponents :data:`EXPONENTS`."""
    exponents = 1 if tied else len(log_features)
    low = np.array([-np.inf] * (int(floor) + len(log_features)) + [EXPONENTS[0]] * exponents)
    high = np.array([np.inf] * (int(floor) + len(log_features)) + [EXPONENTS[1]] * exponents)
    if floor:
        low[0] = np.log(FLOOR) + log_loss.min()
    return low, high


def shift(
    constants: Float[np.ndarray, "r p"], centre: Float[np.ndarray, " k"], scale: float, floor: bool, tied: bool
) -> Float[np.ndarray, "r p"]:
    """Constants for features x exp(centre) and losses L exp(scale), from those for x and L."""
    first, k = int(floor), len(centre)
    shifted = constants.copy()
    shifted[:, : first + k] += scale
    shifted[:, first : first + k] += constants[:, first + k :] * centre
    return shifted


@np.errstate(over="ignore", invalid="ignore")  # where two powers are all but one, what is not finite is left out
def starts(
    log_features: Float[np.ndarray, "k n"],
    log_loss: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, "r n"],
    number: int,
    floor: bool,
    tied: bool,
) -> Float[np.ndarray, "r s p"]:
    """Constants at the best ``number`` cells of a grid of exponents (nan: no cell has E >= 0 and every A > 0).

    Minimises sum_i w_i (L_i - E - sum_k A_k x_k^-p_k)^2 / L_i^2, whose Gram entries on the whole grid are matrix
    products. E is eliminated first; where it comes out negative it is zero and the A's are solved without it. The
    grid is finer where several starts are asked for.
    """
    cells = 40 if number == 1 else 96
    grid = np.geomspace(2 * EXPONENTS[0], 0.8 * EXPONENTS[1], cells)
    loss = np.exp(log_loss)
    w = weights / loss**2
    powers = np.exp(-grid[None, :, None] * log_features[:, None, :])  # [k, cells, n]
    sums, squares, products = ([v @ x.T for x in y] for v, y in ((w, powers), (w, powers**2), (w * loss, powers)))
    total, with_loss, with_square = w.sum(axis=1, keepdims=True), w @ loss[:, None], w @ loss[:, None] ** 2
    axes, cross = [np.arange(cells)], None
    if len(powers) == 2 and tied:
        cross = w @ (powers[0] * powers[1]).T
    elif len(powers) == 2:
        axes = list(np.indices((cells, cells)).reshape(2, -1))
        cross = (powers[0] * w[:, None, :]) @ powers[1].T
        sums, squares, products = ([x[:, :, None], y[:, None, :]] for x, y in (sums, squares, products))
        total, with_loss, with_square = (x[..., None] for x in (total, with_loss, with_square))
    amplitudes, error = _amplitudes(squares, cross, products, with_square)
    level = np.zeros_like(error)
    valid = np.all([one > 0 for one in amplitudes], axis=0)
    if floor:  # E > 0 wherever that is possible: it has one more freedom
        less = None if cross is None else cross - sums[0] * sums[1] / total
        freed, freed_error = _amplitudes(
            [square - x**2 / total for square, x in zip(squares, sums, strict=True)],
            less,
            [product - x * with_loss / total for product, x in zip(products, sums, strict=True)],
            with_square - with_loss**2 / total,
        )
        freed_level = (with_loss - sum(a * x for a, x in zip(freed, sums, strict=True))) / total
        possible = (freed_level >= 0) & np.isfinite(freed_error) & np.all([one > 0 for one in freed], axis=0)
        better = possible & ((freed_error <= error) | ~valid)
        error, level = np.where(better, freed_error, error), np.where(better, freed_level, level)
        amplitudes = [np.where(better, new, old) for new, old in zip(freed, amplitudes, strict=True)]
        valid = valid | better
    error = np.where(valid & np.isfinite(error), error, np.inf).reshape(len(w), -1)
    if number > 1:
        error = _best_of_blocks(error, axes)
    order = np.argsort(error, axis=1)[:, :number]
    found = np.isfinite(np.take_along_axis(error, order, axis=1))
    level, *amplitudes = (np.take_along_axis(x.reshape(len(w), -1), order, axis=1) for x in (level, *amplitudes))
    logs = [np.log(np.where(found, amplitude, 1.0)) for amplitude in amplitudes]
    if floor:
        logs.insert(0, np.log(np.maximum(level, FLOOR * loss.min())))
    constants = np.stack([*logs, *(grid[axis[order]] for axis in axes)], axis=-1)
    return np.where(found[..., None], constants, np.nan)


def _amplitudes(squares, cross, products, with_square):
    """Amplitudes and squared error of L ~ sum_k A_k u_k, one or two terms, given the sums of products."""
    if cross is None:
        amplitudes = [products[0] / np.maximum(squares[0], 1e-300)]
    else:
        (uu, vv), (ul, vl) = squares, products
        determinant = np.maximum(uu * vv - cross**2, 1e-300)
        amplitudes = [(vv * ul - cross * vl) / determinant, (uu * vl - cross * ul) / determinant]
    return amplitudes, with_square - sum(a * x for a, x in zip(amplitudes, products, strict=True))


def _best_of_blocks(error, axes):
    """Of each block of 4 (x 4) neighbouring cells only the best stays finite, so that several starts are not one."""
    block = sum(axis // 4 * 1000**i for i, axis in enumerate(axes))
    kept = np.full_like(error, np.inf)
    for label in np.unique(block):
        inside = np.flatnonzero(block == label)
        best = inside[error[:, inside].argmin(axis=1)][:, None]
        np.put_along_axis(kept, best, np.take_along_axis(error, best, axis=1), axis=1)
    return kept
