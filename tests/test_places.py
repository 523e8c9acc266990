"""Where a run lies may be full, forbidden, another's, or have a clock that jumps: one line says so, nothing is lost."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_resume import ENVIRON, history
from tiny import tiny

from sd3_jax import config as configs
from sd3_jax import lease, records

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
