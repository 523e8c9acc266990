"""Scores of pictures -> tidy tables: one row per score, with the validation loss of the weights that drew them."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from analysis.runs import Found, check_one_backbone, check_one_study, find, load
from sd3_jax import records
from sd3_jax.errors import UserError

OVERALL = "overall"
UNSEEN = ":unseen"
# What makes two scores comparable: how the pictures were drawn, and what looked at them.
SETTING = ("sampler", "steps", "guidance", "shift", "grid", "without", "weights", "noise_seed")
RATER = ("prompt_list", "judge", "reference", "features")  # of each score: of what, by whom, against whom, in what
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
    "other_caption",
    "other_caption_se",
)
_LOSS = ("run", "step", "weights")


class Prompts(NamedTuple):
    """The prompts of a score: the sum of weight times by_prompt is the score, each task having the same weight."""

    by_prompt: Float[np.ndarray, " p"]
    weight: Float[np.ndarray, " p"]
    group: Int[np.ndarray, " p"]  # the task of each prompt


def load_scores(path: str | Path, unfinished: bool = False, setting: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """One row per (run, step, score, group) of the finished runs in a directory, joined with their validation loss.

    Columns: those of :func:`analysis.load` that describe the run and the point (loss, loss_se, flops, images, phase,
    ...); name, group (a task, or "overall"), value, se, n (pictures), prompts, chance, above_chance, ceiling and
    their errors; by_prompt and images_by_prompt (arrays); ``last``: whether it is the run's last step. Where runs
    were evaluated in several settings, the one with most rows is taken, and a note says which were not; ``setting``
    (such as ``{"guidance": 5}``) says which of them to look at.

    Runs may be of several backbones, as figure 4 compares them; correlations are of one.

    Raises UserError if there are no runs, no scores in them, or if the runs' losses are not comparable.
    """
    losses = load(path, unfinished)
    check_one_study(losses, across_backbones=True)
    rows, notes = read_rows(find(path, unfinished))
    if not rows:
        raise UserError(f"{path}: no scores of pictures in these runs; sd3-jax evaluate {path} makes them")
    table = only_setting(pd.DataFrame(rows), setting or {})
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
    joined.attrs["setting"] = {key: joined[key].iloc[0] for key in SETTING}
    return joined


def score_points(scores: pd.DataFrame, name: str, task: str = OVERALL) -> pd.DataFrame:
    """A score, overall or of one task, of every point at a constant rate, as :func:`analysis.correlate` takes it.

    by_prompt, weight and group are the prompts of all its tasks, in one order for all points: the mean over them
    with these weights is the overall score, each task having the same weight whatever the number of its prompts. A
    score of no tasks says its prompts' own overall.

    Raises UserError if no such score is there, if the points do not share their prompts, or for several backbones.
    """
    check_one_backbone(scores)
    own = constant_rate(scores, name)
    overall = own[own["group"] == task].reset_index(drop=True)
    there = sorted(scores.loc[scores["by_prompt"].notna(), "name"].unique())
    if name not in there or overall.empty:
        of = "" if task == OVERALL else f" of a task {task!r}"
        raise UserError(f"no score {name!r}{of} with prompts of its own; there are {', '.join(there)}")
    of_tasks_alone = task == OVERALL and overall["by_prompt"].map(lambda values: not values).all()
    tasks = own[own["group"].isin(task_names(own) if of_tasks_alone else [task])]
    parts = dict(list(tasks.groupby(["run", "step"])))
    columns: dict[str, list[Any]] = {"by_prompt": [], "weight": [], "group": []}
    for point in zip(overall["run"], overall["step"], strict=True):
        part = parts.get(point)
        if part is None:
            raise UserError(f"{point[0]}: the scores {name!r} of step {point[1]} do not say the prompts' own")
        for key, values in prompts_of(part)._asdict().items():
            columns[key].append(values)
    if len({len(values) for values in columns["by_prompt"]}) > 1:
        raise UserError(f"the runs' scores {name!r} are of different prompts: evaluate them with the same settings")
    return overall.assign(**{key: pd.Series(values, dtype=object) for key, values in columns.items()})


def constant_rate(scores: pd.DataFrame, name: str) -> pd.DataFrame:
    """A score's rows at a constant rate. Raises UserError where some runs began from weights and others did not."""
    own = scores[(scores["name"] == name) & (scores["phase"] != "cooldown") & ~scores["cooldown"]]
    if own["phase"].eq("fine-tune").nunique() > 1:
        raise UserError("some runs began from weights and others did not: analyse them in directories of their own")
    return own


def task_names(rows: pd.DataFrame) -> list[str]:
    """The tasks whose mean an overall score is, in order."""
    return sorted(group for group in set(rows["group"]) - {OVERALL} if not group.endswith(UNSEEN))


def of_tasks(scores: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows are of a task that the overall score is a mean over."""
    return (scores["group"] != OVERALL) & ~scores["group"].str.endswith(UNSEEN)


def prompts_of(tasks: pd.DataFrame) -> Prompts:
    """The prompts of one score's tasks, in the order of the tasks' names."""
    tasks = tasks.sort_values("group")
    images = [np.asarray(counts, float) for counts in tasks["images_by_prompt"]]
    return Prompts(
        np.concatenate([np.asarray(values, float) for values in tasks["by_prompt"]]),
        np.concatenate([count / count.sum() / len(images) for count in images]),
        np.repeat(np.arange(len(images)), [len(count) for count in images]),
    )


def read_rows(found: Found) -> tuple[list[dict[str, Any]], list[str]]:
    """Every score of the runs, in any setting, as evals.jsonl has it, and notes on what is missing or cut short."""
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    broken = partial = 0
    for name, (run_dir, _, _) in found.runs.items():
        lines, others = records.read_scores(run_dir / "evals.jsonl")
        broken += len(others)
        if not lines:
            notes.append(f"run {name} has no scores of pictures.")
        for line in lines:
            if line["name"] == "validation-loss":  # on another set than the run's own: no score of pictures
                continue
            partial += bool(line.get("partial"))
            unsaid = {"noise_seed": line.get("seed"), "grid": line.get("grid", "uniform")}
            unsaid["without"] = ",".join(line.get("without") or [])
            rows.append({"run": name} | {key: line.get(key) for key in _COLUMNS} | unsaid)
    if broken:
        notes.append(f"{broken} lines of evals.jsonl without a score, skipped.")
    if partial:
        notes.append(f"{partial} scores are partial: some of their pictures are missing.")
    return rows, notes


_COLUMNS = (
    *("step", "name", "group", *SCORE, "prompt_seed", "by_prompt", "images_by_prompt", "partial"),
    *(key for key in (*SETTING, *RATER) if key not in ("noise_seed", "grid", "without")),
)


def only_setting(table: pd.DataFrame, setting: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of a setting that was asked for. Raises UserError, naming what there is, if there are none."""
    for key, value in setting.items():
        if key not in (*SETTING, *RATER):
            raise UserError(f"{key}: is not part of a setting; there are {', '.join((*SETTING, *RATER))}")
        there = sorted({str(one) for one in table[key].dropna()})
        table = table[(table[key] == value) | (table[key].isna() if key in RATER else False)]
        if table.empty:
            raise UserError(f"no scores with {key} {value}; there are {', '.join(there)}")
    return table


def _one_setting(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The rows of the setting that has most of them; of each score, those of the commonest judge and reference."""
    table, notes = commonest(table, SETTING, "scores left out, of another setting")
    kept = []
    for name, own in table.groupby("name"):
        own, others = commonest(own, RATER, f"scores {name} left out")
        kept.append(own)
        notes += others
    return pd.concat(kept, ignore_index=True), notes


def commonest(table: pd.DataFrame, keys: Sequence[str], what: str) -> tuple[pd.DataFrame, list[str]]:
    """The rows of those values of ``keys`` that most have, and a note for each of the others, beginning with what."""
    each = [json.dumps(row, default=str) for row in table[list(keys)].to_dict(orient="records")]
    (most, _), *others = Counter(each).most_common()
    notes = [f"{what}: {_difference(json.loads(other), json.loads(most))}." for other, _ in others]
    return table[np.array(each) == most], notes


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    changed = [key for key in one if json.dumps(one[key]) != json.dumps(other[key])]  # nan is itself, as text
    return ", ".join(f"{key} {one[key]}" for key in changed)
