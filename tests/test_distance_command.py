"""``sd3-jax distance`` as it is used: folders of every kind, prepared sets, broken files; what it prints and writes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sd3_jax import cli
from sd3_jax.data import frozen, sources
from sd3_jax.data import prepare as preparing
from sd3_jax.errors import UserError
from sd3_jax.evaluation import between, features, folders
from sd3_jax.evaluation.features import Extractor


def draw(folder: Path, count: int, seed: int, shade: int = 0, captions: bool = False) -> None:
    """Pictures of a few coloured rectangles, of two sizes, half of them a folder further down."""
    numbers = np.random.default_rng(seed)
    (folder / "below").mkdir(parents=True)
    for i in range(count):
        image = np.full((24, 24, 3) if i % 3 else (20, 28, 3), 200, np.uint8)
        for _ in range(3):
            y, x = numbers.integers(0, 16, 2)
            image[y : y + 8, x : x + 8] = np.clip(numbers.integers(0, 200, 3) + shade, 0, 255)
        path = folder / ("below" if i % 2 else ".") / f"{i:03d}.{'png' if i % 5 else 'webp'}"
        Image.fromarray(image).save(path, lossless=True)
        if captions:
            path.with_suffix(".txt").write_text(f"picture {i}")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("sets")
    draw(where / "one", 120, 0)
    draw(where / "same", 100, 1, captions=True)
    draw(where / "brighter", 100, 2, shade=55)
    return where


def run(*arguments: object, code: int = 0) -> str:
    """What the command says on both streams."""
    result = CliRunner().invoke(cli.app, ["distance", *map(str, arguments)])
    if code:
        assert isinstance(result.exception, UserError)
        return str(result.exception)
    assert result.exit_code == 0, result.output
    return result.output


def rows(*arguments: object) -> dict[str, dict]:
    result = CliRunner().invoke(cli.app, ["distance", *map(str, arguments), "--json", "-"])
    assert result.exit_code == 0, result.output
    return {row["name"]: row for row in json.loads(result.stdout)["rows"]}


def test_sets_of_one_kind_are_near_and_others_far(sets):
    same, other = rows(sets / "one", sets / "same"), rows(sets / "one", sets / "brighter")
    assert set(same) == {"fd-scene", "fd-extrapolated-scene", "kid-scene"}
    for name in same:
        assert other[name]["value"] > same[name]["value"] + 3 * other[name]["se"]
    assert same["fd-scene"]["value"] > same["fd-extrapolated-scene"]["value"]
    assert (same["fd-scene"]["n"], same["fd-scene"]["reference_n"]) == (120, 100)
    assert same["kid-scene"]["subset"] == 100
    assert same["fd-scene"]["digest"] == features.load("scene").digest
    said = run(sets / "one", sets / "brighter")
    assert "Frechet, extrapolated" in said
    assert "120 pictures" in said
    assert "partial" not in said


def test_what_cannot_be_read_is_counted_listed_and_marked(sets, tmp_path):
    draw(tmp_path / "some", 30, 3)
    (tmp_path / "some" / "broken.png").write_bytes(b"\x89PNG nothing")
    (tmp_path / "some" / "empty.jpg").touch()
    (tmp_path / "some" / ".hidden.png").touch()
    assert "partial" in rows(tmp_path / "some", sets / "one")["fd-scene"]
    said = run(tmp_path / "some", sets / "one", "--json", tmp_path / "said.json")
    assert "30 pictures, 2 cannot be read" in said
    assert "broken.png" in said
    assert len(json.loads((tmp_path / "said.json").read_text())["unreadable"]) == 2


def test_geneval_samples_alone_are_read_with_their_prompts(tmp_path):
    numbers = np.random.default_rng(0)
    for prompt in range(3):
        (tmp_path / f"{prompt:05d}" / "samples").mkdir(parents=True)
        (tmp_path / f"{prompt:05d}" / "metadata.jsonl").write_text(json.dumps({"prompt": f"prompt {prompt}"}))
        (tmp_path / f"{prompt:05d}" / "grid.png").write_bytes(b"no sample")
        for index in range(2):
            image = numbers.integers(0, 256, (16, 16, 3)).astype(np.uint8)
            folders.write_png(folders.image_path(tmp_path, prompt, index), image)
    found = between.find(tmp_path)
    problems: list[str] = []
    assert [one.prompt for one in found.read(problems)] == [f"prompt {i // 2}" for i in range(6)]
    assert (found.total, problems) == (6, [])

    def texts(said):
        return np.array([[1.0, float(text[-1])] for text in said])

    def embed(images):
        return np.tile(np.array([[2.0, 2.0]], np.float32), (len(images), 1))

    clip = between.measure(found, Extractor("clip", "", embed, texts)).clip
    cosines = [(1 + k) / np.sqrt(2 * (1 + k * k)) for k in range(3)]
    assert clip is not None
    assert clip.value == pytest.approx(100 * np.mean(cosines))
    assert (clip.images, clip.prompts) == (6, 3)


def test_a_prepared_set_gives_what_it_holds_out_as_its_autoencoder_has_it(sets, tmp_path):
    recipe = preparing.Recipe(24, hold_out=0.3, dtype="float32")
    encoders = preparing.Encoders(frozen.cosine_codec(192, 8), [frozen.word_encoder(4, 8)])
    made = preparing.prepare(sources.find(str(sets / "same")), tmp_path / "set", recipe, encoders)
    assert made is not None
    found = between.find(tmp_path / "set")
    assert found.total == made.count("validation") > 0
    assert all(one.image.shape == (24, 24, 3) for one in found.read([]))
    assert rows(tmp_path / "set", sets / "one")["fd-scene"]["n"] == found.total


def test_bad_input_is_one_line(sets, tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").touch()
    (tmp_path / "single").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "single" / "a.png")
    assert "no such folder" in run(tmp_path / "nowhere", sets / "one", code=2)
    assert "holds no pictures" in run(sets / "one", tmp_path / "none", code=2)
    assert "can be read" in run(tmp_path / "broken", sets / "one", code=2)
    assert "has one picture" in run(tmp_path / "single", sets / "one", code=2)
    assert "--features" in run(sets / "one", sets / "same", "--features", "vgg", code=2)


def test_pictures_are_held_a_few_at_a_time():
    shown = (between.Shown(np.zeros((2048, 4096, 3), np.uint8)) for _ in range(11))
    assert max(map(len, between._batches(shown))) <= 5
    assert [len(batch) for batch in between._batches(between.Shown(np.zeros((1, 1, 3))) for _ in range(70))] == [
        32,
        32,
        6,
    ]
