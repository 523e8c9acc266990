"""Votes -> who wins: win rates and Elo scores of systems, for each question, prompts as clusters; and of raters."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sd3_jax.errors import UserError
from sd3_jax.evaluation import preference
from sd3_jax.evaluation.geneval import clustered_mean
from sd3_jax.voting import votes
from sd3_jax.voting.ballot import QUESTIONS

_A_WINS = {"a": 1.0, "tie": 0.5, "b": 0.0}


def tally(rows: Sequence[Mapping[str, Any]], reference: str | None = None, resamples: int = 1000) -> dict[str, Any]:
    """The results of votes, for each question: every system against the reference and in all, and every pair.

    Each rater's last answer to a question about a pair counts once, a tie half, what was skipped not at all. Win rates
    are means over votes, with cluster-robust errors and intervals over prompts; Elo scores are Bradley and Terry's
    strengths of all votes, the reference (the first system, unless named) at 1000. One prompt alone gives no errors.

    Raises UserError without votes, or for a reference that nobody voted on.
    """
    last = votes.standing(rows)
    counted = [row for row in last if row["winner"] in votes.COUNTED]
    if not counted:
        raise UserError("there are no votes yet")
    systems = _in_order(counted)
    reference = systems[0] if reference is None else reference
    if reference not in systems:
        raise UserError(f"reference {reference!r}: nobody voted on it; there are {', '.join(systems)}")
    asked = {row["axis"] for row in counted}
    axes = [*(axis for axis in QUESTIONS if axis in asked), *sorted(asked - {*QUESTIONS})]
    return {
        "votes": len(counted),
        "raters": len({row["rater"] for row in counted}),
        "systems": systems,
        "reference": reference,
        "partial": next((row["partial"] for row in counted if row.get("partial")), None),
        "axes": [
            _axis(axis, [row for row in last if row["axis"] == axis], systems, reference, resamples) for axis in axes
        ],
    }


def _axis(
    axis: str, last: Sequence[Mapping[str, Any]], systems: Sequence[str], reference: str, resamples: int
) -> dict[str, Any]:
    counted = [row for row in last if row["winner"] in votes.COUNTED]
    names = [name for name in systems if any(name in (row["model_a"], row["model_b"]) for row in counted)]
    _, prompt = np.unique([prompt_of(row) for row in counted], return_inverse=True)
    a, b = (np.array([names.index(row[f"model_{side}"]) for row in counted]) for side in "ab")
    won = np.array([_A_WINS[row["winner"]] for row in counted])
    wins = np.zeros((prompt.max() + 1, len(names), len(names)))
    np.add.at(wins, (prompt, a, b), won)
    np.add.at(wins, (prompt, b, a), 1 - won)

    def rate(first: int, second: int | None) -> dict[str, Any]:
        """How often a system wins against another, or against all."""
        is_a, is_b = a == first, b == first
        if second is not None:
            is_a, is_b = is_a & (b == second), is_b & (a == second)
        values = np.concatenate([won[is_a], 1 - won[is_b]])
        return _rate(values, np.concatenate([prompt[is_a], prompt[is_b]]), resamples)

    rows: list[dict[str, Any]] = [{"model": name, "overall": rate(i, None)} for i, name in enumerate(names)]
    if reference in names:
        at = names.index(reference)
        scores = preference.scores_of_wins(wins, at, resamples)
        for i, (row, score) in enumerate(zip(rows, scores, strict=True)):
            row |= {"against_reference": rate(i, at) if i != at else None}
            row |= {"elo": score.value, "elo_se": score.se, "elo_ci95": list(score.ci95)}
    pairs = [
        {"a": names[i], "b": names[j], **rate(i, j)}
        for i, j in itertools.combinations(range(len(names)), 2)
        if wins[:, [i, j], [j, i]].any()
    ]
    decided = [row for row in counted if row["winner"] != "tie" and row.get("left") in ("a", "b")]
    return {
        "axis": axis,
        "question": QUESTIONS.get(axis, axis),
        "votes": len(counted),
        "ties": sum(row["winner"] == "tie" for row in counted),
        "skipped": len(last) - len(counted),
        "raters": len({row["rater"] for row in counted}),
        "prompts": len(wins),
        "left_wins": float(np.mean([row["winner"] == row["left"] for row in decided])) if decided else None,
        **_agreement(counted),
        "models": rows,
        "pairs": pairs,
    }


def _rate(won: Float[np.ndarray, " n"], prompt: Int[np.ndarray, " n"], resamples: int) -> dict[str, Any]:
    """A win rate as fields; with fewer than two prompts it has no error, with no votes no value."""
    if not len(won):
        return {"value": math.nan, "se": math.nan, "ci95": None, "n": 0, "prompts": 0, "ties": 0}
    rest = {"n": len(won), "ties": int(np.sum(won == 0.5))}
    if len(np.unique(prompt)) < 2:
        return {"value": float(won.mean()), "se": math.nan, "ci95": None, "prompts": 1, **rest}
    found = preference.win_rate(won - 0.5, np.zeros(len(won)), prompt, resamples)
    return {"value": found.value, "se": found.se, "ci95": list(found.ci95), "prompts": found.n_prompts, **rest}


def prompt_of(row: Mapping[str, Any]) -> str:
    """What tells prompts apart: the words, or the number where there are none."""
    return str(row["prompt_id"]) if row.get("prompt") is None else str(row["prompt"])


def _agreement(counted: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How often two raters of one pair say the same, and how many times two were asked; pairs are clusters."""
    by_pair: dict[Any, list[str]] = {}
    for row in counted:
        low, high = sorted((row["model_a"], row["model_b"]))
        said = {"a": row["model_a"], "b": row["model_b"]}.get(row["winner"], "")
        by_pair.setdefault((votes.pair_of(row), low, high), []).append(said)
    raters = enumerate(itertools.combinations(said, 2) for said in by_pair.values())
    same = [(number, x == y) for number, pairs in raters for x, y in pairs]
    if not same:
        return {"agreement": None, "agreement_se": None, "asked_twice": 0}
    mean = clustered_mean(np.array([float(one) for _, one in same]), np.array([number for number, _ in same]))
    return {"agreement": mean.value, "agreement_se": mean.se, "asked_twice": len(same)}


def _in_order(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The systems as the vote had them: a comes before b; else as they appear."""
    before: dict[str, set[str]] = {}
    for row in rows:
        before.setdefault(row["model_a"], set())
        before.setdefault(row["model_b"], set()).add(row["model_a"])
    return sorted(before, key=lambda name: len(before[name]))
