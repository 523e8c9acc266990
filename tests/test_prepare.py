"""A preparation: what it writes, that it is the same however often it is killed, and that nothing leaves its folder."""

import io
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sd3_jax.cli import main
from sd3_jax.data import examples, frozen, prepare, shards, sources
from sd3_jax.data.examples import Caption, Example, Manifest
from sd3_jax.data.prepare import Encoders, Recipe
from sd3_jax.errors import UserError

RECIPE = Recipe(size=16)
ENCODERS = Encoders(frozen.load_codec("cosine:4x8"), [frozen.load_text("words:3x8")], batch=4)
RNG = np.random.RandomState(0)


def picture(height: int = 20, width: int = 24) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RNG.randint(0, 256, (height, width, 3)).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def pictures_of(folder: Path, count: int, **row: Any) -> Path:
    """A folder with a table."""
    folder.mkdir(parents=True)
    rows = []
    for i in range(count):
        (folder / f"{i:03d}.png").write_bytes(picture(16 + i % 5, 16 + i % 7))
        rows.append({"file_name": f"{i:03d}.png", "caption": f"picture number {i}", **row})
    write_table(folder, rows)
    return folder


def write_table(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_table(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def run(source: Path | str, out: Path, recipe: Recipe = RECIPE, **options: Any) -> Manifest:
    manifest = prepare.prepare(sources.find(str(source)), out, recipe, options.pop("encoders", ENCODERS), **options)
    assert manifest is not None
    return manifest


def read(out: Path, split: str = "train") -> list[Example]:
    manifest = examples.read_manifest(out)
    own = shards.Records(out, [shard for shard in manifest.shards if shard.split == split])
    return [examples.unpack(own[i], manifest) for i in range(len(own))]


def skipped(out: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    return {row["id"]: row["reason"] for row in rows}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of several pieces each, of few pictures."""
    monkeypatch.setattr(sources, "CHUNK", 10)
    monkeypatch.setattr(prepare, "PIECE", 4)


# --- what is written ------------------------------------------------------------------------------------------------
def test_records_hold_what_the_encoders_make_of_each_picture_and_caption(tmp_path: Path) -> None:
    folder = pictures_of(tmp_path / "in", 13, synthetic="made up", licence="MIT")
    rows = read_table(folder)
    rows[3]["split"], rows[4]["synthetic"], rows[5]["licence"] = "val", "", ""
    write_table(folder, rows)
    manifest = run(folder, tmp_path / "out", Recipe(size=16, licence="CC0-1.0"))
    found = {example.id: example for split in ("train", "validation") for example in read(tmp_path / "out", split)}
    assert list(found) == [row["file_name"] for row in rows[:3] + rows[4:] + rows[3:4]]
    assert (manifest.count("train"), manifest.count("validation"), manifest.skipped) == (12, 1, 0)
    assert manifest.captions == ("original", "synthetic")
    assert manifest.licences == {"CC0-1.0": 1, "MIT": 12}
    for name, example in found.items():
        data = (folder / name).read_bytes()
        image = Image.open(io.BytesIO(data))
        side = min(image.size)
        pixels = np.asarray(
            image.resize(
                (16, 16),
                Image.Resampling.LANCZOS,
                box=(left := (image.width - side) // 2, top := (image.height - side) // 2, left + side, top + side),
            )
        )
        np.testing.assert_array_equal(example.latent, ENCODERS.image.encode(pixels[None])[0].astype(np.float16))
        assert (example.size, example.crop) == ((image.height, image.width), (top, left, side, side))
        for caption in example.captions.values():
            states, pooled = (x[0] for x in ENCODERS.texts[0].encode([caption.text]))
            np.testing.assert_array_equal(caption.parts["words"][0], states.astype(np.float16))
            np.testing.assert_array_equal(caption.parts["words"][1], pooled.astype(np.float16))
    assert found["004.png"].captions.keys() == {"original"}
    assert found["000.png"].captions["synthetic"].text == "made up"


def test_the_manifest_measures_what_is_trained_on(tmp_path: Path) -> None:
    folder = pictures_of(tmp_path / "in", 30)
    manifest = run(folder, tmp_path / "out", Recipe(size=16, hold_out=0.3))
    train = np.stack([example.latent.astype(np.float64) for example in read(tmp_path / "out")])
    assert 0 < manifest.count("validation") < 20
    assert manifest.count("train") + manifest.count("validation") == 30
    np.testing.assert_allclose(manifest.autoencoder.shift, train.mean(), rtol=1e-12)
    np.testing.assert_allclose(1 / manifest.autoencoder.scale, train.std(), rtol=1e-12)
    np.testing.assert_allclose(manifest.statistics["channel_mean"], train.mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(manifest.statistics["channel_std"], train.std((0, 1, 2)), rtol=1e-9)
    z = np.asarray(examples.normalise(train, None, manifest.autoencoder))
    assert abs(z.mean()) < 1e-5
    assert abs(z.std() - 1) < 1e-5


def test_what_is_held_out_depends_on_the_name_alone(tmp_path: Path) -> None:
    folder = pictures_of(tmp_path / "in", 40)
    run(folder, tmp_path / "all", Recipe(size=16, hold_out=0.25))
    held = {example.id for example in read(tmp_path / "all", "validation")}
    write_table(folder, read_table(folder)[::2])
    run(folder, tmp_path / "half", Recipe(size=16, hold_out=0.25))
    assert {example.id for example in read(tmp_path / "half", "validation")} == held & {
        f"{i:03d}.png" for i in range(0, 40, 2)
    }
    run(folder, tmp_path / "more", Recipe(size=16, hold_out=0.5))
    assert {example.id for example in read(tmp_path / "half", "validation")} < {
        example.id for example in read(tmp_path / "more", "validation")
    }


def test_each_picture_goes_into_the_bucket_of_its_shape(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shapes = [(40, 40), (40, 80), (90, 40), (40, 42), (30, 70)]
    for i, shape in enumerate(shapes):
        (folder / f"{i}.png").write_bytes(picture(*shape))
        (folder / f"{i}.txt").write_text(f"number {i}")
    manifest = run(folder, tmp_path / "out", Recipe(size=16, buckets=((16, 16), (8, 24), (24, 8))))
    assert {size: manifest.count("train", size) for size in manifest.sizes} == {(8, 24): 2, (16, 16): 2, (24, 8): 1}
    assert {e.id: e.latent.shape[:2] for e in read(tmp_path / "out")} == {
        "0.png": (2, 2),
        "1.png": (1, 3),
        "2.png": (3, 1),
        "3.png": (2, 2),
        "4.png": (1, 3),
    }


def test_batches_and_threads_change_nothing(tmp_path: Path) -> None:
    folder = pictures_of(tmp_path / "in", 25)
    run(folder, tmp_path / "a")
    run(folder, tmp_path / "b", workers=5)
    run(folder, tmp_path / "c", encoders=ENCODERS._replace(batch=7))
    assert files(tmp_path / "a") == files(tmp_path / "b")
    arrays = lambda name: {k: v for k, v in files(tmp_path / name).items() if k.endswith("array_record")}  # noqa: E731
    assert arrays("a") == arrays("c")


# --- going on -------------------------------------------------------------------------------------------------------
def test_a_preparation_that_stops_goes_on_where_it_was(tmp_path: Path) -> None:
    folder = pictures_of(tmp_path / "in", 25)
    run(folder, tmp_path / "whole")
    for after in range(1, 8):  # pieces
        encoded = []

        def encode(images: np.ndarray, encoded: list[int] = encoded, after: int = after) -> np.ndarray:
            encoded.append(len(images))
            if len(encoded) > after:
                raise KeyboardInterrupt
            return ENCODERS.image.encode(images)

        out = tmp_path / f"stopped-{after}"
        with pytest.raises(KeyboardInterrupt):
            run(folder, out, encoders=ENCODERS._replace(image=ENCODERS.image._replace(encode=encode)))
        assert not (out / "manifest.json").exists()
        looked: list[int] = []
        run(folder, out, report=lambda n, done, chunks, looked=looked: looked.append(n))
        assert looked[-1] <= 25 - 2 * after
        assert files(out) == files(tmp_path / "whole")
    run(folder, out, encoders=ENCODERS._replace(image=ENCODERS.image._replace(encode=None)))  # nothing is done again
    assert files(out) == files(tmp_path / "whole")


def test_several_machines_share_one_and_the_last_writes_the_manifest(tmp_path: Path) -> None:
    folder = pictures_of(tmp_path / "in", 35)
    run(folder, tmp_path / "whole")
    source = sources.find(str(folder))
    for k in (3, 1):
        assert prepare.prepare(source, tmp_path / "out", RECIPE, ENCODERS, part=(k, 3)) is None
    assert prepare.prepare(source, tmp_path / "out", RECIPE, ENCODERS, part=(2, 3)) is not None
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    for k in (1, 2):  # each with a disk of its own; what they have written is put together
        assert prepare.prepare(source, tmp_path / f"disk{k}", RECIPE, ENCODERS, part=(k, 2)) is None
    for name, content in files(tmp_path / "disk2").items():
        (tmp_path / "disk1" / name).write_bytes(content)
    run(folder, tmp_path / "disk1")
    assert files(tmp_path / "disk1") == files(tmp_path / "whole")


def test_a_file_that_is_lost_or_damaged_is_made_again(tmp_path: Path) -> None:
    folder = pictures_of(tmp_path / "in", 25)
    run(folder, tmp_path / "out")
    whole = files(tmp_path / "out")
    shard = tmp_path / "out/train-00001-001.array_record"
    shard.unlink()
    with pytest.raises(shards.DamagedError, match="delete it and run sd3-jax prepare again"):
        shards.check_sizes(tmp_path / "out", examples.read_manifest(tmp_path / "out"))
    run(folder, tmp_path / "out")
    assert files(tmp_path / "out") == whole
    shard.write_bytes(shard.read_bytes()[:1000])
    run(folder, tmp_path / "out")
    assert files(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"recipe": Recipe(size=24)}, "size: 16 -> 24"),
        ({"recipe": Recipe(size=16, hold_out=0.5)}, "hold_out: 0.0 -> 0.5"),
        ({"recipe": Recipe(size=16, dtype="float32")}, "dtype: float16 -> float32"),
        ({"encoders": ENCODERS._replace(batch=5)}, "batch: 4 -> 5"),
        ({"encoders": ENCODERS._replace(image=frozen.load_codec("cosine:8x8"))}, "'channels': 8"),
        ({"encoders": ENCODERS._replace(texts=[frozen.load_text("words:4x8")])}, "'tokens': 4"),
        ({"left_out": {"00000/1": "is a copy of 000.png"}}, "left out: 0 pictures"),
        ({"limit": 12}, "25 pictures -> table, 2 chunks"),
    ],
)
def test_other_settings_need_another_folder(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    folder = pictures_of(tmp_path / "in", 25)
    source = sources.find(str(folder))
    assert prepare.prepare(source, tmp_path / "out", RECIPE, ENCODERS, part=(1, 2)) is None
    before = files(tmp_path / "out")
    source = sources.first(source, changed.pop("limit")) if "limit" in changed else source
    asked = {"recipe": RECIPE, "encoders": ENCODERS, **changed}
    with pytest.raises(UserError) as error:
        prepare.prepare(source, tmp_path / "out", asked.pop("recipe"), asked.pop("encoders"), **asked)
    assert "was begun otherwise" in str(error.value)
    assert said in str(error.value)
    assert files(tmp_path / "out") == before


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    folder = pictures_of(tmp_path / "in", 3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is there already, and is no preparation"):
        run(folder, tmp_path / "out")
    with pytest.raises(UserError, match="is there already, and is no preparation"):
        run(folder, folder)
    assert list(files(tmp_path / "out")) == ["thesis.txt"]
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/..prepare.json.123").write_text("{")  # of a process that was killed as it began
    run(folder, tmp_path / "begun")
    assert not list((tmp_path / "begun").glob("..prepare*"))


# --- what cannot be used --------------------------------------------------------------------------------------------
def test_what_cannot_be_used_is_listed_and_nothing_escapes(tmp_path: Path) -> None:
    folder = pictures_of(tmp_path / "in", 6)
    (tmp_path / "out-of-it.png").write_bytes(picture())
    (folder / "empty.png").write_bytes(b"")
    (folder / "half.png").write_bytes(picture()[:200])
    (folder / "page.jpg").write_text("<html>404</html>")
    (folder / os.fsdecode(b"\xff\xfe.png")).write_bytes(picture())
    bad: dict[str, tuple[dict[str, Any], str]] = {
        "empty.png": ({}, "is empty"),
        "half.png": ({}, "cannot be decoded"),
        "page.jpg": ({}, "is none of JPEG"),
        "gone.png": ({}, "is missing"),
        "../out-of-it.png": ({}, "lies outside the folder"),
        "000.png\0": ({}, "has a name with control characters"),
        os.fsdecode(b"\xff\xfe.png"): ({}, "has a name that is not UTF-8"),
        "000.png": ({"caption": "null\0byte"}, "has a caption with control characters"),
        "001.png": ({"caption": " \n"}, "has no caption"),
        "002.png": ({"caption": "long " * 5000}, "has a caption of more than 20,000 characters"),
        "003.png": ({"caption": "\ud83d"}, "has a caption that is not UTF-8"),
        "004.png": ({"split": "../../escaped/train"}, "is of a split that is neither train nor validation"),
        "./004.png": ({"licence": "\ud83d"}, "has a licence that is not UTF-8"),
    }
    fine = [{"file_name": "005.png", "caption": "tabs\tand\nlines, 猫 and 👩‍🚀"}]
    write_table(folder, fine + [{"file_name": name, "caption": "words", **row} for name, (row, _) in bad.items()])
    manifest = run(folder, tmp_path / "out")
    assert [(e.id, e.captions["original"].text) for e in read(tmp_path / "out")] == [("005.png", fine[0]["caption"])]
    found = skipped(tmp_path / "out")
    assert found.keys() == bad.keys()
    assert {name: found[name] for name, (_, why) in bad.items() if not found[name].startswith(why)} == {}
    assert manifest.skipped == len(bad)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out", "out-of-it.png"]
    write_table(folder, [{"file_name": "empty.png", "caption": "words"}])
    with pytest.raises(UserError, match="not one picture could be used; 1 times: is empty"):
        run(folder, tmp_path / "none")


def test_a_tar_that_wants_to_write_elsewhere_writes_nothing(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("../escaped.png", "/tmp/escaped.png", "fine.png", "fine.txt"):
            info, data = tarfile.TarInfo(name), b"words" if name.endswith("txt") else picture()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    run(tmp_path / "a.tar", tmp_path / "out")
    assert [example.id for example in read(tmp_path / "out")] == ["a/fine"]
    assert set(skipped(tmp_path / "out").values()) == {"lies outside the folder"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "out"]


def test_two_parts_may_begin_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = sources.find(str(pictures_of(tmp_path / "in", 25))), tmp_path / "out"
    out.mkdir()
    look_in = Path.iterdir

    def other_begins(folder: Path) -> Any:
        if folder == out:
            monkeypatch.setattr(Path, "iterdir", look_in)
            prepare.prepare(source, out, RECIPE, ENCODERS, part=(1, 2))
        return look_in(folder)

    monkeypatch.setattr(Path, "iterdir", other_begins)
    assert prepare.prepare(source, out, RECIPE, ENCODERS, part=(2, 2)) is not None


def test_pictures_that_are_not_wanted_are_listed_with_the_reason(tmp_path: Path) -> None:
    folder = pictures_of(tmp_path / "in", 9)
    gone = {"002.png": "is a copy of 001.png", "007.png": "is a copy of 001.png"}
    run(folder, tmp_path / "out", left_out={sources.place_of(0, int(name[:3])): why for name, why in gone.items()})
    assert skipped(tmp_path / "out") == gone
    assert [e.id for e in read(tmp_path / "out")] == [f"{i:03d}.png" for i in range(9) if f"{i:03d}.png" not in gone]


def test_sizes_that_the_autoencoder_cannot_encode_are_refused(tmp_path: Path) -> None:
    folder = pictures_of(tmp_path / "in", 3)
    for recipe in (Recipe(size=12), Recipe(size=16, buckets=((8, 20),)), Recipe(size=0)):
        with pytest.raises(UserError, match="a side is no multiple of the autoencoder's 8"):
            run(folder, tmp_path / "out", recipe)
    with pytest.raises(UserError, match="--text: words is given twice"):
        run(folder, tmp_path / "out", encoders=ENCODERS._replace(texts=ENCODERS.texts * 2))
    assert not (tmp_path / "out").exists()


# --- the command ----------------------------------------------------------------------------------------------------
def told(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as end:
        main(["prepare", *map(str, arguments)])
    return int(end.value.code or 0)


SMALL = ("--size", "16", "--autoencoder", "cosine:4x8", "--text", "words:3x8")


def test_the_command_says_what_it_made_and_what_to_train_with(tmp_path: Path, capsys: Any) -> None:
    folder = pictures_of(tmp_path / "in", 25)
    (folder / "003.png").write_bytes(b"")
    said = ("--hold-out", "0.2", "--bucket", "16x16", "--bucket", "8x24", "--json", tmp_path / "said.json")
    assert told(folder, tmp_path / "out", *SMALL, *said) == 0
    printed = capsys.readouterr().out
    manifest = examples.read_manifest(tmp_path / "out")
    found = json.loads((tmp_path / "said.json").read_text())
    assert found["skipped"] == {"is empty": 1}
    assert sum(row["pictures"] for row in found["made"]) == 24
    assert found["digest"] == manifest.digest
    assert "left out 1: is empty" in printed
    line = printed.splitlines()[-1]
    overrides = dict(word.split("=") for word in shlex.split(line.partition(" RUN ")[2]) if word != "--set")
    assert overrides.pop("data.path") == str(tmp_path / "out")
    assert overrides["evaluation.examples"] == str(manifest.count("validation"))
    assert overrides["model.latent_channels"] == "4"
    assert told(folder, tmp_path / "out", *SMALL, *said) == 0
    assert "done before" in capsys.readouterr().out
    assert told(folder, tmp_path / "out", "--check") == 0
    assert "24 records in" in capsys.readouterr().out
    shard = next(path for path in (tmp_path / "out").glob("*.array_record") if b"004.png" in path.read_bytes())
    shard.write_bytes(shard.read_bytes().replace(b"004.png", b"005.png"))
    assert told(folder, tmp_path / "out", "--check") == 1
    assert re.search(rf"{shard.name}: record \d is damaged", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--size", "60"), "a side is no multiple of the autoencoder's 8"),
        (("--bucket", "3"), "--bucket 3: is not height x width in pixels"),
        (("--part", "3/2"), "--part 3/2: is not K/N"),
        (("--part", "0/2"), "--part 0/2: is not K/N"),
        (("--dtype", "int8"), "--dtype int8: is not one of float16"),
        (("--autoencoder", "foo"), "--autoencoder foo: is"),
        (("--text", "foo"), "--text foo: is"),
        (("--classes", "gone.txt"), "gone.txt: No such file or directory"),
        (("--caption-column", "gone"), "has no column gone; it has file_name, caption"),
        (("--as", "gone"), "--as gone: is not one of folder"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path: Path, capsys: Any, arguments: Any, said: str) -> None:
    folder = pictures_of(tmp_path / "in", 3)
    assert told(folder, tmp_path / "out", *SMALL, *arguments) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


# --- what the documentation says ------------------------------------------------------------------------------------
def test_the_documented_bytes_are_those_of_the_format() -> None:
    clip, t5, words = (("clip-l", 77, 768, 768), ("clip-g", 77, 1280, 1280)), ("t5", 77, 4096, 0), ("words", 16, 64, 64)

    def size(pixels: int, channels: int, *parts: tuple[str, int, int, int], kinds: int = 1) -> int:
        latent = np.zeros((pixels // 8, pixels // 8, channels))
        spoken = {name: (np.zeros((tokens, width)), np.zeros(pooled)) for name, tokens, width, pooled in parts}
        caption = Caption("a photograph of something, forty characters.", spoken)
        captions = dict.fromkeys(("original", "synthetic")[:kinds], caption)
        example = Example("cc12m-train-0000/000000000", latent, captions, (600, 800), (0, 100, 600, 600))
        return len(examples.pack(example, "float16")) + shards.CHECK_BYTES

    found = [  # the paper's autoencoder gives means and variances of 16 channels
        size(64, 32, words),
        size(256, 16, words),
        size(256, 32, *clip),
        size(256, 32, *clip, t5),
        size(256, 32, *clip, t5, kinds=2),
        size(256, 32, *clip, ("t5", 256, 4096, 0)),
        size(1024, 32, *clip, t5),
    ]
    text = (Path(__file__).parent.parent / "docs/data.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d+ px, .* \| ([\d,]+) \| ([\d.]+) ([GT])B \|$", text, re.MULTILINE)
    assert [int(each.replace(",", "")) for each, _, _ in rows] == found
    for (_, total, unit), each in zip(rows, found, strict=True):
        assert float(total) == float(f"{each * 1e6 / {'G': 1e9, 'T': 1e12}[unit]:.3g}")


# --- the command, killed --------------------------------------------------------------------------------------------
def command(source: Path, out: Path, *more: str, before: str = "") -> list[str]:
    """The command in a process of its own, with small chunks; ``before``: code that is run first."""
    code = "from sd3_jax.data import prepare, sources; sources.CHUNK, prepare.PIECE = 20, 8\n"
    code += before + "\nfrom sd3_jax.cli import main; main()"
    told = [
        "prepare",
        str(source),
        str(out),
        "--size",
        "16",
        "--autoencoder",
        "cosine:4x8",
        "--text",
        "words:3x8",
        *more,
    ]
    return [sys.executable, "-c", code, *told]


DYING = """
import os, signal, threading
from sd3_jax import records

write = records.write_atomic
def write_and_die(path, *rest):
    write(path, *rest)
    if path.parent.name == ".pieces":
        threading.Timer({delay}, os.kill, (os.getpid(), signal.SIGKILL)).start()
records.write_atomic = write_and_die
"""


def killed(source: Path, out: Path, times: int) -> None:
    """The command, killed again and again, each time a moment after its first piece; and once to its end."""
    numbers = random.Random(0)
    for life in range(times):
        dying = DYING.format(delay=numbers.random() * 0.01)
        ended = subprocess.run(command(source, out, before=dying), stderr=subprocess.DEVNULL)
        assert ended.returncode == -signal.SIGKILL
        assert len(list(out.glob(".pieces/*.json"))) > life
    assert not (out / "manifest.json").exists()
    subprocess.run(command(source, out), check=True, capture_output=True)


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_process_goes_on_and_gives_the_same_files(tmp_path: Path, times: int) -> None:
    folder = pictures_of(tmp_path / "in", 100 + 40 * times)
    killed(folder, tmp_path / "out", times)
    subprocess.run(command(folder, tmp_path / "whole"), check=True, capture_output=True)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_full_disk_is_one_line_and_what_is_done_stays(tmp_path: Path) -> None:
    folder = pictures_of(tmp_path / "in", 40)
    full = subprocess.run(
        [
            "bash",
            "-c",
            'ulimit -f 24; trap "" XFSZ; exec "$@"',
            "-",
            *command(folder, tmp_path / "out", "--size", "64"),
        ],
        capture_output=True,
        text=True,
    )
    assert full.returncode == 2
    (line,) = [line for line in full.stderr.splitlines() if "error" in line]
    assert line.startswith("sd3-jax: error: ")
    assert "array_record" in line
    assert "Traceback" not in full.stderr
    subprocess.run(command(folder, tmp_path / "out", "--size", "64"), check=True, capture_output=True)
    subprocess.run(command(folder, tmp_path / "whole", "--size", "64"), check=True, capture_output=True)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
