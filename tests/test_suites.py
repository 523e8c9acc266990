"""Any system by the protocols of the field: prompts and pictures find each other, and rows say what was scored."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from sd3_jax import records
from sd3_jax.errors import UserError
from sd3_jax.evaluation import coco, compbench_files, features, prompts, scorer, suites
from sd3_jax.evaluation.scorer import Scorer
from sd3_jax.scorers import choose


def write_picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), shade % 256, np.uint8)).save(path)


def write_folder(out: Path, texts: Sequence[str], images: int, start: int = 0) -> None:
    """A folder in GenEval's layout: the k-th picture has shade ``start + k``."""
    for number, text in enumerate(texts):
        for index in range(images):
            write_picture(out / f"{number:05d}" / "samples" / f"{index:04d}.png", start + number * images + index)
        (out / f"{number:05d}" / "metadata.jsonl").write_text(json.dumps({"prompt": text}))


def shade(images: Sequence[np.ndarray], said: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [float(image.mean()) for image in images]


SHADE = Scorer("shade", "1", shade)


@pytest.fixture
def judged_by_shade(monkeypatch: pytest.MonkeyPatch) -> None:
    """Suite preference with a judge that needs no weights."""
    monkeypatch.setattr(choose, "preference", lambda found: [SHADE])


# --- which picture is of which prompt -------------------------------------------------------------------------------


def test_flat_and_geneval_layouts_are_the_same_pictures(tmp_path: Path) -> None:
    asked = prompts.geneval_texts(images=2)[:3]
    texts = [prompt.text for prompt in asked]
    write_folder(tmp_path / "tree", texts, images=2)
    for number in range(3):
        for index in range(2):
            write_picture(tmp_path / "flat" / f"{number:05d}_{index:04d}.png", number * 2 + index)
    tree, flat = (suites.find(tmp_path / name, asked, "a list") for name in ("tree", "flat"))
    assert [(shot.prompt, shot.metadata) for shot in tree.shots] == [
        (shot.prompt, shot.metadata) for shot in flat.shots
    ]
    assert [shot.metadata["tag"] for shot in tree.shots] == ["single_object"] * 6
    assert not tree.problems
    assert not flat.problems


def test_what_is_missing_and_what_is_too_much_is_said(tmp_path: Path) -> None:
    asked = prompts.geneval_texts(images=2)[:3]
    texts = [prompt.text for prompt in asked]
    write_folder(tmp_path, [texts[2], "something else", texts[0]], images=3)
    found = suites.find(tmp_path, asked, "a list")
    assert [shot.prompt for shot in found.shots] == [0, 0, 2, 2]
    assert found.problems == [f"{tmp_path}: 2 pictures of 1 prompts are missing, first of {texts[1]!r}"]
    assert found.notes == [
        f"{tmp_path}: 2 pictures more than are asked for of their prompts are left out",
        f"{tmp_path}: 1 prompts that are not of a list are left out",
    ]


def test_a_prompt_that_two_folders_have_is_one_line(tmp_path: Path) -> None:
    asked = prompts.geneval_texts(images=1)[:2]
    write_folder(tmp_path, [asked[0].text, asked[1].text, asked[0].text], images=1)
    with pytest.raises(UserError, match="00000 and 00002 have the same prompt"):
        suites.find(tmp_path, asked, "a list")


def test_a_folder_brings_its_own_prompts_with_as_many_pictures_as_the_most_have(tmp_path: Path) -> None:
    write_folder(tmp_path, ["a cat", "a dog"], images=3)
    (tmp_path / "00001" / "samples" / "0002.png").unlink()
    own = suites.own_prompts(tmp_path)
    assert [(prompt.text, prompt.images) for prompt in own] == [("a cat", 3), ("a dog", 3)]
    assert suites.find(tmp_path, own, "its own").problems[0].startswith(f"{tmp_path}: 1 pictures of 1 prompts")
    (tmp_path / "00001" / "metadata.jsonl").write_text('{"prompt": "a cat "}')
    with pytest.raises(UserError, match="00000 and 00001 have the same prompt"):
        suites.own_prompts(tmp_path)


# --- rows -----------------------------------------------------------------------------------------------------------


def test_numbers_make_a_mean_with_prompts_as_clusters_and_one_for_each_category(tmp_path: Path) -> None:
    texts = ["a", "b", "c"]
    write_folder(tmp_path, texts, images=2)
    said = [{"prompt": text, "category": "x" if text == "a" else "y"} for text in texts]
    asked = [prompts.Prompt(np.zeros(0, int), row, 2) for row in said]
    found = suites.find(tmp_path, asked, "a list")
    rows = suites.rows_of(SHADE, scorer.ask(SHADE, found.shots, tmp_path / "kept"), asked, ["a problem"])
    by_group = {row["group"]: row for row in rows}
    assert {group: row["value"] for group, row in by_group.items()} == {"overall": 2.5, "x": 0.5, "y": 3.5}
    # Clusters' sums of what is left of the mean are -4, 0 and 4: se^2 = 3/2 * 32 / 36.
    assert by_group["overall"]["se"] == pytest.approx(np.sqrt(1.5 * 32 / 36))
    assert (by_group["overall"]["n"], by_group["overall"]["prompts"]) == (6, 3)
    assert by_group["y"]["by_prompt"] == [2.5, 4.5]
    assert all(row["partial"] == "a problem" and row["digest"] == "1" for row in rows)


def test_verdicts_make_genevals_summary(tmp_path: Path) -> None:
    asked = prompts.geneval_texts(images=1)
    rng = np.random.default_rng(0)
    verdicts = rng.random(len(asked)) < 0.4
    shots = [scorer.Shot(tmp_path / "x", number, prompt.metadata) for number, prompt in enumerate(asked)]
    said = scorer.Said(shots, [{"correct": bool(one), "reason": ""} for one in verdicts], ["x"] * len(asked), [])
    rows = {row["group"]: row for row in suites.rows_of(Scorer("geneval-hf", "1", shade), said, asked, [])}
    tags = [prompt.metadata["tag"] for prompt in asked]
    by_tag = {tag: [one for one, own in zip(verdicts, tags, strict=True) if own == tag] for tag in tags}
    assert len(by_tag) == 6
    for tag, own in by_tag.items():
        assert rows[tag]["value"] == pytest.approx(sum(own) / len(own))
        assert rows[tag]["name"] == rows[tag]["judge"] == "geneval-hf"
    assert rows["overall"]["value"] == pytest.approx(np.mean([sum(own) / len(own) for own in by_tag.values()]))


def test_a_mean_of_some_tasks_is_not_called_overall(tmp_path: Path) -> None:
    asked = prompts.geneval_texts(images=1)[:100]  # single objects, and some pairs
    shots = [scorer.Shot(tmp_path / "x", number, prompt.metadata) for number, prompt in enumerate(asked)]
    said = scorer.Said(shots, [{"correct": True}] * len(asked), ["x"] * len(asked), [])
    groups = [row["group"] for row in suites.rows_of(Scorer("geneval-hf", "1", shade), said, asked, [])]
    assert groups == ["mean of 2", "single_object", "two_object"]


def test_fields_of_numbers_are_scores_and_pictures_without_an_answer_are_left_out(tmp_path: Path) -> None:
    asked = [prompts.Prompt(np.zeros(0, int), {"prompt": text}, 1) for text in "abc"]
    shots = [scorer.Shot(tmp_path / "x", number, prompt.metadata) for number, prompt in enumerate(asked)]
    values = [{"read": ["A"], "exact": True, "similarity": 1.0}, None, {"read": [], "exact": False, "similarity": 0.2}]
    said = scorer.Said(shots, values, ["x"] * 3, [])
    rows = {row["name"]: row for row in suites.rows_of(Scorer("ocr", "1", shade), said, asked, [])}
    assert {name: row["value"] for name, row in rows.items()} == {"ocr-exact": 0.5, "ocr-similarity": 0.6}
    assert rows["ocr-exact"]["n"] == 2
    assert suites.rows_of(Scorer("ocr", "1", shade), said._replace(values=[None] * 3), asked, []) == []


class Result(NamedTuple):
    status: int
    out: str
    stderr: str


def call(sd3: Any, *arguments: Any) -> Result:
    return Result(*sd3(*map(str, arguments)))


# --- the command ----------------------------------------------------------------------------------------------------


def test_folders_of_pictures_stand_side_by_side_and_keep_their_scores(
    sd3: Any, judged_by_shade: None, tmp_path: Path
) -> None:
    for name, start in (("one", 0), ("two", 100)):
        write_folder(tmp_path / name, ["a cat", "a dog"], images=2, start=start)
    result = call(
        sd3, "evaluate", tmp_path / "one", tmp_path / "two", "--suite", "preference", "--json", tmp_path / "x.json"
    )
    assert result.status == 0, result.stderr
    rows = json.loads((tmp_path / "x.json").read_text())
    assert {row["run"]: row["value"] for row in rows if row["name"] == "shade"} == {"one": 1.5, "two": 101.5}
    kept = records.read_scores(tmp_path / "two" / "evals.jsonl")[0]
    assert [row["value"] for row in kept if row["name"] == "shade"] == [101.5]
    assert len(records.read_rows(tmp_path / "two" / scorer.FILE)[0]) == 4


def test_a_judge_prefers_whose_pictures_it_gives_more(sd3: Any, judged_by_shade: None, tmp_path: Path) -> None:
    """Of two prompts with two pictures each, one has the brighter pictures throughout, the other half of the time."""
    write_folder(tmp_path / "one", ["a cat", "a dog"], images=2, start=10)
    write_folder(tmp_path / "two", ["a cat", "a dog"], images=2, start=0)
    for number, index, value in ((0, 0, 100), (0, 1, 5), (1, 0, 12), (1, 1, 5)):  # won, lost, tied, lost
        write_picture(tmp_path / "two" / f"{number:05d}" / "samples" / f"{index:04d}.png", value)
    ask = ("evaluate", tmp_path / "one", tmp_path / "two", "--suite", "preference")
    assert call(sd3, *ask).status == 0
    rows = {row["name"]: row for row in records.read_scores(tmp_path / "two" / "evals.jsonl")[0]}
    assert rows["shade-win-rate"]["value"] == (1 + 0 + 0.5 + 0) / 4
    assert rows["shade-win-rate"]["reference"] == "one"
    assert rows["shade-elo"]["value"] < 1000
    assert call(sd3, *ask, "--reference", tmp_path / "two").status == 0
    other = {
        (row["name"], row.get("reference")): row for row in records.read_scores(tmp_path / "one" / "evals.jsonl")[0]
    }
    assert other["shade-win-rate", "two"]["value"] == 0.625
    assert other["shade-elo", "one"]["value"] == 1000


def test_pictures_are_compared_by_their_index_also_where_one_is_missing(
    sd3: Any, judged_by_shade: None, tmp_path: Path
) -> None:
    """Where one system lacks its first picture, the second is still held against the other's second."""
    for name, shades in (("one", (200, 10, 200, 10)), ("two", (0, 20, 0, 20))):
        write_folder(tmp_path / name, ["a cat", "a dog"], images=2)
        for number, value in enumerate(shades):
            path = tmp_path / name / f"{number // 2:05d}" / "samples" / f"{number % 2:04d}.png"
            write_picture(path, value)
    (tmp_path / "one" / "00000" / "samples" / "0000.png").unlink()
    (tmp_path / "two" / "00001" / "samples" / "0000.png").write_bytes(b"no picture")
    assert call(sd3, "evaluate", tmp_path / "one", tmp_path / "two", "--suite", "preference").status == 2
    rows = {row["name"]: row for row in records.read_scores(tmp_path / "two" / "evals.jsonl")[0]}
    assert (rows["shade-win-rate"]["value"], rows["shade-win-rate"]["n"]) == (1, 2)


def test_missing_and_unreadable_pictures_make_partial_scores_and_one_line(
    sd3: Any, judged_by_shade: None, tmp_path: Path
) -> None:
    write_folder(tmp_path / "one", ["a cat", "a dog"], images=2)
    (tmp_path / "one" / "00001" / "samples" / "0001.png").write_bytes(b"no picture")
    result = call(sd3, "evaluate", tmp_path / "one", "--suite", "preference")
    assert result.status == 2
    assert result.stderr.count("\n") == 1
    assert "0001.png" in result.stderr
    assert "marked as partial" in result.stderr
    kept = records.read_scores(tmp_path / "one" / "evals.jsonl")[0]
    assert [row["value"] for row in kept if row["group"] == "overall"] == [1.0]
    assert "0001.png" in kept[0]["partial"]
    write_folder(tmp_path / "two", ["a cat", "a dog"], images=2)
    assert call(sd3, "evaluate", tmp_path / "two", tmp_path / "one", "--suite", "preference").status == 2
    rows = {row["name"]: row for row in records.read_scores(tmp_path / "two" / "evals.jsonl")[0]}
    assert "partial" not in rows["shade"]
    assert "0001.png" in rows["shade-win-rate"]["partial"]
    assert rows["shade-elo"]["prompt_list"] == rows["shade"]["prompt_list"]


def test_what_one_system_lacks_is_said_before_any_is_judged(sd3: Any, judged_by_shade: None, tmp_path: Path) -> None:
    write_folder(tmp_path / "one", ["a cat", "a dog"], images=1)
    write_picture(tmp_path / "flat" / "00000.png", 0)
    result = call(sd3, "evaluate", tmp_path / "one", tmp_path / "flat", "--suite", "preference")
    assert (result.status, result.stderr.count("\n")) == (2, 1)
    assert "flat: does not say what its pictures are of; --prompts FILE does" in result.stderr
    assert not (tmp_path / "one" / scorer.FILE).exists()


def test_prompts_of_a_file_are_those_that_count(sd3: Any, judged_by_shade: None, tmp_path: Path) -> None:
    for number in range(3):
        write_picture(tmp_path / "flat" / f"{number:05d}.png", 10 * number)
    file = tmp_path / "parti.tsv"
    file.write_text("Prompt\tCategory\na cat\tAnimals\na dog\tAnimals\na car\tVehicles\n")
    result = call(
        sd3, "evaluate", tmp_path / "flat", "--suite", "preference", "--prompts", file, "--out", tmp_path / "out"
    )
    assert result.status == 0, result.stderr
    rows = records.read_scores(tmp_path / "out" / "evals.jsonl")[0]
    assert {row["group"]: row["value"] for row in rows} == {"overall": 10, "Animals": 5, "Vehicles": 20}
    assert not (tmp_path / "flat" / "evals.jsonl").exists()
    file.write_text("Prompt\na cat\na dog\n")
    result = call(sd3, "evaluate", tmp_path / "flat", "--suite", "preference", "--prompts", file)
    assert (result.status, result.stderr.count("\n")) == (2, 1)
    assert "00002.png: is of no prompt" in result.stderr


def test_scores_of_two_systems_are_never_put_into_one_directory(
    sd3: Any, judged_by_shade: None, tmp_path: Path
) -> None:
    for name in ("one", "other"):
        write_folder(tmp_path / name, ["a cat", "a dog"], images=1)
    ask = ("--suite", "preference", "--out", tmp_path / "out")
    assert call(sd3, "evaluate", tmp_path / "one", *ask).status == 0
    before = (tmp_path / "out" / "evals.jsonl").read_text()
    result = call(sd3, "evaluate", tmp_path / "other", *ask)
    assert (result.status, result.stderr.count("\n")) == (2, 1)
    assert f"out: has the scores of {tmp_path / 'one'}; name another directory" in result.stderr
    assert (tmp_path / "out" / "evals.jsonl").read_text() == before
    assert call(sd3, "evaluate", tmp_path / "one" / ".." / "one", *ask).status == 0  # by another way to it


def test_systems_that_share_no_prompts_are_told_before_any_is_judged(
    sd3: Any, judged_by_shade: None, tmp_path: Path
) -> None:
    write_folder(tmp_path / "one", ["a cat", "a dog"], images=1)
    write_folder(tmp_path / "other", ["a cat", "a car"], images=1)
    result = call(sd3, "evaluate", tmp_path / "one", tmp_path / "other", "--suite", "preference")
    assert (result.status, result.stderr.count("\n")) == (2, 1)
    assert "other and one: have 1 of their prompts in common, and are compared on two or more" in result.stderr
    assert not (tmp_path / "one" / scorer.FILE).exists()


def test_a_flat_folder_with_a_list_of_prompts_has_a_clip_score(
    sd3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By features in which a picture is its mean colour: cat's is red, dog's green, and the second picture is blue."""

    def embed(images: Sequence[np.ndarray]) -> np.ndarray:
        rows = np.stack([image.mean(axis=(0, 1)) for image in images])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def texts(wanted: Sequence[str]) -> np.ndarray:
        return np.eye(3)[[["a cat", "a dog"].index(text) for text in wanted]]

    monkeypatch.setattr(features, "load", lambda spec: features.Extractor("clip", "1", embed, texts))
    for name in ("one", "real"):
        for number, place in enumerate((0, 2, 1)):
            path = tmp_path / name / f"{number:05d}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full((24, 24, 3), 255 * np.eye(3)[place], np.uint8)).save(path)
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\na dog\n")
    ask = ("evaluate", tmp_path / "one", "--suite", "fidelity", "--real", tmp_path / "real", "--prompts", file)
    assert call(sd3, *ask).status == 2  # the third picture is of no prompt
    (tmp_path / "one" / "00002.png").unlink()
    result = call(sd3, *ask)
    assert result.status == 0, result.stderr
    rows = {row["name"]: row for row in records.read_scores(tmp_path / "one" / "evals.jsonl")[0]}
    assert (rows["clip-score"]["value"], rows["clip-score"]["prompts"]) == (50, 2)
    assert rows["clip-score"]["prompt_list"] == rows["kid-clip"]["prompt_list"]
    assert (rows["kid-clip"]["n"], rows["kid-clip"]["reference_n"]) == (2, 3)


def test_distances_are_measured_once_for_each_content(
    sd3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sd3_jax.evaluation import between

    rng = np.random.default_rng(0)
    for name in ("one", "real"):
        for number in range(6):
            path = tmp_path / name / f"{number:05d}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    ask = ("evaluate", tmp_path / "one", "--suite", "fidelity", "--real", tmp_path / "real")
    assert call(sd3, *ask).status == 0
    first = records.read_scores(tmp_path / "one" / "evals.jsonl")[0]
    assert {row["name"] for row in first} >= {"fd-scene", "kid-scene"}

    def fail(*_: Any) -> None:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(between, "measure", fail)
        assert call(sd3, *ask).status == 0
    assert records.read_scores(tmp_path / "one" / "evals.jsonl")[0] == first
    write_picture(tmp_path / "real" / "00000.png", 3)
    assert call(sd3, *ask).status == 0
    assert records.read_scores(tmp_path / "one" / "evals.jsonl")[0] != first


def test_exact_judges_answer_for_scenes_and_say_only_what_is_asked(sd3: Any, tmp_path: Path) -> None:
    caption = "a photo of a red square"
    write_picture(tmp_path / "00000" / "samples" / "0000.png", 128)
    Image.fromarray(np.full((24, 24, 3), 128, np.uint8)).save(tmp_path / "00000" / "samples" / "0000.png")
    (tmp_path / "00000" / "metadata.jsonl").write_text(json.dumps({"prompt": caption}))
    ask = ("evaluate", tmp_path, "--experiment", "scenes_cpu", "--suite", "geneval", "--json", tmp_path / "x.json")
    result = call(sd3, *ask, "--images-per-task", "2")
    assert result.status == 0, result.stderr
    names = {row["name"] for row in json.loads((tmp_path / "x.json").read_text())}
    assert "scene-geneval" in names
    assert all(name.startswith("scene-geneval") for name in names)


@pytest.fixture
def compbench_copy(tmp_path: Path) -> Path:
    """Two categories of a copy of T2I-CompBench's lists."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "color_val.txt").write_text("a red cup and a blue dog\na green cat and a pink car\n")
    (folder / "non_spatial_val.txt").write_text("a man eats a pear\n")
    return folder


def test_compbench_scores_categories_and_answers_in_upstreams_files(
    sd3: Any, tmp_path: Path, compbench_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One category's pictures are named as upstream names them, the other's are in GenEval's layout."""
    judges = {
        "color": Scorer("compbench/color", "1", shade),
        "non_spatial": Scorer("compbench-x/non_spatial", "1", shade),
    }
    monkeypatch.setattr(choose, "compbench", lambda found: judges)
    samples = tmp_path / "sys" / "color" / "samples"
    for number, text in enumerate(["a red cup and a blue dog"] * 10 + ["a green cat and a pink car"] * 10):
        write_picture(samples / f"{text}_{number:06d}.png", number)
    write_folder(tmp_path / "sys" / "non_spatial", ["a man eats a pear"], images=10, start=50)
    ask = ("evaluate", tmp_path / "sys", "--suite", "compbench", "--compbench", compbench_copy)
    result = call(sd3, *ask)
    assert result.status == 0, result.stderr
    rows = {(row["name"], row["group"]): row for row in records.read_scores(tmp_path / "sys" / "evals.jsonl")[0]}
    assert rows["compbench", "color"]["value"] == 9.5
    assert rows["compbench-x", "non_spatial"]["value"] == 54.5
    assert rows["compbench-all", "mean of 2"]["value"] == 32
    assert rows["compbench", "color"]["prompts"] == 2
    answers = json.loads((tmp_path / "sys" / "compbench" / "color" / "vqa_result.json").read_text())
    assert answers == [{"question_id": number, "answer": number} for number in range(20)]
    (samples / "a red cup and a blue dog_000003.png").unlink()
    result = call(sd3, *ask)
    assert (result.status, result.stderr.count("\n")) == (2, 1)
    assert "1 pictures of 1 prompts are missing" in result.stderr
    answers = json.loads((tmp_path / "sys" / "compbench" / "color" / "vqa_result.json").read_text())
    assert [row["question_id"] for row in answers] == [number for number in range(20) if number != 3]


def test_numbered_pictures_are_of_the_category_whose_folder_they_are_in(
    sd3: Any, tmp_path: Path, compbench_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each category counts its prompts from 0, so that one flat folder is none of them."""
    monkeypatch.setattr(choose, "compbench", lambda found: {"color": Scorer("compbench/color", "1", shade)})
    ask = ("evaluate", tmp_path / "sys", "--suite", "compbench", "--compbench", compbench_copy, "--images", "1")
    for number in range(2):
        write_picture(tmp_path / "sys" / f"{number:05d}.png", number)
    result = call(sd3, *ask)
    assert (result.status, result.stderr.count("\n")) == (2, 1)
    assert "its pictures are numbered, but of which category?" in result.stderr
    for number in range(2):
        write_picture(tmp_path / "sys" / "color" / f"{number:05d}.png", number)
    assert call(sd3, *ask).status == 0
    assert records.read_scores(tmp_path / "sys" / "evals.jsonl")[0][0]["value"] == 0.5


def test_pictures_under_compbenchs_names_are_links_that_its_readers_find(tmp_path: Path) -> None:
    asked = [prompts.Prompt(np.zeros(0, int), {"prompt": text}, 2) for text in ("a red cup", "a dog")]
    write_folder(tmp_path / "drawn", ["a red cup", "a dog"], images=2)
    shots = suites.find(tmp_path / "drawn", asked, "a list").shots
    for _ in range(2):
        compbench_files.lay_out(tmp_path / "color", suites.numbered(shots, asked))
    for index in range(2):
        write_picture(tmp_path / "flat" / f"00001_{index:04d}.png", index)
    assert [*suites.numbered(suites.find(tmp_path / "flat", asked, "a list").shots, asked)] == [2, 3]
    there = compbench_files.read_pictures(tmp_path / "color", [prompt.metadata for prompt in asked])
    assert [(number, shot.prompt) for number, shot in there] == [(0, 0), (1, 0), (2, 1), (3, 1)]
    assert [shot.path.resolve() for _, shot in there] == [shot.path.resolve() for shot in shots]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--prompts", "x.txt"), "--prompts: is of suites; say which with --suite"),
        (("--suite", "compbench"), "suite compbench: needs --scorer NAME=FOLDER"),
        (("--suite", "beauty"), "--suite: 'beauty' is not one of geneval, compbench"),
        (("--suite", "geneval"), "suite geneval: needs --scorer mask2former=FOLDER"),
        (("--suite", "preference"), "suite preference: needs --scorer NAME=FOLDER of one of pickscore"),
        (("--suite", "preference", "--scorer", "taste=x"), "--scorer taste: is not one of mask2former"),
        (("--suite", "preference", "--scorer", "pickscore"), "--scorer pickscore: is not NAME=FOLDER"),
        (("--suite", "fidelity"), "--real FOLDER says"),
        (("--suite", "fidelity", "--real", "nowhere"), "nowhere: no such folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_lacking_is_one_line(sd3: Any, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    write_folder(tmp_path / "one", ["a cat"], images=1)
    result = call(sd3, "evaluate", tmp_path / "one", *arguments)
    assert (result.status, result.stderr.count("\n")) == (2, 1)
    assert said in result.stderr


def test_genevals_own_prompts_are_what_a_folder_is_scored_by(
    sd3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third picture is right: the summary is that of upstream's arithmetic, and stands on the leaderboard."""
    rows = coco.geneval_prompts()
    write_folder(tmp_path / "sys", [row["prompt"] for row in rows], images=1)
    shown = {row["prompt"]: number for number, row in enumerate(rows)}

    def verdicts(images: Sequence[np.ndarray], said: Sequence[Mapping[str, Any]]) -> list[Any]:
        return [{"correct": shown[one["prompt"]] % 3 == 0, "reason": ""} for one in said]

    monkeypatch.setattr(choose, "geneval", lambda found: Scorer("geneval-mask2former-hf", "1", verdicts))
    result = call(sd3, "evaluate", tmp_path / "sys", "--suite", "geneval", "--images", "1")
    assert result.status == 0, result.stderr
    result = call(sd3, "leaderboard", f"mine={tmp_path / 'sys'}", "--json", tmp_path / "board.json")
    assert result.status == 0, result.stderr
    board = json.loads((tmp_path / "board.json").read_text())["geneval"]
    mine = next(line for line in board if line["label"] == "mine")
    tags: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        tags.setdefault(row["tag"], []).append(number % 3 == 0)
    assert mine["values"]["overall"][0] == pytest.approx(np.mean([np.mean(own) for own in tags.values()]))
    assert [line["label"] for line in board if line["judge"] == "published"][0] == "MM-DiT depth 38, 1024 px, DPO"
