"""What can be scored: a run, a pipeline of diffusers, or a folder of anyone's pictures; each draws what is asked of it.

A system's scores are in the evals.jsonl of its directory, and what judges said of its pictures beside it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sd3_jax import records
from sd3_jax.errors import UserError
from sd3_jax.evaluate import write_scores
from sd3_jax.evaluation import conditioning, generate, pipelines, prompts
from sd3_jax.evaluation.generate import Report, Sampler
from sd3_jax.evaluation.prompts import Prompt


class System(NamedTuple):
    """Something that has pictures of prompts, or draws them."""

    name: str
    path: Path
    out: Path  # its scores, and what judges said, are here
    setting: Mapping[str, Any]  # how its pictures come to be, as fields of rows
    pictures: Callable[[Sequence[Prompt], Report], Path]  # draws what is missing; the folder that holds them
    draws: bool  # any prompt; else its pictures are those that are there
    own: Callable[[int], list[Prompt]] | None = None  # at most so many prompts that it brings along
    real: Path | None = None  # true pictures that it brings along


def find(path: Path, sampler: Sampler, step: int | None = None, out: Path | None = None) -> System:
    """The system that a path holds. ``out``: where its scores go, unless beside it; ``step``: of a run's checkpoint.

    Raises UserError for a path that holds none, and for a run of scenes, which know their own words alone.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such directory; expected a run, a pipeline of diffusers or a folder of pictures")
    if out is not None:
        _holds_no_other(out, path)
    if pipelines.is_pipeline(path):
        found = _pipeline(path, sampler, out or path)
    elif (path / "config.json").is_file():
        found = _run(path, sampler, step, out or path)
    else:
        found = System(path.resolve().name, path, out or path, {}, lambda asked, report: path, draws=False)
    return found._replace(setting={**found.setting, "target": str(path.resolve())}) if out is not None else found


def _holds_no_other(out: Path, path: Path) -> None:
    """Raises UserError if the scores in ``out`` are of another target: a directory's scores are of one system."""
    known = records.read_scores(out / records.SCORES)[0]
    others = {row["target"] for row in known if "target" in row} - {str(path.resolve())}
    if others:
        raise UserError(f"--out {out}: has the scores of {min(others)}; name another directory for those of {path}")


def _run(run_dir: Path, sampler: Sampler, step: int | None, out: Path) -> System:
    config = records.load_config(run_dir)
    if config.data.source != "encoded":
        raise UserError(f"{run_dir}: was trained on scenes, and reads no other words")
    at = generate.steps_saved(run_dir)[-1] if step is None else step

    def pictures(asked: Sequence[Prompt], report: Report) -> Path:
        folder = run_dir / "samples" / generate.folder_name(at, sampler, asked)
        return generate.sample(run_dir, at, asked, sampler, folder, report=report)

    def own(count: int) -> list[Prompt]:
        return conditioning.held_out_prompts(conditioning.held_out(config, run_dir), count, fewer=True)

    name, said, real = run_dir.resolve().name, {"step": at, **sampler.settings}, conditioning.held_out(config, run_dir)
    return System(name, run_dir, out, said, pictures, draws=True, own=own, real=real.folder)


def _pipeline(folder: Path, sampler: Sampler, out: Path) -> System:
    usual = Sampler(sampler.steps, sampler.guidance, seed=sampler.seed, without=sampler.without)
    if sampler != usual:
        raise UserError(f"{folder}: a pipeline has its own scheduler: shift, method, grid and weights are of runs")
    said = pipelines.settings(folder, sampler.steps, sampler.guidance, sampler.seed, sampler.without)
    without = "".join(f"-no-{name}" for name in sampler.without)
    name = f"{said['model'][:8]}-{sampler.steps}-cfg{sampler.guidance:g}{without}-seed{sampler.seed}"

    def pictures(asked: Sequence[Prompt], report: Report) -> Path:
        where = out / "samples" / f"{name}-{prompts.fingerprint(asked)}"
        return pipelines.sample(folder, said, asked, where, report)

    return System(folder.resolve().name, folder, out, said, pictures, draws=True)


def write(system: System, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put rows into the system's scores, in place of older ones of the same setting; they are returned as written."""
    written = [{**system.setting, **row} for row in rows]
    system.out.mkdir(parents=True, exist_ok=True)
    write_scores(system.out, written, whole=True)
    return [{"run": system.name, **row} for row in written]


def given(assignments: Sequence[str]) -> dict[str, Path]:
    """``NAME=FOLDER`` of judges' weights. Raises UserError for anything else, a name given twice, or no folder."""
    found: dict[str, Path] = {}
    for text in assignments:
        match = re.fullmatch(r"([a-z0-9-]+)=(.+)", text)
        if not match:
            raise UserError(f"--scorer {text}: is not NAME=FOLDER, such as pickscore=weights/PickScore_v1")
        if match[1] in found:
            raise UserError(f"--scorer {text}: {match[1]} is given twice")
        found[match[1]] = Path(match[2])
    return found
