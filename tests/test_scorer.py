"""What judges said of pictures is kept: nothing is judged twice, and nothing that was said is lost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sd3_jax import records
from sd3_jax.evaluation import scorer
from sd3_jax.evaluation.scorer import Scorer, Shot


class Brightness:
    """A judge of known values, which notes what it is asked: the mean of a picture, and the length of its prompt."""

    def __init__(self, fails_at: int = -1) -> None:
        self.asked: list[int] = []
        self.fails_at = fails_at

    def score(self, images: Sequence[np.ndarray], prompts: Sequence[Mapping[str, Any]]) -> list[Any]:
        if len(self.asked) == self.fails_at:
            raise KeyboardInterrupt
        self.asked.append(len(images))
        return [[float(image.mean()), len(said["prompt"])] for image, said in zip(images, prompts, strict=True)]


def as_scorer(judge: Brightness, digest: str = "1") -> Scorer:
    return Scorer("brightness", digest, judge.score)


@pytest.fixture
def shots(tmp_path: Path) -> list[Shot]:
    found = []
    for number in range(40):
        path = tmp_path / f"{number:05d}.png"
        Image.fromarray(np.full((4, 6, 3), number, np.uint8)).save(path)
        found.append(Shot(path, number // 4, {"prompt": "a" * (1 + number // 4)}))
    return found


def test_a_picture_is_judged_once_in_batches_and_its_value_found_again(shots: list[Shot], tmp_path: Path) -> None:
    judge, done = Brightness(), list[int]()
    kept = tmp_path / scorer.FILE
    first = scorer.ask(as_scorer(judge), shots, kept, done.append)
    assert judge.asked == [scorer.BATCH, 8]
    assert sum(done) == 40
    assert first.values == [[float(number), 1 + number // 4] for number in range(40)]
    again = scorer.ask(as_scorer(judge), shots[::-1], kept)
    assert judge.asked == [scorer.BATCH, 8]
    assert again.values == first.values[::-1]


def test_what_was_said_belongs_to_bytes_prompt_and_judge(shots: list[Shot], tmp_path: Path) -> None:
    judge, kept = Brightness(), tmp_path / scorer.FILE
    scorer.ask(as_scorer(judge), shots[:3], kept)
    shots[0].path.rename(tmp_path / "moved.png")
    moved = shots[0]._replace(path=tmp_path / "moved.png")
    Image.fromarray(np.full((4, 6, 3), 99, np.uint8)).save(shots[1].path)
    other = shots[2]._replace(metadata={"prompt": "another"})
    assert scorer.ask(as_scorer(judge), [moved, shots[1], other], kept).values == [[0.0, 1], [99.0, 1], [2.0, 7]]
    assert judge.asked == [3, 2]
    scorer.ask(as_scorer(judge, digest="2"), [moved], kept)
    assert judge.asked == [3, 2, 1]


def test_equal_pictures_of_a_prompt_are_judged_once(shots: list[Shot], tmp_path: Path) -> None:
    judge = Brightness()
    twice = scorer.ask(as_scorer(judge), [shots[5], shots[5], shots[6]], tmp_path / scorer.FILE)
    assert judge.asked == [2]
    assert twice.values == [[5.0, 2], [5.0, 2], [6.0, 2]]


def test_an_interruption_loses_the_batch_that_was_being_judged_alone(shots: list[Shot], tmp_path: Path) -> None:
    kept, judge = tmp_path / scorer.FILE, Brightness(fails_at=1)
    with pytest.raises(KeyboardInterrupt):
        scorer.ask(as_scorer(judge), shots, kept)
    with kept.open("a") as file:
        file.write('{"scorer": "bright')  # a line cut short
    after = Brightness()
    assert len(scorer.ask(as_scorer(after), shots, kept).values) == 40
    assert after.asked == [8]
    assert len(records.read_rows(kept)[0]) == 40


def test_pictures_that_cannot_be_read_are_named_and_the_others_judged(shots: list[Shot], tmp_path: Path) -> None:
    shots[1].path.write_bytes(b"not a picture")
    shots[2].path.unlink()
    said = scorer.ask(as_scorer(Brightness()), shots[:5], tmp_path / scorer.FILE)
    assert [shot.path for shot in said.shots] == [shots[i].path for i in (0, 3, 4)]
    assert [value[0] for value in said.values] == [0.0, 3.0, 4.0]
    assert [problem.split(": ")[0] for problem in said.problems] == [str(shots[1].path), str(shots[2].path)]
    assert said.problems[1].endswith("is missing")
