"""A law in words and rows: what a command line prints and what lies beside a figure as JSON."""

import math
from typing import Any

import pandas as pd

from analysis.isoflop import IsoFlop
from analysis.laws import CONSTANTS, EXPONENTS, FLAGS, Law
from analysis.prediction import HoldOut

MEANING = {
    "E": "irreducible loss",
    "A": "A / N^alpha",
    "B": "B / D^beta",
    "alpha": "exponent of parameters N",
    "beta": "exponent of images D",
    "a": "N* ~ C^a, a = beta / (alpha + beta)",
    "b": "D* ~ C^b, b = alpha / (alpha + beta)",
}
LETTERS = {"alpha": "α", "beta": "β"}


def rows(law: Law) -> list[tuple[str, str, str, str, str]]:
    """Name, value, 95 % interval, spread as each depth is left out, meaning: one row for each constant.

    An exponent that is not resolved has no value, only its interval and spread.
    """
    table = []
    for name in (*CONSTANTS, "a", "b"):
        shown = law.reported.get(name, True)
        table.append(
            (
                name,
                number(law.constants[name]) if shown else "not resolved",
                _span(law.ci95.get(name)),
                _span(_spread(law, name)),
                MEANING[name],
            )
        )
    return table


def describe(law: Law, hold_out: HoldOut | None = None) -> str:
    """The law as a few lines of text: constants with intervals, fit, held-out error, caveats."""
    header = ("", "value", "95 % interval", "without one depth", "")
    lines = [header, *rows(law)]
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    text = ["L = E + A / N^alpha + B / D^beta   (N parameters, D images, L validation loss)", ""]
    text += ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text += [
        "",
        f"{law.n_points} points of {law.n_runs} runs; "
        f"residual rms {law.residual_rms:.2%}, largest {law.residual_max:.2%}",
        f"intervals: {law.how}",
    ]
    if hold_out is not None:
        text.append(held_out_sentence(hold_out))
    text += [f"{flag}: {FLAGS[flag]}" for flag in law.flags]
    return "\n".join(text)


def held_out_sentence(hold_out: HoldOut) -> str:
    """The held-out depth's error, and whether the interval covered it."""
    covered = {None: "no interval", True: "inside its 95 % interval", False: "outside its 95 % interval"}
    return (
        f"depth {hold_out.depth} held out: predicted {hold_out.error:+.1%} at its last step "
        f"({covered[hold_out.covered]}), rms {hold_out.rms:.1%} over its {hold_out.points} points"
    )


def cooldown_lines(ends: pd.DataFrame) -> list[str]:
    """What each cooldown gained over the constant rate at the same step."""
    return [f"cooldown at depth {row.depth}: {row.offset:+.4f} to {row.loss:.4f}" for row in ends.itertuples()]


def as_dict(law: Law, hold_out: HoldOut | None = None) -> dict[str, Any]:
    """The law for JSON, at full precision; draws are left out."""
    found = {
        "law": "E + A / N^alpha + B / D^beta",
        "constants": {name: law.constants[name] for name in CONSTANTS},
        "derived": {name: law.constants[name] for name in ("a", "b")},
        "reported": law.reported,
        "intervals": {
            name: {"se": law.se[name], "ci80": list(law.ci80[name]), "ci95": list(law.ci95[name])} for name in law.se
        },
        "left_out": {str(depth): constants for depth, constants in law.left_out.items()},
        "how": law.how,
        "failed_resamples": law.failed_resamples,
        "objective": law.objective,
        "grad_norm": law.grad_norm,
        "delta": law.delta if math.isfinite(law.delta) else None,
        "n": law.n_points,
        "n_runs": law.n_runs,
        "residual_rms": law.residual_rms,
        "residual_max": law.residual_max,
        "ranges": {key: list(value) for key, value in law.ranges.items()},
        "flags": list(law.flags),
        "sentences": [FLAGS[flag] for flag in law.flags],
    }
    if hold_out is not None:
        values = hold_out._asdict()
        del values["law"]
        values["z"] = values["z"] if math.isfinite(hold_out.z) else None
        found["hold_out"] = values
    return found


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
    for name in EXPONENTS:
        letter = LETTERS.get(name, name)
        span = law.ci95.get(name)
        interval = f"[{span[0]:.3f}, {span[1]:.3f}]" if span else ""
        if law.reported[name]:
            words.append(f"{letter} = {law.constants[name]:.3f} {interval}".rstrip())
        else:
            words.append(f"{letter} in {interval}" if span else f"{letter} not resolved")
    return ", ".join(words)


def isoflop_numbers(found: IsoFlop) -> dict[str, Any]:
    """The isoFLOP result for JSON."""
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
