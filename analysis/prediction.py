"""What a law says of sizes and data that were not trained, and how well it said it of a depth it had not seen."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import ArrayLike

from analysis import solvers
from analysis.laws import CONSTANTS, Law, fit_points, log_constants


class Prediction(NamedTuple):
    """Loss that a law predicts, with the 95 % interval of a new run (nan where the law has no intervals)."""

    loss: Float[np.ndarray, "..."]
    low: Float[np.ndarray, "..."]
    high: Float[np.ndarray, "..."]


class HoldOut(NamedTuple):
    """How well a law of the smaller depths predicts the largest."""

    depth: int
    points: int
    actual: float  # loss at its last step, mean of its runs
    predicted: float
    error: float  # predicted / actual - 1 there
    rms: float  # of log predicted - log actual over its points
    z: float  # log error over the predictive standard deviation there; nan without intervals
    covered: bool | None  # whether the 95 % interval holds the actual loss
    law: Law


def predict(law: Law, params: ArrayLike, images: ArrayLike, level: float = 0.95) -> Prediction:
    """Loss at N parameters and D images, and the interval of a new run's loss there.

    The interval joins the uncertainty of the constants (the joint draws) and the residuals of the points; both are
    nan without draws.
    """
    n, d = np.broadcast_arrays(np.asarray(params, float), np.asarray(images, float))
    features = np.stack([n.ravel(), d.ravel()])
    loss = np.exp(solvers.predict_log(log_constants(law.vector), features)).reshape(n.shape)
    if not len(law.draws):
        return Prediction(loss, np.full(n.shape, np.nan), np.full(n.shape, np.nan))
    logs = solvers.predict_log(log_constants(law.draws), features) + _noise(law)[:, None]
    low, high = np.exp(np.quantile(logs, [(1 - level) / 2, (1 + level) / 2], axis=0))
    return Prediction(loss, low.reshape(n.shape), high.reshape(n.shape))


def hold_out_largest(points: pd.DataFrame, **options: float) -> HoldOut:
    """Fit without the largest depth, then predict each of its points. Options are those of fit_points.

    Raises UserError if fewer than three depths are left.
    """
    largest = points["depth"].max()
    held, rest = points[points["depth"] == largest], points[points["depth"] != largest]
    law = fit_points(rest, **options)  # type: ignore[arg-type]
    predicted = predict(law, held["params"], held["images"])
    errors = np.log(predicted.loss) - np.log(held["loss"].to_numpy(float))
    end = (held["step"] if "step" in held else held["images"]).to_numpy()
    last = end == end.max()
    actual, expected = float(held["loss"].to_numpy()[last].mean()), float(predicted.loss[last][0])
    z, covered = math.nan, None
    if len(law.draws):
        feature = held[["params", "images"]].to_numpy(float)[last][:1].T
        logs = solvers.predict_log(log_constants(law.draws), feature)[:, 0] + _noise(law)
        z = math.log(expected / actual) / float(np.std(logs, ddof=1))
        covered = bool(predicted.low[last][0] <= actual <= predicted.high[last][0])
    rms = float(np.sqrt(np.mean(errors**2)))
    return HoldOut(int(largest), len(held), actual, expected, expected / actual - 1, rms, z, covered, law)


def _noise(law: Law) -> Float[np.ndarray, " r"]:
    """One residual for each draw, widened by the degrees of freedom that the fit used; the same at every call."""
    wider = math.sqrt(law.n_points / max(law.n_points - len(CONSTANTS), 1))
    return wider * np.random.default_rng(0).choice(law.residuals, len(law.draws))
