"""GenEval's rules against a second implementation, in whole numbers and for all pictures at once, and by hand."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from sd3_jax.evaluation import geneval
from sd3_jax.evaluation.geneval import Detection, Mean

CLASSES = ("bench", "dog", "cup")
COLORS = ("red", "green", "blue")
RELATIONS = ("left of", "right of", "above", "below")
MOST = 6  # objects of a class in a random picture


# --- a second implementation ----------------------------------------------------------------------------------------
#
# Pictures are arrays, [picture, class, object]; boxes have whole numbers, so that every comparison is exact. With
# d = left_a + right_a - left_b - right_b, twice the offset o, and s the sum of both widths,
#   |o| - 0.1 s = (5 |d| - s) / 10 = t / 10,   and   t / 10 / |o| > 1 / 2   is   4 t^2 > 25 (dx^2 + dy^2).


def both_sides(a, b):
    """Of whole-numbered boxes [..., 4]: d, and both sides of the comparison, [..., 2]."""
    doubled = a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]
    sizes = a[..., 2:] - a[..., :2] + b[..., 2:] - b[..., :2]
    past = np.maximum(5 * np.abs(doubled) - sizes, 0)
    return doubled, 4 * past**2, 25 * np.square(doubled).sum(-1, keepdims=True)


def exact_relations(a, b):
    """Which of RELATIONS hold between whole-numbered boxes [..., 4]: [..., 4]."""
    doubled, component, least = both_sides(a, b)
    far = component > least
    return np.stack([far & (doubled < 0), far & (doubled > 0)], axis=-1).reshape(*far.shape[:-1], 4)


def exact_verdicts(prompt, number, box, color):
    """Whether each picture is right; number [n, class], box [n, class, object, 4], color [n, class, object]."""
    holds = []
    for clause in prompt["include"]:
        kind, count = CLASSES.index(clause["class"]), clause["count"]
        good = number[:, kind] >= count
        if "color" in clause:  # as many as are looked at must have it: all of them
            good = good & (color[:, kind, :count] == COLORS.index(clause["color"])).all(1)
        if "position" in clause:
            relation, index = clause["position"]
            target = prompt["include"][index]
            others = box[:, CLASSES.index(target["class"]), : target["count"]]
            every = exact_relations(box[:, kind, :count, None], others[:, None])
            good = good & holds[index] & every[..., RELATIONS.index(relation)].all((1, 2))
        holds.append(good)
    spoiled = [number[:, CLASSES.index(no["class"])] >= no["count"] for no in prompt.get("exclude", ())]
    return np.logical_and.reduce(holds) & ~np.logical_or.reduce([np.zeros(len(number), bool), *spoiled])


def random_pictures(n, seed):
    """0 to 6 objects of three classes; few places and sizes, so that centres coincide and components tie."""
    rng = np.random.default_rng(seed)
    number = rng.choice(MOST + 1, (n, len(CLASSES)), p=[0.2, 0.35, 0.15, 0.1, 0.1, 0.05, 0.05])
    corner = rng.integers(-6, 7, (n, len(CLASSES), MOST, 2))
    corner[rng.random(n) < 0.2] //= 4
    size = rng.integers(0, 9, (n, len(CLASSES), MOST, 2)) * rng.choice([1, 5], (n, 1, 1, 1))
    box = np.concatenate([corner, corner + size], axis=-1)
    same = rng.random((n, len(CLASSES), MOST)) < 0.1  # centres that coincide with those of the class before
    box = np.where(same[..., None], np.roll(box, 1, axis=1), box)
    color = rng.choice([-1, 0, 1, 2], (n, len(CLASSES), MOST), p=[0.1, 0.5, 0.2, 0.2])  # -1: none
    return number, box, color


def as_objects(number, box, color):
    """One picture as a detector hands it over; classes without objects are missing, or empty in every second one."""
    found = {}
    for kind, name in enumerate(CLASSES):
        rows = [
            Detection(
                tuple(map(float, box[kind, i])),
                1 - i / 10,
                None if color[kind, i] < 0 else COLORS[color[kind, i]],
            )
            for i in range(number[kind])
        ]
        if rows or number.sum() % 2:
            found[name] = rows
    return found


def a_prompt(tag, rng):
    one, two = ({"class": str(name), "count": 1} for name in rng.permutation(CLASSES)[:2])
    first, second = (str(color) for color in rng.permutation(COLORS)[:2])
    count = int(rng.integers(2, 5))
    return {
        "single_object": {"include": [one]},
        "two_object": {"include": [one, two]},
        "counting": {
            "include": [one | {"count": count}],
            "exclude": [{"class": one["class"], "count": count + 1}],
        },
        "colors": {"include": [one | {"color": first}]},
        "position": {"include": [two, one | {"position": [str(rng.choice(RELATIONS)), 0]}]},
        "color_attr": {"include": [one | {"color": first}, two | {"color": second}]},
    }[tag]


def any_prompt(rng):
    """Clauses as GenEval's rules allow and its six tasks never have: chains, counts beside positions, colours."""
    clauses = []
    for index in range(int(rng.integers(1, 4))):
        clause = {"class": str(rng.choice(CLASSES)), "count": int(rng.choice([0, 1, 1, 2, 3]))}
        if rng.random() < 0.3:
            clause["color"] = str(rng.choice(COLORS))
        if index and rng.random() < 0.7:
            clause["position"] = [str(rng.choice(RELATIONS)), int(rng.integers(index))]
        clauses.append(clause)
    numbers = rng.integers(0, 7, int(rng.integers(3)))
    exclude = [{"class": str(rng.choice(CLASSES)), "count": int(number)} for number in numbers]
    return {"include": clauses} | ({"exclude": exclude} if exclude else {})


def test_verdicts_are_those_of_a_second_implementation() -> None:
    n, rng = 10_000, np.random.default_rng(1)
    number, box, color = random_pictures(n, seed=0)
    found = [as_objects(number[i], box[i], color[i]) for i in range(n)]
    for kind in (*geneval.TAGS, "any"):
        prompts = [any_prompt(rng) if kind == "any" else a_prompt(kind, rng) for _ in range(200)]
        chosen, right = np.arange(n) % len(prompts), np.zeros(n, bool)
        for which, prompt in enumerate(prompts):
            mine = chosen == which
            right[mine] = exact_verdicts(prompt, number[mine], box[mine], color[mine])
        verdicts = [geneval.judge(prompts[which], objects) for which, objects in zip(chosen, found, strict=True)]
        np.testing.assert_array_equal([verdict.correct for verdict in verdicts], right, err_msg=kind)
        np.testing.assert_array_equal([verdict.reason == "" for verdict in verdicts], right, err_msg=kind)
        assert 0.03 < right.mean() < 0.9, kind  # neither answer is rare


def test_relations_are_those_of_whole_numbers_also_where_a_component_is_exactly_one_half() -> None:
    _, box, _ = random_pictures(10_000, seed=2)
    a, b = box[:, 0].reshape(-1, 4), box[:, 1].reshape(-1, 4)
    expected = exact_relations(a, b)
    for one, other, held in zip(a.tolist(), b.tolist(), expected, strict=True):
        assert geneval.relations(one, other) == {RELATIONS[k] for k in np.nonzero(held)[0]}
    doubled, component, least = both_sides(a, b)
    assert ((component == least) & (doubled != 0)).sum() > 50
    assert (doubled == 0).all(1).sum() > 1000  # identical centres
    assert set(expected.sum(1)) == {0, 1, 2}


# --- by hand --------------------------------------------------------------------------------------------------------


def at(x, y, color="red", side=2.0, score=0.9):
    return Detection((x - side / 2, y - side / 2, x + side / 2, y + side / 2), score, color)


BENCH, DOG = {"class": "bench", "count": 1}, {"class": "dog", "count": 1}
RED = {"class": "bench", "count": 1, "color": "red"}
TWO_RED = {"class": "bench", "count": 2, "color": "red"}
BELOW = [DOG, BENCH | {"position": ["below", 0]}]  # a bench below a dog
LEFT = [DOG, BENCH | {"position": ["left of", 0]}]
CHAIN = [DOG, BENCH | {"position": ["left of", 0]}, {"class": "cup", "count": 1, "position": ["left of", 1]}]

# What is included, what is there, and the beginning of each reason why it is wrong.
INCLUDED = {
    "there": ([BENCH], {"bench": [at(0, 0)]}, []),
    "too few: no such class": ([BENCH], {}, ["expected bench>=1, found 0"]),
    "too few: an empty class": ([BENCH], {"bench": []}, ["expected bench>=1, found 0"]),
    "too few of several": ([BENCH | {"count": 3}], {"bench": [at(0, 0)] * 2}, ["expected bench>=3, found 2"]),
    "too few of both": ([BENCH, DOG], {}, ["expected bench>=1, found 0", "expected dog>=1, found 0"]),
    "another class": ([BENCH], {"dog": [at(0, 0)]}, ["expected bench>=1, found 0"]),
    "further objects do no harm": ([BENCH], {"bench": [at(0, 0)] * 5, "dog": [at(4, 0)]}, []),
    "the colour": ([RED], {"bench": [at(0, 0, "red")]}, []),
    "another colour": (
        [RED],
        {"bench": [at(0, 0, "blue")]},
        ["expected red bench>=1, found 0 red; and 1 blue"],
    ),
    "no colour": ([RED], {"bench": [at(0, 0, None)]}, ["expected red bench>=1, found 0 red; and 1 of no colour"]),
    "the surest has another colour": (
        [RED],
        {"bench": [at(0, 0, "blue", score=0.9), at(4, 0, "red", score=0.8)]},
        ["expected red bench>=1, found 0 red; and 1 blue"],
    ),
    "the surest has the colour": (
        [RED],
        {"bench": [at(0, 0, "red", score=0.9), at(4, 0, "blue", score=0.8)]},
        [],
    ),
    "the third has the colour that the second lacks": (
        [TWO_RED],
        {"bench": [at(0, 0, "red"), at(3, 0, "blue"), at(6, 0, "red")]},
        ["expected red bench>=2, found 1 red; and 1 red, 1 blue"],
    ),
    "the surest two have the colour": (
        [TWO_RED],
        {"bench": [at(0, 0, "red"), at(3, 0, "red"), at(6, 0, "blue")]},
        [],
    ),
    "one object serves two clauses": ([BENCH, RED], {"bench": [at(0, 0, "red")]}, []),
    "below": (BELOW, {"dog": [at(0, 0)], "bench": [at(0, 5)]}, []),
    "above instead": (
        BELOW,
        {"dog": [at(0, 0)], "bench": [at(0, -5)]},
        ["expected bench below target, found above target"],
    ),
    "below and left of at once, as asked": (BELOW, {"dog": [at(0, 0)], "bench": [at(-5, 5)]}, []),
    "left of and below at once, as asked": (LEFT, {"dog": [at(0, 0)], "bench": [at(-5, 5)]}, []),
    "below and right of at once, neither asked": (
        LEFT,
        {"dog": [at(0, 0)], "bench": [at(5, 5)]},
        ["expected bench left of target, found below and right of target"],
    ),
    "no side": (BELOW, {"dog": [at(0, 0)], "bench": [at(0, 0.3)]}, ["expected bench below target, found no side of"]),
    "no target": (
        BELOW,
        {"bench": [at(0, 5)]},
        ["expected dog>=1, found 0", "no target for bench to be below"],
    ),
    "neither the object": (BELOW, {"dog": [at(0, 0)]}, ["expected bench>=1, found 0"]),
    "a target of another colour is none": (
        [DOG | {"color": "blue"}, BELOW[1]],
        {"dog": [at(0, 0, "red")], "bench": [at(0, 5)]},
        ["expected blue dog>=1, found 0 blue; and 1 red", "no target for bench to be below"],
    ),
    "an object of another colour is not looked at further": (
        [DOG, BELOW[1] | {"color": "blue"}],
        {"dog": [at(0, 0)], "bench": [at(0, -5, "red")]},
        ["expected blue bench>=1, found 0 blue; and 1 red"],
    ),
    "only the surest is looked at: right": (BELOW, {"dog": [at(0, 0)], "bench": [at(0, 5), at(0, -5)]}, []),
    "only the surest is looked at: wrong": (
        BELOW,
        {"dog": [at(0, 0)], "bench": [at(0, -5), at(0, 5)]},
        ["expected bench below target, found above target"],
    ),
    "only the surest target is looked at: wrong": (
        BELOW,
        {"dog": [at(0, 9), at(0, 0)], "bench": [at(0, 5)]},
        ["expected bench below target, found above target"],
    ),
    "every pair: one of two objects is wrong": (
        [DOG, BELOW[1] | {"count": 2}],
        {"dog": [at(0, 0)], "bench": [at(0, 5), at(0, -5)]},
        ["expected bench below target, found above target"],
    ),
    "every pair: one of two targets is wrong": (
        [DOG | {"count": 2}, BELOW[1]],
        {"dog": [at(0, 0), at(0, 9)], "bench": [at(0, 5)]},
        ["expected bench below target, found above target"],
    ),
    "every pair": (
        [DOG | {"count": 2}, BELOW[1] | {"count": 2}],
        {"dog": [at(0, 0), at(1, 0)], "bench": [at(0, 5), at(1, 6)]},
        [],
    ),
    "a chain": (CHAIN, {"dog": [at(9, 0)], "bench": [at(5, 0)], "cup": [at(0, 0)]}, []),
    "a chain breaks where a link is misplaced": (
        CHAIN,
        {"dog": [at(0, 0)], "bench": [at(5, 0)], "cup": [at(1, 0)]},
        ["expected bench left of target, found right of target", "no target for cup to be left of"],
    ),
    "an object is on no side of itself": (
        [BENCH, BENCH | {"position": ["left of", 0]}],
        {"bench": [at(0, 0)]},
        ["expected bench left of target, found no side of"],
    ),
    "of nothing, everything holds": (
        [DOG | {"count": 0}, BELOW[1], {"class": "cup", "count": 0, "color": "red"}],
        {"bench": [at(0, 5)]},
        [],
    ),
}


@pytest.mark.parametrize("name", INCLUDED)
def test_each_branch_of_an_included_clause(name) -> None:
    include, objects, reasons = INCLUDED[name]
    verdict = geneval.judge({"tag": "any", "include": include, "prompt": ""}, objects)
    assert verdict.correct == (not reasons)
    lines = verdict.reason.splitlines()
    assert len(lines) == len(reasons)
    for line, start in zip(lines, reasons, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize(
    "number,reason", [(2, "expected bench>=3, found 2"), (3, ""), (4, "expected bench<4, found 4")]
)
def test_counting_wants_the_exact_number(number, reason) -> None:
    prompt = {"include": [BENCH | {"count": 3}], "exclude": [BENCH | {"count": 4}]}
    verdict = geneval.judge(prompt, {"bench": [at(i, 0) for i in range(number)], "dog": [at(0, 9)] * 7})
    assert verdict == (not reason, reason)


def test_any_excluded_clause_fails_a_picture_and_each_is_told() -> None:
    exclude = [{"class": "dog", "count": 1}, {"class": "cup", "count": 2}]
    objects = {"bench": [at(0, 0)], "cup": [at(5, 5)]}
    assert geneval.judge({"include": [BENCH], "exclude": exclude}, objects).correct
    objects |= {"cup": [at(5, 5), at(9, 9)]}
    assert geneval.judge({"include": [BENCH], "exclude": exclude}, objects) == (False, "expected cup<2, found 2")
    objects |= {"dog": [at(2, 2)] * 3}
    reason = "expected dog<1, found 3\nexpected cup<2, found 2"
    assert geneval.judge({"include": [BENCH], "exclude": exclude}, objects) == (False, reason)
    assert not geneval.judge({"include": [], "exclude": exclude}, objects).correct


# --- relations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x,y,expected",
    [
        (10, 0, {"right of"}),
        (-10, 0, {"left of"}),
        (0, 10, {"below"}),  # y points down
        (0, -10, {"above"}),
        (10, 10, {"right of", "below"}),
        (-10, -10, {"left of", "above"}),
        (10, 4, {"right of"}),
        (4, -10, {"above"}),
        (0, 0, set()),
        (0.39, 0, set()),  # two boxes of side 2: within a tenth of 4
        (0.41, 0, set()),  # past it, by too small a part of the distance
        (0.79, 0, set()),
        (0.81, 0, {"right of"}),  # (0.81 - 0.4) / 0.81 > 1 / 2
        (1.0, 1.0, set()),  # (1 - 0.4) / sqrt 2 = 0.42
        (1.4, 1.4, {"right of", "below"}),  # (1.4 - 0.4) / (1.4 sqrt 2) = 0.505
        (1.3, 1.3, set()),  # 0.49
    ],
)
def test_relations_by_the_equation(x, y, expected) -> None:
    assert geneval.relations(at(x, y).box, at(0, 0).box) == expected
    # o = (x, y), r = sign(o) max(|o| - 0.4, 0), r / |o|
    rest = np.sign([x, y]) * np.maximum(np.abs([x, y]) - 0.1 * 4, 0)
    dx, dy = rest / (np.linalg.norm([x, y]) or 1)
    assert expected == {
        name for name, c in zip(RELATIONS, (-dx, dx, -dy, dy), strict=True) if c > 0.5
    }  # the table is the equation's


def test_sizes_count_along_their_own_axis() -> None:
    wide, narrow = (-10.0, -1.0, 10.0, 1.0), (2.0, -1.0, 4.0, 1.0)
    assert geneval.relations(narrow, wide) == set()  # 3 - 0.1 * 22 = 0.8 of 3
    assert geneval.relations((-1.0, 2.0, 1.0, 4.0), wide) == {"below"}  # 3 - 0.1 * 4 = 2.6 of 3


def test_components_below_a_thousandth_are_none_whatever_their_share() -> None:
    point = (0.0, 0.0, 0.0, 0.0)
    assert geneval.relations((0.0009,) * 2 + (0.0009,) * 2, point) == set()
    assert geneval.relations((0.0011, 0.0, 0.0011, 0.0), point) == {"right of"}
    assert geneval.relations((0.0, -0.0011, 0.0, -0.0011), point) == {"above"}


MIRRORED = {"left of": "right of", "right of": "left of", "above": "above", "below": "below"}
UPSIDE_DOWN = {"left of": "left of", "right of": "right of", "above": "below", "below": "above"}
CONVERSE = {name: UPSIDE_DOWN[MIRRORED[name]] for name in RELATIONS}


def test_relations_keep_under_shift_and_scale_and_turn_with_mirrors() -> None:
    rng = np.random.default_rng(3)
    seen = set()
    for _ in range(1000):
        low = rng.integers(-20, 20, (2, 2))
        a, b = np.concatenate([low, low + rng.integers(0, 12, (2, 2))], axis=1).astype(float)
        held = geneval.relations(a, b)
        seen |= held
        shift, scale = np.tile(rng.integers(-50, 50, 2), 2), 2.0 ** int(rng.integers(-3, 6))
        assert geneval.relations(a + shift, b + shift) == held
        assert geneval.relations(a * scale, b * scale) == held  # a power of two: no digit is lost
        assert geneval.relations(b, a) == {CONVERSE[name] for name in held}
        across, down = (
            (lambda x: np.array([-x[2], x[1], -x[0], x[3]])),
            (lambda x: np.array([x[0], -x[3], x[2], -x[1]])),
        )
        assert geneval.relations(across(a), across(b)) == {MIRRORED[name] for name in held}
        assert geneval.relations(down(a), down(b)) == {UPSIDE_DOWN[name] for name in held}
        turned = geneval.relations(a[[1, 0, 3, 2]], b[[1, 0, 3, 2]])  # x for y
        assert turned == {RELATIONS[(RELATIONS.index(name) + 2) % 4] for name in held}
    assert seen == set(RELATIONS)


# --- means and errors -----------------------------------------------------------------------------------------------


def test_one_image_a_prompt_has_the_usual_standard_error() -> None:
    rng = np.random.default_rng(4)
    for values in (rng.normal(3, 2, 57), (rng.random(31) < 0.3).astype(float)):
        mean = geneval.clustered_mean(values, rng.permutation(len(values)) * 7)
        assert mean.value == pytest.approx(values.mean(), rel=1e-12)
        assert mean.se == pytest.approx(stats.sem(values), rel=1e-12)
        assert mean[2:] == (len(values), len(values))


def test_clusters_have_the_error_of_their_sums_by_hand() -> None:
    # Three prompts with 1, 2 and 3 images: mean 1/2; sums of deviations 1/2, -1, 1/2; their squares 3/2.
    values, prompt = np.array([1, 0, 0, 1, 0, 1.0]), np.array([9, 4, 4, 7, 7, 7])
    expected = math.sqrt(Fraction(3, 2) * Fraction(3, 3 - 1)) / 6
    assert geneval.clustered_mean(values, prompt) == (0.5, pytest.approx(expected, rel=1e-12), 6, 3)
    order = [5, 1, 3, 0, 4, 2]  # of images, and which number a prompt has: nothing depends on it
    again = geneval.clustered_mean(values[order], -prompt[order])
    assert again == (0.5, pytest.approx(expected, rel=1e-12), 6, 3)


def test_clusters_have_the_error_of_the_formula() -> None:
    rng = np.random.default_rng(5)
    prompt = np.repeat(np.arange(23), rng.integers(1, 8, 23))
    values = rng.normal(0, 1, 23)[prompt] + rng.normal(0, 1, len(prompt))
    mean, total = sum(values) / len(values), 0.0
    for p in range(23):
        total += sum(v - mean for v, q in zip(values, prompt, strict=True) if q == p) ** 2
    assert geneval.clustered_mean(values, prompt).se == pytest.approx(
        math.sqrt(23 / 22 * total / len(values) ** 2), rel=1e-12
    )


def test_equal_clusters_have_the_standard_error_of_their_means() -> None:
    values = np.random.default_rng(6).normal(0, 1, (40, 4)) + np.arange(40)[:, None] % 3
    mean = geneval.clustered_mean(values.ravel(), np.repeat(np.arange(40), 4))
    assert mean.se == pytest.approx(stats.sem(values.mean(1)), rel=1e-12)


def test_images_that_are_copies_tell_no_more_than_one() -> None:
    values, prompt = np.random.default_rng(7).normal(0, 1, 12), np.arange(12)
    once = geneval.clustered_mean(values, prompt)
    copied = geneval.clustered_mean(np.repeat(values, 5), np.repeat(prompt, 5))
    assert copied.se == pytest.approx(once.se, rel=1e-12)
    assert (copied.images, copied.prompts) == (60, 12)


def test_one_prompt_has_no_error() -> None:
    mean = geneval.clustered_mean(np.array([0, 1, 1, 1.0]), np.array([3, 3, 3, 3]))
    assert mean[:1] + mean[2:] == (0.75, 4, 1)
    assert math.isnan(mean.se)


def test_the_squared_error_is_unbiased_for_clustered_images() -> None:
    repeats, prompts, images, between, within = 4000, 20, 4, 1.0, 1.5
    rng = np.random.default_rng(8)
    values = rng.normal(0, between, (repeats, prompts, 1)) + rng.normal(0, within, (repeats, prompts, images))
    prompt = np.repeat(np.arange(prompts), images)
    squared = np.array([geneval.clustered_mean(row.ravel(), prompt).se ** 2 for row in values])
    truth = (between**2 + within**2 / images) / prompts  # of the mean of all images
    # Prompts' means are normal, so squared / truth is chi^2 of (prompts - 1) degrees over that number.
    ratio, deviation = squared.mean() / truth, math.sqrt(2 / (prompts - 1) / repeats)
    assert abs(ratio - 1) < 4 * deviation
    assert squared.std() / truth == pytest.approx(math.sqrt(2 / (prompts - 1)), rel=0.05)
    spread = values.mean((1, 2)).var() / truth  # and so are the means themselves
    assert abs(spread - 1) < 4 * math.sqrt(2 / repeats)
    blind = np.mean([stats.sem(row.ravel()) ** 2 for row in values[:500]]) / truth
    assert blind < 0.6  # what taking images for independent would say


# --- summaries ------------------------------------------------------------------------------------------------------


def test_overall_is_the_mean_of_the_tasks_however_many_images_they_have() -> None:
    rng = np.random.default_rng(9)
    sizes = dict(zip(geneval.TAGS, (3, 10, 5, 7, 20, 4), strict=True))  # prompts of each task
    tag, prompt = [], []
    for number, (name, size) in enumerate(sizes.items()):
        for which in range(size):
            images = 1 + (number + which) % 4
            tag += [name] * images
            prompt += [100 * number + which] * images
    order = rng.permutation(len(tag))
    tag, prompt = np.array(tag)[order], np.array(prompt)[order]
    correct = rng.random(len(tag)) < np.array([0.9, 0.1, 0.5, 0.7, 0.2, 0.4])[prompt // 100]
    summary = geneval.summarize(correct, tag.tolist(), prompt)

    assert tuple(summary.tasks) == geneval.TAGS
    for name, mean in summary.tasks.items():
        assert mean == geneval.clustered_mean(correct[tag == name].astype(float), prompt[tag == name])
        assert mean.value == pytest.approx(correct[tag == name].mean(), rel=1e-12)
        assert (mean.images, mean.prompts) == ((tag == name).sum(), sizes[name])
    shares = [correct[tag == name].mean() for name in geneval.TAGS]
    assert summary.overall.value == pytest.approx(sum(shares) / 6, rel=1e-12)
    assert abs(summary.overall.value - correct.mean()) > 0.05  # which the mean over images is not
    errors = [summary.tasks[name].se for name in geneval.TAGS]
    assert summary.overall.se == pytest.approx(math.sqrt(sum(e**2 for e in errors)) / 6, rel=1e-12)
    assert (summary.overall.images, summary.overall.prompts) == (len(tag), sum(sizes.values()))
    assert summary.images_correct == pytest.approx(correct.mean(), rel=1e-12)
    any_right = {p: any(c for c, q in zip(correct, prompt, strict=True) if q == p) for p in prompt}
    assert summary.prompts_correct == pytest.approx(sum(any_right.values()) / len(any_right), rel=1e-12)
    assert summary.prompts_correct > summary.images_correct


def test_a_summary_by_hand_with_a_task_of_ones_own() -> None:
    correct = np.array([True, False, True, True, False, False])
    tag = ["mine", "mine", "colors", "colors", "colors", "colors"]
    summary = geneval.summarize(correct, tag, np.array([0, 0, 1, 1, 2, 2]))
    assert list(summary.tasks) == ["colors", "mine"]  # GenEval's first
    # Two prompts with sums +1 and -1 about 1/2: sqrt(2 / 1 * 2) / 4 = 1/2.
    assert summary.tasks["colors"] == (0.5, 0.5, 4, 2)
    assert summary.tasks["mine"][:1] == (0.5,)
    assert math.isnan(summary.tasks["mine"].se)
    assert math.isnan(summary.overall.se)  # unknown, not small
    assert (summary.overall.value, summary.images_correct, summary.prompts_correct) == (0.5, 0.5, 2 / 3)


def test_the_error_of_unweighted_means() -> None:
    means = [Mean(0.2, 0.03, 10, 5), Mean(0.4, 0.04, 1000, 7), Mean(0.9, 0.0, 1, 2)]
    assert geneval.unweighted(means) == (pytest.approx(0.5), pytest.approx(0.05 / 3), 1011, 14)
    assert geneval.unweighted(means[:1]) == (0.2, pytest.approx(0.03), 10, 5)


def test_intervals_of_a_summary_cover() -> None:
    """Of GenEval's own numbers of prompts, whose pictures are alike: 95 % intervals hold the truth 95 % of the time."""
    rng = np.random.default_rng(0)
    prompts = dict(zip(geneval.TAGS, (80, 99, 80, 94, 100, 100), strict=True))
    tag = [name for name, count in prompts.items() for _ in range(4 * count)]
    prompt = np.repeat(np.arange(sum(prompts.values())), 4)
    shapes = {name: (0.5 + i, 1.5) for i, name in enumerate(prompts)}  # of Beta's density of a prompt's probability
    truth = {name: a / (a + b) for name, (a, b) in shapes.items()} | {"overall": 0.0}
    truth["overall"] = float(np.mean([truth[name] for name in prompts]))
    hits = []
    for _ in range(400):
        chance = np.concatenate([rng.beta(*shapes[name], count) for name, count in prompts.items()])
        found = geneval.summarize(rng.random(len(prompt)) < chance[prompt], tag, prompt)
        means = found.tasks | {"overall": found.overall}
        hits.append([abs(mean.value - truth[name]) < 1.96 * mean.se for name, mean in means.items()])
    coverage = np.mean(hits, axis=0)
    assert len(coverage) == 7
    assert np.all((coverage > 0.915) & (coverage < 0.985)), coverage
