"""T2I-CompBench's files (Huang et al. 2023): lists of prompts, pictures that are named after them, and answers.

A list is ``{category}_{train,val}.txt`` of the user's copy, a prompt a line. Ten pictures of a prompt are in
``samples/`` of a folder of their category, ``{prompt}_{number:06d}.png``, numbered prompt by prompt. Scores are a
``vqa_result.json``, ``[{"question_id": number, "answer": score}]``.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sd3_jax import records
from sd3_jax.errors import UserError
from sd3_jax.evaluation import compbench_prompts
from sd3_jax.evaluation.scorer import Shot

CATEGORIES = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")
SPLITS = ("train", "val")
EACH = 10  # pictures of a prompt
PARTS = ("spatial", "action")  # what complex prompts ask for beside attributes; those of neither list, both
OBJECTS = "new_objects.txt"  # nouns that are counted, "knife - knives" a line


def read_category(folder: Path, category: str, split: str = "val") -> list[dict[str, Any]]:
    """The prompts of a category: ``{"tag": category, "prompt"}``, and what else the copy tells of them.

    ``parts`` of complex prompts: which of "spatial" and "action" they ask for, beside attributes. ``objects`` of
    numeracy: how many of each. Raises UserError for a category that is none, or a file that is not there.
    """
    if category not in CATEGORIES:
        raise UserError(f"{category!r} is no category of T2I-CompBench: {', '.join(CATEGORIES)}")
    if split not in SPLITS:
        raise UserError(f"{split!r} is no split of T2I-CompBench: {' or '.join(SPLITS)}")
    rows: list[dict[str, Any]] = []
    for prompt in _lines(folder / f"{category}_{split}.txt"):
        rows.append({"tag": category, "prompt": prompt})
    if category == "complex":
        lists = {part: {_key(line) for line in _lines(folder / f"complex_{split}_{part}.txt")} for part in PARTS}
        for row in rows:
            own = [part for part in PARTS if _key(row["prompt"]) in lists[part]]
            row["parts"] = own[:1] or list(PARTS)  # of both lists, upstream takes the first
    if category == "numeracy":
        singular = read_objects(folder / OBJECTS)
        for row in rows:
            row["objects"] = compbench_prompts.counts(row["prompt"], singular)
    return rows


def read_objects(path: Path) -> dict[str, str]:
    """The singular of each noun that is counted, of both its numbers. Raises UserError for another file."""
    singular: dict[str, str] = {}
    for number, line in enumerate(_lines(path), 1):
        one, dash, many = (part.strip().lower() for part in line.partition(" - "))
        if not (one and dash and many):
            raise UserError(f"{path}:{number}: is not a noun in both numbers, such as 'knife - knives'")
        singular |= {one: one, many: one}
    return singular


def picture_name(prompt: str, number: int) -> str:
    """The file of a picture. Raises UserError for a prompt that cannot be told again from its name.

    >>> picture_name("a red cup", 12)
    'a red cup_000012.png'
    """
    name = f"{prompt}_{number:06d}.png"
    if not prompt or set(prompt) & set("_/\0\n") or len(name.encode()) > 255:
        raise UserError(f"{prompt[:80]!r}: is no name of a file, which has no _ or / and at most 255 bytes")
    return name


_NAME = re.compile(r"([^_]+)_(?:.*_)?(\d+)\.png")


def number_of(path: Path) -> int | None:
    """The number in a picture's name, if that begins with a prompt.

    >>> number_of(Path("a red cup_000012.png")), number_of(Path("00007_0002.png"))
    (12, None)
    """
    named = _NAME.fullmatch(path.name)
    return int(named[2]) if named and not named[1].isdigit() else None


def read_pictures(folder: Path, prompts: Sequence[Mapping[str, Any]]) -> list[tuple[int, Shot]]:
    """The pictures of a category and their numbers, in order; of each, the prompt that its name begins with.

    Raises UserError for names that are none, numbers that come twice, and prompts that are none of ``prompts``.
    """
    known: dict[str, int] = {}
    for index, prompt in enumerate(prompts):
        known.setdefault(prompt["prompt"], index)
    found: dict[int, Shot] = {}
    for path in sorted((folder / "samples").glob("*.png")):
        named = _NAME.fullmatch(path.name)
        if named is None:
            raise UserError(f"{path}: is not named as T2I-CompBench names pictures, 'a red cup_000012.png'")
        number, said = int(named[2]), named[1].strip()
        if said not in known:
            raise UserError(f"{path}: is of a prompt that the list does not have")
        if number in found:
            raise UserError(f"{path}: has the number of {found[number].path.name}")
        found[number] = Shot(path, known[said], prompts[known[said]])
    if not found:
        raise UserError(f"{folder / 'samples'}: holds no pictures of T2I-CompBench's names")
    return sorted(found.items())


def lay_out(folder: Path, shots: Mapping[int, Shot]) -> None:
    """Pictures under T2I-CompBench's names, for its own scorers to read: links to where they are.

    Raises UserError for a prompt that cannot be a name.
    """
    samples = folder / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    for number, shot in shots.items():
        path = samples / picture_name(shot.metadata["prompt"], number)
        target = os.path.relpath(shot.path.resolve(), samples.resolve())
        if path.is_symlink() and os.readlink(path) != target:
            path.unlink()
        if not path.is_symlink():
            path.symlink_to(target)


def write_answers(path: Path, answers: Mapping[int, float]) -> None:
    """Replace a ``vqa_result.json``."""
    rows = [{"question_id": number, "answer": float(answers[number])} for number in sorted(answers)]
    records.write_atomic(path, json.dumps(rows))


def read_answers(path: Path) -> dict[int, float]:
    """The scores of a ``vqa_result.json``, some of whose writers make them text. Raises UserError for another file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        found = {int(row["question_id"]): float(row["answer"]) for row in rows}
        if len(found) != len(rows):
            raise ValueError
    except OSError:
        raise UserError(f"{path}: no such file, or it cannot be read") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path}: is no vqa_result.json, a list of question_id and answer, each number once") from None
    return found


def _key(line: str) -> str:
    """What a prompt and its line in a list of parts have in common."""
    return line.split(".")[0].lower()


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.split("\t")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError:
        raise UserError(f"{path}: no such file; it is of a copy of T2I-CompBench's examples/dataset") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    if not any(lines):
        raise UserError(f"{path}: holds no prompts")
    return [line for line in lines if line]
