"""From checkpoints to pictures on disk: what is drawn, from which noise, and what happens when it is interrupted."""

import json
import os
import shutil
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import tiny, write_checkpoints

from sd3_jax import records
from sd3_jax.config import YOUNGER, DataConfig, scene_fields
from sd3_jax.data import scenes
from sd3_jax.errors import UserError
from sd3_jax.evaluation import folders, generate, prompts
from sd3_jax.evaluation.generate import Sampler
from sd3_jax.models.mmdit import MMDiT
from sd3_jax.training import sharding

FEW = Sampler(steps=3, guidance=2.0, seed=5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    write_checkpoints(run_dir, tiny(steps=8, keep_steps=[4]), (4, 8))
    return run_dir


@pytest.fixture(scope="module")
def asked(run):
    return prompts.scene_prompts(records.load_config(run).data, 8)


@pytest.fixture(scope="module")
def drawn(run, asked, tmp_path_factory):
    return generate.sample(run, 8, asked, FEW, tmp_path_factory.mktemp("drawn") / "out")


def png(out, folder, index=0):
    return folders.read_png(folders.image_path(out, folder, index))[0]


def everything(out, asked):
    return np.stack([png(out, i, k) for i, prompt in enumerate(asked) for k in range(prompt.images)])


def test_the_layout_is_genevals(drawn, asked):
    named = sorted(path.name for path in drawn.iterdir() if path.is_dir())
    assert named == [f"{i:05d}" for i in range(len(asked))]
    for folder, prompt in zip(named, asked, strict=True):
        lines = (drawn / folder / "metadata.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [prompt.metadata]
        names = sorted(path.name for path in (drawn / folder / "samples").iterdir())
        assert names == [f"{k:04d}.png" for k in range(prompt.images)]
        with Image.open(drawn / folder / "grid.png") as grid:
            rows, columns = -(-prompt.images // 4), min(prompt.images, 4)
            assert grid.size == (columns * 25 - 1, rows * 25 - 1)
    assert [number for number, _, _ in folders.read_folder(drawn)] == list(range(len(asked)))


def test_a_grid_holds_the_pictures(drawn, asked):
    with Image.open(drawn / "00000" / "grid.png") as image:
        grid = np.asarray(image)
    for k in range(asked[0].images):
        y, x = 25 * (k // 4), 25 * (k % 4)
        assert (grid[y : y + 24, x : x + 24] == png(drawn, 0, k)).all()


def test_a_picture_is_eulers_method_from_the_noise_of_its_prompt_and_index(run, drawn, asked):
    """Step by step in Python, one picture at a time, against what the command drew."""
    config = records.load_config(run)
    mesh = sharding.make_mesh(config.mesh, config.batch)
    params = jax.device_get(generate.load_weights(run, config, mesh, 8, "ema"))
    apply = jax.jit(MMDiT(config.model).apply)
    for folder, index in ((0, 1), (7, 0)):
        number = zlib.crc32(asked[folder].text.encode())
        key = jax.random.key(FEW.seed, impl="threefry2x32")
        for part in (scenes.EVALUATION, np.uint32(number), index):
            key = jax.random.fold_in(key, part)
        z = jax.random.normal(key, (1, 3, 3, 16))
        text = scenes.embed_captions(jnp.asarray(asked[folder].words[None]), jnp.zeros((1, 3), bool), config.model, 3)
        nothing = [jnp.zeros_like(part) for part in text]
        length = 0.0
        for t, t_next in ((1.0, 2 / 3), (2 / 3, 1 / 3), (1 / 3, 0.0)):
            with_text, without = (
                apply({"params": params}, z, jnp.full(1, t), *condition) for condition in (text, nothing)
            )
            moved = (t_next - t) * (without + FEW.guidance * (with_text - without))
            z, length = z + moved, length + float(jnp.linalg.norm(moved))
        pixels = np.clip(np.asarray(scenes.decode(z, config.data))[0], -1, 1)
        expected = (pixels + 1) * 127.5
        assert np.abs(png(drawn, folder, index) - expected).max() <= 0.51  # rounding, and float32
        said = folders.read_png(folders.image_path(drawn, folder, index)).length
        assert said == pytest.approx(length, rel=1e-3)  # four digits are kept


def test_what_else_is_drawn_and_on_which_mesh_changes_no_picture(run, drawn, asked, tmp_path):
    config = records.load_config(run)
    few = [asked[3]._replace(images=1), asked[0]]
    one = sharding.make_mesh(config.mesh, config.batch, among=jax.devices()[:1])
    with jax.default_device(jax.devices()[0]):
        draw = generate.make_draw(config, one, FEW)
        params = generate.load_weights(run, config, one, 8, "ema")
        words = np.stack([few[0].words, few[1].words])
        numbers = np.array([zlib.crc32(prompt.text.encode()) for prompt in few], np.uint32)
        alone = np.asarray(draw(params, words, numbers, np.array([0, 2])).images).astype(int)
    assert np.abs(alone[0] - png(drawn, 3, 0)).max() <= 1
    assert np.abs(alone[1] - png(drawn, 0, 2)).max() <= 1
    other = generate.sample(run, 8, few, FEW, tmp_path / "few", batch=8)
    assert np.abs(png(other, 0, 0).astype(int) - png(drawn, 3, 0)).max() <= 1
    assert np.abs(png(other, 1, 2).astype(int) - png(drawn, 0, 2)).max() <= 1


@pytest.mark.slow
def test_settings_change_the_pictures(run, drawn, asked, tmp_path):
    first = everything(drawn, asked[:1])
    for number, other in enumerate(
        (Sampler(3, 2.0, seed=6), Sampler(3, 4.0, seed=5), Sampler(4, 2.0, seed=5), Sampler(3, 2.0, 3.0, seed=5),
         Sampler(3, 2.0, weights="raw", seed=5))
    ):  # fmt: skip
        out = generate.sample(run, 8, asked[:1], other, tmp_path / str(number))
        assert (everything(out, asked[:1]) != first).any(), other
    earlier = generate.sample(run, 4, asked[:1], FEW, tmp_path / "earlier")
    assert (everything(earlier, asked[:1]) != first).any()


def test_an_interrupted_command_goes_on(run, drawn, asked, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(drawn, out)
    lost = [folders.image_path(out, 0, 0), folders.image_path(out, 5, 0)]
    for path in lost:
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("samples/*.png")}
    counted = []
    generate.sample(run, 8, asked, FEW, out, report=counted.append)
    assert counted == [70, 2]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for path in lost:
        again = folders.read_png(path)[0].astype(int)
        assert np.abs(again - folders.read_png(drawn / path.relative_to(out))[0]).max() <= 1
    generate.sample(run, 8, asked, FEW, out, report=counted.append)
    assert counted == [70, 2, 72]  # nothing is left to do
    (out / "00001" / "grid.png").unlink()
    generate.sample(run, 8, asked, FEW, out)
    assert (out / "00001" / "grid.png").exists()
    (out / "settings.json").write_text("[]")
    with pytest.raises(UserError, match="drawn otherwise"):
        generate.sample(run, 8, asked, FEW, out)


def test_no_half_picture_is_left_by_a_crash(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        folders.write_png(tmp_path / "0000.png", np.zeros((4, 4, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_weights_are_read_without_the_optimizer(run):
    config = records.load_config(run)
    mesh = sharding.make_mesh(config.mesh, config.batch)
    raw, ema = (generate.load_weights(run, config, mesh, 8, name) for name in ("raw", "ema"))
    assert jax.tree.structure(raw) == jax.tree.structure(ema)
    different = [bool((a != b).any()) for a, b in zip(jax.tree.leaves(raw), jax.tree.leaves(ema), strict=True)]
    assert any(different)


def test_pictures_older_than_a_field_of_the_scenes_are_drawn_on(run, drawn, asked):
    """The field at the value of what those runs did: such settings know nothing of it."""
    stored = json.loads((drawn / "settings.json").read_text())["data"]
    assert not {f"data.{key}" for key in stored} & set(YOUNGER)
    assert generate.sample(run, 8, asked, FEW, drawn) == drawn
    assert "text_sequence" in scene_fields(DataConfig(text_sequence=True))


def test_what_cannot_be_drawn_is_said(run, drawn, asked, tmp_path):
    with pytest.raises(UserError, match="no checkpoint of step 5; there are 4, 8"):
        generate.sample(run, 5, asked, FEW, tmp_path / "a")
    bare = tmp_path / "bare"
    records.open_run(bare, records.load_config(run))
    with pytest.raises(UserError, match="has no checkpoint to sample from"):
        generate.steps_saved(bare)
    with pytest.raises(UserError, match="drawn otherwise .*guidance: 2.0 -> 3.0"):
        generate.sample(run, 8, asked, Sampler(3, 3.0, seed=5), drawn)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("\n")
    with pytest.raises(UserError, match="not empty"):
        generate.sample(run, 8, asked, FEW, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "wrong,words",
    [
        ({"steps": 0}, "sampler steps: 0 is out of range; valid: 1 to 1,000"),
        ({"steps": 1001}, "steps: 1001"),
        ({"guidance": -1.0}, "guidance: -1.0 is out of range"),
        ({"guidance": float("nan")}, "guidance: nan is out of range"),
        ({"shift": 0.0}, "shift: 0.0"),
        ({"seed": -1}, "noise seed: -1 is out of range; valid: 0 to 4,294,967,295"),
        ({"weights": "average"}, "weights: 'average' is not one of ema, raw"),
        ({"method": "rk4"}, "method: 'rk4' is not one of euler, heun"),
        ({"grid": "karras"}, "grid: 'karras' is not one of uniform, own, scheduler"),
    ],
)
def test_samplers_out_of_range(wrong, words):
    with pytest.raises(UserError, match=words):
        Sampler(**wrong)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"not a picture"])
def test_an_unreadable_picture_is_named(tmp_path, content):
    path = tmp_path / "0000.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"0000\.png: cannot be read as a picture"):
        folders.read_png(path)
