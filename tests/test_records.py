"""The run directory survives crashes, and says so when it is not what it should be."""

import json
import os
import threading
from pathlib import Path

import pytest
from tiny import tiny

from sd3_jax import records
from sd3_jax.errors import UserError


def test_half_a_line_is_skipped_counted_and_not_joined_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records.append(path, {"step": 1, "loss": 0.5})
    with open(path, "a") as file:
        file.write('{"step": 2, "lo')
    records.append(path, {"step": 3, "loss": float("nan")})
    rows, skipped = records.read_rows(path)
    assert rows == [{"step": 1, "loss": 0.5}, {"step": 3, "loss": None}]
    assert skipped == 1


def test_rows_past_the_restored_step_are_cut(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        records.append(tmp_path / "metrics.jsonl", {"step": step})
    records.cut_after(tmp_path, 2)
    assert [row["step"] for row in records.read_rows(tmp_path / "metrics.jsonl")[0]] == [1, 2]


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    records.write_atomic(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        records.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_writers_at_once_leave_one_whole_file_though_they_share_a_process_number(tmp_path: Path) -> None:
    """Threads do; so do containers, each of which counts its processes from 1."""
    path, both = tmp_path / "file", threading.Barrier(2)

    def write(letter: bytes) -> None:
        for _ in range(20):
            with records.whole(path) as temporary, open(temporary, "wb") as file:
                both.wait(timeout=10)
                file.write(letter * 500)
                file.flush()
                file.write(letter * 500)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_bytes() in (b"a" * 1000, b"b" * 1000)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    def build() -> None:
        with records.whole(tmp_path / "out") as temporary:
            (temporary / "inner").mkdir(parents=True)
            (temporary / "inner" / "file").write_text(str(1 // 0))

    with pytest.raises(ZeroDivisionError):
        build()
    assert not list(tmp_path.iterdir())


def test_a_directory_belongs_to_one_run(tmp_path: Path) -> None:
    records.open_run(tmp_path / "run", tiny())
    records.open_run(tmp_path / "run", tiny(steps=20, log_every=3))
    assert records.load_config(tmp_path / "run").steps == 20
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        records.open_run(tmp_path / "run", tiny(seed=1))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="not a run directory"):
        records.open_run(tmp_path / "other", tiny())
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.tex"]


def test_a_cooldown_fixes_the_length(tmp_path: Path) -> None:
    records.open_run(tmp_path, tiny(**{"optimizer.cooldown": 0.2}))
    with pytest.raises(UserError, match="cannot change its length"):
        records.open_run(tmp_path, tiny(**{"optimizer.cooldown": 0.2, "steps": 20}))


def test_a_run_that_was_started_is_never_shortened(tmp_path: Path) -> None:
    records.open_run(tmp_path, tiny())
    records.open_run(tmp_path, tiny(steps=6))  # never started: nothing to lose
    records.append(tmp_path / "lives.jsonl", {"steps": 6})
    records.finish(tmp_path, {"steps": 6})
    with pytest.raises(UserError, match="cannot be made shorter"):
        records.open_run(tmp_path, tiny(steps=5))
    records.open_run(tmp_path, tiny(images=6 * 16))  # the same length, said otherwise
    assert records.status(tmp_path) == "done"


def test_status_follows_the_files(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert records.status(run) == "waiting"
    records.open_run(run, tiny())
    assert records.status(run) == "waiting"
    records.append(run / "lives.jsonl", {"steps": 8})
    assert records.status(run) == "started"
    records.fail(run, "two\nlines")
    assert records.status(run) == "failed"
    assert (run / "FAILED").read_text() == "two lines\n"
    records.finish(run, {"steps": 8})
    assert records.status(run) == "done"
    assert json.loads((run / "DONE").read_text()) == {"steps": 8}


@pytest.mark.parametrize(
    "text, words",
    [("{", "is not JSON"), ("[1]", "is not a JSON object"), ('{"steps": 1, "modle": 2}', "unknown key modle")],
)
def test_a_broken_config_is_one_line_that_names_the_file(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        records.load_config(tmp_path)
    assert "config.json" in str(caught.value)
