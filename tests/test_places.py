"""Where a run lies may be full, forbidden, another's, or have a clock that jumps: one line says so, nothing is lost."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_resume import ENVIRON, history
from tiny import tiny

from sd3_jax import config as configs
from sd3_jax import lease, records
from sd3_jax.errors import UserError
from sd3_jax.sweep.spec import Cell
from sd3_jax.sweep.status import read_state
from sd3_jax.train import train
from sd3_jax.training import checkpoint

CONFIG = tiny(steps=40, keep_steps=[4])
SWEEP = "experiment: run.json\ncells: [{model.depth: 2, seed: 0}]\n"
CELL = "d02-s0"
# Root without its power over permissions: a user to whom what belongs to nobody is another's.
PLAIN = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search,-fowner", "--inh-caps", "-all"]
needs_mount = pytest.mark.skipif(
    sys.platform != "linux" or os.getuid() != 0 or shutil.which("mount") is None, reason="mounting needs root on Linux"
)
needs_users = pytest.mark.skipif(
    sys.platform != "linux" or os.getuid() != 0 or shutil.which("setpriv") is None,
    reason="another user's directory needs root on Linux, and setpriv",
)


def sd3(folder: Path, *arguments: str, before: str = "", plain: bool = False) -> subprocess.CompletedProcess:
    """The command line in a process of its own, after some lines of Python."""
    code = f"import sys\n{before}\nfrom sd3_jax.cli import main\nmain(sys.argv[1:])"
    argv = [*(PLAIN if plain else []), sys.executable, "-c", code, *arguments]
    return subprocess.run(argv, cwd=folder, env=ENVIRON, capture_output=True, text=True, timeout=300)


def refused(done: subprocess.CompletedProcess, *words: str) -> None:
    """Bad input, in one line that says these words."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("sd3-jax: error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


def ours(folder: Path) -> Path:
    """A folder with an experiment and a sweep."""
    (folder / "run.json").write_text(json.dumps(configs.to_dict(CONFIG)))
    (folder / "sweep.yaml").write_text(SWEEP)
    return folder


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(item.relative_to(path)): item.read_bytes() for item in path.rglob("*") if item.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of one cell that ended in peace."""
    folder = ours(tmp_path_factory.mktemp("whole"))
    assert sd3(folder, "sweep", "run", "sweep.yaml", "--runs", "runs").returncode == 0
    return folder / "runs"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"may not mount: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


# --- a full disk ------------------------------------------------------------------------------------------------------

FILL = """
import time
from pathlib import Path
def fill():
    with open("disk/filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
"""
MOMENTS = {
    "checkpoint": """
from sd3_jax.training.checkpoint import Saver
save = Saver.save
def full_save(self, step, state):
    if step == 40:
        self.finish()
        fill()
    save(self, step, state)
Saver.save = full_save
""",
    "metrics": """
from sd3_jax import records
append = records.append
def full_append(path, row, *rest):
    if row.get("step") == 20:
        while not Path("disk/run/checkpoints/4").exists():  # it is saved while the run goes on
            time.sleep(0.01)
        fill()
    append(path, row, *rest)
records.append = full_append
""",
    "DONE": """
from sd3_jax import records
finish = records.finish
def full_finish(*arguments):
    fill()
    finish(*arguments)
records.finish = full_finish
""",
}
SAID = {"checkpoint": "disk/run/checkpoints: cannot save", "metrics": "disk/run/metrics.jsonl: No space left on device",
        "DONE": "disk/run/DONE: No space left on device"}  # fmt: skip


@needs_mount
@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_disk_that_fills_up_costs_nothing_but_time(disk: Path, undisturbed: Path, moment: str) -> None:
    folder, run_dir = ours(disk.parent), disk / "run"
    command = ["train", "run.json", "--run", "disk/run"]
    refused(sd3(folder, *command, before=FILL + MOMENTS[moment]), SAID[moment])
    assert records.status(run_dir) == "started"
    assert lease.silent_seconds(run_dir) is None
    refused(sd3(folder, *command), "disk/run")  # and while it is still full
    (disk / "filler").unlink()
    again = sd3(folder, *command)
    assert (again.returncode, again.stderr) == (0, "")
    assert records.read_rows(run_dir / "lives.jsonl")[0][-1]["resumed_from"] in ((4,) if moment != "DONE" else (40,))
    assert history(run_dir) == history(undisturbed / CELL)
    assert records.status(run_dir) == "done"


# --- a place that this user may not write -----------------------------------------------------------------------------


@pytest.fixture
def another(tmp_path: Path) -> Path:
    """A sweep of one cell that another user has begun, in a run directory of theirs."""
    folder, run_dir = ours(tmp_path), tmp_path / "runs" / CELL
    records.open_run(run_dir, CONFIG)
    (run_dir / lease.FOLDER).mkdir()
    (run_dir / lease.FOLDER / "000001").write_text(json.dumps({"user": "nobody", "beat": -1, "given_up": True}) + "\n")
    records.append(run_dir / "lives.jsonl", {"resumed_from": 0})
    records.append(run_dir / "metrics.jsonl", {"split": "train", "step": 3, "loss": 1.5, "seconds": 1.0})
    for path in (tmp_path / "runs", run_dir, *run_dir.rglob("*")):
        os.chown(path, 65534, 65534)
    return folder


@needs_users
def test_another_users_sweep_can_be_looked_at_and_is_left_as_it_is(another: Path) -> None:
    before = snapshot(another / "runs")
    done = sd3(another, "sweep", "status", "sweep.yaml", "--runs", "runs", "--json", "-", plain=True)
    assert [(row["state"], row["step"]) for row in json.loads(done.stdout)] == [("interrupted", 3)]
    denied = f"runs/{CELL}/.lease: cannot be claimed (Permission denied; it is nobody's)"
    refused(sd3(another, "sweep", "run", "sweep.yaml", "--runs", "runs", plain=True), denied)
    refused(sd3(another, "train", "run.json", "--run", f"runs/{CELL}", plain=True), denied)
    refused(sd3(another, "train", "run.json", "--run", "runs/new", plain=True), "runs/new/.lease: cannot be claimed")
    assert snapshot(another / "runs") == before


@pytest.mark.slow
@needs_users
def test_another_users_lease_where_this_user_may_write(another: Path) -> None:
    """The lease can be taken; what cannot be written is named, the lease is given up, and the rows are as they were."""
    run_dir = another / "runs" / CELL
    for folder in (run_dir, run_dir / lease.FOLDER):
        folder.chmod(0o777)
    rows = records.read_rows(run_dir / "lives.jsonl")
    refused(sd3(another, "train", "run.json", "--run", f"runs/{CELL}", plain=True), f"{CELL}/lives.jsonl: Permission")
    claim = lease.newest(run_dir)
    assert claim is not None
    assert (claim["number"], claim["given_up"]) == (2, True)
    assert records.read_rows(run_dir / "lives.jsonl") == rows
    with lease.held(lease.Lease(run_dir, 2)):
        busy = sd3(another, "train", "run.json", "--run", f"runs/{CELL}", plain=True)
    assert (busy.returncode, busy.stderr.count("\n")) == (75, 1)
    assert "is running this run" in busy.stderr


@pytest.mark.slow
@needs_mount
def test_a_file_system_that_is_read_only_can_be_read(disk: Path, undisturbed: Path) -> None:
    folder = ours(disk.parent)
    shutil.copytree(undisturbed, disk / "done", ignore=shutil.ignore_patterns(".cache"))
    shutil.copytree(disk / "done", disk / "open")
    (disk / "open" / CELL / "DONE").unlink()
    before = snapshot(disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for runs, state in (("done", "done"), ("open", "interrupted")):
        looked = sd3(folder, "sweep", "status", "sweep.yaml", "--runs", f"disk/{runs}", "--json", "-")
        assert [row["state"] for row in json.loads(looked.stdout)] == [state]
    assert sd3(folder, "sweep", "run", "sweep.yaml", "--runs", "disk/done").returncode == 0  # nothing is left to do
    sweep = ["sweep", "run", "sweep.yaml", "--runs"]
    for command, said in {
        (*sweep, "disk/open"): f"disk/open/{CELL}/.lease: cannot be claimed (Read-only",
        (*sweep, "disk/new"): f"disk/new/{CELL}/config.json: Read-only",
        ("train", "run.json", "--run", f"disk/open/{CELL}"): f"disk/open/{CELL}/.lease: cannot be claimed (Read-only",
        ("train", "run.json", "--run", "disk/new"): "disk/new/.lease: cannot be claimed (Read-only",
        ("evaluate", f"disk/done/{CELL}"): f"disk/done/{CELL}/samples",
        ("evaluate", "disk/done"): f"disk/done/{CELL}/samples",
    }.items():
        refused(sd3(folder, *command), said)
    assert snapshot(disk) == before


# --- a mesh that is not there -----------------------------------------------------------------------------------------


def test_a_mesh_that_does_not_fit_the_devices(tmp_path: Path) -> None:
    folder, said = ours(tmp_path), "mesh: data 2 x fsdp 1 does not fit "
    (folder / "sweep.yaml").write_text(f"set: {{mesh.data: 2}}\n{SWEEP}")
    refused(sd3(folder, "train", "run.json", "--run", "run", "--set", "mesh.data=2"), f"{said}1 devices")
    assert not (folder / "run").exists()
    planned = sd3(folder, "sweep", "plan", "sweep.yaml", "--hardware", "v6e-8")
    assert planned.returncode == 2
    assert f"{CELL}: {said}8 devices" in planned.stderr.splitlines()[-1]
    ran = sd3(folder, "sweep", "run", "sweep.yaml", "--runs", "runs")
    assert ran.returncode == 1  # as for any cell that failed, which the table lists
    assert f"{said}1 devices" in ran.stderr
    assert (folder / "runs" / CELL / "FAILED").read_text() == f"{said}1 devices\n"


# --- a clock that jumps -----------------------------------------------------------------------------------------------

HOURS = 3600.0


@pytest.mark.parametrize("jump", [-5 * HOURS, 5 * HOURS])
def test_who_is_alive_does_not_depend_on_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    config = tiny()
    cell = Cell("run", config)
    own = lease.claim(tmp_path / "run", lease.Watch())
    assert own is not None
    records.open_run(tmp_path / "run", config)
    now = time.time()  # stands still: what is said of it is exact
    with lease.held(own):
        monkeypatch.setattr(time, "time", lambda: now + jump)
        assert read_state(cell, tmp_path).state == "running"
        watch = lease.Watch()
        assert lease.claim(tmp_path / "run", watch) is None
        os.utime(own.path, (now - jump, now - jump))
        assert lease.claim(tmp_path / "run", watch) is None
        assert read_state(cell, tmp_path).state == "running"
        # The holder's machine is another: its clock and ours are all that a look can compare, and it says so.
        own.path.write_text(json.dumps(json.loads(own.path.read_text()) | {"machine": "elsewhere"}))
        os.utime(own.path, (now, now))
        state = read_state(cell, tmp_path)
        assert state.state == "stalled"
        assert ("silent for 18000 s" if jump > 0 else "18000 s from now: a clock is off") in state.why
        assert watch.is_alive(tmp_path / "run")  # to whom the run may pass is another matter


@pytest.mark.slow
def test_a_clock_that_jumps_changes_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours forth and back, between and within lives. Orbax counts by it how long a save takes: that may end a life."""
    setting = {"evaluation.every": 4}  # so that a life that ends there measures nothing else
    train(tiny(steps=12, **setting), tmp_path / "whole")
    now, append, offset = time.time, records.append, itertools.count()
    jumped = 0.0

    def jump_and_append(*arguments: Any) -> None:
        nonlocal jumped
        jumped = (-1) ** next(offset) * 5 * HOURS
        append(*arguments)

    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + jumped)
        patch.setattr(records, "append", jump_and_append)
        for steps in (4, 8):
            train(tiny(steps=steps, checkpoint_seconds=600.0, **setting), run_dir)
    # Nothing was due by the clock, so nothing but the ends of both lives was saved.
    assert checkpoint.saved_steps(run_dir / "checkpoints") == [4, 8]
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + next(offset) * HOURS)
        with pytest.raises(UserError, match="cannot save a checkpoint .*; the last good one is kept"):
            train(tiny(steps=12, **setting), run_dir)
    train(tiny(steps=12, **setting), run_dir)
    assert [life["resumed_from"] for life in records.read_rows(run_dir / "lives.jsonl")[0]] == [0, 4, 8, 8]
    assert history(run_dir) == history(tmp_path / "whole")
    seconds = [row["seconds"] for row in records.read_rows(run_dir / "metrics.jsonl")[0]]
    assert seconds == sorted(seconds)
    assert 0 < seconds[-1] < HOURS
