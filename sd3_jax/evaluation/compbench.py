"""T2I-CompBench's soft formulas (Huang et al. 2023) for the categories that detections can answer.

Attribute binding asks of each noun phrase whether the picture shows it; 2-D spatial weighs two confidences and a
position; numeracy gives half a point for presence and half for the exact count. What answers, a question answerer
or a detector, is the caller's: these are functions of its numbers.
"""

import math
from collections.abc import Mapping, Sequence

from sd3_jax.evaluation.geneval import Box

OVERLAP = 0.1  # boxes that overlap more are not side by side
SAME = 0.9  # boxes that overlap, or contain each other, by more are one object
LEAST = 0.5  # a spatial score below this is none

_AXIS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


def binding(yes: Sequence[float]) -> float:
    """The product of P(yes) over the noun phrases of a prompt.

    >>> binding([0.5, 0.5])
    0.25
    """
    return math.prod(yes)


def spatial(target: tuple[Box, float] | None, reference: tuple[Box, float] | None, relation: str) -> float:
    """``conf_1 / 4 + conf_2 / 4 + position / 2``, and 0 where that is below one half; boxes with their confidence.

    The position is 1 where the boxes' centres differ most along the relation's axis, in its direction, and the
    boxes overlap less than 0.1 (intersection over union); where they overlap more it is 0.1 / overlap.
    """
    if target is None or reference is None:
        return 0.0
    (a, first), (b, second) = target, reference
    offset = [(a[k] + a[k + 2] - b[k] - b[k + 2]) / 2 for k in (0, 1)]
    axis, sign = _AXIS[relation]
    position = 0.0
    if abs(offset[axis]) > abs(offset[1 - axis]) and offset[axis] * sign > 0:
        overlap = intersection_over_union(a, b)
        position = 1.0 if overlap < OVERLAP else OVERLAP / overlap
    score = 0.25 * first + 0.25 * second + 0.5 * position
    return score if score >= LEAST else 0.0


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
