"""Parts of a diffusion transformer: patches, positions, embedders, modulation, attention, MLP."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

ATTENDED = "attended"  # what rematerialisation knows the output of attention by


def along_batch(x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """The same numbers, kept split along the batch over the whole mesh, where one is in use.

    XLA may otherwise follow the weights, which are split over fsdp, split the heads and gather the batch: seen at
    depth 38 on 64 chips, where queries, keys and values of all images took 25 GB of every chip.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % mesh.size:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))


class Dense(nn.Module):
    """A linear layer over the last axis, as one two-dimensional matmul (XLA's CPU code for it is the faster)."""

    features: int
    dtype: Any
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        """X W + b, in ``dtype``."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        y = rows @ kernel.astype(self.dtype) + bias.astype(self.dtype)
        return along_batch(y.reshape(*x.shape[:-1], self.features))


class MLP(nn.Module):
    """Linear, activation, linear."""

    hidden: int
    features: int
    activation: Any
    dtype: Any
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        """``second(activation(first(x)))``."""
        x = self.activation(Dense(self.hidden, self.dtype, self.kernel_init, name="first")(x))
        return Dense(self.features, self.dtype, self.kernel_init, name="second")(x)


class RMSNorm(nn.Module):
    """x / rms(x), times a learned gain, over the last axis; computed in float32."""

    @nn.compact
    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... i"]:
        """In the dtype that came in."""
        gain = self.param("gain", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x32 = x.astype(jnp.float32)
        return (x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + 1e-6) * gain).astype(x.dtype)


def norm(x: Float[Array, "... e"]) -> Float[Array, "... e"]:
    """LayerNorm without learned parameters, computed in float32, in the dtype that came in."""
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(x32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x32 - mean), axis=-1, keepdims=True)
    return ((x32 - mean) * jax.lax.rsqrt(variance + 1e-6)).astype(x.dtype)


def modulated_norm(
    x: Float[Array, "b s e"], shift: Float[Array, "b e"], scale: Float[Array, "b e"]
) -> Float[Array, "b s e"]:
    """adaLN: norm(x) (1 + scale) + shift."""
    return norm(x) * (1 + scale[:, None]) + shift[:, None]


def attention(
    q: Float[Array, "b s k d"], k: Float[Array, "b s k d"], v: Float[Array, "b s k d"]
) -> Float[Array, "b s k d"]:
    """softmax(q k^T / sqrt(d)) v over all tokens, no mask; on GPU cuDNN's kernel, which is 16-bit only."""
    on_gpu = jax.default_backend() == "gpu"
    cudnn = on_gpu and q.dtype == jnp.bfloat16 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    attended = jax.nn.dot_product_attention(q, k, v, implementation="cudnn" if cudnn else "xla")
    return checkpoint_name(attended, ATTENDED)


def patchify(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b n p"]:
    """Latent pixels into tokens, row by row; within a token (row, column, channel)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(tokens: Float[Array, "b n p"], patch: int, height: int, width: int) -> Float[Array, "b h w c"]:
    """The inverse of :func:`patchify`, for a latent of ``height`` x ``width``."""
    b, rows, columns = tokens.shape[0], height // patch, width // patch
    x = tokens.reshape(b, rows, columns, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, height, width, -1)


def coordinates(count: int, size: int, largest: int, base: int) -> Float[np.ndarray, " count"]:
    """Positions of ``count`` tokens along one side: the centre of an extended and interpolated grid (section 5.3.2).

    (p - (largest - size) / 2) base / size for p = 0 .. largest - 1, of which the middle ``count``; ``size``: tokens
    on a side of the square image of the same area, ``base``: those of a square image at the first resolution.

    >>> coordinates(3, size=4, largest=8, base=2)
    array([0. , 0.5, 1. ])
    """
    p = (largest - count) // 2 + np.arange(count)
    return (p - (largest - size) / 2) * base / size


def positions(
    rows: Float[np.ndarray, " r"], columns: Float[np.ndarray, " c"], width: int
) -> Float[Array, "r c {width}"]:
    """Fixed two-dimensional sine-cosine table of these coordinates, float32.

    Half the channels encode the column, half the row; in each half sin then cos, frequencies 10000^(-i/(width/4)),
    computed in float64 (the released code's order).
    """
    omega = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    row, column = (
        np.concatenate([f(np.outer(axis, omega)) for f in (np.sin, np.cos)], axis=1).astype(np.float32)
        for axis in (rows, columns)
    )
    shape = (len(rows), len(columns), width // 2)
    return jnp.concatenate([jnp.broadcast_to(column, shape), jnp.broadcast_to(row[:, None], shape)], axis=-1)


def crop(table: Float[Array, "m m e"], rows: int, columns: int) -> Float[Array, "rows columns e"]:
    """The middle of a stored table of positions, rounded towards its start (the released code's choice)."""
    top, left = (table.shape[0] - rows) // 2, (table.shape[1] - columns) // 2
    return table[top : top + rows, left : left + columns]


def sinusoid(t: Float[Array, " b"], dim: int) -> Float[Array, "b dim"]:
    """cos then sin of 1000 t at frequencies 10000^(-i/(dim/2)), float32."""
    omega = jnp.exp(-np.log(10000.0) * jnp.arange(dim // 2, dtype=jnp.float32) / (dim // 2))
    angles = 1000 * t.astype(jnp.float32)[:, None] * omega
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
