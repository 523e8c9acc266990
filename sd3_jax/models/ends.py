"""What all networks share: what comes before the blocks and after them. Called within a network's own scope."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sd3_jax.config import ModelConfig
from sd3_jax.errors import UserError
from sd3_jax.models import layers
from sd3_jax.models.layers import MLP, Dense

Tokens = Float[Array, "b s e"]
Vector = Float[Array, "b e"]


def embed(
    net: nn.Module,
    model: ModelConfig,
    dtype: Any,
    z: Float[Array, "b h w c"],
    t: Float[Array, " b"],
    tokens: Float[Array, "b m text_dim"],
    pooled: Float[Array, "b pooled_dim"],
) -> tuple[Tokens, Tokens, Vector]:
    """What the transformers begin with: image tokens, text tokens, and what modulates them (:func:`condition`).

    Raises UserError for a latent that does not fit the patches or the grid of positions.
    """
    table = positions(net, model, *z.shape[1:3]).reshape(-1, model.width)
    image = Dense(model.width, dtype, name="patch_embed")(layers.patchify(z, model.patch)) + table.astype(dtype)
    text = Dense(model.width, dtype, name="text_embed")(tokens)
    return image, text, condition(model, dtype, t, pooled)


def condition(model: ModelConfig, dtype: Any, t: Float[Array, " b"], pooled: Float[Array, "b pooled_dim"]) -> Vector:
    """SiLU of the sum of two MLPs, of the time and of the pooled text."""
    mlp = partial(MLP, model.width, model.width, jax.nn.silu, dtype)
    time = mlp(nn.initializers.normal(0.02), name="time_embed")(layers.sinusoid(t, model.time_dim))
    return jax.nn.silu(time + mlp(name="pooled_embed")(pooled))


def velocity(
    image: Tokens, y: Vector, model: ModelConfig, dtype: Any, height: int, width: int
) -> Float[Array, "b h w c"]:
    """What every transformer ends with: modulated norm, linear layer, patches into a latent, float32."""
    modulation = Dense(2 * model.width, dtype, nn.initializers.zeros, name="final_modulation")(y)
    shift, scale = jnp.split(modulation, 2, axis=-1)
    final = Dense(model.patch_dim, dtype, nn.initializers.zeros, name="final")
    out = final(layers.modulated_norm(image, shift, scale))
    return layers.unpatchify(out.astype(jnp.float32), model.patch, height, width)


def positions(net: nn.Module, model: ModelConfig, height: int, width: int) -> Float[Array, "rows columns e"]:
    """A latent's positions: cut from the table that ``net`` stores, which no gradient reaches, or computed.

    Raises UserError for a latent that does not fit the patches or the grid of positions.
    """
    largest = model.largest_side
    if height % model.patch or width % model.patch:
        raise UserError(f"a latent of {height} x {width} is not made of patches of {model.patch} x {model.patch}")
    rows, columns = height // model.patch, width // model.patch
    if max(rows, columns) > largest:
        raise UserError(
            f"a latent of {height} x {width} has {rows} x {columns} tokens, more than the {largest} x {largest} "
            "of the grid of positions (model.position_grid)"
        )
    if model.position_table:
        table = net.param("position_table", lambda _: grid(model, largest, largest))
        return layers.crop(jax.lax.stop_gradient(table), rows, columns)
    return grid(model, rows, columns)


def grid(model: ModelConfig, rows: int, columns: int) -> Float[Array, "rows columns e"]:
    """The positions of an image of ``rows`` x ``columns`` tokens, as the configuration says."""
    row, column = (
        layers.coordinates(count, model.side, model.largest_side, model.position_base or model.side)
        for count in (rows, columns)
    )
    return layers.positions(row, column, model.width)
