"""Weights in and out: a diffusers transformer folder or a reference single file to a run directory, and back.

::

    DIFFUSERS/config.json                            SD3Transformer2DModel's own
    DIFFUSERS/diffusion_pytorch_model*.safetensors   its tensors; with an index where there are several files
    DIFFUSERS/sd3_jax.json                           the run that they came from, so that the way back is exact

A folder is made whole, beside the target, and renamed; until then nothing is changed on disk.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sd3_jax import config as configs
from sd3_jax import overlays, records
from sd3_jax.checks import LEAST_FREE
from sd3_jax.config import MeshConfig, ModelConfig, RunConfig
from sd3_jax.errors import UserError
from sd3_jax.evaluation import generate
from sd3_jax.flops import total_steps
from sd3_jax.models import convert as names
from sd3_jax.models import ends, tensors
from sd3_jax.models.tensors import Stored
from sd3_jax.training import checkpoint, sharding

CLASS = "SD3Transformer2DModel"
PREFIX = "model.diffusion_model."  # of the transformer's tensors in a single file that also holds other models
ORIGIN = "sd3_jax.json"
SHARD_BYTES = 10 * 10**9  # diffusers' own
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# Diffusers' key: our field, and what diffusers takes where the key is missing.
_FIELDS = {
    "num_layers": ("depth", 18),
    "attention_head_dim": ("head_dim", 64),
    "patch_size": ("patch", 2),
    "sample_size": ("latent_size", 128),
    "in_channels": ("latent_channels", 16),
    "joint_attention_dim": ("text_dim", 4096),
    "pooled_projection_dim": ("pooled_dim", 2048),
    "pos_embed_max_size": ("position_grid", 96),
}


def is_run(path: Path) -> bool:
    """Whether this is a run directory, and not a folder of diffusers'."""
    ours = (path / "checkpoints").is_dir() or (path / "lives.jsonl").is_file()
    return ours and (path / "config.json").is_file()


def to_run(source: Path, target: Path, overlay: Mapping[str, Any]) -> RunConfig:
    """Make a run directory of released weights, with one checkpoint that ``sample`` draws with.

    ``overlay`` changes what no file of weights says: data, text tokens, resolution. The checkpoint stands for the
    run's last step.

    Raises UserError for what is no model of this family, names every tensor that does not fit, and writes nothing.
    """
    _check_target(target)
    found, style, config = open_weights(source, overlay)
    params = names.from_tensors(lambda name: tensors.read(found[name]), config.model, style)

    def build(folder: Path) -> None:
        step = total_steps(config)
        records.open_run(folder, config)
        checkpoint.save_weights(folder / "checkpoints", step, params)
        records.finish(folder, {"steps": step, "images": 0, "flops": 0.0, "converted_from": source.resolve().name})

    _whole(target, build)
    return config


def open_weights(source: Path, overlay: Mapping[str, Any]) -> tuple[dict[str, Stored], names.Style, RunConfig]:
    """The tensors of released weights, where they lie, whose names they have, and a run that would hold them.

    Nothing but headers and positions is read. Positions that the formula gives are left out, unless the run is to
    store them. Raises UserError for what is no model of this family, naming every tensor that does not fit.
    """
    if source.is_dir():
        folder = source / "transformer" if (source / "transformer" / "config.json").exists() else source
        found, style, config = _from_folder(folder, overlay)
    else:
        found, style, config = _from_file(source, overlay)
    table = {name: stored for name, stored in found.items() if name == "pos_embed.pos_embed"}
    if not config.model.position_table and table and _is_grid(tensors.read(*table.values()), config.model):
        del found[next(iter(table))]
    elif not config.model.position_table:
        model = dataclasses.replace(config.model, position_table=True, position_grid=config.model.largest_side)
        config = dataclasses.replace(config, model=model)
    try:
        names.check({name: stored.shape for name, stored in found.items()}, config.model, style)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    strange = [f"{name} {stored.type}" for name, stored in found.items() if stored.type not in tensors.TYPES]
    if strange:
        raise UserError(f"{source}: not one of the types {', '.join(tensors.TYPES)}: {', '.join(strange)}")
    return found, style, config


def to_diffusers(
    run_dir: Path, target: Path, step: int | None, weights: str, dtype: str = "float32", shard_bytes: int = SHARD_BYTES
) -> int:
    """Make a folder that ``SD3Transformer2DModel.from_pretrained`` loads; returns the step whose weights it holds.

    Raises UserError for a step that is not there and for a model that diffusers does not have, and writes nothing.
    """
    _check_target(target)
    if dtype not in TYPES:
        raise UserError(f"dtype: {dtype!r} is not one of {', '.join(TYPES)}")
    config = records.load_config(run_dir)
    model = config.model
    for field, only in (("architecture", "mmdit"), ("weight_sets", 2), ("mlp_ratio", 4), ("time_dim", 256)):
        if getattr(model, field) != only:
            raise UserError(f"{run_dir}: model.{field} is {getattr(model, field)}, and {CLASS} has {only} alone")
    saved = generate.steps_saved(run_dir)
    step = saved[-1] if step is None else step
    if step not in saved:
        raise UserError(f"{run_dir}: has no checkpoint of step {step}; there are {', '.join(map(str, saved))}")
    one = sharding.make_mesh(MeshConfig(), 1, among=jax.devices()[:1])
    params = generate.load_weights(run_dir, config, one, step, weights)
    if not model.position_table:
        side = model.largest_side
        params = {**params, "position_table": ends.grid(model, side, side)}
    stored = dataclasses.replace(model, position_table=True, position_grid=model.largest_side)

    def build(folder: Path) -> None:
        origin = {"run": run_dir.resolve().name, "step": step, "weights": weights, "config": configs.to_dict(config)}
        records.write_atomic(folder / ORIGIN, json.dumps(origin, indent=1) + "\n")
        records.write_atomic(folder / "config.json", json.dumps(describe(model), indent=2) + "\n")
        every = names.to_tensors(params, stored)
        tensors.write(folder, names.expected(stored), every, TYPES[dtype], shard_bytes)

    _whole(target, build)
    return step


def describe(model: ModelConfig) -> dict[str, Any]:
    """The config.json of diffusers' model of the same size."""
    return {
        "_class_name": CLASS,
        "_diffusers_version": "0.42.0",
        **{key: getattr(model, field) for key, (field, _) in _FIELDS.items()},
        "pos_embed_max_size": model.largest_side,
        "out_channels": model.latent_channels,
        "num_attention_heads": model.heads,
        "caption_projection_dim": model.width,
        "dual_attention_layers": list(model.dual_attention),
        "qk_norm": "rms_norm" if model.qk_norm else None,
    }


def model_fields(described: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The fields of our ModelConfig that diffusers' config.json gives. Raises UserError for what we do not have."""
    if described.get("_class_name", CLASS) != CLASS:
        raise UserError(f"{where}: is a {described['_class_name']}, not a {CLASS}")
    fields = {field: described.get(key, default) for key, (field, default) in _FIELDS.items()}
    if bad := [key for key, (field, _) in _FIELDS.items() if type(fields[field]) is not int or fields[field] < 1]:
        raise UserError(f"{where}: not a whole number: " + ", ".join(f"{key} {described[key]!r}" for key in bad))
    width = fields["head_dim"] * fields["depth"]
    same = {
        "num_attention_heads": (18, fields["depth"], "num_layers"),
        "caption_projection_dim": (1152, width, "attention_head_dim * num_layers"),
        "out_channels": (16, fields["latent_channels"], "in_channels"),
    }
    for key, (default, only, what) in same.items():
        if described.get(key, default) != only:
            raise UserError(f"{where}: {key} is {described.get(key, default)}; of this family it is {what}, {only}")
    if described.get("qk_norm") not in (None, "rms_norm"):
        raise UserError(f"{where}: qk_norm {described['qk_norm']!r} is not one of null, rms_norm")
    dual = list(described.get("dual_attention_layers") or ())
    return {**fields, "qk_norm": described.get("qk_norm") is not None, "dual_attention": dual, "position_table": True}


def _from_folder(folder: Path, overlay: Mapping[str, Any]) -> tuple[dict[str, Stored], names.Style, RunConfig]:
    path = folder / "config.json"
    described = _read_json(path)
    if "_class_name" not in described:
        raise UserError(f"{folder}: neither a run directory with checkpoints nor a folder of a {CLASS}")
    fields = model_fields(described, path)
    if (folder / ORIGIN).exists():
        origin = _read_json(folder / ORIGIN)
        try:
            length = {"steps": origin["step"]}
            config = overlays.resolve(origin["config"], length, overlay)
        except (KeyError, TypeError, AttributeError):
            raise UserError(
                f"{folder / ORIGIN}: is not what a run was exported with; delete it to do without"
            ) from None
        if model_fields(describe(config.model), path) != fields:
            raise UserError(f"{folder / ORIGIN}: is of another model than {path}; delete it to do without")
    else:
        config = overlays.resolve(_around(fields), overlay)
    return tensors.catalogue(folder), "diffusers", config


def _from_file(path: Path, overlay: Mapping[str, Any]) -> tuple[dict[str, Stored], names.Style, RunConfig]:
    found = tensors.catalogue(path)
    if any(name.startswith(PREFIX) for name in found):
        found = {name.removeprefix(PREFIX): stored for name, stored in found.items() if name.startswith(PREFIX)}
    style = names.style_of(found)
    if style is None:
        raise UserError(f"{path}: holds no MM-DiT: none of its {len(found)} tensors is of joint_blocks")
    try:
        model = names.infer_model({name: stored.shape for name, stored in found.items()}, style)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return found, style, overlays.resolve(_around(dataclasses.asdict(model)), overlay)


def _around(model: Mapping[str, Any]) -> dict[str, Any]:
    """A run for a model that came without one: as if it had been trained at f = 8."""
    size = 8 * model["latent_size"]
    return {
        "model": dict(model),
        "data": {"image_size": size, "downsample": 8, "layout": "free" if size >= LEAST_FREE else "grid"},
        "steps": 1,
    }


def _is_grid(table: np.ndarray, model: ModelConfig) -> bool:
    side = model.largest_side
    if table.shape != (1, side * side, model.width):
        return False
    return bool(np.array_equal(table.reshape(side, side, -1), ends.grid(model, side, side)))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: is missing") from None
    except ValueError:
        raise UserError(f"{path}: is not JSON") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: is not a JSON object")
    return tree


def _check_target(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: is there already and not an empty directory: choose another")


def _whole(target: Path, build: Callable[[Path], None]) -> None:
    """Build a folder beside its place, then put it there; a failure leaves nothing."""
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with records.whole(target.absolute()) as temporary:
        temporary.mkdir()
        build(temporary)
