"""GenEval's 553 prompts about COCO's objects (Ghosh et al. 2023, MIT), drawn again with the seed of its authors.

A prompt is drawn number by number as theirs were, so that the list is theirs, in their order and with their grammar: a
plural is "+s", or "+es" after an s, and only the first letter says whether it is "a" or "an".
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

SEED, EACH = 43, 100  # of the published list: prompts drawn of a task, before those drawn twice are dropped
CLASSES = (  # as GenEval calls COCO's 80, in the order of detectors
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
COUNTS = {2: "two", 3: "three", 4: "four"}


def geneval_prompts(seed: int = SEED, each: int = EACH) -> list[dict[str, Any]]:
    """GenEval's metadata of its prompts, in order, each once; another seed draws other prompts of the same kinds.

    >>> prompts = geneval_prompts()
    >>> len(prompts), prompts[0]["prompt"]
    (553, 'a photo of a bench')
    """
    numbers = np.random.default_rng(seed)
    drawn = [_row("single_object", [_clause(i)], _a(CLASSES[i])) for i in numbers.choice(80, size=80, replace=False)]
    for draw in (_two_objects, _counting, _colors, _position, _color_attribution):
        drawn += [draw(numbers) for _ in range(each)]
    return list(_each_once(drawn))


def _each_once(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    for row in rows:
        if row not in seen:
            seen.append(row)
            yield row


def _two_objects(numbers: np.random.Generator) -> dict[str, Any]:
    one, other = numbers.choice(80, size=2, replace=False)
    return _row("two_object", [_clause(one), _clause(other)], f"{_a(CLASSES[one])} and {_a(CLASSES[other])}")


def _counting(numbers: np.random.Generator) -> dict[str, Any]:
    one, count = numbers.choice(80), int(numbers.integers(2, 4, endpoint=True))
    plural = CLASSES[one] + ("es" if CLASSES[one].endswith("s") else "s")
    row = _row("counting", [_clause(one, count=count)], f"{COUNTS[count]} {plural}")
    return {"tag": row["tag"], "include": row["include"], "exclude": [_clause(one, count=count + 1)]} | row


def _colors(numbers: np.random.Generator) -> dict[str, Any]:
    one, color = int(numbers.choice(79)) + 1, COLORS[numbers.choice(10)]  # a person has no colour
    return _row("colors", [_clause(one, color=color)], f"{_a(color)} {CLASSES[one]}")


def _position(numbers: np.random.Generator) -> dict[str, Any]:
    one, other = numbers.choice(80, size=2, replace=False)
    relation = RELATIONS[numbers.choice(4)]
    clauses = [_clause(other), _clause(one) | {"position": [relation, 0]}]  # of the second clause, from the first
    return _row("position", clauses, f"{_a(CLASSES[one])} {relation} {_a(CLASSES[other])}")


def _color_attribution(numbers: np.random.Generator) -> dict[str, Any]:
    one, other = numbers.choice(79, size=2, replace=False) + 1
    its, others = (COLORS[i] for i in numbers.choice(10, size=2, replace=False))
    clauses = [_clause(one, color=its), _clause(other, color=others)]
    return _row("color_attr", clauses, f"{_a(its)} {CLASSES[one]} and {_a(others)} {CLASSES[other]}")


def _clause(index: int, count: int = 1, color: str | None = None) -> dict[str, Any]:
    return {"class": CLASSES[index], "count": count, **({"color": color} if color else {})}


def _row(tag: str, include: list[dict[str, Any]], shown: str) -> dict[str, Any]:
    return {"tag": tag, "include": include, "prompt": f"a photo of {shown}"}


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
