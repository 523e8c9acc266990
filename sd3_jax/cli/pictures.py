"""Draw pictures with runs, and judge pictures."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sd3_jax import bucket, overlays, platform, records, terminal
from sd3_jax.cli.options import JsonOption, SetOption, WorkersOption
from sd3_jax.errors import UserError
from sd3_jax.experiments import load_experiment

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run.")]
StepsOption = Annotated[int, typer.Option("--sampler-steps", metavar="N", help="Steps of the method.")]
MethodOption = Annotated[str, typer.Option(help="Of integration: euler, or heun (two evaluations a step).")]
GridOption = Annotated[
    str,
    typer.Option(help="Times: uniform (shifted), own (even in the time of the path) or scheduler (SD3's and SD3.5's)."),
]
GuidanceOption = Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1 is none.")]
ShiftOption = Annotated[float, typer.Option(help="Resolution shift of the grid of times.")]
WeightsOption = Annotated[str, typer.Option(help="Which weights: ema (averaged) or raw.")]
SeedOption = Annotated[int, typer.Option(help="Of the noise that pictures start from.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Pictures at once.")]


def sample(
    run: RunArgument,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A caption a line, or GenEval's .jsonl; geneval: its 553; else scenes' own, or those held out.",
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Pictures of each prompt of a file.")] = 4,
    images_per_task: Annotated[int, typer.Option(min=1, help="Pictures of each task; of a prepared set, in all.")] = 16,
    prompt_seed: Annotated[
        int, typer.Option(min=0, help="0: the frozen list of scenes' prompts; else a fresh one.")
    ] = 0,
    step: Annotated[int | None, typer.Option(help="Of the checkpoint; the newest unless given.")] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="HEIGHTxWIDTH", help="In pixels, such as 48x80; the run's square unless given."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="RUN/samples/<step and settings> unless given.")
    ] = None,
    sampler_steps: StepsOption = 25,
    guidance: GuidanceOption = 3.0,
    shift: ShiftOption = 1.0,
    weights: WeightsOption = "ema",
    seed: SeedOption = 0,
    method: MethodOption = "euler",
    grid: GridOption = "uniform",
    without: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A text encoder of a prepared set to do without, as t5.")
    ] = None,
    batch: BatchOption = 128,
) -> None:
    """Draw pictures with a run, in GenEval's folder layout; the same command again draws what is missing.

    Example: sd3-jax sample runs/figure8_cpu/d08-s0 --images-per-task 16
    """
    platform.prepare()
    from sd3_jax.evaluation import generate
    from sd3_jax.evaluation import prompts as asked

    config = records.load_config(run)
    parts = tuple(sorted(without or ()))
    sampler = generate.Sampler(sampler_steps, guidance, shift, _weights(weights), seed, method, grid, parts)
    if config.data.source == "encoded":
        from sd3_jax.evaluation import conditioning

        if prompts is not None:
            named = str(prompts) == "geneval" and not prompts.exists()
            wanted = asked.geneval_texts(images) if named else asked.read_texts(prompts, images)
        else:
            wanted = conditioning.held_out_prompts(conditioning.held_out(config, run), images_per_task, prompt_seed)
    elif prompts is not None:
        wanted = asked.read_prompts(prompts, config.data, images)
    else:
        wanted = asked.scene_prompts(config.data, images_per_task, prompt_seed)
    step = generate.steps_saved(run)[-1] if step is None else step
    canvas = generate.check_size(config, _size(size)) if size is not None else None
    out = out or run / "samples" / generate.folder_name(step, sampler, wanted, canvas)
    with progress(f"{run.resolve().name}, step {step}", sum(prompt.images for prompt in wanted)) as report:
        generate.sample(run, step, wanted, sampler, out, batch, report, size=canvas)
    print(out)


def evaluate(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="RUN|RUNS|FOLDER...", help="Runs, a directory of runs, or a folder of pictures."),
    ],
    images_per_task: Annotated[int, typer.Option(min=1, help="Pictures of each of the tasks.")] = 100,
    prompt_seed: Annotated[int, typer.Option(min=0, help="0: the frozen list of prompts; else a fresh one.")] = 0,
    step: Annotated[
        list[int] | None, typer.Option(help="Evaluate this step instead of those that are due. May be repeated.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Whom pictures are compared with; the smallest depth unless given."),
    ] = None,
    with_preference: Annotated[
        bool, typer.Option("--preference/--no-preference", help="Also compare the runs' pictures with one another.")
    ] = True,
    experiment: Annotated[
        str | None,
        typer.Option(metavar="EXPERIMENT", help="Whose scenes a folder of pictures shows, where it does not say."),
    ] = None,
    set_: SetOption = None,
    sampler_steps: StepsOption = 25,
    guidance: GuidanceOption = 3.0,
    shift: ShiftOption = 1.0,
    weights: WeightsOption = "ema",
    seed: SeedOption = 0,
    method: MethodOption = "euler",
    grid: GridOption = "uniform",
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The settings of one of the paper's studies instead: table1 (12, at the step of the lowest loss) or "
            "table6 (5 to 50 steps).",
        ),
    ] = None,
    validation_loss: Annotated[
        Path | None,
        typer.Option(metavar="SET", help="Instead of pictures: the loss of runs on this prepared set, such as COCO's."),
    ] = None,
    memorised: Annotated[
        bool,
        typer.Option("--memorisation", help="Instead: do pictures of training captions come out alike, or as trained?"),
    ] = False,
    levels: Annotated[str, typer.Option(help="Of that loss: every of each example, or round-robin.")] = "every",
    workers: WorkersOption = None,
    json_file: JsonOption = None,
) -> None:
    """Score pictures: draw them with every run where they are due, judge them, and compare the runs.

    A run is due at its last step and where it keeps a checkpoint (keep_steps). Scores are written to each run's
    evals.jsonl, and beside a folder of pictures to its scores.jsonl. Nothing is drawn or judged twice.

    Example: sd3-jax evaluate runs/figure8_cpu

    Example: sd3-jax evaluate runs/table1_cpu --protocol table1

    Example: sd3-jax evaluate runs/cc12m --validation-loss data/coco --levels round-robin
    """
    runs, folders = _sort(paths)
    platform.prepare()
    if validation_loss is not None:
        _losses(runs, folders, validation_loss, levels, _weights(weights), step, json_file)
        return
    from sd3_jax.evaluation.generate import Sampler

    sampler = Sampler(sampler_steps, guidance, shift, _weights(weights), seed, method, grid)
    if memorised:
        _memorisation(runs, step, sampler, images_per_task, json_file)
        return
    rows = [row for folder in folders for row in _evaluate_folder(folder, experiment, set_, images_per_task)]
    if runs:
        from sd3_jax.evaluate import Request

        request = Request(images_per_task, prompt_seed, sampler)
        rows += _evaluate_runs(runs, request, step, reference, with_preference, workers, protocol)
    terminal.show(terminal.score_tables(rows), rows, json_file)
    partial = next((row["partial"] for row in rows if row.get("partial")), None)
    if partial:
        raise UserError(f"{partial}: the scores are of the other pictures, and marked as partial")


def _losses(
    runs: list[Path],
    folders: list[Path],
    where: Path,
    levels: str,
    weights: Any,
    steps: list[int] | None,
    json_file: str | None,
) -> None:
    """The validation loss of runs on a prepared set, beside the one published number of its kind."""
    from sd3_jax.evaluate import write_scores
    from sd3_jax.evaluation import likeness

    if levels not in ("every", "round-robin"):
        raise UserError(f"--levels: {levels!r} is not one of every, round-robin")
    if folders:
        raise UserError(f"{folders[0]}: a folder of pictures has no loss; --validation-loss takes runs")
    rows = []
    for run, own in _due(runs, steps, None).items():
        found = likeness.loss_rows(run, where, levels, weights, own)  # type: ignore[arg-type]
        write_scores(run, found)
        rows += [{"run": run.resolve().name, **row} for row in found]
    cells = [["run", "step", "loss", "examples", *(f"t {k}/8" for k in range(8))]]
    for row in rows:
        each = [f"{row[f'loss_t{k}']:.4f}" for k in range(8)]
        cells.append([row["run"], f"{row['step']:,}", f"{row['value']:.4f}±{row['se']:.4f}", f"{row['n']:,}", *each])
    beside = (
        "MLPerf Training's FLUX.1 target on COCO 2014, 29,696 pictures at 256 px, levels round-robin: 0.586. Only 16 "
        "channels at f = 8 of about unit variance are on its scale."
    )
    terminal.show([terminal.chart(f"{weights} weights on {where}, {levels} level", cells), beside], rows, json_file)


def _memorisation(
    runs: list[Path], steps: list[int] | None, sampler: Any, captions: int, json_file: str | None
) -> None:
    """The share of captions whose pictures come out alike, by run."""
    from sd3_jax.evaluate import write_scores
    from sd3_jax.evaluation import likeness, memorisation

    rows = []
    for run, own in _due(runs, steps, None).items():
        with progress(run.resolve().name, 2 * len(own) * captions * memorisation.EACH) as report:
            found = [likeness.memorisation_row(run, step, sampler, captions, report) for step in own]
        write_scores(run, found)
        rows += [{"run": run.resolve().name, **row} for row in found]
    cells = [["run", "step", "memorised", "of held out", "near the trained", "of held out", "captions"]]
    for row in rows:
        shares = [f"{100 * row[key]:.1f} %" for key in ("value", "chance", "near", "near_held_out")]
        cells.append([row["run"], f"{row['step']:,}", *shares, str(row["prompts"])])
    title = (
        f"{memorisation.CLIQUE} of {memorisation.EACH} pictures of a caption within {memorisation.NEAR} of one another"
    )
    terminal.show(terminal.chart(title, cells), rows, json_file)


def geneval(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="results.jsonl of GenEval's own evaluator.")],
    record: Annotated[
        Path | None,
        typer.Option(metavar="RUN/samples/X", help="A run's pictures: keep the scores beside its others."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """The summary of GenEval's own evaluator, with the errors over prompts that it lacks.

    Example: sd3-jax geneval results.jsonl --record runs/cc12m/samples/0100000-ema-euler25-cfg3-seed0-4f1c2b3a
    """
    from sd3_jax.evaluation import folders, geneval, upstream

    found = upstream.read_results(results)
    rows = upstream.score_rows(found)
    if record is not None:
        from sd3_jax.evaluate import write_scores
        from sd3_jax.evaluation.generate import Sampler

        run, drawn = folders.drawn_by(record)
        names = {"sampler", *Sampler.__dataclass_fields__}
        said = {key: value for key, value in drawn.items() if key in names}
        rows = [{"step": drawn["step"], **row, **said, "prompt_list": drawn.get("prompts")} for row in rows]
        write_scores(run, rows)
        print(f"{len(rows)} scores in {run / 'evals.jsonl'}", file=sys.stderr)
    summary = geneval.summarize(found.correct, found.tag, found.prompt)
    terminal.show(list[Any](upstream.lines_of(summary, found)), rows, json_file)


def _evaluate_runs(
    runs: list[Path],
    request: Any,
    steps: list[int] | None,
    reference: Path | None,
    preference: bool,
    workers: int | None,
    protocol: str | None,
) -> list[dict[str, Any]]:
    from sd3_jax import compare
    from sd3_jax import evaluate as evaluation
    from sd3_jax.sweep import evaluate as fan_out
    from sd3_jax.sweep.run import default_workers

    whom = None
    if reference is not None:
        whom = next((run for run in runs if run.resolve() == reference.resolve()), reference)
        runs = runs if whom in runs else [*runs, *_with_checkpoints([reference])]
    due = _due(runs, steps, whom)
    if protocol == "table1" and not steps:
        due = {run: [evaluation.best_step(run)] for run in due}
    requests = [request] if protocol is None else evaluation.protocol(protocol, request)
    scenes = all(records.load_config(run).data.source == "scenes" for run in due)
    preference = preference and scenes and protocol is None and (len(due) > 1 or max(map(len, due.values())) > 1)
    if preference:
        compare.check_comparable(list(due))
    folders = [evaluation.folder_of(run, step, one) for run, own in due.items() for one in requests for step in own]
    pictures = {run: len(requests) * evaluation.pictures_due(run, request, own) for run, own in due.items()}
    workers = default_workers(len(due)) if workers is None else workers
    if min(workers, len(due)) > 1:
        costs = {run: fan_out.cost(run, pictures[run]) for run in due}
        options = [*_options(request), *(("--protocol", protocol) if protocol else ())]
        command = fan_out.runs_command(
            options, {run: [] if protocol and not steps else own for run, own in due.items()}
        )
        console = Console(stderr=True)
        fan_out.evaluate(costs, workers, console, command, folders, pictures)
    else:
        for run, own in due.items():
            with progress(run.resolve().name, pictures[run]) as report:
                for one in requests:
                    evaluation.evaluate_run(run, one, own, report)
    names = records.names_of(list(due))
    label = None
    if preference:
        whom = compare.default_reference(list(due)) if whom is None else whom
        label = f"{names[whom]}@{max(due[whom])}"
        compare.compare(due, whom, request, whom.resolve().parent / compare.PROXY)
    asked = {run: [evaluation.setting(run, one) for one in requests] for run in due}
    return [
        {"run": names[run], **row}
        for run, own in due.items()
        for row in records.read_scores(run / "evals.jsonl")[0]
        if row.get("step") in own and any(evaluation.is_drawn_so(row, one) for one in asked[run])
        if row.get("reference") in (None, label)
    ]


def _due(runs: list[Path], steps: list[int] | None, reference: Path | None) -> dict[Path, list[int]]:
    """Which steps of each run are evaluated: those that are due, or those asked for that have a checkpoint."""
    from sd3_jax.evaluate import due_steps
    from sd3_jax.evaluation.generate import steps_saved

    if not steps:
        return {run: due_steps(run) for run in runs}
    found = {run: sorted(set(steps) & set(steps_saved(run))) for run in runs}
    for run, own in found.items():
        if not own and run == reference:
            found[run] = due_steps(run)[-1:]
        elif not own:
            lacking = f"{run}: has no checkpoint of step {', '.join(map(str, steps))}"
            if len(runs) == 1:
                raise UserError(f"{lacking}; there are {', '.join(map(str, steps_saved(run)))}")
            print(f"note: {lacking}, and is left out", file=sys.stderr)
    if not any(found.values()):
        raise UserError(f"{runs[0]}: has no checkpoint of step {', '.join(map(str, steps))}, nor has any other run")
    return {run: own for run, own in found.items() if own}


def _options(request: Any) -> list[str]:
    """The options of this command that a process of its own is given for its share of the runs."""
    sampler = request.sampler
    named = {
        "--images-per-task": request.images_per_task,
        "--prompt-seed": request.prompt_seed,
        "--sampler-steps": sampler.steps,
        "--guidance": sampler.guidance,
        "--shift": sampler.shift,
        "--weights": sampler.weights,
        "--seed": sampler.seed,
        "--method": sampler.method,
        "--grid": sampler.grid,
    }
    return [str(part) for pair in named.items() for part in pair]


def _evaluate_folder(
    folder: Path, experiment: str | None, set_: list[str] | None, images_per_task: int
) -> list[dict[str, Any]]:
    from sd3_jax.evaluation import judged, truth

    if experiment is not None:
        config = overlays.resolve({"steps": 1}, load_experiment(experiment), overlays.parse_assignments(set_ or []))
        data = config.data
    else:
        data = judged.data_of(folder)
    found = judged.judge_folder(folder, data)
    rows = judged.score_rows(found, truth.ceilings(data, None, images_per_task), {})
    rows += judged.distance_rows(found.pictures, data, None, {})
    records.write_rows(folder / "scores.jsonl", rows)
    return [{"run": folder.resolve().name, **row} for row in rows]


def _sort(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Which of the paths are runs (or hold some), and which are folders of pictures."""
    runs: list[Path] = []
    folders: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such directory; expected a run, a directory of runs or a folder of pictures")
        found = records.find_runs(path)
        if found:
            known = {run.resolve() for run in runs}
            runs += [run for run in found if run.resolve() not in known]
        elif any(inner.name.isdigit() for inner in path.iterdir()):
            folders.append(path)
        else:
            raise UserError(f"{path}: holds neither a run (config.json) nor pictures in GenEval's layout (00000/...)")
    return _with_checkpoints(runs), folders


def _with_checkpoints(runs: list[Path]) -> list[Path]:
    """The runs that have one; of the others a note. Raises UserError if none has."""
    from sd3_jax.training.checkpoint import saved_steps

    lacking = [run for run in runs if not saved_steps(bucket.checkpoints(run, records.load_config(run)))]
    if lacking and len(lacking) == len(runs):
        raise UserError(f"{lacking[0]}: has no checkpoint to sample from; train it first, or restore its checkpoints/")
    for run in lacking:
        print(f"note: {run} has no checkpoint, and is left out", file=sys.stderr)
    return [run for run in runs if run not in lacking]


def _size(text: str) -> tuple[int, int]:
    sides = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not sides:
        raise UserError(f"--size: {text!r} is not a height and a width in pixels, such as 48x80")
    return int(sides[1]), int(sides[2])


def _weights(name: str) -> Any:
    if name not in ("ema", "raw"):
        raise UserError(f"--weights: {name!r} is not one of ema, raw")
    return name


@contextmanager
def progress(name: str, pictures: int) -> Iterator[Callable[[int], None]]:
    """A bar of pictures with the time left on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("pictures")]
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=pictures)
        yield lambda done: bar.update(task, advance=done)
