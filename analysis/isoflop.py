"""IsoFLOP valleys: at each budget C the loss against model size, its minimum, and how the minimum moves with C.

Approach 2 of Hoffmann et al. 2022: a parabola of L in log N per budget, its vertex N*(C), then log N* and log D*
against log C. One constant-rate run of each (depth, seed) serves every budget that it passes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.laws import MIN_RUNS, interval
from analysis.runs import points_on_law
from sd3_jax.errors import UserError

NEAREST = 0.10  # the nearest validation point may be this far from a budget, relative
WHOLE_STEPS = 0.02  # a budget is spent in whole steps, so a run's last point may be this far below it
REACH = 8.0  # a parabola sees sizes within this factor of the lowest point, and always its neighbours


class Valley(NamedTuple):
    """The parabola of one budget; x is log N. ``why`` is empty where its minimum is inside."""

    x: float = np.nan
    loss: float = np.nan
    curvature: float = np.nan
    why: str = ""
    used: np.ndarray | None = None  # which sizes it saw


@dataclass(frozen=True, eq=False)
class IsoFlop:
    """Valleys, minima and the regressions N* = coefficient C^exponent, D* likewise."""

    points: pd.DataFrame  # flops, run, depth, params, images, loss, used (by the parabola)
    budgets: pd.DataFrame  # flops, params, images, loss (at the vertex), curvature, sizes, interior, why
    exponents: dict[str, float]  # exponent_params, coefficient_params, exponent_data, coefficient_data
    ci95: dict[str, tuple[float, float]]
    left_out: dict[str, tuple[float, float]]  # least and largest as each run is left out
    how: str
    failed_resamples: int
    flags: tuple[str, ...]
    notes: tuple[str, ...]


def isoflop(
    runs: pd.DataFrame, budgets: Sequence[float] | None = None, resamples: int = 1000, seed: int = 0, **choices: Any
) -> IsoFlop:
    """The isoFLOP analysis of a runs table; ``choices`` are those of points_on_law.

    Only the warm-up is left out (``skip`` is 0 unless given): one run serves every budget, so the first tenth of a
    large model's run is where its small budgets lie. ``budgets`` defaults to those at which the runs were evaluated.
    Raises UserError if there are none.
    """
    return isoflop_points(points_on_law(runs, **({"skip": 0.0} | choices)), budgets, resamples, seed)


def isoflop_points(
    points: pd.DataFrame, budgets: Sequence[float] | None = None, resamples: int = 1000, seed: int = 0
) -> IsoFlop:
    """The isoFLOP analysis of points (columns run, depth, params, images, flops, loss).

    At each budget a parabola of L in log N needs three sizes, a positive curvature and a lowest size that is
    neither the smallest nor the largest; other budgets are listed with the reason and left out of the regressions,
    which need two budgets. Intervals (bootstrap over runs) need three budgets and six runs.
    """
    chosen = np.array(sorted(points.attrs.get("budgets", ()) if budgets is None else budgets), float)
    if not len(chosen):
        raise UserError("no FLOP budget: the runs were evaluated at none (evaluation.budgets) and none was given")
    table, notes = at_budgets(points, chosen)
    names, run = np.unique(table["run"].to_numpy(str), return_inverse=True)
    valleys = _valleys(table, chosen, np.ones(len(run)))
    vertices = _vertices(table, chosen, valleys)
    described = pd.DataFrame(
        {
            "flops": chosen,
            "params": vertices[0],
            "images": vertices[1],
            "loss": [valley.loss for valley in valleys],
            "curvature": [valley.curvature for valley in valleys],
            "sizes": [table.loc[table["flops"] == budget, "params"].nunique() for budget in chosen],
            "interior": [not valley.why for valley in valleys],
            "why": [valley.why for valley in valleys],
        }
    )
    table["used"] = False
    for budget, valley in zip(chosen, valleys, strict=True):
        if not valley.why:
            own = table["flops"] == budget
            sizes = np.unique(table.loc[own, "params"])[valley.used]
            table.loc[own, "used"] = table.loc[own, "params"].isin(sizes)
    exponents = _regress(chosen, vertices, least=2)
    interior = int(described["interior"].sum())
    ci95: dict[str, tuple[float, float]] = {}
    left_out: dict[str, tuple[float, float]] = {}
    failed = 0
    how = f"{interior} interior budgets: no exponent"
    if exponents:
        again = [
            _regress(chosen, _vertices(table, chosen, _valleys(table, chosen, run != one)), least=2)
            for one in range(len(names))
        ]
        left_out = _ends([one for one in again if one], lambda values: (float(min(values)), float(max(values))))
        how = f"leave-one-run-out spread, no interval ({len(names)} runs, {interior} interior budgets)"
    if interior >= 3 and len(names) >= MIN_RUNS and resamples:
        draws = np.random.default_rng(seed).multinomial(len(names), [1 / len(names)] * len(names), resamples)
        drawn = [
            _regress(chosen, _vertices(table, chosen, _valleys(table, chosen, row[run])), least=3) for row in draws
        ]
        good = [one for one in drawn if one]
        failed = resamples - len(good)
        ci95 = _ends(good, lambda values: interval(np.array(values), 0.95)) if len(good) > 1 else {}
        how = f"bootstrap over {len(names)} runs, {resamples} resamples, {failed} failed"
    flags = ("minimum at the edge",) if interior < len(chosen) else ()
    return IsoFlop(table, described, exponents, ci95, left_out, how, failed, flags, tuple(notes))


def at_budgets(points: pd.DataFrame, budgets: Float[np.ndarray, " m"]) -> tuple[pd.DataFrame, list[str]]:
    """Each run's loss at exactly C, interpolated log-log between the validation points around it.

    A run whose nearest point is more than 10 % from a budget that it passes is refused there, and counted.
    """
    rows, refused = [], 0
    for (name, depth), own in points.sort_values("flops").groupby(["run", "depth"]):
        flops, loss = own["flops"].to_numpy(float), own["loss"].to_numpy(float)
        per_image = float((own["flops"] / own["images"]).median())
        for budget in budgets:
            if not flops[0] * (1 - WHOLE_STEPS) <= budget <= flops[-1] * (1 + WHOLE_STEPS):
                continue
            if np.abs(flops / budget - 1).min() > NEAREST:
                refused += 1
                continue
            at = float(np.exp(np.interp(np.log(budget), np.log(flops), np.log(loss))))
            rows.append((budget, name, depth, own["params"].iloc[0], budget / per_image, at))
    table = pd.DataFrame(rows, columns=["flops", "run", "depth", "params", "images", "loss"])
    notes = (
        [f"{refused} times a run's nearest point was over {NEAREST:.0%} from a budget: left out."] if refused else []
    )
    return table, notes


def _valleys(table: pd.DataFrame, budgets: Float[np.ndarray, " m"], counts: Float[np.ndarray, " n"]) -> list[Valley]:
    """One valley for each budget; each row of the table counts ``counts`` times, seeds of one size are averaged."""
    flops, params, loss = (table[key].to_numpy(float) for key in ("flops", "params", "loss"))
    found = []
    for budget in budgets:
        here = (flops == budget) & (counts > 0)
        sizes, place = np.unique(params[here], return_inverse=True)
        weight = counts[here].astype(float)
        mean = np.bincount(place, weight * loss[here]) / np.bincount(place, weight) if len(sizes) else np.zeros(0)
        found.append(_parabola(np.log(sizes), mean))
    return found


def _parabola(x: Float[np.ndarray, " s"], y: Float[np.ndarray, " s"]) -> Valley:
    """Least-squares parabola through the sizes near the lowest point, refused where its minimum is not inside."""
    if len(x) < 3:
        return Valley(why=f"{len(x)} sizes; a valley needs three")
    place = int(np.argmin(y))
    if place in (0, len(x) - 1):
        return Valley(why=f"the lowest loss is at the {'smallest' if place == 0 else 'largest'} size")
    near = np.abs(x - x[place]) <= np.log(REACH)
    near[place - 1 : place + 2] = True
    curvature, slope, level = np.polyfit(x[near] - x[place], y[near], 2)
    vertex = x[place] - slope / (2 * curvature) if curvature > 0 else np.nan
    if not x[near].min() < vertex < x[near].max():
        return Valley(why="the parabola has no minimum among the sizes")
    return Valley(float(vertex), float(level - slope**2 / (4 * curvature)), float(curvature), "", near)


def _vertices(table: pd.DataFrame, budgets: Float[np.ndarray, " m"], valleys: list[Valley]) -> Float[np.ndarray, "2 m"]:
    """N* and D* at each budget; D* = C over the FLOPs of an image, interpolated between the sizes, at N*."""
    sizes = table.assign(per_image=table["flops"] / table["images"]).groupby("params")["per_image"].first()
    x = np.array([valley.x for valley in valleys])
    per_image = np.exp(np.interp(x, np.log(sizes.index.to_numpy(float)), np.log(sizes.to_numpy(float))))
    return np.stack([np.exp(x), budgets / per_image])


def _regress(budgets: Float[np.ndarray, " m"], vertices: Float[np.ndarray, "2 m"], least: int) -> dict[str, float]:
    """log vertex = log coefficient + exponent log C; empty with fewer than ``least`` interior budgets."""
    good = np.isfinite(vertices[0])
    if good.sum() < least:
        return {}
    found: dict[str, float] = {}
    for name, values in zip(("params", "data"), vertices, strict=True):
        x, y = np.log(budgets[good]), np.log(values[good])
        dx = x - x.mean()
        exponent = float(dx @ y / (dx @ dx))
        found |= {f"exponent_{name}": exponent, f"coefficient_{name}": float(np.exp(y.mean() - exponent * x.mean()))}
    return found


def _ends(
    many: list[dict[str, float]], summary: Callable[[list[float]], tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    return {name: summary([one[name] for one in many]) for name in many[0]} if many else {}
