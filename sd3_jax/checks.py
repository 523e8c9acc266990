"""Which fields of a configuration go together: what can be drawn, cut into tokens, and divided over a mesh."""

import re

from sd3_jax.config import LENGTHS, DataConfig, FlowConfig, ModelConfig, RunConfig
from sd3_jax.errors import UserError

CAPTION_WORDS = 6  # slots of a caption: [count, colour, shape, relation, colour, shape]
LEAST_CELL = 6  # pixels: five for a shape and one to the next
LEAST_FREE = 32  # pixels: the smallest object is seven across
LEAST_SIGN = 27  # pixels: one for each cell of the letters of a sign and of the plate around them
LEAST_ROBIN = 16  # examples: two for each of the levels of the validation loss
BUCKET_AREA = 0.2  # how far, as a share, a bucket's area may be from image_size**2, whose positions and shift it has


def size_problem(model: ModelConfig, data: DataConfig, height: int, width: int) -> str | None:
    """Why there can be no picture of ``height`` x ``width`` pixels; None if there can.

    >>> size_problem(ModelConfig(), DataConfig(), 256, 320)
    'more tokens on a side (20) than model.position_grid has positions for (16)'
    """
    unit = data.downsample * model.patch
    if height < 1 or width < 1 or height % unit or width % unit:
        return f"a side is not a multiple of data.downsample * model.patch = {unit} pixels"
    if data.source == "scenes" and data.layout == "grid" and height != width:
        return "scenes of layout grid are square"
    if max(height, width) // unit > model.largest_side:
        tokens = max(height, width) // unit
        return f"more tokens on a side ({tokens}) than model.position_grid has positions for ({model.largest_side})"
    return None


def _check_flow(flow: FlowConfig) -> None:
    """Refuse a flow that cannot be trained, and numbers that say nothing in it."""
    if flow.path == "edm" and "velocity" in (flow.prediction, flow.weight):
        raise UserError("flow.path: edm's own velocity has no bound; predict, and weigh by, one of F, v, eps")
    said = {
        "mean": ("density", "logit-normal", flow.density),
        "scale": ("density", "logit-normal", flow.density),
        "mode_scale": ("density", "mode", flow.density),
        "log_sigma_mean": ("path", "edm", flow.path),
        "log_sigma_scale": ("path", "edm", flow.path),
        "data_scale": ("prediction", "F", "F" if "F" in (flow.prediction, flow.weight) else flow.prediction),
    }
    for name, (key, needed, there) in said.items():
        if there != needed and getattr(flow, name) != getattr(FlowConfig(), name):
            raise UserError(f"flow.{name}: {getattr(flow, name):g} is of flow.{key} {needed}, and it is {there}")


def _check_bucket(bucket: tuple[int, ...], model: ModelConfig, data: DataConfig) -> None:
    name = f"data.buckets: {list(bucket)}"
    if data.source == "scenes" and data.layout != "free":
        raise UserError(f"{name}: buckets are for data.layout free, and it is {data.layout}")
    if len(bucket) != 2:
        raise UserError(f"{name} is not [height, width] in pixels")
    if problem := size_problem(model, data, *bucket):
        raise UserError(f"{name}: {problem}")
    if data.source == "scenes" and min(bucket) < LEAST_FREE:
        raise UserError(f"{name}: too small to draw in; at least {LEAST_FREE} pixels on each side")
    if abs(bucket[0] * bucket[1] / data.image_size**2 - 1) > BUCKET_AREA:
        raise UserError(
            f"{name}: {bucket[0] * bucket[1]:,} pixels; an area within {BUCKET_AREA:.0%} of "
            f"data.image_size**2 = {data.image_size**2:,} is needed"
        )


def _check_scenes(model: ModelConfig, data: DataConfig) -> None:
    """What scenes can be drawn and embedded as."""
    for name in ("path", "validation", "synthetic"):
        if getattr(data, name):
            raise UserError(f"data.{name}: is of data.source encoded, and it is scenes")
    if model.latent_channels > 3 * data.downsample**2:
        raise UserError(
            f"model.latent_channels: {model.latent_channels} is more than a patch of pixels holds, "
            f"3 * data.downsample**2 = {3 * data.downsample**2}"
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
    sides = [data.image_size, *(side for bucket in data.buckets for side in bucket)]
    if data.words and min(sides) < LEAST_SIGN:
        raise UserError(
            f"data.words: a letter on a sign takes 5 x 7 pixels and a plate 27 x 11, and pictures have {min(sides)}; "
            f"at least {LEAST_SIGN} (data.image_size, data.buckets), or words 0"
        )
    if data.layout == "free" and data.image_size < LEAST_FREE:
        raise UserError(f"data.image_size: {data.image_size} is too small for layout free; at least {LEAST_FREE}")


def check(config: RunConfig) -> None:
    """What no single field can know. Raises UserError that names the fields which do not go together."""
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
    if data.source == "scenes":
        _check_scenes(model, data)
    elif not data.path:
        raise UserError("data.path: data.source encoded needs the folder that sd3-jax prepare wrote")
    _check_flow(config.flow)
    for bucket in data.buckets:
        _check_bucket(bucket, model, data)
    if len(set(data.buckets)) < len(data.buckets):
        raise UserError(f"data.buckets: {list(map(list, data.buckets))} has a bucket twice")
    if not config.init_from and (config.init_step or config.init_weights != "ema"):
        raise UserError("init_step and init_weights: say of init_from which weights to take, and init_from is not set")
    if config.evaluation.levels == "round-robin" and config.evaluation.examples < LEAST_ROBIN:
        raise UserError(
            f"evaluation.examples: {config.evaluation.examples} leave fewer than two to a level; at least "
            f"{LEAST_ROBIN} with evaluation.levels round-robin"
        )
    if config.batch % (max(config.mesh.data, 1) * config.mesh.fsdp * config.mesh.accumulate):
        raise UserError(
            f"batch: {config.batch} is not divisible by the mesh, data {config.mesh.data} x fsdp {config.mesh.fsdp} "
            f"devices, times {config.mesh.accumulate} parts (mesh.accumulate)"
        )
    if config.checkpoint_root and not re.match("/|gs://[a-z0-9]", config.checkpoint_root):
        raise UserError(
            f"checkpoint_root: {config.checkpoint_root!r} is neither gs://bucket/folder nor an absolute path"
        )
    for drop in config.optimizer.drops:
        if len(drop) != 2 or drop[0] < 1 or drop[1] <= 0:
            raise UserError(f"optimizer.drops: {list(drop)} is not [step, factor] with step >= 1 and factor > 0")
