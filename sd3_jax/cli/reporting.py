"""Everything about a directory of runs on one page."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sd3_jax import overlays, records, terminal
from sd3_jax.cli.options import BootstrapOption, ColumnsOption, JsonOption, SourceArgument, WhereOption
from sd3_jax.errors import UserError


def report(
    source: SourceArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Where to write it; figures/NAME.html unless given.")
    ] = None,
    where: WhereOption = None,
    bootstrap: BootstrapOption = 1000,
    columns: ColumnsOption = None,
    json_file: JsonOption = None,
) -> None:
    """Write one HTML file about a directory of runs: figures, law, predictions, scores, a checklist of what to publish.

    It needs no other file, and the same records give the same bytes. Of a CSV it has the parts that a table has.

    Example: sd3-jax report runs/figure8_cpu

    Example: sd3-jax report table.csv --columns params=N,data=D --out table.html --json -
    """
    name = source.resolve().name if source.is_dir() else source.stem
    path = out or Path("figures") / f"{name}.html"
    if path.suffix not in (".html", ".htm") or path.is_dir():
        raise UserError(f"--out: {path} is not the name of a page; it must end in .html")
    if where and not source.is_dir():
        raise UserError("--where: is for runs, whose pictures have scores; a table has none")
    from analysis import checklist, findings, page, tables

    console = Console(stderr=True)
    with console.status("") as status:  # of a terminal; elsewhere it prints nothing
        found = findings.gather(
            source,
            tables.parse_columns(columns),
            overlays.parse_assignments(where or []),
            bootstrap,
            say=lambda doing: status.update(f"{doing} ..."),
        )
        status.update("writing ...")
        records.write_atomic(path, page.render(found))
    terminal.show([f"checklist: {checklist.counts(found.checklist)}"], findings.numbers(found), json_file)
    terminal.written([path], json_file)
