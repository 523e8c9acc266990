"""MM-DiT: two streams, each with its own weights, that meet in one attention (paper section 4, figure 2)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sd3_jax.config import ModelConfig
from sd3_jax.models import layers
from sd3_jax.models.layers import MLP, Dense

Tokens = Float[Array, "b s e"]
Vector = Float[Array, "b e"]
Heads = Float[Array, "b s k d"]


class Stream(nn.Module):
    """One modality's half of a block: everything but the attention, in which the streams meet.

    With ``last``, the text half of the last block: nothing is made of what it attends to, so it holds only the
    modulation of its first norm, queries, keys and values.
    """

    width: int
    heads: int
    mlp_ratio: int
    qk_norm: bool
    dtype: Any
    last: bool = False

    def setup(self) -> None:
        """The stream's layers."""
        e = self.width
        self.modulation = Dense((2 if self.last else 6) * e, self.dtype, nn.initializers.zeros)
        self.qkv = Dense(3 * e, self.dtype)
        if self.qk_norm:
            self.norm_q, self.norm_k = layers.RMSNorm(), layers.RMSNorm()
        if not self.last:
            self.out = Dense(e, self.dtype)
            self.mlp = MLP(self.mlp_ratio * e, e, partial(jax.nn.gelu, approximate=True), self.dtype)

    def begin(self, x: Tokens, y: Vector) -> tuple[tuple[Heads, Heads, Heads], list[Vector]]:
        """Queries, keys and values of tokens ``x``, and what ``finish`` needs; ``y`` has passed its SiLU."""
        shift, scale, *rest = jnp.split(self.modulation(y), 2 if self.last else 6, axis=-1)
        qkv = self.qkv(layers.modulated_norm(x, shift, scale))
        q, k, v = jnp.split(qkv.reshape(*x.shape[:2], 3 * self.heads, -1), 3, axis=2)
        if self.qk_norm:
            q, k = self.norm_q(q), self.norm_k(k)
        return (q, k, v), rest

    def finish(self, x: Tokens, attended: Heads, rest: list[Vector]) -> Tokens:
        """Both residuals: x + gate out(attended), then + gate MLP."""
        gate, mlp_shift, mlp_scale, mlp_gate = rest
        x = x + gate[:, None] * self.out(attended.reshape(x.shape))
        return x + mlp_gate[:, None] * self.mlp(layers.modulated_norm(x, mlp_shift, mlp_scale))


class Block(nn.Module):
    """One MM-DiT block: (image, text) tokens to (image, text) tokens; the last one leaves the text as it was."""

    model: ModelConfig
    dtype: Any
    last: bool = False

    @nn.compact
    def __call__(self, tokens: tuple[Tokens, Tokens], y: Vector) -> tuple[tuple[Tokens, Tokens], None]:
        """``nn.scan``'s form: the carry, and nothing stacked."""
        model, (image, text) = self.model, tokens
        stream = partial(Stream, model.width, model.heads, model.mlp_ratio, model.qk_norm, self.dtype)
        image_stream, text_stream = stream(name="image"), stream(last=self.last, name="text")
        image_qkv, image_rest = image_stream.begin(image, y)
        text_qkv, text_rest = text_stream.begin(text, y)
        q, k, v = (jnp.concatenate(pair, axis=1) for pair in zip(image_qkv, text_qkv, strict=True))
        attended = layers.attention(q, k, v)
        n = image.shape[1]
        image = image_stream.finish(image, attended[:, :n], image_rest)
        if not self.last:
            text = text_stream.finish(text, attended[:, n:], text_rest)
        return (image, text), None


class MMDiT(nn.Module):
    """v(z, t, text): depth - 1 equal blocks, scanned, and the last, whose text stream stops early.

    Parameters are float32 and stored stacked over the scanned blocks, whatever ``unroll`` and ``remat`` are.
    Initialised as adaLN-zero: every block starts as the identity, the velocity as zero.
    """

    model: ModelConfig
    dtype: Any = jnp.float32
    unroll: int = 1
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        tokens: Float[Array, "b m text_dim"],
        pooled: Float[Array, "b pooled_dim"],
    ) -> Float[Array, "b h w c"]:
        """The velocity, float32, at latents ``z``, times ``t`` (0 data, 1 noise) and text states."""
        model, e = self.model, self.model.width
        _, height, width, _ = z.shape
        table = layers.positions(height // model.patch, width // model.patch, e)
        image = Dense(e, self.dtype, name="patch_embed")(layers.patchify(z, model.patch)) + table.astype(self.dtype)
        text = Dense(e, self.dtype, name="text_embed")(tokens)
        embed = partial(MLP, e, e, jax.nn.silu, self.dtype)
        time = embed(nn.initializers.normal(0.02), name="time_embed")(layers.sinusoid(t, model.time_dim))
        y = jax.nn.silu(time + embed(name="pooled_embed")(pooled))

        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        if model.depth > 1:
            blocks = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=model.depth - 1,
                unroll=min(self.unroll, model.depth - 1),
            )
            (image, text), _ = blocks(model, self.dtype, name="blocks")((image, text), y)
        (image, _), _ = block(model, self.dtype, last=True, name="last_block")((image, text), y)

        modulation = Dense(2 * e, self.dtype, nn.initializers.zeros, name="final_modulation")(y)
        shift, scale = jnp.split(modulation, 2, axis=-1)
        final = Dense(model.patch_dim, self.dtype, nn.initializers.zeros, name="final")
        out = final(layers.modulated_norm(image, shift, scale))
        return layers.unpatchify(out.astype(jnp.float32), model.patch, height, width)
