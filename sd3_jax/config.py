"""The schema of a run: every field, its unit, its default and its range, and what makes two runs the same run.

Nothing here reads or checks what comes from outside: a valid :class:`RunConfig` is what
:func:`sd3_jax.overlays.resolve` returns.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

import ml_collections


def _bounded(default: Any, low: float = -math.inf, high: float = math.inf) -> Any:
    """A field whose number (or every number of whose tuple) must lie in [low, high]."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class ModelConfig:
    """MM-DiT (paper section 4) or a rival. One dial: depth d gives width head_dim * d, d heads, MLPs of 4 * width."""

    architecture: Literal["mmdit", "crossdit", "uvit"] = "mmdit"  # DiT is mmdit with one set of weights (figure 4)
    weight_sets: int = _bounded(2, 1, 3)  # of mmdit: 1 shared by all tokens, 2 image and text, 3 image, CLIP and T5
    clip_tokens: int = _bounded(77, 1, 4095)  # the first so many text tokens are CLIP's; the others are T5's
    depth: int = _bounded(15, 1, 1024)
    head_dim: int = _bounded(64, 4, 1024)
    mlp_ratio: int = _bounded(4, 1, 64)
    patch: int = _bounded(2, 1, 64)  # latent pixels on a side of an image token
    latent_size: int = _bounded(32, 1, 4096)  # latent pixels on a side; 32 for 256 px and f = 8
    latent_channels: int = _bounded(16, 1, 4096)
    text_tokens: int = _bounded(154, 1, 4096)  # 77 of CLIP and 77 of T5
    text_dim: int = _bounded(4096, 1, 65536)
    pooled_dim: int = _bounded(2048, 1, 65536)
    time_dim: int = _bounded(256, 2, 65536)  # width of the sinusoidal embedding of t
    qk_norm: bool = False  # RMSNorm on queries and keys, per head
    level_blocks: int = _bounded(2, 1, 64)  # of uvit: residual blocks of convolutions on each level, down and up
    dual_attention: tuple[int, ...] = _bounded((), 0, 1023)  # blocks whose image tokens also attend apart (MMDiT-X)
    position_grid: int = _bounded(0, 0, 4096)  # tokens on a side of the grid that images are cropped from; 0: just one
    position_base: int = _bounded(0, 0, 4096)  # its scale: tokens on a side where a step is 1 (16 at 256 px); 0: here
    position_table: bool = False  # the grid is stored with the weights, as released models do; never trained

    @property
    def width(self) -> int:
        """Channels of the residual stream, e."""
        return self.head_dim * self.depth

    @property
    def heads(self) -> int:
        """Attention heads, k: as many as blocks."""
        return self.depth

    @property
    def image_tokens(self) -> int:
        """Tokens of one square image, n."""
        return self.side**2

    @property
    def patch_dim(self) -> int:
        """Latent numbers in one image token."""
        return self.patch**2 * self.latent_channels

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Of uvit: channels of its convolutions, from the latent's resolution down to the one above the transformer.

        They halve as the resolution doubles, so that a block takes the same FLOPs on every level.

        >>> ModelConfig(depth=4, patch=4).level_channels
        (64, 128)
        """
        levels = self.patch.bit_length() - 1
        return tuple(self.width // 2 ** (levels - level) for level in range(levels))

    @property
    def side(self) -> int:
        """Image tokens on a side of one square image, s."""
        return self.latent_size // self.patch

    @property
    def largest_side(self) -> int:
        """The most image tokens on a side that there are positions for."""
        return self.position_grid or self.side


@dataclass(frozen=True)
class FlowConfig:
    """A formulation (paper sections 2 and 3): the path from data to noise, what of it is predicted, how t is drawn.

    A name, ``flow: eps/linear``, stands for all of it but the shift (:mod:`sd3_jax.formulations`).
    """

    path: Literal["rf", "cosine", "linear", "edm"] = "rf"  # signal and noise at each t; linear: LDM's betas
    prediction: Literal["velocity", "eps", "v", "F"] = "velocity"  # what the network says; F: EDM's preconditioning
    density: Literal["logit-normal", "uniform", "mode", "cosmap"] = "logit-normal"  # of the path's t, in training
    mean: float = _bounded(0.0, -10, 10)  # m of the logit-normal density
    scale: float = _bounded(1.0, 1e-3, 10)  # s of the logit-normal density
    mode_scale: float = _bounded(1.29, -1, 2 / (math.pi - 2))  # s of the density mode: beyond, it would fold back
    log_sigma_mean: float = _bounded(-1.2, -10, 10)  # P_m of path edm: at uniform t, log(noise / signal) is normal
    log_sigma_scale: float = _bounded(1.2, 1e-2, 10)  # P_s
    data_scale: float = _bounded(0.5, 1e-2, 100)  # sigma_data of the prediction F
    weight: Literal["own", "velocity", "eps", "v", "F"] = "own"  # what the squared error is of; own: of the prediction
    shift: float = _bounded(1.0, 1e-2, 100)  # resolution shift alpha; 3 at 1024 px, 1 at 256 px


@dataclass(frozen=True)
class DataConfig:
    """Procedural captioned scenes, a pure function of (seed, step, example), or a prepared set of encoded examples.

    What says how scenes are drawn, down to ``held_out``, and how their captions are embedded means nothing for a
    prepared set, whose manifest says what it holds.
    """

    source: Literal["scenes", "encoded"] = "scenes"
    path: str = ""  # of encoded: the folder that sd3-jax prepare wrote. The folder's name is part of a run's identity,
    validation: str = ""  # where it lies is not. Another such folder, to measure the loss on; empty: its own split
    synthetic: float = _bounded(0.0, 0, 1)  # probability of the second kind of caption, where an example has both
    image_size: int = _bounded(256, 8, 4096)  # pixels on a side
    downsample: int = _bounded(8, 1, 64)  # pixels to one latent pixel, f
    shapes: int = _bounded(8, 2, 8)  # how many of scenes.SHAPES
    colors: int = _bounded(10, 2, 10)  # how many of scenes.COLORS
    backgrounds: int = _bounded(4, 1, 4)  # how many of scenes.BACKGROUNDS
    layout: Literal["grid", "free"] = "free"
    grid: int = _bounded(3, 2, 16)  # cells on a side, for layout = grid: one object to a cell
    words: int = _bounded(0, 0, 32)  # how many of signs.WORDS a seventh task, of signs, writes; 0: there is none
    color_jitter: float = _bounded(12.0, 0, 40)  # of 255, uniform, per channel and object
    buckets: tuple[tuple[int, ...], ...] = ()  # (height, width) in pixels: each step's batch is all of one; (): square
    held_out: float = _bounded(0.1, 0, 0.5)  # share of (shape, colour) pairs, relations and words never trained on
    text_parts: int = _bounded(3, 1, 8)  # frozen encoders that are dropped independently
    text_sequence: bool = False  # the last part is T5's, whose tokens follow the others' (model.clip_tokens of them)
    text_dropout: float = _bounded(0.464, 0, 1)  # probability for each part; 0.464**3 = 0.1


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW at a constant rate after a warm-up, and the average of the weights that is evaluated."""

    learning_rate: float = _bounded(1e-4, 0, 10)
    reference_width: int = _bounded(0, 0, 65536)  # 0: one rate for all; else rate * reference_width / width
    warmup_steps: int = _bounded(1000, 0, 10**9)
    drops: tuple[tuple[float, ...], ...] = ()  # (step, factor): from that step on the rate is multiplied
    cooldown: float = _bounded(0.0, 0, 1)  # last share of the run in which the rate falls linearly to zero
    beta1: float = _bounded(0.9, 0, 1)
    beta2: float = _bounded(0.999, 0, 1)
    epsilon: float = _bounded(1e-8, 0, 1)
    weight_decay: float = _bounded(0.01, 0, 10)
    clip_norm: float = _bounded(1.0, 0, 1e9)  # global norm of the gradient; 0: no clipping
    ema: Literal["power", "exponential"] = "power"
    ema_relative_width: float = _bounded(0.10, 1e-3, 0.28)  # power: width as a share of the images seen
    ema_decay: float = _bounded(0.99, 0, 1)  # exponential: the paper's 0.99 ...
    ema_every: int = _bounded(100, 1, 10**9)  # ... every 100 steps


@dataclass(frozen=True)
class EvalConfig:
    """The fixed validation loss: which examples, at which levels, and after which steps."""

    seed: int = _bounded(0, 0, 2**32 - 1)
    examples: int = _bounded(512, 1, 10**7)
    levels: Literal["every", "round-robin"] = "every"  # of each example; round-robin: example i has level i mod 8 alone
    first_step: int = _bounded(100, 1, 10**9)  # nothing is evaluated before
    per_decade: int = _bounded(12, 0, 1000)  # log-spaced evaluations per factor of ten in steps
    every: int = _bounded(0, 0, 10**9)  # and every so many steps (0: not)
    budgets: tuple[float, ...] = _bounded((), 1, 1e40)  # and at the last step within each FLOP budget


@dataclass(frozen=True)
class MeshConfig:
    """How a run executes. It may change between the lives of one run without changing what is computed."""

    data: int = _bounded(-1, -1, 10**6)  # devices along the batch; -1: what fsdp leaves
    fsdp: int = _bounded(1, 1, 10**6)  # devices that large parameters are split over
    accumulate: int = _bounded(1, 1, 10**6)  # parts of a batch that are computed one after another, to save memory
    unroll: int = _bounded(1, 1, 1024)  # blocks per iteration of the scan over depth
    remat: Literal["none", "elementwise", "dots", "full"] = "none"  # what blocks compute again, from least to most
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of matmuls; auto: bfloat16 on accelerators


@dataclass(frozen=True)
class RunConfig:
    """One run. Exactly one of steps, images and flops says how long it is."""

    model: ModelConfig = ModelConfig()
    flow: FlowConfig = FlowConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvalConfig = EvalConfig()
    mesh: MeshConfig = MeshConfig()
    batch: int = _bounded(256, 1, 10**7)  # images a step, over all devices
    seed: int = _bounded(0, 0, 2**32 - 1)
    init_from: str = ""  # run directory, diffusers folder or reference .safetensors that the first life starts from;
    init_weights: Literal["ema", "raw"] = "ema"  # a path relative to the working directory. Of a run: which weights,
    init_step: int = _bounded(0, 0, 10**10)  # and of which checkpoint; 0: its newest
    steps: int | None = _bounded(None, 1, 10**10)
    images: int | None = _bounded(None, 1, 10**15)
    flops: float | None = _bounded(None, 1, 1e40)  # 3 x forward matmul FLOPs of all images
    log_every: int = _bounded(50, 1, 10**9)  # steps to a row of the training loss
    checkpoint_seconds: float = _bounded(300.0, 0, 1e9)  # wall-clock time between checkpoints
    keep_steps: tuple[int, ...] = _bounded((), 1, 10**10)  # steps whose checkpoint is never deleted
    checkpoint_root: str = ""  # gs://bucket/sweep or an absolute path, where a folder of each run has its checkpoints
    # and a copy of its records; empty: its own directory
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()  # what metrics.jsonl is copied to as well


LENGTHS = ("steps", "images", "flops")
# What may differ between two lives of one run; everything else is its identity.
FREE = ("mesh", "log_every", "checkpoint_seconds", "keep_steps", "checkpoint_root", "trackers", *LENGTHS)
# Fields younger than the first records, and what those runs did: at that value they are no part of an identity.
FOLDERS = ("data.path", "data.validation")  # known by name, wherever they lie; their manifests are held to their digest
YOUNGER: dict[str, Any] = {
    "model.architecture": "mmdit",
    "model.weight_sets": 2,
    "model.clip_tokens": 77,
    "model.level_blocks": 2,
    "model.dual_attention": (),
    "data.text_sequence": False,
    "flow.path": "rf",
    "flow.prediction": "velocity",
    "flow.mode_scale": 1.29,
    "flow.log_sigma_mean": -1.2,
    "flow.log_sigma_scale": 1.2,
    "flow.data_scale": 0.5,
    "flow.weight": "own",
    "model.position_grid": 0,
    "model.position_base": 0,
    "model.position_table": False,
    "data.buckets": (),
    "data.words": 0,
    "data.path": "",
    "data.validation": "",
    "data.synthetic": 0.0,
    "evaluation.levels": "every",
    "init_from": "",
    "init_weights": "ema",
    "init_step": 0,
}


def default_config() -> ml_collections.ConfigDict:
    """The schema's defaults as a locked ConfigDict, for an experiment file to change and return."""
    config = ml_collections.ConfigDict(dataclasses.asdict(RunConfig()))
    for name in LENGTHS:  # a ConfigDict keeps types, and None has none
        config[name] = ml_collections.config_dict.placeholder(float if name == "flops" else int)
    return config.lock()


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain nested dictionaries, for JSON."""
    return dataclasses.asdict(config)


def scene_fields(data: DataConfig) -> dict[str, Any]:
    """What pictures that are drawn and judged depend on: all but the buckets of training, and what is younger."""
    fields = {key: value for key, value in dataclasses.asdict(data).items() if key != "buckets"}
    return {key: value for key, value in fields.items() if YOUNGER.get(f"data.{key}", ...) != value}


def identity(config: RunConfig) -> dict[str, Any]:
    """What makes two runs the same run: every field but how it executes and how long it is (flat, dotted)."""
    fields = ((key, value) for key, value in flatten(to_dict(config)) if key.partition(".")[0] not in FREE)
    kept = ((key, PurePath(value).name if key in FOLDERS else value) for key, value in fields)
    return {key: value for key, value in kept if key not in YOUNGER or value != YOUNGER[key]}


def cooldown_start(config: OptimizerConfig, steps: int) -> int:
    """The last step at the constant rate: where a cooldown begins, or the end."""
    return steps - round(config.cooldown * steps)


def fingerprint(config: RunConfig) -> str:
    """Eight hex digits of the identity: equal for equal runs."""
    text = json.dumps(identity(config), sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def difference(ours: RunConfig, theirs: RunConfig) -> list[str]:
    """One line for each field of the identity that differs, ``key: theirs -> ours``."""
    new, old = ({**YOUNGER, **identity(config)} for config in (ours, theirs))
    return [f"{key}: {old[key]} -> {new[key]}" for key in new if new[key] != old[key]]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``{"model": {"depth": 4}}`` as ``("model.depth", 4)``; keys that are dotted already stay so."""
    for key, value in tree.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
