"""From a run's checkpoint to pictures on disk, in the layout that GenEval's evaluator reads.

::

    OUT/settings.json              what drew them: run, step, sampler, weights, seed, data
    OUT/00000/metadata.jsonl       the prompt, one JSON object
    OUT/00000/samples/0000.png     its pictures
    OUT/00000/grid.png             all of them on one sheet

The noise of a picture is a function of (seed, prompt, index): whatever else is drawn, in whatever batches, on
whatever mesh, a prompt's picture starts from the same noise, in every run. Pictures are written whole or not at all,
and those that are there are not drawn again.
"""

import dataclasses
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Shaped, UInt32

from sd3_jax import bucket, records
from sd3_jax.checks import size_problem
from sd3_jax.config import RunConfig, fingerprint, scene_fields
from sd3_jax.data import scenes
from sd3_jax.errors import UserError
from sd3_jax.evaluation import conditioning, folders
from sd3_jax.evaluation import prompts as asked
from sd3_jax.evaluation.conditioning import Conditioning
from sd3_jax.evaluation.prompts import Prompt
from sd3_jax.flops import total_steps
from sd3_jax.flow import objectives, samplers
from sd3_jax.training import checkpoint, sharding
from sd3_jax.training.step import make_init, make_model

Report = Callable[[int], None]  # how many pictures more are done
BATCH = 128  # pictures at once, unless told


@dataclass(frozen=True)
class Sampler:
    """How pictures are drawn from a velocity: a method over a shifted grid of times, guided."""

    steps: int = 25
    guidance: float = 3.0  # 1: none
    shift: float = 1.0  # resolution shift of the grid of times
    weights: Literal["ema", "raw"] = "ema"
    seed: int = 0
    method: str = "euler"  # of samplers.METHODS
    grid: str = "uniform"  # of samplers.GRIDS
    without: tuple[str, ...] = ()  # text encoders whose output is zero (the paper's figure 9: without T5)

    @property
    def settings(self) -> dict[str, Any]:
        """The fields as rows of scores have them; the youngest only where they are not as usual."""
        fields = {"sampler": self.method, **dataclasses.asdict(self)}
        del fields["method"]
        fields["without"] = list(self.without)
        return {
            key: value for key, value in fields.items() if (key, value) not in (("grid", "uniform"), ("without", []))
        }

    def __post_init__(self) -> None:
        for name, low, high in (("steps", 1, 1000), ("guidance", 0, 100), ("shift", 0.01, 100), ("seed", 0, 2**32 - 1)):
            value = getattr(self, name)
            if not low <= value <= high:
                label = {"steps": "sampler steps", "seed": "noise seed"}.get(name, name)
                raise UserError(f"{label}: {value} is out of range; valid: {low:,} to {high:,}")
        choices = {"weights": ("ema", "raw"), "method": tuple(samplers.METHODS), "grid": tuple(samplers.GRIDS)}
        for name, valid in choices.items():
            if getattr(self, name) not in valid:
                raise UserError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(valid)}")

    @property
    def name(self) -> str:
        """What tells samplers apart, as part of a file name."""
        shift = f"-shift{self.shift:g}" if self.shift != 1 else ""
        grid = f"-{self.grid}" if self.grid != "uniform" else ""
        without = "".join(f"-no-{name}" for name in self.without)
        return f"{self.weights}-{self.method}{self.steps}{grid}-cfg{self.guidance:g}{shift}{without}-seed{self.seed}"


class Drawn(NamedTuple):
    """Pictures (or latents, of a set whose autoencoder runs elsewhere), and how far each went from noise (Table 6)."""

    images: Shaped[Array, "b ..."]
    length: Float[Array, " b"]


class Job(NamedTuple):
    """One picture to be drawn."""

    folder: int  # index of its prompt
    number: int  # of the picture among those of its prompt
    prompt: Prompt


def steps_saved(run_dir: Path) -> list[int]:
    """The steps that can be sampled, ascending. Raises UserError if there is none."""
    found = checkpoint.saved_steps(bucket.checkpoints(run_dir, records.load_config(run_dir)))
    if not found:
        raise UserError(f"{run_dir}: has no checkpoint to sample from; train it first, or restore its checkpoints/")
    return found


def folder_name(step: int, sampler: Sampler, prompts: Sequence[Prompt], size: scenes.Size | None = None) -> str:
    """Where a run keeps these pictures, under its ``samples/``."""
    of_size = f"-{size[0]}x{size[1]}" if size else ""
    return f"{step:07d}-{sampler.name}{of_size}-{asked.fingerprint(prompts)}"


def check_size(config: RunConfig, size: scenes.Size) -> scenes.Size | None:
    """``size`` (height, width), or None where it is the run's own square. Raises UserError if it cannot be drawn."""
    if problem := size_problem(config.model, config.data, *size):
        raise UserError(f"size: {size[0]}x{size[1]}: {problem}")
    return None if size == (config.data.image_size, config.data.image_size) else size


def make_draw(
    config: RunConfig,
    mesh: Mesh,
    sampler: Sampler,
    size: scenes.Size | None = None,
    said: Conditioning | None = None,
) -> Any:
    """``draw(params, given [b ...], prompt [b], index [b]) -> Drawn``, jitted, on every process whole.

    ``given`` is what ``said`` (of a configuration of scenes, unless told) makes of prompts, and ``prompt`` a number
    that stands for the prompt's text. ``size``: in pixels; else square, as in validation.
    """
    said = said or conditioning.of_run(config, None, sampler.without)
    model, data = make_model(config.model, config.mesh), config.data
    height, width = (side // data.downsample for side in size or (data.image_size, data.image_size))
    shape = (height, width, config.model.latent_channels)
    grid = samplers.GRIDS[sampler.grid](sampler.steps, sampler.shift, config.flow)
    first, _ = samplers.span(config.flow)

    def velocity_given(params: Any, *text: Any) -> objectives.Velocity:
        return objectives.velocity_of(lambda z, t: model.apply({"params": params}, z, t, *text), config.flow)

    def draw(params: Any, given: Any, prompt: UInt32[Array, " b"], index: Int[Array, " b"]) -> Drawn:
        key = jax.vmap(lambda p, i: scenes.example_key(sampler.seed, scenes.EVALUATION, p, i))(prompt, index)
        noise = jax.vmap(lambda k: jax.random.normal(k, shape))(key)
        caption, nothing = said.text(given), scenes.unconditional(config.model, len(prompt))
        conditional, unconditional = (velocity_given(params, *text) for text in (caption, nothing))
        velocity = samplers.guided(conditional, unconditional, sampler.guidance)
        latents, length = samplers.integrate(velocity, samplers.begin(noise, first), grid, sampler.method)
        return Drawn(said.picture(latents), length)

    batch, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    return jax.jit(draw, in_shardings=(None, batch, batch, batch), out_shardings=whole)


def load_weights(run_dir: Path, config: RunConfig, mesh: Mesh, step: int, weights: str) -> Any:
    """The raw or averaged parameters of a checkpoint, sharded over the mesh; nothing else is read."""
    shapes = jax.eval_shape(make_init(config, total_steps(config)), jax.ShapeDtypeStruct((), jnp.uint32))
    name = "params" if weights == "raw" else "ema"
    shardings = sharding.state_shardings(mesh, shapes)
    return checkpoint.restore_weights(bucket.checkpoints(run_dir, config), step, name, shapes, shardings)


def sample(
    run_dir: Path,
    step: int,
    prompts: Sequence[Prompt],
    sampler: Sampler,
    out: Path,
    batch: int = BATCH,
    report: Report = lambda pictures: None,
    draw: Any = None,
    size: scenes.Size | None = None,
    said: Conditioning | None = None,
) -> Path:
    """Draw what is not there yet of these prompts' pictures into ``out``, and return it.

    ``draw``: the function of :func:`make_draw`, where several checkpoints of a run share it, and ``said`` what it was
    made with. ``size``: height and width in pixels, as :func:`check_size` gives it.

    ``report`` is told of the pictures that are there, then of each batch. Raises UserError for a checkpoint that is
    not there, and where ``out`` holds pictures drawn otherwise.
    """
    config = records.load_config(run_dir)
    saved = steps_saved(run_dir)
    if step not in saved:
        raise UserError(f"{run_dir}: has no checkpoint of step {step}; there are {', '.join(map(str, saved))}")
    jobs = missing(out, prompts)
    if jobs:  # before anything is written: an encoder may not be there
        said = said or conditioning.of_run(config, run_dir, sampler.without)
    open_folder(out, _settings(config, step, sampler, prompts, size), prompts)
    report(sum(prompt.images for prompt in prompts) - len(jobs))
    if jobs and said:
        draw = draw or make_draw(config, sharding.make_mesh(config.mesh, config.batch), sampler, size, said)
        _draw_jobs(run_dir, config, step, jobs, sampler, out, batch, report, draw, said)
    if jax.process_index() == 0:
        write_grids(out, prompts, jobs)
    return out


def _draw_jobs(
    run_dir: Path,
    config: RunConfig,
    step: int,
    jobs: Sequence[Job],
    sampler: Sampler,
    out: Path,
    batch: int,
    report: Report,
    draw: Any,
    said: Conditioning,
) -> None:
    mesh = sharding.make_mesh(config.mesh, config.batch)
    params = load_weights(run_dir, config, mesh, step, sampler.weights)
    size = -(-min(batch, len(jobs)) // mesh.size) * mesh.size
    for chunk in (jobs[i : i + size] for i in range(0, len(jobs), size)):
        padded = [*chunk, *[chunk[-1]] * (size - len(chunk))]
        numbers = np.array([zlib.crc32(job.prompt.text.encode()) for job in padded], np.uint32)
        given = said.given([job.prompt for job in padded])
        drawn = draw(params, given, numbers, np.array([job.number for job in padded]))
        if jax.process_index() == 0:
            images = said.finish(np.asarray(drawn.images))
            for job, image, length in zip(chunk, images, np.asarray(drawn.length), strict=False):
                folders.write_png(folders.image_path(out, job.folder, job.number), image, float(length))
        report(len(chunk))


def _settings(
    config: RunConfig, step: int, sampler: Sampler, prompts: Sequence[Prompt], size: scenes.Size | None
) -> dict[str, Any]:
    return {
        "identity": fingerprint(config),  # of the run, whatever its directory is called
        "step": step,
        **sampler.settings,
        "prompts": asked.fingerprint(prompts),
        "images": sum(prompt.images for prompt in prompts),
        "size": list(size) if size else None,  # of the pictures, height and width; None: data.image_size squared
        "data": scene_fields(config.data),
    }


def open_folder(out: Path, settings: dict[str, Any], prompts: Sequence[Prompt]) -> None:
    """Make the folders, or check that the pictures that are there were drawn in the same way: as ``settings`` say.

    Raises UserError if they were not, and for a folder that holds something else.
    """
    path = out / "settings.json"
    if path.exists():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            old = None
        old = old if isinstance(old, dict) else {}
        changes = [f"{key}: {old.get(key)} -> {new}" for key, new in settings.items() if old.get(key) != new]
        if changes:
            raise UserError(f"{out}: holds pictures drawn otherwise ({'; '.join(changes)}): draw elsewhere")
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty and holds no settings.json: draw elsewhere")
    if jax.process_index() == 0:
        records.write_atomic(path, json.dumps(settings, indent=1) + "\n")
        for number, prompt in enumerate(prompts):
            folder = out / f"{number:05d}"
            (folder / "samples").mkdir(parents=True, exist_ok=True)
            metadata = folder / "metadata.jsonl"
            if not metadata.exists():
                records.write_atomic(metadata, json.dumps(prompt.metadata) + "\n")


def missing(out: Path, prompts: Sequence[Prompt]) -> list[Job]:
    """The pictures that are not there, or cannot be read."""
    return [
        Job(folder, index, prompt)
        for folder, prompt in enumerate(prompts)
        for index in range(prompt.images)
        if not _is_picture(folders.image_path(out, folder, index))
    ]


def _is_picture(path: Path) -> bool:
    """Whether a picture is there and can be read: one that cannot is drawn again."""
    try:
        folders.read_png(path)
    except UserError:
        return False
    return True


def write_grids(out: Path, prompts: Sequence[Prompt], new: Sequence[Job]) -> None:
    """All pictures of each prompt on one sheet, where there are new ones, or there is no sheet."""
    drawn = {job.folder for job in new}
    for folder, prompt in enumerate(prompts):
        path = out / f"{folder:05d}" / "grid.png"
        if folder in drawn or not path.exists():
            images = [folders.read_png(folders.image_path(out, folder, i)).image for i in range(prompt.images)]
            folders.write_png(path, folders.tile(np.stack(images), columns=4))
