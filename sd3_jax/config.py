"""The schema of a run: every field, its unit, its default and its range, and the one door into it.

Three ways of writing a configuration meet in :func:`resolve`: an experiment file (a locked
``ml_collections.ConfigDict``), ``--set key=value`` strings, and a sweep's YAML. Whatever comes in, a
validated, frozen :class:`RunConfig` comes out, or a :class:`UserError` that names the key, the value and
what would be valid.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import ml_collections
import yaml

from sd3_jax.errors import UserError


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
    """The rectified-flow objective (paper sections 2 and 3): how t is drawn while training."""

    density: Literal["logit-normal", "uniform"] = "logit-normal"
    mean: float = _bounded(0.0, -10, 10)  # m of the logit-normal density
    scale: float = _bounded(1.0, 1e-3, 10)  # s of the logit-normal density
    shift: float = _bounded(1.0, 1e-2, 100)  # resolution shift alpha; 3 at 1024 px, 1 at 256 px


@dataclass(frozen=True)
class DataConfig:
    """Procedural captioned scenes, a pure function of (seed, step, example)."""

    source: Literal["scenes"] = "scenes"
    image_size: int = _bounded(256, 8, 4096)  # pixels on a side
    downsample: int = _bounded(8, 1, 64)  # pixels to one latent pixel, f
    shapes: int = _bounded(8, 2, 8)  # how many of scenes.SHAPES
    colors: int = _bounded(10, 2, 10)  # how many of scenes.COLORS
    backgrounds: int = _bounded(4, 1, 4)  # how many of scenes.BACKGROUNDS
    layout: Literal["grid", "free"] = "free"
    grid: int = _bounded(3, 2, 16)  # cells on a side, for layout = grid: one object to a cell
    color_jitter: float = _bounded(12.0, 0, 40)  # of 255, uniform, per channel and object
    buckets: tuple[tuple[int, ...], ...] = ()  # (height, width) in pixels: each step's batch is all of one; (): square
    held_out: float = _bounded(0.1, 0, 0.5)  # share of (shape, colour) pairs and of relations never trained on
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
    """The fixed validation loss: which examples, and after which steps."""

    seed: int = _bounded(0, 0, 2**32 - 1)
    examples: int = _bounded(512, 1, 10**7)
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


CAPTION_WORDS = 6  # slots of a caption: [count, colour, shape, relation, colour, shape]
LEAST_CELL = 6  # pixels: five for a shape and one to the next
LEAST_FREE = 32  # pixels: the smallest object is seven across
BUCKET_AREA = 0.2  # how far, as a share, a bucket's area may be from image_size**2, whose positions and shift it has
LENGTHS = ("steps", "images", "flops")
# What may differ between two lives of one run; everything else is its identity.
FREE = ("mesh", "log_every", "checkpoint_seconds", "keep_steps", *LENGTHS)
# Fields younger than the first records, and what those runs did: at that value they are no part of an identity.
YOUNGER: dict[str, Any] = {
    "model.architecture": "mmdit",
    "model.weight_sets": 2,
    "model.clip_tokens": 77,
    "model.level_blocks": 2,
    "model.dual_attention": (),
    "data.text_sequence": False,
    "model.position_grid": 0,
    "model.position_base": 0,
    "model.position_table": False,
    "data.buckets": (),
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


def resolve(*overlays: Mapping[str, Any]) -> RunConfig:
    """The defaults with each overlay laid over them in turn, coerced and validated.

    Keys are dotted (``model.depth``) or nested. A length (steps, images or flops) replaces the length that an
    earlier overlay gave.

    >>> resolve({"steps": 10}, {"model.depth": "4", "flops": "1e15"}).flops
    1000000000000000.0
    """
    values: dict[str, Any] = {}
    for overlay in overlays:
        flat = {key: value for key, value in flatten(overlay) if key not in LENGTHS or value is not None}
        lengths = [key for key in LENGTHS if key in flat]
        if len(lengths) > 1:
            raise UserError(f"{' and '.join(lengths)} are both set: give exactly one of steps, images and flops")
        if lengths:
            values = {key: value for key, value in values.items() if key not in LENGTHS}
        values |= flat
    config = _build(RunConfig, _nest(values), "")
    _check(config)
    return config


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which would let the last of two equal keys win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, where: str) -> Any:
    """Safe-loaded YAML. Raises UserError that says where for anything that is not: tags, equal keys, broken text."""
    try:
        return yaml.load(text, _Loader)  # a subclass of SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: broken YAML: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise UserError(f"{where}: broken YAML: nested too deeply") from None
    except (ValueError, KeyError, IndexError, AttributeError):  # a scalar that is not what its tag or form says
        raise UserError(
            f"{where}: broken YAML: a value is not what its form says, such as the date 2020-13-45"
        ) from None


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """``["model.depth=4", "seed=1"]`` as an overlay; values are read as YAML scalars or lists."""
    overlay = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {assignment!r}: expected key=value, for example --set model.depth=4")
        overlay[key.strip()] = read_yaml(text, f"--set {assignment!r}")
    return overlay


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain nested dictionaries, for JSON."""
    return dataclasses.asdict(config)


def scene_fields(data: DataConfig) -> dict[str, Any]:
    """What pictures that are drawn and judged depend on: all but the buckets of training, and what is younger."""
    fields = {key: value for key, value in dataclasses.asdict(data).items() if key != "buckets"}
    return {key: value for key, value in fields.items() if YOUNGER.get(f"data.{key}", ...) != value}


def identity(config: RunConfig) -> dict[str, Any]:
    """What makes two runs the same run: every field but how it executes and how long it is (flat, dotted)."""
    kept = ((key, value) for key, value in flatten(to_dict(config)) if key.partition(".")[0] not in FREE)
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


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"{key}: {parent} is both a value and a section")
        node[leaf] = value
    return tree


def _build(kind: type, tree: Any, path: str) -> Any:
    """A dataclass from a nested dictionary, every value coerced to its field's type."""
    if not isinstance(tree, dict):
        raise UserError(f"{path.rstrip('.')}: {tree!r} is not a section; its keys are {', '.join(_names(kind))}")
    hints = typing.get_type_hints(kind)
    for key in tree:
        if key not in hints:
            raise UserError(f"unknown key {path}{key}: {_nearest(path + str(key))}")
    values = {}
    for spec in dataclasses.fields(kind):
        if spec.name not in tree:
            continue
        value, name = tree[spec.name], path + spec.name
        if dataclasses.is_dataclass(hints[spec.name]):
            values[spec.name] = _build(hints[spec.name], value, name + ".")
        else:
            values[spec.name] = _in_range(_coerce(hints[spec.name], value, name), spec, name)
    return kind(**values)


def _names(kind: type) -> list[str]:
    return [spec.name for spec in dataclasses.fields(kind)]


def _nearest(key: str) -> str:
    valid = [name for name, _ in flatten(to_dict(RunConfig()))]
    leaf = key.rpartition(".")[2]
    close = [name for name in valid if name.rpartition(".")[2] == leaf]  # the right name in the wrong section
    close += difflib.get_close_matches(key, _names(RunConfig), n=1, cutoff=0.7)
    close += difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"the sections are {', '.join(_names(RunConfig))}"


def _coerce(kind: Any, value: Any, name: str) -> Any:
    """``value`` as ``kind``, without guessing: a bool is no int, and 2.5 is no int; "1e15" is a float."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value in arguments:
            return value
        raise UserError(f"{name}: {value!r} is not one of {', '.join(map(str, arguments))}")
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _coerce(arguments[0], value, name)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{name}: {value!r} is not a list")
        return tuple(_coerce(arguments[0], item, f"{name}[{i}]") for i, item in enumerate(value))
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise UserError(f"{name}: {value!r} is not true or false")
    if kind is str:
        if isinstance(value, str):
            return value
        raise UserError(f"{name}: {value!r} is not text")
    number = None
    if not isinstance(value, bool) and isinstance(value, int | float | str):
        with contextlib.suppress(ValueError, OverflowError):
            number = value if isinstance(value, int) and abs(value) < 1e300 else float(value)
    if number is None or not math.isfinite(number):
        raise UserError(f"{name}: {value!r} is not {'a whole' if kind is int else 'a finite'} number")
    if kind is int and number != int(number):
        raise UserError(f"{name}: {value!r} is not a whole number")
    return kind(number)


def _in_range(value: Any, spec: dataclasses.Field, name: str) -> Any:
    low, high = spec.metadata.get("low", -math.inf), spec.metadata.get("high", math.inf)
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not low <= number <= high:
            raise UserError(f"{name}: {number} is out of range; valid: {low:,g} to {high:,g}")
    return value


def size_problem(model: ModelConfig, data: DataConfig, height: int, width: int) -> str | None:
    """Why there can be no picture of ``height`` x ``width`` pixels; None if there can.

    >>> size_problem(ModelConfig(), DataConfig(), 256, 320)
    'more tokens on a side (20) than model.position_grid has positions for (16)'
    """
    unit = data.downsample * model.patch
    if height < 1 or width < 1 or height % unit or width % unit:
        return f"a side is not a multiple of data.downsample * model.patch = {unit} pixels"
    if data.layout == "grid" and height != width:
        return "scenes of layout grid are square"
    if max(height, width) // unit > model.largest_side:
        tokens = max(height, width) // unit
        return f"more tokens on a side ({tokens}) than model.position_grid has positions for ({model.largest_side})"
    return None


def _check_bucket(bucket: tuple[int, ...], model: ModelConfig, data: DataConfig) -> None:
    name = f"data.buckets: {list(bucket)}"
    if data.layout != "free":
        raise UserError(f"{name}: buckets are for data.layout free, and it is {data.layout}")
    if len(bucket) != 2:
        raise UserError(f"{name} is not [height, width] in pixels")
    if problem := size_problem(model, data, *bucket):
        raise UserError(f"{name}: {problem}")
    if min(bucket) < LEAST_FREE:
        raise UserError(f"{name}: too small to draw in; at least {LEAST_FREE} pixels on each side")
    if abs(bucket[0] * bucket[1] / data.image_size**2 - 1) > BUCKET_AREA:
        raise UserError(
            f"{name}: {bucket[0] * bucket[1]:,} pixels; an area within {BUCKET_AREA:.0%} of "
            f"data.image_size**2 = {data.image_size**2:,} is needed"
        )


def _check(config: RunConfig) -> None:
    """What no single field can know."""
    model, data = config.model, config.data
    lengths = [key for key in LENGTHS if getattr(config, key) is not None]
    if len(lengths) != 1:
        raise UserError("give exactly one of steps, images and flops" + (", not none" if not lengths else ""))
    if data.image_size % data.downsample:
        raise UserError(f"data.image_size: {data.image_size} is not a multiple of data.downsample {data.downsample}")
    if model.latent_size != data.image_size // data.downsample:
        raise UserError(
            f"model.latent_size: {model.latent_size} does not fit the data; "
            f"data.image_size / data.downsample is {data.image_size // data.downsample}"
        )
    if model.latent_size % model.patch:
        raise UserError(f"model.patch: {model.patch} does not divide model.latent_size {model.latent_size}")
    if model.latent_channels > 3 * data.downsample**2:
        raise UserError(
            f"model.latent_channels: {model.latent_channels} is more than a patch of pixels holds, "
            f"3 * data.downsample**2 = {3 * data.downsample**2}"
        )
    if model.width % 4 or model.time_dim % 2:
        raise UserError(
            f"model.head_dim: width {model.width} = head_dim * depth must be a multiple of 4 "
            "(two-dimensional sine-cosine positions), and model.time_dim even"
        )
    if model.weight_sets == 3 and not model.clip_tokens < model.text_tokens:
        raise UserError(
            f"model.clip_tokens: {model.clip_tokens} of {model.text_tokens} text tokens leave none of T5's, "
            "whose weights are the third of model.weight_sets 3"
        )
    if model.architecture == "uvit" and (model.patch < 2 or model.patch & (model.patch - 1)):
        raise UserError(f"model.patch: a uvit halves the resolution down to a patch: {model.patch} is not 2, 4, 8, ...")
    if model.architecture == "uvit" and model.width % model.patch:
        raise UserError(
            f"model.head_dim: width {model.width} = head_dim * depth is not a multiple of model.patch {model.patch}, "
            "and a uvit's channels halve as often as its resolution doubles"
        )
    if model.dual_attention and (model.architecture != "mmdit" or model.weight_sets == 1):
        raise UserError("model.dual_attention: image tokens that attend apart need weights of their own: mmdit, 2 sets")
    if any(block >= model.depth for block in model.dual_attention) or list(model.dual_attention) != sorted(
        set(model.dual_attention)
    ):
        raise UserError(
            f"model.dual_attention: {list(model.dual_attention)} is not an ascending list of blocks, "
            f"each from 0 to model.depth - 1 = {model.depth - 1}"
        )
    if model.position_grid and model.position_grid < model.side:
        raise UserError(
            f"model.position_grid: {model.position_grid} is smaller than an image; "
            f"at least model.latent_size / model.patch = {model.side}, or 0"
        )
    if data.text_sequence and (
        data.text_parts < 2 or min(model.clip_tokens, model.text_tokens - model.clip_tokens) < CAPTION_WORDS
    ):
        raise UserError(
            f"data.text_sequence: takes two parts, and a caption of {CAPTION_WORDS} words each in the "
            f"{model.clip_tokens} tokens of CLIP and in the other {model.text_tokens - model.clip_tokens}, of T5 "
            "(model.clip_tokens, model.text_tokens)"
        )
    if data.text_parts > min(model.text_dim, model.pooled_dim):
        raise UserError(f"data.text_parts: {data.text_parts} parts do not fit model.text_dim or model.pooled_dim")
    if model.text_tokens < CAPTION_WORDS:
        raise UserError(f"model.text_tokens: {model.text_tokens} is too few for a caption; at least {CAPTION_WORDS}")
    if data.layout == "grid" and data.image_size % data.grid:
        raise UserError(f"data.grid: {data.grid} cells do not divide {data.image_size} pixels")
    if data.layout == "grid" and data.image_size < LEAST_CELL * data.grid:
        raise UserError(
            f"data.grid: cells of {data.image_size / data.grid:g} pixels are too small to draw in; "
            f"at most {data.image_size // LEAST_CELL} cells on a side at data.image_size {data.image_size}"
        )
    if data.layout == "free" and data.image_size < LEAST_FREE:
        raise UserError(f"data.image_size: {data.image_size} is too small for layout free; at least {LEAST_FREE}")
    for bucket in data.buckets:
        _check_bucket(bucket, model, data)
    if len(set(data.buckets)) < len(data.buckets):
        raise UserError(f"data.buckets: {list(map(list, data.buckets))} has a bucket twice")
    if not config.init_from and (config.init_step or config.init_weights != "ema"):
        raise UserError("init_step and init_weights: say of init_from which weights to take, and init_from is not set")
    if config.batch % (max(config.mesh.data, 1) * config.mesh.fsdp * config.mesh.accumulate):
        raise UserError(
            f"batch: {config.batch} is not divisible by the mesh, data {config.mesh.data} x fsdp {config.mesh.fsdp} "
            f"devices, times {config.mesh.accumulate} parts (mesh.accumulate)"
        )
    for drop in config.optimizer.drops:
        if len(drop) != 2 or drop[0] < 1 or drop[1] <= 0:
            raise UserError(f"optimizer.drops: {list(drop)} is not [step, factor] with step >= 1 and factor > 0")
