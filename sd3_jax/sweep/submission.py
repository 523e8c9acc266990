"""What a submission is: a sweep, the one command that every worker runs, and where workers come from."""

import dataclasses
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sd3_jax import bucket, hardware, records
from sd3_jax.errors import UserError
from sd3_jax.experiments import find_sweep
from sd3_jax.hardware import Hardware
from sd3_jax.overlays import read_yaml
from sd3_jax.sweep import spec

LAUNCHERS = ("local", "slurm", "jobset", "tpu-vm")
# Exit statuses of a worker. 0: every cell is done. 1: a cell failed. 2: bad input. Those that ask for another start:
AFTER_PREEMPTION = 42
LOST_LEASE = 75
RESTARTS = (AFTER_PREEMPTION, LOST_LEASE)
SWEEP_MOUNT = "/sweep"  # where a container finds the files of a sweep that its image does not have
_OF = {  # options that only some launchers know
    **dict.fromkeys(("nodes", "gpus", "cpus", "time", "partition", "account", "qos", "sbatch"), ("slurm",)),
    **dict.fromkeys(("image", "volume", "spot"), ("jobset", "tpu-vm")),
    **dict.fromkeys(("project", "zone"), ("tpu-vm",)),
    "queue": ("jobset",),
    "hardware": ("slurm", "jobset", "tpu-vm"),
}


@dataclass(frozen=True)
class Submission:
    """What the user asked for; what was not said is None, empty or False."""

    file: str  # a path, or the name of a shipped sweep
    launcher: str = "local"
    runs: Path | None = None
    count: int = 1  # workers
    workers: int | None = None  # cells at once in each
    restarts: int = 20
    hardware: str | None = None
    nodes: int | None = None
    gpus: int | None = None
    cpus: int | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    sbatch: tuple[str, ...] = ()
    image: str | None = None
    volume: str | None = None
    spot: bool = False
    queue: str | None = None
    project: str | None = None
    zone: str | None = None


def check(submission: Submission) -> None:
    """Raise UserError for an unknown launcher, options of another one, a bad sweep, and runs that hold another."""
    if submission.launcher not in LAUNCHERS:
        raise UserError(f"--launcher: {submission.launcher!r} is not one of {', '.join(LAUNCHERS)}")
    for field in dataclasses.fields(submission):
        given = getattr(submission, field.name) != field.default
        if given and submission.launcher not in _OF.get(field.name, LAUNCHERS):
            wanted = " or ".join(_OF[field.name])
            raise UserError(f"--{field.name}: is for --launcher {wanted}, not for {submission.launcher}")
    cells = spec.load(find_sweep(submission.file))
    if submission.count > len(cells):
        raise UserError(f"--count: {submission.count} workers have nothing to share: the sweep has {len(cells)} cells")
    if submission.launcher in ("local", "slurm"):
        for cell in cells:
            records.check_run(runs_dir(submission) / cell.name, cell.config)


def tpu(submission: Submission) -> Hardware:
    """The TPU slice of one worker. Raises UserError where none or no TPU is named."""
    if submission.hardware is None:
        raise UserError(f"--hardware: is missing; --launcher {submission.launcher} wants a slice, such as v5p-128")
    found = hardware.find(submission.hardware)
    if not found.topology:
        raise UserError(f"--hardware: {found.name} is no TPU; --launcher {submission.launcher} wants one: v5p-128")
    return found


def image(submission: Submission) -> str:
    """The container image. Raises UserError where it is missing or no image's name."""
    if not submission.image:
        raise UserError("--image: is missing; name a container image that has sd3-jax and jax[tpu] installed")
    if not re.fullmatch(r"[\w.\-/:@]+", submission.image):
        raise UserError(f"--image: {submission.image!r} is not the name of an image, such as registry/project/sd3:1")
    return submission.image


def stem(submission: Submission) -> str:
    """The name of the sweep: its file's, without the suffix."""
    return find_sweep(submission.file).stem


def names(submission: Submission) -> list[str]:
    """One name for each worker, of the sweep's: what Kubernetes and Google Cloud take as one (RFC 1123, short)."""
    plain = re.sub("[^a-z0-9]+", "-", stem(submission).lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"sweep-{plain}".strip("-")
    # A pod's name adds up to 18 characters, and may have 63.
    return [f"{plain[:36].strip('-')}-{worker}" for worker in range(submission.count)]


def runs_dir(submission: Submission) -> Path:
    """Where the runs are kept, absolute: here, or for a container the path inside it.

    Raises UserError for a path in a container that is relative or has no directory of its own to be mounted.
    """
    if submission.launcher in ("local", "slurm"):
        return (submission.runs or Path("runs") / stem(submission)).absolute()
    path = submission.runs or Path("/runs") / stem(submission)
    if not path.is_absolute() or len(path.parts) < 3 or ".." in path.parts:
        raise UserError(f"--runs: {str(path)!r} is not a path inside the container, such as /runs/{stem(submission)}")
    return path


def command(submission: Submission, cells: str | None = None) -> list[str]:
    """The command of a worker, safe to run any number of times. ``cells``: its part where no directory is shared."""
    path = find_sweep(submission.file)
    if submission.launcher in ("local", "slurm"):
        start, file = [sys.executable, "-m", "sd3_jax.cli"], str(path.absolute())
    else:
        carried = files(submission)
        start, file = ["sd3-jax"], f"{SWEEP_MOUNT}/{carried[0].name}" if carried else path.stem
    at_once = ["--workers", str(submission.workers)] if submission.workers is not None else []
    part = ["--cells", cells] if cells else []
    return [*start, "sweep", "run", file, "--runs", str(runs_dir(submission)), *at_once, *part]


def has_bucket(submission: Submission) -> bool:
    """Whether every cell keeps its checkpoints and records in a bucket, so that no directory need be shared."""
    return all(bucket.is_bucket(cell.config.checkpoint_root) for cell in spec.load(find_sweep(submission.file)))


def parts(submission: Submission, shared: bool) -> list[str | None]:
    """What each worker is told of the cells: nothing where all share a directory, else its part, ``1/4`` to ``4/4``."""
    if shared or submission.count == 1:
        return [None] * submission.count
    return [f"{worker}/{submission.count}" for worker in range(1, submission.count + 1)]


def files(submission: Submission) -> Sequence[Path]:
    """What a container needs beside its image: the sweep's YAML and its experiment, or nothing if both are shipped.

    Raises UserError for an experiment that is not in the directory of the YAML: it is found by its relative path.
    """
    path = find_sweep(submission.file)
    if not Path(submission.file).is_file():
        return []
    experiment = str(read_yaml(path.read_text(encoding="utf-8"), str(path))["experiment"])
    if Path(experiment).suffix not in (".py", ".json"):
        return [path]
    if Path(experiment).name != experiment:
        raise UserError(f"{path}: experiment: {experiment!r} does not go along to the workers: put it beside the YAML")
    return [path, path.parent / experiment]
