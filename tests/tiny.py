"""The smallest setting that has every part of the real one: 24 px scenes on a 3 x 3 grid, two blocks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sd3_jax import records
from sd3_jax.config import RunConfig
from sd3_jax.overlays import resolve
from sd3_jax.training import checkpoint, optimizer
from sd3_jax.training.step import TrainState, init_params

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


def write_checkpoints(run_dir: Path, config: RunConfig, steps: Sequence[int]) -> None:
    """A run directory with checkpoints of weights that draw something (a fresh network draws only noise), untrained."""
    records.open_run(run_dir, config)
    like = jax.eval_shape(lambda: init_params(config.model, jax.random.key(0)))
    optim = optimizer.make(config.optimizer, config.model.width, max(steps))
    saver = checkpoint.Saver(run_dir / "checkpoints", tuple(steps))
    for step in steps:
        leaves, tree = jax.tree.flatten(like)
        keys = jax.random.split(jax.random.key(step + 100 * config.seed), 2 * len(leaves))
        draw = [0.2 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, 2 * leaves, strict=True)]
        params, ema = (jax.tree.unflatten(tree, half) for half in (draw[: len(leaves)], draw[len(leaves) :]))
        saver.save(step, TrainState(jnp.int32(step), params, ema, optim.init(params)))
    saver.close()
