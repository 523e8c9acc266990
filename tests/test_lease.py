"""A run has one holder: whoever claims the next number; who sleeps through a takeover finds out before it writes."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sd3_jax import lease
from sd3_jax.errors import LeaseLost, UserError
from sd3_jax.lease import Watch

ELSEWHERE = {"machine": "another", "pid": 1, "born": 1, "host": "node7", "user": "ada", "beat": 3, "id": "x"}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.3)


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


def test_a_claim_of_another_machine_is_dead_when_it_was_silent_for_a_lease_of_our_time(tmp_path: Path) -> None:
    watch = Watch()
    write_claim(tmp_path)
    assert watch.is_alive(tmp_path)  # seen for the first time, however old its file is
    time.sleep(0.2)
    write_claim(tmp_path, beat=4)
    assert watch.is_alive(tmp_path)
    time.sleep(0.2)
    assert watch.is_alive(tmp_path)
    time.sleep(0.2)
    assert not watch.is_alive(tmp_path)
    assert lease.claim(tmp_path, watch) == lease.Lease(tmp_path, 2)


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


def test_a_stopped_holder_that_wakes_finds_the_run_taken_and_beats_into_no_ones_claim(tmp_path: Path) -> None:
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
        watch = Watch()
        for _ in range(4):
            assert lease.claim(tmp_path, watch) is None
            time.sleep(0.15)  # it beats: never taken for dead
        holder.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 20
        while (own := lease.claim(tmp_path, watch)) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        before = own.path.read_text()
        holder.send_signal(signal.SIGCONT)
        time.sleep(0.3)
        holder.stdin.write(b"\n")
        holder.stdin.close()
        assert "LeaseLost" in holder.stderr.read().decode()
        holder.wait(timeout=20)
    assert own.path.read_text() == before
    own.check()


def test_old_claims_are_cleared_away_but_for_the_last(tmp_path: Path) -> None:
    for number in range(1, 6):
        with lease.held(claimed(tmp_path)):
            names = sorted(path.name for path in (tmp_path / lease.FOLDER).iterdir())
            assert names == [f"{n:06d}" for n in range(max(1, number - 1), number + 1)]


def test_a_claim_that_is_no_claim_goes_stale(tmp_path: Path) -> None:
    (tmp_path / lease.FOLDER).mkdir()
    (tmp_path / lease.FOLDER / "000001").write_text("{torn")
    watch = Watch()
    assert watch.is_alive(tmp_path)
    time.sleep(0.35)
    assert lease.claim(tmp_path, watch) is not None


@pytest.mark.skipif(os.getuid() != 0, reason="another user's directory needs root")
def test_a_run_of_another_user_is_one_clear_line(tmp_path: Path) -> None:
    """Root may write everywhere: a child that has become nobody tries."""
    (tmp_path / lease.FOLDER).mkdir(mode=0o755)
    for parent in (tmp_path, *tmp_path.parents):  # those that pytest made for us alone
        parent.chmod(parent.stat().st_mode | 0o055)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setuid(65534)
            lease.claim(tmp_path, Watch())
        except UserError as error:
            status = 0 if "cannot be claimed" in str(error) and "root's" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
