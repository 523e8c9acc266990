"""A folder of pictures -> what was found in them -> rows of scores, each with its error, and what chance and truth are.

What is found in a picture is kept beside it, under its checksum: nothing is looked at twice.
"""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from sd3_jax import overlays, records
from sd3_jax.config import DataConfig
from sd3_jax.data import captions, signs
from sd3_jax.errors import UserError
from sd3_jax.evaluation import fidelity, folders, geneval, prompts, scene_judge, scores, truth
from sd3_jax.evaluation.fidelity import Distance
from sd3_jax.evaluation.geneval import Mean


class Pictures(NamedTuple):
    """A folder of pictures that was read: those that could be, each with its prompt, and what was wrong."""

    prompts: list[dict[str, Any]]
    folders: list[int]  # where each prompt's pictures are
    prompt: Int[np.ndarray, " n"]  # index of each picture's prompt
    number: Int[np.ndarray, " n"]  # of each picture among those of its prompt
    images: UInt8[np.ndarray, "n H W 3"]
    checksums: Int[np.ndarray, " n"]
    lengths: Float[np.ndarray, " n"]  # of the latents' paths from noise; nan where a file does not say
    problems: list[str]


class Judged(NamedTuple):
    """Pictures with what was found in them and how they measure up."""

    pictures: Pictures
    measured: scores.Measured


def judge_folder(out: Path, data: DataConfig) -> Judged:
    """Judge the pictures of a folder in GenEval's layout, and write ``results.jsonl`` as GenEval's evaluator does.

    Pictures whose checksum is in it already are not looked at again.

    Raises UserError if there is not one picture that can be judged.
    """
    pictures = read_pictures(out, data)
    found = _found(out / "results.jsonl", pictures, data)
    measured = scores.measure(pictures.prompts, pictures.prompt, found)
    _write_results(out / "results.jsonl", out, pictures, found)
    return Judged(pictures, measured)


def read_pictures(out: Path, data: DataConfig) -> Pictures:
    """All pictures of a folder of scenes that can be read. Raises UserError if there is none."""
    return read_described(out, lambda metadata: _described(metadata, data), data.image_size)


def read_described(out: Path, describe: Callable[[Mapping[str, Any]], Any], side: int) -> Pictures:
    """All square pictures of ``side`` pixels of a folder that can be read, each prompt as ``describe`` understands it.

    Raises UserError if there is none, or for a prompt that is not understood, or is there twice.
    """
    asked: list[dict[str, Any]] = []
    numbers: list[int] = []
    rows: list[tuple[int, int, folders.Read]] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, metadata, paths in folders.read_folder(out):
        try:
            metadata = describe(metadata)
        except UserError as error:
            raise UserError(f"{out / f'{number:05d}' / 'metadata.jsonl'}: {error}") from None
        if metadata["prompt"] in seen:
            raise UserError(f"{out}: {seen[metadata['prompt']]:05d} and {number:05d} have the same prompt")
        seen[metadata["prompt"]] = number
        there = {int(path.stem) for path in paths}
        problems += [
            f"{folders.image_path(out, number, index)}: is missing"
            for index in range(max(there, default=0) + 1)
            if index not in there
        ]
        for path in paths:
            try:
                read = folders.read_png(path)
            except UserError as error:
                problems.append(str(error))
                continue
            if read.image.shape != (side, side, 3):
                height, width = read.image.shape[:2]
                problems.append(f"{path}: has {width} x {height} pixels, not {side} x {side}")
                continue
            rows.append((len(asked), int(path.stem), read))
        asked.append(metadata)
        numbers.append(number)
    lacking = _planned(out) - len(rows) - len(problems)
    if lacking > 0:
        problems.append(f"{out}: {lacking} more of its pictures are missing")
    if not rows:
        raise UserError(f"{out}: holds no picture that can be judged" + (f" ({problems[0]})" if problems else ""))
    prompt, number, reads = zip(*rows, strict=True)
    images, checksums, lengths = zip(*reads, strict=True)
    return Pictures(
        prompts=asked,
        folders=numbers,
        prompt=np.array(prompt),
        number=np.array(number),
        images=np.stack(images),
        checksums=np.array(checksums),
        lengths=np.array(lengths),
        problems=problems,
    )


def data_of(out: Path) -> DataConfig:
    """The scenes that a folder of pictures was drawn of, as its settings.json says. Raises UserError if none does."""
    path = out / "settings.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))["data"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{out}: no settings.json says what scenes these are; name them with --experiment") from None
    try:
        fitting = {"latent_size": data["image_size"] // data["downsample"], "patch": 1, "latent_channels": 1}
        return overlays.resolve({"steps": 1, "data": data, "model": fitting}).data
    except (UserError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{path}: data: {error}") from None


def _planned(out: Path) -> int:
    """How many pictures a folder was made for; 0 if it does not say."""
    try:
        return int(json.loads((out / "settings.json").read_text(encoding="utf-8"))["images"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _described(metadata: Mapping[str, Any], data: DataConfig) -> dict[str, Any]:
    """A prompt's metadata as its caption means it: a folder may say less, or more, than GenEval does."""
    words = captions.parse(metadata["prompt"])
    prompts.check_shown(words, data)
    return prompts.metadata(words) | {"split": prompts.split_of(words, data)}


def _found(path: Path, pictures: Pictures, data: DataConfig) -> list[list[scene_judge.Found]]:
    """What is in each picture: from the rows of ``path`` where the checksum is the same, else by looking."""
    known: dict[int, list[scene_judge.Found]] = {}
    for row in records.read_rows(path)[0]:
        if row.get("judge") == scene_judge.VERSION and isinstance(row.get("checksum"), int):
            try:
                known[row["checksum"]] = scores.from_row(json.loads(row["details"]), data)
            except (KeyError, TypeError, ValueError):
                continue
    new = [i for i, checksum in enumerate(pictures.checksums.tolist()) if checksum not in known]
    for i, objects in zip(new, scene_judge.find(pictures.images[new], data) if new else [], strict=True):
        known[int(pictures.checksums[i])] = scores.from_row(scores.to_row(objects), data)
    return [known[checksum] for checksum in pictures.checksums.tolist()]


def _write_results(path: Path, out: Path, pictures: Pictures, found: Sequence[list[scene_judge.Found]]) -> None:
    """One line a picture, with the fields of GenEval's evaluator, the strict verdict, and the cache of the judge."""
    lines = []
    for i, objects in enumerate(found):
        metadata = pictures.prompts[pictures.prompt[i]]
        lenient, strict = scene_judge.judge(metadata, objects)
        row = {
            "filename": str(_relative(out, pictures, i)),
            "tag": metadata["tag"],
            "prompt": metadata["prompt"],
            "correct": lenient.correct,
            "reason": lenient.reason,
            "metadata": json.dumps(metadata),
            "details": json.dumps(scores.to_row(objects)),
            "strict": strict.correct,
            "strict_reason": strict.reason,
            "checksum": int(pictures.checksums[i]),
            "judge": scene_judge.VERSION,
        }
        lines.append(json.dumps(row) + "\n")
    text = "".join(lines)
    if not path.exists() or path.read_text(encoding="utf-8", errors="replace") != text:
        records.write_atomic(path, text)


def _relative(out: Path, pictures: Pictures, i: int) -> Path:
    return folders.image_path(out, pictures.folders[pictures.prompt[i]], int(pictures.number[i])).relative_to(out)


def score_rows(
    judged: Judged, ceilings: Mapping[tuple[str, str], scores.Score], setting: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The scores of judged pictures as rows, each with its error, what chance scores and what truth would."""
    pictures = judged.pictures
    rows = []
    for score in scores.summarize(pictures.prompts, judged.measured):
        ceiling = ceilings.get((score.name, score.group))
        rows.append(
            {
                "name": score.name,
                "group": score.group,
                **_mean("", score.own),
                "n": score.own.images,
                "prompts": score.own.prompts,
                **_mean("chance", score.chance),
                **_mean("above_chance", score.above),
                **(_mean("ceiling", ceiling.own) if ceiling else {}),
                **setting,
                "pictures": zlib.crc32(pictures.checksums.tobytes()),
                "judge": scene_judge.VERSION,
                "by_prompt": score.by_prompt,
                "images_by_prompt": score.images_by_prompt,
                **({"partial": partial(pictures.problems)} if pictures.problems else {}),
            }
        )
    return rows


def distance_rows(
    pictures: Pictures, data: DataConfig, channels: int | None, setting: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """How far the pictures of what training shows are from true scenes of the same captions, as one row.

    Signs are left out, so that settings with and without them compare. Its ceiling is the distance of as many other
    true scenes, its value is the lower the better. There is no row of fewer than two pictures, which have no
    covariance.
    """
    groups = [scores.group_of(metadata) for metadata in pictures.prompts]
    seen = [group != signs.TAG and not group.endswith(":unseen") for group in groups]
    chosen = np.array(seen)[pictures.prompt]
    each, prompt, images = np.unique(pictures.prompt[chosen], return_inverse=True, return_counts=True)
    if chosen.sum() < 2:
        return []
    words = tuple(tuple(captions.parse(pictures.prompts[one]["prompt"]).tolist()) for one in each)
    reference, ceiling = truth.reference(data, channels, words, tuple(images.tolist()))
    tags = [pictures.prompts[index]["tag"] for index in pictures.prompt[chosen]]
    found = fidelity.distance(fidelity.scene_features(pictures.images[chosen]), reference, prompt, tags)
    group = scores.OVERALL if {*tags} >= {*geneval.TAGS} else f"of {len({*tags})}"
    return [distance_row(fidelity.NAME, group, found, ceiling, pictures, setting)]


def distance_row(
    name: str, group: str, found: Distance, ceiling: Distance, pictures: Pictures, setting: Mapping[str, Any]
) -> dict[str, Any]:
    """A distance of pictures, beside that of as many true ones, as a row."""
    return {
        "name": name,
        "group": group,
        "value": found.value,
        "se": found.se,
        "n": found.n,
        "prompts": found.prompts,
        "ceiling": ceiling.value,
        "ceiling_se": ceiling.se,
        **setting,
        "pictures": zlib.crc32(pictures.checksums.tobytes()),
        "features": fidelity.VERSION,
        **({"partial": partial(pictures.problems)} if pictures.problems else {}),
    }


def length_rows(pictures: Pictures, setting: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How far latents went from noise to picture, as one row (paper Table 6); none where a picture does not say."""
    if not np.isfinite(pictures.lengths).all():
        return []
    mean = geneval.clustered_mean(pictures.lengths, pictures.prompt)
    row = {
        "name": folders.LENGTH,
        "group": scores.OVERALL,
        **_mean("", mean),
        "n": mean.images,
        "prompts": mean.prompts,
    }
    return [row | dict(setting)]


def partial(problems: Sequence[str]) -> str:
    """What is missing of a folder of pictures, in a line."""
    return problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _mean(name: str, mean: Mean) -> dict[str, float]:
    return {name or "value": mean.value, f"{name}_se" if name else "se": mean.se}
