"""A run has one holder: whoever claims the next number; who sleeps through a takeover finds out before it writes."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from sd3_jax import lease
from sd3_jax.errors import LeaseLost
from sd3_jax.lease import Watch

ELSEWHERE = {"machine": "another", "pid": 1, "born": 1, "host": "node7", "user": "ada", "beat": 3, "id": "x"}


class Clock:
    """The clock by which leases run out, moved by hand: a busy machine does not move it."""

    now = 1e6

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.3)
    monkeypatch.setattr(lease, "time", made)
    return made


def write_claim(run_dir: Path, number: int = 1, **fields: object) -> None:
    (run_dir / lease.FOLDER).mkdir(exist_ok=True)
    (run_dir / lease.FOLDER / f"{number:06d}").write_text(json.dumps(ELSEWHERE | fields))


def claimed(run_dir: Path) -> lease.Lease:
    found = lease.claim(run_dir, Watch())
    assert found is not None
    return found


def test_a_run_has_one_holder_and_is_free_when_it_is_given_up(tmp_path: Path) -> None:
    first = claimed(tmp_path)
    with lease.held(first):
        assert lease.claim(tmp_path, Watch()) is None
        first.check()
    second = claimed(tmp_path)
    assert second.number == first.number + 1
    with pytest.raises(LeaseLost, match="was taken for dead"):
        first.check()


def test_a_claim_of_another_machine_is_dead_when_it_was_silent_for_a_lease_of_our_time(
    tmp_path: Path, clock: Clock
) -> None:
    watch = Watch()
    write_claim(tmp_path)
    assert watch.is_alive(tmp_path)  # seen for the first time, however old its file is
    clock.now += 0.2
    write_claim(tmp_path, beat=4)
    assert watch.is_alive(tmp_path)
    clock.now += 0.2
    assert watch.is_alive(tmp_path)
    clock.now += 0.2
    assert not watch.is_alive(tmp_path)
    assert lease.claim(tmp_path, watch) == lease.Lease(tmp_path, 2)


def test_a_watcher_that_is_held_up_as_it_looks_takes_nobody_for_dead(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, newest = Watch(), lease.newest
    write_claim(tmp_path)
    assert watch.is_alive(tmp_path)

    def late(run_dir: Path) -> Any:
        found = newest(run_dir)
        clock.now += 60
        return found

    monkeypatch.setattr(lease, "newest", late)
    assert watch.is_alive(tmp_path)


def test_clocks_that_jump_or_differ_do_not_matter(tmp_path: Path) -> None:
    watch = Watch()
    write_claim(tmp_path)
    for stamp in (0, 2**33):  # 1970 and 2242
        os.utime(tmp_path / lease.FOLDER / "000001", (stamp, stamp))
        assert watch.is_alive(tmp_path)


def test_a_holder_of_this_machine_that_was_killed_is_dead_at_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1e6)
    code = "import sys, time, pathlib; from sd3_jax import lease\n"
    code += "own = lease.claim(pathlib.Path(sys.argv[1]), lease.Watch())\n"
    code += "with lease.held(own): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert lease.claim(tmp_path, Watch()) is None
        holder.kill()
        holder.wait()
    assert lease.claim(tmp_path, Watch()) == lease.Lease(tmp_path, 2)


GONE = {"pid": 2**22 + 1, "born": 1}  # more than a number of a process can be


@pytest.mark.parametrize("given_up", [True, False])
def test_a_claim_is_over_when_its_keeper_says_so_or_is_gone_too(tmp_path: Path, given_up: bool) -> None:
    """The process that works under it has ended, and the one that made the claim has yet to say how."""
    own, keeper = lease._self(0), {key: lease._self(0)[key] for key in ("pid", "born")}
    write_claim(tmp_path, **own | GONE)
    assert not Watch().is_alive(tmp_path)
    write_claim(tmp_path, **own | GONE, keeper=keeper)
    assert Watch().is_alive(tmp_path)
    if given_up:
        lease.give_up(lease.Lease(tmp_path, 1))
    else:
        write_claim(tmp_path, **own | GONE, keeper=GONE)
    assert lease.claim(tmp_path, Watch()) == lease.Lease(tmp_path, 2)


WORKER = """
import pathlib, sys
from sd3_jax import lease
with lease.held(lease.adopt(pathlib.Path(sys.argv[1]), 1)):
    print('held', flush=True)
    sys.stdin.readline()
"""


def test_who_works_under_anothers_claim_leaves_it_to_that_one_or_ends_it_if_that_is_gone(tmp_path: Path) -> None:
    for keeper, left in (({}, True), (GONE, False)):
        run_dir = tmp_path / str(left)
        run_dir.mkdir()
        write_claim(run_dir, **lease._self(0) | keeper)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen([sys.executable, "-c", WORKER, str(run_dir)], **pipes) as worker:
            assert worker.stdout is not None
            worker.stdout.readline()
            assert lease.newest(run_dir)["pid"] == worker.pid
            assert Watch().is_alive(run_dir)
            worker.communicate(b"\n")
        assert Watch().is_alive(run_dir) == left


def test_a_process_number_that_was_given_anew_is_not_the_holder(tmp_path: Path) -> None:
    own = lease._self(0)
    write_claim(tmp_path, **own | {"born": own["born"] - 1})
    assert not Watch().is_alive(tmp_path)
    write_claim(tmp_path, **own)
    assert Watch().is_alive(tmp_path)


def _race(run_dir: Path, together: Any, won: Any) -> None:
    watch = Watch()
    together.wait()
    found = lease.claim(run_dir, watch)
    won.put(found.number if found else None)
    together.wait()  # nobody leaves before all have tried


def test_of_many_that_claim_at_once_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    won, together = context.Queue(), context.Barrier(6, timeout=120)
    racers = [context.Process(target=_race, args=(tmp_path, together, won)) for _ in range(6)]
    for racer in racers:
        racer.start()
    numbers = [won.get(timeout=120) for _ in racers]
    for racer in racers:
        racer.join()
    assert sorted(number for number in numbers if number) == [1]


def beats_after(run_dir: Path, last: int) -> int:
    """The number of a beat after ``last``, once there is one."""
    deadline = time.monotonic() + 60
    while (beat := (lease.newest(run_dir) or {}).get("beat", last)) == last:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return beat


def test_a_stopped_holder_that_wakes_finds_the_run_taken_and_beats_into_no_ones_claim(
    tmp_path: Path, clock: Clock
) -> None:
    code = "import sys, time, pathlib; from sd3_jax import lease\n"
    code += "own = lease.claim(pathlib.Path(sys.argv[1]), lease.Watch())\n"
    code += "with lease.held(own):\n    print('held', flush=True); sys.stdin.readline(); own.check()"
    environ = os.environ | {"SD3_JAX_LEASE_SECONDS": "0.3"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environ, **pipes) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stderr is not None
        holder.stdout.readline()
        try:
            watch, beat = Watch(), -1
            for _ in range(4):
                beat = beats_after(tmp_path, beat)
                assert lease.claim(tmp_path, watch) is None  # it beats: never taken for dead
                clock.now += 0.2
            holder.send_signal(signal.SIGSTOP)
            while Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
                time.sleep(0.01)
            assert lease.claim(tmp_path, watch) is None  # sees its last beat
            clock.now += 0.31
            own = lease.claim(tmp_path, watch)
            assert own is not None
            before = own.path.read_text()
            holder.send_signal(signal.SIGCONT)
            holder.stdin.write(b"\n")
            holder.stdin.close()
            assert "LeaseLost" in holder.stderr.read().decode()
            holder.wait(timeout=60)
        finally:
            holder.kill()
    assert own.path.read_text() == before
    own.check()


def test_old_claims_are_cleared_away_but_for_the_last(tmp_path: Path) -> None:
    for number in range(1, 6):
        with lease.held(claimed(tmp_path)):
            names = sorted(path.name for path in (tmp_path / lease.FOLDER).iterdir())
            assert names == [f"{n:06d}" for n in range(max(1, number - 1), number + 1)]


def test_a_claim_that_is_no_claim_goes_stale(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / lease.FOLDER).mkdir()
    (tmp_path / lease.FOLDER / "000001").write_text("{torn")
    watch = Watch()
    assert watch.is_alive(tmp_path)
    clock.now += 0.35
    assert lease.claim(tmp_path, watch) is not None


@pytest.mark.skipif(os.getuid() != 0, reason="another user's directory needs root")
def test_a_run_of_another_user_is_one_clear_line(tmp_path: Path) -> None:
    """Root may write everywhere: a process of nobody's tries, where it may look."""
    code = "import os, pathlib, sys; from sd3_jax import lease; theirs, own = map(pathlib.Path, sys.argv[1:])\n"
    code += "assert lease.claim(own, lease.Watch())\n"  # what Python is made of lies where nobody may look, too
    code += "os.setuid(65534); lease.claim(theirs, lease.Watch())"
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / lease.FOLDER).mkdir(mode=0o755)
        Path(made).chmod(0o755)
        tried = subprocess.run([sys.executable, "-c", code, made, str(tmp_path)], capture_output=True)
    assert f"UserError: {made}/.lease: cannot be claimed (Permission denied; it is root's)" in tried.stderr.decode()
