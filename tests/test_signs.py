"""Signs: how they are drawn and spoken of, what is held out, what the judge reads and refuses, their scores."""

import dataclasses
import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from sd3_jax.config import identity, scene_fields
from sd3_jax.data import captions, composition, scenes, signs
from sd3_jax.errors import UserError
from sd3_jax.evaluation import prompts, scene_judge, scores, truth
from sd3_jax.evaluation.conditioning import to_uint8
from sd3_jax.evaluation.prompts import metadata
from sd3_jax.experiments import load_experiment
from sd3_jax.overlays import resolve

SETTINGS = {"signs_cpu": {}, "scenes_gpu": {"data.words": 32}}  # 32 px in the middle of a grid, 64 px anywhere
NUMBER, SEED = 200, 20261125  # of these tests alone: the judge was made looking at others
settings = pytest.mark.parametrize(
    "name",
    ["signs_cpu", pytest.param("scenes_gpu", marks=pytest.mark.slow)],  # seconds for each at 64 px
)


@functools.lru_cache
def setting(name: str):
    return resolve(load_experiment(name), SETTINGS[name])


@functools.lru_cache
def found_in_true(name: str, split: composition.Split = "seen", kept: bool = False):
    """What the judge finds in true signs."""
    return found_in(name, drawn(name, split)[2 if kept else 1])


@functools.lru_cache
def drawn(name: str, split: composition.Split = "seen"):
    """Metadata of the captions of signs, their pictures, and those through the autoencoder."""
    config = setting(name)
    words, images, kept = truth.draw(config.data, config.model.latent_channels, "sign", split, NUMBER, SEED)
    return [metadata(one) for one in words], images, kept


def found_in(name: str, images: np.ndarray) -> list[list[scene_judge.Found]]:
    return scene_judge.find(images, setting(name).data)


def accepted(name: str, asked: list[dict], images: np.ndarray) -> float:
    return share(asked, found_in(name, images))


def share(asked: list[dict], found: list[list[scene_judge.Found]]) -> float:
    verdicts = [scene_judge.judge(prompt, own)[1] for prompt, own in zip(asked, found, strict=True)]
    return float(np.mean([verdict.correct for verdict in verdicts]))


def text_of(prompt: dict) -> str:
    return prompt["include"][0]["text"]


# --- drawn and spoken of --------------------------------------------------------------------------------------------


@functools.lru_cache
def everything(name: str, number: int = 4000):
    data = setting(name).data
    keys = jax.vmap(lambda i: scenes.example_key(1, scenes.TRAIN, 0, i))(jnp.arange(number))
    many = jax.jit(jax.vmap(lambda key: scenes.draw(key, data)))(keys)
    return jax.device_get((many, jax.jit(jax.vmap(captions.caption_words))(many)))


@settings
def test_one_scene_in_seven_is_a_sign_of_a_word_of_the_list(name) -> None:
    many, words = everything(name)
    sign = many.task == composition.SIGN
    assert abs(sign.mean() - 1 / 7) < 4.5 * np.sqrt(6 / 49 / len(sign))
    assert not many.present[sign].any()
    assert (many.letters[~sign] == -1).all()
    data = setting(name).data
    held = signs.held_out_words(data.words, data.held_out)
    said = [captions.spelt(one) for one in words]
    assert [bool(word) for word in said] == sign.tolist()
    assert {word for word in said if word} == {word for word, new in zip(signs.WORDS, held, strict=True) if not new}
    assert set(many.color[sign, 0]) == set(range(data.colors))
    for letters, word in zip(many.letters[sign], filter(None, said), strict=True):
        assert letters.tolist() == signs.spell(word)


def test_words_and_letters_can_be_told_apart() -> None:
    assert len({*signs.WORDS}) == len(signs.WORDS) == 32
    assert all(2 <= len(word) <= signs.LONGEST and len({*word}) == len(word) for word in signs.WORDS)
    flat = signs.GLYPHS.reshape(len(signs.GLYPHS), -1)
    apart = (flat[:, None] != flat).sum(axis=-1)
    assert apart[~np.eye(len(flat), dtype=bool)].min() >= 3
    assert (signs.GLYPHS[:-1].any(axis=2).all(axis=1)).all()  # no row of a letter is empty


@pytest.mark.parametrize("words", [6, 8, 10, 12, 16, 24, 32])
def test_held_out_words_are_spelt_of_what_is_seen(words) -> None:
    held = signs.held_out_words(words, 0.1)
    assert held.sum() == round(0.1 * words)
    letters = np.array([signs.spell(word) for word in signs.WORDS[:words]])
    for word in letters[held]:
        assert all(letter in letters[~held][:, place] for place, letter in enumerate(word) if letter >= 0)


@settings
def test_a_plate_is_its_letters_cell_by_cell(name) -> None:
    """Read with a ruler: the plate, cut into cells, has ink where the bitmaps have it, and each cell is one colour."""
    data = setting(name).data
    cell = data.image_size // signs.COLUMNS
    words, images, _ = truth.draw(data, None, "sign", "seen", 40, SEED)
    corners = set()
    for word, image in zip(words, images.astype(int), strict=True):
        grey = np.array(np.median(image.reshape(-1, 3), axis=0))
        rows, columns = np.nonzero((image != grey).any(axis=2))
        top, left = rows.min(), columns.min()
        assert (rows.max() + 1 - top, columns.max() + 1 - left) == (11 * cell, 27 * cell)
        corners.add((top, left))
        plate = image[top : top + 11 * cell, left : left + 27 * cell].reshape(11, cell, 27, cell, 3)
        assert (plate == plate[:, :1, :, :1]).all()
        ink = (plate[:, 0, :, 0] != plate[0, 0, 0, 0]).any(axis=-1)
        expected = np.zeros((11, 27), bool)
        for place, letter in enumerate(captions.spelt(word)):
            glyph = signs.GLYPHS[signs.LETTERS.index(letter)]
            expected[2:9, 2 + 6 * place : 7 + 6 * place] = glyph
        np.testing.assert_array_equal(ink, expected)
        colours = {tuple(one) for one in plate[:, 0, :, 0][ink]}
        assert colours <= {(14, 14, 14), (243, 243, 243)}
        assert np.abs(plate[0, 0, 0, 0] - next(iter(colours))).max() > 90  # legible
    assert (len(corners) == 1) == (data.layout == "grid")


@pytest.mark.slow
def test_signs_are_drawn_in_buckets_of_other_sides() -> None:
    data, size = setting("scenes_gpu").data, (48, 80)
    key = scenes.example_key(0, scenes.TRAIN, 0, 3)
    scene = scenes.draw(key, data, task=composition.SIGN, size=size)
    image = np.asarray(scenes.render(scene, data, size))
    assert image.shape == (48, 80, 3)
    rows, columns = np.nonzero((image != np.median(image.reshape(-1, 3), axis=0)).any(axis=2))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (11, 27)


@pytest.mark.parametrize(
    "text, word",
    [
        ('a photo of a sign that says "CAT"', "CAT"),
        ('a sign that says "GO".', "GO"),
        ("a sign that says “QUIZ”", "QUIZ"),
        ('a sign that says "A"', "A"),
    ],
)
def test_captions_of_signs_are_read(text, word) -> None:
    words = captions.parse(text)
    assert words.shape == (captions.SLOTS,)
    assert captions.spelt(words) == word
    assert captions.sentence(words) == f'a photo of a sign that says "{word}"'
    np.testing.assert_array_equal(captions.parse(captions.sentence(words)), words)


@pytest.mark.parametrize(
    "text", ['a sign that says "cat"', 'a sign that says "HELLO"', 'a sign that says ""', "a sign"]
)
def test_other_signs_are_not(text) -> None:
    with pytest.raises(UserError, match="a sign that says"):
        captions.parse(text)


def test_each_letter_has_a_token_of_its_own_at_each_place() -> None:
    config = setting("signs_cpu")
    asked = [captions.parse(f'a sign that says "{word}"') for word in ("CAT", "CAN", "ACT")]
    dropped = np.zeros((3, config.data.text_parts), bool)
    tokens, pooled = captions.embed_captions(np.stack(asked), dropped, config.model, config.data.text_parts)
    same = np.isclose(tokens[0], tokens[1:]).all(axis=2)
    assert same.tolist() == [[True, True, True, False, True, True], [True, False, False, True, True, True]]
    assert np.std(tokens) == pytest.approx(1, abs=0.15)
    assert np.abs(pooled[0] - pooled[1:]).max(axis=1).min() > 0.5


def test_nothing_is_new_without_words() -> None:
    config = resolve(load_experiment("scenes_cpu"))
    assert "data.words" not in identity(config)
    assert "words" not in scene_fields(config.data)
    assert identity(resolve(load_experiment("signs_cpu")))["data.words"] == 32
    assert {prompt.metadata["tag"] for prompt in prompts.scene_prompts(config.data, 4)} == {*composition.TASKS}
    with pytest.raises(UserError, match="data.words 0 leaves no word"):
        scenes.draw(jax.random.key(0), config.data, task=composition.SIGN)
    with pytest.raises(UserError, match="there are no signs in these scenes"):
        prompts.check_shown(captions.parse('a sign that says "CAT"'), config.data)


@pytest.mark.parametrize(
    "overlay, line",
    [
        ({"data.image_size": 24, "model.latent_size": 6}, "plate 27 x 11, and pictures have 24; at least 27"),
        ({"data.words": 33}, "data.words"),
    ],
)
def test_pictures_too_small_for_letters_are_refused_in_one_line(overlay, line) -> None:
    with pytest.raises(UserError, match=line) as error:
        resolve(load_experiment("signs_cpu"), overlay)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("words, unseen", [(32, 3), (6, 1), (2, 0)])
def test_prompts_ask_for_every_word_in_its_split(words, unseen) -> None:
    data = dataclasses.replace(setting("signs_cpu").data, words=words)
    asked = [prompt for prompt in prompts.scene_prompts(data, 4 * 40) if prompt.metadata["tag"] == "sign"]
    texts = {
        split: {text_of(p.metadata) for p in asked if p.metadata["split"] == split} for split in ("seen", "unseen")
    }
    assert texts["seen"] | texts["unseen"] == {*signs.WORDS[:words]}
    assert len(texts["unseen"]) == unseen
    assert sum(prompt.images for prompt in asked) == 160 * (1 + (unseen > 0))
    assert prompts.split_of(captions.parse('a sign that says "QUIZ"'), data) == "unseen"
    without = prompts.scene_prompts(dataclasses.replace(data, words=0), 160)
    others = [prompt for prompt in prompts.scene_prompts(data, 160) if prompt.metadata["tag"] != "sign"]
    assert [prompt.text for prompt in others] == [prompt.text for prompt in without]


# --- what the judge reads -------------------------------------------------------------------------------------------


@settings
@pytest.mark.parametrize("split", ["seen", "unseen"])
def test_true_signs_are_read(name, split) -> None:
    asked = drawn(name, split)[0]
    assert share(asked, found_in_true(name, split)) >= 0.98
    assert share(asked, found_in_true(name, split, kept=True)) >= 0.95


@settings
def test_signs_with_one_letter_wrong_are_refused(name) -> None:
    """Every picture is held against its word with one letter changed, lacking or too many, in many ways."""
    asked = drawn(name)[0]
    rng = np.random.default_rng(0)
    for kept in (False, True):
        for prompt, found in zip(asked, found_in_true(name, kept=kept), strict=True):
            word = text_of(prompt)
            place = rng.integers(len(word))
            wrong = {word[:place] + letter + word[place + 1 :] for letter in signs.LETTERS} - {word}
            wrong |= {word[:-1], word[1:], (word + "S")[: signs.LONGEST]} - {word}
            for other in wrong:
                said = metadata(captions.parse(f'a sign that says "{other}"'))
                assert not any(verdict.correct for verdict in scene_judge.judge(said, found))


@settings
@pytest.mark.slow
def test_letters_between_two_are_refused(name) -> None:
    """Half of one letter and half of another: no picture is both CAT and CAR, or either."""
    data = setting(name).data
    scene = scenes.draw(scenes.example_key(0, scenes.EVALUATION, 0, 0), data, task=composition.SIGN)
    images = [
        np.asarray(to_uint8(scenes.render(scene._replace(letters=jnp.array(signs.spell(word))), data))).astype(int)
        for word in ("CAT", "CAR", "CAP", "CA")
    ]
    for other in images[1:]:
        (found,) = found_in(name, ((images[0] + other) // 2).astype(np.uint8)[None])
        assert [one.text for one in found if one.text is not None] in (["CA?"], ["CA"] if other is images[3] else [])


@settings
def test_garbage_blends_and_smears_are_refused(name) -> None:
    asked, images, _ = drawn(name)
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, images.shape, dtype=np.uint8)
    flat = np.broadcast_to(rng.integers(0, 256, (len(images), 1, 1, 3), dtype=np.uint8), images.shape)
    gradient = np.broadcast_to(np.linspace(0, 255, images.shape[2], dtype=np.uint8)[:, None], images.shape)
    smeared = ndimage.gaussian_filter(images.astype(float), (0, 2, 2, 0)).astype(np.uint8)
    for garbage in (noise, flat, gradient, smeared):
        assert accepted(name, asked, garbage) == 0
    other = np.stack([images[rng.choice([j for j in range(NUMBER) if asked[j] != asked[i]])] for i in range(NUMBER)])
    assert accepted(name, asked, ((images.astype(int) + other) // 2).astype(np.uint8)) <= 0.03


@settings
def test_objects_beside_a_sign_and_signs_beside_objects_are_refused(name) -> None:
    data = setting(name).data
    asked, images, _ = drawn(name)
    words, objects, _ = truth.draw(data, None, "single_object", "seen", NUMBER, SEED)
    surplus = images.copy()
    differs = (objects != np.median(objects.reshape(NUMBER, -1, 3), axis=1)[:, None, None].astype(np.uint8)).any(axis=3)
    plate = (images != np.median(images.reshape(NUMBER, -1, 3), axis=1)[:, None, None].astype(np.uint8)).any(axis=3)
    apart = ~(ndimage.binary_dilation(plate, np.ones((1, 7, 7))) & differs).any(axis=(1, 2))
    assert apart.sum() >= 20
    surplus[differs] = objects[differs]
    for i, found in enumerate(found_in(name, surplus)):
        assert not scene_judge.judge(metadata(words[i]), found)[1].correct
        assert not (apart[i] and scene_judge.judge(asked[i], found)[1].correct)


@pytest.mark.parametrize("how, floor", [pytest.param("noise 8", 0.98, marks=pytest.mark.slow), ("noise 16", 0.9)])
def test_noisy_signs_at_64_px_are_still_read(how, floor) -> None:
    asked, images, _ = drawn("scenes_gpu")
    noise = np.random.default_rng(2).normal(0, float(how.split()[1]), images.shape)
    assert accepted("scenes_gpu", asked, np.clip(images + noise, 0, 255).round().astype(np.uint8)) >= floor


@settings
def test_the_other_tasks_are_judged_as_without_signs(name) -> None:
    data = setting(name).data
    _, images, _ = truth.draw(data, None, "color_attr", "seen", 60, SEED)
    without = scene_judge.find(images, dataclasses.replace(data, words=0))
    assert list(map(scores.to_row, scene_judge.find(images, data))) == list(map(scores.to_row, without))


# --- scores ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_scores_of_signs_stand_beside_genevals_six() -> None:
    config = setting("signs_cpu")
    ceilings = truth.ceilings(config.data, config.model.latent_channels, 8)
    for name in ("scene-sign", "scene-sign-soft"):
        for group in ("sign", "sign:unseen", "overall"):
            score = ceilings[name, group]
            assert score.own.value == 1
            assert score.chance.value <= 0.7  # of three words that differ in a letter or two, and may come twice
        assert ceilings[name, "sign"].chance.value < (0.1 if name == "scene-sign" else 0.4)
    without = truth.ceilings(dataclasses.replace(config.data, words=0), config.model.latent_channels, 8)
    assert {key for key in ceilings if not key[0].startswith("scene-sign")} == set(without)
    groups = {group for name, group in ceilings if name == "scene-geneval"}
    assert groups == {*composition.TASKS, "colors:unseen", "position:unseen", "color_attr:unseen", "overall"}


def test_soft_scores_are_one_less_the_share_of_wrong_letters() -> None:
    def read(*texts: str) -> list[scene_judge.Found]:
        box = (0.0, 0.0, 27.0, 11.0)
        return [scene_judge.Found(box, None, "red", 1.0, np.ones(4) / 4, np.zeros(10), text) for text in texts]

    said = metadata(captions.parse('a sign that says "STOP"'))

    def measured(*texts: str) -> list[float]:
        values = dict(zip(scores.MEASURES, scores.measure_one(said, read(*texts)), strict=True))
        assert all(np.isnan(value) for name, value in values.items() if name not in scores.SPELLINGS)
        return [values["spelt"], values["spelling"]]

    assert measured("STOP") == [1, 1]
    assert measured("SHOP") == [0, 0.75]
    assert measured("ST?P") == [0, 0.75]
    assert measured("STO") == [0, 0.75]
    assert measured("") == measured() == [0, 0]
    assert measured("STOP", "GO") == [0, 1]  # strictly one sign is asked for
    assert scene_judge.judge(said, read("STOP", "GO"))[0].correct
    assert "expected a sign that says STOP, read SHOP" in scene_judge.judge(said, read("SHOP"))[1].reason
    ring = metadata(captions.parse("a photo of a ring"))
    assert np.isnan(scores.measure_one(ring, read("STOP"))[-2:]).all()


def test_what_was_read_is_kept_beside_the_picture() -> None:
    _, images, _ = drawn("signs_cpu")
    data = setting("signs_cpu").data
    for found in found_in("signs_cpu", images[:9]):
        row = json.loads(json.dumps(scores.to_row(found)))
        assert [one.text for one in scores.from_row(row, data)] == [one.text for one in found]
        row[0]["text"] = 3
        with pytest.raises(ValueError):
            scores.from_row(row, data)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("rapidocr"), reason="needs rapidocr")
def test_rapidocr_reads_true_signs_at_64_px() -> None:
    """A judge that knows nothing of these bitmaps: the letters are legible."""
    from sd3_jax.scorers.ocr import ocr

    asked, images, _ = drawn("scenes_gpu")
    values = ocr().score(list(images), asked)
    assert np.mean([value["exact"] for value in values]) >= 0.9
