"""A worker that spans hosts: supervisors of turns, and real groups that lose a process."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_group import losses

from sd3_jax import platform, records
from sd3_jax.errors import Stopped, UserError
from sd3_jax.sweep.hosts import EXIT_AGAIN, EXIT_BROKEN, supervise

# Ends as the words of a script say, one after another: an exit status, or the name of a signal.
TURN = textwrap.dedent(
    """\
    import os, pathlib, signal, sys, time
    script = pathlib.Path(sys.argv[1])
    word, *rest = script.read_text().split()
    script.write_text(" ".join(rest))
    if word == "hang":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
        (script.parent / "hangs").touch()
        time.sleep(60)
    if word.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[word])
    sys.exit(int(word))
    """
)


def turns(tmp_path: Path, words: str) -> list[str]:
    (tmp_path / "script").write_text(words)
    return [sys.executable, "-c", TURN, str(tmp_path / "script")]


@pytest.mark.parametrize("words, status", [("43 43 0", 0), ("43 1", 1), ("2", 2), ("44 SIGABRT 43 44 SIGKILL 0", 0)])
def test_turns_follow_one_another_until_one_finds_no_cell(tmp_path: Path, words: str, status: int) -> None:
    assert (EXIT_AGAIN, EXIT_BROKEN) == (43, 44)
    assert supervise(turns(tmp_path, words), tmp_path) == status
    assert (tmp_path / "script").read_text() == ""


@pytest.mark.parametrize("words", ["43 42 0", "SIGTERM 0", "44 SIGABRT 44 0"])
def test_a_turn_that_is_stopped_and_groups_that_break_ask_for_another_start(tmp_path: Path, words: str) -> None:
    with pytest.raises(Stopped, match="the same command goes on"):
        supervise(turns(tmp_path, words), tmp_path)
    assert (tmp_path / "script").read_text() == "0"


def test_a_supervisor_that_is_told_to_stop_lets_its_turn_save(tmp_path: Path) -> None:
    program = (
        f"import signal\nfrom sd3_jax.sweep.hosts import supervise\nsupervise({turns(tmp_path, 'hang 0')!r}, {{}})"
    )
    program = program.replace("{}", f"__import__('pathlib').Path({str(tmp_path)!r})")
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "hangs").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    assert "Stopped: stopped by SIGTERM" in process.communicate(timeout=30)[1]
    assert (tmp_path / "script").read_text() == "0"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_turn_that_begins_as_its_supervisor_is_told_to_stop_is_stopped_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    begun: list[subprocess.Popen] = []
    start = subprocess.Popen

    def told_meanwhile(*arguments: Any, **options: Any) -> subprocess.Popen:
        begun.append(start(*arguments, **options))
        while not (tmp_path / "hangs").exists():
            time.sleep(0.01)
        signal.raise_signal(number)
        return begun[0]

    monkeypatch.setattr(subprocess, "Popen", told_meanwhile)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background shells have it ignored
    try:
        with pytest.raises((Stopped, KeyboardInterrupt)):
            supervise(turns(tmp_path, "hang 0"), tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [process.poll() for process in begun] == [42]


def test_who_spans_hosts_is_said_by_launchers_users_and_slices() -> None:
    for environ in ({"SD3_JAX_HOSTS": "2"}, {"SD3_JAX_COORDINATOR": "a:1"}, {"TPU_WORKER_HOSTNAMES": "a,b"}):
        assert platform.is_one_of_many(environ)
        assert not platform.is_one_of_many(environ | {"SD3_JAX_ALONE": "1"})
    for environ in ({}, {"SD3_JAX_HOSTS": "1"}, {"TPU_WORKER_HOSTNAMES": "localhost"}, {"SLURM_STEP_NUM_TASKS": "4"}):
        assert not platform.is_one_of_many(environ)
    with pytest.raises(UserError, match="SD3_JAX_HOSTS: '2x' is not a number of hosts"):
        platform.is_one_of_many({"SD3_JAX_HOSTS": "2x"})


def host(number: int, port: int, folder: Path) -> subprocess.Popen:
    environ = os.environ | {
        "SD3_JAX_COORDINATOR": f"127.0.0.1:{port}",
        "SD3_JAX_PROCESSES": "2",
        "SD3_JAX_PROCESS": str(number),
        "SD3_JAX_START_SECONDS": "60",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    argv = [sys.executable, "-m", "sd3_jax.cli", "sweep", "run", str(folder / "sweep.yaml"), "--runs"]
    with open(folder / f"host{number}.log", "ab") as log:
        return subprocess.Popen([*argv, str(folder / "runs")], env=environ, stdout=log, stderr=log)


@pytest.mark.slow
def test_two_hosts_run_a_sweep_lose_processes_are_stopped_and_end_with_the_right_numbers(tmp_path: Path) -> None:
    here = Path(__file__).parent
    (tmp_path / "experiment.py").write_text(
        f"import sys\nsys.path.insert(0, {str(here)!r})\n"
        "from tiny import tiny\nfrom ml_collections import ConfigDict\nfrom sd3_jax.config import to_dict\n"
        "def get_config():\n    return ConfigDict(to_dict(tiny(steps=40, checkpoint_seconds=1.0)))\n"
    )
    (tmp_path / "sweep.yaml").write_text(
        "experiment: experiment.py\ncells:\n  - {model.depth: [2, 3]}\n  - {model.depth: 2, optimizer.cooldown: 0.25}\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hosts = [host(number, port, tmp_path) for number in range(2)]
    lives = tmp_path / "runs" / "d03-s0" / "lives.jsonl"

    def wait_for_life(count: int) -> None:
        deadline = time.monotonic() + 300
        while not lives.exists() or len(records.read_rows(lives)[0]) < count:
            assert time.monotonic() < deadline
            assert [process.poll() for process in hosts] == [None, None]
            time.sleep(0.1)

    for life, number in ((1, 1), (2, 0)):  # a turn loses its second process, the next its first
        wait_for_life(life)
        (turn,) = map(int, subprocess.check_output(["pgrep", "-P", str(hosts[number].pid)], text=True).split())
        os.kill(turn, signal.SIGKILL)
    wait_for_life(3)
    hosts[1].terminate()  # one host is preempted: both save and ask for another start
    assert [process.wait(timeout=200) for process in hosts] == [42, 42]
    hosts = [host(number, port, tmp_path) for number in range(2)]
    assert [process.wait(timeout=500) for process in hosts] == [0, 0]
    said = [" ".join((tmp_path / f"host{number}.log").read_text().split()) for number in range(2)]
    assert ["3 done" in text for text in said] == [True, False]

    environ = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    argv = [sys.executable, "-m", "sd3_jax.cli", "sweep", "run", str(tmp_path / "sweep.yaml"), "--runs"]
    subprocess.run([*argv, str(tmp_path / "alone")], env=environ, check=True, capture_output=True)
    for cell in ("d02-s0", "d03-s0", "d02-cooldown0.25-s0"):
        assert {life["processes"] for life in records.read_rows(tmp_path / "runs" / cell / "lives.jsonl")[0]} == {2}
        np.testing.assert_allclose(losses(tmp_path / "runs" / cell), losses(tmp_path / "alone" / cell), rtol=1e-5)
