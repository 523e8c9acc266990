"""What a law says of sizes and data that were not trained, and how well it said it of runs it had not seen."""

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import ArrayLike

from analysis.laws import Law, fit_points
from sd3_jax.errors import UserError


class Prediction(NamedTuple):
    """Loss that a law predicts, with the 95 % interval of a new run (nan where the law has no intervals)."""

    loss: Float[np.ndarray, "..."]
    low: Float[np.ndarray, "..."]
    high: Float[np.ndarray, "..."]


class HoldOut(NamedTuple):
    """How well a law of the smaller depths, or of the runs of less compute, predicts the others."""

    what: str  # was held out
    depth: int | None  # where that is one depth
    points: int
    actual: float  # loss at its last step, mean of its runs; without depths, at its most FLOPs
    predicted: float
    error: float  # predicted / actual - 1 there
    rms: float  # of log predicted - log actual over its points
    z: float  # log error over the predictive standard deviation there; nan without intervals
    covered: bool | None  # whether the 95 % interval holds the actual loss
    law: Law


def predict(law: Law, params: ArrayLike, images: ArrayLike, level: float = 0.95) -> Prediction:
    """Loss at N parameters and D images, and the interval of a new run's loss there.

    The interval joins the uncertainty of the constants (the joint draws) and the residuals of the points; both are
    nan without draws. Raises UserError for a law that is not a function of N and D.
    """
    if law.form.columns != ("params", "images"):
        raise UserError(f"the law {law.form.name} is a function of {', '.join(law.form.columns)}, not of N and D")
    n, d = np.broadcast_arrays(np.asarray(params, float), np.asarray(images, float))
    found = _predict(law, np.stack([n.ravel(), d.ravel()]), level)
    return Prediction(*(one.reshape(n.shape) for one in found))


def hold_out_largest(points: pd.DataFrame, number: int = 1, **options: Any) -> HoldOut:
    """Fit without the largest depths, or without depths the runs of most FLOPs, then predict each of their points.

    ``number`` of them are held out. Options are those of fit_points. Raises UserError if too few are left.
    """
    by_depth = "depth" in points
    size = points["depth"] if by_depth else points.groupby("run")["flops"].transform("max")
    units = points[["depth" if by_depth else "run"]].assign(size=size).drop_duplicates()
    if number >= len(units):
        what = "depths" if by_depth else "runs"
        raise UserError(f"{number} of {len(units)} {what} cannot be held out: a law needs some to be fitted to")
    out = units.sort_values("size", kind="stable").iloc[-number:, 0]
    is_held = points[out.name].isin(out)
    held, rest = points[is_held], points[~is_held]
    law = fit_points(rest, **options)
    features = law.form.features(held)
    predicted = _predict(law, features)
    errors = np.log(predicted.loss) - np.log(held["loss"].to_numpy(float))
    end = (held["step"] if "step" in held else held["images"] if by_depth else held["flops"]).to_numpy()
    last = (end == end.max()) & (held["depth"] == held["depth"].max() if by_depth else True)
    actual, expected = float(held["loss"].to_numpy()[last].mean()), float(predicted.loss[last][0])
    z, covered = math.nan, None
    if len(law.draws):
        logs = _logs(law, features[:, last][:, :1])[:, 0]
        z = math.log(expected / actual) / float(np.std(logs, ddof=1))
        covered = bool(predicted.low[last][0] <= actual <= predicted.high[last][0])
    what = f"depth {held['depth'].max()}" if by_depth else "the run of most FLOPs"
    if number > 1:
        what = f"the largest {number} depths" if by_depth else f"the {number} runs of most FLOPs"
    depth = int(held["depth"].max()) if by_depth and number == 1 else None
    rms = float(np.sqrt(np.mean(errors**2)))
    return HoldOut(what, depth, len(held), actual, expected, expected / actual - 1, rms, z, covered, law)


def _predict(law: Law, features: Float[np.ndarray, "k n"], level: float = 0.95) -> Prediction:
    loss = np.exp(law.form.predict_log(law.form.theta(law.vector), features))
    if not len(law.draws):
        return Prediction(loss, np.full(loss.shape, np.nan), np.full(loss.shape, np.nan))
    low, high = np.exp(np.quantile(_logs(law, features), [(1 - level) / 2, (1 + level) / 2], axis=0))
    return Prediction(loss, low, high)


def _logs(law: Law, features: Float[np.ndarray, "k n"]) -> Float[np.ndarray, "r n"]:
    """log L of a new run at features, for each draw of the law."""
    return law.form.predict_log(law.form.theta(law.draws), features) + _noise(law)[:, None]


def _noise(law: Law) -> Float[np.ndarray, " r"]:
    """One residual for each draw, widened by the degrees of freedom that the fit used; the same at every call."""
    wider = math.sqrt(law.n_points / max(law.n_points - len(law.form.constants), 1))
    return wider * np.random.default_rng(0).choice(law.residuals, len(law.draws))
