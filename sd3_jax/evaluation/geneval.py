"""GenEval's rules (Ghosh et al. 2023): clauses of a prompt against detected objects, and the summary over prompts.

A prompt is GenEval's own metadata: ``{"tag", "include": [clause], ["exclude": [clause]], "prompt"}``, a clause being
``{"class", "count", ["color"], ["position": [relation, index of an earlier clause]]}``. A detector is anything that
returns :data:`Objects`; the rules never see pixels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
NEAR = 0.1  # of the summed sizes: an offset below this says nothing of position
DOMINANT = 0.5  # of the distance: a component above this is a relation

Box = tuple[float, float, float, float]  # left, top, right, bottom; y points down


class Detection(NamedTuple):
    """One object that a detector found."""

    box: Box
    score: float  # confidence, 0 to 1
    color: str | None = None  # None: no colour can be told


Objects = Mapping[str, Sequence[Detection]]  # class -> its objects, the most confident first


class Verdict(NamedTuple):
    """Whether a picture shows what its prompt says, and each reason why not."""

    correct: bool
    reason: str


def judge(prompt: Mapping[str, Any], objects: Objects) -> Verdict:
    """All ``include`` clauses hold and no ``exclude`` clause does (GenEval's evaluator, whose rules these are).

    Of each class only the ``count`` most confident objects are looked at, so further ones are not held against a
    picture but by ``exclude``. A position holds between every pair of these objects and those of the clause that it
    refers to; where that clause failed, it fails too.
    """
    reasons: list[str] = []
    matched: list[Sequence[Detection] | None] = []
    for clause in prompt.get("include", ()):
        found = objects.get(clause["class"], ())[: clause["count"]]
        why = _missing(clause, found) or _misplaced(clause, found, matched)
        matched.append(None if why else found)
        reasons += [why] if why else []
    for clause in prompt.get("exclude", ()):
        number = len(objects.get(clause["class"], ()))
        if number >= clause["count"]:
            reasons.append(f"expected {clause['class']}<{clause['count']}, found {number}")
    return Verdict(not reasons, "\n".join(reasons))


def relations(a: Box, b: Box) -> set[str]:
    """Where box ``a`` lies as seen from box ``b``: none, one or two of left of, right of, above, below.

    With the offset o of their centres, ``r = sign(o) max(|o| - 0.1 (size_a + size_b), 0)`` for each axis; a relation
    holds where its component of ``r / |o|`` passes one half.
    """
    offset = [(a[k] + a[k + 2] - b[k] - b[k + 2]) / 2 for k in (0, 1)]
    sizes = [a[k + 2] - a[k] + b[k + 2] - b[k] for k in (0, 1)]
    rest = [math.copysign(max(abs(o) - NEAR * size, 0), o) for o, size in zip(offset, sizes, strict=True)]
    if max(map(abs, rest)) < 1e-3:
        return set()
    dx, dy = (r / math.hypot(*offset) for r in rest)
    held = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}
    return {name for name, component in held.items() if component > DOMINANT}


class Mean(NamedTuple):
    """A mean over images and its standard error, images of one prompt counting as one cluster."""

    value: float
    se: float  # nan with fewer than two prompts
    images: int
    prompts: int


def clustered_mean(values: Float[np.ndarray, " n"], prompt: Int[np.ndarray, " n"]) -> Mean:
    """Mean over images; its error from the prompts' sums, ``se^2 = P / (P - 1) sum_p (sum_i (x_pi - mean))^2 / n^2``.

    With one image a prompt that is the usual standard error.
    """
    mean = float(np.mean(values))
    _, cluster = np.unique(prompt, return_inverse=True)
    sums = np.bincount(cluster, values - mean)
    clusters = len(sums)
    error = math.sqrt(clusters / (clusters - 1) * float(sums @ sums)) / len(values) if clusters > 1 else math.nan
    return Mean(mean, error, len(values), clusters)


def unweighted(means: Sequence[Mean]) -> Mean:
    """GenEval's overall score: the mean of the tasks' means, whatever the number of their images."""
    value = float(np.mean([mean.value for mean in means]))
    error = math.sqrt(sum(mean.se**2 for mean in means)) / len(means)
    return Mean(value, error, sum(mean.images for mean in means), sum(mean.prompts for mean in means))


class Summary(NamedTuple):
    """GenEval's ``summary_scores``: each task's mean, their mean, and two shares over everything."""

    tasks: dict[str, Mean]
    overall: Mean
    images_correct: float
    prompts_correct: float  # with any correct image


def summarize(correct: Bool[np.ndarray, " n"], tag: Sequence[str], prompt: Int[np.ndarray, " n"]) -> Summary:
    """The scores of a set of judged images, each with its task and the index of its prompt."""
    values, tags = np.asarray(correct, float), np.asarray(tag)
    present = [name for name in dict.fromkeys((*TAGS, *tags.tolist())) if (tags == name).any()]
    tasks = {name: clustered_mean(values[tags == name], prompt[tags == name]) for name in present}
    any_correct = [bool(values[prompt == one].any()) for one in np.unique(prompt)]
    return Summary(tasks, unweighted(list(tasks.values())), float(values.mean()), float(np.mean(any_correct)))


def _missing(clause: Mapping[str, Any], found: Sequence[Detection]) -> str:
    """Why there are not enough objects of the class, or of its colour; empty if there are."""
    name, count = clause["class"], clause["count"]
    if len(found) < count:
        return f"expected {name}>={count}, found {len(found)}"
    colors = [detection.color for detection in found]
    right = colors.count(clause.get("color"))
    if "color" in clause and right < count:
        seen = ", ".join(f"{colors.count(color)} {color or 'of no colour'}" for color in dict.fromkeys(colors))
        return f"expected {clause['color']} {name}>={count}, found {right} {clause['color']}; and {seen}"
    return ""


def _misplaced(
    clause: Mapping[str, Any], found: Sequence[Detection], matched: Sequence[Sequence[Detection] | None]
) -> str:
    """Why the objects are not where the clause wants them; empty if they are."""
    if "position" not in clause:
        return ""
    relation, index = clause["position"]
    others = matched[index]
    if others is None:
        return f"no target for {clause['class']} to be {relation}"
    for one in found:
        for other in others:
            held = relations(one.box, other.box)
            if relation not in held:
                seen = " and ".join(sorted(held)) or "no side of"
                return f"expected {clause['class']} {relation} target, found {seen} target"
    return ""
