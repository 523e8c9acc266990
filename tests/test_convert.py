"""Weights move both ways without losing a bit, one tensor at a time, and what does not fit is named whole."""

import dataclasses
import json
import shutil
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from safetensors.numpy import load_file, save_file
from test_cli import assert_one_line, sd3, tree  # noqa: F401  (sd3 is a fixture)
from test_parity import CASES, tensors
from tiny import tiny

from sd3_jax import convert as converting
from sd3_jax import records
from sd3_jax.config import MeshConfig, ModelConfig
from sd3_jax.evaluation import folders, generate
from sd3_jax.models import convert, ends
from sd3_jax.models import tensors as files
from sd3_jax.training import checkpoint, sharding
from sd3_jax.training.step import make_init


def reference_names(theirs: dict[str, np.ndarray], model: ModelConfig) -> dict[str, np.ndarray]:
    """Diffusers' tensors as the reference single file names and joins them, written out by hand."""
    left = dict(theirs)
    swap = lambda x: np.concatenate(np.split(x, 2)[::-1])  # noqa: E731
    made = {"pos_embed": left.pop("pos_embed.pos_embed")}
    for suffix in ("weight", "bias"):
        for ours, name in {
            "x_embedder.proj": "pos_embed.proj",
            "context_embedder": "context_embedder",
            "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
            "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
            "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
            "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
            "final_layer.linear": "proj_out",
        }.items():
            made[f"{ours}.{suffix}"] = left.pop(f"{name}.{suffix}")
        made[f"final_layer.adaLN_modulation.1.{suffix}"] = swap(left.pop(f"norm_out.linear.{suffix}"))
        for i in range(model.depth):
            x, c, block = f"joint_blocks.{i}.x_block", f"joint_blocks.{i}.context_block", f"transformer_blocks.{i}"
            take = lambda *names, b=block, s=suffix: np.concatenate([left.pop(f"{b}.{n}.{s}") for n in names])  # noqa: E731
            last = i == model.depth - 1
            made[f"{x}.adaLN_modulation.1.{suffix}"] = take("norm1.linear")
            text = take("norm1_context.linear")
            made[f"{c}.adaLN_modulation.1.{suffix}"] = swap(text) if last else text
            made[f"{x}.attn.qkv.{suffix}"] = take("attn.to_q", "attn.to_k", "attn.to_v")
            made[f"{c}.attn.qkv.{suffix}"] = take("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
            made[f"{x}.attn.proj.{suffix}"] = take("attn.to_out.0")
            for name, ff in ((x, "ff"), (c, "ff_context")):
                if not (last and name == c):
                    made[f"{name}.mlp.fc1.{suffix}"] = take(f"{ff}.net.0.proj")
                    made[f"{name}.mlp.fc2.{suffix}"] = take(f"{ff}.net.2")
            if not last:
                made[f"{c}.attn.proj.{suffix}"] = take("attn.to_add_out")
            if i in model.dual_attention:
                made[f"{x}.attn2.qkv.{suffix}"] = take("attn2.to_q", "attn2.to_k", "attn2.to_v")
                made[f"{x}.attn2.proj.{suffix}"] = take("attn2.to_out.0")
            if model.qk_norm and suffix == "weight":
                for ours, name in ((f"{x}.attn", "attn.norm_"), (f"{c}.attn", "attn.norm_added_")):
                    made[f"{ours}.ln_q.weight"], made[f"{ours}.ln_k.weight"] = take(f"{name}q"), take(f"{name}k")
                if i in model.dual_attention:
                    made[f"{x}.attn2.ln_q.weight"] = take("attn2.norm_q")
                    made[f"{x}.attn2.ln_k.weight"] = take("attn2.norm_k")
    assert not left
    return made


def assert_equal(ours: dict, theirs: dict) -> None:
    """The same tree, bit for bit."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), ours, theirs)


def folder_of(case: str, path: Path) -> Path:
    """What diffusers' save_pretrained writes, by the safetensors library."""
    path.mkdir()
    save_file(tensors(case), path / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    described = converting.describe(parity.MODELS[case]) | {"_diffusers_version": "0.30.0"}
    (path / "config.json").write_text(json.dumps(described))
    return path


def weights_of(run: Path) -> dict:
    config = records.load_config(run)
    mesh = sharding.make_mesh(MeshConfig(), 1, among=jax.devices()[:1])
    return generate.load_weights(run, config, mesh, generate.steps_saved(run)[-1], "ema")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run as training leaves it, raw and averaged weights apart, without the training."""
    run, config = tmp_path_factory.mktemp("runs") / "d02", tiny(**{"model.dual_attention": [1]})
    records.open_run(run, config)
    state = jax.jit(make_init(config, 8))(jnp.uint32(0))
    leaves, structure = jax.tree.flatten(state.params)
    numbers = np.random.default_rng(0)
    ema = structure.unflatten([x + 0.1 * numbers.normal(size=x.shape).astype(np.float32) for x in leaves])
    saver = checkpoint.Saver(run / "checkpoints", ())
    saver.save(8, state._replace(step=jnp.int32(8), ema=ema))
    saver.close()
    return run


@pytest.mark.parametrize("case", CASES)
def test_tensors_come_back_bit_for_bit(case: str) -> None:
    theirs, model = tensors(case), parity.MODELS[case]
    shapes = {name: tensor.shape for name, tensor in theirs.items()}
    assert convert.expected(model) == shapes
    params = convert.from_tensors(theirs.__getitem__, model)
    back = dict(convert.to_tensors(params, model))
    assert list(back) == list(convert.expected(model))
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(back[name], tensor)


@pytest.mark.parametrize("case", CASES)
def test_the_reference_names_say_the_same(case: str) -> None:
    theirs, model = tensors(case), parity.MODELS[case]
    reference = reference_names(theirs, model)
    shapes = {name: tensor.shape for name, tensor in reference.items()}
    convert.check(shapes, model, "reference")
    assert_equal(
        convert.from_tensors(reference.__getitem__, model, "reference"),
        convert.from_tensors(theirs.__getitem__, model),
    )
    inferred = convert.infer_model(shapes, "reference")
    assert dataclasses.replace(inferred, latent_size=model.latent_size) == model
    assert dataclasses.replace(convert.infer_model(convert.expected(model), "diffusers"), latent_size=16) == model


def test_the_released_sizes() -> None:
    """Names and shapes of SD3-medium, SD3.5-medium and SD3.5-large; the number of tensors of the released files."""
    for model, grid in (
        (ModelConfig(depth=24), 192),
        (ModelConfig(depth=24, qk_norm=True, dual_attention=tuple(range(13))), 384),
        (ModelConfig(depth=38, qk_norm=True), 192),
    ):
        model = dataclasses.replace(model, latent_size=128, position_table=True, position_grid=grid)
        shapes = convert.expected(model, "reference")
        assert convert.infer_model(shapes, "reference") == model
        assert shapes["pos_embed"] == (1, grid**2, 64 * model.depth)


def test_a_folder_becomes_a_run_and_the_run_a_folder(sd3, tmp_path) -> None:  # noqa: F811
    folder, run = folder_of("dual", tmp_path / "theirs"), tmp_path / "run"
    code, out, err = sd3("convert", str(folder), str(run), "--set", "model.text_tokens=77")
    assert (code, err) == (0, "")
    assert out == f"{run}: a run of depth 5 and width 40, ready for sd3-jax sample\n"
    config = records.load_config(run)
    assert config.model == dataclasses.replace(parity.MODELS["dual"], text_tokens=77)
    assert records.status(run) == "done"
    assert_equal(weights_of(run), convert.from_tensors(tensors("dual").__getitem__, config.model))
    assert sd3("convert", str(run), str(tmp_path / "back"))[0] == 0
    again = load_file(tmp_path / "back" / "diffusion_pytorch_model.safetensors")
    assert parity.checksum(again) == parity.checksum(tensors("dual"))
    ours, theirs = (json.loads((path / "config.json").read_text()) for path in (tmp_path / "back", folder))
    assert {**ours, "_diffusers_version": None} == {**theirs, "_diffusers_version": None}
    assert not [name for name in tree(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_a_single_file_in_half_precision_becomes_a_run(prefix: str, tmp_path) -> None:
    """Other models in the file are not ours to read, whatever their types."""
    half = {name: tensor.astype(np.float16) for name, tensor in tensors("plain").items()}
    stored = {prefix + name: tensor for name, tensor in reference_names(half, parity.MODELS["plain"]).items()}
    if prefix:
        stored |= {"first_stage_model.decoder.conv_in.bias": np.zeros(3), "text_encoders.x": np.zeros(2, np.int8)}
    save_file(stored, tmp_path / "sd3.safetensors")
    converting.to_run(tmp_path / "sd3.safetensors", tmp_path / "run", {})
    model = records.load_config(tmp_path / "run").model
    assert_equal(weights_of(tmp_path / "run"), convert.from_tensors(half.__getitem__, model))
    converting.to_diffusers(tmp_path / "run", tmp_path / "back", None, "ema", "float16")
    assert parity.checksum(load_file(tmp_path / "back" / f"{files.STEM}.safetensors")) == parity.checksum(half)


def test_shards_with_an_index_both_ways(trained, tmp_path) -> None:
    converting.to_diffusers(trained, tmp_path / "folder", None, "ema", shard_bytes=30_000)
    shards = sorted(tmp_path.glob("folder/*.safetensors"))
    index = json.loads((tmp_path / "folder" / f"{files.STEM}.safetensors.index.json").read_text())
    assert len(shards) > 3
    assert [path.name for path in shards] == sorted(set(index["weight_map"].values()))
    loaded = [load_file(path) for path in shards]  # the library's own reader
    assert index["metadata"]["total_size"] == sum(x.nbytes for part in loaded for x in part.values())
    for path, part in zip(shards, loaded, strict=True):
        assert {name for name, file in index["weight_map"].items() if file == path.name} == set(part)
    converting.to_run(tmp_path / "folder", tmp_path / "run", {})
    assert_equal(weights_of(tmp_path / "run"), weights_of(trained))


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_a_trained_run_comes_back_as_the_run_it_was(trained, weights: str, tmp_path) -> None:
    assert converting.to_diffusers(trained, tmp_path / "folder", 8, weights) == 8
    converting.to_run(tmp_path / "folder", tmp_path / "run", {})
    assert records.load_config(tmp_path / "run") == records.load_config(trained)
    config = records.load_config(trained)
    mesh = sharding.make_mesh(MeshConfig(), 1, among=jax.devices()[:1])
    assert_equal(weights_of(tmp_path / "run"), generate.load_weights(trained, config, mesh, 8, weights))
    table = load_file(tmp_path / "folder" / f"{files.STEM}.safetensors")["pos_embed.pos_embed"]
    np.testing.assert_array_equal(table.reshape(3, 3, 16), ends.grid(config.model, 3, 3))


def test_bfloat16_is_written_rounded_and_read_exactly(trained, tmp_path) -> None:
    converting.to_diffusers(trained, tmp_path / "folder", None, "ema", "bfloat16")
    converting.to_run(tmp_path / "folder", tmp_path / "run", {})
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), weights_of(trained))
    ours = weights_of(tmp_path / "run")
    table = ours.pop("position_table")  # rounded too, it is no longer the grid that we compute: it is kept
    assert table.shape == (3, 3, 16)
    assert_equal(ours, rounded)


def test_sample_draws_with_a_converted_run_and_train_does_not_go_on_from_it(sd3, trained, tmp_path) -> None:  # noqa: F811
    converting.to_diffusers(trained, tmp_path / "folder", None, "ema")
    converting.to_run(tmp_path / "folder", tmp_path / "run", {})
    (tmp_path / "prompts.txt").write_text("a photo of a cross\n")
    for run in (trained, tmp_path / "run"):
        options = ("--prompts", "prompts.txt", "--images", "8", "--sampler-steps", "2", "--out", f"by_{run.name}")
        code, _, err = sd3("sample", str(run), *options)
        assert (code, err) == (0, "")
    ours, theirs = (folders.read_png(folders.image_path(tmp_path / f"by_{n}", 0, 7))[0] for n in ("run", "d02"))
    np.testing.assert_array_equal(ours, theirs)
    config = tmp_path / "run" / "config.json"
    code, _, err = sd3("train", str(config), "--run", str(tmp_path / "run"), "--set", "steps=9")
    assert code == 2
    assert "holds converted weights alone" in err


# --- one tensor at a time ---------------------------------------------------------------------------------------------


def test_neither_way_holds_more_than_a_tensor_beside_the_model(tmp_path) -> None:
    model = ModelConfig(depth=12, head_dim=8, text_dim=24, pooled_dim=20, position_table=True)
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), convert.parameter_shapes(model))
    shapes = convert.expected(model)
    whole, largest = (how(4 * int(np.prod(shape)) for shape in shapes.values()) for how in (sum, max))
    assert whole > 50 * largest
    tracemalloc.start()
    tracemalloc.reset_peak()
    files.write(tmp_path, shapes, convert.to_tensors(params, model), "F32", 10**6)
    assert tracemalloc.get_traced_memory()[1] < 6 * largest
    del params
    before = tracemalloc.get_traced_memory()[0]
    found = files.catalogue(tmp_path)
    tracemalloc.reset_peak()
    convert.from_tensors(lambda name: files.read(found[name]), model)
    assert tracemalloc.get_traced_memory()[1] - before < whole + 6 * largest
    tracemalloc.stop()


# --- what does not fit ------------------------------------------------------------------------------------------------


def edit(path: Path, change) -> None:
    file = path / "diffusion_pytorch_model.safetensors"
    stored = load_file(file)
    change(stored)
    save_file(stored, file)


def describe_as(path: Path, **changes) -> None:
    described = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(described | changes))


def cut(path: Path, size: int) -> None:
    file = path / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:size])


def misfit(stored: dict) -> None:
    stored["proj_out.bias"] = np.zeros(3, np.float32)
    del stored["context_embedder.bias"], stored["transformer_blocks.2.ff.net.2.weight"]
    stored |= {"extra.one": np.zeros((1, 2), np.float32), "extra.two": np.zeros(5, np.float32)}


BAD = {
    "truncated": (lambda p: cut(p, 100_000), ["is truncated", "bytes and has 100,000"]),
    "truncated header": (lambda p: cut(p, 1000), ["is truncated: its header"]),
    "empty": (lambda p: cut(p, 0), ["is not a safetensors file"]),
    "not safetensors": (lambda p: (p / f"{files.STEM}.safetensors").write_text("x" * 99), ["not a safetensors file"]),
    "no weights": (lambda p: (p / f"{files.STEM}.safetensors").unlink(), ["holds 0 .safetensors files and 0 indices"]),
    "broken config": (lambda p: (p / "config.json").write_text("{"), ["config.json: is not JSON"]),
    "other class": (lambda p: describe_as(p, _class_name="UNet2DConditionModel"), ["is a UNet2DConditionModel, not"]),
    "other family": (lambda p: describe_as(p, num_attention_heads=8), ["num_attention_heads is 8", "num_layers, 4"]),
    "other norm": (lambda p: describe_as(p, qk_norm="layer_norm"), ["qk_norm 'layer_norm' is not one of"]),
    "not a number": (lambda p: describe_as(p, num_layers="4"), ["not a whole number: num_layers '4'"]),
    "misfit": (
        lambda p: edit(p, misfit),
        [
            "missing: ", "context_embedder.bias [32]", "transformer_blocks.2.ff.net.2.weight [32, 128]",
            "extra: ", "extra.one [1, 2]", "extra.two [5]", "of another shape: proj_out.bias [3] instead of [64]",
        ],
    ),
    "float64": (
        lambda p: edit(p, lambda s: s.update({"proj_out.bias": np.zeros(64), "context_embedder.bias": np.zeros(32)})),
        ["not one of the types F32, F16, BF16: ", "proj_out.bias F64", "context_embedder.bias F64"],
    ),
    "index without shards": (
        lambda p: (p / f"{files.STEM}.safetensors").unlink()
        or (p / f"{files.STEM}.safetensors.index.json").write_text('{"weight_map": {"a": "one.safetensors"}}'),
        ["shards are missing: one.safetensors"],
    ),
    "index outside": (
        lambda p: (p / f"{files.STEM}.safetensors").unlink()
        or (p / f"{files.STEM}.safetensors.index.json").write_text('{"weight_map": {"a": "../one.safetensors"}}'),
        ["names files outside its folder"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_model_of_ours_is_one_line_and_changes_nothing(bad: str, sd3, tmp_path) -> None:  # noqa: F811
    folder = folder_of("plain", tmp_path / "theirs")
    change, words = BAD[bad]
    change(folder)
    before = tree(tmp_path)
    assert_one_line(*sd3("convert", str(folder), str(tmp_path / "new" / "run")), *words)
    assert tree(tmp_path) == before


def test_another_depth_names_every_tensor(sd3, tmp_path) -> None:  # noqa: F811
    folder = folder_of("plain", tmp_path / "theirs")
    describe_as(folder, num_layers=3, num_attention_heads=3, caption_projection_dim=24)
    code, out, err = sd3("convert", str(folder), str(tmp_path / "run"))
    extra = [name for name in tensors("plain") if name.startswith("transformer_blocks.3.")]
    assert_one_line(code, out, err, "depth 3 and width 24", *extra, "proj_out.weight [64, 32] instead of [64, 24]")
    assert tree(tmp_path) == tree_of(folder)


def tree_of(folder: Path) -> list[str]:
    return sorted([folder.name, *(f"{folder.name}/{name}" for name in tree(folder))])


def test_a_single_file_of_another_architecture_is_one_line(sd3, tmp_path) -> None:  # noqa: F811
    save_file(
        {"model.diffusion_model.input_blocks.0.0.weight": np.zeros((4, 4, 3, 3), np.float32)},
        tmp_path / "sd1.safetensors",
    )
    assert_one_line(*sd3("convert", "sd1.safetensors", "run"), "holds no MM-DiT: none of its 1 tensors")
    save_file({"joint_blocks.0.x_block.mlp.fc1.bias": np.zeros(4, np.float32)}, tmp_path / "piece.safetensors")
    assert_one_line(*sd3("convert", "piece.safetensors", "run"), "not an MM-DiT: x_embedder.proj.weight is missing")
    assert tree(tmp_path) == ["piece.safetensors", "sd1.safetensors"]


def test_runs_that_cannot_leave_are_one_line(sd3, trained, tmp_path) -> None:  # noqa: F811
    run = shutil.copytree(trained, tmp_path / "run")
    before = tree(tmp_path)
    assert_one_line(*sd3("convert", "run", "run"), "is there already")
    assert_one_line(*sd3("convert", "run", "out", "--step", "3"), "no checkpoint of step 3; there are 8")
    assert_one_line(*sd3("convert", "run", "out", "--dtype", "int8"), "not one of float32, float16, bfloat16")
    assert_one_line(*sd3("convert", "run", "out", "--weights", "best"), "not one of ema, raw")
    assert_one_line(*sd3("convert", "run", "out", "--set", "seed=1"), "a run says everything")
    assert_one_line(*sd3("convert", "nothing", "out"), "no such file")
    model = json.loads((run / "config.json").read_text())["model"]
    describe_as(run, model={**model, "mlp_ratio": 2})
    assert_one_line(*sd3("convert", "run", "out"), "model.mlp_ratio is 2")
    assert tree(tmp_path) == before
