import errno
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import sd3_jax
from sd3_jax import cli, experiments, lease, platform, records
from sd3_jax.overlays import resolve
from sd3_jax.sweep import run as runner
from sd3_jax.sweep import spec, status

CELLS = "cells: [{model.depth: 2}]"


@pytest.fixture
def sd3(capsys, tmp_path, monkeypatch):
    """Run the command line in this process, in an empty directory: (status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(platform, "prepare", lambda *_: None)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return call


def sd3_process(*arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join(filter(None, [str(Path(sd3_jax.__file__).parent.parent), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": "", **environ}
    argv = [sys.executable, "-m", "sd3_jax.cli", *arguments]
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def assert_one_line(code: int, out: str, err: str, *words: str) -> None:
    assert code == 2
    assert out == ""
    assert re.fullmatch(r"sd3-jax: error: [^\n]+\n", err), err
    for word in words:
        assert word in err


def tree(path: Path) -> list[str]:
    return sorted(str(item.relative_to(path)) for item in path.rglob("*"))


# --- bad sweeps -----------------------------------------------------------------------------------------------------

BAD_SWEEPS = {
    "empty": ("", ["s.yaml: is empty"]),
    "comment": ("# nothing\n", ["s.yaml: is empty"]),
    "broken": ("experiment: scenes_cpu\ncells: [{model.depth: 2}\nset: {", ["s.yaml:3: broken YAML"]),
    "tab": ("experiment: scenes_cpu\n\tcells: 3\n", ["s.yaml:2: broken YAML"]),
    "tag": (
        'experiment: !!python/object/apply:os.system ["touch owned"]\n',
        ["s.yaml:1: broken YAML", "python/object"],
    ),
    "list": ("- a\n- b\n", ["s.yaml: is a list", "experiment, set, cells"]),
    "not text": (b"\xff\xfe\x00", ["s.yaml: is not UTF-8"]),
    "unknown key": (f"experiment: scenes_cpu\ncell: 3\n{CELLS}\n", ["s.yaml: unknown key 'cell'"]),
    "no experiment": (CELLS, ["s.yaml: experiment: expected"]),
    "experiment type": (f"experiment: 3\n{CELLS}", ["s.yaml: experiment: expected"]),
    "no cells": ("experiment: scenes_cpu\n", ["s.yaml: cells: expected a list"]),
    "cells empty": ("experiment: scenes_cpu\ncells: []\n", ["s.yaml: cells: expected a list"]),
    "cells mapping": ("experiment: scenes_cpu\ncells: {model.depth: 2}\n", ["s.yaml: cells: expected a list"]),
    "entry type": ("experiment: scenes_cpu\ncells: [3]\n", ["s.yaml: cells: entry 1: 3 is not a section"]),
    "key type": ("experiment: scenes_cpu\ncells: [{2: 3}]\n", ["s.yaml: cells: entry 1: 2 is not a key"]),
    "set type": (f"experiment: scenes_cpu\nset: 3\n{CELLS}", ["s.yaml: set: 3 is not a section"]),
    "axis empty": ("experiment: scenes_cpu\ncells: [{seed: []}]", ["entry 1: seed: an empty list"]),
    "misspelt": (
        "experiment: scenes_cpu\ncells: [{model.dept: 2}]",
        ["entry 1", "model.dept", "did you mean model.depth?"],
    ),
    "misspelt set": (f"experiment: scenes_cpu\nset: {{batchs: 2}}\n{CELLS}", ["s.yaml", "batchs", "batch?"]),
    "depth 0": ("experiment: scenes_cpu\ncells: [{model.depth: [2, 0]}]", ["entry 1: model.depth: 0 is out of range"]),
    "bool": ("experiment: scenes_cpu\ncells: [{model.depth: yes}]", ["entry 1: model.depth: True"]),
    "fraction": ("experiment: scenes_cpu\ncells: [{model.depth: 2.5}]", ["entry 1: model.depth: 2.5"]),
    "date": ("experiment: scenes_cpu\ncells: [{seed: 2020-01-01}]", ["entry 1: seed"]),
    "section": ("experiment: scenes_cpu\ncells: [{model: 3}]", ["entry 1: model: 3 is not a section"]),
    "two lengths": ("experiment: scenes_cpu\ncells: [{steps: 3, flops: 1e9}]", ["steps and flops are both set"]),
    "tiny budget": (
        "experiment: scenes_cpu\ncells: [{flops: 1e6}]",
        ["entry 1: flops: 1e+06 is too small for one step"],
    ),
    "bare drops": (
        "experiment: scenes_cpu\ncells: [{optimizer.drops: [[30, 0.5]]}]",
        ["entry 1: optimizer.drops[0]: 30 is not a list", "give optimizer.drops a list of its values"],
    ),
    "same twice": (
        "experiment: scenes_cpu\ncells: [{model.depth: [2, 3]}, {model.depth: 4}, {model.depth: 3, seed: 0}]",
        ["entries 1 and 3 give the same cell twice: d03-s0"],
    ),
    "same in one entry": (
        "experiment: scenes_cpu\ncells: [{seed: [1, 1]}]",
        ["entries 1 and 1 give the same cell twice"],
    ),
    "same by another name": (
        "experiment: scenes_cpu\ncells: [{optimizer.learning_rate: [4e-3, 8e-3]}, {seed: 0}]",
        ["entries 1 and 2 give the same cell twice: d04-lr4.0e-03-s0 and d04-s0"],
    ),
    "unknown experiment": (f"experiment: scenes_gpuu\n{CELLS}", ["no experiment 'scenes_gpuu'; shipped: scenes_gpu, "]),
    "missing file": (f"experiment: sub/none.py\n{CELLS}", ["sub/none.py: no such experiment file"]),
}


@pytest.mark.parametrize("text, words", BAD_SWEEPS.values(), ids=BAD_SWEEPS)
def test_a_bad_sweep_is_one_line(sd3, tmp_path, text, words):
    (tmp_path / "s.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    for command in ("plan", "run"):
        assert_one_line(*sd3("sweep", command, "s.yaml"), *words)
    assert tree(tmp_path) == ["s.yaml"]


BAD_EXPERIMENTS = {
    "syntax": ("x = 1\ndef get_config(:\n", ["exp.py:2: SyntaxError"]),
    "raises": ("def get_config():\n    y = 1\n    return 1 / 0\n", ["exp.py:3: ZeroDivisionError"]),
    "imports": ("import no_such_thing\n", ["exp.py:1: ModuleNotFoundError: No module named 'no_such_thing'"]),
    "exits": ("import sys\nsys.exit(7)\n", ["exp.py:2: SystemExit: 7"]),
    "nothing": ("", ["exp.py: defines no get_config()"]),
    "wrong type": ("def get_config():\n    return 3\n", ["exp.py: get_config() returned int"]),
    "misspelt field": (
        "from sd3_jax import config\ndef get_config():\n    c = config.default_config()\n    c.model.dept = 3\n",
        ["exp.py:4: unknown key dept: did you mean depth?"],
    ),
}


@pytest.mark.parametrize("text, words", BAD_EXPERIMENTS.values(), ids=BAD_EXPERIMENTS)
def test_a_broken_experiment_is_one_line(sd3, tmp_path, text, words):
    (tmp_path / "exp.py").write_text(text)
    (tmp_path / "s.yaml").write_text(f"experiment: exp.py\n{CELLS}\n")
    assert_one_line(*sd3("sweep", "plan", "s.yaml"), "s.yaml: experiment: ", *words)
    assert_one_line(*sd3("train", "exp.py", "--run", "r"), *words)
    assert not (tmp_path / "r").exists()


def test_experiments_are_found_relative_to_the_sweep(sd3, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "exp.py").write_text(
        "def get_config():\n    return {'steps': 2000, 'optimizer.warmup_steps': 1}\n"
    )
    (tmp_path / "a" / "s.yaml").write_text(f"experiment: exp.py\n{CELLS}\n")
    code, out, _ = sd3("sweep", "plan", "a/s.yaml", "--json", "-")
    assert code == 0
    assert json.loads(out)["cells"][0]["steps"] == 2000


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["sweep", "plan", "figre8"], ["no sweep 'figre8'; shipped: figure8, "]),
        (["sweep", "plan", "none/s.yaml"], ["no sweep 'none/s.yaml'"]),
        (["sweep", "plan", "figure8", "--hardware", "h1"], ["--hardware: 'h1'", "h100x"]),
        (["sweep", "plan", "figure8", "--mfu", "40"], ["--mfu"]),
        (["sweep", "plan", "figure8", "--price", "-1"], ["--price: -1.0"]),
        (["sweep", "plan", "figure8", "--hardware", "v5p-100"], ["'v5p-100' is not known; nearest: v5p-128, v5p-64"]),
        (["sweep", "plan", "figure8", "--hardware", "h100x8", "--compile"], ["--compile: is for TPU slices"]),
        (["sweep", "plan", "figure8", "--compile"], ["--compile: is for TPU slices", "named with --hardware"]),
        (["sweep", "plan", "figure8", "--law", "runs"], ["--law: is for --propose"]),
        (["sweep", "plan", "isoflop", "--propose", "-1"], ["--propose: -1.0 is not a number of FLOPs"]),
        (["train", "scenes_cpu", "--run", "r", "--set", "model.depth=0"], ["model.depth: 0 is out of range"]),
        (["train", "scenes_cpu", "--run", "r", "--set", "model.dept=4"], ["did you mean model.depth?"]),
        (["train", "scenes_cpu", "--run", "r", "--set", "steps"], ["--set 'steps': expected key=value"]),
        (["train", "scenes_cpu", "--run", "r", "--set", "model.depth=true"], ["model.depth: True"]),
        (["train", "none", "--run", "r"], ["no experiment 'none'"]),
        (["train", "none.py", "--run", "r"], ["none.py: no such experiment file"]),
        (["train", "none.json", "--run", "r"], ["none.json: no such experiment file"]),
        (["scenes", "scenes_cpu", "--out", "x.doc"], ["x.doc: is not the name of a picture"]),
        (["fit", "none"], ["none"]),
        (["correlate", "none"], ["none"]),
        (["isoflop", "none"], ["none"]),
        (["predict", "none", "--flops", "1e15"], ["none"]),
        (["predict", ".", "--flops=-1"], ["--flops"]),
        (["figure", "8", "none"], ["none"]),
        (["figure", "9", "none"], ["no figure '9'; there are 3 (scores"]),
        (["table", "1", "none"], ["none"]),
        (["table", "4", "none"], ["no table '4'; there are 1 (global ranking of formulations), 2 ("]),
        (["fit", "."], ["no run"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_arguments_are_one_line(sd3, tmp_path, arguments, words):
    assert_one_line(*sd3(*arguments), *words)
    assert tree(tmp_path) == []


def test_a_directory_of_unfinished_runs_is_one_line(sd3, tmp_path):
    records.open_run(tmp_path / "runs" / "d02-s0", resolve({"steps": 3}))
    assert_one_line(*sd3("fit", "runs"), "runs")
    assert_one_line(*sd3("figure", "8", "runs"), "runs")


def test_a_run_of_another_identity_is_shown_and_kept(sd3, tmp_path):
    (tmp_path / "s.yaml").write_text(f"experiment: scenes_cpu\n{CELLS}\n")
    (cell,) = spec.load(tmp_path / "s.yaml")
    other = resolve(experiments.load_experiment("scenes_cpu"), {"model.depth": 2, "batch": 32})
    records.open_run(tmp_path / "runs/s" / cell.name, other)
    before = (tmp_path / "runs/s/d02-s0/config.json").read_text()
    for command in ("run", "status", "retry"):
        assert_one_line(*sd3("sweep", command, "s.yaml"), "d02-s0: holds another run (batch: 32 -> 64)")
    assert (tmp_path / "runs/s/d02-s0/config.json").read_text() == before
    (tmp_path / "runs/s/d02-s0/config.json").write_text("{")
    assert_one_line(*sd3("sweep", "status", "s.yaml"), "config.json: is not JSON")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_and_a_forbidden_one_are_one_line(sd3, tmp_path, monkeypatch, number):
    def refuse(path, text):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(records, "write_atomic", refuse)
    assert_one_line(*sd3("sweep", "run", "lr_check_cpu"), "config.json", os.strerror(number))


def test_a_file_in_the_way_is_one_line(tmp_path):
    (tmp_path / "runs").write_text("")
    done = sd3_process("sweep", "run", "lr_check_cpu", cwd=tmp_path)
    assert_one_line(done.returncode, done.stdout, done.stderr, "runs")


def test_a_mesh_that_the_devices_cannot_fill_is_one_line(tmp_path):
    arguments = ["train", "scenes_cpu", "--run", "r", "--set", "mesh.data=3", "--set", "steps=2"]
    done = sd3_process(*arguments, cwd=tmp_path, JAX_PLATFORMS="cpu")
    assert_one_line(done.returncode, done.stdout, done.stderr, "batch: 64", "data 3 x fsdp 1")
    done = sd3_process(*arguments, "--set", "batch=63", cwd=tmp_path, JAX_PLATFORMS="cpu")
    assert_one_line(done.returncode, done.stdout, done.stderr, "mesh: data 3 x fsdp 1 does not fit 1 devices")
    assert tree(tmp_path) == []


def test_a_batch_that_the_mesh_cannot_divide_is_one_line(tmp_path):
    devices = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    arguments = ["train", "scenes_cpu", "--run", "r", "--set", "batch=63", "--set", "steps=2"]
    done = sd3_process(*arguments, cwd=tmp_path, **devices)
    assert_one_line(done.returncode, done.stdout, done.stderr, "batch", "63")
    assert tree(tmp_path) == []


# --- what it prints -------------------------------------------------------------------------------------------------


def test_help_plan_and_status_do_without_jax(tmp_path):
    code = (
        "import sys, atexit; from sd3_jax import cli; "
        "atexit.register(lambda: print('heavy', *{'jax', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules))); "
        "cli.main(sys.argv[1:])"
    )
    for arguments in (["--help"], ["sweep", "plan", "figure8"], ["sweep", "status", "figure8_cpu"]):
        argv = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "heavy"


def test_version_and_help(sd3):
    assert sd3("--version") == (0, f"sd3-jax {sd3_jax.__version__}\n", "")
    commands = ["train", "scenes", "fit", "isoflop", "predict", "figure", "report"]
    for command in [[name] for name in commands] + [["sweep", name] for name in ("plan", "run", "status", "retry")]:
        code, out, _ = sd3(*command, "--help")
        assert code == 0
        assert f"Example: sd3-jax {' '.join(command)} " in out


def test_a_plan_that_cannot_run_is_shown_and_refused(sd3):
    code, out, err = sd3("sweep", "plan", "figure8", "--hardware", "v5p-8")
    assert code == 2
    assert out.count("d38-drop300000x0.5-s0") == 1
    assert re.fullmatch(r"sd3-jax: error: [^\n]*: 6 of 6 cells cannot run as written: d15-s0, d18-s0, [^\n]+\n", err)


def test_a_proposal_is_a_sweep(sd3, tmp_path):
    code, out, err = sd3("sweep", "plan", "isoflop", "--propose", "1e21")
    assert (code, err) == (0, "")
    (tmp_path / "mine.yaml").write_text(out)
    assert sd3("sweep", "plan", "mine.yaml", "--hardware", "v5p-128")[::2] == (0, "")


def test_plan_as_json_is_pure_json(sd3, tmp_path):
    code, out, err = sd3("sweep", "plan", "figure8", "--json", "-")
    assert (code, err) == (0, "")
    plan = json.loads(out)
    assert plan["cells"][0] | {"name": "d15-s0", "depth": 15, "parameters": 496_066_624} == plan["cells"][0]
    code, out, _ = sd3("sweep", "plan", "figure8", "--json", "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text()) == plan
    assert "8.894e20" in out


def test_status_of_a_sweep_that_never_ran(sd3, tmp_path):
    code, out, _ = sd3("sweep", "status", "lr_check_cpu", "--json", "-")
    assert code == 0
    assert {row["state"] for row in json.loads(out)} == {"waiting"}
    assert tree(tmp_path) == []


@pytest.mark.parametrize("result, code", [("done", 0), ("failed", 1), ("waiting", 1), ("interrupted", 42)])
def test_exit_status_of_a_sweep(sd3, tmp_path, monkeypatch, result, code):
    (tmp_path / "s.yaml").write_text(f"experiment: scenes_cpu\n{CELLS}\n")

    def pretend(cells, runs_dir, console, workers):
        assert (runs_dir, workers) == (Path("elsewhere"), 3)
        return [status.CellState(cells[0], result, 7, 2000, 0.5, 0.25, 1.0, 90.0, why="so [it] goes")]

    for command in ("run", "retry"):
        monkeypatch.setattr(runner, command, pretend)
        got, out, _ = sd3("sweep", command, "s.yaml", "--runs", "elsewhere", "--workers", "3")
        assert got == code
        assert all(word in out for word in ("d02-s0", result, "0.2500", "7/2,000", "1.5", "so [it] goes"))


def test_ctrl_c_is_130(sd3, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", interrupt)
    assert sd3("sweep", "run", "lr_check_cpu")[0] == 130


def test_train_refuses_a_run_that_another_process_holds(sd3, tmp_path, monkeypatch):
    config = resolve(experiments.load_experiment("scenes_cpu"))
    records.open_run(tmp_path / "r", config)
    own = lease.claim(tmp_path / "r", lease.Watch())

    def beat_meanwhile(seconds):
        own.path.write_text(json.dumps(lease._self(1)))

    monkeypatch.setattr(lease, "time", SimpleNamespace(monotonic=time.monotonic, sleep=beat_meanwhile))
    status, _, errors = sd3("train", "scenes_cpu", "--run", "r")
    assert status == 75
    assert f"process {os.getpid()} of " in errors
    assert "is running this run" in errors


def test_a_sweeps_claim_is_adopted_before_jax_is_imported(sd3, tmp_path, monkeypatch):
    """Nobody else keeps it alive, and on a busy machine the import may take as long as a lease."""
    records.open_run(tmp_path / "r", resolve(experiments.load_experiment("scenes_cpu")))
    for _ in range(2):
        last = lease.claim(tmp_path / "r", lease.Watch())
        lease.give_up(last)
    monkeypatch.setitem(sys.modules, "jax", None)  # to import it is an error
    monkeypatch.setenv("SD3_JAX_LEASE", "1")
    status, _, errors = sd3("train", "scenes_cpu", "--run", "r")
    assert status == 75
    assert "was taken for dead" in errors


# --- experiments and the platform -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in experiments.EXPERIMENTS.glob("[a-z]*.py")))
def test_shipped_experiments_resolve(name, tmp_path):
    config = resolve(experiments.load_experiment(name))
    records.open_run(tmp_path, config)
    assert resolve(experiments.load_experiment(str(tmp_path / "config.json"))) == config  # a run is an experiment too


def test_a_process_that_trains_on_cpu_keeps_its_memory_unless_the_user_says_otherwise():
    settings = platform.memory_settings({"HOME": "/"})
    assert set(settings) == ({"GLIBC_TUNABLES"} if sys.platform == "linux" else set())
    assert platform.memory_settings({"GLIBC_TUNABLES": "glibc.malloc.mmap_max=1"}) == {}
    code = "import mmap; print(len(bytearray(1 << 26)))"  # such a process starts, and can still allocate
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | settings, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"67108864\n", b"")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no processor affinity here")
def test_a_worker_keeps_to_its_cores():
    cpu = platform.cores()[-1]
    code = "from sd3_jax import platform; platform.prepare(); print(platform.cores())"
    env = os.environ | {"SD3_JAX_CPUS": str(cpu)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [cpu]


def test_an_accelerator_needs_a_device_and_a_plugin(monkeypatch):
    class Point:
        name = "xla_cuda12"

    found = {"/dev/nvidia[0-9]*": ["/dev/nvidia0"]}
    monkeypatch.setattr(platform.glob, "glob", lambda pattern: found.get(pattern, []))
    monkeypatch.setattr(platform.importlib.metadata, "entry_points", lambda group: [Point])
    assert platform.has_accelerator({})
    assert not platform.has_accelerator({"JAX_PLATFORMS": "cpu"})
    monkeypatch.setattr(platform.importlib.metadata, "entry_points", lambda group: [])
    assert not platform.has_accelerator({})
    found["/dev/accel[0-9]*"] = ["/dev/accel0"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "libtpu" else None)
    assert platform.has_accelerator({})


def test_contact_sheet(sd3, tmp_path):
    code, out, err = sd3("scenes", "scenes_cpu", "--out", "sub/x.png", "--number", "3", "--set", "seed=4")
    assert (code, out, err) == (0, "sub/x.png\n", "")
    assert (tmp_path / "sub/x.png").read_bytes().startswith(b"\x89PNG")
    assert tree(tmp_path) == ["sub", "sub/x.png"]


def test_a_loop_that_orbax_finds_closed_is_no_line_of_ours_and_all_else_is_said() -> None:
    program = (
        "from sd3_jax.cli import main\n"
        "class Late:\n    def __init__(self, said): self.said = said\n"
        "    def __del__(self): raise RuntimeError(self.said)\n"
        "try: main(['--version'])\nexcept SystemExit: pass\n"
        "Late('Event loop is closed')\nLate('something else')\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr
    assert "Event loop is closed" not in said
    assert "RuntimeError: something else" in said
