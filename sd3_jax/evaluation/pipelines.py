"""Pictures of a diffusers pipeline in a local folder, in the layout that runs' pictures have (extra ``encoders``).

The noise of a picture is a function of (seed, prompt, index), drawn on the CPU: whatever else is drawn, in whatever
batches, on whatever device, it starts from the same. Nothing of the folder is run, and weights are safetensors alone.
"""

import inspect
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from sd3_jax.data import pretrained
from sd3_jax.errors import UserError
from sd3_jax.evaluation import folders, generate, weights
from sd3_jax.evaluation import prompts as asked
from sd3_jax.evaluation.generate import Job, Report
from sd3_jax.evaluation.prompts import Prompt

INDEX = "model_index.json"
BATCH = 4  # pictures at once


def is_pipeline(folder: Path) -> bool:
    """Whether a folder is a pipeline of diffusers."""
    return (folder / INDEX).is_file()


def settings(folder: Path, steps: int, guidance: float, seed: int, without: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of rows of scores that say how a pipeline's pictures came to be.

    Raises UserError for a folder that is none, or one without weights as safetensors.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        name = index["_class_name"]
        scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
        sampler = scheduler["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        name = sampler = None
    if not isinstance(name, str) or not isinstance(sampler, str):
        raise UserError(f"{folder}: is no pipeline of diffusers with a scheduler ({INDEX}, scheduler/)")
    parts = [folder / part for part in sorted(index) if (folder / part).is_dir()]
    if not any(any(part.glob("*.safetensors")) for part in parts):
        raise UserError(f"{folder}: has no weights as .safetensors; a pickle (.bin, .pt, .pth) is not read, convert it")
    if unknown := [one for one in without if one != "t5"]:
        raise UserError(f"without {unknown[0]}: of a pipeline t5 alone can be left out")
    if without and "text_encoder_3" not in index:
        raise UserError(f"{folder}: without t5: {name} has no T5 that it can do without, as SD3's text_encoder_3 is")
    return {
        "pipeline": name,
        "model": pretrained.digest([folder / INDEX, *(file for part in parts for file in weights.settling(part))]),
        "sampler": sampler,
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
        **({"without": list(without)} if without else {}),
    }


def drawn(pictures: Path) -> dict[str, Any] | None:
    """The fields of rows of scores that say how a folder's pictures came to be, where a pipeline drew them."""
    try:
        said = json.loads((pictures / "settings.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or not isinstance(said.get("pipeline"), str):
        return None
    setting = {key: value for key, value in said.items() if key not in ("prompts", "images")}
    return setting | {"prompt_list": said.get("prompts")}


def sample(
    folder: Path,
    said: dict[str, Any],
    prompts: Sequence[Prompt],
    out: Path,
    report: Report = lambda pictures: None,
) -> Path:
    """Draw what is not there yet of these prompts' pictures into ``out``, as ``said`` (:func:`settings`) has it.

    Raises UserError for a folder that diffusers cannot read, and where ``out`` holds pictures drawn otherwise.
    """
    jobs = generate.missing(out, prompts)
    draw: Any = _load(folder, said) if jobs else None
    number = sum(prompt.images for prompt in prompts)
    generate.open_folder(out, said | {"prompts": asked.fingerprint(prompts), "images": number}, prompts)
    report(number - len(jobs))
    for chunk in (jobs[i : i + BATCH] for i in range(0, len(jobs), BATCH)):
        for job, image in zip(chunk, draw(chunk), strict=True):
            folders.write_png(folders.image_path(out, job.folder, job.number), image)
        report(len(chunk))
    generate.write_grids(out, prompts, jobs)
    return out


def _load(folder: Path, said: dict[str, Any]) -> Any:
    torch, _ = weights.torch_and_transformers("a pipeline of diffusers")
    try:
        import diffusers
    except ImportError:
        raise UserError(f"{folder}: needs diffusers: pip install 'sd3_jax[encoders]'") from None
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    left_out = dict.fromkeys(("text_encoder_3", "tokenizer_3")) if said.get("without") else {}
    pipe = weights.read(diffusers.DiffusionPipeline, folder, use_safetensors=True, torch_dtype=dtype, **left_out).to(
        device
    )
    pipe.set_progress_bar_config(disable=True)
    lacking = {"num_inference_steps", "guidance_scale", "generator"} - {*inspect.signature(pipe.__call__).parameters}
    if lacking:
        raise UserError(f"{folder}: {type(pipe).__name__} draws no pictures of texts alone (no {min(lacking)})")

    def draw(jobs: Sequence[Job]) -> UInt8[np.ndarray, "b H W 3"]:
        names = [f"{said['seed']}\0{job.prompt.text}\0{job.number}" for job in jobs]
        noise = [torch.Generator("cpu").manual_seed(zlib.crc32(name.encode())) for name in names]
        with torch.inference_mode():
            given = pipe(
                prompt=[job.prompt.text for job in jobs],
                num_inference_steps=said["steps"],
                guidance_scale=said["guidance"],
                generator=noise,
                output_type="np",
            )
        return np.round(np.clip(given.images, 0, 1) * 255).astype(np.uint8)

    return draw
