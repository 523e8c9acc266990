"""The learning rate, the optax chain, and the average of the weights that is evaluated."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from sd3_jax.config import OptimizerConfig, cooldown_start


def peak_rate(config: OptimizerConfig, width: int) -> float:
    """The constant rate of a model: one for all widths, or proportional to 1/width.

    >>> peak_rate(OptimizerConfig(learning_rate=4e-3, reference_width=64), width=128)
    0.002
    """
    return config.learning_rate * (config.reference_width / width if config.reference_width else 1.0)


def phase(config: OptimizerConfig, step: int, steps: int) -> str:
    """What the rate was doing when the weights after ``step`` updates came to be: which law they belong to."""
    if step <= config.warmup_steps:
        return "warmup"
    if step > cooldown_start(config, steps):
        return "cooldown"
    return "lr_drop" if any(step > drop for drop, _ in config.drops) else "constant"


def schedule(config: OptimizerConfig, width: int, steps: int) -> optax.Schedule:
    """Linear warm-up, then constant, times every drop that has passed, then a linear cooldown to zero."""
    start = cooldown_start(config, steps)

    def rate(count: Int[Array, ""]) -> Float[Array, ""]:
        step = jnp.asarray(count, jnp.float32)  # of the update about to be made, from 0
        value = peak_rate(config, width) * jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
        for drop, factor in config.drops:
            value = jnp.where(step >= drop, value * factor, value)
        return value * jnp.clip((steps - step) / max(steps - start, 1), 0.0, 1.0) if start < steps else value

    return rate


def make(config: OptimizerConfig, width: int, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW; weight decay on matrices only."""

    def matrices(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    adamw = optax.adamw(
        schedule(config, width, steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=matrices,
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw


def ema_exponent(relative_width: float) -> float:
    """gamma of the power-function average whose profile has this standard deviation, as a share of training.

    sigma^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) (Karras et al. 2024, equation 126).

    >>> round(ema_exponent(0.10), 2)
    6.94
    """
    t = relative_width**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def ema_weight(config: OptimizerConfig, step: Int[Array, ""]) -> Float[Array, ""]:
    """How much of the average is replaced by the weights after ``step`` (1, 2, ...) updates.

    power: 1 - (1 - 1/step)^(gamma + 1), self-similar along a run; exponential: 1 - decay every so many steps.
    """
    if config.ema == "power":
        # Through logarithms: the plain form loses 1 % of the weight to rounding at step 500,000.
        return -jnp.expm1((ema_exponent(config.ema_relative_width) + 1) * jnp.log1p(-1 / step.astype(jnp.float32)))
    return jnp.where(step % config.ema_every == 0, 1 - config.ema_decay, 0.0)
