"""Captioned pictures for those who have none: emoji and clip art from packages."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sd3_jax import terminal
from sd3_jax.cli.options import JsonOption


def emoji(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    size: Annotated[int, typer.Option(help="Pixels on a side.")] = 64,
    sources: Annotated[
        str,
        typer.Option(
            help="Which packages, separated by commas: fluent, fluent-3d, noto, noto-v1, twemoji, openmoji, clipart."
        ),
    ] = "fluent,fluent-3d,noto,noto-v1,twemoji,openmoji,clipart",
    packages: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the packages' archives are, or go; else OUT/.packages.")
    ] = None,
    held_out: Annotated[float, typer.Option(help="The share of concepts that is kept for validation.")] = 0.05,
    skin_tones: Annotated[bool, typer.Option("--skin-tones", help="Also variants of skin tone.")] = False,
    sheet: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Also draw a contact sheet.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw.")] = 2,
    json_file: JsonOption = None,
) -> None:
    """A folder of some 15,000 captioned emoji and pieces of clip art, for sd3-jax prepare.

    Fetches pinned packages with npm and (clipart) apt-get. Run it again after a kill: it goes on.

    Example: sd3-jax emoji pictures/emoji --sheet emoji.png
    """
    from sd3_jax.data import emoji as making

    recipe = making.Recipe(tuple(filter(None, sources.split(","))), size, skin_tones, held_out)
    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("drawing", total=None)
        made = making.make(
            out, recipe, packages, lambda done, total: bar.update(task, completed=done, total=total), workers
        )
    if sheet is not None:
        from sd3_jax import contact

        contact.folder_sheet(out, sheet)
    kept, gone = Table(box=None, padding=(0, 2, 0, 0)), Table(box=None, padding=(0, 2, 0, 0))
    for column in ("style", "licence", "split", "pictures"):
        kept.add_column(column, justify="right" if column == "pictures" else "left")
    for row in made.counts:
        kept.add_row(*(f"{value:,}" if isinstance(value, int) else value for value in row.values()))
    gone.add_column("left out")
    gone.add_column("pictures", justify="right")
    for reason, n in made.dropped.items():
        gone.add_row(reason, f"{n:,}")
    split = ", ".join(f"{n:,} concepts for {name}" for name, n in sorted(made.concepts.items()))
    total = f"{sum(row['pictures'] for row in made.counts):,} pictures in {out}; {split}"
    value = {"pictures": made.counts, "dropped": made.dropped, "concepts": made.concepts}
    terminal.show([kept, gone, total], value, json_file)
