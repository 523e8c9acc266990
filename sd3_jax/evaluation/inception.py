"""The Inception v3 of FID (Heusel et al. 2017; Szegedy et al. 2015), from the published weights; no torch.

As ``pytorch-fid`` and ``torch-fidelity`` have it, tensors named as theirs: TensorFlow's graph of 2015-12-05, whose
average pools leave the padding out, whose last block pools by maximum, and whose resizing has no half pixel and no
filter. Widths are those of the tensors.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

SIDE = 299
EPS = 1e-3  # of the batch norms

Weights = Mapping[str, Float[Array, "..."]]
Layer = Callable[..., Float[Array, "b h w c"]]


def prepare(image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "299 299 3"]:
    """A picture of any size in [-1, 1), its shape not kept, as TensorFlow 1's bilinear resizing leaves it."""
    rows, columns = (_bilinear(length) for length in image.shape[:2])
    resized = np.einsum("yi,ijc->yjc", rows, image.astype(np.float32))
    return (np.einsum("xj,yjc->yxc", columns, resized) - 128) / 128


def _bilinear(length: int) -> Float[np.ndarray, "299 length"]:
    """Where each pixel is taken from: pixel i lies at ``i length / 299``, between its neighbours."""
    at = np.arange(SIDE, dtype=np.float32) * np.float32(length / SIDE)
    low = np.minimum(at.astype(int), length - 1)
    matrix = np.zeros((SIDE, length), np.float32)
    matrix[np.arange(SIDE), low] += 1 - (at - low)
    matrix[np.arange(SIDE), np.minimum(low + 1, length - 1)] += at - low
    return matrix


def features(weights: Weights, x: Float[Array, "b 299 299 3"]) -> Float[Array, "b d"]:
    """What the last pool gives: 2048 numbers with the published widths. Raises KeyError for a tensor that lacks."""

    def conv(x: Array, name: str, stride: int = 1, padding: str | None = None) -> Array:
        y = jax.lax.conv_general_dilated(
            x,
            weights[f"{name}.conv.weight"],
            (stride, stride),
            padding or ("SAME" if stride == 1 else "VALID"),
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        mean, variance, gain, shift = (
            weights[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return jax.nn.relu((y - mean) * (gain / jnp.sqrt(variance + EPS)) + shift)

    x = conv(x, "Conv2d_1a_3x3", stride=2)
    x = conv(x, "Conv2d_2a_3x3", padding="VALID")
    x = _largest(conv(x, "Conv2d_2b_3x3"))
    x = conv(x, "Conv2d_3b_1x1")
    x = _largest(conv(x, "Conv2d_4a_3x3", padding="VALID"))
    for block in ("5b", "5c", "5d"):
        x = _mixed(conv, f"Mixed_{block}.", x, [["1x1"], ["5x5_1", "5x5_2"], _THREES], _mean)
    x = _reduce(conv, "Mixed_6a.", x, [["3x3"], _THREES])
    for block in ("6b", "6c", "6d", "6e"):
        x = _mixed(conv, f"Mixed_{block}.", x, [["1x1"], *_SEVENS], _mean)
    x = _reduce(conv, "Mixed_7a.", x, [["3x3_1", "3x3_2"], [f"7x7x3_{i}" for i in (1, 2, 3, 4)]])
    for block, pool in (("7b", _mean), ("7c", lambda x: _largest(x, 1, "SAME"))):
        x = _last(conv, f"Mixed_{block}.", x, pool)
    return x.mean(axis=(1, 2))


_THREES = ["3x3dbl_1", "3x3dbl_2", "3x3dbl_3"]
_SEVENS = [[f"7x7_{i}" for i in (1, 2, 3)], [f"7x7dbl_{i}" for i in (1, 2, 3, 4, 5)]]


def _mixed(conv: Layer, block: str, x: Array, branches: Sequence[Sequence[str]], pool: Callable) -> Array:
    return jnp.concatenate(
        [*(_chain(conv, block, x, names) for names in branches), conv(pool(x), f"{block}branch_pool")], axis=-1
    )


def _reduce(conv: Layer, block: str, x: Array, branches: Sequence[Sequence[str]]) -> Array:
    """Branches whose last layer halves height and width."""
    found = []
    for *names, last in branches:
        found.append(conv(_chain(conv, block, x, names), f"{block}branch{last}", stride=2))
    return jnp.concatenate([*found, _largest(x)], axis=-1)


def _last(conv: Layer, block: str, x: Array, pool: Callable) -> Array:
    wide, deep = conv(x, f"{block}branch3x3_1"), _chain(conv, block, x, ["3x3dbl_1", "3x3dbl_2"])
    split = [
        conv(part, f"{block}branch{name}")
        for part, names in ((wide, ("3x3_2a", "3x3_2b")), (deep, ("3x3dbl_3a", "3x3dbl_3b")))
        for name in names
    ]
    return jnp.concatenate([conv(x, f"{block}branch1x1"), *split, conv(pool(x), f"{block}branch_pool")], axis=-1)


def _chain(conv: Layer, block: str, x: Array, names: Sequence[str]) -> Array:
    for name in names:
        x = conv(x, f"{block}branch{name}")
    return x


def _largest(x: Array, stride: int = 2, padding: str = "VALID") -> Array:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def _mean(x: Array) -> Array:
    """Of 3 x 3, of those that there are."""
    there = [np.convolve(np.ones(length), np.ones(3), "same") for length in x.shape[1:3]]
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    return total / np.outer(*there)[:, :, None].astype(np.float32)
