"""Approaches 1, 2 and 3 of Hoffmann et al. 2022 on one table, and whether they agree.

N* ~ C^a and D* ~ C^b by the envelope of the curves, by isoFLOP valleys, and by the parametric law. Approaches that
disagree beyond their intervals publish no exponent.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.flags import FAILED
from analysis.forms import CHINCHILLA
from analysis.frontier import as_curves, envelope
from analysis.isoflop import find_budgets, isoflop_points
from analysis.laws import MIN_RUNS, Law, fit_points
from analysis.resampling import Spread, spread
from sd3_jax.errors import UserError

EXPONENTS = {"a": "exponent_params", "b": "exponent_data"}


class Approach(NamedTuple):
    """One approach's exponents; none, and why, where the table does not allow it."""

    name: str
    exponents: dict[str, float]  # a, b
    intervals: dict[str, Spread]  # empty where there are too few runs
    why: str  # how the intervals came about, or why there is no exponent


class Comparison(NamedTuple):
    """The approaches, and whether those that have intervals share values of a and of b; None with fewer than two."""

    approaches: tuple[Approach, ...]
    agree: bool | None
    sentence: str


def compare_approaches(points: pd.DataFrame, law: Law | None = None, resamples: int = 200) -> Comparison:
    """All three on the same points (columns run, params, images, flops, loss, optionally depth).

    ``law`` is their joint law, where it is at hand. Budgets are found by :func:`analysis.isoflop.find_budgets`, or
    are those of ``points.attrs``.
    """
    found = (
        _tried("envelope", lambda: _envelope(points, resamples)),
        _tried("isoFLOP, parabola", lambda: _isoflop(points, "parabola", resamples)),
        _tried("isoFLOP, Akima", lambda: _isoflop(points, "akima", resamples)),
        _tried("parametric", lambda: _parametric(points, law, resamples)),
    )
    sure = [one for one in found if one.intervals]
    if len(sure) < 2:
        return Comparison(found, None, "Fewer than two approaches have intervals: nothing is compared.")
    apart = []
    for name in EXPONENTS:
        low = max(sure, key=lambda one: one.intervals[name].ci95[0])
        high = min(sure, key=lambda one: one.intervals[name].ci95[1])
        if low.intervals[name].ci95[0] > high.intervals[name].ci95[1]:
            apart.append(f"{name} of {high.name} and of {low.name}")
    if apart:
        return Comparison(
            found, False, f"The approaches disagree: the 95 % intervals of {' and '.join(apart)} are apart."
        )
    return Comparison(found, True, f"The 95 % intervals of {len(sure)} approaches share values of a and b.")


def _tried(name: str, approach: Callable[[], tuple[dict, dict, str]]) -> Approach:
    try:
        return Approach(name, *approach())
    except UserError as error:
        return Approach(name, {}, {}, str(error))


def _envelope(points: pd.DataFrame, resamples: int) -> tuple[dict, dict, str]:
    points = as_curves(points)
    runs = points["run"].nunique()
    found = envelope(points, resamples=resamples if runs >= MIN_RUNS else 0)
    if not found.line:
        return {}, {}, f"frontier censored: {found.winners} sizes win over {found.decades:.1f} decades"
    exponents = {name: found.line[key] for name, key in EXPONENTS.items()}
    if len(found.draws) < (1 - FAILED) * resamples or len(found.draws) < 2:
        return exponents, {}, f"no interval ({runs} curves, {len(found.draws)} of {resamples} resamples uncensored)"
    how = f"bootstrap over {runs} curves, {resamples} resamples, {resamples - len(found.draws)} censored"
    return (
        exponents,
        {name: spread(np.array([one[key] for one in found.draws])) for name, key in EXPONENTS.items()},
        how,
    )


def _isoflop(points: pd.DataFrame, interpolate: str, resamples: int) -> tuple[dict, dict, str]:
    budgets = points.attrs.get("budgets")
    if not budgets:
        points, budgets = find_budgets(points)
    found = isoflop_points(points, budgets, resamples, interpolate=interpolate)
    exponents = {name: found.exponents[key] for name, key in EXPONENTS.items() if found.exponents}
    if found.failed_resamples > FAILED * resamples:
        return exponents, {}, f"no interval ({found.failed_resamples} of {resamples} resamples have no minima inside)"
    return exponents, {name: found.intervals[key] for name, key in EXPONENTS.items() if found.intervals}, found.how


def _parametric(points: pd.DataFrame, law: Law | None, resamples: int) -> tuple[dict, dict, str]:
    if law is None or law.form is not CHINCHILLA:
        law = fit_points(points, resamples=resamples)
    intervals = {name: Spread(law.se[name], law.ci80[name], law.ci95[name]) for name in EXPONENTS if law.se}
    return {name: law.constants[name] for name in EXPONENTS}, intervals, law.how
