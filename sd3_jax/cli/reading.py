"""Read the records of runs: laws, predictions, figures."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sd3_jax import overlays, terminal
from sd3_jax.cli.options import (
    BootstrapOption,
    ColumnsOption,
    FigureOption,
    HeldOption,
    JsonOption,
    RunsArgument,
    SourceArgument,
    WhereOption,
)
from sd3_jax.errors import UserError


def fit(
    source: SourceArgument,
    law: Annotated[
        str, typer.Option(help="power, saturating, chinchilla, equal-exponent or bnsl (a broken power law).")
    ] = "chinchilla",
    bootstrap: BootstrapOption = 1000,
    held: HeldOption = None,
    worst: Annotated[int, typer.Option("--drop-worst", min=0, metavar="K", help="Leave the K worst losses out.")] = 0,
    group: Annotated[str, typer.Option(metavar="COLUMN", help="What is resampled as one.")] = "run",
    breaks: Annotated[int, typer.Option(metavar="N", help="Breaks of bnsl, 1 to 3.")] = 1,
    columns: ColumnsOption = None,
    json_file: JsonOption = None,
    figure_stem: FigureOption = None,
) -> None:
    """Fit a scaling law, with intervals, and predict what was held out.

    L = E + A / N^alpha + B / D^beta unless another is asked for; power, saturating and bnsl are functions of FLOPs.
    Figures: residuals, and of a law of N and D the frontier.

    Example: sd3-jax fit runs/figure8_cpu --figure figures/fit

    Example: sd3-jax fit table.csv --columns params=N,data=D --drop-worst 5 --hold-out-largest 3 --json -
    """
    import analysis
    from analysis import frontier, report, robustness

    of_runs = source.is_dir()
    table: Any = load_runs(source) if of_runs else None
    points = analysis.points_on_law(table) if of_runs else _load_table(source, columns, group)
    points, dropped = robustness.drop_worst(points, worst)
    options: dict[str, Any] = {"law": law, "breaks": breaks, "group": group}
    fitted = analysis.fit_points(points, **options, resamples=bootstrap)
    hold_out = None
    if held is not None:
        hold_out = analysis.hold_out_largest(points, held, **options, resamples=bootstrap)
    elif of_runs:
        hold_out = _hold_out(points, **options, resamples=bootstrap)
    numbers = report.as_dict(fitted, hold_out)
    text = [analysis.describe(fitted, hold_out)]
    if {"params", "images"} <= set(fitted.form.columns) and json_file != "-":
        whole = analysis.points_on_law(table, skip=0.0) if of_runs else points  # small budgets lie early in large runs
        compared = analysis.compare_approaches(whole, fitted, min(bootstrap, 200))
        text += ["three approaches to the same runs:", *report.comparison_lines(compared)]
    other = robustness.sensitivity_of_points(points, dropped, **options)
    if of_runs:
        other = other if worst else analysis.sensitivity(table, **options)
        cooled, curves = analysis.cooldown_ends(table), analysis.curves(points)
        text += report.cooldown_lines(cooled)
        numbers |= report.details(fitted) | {
            "sensitivity": other.to_dict(orient="index"),
            "cooldowns": cooled[["run", "depth", "step", "loss", "offset"]].to_dict(orient="records"),
            "curves": {str(depth): curve._asdict() for depth, curve in curves.items()},
        }
    terminal.show([*text, "under other choices:", other.to_string()], numbers, json_file)
    if figure_stem is not None:
        drawings = {"residuals": analysis.residual_figure(fitted, points)}
        if fitted.form in frontier.IMPLYING and "flops" in points:
            drawings["frontier"] = analysis.frontier_figure(fitted, points)
        _save(drawings, figure_stem, json_file)


def isoflop(
    source: SourceArgument,
    columns: ColumnsOption = None,
    json_file: JsonOption = None,
    figure_stem: FigureOption = None,
) -> None:
    """Find the best size at each FLOP budget, and how it grows with the budget.

    Example: sd3-jax isoflop runs/isoflop_cpu --figure figures/isoflop_cpu

    Example: sd3-jax isoflop table.csv --figure figures/table --json -
    """
    import analysis
    from analysis import report
    from analysis.flags import FLAGS

    if source.is_dir():
        found = analysis.isoflop(load_runs(source))
        numbers = report.isoflop_numbers(found)
    else:
        points = _load_table(source, columns)
        missing = [name for name in ("params", "flops") if name not in points]
        if missing:
            raise UserError(f"{source}: has no column {missing[0]}: a valley needs the sizes and FLOPs of its points")
        found = analysis.isoflop_points(points)
        numbers = report.isoflop_dict(found)
    lines = terminal.isoflop_lines(found.budgets, found.exponents, found.ci95)
    sentences = [FLAGS[flag] for flag in found.flags]
    terminal.show([*lines, f"intervals: {found.how}", *sentences], numbers, json_file)
    if figure_stem is not None:
        terminal.written(analysis.save(*analysis.isoflop_figure(found), figure_stem), json_file)


def predict(
    source: SourceArgument,
    flops: Annotated[list[float], typer.Option(help="Training FLOPs to be spent, C = 3F x images. May be repeated.")],
    law: Annotated[str, typer.Option(help="A law of N and D: chinchilla or equal-exponent.")] = "chinchilla",
    bootstrap: BootstrapOption = 1000,
    held: HeldOption = None,
    roll: Annotated[
        bool, typer.Option("--rolling", help="Also fit to all below each depth (of a CSV: budget), and predict it.")
    ] = False,
    where: WhereOption = None,
    columns: ColumnsOption = None,
    json_file: JsonOption = None,
    figure_stem: FigureOption = None,
) -> None:
    """Predict the best size, images, loss and scores at a budget not yet spent, with 80 % and 95 % intervals.

    Scores of runs that sd3-jax evaluate judged follow from the loss; one resample of the runs refits both. Figures:
    the frontier, and what was held out.

    Example: sd3-jax predict runs/figure8_cpu --flops 1e13 --rolling

    Example: sd3-jax predict table.csv --flops 1e22 --hold-out-largest 3 --json -
    """
    import analysis
    from analysis import frontier, report

    of_runs = source.is_dir()
    names = [form.name for form in frontier.IMPLYING]
    if law not in names:
        raise UserError(f"--law: {law!r} is no law of N and D; predict takes {' or '.join(names)}")
    if not all(0 < budget < float("inf") for budget in flops):
        raise UserError("--flops: a budget is a positive number")
    if where and not of_runs:
        raise UserError("--where: is for runs, whose pictures have scores; a table has none")
    points = analysis.points_on_law(load_runs(source)) if of_runs else _load_table(source, columns)
    fitted = analysis.fit_points(points, law=law, resamples=bootstrap)
    found = analysis.outlook(fitted, points, flops, _scores(source, where) if of_runs else None)
    hold_out = None
    if held is not None:
        hold_out = analysis.hold_out_largest(points, held, law=law, resamples=bootstrap)
    elif of_runs:
        hold_out = _hold_out(points, law=law, resamples=bootstrap)
    rolled = analysis.rolling(points, law=law, resamples=min(bootstrap, 200)) if roll else ()
    lines = [line for one in found for line in report.outlook_lines(one, of_runs)]
    if hold_out is not None:
        lines.append(report.held_out_sentence(hold_out))
        lines += report.held_out_lines(hold_out.each) if hold_out.each else []
    if rolled:
        lines += ["each predicted from those below it:", *report.held_out_lines(rolled)]
    numbers = report.as_dict(fitted, hold_out) | report.details(fitted)
    value = {
        "predictions": [report.outlook_dict(one, of_runs) for one in found],
        "rolling": [report.held_out_dict(one) for one in rolled],
        "law": numbers,
    }
    notes = dict.fromkeys(note for one in found for note in one.notes)
    terminal.show([*lines, *notes, *numbers["sentences"]], value, json_file)
    if figure_stem is not None:
        drawings = {"frontier": analysis.frontier_figure(fitted, points, at=flops)}
        held_out = rolled or ((hold_out,) if hold_out is not None else ())
        if held_out:
            drawings["held-out"] = analysis.held_out_figure(held_out)
        _save(drawings, figure_stem, json_file)


def correlate(
    runs: RunsArgument,
    score: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Of which score; of all unless given. May be repeated.")
    ] = None,
    where: WhereOption = None,
    json_file: JsonOption = None,
) -> None:
    """Does the validation loss predict the scores of pictures? Rank correlations, given compute, and held out.

    The scores are those of sd3-jax evaluate.

    Example: sd3-jax correlate runs/figure8_cpu
    """
    import analysis
    from analysis import quality

    table = analysis.load_scores(runs, setting=overlays.parse_assignments(where or []))
    for note in table.attrs["notes"]:
        print(f"note: {note}", file=sys.stderr)
    names = score or [name for names in quality.PANELS for name in names if name in set(table["name"])]
    lines, numbers = [], []
    for name in names:
        relation = quality.relate(table, name)
        numbers.append(quality.numbers(name, relation))
        lines += quality.describe(name, relation)
    terminal.show(lines, numbers, json_file)


def figure(
    number: Annotated[str, typer.Argument(metavar="N", help="Which figure of the paper: 4, 8 or 12.")],
    runs: RunsArgument,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write it.")] = Path("figures"),
    where: WhereOption = None,
) -> None:
    """Draw a figure of the paper from runs, as .png and .pdf, with every number drawn as .json.

    4: backbones at matched FLOPs, their loss and scores over training. 8: loss against steps and FLOPs, and scores of
    pictures against loss. 12: the same prompts across depths and steps. The pictures and their scores are those of
    sd3-jax evaluate.

    Example: sd3-jax figure 8 runs/figure8_cpu
    """
    if number not in ("4", "8", "12"):
        raise UserError(
            f"there is no figure {number!r}; there are 4 (backbones at matched FLOPs), 8 (loss against steps and "
            "FLOPs, scores against loss) and 12 (the same prompts across depths and steps)"
        )
    import analysis
    from analysis import backbones

    name = runs.resolve().name
    if number == "12":
        drawing = analysis.contact_sheet(runs)
        name = f"{name}_pictures"
    else:
        table, scores = load_runs(runs), None
        try:
            scores = analysis.load_scores(runs, setting=overlays.parse_assignments(where or []))
        except UserError as error:
            if where:
                raise
            drawn = "upper half" if number == "8" else "loss"
            print(f"note: only the {drawn} is drawn: {error}", file=sys.stderr)
        if number == "4":
            drawing = analysis.figure4(table, scores)
            for line in backbones.describe(drawing.numbers):
                if line not in {f"note: {note}" for note in table.attrs.get("notes", [])}:  # said already
                    print(line)
        else:
            drawing = analysis.figure8(table, scores)
    terminal.written(analysis.save(drawing.figure, drawing.numbers, out / name))


def _save(drawings: dict[str, Any], stem: Path, json_file: str | None) -> None:
    """Write each drawing as STEM-NAME, and say so."""
    import analysis

    for name, drawing in drawings.items():
        named = stem.with_name(f"{stem.name}-{name}")
        terminal.written(analysis.save(drawing.figure, drawing.numbers, named), json_file)


def load_runs(runs: Path) -> Any:
    """The runs table; what was skipped is said on standard error."""
    import analysis

    table = analysis.load(runs)
    for note in table.attrs.get("notes", []):
        print(f"note: {note}", file=sys.stderr)
    return table


def _load_table(path: Path, columns: str | None, group: str = "run") -> Any:
    """The points of a CSV; what was left out is said on standard error."""
    from analysis import tables

    points = tables.read_points(path, tables.parse_columns(columns), None if group == "run" else group)
    for note in points.attrs["notes"]:
        print(f"note: {note}", file=sys.stderr)
    return points


def _hold_out(points: Any, **options: Any) -> Any:
    import analysis

    try:
        return analysis.hold_out_largest(points, **options)
    except UserError as error:  # too few depths to leave one out, which is no reason not to fit
        print(f"note: nothing is held out: {error}", file=sys.stderr)
        return None


def _scores(runs: Path, where: list[str] | None) -> Any:
    """The scores of the runs' pictures; None where there are none, unless some were asked for."""
    import analysis

    try:
        return analysis.load_scores(runs, setting=overlays.parse_assignments(where or []))
    except UserError as error:
        if where:
            raise
        print(f"note: no score is predicted: {error}", file=sys.stderr)
        return None
