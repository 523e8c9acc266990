"""Results of GenEval's own evaluator: its summary as pandas would have it, and rows that runs keep."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import tiny

from sd3_jax import records
from sd3_jax.cli import main
from sd3_jax.errors import UserError
from sd3_jax.evaluation import coco, upstream
from sd3_jax.evaluation.geneval import summarize


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Four verdicts on each of the published prompts, as upstream writes them."""
    numbers, path = np.random.default_rng(0), tmp_path / "results.jsonl"
    with open(path, "w") as file:
        for i, row in enumerate(coco.geneval_prompts()):
            for k, verdict in enumerate(numbers.uniform(size=4) < numbers.uniform()):
                line = {"filename": f"{i:05d}/samples/{k:04d}.png", "tag": row["tag"], "prompt": row["prompt"]}
                line |= {"correct": bool(verdict), "reason": "", "metadata": json.dumps(row), "details": "{}"}
                file.write(json.dumps(line) + "\n")
    return path


def test_the_summary_is_upstreams_own(results: Path) -> None:
    frame = pd.read_json(results, orient="records", lines=True)
    found = upstream.read_results(results)
    summary = summarize(found.correct, found.tag, found.prompt)
    by_task = frame.groupby("tag", sort=False)["correct"].mean()
    for tag, value in by_task.items():
        assert summary.tasks[str(tag)].value == pytest.approx(value, abs=1e-12)
    assert summary.overall.value == pytest.approx(by_task.mean(), abs=1e-12)
    said = upstream.lines_of(summary, found)
    assert said[0] == "Total images: 2212"
    assert said[1] == "Total prompts: 553"
    assert said[2] == f"% correct images: {frame['correct'].mean():.2%}"
    assert said[3] == f"% correct prompts: {frame.groupby('metadata')['correct'].any().mean():.2%}"
    for tag, part in frame.groupby("tag", sort=False):
        (line,) = [line for line in said if line.startswith(f"{tag} ".ljust(17))]
        assert f"{part['correct'].mean():.2%} ±" in line
        assert line.endswith(f"({part['correct'].sum()} / {len(part)})")


def test_rows_are_kept_by_the_run_that_drew_the_pictures(results: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    records.open_run(run, tiny())
    pictures = run / "samples" / "0000008-x"
    pictures.mkdir(parents=True)
    settings = {
        "step": 8,
        "sampler": "euler",
        "steps": 25,
        "guidance": 3.0,
        "weights": "ema",
        "seed": 0,
        "prompts": "a",
    }
    (pictures / "settings.json").write_text(json.dumps(settings))
    for _ in range(2):  # the second time in place of the first
        with pytest.raises(SystemExit) as ended:
            main(["geneval", str(results), "--record", str(pictures)])
        assert ended.value.code == 0
    rows, _ = records.read_scores(run / "evals.jsonl")
    assert [row["group"] for row in rows] == ["overall", *coco_tags()]
    assert {(row["name"], row["step"], row["guidance"], row["prompt_list"]) for row in rows} == {
        ("geneval", 8, 3.0, "a")
    }
    for row in rows[1:]:
        weighed = np.average(row["by_prompt"], weights=row["images_by_prompt"])
        assert row["value"] == pytest.approx(weighed, abs=1e-12)
    assert "Overall score" in capsys.readouterr().out


def coco_tags() -> list[str]:
    return list(dict.fromkeys(row["tag"] for row in coco.geneval_prompts()))


@pytest.mark.parametrize("text", ["", "{", "[]\n", '{"tag": "a", "correct": 1, "metadata": "{}"}'])
def test_what_is_no_result_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"results\.jsonl(:1: is not a line of GenEval's results|: holds no results)"):
        upstream.read_results(tmp_path / "results.jsonl")
