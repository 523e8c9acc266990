"""The joint law L = E + A / N^alpha + B / D^beta: its fit, intervals, caveats and predictions.

N are parameters, D images seen, L the validation loss. Every number that is reported comes with the uncertainty
that belongs to it, and with a flag for each reason not to believe it (:data:`FLAGS` says them in sentences).
"""

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from analysis import solvers
from analysis.runs import differences, points_on_law
from sd3_jax.config import ModelConfig
from sd3_jax.errors import UserError

CONSTANTS = ("E", "A", "B", "alpha", "beta")
EXPONENTS = ("alpha", "beta", "a", "b")
RANGES = ("depth", "params", "images", "flops")
MIN_DEPTHS = 3  # fewer depths cannot fix A, alpha and E
MIN_RUNS = 6  # fewer runs cannot be resampled
RESOLUTION = 0.01  # an exponent that is less certain than this is given as an interval, not as a number
SCHEDULE = ("optimizer.", "batch")  # keys of a configuration that make one schedule

FLAGS = {
    "E not identified": "The data do not fix E: its interval reaches zero or the smallest loss, and exponents with it.",
    "exponent at a bound": "An exponent ended on its bound: the data do not fix it.",
    "optimum equals start": "The fit did not move from its start: it cannot be told from a solver that failed.",
    "gradient not small": "The gradient at the optimum is not small: the fit has not converged.",
    "several optima": "Other constants fit within 1 % as well: the data do not choose between them.",
    "too few depths": "Fewer than five depths: five constants are hardly determined by them.",
    "trend in residuals": "Residuals of neighbouring FLOPs share their sign: they are not independent, or the form "
    "is not quite the right one.",
    "mixed schedules": "The runs differ in their optimizer or batch size beyond declared drops of the rate.",
    "learning-rate drop": "Some points lie after a declared drop of the learning rate; see the fit without them.",
    "frontier censored": "The envelope's winner is mostly the smallest or largest depth with data: no exponent is "
    "fitted to it.",
    "envelope too rough": "The minima along the envelope scatter too much to give their exponent to within 0.01.",
    "minimum at the edge": "Budgets whose lowest loss is at an edge of the sizes, or that too few reach, are out.",
}
REFUSING = {
    "E not identified",
    "exponent at a bound",
    "optimum equals start",
    "gradient not small",
    "several optima",
    "too few depths",
    "mixed schedules",
}


@dataclass(frozen=True, eq=False)
class Law:
    """A fitted joint law, its uncertainty and its caveats.

    ``constants`` has E, A, B, alpha, beta and the implied allocation N* ~ C^a, D* ~ C^b, a = beta / (alpha + beta),
    at full precision. ``se``, ``ci80`` and ``ci95`` are empty where ``how`` says that there is no interval.
    """

    constants: dict[str, float]
    se: dict[str, float]
    ci80: dict[str, tuple[float, float]]
    ci95: dict[str, tuple[float, float]]
    left_out: dict[int, dict[str, float]]  # constants without each depth in turn
    reported: dict[str, bool]  # exponents that are certain to within RESOLUTION
    draws: Float[np.ndarray, "r 5"]  # joint bootstrap draws of E, A, B, alpha, beta; no rows without intervals
    how: str
    failed_resamples: int
    objective: float
    grad_norm: float  # relative: 1 where nothing cancels
    delta: float  # of the Huber objective
    n_points: int
    n_runs: int
    residuals: Float[np.ndarray, " n"] = field(repr=False)  # log loss - log law, in the order of the points
    residual_rms: float
    residual_max: float
    ranges: dict[str, tuple[float, float]]  # of the data: depth, params, images, flops
    family: ModelConfig | None  # any member: its depth is the dial
    flags: tuple[str, ...]

    @property
    def vector(self) -> Float[np.ndarray, " 5"]:
        """E, A, B, alpha, beta."""
        return np.array([self.constants[name] for name in CONSTANTS])


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
    **options: float,
) -> Law:
    """The joint law of the points of a runs table that belong on it; arguments of points_on_law and fit_points."""
    return fit_points(points_on_law(runs, weights, skip, with_zero, with_drops), **options)  # type: ignore[arg-type]


def fit_points(points: pd.DataFrame, delta: float = 1e-3, resamples: int = 1000, seed: int = 0) -> Law:
    """Fit L = E + A / N^alpha + B / D^beta to points (columns run, depth, params, images, flops, loss).

    Minimises the sum of Huber losses (``delta``) of log L. Runs that repeat a cell (params, images), as seeds do,
    share the weight of one point, so a depth with three seeds weighs as much as a depth with one. Intervals are
    percentiles of a bootstrap that resamples runs, as points of one run are not independent; with fewer than six
    runs there are none, and ``left_out`` shows how far the constants move without each depth.

    Raises UserError for fewer than three depths or fewer than six points, or if no law fits.
    """
    measured = points[["params", "images", "flops", "loss"]].to_numpy(float)
    if not (np.isfinite(measured) & (measured > 0)).all():
        raise UserError("params, images, flops and loss of every point must be finite and positive")
    depths = np.sort(points["depth"].unique())
    if len(depths) < MIN_DEPTHS:
        raise UserError(f"a law needs at least {MIN_DEPTHS} depths; there are {len(depths)}: {_join(depths)}")
    if len(points) < 6 or points["images"].nunique() < MIN_DEPTHS:
        raise UserError(f"a law needs at least six points at three numbers of images; there are {len(points)} points")
    features = points[["params", "images"]].to_numpy(float).T
    loss, depth = points["loss"].to_numpy(float), points["depth"].to_numpy()
    weight = 1 / points.groupby(["params", "images"])["loss"].transform("size").to_numpy(float)
    best = solvers.optima(features, loss, weight, delta)
    if not math.isfinite(best.objective[0]):
        raise UserError("no law E + A / N^alpha + B / D^beta fits: the loss does not fall with parameters and images")
    constants = _derived(_linear(best.constants[0]))
    residuals = np.log(loss) - solvers.predict_log(best.constants[0], features)

    run_names, run = np.unique(points["run"].to_numpy(str), return_inverse=True)
    draws, failed, how = np.zeros((0, 5)), 0, ""
    if len(run_names) >= MIN_RUNS:
        even = [1 / len(run_names)] * len(run_names)
        counts = np.random.default_rng(seed).multinomial(len(run_names), even, resamples)
        draws = _refit(features, loss, weight * counts[:, run], depth, delta)
        failed = resamples - len(draws)
        how = f"bootstrap over {len(run_names)} runs, {resamples} resamples, {failed} failed"
    left_out = {}
    if len(depths) > MIN_DEPTHS:
        without = solvers.solve(features, loss, weight * (depth != depths[:, None]), delta)
        good = np.isfinite(without.objective)
        left_out = {
            int(one): _derived(_linear(c)) for one, c in zip(depths[good], without.constants[good], strict=True)
        }
    if not how:
        how = "no interval (fewer than six runs)"
        how = f"leave-one-depth-out spread, {how}" if left_out else how
    samples = _derived(draws.T) if len(draws) > 1 else {}
    law = Law(
        constants=constants,
        se={name: float(np.std(values, ddof=1)) for name, values in samples.items()},
        ci80={name: interval(values, 0.80) for name, values in samples.items()},
        ci95={name: interval(values, 0.95) for name, values in samples.items()},
        left_out=left_out,
        reported={},
        draws=draws,
        how=how,
        failed_resamples=failed,
        objective=float(best.objective[0]),
        grad_norm=float(best.gradient[0]),
        delta=delta,
        n_points=len(points),
        n_runs=len(run_names),
        residuals=residuals,
        residual_rms=float(np.sqrt(np.average(residuals**2, weights=weight))),
        residual_max=float(np.abs(residuals).max()),
        ranges={key: (float(points[key].min()), float(points[key].max())) for key in RANGES},
        family=next(iter(points.attrs["configs"].values())).model if points.attrs.get("configs") else None,
        flags=(),
    )
    law = replace(law, flags=_flags(law, points, best, len(depths)))
    return replace(law, reported={name: _is_resolved(law, name) for name in EXPONENTS})


def curves(points: pd.DataFrame, delta: float = 1e-3) -> dict[int, Curve]:
    """The saturating power law L = E + A D^-a of each depth with at least four points, D images seen."""
    found = {}
    for _, own in points.groupby("depth"):
        images, loss = own["images"].to_numpy(float), own["loss"].to_numpy(float)
        if len(np.unique(images)) < 4:
            continue
        best = solvers.optima(images[None], loss, np.ones(len(loss)), delta)
        if math.isfinite(best.objective[0]):
            log_e, log_a, exponent = best.constants[0]
            residual = np.log(loss) - solvers.predict_log(best.constants[0], images[None])
            rms = float(np.sqrt(np.mean(residual**2)))
            found[int(own["depth"].iloc[0])] = Curve(math.exp(log_e), math.exp(log_a), float(exponent), rms)
    return found


def sensitivity(runs: pd.DataFrame, weights: str = "ema", skip: float = 0.1) -> pd.DataFrame:
    """The constants under other choices: Huber deltas, without level 0, without dropped rates, less or more skipped."""
    choices: dict[str, dict[str, float]] = {"as reported": {}}
    choices |= {f"Huber delta {delta:g}": {"delta": delta} for delta in (1e-4, 1e-2, math.inf)}
    choices |= {"without level t = 0": {"with_zero": False}, "without points after a drop": {"with_drops": False}}
    choices |= {f"first {share:.0%} skipped": {"skip": share} for share in (skip / 2, min(2 * skip, 0.9))}
    rows = {}
    for name, choice in choices.items():
        try:
            law = fit(runs, **({"weights": weights, "skip": skip, "resamples": 0} | choice))  # type: ignore[arg-type]
        except UserError:
            continue
        rows[name] = law.constants | {"residual_rms": law.residual_rms, "points": law.n_points}
    return pd.DataFrame.from_dict(rows, orient="index")


def _refit(
    features: Float[np.ndarray, "2 n"],
    loss: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, "r n"],
    depth: np.ndarray,
    delta: float,
) -> Float[np.ndarray, "q 5"]:
    """Constants of each row of weights that can be fitted: one with at least three depths, to a finite objective."""
    present = [(weights[:, depth == one] > 0).any(axis=1) for one in np.unique(depth)]
    enough = np.sum(present, axis=0) >= MIN_DEPTHS
    if not enough.any():
        return np.zeros((0, 5))
    found = solvers.solve(features, loss, weights[enough], delta)
    return _linear(found.constants[np.isfinite(found.objective)].T).T


def _linear(constants: Float[np.ndarray, "5 *r"]) -> Float[np.ndarray, "5 *r"]:
    """(log E, log A, log B, alpha, beta) -> (E, A, B, alpha, beta), along the first axis."""
    return np.concatenate([np.exp(constants[:3]), constants[3:]])


def log_constants(constants: Float[np.ndarray, "*r 5"]) -> Float[np.ndarray, "*r 5"]:
    """(E, A, B, alpha, beta) -> (log E, log A, log B, alpha, beta), along the last axis."""
    return np.concatenate([np.log(constants[..., :3]), constants[..., 3:]], axis=-1)


def _derived(constants):
    """Constants by name, with a and b: floats, or arrays over draws."""
    named = dict(zip(CONSTANTS, constants, strict=True))
    total = named["alpha"] + named["beta"]
    named |= {"a": named["beta"] / total, "b": named["alpha"] / total}
    return {name: float(value) if np.ndim(value) == 0 else value for name, value in named.items()}


def interval(values: Float[np.ndarray, " r"], level: float) -> tuple[float, float]:
    """The central percentile interval."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _flags(law: Law, points: pd.DataFrame, best: solvers.Solution, depths: int) -> tuple[str, ...]:
    lowest = float(points["loss"].min())
    low, high = law.ci95.get("E", (law.constants["E"],) * 2)
    others = [law.constants["E"], *(left["E"] for left in law.left_out.values())]
    bounds = np.array(solvers.EXPONENTS)
    fitted = np.array([law.constants["alpha"], law.constants["beta"]])
    rivals = best.constants[1:][best.objective[1:] <= 1.01 * best.objective[0]]
    apart = np.abs(rivals[:, 3:] - fitted).max(initial=0) > 0.05 and law.residual_rms > 1e-9
    schedule = [key for key in differences(points) if key.startswith(SCHEDULE) and key != "optimizer.drops"]
    phases = set(points["phase"]) if "phase" in points else set()
    raised = {
        "E not identified": min(low, *others) < 1e-3 * lowest or max(high, law.constants["E"]) >= lowest,
        "exponent at a bound": bool((np.abs(np.log(fitted[:, None] / bounds)) < 1e-6).any()),
        "optimum equals start": bool(best.moved[0] < 1e-12),
        "gradient not small": law.grad_norm > 1e-4,
        "several optima": bool(apart),
        "too few depths": depths < 5,
        "trend in residuals": _has_trend(law.residuals, points),
        "mixed schedules": bool(schedule) or bool(phases & {"warmup", "cooldown"}),
        "learning-rate drop": "lr_drop" in phases,
    }
    return tuple(name for name, on in raised.items() if on)


def _has_trend(residuals: Float[np.ndarray, " n"], points: pd.DataFrame) -> bool:
    """Wald and Wolfowitz's test: far fewer runs of one sign along log C than independent residuals would have."""
    signs = np.sign(residuals[np.argsort(points["flops"].to_numpy(), kind="stable")])
    signs = signs[signs != 0]
    plus, minus = int((signs > 0).sum()), int((signs < 0).sum())
    n = plus + minus
    if n < 10 or min(plus, minus) == 0 or np.abs(residuals).max() < 1e-9:
        return False
    expected = 1 + 2 * plus * minus / n
    spread = math.sqrt((expected - 1) * (expected - 2) / (n - 1))
    return 1 + int((np.diff(signs) != 0).sum()) < expected - 3 * spread


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


def _join(values: np.ndarray) -> str:
    return ", ".join(str(value) for value in values)
