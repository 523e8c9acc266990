"""T2I-CompBench's formulas against a second implementation, in fractions and by counting pixels, and by hand."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from sd3_jax.evaluation import compbench

RELATIONS = ("left of", "right of", "above", "below")
HALF = Fraction(1, 2)


# --- a second implementation ----------------------------------------------------------------------------------------


def pixels(box):
    """A box of whole numbers as the set of the pixels in it."""
    left, top, right, bottom = map(int, box)
    return set(itertools.product(range(left, right), range(top, bottom)))


def exact_overlap(a, b):
    one, other = pixels(a), pixels(b)
    return Fraction(len(one & other), len(one | other) or 1)


def exact_spatial(target, reference, relation):
    """In fractions. A direction is a quadrant between diagonals: right of is x + y > 0 and x - y > 0."""
    if not (target and reference):
        return Fraction(0)
    (a, sure), (b, other_sure) = target, reference
    x, y = (int(a[k] + a[k + 2] - b[k] - b[k + 2]) for k in (0, 1))
    quadrant = {(1, 1): "right of", (-1, -1): "left of", (1, -1): "below", (-1, 1): "above"}
    there = quadrant.get((int(np.sign(x + y)), int(np.sign(x - y)))) == relation
    overlap = exact_overlap(a, b)
    position = Fraction(0) if not there else min(Fraction(1), Fraction(1, 10) / overlap) if overlap else Fraction(1)
    score = Fraction(sure) / 4 + Fraction(other_sure) / 4 + position / 2
    return score if score >= HALF else Fraction(0)


def exact_number(boxes):
    """How many objects boxes are: each is compared with those that stand before it and are objects themselves."""
    areas = [pixels(box) for box in boxes]
    objects = []
    for i, area in enumerate(areas):
        shared = [(len(area & areas[j]), areas[j]) for j in objects]
        if not any(
            Fraction(n, len(area | other)) > Fraction(9, 10)
            or Fraction(n, len(area)) > Fraction(9, 10)
            or Fraction(n, len(other)) > Fraction(9, 10)
            for n, other in shared
        ):
            objects.append(i)
    return len(objects)


def random_box(rng, most=10):
    left, top = rng.integers(0, most, 2)
    width, height = rng.integers(1, most + 1, 2)
    return tuple(map(float, (left, top, left + width, top + height)))


def test_spatial_is_that_of_a_second_implementation() -> None:
    rng = np.random.default_rng(0)
    ties, kinds = 0, {"none": 0, "apart": 0, "overlapping": 0}
    for _ in range(5000):
        pair = [(random_box(rng), int(rng.integers(0, 9)) / 8) if rng.random() > 0.03 else None for _ in range(2)]
        relation = str(rng.choice(RELATIONS))
        expected = exact_spatial(*pair, relation)
        if expected == HALF and exact_overlap(pair[0][0], pair[1][0]) >= Fraction(1, 10):
            ties += 1  # the limit itself, where 0.1 / overlap is rounded
            continue
        assert compbench.spatial(*pair, relation) == pytest.approx(float(expected), abs=1e-12)
        overlapping = expected > 0 and exact_overlap(pair[0][0], pair[1][0]) >= Fraction(1, 10)
        kinds["none" if not expected else "overlapping" if overlapping else "apart"] += 1
    assert ties < 50
    assert min(kinds.values()) > 100


def test_overlap_is_the_share_of_pixels() -> None:
    rng = np.random.default_rng(1)
    pairs = [(random_box(rng), random_box(rng)) for _ in range(2000)]
    found = [compbench.intersection_over_union(*pair) for pair in pairs]
    assert found == [float(exact_overlap(*pair)) for pair in pairs]
    assert found == [compbench.intersection_over_union(b, a) for a, b in pairs]
    assert 0 in found


def test_numeracy_is_that_of_a_second_implementation() -> None:
    rng = np.random.default_rng(2)
    fewer, scores = 0, set()
    for _ in range(2000):
        requested = {name: int(rng.integers(1, 5)) for name in ("cup", "dog", "bench")[: rng.integers(1, 4)]}
        found = {}
        for name in requested:
            boxes = [random_box(rng) for _ in range(rng.integers(0, 5))]
            for box in list(boxes):  # and a box that nearly repeats it, or lies within it
                if rng.random() < 0.3:
                    nearly = [*box[:2], max(box[2] - float(rng.integers(0, 2)), box[0] + 1), box[3]]
                    boxes.insert(int(rng.integers(0, len(boxes) + 1)), tuple(nearly))
            if boxes or rng.random() < 0.5:
                found[name] = boxes
        expected = Fraction(0)
        for name, count in requested.items():
            number = exact_number(found.get(name, []))
            assert len(compbench.merged(found.get(name, ()))) == number
            fewer += number < len(found.get(name, []))
            expected += Fraction((number > 0) + (number == count), 2)
        expected /= len(requested)
        assert compbench.numeracy(requested, found) == pytest.approx(float(expected), abs=1e-12)
        scores.add(expected)
    assert fewer > 200
    assert {Fraction(0), Fraction(1, 4), Fraction(1, 2), Fraction(1, 6), Fraction(1)} <= scores


# --- attribute binding ----------------------------------------------------------------------------------------------


def test_binding_is_the_product() -> None:
    rng = np.random.default_rng(3)
    for number in range(6):
        yes = rng.random(number)
        assert compbench.binding(yes.tolist()) == pytest.approx(float(np.exp(np.log(yes).sum())), rel=1e-12)
    assert compbench.binding([0.9, 0.0, 0.8]) == 0
    assert compbench.binding([]) == 1  # a phrase that is missing counts one


# --- position -------------------------------------------------------------------------------------------------------

UNIT = (0.0, 0.0, 10.0, 10.0)


def moved(x, y):
    return (x, y, x + 10.0, y + 10.0)


@pytest.mark.parametrize(
    "x,y,relation",
    [(20, 0, "right of"), (-20, 0, "left of"), (0, -20, "above"), (0, 20, "below"), (20, 19, "right of")],
)
def test_the_dominant_axis_decides(x, y, relation) -> None:
    for asked in RELATIONS:
        score = compbench.spatial((moved(x, y), 1.0), (UNIT, 1.0), asked)
        # Both confidences alone give one half, which is not below one half.
        assert score == (1.0 if asked == relation else 0.5)
        wrong = compbench.spatial((moved(x, y), 0.9), (UNIT, 0.9), asked)
        assert wrong == (pytest.approx(0.95) if asked == relation else 0.0)


def test_a_diagonal_is_no_side() -> None:
    for x, y in itertools.product((-20, 20), repeat=2):
        for asked in RELATIONS:
            assert compbench.spatial((moved(x, y), 0.5), (UNIT, 0.5), asked) == 0
    assert all(compbench.spatial((UNIT, 0.5), (UNIT, 0.5), asked) == 0 for asked in RELATIONS)


def test_the_target_is_the_first() -> None:
    a, b = (moved(-20, 0), 0.8), (UNIT, 0.4)
    assert compbench.spatial(a, b, "left of") == pytest.approx(0.8)  # 0.2 + 0.1 + 0.5
    assert compbench.spatial(b, a, "left of") == 0
    assert compbench.spatial(b, a, "right of") == pytest.approx(0.8)


@pytest.mark.parametrize(
    "x,overlap,position",
    [
        (10, Fraction(0), Fraction(1)),  # they touch
        (9, Fraction(1, 19), Fraction(1)),  # below a tenth
        (8, Fraction(1, 9), Fraction(9, 10)),
        (5, Fraction(1, 3), Fraction(3, 10)),
        (2, Fraction(2, 3), Fraction(3, 20)),
    ],
)
def test_boxes_that_overlap_are_less_beside_each_other(x, overlap, position) -> None:
    assert exact_overlap(moved(x, 0), UNIT) == overlap
    score = compbench.spatial((moved(x, 0), 1.0), (UNIT, 1.0), "right of")
    assert score == pytest.approx(float(HALF + position / 2), abs=1e-12)


def test_an_overlap_of_exactly_a_tenth_counts_in_full() -> None:
    a, b = (0.0, 0.0, 11.0, 1.0), (9.0, 0.0, 20.0, 1.0)
    assert exact_overlap(a, b) == Fraction(1, 10)
    assert compbench.spatial((a, 1.0), (b, 1.0), "left of") == pytest.approx(1.0, abs=1e-12)


def test_a_score_below_one_half_is_none() -> None:
    beside = moved(20, 0)
    assert compbench.spatial((beside, 0.0), (UNIT, 0.0), "right of") == 0.5  # of position alone: not below
    assert compbench.spatial((beside, 1.0), (UNIT, 1.0), "left of") == 0.5  # of confidence alone
    assert compbench.spatial((beside, 1.0), (UNIT, 0.99), "left of") == 0.0
    # Overlap 1/3: position 0.3, so 0.15 + (c1 + c2) / 4 reaches one half at c1 + c2 = 1.4.
    assert compbench.spatial((moved(5, 0), 0.7), (UNIT, 0.71), "right of") == pytest.approx(0.5025)
    assert compbench.spatial((moved(5, 0), 0.7), (UNIT, 0.69), "right of") == 0.0


def test_what_is_not_there_is_nowhere() -> None:
    one = (UNIT, 1.0)
    for relation in RELATIONS:
        assert compbench.spatial(None, one, relation) == 0
        assert compbench.spatial(one, None, relation) == 0
        assert compbench.spatial(None, None, relation) == 0


# --- numeracy -------------------------------------------------------------------------------------------------------

A, B, C = moved(0, 0), moved(20, 0), moved(0, 20)


@pytest.mark.parametrize(
    "requested,found,expected",
    [
        ({"cup": 2}, {"cup": [A, B]}, 1),
        ({"cup": 2}, {"cup": [A]}, 1 / 2),  # there, but not as many
        ({"cup": 2}, {"cup": [A, B, C]}, 1 / 2),
        ({"cup": 2}, {"cup": []}, 0),
        ({"cup": 2}, {"dog": [A, B]}, 0),
        ({"cup": 1, "dog": 2}, {"cup": [A], "dog": [B, C]}, 1),
        ({"cup": 1, "dog": 2}, {"cup": [A], "dog": [B]}, 3 / 4),
        ({"cup": 1, "dog": 2}, {"cup": [A]}, 1 / 2),
        ({"cup": 1, "dog": 2}, {"cup": [A, B]}, 1 / 4),
        ({"cup": 1, "dog": 1, "bench": 1}, {"bench": [A]}, 1 / 3),
        ({"cup": 1}, {"cup": [A], "dog": [A, B]}, 1),  # others were not asked for
        ({"cup": 1, "dog": 1}, {"cup": [A], "dog": [A]}, 1),  # one place, two classes
    ],
)
def test_numeracy_by_hand(requested, found, expected) -> None:
    assert compbench.numeracy(requested, found) == pytest.approx(expected)


@pytest.mark.parametrize(
    "boxes,number",
    [
        ([A, A, A], 1),
        ([A, (0, 0, 10, 9.5)], 1),  # union: 0.95
        ([A, (0, 0, 10, 9)], 1),  # union 0.9, not more, but contained
        ([A, (4, 4, 6, 6)], 1),  # contained; union 0.04
        ([(4, 4, 6, 6), A], 1),  # and the other way round
        ([A, (0, 0.5, 10, 10.5)], 1),  # union 0.905, contained 0.95
        ([A, (0, 1, 10, 11)], 2),  # contained: 0.9, not more
        ([A, (8, 8, 12, 12)], 2),
        ([A, B, C, A], 3),
        ([], 0),
    ],
)
def test_boxes_of_one_object_count_once(boxes, number) -> None:
    assert len(compbench.merged(boxes)) == number
    assert compbench.merged(boxes)[:1] == boxes[:1]  # the first of them stays
    assert compbench.numeracy({"cup": number or 1}, {"cup": boxes}) == (1 if number else 0)
    if len(boxes) != number:
        assert compbench.numeracy({"cup": len(boxes)}, {"cup": boxes}) == 0.5


def test_what_was_merged_away_merges_no_more() -> None:
    # Each box shares more than 0.9 with the next, the first and the last do not: the second goes, the third stays.
    chain = [(0.0, 0.0, 100.0, 10.0), (7.0, 0.0, 107.0, 10.0), (14.0, 0.0, 114.0, 10.0)]
    assert exact_number(chain) == 2
    assert compbench.merged(chain) == [chain[0], chain[2]]
    assert math.isclose(compbench.intersection_over_union(chain[0], chain[2]), 86 / 114)
