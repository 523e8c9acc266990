"""Workers on Cloud TPU VMs: a queued resource each, then the same command on all of its hosts, as one shell script.

The script may be run again: what has been requested is not requested twice, and a worker that runs is left alone.
"""

import re
import shlex
import shutil
import subprocess

from sd3_jax.errors import RunFailed, UserError
from sd3_jax.hardware import Hardware
from sd3_jax.sweep.submission import (
    SWEEP_MOUNT,
    Submission,
    command,
    files,
    has_bucket,
    image,
    names,
    parts,
    runs_dir,
    tpu,
)

_WAIT = """\
wait_for() {
  while :; do
    state=$(gcloud compute tpus queued-resources describe "$@" '--format=value(state.state)')
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDED) echo "$1 is $state: delete the queued resource and submit again" >&2; return 1 ;;
    esac
    sleep 30
  done
}"""


def script(submission: Submission) -> str:
    """The commands of gcloud, for bash.

    Raises UserError where hardware, image, project or zone is missing, or hosts of one slice share no directory.
    """
    slice_ = tpu(submission)
    container_image = image(submission)
    place = []
    for option, value in (("--project", submission.project), ("--zone", submission.zone)):
        if value is None or not re.fullmatch(r"[a-z][a-z0-9:.-]+", value):
            wrong = "is missing" if value is None else f"{value!r} is no name of Google Cloud's"
            raise UserError(f"{option}: {wrong}; --launcher tpu-vm wants --project and --zone, such as us-east5-a")
        place.append(f"{option}={value}")
    if submission.volume is None and slice_.hosts > 1 and not has_bucket(submission):
        raise UserError(
            f"--volume: is missing; the {slice_.hosts} hosts of a {slice_.name} share HOST:/PATH, of NFS, "
            "or checkpoint_root: gs://... in the sweep"
        )
    where = shlex.join(place)
    carried = files(submission)
    lines = ["set -euo pipefail", _WAIT]
    for name in names(submission):
        request = _request(name, submission, slice_)
        known = f"gcloud compute tpus queued-resources describe {name} {where} >/dev/null 2>&1"
        lines.append(f"{known} ||\n  {request} {where}")
    lines.append("pids=()")
    for name, part in zip(names(submission), parts(submission, submission.volume is not None), strict=True):
        ssh = f"gcloud compute tpus tpu-vm ssh {name} {where} --worker=all"
        steps = [f"wait_for {name} {where}"]
        if carried:
            steps.append(f"{ssh} --command={shlex.quote(f'mkdir -p {name}')}")
            sources = shlex.join(str(path.absolute()) for path in carried)
            steps.append(f"gcloud compute tpus tpu-vm scp {sources} {name}:{name}/ {where} --worker=all")
        steps.append(f"{ssh} --command={shlex.quote(_start(name, submission, container_image, slice_, part))}")
        lines += ["(", *(f"  {step}" for step in steps), ") & pids+=($!)"]  # each starts as soon as it is granted
    lines.append('for pid in "${pids[@]}"; do wait "$pid"; done')
    return "\n".join(lines) + "\n"


def submit(submission: Submission) -> None:
    """Run the script; gcloud talks to the terminal. Raises UserError without gcloud, RunFailed if a command fails."""
    text = script(submission)
    if shutil.which("gcloud") is None:
        raise UserError("--launcher tpu-vm: there is no gcloud here; --dry-run prints the commands to run elsewhere")
    status = subprocess.run(["bash", "-c", text]).returncode
    if status:
        raise RunFailed(f"--launcher tpu-vm: a command of gcloud failed (exit status {status}): what it says is above")


def _request(name: str, submission: Submission, slice_: Hardware) -> str:
    options = [f"--node-id={name}", f"--accelerator-type={slice_.accelerator_type}"]
    options += [f"--runtime-version={slice_.runtime_version}", *(["--spot"] if submission.spot else [])]
    return shlex.join(["gcloud", "compute", "tpus", "queued-resources", "create", name, *options])


def _start(name: str, submission: Submission, container_image: str, slice_: Hardware, part: str | None) -> str:
    """What every host runs: the worker in a container, which docker starts again when it ends with another status.

    A start after a failed cell is wasted and does no harm: failed cells are listed and left.
    """
    docker = ["sudo", "docker", "run", "--detach", "--name", name, "--privileged", "--network=host"]
    docker += [f"--restart=on-failure:{submission.restarts}"]
    kept = str(runs_dir(submission).parent)
    if submission.volume is None:
        docker += ["--volume", f"{kept}:{kept}"]
    else:
        server, slash, path = submission.volume.partition(":/")
        if not slash or not re.fullmatch(r"[\w.-]+", server) or not re.fullmatch(r"[\w./-]*", path):
            raise UserError(
                f"--volume: {submission.volume!r} is not HOST:/PATH of an NFS server, such as 10.0.0.2:/sd3"
            )
        nfs = f"volume-driver=local,volume-opt=type=nfs,volume-opt=device=:/{path},volume-opt=o=addr={server}"
        docker += ["--mount", f"type=volume,source={name},target={kept},{nfs}"]
    if slice_.hosts > 1:
        docker += ["--env", f"SD3_JAX_HOSTS={slice_.hosts}"]
    # The host's own $HOME, so not quoted here.
    carried = f' --volume "$HOME/{name}:{SWEEP_MOUNT}:ro"' if files(submission) else ""
    run = f"{shlex.join(docker)}{carried} {shlex.join([container_image, *command(submission, part)])}"
    return f"sudo docker start {name} 2>/dev/null || {run}"
