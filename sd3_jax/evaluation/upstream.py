"""Results as GenEval's own evaluator writes them (Ghosh et al. 2023): its summary, with errors that it lacks."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from sd3_jax import records
from sd3_jax.errors import UserError
from sd3_jax.evaluation.geneval import TAGS, Mean, Summary, summarize

NAME = "geneval"
JUDGE = "geneval-mask2former"  # of upstream: Mask2Former of mmdetection, and CLIP for colours


class Results(NamedTuple):
    """Pictures as they were judged."""

    correct: Bool[np.ndarray, " n"]
    tag: list[str]
    prompt: Int[np.ndarray, " n"]  # index among the prompts
    prompts: list[dict[str, Any]]  # their metadata
    judge: str = JUDGE


def result_row(filename: str, prompt: Mapping[str, Any], verdict: Mapping[str, Any], judge: str) -> dict[str, Any]:
    """A line of ``results.jsonl`` of a picture that one of our judges judged, with its name, which upstream lacks.

    ``verdict``: ``{"correct", "reason", ["objects": {class: [{"box", "score"}]}]}``.
    """
    boxes = {name: [[*one["box"], one["score"]] for one in own] for name, own in verdict.get("objects", {}).items()}
    row = {"filename": filename, "tag": prompt["tag"], "prompt": prompt["prompt"]}
    row |= {"correct": verdict["correct"], "reason": verdict.get("reason", "")}
    return row | {"metadata": json.dumps(dict(prompt)), "details": json.dumps(boxes), "judge": judge}


def write_results(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a ``results.jsonl``, which upstream's ``summary_scores.py`` and :func:`read_results` read."""
    records.write_rows(path, rows)


def read_results(path: Path) -> Results:
    """The lines of a ``results.jsonl``. Raises UserError, naming the line, for one that is no result."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    correct, tags, index = list[bool](), list[str](), list[int]()
    prompts: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    judges = set[str]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            said = json.loads(row["metadata"]) if isinstance(row["metadata"], str) else row["metadata"]
            tag, verdict, key = row["tag"], row["correct"], json.dumps(said, sort_keys=True)
            judge = row.get("judge", JUDGE)
            if not isinstance(verdict, bool) or not all(isinstance(x, str) for x in (tag, said["prompt"], judge)):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{path}:{number}: is not a line of GenEval's results (tag, correct, metadata)") from None
        if key not in prompts:
            prompts[key] = len(rows)
            rows.append(said)
        correct.append(verdict)
        tags.append(tag)
        index.append(prompts[key])
        judges.add(judge)
    if not correct:
        raise UserError(f"{path}: holds no results")
    if len(judges) > 1:
        raise UserError(f"{path}: holds results of different judges: {', '.join(sorted(judges))}")
    return Results(np.array(correct), tags, np.array(index), rows, *judges)


def lines_of(summary: Summary, results: Results) -> list[str]:
    """The summary as GenEval's ``summary_scores.py`` words it, each score with its error over prompts."""
    total = [
        f"Total images: {len(results.correct)}",
        f"Total prompts: {len(results.prompts)}",
        f"% correct images: {summary.images_correct:.2%}",
        f"% correct prompts: {summary.prompts_correct:.2%}",
    ]
    tags = np.array(results.tag)
    tasks = [
        f"{name:<16} = {mean.value:.2%} ± {mean.se:.2%} ({int(results.correct[tags == name].sum())} / {mean.images})"
        for name, mean in summary.tasks.items()
    ]
    return [*total, *tasks, f"Overall score (avg. over tasks): {summary.overall.value:.5f} ± {summary.overall.se:.5f}"]


def score_rows(results: Results) -> list[dict[str, Any]]:
    """The scores as rows of evals.jsonl, overall and of each task, prompt by prompt, under the name of their judge.

    The overall score of a folder that lacks a task says of how many it is the mean.
    """
    summary = summarize(results.correct, results.tag, results.prompt)
    tags, rows = np.array(results.tag), []
    name = NAME if results.judge == JUDGE else results.judge  # the official name is the official judge's
    overall = "overall" if {*summary.tasks} >= {*TAGS} else f"mean of {len(summary.tasks)}"
    for group, mean in {overall: summary.overall, **summary.tasks}.items():
        own = slice(None) if group == overall else tags == group
        prompt, inverse, images = np.unique(results.prompt[own], return_inverse=True, return_counts=True)
        share = np.bincount(inverse, results.correct[own]) / images
        by_prompt = {"by_prompt": share.tolist(), "images_by_prompt": images.tolist()} if group != overall else {}
        rows.append({"name": name, "group": group, **_mean(mean), "judge": results.judge, **by_prompt})
    return rows


def _mean(mean: Mean) -> dict[str, Any]:
    return {"value": mean.value, "se": mean.se, "n": mean.images, "prompts": mean.prompts}
