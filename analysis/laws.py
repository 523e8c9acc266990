"""A law fitted to points: its constants, their intervals, and its caveats.

C are training FLOPs, N parameters, D data (images or tokens), L the validation loss; :mod:`analysis.forms` has the
laws. The one that is reported is the joint law L = E + A / N^alpha + B / D^beta. Every number comes with the
uncertainty that belongs to it, and with a flag for each reason not to believe it (:data:`analysis.flags.FLAGS`).
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import stats

from analysis import flags, solvers
from analysis.flags import FLAGS, REFUSING
from analysis.forms import SATURATING, Form, form
from analysis.resampling import clusters, spread
from analysis.runs import points_on_law
from sd3_jax.config import ModelConfig
from sd3_jax.errors import UserError

__all__ = ["FLAGS", "REFUSING", "Curve", "Law", "curves", "fit", "fit_points"]

RANGES = ("depth", "params", "images", "flops")
WIDEST = 1e60  # ratio of what is fitted: beyond, powers of it leave double precision
MIN_DEPTHS = 3  # fewer sizes, or numbers of images, cannot fix an amplitude, an exponent and E
MIN_RUNS = 6  # fewer runs cannot be resampled
MIN_RESAMPLES = 20  # fewer have no tails
MANY_DEPTHS = 12  # of more, none is left out in turn: the bootstrap over their runs says enough
GAIN = 10.0  # of AICc, above which a break is one: below, chance makes as much of it
RESOLUTION = 0.01  # an exponent that is less certain than this is given as an interval, not as a number


@dataclass(frozen=True, eq=False)
class Law:
    """A fitted law, its uncertainty and its caveats.

    ``constants`` are those of its form, such as E, A, B, alpha, beta, and what follows from them, such as the
    allocation N* ~ C^a, D* ~ C^b, at full precision. ``se``, ``ci80`` and ``ci95`` are empty where ``how`` says that
    there is no interval.
    """

    form: Form
    constants: dict[str, float]
    se: dict[str, float]
    ci80: dict[str, tuple[float, float]]
    ci95: dict[str, tuple[float, float]]
    left_out: dict[int, dict[str, float]]  # constants without each depth in turn
    reported: dict[str, bool]  # exponents that are certain to within RESOLUTION
    draws: Float[np.ndarray, "r p"]  # joint bootstrap draws of the form's constants; no rows without intervals
    drawn: Int[np.ndarray, "r c"]  # how often each draw's resample has each unit, in the order of their names
    how: str
    failed_resamples: int
    objective: float
    grad_norm: float  # relative: 1 where nothing cancels
    delta: float  # of the Huber objective
    n_points: int
    n_runs: int  # or other units that were resampled
    units: str
    residuals: Float[np.ndarray, " n"] = field(repr=False)  # log loss - log law, in the order of the points
    residual_rms: float
    residual_max: float
    ranges: dict[str, tuple[float, float]]  # of the data: depth, params, images, flops
    family: ModelConfig | None  # any member: its depth is the dial
    flags: tuple[str, ...]

    @property
    def vector(self) -> Float[np.ndarray, " p"]:
        """The form's constants, as a draw has them."""
        return np.array([self.constants[name] for name in self.form.constants])


class Curve(NamedTuple):
    """L = E + A x^-a of one depth."""

    E: float
    A: float
    a: float
    residual_rms: float


def fit(
    runs: pd.DataFrame,
    weights: str = "ema",
    skip: float = 0.1,
    with_zero: bool = True,
    with_drops: bool = True,
    **options: Any,
) -> Law:
    """The law of the points of a runs table that belong on it; arguments of points_on_law and fit_points."""
    return fit_points(points_on_law(runs, weights, skip, with_zero, with_drops), **options)  # type: ignore[arg-type]


def fit_points(
    points: pd.DataFrame,
    law: str = "chinchilla",
    delta: float = 1e-3,
    resamples: int = 1000,
    seed: int = 0,
    breaks: int = 1,
    group: str = "run",
) -> Law:
    """Fit a law (a name of :data:`analysis.forms.FORMS`, or bnsl with ``breaks``) to points.

    Columns: loss, run, and what the law is a function of: flops, params, images; optionally depth, the size of a
    model. Minimises the sum of Huber losses (``delta``) of log L. Points that repeat a cell (params, images, flops),
    as seeds do, share the weight of one, so a depth with three seeds weighs as much as a depth with one. Intervals
    are percentiles of a bootstrap that resamples runs (or another column, ``group``), as points of one run are not
    independent; with fewer than six there are none, and ``left_out`` shows how far the constants move without each
    depth.

    Raises UserError for points too few or too alike, for 1 to 19 resamples, or if no law of this form fits.
    """
    chosen = form(law, breaks)
    if 0 < resamples < MIN_RESAMPLES:
        raise UserError(f"{resamples} resamples give no interval: {MIN_RESAMPLES} or more do, 0 asks for none")
    size, least = _checked(points, chosen, group)
    features, loss = chosen.features(points), points["loss"].to_numpy(float)
    cell = [name for name in ("params", "images", "flops") if name in points]
    weight = 1 / points.groupby(cell)["loss"].transform("size").to_numpy(float)
    best = solvers.optima(chosen, features, loss, weight, delta)
    if not math.isfinite(best.objective[0]):
        raise UserError(f"no law {chosen.formula} fits: the loss does not fall as such a law does")
    constants = chosen.named(chosen.linear(best.theta[0]))
    residuals = np.log(loss) - chosen.predict_log(best.theta[0], features)

    drawn = clusters(points[group], resamples, seed)
    number, units = len(drawn.names), "runs" if group == "run" else f"groups ({group})"
    draws, failed, how = np.zeros((0, len(chosen.constants))), 0, "no interval (none was asked for)"
    elsewhere = 0.0
    counts = drawn.counts[:0]
    if number >= MIN_RUNS and resamples:
        enough = _distinct(size, drawn.weights) >= least
        again, elsewhere = solvers.refits(chosen, features, loss, weight * drawn.weights[enough], delta, best.theta[0])
        good = np.isfinite(again.objective)
        draws, counts = chosen.linear(again.theta[good]), drawn.counts[enough][good]
        failed = resamples - len(draws)
        how = f"bootstrap over {number} {units}, {resamples} resamples, {failed} failed"
    left_out = {}
    sizes = np.unique(size)
    if "params" in chosen.columns and MIN_DEPTHS < len(sizes) <= MANY_DEPTHS:
        without = solvers.solve(chosen, features, loss, weight * (size != sizes[:, None]), delta)
        good = np.isfinite(without.objective)
        left_out = {
            int(one): _floats(chosen.named(values))
            for one, values in zip(sizes[good], chosen.linear(without.theta[good]), strict=True)
        }
    if number < MIN_RUNS:
        how = f"no interval (fewer than six {units})"
        how = f"leave-one-depth-out spread, {how}" if left_out else how
    samples = chosen.named(draws) if len(draws) > 1 else {}
    spreads = {name: spread(values) for name, values in samples.items()}
    found = Law(
        form=chosen,
        constants=_floats(constants),
        se={name: one.se for name, one in spreads.items()},
        ci80={name: one.ci80 for name, one in spreads.items()},
        ci95={name: one.ci95 for name, one in spreads.items()},
        left_out=left_out,
        reported={},
        draws=draws,
        drawn=counts,
        how=how,
        failed_resamples=failed,
        objective=float(best.objective[0]),
        grad_norm=float(best.gradient[0]),
        delta=delta,
        n_points=len(points),
        n_runs=number,
        units=units,
        residuals=residuals,
        residual_rms=float(np.sqrt(np.average(residuals**2, weights=weight))),
        residual_max=float(np.abs(residuals).max()),
        ranges={key: (float(points[key].min()), float(points[key].max())) for key in RANGES if key in points},
        family=next(iter(points.attrs["configs"].values())).model if points.attrs.get("configs") else None,
        flags=(),
    )
    found = replace(found, flags=_flags(found, points, best, len(sizes), elsewhere))
    return replace(found, reported={name: _is_resolved(found, name) for name in chosen.exponents})


def curves(points: pd.DataFrame, delta: float = 1e-3) -> dict[int, Curve]:
    """The saturating power law L = E + A D^-a of each depth with at least four points, D images seen."""
    found = {}
    for _, own in points.groupby("depth"):
        images, loss = own["images"].to_numpy(float)[None], own["loss"].to_numpy(float)
        if len(np.unique(images)) < 4:
            continue
        best = solvers.optima(SATURATING, images, loss, np.ones(len(loss)), delta)
        if math.isfinite(best.objective[0]):
            residual = np.log(loss) - SATURATING.predict_log(best.theta[0], images)
            rms = float(np.sqrt(np.mean(residual**2)))
            floor, amplitude, exponent = SATURATING.linear(best.theta[0]).tolist()
            found[int(own["depth"].iloc[0])] = Curve(floor, amplitude, exponent, rms)
    return found


def _checked(points: pd.DataFrame, chosen: Form, group: str) -> tuple[np.ndarray, int]:
    """The values of which the law needs several different ones, and how many; UserError where there are too few."""
    missing = [name for name in (*chosen.columns, "loss", group) if name not in points]
    if missing:
        shown = [{"images": "data (images)"}.get(name, name) for name in missing]
        raise UserError(f"the law {chosen.name} needs columns {_join(shown)}; there are {_join(points.columns)}")
    measured = points[[*chosen.columns, "loss"]].to_numpy(float)
    if not (np.isfinite(measured) & (measured > 0)).all():
        raise UserError(f"{_join(chosen.columns)} and loss of every point must be finite and positive")
    if (measured.max(axis=0) > WIDEST * measured.min(axis=0)).any():
        raise UserError(f"{_join(chosen.columns)} and loss of all points must lie within a factor of {WIDEST:g}")
    if chosen.columns == ("flops",):
        size, least = points["flops"].to_numpy(float), len(chosen.constants)
        if len(np.unique(size)) <= least:
            numbers = f"{len(np.unique(size))} of {len(points)} points"
            raise UserError(f"the law {chosen.name} needs at least {least + 1} different FLOPs; there are {numbers}")
        return size, least
    what = "depth" if "depth" in points else "params"
    size, sizes = points[what].to_numpy(), np.sort(points[what].unique())
    if len(sizes) < MIN_DEPTHS:
        what = {"depth": "depths", "params": "sizes"}[what]
        raise UserError(f"a law needs at least {MIN_DEPTHS} {what}; there are {len(sizes)}: {_join(sizes)}")
    if len(points) < 6 or points["images"].nunique() < MIN_DEPTHS:
        raise UserError(
            f"a law needs at least six points at three numbers of images or tokens; there are {len(points)} points"
        )
    return size, MIN_DEPTHS


def _distinct(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How many different values each row of weights has drawn."""
    order = np.argsort(values, kind="stable")
    first = np.flatnonzero(np.r_[True, values[order][1:] != values[order][:-1]])
    return (np.add.reduceat(weights[:, order], first, axis=1) > 0).sum(axis=1)


def _floats(named: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in named.items()}


def _flags(law: Law, points: pd.DataFrame, best: solvers.Solution, sizes: int, elsewhere: float) -> tuple[str, ...]:
    names, features = list(law.form.constants), law.form.features(points)
    logs = np.array([name in law.form.logs for name in names])
    bounded = best.at_bound[0] & ~logs
    rivals = best.theta[1:][best.objective[1:] <= 1.01 * best.objective[0]]
    apart = np.abs(rivals - best.theta[0])[:, ~logs].max(initial=0) > 0.05 and law.residual_rms > 1e-9
    shares = law.form.evaluate(best.theta[:1], np.log(features))[1][0].max(axis=1)
    along = points["flops"] if "flops" in points else points["params"] * points["images"]
    return flags.raised(
        {
            "E not identified": "E" in names and not _has_floor(law, float(points["loss"].min())),
            "exponent at a bound": bool(bounded.any()),
            "term vanishes": any(shares[names.index(name)] < 1e-3 for name in ("A", "B") if name in names),
            "break not identified": not _has_breaks(law, points),
            "optimum equals start": bool(best.moved[0] < 1e-12),
            "gradient not small": law.grad_norm > 1e-4,
            "several optima": bool(apart),
            "resamples choose between optima": elsewhere > flags.FAILED,
            "resamples failed": law.failed_resamples > flags.FAILED * (law.failed_resamples + len(law.draws)),
            "too few depths": "params" in law.form.columns and sizes < 5,
            "trend in residuals": flags.has_trend(law.residuals, along.to_numpy(float)),
            "mixed schedules": flags.mixed_schedules(points),
            "mixed FLOP definitions": flags.mixed_flops(points),
            "learning-rate drop": "phase" in points and "lr_drop" in set(points["phase"]),
        }
    )


def _has_floor(law: Law, lowest: float) -> bool:
    """Whether E is above zero and below the smallest loss, wherever the data put it."""
    ends = law.ci95.get("E", (law.constants["E"],) * 2)
    lows = [ends[0], law.constants["E"], *(left["E"] for left in law.left_out.values())]
    return min(lows) >= 1e-3 * lowest and max(ends[1], law.constants["E"]) < lowest


def _has_breaks(law: Law, points: pd.DataFrame) -> bool:
    """Whether three different x lie on either side of every break, and the last one lowers AICc by more than GAIN.

    A Huber fit with a small delta is nearly an absolute-value fit, so errors are counted as Laplace's.
    """
    simpler, x = law.form.simpler, np.unique(points["flops"])
    if simpler is None:
        return True
    below = np.array([(x < value).sum() for name, value in law.constants.items() if name[0] == "d"])
    best = solvers.optima(
        simpler, simpler.features(points), points["loss"].to_numpy(float), np.ones(len(points)), law.delta
    )
    if min(below.min(), len(x) - below.max()) < 3 or not math.isfinite(best.objective[0]):
        return below.min() >= 3 and len(x) - below.max() >= 3
    plain = np.log(points["loss"]) - simpler.predict_log(best.theta[0], simpler.features(points))
    return _aicc(plain, len(simpler.constants)) - _aicc(law.residuals, len(law.form.constants)) > GAIN


def _aicc(residuals: Float[np.ndarray, " n"], k: int) -> float:
    n = len(residuals)
    spread = max(float(np.abs(residuals).mean()), 1e-12)  # rounding is no better fit than rounding
    return 2 * n * math.log(spread) + 2 * k + 2 * k * (k + 1) / max(n - k - 1, 1)


def _is_resolved(law: Law, name: str) -> bool:
    """Whether an exponent is known to RESOLUTION by every measure at hand, and no flag speaks against it."""
    if REFUSING & set(law.flags):
        return False
    halves = []
    if name in law.ci95:
        halves.append(max(abs(end - law.constants[name]) for end in law.ci95[name]))
    left = np.array([constants[name] for constants in law.left_out.values()])
    if len(left) > 1:  # jackknife over depths: the bootstrap over few runs is optimistic
        quantile = float(stats.t.ppf(0.975, len(left) - 1))
        halves.append(quantile * math.sqrt((len(left) - 1) * np.mean((left - left.mean()) ** 2)))
    return bool(halves) and max(halves) <= RESOLUTION


def _join(values: Any) -> str:
    return ", ".join(map(str, values))
