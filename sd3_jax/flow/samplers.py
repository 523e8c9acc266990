"""From noise to data: time grids, classifier-free guidance, and Euler's method over a velocity function."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sd3_jax.flow import timesteps
from sd3_jax.flow.objectives import Velocity


def time_grid(steps: int, shift: float = 1.0) -> Float[Array, " steps+1"]:
    """Times from 1 to 0, equidistant before the resolution shift (paper section 5.3.2)."""
    return timesteps.shift(jnp.linspace(1.0, 0.0, steps + 1), shift)


def scheduler_grid(steps: int, shift: float = 1.0) -> Float[Array, " steps+1"]:
    """The times of diffusers' FlowMatchEulerDiscreteScheduler and of the reference code, for comparing with them.

    Equidistant from 1 to the shifted 1/1000, shifted again, then 0: the last step is long.
    """
    last = shift / (1000 + shift - 1)
    times = np.linspace(1.0, last, steps)  # float64 throughout, as there
    times = shift * times / (1 + (shift - 1) * times)
    return jnp.asarray(np.append(times, 0.0), jnp.float32)


def guided(conditional: Velocity, unconditional: Velocity, scale: float) -> Velocity:
    """Classifier-free guidance, v = v_uncond + scale (v_cond - v_uncond); scale 1 is no guidance."""

    def velocity(z: Float[Array, "b h w c"], t: Float[Array, " b"]) -> Float[Array, "b h w c"]:
        base = unconditional(z, t)
        return base + scale * (conditional(z, t) - base)

    return conditional if scale == 1 else velocity


def euler(
    velocity: Velocity, noise: Float[Array, "b h w c"], grid: Float[Array, " steps+1"]
) -> Float[Array, "b h w c"]:
    """Integrate dz = v dt along ``grid`` from noise: z <- z + (t_next - t) v(z, t)."""

    def step(z: Float[Array, "b h w c"], interval: tuple) -> tuple[Float[Array, "b h w c"], None]:
        t, t_next = interval
        return z + (t_next - t) * velocity(z, jnp.full(z.shape[0], t)), None

    z, _ = jax.lax.scan(step, noise, (grid[:-1], grid[1:]))
    return z
