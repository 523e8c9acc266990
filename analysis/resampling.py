"""Resamples of what is independent, runs or depths and prompts within their task, and what their spread says."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numpy.typing import ArrayLike


class Clusters(NamedTuple):
    """What is drawn as one (runs), which each point belongs to, and how often each resample drew it."""

    names: np.ndarray
    place: Int[np.ndarray, " n"]
    counts: Int[np.ndarray, "r c"]

    @property
    def weights(self) -> Int[np.ndarray, "r n"]:
        """How often each resample drew each point."""
        return self.counts[:, self.place]


def clusters(names: ArrayLike, resamples: int, seed: int = 0) -> Clusters:
    """``resamples`` draws of as many clusters as there are, with replacement, from the name of each point's."""
    found, place = np.unique(np.asarray(names, str), return_inverse=True)
    counts = np.random.default_rng(seed).multinomial(len(found), np.full(len(found), 1 / len(found)), resamples)
    return Clusters(found, place, counts)


class Spread(NamedTuple):
    """What draws of a number say of it: standard error and central percentile intervals."""

    se: float
    ci80: tuple[float, float]
    ci95: tuple[float, float]


def spread(values: Float[np.ndarray, " r"]) -> Spread:
    """Standard error, 80 % and 95 % intervals of at least two draws."""
    return Spread(float(np.std(values, ddof=1)), interval(values, 0.80), interval(values, 0.95))


def interval(values: Float[np.ndarray, " r"], level: float) -> tuple[float, float]:
    """The central percentile interval."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class Table(NamedTuple):
    """Points as arrays, runs of one (depth, step) averaged."""

    depth: Int[np.ndarray, " m"]
    log_flops: Float[np.ndarray, " m"]
    log_step: Float[np.ndarray, " m"]
    loss: Float[np.ndarray, " m"]
    value: Float[np.ndarray, " m"]
    se: Float[np.ndarray, " m"]  # the mean over runs: they share prompts, so averaging need not lower it
    by_prompt: Float[np.ndarray, "m p"]


class Resamples(NamedTuple):
    """How often each depth is drawn, and the weight of each prompt."""

    depths: Int[np.ndarray, " d"]
    counts: Int[np.ndarray, "r d"]
    prompts: Float[np.ndarray, "r p"]


def averaged(points: pd.DataFrame, keys: list[str]) -> Table:
    """One row for each depth, or depth and step: the means over its runs."""
    rows = []
    for _, own in points.groupby(keys):
        means = [
            *(np.log(own[name]).mean() for name in ("flops", "step")),
            *(own[name].mean() for name in ("loss", "value", "se")),
        ]
        rows.append((int(own["depth"].iloc[0]), *means, np.mean(np.stack(own["by_prompt"].to_list()), axis=0)))
    return Table(*(np.array(column) for column in zip(*rows, strict=True)))


def draw(
    depths: Int[np.ndarray, " d"],
    weight: Float[np.ndarray, " p"],
    group: Int[np.ndarray, " p"],
    resamples: int,
    rng: np.random.Generator,
) -> Resamples:
    """Depths with replacement, and prompts with replacement within their group, whose total weight stays."""
    counts = rng.multinomial(len(depths), np.full(len(depths), 1 / len(depths)), resamples)
    prompts = np.empty((resamples, len(weight)))
    for one in np.unique(group):
        own = weight[group == one]
        drawn = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), resamples) * own
        total = drawn.sum(axis=1, keepdims=True)
        prompts[:, group == one] = np.where(total > 0, drawn * own.sum() / np.where(total > 0, total, 1), own)
    return Resamples(depths, counts, prompts)


def resampled(table: Table, drawn: Resamples) -> tuple[Float[np.ndarray, "r m"], Float[np.ndarray, "r m"]]:
    """The score of each point with the prompts of each resample, and how often the point's depth was drawn."""
    place = np.searchsorted(drawn.depths, table.depth)
    return drawn.prompts @ table.by_prompt.T, drawn.counts[:, place].astype(float)
