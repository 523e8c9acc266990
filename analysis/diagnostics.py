"""Whether a law is to be believed, in figures: its residuals, what it had not seen, and the loss level by level."""

import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import flags, report
from analysis.drawing import (
    CAPTION,
    STYLE,
    WIDTH,
    Drawing,
    below,
    counted,
    interval_bars,
    plain_log_ticks,
    save,
    scientific,
    sequential_colours,
)
from analysis.laws import Law
from analysis.prediction import HoldOut
from analysis.runs import LEVELS, constant_rate
from sd3_jax.errors import UserError

AXES = {"params": ("parameters N", counted), "images": ("data D", counted), "flops": ("training FLOPs C", scientific)}
MANY = 12  # of more sizes or runs, none has a colour of its own
LOOKS = {True: "0.15", False: "#D55E00", None: "0.55"}  # inside of the 95 % interval, outside, no interval
TAIL = 4.0  # how fast a level still falls is measured over the last so many times of compute


def residual_figure(law: Law, points: pd.DataFrame, out: str | Path | None = None) -> Drawing:
    """Log residuals, log loss - log law in per cent, against N, D and C, as far as the points have them.

    One colour for each depth, or size, or run, unless there are too many. The band is the law's root mean square;
    the caption has Durbin and Watson's statistic (2 where neighbours in C are independent) and the p-value of the test
    that flags a trend. ``points`` are those of the fit, or others that the law is a function of.
    """
    residuals = np.log(points["loss"].to_numpy(float)) - law.form.predict_log(
        law.form.theta(law.vector), law.form.features(points)
    )
    along = (points["flops"] if "flops" in points else points["params"] * points["images"]).to_numpy(float)
    test, watson = flags.trend(residuals, along), durbin_watson(residuals, along)
    shown = [name for name in AXES if name in points]
    by = next((name for name in ("depth", "params", "run") if name in points and points[name].nunique() <= MANY), None)
    groups: list[tuple[Any, pd.DataFrame]] = list(points.groupby(by)) if by else [(None, points)]
    colours: dict[Any, Any] = sequential_colours([key for key, _ in groups]) if by else {None: "0.25"}
    percent = pd.Series(100 * residuals, points.index)
    kept = [name for name in ("run", "depth", *shown, "loss") if name in points]
    numbers: dict[str, Any] = {
        "figure": "residuals",
        "law": law.form.name,
        "points": points[kept].assign(residual=residuals).to_dict(orient="list"),
        "rms": law.residual_rms,
        "durbin_watson": watson,
        "trend": test._asdict(),
        "flags": list(law.flags),
    }
    numbers["caption"] = textwrap.fill(_residual_caption(law, numbers), CAPTION)
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        panels = figure.subplots(1, len(shown), sharey=True, squeeze=False, gridspec_kw={"wspace": 0.08})[0]
        for axes, name in zip(panels, shown, strict=True):
            axes.axhspan(-100 * law.residual_rms, 100 * law.residual_rms, color="0.88", lw=0, zorder=0)
            axes.axhline(0, color="0.3", lw=0.8, zorder=1)
            for key, own in groups:
                axes.plot(own[name], percent[own.index], "o", ms=2.8, mew=0, alpha=0.8, color=colours[key])
            label, written = AXES[name]
            axes.set(xlabel=label, xscale="log")
            plain_log_ticks(axes, "x", axes.get_xlim(), written)
        panels[0].set_ylabel("log loss - log law, %")
        handles = []
        for key, colour in colours.items() if by else ():
            label = f"N = {counted(key)}" if by == "params" else f"{by} {str(key)[-30:]}".replace("$", r"\$")
            handles.append(Line2D([], [], color=colour, marker="o", ms=3, lw=0, label=label))
        widest = max((len(str(one.get_label())) for one in handles), default=0)
        columns = min(6, len(handles), int(WIDTH / (0.5 + 0.062 * widest)))
        below(figure, handles, columns, numbers["caption"], left=0.095)
    if out is not None:
        save(figure, numbers, out)
    return Drawing(figure, numbers)


def durbin_watson(residuals: Float[np.ndarray, " n"], along: Float[np.ndarray, " n"]) -> float:
    """Squared differences of neighbours over squares: 2 where they are independent, towards 0 where they follow.

    >>> durbin_watson(np.array([1.0, -1.0, 1.0, -1.0]), np.arange(4.0))
    3.0
    """
    ordered = residuals[np.argsort(along, kind="stable")]
    total = float(ordered @ ordered)
    return float(np.diff(ordered) @ np.diff(ordered)) / total if total > 0 else math.nan


def _residual_caption(law: Law, numbers: dict[str, Any]) -> str:
    text = f"{law.form.formula}. Band: ± the rms of {law.residual_rms:.2%}; largest {law.residual_max:.2%}. "
    if math.isfinite(numbers["durbin_watson"]):
        text += f"Along C Durbin-Watson {numbers['durbin_watson']:.2f} (2: independent)"
    if math.isfinite(numbers["trend"]["p"]):
        text += f", so few runs of one sign by chance: p = {numbers['trend']['p']:.2g}"
    trend = "trend in residuals"
    return text + (f". {trend.capitalize()}: {flags.FLAGS[trend]}" if trend in law.flags else ".")


def held_out_figure(several: Sequence[HoldOut], out: str | Path | None = None) -> Drawing:
    """What laws predicted of points that they had not seen, against what was measured, and the error against reach.

    Thick bars are 80 %, thin ones 95 % intervals of a new run; open circles of the warm colour lie outside of theirs;
    numbers are depths. Reach is the FLOPs of the point over the most that its law was fitted to. ``several`` are of
    :func:`analysis.rolling` or :func:`analysis.hold_out_largest`; of one with ``each``, each is drawn.

    Raises UserError if there is none.
    """
    each = [one for held in several for one in held.each or (held,)]
    if not each:
        raise UserError("nothing was held out: there is nothing to draw")
    numbers: dict[str, Any] = {"figure": "held out", "held_out": [report.held_out_dict(one) for one in each]}
    numbers["places"] = _side_by_side([one.reach for one in each])
    numbers["caption"] = textwrap.fill(_held_caption(each), CAPTION)
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.28})
        for one, reach in zip(each, numbers["places"], strict=True):
            look: dict[str, Any] = {"colour": LOOKS[one.covered], "filled": one.covered is not False}
            interval_bars(left, one.actual, one.predicted, one.ci80, one.ci95, **look)
            errors = [_error(ends, one.actual) for ends in (one.ci80, one.ci95)]
            interval_bars(right, reach, 100 * one.error, errors[0], errors[1], **look)
            if one.depth is not None:
                above: dict[str, Any] = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
                top = max(one.predicted, *(one.ci95 or (0,)))
                for axes, place in ((left, (one.actual, top)), (right, (reach, 100 * (top / one.actual - 1)))):
                    axes.annotate(str(one.depth), place, fontsize=7, color=look["colour"], **above)
        values = [value for one in each for value in (one.actual, one.predicted, *(one.ci95 or ()))]
        room = (max(values) / min(values)) ** 0.08
        ends = (min(values) / room, max(values) * room)
        left.plot(ends, ends, color="0.6", lw=0.8, zorder=0)
        left.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured loss", ylabel="predicted loss")
        right.axhline(0, color="0.6", lw=0.8, zorder=0)
        right.set(xscale="log", xlabel="FLOPs over the most that was fitted", ylabel="predicted - measured, %")
        right.margins(x=0.15, y=0.12)
        plain_log_ticks(left, "x", ends)
        plain_log_ticks(left, "y", ends)
        if any(math.isfinite(one.reach) for one in each):
            plain_log_ticks(right, "x", right.get_xlim())
        below(figure, _held_handles(each), 5, numbers["caption"])
    if out is not None:
        save(figure, numbers, out)
    return Drawing(figure, numbers)


def _error(ends: tuple[float, float] | None, actual: float) -> tuple[float, float] | None:
    """An interval of the loss as one of the relative error, in per cent."""
    return None if ends is None else (100 * (ends[0] / actual - 1), 100 * (ends[1] / actual - 1))


def _side_by_side(reach: Sequence[float]) -> list[float]:
    """Where each is drawn: equal ones beside each other, a fiftieth of the axis apart."""
    logs = np.log(np.array(reach))
    known = logs[np.isfinite(logs)]
    step = max(float(np.ptp(known)) if len(known) else 0.0, 0.3) / 50
    places = logs.copy()
    for value in np.unique(known.round(3)):
        own = np.flatnonzero(np.abs(logs - value) < 1e-3)
        places[own] += step * (np.arange(len(own)) - (len(own) - 1) / 2)
    return np.exp(places).tolist()


def _held_handles(each: Sequence[HoldOut]) -> list[Line2D]:
    names = {True: "inside its 95 % interval", False: "outside of it", None: "no interval"}
    handles = []
    for covered, name in names.items():
        if any(one.covered is covered for one in each):
            colour = LOOKS[covered]
            face = "white" if covered is False else colour
            handles.append(Line2D([], [], color=colour, marker="o", mfc=face, ms=3.8, lw=0, label=name))
    if any(one.ci95 for one in each):
        handles += [
            Line2D([], [], color=LOOKS[True], lw=width, label=name) for width, name in ((2.4, "80 %"), (0.8, "95 %"))
        ]
    return handles


def _held_caption(each: Sequence[HoldOut]) -> str:
    """The last line of the table of the same hold-outs, and which of them share a law."""
    text = report.held_out_lines(each)[-1]
    most = max(Counter(id(one.law) for one in each).values())
    text = text[0].upper() + text[1:] + ". "
    if most > 1:
        text += f"{most} were held out of one fit together, so their errors are not independent. "
    text += "Numbers are depths. " if any(one.depth is not None for one in each) else ""
    text += "Intervals are of a new run. " if any(one.ci95 for one in each) else ""
    return text + "Above 0 is predicted too high; equal ratios are drawn side by side."


def levels_figure(runs: pd.DataFrame, weights: str = "ema", out: str | Path | None = None) -> Drawing:
    """The validation loss of each level t = k/8 against training FLOPs, and that of the last checkpoints against t.

    One colour for each depth, seeds faint; points of a constant rate after the warm-up. In each corner is how much the
    largest depth's loss changes as compute doubles, over the last factor of four: a level that no longer falls has
    nothing left to learn, or is noise. The loss is the mean over k = 0..7: t = 1 is drawn, on grey, but is not part
    of it. At t = 0 the least loss of any model is Var(eps) = 1.

    Raises UserError if the runs have no levels, or no point of these weights.
    """
    names = [f"loss_t{k}" for k in range(LEVELS)]
    shown = constant_rate(runs[runs["weights"] == weights]).dropna(subset=names).sort_values(["depth", "run", "step"])
    if shown.empty:
        raise UserError(f"no validation point of the {weights} weights at a constant rate has a loss for each level")
    colours = sequential_colours(shown["depth"].unique())
    first = shown.groupby("depth")["run"].first()
    curves: list[dict[str, Any]] = []
    largest = int(shown["depth"].max())
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        halves = figure.add_gridspec(1, 2, width_ratios=[2.15, 1], wspace=0.24)
        grid: Any = halves[0].subgridspec(3, 3, hspace=0.16, wspace=0.5).subplots(sharex=True)
        small = grid.ravel()
        profile = figure.add_subplot(halves[1])
        for run, own in shown.groupby("run"):
            depth = int(own["depth"].iloc[0])
            faint = run != first.loc[depth]
            look: dict[str, Any] = {"color": colours[depth], "lw": 1.0, "alpha": 0.35 if faint else 0.9}
            for axes, name in zip(small, names, strict=True):
                axes.plot(own["flops"], own[name], **look)
            last = own.iloc[-1]
            profile.plot(np.arange(LEVELS) / 8, last[names].astype(float), marker="o", ms=0 if faint else 2.6, **look)
            columns = {key: own[key].tolist() for key in ("step", "flops", "loss", *names)}
            falls = [_per_doubling(own["flops"], own[name]) for name in names]
            curves.append({"run": run, "depth": depth, **columns, "per_doubling": falls})
        corner = next(one for one in curves if one["depth"] == largest)["per_doubling"]
        for k, (axes, fall) in enumerate(zip(small, corner, strict=True)):
            _finish_level(axes, k, fall)
        small[7].set_xlabel("training FLOPs C")
        small[3].set_ylabel("validation loss of a level")
        profile.axvspan(15 / 16, 17 / 16, color="0.93", lw=0, zorder=0)
        profile.plot([-1 / 16, 1 / 16], [1, 1], color="0.4", lw=0.8, ls=":")
        profile.set(xlabel="t (0: data, 1: noise)", ylabel="loss of the last checkpoint", xlim=(-1 / 16, 17 / 16))
        profile.set_yscale("log")
        plain_log_ticks(profile, "y", profile.get_ylim())
        profile.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "1/4", "1/2", "3/4", "1"])
        handles = [
            Line2D([], [], color=colour, marker="o", ms=3, lw=1.2, label=f"depth {depth}")
            for depth, colour in colours.items()
        ]
        numbers: dict[str, Any] = {
            "figure": "levels",
            "weights": weights,
            "curves": curves,
            "caption": _levels_caption(largest),
        }
        below(figure, handles, min(8, len(handles)), numbers["caption"], rows=1.5)
    if out is not None:
        save(figure, numbers, out)
    return Drawing(figure, numbers)


def _finish_level(axes: Axes, k: int, fall: float) -> None:
    """Ticks, the name of the level, what it still falls by, and what is special of the first and the last."""
    axes.set(xscale="log", yscale="log")
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    if k == 0:
        axes.axhline(1, color="0.4", lw=0.8, ls=":", zorder=0)
        values = np.append(values, 1.0)
    room = max((values.max() / values.min()) ** 0.06, 1.005)
    low, high = values.min() / room, values.max() * room
    if k == LEVELS - 1:
        axes.set_facecolor("0.93")
    axes.set_ylim(low, high * (high / low) ** 0.3)  # room for the words
    plain_log_ticks(axes, "x", axes.get_xlim(), scientific)
    plain_log_ticks(axes, "y", (low, high))
    place: dict[str, Any] = {"transform": axes.transAxes, "va": "top", "fontsize": 7}
    axes.text(0.04, 0.98, "t = " + ("0" if k == 0 else "1" if k == LEVELS - 1 else f"{k}/8"), ha="left", **place)
    if math.isfinite(fall):
        axes.text(0.98, 0.98, f"{fall:+.1%}".replace("-", "−"), ha="right", **place)


def _per_doubling(flops: pd.Series, loss: pd.Series) -> float:
    """How much the loss changes as compute doubles, by a line through log L over log C at the end of a run."""
    late = flops >= flops.max() / TAIL
    if late.sum() < 3:
        return math.nan
    slope = np.polyfit(np.log2(flops[late]), np.log2(loss[late]), 1)[0]
    return float(2**slope - 1)


def _levels_caption(largest: int) -> str:
    text = (
        f"In the corners: the change of depth {largest}'s loss as compute doubles, over the last factor of four. "
        "The validation loss is the mean over t = 0 .. 7/8; t = 1 (grey) is not part of it. Dotted: Var(ε) = 1, the "
        "least possible loss at t = 0."
    )
    return textwrap.fill(text, CAPTION)
