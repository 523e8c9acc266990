import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from sd3_jax import lease, overlays, platform, records
from sd3_jax.errors import UserError
from sd3_jax.lease import Watch
from sd3_jax.sweep import claims, spec, status
from sd3_jax.sweep import run as runner
from sd3_jax.training.optimizer import cooldown_start

EXPERIMENT = textwrap.dedent(
    """\
    from sd3_jax.config import default_config


    def get_config():
        config = default_config()
        config.steps = 100
        config.optimizer.warmup_steps = 10
        return config
    """
)

# Stands in for training: no JAX, a few milliseconds, and what it does is ordered by files in a control directory.
TRAINER = textwrap.dedent(
    """\
    import json, os, signal, sys, time
    from contextlib import ExitStack
    from pathlib import Path
    from sd3_jax import lease

    run_dir, control, parent = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    holding = ExitStack()
    holding.enter_context(lease.held(lease.adopt(run_dir, int(os.environ["SD3_JAX_LEASE"]))))
    order = lambda word: (control / f"{word}-{run_dir.name}").exists()
    with open(run_dir / "lives.jsonl", "a") as file:
        file.write("{}\\n")
    print("at work", flush=True)
    with open(control / "starts", "a") as file:  # whoever sees this finds all that is before it
        file.write(json.dumps({"cell": run_dir.name, "parent": parent, "cpus": os.environ.get("SD3_JAX_CPUS")}) + "\\n")
    if order("crash"):
        sys.exit("Traceback ...\\nValueError: no good\\nsome last words")
    if order("diverge"):
        (run_dir / "FAILED").write_text("loss is not finite at step 7\\n")
        sys.exit(1)
    if order("kill"):
        (control / f"kill-{run_dir.name}").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    while order("hang"):
        time.sleep(0.01)
    time.sleep(float(os.environ.get("TRAINER_SECONDS", "0")))
    row = {"split": "train", "step": 100, "loss": 0.5, "images_per_second": 10.0, "seconds": 3.0}
    with open(run_dir / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\\n")
        file.write(json.dumps(row | {"split": "validation", "weights": "raw", "loss": 0.3}) + "\\n")
        file.write(json.dumps(row | {"split": "validation", "weights": "ema", "loss": 0.25}) + "\\n")
    (run_dir / "DONE").write_text("{}\\n")
    holding.close()
    """
)

DRIVER = textwrap.dedent(
    """\
    import signal
    import sys
    from pathlib import Path
    from rich.console import Console
    from sd3_jax.errors import Stopped
    from sd3_jax.sweep import run as runner, spec

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started to ignore it
    yaml, runs, trainer, control, workers = sys.argv[1:]
    command = lambda run_dir, parent: [sys.executable, trainer, str(run_dir), control, str(parent)]
    try:
        states = runner.run(spec.load(Path(yaml)), Path(runs), Console(stderr=True), int(workers), command)
    except KeyboardInterrupt:
        sys.exit(130)
    except Stopped:
        sys.exit(42)
    sys.exit(any(state.state != "done" for state in states))
    """
)


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    release(made)  # of a test that failed, too: nothing is left at work
    for process in made.drivers:
        process.kill()
        process.communicate()


class Bench:
    """A sweep on disk with a stand-in for training."""

    def __init__(self, path: Path):
        self.path, self.runs, self.control = path, path / "runs", path / "control"
        self.drivers: list[subprocess.Popen] = []
        self.control.mkdir()
        (path / "exp.py").write_text(EXPERIMENT)
        (path / "trainer.py").write_text(TRAINER)
        (path / "driver.py").write_text(DRIVER)
        self.sweep("cells: [{model.depth: [2, 3, 4], seed: 0}]")

    def sweep(self, text: str) -> list[spec.Cell]:
        (self.path / "s.yaml").write_text(f"experiment: exp.py\n{text}\n")
        return self.cells()

    def cells(self) -> list[spec.Cell]:
        return spec.load(self.path / "s.yaml")

    def order(self, *words: str) -> None:
        for word in words:
            (self.control / word).touch()

    def command(self, run_dir: Path, parent: Path | None) -> list[str]:
        parent_name = parent.name if parent else ""
        return [sys.executable, str(self.path / "trainer.py"), str(run_dir), str(self.control), parent_name]

    def run(self, workers: int = 2, action=runner.run) -> dict[str, status.CellState]:
        states = action(self.cells(), self.runs, Console(file=open(os.devnull, "w")), workers, self.command)  # noqa: SIM115
        return {state.cell.name: state for state in states}

    def starts(self) -> list[dict]:
        path = self.control / "starts"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def started(self) -> list[str]:
        return [start["cell"] for start in self.starts()]

    def driver(self, workers: int = 2, **environ: str) -> subprocess.Popen:
        files = [self.path / name for name in ("driver.py", "s.yaml", "runs", "trainer.py", "control")]
        argv = [sys.executable, *map(str, files), str(workers)]
        self.drivers.append(subprocess.Popen(argv, env={**os.environ, **environ}, stderr=subprocess.PIPE, text=True))
        return self.drivers[-1]

    def states(self) -> dict[str, str]:
        return {cell.name: status.read_state(cell, self.runs).state for cell in self.cells()}


def wait_for(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


# --- cells ----------------------------------------------------------------------------------------------------------


def names(cells: list[spec.Cell]) -> list[str]:
    return [cell.name for cell in cells]


def test_cells_are_the_products_of_their_lists():
    cells = spec.cells(
        {"steps": 9},
        {"batch": 8},
        [{"model.depth": [2, 3], "seed": [0, 1]}, {"model": {"depth": 12}, "seed": 7, "mesh.unroll": 2}],
    )
    assert names(cells) == ["d02-s0", "d02-s1", "d03-s0", "d03-s1", "d12-s7"]
    assert [(cell.config.model.depth, cell.config.seed) for cell in cells][:3] == [(2, 0), (2, 1), (3, 0)]
    assert all(cell.config.batch == 8 and cell.config.steps == 9 and cell.parent is None for cell in cells)


@pytest.mark.parametrize(
    "entry, expected",
    [
        ({"model.depth": 4, "flops": "1e15"}, ["d04-f1.0e15-s0"]),
        ({"model.depth": 4, "flops": 1.25e15}, ["d04-f1.25e15-s0"]),
        ({"model.depth": 4, "optimizer.learning_rate": ["4e-3", 0.002]}, ["d04-lr4.0e-03-s0", "d04-lr2.0e-03-s0"]),
        ({"model.depth": 4, "optimizer.learning_rate": [1e-4, 2e-4]}, ["d04-lr1.0e-04-s0", "d04-lr2.0e-04-s0"]),
        ({"model.depth": 4, "optimizer.learning_rate": 1e-4}, ["d04-s0"]),  # the base's own
        ({"model.depth": 4, "optimizer.cooldown": [0, 0.2]}, ["d04-s0", "d04-cooldown0.2-s0"]),
        ({"model.depth": 38, "optimizer.drops": [[[300000, 0.5]]]}, ["d38-drop300000x0.5-s0"]),
        ({"model.depth": 4, "flow.density": ["uniform"]}, ["d04-density_uniform-s0"]),
        ({"model.depth": 4, "model.qk_norm": True}, ["d04-qk_norm_true-s0"]),
        ({"model.depth": 128, "steps": 50, "batch": 3}, ["d128-n50-b3-s0"]),
    ],
)
def test_names_say_depth_seed_and_what_the_entry_changes(entry, expected):
    assert names(spec.cells({"steps": 1000}, {}, [entry])) == expected


def test_names_do_not_depend_on_other_entries():
    entry = {"model.depth": [2, 3], "seed": 0}
    alone = names(spec.cells({"steps": 10}, {}, [entry]))
    more = spec.cells({"steps": 10}, {}, [entry, {"model.depth": 2, "optimizer.learning_rate": [1e-3, 2e-3]}])
    assert alone == names(more)[:2]


def test_numbers_that_yaml_reads_as_strings_become_numbers(bench):
    cells = bench.sweep("cells: [{model.depth: 2, flops: 1e15}, {model.depth: 2, flops: 2.0e15}]")
    assert [cell.config.flops for cell in cells] == [1e15, 2e15]
    assert names(cells) == ["d02-f1.0e15-s0", "d02-f2.0e15-s0"]
    assert cells[0].config.steps is None  # the experiment's length is replaced


def test_a_cooldown_finds_its_parent_which_keeps_the_checkpoint():
    entries = [
        {"model.depth": 3, "optimizer.cooldown": [0.2, 0.5]},
        {"model.depth": [2, 3], "seed": [0, 1]},
        {"model.depth": 2, "seed": 1, "steps": 70, "optimizer.cooldown": 0.2},  # no other cell has its length
    ]
    cells = {cell.name: cell for cell in spec.cells({"steps": 1001}, {}, entries)}
    assert cells["d03-cooldown0.2-s0"].parent == cells["d03-cooldown0.5-s0"].parent == "d03-s0"
    assert cells["d02-n70-cooldown0.2-s1"].parent is None
    assert cells["d03-s0"].config.keep_steps == (501, 801)  # 1001 - round(500.5), 1001 - round(200.2)
    assert cells["d03-s1"].config.keep_steps == cells["d02-s0"].config.keep_steps == ()
    order = list(cells)
    assert order.index("d03-s0") < order.index("d03-cooldown0.2-s0")


@pytest.mark.parametrize("steps", [1, 7, 250, 2001])
@pytest.mark.parametrize("cooldown", [0.0, 0.1, 0.25, 0.333, 1.0])
def test_branches_start_where_the_schedule_begins_to_cool(steps, cooldown):
    config = overlays.resolve({"steps": steps, "optimizer.cooldown": cooldown})
    assert spec.branch_step(config) == cooldown_start(config.optimizer, steps)


# --- running --------------------------------------------------------------------------------------------------------


def test_every_cell_is_run_once_parents_first_and_done_ones_are_skipped(bench):
    bench.sweep("cells: [{model.depth: 4, optimizer.cooldown: 0.2}, {model.depth: [2, 3, 4]}]")
    states = bench.run()
    assert {state.state for state in states.values()} == {"done"}
    assert sorted(bench.started()) == ["d02-s0", "d03-s0", "d04-cooldown0.2-s0", "d04-s0"]
    parents = {start["cell"]: start["parent"] for start in bench.starts()}
    assert parents == {"d02-s0": "", "d03-s0": "", "d04-s0": "", "d04-cooldown0.2-s0": "d04-s0"}
    assert bench.started().index("d04-s0") < bench.started().index("d04-cooldown0.2-s0")
    assert states["d02-s0"].ema_loss == 0.25
    assert "at work" in (bench.runs / "d02-s0" / "log.txt").read_text()
    bench.run()
    assert len(bench.started()) == 4


def test_the_costliest_cell_starts_first(bench):
    bench.sweep("cells: [{model.depth: [2, 5, 3], seed: 0}, {model.depth: 3, seed: 1, steps: 5000}]")
    bench.run(workers=1)
    assert bench.started() == ["d03-n5000-s1", "d05-s0", "d03-s0", "d02-s0"]


def test_workers_get_cores_of_their_own(bench, monkeypatch):
    monkeypatch.setattr(platform, "has_accelerator", lambda *_: False)
    monkeypatch.setattr(platform, "cores", lambda: [0, 1, 2, 5, 7])
    bench.sweep("cells: [{model.depth: [2, 3]}]")
    bench.run(workers=2)
    shares = [set(start["cpus"].split(",")) for start in bench.starts()]
    assert shares[0].isdisjoint(shares[1])
    assert shares[0] | shares[1] == {"0", "1", "2", "5", "7"}


def release(bench: Bench) -> None:
    for path in bench.control.glob("hang-*"):
        path.unlink()


def test_more_workers_than_cores_share_them():
    assert runner._shares(["0", "1"], 3) == ["0", "1", "0"]


def test_failed_cells_are_listed_left_and_retried_on_demand(bench):
    bench.sweep("cells: [{model.depth: [2, 3, 4]}, {model.depth: 3, optimizer.cooldown: 0.5}]")
    bench.order("crash-d03-s0", "diverge-d04-s0")
    states = bench.run()
    assert bench.states() == {
        "d02-s0": "done",
        "d03-s0": "failed",
        "d04-s0": "failed",
        "d03-cooldown0.5-s0": "waiting",
    }
    assert states["d03-s0"].why == "ValueError: no good"
    assert states["d04-s0"].why == "loss is not finite at step 7"
    assert states["d03-cooldown0.5-s0"].why == "its parent d03-s0 did not finish"

    (bench.control / "crash-d03-s0").unlink()
    bench.run()
    assert sorted(bench.started()) == ["d02-s0", "d03-s0", "d04-s0"]  # run leaves failed cells alone

    again = bench.run(action=runner.retry)
    assert sorted(again) == ["d03-cooldown0.5-s0", "d03-s0", "d04-s0"]
    assert sorted(bench.started()[3:]) == ["d03-cooldown0.5-s0", "d03-s0", "d04-s0"]
    assert again["d03-s0"].state == again["d03-cooldown0.5-s0"].state == "done"
    assert again["d04-s0"].state == "failed"


def test_a_killed_cell_is_resumed_by_the_next_run(bench):
    bench.order("kill-d03-s0")
    states = bench.run()
    assert {name: state.state for name, state in states.items()} == {
        "d02-s0": "done",
        "d03-s0": "interrupted",
        "d04-s0": "done",
    }
    assert states["d03-s0"].why == "killed by SIGKILL"
    assert not (bench.runs / "d03-s0" / "FAILED").exists()
    assert bench.run()["d03-s0"].state == "done"
    assert sorted(bench.started()) == ["d02-s0", "d03-s0", "d03-s0", "d04-s0"]


def test_a_longer_sweep_goes_on_with_its_done_cells(bench):
    bench.sweep("cells: [{model.depth: 2}]")
    bench.run()
    bench.sweep("set: {steps: 200}\ncells: [{model.depth: 2}]")
    assert bench.states() == {"d02-s0": "interrupted"}
    bench.run()
    assert bench.started() == ["d02-s0", "d02-s0"]
    assert records.load_config(bench.runs / "d02-s0").steps == 200


def test_a_conflict_is_found_before_anything_runs_or_is_written(bench):
    other = overlays.resolve({"steps": 100, "model.depth": 4, "batch": 8})
    records.open_run(bench.runs / "d04-s0", other)
    with pytest.raises(UserError, match=r"d04-s0: holds another run \(.*batch: 8 -> 256.*\)"):
        bench.run()
    assert bench.started() == []
    assert sorted(path.name for path in bench.runs.iterdir()) == ["d04-s0"]


def test_two_runners_share_a_sweep_and_run_no_cell_twice(bench):
    bench.sweep("cells: [{model.depth: 2, seed: [0, 1, 2, 3, 4, 5, 6, 7]}]")
    runners = [bench.driver(TRAINER_SECONDS="0.15") for _ in range(2)]
    for process in runners:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert sorted(bench.started()) == [f"d02-s{seed}" for seed in range(8)]
    assert set(bench.states().values()) == {"done"}


@pytest.mark.parametrize("order, why", [("crash", "ValueError: no good"), ("diverge", "loss is not finite at step 7")])
def test_two_runners_try_a_cell_that_fails_once(bench, order, why):
    """Between its end and the word that it has failed, nobody else may take it for one that is free."""
    bench.sweep("cells: [{model.depth: 2, seed: [0, 1, 2, 3]}]")
    bench.order(*(f"{order}-d02-s{seed}" for seed in range(4)))
    runners = [bench.driver() for _ in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in runners]
    assert [process.returncode for process in runners] == [1, 1], errors
    assert sorted(bench.started()) == [f"d02-s{seed}" for seed in range(4)]
    assert {(bench.runs / f"d02-s{seed}" / "FAILED").read_text() for seed in range(4)} == {f"{why}\n"}
    assert "taken over" not in "".join(errors)


def test_a_cell_that_another_worker_finishes_as_it_is_claimed_is_not_run(bench, monkeypatch):
    (cell,) = bench.sweep("cells: [{model.depth: 2}]")
    runner.prepare([cell], bench.runs)
    claim = lease.claim

    def too_late(run_dir, watch):
        records.finish(run_dir, {})
        return claim(run_dir, watch)

    monkeypatch.setattr(lease, "claim", too_late)
    assert claims.claim_next([cell], bench.runs, Watch()) is True
    assert not Watch().is_alive(bench.runs / cell.name)
    assert claims.claim_next([cell], bench.runs, Watch()) is False


def test_cells_outlive_a_killed_runner_under_their_lease(bench):
    bench.sweep("cells: [{model.depth: 2, seed: [0, 1]}]")
    bench.order("hang-d02-s0", "hang-d02-s1")
    first = bench.driver(workers=1)
    wait_for(lambda: bench.started())
    first.kill()
    first.wait()
    (cell,) = bench.started()
    assert bench.states()[cell] == "running"
    second = bench.driver(workers=2)
    wait_for(lambda: len(bench.started()) == 2)
    release(bench)
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 0, errors
    assert sorted(bench.started()) == ["d02-s0", "d02-s1"]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 42)])
def test_an_interrupted_sweep_stops_its_cells_and_resumes(bench, number, code):
    bench.order("hang-d04-s0")
    process = bench.driver(workers=1)
    wait_for(lambda: bench.started() == ["d04-s0"])
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert lease.newest(bench.runs / "d04-s0")["given_up"]  # another machine may go on at once
    assert bench.states() == {"d02-s0": "waiting", "d03-s0": "waiting", "d04-s0": "interrupted"}
    release(bench)
    assert {state.state for state in bench.run().values()} == {"done"}


def test_parts_of_a_sweep_are_all_of_it_once_with_branches_beside_their_cell(bench):
    entries = ["{model.depth: [2, 3, 4, 5], seed: 0}", "{model.depth: [2, 5], seed: 0, optimizer.cooldown: 0.2}"]
    cells = bench.sweep(f"cells: [{', '.join(entries)}]")
    for count in (1, 2, 3, 7):
        parts = [runner.share(cells, f"{i + 1}/{count}") for i in range(count)]
        assert sorted(cell.name for part in parts for cell in part) == sorted(names(cells))
        for part in parts:
            assert {cell.parent for cell in part} - {None} <= {cell.name for cell in part}
    for wrong in ("0/2", "3/2", "1", "1/0", "a/b", "-1/2"):
        with pytest.raises(UserError, match="is not a part"):
            runner.share(cells, wrong)


def test_a_cell_that_was_taken_over_is_not_failed_and_is_waited_for(bench):
    """The child of a worker that was taken for dead ends with an error: the cell is another worker's now."""
    (cell,) = bench.sweep("cells: [{model.depth: 2}]")
    bench.order("hang-d02-s0")
    process = bench.driver(workers=1)
    wait_for(lambda: bench.started() == ["d02-s0"])
    run_dir = bench.runs / cell.name
    other = {**lease.newest(run_dir), "pid": os.getpid(), "born": lease._born(os.getpid())}
    (run_dir / lease.FOLDER / "000002").write_text(json.dumps(other))
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    time.sleep(1.0)
    assert process.poll() is None
    assert records.status(run_dir) == "started"
    records.finish(run_dir, {})
    lease.give_up(lease.Lease(run_dir, 2))
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert bench.started() == ["d02-s0"]


def test_a_silent_holder_is_stalled(bench, monkeypatch):
    (cell,) = bench.sweep("cells: [{model.depth: 2}]")
    runner.prepare([cell], bench.runs)
    own = lease.claim(bench.runs / cell.name, Watch())
    assert bench.states() == {cell.name: "running"}
    claim, now = json.loads(own.path.read_text()), time.monotonic()
    own.path.write_text(json.dumps(claim | {"uptime": now - 1000}))
    monkeypatch.setattr(lease, "time", SimpleNamespace(monotonic=lambda: now, time=time.time))
    state = status.read_state(cell, bench.runs)
    assert state.state == "stalled"
    assert "has been silent for 1000 s" in state.why
    records.finish(bench.runs / cell.name, {})
    assert bench.states() == {cell.name: "done"}  # before its holder has left, too


def test_workers_by_default_one_per_core_on_cpu_and_one_on_an_accelerator(monkeypatch):
    monkeypatch.setattr(platform, "cores", lambda: [0, 1, 2, 3])
    cpu, gpu = {"JAX_PLATFORMS": "cpu"}, {"JAX_PLATFORMS": "cuda,cpu"}
    assert [runner.default_workers(cells, cpu) for cells in (0, 1, 3, 9)] == [1, 1, 3, 4]
    assert runner.default_workers(9, gpu) == 1


# --- status ---------------------------------------------------------------------------------------------------------


def test_time_left_is_flops_over_the_speed_of_what_runs(bench):
    bench.sweep("cells: [{model.depth: 2, seed: [0, 1]}]")
    cells = bench.cells()
    runner.prepare(cells, bench.runs)
    run_dir = bench.runs / "d02-s0"
    records.append(run_dir / "lives.jsonl", {})
    records.append(run_dir / "metrics.jsonl", {"split": "train", "step": 40, "loss": 1.0, "images_per_second": 64.0})
    assert bench.states() == {"d02-s0": "interrupted", "d02-s1": "waiting"}
    own = lease.claim(run_dir, Watch())
    assert own is not None
    states = [status.read_state(cell, bench.runs) for cell in cells]
    lease.give_up(own)
    assert [state.state for state in states] == ["running", "waiting"]
    assert status.seconds_left(states[:1]) == pytest.approx(60 * 256 / 64)
    assert status.seconds_left(states) == pytest.approx(160 * 256 / 64)


def test_status_reads_past_a_torn_line_and_a_long_record(bench):
    (cell,) = bench.sweep("set: {steps: 5000}\ncells: [{model.depth: 2}]")
    run_dir = bench.runs / cell.name
    runner.prepare([cell], bench.runs)
    records.append(run_dir / "lives.jsonl", {})
    with open(run_dir / "metrics.jsonl", "w") as file:
        file.write(json.dumps({"split": "validation", "weights": "ema", "step": 1, "loss": 0.9}) + "\n")
        for step in range(2, 2000):
            file.write(json.dumps({"split": "train", "step": step, "loss": 1.0, "images_per_second": 5.0}) + "\n")
        file.write('{"split": "train", "step": 2000, "lo')
    state = status.read_state(cell, bench.runs)
    assert (state.step, state.ema_loss, state.state) == (1999, 0.9, "interrupted")
