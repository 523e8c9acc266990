"""Parameters and FLOPs of MM-DiT and its rivals in closed form; budgets; device peaks.

A multiply-add is 2 FLOPs. Norms, softmax, GELU, modulation and gates (about 1 %) are not counted. Training
costs C = 3F, F the forward FLOPs of an image: never 6ND, which overstates a two-stream model 2.8 to 2.9
times, and never recomputation. The last block's unused text queries are counted, by convention.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

from sd3_jax.config import ModelConfig, RunConfig
from sd3_jax.errors import UserError

# Dense bf16 peak, FLOP/s of one device as JAX counts devices (vendors' data sheets).
PEAK_FLOPS = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


class Parts(NamedTuple):
    """Parameters, or FLOPs of one image, by part of the model."""

    streams: int  # queries, keys, values, outputs and MLPs of all streams
    modulation: int  # adaLN: once an image, not once a token
    attention: int  # QK^T and AV; no parameters but the QK-norm gains
    ends: int  # patch, text, time and pooled embedders, final layer; a UViT's convolutions

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return sum(self)


def parameters(model: ModelConfig) -> Parts:
    """Trainable parameters, by part. The sine-cosine table is not one, stored or computed.

    >>> parameters(ModelConfig(depth=24)).total  # SD3-medium
    2028328000
    >>> parameters(ModelConfig(depth=24, qk_norm=True, dual_attention=tuple(range(13)))).total  # SD3.5-medium
    2243171520
    """
    e, d, sets = model.width, model.depth, model.weight_sets
    qkv, out = 3 * (e * e + e), e * e + e
    mlp = 2 * model.mlp_ratio * e * e + (model.mlp_ratio + 1) * e
    embedders = (model.text_dim + model.time_dim + model.pooled_dim + 2 * e) * e + 5 * e
    if model.architecture == "mmdit":
        streams = (sets * (d - 1) + 1) * (qkv + out + mlp) + (sets - 1) * qkv  # last texts stop after their k and v
        dual = len(model.dual_attention)  # each a second attention of the image tokens, with its own modulation
        streams += dual * (qkv + out)
        gains = 2 * (sets * d + dual) * model.head_dim
        vectors = _modulation_vectors(model)
        modulation = vectors * (e * e + e)
    else:
        streams = d * (2 * (qkv + out) + mlp)
        gains = 4 * d * model.head_dim
        modulation = 6 * d * (e * e + e)
    if model.architecture == "uvit":
        modulation += _level_modulation(model) * (e + 1)
        ends = embedders + sum(kernel + bias for kernel, bias, _ in _convolutions(model))
    else:
        modulation += 2 * (e * e + e) if model.architecture == "crossdit" else 0
        ends = embedders + (model.patch_dim * e + e) + (e * model.patch_dim + model.patch_dim)
    return Parts(streams, modulation, gains if model.qk_norm else 0, ends)


def forward_flops(model: ModelConfig, image_tokens: int | None = None) -> Parts:
    """Forward matmul FLOPs of one image, F, by part: of the square image, or of one of ``image_tokens``.

    A convolution's padding is counted as pixels are.

    >>> forward_flops(ModelConfig(depth=15)).total
    144766264320
    """
    e, d = model.width, model.depth
    n, m = image_tokens or model.image_tokens, model.text_tokens
    per_token = 2 * (4 + 2 * model.mlp_ratio) * e * e
    embedders = 2 * e * (model.text_dim * m + model.time_dim + model.pooled_dim + 2 * e)
    if model.architecture == "mmdit":
        dual = len(model.dual_attention)
        streams = d * per_token * n + (d - 1) * per_token * m + 2 * 3 * e * e * m + dual * 2 * 4 * e * e * n
        attention = d * 4 * (n + m) ** 2 * e + dual * 4 * n * n * e
        modulation = 2 * _modulation_vectors(model) * e * e
    else:  # the image's own tokens, then its queries and outputs and the text's keys and values
        streams = d * (per_token * n + 2 * 2 * e * e * (n + m))
        attention = d * 4 * n * (n + m) * e
        modulation = 2 * 6 * d * e * e
    if model.architecture == "uvit":
        modulation += 2 * _level_modulation(model) * e
        ends = embedders + sum(2 * kernel * pixels * n for kernel, _, pixels in _convolutions(model))
    else:
        modulation += 2 * 2 * e * e if model.architecture == "crossdit" else 0
        ends = embedders + 2 * 2 * e * model.patch_dim * n
    return Parts(streams, modulation, attention, ends)


def _modulation_vectors(model: ModelConfig) -> int:
    """How many shifts, scales and gates an MM-DiT has, the final layer's two included."""
    every = model.weight_sets * (model.depth - 1) + 1  # the last texts have only what goes before their keys
    return 6 * every + 2 * (model.weight_sets - 1) + 3 * len(model.dual_attention) + 2


def _level_modulation(model: ModelConfig) -> int:
    """How many numbers modulate a UViT's residual blocks and final layer."""
    channels = model.level_channels
    return 2 * (2 * model.level_blocks * sum(channels) + channels[0])


def _convolutions(model: ModelConfig) -> list[tuple[int, int, int]]:
    """Numbers of weights and of biases of a UViT's convolutions and linear layers, and pixels to an image token."""
    channels, found = model.level_channels, []
    found += [(9 * model.latent_channels * channels[0], channels[0], 4 ** len(channels))]
    for level, (own, below) in enumerate(itertools.pairwise([*channels, model.width])):
        pixels = 4 ** (len(channels) - level)
        found += [(9 * own * own, own, pixels)] * (2 * 2 * model.level_blocks)  # two a block, down and up
        found += [(own * below, below, pixels // 4), (below * own, own, pixels // 4)]
    return [*found, (9 * channels[0] * model.latent_channels, model.latent_channels, 4 ** len(channels))]


def train_flops(model: ModelConfig, image_tokens: int | None = None) -> int:
    """Training FLOPs of one image, 3F: of the square image, or of one of ``image_tokens``."""
    return 3 * forward_flops(model, image_tokens).total


def exact_train_flops(model: ModelConfig, image_tokens: int | None = None) -> int:
    """3F less what backpropagation skips: gradients with respect to the inputs (0.05 to 0.3 %)."""
    e, n = model.width, image_tokens or model.image_tokens
    image = model.patch_dim * e * n
    if model.architecture == "uvit":
        kernel, _, pixels = _convolutions(model)[0]
        image = kernel * pixels * n
    rest = model.text_dim * model.text_tokens + model.time_dim + model.pooled_dim
    return train_flops(model, image_tokens) - 2 * (image + rest * e)


def image_flops(config: RunConfig, count: Callable[[ModelConfig, int], int] = train_flops) -> float:
    """Training FLOPs of a run's mean image: the unit of its budgets, axes and MFU.

    With buckets the mean over them, which is what was spent after every whole cycle of ``len(buckets)`` steps.

    >>> from sd3_jax.overlays import resolve
    >>> image_flops(resolve({"steps": 1})) == train_flops(ModelConfig())
    True
    """
    unit = (config.data.downsample * config.model.patch) ** 2
    costs = [count(config.model, height * width // unit) for height, width in config.data.buckets]
    return sum(costs) / len(costs) if costs else count(config.model, config.model.image_tokens)


def total_steps(config: RunConfig) -> int:
    """The steps of a run: as given, or as many as fit within its images or FLOPs.

    Raises UserError for a budget below one step.
    """
    if config.steps is not None:
        return config.steps
    cost: float
    if config.images is not None:
        steps, given, cost = config.images // config.batch, f"images: {config.images}", config.batch
    else:
        assert config.flops is not None
        cost = config.batch * image_flops(config)
        steps, given = steps_within(config, config.flops), f"flops: {config.flops:g}"
    if steps < 1:
        raise UserError(f"{given} is too small for one step of batch {config.batch}, which takes {cost:.3g}")
    return steps


def steps_within(config: RunConfig, budget: float) -> int:
    """The last step at which a run has spent no more than ``budget`` training FLOPs, at its mean image's cost."""
    return int(budget // (config.batch * image_flops(config)))


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 peak of one device, FLOP/s; None where we do not know it."""
    return PEAK_FLOPS.get(device_kind)
