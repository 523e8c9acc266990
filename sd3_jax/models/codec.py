"""A small autoencoder of patches: residual convolutions on the latent's own grid, trained in minutes on a CPU.

All convolutions see the f-fold reduced grid, so that their cost is that of the latent and not of the pixels. It is
deterministic; what it gives is for experiments such as the paper's Table 3, not for photographs at high resolution.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

GROUPS = 8  # of GroupNorm


def to_patches(images: Float[Array, "b H W 3"], f: int) -> Float[Array, "b h w p"]:
    """Patches of f x f pixels as channels."""
    b, height, width, _ = images.shape
    cut = images.reshape(b, height // f, f, width // f, f, 3).swapaxes(2, 3)
    return cut.reshape(b, height // f, width // f, 3 * f * f)


def from_patches(patches: Float[Array, "b h w p"], f: int) -> Float[Array, "b H W 3"]:
    """The inverse of :func:`to_patches`."""
    b, h, w, _ = patches.shape
    return patches.reshape(b, h, w, f, f, 3).swapaxes(2, 3).reshape(b, h * f, w * f, 3)


class Block(nn.Module):
    """Two 3 x 3 convolutions around a residual connection; the second begins at zero."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The same shape."""
        hidden = nn.Conv(self.width, (3, 3))(nn.silu(nn.GroupNorm(GROUPS)(x)))
        return x + nn.Conv(self.width, (3, 3), kernel_init=nn.initializers.zeros)(nn.silu(nn.GroupNorm(GROUPS)(hidden)))


class Codec(nn.Module):
    """Encoder and decoder of images in [-1, 1]; a latent has 1/f of the pixels on a side."""

    channels: int
    downsample: int
    width: int = 128
    blocks: int = 2

    def setup(self) -> None:
        """Two stacks of blocks between linear maps."""
        self.rise, self.narrow = nn.Dense(self.width), nn.Conv(self.channels, (3, 3))
        self.down = [Block(self.width) for _ in range(self.blocks)]
        self.widen, self.fall = nn.Conv(self.width, (3, 3)), nn.Dense(3 * self.downsample**2)
        self.up = [Block(self.width) for _ in range(self.blocks)]

    def encode(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
        """Latents of images."""
        x = self.rise(to_patches(images, self.downsample))
        for block in self.down:
            x = block(x)
        return self.narrow(nn.silu(x))

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        """Images of latents."""
        x = self.widen(latents)
        for block in self.up:
            x = block(x)
        return from_patches(self.fall(nn.silu(x)), self.downsample)

    def __call__(
        self, images: Float[Array, "b H W 3"], disturb: Callable[[Array], Array] = lambda latents: latents
    ) -> tuple[Float[Array, "b H W 3"], Float[Array, "b h w c"]]:
        """Images as they come back through latents that are disturbed, and the latents as they were."""
        latents = self.encode(images)
        return self.decode(disturb(latents)), latents


def loss(model: Codec, params: dict, images: Float[Array, "b H W 3"], key: Array, noise: float) -> Float[Array, ""]:
    """Mean squared error of the images, through latents with ``noise`` of their own deviation added to them.

    So that small errors of a flow are small errors of its pictures; a weak pull keeps the latents' scale.
    """

    def disturb(latents: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return latents + noise * jnp.std(latents, axis=(0, 1, 2)) * jax.random.normal(key, latents.shape)

    back, latents = model.bind({"params": params})(images, disturb)
    return jnp.mean((back - images) ** 2) + 1e-4 * jnp.mean(latents**2)
