"""The compute-optimal frontier: the one that a law implies, and the envelope that the runs drew.

C = F_3(depth) D training FLOPs, with F_3 = 3F the training FLOPs of one image. C is not k N D with one k for all
depths, so the frontier is found over sizes, not from the closed form; only its exponents a = beta / (alpha + beta)
are.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import ArrayLike

from analysis.laws import RESOLUTION, Law
from sd3_jax import flops as counts
from sd3_jax.config import ModelConfig
from sd3_jax.errors import UserError

GRID = 240  # sizes at which a frontier is looked for
MIN_WINNERS, MIN_DECADES = 3, 0.5  # of an uncensored envelope, for an exponent


class Sizes(NamedTuple):
    """A continuous family of models, log-spaced in depth."""

    depth: Float[np.ndarray, " g"]
    params: Float[np.ndarray, " g"]
    flops_per_image: Float[np.ndarray, " g"]


class Envelope(NamedTuple):
    """The lowest loss at each compute, who reached it, and whether a smaller and a larger depth were in the race."""

    table: pd.DataFrame  # flops, loss, depth, params (vertex through winner and neighbours), censored
    exponent: float | None  # N* ~ C^a on the uncensored stretch
    winners: int  # depths that win uncensored
    decades: float  # of C that is uncensored
    flags: tuple[str, ...]


def sizes(model: ModelConfig, low: float = 1.0, high: float = 128.0, number: int = GRID) -> Sizes:
    """The family of a model over continuous depth. Parameters and FLOPs are cubics of the depth, so four fix them.

    >>> family = sizes(ModelConfig(), 15, 38, 2)
    >>> [round(n) for n in family.params]
    [496066624, 8056617792]
    """
    depth = np.geomspace(low, high, number)
    members = [dataclasses.replace(model, depth=k) for k in range(1, 5)]

    def cubic(values: list[int]) -> Float[np.ndarray, " g"]:
        coefficients = np.linalg.solve(np.vander(range(1, 5), 4).astype(float), np.array(values, float))
        return np.polyval(coefficients, depth)

    return Sizes(
        depth, cubic([counts.parameters(m).total for m in members]), cubic([counts.train_flops(m) for m in members])
    )


def sizes_of(law: Law) -> Sizes:
    """Depth 1 to eight times the largest of the law's data."""
    if law.family is None:
        raise UserError("the law knows no model family: its points came without configurations")
    return sizes(law.family, 1.0, 8 * law.ranges["depth"][1])


def implied(law: Law, flops: ArrayLike, family: Sizes | None = None, level: float = 0.95) -> pd.DataFrame:
    """N*(C), D*(C), L*(C): the size that minimises the law at each C, with percentile intervals from the draws.

    Columns: flops; depth, params, images, loss and their ``_low`` and ``_high`` (nan without draws); ``extrapolated``
    where C, the depth or the images lie outside the data; ``at_edge`` where the minimum is at an end of the family.
    The intervals are those of the law, not of a new run: :func:`analysis.prediction.predict` adds the residuals.
    """
    family = family or sizes_of(law)
    budgets = np.atleast_1d(np.asarray(flops, float))
    position, loss = _minimise(law.vector[None], budgets, family)
    columns = {"flops": budgets} | {name: values[0] for name, values in _at(position, loss, budgets, family).items()}
    draws = [_minimise(law.draws[i : i + 100], budgets, family) for i in range(0, len(law.draws), 100)]
    drawn: dict[str, np.ndarray] = {}
    if draws:
        positions, losses = (np.concatenate(part) for part in zip(*draws, strict=True))
        drawn = _at(positions, losses, budgets, family)
    for name in ("depth", "params", "images", "loss"):
        ends = [(1 - level) / 2, (1 + level) / 2]
        low, high = np.quantile(drawn[name], ends, axis=0) if drawn else np.full((2, len(budgets)), np.nan)
        columns |= {f"{name}_low": low, f"{name}_high": high}
    table = pd.DataFrame(columns)
    inside = [table[key].between(*law.ranges[key]) for key in ("flops", "depth", "images")]
    table["extrapolated"] = ~np.logical_and.reduce(inside)
    table["at_edge"] = (position[0] <= 0) | (position[0] >= len(family.depth) - 1)
    return table


def envelope(points: pd.DataFrame, number: int = 200) -> Envelope:
    """Lowest loss over depths at each of ``number`` log-spaced C, interpolated log-log within each run.

    A winner is censored where no smaller or no larger depth has data at that C: it may be merely the smallest depth
    still running. An exponent is fitted to the uncensored part if at least three depths win there over half a decade
    of C, and only if their scatter leaves it certain to within 0.01; its N* is the vertex of the parabola in log N
    through the winner and its neighbours. It is a check of the law's a, not a substitute.
    """
    grid = np.geomspace(points["flops"].min(), points["flops"].max(), number)
    depths = np.sort(points["depth"].unique())
    losses = np.array([_mean_curve(points[points["depth"] == depth], grid) for depth in depths])
    params = points.groupby("depth")["params"].first().loc[depths].to_numpy(float)
    rows = []
    for budget, column in zip(grid, losses.T, strict=True):
        present = np.flatnonzero(np.isfinite(column))
        if not len(present):
            continue
        place = int(np.argmin(column[present]))
        winner, censored = present[place], place in (0, len(present) - 1)
        best = params[winner]
        if not censored:
            three = present[place - 1 : place + 2]
            best = math.exp(vertex(np.log(params[three]), column[three]))
        rows.append((budget, column[winner], int(depths[winner]), best, censored))
    table = pd.DataFrame(rows, columns=["flops", "loss", "depth", "params", "censored"])
    free = table[~table["censored"]]
    winners = free["depth"].nunique()
    decades = float(np.log10(free["flops"].max() / free["flops"].min())) if len(free) else 0.0
    if winners < MIN_WINNERS or decades < MIN_DECADES:
        return Envelope(table, None, winners, decades, ("frontier censored",))
    x, y = np.log(free["flops"].to_numpy()), np.log(free["params"].to_numpy())
    line = np.polyfit(x, y, 1)
    # Neighbouring minima share their runs: there are as many independent ones as winners, not as grid points.
    error = float(np.std(y - np.polyval(line, x)) / (np.std(x) * math.sqrt(winners)))
    if 2 * error > RESOLUTION:
        return Envelope(table, None, winners, decades, ("envelope too rough",))
    return Envelope(table, float(line[0]), winners, decades, ())


def vertex(x: Float[np.ndarray, "3"], y: Float[np.ndarray, "3"]) -> float:
    """Where the parabola through three points is lowest.

    >>> vertex(np.array([0.0, 1.0, 2.0]), np.array([5.0, 2.0, 1.0]))
    2.0
    """
    left, right = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    curvature = (right - left) / (x[2] - x[0])
    return float((x[0] + x[1]) / 2 - left / (2 * curvature))


def _mean_curve(points: pd.DataFrame, grid: Float[np.ndarray, " g"]) -> Float[np.ndarray, " g"]:
    """Mean over the runs of a depth of their loss at each C; nan where none has data."""
    curves = []
    for _, own in points.sort_values("flops").groupby("run"):
        x, y = np.log(own["flops"].to_numpy(float)), np.log(own["loss"].to_numpy(float))
        curves.append(np.exp(np.interp(np.log(grid), x, y, left=np.nan, right=np.nan)))
    stacked = np.array(curves)
    present = np.isfinite(stacked)
    total = np.where(present, stacked, 0).sum(axis=0)
    return np.where(present.any(axis=0), total / np.maximum(present.sum(axis=0), 1), np.nan)


def _minimise(
    constants: Float[np.ndarray, "r 5"], budgets: Float[np.ndarray, " m"], family: Sizes
) -> tuple[Float[np.ndarray, "r m"], Float[np.ndarray, "r m"]]:
    """Fractional index into the family, and loss, at the minimum of each law (row) and budget (column)."""
    e, a, b, alpha, beta = (constants[:, i, None] for i in range(5))
    by_size = a * np.exp(-alpha * np.log(family.params))
    by_image = np.exp(beta * np.log(family.flops_per_image))
    by_budget = b * np.exp(-beta * np.log(budgets))
    loss = by_size[:, None, :] + by_budget[:, :, None] * by_image[:, None, :]
    best = loss.argmin(axis=-1)
    inner = np.clip(best, 1, loss.shape[-1] - 2)
    before, at, after = (np.take_along_axis(loss, inner[..., None] + k, axis=-1)[..., 0] for k in (-1, 0, 1))
    curvature = np.maximum(before - 2 * at + after, 1e-300)
    offset = np.clip((before - after) / (2 * curvature), -1, 1)
    lowest = at - (before - after) ** 2 / (8 * curvature)
    edge = best != inner
    position = np.where(edge, best, inner + offset)
    return position, e + np.where(edge, np.take_along_axis(loss, best[..., None], axis=-1)[..., 0], lowest)


def _at(
    position: Float[np.ndarray, "r m"], loss: Float[np.ndarray, "r m"], budgets: Float[np.ndarray, " m"], family: Sizes
) -> dict[str, np.ndarray]:
    index = np.arange(len(family.depth))
    between = [np.exp(np.interp(position, index, np.log(values))) for values in family]
    return {"depth": between[0], "params": between[1], "images": budgets / between[2], "loss": loss}
