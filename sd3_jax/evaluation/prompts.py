"""What a model is asked to draw: scenes' own prompts in GenEval's six tasks and of signs, or a file of them.

A prompt is GenEval's metadata for one caption. Everything is read off the six words of the caption, so a caption in
a file says as much as one that is drawn.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from sd3_jax.config import DataConfig
from sd3_jax.data import captions, composition, signs
from sd3_jax.errors import UserError
from sd3_jax.evaluation import coco, compbench_files

IMAGES_A_PROMPT = 4  # GenEval's, where there are prompts enough
# The tasks with what training shows, and those whose captions can say what it never does.
GROUPS: tuple[tuple[str, composition.Split], ...] = (
    *((task, "seen") for task in composition.TASKS),
    ("colors", "unseen"),
    ("position", "unseen"),
    ("color_attr", "unseen"),
)


class Prompt(NamedTuple):
    """A caption, what it asks for in GenEval's terms, and how many pictures of it are drawn."""

    words: Int[np.ndarray, "6"]
    metadata: dict[str, Any]
    images: int

    @property
    def text(self) -> str:
        """The caption as a sentence."""
        return self.metadata["prompt"]


def groups(data: DataConfig) -> tuple[tuple[str, composition.Split], ...]:
    """The tasks and splits of a setting of scenes, in the order of their prompts."""
    return GROUPS + (((signs.TAG, "seen"), (signs.TAG, "unseen")) if data.words else ())


def scene_prompts(data: DataConfig, images_per_task: int, seed: int = 0) -> list[Prompt]:
    """Different prompts of every task, seen and unseen, with as many pictures in all for each task.

    Prompts are drawn among all captions of a task, a quarter as many as pictures; a task that has fewer, as
    ``single_object`` has with few shapes, has more pictures of each. A seed gives one frozen list; another one gives
    a fresh list. Tasks of which nothing is held out (``data.held_out: 0``) have no unseen prompts.

    Raises UserError for no pictures, or a seed out of range.
    """
    if images_per_task < 1:
        raise UserError(f"images per task: {images_per_task} is not a number of pictures; at least 1")
    if not 0 <= seed < 2**32:
        raise UserError(f"prompt seed: {seed} is out of range; valid: 0 to {2**32 - 1}")
    wanted = max(1, images_per_task // IMAGES_A_PROMPT)
    found = []
    for index, (task, split) in enumerate(groups(data)):
        words = captions_of(data, task, split)
        chosen = np.random.RandomState([seed, index]).permutation(len(words))[:wanted]
        images = np.diff(np.linspace(0, images_per_task, len(chosen) + 1).round().astype(int))
        for i, number in zip(chosen, images, strict=True):
            found.append(Prompt(words[i], metadata(words[i]) | {"split": split}, int(number)))
    return found


@functools.lru_cache
def captions_of(data: DataConfig, task: str, split: composition.Split) -> list[Int[np.ndarray, "6"]]:
    """Every caption of a task that belongs to a split, in a fixed order."""
    if task == signs.TAG:
        every = [captions.parse(f'a sign that says "{word}"') for word in signs.WORDS[: data.words]]
        return [words for words in every if split_of(words, data) == split]
    shapes, colors = composition.SHAPES[: data.shapes], composition.COLORS[: data.colors]
    if task in ("single_object", "counting"):
        counts = ["a"] if task == "single_object" else list(captions.COUNTS)[1:]
        rows = [(count, "", shape, "", "", "") for count, shape in itertools.product(counts, shapes)]
    elif task == "colors":
        rows = [("a", color, shape, "", "", "") for color, shape in itertools.product(colors, shapes)]
    else:
        joints = composition.RELATIONS if task == "position" else ("and",)
        pairs = itertools.permutations(colors, 2) if task == "color_attr" else [("", "")]
        products = itertools.product(joints, itertools.permutations(shapes, 2), pairs)
        rows = [("a", color, one, joint, its, other) for joint, (one, other), (color, its) in products]
    held = _held_out(data)
    words = [np.array([captions.VOCABULARY.index(word) for word in row]) for row in rows]
    return [word for word in words if _split(word, held) == split]


def metadata(words: Int[np.ndarray, "6"]) -> dict[str, Any]:
    """GenEval's metadata of a caption: its task, the clauses that must and must not hold, the sentence.

    >>> [clause for clause in metadata(captions.parse("a photo of a ring above a star"))["include"]]
    [{'class': 'star', 'count': 1}, {'class': 'ring', 'count': 1, 'position': ['above', 0]}]
    """
    if text := captions.spelt(words):
        return {
            "tag": signs.TAG,
            "include": [{"class": signs.TAG, "count": 1, "text": text}],
            "prompt": captions.sentence(words),
        }
    count, color, shape, joint, other_color, other = (captions.VOCABULARY[word] for word in words)
    clause: dict[str, Any] = {"class": shape, "count": captions.COUNTS[count]}
    other_clause: dict[str, Any] = {"class": other, "count": 1}
    for one, its in ((clause, color), (other_clause, other_color)):
        if its:
            one["color"] = its
    exclude: list[dict[str, Any]] = []
    if joint in composition.RELATIONS:
        tag, include = "position", [other_clause, clause | {"position": [joint, 0]}]
    elif other:
        tag, include = ("color_attr" if color and other_color else "two_object"), [clause, other_clause]
    elif clause["count"] > 1:
        tag, include = "counting", [clause]
        exclude = [{"class": shape, "count": clause["count"] + 1}]
    else:
        tag, include = ("colors" if color else "single_object"), [clause]
    excluded = {"exclude": exclude} if exclude else {}
    return {"tag": tag, "include": include, **excluded, "prompt": captions.sentence(words)}


def read_prompts(path: Path, data: DataConfig, images: int = IMAGES_A_PROMPT) -> list[Prompt]:
    """The prompts of a file: a caption a line; an object a line with a ``prompt``, as GenEval's (``.jsonl``); or a
    table with a column ``Prompt``, as PartiPrompts' (``.tsv``).

    Raises UserError for a caption that scenes cannot show, or one that is given twice, naming the line; for text that
    is not UTF-8; and for a file without prompts.
    """
    found = []
    for number, row in _lines(path):
        try:
            words = captions.parse(row["prompt"])
            check_shown(words, data)
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from None
        found.append((number, Prompt(words, metadata(words) | {"split": split_of(words, data)}, images)))
    return _each_once(path, found)


def read_texts(path: Path, images: int = IMAGES_A_PROMPT) -> list[Prompt]:
    """The prompts of a file as :func:`read_prompts` reads one, for a model that any text can be said to.

    What a line says beside its prompt is kept: GenEval's evaluator needs it, and PartiPrompts' categories are groups.
    Errors likewise.
    """
    return _each_once(path, [(number, Prompt(np.zeros(0, int), row, images)) for number, row in _lines(path)])


def geneval_texts(images: int = IMAGES_A_PROMPT) -> list[Prompt]:
    """GenEval's own 553 prompts, of COCO's objects, for a model that any text can be said to."""
    return [Prompt(np.zeros(0, int), row, images) for row in coco.geneval_prompts()]


def compbench_texts(folder: Path, category: str, images: int | None = None) -> list[Prompt]:
    """The prompts of a category of T2I-CompBench, of a copy of its lists, each with ten pictures unless told.

    Raises UserError for a list that is not there, or has no prompts.
    """
    rows = compbench_files.read_category(folder, category)
    found = {row["prompt"]: Prompt(np.zeros(0, int), row, images or compbench_files.EACH) for row in rows}
    return list(found.values())


def _each_once(path: Path, found: list[tuple[int, Prompt]]) -> list[Prompt]:
    """Raises UserError if there is no prompt, or the same one twice, with their lines."""
    where: dict[str, int] = {}
    for number, prompt in found:
        if prompt.text.strip() in where:
            first = where[prompt.text.strip()]
            raise UserError(
                f"{path}:{number}: the prompt of line {first} again: {prompt.text!r}; each may be given once"
            )
        where[prompt.text.strip()] = number
    if not found:
        raise UserError(f"{path}: holds no prompt; expected a caption a line, such as 'a photo of a red square'")
    return [prompt for _, prompt in found]


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each line that is not empty, and an object with its ``prompt``."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # with the mark that some editors put first
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    if path.suffix == ".tsv":
        yield from _table(path, lines)
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            row = _object(line, f"{path}:{number}") if path.suffix == ".jsonl" else {"prompt": line.strip()}
            yield number, row


def _table(path: Path, lines: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table as PartiPrompts is one: columns named in its first line, parted by tabs, without quoting.

    A prompt that is there under two challenges is asked once.
    """
    seen: set[str] = set()
    names = [name.strip().lower() for name in lines[0].split("\t")]
    if "prompt" not in names:
        raise UserError(f"{path}:1: names no column 'Prompt'; PartiPrompts' are Prompt, Category, Challenge and Note")
    for number, line in enumerate(lines[1:], 2):
        if line.strip():
            row = {name: cell.strip() for name, cell in zip(names, line.split("\t"), strict=False)}
            if not row.get("prompt"):
                raise UserError(f"{path}:{number}: has no prompt")
            if row["prompt"] not in seen:
                yield number, row
            seen.add(row["prompt"])


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # also a number of very many digits, and very deep nesting
        raise UserError(f"{where}: is not JSON: {getattr(error, 'msg', 'too large a number or too deep')}") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise UserError(f"{where}: has no 'prompt', a sentence such as 'a photo of a red square'")
    if any("\ud800" <= letter <= "\udfff" for letter in row["prompt"]):
        raise UserError(f"{where}: its 'prompt' has half a letter (a lone \\ud800 to \\udfff), and is no text")
    return row


def check_shown(words: Int[np.ndarray, "6"], data: DataConfig) -> None:
    """Raises UserError for a shape or colour that this setting of scenes does not have, or a sign where it has none."""
    if captions.spelt(words) and not data.words:
        raise UserError("there are no signs in these scenes (data.words is 0)")
    named = {captions.VOCABULARY[word] for word in words}
    for kind, everything, shown in (
        ("shape", composition.SHAPES, data.shapes),
        ("colour", composition.COLORS, data.colors),
    ):
        for name in sorted(named & set(everything[shown:])):
            raise UserError(f"the {kind} {name!r} is not in these scenes; there are {', '.join(everything[:shown])}")


def split_of(words: Int[np.ndarray, "6"], data: DataConfig) -> composition.Split:
    """Whether training ever shows what a caption says: its (shape, colour) pairs and its relation, or its word."""
    if word := captions.spelt(words):
        held = signs.held_out_words(data.words, data.held_out)
        return "seen" if word in itertools.compress(signs.WORDS, ~held) else "unseen"
    return _split(words, _held_out(data))


def _held_out(data: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Where (shape, colour) and where (relation, shape, other shape) are held out."""
    return (
        composition.held_out_pairs(data.shapes, data.colors, data.held_out),
        composition.held_out_relations(data.shapes, data.held_out),
    )


def _split(words: Int[np.ndarray, "6"], held: tuple[np.ndarray, np.ndarray]) -> composition.Split:
    pairs, relations = held
    _, color, shape, joint, other_color, other = (captions.VOCABULARY[word] for word in words)
    for one, its in ((shape, color), (other, other_color)):
        if its and pairs[composition.SHAPES.index(one), composition.COLORS.index(its)]:
            return "unseen"
    if joint in composition.RELATIONS:
        row = composition.RELATIONS.index(joint), composition.SHAPES.index(shape), composition.SHAPES.index(other)
        return "unseen" if relations[row] else "seen"
    return "seen"


def fingerprint(prompts: Iterable[Prompt]) -> str:
    """Eight hex digits: equal for equal lists of prompts and numbers of pictures."""
    text = json.dumps([[prompt.metadata, prompt.images] for prompt in prompts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
