"""Judging pictures and comparing runs: rows, caches, what is due, and what is missing."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tiny import tiny, write_checkpoints

from sd3_jax import cli, compare, evaluate, platform, records
from sd3_jax.config import to_dict
from sd3_jax.errors import UserError
from sd3_jax.evaluate import Request
from sd3_jax.evaluation import fidelity, folders, judged, scene_judge, scores, truth
from sd3_jax.evaluation.generate import Sampler
from sd3_jax.evaluation.prompts import GROUPS, metadata
from sd3_jax.protocols import Protocol
from sd3_jax.sweep import evaluate as fan_out

REQUEST = Request(images_per_task=8, sampler=Sampler(steps=2))
OPTIONS = ("--images-per-task", "8", "--sampler-steps", "2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        write_checkpoints(root / f"d02-s{seed}", tiny(steps=8, keep_steps=[4], seed=seed), (4, 8))
    return root


@pytest.fixture(scope="module")
def rows(runs):
    return {path.name: evaluate.evaluate_run(path, REQUEST) for path in sorted(runs.iterdir())}


@pytest.fixture
def sd3(capsys, monkeypatch):
    monkeypatch.setattr(platform, "prepare", lambda *_: None)

    def call(*arguments):
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(argument) for argument in arguments])
        return stopped.value.code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def true_folder(tmp_path_factory):
    """True scenes of every task in GenEval's layout, as any system may hand them in: no settings.json."""
    out = tmp_path_factory.mktemp("true") / "pictures"
    data, seen, number = tiny().data, set(), 0
    for task, split in GROUPS:
        words, images, _ = truth.draw(data, 16, task, split, 12, seed=9)
        for word, image in zip(words, images, strict=True):
            described = metadata(word)
            if described["prompt"] not in seen:
                seen.add(described["prompt"])
                folder = out / f"{number:05d}"
                (folder / "samples").mkdir(parents=True)
                (folder / "metadata.jsonl").write_text(json.dumps(described))
                Image.fromarray(image).save(folder / "samples" / "0000.png")
                number += 1
    return out


# --- runs -----------------------------------------------------------------------------------------------------------


def test_due_are_the_last_step_and_those_whose_checkpoint_is_kept(runs):
    assert evaluate.due_steps(runs / "d02-s0") == [4, 8]


def test_the_best_step_is_that_of_the_lowest_averaged_loss_or_the_last(runs, tmp_path):
    run_dir = tmp_path / "one"
    shutil.copytree(runs / "d02-s0", run_dir, ignore=shutil.ignore_patterns("samples", "metrics.jsonl"))
    for losses, best in (({4: 0.2, 8: 0.3}, 4), ({4: 0.3, 8: 0.2}, 8), ({}, 8)):
        rows = [{"step": step, "split": "validation", "weights": "ema", "loss": loss} for step, loss in losses.items()]
        records.write_rows(run_dir / "metrics.jsonl", [*rows, {"step": 4, "weights": "raw", "loss": 0.1}])
        assert evaluate.best_step(run_dir) == best


def test_every_row_says_how_it_came_to_be(rows, runs):
    written, broken = records.read_rows(runs / "d02-s0" / "evals.jsonl")
    assert broken == 0
    assert len(written) == len(rows["d02-s0"])
    for row in written:
        assert row["step"] in (4, 8)
        assert (row["sampler"], row["steps"], row["guidance"], row["weights"], row["seed"]) == (
            "euler",
            2,
            3.0,
            "ema",
            0,
        )
        versions = {fidelity.NAME: ("features", fidelity.VERSION), folders.LENGTH: ("n", 6 * 8 + 3 * 8)}
        key, version = versions.get(row["name"], ("judge", scene_judge.VERSION))
        assert row[key] == version
        assert row["n"] > 0
        assert 0 <= row["value"] <= (np.inf if row["name"] in versions else 1)
        assert "partial" not in row
    overall = {row["name"]: row for row in written if row["group"] == "overall" and row["step"] == 8}
    of_signs = {scores.NAMES[measure] for measure in scores.SPELLINGS}  # which these scenes have none of
    assert {*scores.NAMES.values(), fidelity.NAME, folders.LENGTH} - of_signs == {*overall}
    assert overall[fidelity.NAME]["n"] == 6 * 8
    assert overall[fidelity.NAME]["value"] > 4 * overall[fidelity.NAME]["ceiling"]  # untrained weights
    assert overall["scene-geneval"]["n"] == 6 * 8
    assert overall["scene-geneval"]["ceiling"] >= 0.95
    tasks = [row for row in written if row["name"] == "scene-geneval-soft" and row["step"] == 8]
    seen = [row["value"] for row in tasks if ":" not in row["group"] and row["group"] != "overall"]
    assert overall["scene-geneval-soft"]["value"] == pytest.approx(np.mean(seen))
    assert {row["group"] for row in tasks if row["group"].endswith(":unseen")} == {
        "colors:unseen", "position:unseen", "color_attr:unseen",
    }  # fmt: skip


def test_nothing_is_drawn_or_judged_twice(rows, runs, monkeypatch):
    path = runs / "d02-s0"
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*.png")} | {
        file: file.stat().st_mtime_ns for file in path.rglob("results.jsonl")
    }
    monkeypatch.setattr(scene_judge, "find", lambda *_: pytest.fail("a picture was looked at again"))
    drawn = []
    again = evaluate.evaluate_run(path, REQUEST, report=drawn.append)
    assert json.dumps(again) == json.dumps(rows["d02-s0"])
    assert drawn == [72, 72]  # that are there, of each step
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_a_changed_picture_is_judged_anew(rows, runs, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(evaluate.folder_of(runs / "d02-s0", 8, REQUEST), out)
    looked = []
    look = scene_judge.find
    monkeypatch.setattr(scene_judge, "find", lambda images, data: looked.append(len(images)) or look(images, data))
    judged.judge_folder(out, tiny().data)
    assert looked == []
    folders.write_png(folders.image_path(out, 0, 0), np.full((24, 24, 3), 125, np.uint8))
    seen = judged.judge_folder(out, tiny().data)
    assert looked == [1]
    assert seen.measured.own[0, 0] == 0  # an empty picture is not right


def test_results_are_rows_as_genevals_evaluator_writes_them(rows, runs):
    out = evaluate.folder_of(runs / "d02-s0", 8, REQUEST)
    lines, _ = records.read_rows(out / "results.jsonl")
    assert len(lines) == len(list(out.glob("*/samples/*.png")))
    for line in lines:
        assert {"filename", "tag", "prompt", "correct", "reason", "metadata", "details"} <= line.keys()
        assert (out / line["filename"]).exists()
        assert isinstance(line["correct"], bool)
        assert json.loads(line["metadata"])["prompt"] == line["prompt"]
        assert isinstance(json.loads(line["details"]), list)
    strict = np.mean([line["strict"] for line in lines if json.loads(line["metadata"])["split"] == "seen"])
    row = next(r for r in rows["d02-s0"] if (r["name"], r["group"], r["step"]) == ("scene-geneval", "overall", 8))
    assert row["value"] == pytest.approx(strict)  # tasks are of equal size here


def test_what_a_resumed_run_will_draw_anew_is_gone(rows, runs, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(runs / "d02-s0", path)
    records.cut_after(path, 4)
    assert {row["step"] for row in records.read_rows(path / "evals.jsonl")[0]} == {4}
    assert {folder.name[:7] for folder in (path / "samples").iterdir()} == {"0000004"}


def test_an_evaluation_that_was_due_when_a_run_was_killed_is_done_later(rows, tmp_path):
    path, config = tmp_path / "run", tiny(steps=8, keep_steps=[4])
    write_checkpoints(path, config, (4,))  # killed here, before anything was drawn
    assert evaluate.due_steps(path) == [4]
    write_checkpoints(path, config, (4, 6, 8))  # and gone on with; 6 is a checkpoint that will not be kept
    assert evaluate.due_steps(path) == [4, 8]
    later = evaluate.evaluate_run(path, REQUEST)
    assert json.dumps(later) == json.dumps(rows["d02-s0"])


# --- folders of pictures --------------------------------------------------------------------------------------------


def tiny_options():
    flat = ["model.head_dim=8", "data.image_size=24", "data.shapes=4"]
    return ["--experiment", "scenes_cpu", *[part for option in flat for part in ("--set", option)]]


def test_a_folder_of_true_scenes_scores_one(true_folder, sd3):
    code, out, err = sd3("evaluate", true_folder, "--json", "-", *tiny_options())
    assert (code, err) == (0, "")
    overall = {row["name"]: row["value"] for row in json.loads(out) if row["group"] == "overall"}
    assert overall["scene-geneval"] == 1.0
    assert overall["scene-geneval-soft"] == 1.0
    assert overall["scene-compbench"] > 0.95
    far = next(row for row in json.loads(out) if row["name"] == fidelity.NAME)
    assert far["value"] == pytest.approx(far["ceiling"], rel=0.6)
    chance = {row["name"]: row.get("chance") for row in json.loads(out) if row["group"] == "overall"}
    assert chance["scene-geneval"] < 0.2
    assert records.read_rows(true_folder / "evals.jsonl")[0]


@pytest.mark.parametrize("how", ["missing", "unreadable", "size"])
def test_pictures_that_are_not_there_are_said_and_the_rest_is_marked(true_folder, sd3, tmp_path, how):
    out = tmp_path / "pictures"
    shutil.copytree(true_folder, out)
    path = folders.image_path(out, 2, 0)
    shutil.copy(path, path.with_name("0001.png"))
    if how == "missing":
        path.unlink()
    elif how == "unreadable":
        path.write_bytes(b"\x89PNG\r\n\x1a\nabc")
    else:
        Image.new("RGB", (30, 24)).save(path)
    code, _, err = sd3("evaluate", out, *tiny_options())
    assert code == 2
    words = {"missing": "is missing", "unreadable": "cannot be read", "size": "has 30 x 24 pixels, not 24 x 24"}[how]
    assert f"00002/samples/0000.png: {words}" in err
    assert err.count("\n") == 1
    kept, _ = records.read_rows(out / "evals.jsonl")
    assert kept
    assert all("00002/samples/0000.png" in row["partial"] for row in kept)


def test_pictures_of_a_run_that_are_gone_are_said(rows, runs, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(evaluate.folder_of(runs / "d02-s0", 8, REQUEST), out)
    shutil.rmtree(out / "00003")
    seen = judged.judge_folder(out, tiny().data)
    assert len(seen.pictures.problems) == 1
    assert "more of its pictures are missing" in seen.pictures.problems[0]
    assert all("partial" in row for row in judged.score_rows(seen, {}, {}))


def test_folders_that_cannot_be_judged(true_folder, sd3, tmp_path):
    def refused(*arguments):
        code, out, err = sd3("evaluate", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        return err

    assert "no such directory" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "neither a run (config.json) nor pictures" in refused(tmp_path / "empty")
    assert "name them with --experiment" in refused(true_folder)
    twice = tmp_path / "twice"
    shutil.copytree(true_folder, twice)
    shutil.copy(twice / "00000" / "metadata.jsonl", twice / "00001" / "metadata.jsonl")
    assert "00000 and 00001 have the same prompt" in refused(twice, *tiny_options())
    (twice / "00001" / "metadata.jsonl").write_text('{"prompt": "a photo of a horse"}')
    assert "00001/metadata.jsonl: 'a photo of a horse' is not a caption of scenes" in refused(twice, *tiny_options())
    (twice / "00001" / "metadata.jsonl").write_text("{")
    assert "00001/metadata.jsonl: is not one JSON object" in refused(twice, *tiny_options())
    (twice / "00001" / "metadata.jsonl").unlink()
    assert "00001/metadata.jsonl: is missing" in refused(twice, *tiny_options())


def test_a_folder_that_sample_drew_says_itself_what_it_is(runs, sd3, tmp_path):
    (tmp_path / "mine.txt").write_text("a photo of a red square\na photo of a blue ring\n")
    arguments = ("--prompts", tmp_path / "mine.txt", "--sampler-steps", "2", "--out", tmp_path / "pictures")
    assert sd3("sample", runs / "d02-s0", *arguments)[0] == 0
    code, out, err = sd3("evaluate", tmp_path / "pictures", "--json", "-")
    assert (code, err) == (0, "")
    groups = {row["group"] for row in json.loads(out) if row["name"] == "scene-geneval"}
    assert groups == {"colors", "colors:unseen", "mean of 1"}  # a blue ring is never shown in training


def test_a_corrupt_picture_of_a_run_is_drawn_again(rows, runs, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(runs / "d02-s0", path)
    picture = folders.image_path(evaluate.folder_of(path, 8, REQUEST), 3, 0)
    before = folders.read_png(picture)[0].astype(int)
    picture.write_bytes(b"half a pic")
    again = evaluate.evaluate_run(path, REQUEST)
    assert np.abs(folders.read_png(picture)[0] - before).max() <= 1
    assert not any("partial" in row for row in again)


def test_lines_that_are_no_scores_stay_and_harm_nothing(rows, runs, sd3, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(runs / "d02-s0", path)
    odd = ["{}", '{"step": "x", "value": 1}', '{"step": 8, "name": ["a"], "group": "b", "value": 1}', "not json"]
    with open(path / "evals.jsonl", "a") as file:
        file.write("\n".join(odd) + "\n")
    code, _, err = sd3("evaluate", path, "--no-preference", *OPTIONS)
    assert (code, err) == (0, "")
    assert (path / "evals.jsonl").read_text().splitlines()[-4:] == odd
    records.cut_after(path, 4)
    assert {row["step"] for row in records.read_rows(path / "evals.jsonl")[0]} == {4}


def test_many_processes_may_write_scores_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from sd3_jax import records\n"
        "for i in range(60):\n"
        "    row = {'step': i, 'name': sys.argv[2], 'group': 'g', 'value': 0.5}\n"
        "    records.put_scores(Path(sys.argv[1]), [row])\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "evals.jsonl", name]) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    found, others = records.read_scores(tmp_path / "evals.jsonl")
    assert others == []
    assert {(row["step"], row["name"]) for row in found} == {(i, name) for i in range(60) for name in "abc"}


# --- the command line -----------------------------------------------------------------------------------------------


def test_runs_that_cannot_be_evaluated(runs, sd3, tmp_path):
    bare = tmp_path / "runs" / "bare"
    records.open_run(bare, tiny())
    for verb in ("evaluate", "sample"):
        code, out, err = sd3(verb, bare)
        assert (code, out) == (2, "")
        assert err.startswith(f"sd3-jax: error: {bare}: has no checkpoint to sample from; train it first")
        assert err.count("\n") == 1
    code, out, err = sd3("evaluate", runs / "d02-s0", "--step", "5", *OPTIONS)
    assert (code, out) == (2, "")
    assert "has no checkpoint of step 5; there are 4, 8" in err
    for wrong, words in (
        (("--guidance", "-2"), "guidance: -2.0 is out of range"),
        (("--sampler-steps", "0"), "sampler steps: 0 is out of range"),
        (("--weights", "mean"), "--weights: 'mean' is not one of ema, raw"),
    ):
        for verb in ("evaluate", "sample"):
            code, out, err = sd3(verb, runs / "d02-s0", *wrong)
            assert (code, out, err.count("\n")) == (2, "", 1), err
            assert words in err


def test_what_a_protocol_drew_is_shown_setting_by_setting(runs, sd3, tmp_path, monkeypatch):
    def score(run_dir, request, steps, report=None):  # a value of each setting, without its pictures
        said = evaluate.setting(run_dir, request)
        value = request.sampler.steps / 100 + 0.001 * (request.sampler.weights == "raw")
        value += 0.002 * (request.sampler.grid == "own")
        whose = {"name": "scene-geneval-soft", "group": "overall", "value": value, "se": 0.01, "n": 1}
        evaluate.write_scores(run_dir, [{"step": step, **said, **whose} for step in steps])

    monkeypatch.setattr(evaluate, "evaluate_run", score)
    monkeypatch.setitem(evaluate.PROTOCOLS, "table1", Protocol(((5, 5.0), (50, 1.0)), ("ema", "raw"), "own"))
    for name in ("d02-s0", "d02-s1"):
        shutil.copytree(runs / name, tmp_path / name, ignore=shutil.ignore_patterns("samples", "evals.jsonl"))
    alike = ("--images-per-task", "2", "--step", "8", "--workers", "1")
    code, out, err = sd3("evaluate", tmp_path, "--protocol", "table1", *alike)
    assert code == 0, err
    shown = re.findall(r"(\d+) euler steps, guidance (\d), (\w+) weights|d02-s1 8 ([0-9.]+)", " ".join(out.split()))
    assert [one[:3] for one in shown[::2]] == [(k, g, w) for w in ("ema", "raw") for k, g in (("5", "5"), ("50", "1"))]
    assert [one[3] for one in shown[1::2]] == ["0.052", "0.502", "0.053", "0.503"]
    # What was drawn on one grid is not shown among what is on another.
    code, out, err = sd3(
        "evaluate", tmp_path / "d02-s0", "--sampler-steps", "5", "--guidance", "5", *alike, "--json", "-"
    )
    assert code == 0, err
    assert [row["value"] for row in json.loads(out)] == [0.05]


def test_prompts_of_ones_own(runs, sd3, tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("a photo of a red square\na photo of a ring above a cross\n")
    arguments = ("sample", runs / "d02-s0", "--prompts", file, "--images", "2", "--sampler-steps", "2")
    code, out, _ = sd3(*arguments, "--out", tmp_path / "out")
    assert (code, out) == (0, f"{tmp_path / 'out'}\n")
    assert len(list((tmp_path / "out").glob("0000[01]/samples/*.png"))) == 4
    file.write_text("a photo of a red square\na photo of a red square\n")
    code, out, err = sd3(*arguments, "--out", tmp_path / "other")
    assert (code, out) == (2, "")
    assert "mine.txt:2: the prompt of line 1 again" in err
    assert not (tmp_path / "other").exists()


def test_runs_without_checkpoints_are_left_out_with_a_note(rows, runs, sd3, tmp_path):
    root = tmp_path / "runs"
    shutil.copytree(runs, root)
    records.open_run(root / "d03-s0", tiny(**{"model.depth": 3}))
    code, out, err = sd3("evaluate", root, "--no-preference", "--workers", "1", *OPTIONS)
    assert code == 0
    assert err == f"note: {root / 'd03-s0'} has no checkpoint, and is left out\n"
    assert "d02-s1" in out
    assert "d03-s0" not in out


# --- comparing ------------------------------------------------------------------------------------------------------


@pytest.fixture
def brightness(monkeypatch):
    """A proxy whose preference is known: the brighter picture."""
    monkeypatch.setattr(compare.proxy, "load_or_train", lambda *_: ({}, {"accuracy": 1.0}))
    monkeypatch.setattr(compare.proxy, "make_reward", lambda *_: lambda images, words: images.mean(axis=(1, 2, 3)))


def mean_brightness(run_dir, step):
    pictures = judged.read_pictures(evaluate.folder_of(run_dir, step, REQUEST), tiny().data)
    return pictures.images.mean(axis=(1, 2, 3)), np.array(
        [scores.group_of(pictures.prompts[p]) for p in pictures.prompt]
    )


def test_the_win_rate_is_the_share_of_pictures_preferred(rows, runs, brightness, tmp_path):
    first, second = runs / "d02-s0", runs / "d02-s1"
    assert compare.default_reference([second, first]) == first
    written = compare.compare({first: [4, 8], second: [4, 8]}, first, REQUEST, tmp_path / "proxy")
    found = {(row["run"], row["step"], row["name"], row["group"]): row for row in written}
    reference, groups = mean_brightness(first, 8)
    for run_dir, step in ((second, 8), (second, 4), (first, 4)):
        own, _ = mean_brightness(run_dir, step)
        wins = (np.sign(own - reference) + 1) / 2
        seen = ~np.char.endswith(groups, ":unseen")
        row = found[run_dir.name, step, "proxy-preference", "overall"]
        assert row["value"] == pytest.approx(wins[seen].mean())
        assert row["reference"] == "d02-s0@8"
        assert found[run_dir.name, step, "proxy-preference", "position"]["value"] == pytest.approx(
            wins[groups == "position"].mean()
        )
    assert found["d02-s0", 8, "proxy-preference", "overall"]["value"] == 0.5
    assert found["d02-s0", 8, "proxy-preference-elo", "overall"]["value"] == pytest.approx(1000)
    on_disk = [row for row in records.read_rows(second / "evals.jsonl")[0] if row["name"].startswith("proxy")]
    assert [{k: v for k, v in row.items() if k != "run"} for row in written if row["run"] == "d02-s1"] == on_disk


def test_runs_of_other_scenes_are_not_compared(rows, runs, brightness, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(runs / "d02-s1", other)
    records.write_atomic(other / "config.json", json.dumps(to_dict(tiny(**{"data.shapes": 3}))))
    with pytest.raises(UserError, match="other: draws other scenes than .*d02-s0: they cannot be compared"):
        compare.compare({runs / "d02-s0": [8], other: [8]}, runs / "d02-s0", REQUEST, tmp_path / "proxy")


def test_runs_of_one_name_are_told_apart_and_a_run_given_twice_is_one(rows, runs, brightness, sd3, tmp_path):
    twin = tmp_path / "elsewhere" / "d02-s0"
    shutil.copytree(runs / "d02-s1", twin)
    again = runs / ".." / runs.name / "d02-s0"
    code, out, err = sd3("evaluate", runs / "d02-s0", again, twin, "--workers", "1", "--json", "-", *OPTIONS)
    assert code == 0, err
    rates = {
        (row["run"], row["step"]): row["value"]
        for row in json.loads(out)
        if (row["name"], row["group"]) == ("proxy-preference", "overall")
    }
    ours, theirs = f"{runs.name}/d02-s0", "elsewhere/d02-s0"
    assert set(rates) == {(name, step) for name in (ours, theirs) for step in (4, 8)}
    assert rates[ours, 8] == 0.5 or rates[theirs, 8] == 0.5
    elo = [row for row in json.loads(out) if row["name"] == "proxy-preference-elo"]
    assert len({row["value"] for row in elo}) > 1
    assert all(len(row["compared"]) == 4 for row in elo)


def test_another_reference_does_not_overwrite_the_first(rows, runs, brightness, sd3, tmp_path):
    root = tmp_path / "runs"
    shutil.copytree(runs, root)
    for name in ("d02-s0", "d02-s1"):
        code, out, err = sd3(
            "evaluate", root, "--workers", "1", "--json", "-", "--reference", root / name, "--step", "8", *OPTIONS
        )
        assert code == 0, err
        shown = [row for row in json.loads(out) if row["name"].startswith("proxy")]
        assert {row["reference"] for row in shown} == {f"{name}@8"}
    kept = records.read_scores(root / "d02-s0" / "evals.jsonl")[0]
    rates = {
        row["reference"]: row["value"]
        for row in kept
        if (row["name"], row["group"], row["step"]) == ("proxy-preference", "overall", 8)
    }
    assert rates["d02-s0@8"] == 0.5
    assert rates["d02-s1@8"] == pytest.approx(1 - _rate_of(root / "d02-s1", "d02-s0@8"))


def _rate_of(run_dir, reference):
    rows = records.read_scores(run_dir / "evals.jsonl")[0]
    return next(
        row["value"]
        for row in rows
        if (row["name"], row["group"], row["step"], row.get("reference"))
        == ("proxy-preference", "overall", 8, reference)
    )


# --- many runs ------------------------------------------------------------------------------------------------------


def test_runs_are_dealt_so_that_workers_end_together():
    rng = np.random.default_rng(0)
    for workers in (1, 2, 5):
        costs = {truth_path: float(cost) for truth_path, cost in zip("abcdefghij", rng.uniform(1, 9, 10), strict=True)}
        shares = fan_out.deal(costs, workers)  # type: ignore[arg-type]
        assert sorted(name for share in shares for name in share) == sorted(costs)
        loads = [sum(costs[name] for name in share) for share in shares]
        assert max(loads) <= sum(costs.values()) / workers + max(costs.values())  # Graham's bound
    assert fan_out.deal({}, 3) == []


@pytest.mark.slow  # the story in test_figure8.py has workers too
def test_workers_draw_what_one_process_draws(rows, runs, sd3, tmp_path, monkeypatch):
    root = tmp_path / "runs"
    shutil.copytree(runs, root)
    for path in root.iterdir():
        shutil.rmtree(path / "samples")
        (path / "evals.jsonl").unlink()
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    code, out, err = sd3("evaluate", root, "--workers", "2", "--no-preference", "--json", "-", *OPTIONS)
    assert code == 0, err
    found = {(row["run"], row["step"], row["name"], row["group"]): row["value"] for row in json.loads(out)}
    ours = {(name, r["step"], r["name"], r["group"]): r["value"] for name, own in rows.items() for r in own}
    assert found.keys() == ours.keys()
    assert all(abs(found[key] - ours[key]) < 0.02 for key in ours if key[3] == "overall")


def test_a_worker_that_fails_says_why(tmp_path):
    from rich.console import Console

    (tmp_path / "a").mkdir()
    code = "import sys; print('sd3-jax: error: the disk is full', file=sys.stderr); sys.exit(2)"
    with pytest.raises(UserError, match="^the disk is full$"):
        fan_out.evaluate({tmp_path / "a": 1.0}, 1, Console(), lambda _: ["python3", "-c", code], [], {})
    with pytest.raises(UserError, match=r"ended early \(KeyError: 'x'\); see .*a/evaluate.log$"):
        fan_out.evaluate({tmp_path / "a": 1.0}, 1, Console(), lambda _: ["python3", "-c", "{}['x']"], [], {})
