"""MM-DiT: streams of tokens, each with its own weights, that meet in one attention (paper section 4, figure 2).

Two streams, image and text; or three, CLIP's tokens and T5's apart; or one for all tokens, which is DiT (figure 4).
MMDiT-X (SD3.5-medium): in chosen blocks the image tokens also attend to one another alone, with weights of their own.
"""

import itertools
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sd3_jax.config import ModelConfig
from sd3_jax.models import ends, layers
from sd3_jax.models.ends import Tokens, Vector
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

# The streams by how many sets of weights there are; the image's tokens are in the first.
STREAMS = {1: ("joint",), 2: ("image", "text"), 3: ("image", "clip", "t5")}

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
    """One modality's part of a block: everything but the attention, in which the streams meet.

    With ``last``, the text part of the last block: nothing is made of what it attends to, so it holds only the
    modulation of its first norm, queries, keys and values. With ``dual``, an image part that also attends to itself.
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
    """One block: the streams' tokens to the streams' tokens; the last one leaves the text as it was.

    ``kept``: how many of the first stream's tokens come out, where that is not all.
    """

    model: ModelConfig
    dtype: Any
    last: bool = False
    dual: bool = False
    kept: int | None = None

    @nn.compact
    def __call__(self, tokens: tuple[Tokens, ...], y: Vector) -> tuple[tuple[Tokens, ...], None]:
        """``nn.scan``'s form: the carry, and nothing stacked."""
        model = self.model
        stream = partial(Stream, model.width, model.heads, model.mlp_ratio, model.qk_norm, self.dtype)
        names = STREAMS[model.weight_sets]
        streams = [stream(dual=self.dual, name=names[0]), *(stream(last=self.last, name=name) for name in names[1:])]
        begun = [own.begin(x, y) for own, x in zip(streams, tokens, strict=True)]
        q, k, v = (jnp.concatenate(parts, axis=1) for parts in zip(*(heads for heads, _ in begun), strict=True))
        attended = jnp.split(layers.attention(q, k, v), np.cumsum([x.shape[1] for x in tokens])[:-1], axis=1)
        out: list[Tokens] = []
        for own, x, heads, (_, rest) in zip(streams, tokens, attended, begun, strict=True):
            kept = None if out else self.kept
            out.append(x if own.last else own.finish(x[:, :kept], heads[:, :kept], rest))
        return tuple(out), None


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
        model = self.model
        image, text, y = ends.embed(self, model, self.dtype, z, t, tokens, pooled)
        n, clip = image.shape[1], model.clip_tokens
        streams: tuple[Tokens, ...] = (image, text)
        if model.weight_sets == 1:
            streams = (jnp.concatenate([image, text], axis=1),)
        elif model.weight_sets == 3:
            streams = (image, text[:, :clip], text[:, clip:])
        block = rematerialised(Block, self.remat)
        for stack in stacks(model):
            blocks = scanned(block, len(stack.blocks), self.unroll)
            streams, _ = blocks(model, self.dtype, dual=stack.dual, name=stack.name)(streams, y)
        dual = model.depth - 1 in model.dual_attention
        streams, _ = block(model, self.dtype, last=True, dual=dual, kept=n, name="last_block")(streams, y)
        return ends.velocity(streams[0], y, model, self.dtype, *z.shape[1:3])


def rematerialised(block: Any, remat: Remat) -> Any:
    """A block class that keeps for its backward pass what the policy says."""
    return block if remat == "none" else nn.remat(block, prevent_cse=False, policy=KEPT[remat])


def scanned(block: Any, length: int, unroll: int) -> Any:
    """A class of ``length`` equal blocks, one after another; the first argument is the carry, the others are shared."""
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=length,
        unroll=min(unroll, length),
    )
