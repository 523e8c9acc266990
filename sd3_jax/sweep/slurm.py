"""Workers as Slurm jobs, by way of submitit: an array of them, each on one node or more, requeued when preempted.

One signal says all. Slurm sends SIGTERM to every process of a job when it is preempted, and ahead of its time limit
(``--signal=TERM``). The cells save and end; the task of rank 0 waits for them and requeues the job. No task may
end before that: Slurm takes a preempted job whose steps ended for one that is complete, and does not requeue it. A job
that is cancelled gets the same signal, and must not be requeued: it would come back to life.
"""

import contextlib
import importlib.util
import io
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sd3_jax import hardware
from sd3_jax.errors import RunFailed, UserError
from sd3_jax.sweep.submission import RESTARTS, Submission, command, names, runs_dir

_DEFAULT_MINUTES = 24 * 60
_SAVE_SECONDS = 120  # from the signal to the time limit
_SUBMITIT = "-u -m submitit.core._submit"
# A worker that says so itself, and one that a signal ended: SIGINT, SIGTERM.
_STOPPED = (*RESTARTS, 128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)


class Worker:
    """The task of one node, as submitit pickles it: runs the command, and outlives it until the job is requeued."""

    def __init__(self, argv: list[str]):
        self.argv = argv
        self.process: subprocess.Popen | None = None

    def __call__(self) -> int:
        """Run the command to its end; 0, or RunFailed with its exit status."""
        self.process = subprocess.Popen(self.argv)
        while not _has_ended(self.process):
            time.sleep(0.2)
        status = self.process.wait()
        if status == 0:
            return 0
        if status not in _STOPPED:
            raise RunFailed(f"exit status {status}: {shlex.join(self.argv)}")
        time.sleep(5)  # the signal that stopped the command is on its way to us: the handler of rank 0 takes over
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if _is_running():
            if os.environ.get("SLURM_PROCID", "0") == "0":
                subprocess.run(["scontrol", "requeue", _job_id()], check=True)
            time.sleep(600)
        raise RunFailed(f"exit status {status}, and not requeued: {shlex.join(self.argv)}")

    def checkpoint(self) -> Any:
        """What submitit's handler of the signal runs in the job's next life, once the command has ended; None: no more.

        Slurm has signalled the command itself, as every process of the job.
        """
        from submitit.helpers import DelayedSubmission

        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # requeueing sends another one
        deadline = time.monotonic() + _SAVE_SECONDS - 20
        while self.process and not _has_ended(self.process) and time.monotonic() < deadline:
            time.sleep(0.1)
        return DelayedSubmission(Worker(self.argv)) if _is_running() else None


def _job_id() -> str:
    """The job of this task. In an array the plain number may be that of the whole array."""
    environ = os.environ
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ["SLURM_JOB_ID"]


def _is_running() -> bool:
    """Whether the job is neither being cancelled, which requeueing would undo, nor requeued already by Slurm itself.

    A preempted job runs until its grace is over, and one near its time limit until the limit.
    """
    shown = subprocess.run(["scontrol", "show", "job", _job_id()], capture_output=True, text=True)
    return "JobState=RUNNING" in shown.stdout.split()


def _has_ended(process: subprocess.Popen) -> bool:
    """Popen.poll() without its lock: the handler of a signal may interrupt that very call."""
    if process.returncode is not None:
        return True
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def parameters(submission: Submission) -> dict[str, Any]:
    """What submitit is told. Raises UserError for a --time, --sbatch or hardware that Slurm cannot be asked for."""
    nodes, gpus = submission.nodes, submission.gpus
    if submission.hardware is not None:
        found = hardware.find(submission.hardware)
        if found.topology:
            raise UserError(f"--hardware: {found.name} is a TPU; --launcher slurm wants GPUs, such as h100x8")
        nodes = nodes if nodes is not None else found.hosts
        gpus = gpus if gpus is not None else found.chips_per_host
    minutes = _minutes(submission.time) if submission.time is not None else _DEFAULT_MINUTES
    extra: dict[str, Any] = {"requeue": True, "signal": f"TERM@{min(_SAVE_SECONDS, 30 * minutes)}"}
    for option in submission.sbatch:
        key, equals, value = option.removeprefix("--").partition("=")
        if not re.fullmatch("[a-z][a-z-]+", key):
            raise UserError(f"--sbatch: {option!r} is not an option of sbatch, such as mem=64G or exclusive")
        extra[key] = value if equals else True
    hosts = [] if (nodes or 1) == 1 else [f"export SD3_JAX_HOSTS={nodes}"]
    asked = {
        "job_name": names(submission)[0].rpartition("-")[0],
        "time": minutes,
        "nodes": nodes or 1,
        "ntasks_per_node": 1,
        "gpus_per_node": gpus,
        "cpus_per_task": submission.cpus,
        "partition": submission.partition,
        "account": submission.account,
        "qos": submission.qos,
        "array_parallelism": submission.count,
        "setup": ["export SUBMITIT_PREEMPT_SIGNAL=TERM", *hosts],
        "additional_parameters": extra,
    }
    return {key: value for key, value in asked.items() if value is not None}


def script(submission: Submission) -> str:
    """The batch script that submitit writes and submits, without submitit; then what its tasks unpickle and run."""
    told = parameters(submission)
    folder = log_folder(submission)
    job = "%A_%a" if submission.count > 1 else "%j"
    own = ("setup", "array_parallelism", "additional_parameters")
    flags = {key.replace("_", "-"): value for key, value in told.items() if key not in own}
    flags |= {"open-mode": "append", "wckey": "submitit"}
    flags |= {"output": f"{folder}/{job}_0_log.out", "error": f"{folder}/{job}_0_log.err"}
    if submission.count > 1:
        flags["array"] = f"0-{submission.count - 1}%{submission.count}"
    flags |= told["additional_parameters"]
    options = [f"#SBATCH --{key}" + _value(value) for key, value in sorted(flags.items(), key=_underscored)]
    step = ["srun", "--unbuffered", "--output", f"{folder}/{job}_%t_log.out", "--error", f"{folder}/{job}_%t_log.err"]
    lines = ["#!/bin/bash", "", "# Parameters", *options, "", "# setup", *told["setup"], "", "# command"]
    run = f"{shlex.join(step)} {shlex.quote(sys.executable)} {_SUBMITIT} {shlex.quote(str(folder))}"
    each = "each task of each job of the array" if submission.count > 1 else "each task"
    lines += ["export SUBMITIT_EXECUTOR=slurm", run, "", f"# {each} runs: {shlex.join(command(submission))}"]
    return "\n".join(lines) + "\n"


def submit(submission: Submission) -> list[str]:
    """Submit the workers; returns their job ids. Raises UserError without submitit or Slurm, or if sbatch refuses."""
    told = parameters(submission)
    if importlib.util.find_spec("submitit") is None:
        raise UserError("--launcher slurm: submitit is not installed: pip install 'sd3_jax[slurm]'")
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise UserError(f"--launcher slurm: there is no {program} here: submit from a login node, or --dry-run")
    import submitit

    executor = submitit.SlurmExecutor(log_folder(submission), max_num_timeout=submission.restarts)
    executor.update_parameters(**told)
    worker = Worker(command(submission))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # where submitit repeats what sbatch says
            if submission.count == 1:
                return [executor.submit(worker).job_id]
            with executor.batch():
                jobs = [executor.submit(worker) for _ in range(submission.count)]
            return [job.job_id for job in jobs]
    except submitit.core.utils.FailedJobError as error:
        refusals = [line for line in str(error).splitlines() if "error" in line] or [str(error)]
        raise UserError(f"sbatch: {refusals[-1].partition('error: ')[2] or refusals[-1]}") from None


def log_folder(submission: Submission) -> Path:
    """Where the jobs' scripts, pickles and logs are: beside the runs, on the file system that all nodes share."""
    return runs_dir(submission) / ".submit"


def _minutes(text: str) -> int:
    """Slurm's ways to write a time: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS; seconds are rounded up.

    >>> [_minutes(text) for text in ("90", "0:30", "24:00:00", "2-00", "1-12:30")]
    [90, 1, 1440, 2880, 2190]
    """
    match = re.fullmatch(r"(?:(\d{1,4})-)?(\d{1,7})(?::(\d{1,2}))?(?::(\d{1,2}))?", text)
    if not match:
        raise UserError(f"--time: {text!r} is not a time of Slurm's, such as 90 (minutes), 12:00:00 or 2-00")
    days, first, second, third = (int(part or 0) for part in match.groups())
    if match[1] is not None or match[4] is not None:
        seconds = 86400 * days + 3600 * first + 60 * second + third
    else:
        seconds = 60 * first + second
    if not seconds:
        raise UserError("--time: is zero")
    return math.ceil(seconds / 60)


def _value(value: Any) -> str:
    return "" if value is True else f"={shlex.quote(str(value))}"


def _underscored(flag: tuple[str, Any]) -> str:
    """The order in which submitit writes its flags: by its own names, which have underscores, but for open-mode."""
    own = ("job-name", "ntasks-per-node", "gpus-per-node", "cpus-per-task")
    return flag[0].replace("-", "_") if flag[0] in own else flag[0]
