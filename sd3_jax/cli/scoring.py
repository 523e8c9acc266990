"""Scores of any system by the field's protocols."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from sd3_jax import terminal
from sd3_jax.cli.options import FigureOption, JsonOption
from sd3_jax.cli.pictures import progress
from sd3_jax.errors import UserError

IMAGES = 4  # of each prompt, unless told


@dataclass(frozen=True)
class Asked:
    """What a suite is told besides the systems."""

    suites: tuple[str, ...]
    scorers: Sequence[str] = ()
    prompts: Path | None = None
    images: int | None = None
    compbench: Path | None = None  # a copy of its prompts
    real: Path | None = None
    features: Sequence[str] = ("scene",)
    own: int = 600  # prompts that a run brings along


def parse(text: str) -> tuple[str, ...]:
    """Suites by name, each once. Raises UserError for another name."""
    from sd3_jax.evaluation.suites import SUITES

    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if unknown := [name for name in names if name not in SUITES]:
        raise UserError(f"--suite: {unknown[0]!r} is not one of {', '.join(SUITES)}")
    return names


# What answers for a suite where scenes are drawn: exact judges, under names of their own.
_SCENES = {
    "geneval": ("scene-geneval",),
    "compbench": ("scene-compbench",),
    "preference": ("proxy-preference",),
    "fidelity": ("scene-frechet", "path-length"),
    "typography": ("scene-sign",),
}


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


def systems_of(paths: Mapping[str, Path], sampler: Any, steps: Sequence[int] | None, out: Path | None) -> list[Any]:
    """The systems of paths, under their names, a run once for each step. Raises UserError for ``out`` of several."""
    from sd3_jax import systems

    if out is not None and len(paths) > 1:
        raise UserError(f"--out {out}: is of one target alone, and there are {len(paths)}")
    found = []
    for name, path in paths.items():
        own = steps if steps and (path / "config.json").is_file() else (None,)
        for step in own:
            called = name if len(own) == 1 else f"{name}@{step}"
            found.append(systems.find(path, sampler, step, out)._replace(name=called))
    return found


def score(found: Sequence[Any], asked: Asked, reference: Path | None = None) -> list[dict[str, Any]]:
    """The scores of systems (of ``sd3_jax.systems``) in the suites asked for, written beside each.

    Judges of preference also compare the systems with one another, or with the one at ``reference``.
    """
    from sd3_jax import systems
    from sd3_jax.evaluation import suites

    parts = _parts(asked)
    rows: list[dict[str, Any]] = []
    rated: dict[str, dict[str, Any]] = {}  # of each judge of preference and system, what it said
    for system in found:
        for part in parts:
            own, said = _part(system, part, asked)
            rows += own
            for judge, one in said.items() if part.suite == "preference" else ():
                rated.setdefault(judge, {})[system.name] = one
        if own := [row for row in rows if row["run"] == system.name and row["name"].startswith("compbench")]:
            rows += systems.write(system, [suites.overall_of_categories(own)])
        if "fidelity" in asked.suites:
            rows += _fidelity(system, asked)
    if rated and len(found) > 1:
        rows += _compared(found, rated, reference)
    return rows


def _compared(
    found: Sequence[Any], rated: Mapping[str, Mapping[str, Any]], reference: Path | None
) -> list[dict[str, Any]]:
    """Win rates against one system, the first unless named, and Elo scores of all, by each judge of preference."""
    from sd3_jax import systems
    from sd3_jax.evaluation import suites

    whom = found[0]
    if reference is not None:
        chosen = [system for system in found if system.path.resolve() == reference.resolve()]
        if not chosen:
            raise UserError(f"--reference {reference}: is not one of the targets")
        whom = chosen[0]
    by_name = {system.name: system for system in found}
    rows = []
    for judge, said in rated.items():
        for name, own in suites.preference_rows(judge, said, whom.name).items():
            rows += systems.write(by_name[name], own)
    return rows


class _Part(NamedTuple):
    """Prompts that are drawn together, and their judges."""

    suite: str
    scorers: list[Any]
    category: str | None = None  # of CompBench


def _parts(asked: Asked) -> list[_Part]:
    """The judges of each suite, loaded once for all systems."""
    from sd3_jax import systems
    from sd3_jax.scorers import choose

    there = choose.folders(systems.given(asked.scorers))
    found = []
    for suite in asked.suites:
        match suite:
            case "geneval":
                found.append(_Part(suite, [choose.geneval(there)]))
            case "compbench":
                found += [_Part(suite, [judge], name) for name, judge in choose.compbench(there).items()]
            case "preference":
                found.append(_Part(suite, choose.preference(there)))
            case "typography":
                found.append(_Part(suite, [choose.typography()]))
    return found


def _part(system: Any, part: _Part, asked: Asked) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The scores of one system by the judges of one part, and what each of them said."""
    from sd3_jax import systems
    from sd3_jax.evaluation import compbench_files, scorer, suites, upstream

    wanted, where = _prompts(system, part, asked)
    folder = _draw(system, wanted)
    find = suites.find if part.category is None else suites.find_category
    found = find(folder, wanted, where if part.category is None else part.category)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    rows, words = list[dict[str, Any]](), dict[str, Any]()
    for judge in part.scorers:
        with progress(f"{system.name}, {judge.name}", len(found.shots)) as report:
            said = scorer.ask(judge, found.shots, system.out / scorer.FILE, report)
        own = suites.rows_of(judge, said, wanted, found.problems)
        if not own:
            raise UserError(f"{folder}: no picture that {judge.name} can say anything of ({where})")
        rows += systems.write(system, own)
        words[judge.name] = said
        if part.suite == "geneval":
            verdicts = zip(said.shots, said.values, strict=True)
            lines = [upstream.result_row(str(shot.path), shot.metadata, one, judge.name) for shot, one in verdicts]
            upstream.write_results(system.out / "geneval" / "results.jsonl", lines)
        if part.category is not None:
            out = system.out / "compbench" / part.category
            numbered = suites.numbered(found.shots, wanted)
            if system.draws:
                compbench_files.lay_out(out, numbered)
            known = {shot.path: value for shot, value in zip(said.shots, said.values, strict=True)}
            answers = {number: known[shot.path] for number, shot in numbered.items() if shot.path in known}
            compbench_files.write_answers(out / "vqa_result.json", answers)
    return rows, words


def _prompts(system: Any, part: _Part, asked: Asked) -> tuple[list[Any], str]:
    """The prompts of a suite, and where they are from: the benchmark's, a file's, or those that the system brings."""
    from sd3_jax.evaluation import compbench, compbench_prompts, prompts, suites

    if part.category is not None:
        if asked.compbench is None:
            raise UserError("suite compbench: --compbench FOLDER says where a copy of its examples/dataset lies")
        found = prompts.compbench_texts(asked.compbench, part.category, asked.images)
        compbench.check(part.category, [prompt.metadata for prompt in found], compbench_prompts.parser())
        return found, str(asked.compbench)
    if part.suite == "geneval":
        return prompts.geneval_texts(asked.images or IMAGES), "GenEval's 553 prompts"
    if asked.prompts is not None:
        named = str(asked.prompts) == "geneval" and not asked.prompts.exists()
        images = asked.images or IMAGES
        found = prompts.geneval_texts(images) if named else prompts.read_texts(asked.prompts, images)
        if asked.images is None and not system.draws:
            found = suites.as_there_are(system.pictures(found, lambda done: None), found, str(asked.prompts))
        return found, str(asked.prompts)
    if not system.draws:
        return suites.own_prompts(system.pictures([], lambda done: None)), "its own prompts"
    if system.own is None:
        raise UserError(f"{system.name}: --prompts FILE says what it is to draw for suite {part.suite}")
    return system.own(asked.own), "captions that were held out"


def _draw(system: Any, wanted: Sequence[Any]) -> Path:
    with progress(f"{system.name}, drawing", sum(prompt.images for prompt in wanted)) as report:
        return system.pictures(wanted, report)


def _fidelity(system: Any, asked: Asked) -> list[dict[str, Any]]:
    """Distances of a system's pictures from real ones, measured once for each content of both."""
    from sd3_jax import records, systems
    from sd3_jax.evaluation import between, features, prompts

    real = asked.real or system.real
    if real is None:
        raise UserError(f"{system.name}: --real FOLDER says which pictures it is compared with for suite fidelity")
    wanted = _prompts(system, _Part("fidelity", []), asked)[0] if system.draws else []
    sources = [between.find(_draw(system, wanted)), between.find(real)]
    content = {"pictures": sources[0].content(), "reference_pictures": sources[1].content()}
    known = records.read_scores(system.out / systems.SCORES)[0]
    rows = []
    for spec in asked.features:
        extractor = features.load(spec)
        said = content | {"features": extractor.name, "digest": extractor.digest}
        own = [row for row in known if said.items() <= row.items()]
        if not own:
            with progress(f"{system.name}, {extractor.name}", sum(source.total for source in sources)) as report:
                measured = [between.measure(source, extractor, report) for source in sources]
            found = between.rows(sources, measured, extractor)
            listed = {"prompt_list": prompts.fingerprint(wanted)} if wanted else {}
            own = [row | content | listed for row in found if row.get("of") in (None, str(sources[0].path))]
        rows += systems.write(system, own)
    return rows


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
    """Put scores beside those of whoever drew the pictures: a run, as its settings say; else the folder itself."""
    from sd3_jax import systems
    from sd3_jax.evaluate import write_scores
    from sd3_jax.evaluation import folders
    from sd3_jax.evaluation.generate import Sampler

    try:
        run, drawn = folders.drawn_by(pictures)
    except UserError:
        next(folders.read_folder(pictures))  # or it is no folder of pictures
        write_scores(pictures, rows)
        return list(rows), pictures / systems.SCORES
    names = {"sampler", *Sampler.__dataclass_fields__}
    said = {key: value for key, value in drawn.items() if key in names}
    rows = [{"step": drawn["step"], **row, **said, "prompt_list": drawn.get("prompts")} for row in rows]
    write_scores(run, rows)
    return rows, run / systems.SCORES


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
    if rest := board.others(entries):
        parts.append(terminal.chart("value±standard error", rest))
    if costs:
        parts += [terminal.chart("without a text encoder", board.cost_cells(costs)), board.paper_sentence()]
    partial = dict.fromkeys(line.partial for line in [*official, *scenes] if line.partial)
    parts += [f"* partial: {text}" for text in partial]
    value: dict[str, Sequence[Any]] = {"geneval": official, "scene_geneval": scenes, "costs": costs}
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
