"""The compute-optimal frontier: the one that a law implies, and the envelope that the runs drew.

C = F_3(depth) D training FLOPs, with F_3 = 3F the training FLOPs of one image. C is not k N D with one k for all
depths, so the frontier is found over sizes, not from the closed form; only its exponents a = beta / (alpha + beta)
are.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from analysis.forms import CHINCHILLA, EQUAL_EXPONENT, Form
from analysis.laws import RESOLUTION, Law
from analysis.resampling import clusters
from sd3_jax import flops as counts
from sd3_jax.config import ModelConfig
from sd3_jax.errors import UserError

IMPLYING = (CHINCHILLA, EQUAL_EXPONENT)  # the laws that say which size is best
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
    line: dict[str, float]  # exponents of N* and D* however rough, with their coefficients; empty where censored
    draws: list[dict[str, float]]  # likewise, of resamples of the runs; those that are censored are left out


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


def sizes_in(points: pd.DataFrame, number: int = GRID) -> Sizes:
    """Sizes from a hundredth of the smallest of a table to 10,000 times the largest; their depth is not known (nan).

    FLOPs of an image (or token) over N are interpolated between the sizes of the table, and beyond them stay as at
    the nearest.
    """
    ratio = (points["flops"] / points["images"] / points["params"]).groupby(points["params"]).median()
    params = np.geomspace(ratio.index.min() / 100, ratio.index.max() * 1e4, number)
    each = np.exp(np.interp(np.log(params), np.log(ratio.index.to_numpy(float)), np.log(ratio.to_numpy(float))))
    return Sizes(np.full(number, np.nan), params, each * params)


def implied(law: Law, flops: ArrayLike, family: Sizes | None = None, level: float = 0.95) -> pd.DataFrame:
    """N*(C), D*(C), L*(C): the size that minimises the law at each C, with percentile intervals from the draws.

    Columns: flops; depth, params, images, loss and their ``_low`` and ``_high`` (nan without draws); ``extrapolated``
    where C, the depth (or else N) or the images lie outside the data; ``at_edge`` where the minimum is at an end of
    the family. The intervals are those of the law, not of a new run: :func:`analysis.prediction.predict` adds the
    residuals.
    """
    if law.form not in IMPLYING:
        names = " or ".join(one.name for one in IMPLYING)
        raise UserError(f"the law {law.form.name} says nothing of sizes: a frontier needs {names}")
    family = family or sizes_of(law)
    budgets = np.atleast_1d(np.asarray(flops, float))
    position, loss = _minimise(law.form, law.vector[None], budgets, family)
    columns = {"flops": budgets} | {name: values[0] for name, values in _at(position, loss, budgets, family).items()}
    draws = [_minimise(law.form, law.draws[i : i + 100], budgets, family) for i in range(0, len(law.draws), 100)]
    drawn: dict[str, np.ndarray] = {}
    if draws:
        positions, losses = (np.concatenate(part) for part in zip(*draws, strict=True))
        drawn = _at(positions, losses, budgets, family)
    for name in ("depth", "params", "images", "loss"):
        ends = [(1 - level) / 2, (1 + level) / 2]
        low, high = np.quantile(drawn[name], ends, axis=0) if drawn else np.full((2, len(budgets)), np.nan)
        columns |= {f"{name}_low": low, f"{name}_high": high}
    table = pd.DataFrame(columns)
    size = "depth" if "depth" in law.ranges else "params"
    inside = [table[key].between(*law.ranges[key]) for key in ("flops", size, "images")]
    table["extrapolated"] = ~np.logical_and.reduce(inside)
    table["at_edge"] = (position[0] <= 0) | (position[0] >= len(family.depth) - 1)
    return table


def envelope(points: pd.DataFrame, number: int = 200, resamples: int = 0, seed: int = 0) -> Envelope:
    """Lowest loss over depths at each of ``number`` log-spaced C, interpolated log-log within each run.

    A winner is censored where no smaller or no larger depth has data at that C: it may be merely the smallest depth
    still running. An exponent is fitted to the uncensored part if at least three depths win there over half a decade
    of C, and only if their scatter leaves it certain to within 0.01; its N* is the vertex of the parabola in log N
    through the winner and its neighbours. It is a check of the law's a, not a substitute. ``resamples`` are of runs:
    neighbouring minima share theirs, and are no more independent for being many.
    """
    grid = np.geomspace(points["flops"].min(), points["flops"].max(), number)
    depth_of = "depth" if "depth" in points else "params"
    runs = points.sort_values("flops").groupby("run")
    losses = np.array([_curve(own, grid) for _, own in runs])
    depth = runs[depth_of].first().to_numpy()
    depths = np.unique(depth)
    params = np.log(points.groupby(depth_of)["params"].first().loc[depths].to_numpy(float))
    data = data_at(points)
    every = _minima(losses, depth, params, np.ones((1, len(losses))))
    there = np.isfinite(every.loss[0])
    best = Minima(*(field[0][there] for field in every))
    table = pd.DataFrame(
        {
            "flops": grid[there],
            "loss": best.loss,
            "depth": depths[best.winner],
            "params": np.exp(np.where(best.censored, params[best.winner], best.x)),
            "censored": best.censored,
        }
    )
    free = table[~table["censored"]]
    winners = free["depth"].nunique()
    decades = float(np.log10(free["flops"].max() / free["flops"].min())) if len(free) else 0.0
    if not _is_long(grid[there], best):
        return Envelope(table, None, winners, decades, ("frontier censored",), {}, [])
    line = regress(free["flops"].to_numpy(), np.log(free["params"].to_numpy()), data)
    drawn = []
    counts = clusters(np.arange(len(losses)), resamples, seed).counts
    for i in range(0, resamples, 20):
        some = _minima(losses, depth, params, counts[i : i + 20])
        for one in (Minima(*row) for row in zip(*some, strict=True)):
            if _is_long(grid, one):
                drawn.append(regress(grid[~one.censored], one.x[~one.censored], data))
    scatter = np.log(free["params"]) - np.log(line["coefficient_params"] * free["flops"] ** line["exponent_params"])
    # Neighbouring minima share their runs: there are as many independent ones as winners, not as grid points.
    error = float(np.std(scatter) / (np.std(np.log(free["flops"])) * math.sqrt(winners)))
    rough = 2 * error > RESOLUTION
    exponent = None if rough else line["exponent_params"]
    return Envelope(table, exponent, winners, decades, ("envelope too rough",) if rough else (), line, drawn)


class Minima(NamedTuple):
    """At each C the place of the depth with the lowest loss, that loss, log N* and whether it is censored."""

    winner: Int[np.ndarray, "*r g"]
    loss: Float[np.ndarray, "*r g"]  # inf where no depth has data
    x: Float[np.ndarray, "*r g"]
    censored: Bool[np.ndarray, "*r g"]


def _minima(
    losses: Float[np.ndarray, "c g"], depth: np.ndarray, params: Float[np.ndarray, " d"], counts: np.ndarray
) -> Minima:
    """Minima over depths of the mean curve of each depth's runs, for each row of ``counts``, of one for each run."""
    present = np.isfinite(losses)
    own = depth == np.unique(depth)[:, None]  # [depth, run]
    weights = counts[:, None, :] * own
    number = weights @ present.astype(float)
    mean = np.where(number > 0, weights @ np.where(present, losses, 0) / np.maximum(number, 1), np.inf)
    order = np.argsort(np.isinf(mean), axis=1, kind="stable")  # the depths with data first, in their order
    mean = np.take_along_axis(mean, order, axis=1)
    there = np.isfinite(mean).sum(axis=1)
    place = mean.argmin(axis=1)
    censored = (place == 0) | (place >= there - 1)
    three = np.clip(place[:, None] + np.array([-1, 0, 1])[:, None], 0, len(params) - 1)
    y, x = (np.take_along_axis(one, three, axis=1).swapaxes(0, 1) for one in (mean, params[order]))
    with np.errstate(invalid="ignore", divide="ignore"):
        best = vertex(x, y)
    winner = np.take_along_axis(order, place[:, None], axis=1)[:, 0]
    return Minima(winner, mean.min(axis=1), best, censored)


def _is_long(flops: Float[np.ndarray, " g"], best: Minima) -> bool:
    """Whether enough depths win uncensored over enough of C for an exponent."""
    free = flops[~best.censored]
    if len(np.unique(best.winner[~best.censored])) < MIN_WINNERS:
        return False
    return bool(np.log10(free.max() / free.min()) >= MIN_DECADES)


def as_curves(points: pd.DataFrame) -> pd.DataFrame:
    """The points with the curve of each as its run: where every run has but one point, those of one size are one."""
    return points if points["run"].duplicated().any() else points.assign(run=points["params"])


def data_at(points: pd.DataFrame) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """D at C FLOPs and size log N: C over the FLOPs of an image, interpolated between the sizes."""
    sizes = points.assign(each=points["flops"] / points["images"]).groupby("params")["each"].median()
    x, y = np.log(sizes.index.to_numpy(float)), np.log(sizes.to_numpy(float))
    return lambda flops, log_params: flops / np.exp(np.interp(log_params, x, y))


def regress(flops: np.ndarray, log_params: np.ndarray, data: Callable) -> dict[str, float]:
    """N* and D* as powers of C: log value = log coefficient + exponent log C, by least squares."""
    found: dict[str, float] = {}
    x = np.log(flops)
    dx = x - x.mean()
    for name, y in (("params", log_params), ("data", np.log(data(flops, log_params)))):
        exponent = float(dx @ y / (dx @ dx))
        found |= {f"exponent_{name}": exponent, f"coefficient_{name}": float(np.exp(y.mean() - exponent * x.mean()))}
    return found


def vertex(x: Float[np.ndarray, "3 *g"], y: Float[np.ndarray, "3 *g"]) -> Float[np.ndarray, "*g"]:
    """Where the parabola through three points is lowest.

    >>> float(vertex(np.array([0.0, 1.0, 2.0]), np.array([5.0, 2.0, 1.0])))
    2.0
    """
    left, right = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    curvature = (right - left) / (x[2] - x[0])
    return (x[0] + x[1]) / 2 - left / (2 * curvature)


def _curve(run: pd.DataFrame, grid: Float[np.ndarray, " g"]) -> Float[np.ndarray, " g"]:
    """The loss of a run at each C; nan outside of what it spent."""
    x, y = np.log(run["flops"].to_numpy(float)), np.log(run["loss"].to_numpy(float))
    return np.exp(np.interp(np.log(grid), x, y, left=np.nan, right=np.nan))


def _minimise(
    form: Form, constants: Float[np.ndarray, "r p"], budgets: Float[np.ndarray, " m"], family: Sizes
) -> tuple[Float[np.ndarray, "r m"], Float[np.ndarray, "r m"]]:
    """Fractional index into the family, and loss, at the minimum of each law (row) and budget (column).

    Of a size the first feature (N, or C / M) does not change with C, and the second (D, or C M) is a power of it.
    """
    e, a, b, alpha, beta = (constants[:, i, None] for i in (0, 1, 2, 3, -1))
    at_one = pd.DataFrame({"params": family.params, "images": 1 / family.flops_per_image, "flops": 1.0})
    first, second = np.log(form.features(at_one))
    growth = 1 if form is CHINCHILLA else 2
    by_size = a * np.exp(-alpha * first)
    by_image = np.exp(-beta * second)
    by_budget = b * np.exp(-beta * growth * np.log(budgets))
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
