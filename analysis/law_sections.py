"""What a report says of the law: its constants, other ways to them, what it predicts and how far to trust it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import report
from analysis.drawing import Drawing
from analysis.findings import Findings, Missing
from analysis.flags import FLAGS
from analysis.laws import Law
from analysis.markup import Html, figure, folded, formula, items, join, number, span, table, tag
from analysis.prediction import HoldOut

INSIDE = {None: "no interval", True: "inside", False: "outside"}


def none(what: str, part: Missing) -> Html:
    """A sentence for what there is not."""
    return tag("p", f"{what}: {part.why}.".replace("..", "."), class_="none")


def drawn(part: Drawing | Missing, what: str, alt: str, caption: Any) -> Html:
    """A figure with its own caption as the rest of its alternative text, or why there is none."""
    if isinstance(part, Missing):
        return none(f"No {what}", part)
    said = " ".join(str(part.numbers.get("caption", "")).split())
    return figure(part, f"{alt} {said}".strip(), caption)


# --- the law ---------------------------------------------------------------------------------------------------------


def main(found: Findings) -> Html:
    """Figure 8, or figure 4 of several backbones."""
    part = found.figures["main"]
    if not isinstance(part, Missing) and part.numbers["figure"] == "4":
        alt = "Validation loss and scores of several backbones against training FLOPs."
        return drawn(part, "figure", alt, "Backbones at matched training FLOPs, after the paper's Figure 4.")
    alt = "Validation loss against training steps and against training FLOPs, and scores of pictures against the loss."
    return drawn(part, "figure of the curves", alt, "After the paper's Figure 8: one colour for each depth.")


def law(found: Findings) -> Html:
    """The constants with intervals, what speaks against them, other forms, and all digits."""
    one = found.law
    if isinstance(one, Missing):
        return none("No law is fitted", one)
    left_out = bool(one.left_out)
    rows = []
    for name, value, ci95, without, meaning in report.rows(one):
        spread = [without] if left_out else []
        label = formula(name) if name in report.LETTERS else name
        rows.append([label, value, span(one.ci80.get(name)), ci95, *spread, formula(meaning)])
    header = ["", "value", "80 % interval", "95 % interval", *(["without one depth"] if left_out else []), ""]
    about = (
        f"{one.n_points} points of {one.n_runs} {one.units}; residual rms {one.residual_rms:.2%}, largest "
        f"{one.residual_max:.2%}. Intervals: {one.how}."
    )
    parts = [tag("p", formula(one.form.formula), class_="lead"), table(header, rows), tag("p", about)]
    parts.append(items(FLAGS[flag] for flag in one.flags) or tag("p", "No flag is raised against this fit."))
    if not isinstance(found.rivals, Missing):
        parts += [tag("h3", "Other forms on the same points"), _rivals(found.rivals)]
    return join(*parts, folded("All digits, and the covariance of the constants", *_digits(one)))


def _rivals(rivals: pd.DataFrame) -> Html:
    rows = [
        [name, formula(one["formula"]), one["constants"], f"{one['residual_rms']:.2%}", _percent(one["held_out_error"])]
        for name, one in rivals.iterrows()
    ]
    return table(["law", "", "constants", "residual rms", "error on what was held out"], rows)


def _digits(one: Law) -> list[Html]:
    parts = [table(["", "value"], [[name, repr(value)] for name, value in one.constants.items()])]
    if len(one.draws) > 1:
        names = list(one.form.constants)
        covariance = np.cov(one.draws.T)
        rows = [[name, *map(repr, row)] for name, row in zip(names, covariance.tolist(), strict=True)]
        parts += [
            tag("p", f"Covariance of {len(one.draws):,} joint draws of the bootstrap:"),
            table(["", *names], rows),
        ]
    return parts


def approaches(found: Findings) -> Html:
    """Envelope, isoFLOP valleys and law: exponents, and whether they agree."""
    if isinstance(found.compared, Missing):
        return none("Nothing is compared", found.compared)
    rows = []
    for one in found.compared.approaches:
        cells = [_with_interval(one.exponents.get(name), one.intervals.get(name)) for name in ("a", "b")]
        rows.append([one.name, *cells, one.why])
    header = ["approach", formula("a of N* ~ C^a"), formula("b of D* ~ C^b"), "intervals, or why there is none"]
    alt = "The exponent of the best size by each approach, above those that others published."
    caption = "The exponent a of the best size, N* ~ C^a, here and as others published it; their C and N differ."
    picture = drawn(found.figures["exponents"], "figure of exponents", alt, formula(caption))
    return join(tag("p", found.compared.sentence), picture, table(header, rows))


def valleys(found: Findings) -> Html:
    """The minimum of each budget, and how it moves."""
    one = found.valleys
    if isinstance(one, Missing):
        return none("No isoFLOP valleys", one)
    budgets: Any = one.budgets
    rows = [
        [number(row.flops), row.sizes, number(row.params), number(row.images), number(row.loss), row.why]
        for row in budgets.itertuples()
    ]
    header = ["FLOPs", "sizes", "best N*", "its D*", "its loss", "why there is none"]
    lines = [
        f"{name.replace('_', ' of ')}: {number(value)}"
        + (" (95 %: {} to {})".format(*map(number, one.ci95[name])) if name in one.ci95 else "")
        for name, value in one.exponents.items()
    ]
    alt = "Loss against parameters at each FLOP budget, and the best size against FLOPs."
    caption = "Approach 2 of Hoffmann et al.: a parabola for each budget; open circles are points that none used."
    return join(
        drawn(found.figures["isoflop"], "isoFLOP figure", alt, caption),
        table(header, rows),
        items([*lines, f"Intervals: {one.how}.", *(FLAGS[flag] for flag in one.flags)]),
    )


def ahead(found: Findings) -> Html:
    """The envelope, and what budgets beyond the runs would give."""
    parts: list[Html] = []
    if isinstance(found.envelope, Missing):
        parts.append(none("No envelope", found.envelope))
    else:
        one = found.envelope
        text = f"The envelope of the runs: {one.winners} sizes win uncensored over {one.decades:.2g} decades of FLOPs"
        text += "." if one.exponent is None else f", with the exponent {number(one.exponent)} of N*."
        parts += [tag("p", " ".join([text, *(FLAGS[flag] for flag in one.flags)]))]
    if isinstance(found.outlook, Missing):
        return join(*parts, none("Nothing is predicted", found.outlook))
    alt = "The best size, its data and its loss against training FLOPs, with bands, and two budgets beyond the runs."
    caption = "The frontier that the law implies, with 80 % and 95 % bands, dashed where it leaves the data."
    parts.append(drawn(found.figures["frontier"], "figure of the frontier", alt, caption))
    names = {"params": "parameters", "loss": "loss of a run", "images": "images" if found.of_runs else "data"}
    for look in found.outlook:
        heading = f"{number(look.flops)} FLOPs, {look.reach:.3g} times the most of any run"
        rows = [
            [names.get(name, name), number(one.value), span(one.ci80), span(one.ci95)]
            for name, one in (look.best | look.scores).items()
        ]
        parts += [tag("h3", heading), table(["", "best", "80 % interval", "95 % interval"], rows)]
        if look.at_edge:
            parts.append(tag("p", "The best size lies at the edge of the family: it is not to be believed."))
    notes: dict[str, list[str]] = {}  # what is said of several scores is said once
    for note in dict.fromkeys(note for look in found.outlook for note in look.notes):
        of, _, said = note.partition(": ")
        notes.setdefault(said, []).append(of)
    return join(*parts, items(f"{'; '.join(of)}: {said}" for said, of in notes.items()))


# --- how far to trust it ---------------------------------------------------------------------------------------------


def held_out(found: Findings) -> Html:
    """What was held out, and each depth or budget from those below it."""
    parts: list[Html] = []
    if isinstance(found.hold_out, Missing):
        parts.append(none("Nothing is held out", found.hold_out))
    else:
        parts += [tag("p", sentence(report.held_out_sentence(found.hold_out)))]
        if isinstance(found.rolled, Missing):  # else its last row
            parts.append(_judged([found.hold_out]))
    alt = "Loss that laws of smaller models predicted against the measured one, and the error against reach."
    caption = "Predictions of what a law had not seen: 80 % (thick) and 95 % intervals of a new run."
    parts.append(drawn(found.figures["held_out"], "figure of predictions", alt, caption))
    parts.append(tag("h3", "Each from those below it"))
    if isinstance(found.rolled, Missing):
        parts.append(none("None is predicted", found.rolled))
    else:
        parts += [_judged(found.rolled), tag("p", sentence(report.held_out_lines(found.rolled)[-1]))]
    return join(*parts)


def _judged(several: Sequence[HoldOut]) -> Html:
    rows = [
        [
            one.what,
            one.law.n_points,
            f"{one.reach:.3g}" if math.isfinite(one.reach) else "",
            f"{one.predicted:.4f}",
            span(one.ci95 or (math.nan, math.nan)),
            f"{one.actual:.4f}",
            f"{one.error:+.2%}",
            INSIDE[one.covered80],
            INSIDE[one.covered],
        ]
        for one in several
    ]
    header = ["", "points", "times the FLOPs", "predicted", "95 % interval", "measured", "error", "of 80 %", "of 95 %"]
    return table(header, rows)


def residuals(found: Findings) -> Html:
    """How the points lie about the law."""
    one = found.law
    if isinstance(one, Missing) or isinstance(found.points, Missing):
        return none("No residuals", Missing("there is no law"))
    size = "depth" if "depth" in found.points else "params"
    if size not in found.points:
        size = "flops"
    errors = pd.Series(one.residuals, index=found.points.index)
    text = (
        f"log L - log law: rms {one.residual_rms:.2%} (cells weighing alike), mean of absolute values "
        f"{errors.abs().mean():.2%}, largest {one.residual_max:.2%}. "
    )
    trend, picture = "trend in residuals", found.figures["residuals"]
    if not isinstance(picture, Missing) and picture.numbers["durbin_watson"] == picture.numbers["durbin_watson"]:
        text += f"Along FLOPs Durbin-Watson is {picture.numbers['durbin_watson']:.2f} (2: independent). "
    text += FLAGS[trend] if trend in one.flags else "The test for a trend raises no flag."
    alt = "Residuals of the law against parameters, data and training FLOPs."
    caption = "Log loss less log law; the band is the root mean square. A trend would mean another form."
    parts = [tag("p", text), drawn(picture, "figure of residuals", alt, caption)]
    groups = errors.groupby(found.points[size])
    if size != "flops" and groups.ngroups <= 20:
        rows = [
            [number(key), len(own), f"{own.mean():+.2%}", f"{own.std(ddof=0):.2%}", f"{own.abs().max():.2%}"]
            for key, own in groups
        ]
        parts.append(table([size, "points", "mean", "sd", "largest"], rows))
    return join(*parts)


def choices(found: Findings) -> Html:
    """The constants under other choices."""
    if isinstance(found.sensitivity, Missing):
        return none("No other choices are tried", found.sensitivity)
    rows = [
        [name, *(f"{value:.2%}" if key == "residual_rms" else number(value) for key, value in one.items())]
        for name, one in found.sensitivity.iterrows()
    ]
    header = [key.replace("residual_rms", "residual rms") for key in found.sensitivity.columns.astype(str)]
    return table(["", *(formula(key) for key in header)], rows)


def sentence(text: str) -> str:
    """With a capital and a full stop.

    >>> sentence("depth 8 held out")
    'Depth 8 held out.'
    """
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _with_interval(value: float | None, spread: Any) -> str:
    if value is None:
        return ""
    return number(value) + (f" ({span(spread.ci95)})" if spread is not None else "")


def _percent(value: float) -> str:
    return f"{value:+.2%}" if math.isfinite(value) else ""
