"""The fixed, stratified validation loss (paper sections 5.2.1 and B.3): everything but the weights is fixed.

The same examples, and for each (example, level) the same noise; levels t = k/8, k = 0..8. The loss is the mean
over k = 0..7: at t = 1 the input says nothing of the image. (At t = 0 the optimum is Var(eps) = 1, a constant
eighth of the mean.) Text is never dropped. Whatever a network predicts, it is asked for the velocity of the straight
path at these levels, so that formulations are measured by one loss, at the same log-SNRs. On a public yardstick, COCO
as MLPerf's text-to-image benchmark takes it, an example has one level alone (``evaluation.levels: round-robin``).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from sd3_jax.config import RunConfig
from sd3_jax.data import latents, scenes
from sd3_jax.data.latents import Prepared, Rows
from sd3_jax.flow import objectives, timesteps
from sd3_jax.training import encoded, sharding

LEVELS = 8  # the mean's levels; one more, t = 1, is measured


class Batch(NamedTuple):
    """Examples that pass the mesh together; one that fills up the last of them is there twice, and counted once."""

    rank: Int[np.ndarray, " b"]  # of each among all of them
    examples: scenes.Batch
    eps: Float[Array, "b levels h w c"]


def make_eval(config: RunConfig, model: nn.Module, mesh: Mesh, prepared: Prepared | None = None) -> Any:
    """``evaluate(params) -> {"loss", "loss_se", "loss_t0".."loss_t8"}`` as Python floats.

    ``loss_se`` is the Monte-Carlo standard error over examples. ``prepared``: what is measured on, if not scenes. All
    examples pass the mesh in chunks of at most the training batch.
    """
    spec = config.evaluation
    levels = len(timesteps.levels(LEVELS)) if spec.levels == "every" else 1
    draw = _of_scenes(config, mesh, levels) if prepared is None else _of_set(config, mesh, levels, prepared)

    @partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def losses(
        params: Any, batch: scenes.Batch, eps: Float[Array, "b levels h w c"], times: Float[Array, "levels b"]
    ) -> Float[Array, "levels b"]:
        def at(level: tuple[Float[Array, " b"], Float[Array, "b h w c"]]) -> Float[Array, " b"]:
            t, eps = level
            network = lambda z, t: model.apply({"params": params}, z, t, batch.tokens, batch.pooled)  # noqa: E731
            velocity = objectives.velocity_of(network, config.flow)
            return objectives.velocity_loss(velocity, batch.x0, eps, t)

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for layers.along_batch
            return jax.lax.map(at, (times, jnp.moveaxis(eps, 1, 0)))

    def evaluate(params: Any) -> dict[str, float]:
        table = np.empty((spec.examples, levels), np.float32)
        for rank, examples, eps in draw():
            table[rank] = np.asarray(losses(params, examples, eps, times_of(rank, spec.levels))).T
        return summarize(table) if spec.levels == "every" else summarize_robin(table[:, 0])

    return evaluate


def times_of(rank: Int[np.ndarray, " b"], rule: str) -> Float[np.ndarray, "levels b"]:
    """The levels that each example is looked at: all of them, or one in turn, never t = 1."""
    if rule == "every":
        return np.broadcast_to(np.asarray(timesteps.levels(LEVELS))[:, None], (LEVELS + 1, len(rank)))
    return (rank[None] % LEVELS / LEVELS).astype(np.float32)


def _of_scenes(config: RunConfig, mesh: Mesh, levels: int) -> Callable[[], Iterator[Batch]]:
    # Apart from the losses: what is drawn is the same for every model size, and compiled once for all of them.
    @partial(jax.jit, out_shardings=sharding.batch_sharding(mesh))
    def draw(rank: Int[Array, " b"]) -> tuple[scenes.Batch, Float[Array, "b levels h w c"]]:
        data_key, eps_key = _keys(rank, config.evaluation.seed, mesh)
        batch = scenes.batch(data_key, config.data, config.model, dropout=0.0)
        return batch, _noise(eps_key, (levels, *batch.x0.shape[1:]))

    def drawn() -> Iterator[Batch]:
        for rank in _chunks(np.arange(config.evaluation.examples), config, mesh):
            yield Batch(rank, *draw(rank))

    return drawn


def _of_set(config: RunConfig, mesh: Mesh, levels: int, prepared: Prepared) -> Callable[[], Iterator[Batch]]:
    spec = config.evaluation
    chosen = latents.choose(prepared, spec.examples, spec.seed)
    ranks = [chunk for group in chosen for chunk in _chunks(group.rank, config, mesh)]
    records = [chunk for group in chosen for chunk in _chunks(group.record, config, mesh)]

    @partial(jax.jit, out_shardings=sharding.batch_sharding(mesh))
    def finish(stored: Rows, rank: Int[Array, " b"]) -> tuple[scenes.Batch, Float[Array, "b levels h w c"]]:
        data_key, eps_key = _keys(rank, spec.seed, mesh)
        batch = encoded.decode(stored, data_key, prepared.manifest, dropout=0.0)
        return batch, _noise(eps_key, (levels, *batch.x0.shape[1:]))

    def drawn() -> Iterator[Batch]:
        rows = [encoded.local_rows(mesh, len(rank)) for rank in ranks]
        own = [record[mine] for record, mine in zip(records, rows, strict=True)]
        for rank, mine, stored in zip(ranks, rows, latents.read_chunks(prepared, own), strict=True):
            yield Batch(rank, *finish(encoded.onto(mesh, stored, mine, len(rank)), rank))

    return drawn


def _chunks(numbers: Int[np.ndarray, " n"], config: RunConfig, mesh: Mesh) -> list[Int[np.ndarray, " b"]]:
    """Equal ones, that divide over the mesh and are no larger than a training batch; the last number fills them up."""
    chunk = min(config.batch, -(-len(numbers) // mesh.size) * mesh.size)
    filled = np.minimum(np.arange(-(-len(numbers) // chunk) * chunk), len(numbers) - 1)
    return list(numbers[filled].reshape(-1, chunk))


def _keys(rank: Int[Array, " b"], seed: int, mesh: Mesh) -> tuple[Key[Array, " b"], Key[Array, " b"]]:
    """Of the data, and of the noise."""
    key = jax.vmap(lambda i: scenes.example_key(seed, scenes.VALIDATION, 0, i))(rank)
    key = jax.lax.with_sharding_constraint(key, sharding.batch_sharding(mesh))
    data_key, eps_key = jnp.unstack(jax.vmap(jax.random.split)(key), axis=1)
    return data_key, eps_key


def _noise(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b levels h w c"]:
    return jax.vmap(lambda k: jax.random.normal(k, shape))(keys)


def summarize(table: Float[np.ndarray, "examples levels"]) -> dict[str, float]:
    """The row of a validation: mean over examples and over all levels but the last, its error, each level."""
    each = table[:, :-1].astype(np.float64).mean(axis=1)
    error = each.std(ddof=1) / np.sqrt(len(each)) if len(each) > 1 else float("nan")
    levels = {f"loss_t{k}": float(value) for k, value in enumerate(table.astype(np.float64).mean(axis=0))}
    return {"loss": float(each.mean()), "loss_se": float(error), **levels}


def summarize_robin(losses: Float[np.ndarray, " examples"]) -> dict[str, float]:
    """The row of a validation with one level to an example, in turn: the mean of the levels' means (MLPerf's)."""
    levels = [losses[k::LEVELS].astype(np.float64) for k in range(LEVELS)]
    error = np.sqrt(sum(level.var(ddof=1) / len(level) for level in levels)) / LEVELS
    means = {f"loss_t{k}": float(level.mean()) for k, level in enumerate(levels)}
    return {"loss": float(np.mean(list(means.values()))), "loss_se": float(error), **means}


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
