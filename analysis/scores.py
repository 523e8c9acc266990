"""Scores of pictures -> tidy tables: one row per score, with the validation loss of the weights that drew them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.runs import Found, find, load
from sd3_jax import records
from sd3_jax.errors import UserError

OVERALL = "overall"
UNSEEN = ":unseen"
# What makes two scores comparable: how the pictures were drawn, and what looked at them.
SETTING = ("sampler", "steps", "guidance", "shift", "weights", "noise_seed", "prompt_list", "judge", "reference")
SCORE = (
    "value",
    "se",
    "n",
    "prompts",
    "chance",
    "chance_se",
    "above_chance",
    "above_chance_se",
    "ceiling",
    "ceiling_se",
)
_LOSS = ("run", "step", "weights")


def load_scores(path: str | Path, unfinished: bool = False) -> pd.DataFrame:
    """One row per (run, step, score, group) of the finished runs in a directory, joined with their validation loss.

    Columns: those of :func:`analysis.load` that describe the run and the point (loss, loss_se, flops, images, phase,
    ...); name, group (a task, or "overall"), value, se, n (pictures), prompts, chance, above_chance, ceiling and
    their errors; by_prompt and images_by_prompt (arrays); ``last``: whether it is the run's last step. Where runs
    were evaluated in several settings, the one with most rows is taken, and a note says so.

    Raises UserError if there are no runs, or no scores in them.
    """
    losses = load(path, unfinished)
    rows, notes = _read(find(path, unfinished))
    if not rows:
        raise UserError(f"{path}: no scores of pictures in these runs; sd3-jax evaluate {path} makes them")
    table = pd.DataFrame(rows)
    table, left_out = _one_setting(table)
    described = losses.drop(columns=["warmup_steps", "status"])
    joined = table.merge(described, on=list(_LOSS), how="inner")
    if len(joined) < len(table):
        lost = len(table) - len(joined)
        notes.append(f"{lost} score{'s' if lost > 1 else ''} at steps without a validation loss, left out.")
    if joined.empty:
        raise UserError(f"{path}: no score of pictures belongs to a step with a validation loss")
    joined["last"] = joined["step"] == joined["last_step"]
    joined = joined.sort_values(["name", "group", "depth", "run", "step"], ignore_index=True)
    joined.attrs |= {"notes": [*notes, *left_out], "configs": losses.attrs["configs"]}
    joined.attrs["setting"] = {key: joined[key].iloc[0] for key in SETTING if key in joined}
    return joined


def score_points(scores: pd.DataFrame, name: str) -> pd.DataFrame:
    """The overall score of every evaluated point at a constant rate, as :func:`analysis.correlate` takes it.

    by_prompt, weight and group are the prompts of all its tasks, in one order for all points: the mean over them
    with these weights is the overall score, each task having the same weight whatever the number of its prompts.

    Raises UserError if no such score is there, or if the points do not share their prompts.
    """
    own = scores[(scores["name"] == name) & (scores["phase"] != "cooldown") & ~scores["cooldown"]]
    overall = own[own["group"] == OVERALL].reset_index(drop=True)
    if overall.empty:
        raise UserError(f"no score {name!r}; there are {', '.join(sorted(scores['name'].unique()))}")
    tasks = own[(own["group"] != OVERALL) & ~own["group"].str.endswith(UNSEEN)]
    parts = {point: part.sort_values("group") for point, part in tasks.groupby(["run", "step"])}
    columns: dict[str, list[Any]] = {"by_prompt": [], "weight": [], "group": []}
    for point in zip(overall["run"], overall["step"], strict=True):
        part = parts.get(point)
        if part is None:
            raise UserError(f"{point[0]}: the scores {name!r} of step {point[1]} do not say the prompts' own")
        images = [np.asarray(counts, float) for counts in part["images_by_prompt"]]
        columns["by_prompt"].append(np.concatenate([np.asarray(values, float) for values in part["by_prompt"]]))
        columns["weight"].append(np.concatenate([count / count.sum() / len(images) for count in images]))
        columns["group"].append(np.repeat(np.arange(len(images)), [len(count) for count in images]))
    if len({len(values) for values in columns["by_prompt"]}) > 1:
        raise UserError(f"the runs' scores {name!r} are of different prompts: evaluate them with the same settings")
    return overall.assign(**{key: pd.Series(values, dtype=object) for key, values in columns.items()})


def _read(found: Found) -> tuple[list[dict[str, Any]], list[str]]:
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    broken = partial = 0
    for name, (run_dir, _, _) in found.runs.items():
        lines, skipped = records.read_rows(run_dir / "evals.jsonl")
        broken += skipped
        if not lines:
            notes.append(f"run {name} has no scores of pictures.")
        for line in lines:
            if not isinstance(line.get("step"), int) or not isinstance(line.get("value"), int | float):
                broken += 1
                continue
            partial += bool(line.get("partial"))
            rows.append({"run": name, "noise_seed": line.get("seed")} | {key: line.get(key) for key in _COLUMNS})
    if broken:
        notes.append(f"{broken} lines of evals.jsonl without a score, skipped.")
    if partial:
        notes.append(f"{partial} scores are partial: some of their pictures are missing.")
    return rows, notes


_COLUMNS = (
    *("step", "name", "group", *SCORE, "prompt_seed", "by_prompt", "images_by_prompt", "partial"),
    *(key for key in SETTING if key != "noise_seed"),  # a run has a seed of its own
)


def _one_setting(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The rows of the setting that has most of them; the judge and the reference belong to some scores only."""
    common = [key for key in SETTING if key not in ("judge", "reference")]
    settings = [json.dumps(row, default=str) for row in table[common].to_dict(orient="records")]
    (most, _), *others = Counter(settings).most_common()
    chosen = table[np.array(settings) == most]
    notes = [f"scores of {len(others)} other settings of the sampler, left out."] if others else []
    return chosen.reset_index(drop=True), notes
