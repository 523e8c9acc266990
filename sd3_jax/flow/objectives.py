"""Training targets and losses. A loss returns one number an example; the caller averages."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from sd3_jax.flow import paths

# (z [b h w c], t [b]) -> v [b h w c]; Any, since Linen's apply has no narrower type
Velocity = Callable[[Float[Array, "b h w c"], Float[Array, " b"]], Any]


def velocity_loss(
    model: Velocity, x0: Float[Array, "b h w c"], eps: Float[Array, "b h w c"], t: Float[Array, " b"]
) -> Float[Array, " b"]:
    """||v(z_t, t) - (eps - x0)||^2, averaged over the numbers of a latent (paper equation 6 for rectified flow)."""
    error = model(paths.interpolate(x0, eps, t), t).astype(jnp.float32) - paths.velocity(x0, eps)
    return jnp.mean(jnp.square(error), axis=(1, 2, 3))
