"""Runs of different training formulations, scored in every setting of the sampler (after the paper's section 5.1).

A setting is a data set, a sampler (method, steps, guidance, shift, grid of times) and which weights drew, averaged or
raw. Losses of different formulations are not comparable; scores of pictures are. Of each run one step is scored, in
all settings: the one with the lowest validation loss of the averaged weights among those evaluated in as many settings
as any.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.association import prompt_parts
from analysis.runs import differences, find, load
from analysis.scores import OVERALL, RATER, SETTING, commonest, of_tasks, only_setting, prompts_of, read_rows
from sd3_jax import formulations
from sd3_jax.config import DataConfig, RunConfig
from sd3_jax.errors import UserError
from sd3_jax.protocols import PROTOCOLS

UP = "scene-geneval-soft"  # for the paper's CLIP score: how well pictures show what the caption says
DOWN = "scene-frechet"  # for its FID
PATH_LENGTH = "path-length"
SAMPLER = ("sampler", "steps", "guidance", "shift", "grid", "weights")
WHOSE = ("data_set", "formulation", "depth", "run", "seed", "step")
GROUPS = {"rf/": "rf, reweighted", "rf": "rf", "eps": "eps", "v": "v", "edm": "edm"}  # by how a name begins
PAPERS = ("euler", 5.0)  # sampler and guidance of its tables at one number of steps


def group_of(formulation: str) -> str:
    """The group by which the paper colours its figure 3.

    >>> [group_of(name) for name in ("rf", "rf/mode(1.29)", "eps/linear", "v/cos", "edm(0.00, 0.60)", "edm/rf")]
    ['rf', 'rf, reweighted', 'eps', 'v', 'edm', 'edm']
    """
    return next((group for begin, group in GROUPS.items() if formulation.startswith(begin)), "rf")


def load_study(
    path: str | Path,
    unfinished: bool = False,
    setting: Mapping[str, Any] | None = None,
    up: str = UP,
    down: str = DOWN,
) -> pd.DataFrame:
    """One row per (run, setting, score, group) of the finished runs in a directory, at the step that is scored.

    Columns: data_set, formulation, depth, run, seed, step; sampler, steps, guidance, shift, grid, weights; name, group
    (a task, or "overall"), value, se, n, by_prompt, images_by_prompt. The scores are ``up`` (the higher the better),
    ``down`` (the lower the better) and path-length; ``setting`` (such as ``{"guidance": 5}``) says which to look at.
    In ``attrs``: notes, up, down, and ``differs``: what the runs of a data set differ in beside the flow.

    Raises UserError if there are no runs, or no score ``up`` in them.
    """
    losses = load(path, unfinished)
    rows, notes = read_rows(find(path, unfinished))
    if not rows:
        raise UserError(f"{path}: no scores of pictures in these runs; sd3-jax evaluate {path} makes them")
    notes = [*losses.attrs["notes"], *notes]
    configs: dict[str, RunConfig] = losses.attrs["configs"]
    cooled = sorted(name for name, config in configs.items() if config.optimizer.cooldown)
    if cooled:
        notes.append(f"runs that end in a cooldown, left out: {', '.join(cooled)}.")
    every = pd.DataFrame(rows)
    every = every[~every["run"].isin(cooled)]
    table = every[every["name"].isin((up, down, PATH_LENGTH))]
    there = sorted(every.loc[every["group"] == OVERALL, "name"].unique())
    if up not in there:
        raise UserError(f"{path}: no score {up!r} in these runs; there are {', '.join(there) or 'none'}")
    table = only_setting(table, setting or {})
    labels = data_sets({run: configs[run] for run in table["run"].unique()})
    table = table.assign(data_set=table["run"].map(labels))
    kept = []
    drawn = [key for key in SETTING if key not in SAMPLER]  # the same prompts, from the same noise
    for (data_set, score), own in table.groupby(["data_set", "name"]):
        own, others = commonest(own, [*drawn, *RATER], f"scores {score} of {data_set} left out")
        kept.append(own)
        notes += others
    table = pd.concat(kept, ignore_index=True)
    table, scored = _scored_steps(table, losses)
    of_rows = [configs[str(run)] for run in table["run"]]
    table = table.assign(
        formulation=[formulations.name_of(config.flow) for config in of_rows],
        depth=[config.model.depth for config in of_rows],
        seed=[config.seed for config in of_rows],
    )
    columns = [*WHOSE, *SAMPLER, "name", "group", "value", "se", "n", "by_prompt", "images_by_prompt"]
    table = table[columns].drop_duplicates([*WHOSE, *SAMPLER, "name", "group"], keep="last")
    table = table.astype({"value": float, "se": float}).sort_values([*WHOSE, *SAMPLER, "name", "group"])
    differs = {}
    for label in sorted(set(labels.values())):
        runs = losses[losses["run"].map(labels) == label]
        keys = [key for key in differences(runs) if not key.startswith(("flow.", "evaluation."))]
        differs[label] = [*keys, *(key for key in ("depth", "last_step") if runs[key].nunique() > 1)]
    table.attrs = {"notes": [*notes, *scored], "up": up, "down": down, "differs": differs}
    return table.reset_index(drop=True)


def data_sets(configs: Mapping[str, RunConfig]) -> dict[str, str]:
    """A label for the data of every run: the values of the fewest fields, words before numbers, that tell them apart.

    >>> from dataclasses import replace
    >>> two = {"a": RunConfig(), "b": replace(RunConfig(), data=DataConfig(layout="grid", image_size=24))}
    >>> data_sets(two), data_sets({"a": RunConfig()})
    ({'a': 'free', 'b': 'grid'}, {'a': 'scenes'})
    """
    fields = {run: dataclasses.asdict(config.data) for run, config in configs.items()}
    names = sorted((f.name for f in dataclasses.fields(DataConfig)), key=lambda name: not _is_word(fields, name))
    chosen: list[str] = []

    def apart(keys: Iterable[str]) -> int:
        return len({tuple(str(one[key]) for key in keys) for one in fields.values()})

    for name in names:
        if apart(chosen) < apart(names) and apart([*chosen, name]) > apart(chosen):
            chosen.append(name)
    return {
        run: ", ".join(one[key] if isinstance(one[key], str) else f"{key} {one[key]}" for key in chosen or ["source"])
        for run, one in fields.items()
    }


def _is_word(fields: Mapping[str, Mapping[str, Any]], name: str) -> bool:
    return all(isinstance(one[name], str) and one[name] for one in fields.values())


def _scored_steps(table: pd.DataFrame, losses: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The rows of the one step of each run that is scored, and notes."""
    measured = losses[losses["weights"] == "ema"].set_index(["run", "step"])["loss"].to_dict()
    lowest = losses[losses["weights"] == "ema"].sort_values("loss").drop_duplicates("run").set_index("run")["step"]
    settings = table.drop_duplicates(["run", "step", *SAMPLER]).groupby(["run", "step"]).size()
    chosen: dict[str, int] = {}
    unknown, elsewhere = [], []
    for run in table["run"].unique():
        counts = settings[run]
        steps = counts.index[counts == counts.max()].tolist()
        losses_of = {step: measured[run, step] for step in steps if (run, step) in measured}
        chosen[run] = min(losses_of, key=lambda step: losses_of[step]) if losses_of else max(steps)
        unknown += [] if losses_of else [run]
        elsewhere += [run] if losses_of and lowest[run] not in steps else []
    notes = []
    if unknown:
        notes.append(f"no validation loss at the steps of {_some(unknown)} that were evaluated: the last is scored.")
    if elsewhere:
        notes.append(
            f"the lowest EMA validation loss of {_some(elsewhere)} is at a step that was not evaluated in all "
            "settings: the best of those that were is scored."
        )
    return table[table["step"] == table["run"].map(chosen)], notes


def one_model(study: pd.DataFrame) -> list[str]:
    """Notes on what runs differ in beside their formulation. Raises UserError if it is the model: not comparable."""
    notes = []
    for data_set, keys in study.attrs["differs"].items():
        model = [key for key in keys if key == "depth" or key.startswith("model.")]
        if model:
            raise UserError(
                f"the runs of {data_set} differ in {', '.join(model)}: formulations are compared on one model; put "
                "each model's runs in a directory of its own"
            )
        others = ["length (steps)" if key == "last_step" else key for key in keys if not key.startswith("data.")]
        if others:
            notes.append(f"the runs of {data_set} also differ in {', '.join(others)}.")
    return notes


def points(study: pd.DataFrame) -> pd.DataFrame:
    """One row per (run, setting) that has both overall scores: up, up_se, down, down_se beside what says whose.

    ``up_parts`` is what each prompt adds to the noise of ``up`` (:func:`analysis.association.prompt_parts`), so that
    scores of the same prompts can be compared; None where the score does not say several of each task.

    Raises UserError if there is no score ``down``.
    """
    keys, down = [*WHOSE, *SAMPLER], study.attrs["down"]
    overall = study[study["group"] == OVERALL]
    if down not in set(overall["name"]):
        raise UserError(f"no score {down!r} in these runs; sd3-jax evaluate makes scene-frechet, --down names another")
    sides = []
    for side in ("up", "down"):
        own = overall[overall["name"] == study.attrs[side]]
        sides.append(own[[*keys, "value", "se", "n"]].rename(columns={"value": side, "se": f"{side}_se"}))
    table = sides[0].drop(columns="n").merge(sides[1], on=keys)
    tasks = study[of_tasks(study) & (study["name"] == study.attrs["up"])]
    whole = tasks[tasks["by_prompt"].map(bool) & tasks["images_by_prompt"].map(bool)]
    parts = {}
    for key, own in whole.groupby(keys):
        prompts = prompts_of(own)
        if np.bincount(prompts.group).min() > 1:  # one prompt has no spread
            parts[key] = prompt_parts(prompts.by_prompt[None], prompts.weight, prompts.group)[0]
    named = table[keys].itertuples(index=False, name=None)
    return table.assign(up_parts=pd.Series([parts.get(key) for key in named], dtype=object))


def settings_of(points: pd.DataFrame, study: str) -> tuple[pd.DataFrame, list[str]]:
    """The rows drawn in the settings of one of :data:`sd3_jax.protocols.PROTOCOLS`, and a note on what is left out.

    Of each data set those of one shift and grid of times: of which there are most, the study's own grid before others.
    All rows, and a note that says which, if there are none.
    """
    protocol, title = PROTOCOLS[study], study.replace("table", "Table ")
    wanted = {(PAPERS[0], *sampler, weights) for sampler in protocol.samplers for weights in protocol.weights}
    named = points[["sampler", "steps", "guidance", "weights"]].itertuples(index=False, name=None)
    kept = points[[key in wanted for key in named]]
    if kept.empty:
        return points, [f"none of {title}'s settings was evaluated: these are {_settings_in_words(points)}."]
    ways: Any = (
        kept.drop_duplicates(["formulation", "data_set", *SAMPLER]).groupby(["data_set", "shift", "grid"]).size()
    )
    best: dict[Any, Any] = {}
    for way in sorted(ways.index, key=lambda way: (ways[way], way[2] == protocol.grid, -abs(way[1] - 1))):
        best[way[0]] = way  # the last is the best
    kept = kept[[way == best[way[0]] for way in kept[["data_set", "shift", "grid"]].itertuples(index=False, name=None)]]
    others = points.drop(kept.index)
    if others.empty:
        return kept, []
    return kept, [f"left out, as they are not among {title}'s settings: {_settings_in_words(others)}."]


def in_words(setting: Mapping[Any, Any]) -> str:
    """A data set and how the sampler drew."""
    shift = f", shift {setting['shift']:g}" if setting["shift"] != 1 else ""
    shift += f", {setting['grid']} grid" if setting["grid"] != "uniform" else ""
    sampler = f"{setting['steps']} {setting['sampler']} steps, guidance {setting['guidance']:g}{shift}"
    return f"{setting['data_set']}, {sampler}, {setting['weights']}"


def _settings_in_words(points: pd.DataFrame) -> str:
    keys = ["data_set", *SAMPLER]
    said = [in_words(row) for row in points[keys].drop_duplicates().sort_values(keys).to_dict(orient="records")]
    return "; ".join(said) if len(said) <= 3 else f"{'; '.join(said[:2])} and {len(said) - 2} more"


def usual(study: pd.DataFrame, of: str = "table1") -> tuple[pd.DataFrame, list[str]]:
    """The rows of one sampler, guidance, shift, grid and kind of weights: the paper's, if of several step counts.

    That is Euler's method at guidance 5 and averaged weights; else what most rows have. Of several shifts and grids
    that which has most of the numbers of steps that the protocol ``of`` has at guidance 5.
    """
    keys = ["sampler", "guidance", "shift", "grid", "weights"]
    own = {steps for steps, guidance in PROTOCOLS[of].samplers if guidance == PAPERS[1]}
    counts: Any = study.groupby(keys)["steps"].agg([set, "size"])

    def order(key: Any) -> tuple[bool, bool, bool, bool, int, int]:
        sampler, guidance, _, _, weights = key
        steps, size = counts.loc[key]
        paper = weights == "ema", sampler == PAPERS[0], guidance == PAPERS[1]
        return len(steps) > 1, *paper, len(own & steps), int(size)

    best: Any = max(counts.index, key=order)
    kept = study[(study[keys] == pd.Series(dict(zip(keys, best, strict=True)))).all(axis=1)]
    sampler, guidance, shift, _, weights = best
    note = f"{str(sampler).capitalize()}'s method at guidance {guidance:g}, {weights} weights"
    note += f", shift {shift:g}" if shift != 1 else ""
    if (sampler, guidance, weights) == (*PAPERS, "ema"):
        return kept, []
    return kept, [f"{note}: the paper's, Euler at guidance 5, were not evaluated at several numbers of steps."]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{len(names)} runs ({', '.join(names[:3])}, ...)"
