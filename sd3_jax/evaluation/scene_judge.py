"""The exact detector of scenes: which shapes of which colours lie where, from the pixels alone.

A picture is explained as it was made, ``pixel = background + coverage * (colour - background)``: the background is
the median pixel; each region that differs from it is fitted by every shape, and the colour is what the best shape
leaves by least squares. On a grid the regions are its cells, elsewhere the connected parts, to which each shape's
place and size are fitted too. A sign (:mod:`sd3_jax.evaluation.sign_judge`) is looked for first, and what is on it is
no further object. An object whose shape or colour cannot be told stays in the list without it. The rules that are
applied to what is found are GenEval's (:mod:`sd3_jax.evaluation.geneval`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from sd3_jax.config import DataConfig
from sd3_jax.data.composition import COLOR_RGB, COLORS, SHAPES
from sd3_jax.data.signs import TAG
from sd3_jax.evaluation import geneval, scene_fit, sign_judge
from sd3_jax.evaluation.geneval import Box, Detection
from sd3_jax.evaluation.scene_fit import NOISE_FACTOR, SEEN, Fits, lab

VERSION = 1  # of what is found: scores of another version are not comparable, and not taken from a cache

BACKGROUND_SHARE = 0.3  # least share of the picture that must be background
COLOR_NEAR = 25.0  # CIELAB distance beyond which the nearest named colour is not meant
COLOR_MARGIN = 3.0  # and by which the next one must be farther
COLOR_SPREAD = 8.0  # how fast belief in a colour falls with its distance
EXPLAINED = 0.85  # share of a region's squared difference from the background that its shape must explain
RIVAL = 1.3  # by which factor the next shape must leave more of it unexplained
FREEDOM = 16.0  # belief in a shape falls as its unexplained share to minus half this power


class Found(NamedTuple):
    """One object: its box in pixels, what it is (None: it cannot be told), and how sure that is."""

    box: Box
    shape: str | None
    color: str | None
    score: float  # share of what differs from the background that the shape in one colour explains
    shapes: Float[np.ndarray, " shapes"]  # belief in each shape
    colors: Float[np.ndarray, " colors"]  # belief in each colour; what lacks to 1 is none of them
    text: str | None = None  # what a sign says; its shape is None, and its colour the plate's


def find(images: UInt8[np.ndarray, "b H W 3"], data: DataConfig) -> list[list[Found]]:
    """The objects of each picture, the best explained first."""
    if not len(images):
        return []
    pixels = np.asarray(images, np.float32) / 255
    background = np.median(pixels.reshape(len(pixels), -1, 3), axis=1)
    signs = [sign_judge.read(*one, data) if data.words else [] for one in zip(pixels, background, strict=True)]
    fits = (scene_fit.grid_fits if data.layout == "grid" else scene_fit.free_fits)(pixels, background, data)
    found: list[list[Found]] = [[] for _ in pixels]
    for number, (image, one) in enumerate(zip(fits.image, _named(fits, background[fits.image], data), strict=True)):
        if one is not None and not any(sign_judge.is_on(fits.outer[number], sign) for sign in signs[image]):
            found[image].append(one)
    for image, read in enumerate(signs):
        found[image] += [_sign(one, data) for one in read]
    for own, picture, colour in zip(found, pixels, background, strict=True):
        if not _has_background(scene_fit.difference(picture, colour)):
            whole = (0.0, 0.0, float(picture.shape[1]), float(picture.shape[0]))
            own.append(Found(whole, None, None, 0.0, np.full(data.shapes, 1 / data.shapes), np.zeros(data.colors)))
    return [sorted(own, key=lambda one: -one.score) for own in found]


def _has_background(distance: Float[np.ndarray, "H W"]) -> bool:
    """Whether enough of a picture is one colour: random pixels are an object that nobody asked for."""
    return bool(np.mean(distance < max(SEEN, NOISE_FACTOR * float(np.median(distance)))) >= BACKGROUND_SHARE)


def objects(found: Sequence[Found]) -> dict[str, list[Detection]]:
    """What a detector hands to GenEval's rules: the objects whose shape is told, and signs."""
    named: dict[str, list[Detection]] = {}
    for one in found:
        name = one.shape if one.text is None else TAG
        if name is not None:
            named.setdefault(name, []).append(Detection(one.box, one.score, one.color))
    return named


def judge(prompt: Mapping[str, Any], found: Sequence[Found]) -> tuple[geneval.Verdict, geneval.Verdict]:
    """GenEval's verdict (lenient), and the strict one. A sign must say what it is asked to in both.

    Strict also fails a picture with an object that cannot be told or that nobody asked for: without that a collage
    of everything would be right whatever was asked.
    """
    lenient = geneval.judge(prompt, objects(found))
    texts = [one.text for one in found if one.text is not None]
    misspelt = [clause["text"] for clause in prompt["include"] if "text" in clause and clause["text"] not in texts]
    if texts and misspelt:
        lenient = geneval.Verdict(False, f"expected a sign that says {misspelt[0]}, read {', '.join(texts)}")
    reasons = [lenient.reason] if lenient.reason else []
    unknown = sum((one.shape is None and one.text is None) or one.color is None for one in found)
    wanted = sum(clause["count"] for clause in prompt["include"])
    if unknown:
        reasons.append(f"{unknown} of {len(found)} objects cannot be told")
    if len(found) > wanted:
        reasons.append(f"expected {wanted} objects in all, found {len(found)}")
    return lenient, geneval.Verdict(not reasons, "\n".join(reasons))


def _sign(sign: sign_judge.Sign, data: DataConfig) -> Found:
    far = np.linalg.norm(lab(np.clip(sign.rgb, 0, 1)) - lab(COLOR_RGB[: data.colors] / 255), axis=-1)
    box, no_shape = tuple(map(float, sign.box)), np.full(data.shapes, 1 / data.shapes)
    return Found(box, None, _color(far), sign.score, no_shape, _beliefs(far[None])[0], sign.text)  # type: ignore[arg-type]


def _beliefs(distances: Float[np.ndarray, "r colors"]) -> Float[np.ndarray, "r colors"]:
    """In each colour, by its distance."""
    likely, other = np.exp(-np.square(distances / COLOR_SPREAD) / 2), np.exp(-((COLOR_NEAR / COLOR_SPREAD) ** 2) / 2)
    return likely / (likely.sum(axis=1, keepdims=True) + other)


def _named(fits: Fits, background: Float[np.ndarray, "r 3"], data: DataConfig) -> list[Found | None]:
    """Each part as an object, or None where nothing is seen."""
    left = np.clip(fits.unexplained, 1e-4, None)
    best = left.argmin(axis=1)
    row = np.arange(len(best))
    seen = lab(np.clip(fits.rgb[row, best], 0, 1))
    is_seen = (np.linalg.norm(seen - lab(background), axis=1) >= SEEN) | (data.layout == "free")
    far = np.linalg.norm(seen[:, None] - lab(COLOR_RGB[: data.colors] / 255), axis=-1)
    colors = _beliefs(far)
    rival = np.sort(left, axis=1)[:, 1] / left[row, best]
    told = (left[row, best] <= 1 - EXPLAINED) & (rival >= RIVAL)
    odds = (left / left[row, best, None]) ** (-FREEDOM / 2)
    shapes = odds / odds.sum(axis=1, keepdims=True)
    return [
        Found(
            tuple((fits.boxes[i, best[i]] if told[i] else fits.outer[i]).tolist()),
            SHAPES[best[i]] if told[i] else None,
            _color(far[i]),
            max(0.0, float(1 - fits.unexplained[i, best[i]])),
            shapes[i],
            colors[i],
        )
        if is_seen[i]
        else None
        for i in row
    ]


def _color(distances: Float[np.ndarray, " colors"]) -> str | None:
    first, second = np.argsort(distances)[:2]
    near = distances[first] < COLOR_NEAR and distances[second] - distances[first] > COLOR_MARGIN
    return COLORS[first] if near else None
