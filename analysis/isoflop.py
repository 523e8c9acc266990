"""IsoFLOP valleys: at each budget C the loss against model size, its minimum, and how the minimum moves with C.

Approach 2 of Hoffmann et al. 2022: a parabola of L in log N per budget, its vertex N*(C), then log N* and log D*
against log C. One constant-rate run of each (depth, seed) serves every budget that it passes. A parabola is biased
where alpha and beta differ, the more the wider its sizes reach; Akima's interpolation (Porian et al. 2024) is not, but
follows the noise of its points.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.interpolate import Akima1DInterpolator

from analysis.flags import FAILED, raised
from analysis.frontier import as_curves, data_at, regress, vertex
from analysis.laws import MIN_RUNS
from analysis.resampling import Spread, clusters, spread
from analysis.runs import points_on_law
from sd3_jax.errors import UserError

NEAREST = 0.10  # the nearest validation point may be this far from a budget, relative
WHOLE_STEPS = 0.02  # a budget is spent in whole steps, so a run's last point may be this far below it
REACH = 8.0  # a parabola sees sizes within this factor of the lowest point, and always its neighbours
MIN_AKIMA = 5  # sizes of a valley that is interpolated
GRID = 20  # places between two sizes at which an interpolated valley's minimum is looked for
MANY_RUNS = 50  # of more, none is left out in turn
BUDGETS = 9  # log-spaced, of curves of which nobody said which budgets they are for


class Valley(NamedTuple):
    """The valley of one budget; x is log N. ``why`` is empty where its minimum is inside."""

    x: float = np.nan
    loss: float = np.nan
    curvature: float = np.nan
    why: str = ""
    used: np.ndarray | None = None  # which sizes it saw


@dataclass(frozen=True, eq=False)
class IsoFlop:
    """Valleys, minima and the regressions N* = coefficient C^exponent, D* likewise."""

    points: pd.DataFrame  # flops, run, depth, params, images, loss, used (by the valley)
    budgets: pd.DataFrame  # flops, params, images, loss (at the minimum), curvature, sizes, interior, why
    exponents: dict[str, float]  # exponent_params, coefficient_params, exponent_data, coefficient_data
    intervals: dict[str, Spread]
    left_out: dict[str, tuple[float, float]]  # least and largest as each run is left out
    how: str
    failed_resamples: int
    flags: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ci95(self) -> dict[str, tuple[float, float]]:
        """The 95 % intervals of the exponents and coefficients."""
        return {name: one.ci95 for name, one in self.intervals.items()}


def isoflop(
    runs: pd.DataFrame, budgets: Sequence[float] | None = None, resamples: int = 1000, seed: int = 0, **choices: Any
) -> IsoFlop:
    """The isoFLOP analysis of a runs table; ``choices`` are those of points_on_law.

    Only the warm-up is left out (``skip`` is 0 unless given): one run serves every budget, so the first tenth of a
    large model's run is where its small budgets lie. ``budgets`` defaults to those at which the runs were evaluated.
    Raises UserError if there are none.
    """
    points = points_on_law(runs, **({"skip": 0.0} | choices))
    chosen = points.attrs.get("budgets", ()) if budgets is None else budgets
    if not len(chosen):
        raise UserError("no FLOP budget: the runs were evaluated at none (evaluation.budgets) and none was given")
    return isoflop_points(points, chosen, resamples, seed)


def isoflop_points(
    points: pd.DataFrame,
    budgets: Sequence[float] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    interpolate: str = "parabola",
) -> IsoFlop:
    """The isoFLOP analysis of points (columns run, params, images, flops, loss, optionally depth).

    At each budget a parabola of L in log N needs three sizes, a positive curvature and a lowest size that is
    neither the smallest nor the largest; other budgets are listed with the reason and left out of the regressions,
    which need two budgets. ``interpolate="akima"`` takes the minimum of Akima's interpolation of log L instead, of at
    least five sizes. Intervals (bootstrap over runs) need three budgets and six runs. Without ``budgets`` they are
    where points of three sizes lie together, else log-spaced where curves of three sizes do (:func:`find_budgets`).
    """
    minimum = {"parabola": _parabola, "akima": _akima}[interpolate]
    if budgets is None:
        points, budgets = find_budgets(points)
    chosen = np.array(sorted(budgets), float)
    table, notes = at_budgets(points, chosen)
    drawn = clusters(table["run"], resamples, seed)
    data = data_at(points)

    def exponents_of(counts: np.ndarray, least: int) -> dict[str, float]:
        x = np.array([valley.x for valley in _valleys(table, chosen, counts, minimum)])
        good = np.isfinite(x)
        return regress(chosen[good], x[good], data) if good.sum() >= least else {}

    valleys = _valleys(table, chosen, np.ones(len(table)), minimum)
    x = np.array([valley.x for valley in valleys])
    described = pd.DataFrame(
        {
            "flops": chosen,
            "params": np.exp(x),
            "images": data(chosen, x),
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
    exponents = exponents_of(np.ones(len(table)), least=2)
    interior, runs = int(described["interior"].sum()), len(drawn.names)
    intervals: dict[str, Spread] = {}
    left_out: dict[str, tuple[float, float]] = {}
    failed = 0
    how = f"{interior} interior budgets: no exponent"
    if exponents:
        how = f"no interval ({runs} runs, {interior} interior budgets)"
        if interior >= 3 and runs >= MIN_RUNS and resamples:
            found = [one for one in (exponents_of(row, least=3) for row in drawn.weights) if one]
            failed = resamples - len(found)
            intervals = _over(found, lambda values: spread(np.array(values))) if len(found) > 1 else {}
            how = f"bootstrap over {runs} runs, {resamples} resamples, {failed} failed"
        if runs <= MANY_RUNS:
            without = [exponents_of(drawn.place != one, least=2) for one in range(runs)]
            left_out = _over([one for one in without if one], lambda values: (min(values), max(values)))
            how = how if intervals else f"leave-one-run-out spread, {how}"
    flags = raised(
        {"minimum at the edge": interior < len(chosen), "resamples failed": failed > FAILED * max(resamples, 1)}
    )
    return IsoFlop(table, described, exponents, intervals, left_out, how, failed, flags, tuple(notes))


def find_budgets(points: pd.DataFrame) -> tuple[pd.DataFrame, list[float]]:
    """The FLOP budgets of a table, and its points by the curves that serve them.

    Points belong to one budget, their geometric mean, if neighbours in C are within 10 % of each other and all within
    20 %, and are of three sizes. Unless half of the points do, budgets are log-spaced over the C that curves of three
    sizes reach; if each run has but one point, those of one size are its curve. Raises UserError if there is none.
    """
    if "params" not in points:
        raise UserError("no FLOP budget of a table without sizes (params): there is no valley")
    ordered = points.sort_values("flops")
    flops = ordered["flops"].to_numpy(float)
    group = np.cumsum(np.r_[0, np.diff(np.log(flops)) > np.log(1 + NEAREST)])
    first = np.flatnonzero(np.diff(group, prepend=-1))
    sizes = ordered.groupby(group)["params"].nunique().to_numpy()
    together = (sizes >= 3) & (np.maximum.reduceat(flops, first) <= (1 + 2 * NEAREST) * flops[first])
    if together[group].mean() >= 0.5:
        means = np.exp(np.add.reduceat(np.log(flops), first) / np.bincount(group))
        return points, means[together].tolist()
    points = as_curves(points)
    reach = points.groupby("params")["flops"].agg(["min", "max"]).to_numpy()
    grid = np.geomspace(flops[0], flops[-1], 200)
    shared = grid[((reach[:, :1] <= grid) & (grid <= reach[:, 1:])).sum(axis=0) >= 3]
    if len(shared) and shared[-1] > (1 + NEAREST) * shared[0]:
        return points, np.geomspace(shared[0], shared[-1], BUDGETS).tolist()
    raise UserError("no FLOP budget that points of three sizes share: there is no valley")


def at_budgets(points: pd.DataFrame, budgets: Float[np.ndarray, " m"]) -> tuple[pd.DataFrame, list[str]]:
    """Each run's loss at exactly C, interpolated log-log between the validation points around it.

    A run whose nearest point is more than 10 % from a budget that it passes is refused there, and counted. A run of
    one point is taken as it is where that is no farther.
    """
    curve = ["run", "params"]
    points = points.sort_values([*curve, "flops"], kind="stable", ignore_index=True)
    flops, loss = points["flops"].to_numpy(float), points["loss"].to_numpy(float)
    first = np.flatnonzero(~points.duplicated(curve))
    last = np.append(first[1:], len(points)) - 1
    each = (points["flops"] / points["images"]).groupby([points[name] for name in curve])
    run = points.loc[first, [name for name in ("run", "depth", "params") if name in points]]
    per_image = each.transform("median").to_numpy()[first]
    slack = np.where(first == last, NEAREST, WHOLE_STEPS)
    tables, refused = [], 0
    for budget in budgets:
        passes = (flops[first] * (1 - slack) <= budget) & (budget <= flops[last] * (1 + slack))
        is_near = np.minimum.reduceat(np.abs(flops / budget - 1), first) <= NEAREST
        refused += int((passes & ~is_near).sum())
        left = np.clip(first + np.add.reduceat((flops <= budget).astype(int), first) - 1, first, last)
        right = np.minimum(left + 1, last)
        width = np.log(flops[right] / flops[left])
        share = np.clip(np.log(budget / flops[left]) / np.where(width > 0, width, 1.0), 0, 1)
        at = np.exp((1 - share) * np.log(loss[left]) + share * np.log(loss[right]))
        table = run.assign(flops=budget, images=budget / per_image, loss=at)
        tables.append(table[passes & is_near])
    order = ["flops", *run.columns, "images", "loss"]
    table = pd.concat(tables)[order].sort_values(["run", "flops"], kind="stable", ignore_index=True)
    notes = (
        [f"{refused} times a run's nearest point was over {NEAREST:.0%} from a budget: left out."] if refused else []
    )
    return table, notes


def _valleys(
    table: pd.DataFrame, budgets: Float[np.ndarray, " m"], counts: Float[np.ndarray, " n"], minimum: Callable
) -> list[Valley]:
    """One valley for each budget; each row of the table counts ``counts`` times, seeds of one size are averaged."""
    flops, params, loss = (table[key].to_numpy(float) for key in ("flops", "params", "loss"))
    found = []
    for budget in budgets:
        here = (flops == budget) & (counts > 0)
        sizes, place = np.unique(params[here], return_inverse=True)
        weight = counts[here].astype(float)
        mean = np.bincount(place, weight * loss[here]) / np.bincount(place, weight) if len(sizes) else np.zeros(0)
        if len(sizes) < 3:
            found.append(Valley(why=f"{len(sizes)} sizes; a valley needs three"))
        elif (lowest := int(np.argmin(mean))) in (0, len(sizes) - 1):
            found.append(Valley(why=f"the lowest loss is at the {'largest' if lowest else 'smallest'} size"))
        else:
            found.append(minimum(np.log(sizes), mean, lowest))
    return found


def _parabola(x: Float[np.ndarray, " s"], y: Float[np.ndarray, " s"], lowest: int) -> Valley:
    """Least-squares parabola through the sizes near the lowest point, refused where its minimum is not inside."""
    near = np.abs(x - x[lowest]) <= np.log(REACH)
    near[lowest - 1 : lowest + 2] = True
    basis = np.vander(x[near] - x[lowest], 3)
    curvature, slope, level = np.linalg.lstsq(basis, y[near], rcond=None)[0]
    best = x[lowest] - slope / (2 * curvature) if curvature > 0 else np.nan
    if not x[near].min() < best < x[near].max():
        return Valley(why="the parabola has no minimum among the sizes")
    return Valley(float(best), float(level - slope**2 / (4 * curvature)), float(curvature), "", near)


def _akima(x: Float[np.ndarray, " s"], y: Float[np.ndarray, " s"], lowest: int) -> Valley:
    """The minimum of Akima's interpolation of log L, looked for on a grid and refined by a parabola there."""
    if len(x) < MIN_AKIMA:
        return Valley(why=f"{len(x)} sizes; an interpolated valley needs {MIN_AKIMA}")
    curve = Akima1DInterpolator(x, np.log(y))
    grid = np.linspace(x[lowest - 1], x[lowest + 1], 2 * GRID + 1)
    values = curve(grid)
    near = np.clip(int(np.argmin(values)), 1, len(grid) - 2) + np.array([-1, 0, 1])
    best = float(np.clip(vertex(grid[near], values[near]), grid[near[0]], grid[near[2]]))
    loss = float(np.exp(curve(best)))
    return Valley(best, loss, float(loss * curve(best, 2) / 2), "", np.ones(len(x), bool))


def _over(many: list[dict[str, float]], summary: Callable[[list[float]], Any]) -> dict[str, Any]:
    return {name: summary([one[name] for one in many]) for name in many[0]} if many else {}
