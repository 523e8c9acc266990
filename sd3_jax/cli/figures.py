"""Figures and tables of the paper, from the records of runs."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sd3_jax import overlays, terminal
from sd3_jax.cli.options import JsonOption, RunsArgument, WhereOption
from sd3_jax.cli.reading import load_runs
from sd3_jax.errors import UserError

FIGURES = {
    "3": "scores against sampler steps",
    "4": "backbones at matched FLOPs",
    "8": "loss against steps and FLOPs, scores against loss",
    "10": "samples against depth, by channels of the latents",
    "12": "the same prompts across depths and steps",
}
TABLES = {
    "1": "global ranking of formulations",
    "2": "formulations after 25 sampler steps",
    "6": "what few sampler steps cost, by depth",
}
OutOption = Annotated[Path, typer.Option(metavar="DIR", help="Where to write it.")]
UpOption = Annotated[str, typer.Option(metavar="NAME", help="The score that is the higher the better.")]
DownOption = Annotated[str, typer.Option(metavar="NAME", help="The score that is the lower the better.")]


def figure(
    number: Annotated[str, typer.Argument(metavar="N", help="Which figure of the paper: 3, 4, 8, 10 or 12.")],
    runs: RunsArgument,
    out: OutOption = Path("figures"),
    where: WhereOption = None,
    up: UpOption = "scene-geneval-soft",
    down: DownOption = "scene-frechet",
) -> None:
    """Draw a figure of the paper from runs, as .png and .pdf, with every number drawn as .json.

    3: formulations' scores against the number of sampler steps (--up, --down). 4: backbones at matched FLOPs, their
    loss and scores over training. 8: loss against steps and FLOPs, and scores of pictures against loss. 10: distance of
    samples against depth, by channels of the latents. 12: the same prompts across depths and steps. The pictures and
    their scores are those of sd3-jax evaluate.

    Example: sd3-jax figure 8 runs/figure8_cpu
    """
    _check(number, FIGURES, "figure")
    import analysis
    from analysis import backbones, channels

    name = runs.resolve().name
    if number == "12":
        drawing = analysis.contact_sheet(runs)
        name = f"{name}_pictures"
    elif number == "10":
        drawing = analysis.figure10(analysis.load_channels(runs, overlays.parse_assignments(where or [])))
        print("\n".join(channels.describe_channels(drawing.numbers)))
        name = f"{name}_figure10"
    elif number == "3":
        drawing = analysis.figure3(_study(runs, where, up, down))
        name = f"{name}_figure3"
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


def table(
    number: Annotated[str, typer.Argument(metavar="N", help="Which table of the paper: 1, 2 or 6.")],
    runs: RunsArgument,
    out: OutOption = Path("figures"),
    where: WhereOption = None,
    up: UpOption = "scene-geneval-soft",
    down: DownOption = "scene-frechet",
    json_file: JsonOption = None,
) -> None:
    """Print a table of the paper from runs, beside what the paper prints; write .md, .csv, .json, and a picture.

    1: rank of every formulation by non-dominated sorting on two scores, mean over all settings, with an interval. 2:
    both scores after 25 sampler steps. 6: share of the score lost with fewer steps, and length of the path, by depth.
    The scores are those of sd3-jax evaluate --protocol table1 or table6; what is lacking or left out is said.

    Example: sd3-jax table 1 runs/table1_cpu
    """
    _check(number, TABLES, "table")
    import analysis
    from analysis import paper_tables, table_pictures

    make: dict[str, Any] = {"1": analysis.table1, "2": analysis.table2, "6": analysis.table6}
    made = make[number](_study(runs, where, up, down))
    notes = [f"note: {note}" for note in made.attrs["notes"]]
    lines = [terminal.chart(made.attrs["title"], paper_tables.cells(made)), *made.attrs["sentences"], *notes]
    terminal.show(lines, paper_tables.as_dict(made), json_file)
    drawing, stem = table_pictures.picture(made), out / f"{runs.resolve().name}_table{number}"
    written = [*paper_tables.write(made, stem), *analysis.save(drawing.figure, drawing.numbers, stem)]
    terminal.written(written, json_file)


def _check(number: str, there: dict[str, str], what: str) -> None:
    if number not in there:
        *rest, last = (f"{key} ({words})" for key, words in there.items())
        raise UserError(f"there is no {what} {number!r}; there are {', '.join(rest)} and {last}")


def _study(runs: Path, where: list[str] | None, up: str, down: str) -> Any:
    import analysis

    return analysis.load_study(runs, setting=overlays.parse_assignments(where or []), up=up, down=down)
