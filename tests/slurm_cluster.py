"""A real Slurm cluster of two nodes on this machine, for as long as a test needs it. Root alone can run it.

Everything listens on 127.0.0.1 only, as it must: there is no authentication. The names of the nodes are loopback
addresses, so that a name resolves wherever it is used.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo")
NODES = ("127.0.0.1", "127.0.0.2")
CONF = """\
ClusterName=t
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
SlurmctldPort={port}
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
KillWait=2
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=127.0.0.1 NodeHostname=localhost Port={port1} CPUs=2
NodeName=127.0.0.2 NodeHostname=localhost Port={port2} CPUs=2
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime={grace}
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str:
    """Why there can be no cluster here; empty if there can."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        return f"needs Slurm: no {', '.join(missing)} here"
    return "" if os.geteuid() == 0 else "needs root to run Slurm's daemons"


@contextmanager
def cluster(grace: int = 30) -> Iterator[dict[str, str]]:
    """Bring the daemons up, and yield the environment that finds them; down they go whatever happens."""
    root = Path(tempfile.mkdtemp(prefix="slurm"))  # short: sockets in it have paths of at most 108 characters
    for folder in ("state", "spool", "log"):
        (root / folder).mkdir(parents=True)
    conf = root / "slurm.conf"
    port, port1, port2 = _free_ports(3)
    conf.write_text(CONF.format(root=root, port=port, port1=port1, port2=port2, grace=grace))
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    env = {**os.environ, "PATH": path, "SLURM_CONF": str(conf)}
    # In the foreground (-D), so that they are our children and can be ended by id.
    commands = [["slurmctld", "-D", "-f", str(conf)], *(["slurmd", "-D", "-N", n, "-f", str(conf)] for n in NODES)]
    daemons: list[subprocess.Popen] = []
    try:
        for command in commands:
            with open(root / "log" / f"{command[0]}.{len(daemons)}.out", "wb") as log:
                daemons.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True))
        wait_for(lambda: ask(env, "sinfo", "-h", "-o", "%D", "-p", "main", "-t", "idle") == "2", 60, "idle nodes")
        yield env
    finally:
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(["scancel", "-u", "root", "--signal=KILL"], env=env, capture_output=True, timeout=20)
            subprocess.run(["scancel", "-u", "root"], env=env, capture_output=True, timeout=20)
            wait_for(lambda: not ask(env, "squeue", "-h", "-t", "RUNNING,COMPLETING"), 20, "jobs to end")
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(root, ignore_errors=True)


def wait_for(condition, seconds: float, what: str) -> None:
    """Poll until it holds; a failed assertion says what did not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.3)


def ask(env: dict[str, str], *argv: str) -> str:
    """What a command of Slurm prints."""
    with suppress(subprocess.SubprocessError):
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=20).stdout.strip()
    return "no answer"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
