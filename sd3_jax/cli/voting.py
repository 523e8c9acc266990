"""Blind votes of people, and who wins them."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sd3_jax import records, terminal
from sd3_jax.cli.options import BootstrapOption, JsonOption
from sd3_jax.errors import UserError

_PROMPTS_HELP = "A caption a line, or .jsonl with a prompt; else what the first folder in GenEval's layout says."
_RECORD_HELP = "Pictures of a run that were voted on: write its scores into its evals.jsonl. One for each system."
_QUESTIONS_HELP = "Of following, quality and typography (of prompts with words in quotation marks), in this order."


def vote(
    systems: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]FOLDER...", help="Pictures of each system, in GenEval's layout or flat."),
    ],
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help=_PROMPTS_HELP)] = None,
    votes: Annotated[Path, typer.Option(metavar="FILE", help="Where votes are added.")] = Path("votes.jsonl"),
    images: Annotated[int, typer.Option(min=1, help="Pictures of each prompt that are voted on.")] = 1,
    questions: Annotated[str, typer.Option(metavar="NAME,...", help=_QUESTIONS_HELP)] = "following,quality,typography",
    seed: Annotated[int, typer.Option(help="Of the order and the sides.")] = 0,
    partial: Annotated[
        bool, typer.Option("--partial", help="Go on where pictures are missing or broken; votes are marked as partial.")
    ] = False,
    host: Annotated[
        str, typer.Option(help="Address to serve on; 0.0.0.0 lets the whole network vote, unencrypted.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve on; 0 is any free one.")] = 8000,
    export: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write a folder that works without a server instead, to be sent around."),
    ] = None,
    import_: Annotated[
        list[Path] | None,
        typer.Option("--import", metavar="FILE", help="Add votes saved from such a folder instead. May be repeated."),
    ] = None,
) -> None:
    """Ask people which pictures are better: a web page of pairs under shuffled sides and hidden names.

    The paper's three questions, one at a time. Each rater gives a name, and goes on under it after a pause. Every vote
    is a line of --votes at once; sd3-jax votes says who wins. Systems are called by their folders, unless named.

    Example: sd3-jax vote ours=pictures/d08 theirs=pictures/sdxl --prompts prompts.txt
    """
    from sd3_jax.voting import ballot as ballots
    from sd3_jax.voting import page, server
    from sd3_jax.voting import votes as recorded

    axes = [axis.strip() for axis in questions.split(",") if axis.strip()]
    ballot = ballots.make_ballot(named(systems), prompts, images, list(dict.fromkeys(axes)), seed, partial)
    for note in [*ballot.notes, *([f"partial: {ballot.partial}"] if ballot.partial else [])]:
        print(f"note: {note}", file=sys.stderr)
    if import_ is not None:
        new = recorded.import_answers(import_, ballot, votes)
        print(f"{new} new votes in {votes}")
        return
    asked = sum(map(len, ballot.questions.values()))
    about = f"{asked:,} questions about {len(ballot.comparisons):,} pairs of {len(ballot.systems)} systems"
    if export is not None:
        page.export(ballot, export)
        print(f"wrote {export / 'index.html'}: {about}; add what raters save with --import")
        return
    serving = server.make_server(ballot, votes, lambda: _page(votes), host, port)
    print(f"{about}: {server.address(serving)}\nvotes go to {votes}; stop with Ctrl-C", flush=True)
    try:
        serving.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        serving.server_close()
    count = len(recorded.standing(recorded.read(votes)[0]))
    print(f"\n{count:,} answers in {votes}")


def votes(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Votes of sd3-jax vote, or of anyone.")],
    reference: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whom the others are compared with; the first unless given.")
    ] = None,
    bootstrap: BootstrapOption = 1000,
    figure: Annotated[Path | None, typer.Option(metavar="STEM", help="Also draw it: STEM.png, .pdf and .json.")] = None,
    html: Annotated[
        Path | None, typer.Option("--page", metavar="FILE.html", help="Also write a page that needs no other file.")
    ] = None,
    record: Annotated[list[str] | None, typer.Option(metavar="[NAME=]FOLDER", help=_RECORD_HELP)] = None,
    json_file: JsonOption = None,
) -> None:
    """Who wins a vote: win rates, and Elo scores of Bradley and Terry's model, with intervals over prompts.

    Example: sd3-jax votes votes.jsonl --figure figures/votes
    """
    import analysis
    from analysis import voting
    from sd3_jax.voting.results import tally

    rows = _read(files)
    results = tally(rows, reference, bootstrap)
    lines: list[Any] = []
    for one in results["axes"]:
        title = f"{voting.NAMES.get(one['axis'], one['axis'])}: {one['question']}"
        lines += [terminal.chart(title, voting.cells(one, results["reference"])), voting.of_raters(one), ""]
    terminal.show([*lines, *voting.sentences(results)], results, json_file)
    if figure is not None:
        drawing = analysis.votes_figure(results)
        terminal.written(analysis.save(drawing.figure, drawing.numbers, figure), json_file)
    if html is not None:
        records.write_atomic(html, voting.votes_page(results))
        terminal.written([html], json_file)
    if record:
        from sd3_jax.voting.record import record as write

        folders = named(record)
        scores = write(rows, folders, reference, bootstrap)
        print(f"{len(scores)} scores in the evals.jsonl of {len(folders)} runs", file=sys.stderr)


def named(systems: Sequence[str]) -> dict[str, Path]:
    """The folder of each system by its name: NAME=FOLDER, or what of a path tells all apart.

    >>> named(["d3/samples/x", "sdxl=b/two", "d8/samples/x"])
    {'d3': PosixPath('d3/samples/x'), 'sdxl': PosixPath('b/two'), 'd8': PosixPath('d8/samples/x')}
    """
    given = {text: text.partition("=") for text in systems if "=" in text and not Path(text).exists()}
    paths = [Path(given[text][2]) if text in given else Path(text) for text in systems]
    found: dict[str, Path] = {}
    short = records.names_of([path for text, path in zip(systems, paths, strict=True) if text not in given])
    parts = {path: name.split("/") for path, name in short.items()}
    while parts and min(map(len, parts.values())) > 1 and len({own[-1] for own in parts.values()}) == 1:
        parts = {path: own[:-1] for path, own in parts.items()}  # what all end in tells nobody apart
    for text, path in zip(systems, paths, strict=True):
        name = given[text][0].strip() if text in given else "/".join(parts[path])
        if not name or name in found:
            raise UserError(f"{text}: {'has no name' if not name else f'is called {name!r} as another system is'}")
        found[name] = path
    return found


def _read(files: Sequence[Path]) -> list[dict[str, Any]]:
    from sd3_jax.voting import votes as recorded

    rows = []
    for file in files:
        own, notes = recorded.read(file)
        rows += own
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    return rows


def _page(file: Path) -> str:
    from analysis import voting
    from sd3_jax.voting.results import tally

    return voting.votes_page(tally(_read([file])))
