"""Runs on prepared sets, sampled and scored: any text is a prompt, and they are measured from what is stored."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tiny import TINY

from sd3_jax import evaluate, records
from sd3_jax.config import RunConfig
from sd3_jax.data import examples, frozen, latents, sources
from sd3_jax.data import prepare as preparing
from sd3_jax.data.examples import Manifest
from sd3_jax.data.latents import Prepared
from sd3_jax.errors import UserError
from sd3_jax.evaluation import conditioning, fidelity, folders, generate, likeness, prompts
from sd3_jax.evaluation.generate import Sampler
from sd3_jax.overlays import resolve
from sd3_jax.train import train

FEW = Sampler(2, 2.0)
COLOURS = ("red", "green", "blue", "black", "orange")


def draw_pictures(folder: Path, count: int) -> None:
    """Discs on white, each captioned with its colour, place and number."""
    folder.mkdir()
    for i in range(count):
        image, colour = Image.new("RGB", (24, 24), "white"), COLOURS[i % len(COLOURS)]
        x, y = 4 + 7 * (i % 3), 4 + 7 * (i // 3 % 3)
        ImageDraw.Draw(image).ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        image.save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(f"{colour} disc number {i}")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("data")
    draw_pictures(folder / "pictures", 120)
    encoders = preparing.Encoders(frozen.cosine_codec(192, 8), [frozen.word_encoder(4, 8)])
    recipe = preparing.Recipe(24, hold_out=0.3, dtype="float32")
    made = preparing.prepare(sources.find(str(folder / "pictures")), folder / "set", recipe, encoders)
    assert made is not None
    return folder / "set", made


@pytest.fixture(scope="module")
def run(data: tuple[Path, Manifest], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, manifest = data
    small = {key: value for key, value in TINY.items() if key != "data"}
    path = tmp_path_factory.mktemp("runs") / "run"
    train(resolve(small, examples.settings(manifest), {"data.path": str(folder)}), path)
    return path


@pytest.fixture(scope="module")
def config(run: Path) -> RunConfig:
    return records.load_config(run)


def test_what_is_said_and_drawn_passes_the_sets_own_encoders(data, run, config) -> None:
    folder, manifest = data
    said = conditioning.of_run(config, run)
    texts = ["red disc number 3", "something else"]
    tokens, pooled = said.given([prompts.Prompt(np.zeros(0, int), {"prompt": text}, 1) for text in texts])
    states, vector = frozen.word_encoder(4, 8).encode(texts)
    np.testing.assert_array_equal(tokens, states)
    np.testing.assert_array_equal(pooled, vector)
    (example,) = latents.read_examples(Prepared(folder, manifest, "train"), [5])
    z = examples.normalise(example.latent[None], None, manifest.autoencoder)
    original = np.asarray(Image.open(folder.parent / "pictures" / example.id))
    np.testing.assert_array_equal(said.finish(np.asarray(said.picture(z)))[0], original)  # all 192 channels are kept
    nothing = conditioning.of_run(config, run, ["words"]).given([prompts.Prompt(np.zeros(0, int), {"prompt": "x"}, 1)])
    assert not np.any(nothing[0])
    assert not np.any(nothing[1])
    with pytest.raises(UserError, match="without t5: the set has no such text encoder; it has words"):
        conditioning.of_run(config, run, ["t5"])


def test_nothing_is_written_where_an_encoder_is_not_there(run, tmp_path) -> None:
    wanted = [prompts.Prompt(np.zeros(0, int), {"prompt": "a fox"}, 1)]
    with pytest.raises(UserError, match="without t5"):
        generate.sample(run, 8, wanted, Sampler(2, 2.0, without=("t5",)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    generate.sample(run, 8, wanted, FEW, tmp_path / "out")


def test_pictures_of_no_square_have_nothing_to_be_compared_with(data, run, config, tmp_path) -> None:
    folder, manifest = data
    wide = dataclasses.replace(manifest, shards=tuple(dataclasses.replace(s, size=(16, 40)) for s in manifest.shards))
    other = tmp_path / "wide"
    other.mkdir()
    (other / examples.MANIFEST).write_text(json.dumps(examples.to_dict(wide)))
    for shard in wide.shards:
        (other / shard.file).symlink_to(folder / shard.file)
    with pytest.raises(UserError, match=r"wide: split validation has too few pictures of 24x24 pixels"):
        likeness._features(other, "validation", 10, 24)
    with pytest.raises(UserError, match=r"wide: split train has too few pictures of 24x24 pixels"):
        likeness._examples(Prepared(other, wide, "train"), 3, 24)


def test_a_level_of_round_robin_has_two_examples_at_least(data, run) -> None:
    with pytest.raises(UserError, match="set: has 9 examples; levels round-robin needs 16"):
        likeness.loss_rows(run, data[0], "round-robin", "ema", [8], most=9)


def test_any_text_is_drawn_and_a_prompt_alone_decides_its_noise(run, tmp_path) -> None:
    lines = tmp_path / "prompts.txt"
    lines.write_text("a fox, as never seen\nred disc\n")
    wanted = prompts.read_texts(lines, 3)
    drawn = generate.sample(run, 8, wanted, FEW, tmp_path / "a")
    assert [prompt.text for prompt in wanted] == ["a fox, as never seen", "red disc"]
    assert folders.read_png(folders.image_path(drawn, 0, 0)).image.shape == (24, 24, 3)
    alone = generate.sample(run, 8, wanted[1:], FEW, tmp_path / "b")
    for index in range(3):
        one = folders.read_png(folders.image_path(drawn, 1, index)).image.astype(int)
        other = folders.read_png(folders.image_path(alone, 0, index)).image.astype(int)
        assert np.abs(one - other).max() <= 1
    without = generate.sample(run, 8, wanted, Sampler(2, 2.0, without=("words",)), tmp_path / "c")
    assert json.loads((without / "settings.json").read_text())["without"] == ["words"]
    assert generate.folder_name(8, Sampler(2, without=("t5",)), wanted) != generate.folder_name(8, Sampler(2), wanted)
    (tmp_path / "geneval.jsonl").write_text('{"tag": "counting", "prompt": "two foxes", "include": []}\n')
    assert prompts.read_texts(tmp_path / "geneval.jsonl")[0].metadata["tag"] == "counting"


def test_captions_of_what_is_held_out_are_prompts_each_once(data, run, config) -> None:
    held = conditioning.held_out(config, run)
    count = held.manifest.count("validation")
    wanted = conditioning.held_out_prompts(held, count)
    assert len({prompt.text for prompt in wanted}) == count
    trained = {example.captions["original"].text for example in
               latents.read_examples(Prepared(*data, "train"), range(data[1].count("train")))}  # fmt: skip
    assert trained.isdisjoint(prompt.text for prompt in wanted)
    few = conditioning.held_out_prompts(held, 5)
    assert [prompt.text for prompt in few] == [prompt.text for prompt in wanted[:5]]
    assert [prompt.text for prompt in conditioning.held_out_prompts(held, 5, seed=1)] != [p.text for p in few]
    with pytest.raises(UserError, match=f"holds out {count} different captions, and {count + 1} are asked for"):
        conditioning.held_out_prompts(held, count + 1)
    all_there_are = conditioning.held_out_prompts(held, count + 1, fewer=True)
    assert [prompt.text for prompt in all_there_are] == [prompt.text for prompt in wanted]


def test_the_distance_of_true_pictures_is_near_its_ceiling_and_that_of_others_is_not(data, run, config, tmp_path):
    folder, manifest = data
    for name, picture in (("true", lambda image: image), ("negative", lambda image: 255 - image)):
        for i, example in enumerate(latents.read_examples(Prepared(folder, manifest, "train"), range(60))):
            path = folders.image_path(tmp_path / name, i, 0)
            path.parent.mkdir(parents=True)
            (path.parent.parent / "metadata.jsonl").write_text(
                json.dumps({"prompt": example.captions["original"].text})
            )
            folders.write_png(path, picture(np.asarray(Image.open(folder.parent / "pictures" / example.id))))
    found = {}
    for name in ("true", "negative"):
        pictures = likeness.read_pictures(tmp_path / name, config)
        (found[name],) = likeness.distance_rows(pictures, config, run, {})
    true, negative = found["true"], found["negative"]
    assert (true["name"], true["n"], true["reference_n"]) == ("picture-frechet", 60, manifest.count("validation"))
    assert true["value"] < 2 * true["ceiling"] + 0.1
    assert negative["value"] > 5 * true["value"]
    held = [
        np.asarray(Image.open(folder.parent / "pictures" / example.id))
        for example in latents.read_examples(
            Prepared(folder, manifest, "validation"), range(manifest.count("validation"))
        )
    ]
    reference = fidelity.moments(fidelity.scene_features(np.stack(held)))
    features = fidelity.scene_features(likeness.read_pictures(tmp_path / "true", config).images)
    expected = fidelity.distance(features, reference, np.arange(60), ["any"] * 60)
    assert true["value"] == pytest.approx(expected.value, rel=1e-6)


def test_a_run_is_scored_and_its_loss_on_its_own_set_is_the_one_it_was_trained_with(data, run) -> None:
    rows = evaluate.evaluate_run(run, evaluate.Request(images_per_task=3, sampler=FEW))
    assert [row["name"] for row in rows] == ["picture-frechet", "path-length"]
    assert rows[0]["n"] == 18
    (row,) = likeness.loss_rows(run, data[0], "every", "ema", [8], most=16)
    recorded = [row for row in records.read_rows(run / "metrics.jsonl")[0] if row.get("weights") == "ema"]
    assert row["value"] == pytest.approx(recorded[-1]["loss"], rel=1e-6)
    assert row["loss_t3"] == pytest.approx(recorded[-1]["loss_t3"], rel=1e-6)
    (robin,) = likeness.loss_rows(run, data[0], "round-robin", "ema", [8])
    assert robin["n"] == data[1].count("validation")
    assert robin["levels"] == "round-robin"


def test_pictures_are_drawn_and_read_when_the_set_has_gone(data, run, tmp_path) -> None:
    folder, manifest = data
    gone = folder.with_name("gone")
    folder.rename(gone)
    try:
        wanted = [prompts.Prompt(np.zeros(0, int), {"prompt": "a disc"}, 1)]
        generate.sample(run, 8, wanted, FEW, tmp_path / "out")
        with pytest.raises(UserError, match="holds no prepared set"):
            conditioning.held_out(records.load_config(run), run)
    finally:
        gone.rename(folder)


def test_whether_pictures_were_learnt_by_heart_is_held_against_captions_that_were_not_trained_on(data, run) -> None:
    row = likeness.memorisation_row(run, 8, FEW, captions=4)
    assert (row["name"], row["prompts"], row["n"]) == ("memorised", 4, 32)
    assert 0 <= row["value"] <= 1
    assert 0 <= row["near_held_out"] <= 1
    assert list(run.glob("samples/*/nearest.png"))
    scenes_run = run.with_name("scenes")
    records.open_run(scenes_run, resolve(TINY))
    with pytest.raises(UserError, match="no scene is shown twice"):
        likeness.memorisation_row(scenes_run, 8, FEW, captions=4)
