"""The constants of a law under other choices than those that were made, and without its worst points."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws import Law, fit, fit_points
from sd3_jax.errors import UserError

DELTAS = (1e-4, 1e-2, math.inf)  # of Huber; the last is least squares


def sensitivity(runs: pd.DataFrame, weights: str = "ema", skip: float = 0.1, **options: Any) -> pd.DataFrame:
    """Under other Huber deltas, without level 0, without dropped rates, less or more skipped. Options: fit_points'."""
    choices: dict[str, dict[str, Any]] = {"as reported": {}}
    choices |= {f"Huber delta {delta:g}": {"delta": delta} for delta in DELTAS}
    choices |= {"without level t = 0": {"with_zero": False}, "without points after a drop": {"with_drops": False}}
    choices |= {f"first {share:.0%} skipped": {"skip": share} for share in (skip / 2, min(2 * skip, 0.9))}
    common: dict[str, Any] = {"weights": weights, "skip": skip, "resamples": 0} | options
    return _under({name: partial(fit, runs, **(common | choice)) for name, choice in choices.items()})


def sensitivity_of_points(points: pd.DataFrame, dropped: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """Under other Huber deltas, and with the points that were ``dropped``. Options: fit_points'."""
    options = options | {"resamples": 0}
    choices = {"as reported": partial(fit_points, points, **options)}
    choices |= {
        f"Huber delta {delta:g}": partial(fit_points, points, **(options | {"delta": delta})) for delta in DELTAS
    }
    if len(dropped):
        choices[f"with the {len(dropped)} worst"] = partial(fit_points, pd.concat([points, dropped]), **options)
    return _under(choices)


def drop_worst(points: pd.DataFrame, number: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Points without the ``number`` of largest loss, and those. Raises UserError if none is left."""
    if number >= len(points):
        raise UserError(f"{number} of {len(points)} points cannot be dropped: a law needs some to be fitted to")
    order = points["loss"].argsort(kind="stable")
    kept, dropped = points.iloc[np.sort(order[: len(points) - number])], points.iloc[order[len(points) - number :]]
    kept = kept.reset_index(drop=True)
    kept.attrs = points.attrs
    return kept, dropped


def _under(choices: Mapping[str, Callable[[], Law]]) -> pd.DataFrame:
    """One row of constants for each choice that can be fitted."""
    rows = {}
    for name, choice in choices.items():
        try:
            law = choice()
        except UserError:
            continue
        rows[name] = law.constants | {"residual_rms": law.residual_rms, "points": law.n_points}
    return pd.DataFrame.from_dict(rows, orient="index")
