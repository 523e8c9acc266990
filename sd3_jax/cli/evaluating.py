"""Score runs and pictures."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sd3_jax import bucket, overlays, platform, records, terminal
from sd3_jax.cli import scoring
from sd3_jax.cli.learning import due_steps, show_losses, show_memorised
from sd3_jax.cli.options import JsonOption, SetOption, WorkersOption
from sd3_jax.cli.pictures import (
    GridOption,
    GuidanceOption,
    MethodOption,
    PromptsOption,
    SeedOption,
    ShiftOption,
    StepsOption,
    WeightsOption,
    WithoutOption,
    checked_weights,
    progress,
)
from sd3_jax.cli.voting import named
from sd3_jax.errors import UserError
from sd3_jax.experiments import load_experiment


def evaluate(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="TARGET...",
            help="Runs, directories of runs, folders of pictures; with --suite also pipelines of diffusers.",
        ),
    ],
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Of geneval, compbench, preference, fidelity, typography, with commas between."
        ),
    ] = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="A suite's judge and its weights, as pickscore=FOLDER. Repeatable."),
    ] = None,
    prompts: PromptsOption = None,
    images: Annotated[int | None, typer.Option(min=1, help="Pictures of each prompt of a suite; 4 if drawn.")] = None,
    compbench: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A copy of T2I-CompBench's examples/dataset, its prompts.")
    ] = None,
    real: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="True pictures, or a prepared set, for suite fidelity.")
    ] = None,
    features: Annotated[
        list[str] | None, typer.Option(metavar="SPEC", help="For suite fidelity, as sd3-jax distance has them.")
    ] = None,
    without: WithoutOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where a suite's scores go, unless beside its only target.")
    ] = None,
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
    evals.jsonl, or to one in a folder of pictures. Nothing is drawn or judged twice.

    With --suite: by the protocols of the field, for any system; those of scenes by exact judges that need no weights.

    Example: sd3-jax evaluate runs/figure8_cpu

    Example: sd3-jax evaluate runs/table1_cpu --protocol table1

    Example: sd3-jax evaluate runs/cc12m pictures/sdxl --suite geneval --scorer mask2former=M --scorer clip=C

    Example: sd3-jax evaluate runs/cc12m --validation-loss data/coco --levels round-robin
    """
    platform.prepare()
    from sd3_jax.evaluate import Request
    from sd3_jax.evaluation.generate import Sampler

    parts = tuple(sorted(without or ()))
    sampler = Sampler(sampler_steps, guidance, shift, checked_weights(weights), seed, method, grid, parts)
    request = Request(images_per_task, prompt_seed, sampler)
    of_suites = {
        "--scorer": scorer, "--prompts": prompts, "--images": images, "--compbench": compbench, "--real": real,
        "--features": features, "--out": out,
    }  # fmt: skip
    if suite is None and (given := [name for name, value in of_suites.items() if value]):
        raise UserError(f"{given[0]}: is of suites; say which with --suite")
    asked = None
    rows: list[dict[str, Any]] = []
    if suite is not None:
        from sd3_jax import scoring as story

        suites = story.parse(suite)
        own = 6 * images_per_task
        asked = story.Asked(suites, scorer or (), prompts, images, compbench, real, features or ("scene",), own)
        others, paths = scoring.split(paths, experiment)
        found = story.systems_of(named(list(map(str, others))), sampler, step, out)
        rows = story.score(found, asked, reference, progress) if found else []
    shown = scoring.table(rows) if rows else []
    if paths:
        runs, folders = _sort(paths)
        if validation_loss is not None:
            show_losses(runs, folders, validation_loss, levels, sampler.weights, step, json_file)
            return
        if memorised:
            show_memorised(runs, step, sampler, images_per_task, json_file)
            return
        judged = [row for folder in folders for row in _evaluate_folder(folder, experiment, set_, images_per_task)]
        if runs:
            compared = with_preference and (asked is None or "preference" in asked.suites)
            judged += _evaluate_runs(runs, request, step, reference, compared, workers, protocol)
        judged = judged if asked is None else scoring.of_scenes(judged, asked.suites)
        rows, shown = [*rows, *judged], [*shown, *terminal.score_tables(judged)]
    terminal.show(shown, rows, json_file)
    partial = next((row["partial"] for row in rows if row.get("partial")), None)
    if partial:
        raise UserError(f"{partial}: the scores are of the other pictures, and marked as partial")


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
    due = due_steps(runs, steps, whom)
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
        for row in records.read_scores(run / records.SCORES)[0]
        if row.get("step") in own and any(evaluation.is_drawn_so(row, one) for one in asked[run])
        if row.get("reference") in (None, label)
    ]


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
    without = [part for name in sampler.without for part in ("--without", name)]
    return [*(str(part) for pair in named.items() for part in pair), *without]


def _evaluate_folder(
    folder: Path, experiment: str | None, set_: list[str] | None, images_per_task: int
) -> list[dict[str, Any]]:
    from sd3_jax import evaluate as evaluation
    from sd3_jax.evaluation import judged, truth

    if experiment is not None:
        config = overlays.resolve({"steps": 1}, load_experiment(experiment), overlays.parse_assignments(set_ or []))
        data = config.data
    else:
        data = judged.data_of(folder)
    found = judged.judge_folder(folder, data)
    rows = judged.score_rows(found, truth.ceilings(data, None, images_per_task), {})
    rows += judged.distance_rows(found.pictures, data, None, {})
    evaluation.write_scores(folder, rows)
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
