"""What the paper compares MM-DiT with (section 5.2.3, figure 4). DiT is MM-DiT with one set of weights.

CrossDiT: DiT blocks on image tokens alone, with cross-attention to the text in each (PixArt-alpha's block order: the
cross-attention neither normed nor gated). UViT: a U-Net whose lowest resolution is a transformer (Hoogeboom et al.
2023, "simple diffusion"): residual blocks of two convolutions on the way down and up, with skip connections. Its
transformer's blocks are CrossDiT's. Where the sources are silent the choices are MM-DiT's: norms without learned
parameters, adaLN-zero, GELU by tanh, RMSNorm on queries and keys where ``qk_norm`` says so.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sd3_jax.config import ModelConfig
from sd3_jax.models import ends, layers
from sd3_jax.models.ends import Tokens, Vector
from sd3_jax.models.layers import MLP, Dense
from sd3_jax.models.mmdit import Remat, rematerialised, scanned

Pixels = Float[Array, "b h w c"]


class CrossBlock(nn.Module):
    """A DiT block that also attends to text: x + gate attention(x), + attention(x, text), + gate MLP(x)."""

    model: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Tokens, text: Tokens, y: Vector) -> tuple[Tokens, None]:
        """``nn.scan``'s form: the carry, and nothing stacked; ``y`` has passed its SiLU."""
        model, e = self.model, self.model.width
        modulation = Dense(6 * e, self.dtype, nn.initializers.zeros, name="modulation")(y)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(modulation, 6, axis=-1)
        entering = layers.modulated_norm(x, shift, scale)
        x = x + gate[:, None] * self._attention("self", entering, entering, nn.initializers.xavier_uniform())
        x = x + self._attention("cross", x, text, nn.initializers.zeros)
        mlp = MLP(model.mlp_ratio * e, e, partial(jax.nn.gelu, approximate=True), self.dtype, name="mlp")
        return x + mlp_gate[:, None] * mlp(layers.modulated_norm(x, mlp_shift, mlp_scale)), None

    def _attention(self, name: str, x: Tokens, to: Tokens, out_init: nn.initializers.Initializer) -> Tokens:
        e, heads = self.model.width, self.model.heads
        q = Dense(e, self.dtype, name=f"{name}_q")(x).reshape(*x.shape[:2], heads, -1)
        kv = Dense(2 * e, self.dtype, name=f"{name}_kv")(to).reshape(*to.shape[:2], 2 * heads, -1)
        k, v = jnp.split(kv, 2, axis=2)
        if self.model.qk_norm:
            q, k = layers.RMSNorm(name=f"{name}_norm_q")(q), layers.RMSNorm(name=f"{name}_norm_k")(k)
        attended = layers.attention(q, k, v).reshape(x.shape)
        return Dense(e, self.dtype, out_init, name=f"{name}_out")(attended)


class CrossDiT(nn.Module):
    """v(z, t, text) by ``depth`` equal, scanned blocks; fields, arguments and errors are those of ``MMDiT``."""

    model: ModelConfig
    dtype: Any = jnp.float32
    unroll: int = 1
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self,
        z: Pixels,
        t: Float[Array, " b"],
        tokens: Float[Array, "b m text_dim"],
        pooled: Float[Array, "b pooled_dim"],
    ) -> Pixels:
        """The velocity, float32."""
        model = self.model
        image, text, y = ends.embed(self, model, self.dtype, z, t, tokens, pooled)
        blocks = scanned(rematerialised(CrossBlock, self.remat), model.depth, self.unroll)
        image, _ = blocks(model, self.dtype, name="blocks")(image, text, y)
        return ends.velocity(image, y, model, self.dtype, *z.shape[1:3])


class ResBlock(nn.Module):
    """x + convolution(SiLU(adaLN(convolution(SiLU(norm(x)))))); a skip connection is averaged in, at equal variance."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Pixels, y: Vector, skip: Pixels | None = None) -> Pixels:
        """As many channels as came in."""
        channels = x.shape[-1]
        if skip is not None:
            x = (x + skip) / jnp.sqrt(2.0).astype(x.dtype)
        shift, scale = jnp.split(Dense(2 * channels, self.dtype, nn.initializers.zeros, name="modulation")(y), 2, -1)
        h = convolution(channels, self.dtype, name="first")(jax.nn.silu(layers.norm(x)))
        h = jax.nn.silu(layers.norm(h) * (1 + scale[:, None, None]) + shift[:, None, None])
        return x + convolution(channels, self.dtype, nn.initializers.zeros, name="second")(h)


def convolution(
    channels: int,
    dtype: Any,
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform(),  # noqa: B008
    name: str | None = None,
) -> nn.Conv:
    """3 x 3, edges padded with zeros."""
    return nn.Conv(channels, (3, 3), dtype=dtype, kernel_init=kernel_init, name=name)


class UViT(nn.Module):
    """v(z, t, text): convolutions down to one place for each patch, CrossDiT's blocks there, and up again.

    A patch of p latent pixels on a side means log2(p) levels of convolutions above the transformer, which sees as many
    tokens as a transformer with that patch would. Fields, arguments and errors are those of ``MMDiT``.
    """

    model: ModelConfig
    dtype: Any = jnp.float32
    unroll: int = 1
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self,
        z: Pixels,
        t: Float[Array, " b"],
        tokens: Float[Array, "b m text_dim"],
        pooled: Float[Array, "b pooled_dim"],
    ) -> Pixels:
        """The velocity, float32."""
        model, dtype, channels = self.model, self.dtype, self.model.level_channels
        positions = ends.positions(self, model, *z.shape[1:3])
        text = Dense(model.width, dtype, name="text_embed")(tokens)
        y = ends.condition(model, dtype, t, pooled)

        x = convolution(channels[0], dtype, name="enter")(z.astype(dtype))
        skips = []
        for level, below in enumerate([*channels[1:], model.width]):
            for i in range(model.level_blocks):
                x = ResBlock(dtype, name=f"down_{level}_{i}")(x, y)
                skips.append(x)
            x = Dense(below, dtype, name=f"down_{level}")(nn.avg_pool(x, (2, 2), (2, 2)))

        image = x.reshape(x.shape[0], -1, model.width) + positions.reshape(-1, model.width).astype(dtype)
        blocks = scanned(rematerialised(CrossBlock, self.remat), model.depth, self.unroll)
        image, _ = blocks(model, dtype, name="blocks")(image, text, y)

        x = image.reshape(x.shape)
        for level in reversed(range(len(channels))):
            x = Dense(channels[level], dtype, name=f"up_{level}")(x).repeat(2, axis=1).repeat(2, axis=2)
            for i in range(model.level_blocks):
                x = ResBlock(dtype, name=f"up_{level}_{i}")(x, y, skips.pop())
        modulation = Dense(2 * channels[0], dtype, nn.initializers.zeros, name="final_modulation")(y)
        shift, scale = (part[:, None, None] for part in jnp.split(modulation, 2, axis=-1))
        x = layers.norm(x) * (1 + scale) + shift
        out = convolution(model.latent_channels, dtype, nn.initializers.zeros, name="final")(x)
        return out.astype(jnp.float32)
