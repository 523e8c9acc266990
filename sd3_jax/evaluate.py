"""How good the pictures of runs are: drawn, judged, and written down beside the losses.

A run is evaluated at its last step and at those it keeps a checkpoint of (``keep_steps``), which are never deleted:
what is due follows from the run directory alone, so nothing that was due is lost to an interruption, and the same
command again does only what is missing. What is found in a picture is kept beside it, under its checksum.
"""

import dataclasses
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from sd3_jax import overlays, records
from sd3_jax.config import DataConfig, RunConfig
from sd3_jax.data import captions
from sd3_jax.errors import UserError
from sd3_jax.evaluation import fidelity, generate, geneval, prompts, scene_judge, scores, truth
from sd3_jax.evaluation.generate import Report, Sampler
from sd3_jax.evaluation.geneval import Mean
from sd3_jax.training import sharding


@dataclass(frozen=True)
class Request:
    """What is drawn at each step that is evaluated, the same for every run that is compared."""

    images_per_task: int = 100
    prompt_seed: int = 0  # 0: the frozen list; another: a fresh one
    sampler: Sampler = field(default_factory=Sampler)


class Pictures(NamedTuple):
    """A folder of pictures that was read: those that could be, each with its prompt, and what was wrong."""

    prompts: list[dict[str, Any]]
    folders: list[int]  # where each prompt's pictures are
    prompt: Int[np.ndarray, " n"]  # index of each picture's prompt
    number: Int[np.ndarray, " n"]  # of each picture among those of its prompt
    images: UInt8[np.ndarray, "n H W 3"]
    checksums: Int[np.ndarray, " n"]
    problems: list[str]


# --- what is due ----------------------------------------------------------------------------------------------------


def due_steps(run_dir: Path) -> list[int]:
    """The steps at which a run is evaluated: those whose checkpoint it keeps, and its newest.

    Raises UserError if it has no checkpoint.
    """
    config, saved = records.load_config(run_dir), generate.steps_saved(run_dir)
    return sorted({step for step in config.keep_steps if step in saved} | {saved[-1]})


def folder_of(run_dir: Path, step: int, request: Request) -> Path:
    """Where the pictures of one evaluation are."""
    asked = _prompts(records.load_config(run_dir), request)
    return run_dir / "samples" / generate.folder_name(step, request.sampler, asked)


def _prompts(config: RunConfig, request: Request) -> list[prompts.Prompt]:
    return prompts.scene_prompts(config.data, request.images_per_task, request.prompt_seed)


def pictures_due(run_dir: Path, request: Request, steps: Sequence[int] | None = None) -> int:
    """How many pictures an evaluation of a run takes in all."""
    number = sum(prompt.images for prompt in _prompts(records.load_config(run_dir), request))
    return number * len(due_steps(run_dir) if steps is None else steps)


# --- one run --------------------------------------------------------------------------------------------------------


def evaluate_run(
    run_dir: Path, request: Request, steps: Sequence[int] | None = None, report: Report = lambda pictures: None
) -> list[dict[str, Any]]:
    """Draw and judge a run's pictures at every step that is due (or those given); write and return the rows.

    Raises UserError for a run without checkpoints, or without one of a step that is asked for.
    """
    config = records.load_config(run_dir)
    steps = due_steps(run_dir) if steps is None else list(steps)
    missing = [step for step in steps if step not in generate.steps_saved(run_dir)]
    if missing:
        saved = ", ".join(map(str, generate.steps_saved(run_dir)))
        raise UserError(f"{run_dir}: has no checkpoint of step {missing[0]}; there are {saved}")
    asked = _prompts(config, request)
    mesh = sharding.make_mesh(config.mesh, config.batch)
    draw = generate.make_draw(config, mesh, request.sampler)
    rows = []
    for step in steps:
        out = folder_of(run_dir, step, request)
        generate.sample(run_dir, step, asked, request.sampler, out, report=report, draw=draw)
        found = judge_folder(out, config.data)
        ceilings = truth.ceilings(config.data, config.model.latent_channels, request.images_per_task)
        own = score_rows(found, ceilings, setting(config, request))
        own += distance_rows(found.pictures, config.data, config.model.latent_channels, setting(config, request))
        rows += [{"step": step, **row} for row in own]
    write_scores(run_dir, rows)
    return rows


def setting(config: RunConfig, request: Request) -> dict[str, Any]:
    """The fields of a row that say how its pictures came to be."""
    asked = _prompts(config, request)
    sampler = {"sampler": "euler", **dataclasses.asdict(request.sampler)}
    return sampler | {"prompt_seed": request.prompt_seed, "prompt_list": prompts.fingerprint(asked)}


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
    """All pictures of a folder that can be read. Raises UserError if there is none."""
    asked: list[dict[str, Any]] = []
    folders: list[int] = []
    rows: list[tuple[int, int, np.ndarray, int]] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, metadata, paths in generate.read_folder(out):
        try:
            metadata = _described(metadata, data)
        except UserError as error:
            raise UserError(f"{out / f'{number:05d}' / 'metadata.jsonl'}: {error}") from None
        if metadata["prompt"] in seen:
            raise UserError(f"{out}: {seen[metadata['prompt']]:05d} and {number:05d} have the same prompt")
        seen[metadata["prompt"]] = number
        there = {int(path.stem) for path in paths}
        problems += [
            f"{generate.image_path(out, number, index)}: is missing"
            for index in range(max(there, default=0) + 1)
            if index not in there
        ]
        for path in paths:
            try:
                image, checksum = generate.read_png(path)
            except UserError as error:
                problems.append(str(error))
                continue
            if image.shape != (data.image_size, data.image_size, 3):
                height, width = image.shape[:2]
                problems.append(f"{path}: has {width} x {height} pixels, not {data.image_size} x {data.image_size}")
                continue
            rows.append((len(asked), int(path.stem), image, checksum))
        asked.append(metadata)
        folders.append(number)
    lacking = _planned(out) - len(rows) - len(problems)
    if lacking > 0:
        problems.append(f"{out}: {lacking} more of its pictures are missing")
    if not rows:
        raise UserError(f"{out}: holds no picture that can be judged" + (f" ({problems[0]})" if problems else ""))
    prompt, number, images, checksums = zip(*rows, strict=True)
    return Pictures(asked, folders, np.array(prompt), np.array(number), np.stack(images), np.array(checksums), problems)


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
    return generate.image_path(out, pictures.folders[pictures.prompt[i]], int(pictures.number[i])).relative_to(out)


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

    Its ceiling is the distance of as many other true scenes, its value is the lower the better. There is no row of
    fewer than two pictures, which have no covariance.
    """
    seen = [not scores.group_of(metadata).endswith(":unseen") for metadata in pictures.prompts]
    chosen = np.array(seen)[pictures.prompt]
    each, prompt, images = np.unique(pictures.prompt[chosen], return_inverse=True, return_counts=True)
    if chosen.sum() < 2:
        return []
    words = tuple(tuple(captions.parse(pictures.prompts[one]["prompt"]).tolist()) for one in each)
    reference, ceiling = truth.reference(data, channels, words, tuple(images.tolist()))
    tags = [pictures.prompts[index]["tag"] for index in pictures.prompt[chosen]]
    found = fidelity.distance(fidelity.scene_features(pictures.images[chosen]), reference, prompt, tags)
    row = {
        "name": fidelity.NAME,
        "group": scores.OVERALL if {*tags} >= {*geneval.TAGS} else f"of {len({*tags})}",
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
    return [row]


def partial(problems: Sequence[str]) -> str:
    """What is missing of a folder of pictures, in a line."""
    return problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _mean(name: str, mean: Mean) -> dict[str, float]:
    return {name or "value": mean.value, f"{name}_se" if name else "se": mean.se}


def write_scores(run_dir: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Put rows into a run's evals.jsonl, in place of older ones of the same score in the same setting."""
    records.put_scores(run_dir / "evals.jsonl", rows, _key)


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    names = ("step", "name", "group", *(f.name for f in dataclasses.fields(Sampler)), "prompt_list", "reference")
    return tuple(json.dumps(row.get(name)) for name in names)
