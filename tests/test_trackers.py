"""What TensorBoard and Weights & Biases are shown is what metrics.jsonl says, each step once, whatever happens."""

import json
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_resume import ENVIRON, history
from tiny import tiny

from sd3_jax import config as configs
from sd3_jax import records, trackers
from sd3_jax.errors import UserError
from sd3_jax.train import train

Points = dict[str, list[tuple[int, float]]]  # chart -> (step, value), in the order in which they were written
BOTH = {"trackers": ["tensorboard", "wandb"]}


def points(run_dir: Path) -> Points:
    """The charts that metrics.jsonl stands for."""
    charts: Points = {}
    rows, _ = records.read_rows(run_dir / "metrics.jsonl")
    for row in rows:
        for tag, value in trackers.scalars(row).items():
            charts.setdefault(tag, []).append((row["step"], value))
    return charts


def test_a_tracker_that_is_not_installed_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers.PACKAGES, "wandb", "no_such_package")
    with pytest.raises(UserError, match=r"wandb needs the package no_such_package.*pip install 'sd3_jax\[trackers\]'"):
        train(tiny(trackers=["wandb"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_trackers_that_fail_are_named_once_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[Any] = []

    def full(run_dir: Path, config: Any) -> Any:
        def copy(row: Any) -> None:
            if row["step"] == 5:
                raise OSError(28, "No space left on device")
            shown.append(dict(row))

        return copy, lambda: pytest.fail("closed although it was dropped")

    def unreachable(run_dir: Path, config: Any) -> Any:
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(trackers, "_OPEN", {"tensorboard": full, "wandb": unreachable})
    path = tmp_path / "metrics.jsonl"
    rows = [{"split": "train", "step": step, "seconds": float(step), "loss": 1 / step} for step in range(1, 9)]
    for first, last in ((0, 6), (6, 8)):  # two lives
        with trackers.tracking(["tensorboard", "wandb"], tmp_path, {}) as track:
            for row in rows[first:last]:
                records.append(path, row)
                track(row)
        warnings = capsys.readouterr().err.splitlines()
        assert len(warnings) == 2
        assert "to wandb in this life: no network at all" in warnings[0]
        assert "to tensorboard in this life: [Errno 28] No space left" in warnings[1]
        assert shown == rows[:4]
        shown.clear()
    assert records.read_rows(path)[0] == rows

    # With a tracker that works: it has all, from the beginning.
    monkeypatch.setattr(trackers, "_OPEN", {"wandb": lambda *_: (lambda row: shown.append(dict(row)), lambda: None)})
    with trackers.tracking(["wandb"], tmp_path, {}):
        assert shown == rows


DYING = """
import os, signal, sys, time
from sd3_jax import records

append = records.append
def append_and_die(path, row, *rest):
    append(path, row, *rest)
    if row.get("step") == 7:
        while not (path.parent / "checkpoints" / "3").exists():  # it is saved while the run goes on
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
records.append = append_and_die

from sd3_jax.cli import main
main(sys.argv[1:])
"""


def tensorboard_points(folder: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline run: LevelDB's log format around Weights & Biases' own protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too short for a header: the rest of the block is nothing
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def wandb_points(path: Path) -> Points:
    charts: Points = {}
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":
            step = record.history.step.num
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                if not name.startswith("_"):
                    charts.setdefault(name, []).append((step, json.loads(item.value_json)))
    return charts


@pytest.mark.slow  # tensorboard and wandb are no part of a plain install
def test_both_show_a_run_that_was_killed_and_resumed_as_one(tmp_path: Path) -> None:
    config = tiny(steps=12, keep_steps=[3], **BOTH)
    (tmp_path / "run.json").write_text(json.dumps(configs.to_dict(config)))
    command = ["train", "run.json", "--run", "sweep/run"]
    environ = ENVIRON | {"WANDB_MODE": "offline", "WANDB_CACHE_DIR": str(tmp_path / "cache")}
    run_dir = tmp_path / "sweep" / "run"
    first = subprocess.run([sys.executable, "-c", DYING, *command], cwd=tmp_path, env=environ, capture_output=True)
    assert first.returncode == -signal.SIGKILL
    assert max(row["step"] for row in records.read_rows(run_dir / "metrics.jsonl")[0]) == 7
    identifier = (run_dir / "wandb" / "id").read_text()
    again = [sys.executable, "-m", "sd3_jax.cli", *command]
    second = subprocess.run(again, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (second.returncode, second.stderr) == (0, "")
    assert [life["resumed_from"] for life in records.read_rows(run_dir / "lives.jsonl")[0]] == [0, 3]

    truth = points(run_dir)
    assert [step for step, _ in truth["train/loss"]] == list(range(1, 13))
    copied = tensorboard_points(run_dir / "tensorboard")
    assert copied == {tag: [(step, float(np.float32(x))) for step, x in pairs] for tag, pairs in truth.items()}
    (offline,) = (run_dir / "wandb").glob("offline-run-*")
    assert wandb_points(offline / f"run-{identifier}.wandb") == truth
    (said,) = (record.run for record in wandb_records(offline / f"run-{identifier}.wandb") if record.HasField("run"))
    assert (said.run_id, said.display_name, said.run_group) == (identifier, "run", "sweep")
    shown = {item.key: json.loads(item.value_json) for item in said.config.update}
    assert shown["model"]["depth"] == 2

    # The same numbers as without: copying is not measuring.
    train(tiny(steps=12, keep_steps=[3]), tmp_path / "plain")
    losses = lambda run: [(row["step"], row["loss"]) for row in history(run)]  # noqa: E731
    np.testing.assert_allclose(losses(run_dir), losses(tmp_path / "plain"), rtol=1e-6)
