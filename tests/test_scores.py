"""Measures of pictures by hand, chance by brute force, and summaries by their definitions."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from sd3_jax.config import DataConfig
from sd3_jax.data import captions
from sd3_jax.data.composition import COLORS, SHAPES
from sd3_jax.evaluation import geneval, prompts, scores
from sd3_jax.evaluation.scene_judge import Found

DATA = DataConfig()  # eight shapes, ten colours
MEASURES = ("strict", "lenient", "soft", "compbench", "count", "shape", "color", "position")
NAN = math.nan


def asked(text, split="seen"):
    return prompts.metadata(captions.parse(text)) | {"split": split}


def one(shape, color, x=0.0, y=0.0, score=1.0, belief=1.0):
    """An object of side 4 at a place; as sure of its shape and of its colour, what lacks to one being the others."""
    shapes = np.full(len(SHAPES), (1 - belief) / (len(SHAPES) - 1))
    colors = np.full(len(COLORS), (1 - belief) / (len(COLORS) - 1))
    for beliefs, names, name in ((shapes, SHAPES, shape), (colors, COLORS, color)):
        if name is not None:
            beliefs[names.index(name)] = belief
    return Found((x - 2.0, y - 2.0, x + 2.0, y + 2.0), shape, color, score, shapes, colors)


def row(*objects):
    """Objects ``"red circle"`` beside one another, well apart; ``?`` for what cannot be told."""
    pairs = [[None if word == "?" else word for word in name.split()] for name in objects]
    return [one(shape, color, x=20.0 * i) for i, (color, shape) in enumerate(pairs)]


def unspelt(values):
    """Measures of pictures that were asked for no sign."""
    return np.pad(values, [*[(0, 0)] * (values.ndim - 1), (0, 2)], constant_values=np.nan)


def measured_one(prompt, found):
    values = scores.measure_one(prompt, found)
    assert values.shape == (len(scores.MEASURES),)
    assert np.isnan(values[8:]).all()  # of signs
    return dict(zip(scores.MEASURES[:8], values[:8].tolist(), strict=True))


# --- credits --------------------------------------------------------------------------------------------------------

# caption, objects from left to right, then what each clause gets: count, shape, color, position
CREDITS = [
    ("a circle", ["red circle"], (1, 1, NAN, NAN)),
    ("a circle", [], (0, 0, NAN, NAN)),
    ("a circle", ["red star"], (1, 0, NAN, NAN)),
    ("a circle", ["? ?"], (1, 0, NAN, NAN)),
    ("a circle", ["red circle", "blue star"], (0, 1, NAN, NAN)),
    ("a circle", ["red circle", "red circle", "red circle"], (0, 1, NAN, NAN)),  # 1 - 2 is not below 0
    ("three circles", ["red circle"] * 3, (1, 1, NAN, NAN)),
    ("three circles", ["red circle"] * 2, (2 / 3, 2 / 3, NAN, NAN)),
    ("three circles", ["red circle"] * 4, (2 / 3, 1, NAN, NAN)),
    ("three circles", ["red circle"] * 5, (1 / 3, 1, NAN, NAN)),
    ("three circles", ["red circle"] * 7, (0, 1, NAN, NAN)),
    ("three circles", ["red circle", "red circle", "? star"], (1, 2 / 3, NAN, NAN)),
    ("four rings", ["red ring", "? ?"], (1 / 2, 1 / 4, NAN, NAN)),
    ("a circle and a star", ["red star", "blue circle"], (1, 1, NAN, NAN)),
    ("a circle and a star", ["red star"], (1 / 2, 1 / 2, NAN, NAN)),
    ("a circle and a star", ["red star", "red star"], (1, 1 / 2, NAN, NAN)),
    ("a circle and a star", ["red star", "red circle", "red ring"], (1 / 2, 1, NAN, NAN)),
    ("a red circle", ["red circle"], (1, 1, 1, NAN)),
    ("a red circle", ["blue circle"], (1, 1, 0, NAN)),
    ("a red circle", ["? circle"], (1, 1, 0, NAN)),
    ("a red circle", ["red star"], (1, 0, 1, NAN)),  # the colour of whatever there is
    ("a red circle", ["blue circle", "red star"], (0, 1, 1, NAN)),
    ("a red circle", [], (0, 0, 0, NAN)),
    ("a red circle and a blue star", ["red circle", "blue star"], (1, 1, 1, NAN)),
    ("a red circle and a blue star", ["blue circle", "red star"], (1, 1, 1, NAN)),
    ("a red circle and a blue star", ["red circle", "red star"], (1, 1, 1 / 2, NAN)),
    ("a red circle and a blue star", ["red circle"], (1 / 2, 1 / 2, 1 / 2, NAN)),
    ("a red circle and a blue star", ["white ring", "blue ring", "blue star"], (1 / 2, 1 / 2, 1 / 2, NAN)),
    ("a red circle and a blue star", ["red ring", "blue ring"], (1, 0, 1, NAN)),
    ("a circle left of a star", ["red circle", "red star"], (1, 1, NAN, 1)),
    ("a circle left of a star", ["red star", "red circle"], (1, 1, NAN, 0)),
    ("a circle above a star", ["red star", "red circle"], (1, 1, NAN, 0)),
    ("a circle right of a star", ["red star", "red circle"], (1, 1, NAN, 1)),
    ("a circle left of a star", ["red circle"], (1 / 2, 1 / 2, NAN, 0)),
    ("a circle left of a star", ["red circle", "red ring"], (1, 1 / 2, NAN, 0)),
    ("a circle left of a star", [], (0, 0, NAN, 0)),
    ("a circle left of a star", ["red star", "red circle", "red star"], (1 / 2, 1, NAN, 1)),  # some pair
    ("a circle left of a star", ["red star", "red star", "red circle"], (1 / 2, 1, NAN, 0)),
]


@pytest.mark.parametrize("text,objects,expected", CREDITS)
def test_credits_by_hand(text, objects, expected) -> None:
    found = row(*objects)
    credit = scores.credits(asked(text), found)
    assert tuple(credit) == scores.CREDITS == ("count", "shape", "color", "position")
    assert tuple(credit.values()) == pytest.approx(expected, nan_ok=True)
    # Soft is the mean of what is asked; measure_one has all of them.
    values = measured_one(asked(text), found)
    told = [value for value in expected if not math.isnan(value)]
    assert values["soft"] == pytest.approx(sum(told) / len(told))
    assert [values[name] for name in scores.CREDITS] == pytest.approx(expected, nan_ok=True)


def test_a_diagonal_satisfies_both_relations() -> None:
    found = [one("circle", "red", 0, 0), one("star", "red", 20, 20)]
    for relation, credit in (("left of", 1), ("above", 1), ("right of", 0), ("below", 0)):
        assert scores.credits(asked(f"a circle {relation} a star"), found)["position"] == credit


# --- strict and lenient ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text,objects,lenient,strict",
    [
        ("a red circle", ["red circle"], 1, 1),
        ("a red circle", ["blue circle"], 0, 0),
        ("a red circle", ["red circle", "blue star"], 1, 0),  # nobody asked for it
        ("a red circle", ["red circle", "? ?"], 1, 0),
        ("a circle", ["? circle"], 1, 0),  # its colour cannot be told
        ("a circle", [], 0, 0),
        ("two circles", ["red circle", "blue circle"], 1, 1),
        ("two circles", ["red circle"] * 3, 0, 0),
        ("two circles", ["red circle", "red circle", "red star"], 1, 0),
        ("a circle left of a star", ["red circle", "red star"], 1, 1),
        ("a circle left of a star", ["red star", "red circle"], 0, 0),
        ("a red circle and a blue star", ["blue star", "red circle"], 1, 1),
        ("a red circle and a blue star", ["red star", "blue circle"], 0, 0),
    ],
)
def test_strict_and_lenient_by_hand(text, objects, lenient, strict) -> None:
    values = measured_one(asked(text), row(*objects))
    assert (values["lenient"], values["strict"]) == (lenient, strict)


def test_the_measures_have_an_order_and_names() -> None:
    assert (*MEASURES, "spelt", "spelling") == scores.MEASURES
    assert set(scores.NAMES) == set(scores.MEASURES)
    assert all(name.startswith("scene-") for name in scores.NAMES.values())  # never the official score's own
    assert len(set(scores.NAMES.values())) == len(scores.MEASURES)


# --- T2I-CompBench's ------------------------------------------------------------------------------------------------


def compbench_of(text, found):
    return measured_one(asked(text), found)["compbench"]


def test_binding_takes_the_object_that_is_it_most() -> None:
    found = [
        one("circle", "red", score=0.9, belief=0.8),
        one("circle", "red", score=0.5, belief=0.9),
        one("star", "blue", score=1.0, belief=0.7),
    ]
    red_circle = max(0.9 * 0.8 * 0.8, 0.5 * 0.9 * 0.9, 1.0 * 0.3 / 7 * 0.3 / 9)
    blue_star = max(1.0 * 0.7 * 0.7, 0.9 * 0.2 / 7 * 0.2 / 9)
    assert compbench_of("a red circle", found) == pytest.approx(red_circle)
    assert compbench_of("a red circle and a blue star", found) == pytest.approx(red_circle * blue_star)
    circle, star = max(0.9 * 0.8, 0.5 * 0.9, 0.3 / 7), 0.7
    assert compbench_of("a circle and a star", found) == pytest.approx(circle * star)
    # The colour of one and the shape of another make no phrase: the likeliest is a blue circle by mistake.
    blue_circle = max(0.9 * 0.8 * 0.2 / 9, 0.5 * 0.9 * 0.1 / 9, 0.3 / 7 * 0.7)
    assert compbench_of("a blue circle", found) == pytest.approx(blue_circle)
    for text in ("a red circle", "a red circle and a blue star", "a circle and a star"):
        assert compbench_of(text, []) == 0


def test_spatial_takes_the_surest_of_each_shape() -> None:
    found = [
        one("circle", "red", x=0, score=0.9, belief=0.8),
        one("circle", "red", x=90, score=0.9, belief=0.5),
        one("star", "red", x=30, score=0.8, belief=1.0),
    ]
    left = 0.25 * 0.9 * 0.8 + 0.25 * 0.8 + 0.5
    assert compbench_of("a circle left of a star", found) == pytest.approx(left)
    assert compbench_of("a star right of a circle", found) == pytest.approx(left)
    assert compbench_of("a circle right of a star", found) == 0  # 0.38 is below one half
    assert compbench_of("a circle above a star", found) == 0
    surest_last = [found[0]._replace(score=0.4), *found[1:]]  # 0.32 against 0.45: the one on the other side
    assert compbench_of("a circle left of a star", surest_last) == 0
    assert compbench_of("a circle right of a star", surest_last) == pytest.approx(0.25 * 0.45 + 0.25 * 0.8 + 0.5)
    assert compbench_of("a circle left of a star", found[:2]) == 0
    unnamed = found[2]._replace(shape=None)  # believed to be a star, but not told to be
    assert compbench_of("a circle left of a star", [found[0], unnamed]) == 0


def test_numeracy_counts_objects_of_the_shape() -> None:
    found = row("red circle", "blue circle", "red star", "? ?")
    assert compbench_of("two circles", found) == 1
    assert compbench_of("three circles", found) == 0.5
    assert compbench_of("two rings", found) == 0
    assert compbench_of("two stars", [*found, found[2]]) == 0.5  # twice the same box is one
    assert compbench_of("two circles", []) == 0


def test_single_objects_are_in_no_category() -> None:
    assert math.isnan(compbench_of("a circle", row("red circle")))


# --- measuring against other prompts --------------------------------------------------------------------------------


def random_scene(rng):
    return [
        one(
            str(rng.choice(SHAPES[:4])) if rng.random() < 0.9 else None,
            str(rng.choice(COLORS[:4])) if rng.random() < 0.9 else None,
            *rng.integers(0, 60, 2).astype(float),
            score=float(rng.random()),
            belief=float(rng.uniform(0.3, 1)),
        )
        for _ in range(rng.integers(0, 6))
    ]


@pytest.fixture(scope="module")
def pictures():
    """Prompts of all nine groups, at most eight of each, in no order; two or three random pictures of each."""
    rng = np.random.default_rng(0)
    data = DataConfig(shapes=4, colors=4)
    listed = [p.metadata for p in prompts.scene_prompts(data, 32)]
    listed = [listed[i] for i in rng.permutation(len(listed))]
    prompt = rng.permutation(np.repeat(np.arange(len(listed)), rng.integers(2, 4, len(listed))))
    found = [random_scene(rng) for _ in prompt]
    return listed, prompt, found, scores.measure(listed, prompt, found)


def test_every_picture_is_measured_against_its_own_prompt(pictures) -> None:
    listed, prompt, found, measured = pictures
    np.testing.assert_array_equal(measured.prompt, prompt)
    expected = [scores.measure_one(listed[p], objects) for p, objects in zip(prompt, found, strict=True)]
    np.testing.assert_array_equal(measured.own, expected)


def test_chance_is_the_mean_over_the_other_prompts_of_the_group(pictures) -> None:
    listed, prompt, found, measured = pictures
    for index, objects, chance in zip(prompt, found, measured.chance, strict=True):
        mine = listed[index]
        same = [p for p in listed if (p["tag"], p["split"]) == (mine["tag"], mine["split"])]
        others = [scores.measure_one(p, objects) for p in same if p["prompt"] != mine["prompt"]]
        assert 1 <= len(others) == len(same) - 1 <= scores.SHUFFLES
        np.testing.assert_allclose(chance, sum(others) / len(others), rtol=1e-12)
    told = ~np.isnan(measured.own)
    np.testing.assert_array_equal(~np.isnan(measured.chance), told)
    assert (np.nanstd(measured.chance[:, :8], axis=0) > 0).all()


def test_a_group_of_one_prompt_has_no_chance() -> None:
    listed = [
        asked("a red circle"),
        asked("a circle"),
        asked("a blue star", "unseen"),  # of another group than the seen one
        asked("a star"),
    ]
    found = [row("red circle"), row("blue star"), row("blue star"), row("red star"), row()]
    measured = scores.measure(listed, np.array([0, 1, 2, 3, 0]), found)
    assert np.isnan(measured.chance[[0, 2, 4]]).all()
    assert (
        dict(zip(scores.MEASURES, measured.chance[1], strict=True))["strict"] == 1
    )  # a star, where a circle was asked
    assert dict(zip(scores.MEASURES, measured.chance[3], strict=True))["strict"] == 0
    by_name = {(s.name, s.group): s for s in scores.summarize(listed, measured)}
    alone = by_name["scene-geneval", "colors"]
    assert alone.own.value == 0.5
    assert math.isnan(alone.chance.value)
    assert math.isnan(alone.above.value)
    assert by_name["scene-geneval", "single_object"].chance.value == 0.5
    overall = by_name["scene-geneval", "mean of 2"]  # not "overall": four tasks are missing
    assert overall.own.value == pytest.approx((0.5 + 0.5) / 2)  # single objects: one of two is right
    assert math.isnan(overall.chance.value)


@pytest.mark.parametrize("number", [2, 3, 24, 25, 26, 40])
def test_chance_takes_each_other_prompt_once_and_at_most_24(number, monkeypatch) -> None:
    listed = [{"tag": "colors" if i % 2 else "position", "number": i // 2} for i in range(2 * number)]
    monkeypatch.setattr(scores, "measure_one", lambda prompt, _: np.full(10, 2.0 ** prompt["number"]))
    measured = scores.measure(listed, np.arange(2 * number), [[]] * 2 * number)
    times = min(number - 1, 24)
    came = np.zeros(number, int)
    for i in range(2 * number):
        total = round(measured.chance[i, 0] * times)  # a bit for each prompt that was taken
        taken = [k for k in range(number) if total >> k & 1]
        assert sum(2**k for k in taken) == total
        assert len(taken) == times
        assert i // 2 not in taken
        came[taken] += 1
    assert (came == 2 * times).all()  # all are taken as often


# --- summaries ------------------------------------------------------------------------------------------------------

GROUPS = [*geneval.TAGS, "colors:unseen", "position:unseen", "color_attr:unseen"]
CATEGORIES = {"color": ("colors", "color_attr"), "shape": ("two_object",), "spatial": ("position",)}
CATEGORIES |= {"numeracy": ("counting",)}


def clustered(values, prompt):
    """A mean and its error by the definition, prompt by prompt."""
    names, mean = sorted(set(prompt.tolist())), float(np.mean(values))
    sums = [sum(v - mean for v, p in zip(values, prompt, strict=True) if p == name) for name in names]
    return mean, math.sqrt(len(names) / (len(names) - 1) * sum(s**2 for s in sums)) / len(values)


@pytest.fixture(scope="module")
def summary():
    """Groups of 3 to 11 prompts with 1 to 5 pictures each, random values; nan where the task does not ask."""
    rng = np.random.default_rng(1)
    listed, prompt = [], []
    for number, group in enumerate(GROUPS):
        tag, _, unseen = group.partition(":")
        for _ in range(3 + number):
            prompt += [len(listed)] * int(rng.integers(1, 6))
            listed.append({"tag": tag, "prompt": str(len(listed)), "split": unseen or "seen"})
    prompt = rng.permutation(np.array(prompt))
    tag = np.array([listed[p]["tag"] for p in prompt])
    own, chance = unspelt(rng.random((2, len(prompt), 8)))
    for name, tasks in (
        ("color", ("colors", "color_attr")),
        ("position", ("position",)),
        ("compbench", tuple(tag for tags in CATEGORIES.values() for tag in tags)),
    ):
        for values in (own, chance):
            values[~np.isin(tag, tasks), MEASURES.index(name)] = NAN
    group = np.array([listed[p]["tag"] + (":unseen" if listed[p]["split"] == "unseen" else "") for p in prompt])
    measured = scores.Measured(prompt, own, chance)
    found = scores.summarize(listed, measured)
    by_name = {(score.name, score.group): score for score in found}
    assert len(by_name) == len(found)
    return group, measured, by_name


def test_every_score_of_every_group_is_there(summary) -> None:
    _, _, by_name = summary
    expected = set()
    for measure in ("strict", "lenient", "soft", "count", "shape"):
        expected |= {(scores.NAMES[measure], group) for group in [*GROUPS, "overall"]}
    colored = ["colors", "color_attr", "colors:unseen", "color_attr:unseen", "overall"]
    expected |= {("scene-geneval-soft/color", group) for group in colored}
    expected |= {("scene-geneval-soft/position", group) for group in ("position", "position:unseen", "overall")}
    expected |= {("scene-compbench", group) for group in [*CATEGORIES, "overall"]}
    assert set(by_name) == expected


def test_a_groups_score_is_the_clustered_mean_of_its_pictures(summary) -> None:
    group, measured, by_name = summary
    for (name, label), score in by_name.items():
        if label == "overall":
            continue
        measure = next(key for key, value in scores.NAMES.items() if value == name)
        chosen = np.isin(group, CATEGORIES[label]) if measure == "compbench" else group == label
        column = MEASURES.index(measure)
        own, chance, prompt = measured.own[chosen, column], measured.chance[chosen, column], measured.prompt[chosen]
        for mean, values in ((score.own, own), (score.chance, chance), (score.above, own - chance)):
            assert mean[:2] == pytest.approx(clustered(values, prompt), rel=1e-9)
            assert mean[2:] == (chosen.sum(), len(set(prompt.tolist())))
        assert score.above.value == pytest.approx(score.own.value - score.chance.value, abs=1e-12)


def test_a_groups_score_is_the_weighted_mean_of_its_prompts(summary) -> None:
    group, measured, by_name = summary
    for (name, label), score in by_name.items():
        if label == "overall":
            assert score.by_prompt == score.images_by_prompt == []
            continue
        assert len(score.by_prompt) == len(score.images_by_prompt) == score.own.prompts
        assert sum(score.images_by_prompt) == score.own.images
        weighted = np.average(score.by_prompt, weights=score.images_by_prompt)
        assert weighted == pytest.approx(score.own.value, abs=1e-6)  # of six digits
        json.dumps(score)
        if name == "scene-geneval":  # in the order of the prompts
            for index, value, images in zip(
                np.unique(measured.prompt[group == label]), score.by_prompt, score.images_by_prompt, strict=True
            ):
                mine = measured.own[measured.prompt == index, 0]
                assert (value, images) == (pytest.approx(mine.mean(), abs=1e-6), len(mine))


@pytest.mark.parametrize("measure", MEASURES)
def test_overall_is_the_unweighted_mean_of_what_training_shows(measure, summary) -> None:
    _, _, by_name = summary
    name = scores.NAMES[measure]
    parts = {
        "compbench": list(CATEGORIES),
        "color": ["colors", "color_attr"],
        "position": ["position"],
    }.get(measure, list(geneval.TAGS))
    overall = by_name[name, "overall"]
    for key in ("own", "chance", "above"):
        means = [getattr(by_name[name, part], key) for part in parts]
        mean = getattr(overall, key)
        assert mean.value == pytest.approx(sum(m.value for m in means) / len(parts), rel=1e-12)
        assert mean.se == pytest.approx(math.sqrt(sum(m.se**2 for m in means)) / len(parts), rel=1e-12)
        assert mean.images == sum(m.images for m in means)
        assert mean.prompts == sum(m.prompts for m in means)


def test_colors_of_one_and_of_two_objects_are_one_category() -> None:
    listed = [
        asked("a red circle"),
        asked("a blue circle"),
        asked("a red circle and a blue star"),
        asked("a red circle", "unseen"),
        asked("a blue star", "unseen"),
    ]
    own, chance = unspelt(np.full((2, 8, 8), 0.5))
    own[:, MEASURES.index("position")] = chance[:, MEASURES.index("position")] = NAN
    own[:, 3] = [1, 0, 0.3, 0.3, 0.3, 0.3, 0.9, 0.9]
    measured = scores.Measured(np.array([0, 1, 2, 2, 2, 2, 3, 4]), own, chance)
    by_name = {(score.name, score.group): score for score in scores.summarize(listed, measured)}
    (color, overall) = (by_name["scene-compbench", group] for group in ("color", "mean of 1"))
    assert [group for name, group in by_name if name == "scene-compbench"] == ["color", "mean of 1"]
    assert color.own.value == pytest.approx((1 + 0 + 4 * 0.3) / 6)  # over pictures; unseen ones are in no category
    assert (color.own.images, color.own.prompts) == (6, 3)
    assert (color.by_prompt, color.images_by_prompt) == ([1, 0, 0.3], [1, 1, 4])
    assert overall.own == pytest.approx(color.own)
    assert by_name["scene-geneval", "colors"].own.images == 2


def test_scores_of_measured_pictures_hang_together(pictures) -> None:
    listed, prompt, _, measured = pictures
    by_name = {(score.name, score.group): score for score in scores.summarize(listed, measured)}
    seen = np.array([listed[p]["split"] == "seen" for p in prompt])
    tags = [listed[p]["tag"] for p in prompt]
    for measure, name in (("strict", "scene-geneval"), ("lenient", "scene-geneval-lenient")):
        column = measured.own[:, MEASURES.index(measure)]
        chosen = geneval.summarize(column[seen] == 1, [t for t, s in zip(tags, seen, strict=True) if s], prompt[seen])
        assert by_name[name, "overall"].own == pytest.approx(chosen.overall)
        for tag in geneval.TAGS:
            assert by_name[name, tag].own == pytest.approx(chosen.tasks[tag])
    strict, lenient = (by_name[name, "overall"].own.value for name in ("scene-geneval", "scene-geneval-lenient"))
    assert strict <= lenient
    assert (measured.own[:, 0] <= measured.own[:, 1]).all()


def test_paired_errors_are_smaller_where_chance_goes_along() -> None:
    rng = np.random.default_rng(2)
    listed = [asked(f"a {color} circle") for color in COLORS]
    own = unspelt(rng.random((10, 8)))
    chance = own - 0.1 + 0.01 * unspelt(rng.random((10, 8)))
    by_name = {(s.name, s.group): s for s in scores.summarize(listed, scores.Measured(np.arange(10), own, chance))}
    score = by_name["scene-geneval", "colors"]
    assert score.above.se == pytest.approx(stats.sem((own - chance)[:, 0]))
    assert score.above.se < 0.2 * math.hypot(score.own.se, score.chance.se)


def test_group_of_a_prompt() -> None:
    assert scores.group_of({"tag": "colors"}) == "colors"
    assert scores.group_of({"tag": "colors", "split": "seen"}) == "colors"
    assert scores.group_of({"tag": "colors", "split": "unseen"}) == "colors:unseen"


# --- rows -----------------------------------------------------------------------------------------------------------


def test_rows_are_objects_to_their_digits() -> None:
    rng = np.random.default_rng(3)
    for number in range(5):
        found = [
            Found(
                tuple((rng.random(4) * 64).tolist()),
                [*SHAPES, None][i % 9],
                [*COLORS, None][(i * number) % 11],
                float(rng.random()),
                rng.dirichlet(np.ones(8)),
                rng.dirichlet(np.ones(10)),
            )
            for i in range(number * 3)
        ]
        rows = json.loads(json.dumps(scores.to_row(found)))
        again = scores.from_row(rows, DATA)
        assert len(again) == len(found)
        for before, after in zip(found, again, strict=True):
            assert (after.shape, after.color) == (before.shape, before.color)
            assert isinstance(after.box, tuple)
            np.testing.assert_allclose(after.box, before.box, atol=0.00501)
            np.testing.assert_allclose(after.score, before.score, atol=0.00000501)
            np.testing.assert_allclose(after.shapes, before.shapes, atol=0.00000501)
            np.testing.assert_allclose(after.colors, before.colors, atol=0.00000501)
        assert scores.to_row(again) == rows  # and no digit more is lost


def test_measures_of_a_row_are_those_of_its_objects() -> None:
    rng = np.random.default_rng(4)
    listed = [p.metadata for p in prompts.scene_prompts(DATA, 40)]
    for _ in range(20):
        kept = scores.from_row(scores.to_row(random_scene(rng)), DATA)
        again = scores.from_row(json.loads(json.dumps(scores.to_row(kept))), DATA)
        for prompt in listed[::5]:
            np.testing.assert_array_equal(scores.measure_one(prompt, kept), scores.measure_one(prompt, again))


GOOD = scores.to_row(row("red circle"))[0]


@pytest.mark.parametrize(
    "broken",
    [
        *({key: value for key, value in GOOD.items() if key != missing} for missing in GOOD),
        GOOD | {"shapes": GOOD["shapes"][:4]},  # of scenes with four shapes
        GOOD | {"colors": [*GOOD["colors"], 0.0]},
        GOOD | {"shapes": [GOOD["shapes"]]},
        GOOD | {"shapes": ["much"] * 8},
        GOOD | {"colors": 1.0},
        GOOD | {"colors": None},
        GOOD | {"box": [1.0, 2.0, 3.0]},
        GOOD | {"box": [1.0, 2.0, 3.0, 4.0, 5.0]},
        {},
    ],
)
def test_foreign_rows_are_refused(broken) -> None:
    for rows in ([broken], [GOOD, broken]):
        with pytest.raises((KeyError, ValueError)):
            scores.from_row(rows, DATA)
    assert len(scores.from_row([GOOD, GOOD], DATA)) == 2


def test_rows_of_other_scenes_are_refused_both_ways() -> None:
    for shapes, colors in itertools.product((4, 8), (5, 10)):
        data = DataConfig(shapes=shapes, colors=colors)
        if (shapes, colors) != (8, 10):
            with pytest.raises(ValueError, match="other scenes"):
                scores.from_row([GOOD], data)
    assert scores.from_row([], DataConfig(shapes=4, colors=5)) == []


@pytest.mark.parametrize(
    "objects,share",
    [(["red circle", "red star"], 1), (["red circle", "blue star"], 1 / 2), (["red circle"], 1 / 2), ([], 0)],
)
def test_a_colour_that_is_wanted_twice_takes_two_objects(objects, share) -> None:
    """A prompt file may ask for one colour twice; credits() overwrites the first clause's count by the second's."""
    credit = scores.credits(asked("a red circle and a red star"), row(*objects))
    assert credit["color"] == pytest.approx(share)


@pytest.mark.parametrize(
    "broken",
    [
        GOOD | {"box": None},  # TypeError
        GOOD | {"shapes": {"circle": 1.0}},  # TypeError
        "an object",  # TypeError
        GOOD | {"box": ["1", "2", "3", "4"]},  # accepted; fails later, in the rules
        GOOD | {"score": None},  # accepted
        GOOD | {"shape": "hexagon"},  # accepted
        GOOD | {"color": "turquoise"},  # accepted
    ],
)
def test_anything_else_is_a_key_error_or_a_value_error(broken) -> None:
    """As from_row's docstring says."""
    with pytest.raises((KeyError, ValueError)):
        scores.from_row([broken], DATA)
