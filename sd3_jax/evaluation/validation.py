"""The fixed, stratified validation loss (paper sections 5.2.1 and B.3): everything but the weights is fixed.

The same examples, and for each (example, level) the same noise; levels t = k/8, k = 0..8. The loss is the mean
over k = 0..7: at t = 1 the input says nothing of the image. (At t = 0 the optimum is Var(eps) = 1, a constant
eighth of the mean.) Text is never dropped. Whatever a network predicts, it is asked for the velocity of the straight
path at these levels, so that formulations are measured by one loss, at the same log-SNRs.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from sd3_jax.config import RunConfig
from sd3_jax.data import scenes
from sd3_jax.flow import objectives, timesteps
from sd3_jax.training import sharding

LEVELS = 8  # the mean's levels; one more, t = 1, is measured


def make_eval(config: RunConfig, model: nn.Module, mesh: Mesh) -> Any:
    """``evaluate(params) -> {"loss", "loss_se", "loss_t0".."loss_t8"}`` as Python floats.

    ``loss_se`` is the Monte-Carlo standard error over examples. All examples pass the mesh in chunks of at most
    the training batch; a chunk that is not full repeats an example and leaves it out of the mean.
    """
    count, devices = config.evaluation.examples, mesh.size
    chunk = min(config.batch, -(-count // devices) * devices)
    chunks = np.minimum(np.arange(-(-count // chunk) * chunk), count - 1).reshape(-1, chunk)
    times = timesteps.levels(LEVELS)

    # Two programs: what is drawn is the same for every model size, and compiled once for all of them.
    @partial(jax.jit, out_shardings=sharding.batch_sharding(mesh))
    def draw(example: Int[Array, " b"]) -> tuple[scenes.Batch, Float[Array, "b levels h w c"]]:
        seed = config.evaluation.seed
        key = jax.vmap(lambda i: scenes.example_key(seed, scenes.VALIDATION, 0, i))(example)
        key = jax.lax.with_sharding_constraint(key, sharding.batch_sharding(mesh))
        data_key, eps_key = jnp.unstack(jax.vmap(jax.random.split)(key), axis=1)
        batch = scenes.batch(data_key, config.data, config.model, dropout=0.0)
        shape = (len(times), *batch.x0.shape[1:])
        return batch, jax.vmap(lambda k: jax.random.normal(k, shape))(eps_key)

    @partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def losses(params: Any, batch: scenes.Batch, eps: Float[Array, "b levels h w c"]) -> Float[Array, "levels b"]:
        def at(level: tuple[Float[Array, ""], Float[Array, "b h w c"]]) -> Float[Array, " b"]:
            t, eps = level
            network = lambda z, t: model.apply({"params": params}, z, t, batch.tokens, batch.pooled)  # noqa: E731
            velocity = objectives.velocity_of(network, config.flow)
            return objectives.velocity_loss(velocity, batch.x0, eps, jnp.full(len(eps), t))

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for layers.along_batch
            return jax.lax.map(at, (times, jnp.moveaxis(eps, 1, 0)))

    def evaluate(params: Any) -> dict[str, float]:
        table = [np.asarray(losses(params, *draw(example))).T for example in chunks]
        return summarize(np.concatenate(table)[:count])

    return evaluate


def summarize(table: Float[np.ndarray, "examples levels"]) -> dict[str, float]:
    """The row of a validation: mean over examples and over all levels but the last, its error, each level."""
    each = table[:, :-1].astype(np.float64).mean(axis=1)
    error = each.std(ddof=1) / np.sqrt(len(each)) if len(each) > 1 else float("nan")
    levels = {f"loss_t{k}": float(value) for k, value in enumerate(table.astype(np.float64).mean(axis=0))}
    return {"loss": float(each.mean()), "loss_se": float(error), **levels}


def due(config: RunConfig, step: int, steps: int, budget_steps: frozenset[int]) -> bool:
    """Is the validation loss measured after ``step`` updates?

    At the log-spaced steps, every ``every`` steps, at the last step within each FLOP budget, wherever a checkpoint is
    kept (its pictures' scores belong to a loss), and at the end. The log-spaced grid does not depend on the run's
    length, so that a longer run measures at the same steps.
    """
    spec = config.evaluation
    if step == steps or step in budget_steps or step in config.keep_steps:
        return True
    if step < spec.first_step:
        return False
    return step in log_grid(spec.per_decade, step) or bool(spec.every and step % spec.every == 0)


def log_grid(per_decade: int, step: int) -> set[int]:
    """The log-spaced steps next to ``step``: round(10^(k / per_decade)).

    >>> sorted(log_grid(1, 95))
    [10, 100]
    """
    if not per_decade:
        return set()
    k = int(np.floor(np.log10(step) * per_decade))
    return {round(10 ** (i / per_decade)) for i in (k, k + 1)}
