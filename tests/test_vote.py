"""What is voted on, the command, and a folder that needs no server."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from booth import CAPTIONS, HOSTILE, SYSTEMS, answer_to, ballot_of, write_flat, write_geneval, write_pictures
from PIL import Image

from analysis import voting as drawn
from sd3_jax.voting import results, votes
from sd3_jax.voting.ballot import make_ballot


@pytest.fixture
def pictures(tmp_path) -> Path:
    return write_pictures(tmp_path)


def test_every_pair_is_asked_and_nothing_that_is_shown_says_whose_a_picture_is(pictures) -> None:
    ballot = ballot_of(pictures, *SYSTEMS)
    assert len(ballot.comparisons) == 3 * 3
    assert {axis: len(items) for axis, items in ballot.questions.items()} == {
        "following": 9, "quality": 9, "typography": 3,
    }  # fmt: skip
    assert {ballot.comparisons[item].prompt for item in ballot.questions["typography"]} == {HOSTILE}
    for one in ballot.comparisons.values():
        assert one.prompt == CAPTIONS[one.prompt_id]
        for picture in (one.a, one.b):
            red, green, blue = np.asarray(Image.open(picture.path).convert("RGB"))[0, 0].astype(int)
            expected = SYSTEMS[picture.system]
            assert abs(red - expected[0]) + abs(green - expected[1]) <= 6
            order = one.prompt_id if picture.system != "gamma" else 2 - one.prompt_id
            assert abs(blue - expected[2] - order) <= 3  # JPEG
    shown = json.dumps(ballot.shown())
    assert not any(word in shown for word in (*SYSTEMS, "png", "jpg", "samples", str(pictures)))
    # Which of two is a follows the order of the systems; what is shown does not.
    first = [one.a.token == min(one.a.token, one.b.token) for one in ballot.comparisons.values()]
    assert 0 < sum(first) < 9
    assert list(ballot.shown()["items"]) == sorted(ballot.comparisons)


def test_tokens_stay_as_they_are_until_a_picture_changes(pictures) -> None:
    before = ballot_of(pictures)
    assert before.shown() == ballot_of(pictures).shown()
    wider = ballot_of(pictures, *SYSTEMS)
    assert before.comparisons.keys() < wider.comparisons.keys()  # a third system leaves what was voted on alone
    Image.new("RGB", (32, 32)).save(pictures / "alpha" / "00001.png")
    after = ballot_of(pictures)
    assert len(before.comparisons.keys() & after.comparisons.keys()) == 2
    assert after.shown()["id"] != before.shown()["id"]


@pytest.mark.parametrize(
    "caption, is_asked",
    [
        ('a sign that says "OPEN"', True),
        ("a sign that says “open late”", True),
        ("the words 'it's fine' in chalk", True),
        ("a photo of a dog's ball and a cat's bowl", False),
        ("the dogs' sofa", False),
        ("a red square", False),
    ],
)
def test_typography_is_asked_of_prompts_with_words_in_quotation_marks(tmp_path, caption, is_asked) -> None:
    for name, colour in SYSTEMS.items():
        write_flat(tmp_path / name, colour, [caption])
    (tmp_path / "prompts.txt").write_text(caption)
    ballot = ballot_of(tmp_path)
    assert ("typography" in ballot.questions) == is_asked
    assert bool(ballot.notes) != is_asked


def _remove(folder: Path) -> None:
    (folder / "beta" / "00001.jpg").unlink()


def _truncate(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-20])


BAD = {
    "a missing picture": (_remove, ["beta: 1 of 3 prompts lack a picture", "<script>", "--partial"]),
    "an extra picture": (
        lambda folder: shutil.copy(folder / "alpha/00000.png", folder / "alpha/00007.png"),
        ["alpha/00007.png: is of no prompt", "has 3, numbered from 0"],
    ),
    "a picture twice": (
        lambda folder: shutil.copy(folder / "alpha/00000.png", folder / "alpha/0.png"),
        ["alpha", "is numbered as another picture is"],
    ),
    "a PNG cut short": (lambda folder: _truncate(folder, "alpha/00002.png"), ["alpha/00002.png: cannot be read"]),
    "a JPEG cut short": (lambda folder: _truncate(folder, "beta/00002.jpg"), ["beta/00002.jpg: cannot be read"]),
    "no picture at all": (
        lambda folder: (folder / "alpha/00002.png").write_text("<html>"),
        ["alpha/00002.png: cannot be read as a picture"],
    ),
    "a prompt twice": (
        lambda folder: (folder / "prompts.txt").write_text("a\nb\na\n"),
        ["prompts.txt:3: the prompt of line 1 again: 'a'"],
    ),
    "no prompts": (lambda folder: (folder / "prompts.txt").write_text("\n"), ["prompts.txt: holds no prompt"]),
    "prompts in Latin-1": (lambda folder: (folder / "prompts.txt").write_bytes(b"\xe9"), ["is not UTF-8 text"]),
    "no prompt file": (lambda folder: (folder / "prompts.txt").unlink(), ["prompts.txt: No such file"]),
    "no folder": (lambda folder: shutil.rmtree(folder / "beta"), ["beta: no such folder"]),
    "an empty folder": (
        lambda folder: (shutil.rmtree(folder / "beta"), (folder / "beta").mkdir()),
        ["beta: holds no pictures, neither in GenEval's layout", "nor flat"],
    ),
    "other prompts": (
        lambda folder: (folder / "prompts.txt").write_text("x\ny\nz\n"),
        ["gamma: holds no picture of any prompt of", "'two cats on the dogs' sofa'"],
    ),
    "a hostile path": (
        lambda folder: (folder / "gamma/00000/metadata.jsonl").write_text("[" * 5000),
        ["gamma/00000/metadata.jsonl: is not one JSON object"],
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_ballot_is_one_clear_line(pictures, sd3, what) -> None:
    break_it, words = BAD[what]
    break_it(pictures)
    code, out, err = sd3("vote", *SYSTEMS, "--prompts", "prompts.txt", "--export", "out")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"sd3-jax: error: [^\n]+\n", err), err
    assert all(word in err.replace('"', "'") for word in words), err
    assert not (pictures / "out").exists()
    assert not [path.name for path in pictures.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("alpha",), "two folders of pictures or more"),
        (("alpha", "alpha"), "is called 'alpha' as another system is"),
        (("x=alpha", "x=beta"), "is called 'x' as another system is"),
        (("=alpha", "beta"), "has no name"),
        (("alpha", "beta", "--questions", "beauty"), "'beauty' is not one of following, quality, typography"),
        (("alpha", "beta", "--questions", ","), "question '' is not one of"),
        (("alpha", "beta", "--import", "prompts.txt"), "prompts.txt:1: is not JSON"),
        (("alpha", "beta", "--import", "nothing"), "nothing: No such file"),
        (("alpha", "beta", "--export", "gamma"), "gamma: exists already"),
        (("alpha", "beta", "--votes", "prompts.txt"), "prompts.txt:1: is not a vote, nor is any other line"),
        (("alpha", "beta", "--votes", "nowhere/v.jsonl"), "nowhere/v.jsonl: No such file"),
        (("alpha", "beta", "--votes", "alpha"), "alpha: Is a directory"),
        (("alpha", "beta", "--host", "192.0.2.1"), "192.0.2.1:8000: cannot be served from"),
    ],
)
def test_a_bad_command_is_one_clear_line(pictures, sd3, arguments, words) -> None:
    code, out, err = sd3("vote", *arguments, "--prompts", "prompts.txt")
    assert (code, out) == (2, "")
    assert words in err.splitlines()[-1]
    assert err.count("error") == 1


def test_prompts_may_be_those_that_a_folder_says(pictures, sd3) -> None:
    systems = {name: pictures / name for name in ("delta", "gamma")}
    write_geneval(systems["delta"], (9, 9, 9), CAPTIONS)
    ballot = make_ballot(systems)
    assert {one.prompt for one in ballot.comparisons.values()} == {*CAPTIONS}
    code, out, err = sd3("vote", "alpha", "beta", "--export", "out")
    assert (code, out) == (2, "")
    assert "no folder says what its pictures were asked for: give --prompts FILE" in err


def test_without_what_is_lacking_the_others_are_voted_on_and_marked(pictures, sd3) -> None:
    _remove(pictures)
    _truncate(pictures, "alpha/00000.png")
    code, out, err = sd3("vote", "alpha", "beta", "--prompts", "prompts.txt", "--partial", "--export", "out")
    assert code == 0
    assert "2 questions about 1 pairs" in out
    assert "note: partial: beta: 1 of 3 prompts lack a picture" in err
    ballot = ballot_of(pictures, allow_partial=True)
    [one] = ballot.comparisons.values()
    assert one.prompt_id == 2
    found = results.tally([votes.row_of(answer_to(ballot, one.item, "left"), ballot)])
    assert "lack a picture" in found["partial"]
    assert "Partial: " in drawn.sentences(found)[-1]


# --- a folder that needs no server ----------------------------------------------------------------------------------


def test_an_exported_folder_is_whole_and_names_nobody(pictures, sd3) -> None:
    assert sd3("vote", "alpha", "beta", "--prompts", "prompts.txt", "--export", "out")[0] == 0
    ballot, out = ballot_of(pictures), pictures / "out"
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files == {"index.html", *(f"picture/{token}" for token in ballot.pictures)}
    text = (out / "index.html").read_text()
    assert not any(word in text for word in ("alpha", "beta", str(pictures)))
    assert text.count("</script>") == 2  # the caption's own is none
    data = re.search(r'<script type="application/json" id="ballot">(.*?)</script>', text, re.DOTALL)
    assert json.loads(data[1]) == ballot.shown()
    assert "connect-src 'none'" in text
    assert not re.search(r'(src|href)="(?!data:,|results)', text)


def test_saved_votes_are_added_once(pictures, sd3) -> None:
    ballot = ballot_of(pictures)
    answers = [answer_to(ballot, item, "right") | {"time": 1_700_000_000} for item in ballot.comparisons]
    answers.append(answers[0] | {"id": "again", "winner": "undone"})
    (pictures / "ann.jsonl").write_text("".join(json.dumps(one) + "\n" for one in answers))
    command = ("vote", "alpha", "beta", "--prompts", "prompts.txt", "--import", "ann.jsonl")
    assert sd3(*command)[:2] == (0, "4 new votes in votes.jsonl\n")
    assert sd3(*command, "--import", "ann.jsonl")[:2] == (0, "0 new votes in votes.jsonl\n")
    rows = votes.read(pictures / "votes.jsonl")[0]
    assert [row["winner"] for row in votes.standing(rows)] == ["b", "b"]
    assert {row["time"] for row in rows} == {1_700_000_000}
    (pictures / "bob.jsonl").write_text(json.dumps(answers[0] | {"id": "x", "rater": "bob"}) + "\n{}\n")
    code, _, err = sd3(*command[:-1], "bob.jsonl")
    assert (code, len(votes.read(pictures / "votes.jsonl")[0])) == (2, 4)  # all or nothing
    assert "bob.jsonl:2: a vote is an object" in err
    code, _, err = sd3("vote", "alpha", "gamma", *command[3:])
    assert code == 2
    assert "ann.jsonl:1: this pair is not on the ballot" in err
