"""From noise to data: time grids, classifier-free guidance, and two methods of integration over a velocity function.

All on the straight path, z = (1 - t) x0 + t eps. There Euler's step is that of DDIM on any other path between the same
log-SNRs: z_next = (1 - t_next) x0_hat + t_next eps_hat. So what a path of its own is to a sampler is its grid.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sd3_jax.config import FlowConfig
from sd3_jax.flow import paths, timesteps
from sd3_jax.flow.objectives import Velocity


def time_grid(steps: int, shift: float = 1.0, flow: FlowConfig = paths.STRAIGHT) -> Float[Array, " steps+1"]:
    """Times from noise to 0, equidistant before the resolution shift (paper section 5.3.2).

    From where the formulation's own path begins to where it ends, and where that is short of 0, from there to 0 in the
    last step: the network is asked at no log-SNR at which it was not trained.
    """
    first, last = span(flow, shift)
    return timesteps.shift(_down(first, last, steps), shift)


def own_grid(steps: int, shift: float = 1.0, flow: FlowConfig = paths.STRAIGHT) -> Float[Array, " steps+1"]:
    """The same, equidistant in the time of the formulation's own path, whose 0 to 1 training draws from."""
    first, last = span(flow, shift)
    high, low = (float(paths.own_time(jnp.float32(1 - time), jnp.float32(time), flow)) for time in (first, last))
    times = jnp.append(_down(high, low, steps)[:-1], low)  # the last is 0 below, wherever the path ends
    return timesteps.shift(paths.shares(times, flow)[1].at[-1].set(0), shift)


def _down(first: float, last: float, steps: int) -> Float[Array, " steps+1"]:
    return jnp.linspace(first, last, steps + 1) if last == 0 else jnp.append(jnp.linspace(first, last, steps), 0.0)


def scheduler_grid(steps: int, shift: float = 1.0, flow: FlowConfig = paths.STRAIGHT) -> Float[Array, " steps+1"]:
    """The times of diffusers' FlowMatchEulerDiscreteScheduler and of the reference code, as SD3 and SD3.5 are sampled.

    Equidistant from 1 to the shifted 1/1000, shifted again, then 0: the last step is long.
    """
    last = shift / (1000 + shift - 1)
    times = np.linspace(1.0, last, steps)  # float64 throughout, as there
    times = shift * times / (1 + (shift - 1) * times)
    first, least = span(flow)
    return jnp.asarray(np.append(np.clip(times, least, first), 0.0), jnp.float32)


def span(flow: FlowConfig, shift: float = 1.0) -> tuple[float, float]:
    """Where on the straight path a formulation's own path begins and ends: 1 and 0 if in pure noise and pure data.

    With a shift: the times that it brings there.
    """
    low, high = paths.ends(flow)
    with jax.ensure_compile_time_eval():
        first, last = (float(paths.shares(jnp.float32(t), flow)[1]) for t in (high, low))
    return first / (shift - (shift - 1) * first), last / (shift - (shift - 1) * last)


def begin(noise: Float[Array, "b h w c"], first: float) -> Float[Array, "b h w c"]:
    """Where sampling begins: noise, as large as data of unit variance and noise are at the time ``first``."""
    return noise if first == 1 else noise * float(np.hypot(1 - first, first))


def guided(conditional: Velocity, unconditional: Velocity, scale: float) -> Velocity:
    """Classifier-free guidance, v = v_uncond + scale (v_cond - v_uncond); scale 1 is no guidance.

    It is the same of any prediction: for one z each is an affine function of every other.
    """

    def velocity(z: Float[Array, "b h w c"], t: Float[Array, " b"]) -> Float[Array, "b h w c"]:
        base = unconditional(z, t)
        return base + scale * (conditional(z, t) - base)

    return conditional if scale == 1 else velocity


def euler(velocity: Velocity, noise: Float[Array, "b h w c"], grid: Float[Array, " n"]) -> Float[Array, "b h w c"]:
    """Integrate dz = v dt along ``grid`` from noise: z <- z + (t_next - t) v(z, t). Its error is of first order."""
    return integrate(velocity, noise, grid, "euler")[0]


def heun(velocity: Velocity, noise: Float[Array, "b h w c"], grid: Float[Array, " n"]) -> Float[Array, "b h w c"]:
    """Heun's method: the mean of the velocities at both ends of a step. Second order, at two evaluations a step.

    The step to t = 0 is Euler's, as Karras et al. (2022) have it: what a network says of pure data does not count.
    """
    return integrate(velocity, noise, grid, "heun")[0]


def integrate(
    velocity: Velocity, noise: Float[Array, "b h w c"], grid: Float[Array, " n"], method: str = "euler"
) -> tuple[Float[Array, "b h w c"], Float[Array, " b"]]:
    """Where a method of METHODS arrives, and the length of its path, sum ||z_next - z|| (paper Table 6)."""
    step = METHODS[method]

    def one(carry: tuple[Any, Any], interval: tuple[Any, Any]) -> tuple[tuple[Any, Any], None]:
        z, length = carry
        moved = step(velocity, z, *interval)
        return (z + moved, length + jnp.sqrt(jnp.sum(jnp.square(moved), axis=(1, 2, 3)))), None

    (z, length), _ = jax.lax.scan(one, (noise, jnp.zeros(len(noise))), (grid[:-1], grid[1:]))
    return z, length


def _euler_step(velocity: Velocity, z: Any, t: Any, t_next: Any) -> Any:
    return (t_next - t) * velocity(z, jnp.full(z.shape[0], t))


def _heun_step(velocity: Velocity, z: Any, t: Any, t_next: Any) -> Any:
    here = velocity(z, jnp.full(z.shape[0], t))
    there = velocity(z + (t_next - t) * here, jnp.full(z.shape[0], t_next))
    return (t_next - t) * jnp.where(t_next > 0, (here + there) / 2, here)


METHODS: dict[str, Callable[..., Any]] = {"euler": _euler_step, "heun": _heun_step}
GRIDS: dict[str, Callable[..., Any]] = {"uniform": time_grid, "own": own_grid, "scheduler": scheduler_grid}
