"""Draw pictures with runs, and judge pictures."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sd3_jax import config as configs
from sd3_jax import platform, records, terminal
from sd3_jax.cli.options import JsonOption, SetOption, WorkersOption
from sd3_jax.errors import UserError
from sd3_jax.experiments import load_experiment

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run.")]
StepsOption = Annotated[int, typer.Option("--sampler-steps", metavar="N", help="Steps of Euler's method.")]
GuidanceOption = Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1 is none.")]
ShiftOption = Annotated[float, typer.Option(help="Resolution shift of the grid of times.")]
WeightsOption = Annotated[str, typer.Option(help="Which weights: ema (averaged) or raw.")]
SeedOption = Annotated[int, typer.Option(help="Of the noise that pictures start from.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Pictures at once.")]


def sample(
    run: RunArgument,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A caption a line, or GenEval's metadata as .jsonl; else scenes' own."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Pictures of each prompt of a file.")] = 4,
    images_per_task: Annotated[int, typer.Option(min=1, help="Pictures of each task of scenes' own prompts.")] = 16,
    prompt_seed: Annotated[
        int, typer.Option(min=0, help="0: the frozen list of scenes' prompts; else a fresh one.")
    ] = 0,
    step: Annotated[int | None, typer.Option(help="Of the checkpoint; the newest unless given.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="RUN/samples/<step and settings> unless given.")
    ] = None,
    sampler_steps: StepsOption = 25,
    guidance: GuidanceOption = 3.0,
    shift: ShiftOption = 1.0,
    weights: WeightsOption = "ema",
    seed: SeedOption = 0,
    batch: BatchOption = 128,
) -> None:
    """Draw pictures with a run, in GenEval's folder layout; the same command again draws what is missing.

    Example: sd3-jax sample runs/figure8_cpu/d08-s0 --images-per-task 16
    """
    platform.prepare()
    from sd3_jax.evaluation import generate
    from sd3_jax.evaluation import prompts as asked

    config = records.load_config(run)
    sampler = generate.Sampler(sampler_steps, guidance, shift, _weights(weights), seed)
    if prompts is not None:
        wanted = asked.read_prompts(prompts, config.data, images)
    else:
        wanted = asked.scene_prompts(config.data, images_per_task, prompt_seed)
    step = generate.steps_saved(run)[-1] if step is None else step
    out = out or run / "samples" / generate.folder_name(step, sampler, wanted)
    with _progress(f"{run.resolve().name}, step {step}", sum(prompt.images for prompt in wanted)) as report:
        generate.sample(run, step, wanted, sampler, out, batch, report)
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
    workers: WorkersOption = None,
    json_file: JsonOption = None,
) -> None:
    """Score pictures: draw them with every run where they are due, judge them, and compare the runs.

    A run is due at its last step and where it keeps a checkpoint (keep_steps). Scores are written to each run's
    evals.jsonl, and beside a folder of pictures to its scores.jsonl. Nothing is drawn or judged twice.

    Example: sd3-jax evaluate runs/figure8_cpu
    """
    runs, folders = _sort(paths)
    platform.prepare()
    from sd3_jax.evaluation.generate import Sampler

    sampler = Sampler(sampler_steps, guidance, shift, _weights(weights), seed)
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for folder in folders:
        found, wrong = _evaluate_folder(folder, experiment, set_, images_per_task)
        rows += found
        problems += wrong
    if runs:
        from sd3_jax.evaluate import Request

        request = Request(images_per_task, prompt_seed, sampler)
        rows += _evaluate_runs(runs, request, step, reference, with_preference, workers)
    terminal.show(terminal.score_tables(rows), rows, json_file)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}: the scores are of the other pictures, and marked as partial")


def _evaluate_runs(
    runs: list[Path],
    request: Any,
    steps: list[int] | None,
    reference: Path | None,
    preference: bool,
    workers: int | None,
) -> list[dict[str, Any]]:
    from sd3_jax import compare
    from sd3_jax import evaluate as evaluation
    from sd3_jax.sweep import evaluate as fan_out
    from sd3_jax.sweep.run import default_workers

    others = [] if reference is None or reference.resolve() in {run.resolve() for run in runs} else [reference]
    everyone = [*runs, *others]
    due = {run: sorted(set(steps)) if steps and run in runs else evaluation.due_steps(run) for run in everyone}
    pictures = {run: evaluation.pictures_due(run, request, due[run]) for run in everyone}
    workers = default_workers(len(everyone)) if workers is None else workers
    if min(workers, len(everyone)) > 1:
        costs = {run: fan_out.cost(run, pictures[run]) for run in everyone}
        command = fan_out.runs_command(_options(request, steps))
        root = runs[0].resolve().parent
        fan_out.evaluate(costs, root, workers, Console(stderr=True), command, sum(pictures.values()))
    else:
        for run in everyone:
            with _progress(run.resolve().name, pictures[run]) as report:
                evaluation.evaluate_run(run, request, due[run], report)
    if preference and len(everyone) > 1:
        whom = compare.default_reference(runs) if reference is None else reference
        proxy = runs[0].resolve().parent / compare.PROXY
        compare.compare(everyone, whom, request, proxy, due)
    elif preference:
        print("note: one run alone is not compared; name another with --reference", file=sys.stderr)
    asked = {run: evaluation.setting(records.load_config(run), request) for run in everyone}
    return [
        {"run": run.resolve().name, **row}
        for run in everyone
        for row in records.read_rows(run / "evals.jsonl")[0]
        if row["step"] in due[run] and asked[run].items() <= row.items()
    ]


def _options(request: Any, steps: list[int] | None) -> list[str]:
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
    }
    options = [str(part) for pair in named.items() for part in pair]
    return options + [part for step in steps or [] for part in ("--step", str(step))]


def _evaluate_folder(
    folder: Path, experiment: str | None, set_: list[str] | None, images_per_task: int
) -> tuple[list[dict[str, Any]], list[str]]:
    from sd3_jax import evaluate as evaluation
    from sd3_jax.evaluation import truth

    if experiment is not None:
        config = configs.resolve({"steps": 1}, load_experiment(experiment), configs.parse_assignments(set_ or []))
        data = config.data
    else:
        data = evaluation.data_of(folder)
    judged, problems = evaluation.judge_folder(folder, data)
    ceilings = truth.ceilings(data, None, images_per_task)
    rows = evaluation.score_rows(judged, ceilings, {})
    records.write_rows(folder / "scores.jsonl", rows)
    return [{"run": folder.resolve().name, **row} for row in rows], problems


def _sort(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Which of the paths are runs (or hold some), and which are folders of pictures."""
    runs: list[Path] = []
    folders: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such directory; expected a run, a directory of runs or a folder of pictures")
        found = records.find_runs(path)
        if found:
            runs += [run for run in found if run not in runs]
        elif any(inner.name.isdigit() for inner in path.iterdir()):
            folders.append(path)
        else:
            raise UserError(f"{path}: holds neither a run (config.json) nor pictures in GenEval's layout (00000/...)")
    return _with_checkpoints(runs), folders


def _with_checkpoints(runs: list[Path]) -> list[Path]:
    """The runs that have one; of the others a note. Raises UserError if none has."""
    from sd3_jax.training.checkpoint import saved_steps

    lacking = [run for run in runs if not saved_steps(run / "checkpoints")]
    if lacking and len(lacking) == len(runs):
        raise UserError(f"{lacking[0]}: has no checkpoint to sample from; train it first, or restore its checkpoints/")
    for run in lacking:
        print(f"note: {run} has no checkpoint, and is left out", file=sys.stderr)
    return [run for run in runs if run not in lacking]


def _weights(name: str) -> Any:
    if name not in ("ema", "raw"):
        raise UserError(f"--weights: {name!r} is not one of ema, raw")
    return name


@contextmanager
def _progress(name: str, pictures: int) -> Iterator[Callable[[int], None]]:
    """A bar of pictures with the time left on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("pictures")]
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=pictures)
        yield lambda done: bar.update(task, advance=done)
