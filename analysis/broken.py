"""The broken power law L = E + A x^-c0 prod_i (1 + (x / d_i)^(1 / f_i))^(-c_i f_i) of Caballero et al. 2023.

A power law whose exponent changes from c0 to c0 + c1 about x = d1, the more gently the larger f1, and so on. Rows of
constants are (log E, log A, c0, then c_i, log d_i, log f_i of each break).
"""

import itertools

import numpy as np
from jaxtyping import Float
from scipy import special

from analysis.powers import FLOOR

SLOPE = 10.0  # exponents lie within +- this: a broken law may rise
SHARPNESS = (0.02, 5.0)  # f: narrower than any spacing of points, wider than any table
PLACES = 9  # where breaks may start, evenly over the points in the order of x
LEVELS = (FLOOR, 0.5, 0.8, 0.95)  # E where a fit may start, as shares of the smallest loss
WIDTHS = (0.1, 0.5)  # f likewise


def evaluate(
    constants: Float[np.ndarray, "r p"], log_features: Float[np.ndarray, "1 n"]
) -> tuple[Float[np.ndarray, "r n"], Float[np.ndarray, "r p n"]]:
    """log L and its derivatives by the constants."""
    x = log_features[0]
    bends = [_bend(constants[:, i : i + 3, None], x) for i in range(3, constants.shape[1], 3)]
    log_power = constants[:, 1:2] - constants[:, 2:3] * x - sum(value for value, _ in bends)
    level = np.broadcast_to(constants[:, :1], log_power.shape)
    found = np.logaddexp(level, log_power)
    share = np.exp(log_power - found)
    slopes = [1 - share, share, -share * x, *(-share * slope for _, own in bends for slope in own)]
    return found, np.stack(slopes, axis=1)


def _bend(constants, x):
    """c f log(1 + (x / d)^(1 / f)) and its derivatives by c, log d and log f."""
    change, place, log_width = constants[:, 0], constants[:, 1], constants[:, 2]
    width = np.exp(log_width)
    z = (x - place) / width
    soft, share = np.logaddexp(0, z), special.expit(z)
    return change * width * soft, (width * soft, -change * share, change * width * (soft - z * share))


def bounds(
    log_features: Float[np.ndarray, "1 n"], log_loss: Float[np.ndarray, " n"], breaks: int
) -> tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
    """Lowest and highest constants; breaks lie within the data."""
    x = log_features[0]
    narrow, wide = np.log(SHARPNESS)
    low = [np.log(FLOOR) + log_loss.min(), -np.inf, -SLOPE, *([-2 * SLOPE, x.min(), narrow] * breaks)]
    high = [log_loss.min(), np.inf, SLOPE, *([2 * SLOPE, x.max(), wide] * breaks)]
    return np.array(low), np.array(high)


def shift(constants: Float[np.ndarray, "r p"], centre: Float[np.ndarray, "1"], scale: float) -> np.ndarray:
    """Constants for x exp(centre) and L exp(scale), from those for x and L."""
    shifted = constants.copy()
    shifted[:, :2] += scale
    shifted[:, 1] += constants[:, 2] * centre[0]
    shifted[:, 4::3] += centre[0]
    return shifted


def starts(
    log_features: Float[np.ndarray, "1 n"],
    log_loss: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, "r n"],
    number: int,
    breaks: int,
) -> Float[np.ndarray, "r s p"]:
    """The best ``number`` of straight lines in (log x, log(L - E)) with kinks, over a grid of E, kinks and widths.

    For given E and kinks such a line is linear in the rest.
    """
    x = log_features[0]
    loss = np.exp(log_loss)
    places = np.quantile(x, np.arange(1, PLACES + 1) / (PLACES + 1))
    low, high = bounds(log_features, log_loss, breaks)
    found = []
    for share, kinks in itertools.product(LEVELS, itertools.combinations(places, breaks)):
        level = share * loss.min()
        y, w = np.log(loss - level), weights * ((loss - level) / loss) ** 2  # an error of log L is one of these logs
        basis = np.stack([np.ones_like(x), -x, *(-np.maximum(x - kink, 0) for kink in kinks)])
        gram = (w[:, None] * basis) @ basis.T
        gram += 1e-9 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(len(basis))
        line = np.linalg.solve(gram, ((w * y) @ basis.T)[..., None])[..., 0]
        for width in WIDTHS:
            breaks_of = [column for i, kink in enumerate(kinks) for column in (line[:, 2 + i], kink, np.log(width))]
            columns = [np.log(level), *line[:, :2].T, *breaks_of]
            constants = np.stack([np.broadcast_to(column, len(w)) for column in columns], axis=1)
            found.append(np.clip(constants, low, high))
    errors = [(weights * (evaluate(one, log_features)[0] - log_loss) ** 2).sum(axis=1) for one in found]
    order = np.argsort(errors, axis=0)[:number]
    return np.take_along_axis(np.stack(found), order[..., None], axis=0).transpose(1, 0, 2)
