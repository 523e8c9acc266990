"""A law in words and rows: what a command line prints and what lies beside a figure as JSON."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.approaches import Comparison
from analysis.flags import FLAGS
from analysis.isoflop import IsoFlop
from analysis.laws import Law
from analysis.outlook import Outlook
from analysis.prediction import HoldOut

SYMBOLS = {"flops": "C training FLOPs", "params": "N parameters", "images": "D images"}
DERIVED = {
    "alpha": "exponent of N, 2 h",
    "beta": "exponent of D, 2 h",
    "a": "N* ~ C^a, a = beta / (alpha + beta)",
    "b": "D* ~ C^b, b = alpha / (alpha + beta)",
}
LETTERS = {"alpha": "α", "beta": "β"}


def rows(law: Law) -> list[tuple[str, str, str, str, str]]:
    """Name, value, 95 % interval, spread as each depth is left out, meaning: one row for each constant.

    An exponent that is not resolved has no value, only its interval and spread.
    """
    table = []
    for name in law.constants:
        shown = law.reported.get(name, True)
        table.append(
            (
                name,
                number(law.constants[name]) if shown else "not resolved",
                _span(law.ci95.get(name)),
                _span(_spread(law, name)),
                law.form.constants.get(name) or DERIVED[name],
            )
        )
    return table


def describe(law: Law, hold_out: HoldOut | None = None) -> str:
    """The law as a few lines of text: constants with intervals, fit, held-out error, caveats."""
    header = ("", "value", "95 % interval", "without one depth", "")
    lines: list[tuple[str, ...]] = [header, *rows(law)]
    if not law.left_out:
        lines = [line[:3] + line[4:] for line in lines]
    symbols = ", ".join(SYMBOLS[name] for name in law.form.columns)
    text = [f"{law.form.formula}   ({symbols}, L validation loss)", ""]
    text += aligned(lines)
    text += [
        "",
        f"{law.n_points} points of {law.n_runs} {law.units}; "
        f"residual rms {law.residual_rms:.2%}, largest {law.residual_max:.2%}",
        f"intervals: {law.how}",
    ]
    if hold_out is not None:
        text.append(held_out_sentence(hold_out))
    text += [f"{flag}: {FLAGS[flag]}" for flag in law.flags]
    return "\n".join(text)


def held_out_sentence(hold_out: HoldOut) -> str:
    """The error at what was held out, and whether the interval covered it."""
    covered = {None: "no interval", True: "inside its 95 % interval", False: "outside its 95 % interval"}
    end = "at its last step" if hold_out.depth else "at the end"
    return (
        f"{hold_out.what} held out: predicted {hold_out.error:+.1%} {end} "
        f"({covered[hold_out.covered]}), rms {hold_out.rms:.1%} over its {hold_out.points} points"
    )


def held_out_lines(several: Sequence[HoldOut]) -> list[str]:
    """Each of several hold-outs in a row: what its law saw, its signed error, and whether the intervals held it."""
    inside = {None: "-", True: "inside", False: "outside"}
    table = [("", "fitted to", "times the FLOPs", "predicted", "measured", "error", "of 80 %", "of 95 %")]
    table += [
        (
            one.what,
            f"{one.law.n_points} points",
            f"{one.reach:.3g}" if math.isfinite(one.reach) else "-",
            number(one.predicted),
            number(one.actual),
            f"{one.error:+.2%}",
            inside[one.covered80],
            inside[one.covered],
        )
        for one in several
    ]
    sure = [one for one in several if one.ci95]
    held = f"the 80 % intervals held {sum(bool(one.covered80) for one in sure)} of {len(sure)}"
    held += f", those of 95 % {sum(bool(one.covered) for one in sure)}"
    mean = sum(one.error for one in several) / len(several)
    return [*aligned(table), f"mean error {mean:+.2%}; {held if sure else 'no intervals'}"]


def outlook_lines(found: Outlook, of_runs: bool = True) -> list[str]:
    """What a budget would give, each quantity with its 80 % and 95 % interval."""
    names = {"params": "parameters", "loss": "loss of a run"} | ({} if of_runs else {"images": "data"})
    table: list[tuple[str, ...]] = [("", "best", "80 % interval", "95 % interval")]
    for name, one in (found.best | found.scores).items():
        spans = (_span(ends if math.isfinite(ends[0]) else None) for ends in (one.ci80, one.ci95))
        table.append((names.get(name, name), number(one.value), *spans))
    far = ": more than two decades beyond what the law has seen" if found.reach > 100 else ""
    lines = [f"{found.flops:.3g} FLOPs, {found.reach:.3g} times the most of any run{far}", *aligned(table)]
    if found.at_edge:
        lines.append("the best size lies at the edge of the family: it is not to be believed")
    return lines


def outlook_dict(found: Outlook, of_runs: bool = True) -> dict[str, Any]:
    """An outlook for JSON, at full precision; what a table's data are is not known, so they are data, not images."""
    names = {"images": "images" if of_runs else "data"}
    every = {names.get(name, name): one for name, one in (found.best | found.scores).items()}
    values = {name: one.value for name, one in every.items() if name not in found.scores}
    return {
        "flops": found.flops,
        "reach": found.reach,
        **values,
        "scores": {name: one.value for name, one in found.scores.items()},
        "intervals": {name: {"ci80": list(one.ci80), "ci95": list(one.ci95)} for name, one in every.items()},
        "extrapolated": found.extrapolated,
        "at_edge": found.at_edge,
        "notes": list(found.notes),
    }


def aligned(table: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of cells as lines, their columns under each other."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]


def cooldown_lines(ends: pd.DataFrame) -> list[str]:
    """What each cooldown gained over the constant rate at the same step."""
    return [f"cooldown at depth {row.depth}: {row.offset:+.4f} to {row.loss:.4f}" for row in ends.itertuples()]


def comparison_lines(comparison: Comparison) -> list[str]:
    """The exponents of each approach with their 95 % intervals, and whether they agree."""
    lines = []
    for one in comparison.approaches:
        words = [
            f"{name} {value:.4g}" + (f" ({_span(one.intervals[name].ci95)})" if one.intervals else "")
            for name, value in one.exponents.items()
        ]
        lines.append(f"{one.name}: {', '.join(words)}; {one.why}" if words else f"{one.name}: none, {one.why}")
    return [*lines, comparison.sentence]


def as_dict(law: Law, hold_out: HoldOut | None = None) -> dict[str, Any]:
    """The law for JSON, at full precision."""
    return {
        "law": law.form.name,
        "constants": {name: law.constants[name] for name in law.form.constants},
        "intervals": {
            name: {"se": law.se[name], "ci80": list(law.ci80[name]), "ci95": list(law.ci95[name])} for name in law.se
        },
        "derived": {name: value for name, value in law.constants.items() if name not in law.form.constants},
        "objective": law.objective,
        "n": law.n_points,
        "residual_rms": law.residual_rms,
        "flags": list(law.flags),
        "hold_out": None if hold_out is None else held_out_dict(hold_out),
    }


def held_out_dict(hold_out: HoldOut) -> dict[str, Any]:
    """A hold-out for JSON, with what its law was fitted to."""
    held = hold_out._asdict() | {"each": [held_out_dict(one) for one in hold_out.each]}
    held |= {key: held[key] if math.isfinite(held[key]) else None for key in ("z", "reach")}
    law = held.pop("law")
    return held | {"fitted_points": law.n_points, "fitted_runs": law.n_runs}


def details(law: Law) -> dict[str, Any]:
    """What else there is to say of a law, for JSON; draws are left out."""
    return {
        "formula": law.form.formula,
        "reported": law.reported,
        "left_out": {str(depth): constants for depth, constants in law.left_out.items()},
        "how": law.how,
        "failed_resamples": law.failed_resamples,
        "grad_norm": law.grad_norm,
        "delta": law.delta if math.isfinite(law.delta) else None,
        "n_runs": law.n_runs,
        "residual_max": law.residual_max,
        "ranges": {key: list(value) for key, value in law.ranges.items()},
        "sentences": [FLAGS[flag] for flag in law.flags],
    }


def number(value: float) -> str:
    """Four significant digits, in powers of ten where that is shorter.

    >>> number(0.33921), number(406.4), number(20854300.0)
    ('0.3392', '406.4', '2.085e+07')
    """
    return f"{value:.4g}"


def _span(ends: tuple[float, float] | None) -> str:
    return f"{ends[0]:.4g} to {ends[1]:.4g}" if ends else "-"


def _spread(law: Law, name: str) -> tuple[float, float] | None:
    values = [constants[name] for constants in law.left_out.values()]
    return (min(values), max(values)) if values else None


def exponents_in_words(law: Law) -> str:
    """The exponents as a caption gives them: a number with its interval, or only the interval, or neither."""
    if not law.ci95 and not any(law.reported.values()):
        return "exponents not resolved"
    words = []
    for name in law.reported:
        letter = LETTERS.get(name, name)
        span = law.ci95.get(name)
        interval = f"[{span[0]:.3f}, {span[1]:.3f}]" if span else ""
        if law.reported[name]:
            words.append(f"{letter} = {law.constants[name]:.3f} {interval}".rstrip())
        else:
            words.append(f"{letter} in {interval}" if span else f"{letter} not resolved")
    return ", ".join(words)


def isoflop_dict(found: IsoFlop) -> dict[str, Any]:
    """The isoFLOP result for JSON."""
    keys = ("exponent_params", "coefficient_params", "exponent_data", "coefficient_data")
    budgets = found.budgets.rename(columns={"images": "data"})[["flops", "params", "data", "loss", "interior"]]
    return {
        **{key: found.exponents.get(key) for key in keys},
        "budgets": budgets.astype(object).where(budgets.notna(), None).to_dict(orient="records"),
        "intervals": {
            name: {"se": one.se, "ci80": list(one.ci80), "ci95": list(one.ci95)}
            for name, one in found.intervals.items()
        },
        "flags": list(found.flags),
    }


def isoflop_numbers(found: IsoFlop) -> dict[str, Any]:
    """The isoFLOP result of runs for JSON, with every point."""
    budgets = found.budgets.astype(object).where(found.budgets.notna(), None)
    return {
        **found.exponents,
        "budgets": budgets.to_dict(orient="records"),
        "points": found.points.to_dict(orient="records"),
        "intervals": {name: list(ends) for name, ends in found.ci95.items()},
        "left_out": {name: list(ends) for name, ends in found.left_out.items()},
        "how": found.how,
        "flags": list(found.flags),
        "sentences": [FLAGS[flag] for flag in found.flags],
        "notes": list(found.notes),
    }
