"""The smallest setting that has every part of the real one: 24 px scenes on a 3 x 3 grid, two blocks."""

from typing import Any

from sd3_jax.config import RunConfig, resolve

TINY: dict[str, Any] = {
    "model": {"depth": 2, "head_dim": 8, "patch": 1, "latent_size": 3},
    "model.text_tokens": 6,
    "model.text_dim": 24,
    "model.pooled_dim": 24,
    "data": {"image_size": 24, "downsample": 8, "layout": "grid", "shapes": 4, "colors": 10},
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 4},
    "evaluation": {"examples": 16, "first_step": 4, "per_decade": 4},
    "batch": 16,
    "log_every": 1,
    "steps": 8,
}


def tiny(**overlay: Any) -> RunConfig:
    """The tiny setting, with dotted keys changed."""
    return resolve(TINY, overlay)
