"""From objects found in pictures to scores: strict, lenient and soft, each beside what chance and truth would score.

``scene-geneval`` is GenEval's score with the scene judge: the mean of six tasks' shares of right pictures.
``scene-geneval-soft`` gives each clause its own credit, so that small models can be told apart;
``scene-compbench`` is T2I-CompBench's soft formulas; ``scene-sign`` is the share of signs that are spelt right and
are all there is, and ``scene-sign-soft`` how near their spelling is. None of them is the official score of that name.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sd3_jax.config import DataConfig
from sd3_jax.data.composition import COLORS, SHAPES
from sd3_jax.data.signs import TAG
from sd3_jax.evaluation import compbench, geneval, scene_judge, typography
from sd3_jax.evaluation.geneval import Mean
from sd3_jax.evaluation.scene_judge import Found

CREDITS = ("count", "shape", "color", "position")
SPELLINGS = ("spelt", "spelling")
# Of one picture; nan where its prompt does not ask.
MEASURES = ("strict", "lenient", "soft", "compbench", *CREDITS, *SPELLINGS)
NAMES = {
    "strict": "scene-geneval",
    "lenient": "scene-geneval-lenient",
    "soft": "scene-geneval-soft",
    **{credit: f"scene-geneval-soft/{credit}" for credit in CREDITS},
    "compbench": "scene-compbench",
    "spelt": "scene-sign",
    "spelling": "scene-sign-soft",
}
# Which task answers for which of T2I-CompBench's categories.
CATEGORIES = {
    "colors": "color",
    "color_attr": "color",
    "two_object": "shape",
    "position": "spatial",
    "counting": "numeracy",
}
EXPECTED = {  # the groups that an overall score is of, where they are not GenEval's six
    "compbench": set(CATEGORIES.values()),
    "color": {"colors", "color_attr"},
    "position": {"position"},
    **dict.fromkeys(SPELLINGS, {TAG}),
}
OVERALL = "overall"
SHUFFLES = 24  # other prompts of its task that each picture is held against, at most


class Measured(NamedTuple):
    """Pictures measured against their own prompts, and against others of the same group: chance."""

    prompt: Int[np.ndarray, " n"]  # index of each picture's prompt
    own: Float[np.ndarray, "n measures"]
    chance: Float[np.ndarray, "n measures"]  # nan where the group has no other prompt


class Score(NamedTuple):
    """One score of one group of prompts."""

    name: str
    group: str
    own: Mean
    chance: Mean
    above: Mean  # own less chance, picture by picture
    by_prompt: list[float]
    images_by_prompt: list[int]


def measure(
    prompts: Sequence[Mapping[str, Any]], prompt: Int[np.ndarray, " n"], found: Sequence[list[Found]]
) -> Measured:
    """Measure every picture; ``prompt`` is the index of its prompt, whose GenEval metadata is in ``prompts``."""
    groups: dict[str, list[int]] = {}
    for index, metadata in enumerate(prompts):
        groups.setdefault(group_of(metadata), []).append(index)
    own, chance = [], []
    for index, objects in zip(prompt, found, strict=True):
        own.append(measure_one(prompts[index], objects))
        peers = groups[group_of(prompts[index])]
        at = peers.index(index)
        others = [peers[(at + k) % len(peers)] for k in range(1, min(len(peers), SHUFFLES + 1))]
        each = [measure_one(prompts[other], objects) for other in others]
        chance.append(np.mean(each, axis=0) if each else np.full(len(MEASURES), np.nan))
    shape = (-1, len(MEASURES))
    return Measured(np.asarray(prompt), np.reshape(own, shape), np.reshape(chance, shape))


def measure_one(prompt: Mapping[str, Any], found: Sequence[Found]) -> Float[np.ndarray, " measures"]:
    """One picture against one prompt, in the order of MEASURES."""
    lenient, strict = scene_judge.judge(prompt, found)
    if prompt["tag"] == TAG:
        (clause,) = prompt["include"]
        near = [typography.similarity(one.text, clause["text"]) for one in found if one.text is not None]
        return np.array([*[math.nan] * (len(MEASURES) - 2), strict.correct, max(near, default=0.0)], float)
    credit = credits(prompt, found)
    soft = np.mean([value for value in credit.values() if not math.isnan(value)])
    scored = [strict.correct, lenient.correct, soft, _compbench(prompt, found), *credit.values()]
    return np.array([*scored, math.nan, math.nan], float)


def credits(prompt: Mapping[str, Any], found: Sequence[Found]) -> dict[str, float]:
    """What a picture gets for each clause, 0 to 1; nan for what the prompt does not ask.

    count: ``1 - |found - wanted| / wanted``, at least 0, of all objects; shape: the share of the wanted objects of
    each class that are there; color: the share of the wanted colours that some object has, each object serving
    once; position: whether some object of the one class lies as asked from some object of the other.
    """
    clauses = prompt["include"]
    wanted = sum(clause["count"] for clause in clauses)
    shapes = Counter(one.shape for one in found)
    colors = Counter(one.color for one in found)
    asked: Counter[str] = Counter()
    for clause in clauses:
        if "color" in clause:
            asked[clause["color"]] += clause["count"]
    there = sum(min(count, colors[color]) for color, count in asked.items())
    return {
        "count": max(0.0, 1 - abs(len(found) - wanted) / wanted),
        "shape": float(np.mean([min(c["count"], shapes[c["class"]]) / c["count"] for c in clauses])),
        "color": there / asked.total() if asked else math.nan,
        "position": _position(clauses, found),
    }


def _position(clauses: Sequence[Mapping[str, Any]], found: Sequence[Found]) -> float:
    values = []
    for clause in clauses:
        if "position" in clause:
            relation, index = clause["position"]
            targets = [one.box for one in found if one.shape == clause["class"]]
            others = [one.box for one in found if one.shape == clauses[index]["class"]]
            values.append(any(relation in geneval.relations(a, b) for a in targets for b in others))
    return float(np.mean(values)) if values else math.nan


def _compbench(prompt: Mapping[str, Any], found: Sequence[Found]) -> float:
    """The formula of the category that the prompt's task answers for; nan if it answers for none."""
    clauses = prompt["include"]
    match CATEGORIES.get(prompt["tag"]):
        case "color" | "shape":
            return compbench.binding([_yes(clause, found) for clause in clauses])
        case "spatial":
            reference, target = clauses
            pair = (_surest(target["class"], found), _surest(reference["class"], found))
            return compbench.spatial(*pair, target["position"][0])
        case "numeracy":
            wanted = {clause["class"]: clause["count"] for clause in clauses}
            return compbench.numeracy(wanted, {n: [o.box for o in found if o.shape == n] for n in wanted})
    return math.nan


def _yes(clause: Mapping[str, Any], found: Sequence[Found]) -> float:
    """Belief that the picture shows "a red circle": of the object that is it most."""
    shape, color = SHAPES.index(clause["class"]), clause.get("color")
    beliefs = [one.score * one.shapes[shape] * (one.colors[COLORS.index(color)] if color else 1.0) for one in found]
    return float(max(beliefs, default=0.0))


def _surest(name: str, found: Sequence[Found]) -> tuple[geneval.Box, float] | None:
    likely = [(one.box, float(one.score * one.shapes[SHAPES.index(name)])) for one in found if one.shape == name]
    return max(likely, key=lambda pair: pair[1], default=None)


def summarize(prompts: Sequence[Mapping[str, Any]], measured: Measured) -> list[Score]:
    """Every score of every group of prompts, and of each score its overall mean: of the six tasks as GenEval has it
    (what training shows), of the categories as T2I-CompBench has it."""
    groups = np.array([group_of(prompts[index]) for index in measured.prompt])
    found = []
    for column, measure_name in enumerate(MEASURES):
        labels = _categories(groups) if measure_name == "compbench" else groups
        scores = [
            _score(NAMES[measure_name], str(label), measured, column, labels == label)
            for label in dict.fromkeys(labels)
            if label and np.isfinite(measured.own[labels == label, column]).all()
        ]
        found += scores
        seen = [score for score in scores if not score.group.endswith(":unseen")]
        if seen:
            own, chance, above = (
                geneval.unweighted([getattr(score, key) for score in seen]) for key in ("own", "chance", "above")
            )
            complete = {score.group for score in seen} >= EXPECTED.get(measure_name, set(geneval.TAGS))
            label = OVERALL if complete else f"mean of {len(seen)}"  # a folder may hold some of the tasks alone
            found.append(Score(NAMES[measure_name], label, own, chance, above, [], []))
    return found


def _categories(groups: np.ndarray) -> np.ndarray:
    """T2I-CompBench's category of each picture; empty where there is none, and for what training never shows."""
    return np.array([CATEGORIES.get(group, "") for group in groups])


def _score(name: str, group: str, measured: Measured, column: int, chosen: np.ndarray) -> Score:
    own, chance, prompt = measured.own[chosen, column], measured.chance[chosen, column], measured.prompt[chosen]
    each, cluster = np.unique(prompt, return_inverse=True)
    images = np.bincount(cluster)
    by_prompt = np.bincount(cluster, own) / images
    mean, by_chance, above = (geneval.clustered_mean(values, prompt) for values in (own, chance, own - chance))
    digits = [round(float(value), 6) for value in by_prompt]
    return Score(name, group, mean, by_chance, above, digits, images.tolist())


def group_of(prompt: Mapping[str, Any]) -> str:
    """A prompt's task, and ``:unseen`` if it is about what training never shows."""
    return prompt["tag"] + (":unseen" if prompt.get("split") == "unseen" else "")


def to_row(found: Sequence[Found]) -> list[dict[str, Any]]:
    """Objects as JSON has them, to be kept beside the picture."""
    return [
        {
            "box": [round(x, 2) for x in one.box],
            "shape": one.shape,
            "color": one.color,
            "score": round(one.score, 5),
            "shapes": [round(float(x), 5) for x in one.shapes],
            "colors": [round(float(x), 5) for x in one.colors],
            **({} if one.text is None else {"text": one.text}),
        }
        for one in found
    ]


def from_row(row: Any, data: DataConfig) -> list[Found]:
    """The inverse of :func:`to_row`, to its digits.

    Raises ValueError for anything else.
    """
    try:
        found = [
            Found(
                tuple(float(x) for x in one["box"]),  # type: ignore[arg-type]
                one["shape"],
                one["color"],
                float(one["score"]),
                np.array(one["shapes"], float),
                np.array(one["colors"], float),
                one.get("text"),
            )
            for one in row
        ]
        numbers = [x for one in row for x in (*one["box"], one["score"])]
    except (AttributeError, KeyError, TypeError):
        raise ValueError("not a list of objects") from None
    if not all(isinstance(x, int | float) for x in numbers):
        raise ValueError("boxes and scores are numbers")
    shapes, colors = SHAPES[: data.shapes], COLORS[: data.colors]
    for one in found:
        if one.shapes.shape != (len(shapes),) or one.colors.shape != (len(colors),) or len(one.box) != 4:
            raise ValueError("objects of other scenes")
        if one.shape not in (None, *shapes) or one.color not in (None, *colors):
            raise ValueError("names of no shape or colour of these scenes")
        if not isinstance(one.text, str | None):
            raise ValueError("what a sign says is text")
    return found
