"""The lower half of Figure 8: scores of pictures against the validation loss of the weights that drew them."""

import math
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import links, propagation, strength
from analysis.association import Estimate, Monotone
from analysis.correlation import FLAGS, Correlation, correlate
from analysis.drawing import plain_log_ticks
from analysis.links import Link
from analysis.scores import OVERALL, score_points
from analysis.strength import Line
from sd3_jax.errors import UserError

PREFERENCE = "proxy-preference"
EVEN = 0.5  # the win rate against oneself
# The panels: their scores, the filled one first, and the name on the axis.
PANELS = {
    ("scene-geneval", "scene-geneval-soft"): "scene-geneval",
    ("scene-compbench",): "scene-compbench",
    (PREFERENCE,): PREFERENCE,
}
MARKS = {"scene-geneval": "● strict:", "scene-geneval-soft": "▲ soft:"}


class Relation(NamedTuple):
    """How one score goes with the loss."""

    points: pd.DataFrame  # at a constant rate
    cooled: pd.DataFrame  # after a cooldown: shown, never fitted
    correlation: Correlation | None  # None: too few depths
    link: Link | None
    chance: float
    ceiling: float  # nan where there is none
    notes: tuple[str, ...]
    strengths: tuple[Line, ...] = ()  # of a preference


def relate(scores: pd.DataFrame, name: str, resamples: int = 1000, task: str = OVERALL) -> Relation:
    """The correlation of a score, overall or of a task, with the loss, and the link with chance as its floor.

    Raises UserError if there is no such score.
    """
    points = score_points(scores, name, task)
    fitted = points.assign(se=errors(points))
    cooled = scores[(scores["name"] == name) & (scores["group"] == task) & scores["cooldown"] & scores["last"]]
    chance, ceiling = (float(points[key].astype(float).mean()) for key in ("chance", "ceiling"))
    low, high = asymptotes(points)
    correlation = link = None
    notes = []
    try:
        correlation = correlate(fitted, resamples=resamples, lo=low, hi=high)
    except UserError as error:
        notes.append(f"{name}: no correlation: {error}")
    try:
        link = links.fit_link(points["loss"], points["value"], fitted["se"], lo=low, hi=high)
    except UserError as error:
        notes.append(f"{name}: no link: {error}")
    strengths = []
    if name == PREFERENCE and task == OVERALL:
        readings = (lambda: strength.of_elo(scores, resamples), lambda: strength.of_wins(points, resamples))
        for reading in readings:
            try:
                strengths.append(reading())
            except UserError as error:
                notes.append(f"{name}: no line of strengths: {error}")
    return Relation(points, cooled, correlation, link, chance, ceiling, tuple(notes), tuple(strengths))


def asymptotes(points: pd.DataFrame) -> tuple[float, float]:
    """Chance and ceiling of a score; 0 and 1 of a win rate, which has neither."""
    chance, ceiling = (float(points[key].astype(float).mean()) for key in ("chance", "ceiling"))
    return chance if math.isfinite(chance) else 0.0, ceiling if math.isfinite(ceiling) else 1.0


def errors(points: pd.DataFrame) -> pd.Series:
    """Standard errors to fit with, the median of the others where there is none.

    A score of 0 or 1 has no spread to tell its own, and a reference wins half against itself without one.
    """
    measured = points["se"].astype(float)
    known = measured[measured > 0]
    return measured.where(measured > 0, float(known.median()) if len(known) else float(0.5 / points["n"].max()))


def draw_panel(
    axes: Axes, scores: pd.DataFrame, names: tuple[str, ...], colours: Mapping[Any, Any], resamples: int
) -> list[dict[str, Any]]:
    """One panel: each point with bars of one standard error both ways, the link, chance as a dotted line.

    Filled: the last checkpoint of a run; open: an earlier one; diamonds: after a cooldown. Returns every number.
    """
    drawn = []
    for number, name in enumerate(names):
        relation = relate(scores, name, resamples)
        marker, shade = ("o", 1.0) if number == 0 else ("^", 0.6)
        point: Any
        for point in relation.points.itertuples():
            colour = colours[point.depth]
            face = colour if point.last else "white"
            _bars(axes, point, colour, shade)
            size = 4.2 if point.last else 3.4
            axes.plot(point.loss, point.value, marker, ms=size, mew=0.9, mfc=face, mec=colour, alpha=shade)
        for point in relation.cooled.itertuples():
            _bars(axes, point, colours[point.depth], shade)
            axes.plot(point.loss, point.value, "D", ms=3.6, mew=0.9, mfc="white", mec=colours[point.depth], alpha=shade)
        loss = relation.points["loss"].to_numpy(float)
        curve = None
        if relation.link is not None:
            x = np.linspace(loss.min(), loss.max(), 60)
            y = propagation.predict(relation.link, x).value
            axes.plot(x, y, color="0.35", lw=0.9, alpha=shade, zorder=1)
            curve = {"loss": x.tolist(), "value": np.asarray(y).tolist()}
        line = EVEN if name == PREFERENCE else relation.chance
        if math.isfinite(line):
            axes.axhline(line, color="0.5", lw=0.8, ls=":", alpha=shade, zorder=0)
        drawn.append(numbers(name, relation) | {"link_curve": curve})
    return drawn


def _bars(axes: Axes, point: Any, colour: Any, shade: float) -> None:
    error = 0.0 if point.se is None or not math.isfinite(point.se) else point.se
    axes.errorbar(point.loss, point.value, error, point.loss_se, fmt="none", ecolor=colour, elinewidth=0.6, alpha=shade)


def finish_panel(axes: Axes, names: tuple[str, ...], label: str, drawn: list[dict[str, Any]]) -> None:
    """Axes, ticks and, in the corner, the rank correlation over depths."""
    losses = [loss for one in drawn for loss in one["loss"]]
    values = [value for one in drawn for value in (*one["value"], *one["cooled"]["value"])]
    axes.set(xlabel="validation loss", ylabel=label, xscale="log")
    low, high = min(losses), max(losses)
    room = max((high / low) ** 0.07, 1.01)
    axes.set_xlim(low / room, high * room)
    plain_log_ticks(axes, "x", axes.get_xlim())
    floor = min([*values, *(one["chance"] for one in drawn if one["chance"] is not None)])
    top = max(*values, floor + 0.01)
    floor = floor if PREFERENCE in names else min(floor, 0.0)
    axes.set_ylim(floor - 0.06 * (top - floor), top + (0.12 + 0.09 * len(drawn)) * (top - floor))
    lines = []
    for name, one in zip(names, drawn, strict=True):
        if one["correlation"] is not None:
            rho = one["correlation"]["last"]["spearman"]
            prefix = f"{MARKS[name]} " if len(names) > 1 else ""
            lines.append(f"{prefix}ρ = {rho['value']:.2f}, p = {rho['p']:.2g}")
    text = "\n".join(lines)
    axes.text(0.98, 0.98, text, transform=axes.transAxes, ha="right", va="top", fontsize=7, linespacing=1.3)


def numbers(name: str, relation: Relation) -> dict[str, Any]:
    """A relation for JSON, at full precision; draws are left out."""
    keys = ["run", "depth", "seed", "step", "flops", "loss", "loss_se", "value", "se", "n", "prompts", "last"]
    keys += ["other_caption"] if relation.points["other_caption"].notna().any() else []
    found, link = relation.correlation, relation.link
    return {
        "name": name,
        **{key: relation.points[key].tolist() for key in keys},
        "cooled": {key: relation.cooled[key].tolist() for key in keys},
        "chance": relation.chance if math.isfinite(relation.chance) else None,
        "ceiling": relation.ceiling if math.isfinite(relation.ceiling) else None,
        "correlation": None if found is None else _correlation(found),
        "link": None
        if link is None
        else {
            "kind": link.kind,
            "constants": link.constants,
            "se": link.se,
            "flags": list(link.flags),
            "why": link.why,
        },
        "strengths": [one._asdict() for one in relation.strengths],
        "notes": list(relation.notes),
    }


def _correlation(found: Correlation) -> dict[str, Any]:
    held = found.held_out
    return {
        "transform": found.transform,
        "last": {key: _estimate(value) for key, value in found.last._asdict().items()},
        "every": {key: _estimate(value) for key, value in found.every._asdict().items()},
        "partial_given_log_flops": _estimate(found.partial),
        "partial_given_log_flops_and_steps": _estimate(found.beyond),
        "within_depths": _estimate(found.within),
        "within_each_depth": {str(depth): value for depth, value in found.within_depths.items()},
        "order": found.monotone_last._asdict(),
        "order_all_points": found.monotone_every._asdict(),
        "held_out": None if held is None else {k: v for k, v in held._asdict().items() if k != "link"},
        "n_depths": found.n_depths,
        "n_points": found.n_points,
        "n_prompts": found.n_prompts,
        "p": found.p_how,
        "smallest_p": found.smallest_p,
        "flags": list(found.flags),
        "sentence": found.sentence,
    }


def _estimate(estimate: Estimate) -> dict[str, Any]:
    found = {"value": estimate.value, "ci95": [estimate.low, estimate.high], "p": estimate.p}
    return found | ({"closed95": list(estimate.closed)} if math.isfinite(estimate.closed[0]) else {})


def describe(name: str, relation: Relation) -> list[str]:
    """A relation in words: what it says, each statistic with its interval, the link, and every flag's sentence."""
    found, link = relation.correlation, relation.link
    lines = [name, *(f"  {note}" for note in relation.notes)]
    if found is not None:
        lines.append(f"  {found.sentence}")
        rows = {f"{key}, one point a depth": value for key, value in found.last._asdict().items()}
        rows |= {f"{key}, all points": value for key, value in found.every._asdict().items()}
        rows |= {f"pearson given log C, {found.n_points} points": found.partial}
        rows |= {"pearson given log C and log steps": found.beyond, "pearson within depths": found.within}
        lines += [
            f"  {key:38} {_span(_estimate(value))}"
            + (f", p = {value.p:.2g}" if math.isfinite(value.p) else "")
            + (", closed form [{:.2f}, {:.2f}]".format(*value.closed) if math.isfinite(value.closed[0]) else "")
            for key, value in rows.items()
            if math.isfinite(value.value)
        ]
        if found.held_out is not None:
            held = found.held_out
            lines.append(
                f"  depth {held.depth} held out: predicted {held.predicted:.3f} [{held.low:.3f}, {held.high:.3f}], "
                f"measured {held.actual:.3f}"
            )
        lines += [_order("one point a depth", found.monotone_last), _order("all points", found.monotone_every)]
        lines += [f"  {flag}: {FLAGS[flag]}" for flag in found.flags]
    if link is not None:
        constants = ", ".join(f"{key} = {value:.4g} ± {link.se[key]:.2g}" for key, value in link.constants.items())
        lines.append(f"  link loss -> score: {link.kind}, {constants}")
        lines += [f"  {flag}: {links.FLAGS[flag]}" for flag in link.flags]
    return lines + strength.describe(relation.strengths)


def _order(which: str, found: Monotone) -> str:
    text = f"  {f'order, {which}':38} {found.violations} of {found.pairs} pairs violate it beyond 2 standard errors"
    return text + f"; rms about the best monotone function {found.residual:.4f}, standard error {found.noise:.4f}"


def caption(drawn: list[dict[str, Any]], setting: Mapping[str, Any], width: int) -> str:
    """What the panels show, and what can be said of each score: a paragraph, then a line or two each."""
    text = (
        "Below: bars of one standard error, prompts as clusters; filled: last checkpoints; dotted: chance (other "
        "captions of the task; of preference: the reference itself); "
        f"{setting['steps']} {str(setting['sampler']).capitalize()} steps, guidance {setting['guidance']:g}. "
        "ρ is Spearman's, one point a depth, with its exact p; r is Pearson's of all points, given compute; "
        "95 % intervals over depths and prompts."
    )
    lines = [textwrap.fill(text, width)]
    lines += [textwrap.fill(line, width) for one in drawn if (line := _line(one))]
    return "\n".join(lines)


def _line(one: dict[str, Any]) -> str:
    found = one["correlation"]
    if found is None:
        return ""
    if "too few depths" in found["flags"]:
        return f"{one['name']}: {found['sentence']}"
    rho, partial, held = found["last"]["spearman"], found["partial_given_log_flops"], found["held_out"]
    beyond = found["partial_given_log_flops_and_steps"]
    text = f"{one['name']}: ρ = {_span(rho)}, p = {rho['p']:.2g}; r given log C = {_span(partial)}, "
    text += f"and log steps = {_span(beyond)}"
    if held is not None:
        covered = {None: "no interval", True: "inside its interval", False: "outside its interval"}[held["covered"]]
        text += f"; depth {held['depth']} held out: {held['predicted']:.3f} for {held['actual']:.3f}, {covered}"
    if "other_caption" in one:
        largest = max(range(len(one["depth"])), key=lambda i: (one["depth"][i], one["step"][i]))
        text += f"; rated by another caption {one['other_caption'][largest]:.3f}"
    flags = [flag for flag in found["flags"] if flag != "hold-out missed"]
    flags += [f"link {flag}" for flag in (one["link"] or {"flags": []})["flags"]]
    return text + (f". Flags: {', '.join(flags)}." if flags else ".")


def _span(estimate: dict[str, Any]) -> str:
    """A value with its interval.

    >>> _span({"value": -0.94, "ci95": [-1.0, -0.5], "p": 0.01})
    '-0.94 [-1.00, -0.50]'
    """
    low, high = estimate["ci95"]
    interval = f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{estimate['value']:.2f}{interval}"
