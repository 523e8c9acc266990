"""Scores of one system again: what is new takes the place of all that was, and what is wrong is said first."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_suites import SHADE, call, judged_by_shade, write_folder, write_picture  # noqa: F401

from analysis import leaderboard
from sd3_jax import records, systems
from sd3_jax.data import pretrained
from sd3_jax.errors import UserError
from sd3_jax.evaluation import between, compbench_files, features, pipelines, prompts, suites, weights
from sd3_jax.evaluation.generate import Sampler
from sd3_jax.evaluation.scorer import Scorer
from sd3_jax.scorers import choose


def scores_of(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["name"], row["group"]): row for row in records.read_scores(folder / "evals.jsonl")[0]}


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    """Two prompts of each of two kinds."""
    rows = [
        {"prompt": f"a {kind} {i}", "tag": kind, "include": []} for kind in ("single_object", "colors") for i in "ab"
    ]
    path = tmp_path / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_folder(tmp_path / "sys", [row["prompt"] for row in rows], images=1)
    for number, row in enumerate(rows):
        (tmp_path / "sys" / f"{number:05d}" / "metadata.jsonl").write_text(json.dumps(row))
    return path


def test_tasks_that_have_lost_their_pictures_leave_no_old_scores(sd3: Any, kinds: Path, monkeypatch: Any) -> None:
    right = True

    def verdicts(images: Sequence[np.ndarray], said: Sequence[Mapping[str, Any]]) -> list[Any]:
        return [{"correct": right, "reason": ""} for _ in said]

    monkeypatch.setattr(choose, "preference", lambda found: [Scorer("geneval-mine", str(right), verdicts)])
    ask = ("evaluate", kinds.parent / "sys", "--suite", "preference", "--prompts", kinds)
    assert call(sd3, *ask).status == 0
    first = scores_of(kinds.parent / "sys")
    assert {group for _, group in first} >= {"single_object", "colors"}
    for number in (2, 3):
        (kinds.parent / "sys" / f"{number:05d}" / "samples" / "0000.png").unlink()
    right = False
    assert call(sd3, *ask).status == 2
    again = scores_of(kinds.parent / "sys")
    assert ("geneval-mine", "colors") not in again
    assert {row["value"] for row in again.values()} == {0}


def test_the_mean_of_more_categories_does_not_outlive_them(tmp_path: Path) -> None:
    system = systems.find(tmp_path, Sampler())
    row = {"se": 0.1, "n": 4, "prompts": 2, "digest": "1"}
    each = [
        {"name": "compbench", "group": group, "value": 0.5, "prompt_list": group, **row}
        for group in compbench_files.CATEGORIES
    ]
    systems.write(system, [*each, suites.overall_of_categories(each)])
    assert scores_of(tmp_path)["compbench", "overall"]["value"] == 0.5
    fewer = [own | {"value": 0.1} for own in each[:3]]
    systems.write(system, [*fewer, suites.overall_of_categories(fewer)])
    found = scores_of(tmp_path)
    assert found["compbench", "mean of 3"]["value"] == pytest.approx(0.1)
    assert ("compbench", "overall") not in found
    assert len([group for _, group in found if group in compbench_files.CATEGORIES]) == 8


def test_pictures_in_compbenchs_layout_are_counted_prompt_by_prompt(tmp_path: Path) -> None:
    asked = [prompts.Prompt(np.zeros(0, int), {"prompt": text}, 2) for text in ("a red cup", "a blue dog")]
    for number in range(4):
        write_picture(tmp_path / "color" / "samples" / f"a red cup_{number:06d}.png", number)
    found = suites.find_category(tmp_path, asked, "color")
    where = tmp_path / "color"
    assert [shot.path.stem for shot in found.shots] == ["a red cup_000000", "a red cup_000001"]
    assert found.problems == [f"{where}: 2 pictures of 1 prompts are missing, first of 'a blue dog'"]
    assert found.notes == [f"{where}: 2 pictures more than are asked for of their prompts are left out"]


def test_distances_remember_which_prompts_they_are_of(sd3: Any, tmp_path: Path) -> None:
    write_folder(tmp_path / "real", ["x", "y"], images=3, start=100)
    write_folder(tmp_path / "sys", ["a cat", "a dog"], images=3)
    lists = {"two.txt": "a cat\na dog\n", "three.txt": "a cat\na dog\na car\n"}
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
    out = tmp_path / "new" / "out"
    ask = ("evaluate", tmp_path / "sys", "--suite", "fidelity", "--real", tmp_path / "real", "--out", out)
    for name in ("two.txt", "three.txt", "two.txt", "three.txt"):
        result = call(sd3, *ask, "--prompts", tmp_path / name, "--json", tmp_path / "x.json")
        assert result.status == (2 if name == "three.txt" else 0), result.stderr
        assert ("1 prompts are missing, first of 'a car'" in result.stderr) == (name == "three.txt")
        rows = json.loads((tmp_path / "x.json").read_text())
        assert all(("partial" in row) == (name == "three.txt") for row in rows)
    assert len({row["prompt_list"] for row in records.read_scores(out / "evals.jsonl")[0]}) == 2


@pytest.mark.parametrize(
    "more, said",
    [
        (("--features", "nonsense"), "--features nonsense: is not one of"),
        (("--features", "clip=nowhere"), "nowhere: no such folder"),
        (("--real", "nowhere"), "nowhere: no such folder of pictures"),
    ],
)
def test_what_fidelity_lacks_is_said_before_anything_is_drawn_or_judged(
    sd3: Any,
    judged_by_shade: None,  # noqa: F811
    tmp_path: Path,
    more: tuple[str, ...],
    said: str,
) -> None:
    write_folder(tmp_path / "sys", ["a cat", "a dog"], images=1)
    ask = ("evaluate", tmp_path / "sys", "--suite", "preference,fidelity", "--real", tmp_path / "sys", *more)
    result = call(sd3, *ask)
    assert (result.status, result.stderr.count("\n")) == (2, 1)
    assert said in result.stderr
    assert not (tmp_path / "sys" / "judged.jsonl").exists()


def test_scores_by_other_weights_have_a_column_of_their_own(tmp_path: Path) -> None:
    for name, digest in (("one", "aaa"), ("two", "bbb")):
        (tmp_path / name).mkdir()
        rows = [
            {"name": "hpsv2", "group": "overall", "value": 0.27, "se": 0.01, "digest": digest},
            {"name": "geneval-mask2former-hf", "group": "overall", "value": 0.5, "se": 0.01, "digest": digest},
        ]
        records.write_rows(tmp_path / name / "evals.jsonl", rows)
    entries = leaderboard.load({name: tmp_path / name for name in ("one", "two")})
    assert leaderboard.others(entries)[0] == ["system", "hpsv2 by aaa", "hpsv2 by bbb"]
    judges = {line.label: line.judge for line in leaderboard.geneval(entries) if line.judge != leaderboard.PUBLISHED}
    assert judges == {"one": "geneval-mask2former-hf by aaa", "two": "geneval-mask2former-hf by bbb"}
    same = leaderboard.load({"one": tmp_path / "one"})
    assert leaderboard.others(same)[0] == ["system", "hpsv2"]


def test_a_number_of_a_picture_may_be_any(tmp_path: Path, judged_by_shade: None, sd3: Any) -> None:  # noqa: F811
    """Seeds, say, which some put into names: 2^32 - 1 is one."""
    for name, shades in (("one", (10, 20)), ("other", (30, 40))):
        for number, shade in enumerate(shades):
            write_picture(tmp_path / name / f"{number:05d}_{2**32 - 1 - number}.png", shade)
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    ask = ("evaluate", tmp_path / "one", tmp_path / "other", "--suite", "preference", "--prompts", tmp_path / "p.txt")
    result = call(sd3, *ask)
    assert result.status == 0, result.stderr
    assert scores_of(tmp_path / "other")[f"{SHADE.name}-win-rate", "overall"]["value"] == 1


def test_all_files_that_settle_what_a_judge_says_are_in_its_digest(tmp_path: Path) -> None:
    names = ["model.safetensors", "config.json", "preprocessor_config.json", "merges.txt", "spiece.model"]
    for name in [*names, "README.md"]:
        (tmp_path / name).write_bytes(b"1")
    before = pretrained.digest(weights.settling(tmp_path))
    (tmp_path / "README.md").write_bytes(b"2")
    assert pretrained.digest(weights.settling(tmp_path)) == before
    for name in names:
        (tmp_path / name).write_bytes(b"2")
        assert (changed := pretrained.digest(weights.settling(tmp_path))) != before
        before = changed


def write_pipeline(folder: Path, *parts: str) -> None:
    index = {"_class_name": "Pipeline", **{part: ["diffusers", "X"] for part in ("scheduler", *parts)}}
    for part in ("scheduler", *parts):
        (folder / part).mkdir(parents=True)
        (folder / part / "model.safetensors").write_bytes(b"1")
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "Euler", "shift": 1}')


def test_a_pipeline_without_t5_is_refused_unless_it_has_one_that_it_can_do_without(tmp_path: Path) -> None:
    write_pipeline(tmp_path / "sd3", "text_encoder_3")
    write_pipeline(tmp_path / "flux", "text_encoder_2")
    assert pipelines.settings(tmp_path / "sd3", 4, 1.0, 0, ["t5"])["without"] == ["t5"]
    assert "without" not in pipelines.settings(tmp_path / "flux", 4, 1.0, 0)
    with pytest.raises(UserError, match="flux: without t5: Pipeline has no T5 that it can do without"):
        pipelines.settings(tmp_path / "flux", 4, 1.0, 0, ["t5"])


def test_a_pipeline_is_known_by_its_scheduler_too_and_not_by_what_it_drew(tmp_path: Path) -> None:
    write_pipeline(tmp_path, "text_encoder_3")
    before = pipelines.settings(tmp_path, 4, 1.0, 0)["model"]
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "settings.json").write_text("{}")
    assert pipelines.settings(tmp_path, 4, 1.0, 0)["model"] == before
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "Euler", "shift": 3}')
    assert pipelines.settings(tmp_path, 4, 1.0, 0)["model"] != before


@pytest.mark.parametrize("suffix", [".txt", ".tsv", ".jsonl"])
def test_a_mark_of_byte_order_is_no_letter(tmp_path: Path, suffix: str) -> None:
    text = {
        ".txt": "a cat\na dog\n",
        ".tsv": "Prompt\na cat\na dog\n",
        ".jsonl": '{"prompt": "a cat"}\n{"prompt": "a dog"}\n',
    }
    path = tmp_path / f"list{suffix}"
    path.write_bytes(b"\xef\xbb\xbf" + text[suffix].encode())
    assert [prompt.text for prompt in prompts.read_texts(path, 1)] == ["a cat", "a dog"]


def test_a_blank_makes_no_other_prompt(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"prompt": "a cat"}\n{"prompt": "a cat "}\n')
    with pytest.raises(UserError, match=r"list.jsonl:2: the prompt of line 1 again"):
        prompts.read_texts(path, 1)


def test_features_are_loaded_and_true_pictures_measured_once_for_all_systems(
    sd3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    seen: list[str] = []
    load, measure = features.load, between.measure
    monkeypatch.setattr(features, "load", lambda spec: loaded.append(spec) or load(spec))

    def counted(source: between.Source, *rest: Any) -> between.Measured:
        seen.append(source.path.name)
        return measure(source, *rest)

    monkeypatch.setattr(between, "measure", counted)
    for name in ("one", "two", "real"):
        write_folder(tmp_path / name, ["a cat", "a dog"], images=1, start=len(name))
    ask = ("evaluate", tmp_path / "one", tmp_path / "two", "--suite", "fidelity", "--real", tmp_path / "real")
    assert call(sd3, *ask).status == 0
    assert loaded == ["scene"]
    assert sorted(seen) == ["one", "real", "two"]
    apart = {row["name"]: row["value"] for row in records.read_scores(tmp_path / "two" / "evals.jsonl")[0]}
    assert call(sd3, "distance", tmp_path / "two", tmp_path / "real", "--json", tmp_path / "x.json").status == 0
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert {"fd-scene", "kid-scene"} <= apart.keys()
    assert apart == {row["name"]: row["value"] for row in rows if row["value"] is not None}
