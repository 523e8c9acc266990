"""Ranks of formulations by two scores at once, over many settings (the paper's section 5.1, Table 1).

Within a setting: those that no other beats (as high a score and as low a distance, one of the two better) have rank
1; without them, those that none of the rest beats have rank 2; and so on. The rank of a formulation is its mean over
settings. Only the order of values in a setting matters, so any two scores may be used.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from analysis.study import SAMPLER, in_words
from sd3_jax.errors import UserError

LEVEL = 0.80  # of the intervals of mean ranks
SIDES = ("up", "down")


@dataclass(frozen=True, eq=False)
class Ranking:
    """Ranks of f formulations in s settings; 1 is best."""

    formulations: tuple[str, ...]
    settings: pd.DataFrame  # s rows: data_set, sampler, steps, guidance, shift, grid, weights
    ranks: Int[np.ndarray, "s f"]
    draws: Int[np.ndarray, "r s f"]  # ranks of scores that were drawn anew within their errors
    by_seed: dict[str, dict[int, float]]  # mean rank with one training seed alone, where there are several
    notes: tuple[str, ...]

    def mean(self, which: Bool[np.ndarray, " s"] | None = None) -> Float[np.ndarray, " f"]:
        """Mean rank over the settings, or over some."""
        return self.ranks[slice(None) if which is None else which].mean(axis=0)

    def interval(
        self, which: Bool[np.ndarray, " s"] | None = None, level: float = LEVEL
    ) -> tuple[Float[np.ndarray, " f"], Float[np.ndarray, " f"]]:
        """Interval of the mean rank; nan without draws.

        A draw adds noise to values that have some already, which moves all ranks towards the middle once more. So the
        interval is the percentiles of the draws and their mirror image about the estimate, and what lies between.
        """
        mean = self.mean(which)
        if not len(self.draws):
            return np.full(len(mean), np.nan), np.full(len(mean), np.nan)
        drawn = self.draws[:, slice(None) if which is None else which].mean(axis=1)
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
        low, high = np.minimum(low, 2 * mean - high), np.maximum(high, 2 * mean - low)
        return np.clip(low, 1, None), np.clip(high, 1, len(mean))


def fronts(up: Float[np.ndarray, "*r n"], down: Float[np.ndarray, "*r n"]) -> Int[np.ndarray, "*r n"]:
    """The front of each of n points, by non-dominated sorting: 1 for those that none beats, then 2, ...

    A point beats another if it is no worse in both and better in one; equal points share a front. In order of falling
    ``up``, and of rising ``down`` among equals, a point is beaten only by points before it: its front is one more than
    the last front of those.

    >>> fronts(np.array([3.0, 2.0, 1.0, 3.0]), np.array([2.0, 1.0, 3.0, 2.0])).tolist()
    [1, 1, 2, 1]
    """
    if not (np.isfinite(up).all() and np.isfinite(down).all()):
        raise UserError("a score that is no number cannot be ranked")
    order = np.lexsort((down, -up), axis=-1)
    rise, fall = (np.take_along_axis(one, order, -1) for one in (up, down))
    front = np.ones(up.shape, np.int64)
    for i in range(1, up.shape[-1]):
        before, own = fall[..., :i], fall[..., i, None]
        beats = (before <= own) & ((before < own) | (rise[..., :i] > rise[..., i, None]))
        front[..., i] = 1 + np.max(np.where(beats, front[..., :i], 0), axis=-1)
    placed = np.empty_like(front)
    np.put_along_axis(placed, order, front, -1)
    return placed


def rank(points: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> Ranking:
    """Ranks over the settings (data set, sampler, weights) of a table of :func:`analysis.study.points`.

    Training seeds of a formulation are averaged first. Settings that no more than half of the formulations have are
    left out, and then formulations that lack one, so that every mean is over the same settings and the same rivals.
    Draws are normal: of each score within its standard error, by the same prompts in all settings of a data set where
    the score says its prompts' own, else independent; and of each formulation on a data set, the same in all its
    settings, within what training seeds differ by beyond that, pooled over formulations, where any has several.

    Raises UserError for fewer than two formulations, or if none has all settings.
    """
    points, notes = _complete(points)
    names = tuple(sorted(points["formulation"].unique()))
    if len(names) < 2:
        raise UserError(f"a ranking compares formulations, and there is {names[0]} alone")
    keys = ["data_set", *SAMPLER]
    settings = points[keys].drop_duplicates().sort_values(keys, ignore_index=True)
    cells = points.assign(place=points[keys].apply(tuple, axis=1).map({tuple(k): i for i, k in settings.iterrows()}))
    every = {side: cells.pivot_table(index="place", columns="formulation", values=side) for side in SIDES}
    up, down = (every[side][list(names)].to_numpy(float) for side in SIDES)
    ranks = fronts(up, down)
    draws = fronts(*_drawn(cells, settings, names, (up, down), resamples, seed))
    if points[["up_se", "down_se"]].isna().any(axis=None):
        notes.append("some scores have no standard error, and are taken as exact in the intervals.")
    by_seed = _by_seed(cells, names, up, down)
    if not by_seed:
        notes.append("one training seed of each formulation: intervals are of pictures alone; seeds differ by more.")
    return Ranking(names, settings, ranks, draws, by_seed, tuple(notes))


def _complete(points: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The points of settings that more than half of the formulations have, and of formulations that have them all."""
    keys, notes = ["data_set", *SAMPLER], []
    finite = np.isfinite(points[list(SIDES)].to_numpy(float)).all(axis=1)
    named = points.loc[finite].copy()
    named["setting"] = [in_words(row) for row in named[keys].to_dict(orient="records")]
    has = pd.crosstab(named["formulation"], named["setting"]) > 0
    rare = list(has.columns[has.mean() <= 0.5]) if len(has) > 1 else []
    if rare:
        notes.append(f"left out, as few formulations have it: {'; '.join(rare)}.")
        has = has.drop(columns=rare)
    lacking = has[~has.all(axis=1)]
    for formulation, row in lacking.iterrows():
        missing = list(row.index[~row])
        told = "; ".join(missing) if len(missing) <= 3 else f"{'; '.join(missing[:2])} and {len(missing) - 2} more"
        notes.append(f"{formulation} is left out: it lacks {told}.")
    kept = named["setting"].isin(has.columns) & ~named["formulation"].isin(lacking.index)
    if not kept.any():
        raise UserError("no formulation was evaluated in all settings: evaluate those that are missing")
    return named[kept].drop(columns="setting"), notes


def _drawn(
    cells: pd.DataFrame,
    settings: pd.DataFrame,
    names: tuple[str, ...],
    values: tuple[Float[np.ndarray, "s f"], Float[np.ndarray, "s f"]],
    resamples: int,
    seed: int,
) -> tuple[Float[np.ndarray, "r s f"], Float[np.ndarray, "r s f"]]:
    """Both scores, drawn anew within the errors of pictures and of training seeds."""
    rng = np.random.default_rng(seed)
    data_set = pd.factorize(settings["data_set"])[0]
    cell = cells.groupby(["place", "formulation"])
    seeds = cell.size().unstack().reindex(columns=list(names)).to_numpy(float)
    drawn = []
    for side, value in zip(SIDES, values, strict=True):
        # Seeds share prompts, so that averaging them need not lower the error of pictures.
        error = cell[f"{side}_se"].mean().unstack().reindex(columns=list(names)).fillna(0.0).to_numpy(float)
        apart = cells[side] - cell[side].transform("mean")
        freedom = np.maximum((seeds - 1).sum(axis=1), 1)
        squares = (apart**2).groupby(cells["place"]).sum().to_numpy(float) / freedom
        between = np.sqrt(np.maximum(squares - (error**2).mean(axis=1), 0))
        runs = rng.standard_normal((resamples, data_set.max() + 1, len(names)))[:, data_set]
        pictures = error * rng.standard_normal((resamples, *value.shape))
        for one in range(data_set.max() + 1) if side == "up" else ():
            parts = _parts(cells, np.flatnonzero(data_set == one), names)
            if parts is not None:
                prompts = rng.standard_normal((resamples, parts.shape[-1]))
                pictures[:, data_set == one] = np.einsum("rp,sfp->rsf", prompts, parts, optimize=True)
        drawn.append(value + pictures + between[:, None] / np.sqrt(seeds) * runs)
    return drawn[0], drawn[1]


def _parts(
    cells: pd.DataFrame, places: Int[np.ndarray, " s"], names: Sequence[str]
) -> Float[np.ndarray, "s f p"] | None:
    """What each prompt adds to the noise of every score of a data set, seeds averaged; None if one does not say."""
    own = cells[cells["place"].isin(places)]
    if "up_parts" not in own or own["up_parts"].isna().any() or len({len(one) for one in own["up_parts"]}) > 1:
        return None
    mean = {key: np.mean(list(part), axis=0) for key, part in own.groupby(["place", "formulation"])["up_parts"]}
    return np.array([[mean[place, name] for name in names] for place in places])


def _by_seed(
    cells: pd.DataFrame, names: tuple[str, ...], up: Float[np.ndarray, "s f"], down: Float[np.ndarray, "s f"]
) -> dict[str, dict[int, float]]:
    """Mean ranks of a formulation with one of its training seeds alone, its rivals as they are."""
    found: dict[str, dict[int, float]] = {}
    for place, name in enumerate(names):
        own = cells[cells["formulation"] == name]
        if own["seed"].nunique() < 2:
            continue
        found[name] = {}
        for seed, part in own.groupby("seed"):
            alone = []
            for side, value in zip(SIDES, (up, down), strict=True):
                changed = value.copy()
                changed[part["place"], place] = part[side]
                alone.append(changed)
            found[name][int(str(seed))] = float(fronts(*alone)[:, place].mean())
    return found
