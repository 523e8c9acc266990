"""The rectified-flow path between data and noise (paper section 2, equation 13)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def interpolate(x0: Float[Array, "b ..."], eps: Float[Array, "b ..."], t: Float[Array, " b"]) -> Float[Array, "b ..."]:
    """A point of the path, z_t = (1 - t) x0 + t eps."""
    t = t.reshape(-1, *(1,) * (x0.ndim - 1))
    return (1 - t) * x0 + t * eps


def velocity(x0: Float[Array, "b ..."], eps: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """The path's derivative, v = eps - x0, the same for every t."""
    return eps - x0


def log_snr(t: Float[Array, "..."]) -> Float[Array, "..."]:
    """lambda_t = log(a_t^2 / b_t^2) = 2 log((1 - t) / t)."""
    return 2 * (jnp.log1p(-t) - jnp.log(t))
