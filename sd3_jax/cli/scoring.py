"""Scores of any system by the field's protocols, and systems side by side."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sd3_jax import terminal
from sd3_jax.cli.options import FigureOption, JsonOption
from sd3_jax.errors import UserError

# What answers for a suite where scenes are drawn: exact judges, under names of their own.
_SCENES = {
    "geneval": ("scene-geneval",),
    "compbench": ("scene-compbench",),
    "preference": ("proxy-preference",),
    "fidelity": ("scene-frechet", "path-length"),
    "typography": ("scene-sign",),
}
_COLUMNS = 6  # of scores side by side, that a terminal holds


def of_scenes(rows: Sequence[dict[str, Any]], suites: Sequence[str]) -> list[dict[str, Any]]:
    """The rows that answer for these suites."""
    return [row for row in rows if row["name"].startswith(tuple(name for suite in suites for name in _SCENES[suite]))]


def split(paths: Sequence[Path], experiment: str | None) -> tuple[list[Path], list[Path]]:
    """Which paths are scored by networks and which, being of scenes, by exact judges; directories of runs run by run.

    Scenes are runs that draw them, their pictures, and every folder of pictures where an ``experiment`` is named.
    """
    from sd3_jax import records
    from sd3_jax.evaluation import judged, pipelines

    others: list[Path] = []
    scenes: list[Path] = []
    for path in paths:
        runs = [] if pipelines.is_pipeline(path) else records.find_runs(path)
        for run in runs:
            (scenes if records.load_config(run).data.source == "scenes" else others).append(run)
        if not runs:
            try:
                of_scenes = experiment is not None or bool(judged.data_of(path).shapes)
            except UserError:
                of_scenes = False
            (scenes if of_scenes and not pipelines.is_pipeline(path) else others).append(path)
    return others, scenes


def table(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Scores line by line, systems side by side."""
    names = dict.fromkeys(row["run"] for row in rows)
    lines = dict.fromkeys((row["name"], row["group"]) for row in rows)
    cells = [["score", "of", *names]]
    for name, group in lines:
        own = {row["run"]: row for row in rows if (row["name"], row["group"]) == (name, group)}
        cells.append([name, group, *(terminal.value(own.get(system)) for system in names)])
    partial = dict.fromkeys(row["partial"] for row in rows if row.get("partial"))
    return [terminal.chart("value±standard error", cells), *(f"* partial: {text}" for text in partial)]


def geneval(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="results.jsonl of GenEval's own evaluator.")],
    record: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The pictures, a run's or anyone's: keep the scores beside its others."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """The summary of GenEval's own evaluator, with the errors over prompts that it lacks.

    Example: sd3-jax geneval results.jsonl --record runs/cc12m/samples/0100000-ema-euler25-cfg3-seed0-4f1c2b3a
    """
    from sd3_jax.evaluation import geneval, upstream

    found = upstream.read_results(results)
    rows = upstream.score_rows(found)
    if record is not None:
        rows, where = _recorded(record, rows)
        print(f"{len(rows)} scores in {where}", file=sys.stderr)
    summary = geneval.summarize(found.correct, found.tag, found.prompt)
    terminal.show(list[Any](upstream.lines_of(summary, found)), rows, json_file)


def _recorded(pictures: Path, rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], Path]:
    """Put scores beside those of whoever drew the pictures: a run or a pipeline, as settings say; else the folder."""
    from sd3_jax import records
    from sd3_jax.evaluate import write_scores
    from sd3_jax.evaluation import folders, pipelines
    from sd3_jax.evaluation.generate import Sampler

    if said := pipelines.drawn(pictures):
        rows, out = [{**row, **said} for row in rows], pictures.resolve().parent.parent
        write_scores(out, rows, whole=True)
        return rows, out / records.SCORES
    try:
        run, drawn = folders.drawn_by(pictures)
    except UserError:
        next(folders.read_folder(pictures))  # or it is no folder of pictures
        write_scores(pictures, rows, whole=True)
        return list(rows), pictures / records.SCORES
    names = {"sampler", *Sampler.__dataclass_fields__}
    said = {key: value for key, value in drawn.items() if key in names}
    rows = [{"step": drawn["step"], **row, **said, "prompt_list": drawn.get("prompts")} for row in rows]
    write_scores(run, rows, whole=True)
    return rows, run / records.SCORES


def leaderboard(
    targets: Annotated[
        list[str], typer.Argument(metavar="TARGET|NAME=TARGET...", help="Runs, directories of runs, picture folders.")
    ],
    figure: FigureOption = None,
    json_file: JsonOption = None,
) -> None:
    """Systems that were evaluated beside the paper's Table 5: official scores, and those of exact judges apart.

    Where a system was also scored without a text encoder (evaluate --without t5), what that costs it.

    Example: sd3-jax leaderboard runs/cc12m sdxl=pictures/sdxl --figure figures/leaderboard
    """
    import analysis
    from analysis import leaderboard as board
    from sd3_jax.cli.voting import named

    paths = named([str(run) for target in targets for run in _runs_in(target)])
    entries = board.load(paths)
    official, scenes, costs = board.geneval(entries), board.of_scenes(entries), board.costs(entries)
    parts: list[Any] = []
    if any(line.judge != board.PUBLISHED for line in official) or not scenes:
        parts.append(terminal.chart(f"GenEval; {board.PUBLISHED}: the paper's Table 5", board.cells(official)))
    if scenes:
        parts.append(terminal.chart("scene-geneval, of scenes: on no scale with GenEval", board.cells(scenes)))
    rest = board.others(entries)
    for at in range(1, len(rest[0]) if rest else 0, _COLUMNS):
        own = [[row[0], *row[at : at + _COLUMNS]] for row in rest]
        parts.append(terminal.chart("value±standard error", [row for row in own if any(row[1:])]))
    if costs:
        parts += [terminal.chart("without a text encoder", board.cost_cells(costs)), board.paper_sentence()]
    others = board.other_scores(entries)
    said = [*(line.partial for line in [*official, *scenes]), *(one.partial for one in others)]
    parts += [f"* partial: {text}" for text in dict.fromkeys(filter(None, said))]
    value: dict[str, Sequence[Any]] = {"geneval": official, "scene_geneval": scenes, "others": others, "costs": costs}
    terminal.show(parts, {key: [one._asdict() for one in lines] for key, lines in value.items()}, json_file)
    if figure is not None:
        shown = [line for line in official if line.judge != board.PUBLISHED]
        drawing = board.picture_of(official if shown or not scenes else scenes)
        terminal.written(analysis.save(drawing.figure, drawing.numbers, figure), json_file)


def _runs_in(target: str) -> list[str]:
    """A directory of runs as its runs; anything else as it is."""
    from sd3_jax import records
    from sd3_jax.evaluation import pipelines

    path = Path(target)
    if "=" in target or pipelines.is_pipeline(path):
        return [target]
    return [str(run) for run in records.find_runs(path)] or [target]
