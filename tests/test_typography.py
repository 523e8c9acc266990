"""Spelling: edit distance against the definition, texts against lines, and words that are drawn and read again."""

import functools
import importlib.util
import itertools
import random
import socket

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from sd3_jax.evaluation import typography
from sd3_jax.evaluation.typography import quoted, reading_order, requested, similarity, spelling


@functools.cache
def by_definition(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    rest = by_definition(a[1:], b[1:]) + (a[0] != b[0])
    return min(rest, by_definition(a[1:], b) + 1, by_definition(a, b[1:]) + 1)


def test_the_distance_is_levenshteins() -> None:
    rng = random.Random(0)
    for _ in range(500):
        a, b = ("".join(rng.choices("abc ", k=rng.randrange(9))) for _ in range(2))
        assert typography.distance(a, b) == by_definition(a, b)
        longer = max(len(typography.normal(a)), len(typography.normal(b)), 1)
        assert similarity(a, b) == 1 - by_definition(typography.normal(a), typography.normal(b)) / longer


@pytest.mark.parametrize(
    "a, b", [("OPEN", "open"), ("ＯＰＥＮ", "open"), ("a \n\u00a0b", " a b "), ("STRASSE", "straße")]
)
def test_case_spaces_and_forms_of_a_letter_make_no_difference(a, b) -> None:
    assert similarity(a, b) == 1


@pytest.mark.parametrize("a, b, value", [("cat", "car", 2 / 3), ("cat", "", 0), ("", "", 1), ("cafe", "café", 3 / 4)])
def test_other_characters_do(a, b, value) -> None:
    assert similarity(a, b) == pytest.approx(value)


@pytest.mark.parametrize(
    "prompt, texts",
    [
        ('a sign that says "OPEN"', ["OPEN"]),
        ("a sign that says “open late” beside one that says «no»", ["open late", "no"]),
        ("the words 'it's fine' in chalk", ["it's fine"]),
        ("a photo of a dog's ball and a cat's bowl", []),
        ('two quotation marks, " " and "" between them', []),
        ("a sign that says stop", []),
    ],
)
def test_texts_that_a_prompt_asks_for(prompt, texts) -> None:
    assert quoted(prompt) == requested({"prompt": prompt}) == texts
    assert requested({"prompt": prompt, "text": "said"}) == ["said"]
    assert requested({"prompt": prompt, "text": ["one", "two"]}) == ["one", "two"]
    assert requested({"prompt": prompt, "text": 3}) == requested({"prompt": prompt, "text": ""}) == texts


@pytest.mark.parametrize(
    "asked, lines, exact, close, words",
    [
        (["open"], ["OPEN"], True, 1, 1),
        (["open"], ["CAFE", "Open", "24 h"], True, 1, 1),  # other signs count for nothing
        (["open late"], ["we are", "open", "late"], True, 1, 1),  # over two lines
        (["open late"], ["late", "open"], False, 1 - 5 / 9, 1),
        (["stop", "go"], ["GO", "STOP"], True, 1, 1),
        (["go", "go"], ["go"], False, 0.5, 0.5),  # no line serves two
        (["open"], [], False, 0, 0),
        (["opem"], ["open"], False, 0.75, 0),
    ],
)
def test_texts_against_lines(asked, lines, exact, close, words) -> None:
    found = spelling(asked, lines)
    assert found.exact == exact
    assert found.similarity == pytest.approx(close)
    assert found.words == pytest.approx(words)


def test_texts_find_the_best_of_all_matchings() -> None:
    rng = random.Random(1)
    for _ in range(60):
        asked, lines = (["".join(rng.choices("ab", k=rng.randint(1, 4))) for _ in range(3)] for _ in range(2))
        best = max(sum(map(similarity, asked, order)) / 3 for order in itertools.permutations([*lines, ""], 3))
        assert spelling(asked, lines).similarity == pytest.approx(best)


def test_nothing_asked_for_is_an_error_and_many_lines_are_none() -> None:
    with pytest.raises(ValueError):
        spelling([], ["open"])
    assert spelling(["line 299", "one two three four five", *["x"] * 9], [f"line {i}" for i in range(2000)]).words < 0.5


def test_lines_are_read_row_by_row() -> None:
    """Whatever order they come in, with rows that waver by a third of their height."""
    rng = random.Random(2)
    boxes = [(x * 50, y * 30 + rng.uniform(-3, 3), x * 50 + 40, y * 30 + 20) for y in range(4) for x in range(3)]
    shuffled = rng.sample(range(12), 12)
    assert [shuffled[i] for i in reading_order([boxes[k] for k in shuffled])] == list(range(12))
    assert reading_order([]) == []


# --- what is drawn is read ------------------------------------------------------------------------------------------

WORDS = ("OPEN", "Stop", "CAFE 24", "Hello World", "zebra")
needs_ocr = pytest.mark.skipif(
    not (importlib.util.find_spec("rapidocr") and importlib.util.find_spec("onnxruntime")), reason="needs rapidocr"
)


def written(word: str, side: int) -> np.ndarray:
    image = Image.new("RGB", (side, side), (230, 220, 180))
    font = ImageFont.load_default(side / (0.62 * max(len(word), 4)))
    ImageDraw.Draw(image).text((side / 2, side / 2), word, font=font, fill=(20, 30, 90), anchor="mm")
    return np.asarray(image)


@needs_ocr
def test_written_words_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from sd3_jax.scorers.ocr import ocr

    def no_network(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    scorer = ocr()
    assert (scorer.name, scorer.digest) == ("ocr", ocr().digest)
    for side in (64, 96, 128, 256):
        prompts = [{"prompt": f'a sign that says "{word}"'} for word in WORDS]
        for word, value in zip(WORDS, scorer.score([written(word, side) for word in WORDS], prompts), strict=True):
            assert value == {"read": [word], "exact": True, "similarity": 1.0, "words": 1.0}, side

    picture = written("OPEN", 96)
    wrong, unasked = scorer.score([picture, picture], [{"prompt": "the word “OVEN”"}, {"prompt": "a red square"}])
    assert wrong == {"read": ["OPEN"], "exact": False, "similarity": 0.75, "words": 0.0}
    assert unasked is None
    flat = np.full((64, 200, 3), 99, np.uint8)
    assert scorer.score([flat, flat[:1, :1]], 2 * [{"prompt": "“open”"}]) == 2 * [
        {"read": [], "exact": False, "similarity": 0.0, "words": 0.0}
    ]
