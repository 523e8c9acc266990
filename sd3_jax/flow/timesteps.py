"""Where on the path to look: densities of t in training, the resolution shift, levels of the validation loss."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from sd3_jax.config import FlowConfig
from sd3_jax.flow import paths


def sample(key: Key[Array, ""], flow: FlowConfig) -> Float[Array, ""]:
    """One t, of the path's own time, of the training density, resolution shift included (sections 3.1 and 5.3.2)."""
    match flow.density:
        case "uniform":
            t = jax.random.uniform(key)
        case "logit-normal":
            t = jax.nn.sigmoid(flow.mean + flow.scale * jax.random.normal(key))
        case "mode":
            t = mode(jax.random.uniform(key), flow.mode_scale)
        case "cosmap":
            t = cosmap(jax.random.uniform(key))
    if flow.path == "rf" or flow.shift == 1:
        return shift(t, flow.shift)
    a, b = paths.shares(t, flow)
    return paths.own_time(a, flow.shift * b, flow)


def mode(u: Float[Array, "..."], scale: float) -> Float[Array, "..."]:
    """f_mode(u; s) = 1 - u - s (cos^2(pi u / 2) - 1 + u), falling from 1 to 0 (paper equation 20)."""
    return 1 - u - scale * (jnp.cos(jnp.pi / 2 * u) ** 2 - 1 + u)


def cosmap(u: Float[Array, "..."]) -> Float[Array, "..."]:
    """1 - 1 / (tan(pi u / 2) + 1): the rectified flow then has the cosine path's log-SNR (paper equation 21)."""
    a, b = jnp.sin(jnp.pi / 2 * (1 - u)), jnp.sin(jnp.pi / 2 * u)
    return b / (a + b)


def pdf(t: Float[Array, "..."], flow: FlowConfig) -> Float[Array, "..."]:
    """The density of t on (0, 1), before the shift."""
    match flow.density:
        case "uniform":
            return jnp.ones_like(t)
        case "logit-normal":
            return logit_normal_pdf(t, flow.mean, flow.scale)
        case "mode":
            return mode_pdf(t, flow.mode_scale)
        case "cosmap":
            return cosmap_pdf(t)


def logit_normal_pdf(t: Float[Array, "..."], mean: float, scale: float) -> Float[Array, "..."]:
    """pi_ln(t) = exp(-(logit t - m)^2 / (2 s^2)) / (s sqrt(2 pi) t (1 - t)) (paper equation 19)."""
    logit = jnp.log(t) - jnp.log1p(-t)
    return jnp.exp(-((logit - mean) ** 2) / (2 * scale**2)) / (scale * math.sqrt(2 * math.pi) * t * (1 - t))


def mode_pdf(t: Float[Array, "..."], scale: float) -> Float[Array, "..."]:
    """pi_mode(t; s) = |du/dt| where f_mode(u; s) = t: 1 / (1 + s) at both ends, 1 / (1 - s (pi / 2 - 1)) at 1/2."""
    low, high = jnp.zeros_like(t), jnp.ones_like(t)
    for _ in range(40):  # bisection: f_mode falls from 1 to 0
        u = (low + high) / 2
        above = mode(u, scale) > t
        low, high = jnp.where(above, u, low), jnp.where(above, high, u)
    return 1 / (1 + scale * (1 - math.pi / 2 * jnp.sin(jnp.pi * (low + high) / 2)))


def cosmap_pdf(t: Float[Array, "..."]) -> Float[Array, "..."]:
    """pi_CosMap(t) = 2 / (pi - 2 pi t + 2 pi t^2) (paper equation 22)."""
    return 2 / (math.pi * (1 - 2 * t + 2 * t**2))


def shift(t: Float[Array, "..."], alpha: float) -> Float[Array, "..."]:
    """Resolution shift, t -> alpha t / (1 + (alpha - 1) t) (paper equation 23): log-SNR falls by 2 log alpha.

    >>> float(shift(jnp.float32(0.5), 3.0))
    0.75
    """
    return alpha * t / (1 + (alpha - 1) * t)


def levels(count: int = 8) -> Float[Array, " count+1"]:
    """Equidistant levels t = k / count, k = 0..count. The validation loss averages all but the last (t = 1)."""
    return jnp.arange(count + 1, dtype=jnp.float32) / count
