"""Training targets and losses. A loss returns one number an example; the caller averages.

With a x0 + b eps = z, a + b = 1, r^2 = a^2 + b^2, s^2 = b^2 + a^2 sigma_d^2, and phi the angle of tan phi = b / a,

    prediction   target                                  network sees    at time        error, of the noise's
    velocity     eps - x0                 (path rf)      z               t              1 / a
                 phi' (a eps - b x0) / r  (others)       z / r           t              phi' r / a
    eps          eps                                     as velocity     t              1
    v            (a eps - b x0) / r                      as velocity     t              r / a
    F            (b x0 - a sigma_d^2 eps) / (s sigma_d)  z / s           -lambda / 8    s / (a sigma_d)

The last column is |target error| / |eps error| for the same z: its square is the weight of the formulation in the
paper's form -(1/2) w_t lambda'_t ||eps_hat - eps||^2 (equation 7). F is Karras et al.'s preconditioning (2022).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from sd3_jax.config import FlowConfig
from sd3_jax.flow import paths

# (z [b h w c], t [b]) -> v [b h w c]; Any, since Linen's apply has no narrower type
Velocity = Callable[[Float[Array, "b h w c"], Float[Array, " b"]], Any]
Network = Callable[[Float[Array, "b h w c"], Float[Array, " b"]], Any]  # the same of raw input, time and output
LEAST = 1e-5  # share of signal or noise below which the network is not asked: logarithms and 1 / a stay finite


def loss(
    network: Network,
    flow: FlowConfig,
    x0: Float[Array, "b h w c"],
    eps: Float[Array, "b h w c"],
    t: Float[Array, " b"],
) -> Float[Array, " b"]:
    """The squared error of a formulation at its path's own time t, averaged over the numbers of a latent."""
    if is_straight(flow) and flow.weight in ("own", "velocity"):
        return velocity_loss(network, x0, eps, t)
    a, b = paths.shares(t, flow)
    z = _wide(a, x0) * x0 + _wide(b, x0) * eps
    error = _ask(network, flow, z, a, b, t).astype(jnp.float32) - target(flow, x0, eps, a, b, t)
    own = jnp.mean(jnp.square(error), axis=(1, 2, 3))
    if flow.weight in ("own", flow.prediction):
        return own
    ratio = error_scale(flow, flow.weight, a, b, t) / error_scale(flow, flow.prediction, a, b, t)
    return own * jnp.square(ratio)


def velocity_loss(
    model: Velocity, x0: Float[Array, "b h w c"], eps: Float[Array, "b h w c"], t: Float[Array, " b"]
) -> Float[Array, " b"]:
    """||v(z_t, t) - (eps - x0)||^2 on the straight path, averaged over the numbers of a latent (paper equation 6)."""
    error = model(paths.interpolate(x0, eps, t), t).astype(jnp.float32) - paths.velocity(x0, eps)
    return jnp.mean(jnp.square(error), axis=(1, 2, 3))


def velocity_of(network: Network, flow: FlowConfig) -> Velocity:
    """v(z, tau) = eps_hat - x0_hat on the straight path, of a network that predicts as ``flow`` says.

    What network a formulation trains, samplers and the validation loss see as this. It is told no time at which it was
    not trained, and signal and noise are at least LEAST, so that what is divided by them stays finite.
    """
    if is_straight(flow):
        return network
    low, high = paths.ends(flow)

    def velocity(z: Float[Array, "b h w c"], tau: Float[Array, " b"]) -> Float[Array, "b h w c"]:
        b = jnp.clip(tau, LEAST, 1 - LEAST)
        a = jnp.clip(1 - tau, LEAST, 1 - LEAST)
        t = jnp.clip(paths.own_time(a, b, flow), low, high)
        q = _ask(network, flow, z, a, b, t).astype(jnp.float32)
        a, b, r, s = (_wide(one, z) for one in _norms(a, b, flow))
        match flow.prediction:
            case "eps":
                return (q - z) / a
            case "velocity":
                q = q if flow.path == "rf" else q / _wide(paths.angular_rate(t, flow), z)
                return q if flow.path == "rf" else ((b - a) * z / r + q) / r
            case "v":
                return ((b - a) * z / r + q) / r
            case "F":
                return (b - a * flow.data_scale**2) * z / s**2 - flow.data_scale * q / s

    return velocity


def target(
    flow: FlowConfig,
    x0: Float[Array, "b h w c"],
    eps: Float[Array, "b h w c"],
    a: Float[Array, " b"],
    b: Float[Array, " b"],
    t: Float[Array, " b"],
) -> Float[Array, "b h w c"]:
    """What the network is to say at shares a, b of signal and noise, the path's own time t."""
    a, b, r, s = (_wide(one, x0) for one in _norms(a, b, flow))
    match flow.prediction:
        case "eps":
            return eps
        case "F":
            return (b * x0 - a * flow.data_scale**2 * eps) / (s * flow.data_scale)
        case "velocity" if flow.path == "rf":
            return paths.velocity(x0, eps)
        case "velocity":
            return _wide(paths.angular_rate(t, flow), x0) * (a * eps - b * x0) / r
        case "v":
            return (a * eps - b * x0) / r


def error_scale(
    flow: FlowConfig, prediction: str, a: Float[Array, " b"], b: Float[Array, " b"], t: Float[Array, " b"]
) -> Float[Array, " b"]:
    """|error of a prediction| / |error of the noise| for the same z: the last column above."""
    a = jnp.maximum(a, LEAST)
    a, b, r, s = _norms(a, b, flow)
    match prediction:
        case "eps":
            return jnp.ones_like(a)
        case "v":
            return r / a
        case "F":
            return s / (a * flow.data_scale)
    return 1 / a if flow.path == "rf" else paths.angular_rate(t, flow) * r / a


def is_straight(flow: FlowConfig) -> bool:
    """Whether the network says the straight path's velocity itself."""
    return flow.path == "rf" and flow.prediction == "velocity"


def _ask(
    network: Network,
    flow: FlowConfig,
    z: Float[Array, "b h w c"],
    a: Float[Array, " b"],
    b: Float[Array, " b"],
    t: Float[Array, " b"],
) -> Any:
    """The network's output at z = a x0 + b eps, scaled and timed as it is used to."""
    a, b, r, s = _norms(a, b, flow)
    if flow.prediction == "F":
        noise = -paths.log_snr(jnp.clip(t, LEAST, 1 - LEAST), flow) / 8  # c_noise, a quarter of log sigma
        return network(z / _wide(s, z), noise)
    return network(z if flow.path == "rf" else z / _wide(r, z), t)


def _norms(a: Float[Array, " b"], b: Float[Array, " b"], flow: FlowConfig) -> tuple[Float[Array, " b"], ...]:
    """a, b, r, s."""
    return a, b, jnp.hypot(a, b), jnp.hypot(b, a * flow.data_scale)


def _wide(x: Float[Array, " b"], like: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 1"]:
    return x.reshape(-1, *(1,) * (like.ndim - 1))
