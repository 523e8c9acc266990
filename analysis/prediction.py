"""What a law says of sizes and data that were not trained, and how well it said it of runs it had not seen."""

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from analysis.isoflop import BUDGETS, find_budgets
from analysis.laws import Law, fit_points
from analysis.resampling import interval
from sd3_jax.errors import UserError


class Prediction(NamedTuple):
    """Loss that a law predicts, with the 95 % interval of a new run (nan where the law has no intervals)."""

    loss: Float[np.ndarray, "..."]
    low: Float[np.ndarray, "..."]
    high: Float[np.ndarray, "..."]


class HoldOut(NamedTuple):
    """How well a law of smaller depths, of runs of less compute or of lower budgets predicts what was held out."""

    what: str  # was held out
    depth: int | None  # where that is one depth
    points: int
    actual: float  # loss at one of its points, mean of the runs there
    predicted: float
    error: float  # predicted / actual - 1 there
    rms: float  # of log predicted - log actual over its points
    z: float  # log error over the predictive standard deviation there; nan without intervals
    covered: bool | None  # whether the 95 % interval holds the actual loss
    ci80: tuple[float, float] | None  # of a new run's loss there
    ci95: tuple[float, float] | None
    covered80: bool | None
    reach: float  # FLOPs of that point over the most of any that was fitted; nan where there are none
    law: Law
    each: tuple["HoldOut", ...] = ()  # where several depths or runs were held out together


def predict(
    law: Law, params: ArrayLike, images: ArrayLike, level: float = 0.95, flops: ArrayLike | None = None
) -> Prediction:
    """Loss at N parameters and D images (and C ``flops``, if the law needs them), with a new run's interval there.

    The interval joins the uncertainty of the constants (the joint draws) and the residuals of the points; both are
    nan without draws. Raises UserError for a law that is not a function of these.
    """
    given = {"params": params, "images": images} | ({} if flops is None else {"flops": flops})
    if not {"params", "images"} <= set(law.form.columns) <= given.keys():
        raise UserError(f"the law {law.form.name} is a function of {', '.join(law.form.columns)}, not of N and D")
    values = np.broadcast_arrays(*(np.asarray(one, float) for one in given.values()))
    features = law.form.features(pd.DataFrame({name: one.ravel() for name, one in zip(given, values, strict=True)}))
    loss = _loss(law, features)
    low, high = np.full((2, len(loss)), np.nan)
    if len(law.draws):
        low, high = np.exp(np.quantile(log_draws(law, features), [(1 - level) / 2, (1 + level) / 2], axis=0))
    return Prediction(*(one.reshape(values[0].shape) for one in (loss, low, high)))


def hold_out_largest(points: pd.DataFrame, number: int = 1, **options: Any) -> HoldOut:
    """Fit without the largest depths, or without depths the runs of most FLOPs, then predict each of their points.

    ``number`` of them are held out; its one point is the largest depth's last step, or without depths that of most
    FLOPs, and ``each`` has that of every depth or run. Options are those of fit_points. Raises UserError if too few
    are left.
    """
    unit = "depth" if "depth" in points else "run"
    size = points["depth"] if unit == "depth" else points.groupby("run")["flops"].transform("max")
    units = points[[unit]].assign(size=size).drop_duplicates()
    if number >= len(units):
        raise UserError(f"{number} of {len(units)} {unit}s cannot be held out: a law needs some to be fitted to")
    out = units.sort_values("size", kind="stable").iloc[-number:][unit].tolist()
    is_held = points[unit].isin(out)
    law = fit_points(points[~is_held], **options)
    by = "step" if "step" in points else "images" if unit == "depth" else "flops"
    each = []
    for name in out:
        own = points[points[unit] == name]
        what = f"depth {name}" if unit == "depth" else str(name)
        each.append(_judged(law, own, what, (own[by] == own[by].max()).to_numpy()))
    held = points[is_held]
    if number == 1:
        return each[0] if unit == "depth" else each[0]._replace(what="the run of most FLOPs")
    what = f"the largest {number} depths" if unit == "depth" else f"the {number} runs of most FLOPs"
    last = held[unit] == out[-1]
    at = last & (held[by] == held[by][last].max())
    return _judged(law, held, what, at.to_numpy())._replace(depth=None, each=tuple(each))


def rolling(points: pd.DataFrame, **options: Any) -> tuple[HoldOut, ...]:
    """Rolling origin: fit to all smaller depths and predict the next, for each depth in turn.

    Without depths, fit to all points of lower budgets and predict those of the next; budgets are those at which the
    points lie together, else log-spaced in FLOPs. The one point of each is that with the lowest predicted loss, so
    the choice knows nothing of what was measured. Options are those of fit_points. Raises UserError if no origin
    leaves enough to be fitted to.
    """
    found, why = [], "there is one only"
    for what, before, here in _origins(points):
        try:
            law = fit_points(points[before], **options)
        except UserError as error:
            why = str(error)
            continue
        held = points[here]
        loss = _loss(law, law.form.features(held))
        found.append(_judged(law, held, what, np.isclose(loss, loss.min(), rtol=1e-12)))
    if not found:
        raise UserError(f"no depth or budget can be predicted from those below it: {why}")
    return tuple(found)


def log_draws(law: Law, features: Float[np.ndarray, "k n"]) -> Float[np.ndarray, "r n"]:
    """log L of a new run at features, for each draw of the law."""
    return law.form.predict_log(law.form.theta(law.draws), features) + _noise(law)[:, None]


def _origins(points: pd.DataFrame) -> list[tuple[str, Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]]:
    """What is predicted, the points below it, and its own."""
    if "depth" in points:
        depth = points["depth"].to_numpy()
        return [(f"depth {one}", depth < one, depth == one) for one in np.unique(depth)[1:]]
    flops = points["flops"].to_numpy(float)
    try:
        budgets = np.array(find_budgets(points)[1])
    except UserError:
        budgets = np.geomspace(flops.min(), flops.max(), BUDGETS)
    edges = [*np.sqrt(budgets[1:] * budgets[:-1]), math.inf]
    cells = [(flops < low, (flops >= low) & (flops < high)) for low, high in zip(edges, edges[1:], strict=False)]
    return [(f"{b:.3g} FLOPs", *cell) for b, cell in zip(budgets[1:], cells, strict=True) if cell[1].any()]


def _judged(law: Law, held: pd.DataFrame, what: str, at: Bool[np.ndarray, " n"]) -> HoldOut:
    """The law's errors on points that it did not see, and its interval at those marked, runs of one cell."""
    features, loss = law.form.features(held), held["loss"].to_numpy(float)
    predicted = _loss(law, features)
    errors = np.log(predicted) - np.log(loss)
    actual, expected = float(loss[at].mean()), float(predicted[at][0])
    z, ci80, ci95 = math.nan, None, None
    if len(law.draws):
        logs = log_draws(law, features[:, at][:, :1])[:, 0]
        z = math.log(expected / actual) / float(np.std(logs, ddof=1))
        ci80, ci95 = (interval(np.exp(logs), level) for level in (0.80, 0.95))
    reach = math.nan
    if "flops" in held and "flops" in law.ranges:
        reach = float(held["flops"].to_numpy(float)[at].mean() / law.ranges["flops"][1])
    return HoldOut(
        what=what,
        depth=int(held["depth"].iloc[0]) if "depth" in held else None,
        points=len(held),
        actual=actual,
        predicted=expected,
        error=expected / actual - 1,
        rms=float(np.sqrt(np.mean(errors**2))),
        z=z,
        covered=None if ci95 is None else bool(ci95[0] <= actual <= ci95[1]),
        ci80=ci80,
        ci95=ci95,
        covered80=None if ci80 is None else bool(ci80[0] <= actual <= ci80[1]),
        reach=reach,
        law=law,
    )


def _loss(law: Law, features: Float[np.ndarray, "k n"]) -> Float[np.ndarray, " n"]:
    return np.exp(law.form.predict_log(law.form.theta(law.vector), features))


def _noise(law: Law) -> Float[np.ndarray, " r"]:
    """One residual for each draw, widened by the degrees of freedom that the fit used; the same at every call."""
    wider = math.sqrt(law.n_points / max(law.n_points - len(law.form.constants), 1))
    return wider * np.random.default_rng(0).choice(law.residuals, len(law.draws))
