"""Checkpoints and records in a bucket: another machine goes on from them, and takes no other run's."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_resume import final_state
from test_resume import history as every_row
from tiny import tiny

from sd3_jax import bucket, records
from sd3_jax import config as configs
from sd3_jax.config import RunConfig
from sd3_jax.errors import Stopped, UserError
from sd3_jax.evaluate import write_scores
from sd3_jax.train import train
from sd3_jax.training import checkpoint


def history(run_dir: Path) -> list[dict]:
    """But for what is measured where a shorter run ended, which a longer one does not measure there."""
    return [row for row in every_row(run_dir) if (row["split"], row["step"]) != ("validation", 5)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole") / "d02"
    train(tiny(), run_dir)
    return run_dir


@pytest.mark.slow
def test_another_machine_goes_on_from_what_is_shared(undisturbed: Path, tmp_path: Path) -> None:
    root = {"checkpoint_root": str(tmp_path / "root")}
    first, second, third = (tmp_path / machine / "d02" for machine in ("a", "b", "c"))
    train(tiny(steps=5, **root), first)
    assert not (first / "checkpoints").exists()
    assert checkpoint.saved_steps(tmp_path / "root" / "d02" / "checkpoints") == [5]
    train(tiny(**root), second)  # which has nothing of it
    assert [life["resumed_from"] for life in records.read_rows(second / "lives.jsonl")[0]] == [0, 5]
    assert history(second) == history(undisturbed)
    train(tiny(**root), first)  # which has stale records: that it is done, and all else, comes from there
    assert history(first) == history(undisturbed)
    assert records.status(first) == "done"
    shared = tmp_path / "root" / "d02"
    assert (shared / "DONE").read_bytes() == (second / "DONE").read_bytes() == (first / "DONE").read_bytes()
    with pytest.raises(UserError, match="holds another run .*seed: 0 -> 1.*choose another checkpoint_root"):
        train(tiny(seed=1, **root), third)
    assert not third.exists()


def test_what_is_here_and_newer_is_kept(tmp_path: Path) -> None:
    config = tiny(checkpoint_root=str(tmp_path / "root"))
    run_dir = tmp_path / "run"
    records.open_run(run_dir, config)
    records.append(run_dir / "lives.jsonl", {"resumed_from": 0})
    for step in (1, 2):
        records.append(run_dir / "metrics.jsonl", {"split": "train", "step": step})
        if step == 1:
            records.fail(run_dir, "full disk")
            bucket.push(run_dir, config)
            (run_dir / "FAILED").unlink()
    bucket.pull(run_dir, config)
    assert len(records.read_rows(run_dir / "metrics.jsonl")[0]) == 2
    assert records.status(run_dir) == "started"
    bucket.push(run_dir, config)
    assert sorted(path.name for path in (tmp_path / "root" / "run").iterdir()) == [
        "config.json",
        "lives.jsonl",
        "metrics.jsonl",
    ]


def life(run_dir: Path, config: RunConfig, steps: int) -> None:
    """A life that wrote so many rows from the beginning."""
    records.open_run(run_dir, config)
    records.append(run_dir / "lives.jsonl", {"resumed_from": 0})
    for step in range(1, steps + 1):
        records.append(run_dir / "metrics.jsonl", {"split": "train", "step": step})


@pytest.mark.parametrize("end", ["DONE", "FAILED"])
def test_an_end_that_is_past_there_is_past_here(tmp_path: Path, end: str) -> None:
    """Another machine has made a done run longer, or tried a failed one again, and is not at its end yet."""
    short, long = (tiny(steps=steps, checkpoint_root=str(tmp_path / "root")) for steps in (2, 4))
    life(tmp_path / "a" / "run", short, 2)
    records.write_atomic(tmp_path / "a" / "run" / end, "{}\n")
    life(tmp_path / "b" / "run", long, 3)
    bucket.push(tmp_path / "b" / "run", long)
    bucket.pull(tmp_path / "a" / "run", long)
    records.open_run(tmp_path / "a" / "run", long)
    assert records.status(tmp_path / "a" / "run") == "started"
    assert len(records.read_rows(tmp_path / "a" / "run" / "metrics.jsonl")[0]) == 3


def test_who_goes_on_has_every_row_however_many_lives_it_had_itself(tmp_path: Path) -> None:
    config = tiny(checkpoint_root=str(tmp_path / "root"))
    life(tmp_path / "a" / "run", config, 2)
    records.append(tmp_path / "a" / "run" / "lives.jsonl", {"resumed_from": 0})
    life(tmp_path / "b" / "run", config, 3)
    bucket.push(tmp_path / "b" / "run", config)
    bucket.pull(tmp_path / "a" / "run", config)
    assert len(records.read_rows(tmp_path / "a" / "run" / "metrics.jsonl")[0]) == 3


def test_an_end_that_a_kill_kept_from_being_copied_is_copied_later(tmp_path: Path) -> None:
    config, run_dir = tiny(checkpoint_root=str(tmp_path / "root")), tmp_path / "run"
    life(run_dir, config, 2)
    bucket.push(run_dir, config)
    records.finish(run_dir, {"steps": 2})
    bucket.pull(run_dir, config)
    assert (tmp_path / "root" / "run" / "DONE").read_bytes() == (run_dir / "DONE").read_bytes()


def score(step: int, value: float, **more: Any) -> dict[str, Any]:
    return {"step": step, "name": "geneval", "group": "overall", "value": value, **more}


def values(path: Path) -> dict[tuple[int, str], float]:
    return {(row["step"], row["group"]): row["value"] for row in records.read_scores(path / "evals.jsonl")[0]}


def test_scores_of_any_machine_are_there_and_no_older_copy_takes_their_place(tmp_path: Path) -> None:
    config = tiny(steps=9, checkpoint_root=str(tmp_path / "root"))
    trainer, judge, there = (tmp_path / name / "run" for name in ("a", "b", "root"))
    life(trainer, config, 4)
    bucket.push(trainer, config)
    bucket.pull(judge, config)
    assert not (judge / "evals.jsonl").exists()
    write_scores(judge, [score(2, 0.1), score(4, 0.2), score(4, 0.25, group="two_object")], whole=True)
    assert values(there) == values(judge) == {(2, "overall"): 0.1, (4, "overall"): 0.2, (4, "two_object"): 0.25}
    write_scores(trainer, [score(3, 0.15)])  # who has none of the judge's
    assert values(trainer) == {(3, "overall"): 0.15}
    assert values(there) == values(judge) | values(trainer)
    bucket.push(trainer, config)
    assert values(trainer) == values(there) == values(judge) | {(3, "overall"): 0.15}
    write_scores(judge, [score(4, 0.3)], whole=True)  # judged anew, of fewer groups
    bucket.push(trainer, config)
    assert values(trainer) == values(there) == {(2, "overall"): 0.1, (3, "overall"): 0.15, (4, "overall"): 0.3}
    bucket.pull(judge, config)
    assert values(judge) == values(there)


def test_scores_past_where_a_run_goes_on_from_are_dropped_there_too(tmp_path: Path) -> None:
    config = tiny(steps=9, checkpoint_root=str(tmp_path / "root"))
    run_dir, there = tmp_path / "a" / "run", tmp_path / "root" / "run"
    life(run_dir, config, 4)
    bucket.push(run_dir, config)
    write_scores(run_dir, [score(2, 0.1), score(4, 0.2)])
    records.cut_after(run_dir, 2)
    records.append(run_dir / "metrics.jsonl", {"split": "train", "step": 3})
    bucket.push(run_dir, config)
    assert values(run_dir) == values(there) == {(2, "overall"): 0.1}


def test_scores_that_cannot_be_written_there_are_kept_here_and_a_note_says_so(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "root").write_text("a file")
    config = tiny(steps=9, checkpoint_root=str(tmp_path / "root"))
    life(tmp_path / "run", config, 4)
    write_scores(tmp_path / "run", [score(4, 0.2)])
    assert values(tmp_path / "run") == {(4, "overall"): 0.2}
    said = capsys.readouterr().err
    assert said.startswith(f"note: scores are in {tmp_path}/run/evals.jsonl alone: {tmp_path}/root/run: cannot be ")
    assert said.count("\n") == 1


@pytest.mark.slow
def test_no_checkpoint_is_there_without_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine is lost as soon as a checkpoint is whole: another has every row up to it."""
    config, rename = tiny(checkpoint_root=str(tmp_path / "root")), os.rename

    def lost(source: Any, target: Any) -> None:
        rename(source, target)
        if str(target).endswith("checkpoints/8"):
            raise SystemError("lost")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lost)
        with pytest.raises(SystemError):
            train(config, tmp_path / "a" / "d02")
    bucket.pull(tmp_path / "b" / "d02", config)
    assert checkpoint.saved_steps(tmp_path / "root" / "d02" / "checkpoints") == [8]
    rows = records.read_rows(tmp_path / "b" / "d02" / "metrics.jsonl")[0]
    assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, 9))


def test_checkpoints_that_would_be_left_behind_are_one_clear_line(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    life(run_dir, tiny(), 3)
    (run_dir / "checkpoints" / "3").mkdir(parents=True)
    moved = tiny(checkpoint_root=str(tmp_path / "root"))
    with pytest.raises(UserError, match="its checkpoints are in .*/run/checkpoints, and none in .*/root/run/checkp"):
        bucket.pull(run_dir, moved)
    shutil.copytree(run_dir / "checkpoints", tmp_path / "root" / "run" / "checkpoints")
    bucket.pull(run_dir, moved)


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError("peer"), TimeoutError("read"), ValueError("UNAVAILABLE: x"), RuntimeError("HTTP 503")],
)
def test_a_network_that_fails_for_a_moment_fails_no_cell(error: Exception) -> None:
    with (
        pytest.raises(Stopped, match="cannot be reached now .* the same command goes on"),
        bucket._reachable("gs://bucket/run"),
    ):
        raise error
    with pytest.raises(UserError, match="cannot be reached"), bucket._reachable("gs://bucket/run"):
        raise PermissionError("Forbidden")
    with pytest.raises(UserError, match="cannot be reached"), bucket._reachable("/a/disk"):
        raise error


@pytest.mark.parametrize("root", ["bucket/folder", "gs://", "s3://bucket/folder"])
def test_a_root_that_is_neither_is_one_clear_line(root: str) -> None:
    with pytest.raises(UserError, match=r"checkpoint_root: .* is neither gs://bucket/folder nor an absolute path"):
        tiny(checkpoint_root=root)


def conditional(handler: Callable[..., None], missing: type[Exception]) -> Callable[..., None]:
    """What the emulator lacks and TensorStore needs: the generation of what is read, and requests that depend on it."""

    def handle(request: Any, response: Any, storage: Any, *rest: Any) -> None:
        name = request.query.get("name", [request.params.get("object_id")])[0]
        try:
            found = storage.get_file_obj(request.params["bucket_name"], name)["generation"]
        except missing:
            found = "0"
        wanted, known = (request.query.get(f"ifGeneration{word}", [None])[0] for word in ("Match", "NotMatch"))
        if wanted not in (None, found):
            response.status = HTTPStatus.PRECONDITION_FAILED
        elif known == found:
            response.status = HTTPStatus.NOT_MODIFIED
        else:
            handler(request, response, storage, *rest)
        response["x-goog-generation"] = found

    return handle


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that speaks Google Cloud Storage, with a bucket."""
    server = pytest.importorskip("gcp_storage_emulator.server", reason="gcp-storage-emulator is not installed")
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    pytest.importorskip("gcsfs")
    for _, handlers in server.HANDLERS:
        for method, handler in handlers.items():
            if handler in (server.objects.get, server.objects.download, server.objects.insert):
                monkeypatch.setitem(handlers, method, conditional(handler, server.objects.NotFound))
    emulator = server.create_server("localhost", 0, in_memory=True, default_bucket="bucket")
    emulator.start()
    address = f"http://localhost:{emulator._api._httpd.socket.getsockname()[1]}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
    yield
    emulator.stop()


@pytest.mark.slow
@pytest.mark.usefixtures("gcs")
def test_a_run_in_a_real_bucket_goes_on_and_falls_back(tmp_path: Path) -> None:
    """Against an emulator of Google Cloud Storage, through the clients that are used with the real one."""
    config = tiny(checkpoint_root="gs://bucket/sweep", checkpoint_seconds=0.0)

    def run(machine: str, steps: int, config: RunConfig = config) -> Path:
        path = tmp_path / f"{machine}.json"
        path.write_text(json.dumps(configs.to_dict(config) | {"steps": steps}))
        argv = [sys.executable, "-m", "sd3_jax.cli", "train", str(path), "--run", str(tmp_path / machine / "d02")]
        environ = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        done = subprocess.run(argv, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return tmp_path / machine / "d02"

    run("a", 5)
    there = bucket.checkpoints(tmp_path / "a" / "d02", config)
    assert checkpoint.saved_steps(there) == [4, 5]
    (there / "5" / "_METADATA").write_text("{")
    shutil.rmtree(tmp_path / "a")
    second = run("b", 8)
    assert [life["resumed_from"] for life in records.read_rows(second / "lives.jsonl")[0]] == [0, 4]
    assert checkpoint.saved_steps(there) == [7, 8]
    undisturbed = run("whole", 8, tiny())
    assert history(second) == history(undisturbed)
    for ours, theirs in zip(final_state(second), final_state(undisturbed), strict=True):
        np.testing.assert_array_equal(ours, theirs)
