"""T2I-CompBench's eight categories, its prompts and its files, each rule worked by hand on made-up senses."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sd3_jax.errors import UserError
from sd3_jax.evaluation import compbench, compbench_files, compbench_prompts
from sd3_jax.evaluation.compbench import Senses
from sd3_jax.evaluation.compbench_prompts import Parsed, Parser, Word, parse_template
from sd3_jax.evaluation.geneval import Box, Detection

PARSE = Parser("templates:1", parse_template)
PICTURE = np.zeros((479, 479, 3), np.uint8)


def box(x: float, y: float, side: float = 20) -> Box:
    """A square about a point."""
    return x - side / 2, y - side / 2, x + side / 2, y + side / 2


def detects(**found: Sequence[tuple[Box, float]]) -> compbench.Detect:
    def detect(image: np.ndarray, nouns: Sequence[str]) -> Mapping[str, Sequence[Detection]]:
        assert len(set(nouns)) == len(nouns)
        return {noun: [Detection(*one) for one in found.get(noun, ())] for noun in nouns}

    return detect


def score(category: str, prompt: str | Mapping[str, Any], image: np.ndarray = PICTURE, **senses: Any) -> float:
    said = {"prompt": prompt} if isinstance(prompt, str) else prompt
    return compbench.score(category, image, said, Senses(**senses), PARSE)


# --- attributes, likeness -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("category", ["color", "shape", "texture"])
def test_attributes_are_the_product_over_noun_phrases_asked_as_questions(category: str) -> None:
    asked = []

    def answer(image: np.ndarray, questions: Sequence[str]) -> list[float]:
        asked.extend(questions)
        return [0.5, 0.25][: len(questions)]

    assert score(category, "a red cup and a blue dog", answer=answer) == 0.125
    assert asked == ["a red cup?", "a blue dog?"]


def test_no_phrase_is_no_question_and_no_more_than_eight_are_asked() -> None:
    def answer(image: np.ndarray, questions: Sequence[str]) -> list[float]:
        return [0.5] * len(questions)

    for number, expected in ((0, 1.0), (3, 1 / 8), (8, 1 / 256), (9, 1 / 256)):
        many = Parser("none", lambda prompt, number=number: Parsed(prompt, (), ("a cup",) * number))  # type: ignore[misc]
        assert compbench.score("color", PICTURE, {"prompt": "x"}, Senses(answer=answer), many) == expected


def test_non_spatial_is_the_likeness_to_the_prompt_itself() -> None:
    found = score("non_spatial", "A man reads a book.", similarity=lambda image, text: 0.01 * len(text))
    assert found == pytest.approx(0.19)


# --- spatial --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relation, there", [
    ("on the left of", (100, 200)), ("on the right of", (300, 200)), ("on the top of", (200, 100)),
    ("on top of", (200, 100)), ("on the bottom of", (200, 300)),
])  # fmt: skip
def test_a_side_is_where_the_first_object_is_from_the_last(relation: str, there: tuple[int, int]) -> None:
    for place in ((100, 200), (300, 200), (200, 100), (200, 300)):
        detect = detects(dog=[(box(*place), 0.75), (box(*there), 0.5)], cup=[(box(200, 200), 0.25)])
        expected = 0.25 * 0.75 + 0.25 * 0.25 + 0.5 if place == there else 0.0  # of the surest dog; below one half
        assert score("spatial", f"a dog {relation} a cup", detect=detect) == pytest.approx(expected)


@pytest.mark.parametrize("relation", ["next to", "near", "on side of"])
@pytest.mark.parametrize("size, scale", [((479, 479), 1.0), ((958, 958), 2.0), ((100, 960), 2.0)])
def test_near_is_within_150_pixels_on_one_axis_of_a_picture_of_479(
    relation: str, size: tuple[int, int], scale: float
) -> None:
    def at(x: float, y: float) -> float:
        detect = detects(dog=[(box(x * scale, y * scale), 0.8)], cup=[(box(0, 0), 0.8)])
        return score("spatial", f"a dog {relation} a cup", np.zeros((*size, 3), np.uint8), detect=detect)

    assert at(149, 400) == at(400, 149) == at(0, 0) == pytest.approx(0.9)
    assert at(150, 300) == at(-300, 150) == pytest.approx(0.4 + 0.5 * 150 / 300)
    assert at(200, 1500) == 0.0  # 0.4 + 0.05 is below one half


def test_what_is_not_there_or_not_said_is_no_relation() -> None:
    dog, cup = [(box(100, 200), 1.0)], [(box(200, 200), 1.0)]
    assert score("spatial", "a dog on the left of a cup", detect=detects(dog=dog)) == 0
    assert score("spatial", "a dog on the left of a cup", detect=detects(cup=cup)) == 0
    assert score("spatial", "a dog behind a cup", detect=detects(dog=dog, cup=cup)) == 0.5  # two confidences
    with pytest.raises(UserError, match="names no object"):
        compbench_prompts.objects(Parsed("run", (Word("run", "VERB"),), ()))


@pytest.mark.parametrize("person", ["boy", "girl", "man", "woman"])
def test_people_are_looked_for_as_persons(person: str) -> None:
    detect = detects(person=[(box(100, 200), 1.0)], cup=[(box(200, 200), 1.0)])
    assert score("spatial", f"a {person} on the left of a cup", detect=detect) == 1.0
    # Both are the one surest person, in the same place: near itself, and on no side.
    assert score("spatial", f"a {person} next to a man", detect=detect) == 1.0
    assert score("spatial", f"a {person} on the left of a man", detect=detect) == 0.5


@pytest.mark.parametrize("relation, nearer", [("in front of", True), ("behind", False), ("hidden by", False)])
def test_depth_orders_objects_that_overlap(relation: str, nearer: bool) -> None:
    nearness = np.zeros((100, 200))
    nearness[:, 100:] = 1.0
    right, left = (90.0, 10.0, 190.0, 60.0), (80.0, 10.0, 180.0, 60.0)  # overlap 90 / 110; nearness .9 and .8
    narrow = (160.0, 10.0, 260.0, 60.0)  # overlap 30 / 170 with the first, in front of it
    picture = np.zeros((100, 200, 3), np.uint8)

    def at(dog: Box, cup: Box, flat: bool = False) -> float:
        depth = nearness * 0 if flat else nearness
        both = detects(dog=[(dog, 0.4)], cup=[(cup, 0.8)])
        return score("3d_spatial", f"a dog {relation} a cup", picture, detect=both, depth=lambda image: depth)

    assert at(right, left) == pytest.approx(0.3 + 0.5 * nearer)
    assert at(left, right) == pytest.approx(0.3 + 0.5 * (not nearer))
    assert at(narrow, right) == pytest.approx(0.3 + 0.5 * nearer * 2 * 30 / 170)
    assert at(right, left, flat=True) == at((0, 0, 0.5, 0.5), right) == pytest.approx(0.3)
    alone = detects(dog=[(right, 0.4)])  # and nothing is cut off below one half
    assert score("3d_spatial", f"a dog {relation} a cup", picture, detect=alone, depth=None) == pytest.approx(0.1)


# --- numeracy -------------------------------------------------------------------------------------------------------


def test_numeracy_counts_objects_that_are_apart() -> None:
    apart = [(box(40 * i, 100), 0.5) for i in range(3)]
    detect = detects(person=apart[:2], cup=[apart[0], (box(0, 100, 19), 0.4)], dog=apart)
    assert score("numeracy", {"prompt": "", "objects": {"man": 2}}, detect=detect) == 1
    assert score("numeracy", {"prompt": "", "objects": {"man": 2, "cup": 1, "dog": 2}}, detect=detect) == pytest.approx(
        (1 + 1 + 0.5) / 3
    )
    assert score("numeracy", {"prompt": "", "objects": {"man": 1, "girl": 2}}, detect=detect) == 0.75
    with pytest.raises(UserError, match="counts of objects"):
        score("numeracy", "two men", detect=detect)


SINGULAR = {"man": "man", "men": "man", "lemon": "lemon", "lemons": "lemon", "fish": "fish", "tea cup": "tea cup",
            "tea cups": "tea cup", "tea": "tea"}  # fmt: skip


@pytest.mark.parametrize("prompt, expected", [
    ("two men", {"man": 2}),
    ("a lemon", {"lemon": 1}),
    ("eight fish and an lemon", {"fish": 8, "lemon": 1}),
    ("four men, three tea cups, and one lemon adorned a room", {"man": 4, "tea cup": 3, "lemon": 1}),
    ("Three lemons shared a burger", {"lemon": 3}),
])  # fmt: skip
def test_numbers_before_known_nouns_are_counts(prompt: str, expected: dict[str, int]) -> None:
    assert compbench_prompts.counts(prompt, SINGULAR) == expected


def test_a_prompt_that_counts_nothing_is_one_line() -> None:
    with pytest.raises(UserError, match="counts none"):
        compbench_prompts.counts("lemons on a burger", SINGULAR)


# --- complex --------------------------------------------------------------------------------------------------------


def tagged(text: str) -> Parsed:
    """A prompt whose words are given as word/KIND."""
    words = tuple(Word(*word.split("/")) for word in text.split())
    return Parsed(" ".join(word.text for word in words), words, ("The red hat", "the brown coat rack"))


HAT = tagged(
    "The/DET red/ADJ hat/NOUN was/AUX on/ADP top/NOUN of/ADP the/DET brown/ADJ coat/NOUN rack/NOUN ./PUNCT"
)  # fmt: skip


@pytest.mark.parametrize("parts, expected", [
    (["spatial"], (0.5 * 0.5 + 0.9) / 2), (["action"], (0.25 + 0.3) / 2),
    (["spatial", "action"], (0.25 + 0.9 + 0.3) / 3),
])  # fmt: skip
def test_complex_is_the_mean_of_what_a_prompt_asks_for(parts: list[str], expected: float) -> None:
    compared = []

    def likeness(image: np.ndarray, text: str) -> float:
        compared.append(text)
        return 0.3

    detect = detects(hat=[(box(100, 50), 0.8)], coat=[(box(100, 150), 0.8)])
    senses = Senses(lambda image, questions: [0.5] * len(questions), detect, None, likeness)
    said = {"prompt": HAT.text, "parts": parts}
    found = compbench.score("complex", PICTURE, said, senses, Parser("tags", lambda prompt: HAT))
    assert found == pytest.approx(expected)
    assert compared == ["The hat was on top of the coat rack ."] * ("action" in parts)


@pytest.mark.parametrize("text, expected", [
    ("a/DET red/ADJ cup/NOUN near/ADP a/DET dog/NOUN", ("cup", "dog")),
    ("Mia/PROPN on/ADP the/DET left/NOUN of/ADP a/DET dog/NOUN", ("Mia", "dog")),
    ("cup/NOUN near/ADP New/PROPN York/PROPN ./PUNCT", ("cup", "York")),
    ("cup/NOUN near/ADP Mia/PROPN", None),  # the end of a prompt ends no name
    ("cup/NOUN near/ADP dog/NOUN next/ADJ to/ADP man/NOUN", None),
    ("cup/NOUN and/CCONJ dog/NOUN", None),
    ("near/ADP dog/NOUN", None),
])  # fmt: skip
def test_the_objects_of_a_longer_prompt_stand_around_its_one_relation(text: str, expected: tuple | None) -> None:
    assert compbench_prompts.objects_around(tagged(text)) == expected


def test_adjectives_are_not_guessed() -> None:
    with pytest.raises(UserError, match="spaCy alone"):
        compbench_prompts.without_adjectives(parse_template("a red cup and a dog"))


def test_prompts_that_cannot_be_read_are_said_before_pictures_are_looked_at() -> None:
    template, free = {"prompt": "a cup and a dog"}, {"prompt": "A man reads a book in the garden."}
    for category in compbench_files.CATEGORIES:
        said = [template | {"parts": ["spatial"]}, free | {"parts": ["action"]}]
        compbench.check(category, said[:1], PARSE)
        if category in ("non_spatial", "numeracy"):
            compbench.check(category, said, PARSE)
        else:
            with pytest.raises(UserError, match="A man reads a book"):
                compbench.check(category, said, PARSE)
    with pytest.raises(UserError, match="spaCy alone"):
        compbench.check("complex", [{"prompt": "a red cup and a dog", "parts": ["action"]}], PARSE)


# --- prompts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt, phrases, nouns", [
    ("a green bench and a blue cell phone", ("a green bench", "a blue cell phone"), ("bench", "phone")),
    ("rubber sole shoes and fluffy clouds", ("rubber sole shoes", "fluffy clouds"), ("shoes", "clouds")),
    ("a cubic Rubik's cube and a box of tea.", ("a cubic Rubik's cube", "a box", "tea"), ("cube", "tea")),
    ("two cups, one dog, and a cat", ("two cups", "one dog", "a cat"), ("cups", "cat")),
    ("The red hat was on top of the coat rack.", ("The red hat", "the coat rack"), ("hat", "rack")),
    *((f"a dog {relation} a bee", ("a dog", "a bee"), ("dog", "bee")) for relation in (
        "next to", "near", "on side of", "on the left of", "on the right of", "on the top of", "on the bottom of",
        "in front of", "behind", "hidden by",
    )),
])  # fmt: skip
def test_templates_are_read_without_spacy(prompt: str, phrases: tuple, nouns: tuple) -> None:
    parsed = parse_template(prompt)
    assert (parsed.phrases, compbench_prompts.objects(parsed)) == (phrases, nouns)
    assert "".join(word.text for word in parsed.words) == prompt.replace(" ", "").removesuffix(".")


@pytest.mark.parametrize("prompt", [
    "", "a cat", "a and a dog", "a cat and", "The black river flowed next to the green trees.",
    "a cat sat by a dog and a cup",
    "A kitten and a big dog sat side by side.", "The oval platter and the round bowl were used for serving dinner.",
    "Bathroom scene, white commode and matching white sink on light brown tone tiled floor.", "a cup and a dog!",
])  # fmt: skip
def test_what_is_of_no_template_is_one_line(prompt: str) -> None:
    with pytest.raises(UserError, match=r"without spaCy: pip install 'sd3_jax\[compbench\]'") as caught:
        parse_template(prompt)
    assert "\n" not in str(caught.value)


def test_templates_are_read_as_spacy_reads_them() -> None:
    pytest.importorskip("spacy")
    spacy = compbench_prompts.parser()
    if spacy.name == PARSE.name:
        pytest.skip("spaCy has no English model here")
    nouns = ("dog", "cup", "sofa", "girl", "bee", "key", "airplane", "suitcase")
    links = ("next to", "near", "on side of", "on the left of", "on the top of", "in front of", "behind", "hidden by")
    for (one, other), link in itertools.product(itertools.combinations(nouns, 2), links):
        prompt = f"a {one} {link} a {other}"
        assert compbench_prompts.objects(spacy.parse(prompt)) == (one, other)
        assert compbench_prompts.objects(parse_template(prompt)) == (one, other)
    colors, things = ("green", "red", "brown", "blue"), ("bench", "vase", "horse", "backpack", "cell phone", "cake")
    for color, other, pair in itertools.product(colors, colors, itertools.combinations(things, 2)):
        prompt = f"a {color} {pair[0]} and a {other} {pair[1]}"
        assert spacy.parse(prompt).phrases == parse_template(prompt).phrases
    for prompt in ("The red hat was on top of the brown coat.", "The fluffy cat is on the left of the soft pillow."):
        ours, theirs = parse_template(prompt), spacy.parse(prompt)
        assert ours.phrases == theirs.phrases
        assert compbench_prompts.objects_around(ours) == compbench_prompts.objects_around(theirs)
    assert compbench_prompts.without_adjectives(spacy.parse("a red cup and a dog")) == "a cup and a dog"


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the benchmark's lists, shorter."""
    texts = {
        "color_val": "a red cup and a blue dog\na red dog and a blue cup\textra\n\n",
        "complex_val": "The hat was on the rack.\nThe sun shone down.\nThe cup ran near the dog.\n",
        "complex_val_spatial": "the hat was on the rack\n",
        "complex_val_action": "The sun shone down.\n",
        "numeracy_val": "two knives\nfour people and a knife\n",
        "new_objects": "knife - knives\nperson - people\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    return tmp_path


def test_lists_are_read_with_what_the_copy_tells_of_their_prompts(copy: Path) -> None:
    color = compbench_files.read_category(copy, "color")
    assert color == [
        {"tag": "color", "prompt": f"a red {a} and a blue {b}"} for a, b in (("cup", "dog"), ("dog", "cup"))
    ]
    parts = [row["parts"] for row in compbench_files.read_category(copy, "complex")]
    assert parts == [["spatial"], ["action"], ["spatial", "action"]]
    counts = [row["objects"] for row in compbench_files.read_category(copy, "numeracy")]
    assert counts == [{"knife": 2}, {"person": 4, "knife": 1}]


def test_a_list_that_is_none_is_one_line(copy: Path) -> None:
    for category, split, said in (
        ("colour", "val", "no category"), ("color", "test", "no split"),
        ("shape", "val", "shape_val.txt: no such file"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            compbench_files.read_category(copy, category, split)
    (copy / "new_objects.txt").write_text("knife knives\n")
    with pytest.raises(UserError, match=r"new_objects\.txt:1"):
        compbench_files.read_category(copy, "numeracy")


def test_pictures_are_found_by_their_names(copy: Path) -> None:
    prompts = compbench_files.read_category(copy, "color")
    folder = copy / "drawn" / "samples"
    folder.mkdir(parents=True)
    for number in (12, 0, 11, 3):
        name = compbench_files.picture_name(prompts[number // compbench_files.EACH]["prompt"], number)
        Image.fromarray(PICTURE[:2, :2]).save(folder / name)
    found = compbench_files.read_pictures(folder.parent, prompts)
    assert [(number, shot.prompt) for number, shot in found] == [(0, 0), (3, 0), (11, 1), (12, 1)]
    assert [shot.metadata["prompt"] for _, shot in found] == [prompts[shot.prompt]["prompt"] for _, shot in found]
    for name, said in (
        ("no number.png", "is not named"), ("a cat_000020.png", "the list does not have"),
        (f"{prompts[0]['prompt']}_12.png", "has the number of"),
    ):  # fmt: skip
        (folder / name).write_bytes(b"")
        with pytest.raises(UserError, match=said):
            compbench_files.read_pictures(folder.parent, prompts)
        (folder / name).unlink()
    with pytest.raises(UserError, match="holds no pictures"):
        compbench_files.read_pictures(copy, prompts)


@pytest.mark.parametrize("prompt", ["", "a_b", "a/b", "é" * 128])
def test_a_prompt_that_is_no_name_is_one_line(prompt: str) -> None:
    with pytest.raises(UserError, match="no name of a file"):
        compbench_files.picture_name(prompt, 0)


def test_answers_are_read_as_they_were_written_and_as_upstream_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "annotation" / "vqa_result.json"
    compbench_files.write_answers(path, {3: 0.5, 0: 1 / 3})
    assert json.loads(path.read_text()) == [{"question_id": 0, "answer": 1 / 3}, {"question_id": 3, "answer": 0.5}]
    assert compbench_files.read_answers(path) == {0: 1 / 3, 3: 0.5}
    path.write_text('[{"question_id": 0, "answer": "0.1250"}]')
    assert compbench_files.read_answers(path) == {0: 0.125}
    for text in ("{", "[1]", '[{"question_id": 0}]', '[{"question_id": 0, "answer": "yes"}]', "1",
                 '[{"question_id": 0, "answer": 1}, {"question_id": 0, "answer": 1}]'):  # fmt: skip
        path.write_text(text)
        with pytest.raises(UserError, match=r"is no vqa_result\.json"):
            compbench_files.read_answers(path)
    with pytest.raises(UserError, match="no such file"):
        compbench_files.read_answers(tmp_path / "nowhere.json")


def test_categories_count_alike_whatever_their_pictures() -> None:
    one = np.array([0.0, 1.0, 1.0, 1.0]), np.array([0, 0, 1, 1])
    two = np.array([0.25, 0.25]), np.array([0, 1])
    found = compbench.summarize({"shape": two, "color": one})
    assert list(found) == ["color", "shape", "mean of 2"]
    assert found["mean of 2"].value == 0.5
    # By prompt: 0.5 and 1, of mean 0.75: sums of -0.5 and 0.5, so the error is sqrt(2 * 0.5) / 4.
    assert found["color"].se == pytest.approx(math.sqrt(2 * 0.5) / 4)
    assert found["mean of 2"].se == pytest.approx(0.25 / 2)
    assert list(compbench.summarize(dict.fromkeys(compbench_files.CATEGORIES, two)))[-1] == "overall"


def test_a_category_that_is_none_is_one_line() -> None:
    with pytest.raises(UserError, match="no category"):
        score("colour", "a cup and a dog")
