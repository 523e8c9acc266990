"""MM-DiT: two streams, each with its own weights, that meet in one attention (paper section 4, figure 2).

MMDiT-X (SD3.5-medium): in chosen blocks the image tokens also attend to one another alone, with weights of their own.
"""

import itertools
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sd3_jax.config import ModelConfig
from sd3_jax.errors import UserError
from sd3_jax.models import layers
from sd3_jax.models.layers import MLP, Dense

Remat = Literal["none", "elementwise", "dots", "full"]
# What a block keeps for its backward pass; the rest is computed again. elementwise: keeps what matmuls and attention
# give, so that only norms, gates and activations are repeated; dots: what matmuls give; full: nothing.
_DOTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
KEPT: dict[str, Any] = {
    "elementwise": jax.checkpoint_policies.save_from_both_policies(
        _DOTS, jax.checkpoint_policies.save_only_these_names(layers.ATTENDED)
    ),
    "dots": _DOTS,
    "full": jax.checkpoint_policies.nothing_saveable,
}

Tokens = Float[Array, "b s e"]
Vector = Float[Array, "b e"]
Heads = Float[Array, "b s k d"]


class Stack(NamedTuple):
    """Consecutive equal blocks, whose parameters are stored stacked under ``name``."""

    name: str
    blocks: range
    dual: bool


def stacks(model: ModelConfig) -> list[Stack]:
    """All blocks but the last, in order: ``blocks``, those with dual attention ``dual_blocks``.

    Where a kind comes back after the other, its name ends in its first block.

    >>> [(s.name, s.blocks) for s in stacks(ModelConfig(depth=7, dual_attention=(0, 1, 4)))]
    [('dual_blocks', range(0, 2)), ('blocks', range(2, 4)), ('dual_blocks_4', range(4, 5)), ('blocks_5', range(5, 6))]
    """
    found: list[Stack] = []
    for dual, group in itertools.groupby(range(model.depth - 1), lambda block: block in model.dual_attention):
        blocks = list(group)
        name = "dual_blocks" if dual else "blocks"
        name += f"_{blocks[0]}" if name in [stack.name for stack in found] else ""
        found.append(Stack(name, range(blocks[0], blocks[-1] + 1), dual))
    return found


class Stream(nn.Module):
    """One modality's half of a block: everything but the attention, in which the streams meet.

    With ``last``, the text half of the last block: nothing is made of what it attends to, so it holds only the
    modulation of its first norm, queries, keys and values. With ``dual``, an image half that also attends to itself.
    """

    width: int
    heads: int
    mlp_ratio: int
    qk_norm: bool
    dtype: Any
    last: bool = False
    dual: bool = False

    def setup(self) -> None:
        """The stream's layers."""
        e = self.width
        self.parts = 2 if self.last else 9 if self.dual else 6
        self.modulation = Dense(self.parts * e, self.dtype, nn.initializers.zeros)
        self.qkv = Dense(3 * e, self.dtype)
        if self.qk_norm:
            self.norm_q, self.norm_k = layers.RMSNorm(), layers.RMSNorm()
        if not self.last:
            self.out = Dense(e, self.dtype)
            self.mlp = MLP(self.mlp_ratio * e, e, partial(jax.nn.gelu, approximate=True), self.dtype)
        if self.dual:
            self.dual_qkv, self.dual_out = Dense(3 * e, self.dtype), Dense(e, self.dtype)
            if self.qk_norm:
                self.dual_norm_q, self.dual_norm_k = layers.RMSNorm(), layers.RMSNorm()

    def begin(self, x: Tokens, y: Vector) -> tuple[tuple[Heads, Heads, Heads], list[Vector]]:
        """Queries, keys and values of tokens ``x``, and what ``finish`` needs; ``y`` has passed its SiLU."""
        shift, scale, *rest = jnp.split(self.modulation(y), self.parts, axis=-1)
        q, k, v = self._heads(self.qkv(layers.modulated_norm(x, shift, scale)))
        if self.qk_norm:
            q, k = self.norm_q(q), self.norm_k(k)
        return (q, k, v), rest

    def finish(self, x: Tokens, attended: Heads, rest: list[Vector]) -> Tokens:
        """The residuals: x + gate out(attended), with ``dual`` + gate attention(x), then + gate MLP."""
        gate, mlp_shift, mlp_scale, mlp_gate, *dual = rest
        entered = x
        x = x + gate[:, None] * self.out(attended.reshape(x.shape))
        if self.dual:
            shift, scale, gate = dual
            q, k, v = self._heads(self.dual_qkv(layers.modulated_norm(entered, shift, scale)))
            if self.qk_norm:
                q, k = self.dual_norm_q(q), self.dual_norm_k(k)
            x = x + gate[:, None] * self.dual_out(layers.attention(q, k, v).reshape(x.shape))
        return x + mlp_gate[:, None] * self.mlp(layers.modulated_norm(x, mlp_shift, mlp_scale))

    def _heads(self, qkv: Float[Array, "b s i"]) -> tuple[Heads, Heads, Heads]:
        q, k, v = jnp.split(qkv.reshape(*qkv.shape[:2], 3 * self.heads, -1), 3, axis=2)
        return q, k, v


class Block(nn.Module):
    """One MM-DiT block: (image, text) tokens to (image, text) tokens; the last one leaves the text as it was."""

    model: ModelConfig
    dtype: Any
    last: bool = False
    dual: bool = False

    @nn.compact
    def __call__(self, tokens: tuple[Tokens, Tokens], y: Vector) -> tuple[tuple[Tokens, Tokens], None]:
        """``nn.scan``'s form: the carry, and nothing stacked."""
        model, (image, text) = self.model, tokens
        stream = partial(Stream, model.width, model.heads, model.mlp_ratio, model.qk_norm, self.dtype)
        image_stream, text_stream = stream(dual=self.dual, name="image"), stream(last=self.last, name="text")
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
    """v(z, t, text): depth - 1 blocks, equal ones scanned, and the last, whose text stream stops early.

    Parameters are float32 and stored stacked over the scanned blocks, whatever ``unroll`` and ``remat`` are.
    A latent may be of any size that the grid of positions holds.
    Initialised as adaLN-zero: every block starts as the identity, the velocity as zero.
    """

    model: ModelConfig
    dtype: Any = jnp.float32
    unroll: int = 1
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        tokens: Float[Array, "b m text_dim"],
        pooled: Float[Array, "b pooled_dim"],
    ) -> Float[Array, "b h w c"]:
        """The velocity, float32, at latents ``z``, times ``t`` (0 data, 1 noise) and text states.

        Raises UserError for a latent that does not fit the patches or the grid of positions.
        """
        model, e = self.model, self.model.width
        _, height, width, _ = z.shape
        table = self._positions(height, width).reshape(-1, e)
        image = Dense(e, self.dtype, name="patch_embed")(layers.patchify(z, model.patch)) + table.astype(self.dtype)
        text = Dense(e, self.dtype, name="text_embed")(tokens)
        embed = partial(MLP, e, e, jax.nn.silu, self.dtype)
        time = embed(nn.initializers.normal(0.02), name="time_embed")(layers.sinusoid(t, model.time_dim))
        y = jax.nn.silu(time + embed(name="pooled_embed")(pooled))

        block = Block if self.remat == "none" else nn.remat(Block, prevent_cse=False, policy=KEPT[self.remat])
        for stack in stacks(model):
            blocks = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=len(stack.blocks),
                unroll=min(self.unroll, len(stack.blocks)),
            )
            (image, text), _ = blocks(model, self.dtype, dual=stack.dual, name=stack.name)((image, text), y)
        last = block(model, self.dtype, last=True, dual=model.depth - 1 in model.dual_attention, name="last_block")
        (image, _), _ = last((image, text), y)

        modulation = Dense(2 * e, self.dtype, nn.initializers.zeros, name="final_modulation")(y)
        shift, scale = jnp.split(modulation, 2, axis=-1)
        final = Dense(model.patch_dim, self.dtype, nn.initializers.zeros, name="final")
        out = final(layers.modulated_norm(image, shift, scale))
        return layers.unpatchify(out.astype(jnp.float32), model.patch, height, width)

    def _positions(self, height: int, width: int) -> Float[Array, "rows columns e"]:
        """Cut from the stored table, which no gradient reaches, or computed."""
        model, largest = self.model, self.model.largest_side
        if height % model.patch or width % model.patch:
            raise UserError(f"a latent of {height} x {width} is not made of patches of {model.patch} x {model.patch}")
        rows, columns = height // model.patch, width // model.patch
        if max(rows, columns) > largest:
            raise UserError(
                f"a latent of {height} x {width} has {rows} x {columns} tokens, more than the {largest} x {largest} "
                "of the grid of positions (model.position_grid)"
            )
        if model.position_table:
            table = self.param("position_table", lambda _: grid(model, largest, largest))
            return layers.crop(jax.lax.stop_gradient(table), rows, columns)
        return grid(model, rows, columns)


def grid(model: ModelConfig, rows: int, columns: int) -> Float[Array, "rows columns e"]:
    """The positions of an image of ``rows`` x ``columns`` tokens, as the configuration says."""
    row, column = (
        layers.coordinates(count, model.side, model.largest_side, model.position_base or model.side)
        for count in (rows, columns)
    )
    return layers.positions(row, column, model.width)
