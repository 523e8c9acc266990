"""Duplicates and memorised pictures: planted ones are found, others are not, and pairs are those of brute force."""

import io
import itertools
import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from sd3_jax.data import deduplication, duplicates, frozen, pictures, sources
from sd3_jax.data import prepare as preparing
from sd3_jax.data.duplicates import Pairs
from sd3_jax.errors import UserError
from sd3_jax.evaluation import memorisation

RNG = np.random.default_rng(0)


def photographs(count: int, side: int = 96, seed: int = 0) -> np.ndarray:
    """Smooth colour fields with a few hard shapes: unlike one another, as photographs are."""
    numbers = np.random.default_rng(seed)
    fields = ndimage.zoom(numbers.uniform(0, 255, (count, 6, 6, 3)), (1, side / 6, side / 6, 1), order=1)
    for field in fields:
        for _ in range(3):
            x, y = numbers.integers(0, side - 30, 2)
            field[y : y + numbers.integers(10, 30), x : x + numbers.integers(10, 30)] = numbers.uniform(0, 255, 3)
    return fields.round().clip(0, 255).astype(np.uint8)


def copy(picture: np.ndarray, how: str) -> np.ndarray:
    image = Image.fromarray(picture)
    if how == "half":
        image = image.resize((48, 48), Image.Resampling.BICUBIC)
    if how == "crop":
        image = image.crop((3, 3, 93, 93))
    if how == "dark":
        image = Image.fromarray((picture * 0.8).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50 if how == "jpeg" else 90)
    return np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))


def thumbnail(picture: np.ndarray) -> np.ndarray:
    return pictures.cut(Image.fromarray(picture), (duplicates.SIDE, duplicates.SIDE)).pixels


@pytest.fixture(scope="module")
def planted() -> tuple[np.ndarray, dict[int, tuple[int, str]]]:
    """Descriptors of 300 pictures, then of copies of some of them: which, and how."""
    originals = photographs(300)
    kinds = ("jpeg", "half", "crop", "dark")
    copies = {300 + i: (7 * i, kinds[i % 4]) for i in range(40)}
    every = [*originals, *(copy(originals[of], how) for of, how in copies.values())]
    return duplicates.whiten(duplicates.describe(np.stack([thumbnail(p) for p in every]))), copies


def test_planted_copies_are_found_and_no_others(planted) -> None:
    unit, copies = planted
    names = [str(i) for i in range(len(unit))]
    found = duplicates.find(names, names, unit, 0.6)
    assert set(found.left_out) == {str(i) for i in copies}
    for own, (of, _) in copies.items():
        assert f"is a duplicate of {of} (" in found.left_out[str(own)]
    assert found.counts["0.9"] <= found.counts["0.6"] == 40
    alike = (unit[:300] @ unit[:300].T)[np.triu_indices(300, 1)]
    assert np.quantile(alike, 0.999) < 0.5


def test_pairs_are_those_of_brute_force_within_each_cluster(planted) -> None:
    unit, _ = planted
    labels = duplicates.cluster(unit, 5)
    assert set(labels) == set(range(5))
    found = {
        (int(own[i]), int(own[j])): s
        for own in duplicates.members(labels)
        for i, j, s in zip(*duplicates.find_pairs(unit[own], 0.2), strict=True)
    }
    cosine = unit.astype(float) @ unit.T.astype(float)
    inside = labels[:, None] == labels[None]
    for i, j in itertools.combinations(range(len(unit)), 2):
        if abs(cosine[i, j] - 0.2) > 1e-4:
            assert ((i, j) in found) == bool(inside[i, j] and cosine[i, j] > 0.2)
    for (i, j), similarity in found.items():
        assert similarity == pytest.approx(cosine[i, j], abs=1e-5)
    assert np.array_equal(labels, duplicates.cluster(unit, 5))


def test_marking_is_algorithm_1() -> None:
    for seed in range(30):
        numbers = np.random.default_rng(seed)
        near = numbers.uniform(size=(12, 12)) < 0.2
        near |= near.T
        expected = np.full(12, -1)  # as the paper writes it: walk, skip what is marked, mark every other neighbour
        for i in range(12):
            if expected[i] >= 0:
                continue
            for j in range(12):
                if near[i, j] and j != i and expected[j] < 0 and not (j < i):
                    expected[j] = i
        first, second = np.nonzero(np.triu(near, 1))
        pairs = Pairs(first, second, np.full(len(first), 0.7))
        np.testing.assert_array_equal(duplicates.mark(12, pairs, 0.5), expected)
        assert (duplicates.mark(12, pairs, 0.8) == -1).all()
        kept = np.flatnonzero(expected < 0)
        assert not (near[np.ix_(kept, kept)] & ~np.eye(len(kept), dtype=bool)).any()  # none that is kept has a double


def test_exact_copies_are_found_at_a_threshold_of_one() -> None:
    pictures = np.stack([thumbnail(picture) for picture in photographs(200)])
    unit = duplicates.whiten(duplicates.describe(np.concatenate([pictures, pictures])))
    names = [str(i) for i in range(400)]
    found = duplicates.find(names, names, unit, 1.0)
    assert {own: of for own, of, _ in found.pairs} == {str(200 + i): str(i) for i in range(200)}


def write_pictures(folder: Path, count: int = 24) -> None:
    folder.mkdir()
    for i, picture in enumerate(photographs(count)):
        Image.fromarray(picture).save(folder / f"a{i:02d}.png")
        (folder / f"a{i:02d}.txt").write_text(f"number {i}")
    for i in (3, 8):
        Image.fromarray(copy(photographs(count)[i], "jpeg")).save(folder / f"b{i:02d}.png")
        (folder / f"b{i:02d}.txt").write_text(f"a copy of {i}")


def test_a_set_is_prepared_without_duplicates_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK", 10)
    write_pictures(tmp_path / "p")
    source, out = sources.find(str(tmp_path / "p")), tmp_path / "set"
    assert deduplication.deduplicate(source, out, 0.7, part=(2, 2)) is None  # the other has chunks to describe
    found = deduplication.deduplicate(source, out, 0.7, part=(1, 2))
    assert found is not None
    assert found.left_out.keys() == {"00002/4", "00002/5"}
    assert [own for own, _, _ in found.pairs] == ["b03.png", "b08.png"]
    (out / deduplication.FOLDER / "00000.npz").unlink()
    assert deduplication.deduplicate(source, out, 0.7) == found  # read, not found again
    whole = deduplication.deduplicate(source, tmp_path / "whole", 0.7)
    assert whole == found
    with pytest.raises(UserError, match=r"duplicates\.json: was found otherwise \(threshold 0\.7 -> 0\.8\)"):
        deduplication.deduplicate(source, out, 0.8)
    encoders = preparing.Encoders(frozen.cosine_codec(4, 8), [frozen.word_encoder(4, 8)])
    made = preparing.prepare(source, out, preparing.Recipe(32), encoders, left_out=found.left_out)
    assert made is not None
    assert made.count("train") == 24
    assert made.statistics["duplicates"]["counts"] == found.counts
    skipped = [json.loads(line) for line in (out / preparing.SKIPPED).read_text().splitlines()]
    assert {row["id"]: row["reason"].partition(" (")[0] for row in skipped} == {
        "b03.png": "is a duplicate of a03.png",
        "b08.png": "is a duplicate of a08.png",
    }
    with pytest.raises(UserError, match="was begun otherwise .*left out"):
        preparing.prepare(source, out, preparing.Recipe(32), encoders)


def test_what_is_too_small_to_be_used_is_nobodys_original(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p")
    original = tmp_path / "p" / "a03.png"
    Image.open(original).resize((48, 48), Image.Resampling.BICUBIC).save(original)
    source = sources.find(str(tmp_path / "p"))
    every = deduplication.deduplicate(source, tmp_path / "every", 0.7)
    assert every is not None
    assert {own for own, _, _ in every.pairs} == {"b03.png", "b08.png"}
    large = deduplication.deduplicate(source, tmp_path / "large", 0.7, least=64)
    assert large is not None
    assert {own for own, _, _ in large.pairs} == {"b08.png"}


def test_descriptors_of_another_source_are_not_taken_for_this_one(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p")
    source = sources.find(str(tmp_path / "p"))
    (tmp_path / "set" / deduplication.FOLDER).mkdir(parents=True)
    few = sources.first(source, 20)
    deduplication.deduplicate(few, tmp_path / "set", 0.7)
    (tmp_path / "set" / deduplication.RESULT).unlink()  # as of one that was interrupted before its end
    with pytest.raises(UserError, match=r"settings\.json: was found otherwise \(source folder, 1 chunks"):
        deduplication.deduplicate(source, tmp_path / "set", 0.7)


def test_of_a_file_that_a_table_names_twice_the_first_stays(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p")
    table = tmp_path / "p" / "metadata.csv"
    table.write_text("file_name,caption\n" + "".join(f"a{i % 24:02d}.png,caption {i}\n" for i in range(48)))
    source, out = sources.find(str(tmp_path / "p")), tmp_path / "set"
    found = deduplication.deduplicate(source, out, 0.9)
    assert found is not None
    encoders = preparing.Encoders(frozen.cosine_codec(4, 8), [frozen.word_encoder(4, 8)])
    made = preparing.prepare(source, out, preparing.Recipe(32), encoders, left_out=found.left_out)
    assert made is not None
    assert (made.count("train"), made.skipped) == (24, 24)


def test_no_more_files_are_open_at_once_than_a_process_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "CHUNK", 1)
    write_pictures(tmp_path / "p", 22)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    there = max(int(name) for name in os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (there + 12, before[1]))
    try:
        found = deduplication.deduplicate(sources.find(str(tmp_path / "p")), tmp_path / "set", 0.7)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert found is not None
    assert len(found.left_out) == 2
    (tmp_path / "set" / deduplication.RESULT).unlink()
    (tmp_path / "set" / deduplication.FOLDER / "00003.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"00003\.npz: is not what sd3-jax prepare wrote"):
        deduplication.deduplicate(sources.find(str(tmp_path / "p")), tmp_path / "set", 0.7)


def test_who_goes_depends_on_the_cluster_alone(planted, monkeypatch: pytest.MonkeyPatch) -> None:
    unit, _ = planted
    labels = duplicates.cluster(unit, 5)
    monkeypatch.setattr(duplicates, "cluster", lambda unit: labels)
    names = [str(i) for i in range(len(unit))]
    found = duplicates.find(names, names, unit, 0.3)
    expected = {}
    for i in range(len(unit)):
        if str(i) not in expected:
            for j in np.flatnonzero((unit @ unit[i] >= 0.3) & (labels == labels[i])):
                if j > i:
                    expected.setdefault(str(j), str(i))
    assert {own: of for own, of, _ in found.pairs} == expected
    assert found.counts["0.3"] == len(expected) > 40


def test_tiles_are_compared_one_by_one_and_the_worst_counts() -> None:
    one, other = RNG.integers(0, 256, (2, 3, 32, 32, 3)).astype(np.uint8)
    found = memorisation.distances(memorisation.tiles(one), memorisation.tiles(other))
    for i, j in itertools.product(range(3), range(3)):
        worst = 0.0
        for y, x in itertools.product(range(0, 32, 8), range(0, 32, 8)):
            a, b = (p[y : y + 8, x : x + 8].astype(float) / 255 for p in (one[i], other[j]))
            worst = max(worst, float(np.sqrt(np.mean((a - b) ** 2))))
        assert found[i, j] == pytest.approx(worst, rel=1e-4)
    corner = one.copy()
    corner[:, :8, :8] = 255 - corner[:, :8, :8]
    assert (np.diag(memorisation.distances(memorisation.tiles(one), memorisation.tiles(corner))) > 0.3).all()


def test_the_largest_clique_is_that_of_brute_force() -> None:
    for seed in range(60):
        numbers = np.random.default_rng(seed)
        near = numbers.uniform(size=(9, 9)) < numbers.uniform(0.1, 0.9)
        near = near | near.T | np.eye(9, dtype=bool)
        sizes = [k for k in range(1, 10) for chosen in itertools.combinations(range(9), k)
                 if near[np.ix_(chosen, chosen)].all()]  # fmt: skip
        assert memorisation.largest_clique(near) == max(sizes)


def test_what_is_given_back_again_and_again_is_memorised() -> None:
    trained = photographs(2, 32, seed=3)
    noise = RNG.normal(0, 8, (6, 32, 32, 3))
    parrot = (trained[0] + noise).clip(0, 255).astype(np.uint8)
    inventor = photographs(6, 32, seed=4)
    copied, invented = memorisation.measure([parrot, inventor], trained)
    assert copied.clique == 6
    assert copied.nearest < memorisation.NEAR < invented.nearest
    assert invented.clique == 1
