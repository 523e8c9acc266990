"""Parameters and FLOPs of MM-DiT in closed form; budgets; device peaks.

A multiply-add is 2 FLOPs. Norms, softmax, GELU, modulation and gates (about 1 %) are not counted. Training
costs C = 3F, F the forward FLOPs of an image: never 6ND, which overstates a two-stream model 2.8 to 2.9
times, and never recomputation. The last block's unused text queries are counted, by convention.
"""

from collections.abc import Callable
from typing import NamedTuple

from sd3_jax.config import ModelConfig, RunConfig
from sd3_jax.errors import UserError

# Dense bf16 peak, FLOP/s of one device as JAX counts devices (vendors' data sheets).
PEAK_FLOPS = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


class Parts(NamedTuple):
    """Parameters, or FLOPs of one image, by part of the model."""

    streams: int  # queries, keys, values, outputs and MLPs of both streams
    modulation: int  # adaLN: once an image, not once a token
    attention: int  # QK^T and AV; no parameters but the QK-norm gains
    ends: int  # patch, text, time and pooled embedders, final layer

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
    e, ratio, d = model.width, model.mlp_ratio, model.depth
    qkv, out = 3 * (e * e + e), e * e + e
    mlp = 2 * ratio * e * e + (ratio + 1) * e
    streams = (2 * d - 1) * (qkv + out + mlp) + qkv  # the last text stream stops after its keys and values
    modulation = (2 * d - 1) * (6 * e * e + 6 * e) + (2 * e * e + 2 * e) + (2 * e * e + 2 * e)
    dual = len(model.dual_attention)  # each a second attention of the image tokens, with its own modulation
    streams += dual * (qkv + out)
    modulation += dual * (3 * e * e + 3 * e)
    gains = (4 * d + 2 * dual) * model.head_dim if model.qk_norm else 0
    ends = (
        (model.patch_dim * e + e)
        + (model.text_dim * e + e)
        + (model.time_dim * e + e + e * e + e)
        + (model.pooled_dim * e + e + e * e + e)
        + (e * model.patch_dim + model.patch_dim)
    )
    return Parts(streams, modulation, gains, ends)


def forward_flops(model: ModelConfig, image_tokens: int | None = None) -> Parts:
    """Forward matmul FLOPs of one image, F, by part: of the square image, or of one of ``image_tokens``.

    >>> forward_flops(ModelConfig(depth=15)).total
    144766264320
    """
    e, d = model.width, model.depth
    n, m = image_tokens or model.image_tokens, model.text_tokens
    per_token = 2 * (4 + 2 * model.mlp_ratio) * e * e
    streams = d * per_token * n + (d - 1) * per_token * m + 2 * 3 * e * e * m
    modulation = 2 * ((2 * d - 1) * 6 + 2 + 2) * e * e
    attention = d * 4 * (n + m) ** 2 * e
    dual = len(model.dual_attention)
    streams += dual * 2 * 4 * e * e * n
    modulation += dual * 2 * 3 * e * e
    attention += dual * 4 * n * n * e
    ends = 2 * e * (2 * model.patch_dim * n + model.text_dim * m + model.time_dim + model.pooled_dim + 2 * e)
    return Parts(streams, modulation, attention, ends)


def train_flops(model: ModelConfig, image_tokens: int | None = None) -> int:
    """Training FLOPs of one image, 3F: of the square image, or of one of ``image_tokens``."""
    return 3 * forward_flops(model, image_tokens).total


def exact_train_flops(model: ModelConfig, image_tokens: int | None = None) -> int:
    """3F less what backpropagation skips: gradients with respect to the inputs (0.05 to 0.3 %)."""
    e = model.width
    inputs = model.patch_dim * (image_tokens or model.image_tokens) + model.text_dim * model.text_tokens
    return train_flops(model, image_tokens) - 2 * e * (inputs + model.time_dim + model.pooled_dim)


def image_flops(config: RunConfig, count: Callable[[ModelConfig, int], int] = train_flops) -> float:
    """Training FLOPs of a run's mean image: the unit of its budgets, axes and MFU.

    With buckets the mean over them, which is what was spent after every whole cycle of ``len(buckets)`` steps.

    >>> from sd3_jax.config import resolve
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
    """The last step at which a run has spent no more than ``budget`` training FLOPs."""
    return int(budget // (config.batch * image_flops(config)))


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 peak of one device, FLOP/s; None where we do not know it."""
    return PEAK_FLOPS.get(device_kind)
