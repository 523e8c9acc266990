"""How good the pictures of runs are: drawn, judged, and written down beside the losses.

A run is evaluated at its last step and at those it keeps a checkpoint of (``keep_steps``), which are never deleted:
what is due follows from the run directory alone, so nothing that was due is lost to an interruption, and the same
command again does only what is missing. What is found in a picture is kept beside it, under its checksum.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sd3_jax import bucket, records
from sd3_jax.errors import UserError
from sd3_jax.evaluation import conditioning, generate, geneval, judged, likeness, prompts, truth
from sd3_jax.evaluation.generate import Report, Sampler
from sd3_jax.protocols import PROTOCOLS
from sd3_jax.training import sharding


@dataclass(frozen=True)
class Request:
    """What is drawn at each step that is evaluated, the same for every run that is compared."""

    images_per_task: int = 100
    prompt_seed: int = 0  # 0: the frozen list; another: a fresh one
    sampler: Sampler = field(default_factory=Sampler)


def protocol(name: str, request: Request) -> list[Request]:
    """What one of the paper's studies draws; shift, seed and prompts as in ``request``.

    table1 (section 5.1) draws six settings with averaged and raw weights, on the grid of each formulation's own path;
    table6 at guidance 5 with 5, 10, 20 and 50 steps. Raises UserError for another name.
    """
    if name not in PROTOCOLS:
        raise UserError(f"--protocol: {name!r} is not one of {', '.join(PROTOCOLS)}")
    study = PROTOCOLS[name]
    alike = replace(request.sampler, grid=study.grid or request.sampler.grid, method="euler")
    samplers = [
        replace(alike, steps=steps, guidance=guidance, weights=weights)
        for weights in study.weights
        for steps, guidance in study.samplers
    ]
    return [replace(request, sampler=sampler) for sampler in samplers]


# --- what is due ----------------------------------------------------------------------------------------------------


def due_steps(run_dir: Path) -> list[int]:
    """The steps at which a run is evaluated: those whose checkpoint it keeps, and its newest.

    Raises UserError if it has no checkpoint.
    """
    config, saved = records.load_config(run_dir), generate.steps_saved(run_dir)
    return sorted({step for step in config.keep_steps if step in saved} | {saved[-1]})


def best_step(run_dir: Path) -> int:
    """Of the steps that are due, that of the lowest validation loss of the averaged weights (paper section 5.1).

    The last, if there is no such loss at any of them.
    """
    rows = records.read_rows(run_dir / "metrics.jsonl")[0]
    losses = {row["step"]: row["loss"] for row in rows if row.get("weights") == "ema" and "loss" in row}
    return min(due_steps(run_dir), key=lambda step: (losses.get(step, float("inf")), -step))


def folder_of(run_dir: Path, step: int, request: Request) -> Path:
    """Where the pictures of one evaluation are."""
    asked = _prompts(run_dir, request)
    return run_dir / "samples" / generate.folder_name(step, request.sampler, asked)


def _prompts(run_dir: Path, request: Request) -> list[prompts.Prompt]:
    """Scenes' own, or captions of what is held out: one picture of each, as many as GenEval's six tasks have."""
    config = records.load_config(run_dir)
    if config.data.source == "scenes":
        return prompts.scene_prompts(config.data, request.images_per_task, request.prompt_seed)
    return list(_held_out(run_dir, request.images_per_task, request.prompt_seed))


@functools.lru_cache(maxsize=16)
def _held_out(run_dir: Path, images_per_task: int, seed: int) -> tuple[prompts.Prompt, ...]:
    """Captions that a run never saw: read once, since every folder and every row is named by them."""
    held = conditioning.held_out(records.load_config(run_dir), run_dir)
    number = len(geneval.TAGS) * images_per_task
    return tuple(conditioning.held_out_prompts(held, number, seed, fewer=True))


def pictures_due(run_dir: Path, request: Request, steps: Sequence[int] | None = None) -> int:
    """How many pictures an evaluation of a run takes in all."""
    number = sum(prompt.images for prompt in _prompts(run_dir, request))
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
    asked = _prompts(run_dir, request)
    mesh = sharding.make_mesh(config.mesh, config.batch)
    said = conditioning.of_run(config, run_dir, request.sampler.without)
    draw = generate.make_draw(config, mesh, request.sampler, said=said)
    rows = []
    for step in steps:
        out = folder_of(run_dir, step, request)
        generate.sample(run_dir, step, asked, request.sampler, out, report=report, draw=draw, said=said)
        score = _score_scenes if config.data.source == "scenes" else _score_pictures
        rows += [{"step": step, **row} for row in score(run_dir, out, request)]
    write_scores(run_dir, rows)
    return rows


def _score_scenes(run_dir: Path, out: Path, request: Request) -> list[dict[str, Any]]:
    config, said = records.load_config(run_dir), setting(run_dir, request)
    found = judged.judge_folder(out, config.data)
    ceilings = truth.ceilings(config.data, config.model.latent_channels, request.images_per_task)
    rows = judged.score_rows(found, ceilings, said)
    rows += judged.distance_rows(found.pictures, config.data, config.model.latent_channels, said)
    return rows + judged.length_rows(found.pictures, said)


def _score_pictures(run_dir: Path, out: Path, request: Request) -> list[dict[str, Any]]:
    config, said = records.load_config(run_dir), setting(run_dir, request)
    found = likeness.read_pictures(out, config)
    return likeness.distance_rows(found, config, run_dir, said) + judged.length_rows(found, said)


def setting(run_dir: Path, request: Request) -> dict[str, Any]:
    """The fields of a row that say how its pictures came to be."""
    asked = _prompts(run_dir, request)
    return request.sampler.settings | {"prompt_seed": request.prompt_seed, "prompt_list": prompts.fingerprint(asked)}


def is_drawn_so(row: Mapping[str, Any], said: Mapping[str, Any]) -> bool:
    """Whether a row's pictures came to be in the :func:`setting` ``said``; what neither says is as usual."""
    return all(row.get(name) == said.get(name) for name in (*records.DRAWN, *said))


def write_scores(run_dir: Path, rows: Iterable[Mapping[str, Any]], whole: bool = False) -> None:
    """Put rows into a run's evals.jsonl, in place of older ones of the same score in the same setting.

    ``whole``: they are all groups that a score has, and older ones of other groups go too.
    """
    rows = list(rows)
    records.put_scores(run_dir / records.SCORES, rows, whole)
    bucket.put_scores(run_dir, rows, whole)
