"""Paths between data and noise: the straight one, and where the others lie on it (paper section 2, equations 9 to 18).

A path z = a_t x0 + b_t eps is given by its signal and noise as shares, a + b = 1, at each of its own times t: shares
fix the log-SNR, and what else a path says is a scale. ``tau`` is the share of the noise, the straight path's own time.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float

from sd3_jax.config import FlowConfig

STRAIGHT = FlowConfig()
BETAS = (0.00085, 0.012, 1000)  # of the path linear: the first, the last and the number, Stable Diffusion's
EDGE = 1e-6  # path edm: log sigma is infinite at both ends
TOP = 1e-3  # how close to its ends a path is followed that cannot be followed to them


def interpolate(x0: Float[Array, "b ..."], eps: Float[Array, "b ..."], t: Float[Array, " b"]) -> Float[Array, "b ..."]:
    """A point of the straight path, z_t = (1 - t) x0 + t eps."""
    t = t.reshape(-1, *(1,) * (x0.ndim - 1))
    return (1 - t) * x0 + t * eps


def velocity(x0: Float[Array, "b ..."], eps: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """The straight path's derivative, v = eps - x0, the same for every t."""
    return eps - x0


def log_snr(t: Float[Array, "..."], flow: FlowConfig = STRAIGHT) -> Float[Array, "..."]:
    """lambda_t = log(a_t^2 / b_t^2) at a path's own time.

    rf: 2 log((1 - t) / t); cosine: -2 log tan(pi t / 2); edm: -2 (P_m + P_s Phi^-1(t)), normal where t is uniform;
    linear: LDM's, of 1,000 steps, interpolated.
    """
    match flow.path:
        case "rf":
            return 2 * (jnp.log1p(-t) - jnp.log(t))
        case "cosine":
            return 2 * (jnp.log(jnp.sin(jnp.pi / 2 * (1 - t))) - jnp.log(jnp.sin(jnp.pi / 2 * t)))
        case "edm":
            return -2 * (flow.log_sigma_mean + flow.log_sigma_scale * ndtri(jnp.clip(t, EDGE, 1 - EDGE)))
        case "linear":
            times, levels = _linear()
            return jnp.interp(t, times, levels)


def shares(t: Float[Array, "..."], flow: FlowConfig = STRAIGHT) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Signal and noise (a, b) at a path's own time, scaled to a + b = 1: where it lies on the straight path."""
    match flow.path:
        case "rf":
            return 1 - t, t
        case "cosine":
            a, b = jnp.sin(jnp.pi / 2 * (1 - t)), jnp.sin(jnp.pi / 2 * t)  # sin, as cos does not reach zero at t = 1
            return a / (a + b), b / (a + b)
    half = log_snr(t, flow) / 2
    return jax.nn.sigmoid(half), jax.nn.sigmoid(-half)


def own_time(a: Float[Array, "..."], b: Float[Array, "..."], flow: FlowConfig = STRAIGHT) -> Float[Array, "..."]:
    """The path's own time at which signal and noise are in the ratio a : b; the nearest where it never reaches it."""
    match flow.path:
        case "rf":
            return b / (a + b)
        case "cosine":
            return 2 / jnp.pi * jnp.arctan2(b, a)
        case "edm":
            return ndtr((jnp.log(b) - jnp.log(a) - flow.log_sigma_mean) / flow.log_sigma_scale)
        case "linear":
            times, levels = _linear()
            return jnp.interp(2 * (jnp.log(a) - jnp.log(b)), levels[::-1], times[::-1])


def ends(flow: FlowConfig) -> tuple[float, float]:
    """The path's own times between which the network is asked: 0 and 1, but where log sigma would be infinite there.

    So it is for the path edm and for the prediction F. And from noise alone no x0 follows of the prediction eps.
    """
    if flow.path == "edm" or (flow.prediction == "F" and flow.path != "linear"):
        return TOP, 1 - TOP
    return 0.0, 1 - TOP if flow.prediction == "eps" and flow.path != "linear" else 1.0


def angular_rate(t: Float[Array, "..."], flow: FlowConfig) -> Float[Array, "..."]:
    """d phi / d t of tan phi = b / a: how fast a path of a^2 + b^2 = 1 moves, -(lambda'_t / 4) sin 2 phi.

    pi / 2 for the cosine path, whose angle is pi t / 2.
    """
    if flow.path == "cosine":
        return jnp.full_like(t, math.pi / 2)
    level, rate = jax.jvp(lambda x: log_snr(x, flow), (t,), (jnp.ones_like(t),))
    return -rate / 4 / jnp.cosh(level / 2)


@functools.cache
def _linear() -> tuple[np.ndarray, np.ndarray]:
    """LDM's times and log-SNR: beta_s = (sqrt(beta_0) + s (sqrt(beta_1) - sqrt(beta_0)))^2, a_t^2 = prod (1 - beta)."""
    first, last, number = BETAS
    betas = np.linspace(math.sqrt(first), math.sqrt(last), number) ** 2
    power = np.cumsum(np.log1p(-betas))  # log a^2
    return np.linspace(0, 1, number), power - np.log(-np.expm1(power))
