"""Preference from paired rewards: a win rate against one reference run, and Bradley-Terry strengths of all runs.

Only pictures of the same prompt and index are compared. Pictures of one prompt are alike, so prompts are what is
independent: every standard error and interval is clustered by prompt. A judge of pictures is a rater like any other:
of two pictures it prefers the one that it gives the higher score.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sd3_jax.errors import UserError
from sd3_jax.evaluation import geneval

RESAMPLES = 1000
ELO_REFERENCE, ELO_PER_DECADE = 1000.0, 400.0
PRIOR_WINS = 0.5  # that each run is granted over each other, so that one that wins all has a finite strength
_TOLERANCE, _ITERATIONS = 1e-10, 10_000
# What a difference of a judge's scores is times to be the log-odds that the first is preferred, as it was trained.
LOG_ODDS = {"pickscore": 1.0, "imagereward": 1.0333394966054072, "hpsv2": 100.0}


class Mean(NamedTuple):
    """A mean over pairs of pictures, with what is known of its error."""

    value: float
    se: float  # cluster-robust over prompts
    ci95: tuple[float, float]  # percentiles of a bootstrap over prompts


class WinRate(NamedTuple):
    """How often one run's picture beats the reference's; ties count half."""

    value: float
    se: float
    ci95: tuple[float, float]
    n: int
    n_prompts: int
    by_prompt: Float[np.ndarray, " prompts"]  # mean wins of each prompt, in the order of ``np.unique(prompts)``
    soft: Mean  # of sigmoid(reward - reference), the probability that the model of Bradley and Terry says


class Score(NamedTuple):
    """The Elo score of a run; the reference has 1000 by definition, without error."""

    value: float
    se: float  # standard deviation of the bootstrap
    ci95: tuple[float, float]  # its percentiles


def win_rate(
    rewards: Float[np.ndarray, " n"],
    reference: Float[np.ndarray, " n"],
    prompts: Int[np.ndarray, " n"],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> WinRate:
    """The share of pairs that the first wins, hard and soft; ``prompts`` says which prompt each pair is of.

    >>> win_rate([1, 2, 0, 5], [0, 2, 1, 4], [7, 7, 8, 8]).value  # won, tied, lost, won
    0.625

    Raises UserError for lengths that differ, a reward that is no number, or fewer than two prompts.
    """
    table, cluster = _checked({"rewards": rewards, "reference": reference}, prompts)
    difference = table[0] - table[1]
    hard = _mean(_wins(difference), cluster, resamples, seed)
    soft = _mean(1 / (1 + np.exp(-np.clip(difference, -500, 500))), cluster, resamples, seed)
    counts = np.bincount(cluster)
    by_prompt = np.bincount(cluster, _wins(difference)) / counts
    return WinRate(*hard, len(cluster), len(counts), by_prompt, soft)


def cluster_se(values: Float[np.ndarray, " n"], cluster: Int[np.ndarray, " n"]) -> float:
    """Standard error of the mean of ``values`` if clusters, numbered from 0, are independent of each other.

    With G clusters, ``sqrt(G / (G - 1) sum_g (sum_{i in g} (x_i - mean))^2) / n`` (Liang and Zeger 1986, CR1); with
    one value to a cluster it is s / sqrt(n).
    """
    return geneval.clustered_mean(values, cluster).se


def bradley_terry(wins: Float[np.ndarray, "*s m m"], prior: float = PRIOR_WINS) -> Float[np.ndarray, "*s m"]:
    """Strengths p of largest likelihood for P(i beats j) = p_i / (p_i + p_j), their geometric mean 1.

    ``wins[i, j]`` is how often i beat j, a tie half for each; several matrices are fitted at once. Hunter's (2004)
    iteration p_i <- W_i / sum_j n_ij / (p_i + p_j), which never lowers the likelihood. A run that wins, or loses,
    everything has no finite strength; ``prior`` more wins of each over each other give it one, and draw all
    others together a little. With ``prior=0`` such a run raises UserError.
    """
    wins = np.asarray(wins, np.float64)
    runs = wins.shape[-1]
    if wins.ndim < 2 or wins.shape[-2] != runs or runs < 2:
        raise UserError(f"wins: shape {wins.shape} is not a square table of two runs or more")
    if not np.all(np.isfinite(wins)) or np.any(wins < 0):
        raise UserError("wins: every number must be finite and at least 0")
    wins = (wins + prior) * (1 - np.eye(runs))
    if not _connected(wins):
        raise UserError("wins: some runs never lost to any of the others, so no strengths fit: use a prior above 0")
    games, won = wins + wins.swapaxes(-1, -2), wins.sum(axis=-1)
    strength = np.ones(wins.shape[:-1])
    for _ in range(_ITERATIONS):
        new = won / np.sum(games / (strength[..., :, None] + strength[..., None, :]), axis=-1)
        new /= np.exp(np.mean(np.log(new), axis=-1, keepdims=True))
        moved, strength = np.max(np.abs(np.log(new / strength))), new
        if moved < _TOLERANCE:
            return strength
    raise UserError(f"wins: the strengths did not settle in {_ITERATIONS} iterations")


def elo(strengths: Float[np.ndarray, "*s m"], reference: int) -> Float[np.ndarray, "*s m"]:
    """``1000 + 400 log10(strength / strength of the reference)``.

    >>> elo(np.array([1.0, 10.0]), reference=0)
    array([1000., 1400.])
    """
    strengths = np.asarray(strengths, np.float64)
    return ELO_REFERENCE + ELO_PER_DECADE * np.log10(strengths / strengths[..., reference, None])


def scores(
    rewards: Mapping[str, Float[np.ndarray, " n"]],
    prompts: Int[np.ndarray, " n"],
    reference: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Score]:
    """The Elo score of every run, from who wins each pair of pictures among all pairs of runs.

    The bootstrap draws prompts, the same for all runs, and fits all strengths anew.

    Raises UserError as :func:`win_rate`, and for an unknown reference.
    """
    if reference not in rewards:
        raise UserError(f"reference {reference!r} is not one of the runs {', '.join(map(str, rewards))}")
    if len(rewards) < 2:
        raise UserError(f"a score needs two runs or more, not {reference} alone")
    table, cluster = _checked(rewards, prompts)
    at = list(rewards).index(reference)
    won = _wins(table[:, None] - table[None, :])
    by_prompt = np.stack([np.bincount(cluster, row) for row in won.reshape(-1, len(cluster))], axis=1)
    found = scores_of_wins(by_prompt.reshape(-1, len(table), len(table)), at, resamples, seed)
    return dict(zip(rewards, found, strict=True))


def scores_of_wins(
    wins: Float[np.ndarray, "prompts m m"], reference: int, resamples: int = RESAMPLES, seed: int = 0
) -> list[Score]:
    """The Elo score of each of m systems from ``wins[prompt, i, j]``, how often i beat j, a tie half for each.

    Not every pair need have met, on every prompt or at all. With one prompt there are no errors (nan). The bootstrap
    draws prompts, and fits all strengths anew.

    Raises UserError as :func:`bradley_terry`.
    """
    wins = np.asarray(wins, np.float64)
    prompts, systems = wins.shape[0], wins.shape[-1]
    value = elo(bradley_terry(wins.sum(axis=0)), reference)
    if prompts < 2:
        return [Score(float(one), math.nan, (math.nan, math.nan)) for one in value]
    drawn = _drawn(prompts, resamples, seed) @ wins.reshape(prompts, -1)
    many = elo(bradley_terry(drawn.reshape(-1, systems, systems)), reference)
    se, (low, high) = np.std(many, axis=0, ddof=1), np.percentile(many, (2.5, 97.5), axis=0)
    whole = np.stack([value, se, low, high], axis=1).tolist()
    return [Score(value, se, (low, high)) for value, se, low, high in whole]


def rated(
    scores: Mapping[str, Mapping[str, Sequence[float | None]]],
    reference: str,
    log_odds: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """What a judge prefers: for each system a row of its win rate against the reference, and its Elo score in all.

    ``scores[system][prompt]`` are those of a system's pictures of a prompt, None where one is lacking; pictures of one
    prompt and place in its list are compared where both systems have them: ``n`` and ``prompts`` count those. Given
    ``log_odds`` (:data:`LOG_ODDS`), it has ``soft`` too, the mean probability that the system's picture is preferred.

    Raises UserError for an unknown reference, fewer than two systems, a system that shares fewer than two prompts with
    the reference, or a score that is no finite number.
    """
    if reference not in scores:
        raise UserError(f"reference {reference!r} is not one of the systems {', '.join(scores)}")
    if len(scores) < 2:
        raise UserError(f"a preference needs two systems or more, not {reference} alone")
    names = list(scores)
    numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompt for own in scores.values() for prompt in own))}
    flat = {
        name: {
            (numbers[prompt], place): score
            for prompt, own in found.items()
            for place, score in enumerate(own)
            if score is not None
        }
        for name, found in scores.items()
    }
    wins = np.zeros((len(numbers), len(names), len(names)))
    rows = []
    for i, name in enumerate(names):
        if wrong := [score for score in flat[name].values() if not math.isfinite(score)]:
            raise UserError(f"{name}: {len(wrong)} of {len(flat[name])} scores are not finite numbers")
        for j, other in enumerate(names):
            shared = [key for key in flat[name] if key in flat[other]]
            own, others = (np.array([flat[system][key] for key in shared]) for system in (name, other))
            prompts = np.array([number for number, _ in shared], np.int64)
            if i != j:
                wins[:, i, j] = np.bincount(prompts, _wins(own - others), len(numbers))
            if other == reference:
                if len(set(prompts)) < 2:
                    raise UserError(f"{name}: shares {len(set(prompts))} prompts with {reference}; two are needed")
                win = win_rate(own * (log_odds or 1), others * (log_odds or 1), prompts, resamples, seed)
                soft = {"soft": win.soft.value, "soft_se": win.soft.se, "soft_ci95": list(win.soft.ci95)}
                row = {"system": name, "value": win.value, "se": win.se, "ci95": list(win.ci95), "n": win.n}
                rows.append(row | {"prompts": win.n_prompts} | (soft if log_odds else {}))
    elos = scores_of_wins(wins, names.index(reference), resamples, seed)
    return [
        row | {"elo": score.value, "elo_se": score.se, "elo_ci95": list(score.ci95)}
        for row, score in zip(rows, elos, strict=True)
    ]


def _wins(difference: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    """1 where the difference is above zero, 1/2 at zero, else 0."""
    return (1 + np.sign(difference)) / 2


def _mean(values: Float[np.ndarray, " n"], cluster: Int[np.ndarray, " n"], resamples: int, seed: int) -> Mean:
    totals = np.stack([np.bincount(cluster, values), np.bincount(cluster)], axis=1)
    drawn = _drawn(len(totals), resamples, seed) @ totals
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], (2.5, 97.5))
    return Mean(float(values.mean()), cluster_se(values, cluster), (float(low), float(high)))


def _drawn(clusters: int, resamples: int, seed: int) -> Int[np.ndarray, "resamples clusters"]:
    """How often each resample has each cluster."""
    if resamples < 2:
        raise UserError(f"resamples: {resamples} is too few for an interval; give 2 or more")
    return np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples)


def _connected(wins: Float[np.ndarray, "*s m m"]) -> bool:
    """Whether from each run a chain of wins leads to each other one, in every table: Ford's (1957) condition."""
    reach = (wins > 0) | np.eye(wins.shape[-1], dtype=bool)
    for _ in range(wins.shape[-1].bit_length()):
        reach = reach @ reach
    return bool(np.all(reach))


def _checked(
    rewards: Mapping[str, Float[np.ndarray, " n"]], prompts: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "runs n"], Int[np.ndarray, " n"]]:
    """The rewards as a table, and the prompts numbered from 0."""
    prompts = np.asarray(prompts)
    if prompts.ndim != 1:
        raise UserError(f"prompts: shape {prompts.shape} is not one row of numbers")
    table = []
    for name, row in rewards.items():
        values = np.asarray(row, np.float64)
        if values.shape != prompts.shape:
            raise UserError(f"{name}: rewards of shape {values.shape} for {len(prompts)} prompts: one for each")
        if not np.all(np.isfinite(values)):
            raise UserError(f"{name}: {np.sum(~np.isfinite(values))} of {len(values)} rewards are not finite numbers")
        table.append(values)
    names, cluster = np.unique(prompts, return_inverse=True)
    if len(names) < 2:
        raise UserError(f"{len(names)} prompt: an error over prompts needs two or more")
    return np.stack(table), cluster
