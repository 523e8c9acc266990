"""T2I-CompBench's soft formulas (Huang et al. 2023), and its eight categories over whatever looks at pictures.

Attribute binding asks of each noun phrase whether the picture shows it; 2-D and 3-D spatial weigh two confidences and
a position; numeracy gives half a point for presence and half for the exact count; non-spatial is a likeness of picture
and text; complex is the mean of those that a prompt asks for. What looks at a picture, a question answerer, a
detector, a map of depth, a likeness, is the caller's: these are functions of its numbers.

Two slips of upstream's code are not repeated: it reads its map of depth with the axes of the boxes swapped, and its
complex prompts' "on top of" has no position there, whereas here it is "on the top of".
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Int, UInt8

from sd3_jax.errors import UserError
from sd3_jax.evaluation import compbench_prompts as reading
from sd3_jax.evaluation import geneval
from sd3_jax.evaluation.compbench_files import CATEGORIES, PARTS
from sd3_jax.evaluation.compbench_prompts import Parsed
from sd3_jax.evaluation.geneval import Box, Detection, Mean

VERSION = 2  # of the rules: scores of another version are not comparable
OVERLAP = 0.1  # boxes that overlap more are not side by side
BEFORE = 0.5  # boxes that overlap less are only partly before one another
SAME = 0.9  # boxes that overlap, or contain each other, by more are one object
LEAST = 0.5  # a spatial score below this is none
REACH = 150  # pixels that are near, of a picture scaled to
SIDE, LONGEST = 479, 480  # this shorter side, and at most this longer one
QUESTIONS = 8  # noun phrases of a prompt, at most

_AXIS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}

T = TypeVar("T")
Image = UInt8[np.ndarray, "H W 3"]
Place = tuple[Box, float]  # an object's box, and how sure a detector is of it
Answer = Callable[[Image, Sequence[str]], list[float]]  # P(yes) of each question
Detect = Callable[[Image, Sequence[str]], Mapping[str, Sequence[Detection]]]  # of each noun, the surest first
Depth = Callable[[Image], Float[np.ndarray, "H W"]]  # greater is nearer
Similarity = Callable[[Image, str], float]


class Senses(NamedTuple):
    """What looks at pictures; a category needs some of them, :data:`NEEDS`."""

    answer: Answer | None = None
    detect: Detect | None = None
    depth: Depth | None = None
    similarity: Similarity | None = None


NEEDS = {
    **dict.fromkeys(("color", "shape", "texture"), ("answer",)),
    "spatial": ("detect",),
    "3d_spatial": ("detect", "depth"),
    "numeracy": ("detect",),
    "non_spatial": ("similarity",),
    "complex": ("answer", "detect", "similarity"),
}


def score(category: str, image: Image, prompt: Mapping[str, Any], senses: Senses, parse: reading.Parser) -> float:
    """The score of a picture in a category, by the metadata of its prompt (:func:`compbench_files.read_category`)."""
    text = prompt["prompt"]
    match category:
        case "color" | "shape" | "texture":
            return _attributes(image, parse.parse(text), senses)
        case "spatial":
            parsed = parse.parse(text)
            return _spatial(image, reading.objects(parsed), reading.relation(text), senses)
        case "3d_spatial":
            return _spatial_3d(image, parse.parse(text), senses)
        case "numeracy":
            return _numeracy(image, prompt, senses)
        case "non_spatial":
            return _seen(senses.similarity)(image, text)
        case "complex":
            return _complex(image, prompt, parse.parse(text), senses)
    raise UserError(f"{category!r} is no category of T2I-CompBench: {', '.join(CATEGORIES)}")


def check(category: str, prompts: Sequence[Mapping[str, Any]], parse: reading.Parser) -> None:
    """Read what a category reads of its prompts, before any picture is looked at. Raises UserError for the first that
    cannot be read."""
    for prompt in prompts if category not in ("non_spatial", "numeracy") else ():
        parsed = parse.parse(prompt["prompt"])
        if category in ("spatial", "3d_spatial"):
            reading.objects(parsed)
        if category == "complex" and "action" in prompt.get("parts", PARTS):
            reading.without_adjectives(parsed)


def summarize(
    scores: Mapping[str, tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]],
) -> dict[str, Mean]:
    """Of each category, whose pictures have scores and the indices of their prompts, the mean over pictures, with its
    error over prompts; and the unweighted mean of the categories, ``overall`` if they are all eight."""
    means = {name: geneval.clustered_mean(*scores[name]) for name in CATEGORIES if name in scores}
    label = "overall" if len(means) == len(CATEGORIES) else f"mean of {len(means)}"
    return {**means, label: geneval.unweighted(list(means.values()))}


def _attributes(image: Image, parsed: Parsed, senses: Senses) -> float:
    questions = [f"{phrase}?" for phrase in parsed.phrases[:QUESTIONS]]
    return binding(_seen(senses.answer)(image, questions) if questions else [])


def _spatial(image: Image, nouns: tuple[str, str] | None, relation: str | None, senses: Senses) -> float:
    if nouns is None:
        return 0.0
    target, reference = _surest(image, nouns, senses)
    height, width = image.shape[:2]
    scale = min(SIDE / min(height, width), LONGEST / max(height, width))
    return spatial(target, reference, relation, REACH / scale)


def _spatial_3d(image: Image, parsed: Parsed, senses: Senses) -> float:
    target, reference = _surest(image, reading.objects(parsed), senses)
    order = reading.relation(parsed.text, reading.DEPTHS)
    nearness = _seen(senses.depth)(image) if target and reference and order else np.zeros((1, 1))
    return spatial_3d(target, reference, order, nearness)


def _surest(image: Image, nouns: tuple[str, str], senses: Senses) -> tuple[Place | None, Place | None]:
    one, other = map(reading.detected_as, nouns)
    found = _seen(senses.detect)(image, list(dict.fromkeys((one, other))))
    first, second = (found.get(noun, ()) for noun in (one, other))
    return (
        (first[0].box, first[0].score) if first else None,
        (second[0].box, second[0].score) if second else None,
    )


def _numeracy(image: Image, prompt: Mapping[str, Any], senses: Senses) -> float:
    if "objects" not in prompt:
        raise UserError(f"{prompt['prompt']!r}: has no counts of objects, which are read beside the prompts")
    asked = {noun: reading.detected_as(noun) for noun in prompt["objects"]}
    found = _seen(senses.detect)(image, list(dict.fromkeys(asked.values())))
    boxes = {noun: [one.box for one in found.get(name, ())] for noun, name in asked.items()}
    return numeracy(prompt["objects"], boxes)


def _complex(image: Image, prompt: Mapping[str, Any], parsed: Parsed, senses: Senses) -> float:
    parts, values = prompt.get("parts", PARTS), [_attributes(image, parsed, senses)]
    if "spatial" in parts:
        values.append(_spatial(image, reading.objects_around(parsed), reading.relation(parsed.text), senses))
    if "action" in parts:
        values.append(_seen(senses.similarity)(image, reading.without_adjectives(parsed)))
    return float(np.mean(values))


def _seen(sense: T | None) -> T:
    assert sense is not None, "a category was asked for without what it needs"
    return sense


def binding(yes: Sequence[float]) -> float:
    """The product of P(yes) over the noun phrases of a prompt.

    >>> binding([0.5, 0.5])
    0.25
    """
    return math.prod(yes)


def spatial(target: Place | None, reference: Place | None, relation: str | None, reach: float = REACH) -> float:
    """``conf_1 / 4 + conf_2 / 4 + position / 2``, and 0 where that is below one half; boxes with their confidence."""
    score = _weighed(target, reference, lambda a, b: position(a, b, relation, reach))
    return score if score >= LEAST else 0.0


def position(a: Box, b: Box, relation: str | None, reach: float) -> float:
    """How much box ``a`` lies as the relation says from box ``b``, 0 to 1; no relation: 0.

    left of, right of, above, below: 1 where the boxes' centres differ most along the relation's axis, in its
    direction, and the boxes overlap less than 0.1 (intersection over union); where they overlap more, 0.1 / overlap.
    near: 1 where the centres differ less than ``reach`` on one axis, else reach over the greater difference.
    """
    offset = [(a[k] + a[k + 2] - b[k] - b[k + 2]) / 2 for k in (0, 1)]
    if relation == "near":
        near, far = sorted(map(abs, offset))
        return 1.0 if near < reach else reach / far
    if relation not in _AXIS:
        return 0.0
    axis, sign = _AXIS[relation]
    if abs(offset[axis]) <= abs(offset[1 - axis]) or offset[axis] * sign <= 0:
        return 0.0
    overlap = intersection_over_union(a, b)
    return 1.0 if overlap < OVERLAP else OVERLAP / overlap


def spatial_3d(
    target: Place | None, reference: Place | None, relation: str | None, nearness: Float[np.ndarray, "H W"]
) -> float:
    """``conf_1 / 4 + conf_2 / 4 + position / 2``, whatever it is, by the order in depth.

    The position is 1 where the boxes overlap by a half (intersection over union) and the mean nearness in the first
    box is the greater for "in front of", the smaller for "behind"; where they overlap less it is overlap / 0.5.
    """

    def order(a: Box, b: Box) -> float:
        ahead = _mean(nearness, a) - _mean(nearness, b)
        holds = ahead > 0 if relation == "in front of" else ahead < 0 if relation == "behind" else False
        return min(intersection_over_union(a, b) / BEFORE, 1.0) if holds else 0.0

    return _weighed(target, reference, order)


def _weighed(target: Place | None, reference: Place | None, position: Callable[[Box, Box], float]) -> float:
    sure = sum(0.25 * place[1] for place in (target, reference) if place)
    return sure + 0.5 * position(target[0], reference[0]) if target and reference else sure


def _mean(nearness: Float[np.ndarray, "H W"], box: Box) -> float:
    """Of the whole pixels within a box; nan, which is neither greater nor smaller, where there are none."""
    left, top, right, bottom = (max(int(x), 0) for x in box)
    inside = nearness[top:bottom, left:right]
    return float(inside.mean()) if inside.size else math.nan


def numeracy(requested: Mapping[str, int], found: Mapping[str, Sequence[Box]]) -> float:
    """The mean over the requested classes of (present + exactly as many) / 2; boxes of one object count once."""
    points = 0.0
    for name, count in requested.items():
        number = len(merged(found.get(name, ())))
        points += 0.5 * (number > 0) + 0.5 * (number == count)
    return points / len(requested)


def merged(boxes: Sequence[Box]) -> list[Box]:
    """Of boxes that share more than 0.9, by union or by containment, the first."""
    kept: list[Box] = []
    for box in boxes:
        if all(intersection_over_union(box, other) <= SAME and _containment(box, other) <= SAME for other in kept):
            kept.append(box)
    return kept


def intersection_over_union(a: Box, b: Box) -> float:
    """Shared area over the area of both.

    >>> intersection_over_union((0, 0, 2, 2), (1, 0, 3, 2))
    0.3333333333333333
    """
    shared = _shared(a, b)
    return shared / (_area(a) + _area(b) - shared) if shared else 0.0


def _containment(a: Box, b: Box) -> float:
    shared = _shared(a, b)
    return shared / min(_area(a), _area(b)) if shared else 0.0


def _shared(a: Box, b: Box) -> float:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
