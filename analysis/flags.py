"""Reasons not to believe a fit, each with its sentence, and the tests of points and residuals that raise some."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from analysis.runs import differences

FLAGS = {
    "E not identified": "The data do not fix E: its interval reaches zero or the smallest loss, and exponents with it.",
    "exponent at a bound": "An exponent ended on its bound: the data do not fix it.",
    "term vanishes": "A term is nowhere a thousandth of the loss: the data do not show it.",
    "break not identified": "Fewer than three points lie on one side of a break, or without it the law fits as well.",
    "optimum equals start": "The fit did not move from its start: it cannot be told from a solver that failed.",
    "gradient not small": "The gradient at the optimum is not small: the fit has not converged.",
    "several optima": "Other constants fit within 1 % as well: the data do not choose between them.",
    "resamples failed": "Over a fifth of the resamples could not be fitted: intervals are of the rest.",
    "too few depths": "Fewer than five depths: five constants are hardly determined by them.",
    "trend in residuals": "Residuals of neighbouring FLOPs share their sign: they are not independent, or the form "
    "is not quite the right one.",
    "mixed schedules": "The runs differ in their optimizer or batch size beyond declared drops of the rate.",
    "mixed FLOP definitions": "FLOPs over (parameters x data) jump: they were not counted in the same way everywhere.",
    "learning-rate drop": "Some points lie after a declared drop of the learning rate; see the fit without them.",
    "frontier censored": "The envelope's winner is mostly the smallest or largest depth with data: no exponent is "
    "fitted to it.",
    "envelope too rough": "The minima along the envelope scatter too much to give their exponent to within 0.01.",
    "minimum at the edge": "Budgets whose lowest loss is at an edge of the sizes, or that too few reach, are out.",
}
REFUSING = {
    "E not identified",
    "exponent at a bound",
    "term vanishes",
    "break not identified",
    "optimum equals start",
    "gradient not small",
    "several optima",
    "resamples failed",
    "too few depths",
    "mixed schedules",
    "mixed FLOP definitions",
}
FAILED = 0.2  # share of resamples without a result above which that is said
SCHEDULE = ("optimizer.", "batch")  # keys of a configuration that make one schedule
SAME_SIZE, NEXT_SIZE = 1.05, 1.5  # largest ratio of FLOPs / (N D) within a size, and between sizes next to each other


def raised(tests: dict[str, bool]) -> tuple[str, ...]:
    """The flags whose test is true."""
    assert tests.keys() <= FLAGS.keys()
    return tuple(name for name, on in tests.items() if on)


class Trend(NamedTuple):
    """How much fewer runs of one sign there are than in independent residuals: standard deviations, and chance."""

    z: float  # nan where there is nothing to test
    p: float


def trend(residuals: Float[np.ndarray, " n"], along: Float[np.ndarray, " n"]) -> Trend:
    """Wald and Wolfowitz's test along log C, one-sided: few runs are a trend. Of fewer than ten signs it is none."""
    signs = np.sign(residuals[np.argsort(along, kind="stable")])
    signs = signs[signs != 0]
    plus, minus = int((signs > 0).sum()), int((signs < 0).sum())
    n = plus + minus
    if n < 10 or min(plus, minus) == 0 or np.abs(residuals).max() < 1e-9:
        return Trend(math.nan, math.nan)
    expected = 1 + 2 * plus * minus / n
    spread = math.sqrt((expected - 1) * (expected - 2) / (n - 1))
    z = (1 + int((np.diff(signs) != 0).sum()) - expected) / spread
    return Trend(z, float(stats.norm.cdf(z)))


def has_trend(residuals: Float[np.ndarray, " n"], along: Float[np.ndarray, " n"]) -> bool:
    """Whether residuals have far fewer runs of one sign along log C than independent ones: three deviations."""
    return trend(residuals, along).z < -3


def mixed_schedules(points: pd.DataFrame) -> bool:
    """Whether runs differ in optimizer or batch, or a column ``schedule`` does, or the rate is falling somewhere."""
    changed = [key for key in differences(points) if key.startswith(SCHEDULE) and key != "optimizer.drops"]
    falling = "phase" in points and bool(set(points["phase"]) & {"warmup", "cooldown"})
    return bool(changed) or falling or ("schedule" in points and points["schedule"].nunique(dropna=False) > 1)


def mixed_flops(points: pd.DataFrame) -> bool:
    """Whether C / (N D) varies within a size, or jumps from one size to the next within a factor of two.

    It is one number for each size, and a smooth function of the size: 6 for a language model without attention,
    844 to 875 for the paper's MM-DiT. Where FLOPs are counted otherwise (multiply-adds, forward only, all tokens),
    it changes by factors.
    """
    if not {"params", "images", "flops"} <= set(points.columns):
        return False
    size = np.log(points["params"].to_numpy(float))
    ratio = np.log(points["flops"].to_numpy(float)) - np.log(points["images"].to_numpy(float)) - size
    table = pd.DataFrame({"size": size, "ratio": ratio}).groupby("size")["ratio"].agg(["min", "max", "median"])
    if (table["max"] - table["min"]).max() > math.log(SAME_SIZE):
        return True
    near = np.diff(table.index.to_numpy()) < math.log(2)
    return bool((np.abs(np.diff(table["median"].to_numpy()))[near] > math.log(NEXT_SIZE)).any())
