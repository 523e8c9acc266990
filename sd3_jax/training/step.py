"""One training step as a pure function of a state and its examples, which are a pure function of (seed, step)."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, UInt32

from sd3_jax.config import MeshConfig, ModelConfig, RunConfig
from sd3_jax.data import scenes
from sd3_jax.data.buckets import bucket_of
from sd3_jax.flow import objectives, timesteps
from sd3_jax.models.baselines import CrossDiT, UViT
from sd3_jax.models.mmdit import MMDiT
from sd3_jax.training import optimizer, sharding

INIT = 3  # domain of the initial parameters, beside scenes' TRAIN, VALIDATION and EVALUATION


NETWORKS: dict[str, Any] = {"mmdit": MMDiT, "crossdit": CrossDiT, "uvit": UViT}


class TrainState(NamedTuple):
    """All that a run carries from step to step; randomness and data are functions of ``step``."""

    step: Int[Array, ""]
    params: Any
    ema: Any
    opt_state: Any


def compute_dtype(mesh: MeshConfig) -> Any:
    """Of matmuls: as configured, or bfloat16 where there is an accelerator."""
    if mesh.dtype == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(mesh.dtype)


def make_model(model: ModelConfig, mesh: MeshConfig) -> nn.Module:
    """The network of a configuration, as it should execute here."""
    return NETWORKS[model.architecture](model, compute_dtype(mesh), mesh.unroll, mesh.remat)


def init_params(model: ModelConfig, key: Key[Array, ""]) -> Any:
    """Fresh float32 parameters, the same on any mesh."""
    size = (1, model.latent_size, model.latent_size, model.latent_channels)
    text = jnp.zeros((1, model.text_tokens, model.text_dim)), jnp.zeros((1, model.pooled_dim))
    return NETWORKS[model.architecture](model).init(key, jnp.zeros(size), jnp.zeros(1), *text)["params"]


def make_init(config: RunConfig, steps: int) -> Any:
    """``init(seed) -> TrainState``; jit it with out_shardings so that no device ever holds it whole."""
    begin = make_begin(config, steps)

    def init(seed: UInt32[Array, ""]) -> TrainState:
        return begin(init_params(config.model, jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), INIT)))

    return init


def make_begin(config: RunConfig, steps: int) -> Any:
    """``begin(params) -> TrainState``: step 0 with these parameters, an average that equals them, a fresh optimizer."""
    optim = optimizer.make(config.optimizer, config.model.width, steps)

    def begin(params: Any) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optim.init(params))

    return begin


class Examples(NamedTuple):
    """A training batch: the data's part, and where on the path each example is looked at (at the path's own time)."""

    batch: scenes.Batch
    eps: Float[Array, "b h w c"]
    t: Float[Array, " b"]


def example_shapes(config: RunConfig) -> Examples:
    """The shapes of a batch of square pictures, wherever it comes from; no array is made."""
    model, b = config.model, config.batch
    image = (b, model.latent_size, model.latent_size, model.latent_channels)

    def zeros() -> Examples:
        text = jnp.zeros((b, model.text_tokens, model.text_dim)), jnp.zeros((b, model.pooled_dim))
        return Examples(scenes.Batch(jnp.zeros(image), *text), jnp.zeros(image), jnp.zeros(b))

    return jax.eval_shape(zeros)


def make_draw(config: RunConfig, mesh: Mesh) -> Any:
    """``draw(seed, step) -> Examples``, jitted apart from the step: it is the same program for every model size.

    Each example has its own key, so that mesh and host count cannot change it. With buckets one program for each, and
    ``step`` is best a number of the host, which chooses among them.
    """

    def draw(seed: UInt32[Array, ""], step: Int[Array, ""], size: scenes.Size | None = None) -> Examples:
        key = jax.vmap(lambda i: scenes.example_key(seed, scenes.TRAIN, step, i))(jnp.arange(config.batch))
        key = jax.lax.with_sharding_constraint(key, sharding.batch_sharding(mesh))
        data_key, eps_key, t_key = jnp.unstack(jax.vmap(lambda k: jax.random.split(k, 3))(key), axis=1)
        batch = scenes.batch(data_key, config.data, config.model, config.data.text_dropout, size)
        eps = jax.vmap(lambda k: jax.random.normal(k, batch.x0.shape[1:]))(eps_key)
        return Examples(batch, eps, jax.vmap(lambda k: timesteps.sample(k, config.flow))(t_key))

    whole = jax.jit(draw, out_shardings=sharding.batch_sharding(mesh), static_argnums=2)
    buckets = config.data.buckets
    if not buckets:
        return whole
    return lambda seed, step: whole(seed, step, buckets[bucket_of(int(seed), int(step), len(buckets))])


def make_step(config: RunConfig, steps: int) -> Any:
    """``train_step(state, examples) -> (state, metrics)``, metrics being scalars on the device."""
    optim = optimizer.make(config.optimizer, config.model.width, steps)
    model = make_model(config.model, config.mesh)

    def loss(params: Any, examples: Examples) -> Float[Array, ""]:
        (x0, tokens, pooled), eps, t = examples
        network = lambda z, t: model.apply({"params": params}, z, t, tokens, pooled)  # noqa: E731
        return jnp.mean(objectives.loss(network, config.flow, x0, eps, t))

    def mean_gradient(params: Any, examples: Examples) -> tuple[Float[Array, ""], Any]:
        """Of the whole batch, in ``accumulate`` parts one after another: each device keeps its own examples."""
        count = config.mesh.accumulate
        if count == 1:
            return jax.value_and_grad(loss)(params, examples)
        parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), examples)

        def add(total: Any, part: Examples) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(params, part)), None

        nothing = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
        total, _ = jax.lax.scan(add, nothing, parts)
        return jax.tree.map(lambda x: x / count, total)

    def train_step(state: TrainState, examples: Examples) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        value, gradients = mean_gradient(state.params, examples)
        updates, opt_state = optim.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        weight = optimizer.ema_weight(config.optimizer, state.step + 1)
        ema = jax.tree.map(lambda average, new: average + weight * (new - average), state.ema, params)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(gradients)}
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    return train_step


def jit_step(config: RunConfig, steps: int, mesh: Mesh, shardings: Any) -> Any:
    """:func:`make_step` as it runs on a mesh: state and examples stay where they are, the old state is given up."""
    step = make_step(config, steps)

    def train_step(state: TrainState, examples: Examples) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for layers.along_batch
            return step(state, examples)

    return jax.jit(
        train_step,
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )
