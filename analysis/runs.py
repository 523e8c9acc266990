"""Run directories -> tidy tables: every validation point, every row of the training loss, the points on a law.

What was read, skipped and left out is said in sentences in ``table.attrs["notes"]``; the resolved configuration
of each run is in ``table.attrs["configs"]`` and the FLOP budgets at which runs were evaluated in
``table.attrs["budgets"]``.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from sd3_jax import flops, records
from sd3_jax.config import YOUNGER, RunConfig, flatten, identity, to_dict
from sd3_jax.errors import UserError

LEVELS = 9  # stored losses at t = k / 8, k = 0..8; the validation loss is the mean of k = 0..7
MEASURED = ("step", "images", "flops", "seconds", "loss")
VALIDATION = ("loss_se", *(f"loss_t{k}" for k in range(LEVELS)))
TRAINING = ("grad_norm", "learning_rate", "images_per_second", "mfu")


class Configs(dict[str, RunConfig]):
    """The configuration of each run. pandas copies attributes deeply at every step; these are frozen, and shared."""

    def __deepcopy__(self, memo: Any) -> "Configs":
        return self


class Record(NamedTuple):
    """What a run's directory says of how it was made: the fields that its config.json has (dotted), and its lives."""

    config: dict[str, Any]
    lives: list[dict[str, Any]]  # oldest first


class Found(NamedTuple):
    """The run directories that will be read, and sentences about those that will not."""

    runs: dict[str, tuple[Path, records.Status, RunConfig]]
    notes: list[str]


def load(path: str | Path, unfinished: bool = False) -> pd.DataFrame:
    """One row per (run, step, weights): the validation points of the finished runs in a directory.

    Columns: run, architecture, weight_sets (0 but for MM-DiT), depth, width, seed, batch, params, flops_per_image,
    warmup_steps, last_step, cooldown (whether the run ends in one), status; step, images, flops, seconds, loss,
    loss_se, loss_t0..loss_t8, weights (raw or ema), phase (warmup, constant, lr_drop, cooldown or fine-tune),
    learning_rate (as configured). ``unfinished`` also reads the runs that have started but are not done. Points whose
    loss is not a positive number are dropped and counted.

    Raises UserError if there is no such directory, no run in it, or none that is finished.
    """
    found = find(path, unfinished)
    table, notes, budgets = _read(found, "validation", VALIDATION)
    if table.empty:
        raise UserError(f"{path}: {_count(len(found.runs), 'finished run')}, but no validation point in them")
    table["phase"] = table["phase"].fillna("constant")
    table = table.drop_duplicates(["run", "step", "weights"], keep="last")
    table = table.sort_values(["depth", "run", "weights", "step"], ignore_index=True)
    table.attrs |= {"notes": [*found.notes, *notes], "budgets": budgets}
    table.attrs["configs"] = Configs({name: config for name, (_, _, config) in found.runs.items()})
    return table


def load_train(path: str | Path, unfinished: bool = False) -> pd.DataFrame:
    """One row per logged step: the training loss, gradient norm, rate and throughput of the finished runs.

    Raises UserError as :func:`load` does; a run without such rows is no error.
    """
    found = find(path, unfinished)
    table, notes, _ = _read(found, "train", TRAINING)
    table = table.sort_values(["depth", "run", "step"], ignore_index=True)
    table.attrs |= {"notes": [*found.notes, *notes]}
    return table


def load_records(path: str | Path, unfinished: bool = False) -> dict[str, Record]:
    """What the directory of each finished run says of how it was made."""
    found = {}
    for name, (run_dir, _, config) in find(path, unfinished).runs.items():
        written = dict(flatten(json.loads((run_dir / "config.json").read_text(encoding="utf-8"))))
        fields = {key: value for key, value in flatten(to_dict(config)) if key in written or key in YOUNGER}
        found[name] = Record(fields, records.read_rows(run_dir / "lives.jsonl")[0])
    return found


def find(path: str | Path, unfinished: bool = False) -> Found:
    """The finished runs at or under ``path``, and a sentence for each group of others."""
    root = Path(path)
    if not root.is_dir():
        raise UserError(f"{root}: no such directory of runs")
    paths = records.find_runs(root)
    if not paths:
        raise UserError(f"{root}: holds no run (a run is a directory with a config.json)")
    groups: dict[str, list[str]] = {"done": [], "started": [], "failed": [], "waiting": []}
    runs: dict[str, tuple[Path, records.Status, RunConfig]] = {}
    notes: list[str] = []
    for run_dir in paths:
        name, status = run_dir.resolve().name, records.status(run_dir)
        groups[status].append(name)
        if status == "done" or (unfinished and status == "started"):
            try:
                runs[name] = (run_dir, status, records.load_config(run_dir))
            except UserError as error:
                notes.append(f"run left out: {error}.")
    others = {"started": "not finished", "failed": "failed", "waiting": "not started"}
    if unfinished:
        del others["started"]
    if not runs:
        states = ", ".join(f"{len(groups[key])} {words}" for key, words in others.items() if groups[key])
        raise UserError(f"{root}: no finished run among {len(paths)} ({states or 'none readable'})")
    for key, words in others.items():
        if groups[key]:
            notes.append(f"{_count(len(groups[key]), 'run')} {words}, left out: {', '.join(groups[key])}.")
    return Found(runs, notes)


def _read(found: Found, split: str, extra: Sequence[str]) -> tuple[pd.DataFrame, list[str], list[float]]:
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    budgets: set[float] = set()
    broken = dropped = 0
    for name, (run_dir, status, config) in found.runs.items():
        lines, skipped = records.read_rows(run_dir / "metrics.jsonl")
        broken += skipped
        described = _describe(name, status, config)
        kept = 0
        for line in lines:
            if line.get("split") != split:
                continue
            row: dict[str, Any] = {key: _number(line.get(key)) for key in (*MEASURED, *extra)}
            if not (row["loss"] > 0 and row["flops"] > 0 and row["images"] > 0 and row["step"] > 0):
                dropped += 1
                continue
            if split == "validation":
                row |= {"weights": line.get("weights", "raw"), "phase": line.get("phase")}
                budgets.update(x for x in map(_number, line.get("budgets") or ()) if math.isfinite(x))
            rows.append(described | row)
            kept += 1
        if not kept:
            notes.append(f"run {name} has no {split} point.")
    if broken:
        notes.append(f"{_count(broken, 'line')} of metrics.jsonl cut short or not JSON, skipped.")
    if dropped:
        notes.append(f"{_count(dropped, f'{split} point')} without a finite positive loss, dropped.")
    columns = (*_describe("", "done", RunConfig()), *MEASURED, *extra)
    columns += ("weights", "phase") if split == "validation" else ()
    table = pd.DataFrame(rows, columns=list(dict.fromkeys(columns)))
    return table.astype({"step": "int64", "images": "int64"}), notes, sorted(budgets)


def _describe(name: str, status: str, config: RunConfig) -> dict[str, Any]:
    """The columns that are the same for every row of a run."""
    return {
        "run": name,
        "architecture": config.model.architecture,
        "weight_sets": config.model.weight_sets if config.model.architecture == "mmdit" else 0,
        "depth": config.model.depth,
        "width": config.model.width,
        "seed": config.seed,
        "batch": config.batch,
        "params": flops.parameters(config.model).total,
        "flops_per_image": flops.image_flops(config),
        "warmup_steps": config.optimizer.warmup_steps,
        "last_step": flops.total_steps(config) if any((config.steps, config.images, config.flops)) else 0,
        "learning_rate": config.optimizer.learning_rate,
        "cooldown": config.optimizer.cooldown > 0,
        "status": status,
    }


def points_on_law(
    runs: pd.DataFrame,
    weights: Literal["ema", "raw"] = "ema",
    skip: float = 0.1,
    with_zero: bool = True,
    with_drops: bool = True,
) -> pd.DataFrame:
    """The validation points that a law may be fitted to: constant rate, past the beginning.

    ``skip`` is the share of each run's steps that is left out at its beginning, as is the warm-up: there the loss
    still remembers the initialisation and the warm-up, which no power law describes. Runs that end in a cooldown
    are left out whole: points of a falling rate are never pooled with points of a constant one. Points after a
    declared drop of the rate stay (column ``lr_drop``) unless ``with_drops`` is false. ``with_zero = False`` takes
    the level t = 0 out of the mean: its loss tends to Var(eps) = 1, an eighth of that in the mean, whatever the
    model (the loss is then the mean over t = k/8, k = 1..7).

    Raises UserError if nothing is left, or if the runs differ in data, flow, model family or validation set.
    """
    if not 0 <= skip < 1:
        raise UserError(f"skip: {skip} is not a share of the steps; valid: 0 <= skip < 1")
    check_one_study(runs)
    kept = runs[runs["weights"] == weights]
    if kept.empty:
        raise UserError(f"no validation point of the {weights} weights; there are: {_listed(runs['weights'].unique())}")
    constant = constant_rate(kept)
    beginning = np.maximum(constant["warmup_steps"], skip * constant["last_step"])
    points = constant[constant["step"] >= beginning].copy()
    points["lr_drop"] = points["phase"] == "lr_drop"
    if not with_drops:
        points = points[~points["lr_drop"]]
    notes = list(runs.attrs.get("notes", []))
    if not with_zero:
        points["loss"] = points[[f"loss_t{k}" for k in range(1, LEVELS - 1)]].mean(axis=1, skipna=False)
        points = points[points["loss"] > 0]
        notes.append("the loss is the mean over t = k/8, k = 1..7: level 0 left out.")
    if points.empty:
        if set(kept["phase"]) == {"fine-tune"}:
            raise UserError("no point on the law: the runs began from weights, of which size and images say nothing")
        raise UserError(
            f"no point on the law: of {_count(len(kept), 'validation point')} none has a constant rate "
            f"past the first {skip:.0%} of its run"
        )
    early = len(constant) - int((constant["step"] >= beginning).sum())
    if early:
        notes.append(f"{_count(early, 'point')} of the warm-up or the first {skip:.0%} of a run, left out.")
    if points["lr_drop"].any():
        notes.append(f"{_count(int(points['lr_drop'].sum()), 'point')} after a declared drop of the rate, kept.")
    points = points.reset_index(drop=True)
    points.attrs = runs.attrs | {"notes": notes}
    return points


def constant_rate(runs: pd.DataFrame) -> pd.DataFrame:
    """The validation points after the warm-up of the runs that do not end in a cooldown."""
    return runs[~runs["cooldown"] & runs["phase"].isin(["constant", "lr_drop"])]


def cooldown_ends(runs: pd.DataFrame, weights: Literal["ema", "raw"] = "ema") -> pd.DataFrame:
    """The last point of every run that ends in a cooldown.

    ``offset`` is its loss less that of the constant-rate run of the same depth and seed at the same step: what
    annealing gains, negative for a gain; NaN where there is no such run.
    """
    measured = runs[runs["weights"] == weights]
    cooled = measured[measured["cooldown"] & (measured["phase"] == "cooldown")]
    ends = cooled.sort_values("step").groupby("run", as_index=False).last()
    cell = [*BACKBONE, "depth", "seed", "step"]
    constant = measured[~measured["cooldown"]].groupby(cell)["loss"].mean()
    matched: Any = constant.reindex(pd.MultiIndex.from_frame(ends[cell])).to_numpy() if len(ends) else []
    return ends.assign(offset=ends["loss"] - matched).sort_values("depth", ignore_index=True)


def differences(runs: pd.DataFrame) -> list[str]:
    """The keys of the configuration in which the runs of a table differ, beside depth, seed and cooldown."""
    configs = runs.attrs.get("configs", {})
    identities = [{**YOUNGER, **identity(configs[name])} for name in runs["run"].unique() if name in configs]
    own = {"model.depth", "seed", "optimizer.cooldown"}
    keys = identities[0] if identities else {}
    return [key for key in keys if key not in own and any(one[key] != identities[0][key] for one in identities)]


def check_one_study(runs: pd.DataFrame, across_backbones: bool = False) -> None:
    """Raise UserError if the losses of the runs are not comparable: they measure different things.

    A law, a correlation or a figure over depths is of one backbone: several are refused, unless the comparison is
    ``across_backbones``, whose models may differ in all but what is predicted, and from what.
    """
    if not across_backbones:
        check_one_backbone(runs)
    changed = [
        key
        for key in differences(runs)
        if key.startswith(("flow.", "data."))
        or key in COMPARED
        or (key in TASK if across_backbones else key.startswith("model."))
    ]
    if changed:
        raise UserError(f"the runs differ in {_listed(changed)}: their losses are not comparable, analyse each alone")


def check_one_backbone(table: pd.DataFrame) -> None:
    """Raise UserError if runs or scores are of several backbones: they are no family whose one dial is depth."""
    found = backbones(table)
    if len(found) > 1:
        raise UserError(
            f"the runs are of {len(found)} backbones ({_listed(found.values())}): laws and correlations are of one; "
            "analyse each in a directory of its own, or compare them with figure 4"
        )


def backbones(table: pd.DataFrame) -> dict[tuple[str, int], str]:
    """The backbones of a table of runs or scores, as (architecture, weight_sets), and what the paper calls each.

    The sets of weights are MM-DiT's alone, 0 for the others.
    """
    keys = {(str(row[0]), int(row[1])) for row in table[list(BACKBONE)].drop_duplicates().itertuples(index=False)}
    order = list(LABELS)
    return {key: LABELS[key] for key in sorted(keys, key=order.index)}


BACKBONE = ("architecture", "weight_sets")
LABELS = {
    ("mmdit", 1): "DiT",
    ("crossdit", 0): "CrossDiT",
    ("uvit", 0): "UViT",
    ("mmdit", 2): "MM-DiT, 2 sets",
    ("mmdit", 3): "MM-DiT, 3 sets",
}
# What a model is told and asked, whatever its backbone.
TASK = (
    "model.latent_size",
    "model.latent_channels",
    "model.text_tokens",
    "model.text_dim",
    "model.pooled_dim",
)
COMPARED = ("evaluation.seed", "evaluation.examples")


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _listed(items: Iterable[object]) -> str:
    return ", ".join(map(str, items)) or "none"
