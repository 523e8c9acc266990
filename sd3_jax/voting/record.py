"""Votes on the pictures of runs, written beside the runs' other scores: what correlations and laws then read.

``votes-<question>`` is the win rate against one reference, prompt by prompt, over the prompts that every other system
was compared with it on; ``votes-<question>-elo`` the Bradley-Terry score of all votes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from sd3_jax.errors import UserError
from sd3_jax.evaluate import write_scores
from sd3_jax.evaluation import folders as folders_on_disk
from sd3_jax.evaluation.generate import Sampler
from sd3_jax.evaluation.scores import OVERALL
from sd3_jax.voting import results, votes

GROUP = "votes"  # the only task: prompts weigh as they were voted on
_SETTING = {"sampler", *(field.name for field in dataclasses.fields(Sampler))}
Rates = tuple[Float[np.ndarray, " prompts"], Float[np.ndarray, " prompts"]]  # wins and votes


def record(
    rows: Sequence[Mapping[str, Any]], folders: Mapping[str, Path], reference: str | None = None, resamples: int = 1000
) -> list[dict[str, Any]]:
    """Write the scores of runs' pictures into their evals.jsonl, and return them.

    Raises UserError for a folder that is not of a run's pictures, one that nobody voted on, or without votes.
    """
    drawn = {name: folders_on_disk.drawn_by(folder) for name, folder in folders.items()}
    own = [row for row in votes.standing(rows) if row["model_a"] in folders and row["model_b"] in folders]
    found = results.tally(own, reference, resamples)
    reference = found["reference"]
    unknown = [name for name in folders if name not in found["systems"]]
    if unknown:
        raise UserError(f"{unknown[0]}: nobody voted on it; there are {', '.join(found['systems'])}")
    run_of_reference, settings_of_reference = drawn[reference]
    label = f"{run_of_reference.name}@{settings_of_reference['step']}"
    partial = {"partial": found["partial"]} if found["partial"] else {}
    compared = sorted(folders)
    written = []
    for name, (run_dir, settings) in drawn.items():
        setting = {key: value for key, value in settings.items() if key in _SETTING}
        common = {"step": settings["step"], **setting, "prompt_list": settings.get("prompts"), "reference": label}
        scores = []
        for axis in found["axes"]:
            rates = _by_prompt(own, axis["axis"], reference)
            if name in rates:
                scores += [_win_rate(f"votes-{axis['axis']}", group, rates[name]) for group in (OVERALL, GROUP)]
            for row in axis["models"]:
                if row["model"] == name and "elo" in row:
                    elo = {"value": row["elo"], "se": row["elo_se"], "ci95": row["elo_ci95"]}
                    scores.append({"name": f"votes-{axis['axis']}-elo", "group": OVERALL, **elo, "compared": compared})
        scores = [score | common | partial for score in scores]
        write_scores(run_dir, scores)
        written += [{"run": run_dir.name, **score} for score in scores]
    return written


def _by_prompt(rows: Sequence[Mapping[str, Any]], axis: str, reference: str) -> dict[str, Rates]:
    """Of each system the wins against the reference and the votes, by prompt; of the reference half of its votes.

    Prompts are those that all systems with any such vote share; nothing where there is none.
    """
    sums: dict[str, dict[str, np.ndarray]] = {}
    for row in rows:
        pair = row["model_a"], row["model_b"]
        if row["axis"] == axis and row["winner"] in votes.COUNTED and reference in pair:
            won = {"a": 1.0, "tie": 0.5, "b": 0.0}[row["winner"]]
            name, own = (pair[1], 1 - won) if pair[0] == reference else (pair[0], won)
            own_sums = sums.setdefault(name, {}).setdefault(results.prompt_of(row), np.zeros(2))
            own_sums += (own, 1)
    shared = sorted(set.intersection(*map(set, sums.values()))) if sums else []
    if not shared:
        return {}
    table = {name: np.array([own[prompt] for prompt in shared]).T for name, own in sums.items()}
    even = np.sum([counts for _, counts in table.values()], axis=0)
    return {reference: (even / 2, even), **{name: (won, counts) for name, (won, counts) in table.items()}}


def _win_rate(name: str, group: str, rates: Rates) -> dict[str, Any]:
    won, counts = rates
    share = won / counts
    total, prompts = counts.sum(), len(counts)
    value = won.sum() / total
    spread = np.sum((won - value * counts) ** 2)  # of the prompts' sums, as evaluation.geneval.clustered_mean has it
    error = float(np.sqrt(prompts / (prompts - 1) * spread) / total) if prompts > 1 else None
    counted = {"n": int(total), "prompts": prompts, "images_by_prompt": counts.astype(int).tolist()}
    return {"name": name, "group": group, "value": float(value), "se": error, "by_prompt": share.tolist(), **counted}
