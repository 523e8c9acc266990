"""Official protocols for pictures of any system: which pictures are of which prompt, and judgements to rows of scores.

A system is a folder of pictures, whoever drew them. What is missing of it is said, and marks its rows as partial.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sd3_jax.errors import UserError
from sd3_jax.evaluation import compbench_files, folders, geneval, judged, preference, prompts, upstream
from sd3_jax.evaluation.geneval import Mean
from sd3_jax.evaluation.prompts import Prompt
from sd3_jax.evaluation.scorer import Said, Scorer, Shot, checksum
from sd3_jax.evaluation.scores import OVERALL

SUITES = ("geneval", "compbench", "preference", "fidelity", "typography")


class Pictures(NamedTuple):
    """A system's pictures of a list of prompts."""

    shots: list[Shot]
    problems: list[str]  # what is lacking of them
    notes: list[str]  # what else is there


def find(folder: Path, asked: Sequence[Prompt], where: str) -> Pictures:
    """The pictures of a folder, in GenEval's layout or flat, of the prompts asked for, at most so many of each.

    ``where`` the prompts are from is said in errors. Raises UserError for a folder without any of these.
    """
    texts = [prompt.text.strip() for prompt in asked]
    there = {
        number: [Shot(path, number, asked[number].metadata, folders.index_of(path)) for path in paths]
        for number, paths in folders.pictures_of(folder, texts, where).items()
    }
    found = _of_those_asked(folder, asked, there)
    others = folders.count_others(folder, texts)
    notes = [f"{folder}: {others:,} prompts that are not of {where} are left out"] if others else []
    return found._replace(notes=[*found.notes, *notes])


def _of_those_asked(folder: Path, asked: Sequence[Prompt], there: Mapping[int, Sequence[Shot]]) -> Pictures:
    """Of the pictures of each prompt, by its number, as many as are asked for; what is lacking, and what is left."""
    own = [there.get(number, ()) for number in range(len(asked))]
    shots = [shot for prompt, shots in zip(asked, own, strict=True) for shot in shots[: prompt.images]]
    short = [(prompt, len(shots)) for prompt, shots in zip(asked, own, strict=True) if len(shots) < prompt.images]
    problems, notes = [], []
    if short:
        lacking, first = sum(prompt.images - number for prompt, number in short), short[0][0].text.strip()
        problems.append(f"{folder}: {lacking:,} pictures of {len(short):,} prompts are missing, first of {first!r}")
    if surplus := sum(map(len, own)) - len(shots):
        notes.append(f"{folder}: {surplus:,} pictures more than are asked for of their prompts are left out")
    return Pictures(shots, problems, notes)


def find_category(folder: Path, asked: Sequence[Prompt], category: str) -> Pictures:
    """The pictures of a category of T2I-CompBench: as it names them, in ``folder/category/samples``, or as others are.

    Raises UserError as :func:`find`, and for numbered pictures of no category: each counts its prompts from 0.
    """
    inner = folder / category
    if not any((inner / "samples").glob("*.png")):
        if not inner.is_dir() and not folders.says_prompts(folder):
            raise UserError(f"{folder}: its pictures are numbered, but of which category? Those of {category}: {inner}")
        return find(inner if inner.is_dir() else folder, asked, f"category {category}")
    there = compbench_files.read_pictures(inner, [prompt.metadata for prompt in asked])
    found: dict[int, list[Shot]] = {}
    for _, shot in there:
        found.setdefault(shot.prompt, []).append(shot)
    return _of_those_asked(inner, asked, found)


def numbered(shots: Sequence[Shot], asked: Sequence[Prompt]) -> dict[int, Shot]:
    """Pictures by the numbers that T2I-CompBench gives them, prompt by prompt: those of their names where they have
    its names."""
    first = np.cumsum([0, *(prompt.images for prompt in asked)])
    found = {}
    for shot in shots:
        named = compbench_files.number_of(shot.path)
        found[int(first[shot.prompt]) + shot.place if named is None else named] = shot
    return found


def overall_of_categories(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The unweighted mean of CompBench's categories, ``overall`` if they are all eight; under a name of its own where
    some were judged otherwise than the benchmark does."""
    name = "compbench" if {row["name"] for row in rows} == {"compbench"} else "compbench-all"
    mean = geneval.unweighted([Mean(row["value"], row["se"], row["n"], row["prompts"]) for row in rows])
    group = OVERALL if len(rows) == len(compbench_files.CATEGORIES) else f"mean of {len(rows)}"
    partial = [row["partial"] for row in rows if "partial" in row]
    of_all = {
        key: checksum("".join(str(row.get(key)) for row in rows).encode())[:8] for key in ("prompt_list", "digest")
    }
    found = {"name": name, "group": group, **_mean(mean), **of_all}
    return found | ({"partial": partial[0]} if partial else {})


def as_there_are(folder: Path, asked: Sequence[Prompt], where: str) -> list[Prompt]:
    """The prompts, each with as many pictures as the one that has the most. Errors of :func:`find`."""
    found = folders.pictures_of(folder, [prompt.text.strip() for prompt in asked], where)
    return [prompt._replace(images=max(map(len, found.values()))) for prompt in asked]


def own_prompts(folder: Path) -> list[Prompt]:
    """The prompts that a folder in GenEval's layout says, each with as many pictures as the most have.

    Raises UserError for a folder that does not say them, or says one twice.
    """
    rows = [(number, metadata, len(paths)) for number, metadata, paths in folders.read_folder(folder)]
    images = max(count for *_, count in rows)
    seen: dict[str, int] = {}
    for number, metadata, _ in rows:
        first = seen.setdefault(metadata["prompt"].strip(), number)
        if first != number:
            raise UserError(f"{folder}: {first:05d} and {number:05d} have the same prompt")
    if not images:
        raise UserError(f"{folder}: holds prompts, but no pictures of them")
    return [Prompt(np.zeros(0, int), metadata, images) for _, metadata, _ in rows]


def rows_of(scorer: Scorer, said: Said, asked: Sequence[Prompt], problems: Sequence[str]) -> list[dict[str, Any]]:
    """The scores of what a judge said, each with its error, over prompts as clusters, and how it came to be.

    Verdicts (GenEval's) make a score for each task and their mean; numbers a mean, and one for each ``category`` of
    the prompts that have some; fields of numbers a score each. What a judge has no answer to (null) is left out.
    """
    values = [value for value in said.values if value is not None]
    answered = [shot for shot, value in zip(said.shots, said.values, strict=True) if value is not None]
    if not values:
        return []
    lacking = [*problems, *said.problems]
    common = {
        "judge": scorer.name,
        "digest": scorer.digest,
        "prompt_list": prompts.fingerprint(asked),
        "pictures": checksum("".join(said.checksums).encode()),
        **({"partial": judged.partial(lacking)} if lacking else {}),
    }
    if isinstance(values[0], Mapping) and "correct" in values[0]:
        rows = upstream.score_rows(_results(values, answered, scorer.name))
    elif isinstance(values[0], Mapping):
        names = [name for name, value in values[0].items() if isinstance(value, int | float)]
        each = {f"{scorer.name}-{name}": [value[name] for value in values] for name in names}
        rows = [row for name, own in each.items() for row in _means(name, own, answered)]
    else:
        rows = _means(scorer.name, values, answered)
    return [row | common for row in rows]


def preference_rows(judge: str, said: Mapping[str, Said], reference: str) -> dict[str, list[dict[str, Any]]]:
    """Rows of every system by name: how often a judge prefers its pictures to the reference's, and its Elo score.

    Errors of :func:`preference.rated`.
    """
    there: dict[str, dict[str, dict[int, float]]] = {}  # of system, prompt and place
    for name, one in said.items():
        for shot, value in zip(one.shots, one.values, strict=True):
            own = there.setdefault(name, {}).setdefault(shot.metadata["prompt"].strip(), {})
            own[shot.place] = float(value)
    places: dict[str, set[int]] = {}  # of each prompt, in any system
    for texts in there.values():
        for text, own in texts.items():
            places.setdefault(text, set()).update(own)
    by_prompt = {
        name: {text: [own.get(place) for place in sorted(places[text])] for text, own in texts.items()}
        for name, texts in there.items()
    }
    found = {}
    for row in preference.rated(by_prompt, reference, preference.LOG_ODDS.get(judge)):
        common = {"group": OVERALL, "n": row["n"], "prompts": row["prompts"], "judge": judge, "reference": reference}
        soft: dict[str, Any] = {key: row[key] for key in ("soft", "soft_se") if key in row}
        win = {"name": f"{judge}-win-rate", "value": row["value"], "se": row["se"], "ci95": row["ci95"], **soft}
        elo = {"name": f"{judge}-elo", "value": row["elo"], "se": row["elo_se"], "ci95": row["elo_ci95"]}
        found[row["system"]] = [win | common, elo | common | {"compared": sorted(said)}]
    return found


def _results(values: Sequence[Mapping[str, Any]], shots: Sequence[Shot], judge: str) -> upstream.Results:
    numbers = sorted({shot.prompt for shot in shots})
    metadata = {shot.prompt: dict(shot.metadata) for shot in shots}
    return upstream.Results(
        np.array([bool(value["correct"]) for value in values]),
        [str(shot.metadata["tag"]) for shot in shots],
        np.array([numbers.index(shot.prompt) for shot in shots]),
        [metadata[number] for number in numbers],
        judge,
    )


def _means(name: str, values: Sequence[float], shots: Sequence[Shot]) -> list[dict[str, Any]]:
    numbers, prompt = np.asarray(values, float), np.array([shot.prompt for shot in shots])
    name, _, group = name.partition("/")  # compbench/color: a score, and which of its groups
    rows = [_row(name, group or OVERALL, numbers, prompt)]
    labels = np.array([str(shot.metadata.get("category", "")) for shot in shots])
    for label in dict.fromkeys(labels.tolist()) if not group else ():
        own = labels == label
        rows += [_row(name, label, numbers[own], prompt[own])] if label else []
    return rows


def _row(name: str, group: str, values: np.ndarray, prompt: np.ndarray) -> dict[str, Any]:
    mean = geneval.clustered_mean(values, prompt)
    _, cluster, images = np.unique(prompt, return_inverse=True, return_counts=True)
    by_prompt = {
        "by_prompt": (np.bincount(cluster, values) / images).round(6).tolist(),
        "images_by_prompt": images.tolist(),
    }
    return {"name": name, "group": group, **_mean(mean), **by_prompt}


def _mean(mean: Mean) -> dict[str, Any]:
    return {"value": mean.value, "se": mean.se, "n": mean.images, "prompts": mean.prompts}
