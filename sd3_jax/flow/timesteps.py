"""Where on the path to look: densities of t in training, the resolution shift, levels of the validation loss."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from sd3_jax.config import FlowConfig


def sample(key: Key[Array, ""], flow: FlowConfig) -> Float[Array, ""]:
    """One t of the training density, resolution shift included (paper sections 3.1 and 5.3.2)."""
    match flow.density:
        case "uniform":
            t = jax.random.uniform(key)
        case "logit-normal":
            t = jax.nn.sigmoid(flow.mean + flow.scale * jax.random.normal(key))
    return shift(t, flow.shift)


def logit_normal_pdf(t: Float[Array, "..."], mean: float, scale: float) -> Float[Array, "..."]:
    """pi_ln(t) = exp(-(logit t - m)^2 / (2 s^2)) / (s sqrt(2 pi) t (1 - t)) (paper equation 19)."""
    logit = jnp.log(t) - jnp.log1p(-t)
    return jnp.exp(-((logit - mean) ** 2) / (2 * scale**2)) / (scale * math.sqrt(2 * math.pi) * t * (1 - t))


def shift(t: Float[Array, "..."], alpha: float) -> Float[Array, "..."]:
    """Resolution shift, t -> alpha t / (1 + (alpha - 1) t) (paper equation 23): log-SNR falls by 2 log alpha.

    >>> float(shift(jnp.float32(0.5), 3.0))
    0.75
    """
    return alpha * t / (1 + (alpha - 1) * t)


def levels(count: int = 8) -> Float[Array, " count+1"]:
    """Equidistant levels t = k / count, k = 0..count. The validation loss averages all but the last (t = 1)."""
    return jnp.arange(count + 1, dtype=jnp.float32) / count
