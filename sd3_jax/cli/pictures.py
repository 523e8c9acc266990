"""Draw pictures with runs."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sd3_jax import platform, records
from sd3_jax.errors import UserError

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
WithoutOption = Annotated[
    list[str] | None, typer.Option("--without", metavar="NAME", help="A text encoder to do without, such as t5.")
]
PromptsOption = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="A caption a line, GenEval's .jsonl or PartiPrompts' .tsv; geneval: its 553; else scenes' own, or those "
        "held out.",
    ),
]
BatchOption = Annotated[int, typer.Option(min=1, help="Pictures at once.")]


def sample(
    run: RunArgument,
    prompts: PromptsOption = None,
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
    without: WithoutOption = None,
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
    sampler = generate.Sampler(sampler_steps, guidance, shift, checked_weights(weights), seed, method, grid, parts)
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


def _size(text: str) -> tuple[int, int]:
    sides = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not sides:
        raise UserError(f"--size: {text!r} is not a height and a width in pixels, such as 48x80")
    return int(sides[1]), int(sides[2])


def checked_weights(name: str) -> Any:
    """``ema`` or ``raw``. Raises UserError for another name."""
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
