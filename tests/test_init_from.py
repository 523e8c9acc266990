"""A run that starts from weights starts from exactly those, whatever may differ; and what may not is named."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from test_cli import assert_one_line, sd3  # noqa: F401  (sd3 is a fixture)
from test_convert import reference_names
from test_resume import final_state, history
from tiny import TINY, tiny, write_checkpoints

from sd3_jax import config as configs
from sd3_jax import convert, initial, overlays, records
from sd3_jax.config import MeshConfig, RunConfig
from sd3_jax.errors import UserError
from sd3_jax.evaluation import generate
from sd3_jax.models.convert import to_tensors
from sd3_jax.models.ends import grid
from sd3_jax.models.mmdit import MMDiT
from sd3_jax.sweep import run as runner
from sd3_jax.sweep.spec import cells
from sd3_jax.train import train
from sd3_jax.training import sharding
from sd3_jax.training.step import make_begin, make_draw, make_init, make_step

LARGER = {"data.image_size": 48, "model.latent_size": 6}  # the tiny setting at twice the resolution


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps, with checkpoints at 20 and 40."""
    run_dir = tmp_path_factory.mktemp("runs") / "source"
    train(tiny(steps=40, keep_steps=[20], log_every=10), run_dir)
    return run_dir


def from_source(source: Path, **overlay) -> RunConfig:
    return tiny(init_from=str(source), **overlay)


def one_device() -> jax.sharding.Mesh:
    return sharding.make_mesh(MeshConfig(), 1, among=jax.devices()[:1])


def parameters(config: RunConfig, mesh: jax.sharding.Mesh | None = None) -> dict:
    return initial.parameters(initial.find(config), config.model, mesh or one_device())


def weights_of(run: Path, step: int, weights: str) -> dict:
    return generate.load_weights(run, records.load_config(run), one_device(), step, weights)


def assert_equal(ours: dict, theirs: dict) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), ours, theirs)


def velocity(config: RunConfig, params: dict, size: int) -> np.ndarray:
    """At a fixed input of ``size`` latent pixels on a side."""
    numbers = np.random.default_rng(0)
    shapes = (2, size, size, 16), (2, 6, 24), (2, 24)
    z, tokens, pooled = (jnp.asarray(numbers.normal(size=shape), jnp.float32) for shape in shapes)
    apply = jax.jit(MMDiT(config.model).apply)
    return np.asarray(apply({"params": params}, z, jnp.array([0.3, 0.8]), tokens, pooled))


@pytest.mark.parametrize("weights, step", [("ema", 40), ("raw", 40), ("ema", 20)])
def test_the_parameters_are_the_sources_bit_for_bit(source: Path, weights: str, step: int) -> None:
    config = from_source(source, init_weights=weights, init_step=step)
    assert_equal(parameters(config), weights_of(source, step, weights))


def first_loss(config: RunConfig, params: dict) -> float:
    """The training loss at step 1 of a run that starts with these parameters."""
    examples = make_draw(config, one_device())(jnp.uint32(config.seed), jnp.int32(0))
    return float(jax.jit(make_step(config, 8))(make_begin(config, 8)(params), examples)[1]["loss"])


@pytest.mark.slow
def test_the_first_loss_is_that_of_the_sources_function(source: Path) -> None:
    config = from_source(source, seed=7)
    mesh = sharding.make_mesh(config.mesh, config.batch)
    (x0, tokens, pooled), eps, t = jax.device_get(make_draw(config, mesh)(jnp.uint32(7), jnp.int32(0)))
    z = (1 - t[:, None, None, None]) * x0 + t[:, None, None, None] * eps
    params = jax.device_get(weights_of(source, 40, "ema"))
    v = jax.jit(MMDiT(records.load_config(source).model).apply)({"params": params}, z, t, tokens, pooled)
    assert first_loss(config, parameters(config)) == pytest.approx(float(np.mean((v - (eps - x0)) ** 2)), rel=1e-5)


@pytest.mark.slow
def test_it_begins_better_than_from_scratch_at_twice_the_resolution(source: Path) -> None:
    config = from_source(source, **LARGER, **{"model.qk_norm": True, "model.position_base": 3})
    scratch = jax.jit(make_init(config, 8))(jnp.uint32(0)).params
    assert first_loss(config, parameters(config)) < 0.97 * first_loss(config, scratch)


def test_gains_that_the_source_lacks_are_one_and_all_else_is_the_sources(source: Path) -> None:
    params = parameters(from_source(source, **{"model.qk_norm": True}))
    theirs = weights_of(source, 40, "ema")
    gains = {k: v for k, v in initial._named(params).items() if k.endswith("gain")}
    assert len(gains) == 8  # of queries and keys, in two streams, of the scanned blocks and of the last
    for gain in gains.values():
        np.testing.assert_array_equal(gain, np.ones_like(gain))
    rest = {k: v for k, v in initial._named(params).items() if k not in gains}
    assert_equal(rest, initial._named(theirs))


def test_positions_at_twice_the_resolution_are_interpolated(source: Path) -> None:
    """A token at 48 px has the place of the half of a token at 24 px; the net is the same function but for that."""
    config = from_source(source, **LARGER, **{"model.position_base": 3, "model.position_table": True})
    params = parameters(config)
    axis = np.arange(6) / 2
    angles = np.concatenate([f(axis[:, None] * 10000.0 ** (-np.arange(4) / 4)) for f in (np.sin, np.cos)], axis=1)
    np.testing.assert_allclose(params["position_table"][2, :, :8], angles, atol=1e-6)  # columns
    np.testing.assert_allclose(params["position_table"][:, 2, 8:], angles, atol=1e-6)  # rows
    stored = velocity(config, params, 6)
    computed = dataclasses.replace(config, model=dataclasses.replace(config.model, position_table=False))
    np.testing.assert_allclose(velocity(computed, weights_of(source, 40, "ema"), 6), stored, atol=1e-5)
    assert np.abs(stored).max() > 0.1


def test_a_released_table_is_kept_where_it_fits_and_a_computed_one_is_not(source: Path) -> None:
    model = dataclasses.replace(records.load_config(source).model, position_table=True, position_grid=6)
    larger = dataclasses.replace(model, latent_size=6, position_base=3)
    released = np.random.default_rng(0).normal(size=(6, 6, 16)).astype(np.float32)
    np.testing.assert_array_equal(initial._table(released, model, larger), released)
    own = grid(model, 6, 6)
    assert np.abs(initial._table(own, model, larger) - own).max() > 0.1
    np.testing.assert_array_equal(initial._table(own, model, larger), grid(larger, 6, 6))
    other = dataclasses.replace(larger, position_grid=7)
    np.testing.assert_array_equal(initial._table(released, model, other), grid(other, 7, 7))


@pytest.mark.slow
def test_a_resumed_run_needs_its_source_no_more_and_records_say_what_it_was(source: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(source, tmp_path / "moved")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    config = tiny(init_from=str(moved), **{"model.qk_norm": True})
    train(config, whole)
    train(overlays.resolve(configs.to_dict(config), {"steps": 3}), broken)
    shutil.rmtree(moved)
    train(config, broken)
    assert [row for row in history(broken) if row["step"] > 3] == [row for row in history(whole) if row["step"] > 3]
    for ours, theirs in zip(final_state(broken), final_state(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    first, second = records.read_rows(broken / "lives.jsonl")[0]
    assert first["init_from"] == str(moved)
    assert (first["init_step"], first["init_weights"]) == (40, "ema")
    assert first["init_identity"] == configs.fingerprint(records.load_config(source))
    assert "init_from" not in second
    assert {row["phase"] for row in history(whole) if row["split"] == "validation"} == {"fine-tune"}  # enters no law
    assert second["resumed_from"] == 3


def test_parameters_come_sharded_as_training_holds_them(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "SMALL", 64)
    config = from_source(source, **{"model.qk_norm": True, "mesh.fsdp": 4})
    params = parameters(config, sharding.make_mesh(config.mesh, config.batch))
    kernel = params["blocks"]["image"]["qkv"]["kernel"]
    assert kernel.sharding.spec == sharding.parameter_spec(kernel.shape, 4, stacked=True)
    assert kernel.addressable_shards[0].data.size == kernel.size / 4
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(parameters(config)))


def test_released_weights_and_converted_runs_are_sources_too(sd3, source: Path, tmp_path: Path) -> None:  # noqa: F811
    """A folder of diffusers', a reference single file and a run made of either: the same parameters."""
    described = {"mlp_ratio": 4, "time_dim": 256}
    assert {key: getattr(tiny().model, key) for key in described} == described
    convert.to_diffusers(source, tmp_path / "folder", 40, "ema")
    expected = weights_of(source, 40, "ema")
    model = dataclasses.replace(tiny().model, position_table=True, position_grid=3)
    every = dict(to_tensors({**expected, "position_table": np.asarray(grid(model, 3, 3))}, model))
    save_file(reference_names(every, model), tmp_path / "single.safetensors")
    (tmp_path / "folder" / convert.ORIGIN).unlink()
    convert.to_run(tmp_path / "folder", tmp_path / "converted", {"data.layout": "grid", "model.text_tokens": 6})
    for name in ("folder", "single.safetensors", "converted"):
        assert_equal(parameters(from_source(tmp_path / name)), expected)
    assert_one_line(*sd3("train", "converted/config.json", "--run", "converted", "--set", "steps=2"), "with init_from")


# --- what does not fit ------------------------------------------------------------------------------------------------


def misfit(source: Path, folder: Path, bad: str) -> dict:
    """Settings that cannot start, and why, by name."""
    if bad == "empty run":
        shutil.copytree(source, folder / "empty")
        shutil.rmtree(folder / "empty" / "checkpoints")
        (folder / "empty" / "checkpoints").mkdir()
        return {"init_from": "empty"}
    if bad == "truncated":
        convert.to_diffusers(source, folder / "cut", 40, "ema")
        path = folder / "cut" / "diffusion_pytorch_model.safetensors"
        path.write_bytes(path.read_bytes()[:-1000])
        return {"init_from": "cut"}
    if bad == "not weights":
        save_file({"a": np.zeros(3, np.float32)}, folder / "other.safetensors")
        return {"init_from": "other.safetensors"}
    if bad == "broken checkpoint":
        shutil.copytree(source, folder / "broken")
        (folder / "broken" / "checkpoints" / "40" / "_METADATA").write_text("{")
        return {"init_from": "broken"}
    return {"missing": {"init_from": "nowhere"}, "no run": {"init_from": "."}}.get(bad) or {
        "init_from": str(source),
        **{
            "step": {"init_step": 30},
            "depth": {"model.depth": 3},
            "width": {"model.head_dim": 16},
            "text": {"model.text_dim": 48},
            "kind": {"model.dual_attention": [1]},
        }[bad],
    }


BAD = {
    "missing": ["init_from: nowhere: no such file or directory"],
    "no run": ["init_from: ", "is missing"],
    "empty run": ["empty: has no checkpoint to start from"],
    "truncated": ["cut", "is truncated"],
    "not weights": ["other.safetensors: holds no MM-DiT"],
    "broken checkpoint": ["broken/checkpoints/40: cannot be restored"],
    "step": ["no checkpoint of init_step 30; there are 20, 40"],
    "depth": ["depth 3 and width 24", "mlp.first.kernel [1, 16, 64] instead of [2, 24, 96]", " and 45 more"],
    "width": ["depth 2 and width 32", "of another shape: ", "mlp.second.bias [1, 16] instead of [1, 32]"],
    "text": ["of another shape: text_embed.kernel [24, 16] instead of [48, 16]"],
    "kind": [
        "of another kind: model.dual_attention () instead of (1,)",
        "missing: last_block.image.dual_out.bias [16]",
    ],
}


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_started_from_is_one_line_and_leaves_nothing(
    sd3,  # noqa: F811
    source: Path,
    tmp_path: Path,
    bad: str,
) -> None:
    overlay = configs.to_dict(overlays.resolve(TINY, misfit(source, tmp_path, bad)))
    (tmp_path / "bad.json").write_text(json.dumps(overlay))
    code, out, err = sd3("train", "bad.json", "--run", "run")
    assert_one_line(code, out, err, *BAD[bad])
    assert not (tmp_path / "run").exists()


def test_a_gain_that_the_target_has_no_place_for_is_named(tmp_path: Path) -> None:
    write_checkpoints(tmp_path / "normed", tiny(**{"model.qk_norm": True}), (8,))
    with pytest.raises(UserError, match=r"extra: blocks.image.norm_k.gain \[1, 8\], blocks.image.norm_q.gain"):
        initial.find(tiny(init_from=str(tmp_path / "normed")))


@pytest.mark.parametrize(
    "overlay, words",
    [
        ({"init_from": 3}, "init_from: 3 is not text"),
        ({"init_from": "x", "init_weights": "best"}, "init_weights: 'best' is not one of ema, raw"),
        ({"init_from": "x", "init_step": -1}, "init_step: -1 is out of range"),
        ({"init_step": 4}, "init_from is not set"),
        ({"init_weights": "raw"}, "init_from is not set"),
    ],
)
def test_settings_that_cannot_be(overlay: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny(**overlay)


def test_where_a_run_starts_is_part_of_what_it_is() -> None:
    prints = {
        configs.fingerprint(tiny(**o))
        for o in ({}, {"init_from": "a"}, {"init_from": "b"}, {"init_from": "a", "init_step": 3})
    }
    assert len(prints) == 4
    assert configs.difference(tiny(init_from="a"), tiny()) == ["init_from:  -> a"]


def test_a_sweep_names_its_cells_and_refuses_a_source_that_is_not_there(source: Path, tmp_path: Path) -> None:
    made = cells(TINY, {}, [{"init_from": [str(source), "runs/No such"], "seed": 0}])
    assert all("/" not in cell.name and " " not in cell.name for cell in made)
    short = cells(TINY, {}, [{"init_from": ["", "runs/a/d02-s0"]}])
    assert [cell.name for cell in short] == ["d02-s0", "d02-init_from_runs_a_d02-s0-s0"]
    with pytest.raises(UserError, match="init_from: runs/No such: no such file"):
        runner.prepare(made, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
