"""Submit a sweep to wherever there are machines."""

from pathlib import Path
from typing import Annotated

import typer

from sd3_jax.cli.options import RunsOption, SweepArgument

_SLURM, _CLOUD = "slurm", "jobset and tpu-vm"


def submit(
    file: SweepArgument,
    launcher: Annotated[str, typer.Option(help="local, slurm, jobset or tpu-vm.")] = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be submitted, and do nothing.")] = False,
    runs: RunsOption = None,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Workers, which share the cells.")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Cells at once in each worker, as sweep run has it.")
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of one worker: h100x8, v5p-128, v6e-16, ...")
    ] = None,
    restarts: Annotated[
        int, typer.Option(min=0, metavar="N", help="Starts after the first; on Slurm time limits alone count.")
    ] = 20,
    time: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Limit, as Slurm writes it; 24 h unless given.", rich_help_panel=_SLURM),
    ] = None,
    partition: Annotated[str | None, typer.Option(rich_help_panel=_SLURM)] = None,
    account: Annotated[str | None, typer.Option(rich_help_panel=_SLURM)] = None,
    qos: Annotated[str | None, typer.Option(rich_help_panel=_SLURM)] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Of one worker.", rich_help_panel=_SLURM)] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Of one node.", rich_help_panel=_SLURM)] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="Of one node.", rich_help_panel=_SLURM)] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Any other, such as mem=64G. Repeatable.", rich_help_panel=_SLURM),
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Of a container with sd3-jax and JAX for TPUs.", rich_help_panel=_CLOUD)
    ] = None,
    volume: Annotated[
        str | None,
        typer.Option(help="For the runs: a PersistentVolumeClaim, or NFS's HOST:/PATH.", rich_help_panel=_CLOUD),
    ] = None,
    spot: Annotated[bool, typer.Option("--spot", help="Preemptible capacity.", rich_help_panel=_CLOUD)] = False,
    queue: Annotated[str | None, typer.Option(help="Kueue's local queue.", rich_help_panel="jobset")] = None,
    project: Annotated[str | None, typer.Option(rich_help_panel="tpu-vm")] = None,
    zone: Annotated[str | None, typer.Option(rich_help_panel="tpu-vm")] = None,
) -> None:
    """Start workers that run a sweep: here, on Slurm, on Kubernetes or on Cloud TPU VMs.

    Each worker runs `sd3-jax sweep run`, which is safe to repeat. docs/slurm.md and docs/tpu-pod.md show the way.

    Example: sd3-jax sweep submit figure8_gpu --launcher slurm --hardware h100x8 --partition gpu --dry-run
    """
    from sd3_jax.sweep import launch
    from sd3_jax.sweep.submission import Submission

    submission = Submission(
        file=file,
        launcher=launcher,
        runs=Path(runs) if runs is not None else None,
        count=count,
        workers=workers,
        restarts=restarts,
        hardware=hardware,
        nodes=nodes,
        gpus=gpus,
        cpus=cpus,
        time=time,
        partition=partition,
        account=account,
        qos=qos,
        sbatch=tuple(sbatch or ()),
        image=image,
        volume=volume,
        spot=spot,
        queue=queue,
        project=project,
        zone=zone,
    )
    if dry_run:
        print(launch.preview(submission), end="")
    else:
        print(launch.submit(submission))
