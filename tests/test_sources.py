"""What a source holds, in what order, and that nothing of it leads outside or stops the rest."""

import csv
import io
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from sd3_jax.data import archives, sources
from sd3_jax.data.pictures import Unreadable
from sd3_jax.data.sources import Columns, Item, find
from sd3_jax.errors import UserError


def png(number: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def items(where: Any, *arguments: Any, **options: Any) -> list[Item]:
    return [item for chunk in find(str(where), *arguments, **options).chunks for item in chunk.items()]


def plain(found: list[Item]) -> list[tuple[str, Any, str]]:
    """Names, captions and splits; and what can be read is a picture."""
    assert all(item.read() for item in found)
    return [(item.id, item.captions.get("original"), item.split) for item in found]


def why(item: Item) -> str:
    with pytest.raises(Unreadable) as error:
        item.read()
    return str(error.value)


# --- folders --------------------------------------------------------------------------------------------------------
def folder_of(folder: Path, **captions: str) -> Path:
    for number, (name, caption) in enumerate(captions.items()):
        path = folder / f"{name.replace('_', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return folder


def test_a_folder_has_captions_beside_and_splits_by_its_folders(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, train_b=" a dog \n", val_a="naïve 猫", train_a="one", c="", validation_x_y="deep")
    (folder / ".hidden").mkdir()
    (folder / ".hidden/x.png").write_bytes(png())
    (folder / "no.jpg").write_bytes(png())
    assert find(str(folder)).kind == "folder"
    assert find(str(folder)).items == 6
    assert plain(items(folder)) == [
        ("c.png", "", ""),
        ("no.jpg", "", ""),
        ("train/a.png", "one", "train"),
        ("train/b.png", "a dog", "train"),
        ("val/a.png", "naïve 猫", "validation"),
        ("validation/x/y.png", "deep", "validation"),
    ]


def test_links_out_of_a_folder_and_what_is_no_file_are_not_read(tmp_path: Path) -> None:
    folder, secret = folder_of(tmp_path / "in", a="fine", b="x", c="y", d="z", e="e"), tmp_path / "secret"
    secret.write_bytes(b"private")
    for name in ("b.png", "c.txt", "d.png", "e.png"):
        (folder / name).unlink()
    (folder / "b.png").symlink_to(secret)
    (folder / "c.txt").symlink_to(secret)
    os.mkfifo(folder / "d.png")
    (folder / "e.png").symlink_to(folder / "e.png")
    (folder / "f.png").symlink_to(folder / "a.png")  # inside: as good as a file
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "away").symlink_to(tmp_path, target_is_directory=True)
    found = {item.id: item for item in items(folder)}
    assert sorted(found) == ["a.png", "b.png", "c.png", "d.png", "e.png", "f.png"]
    assert found["a.png"].read() == found["f.png"].read() == png()
    assert why(found["b.png"]) == "lies outside the folder"
    assert why(found["c.png"]) == "has a caption that lies outside the folder"
    assert why(found["d.png"]) == "is not a file"
    assert why(found["e.png"]) in ("is not the name of a file", "is missing")
    assert not any("private" in item.captions.get("original", "") for item in found.values())


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path, a="x" * 100, b="b")
    monkeypatch.setattr(sources, "MOST_TEXT", 50)
    first, second = items(folder)
    assert why(first) == "has a caption that is too large"
    assert second.read()
    with pytest.raises(Unreadable, match="too large"):
        sources.file_of(folder, "b.png", 10)


def test_folders_of_classes_have_a_caption_for_each_class(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", train_n01_a="", train_n01_b="", train_n02_a="", train_n03_a="", val_n02_a="own")
    for path in folder.rglob("*.txt"):
        if path.parent.parent.name == "train":
            path.unlink()
    (tmp_path / "names.txt").write_text("n01 tench, Tinca tinca\nn02 great white shark\n")
    classes = sources.read_classes(tmp_path / "names.txt")
    assert classes == {"n01": ["tench", "Tinca tinca"], "n02": ["great white shark"]}
    found = plain(items(folder, classes=classes))
    assert {caption for name, caption, _ in found[:2]} <= {"a photo of a tench", "a photo of a Tinca tinca"}
    assert found[2:] == [
        ("train/n02/a.png", "a photo of a great white shark", "train"),
        ("train/n03/a.png", "", "train"),
        ("val/n02/a.png", "own", "validation"),
    ]
    drawn = [sources.photo_of(classes["n01"], f"{i}.jpg") for i in range(1000)]
    assert 400 < drawn.count("a photo of a tench") < 600
    assert drawn == [sources.photo_of(classes["n01"], f"{i}.jpg") for i in range(1000)]
    (tmp_path / "names.txt").write_text("n01 tench\nn02\n")
    with pytest.raises(UserError, match=r"names.txt:2: is no class and its names"):
        sources.read_classes(tmp_path / "names.txt")
    (folder / "val/n02/a.txt").unlink()
    with pytest.raises(UserError, match="no names of --classes for its folders"):
        find(str(folder))


# --- tables ---------------------------------------------------------------------------------------------------------
ROWS = [
    {"file_name": "a.png", "caption": "one, two", "synthetic": "s", "split": "train", "licence": "CC0-1.0"},
    {"file_name": "b/c.png", "caption": 'a "quote"\nand a line', "synthetic": "", "split": "val", "licence": ""},
    {"file_name": "../up.png", "caption": "猫", "synthetic": "", "split": "test", "licence": ""},
    {"file_name": "/etc/passwd", "caption": "up", "synthetic": "", "split": "", "licence": ""},
    {"file_name": "a\0.png", "caption": "null", "synthetic": "", "split": "", "licence": ""},
    {"file_name": "gone.png", "caption": "gone", "synthetic": "", "split": "", "licence": ""},
    {"file_name": "b", "caption": "a folder", "synthetic": "", "split": "", "licence": ""},
    {"file_name": "", "caption": "no name", "synthetic": "", "split": "", "licence": ""},
]


def table(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"metadata.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    elif kind == "parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        rows = [row for row in rows if "\0" not in "".join(row.values())]
        with open(path, "w", encoding="utf-8-sig" if kind == "csv" else "utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), dialect="excel-tab" if kind == "tsv" else "excel")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_table_gives_the_same_items_and_none_leads_outside(tmp_path: Path, kind: str) -> None:
    folder = folder_of(tmp_path / "in", a="", b_c="")
    (tmp_path / "up.png").write_bytes(png())
    found = {item.id: item for item in items(table(folder, kind, ROWS))}
    assert found["a.png"].captions == {"original": "one, two", "synthetic": "s"}
    assert (found["a.png"].split, found["a.png"].licence) == ("train", "CC0-1.0")
    assert found["b/c.png"].captions == {"original": 'a "quote"\nand a line'}
    assert [found[name].split for name in ("b/c.png", "../up.png", "gone.png")] == ["validation", "validation", ""]
    assert found["a.png"].read() == png(0)
    assert found["b/c.png"].read() == png(1)
    assert why(found["../up.png"]) == why(found["/etc/passwd"]) == "lies outside the folder"
    assert why(found["gone.png"]) == "is missing"
    assert why(found["b"]) == why(found[""]) == "is not a file"
    if kind in ("jsonl", "parquet"):
        assert why(found["a\0.png"]) == "is not the name of a file"


def test_columns_are_found_by_their_usual_names_or_those_that_are_given(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a="")
    rows = [{"picture": "a.png", "alt": "words", "recaption": "more words", "license": "MIT", "text": "other"}]
    path = table(folder, "jsonl", rows)
    (item,) = items(path, columns=Columns(file="picture", caption="alt", synthetic="recaption"))
    assert item.captions == {"original": "words", "synthetic": "more words"}
    assert item.licence == "MIT"
    with pytest.raises(UserError, match="has no column file; it has picture, alt"):
        items(path)
    with pytest.raises(UserError, match="has no column nothing; it has"):
        items(path, columns=Columns(file="picture", caption="nothing"))
    with pytest.raises(UserError, match="has no column nothing; it has"):
        items(path, columns=Columns(file="picture", synthetic="nothing"))
    path = table(folder, "jsonl", [{"file": "a.png", "captions": ["the first", "the second"]}])
    assert items(path)[0].captions == {"original": "the first"}


def test_each_split_of_a_folder_may_have_a_table_of_its_own(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "test")):
        table(folder_of(tmp_path / split, a="", b=""), "jsonl", [{"file_name": f"{n}.png", "text": n} for n in "ab"])
        (tmp_path / split / "a.png").write_bytes(png(10 + number))
    assert find(str(tmp_path)).kind == "table"
    found = items(tmp_path)
    assert plain(found) == [
        ("test/a.png", "a", "validation"),
        ("test/b.png", "b", "validation"),
        ("train/a.png", "a", "train"),
        ("train/b.png", "b", "train"),
    ]
    assert [found[0].read(), found[2].read()] == [png(11), png(10)]
    assert len({chunk.name for chunk in find(str(tmp_path)).chunks}) == 2


def test_pictures_of_a_table_may_lie_elsewhere(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", a="")
    path = table(tmp_path, "csv", [{"file": "a.png", "text": "one"}])
    assert items(path, images=folder)[0].read() == png(0)
    assert why(items(path)[0]) == "is missing"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"file": "a"}\n[1]\n', ":2: is not a JSON object"),
        ("a.jsonl", b'{"file": "a"\n', ":1: is not a JSON object"),
        ("a.jsonl", b"[" * 100_000 + b"\n", ":1: is not a JSON object"),
        ("a.jsonl", b"", "has no rows"),
        ("a.csv", b"\xff\xfe\x00", "is not UTF-8"),
        ("a.csv", b"file,caption\n", "has no rows"),
        ("a.csv", b"file,caption\na," + b"x" * 200_000 + b"\n", "cannot be read"),
        ("a.parquet", b"PAR1 and nothing", "cannot be read"),
        ("a.json", b"[]", "is not a file of COCO's captions"),
        ("a.json", b'{"images": [{"id": 1}], "annotations": []}', "is not a file of COCO's captions"),
    ],
)
def test_a_table_that_is_none_is_one_clear_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        items(tmp_path / name)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# --- tars -----------------------------------------------------------------------------------------------------------
def tar_of(path: Path, members: list[tuple[Any, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_tars_as_cc12m_is_published(tmp_path: Path) -> None:
    for number in range(3):
        members = []
        for i in range(2):
            key = f"{number:04d}{i:05d}"
            said = json.dumps({"key": key, "caption": f"in json {key}", "status": "success", "synthetic": "made up"})
            members += [(f"{key}.jpg", png(i)), (f"{key}.json", said.encode()), (f"{key}.txt", f"a {key}\n".encode())]
        tar_of(tmp_path / f"cc12m-train-{number:04d}.tar", members)
    source = find(str(tmp_path))
    assert (source.kind, len(source.chunks), source.items) == ("webdataset", 3, None)
    found = items(tmp_path / "cc12m-train-{0000..0002}.tar")
    assert plain(found) == plain(items(tmp_path))
    assert plain(found)[:2] == [
        ("cc12m-train-0000/000000000", "a 000000000", ""),
        ("cc12m-train-0000/000000001", "a 000000001", ""),
    ]
    assert found[0].captions["synthetic"] == "made up"
    assert found[1].read() == png(1)
    assert items(tmp_path, columns=Columns(caption="caption"))[0].captions["original"] == "in json 000000000"
    with pytest.raises(UserError, match=r"cc12m-train-0003.tar: no such file \(2 of 5 are missing\)"):
        items(tmp_path / "cc12m-train-{0000..0004}.tar")


def test_members_that_lead_outside_are_named_and_the_others_stay(tmp_path: Path) -> None:
    path = tar_of(
        tmp_path / "a.tar",
        [
            ("../../up.jpg", png()),
            ("/abs.jpg", png()),
            ("./fine.png", png()),
            ("./fine.txt", b"words"),
            (link("link.jpg", "/etc/passwd"), b""),
            (link("hard.jpg", "./fine.png", tarfile.LNKTYPE), b""),
            (link("device.jpg", "", tarfile.CHRTYPE), b""),
            ("alone.txt", b"no picture"),
            ("broken.jpg", b""),
            ("broken.json", b"{"),
        ],
    )
    found = {item.id: item for item in items(path)}
    assert plain([found["a/fine"]]) == [("a/fine", "words", "")]
    assert why(found["a/../../up.jpg"]) == why(found["a//abs.jpg"]) == "lies outside the folder"
    assert why(found["a/link.jpg"]) == why(found["a/hard.jpg"]) == "is a link"
    assert why(found["a/alone"]) == "has no picture"
    assert found["a/broken"].captions == {}
    assert sorted(os.listdir(tmp_path)) == ["a.tar"]


def test_a_tar_that_breaks_off_gives_what_comes_before(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "a.tar", [(f"{i}.{end}", png(i)) for i in range(3) for end in ("jpg", "txt")])
    (tmp_path / "cut").mkdir()
    cut = tmp_path / "cut/a.tar"
    cut.write_bytes(whole.read_bytes()[:2700])
    found = items(cut)
    assert [item.id for item in found[-2:]] == ["a/0", "a/1"]
    assert "is broken here" in why(found[0])
    cut.write_bytes(whole.read_bytes()[: 512 + 20])  # in the middle of the first picture
    assert any("tar" in why(item) for item in items(cut))
    for content in (b"", b"<html>", bytes(10240), os.urandom(5000)):
        cut.write_bytes(content)
        assert len(items(cut)) == 1
        assert "tar" in why(items(cut)[0])


def test_a_negative_size_is_no_endless_loop(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", [("a.jpg", png()), ("a.txt", b"x"), ("b.jpg", png())])
    data = bytearray(path.read_bytes())
    start = data.index(b"b.jpg")
    data[start + 124 : start + 136] = b"\xff" * 11 + b"\x00"  # base 256: -256
    header = data[start : start + 512]
    header[148:156] = b" " * 8
    data[start + 148 : start + 156] = f"{sum(header):06o}\0 ".encode()
    path.write_bytes(data)
    found = items(path)
    assert plain(found[1:]) == [("a/a", "x", "")]
    assert "negative size" in why(found[0])


def test_ranges_of_names() -> None:
    assert archives.expand("x-{8..11}-{0..1}.tar") == [f"x-{i}-{j}.tar" for i in range(8, 12) for j in range(2)]
    assert archives.expand("x-{a,b}.tar") == ["x-{a,b}.tar"]


# --- COCO -----------------------------------------------------------------------------------------------------------
def coco(folder: Path, count: int = 5, each: int = 3) -> Path:
    (folder / "val2014").mkdir(parents=True)
    (folder / "annotations").mkdir()
    pictures = [{"id": i * 7 % 11, "file_name": f"COCO_val2014_{i * 7 % 11:012d}.jpg"} for i in range(count)]
    for picture in pictures:
        (folder / "val2014" / str(picture["file_name"])).write_bytes(png(int(picture["id"])))
    spoken = [
        {"image_id": p["id"], "id": 100 * j + i, "caption": f"{p['id']} said {j}\n"}
        for j in range(each)
        for i, p in enumerate(pictures)
    ]
    path = folder / "annotations/captions_val2014.json"
    path.write_text(json.dumps({"info": {}, "images": pictures, "annotations": spoken}))
    return path


def test_coco_has_one_caption_to_a_picture_in_mlperfs_order(tmp_path: Path) -> None:
    path = coco(tmp_path, count=9)
    tree = json.loads(path.read_text())
    # As mlcommons/training draws them: process_coco_validation.py of its text-to-image benchmarks.
    drawn = pd.DataFrame(tree["annotations"]).sample(frac=1, random_state=2023).drop_duplicates("image_id")
    expected = [
        (f"COCO_val2014_{image:012d}.jpg", caption.strip(), "")
        for image, caption in zip(drawn.image_id, drawn.caption, strict=True)
    ]
    found = items(path)
    assert plain(found) == expected
    assert [item.read() for item in found] == [png(int(item.id[-6:-4])) for item in found]
    assert plain(items(path, images=tmp_path / "val2014")) == expected


def test_captions_of_coco_without_their_picture_are_an_error(tmp_path: Path) -> None:
    path = coco(tmp_path)
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "images": tree["images"][1:]}))
    with pytest.raises(UserError, match="is not a file of COCO's captions"):
        items(path)


# --- Hugging Face ---------------------------------------------------------------------------------------------------
def hugging_face(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> Path:
    """As ``datasets.DatasetDict.save_to_disk`` lays it out."""
    import pyarrow

    folder.mkdir(parents=True)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    for split, rows in splits.items():
        (folder / split).mkdir()
        name = "data-00000-of-00001.arrow"
        (folder / split / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}], "_split": split}))
        table = pyarrow.Table.from_pylist(rows)
        with (
            pyarrow.OSFile(str(folder / split / name), "wb") as file,
            pyarrow.ipc.new_stream(file, table.schema) as out,
        ):
            out.write_table(table, max_chunksize=2)
    return folder


def row(i: int, **more: Any) -> dict[str, Any]:
    return {"image": {"bytes": png(i), "path": None}, "text": f"words {i}", **more}


def test_a_hugging_face_dataset_on_disk_needs_no_datasets(tmp_path: Path) -> None:
    rows = {"train": [row(0), row(1), row(2)], "test": [row(3)]}
    rows["train"][1]["image"] = {"bytes": None, "path": "/etc/passwd"}
    folder = hugging_face(tmp_path / "set", rows)
    assert find(str(folder)).kind == "huggingface"
    found = items(folder)
    assert [(item.captions["original"], item.split) for item in found] == [
        ("words 0", "train"),
        ("words 1", "train"),
        ("words 2", "train"),
        ("words 3", "validation"),
    ]
    assert len({item.id for item in found}) == 4
    assert [found[i].read() for i in (0, 2, 3)] == [png(0), png(2), png(3)]
    assert why(found[1]) == "is not stored in the dataset, only named"
    (folder / "train/state.json").write_text('{"_data_files": [{"filename": "../../up.arrow"}]}')
    with pytest.raises(UserError, match="not a dataset as"):
        find(str(folder))
    (folder / "train/data-00000-of-00001.arrow").write_bytes(b"no arrow")
    (folder / "train/state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    with pytest.raises(UserError, match="cannot be read"):
        items(folder)


def test_parquet_files_of_the_hub_hold_their_pictures(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    names = [
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/test-00000-of-00001.parquet",
    ]
    for i, name in enumerate(names):
        pd.DataFrame([row(2 * i, licence="MIT"), row(2 * i + 1, licence="")]).to_parquet(tmp_path / name)
    assert find(str(tmp_path)).kind == "huggingface"
    found = items(tmp_path)
    assert plain(found) == [
        ("data/test-00000-of-00001/0", "words 4", "validation"),
        ("data/test-00000-of-00001/1", "words 5", "validation"),
        *[(f"data/train-0000{i // 2}-of-00002/{i % 2}", f"words {i}", "train") for i in range(4)],
    ]
    assert [item.read() for item in found] == [png(i) for i in (4, 5, 0, 1, 2, 3)]
    assert found[0].licence == "MIT"
    one = items(tmp_path / names[0])
    assert plain(one) == [(f"train-00000-of-00002/{i}", f"words {i}", "train") for i in range(2)]


# --- TensorFlow -----------------------------------------------------------------------------------------------------
def field(number: int, data: bytes) -> bytes:
    """A field of a protocol buffer."""
    size = len(data)
    return bytes([number << 3 | 2, size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) + data


def tensorflow_set(root: Path, name: str, version: str, labels: list[str], splits: dict[str, list[int]]) -> None:
    """As ``tfds build --file_format=array_record`` leaves it: features, what is there, and examples."""
    import tensorflow_datasets as tfds

    folder = root / name / version
    folder.mkdir(parents=True)
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=labels)}
    tfds.features.FeaturesDict(features).save_config(str(folder))
    for split, numbers in splits.items():
        writer = ArrayRecordWriter(str(folder / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1")
        for i in numbers:  # tf.train.Example: a map of names to lists of bytes, or of integers
            image = field(1, field(1, b"image") + field(2, field(1, field(1, png(i)))))
            label = field(1, field(1, b"label") + field(2, field(3, field(1, bytes([i % len(labels)])))))
            writer.write(field(1, image + label))
        writer.close()
    said = [
        {
            "name": split,
            "numBytes": "1",
            "shardLengths": [str(len(numbers))],
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        }
        for split, numbers in splits.items()
    ]
    info = {"name": name, "version": version, "fileFormat": "array_record", "splits": said}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_tensorflow_datasets_are_read_without_tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK", 2)
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    labels = [f"petal_{i}" for i in range(102)]
    tensorflow_set(tmp_path, "oxford_flowers102", "2.1.1", labels, {"train": [0, 1, 2], "test": [3], "validation": [4]})
    assert find("tfds:oxford_flowers102").items == 5
    found = items("tfds:oxford_flowers102")
    named = ["canterbury bells", "english marigold", "hard-leaved pocket orchid", "pink primrose", "sweet pea"]
    assert sorted(item.captions["original"] for item in found) == [f"a photo of a {name}" for name in named]
    assert [(item.id, item.split) for item in found] == [
        ("test/0", "validation"),
        ("train/0", "train"),
        ("train/1", "train"),
        ("train/2", "train"),
        ("validation/0", "validation"),
    ]
    assert [item.read() for item in found] == [png(i) for i in (3, 0, 1, 2, 4)]
    assert "tensorflow" not in sys.modules
    path = tmp_path / "oxford_flowers102/2.1.1/oxford_flowers102-train.array_record-00000-of-00001"
    data = bytearray(path.read_bytes())
    data[data.index(png(1)) + 20] ^= 1
    path.write_bytes(data)
    damaged = {item.id: item for item in items("tfds:oxford_flowers102")}
    assert why(damaged["train/1"]).startswith("cannot be read")
    assert damaged["train/2"].read() == png(2)


def test_imagenet_needs_names_for_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="tfds build imagenet2012 --file_format=array_record, then again"):
        find("tfds:imagenet2012")
    tensorflow_set(tmp_path, "imagenet2012", "5.1.0", ["n01440764", "n01443537"], {"train": [0, 1]})
    with pytest.raises(UserError, match="its classes are numbers of WordNet; give their names with --classes FILE"):
        find("tfds:imagenet2012")
    found = items("tfds:imagenet2012", classes={"n01440764": ["tench"]})
    assert [item.captions["original"] for item in found] == ["a photo of a tench", "a photo of a n01443537"]


# --- what it is -----------------------------------------------------------------------------------------------------
def test_what_is_not_there_or_is_no_source_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="--images .*gone: is not a folder"):
        sources.find(str(tmp_path / "empty"), images=tmp_path / "gone")
    for where, arguments, said in [
        (tmp_path / "gone", (), "no such file or directory"),
        (tmp_path / "notes.txt", (), "notes.txt: is no folder, and its name ends in none of .tar, .json, .csv"),
        ("pictures-{²..3}.tar", (), "no such file"),
        (tmp_path / "empty", (), "has no pictures"),
        (tmp_path / "empty", ("pictures",), "--as pictures: is not one of folder, table"),
        (tmp_path / "empty", ("huggingface",), "is not a dataset"),
        (tmp_path / "empty", ("webdataset",), "has no tars"),
        (tmp_path / "empty", ("table",), "has none of metadata.jsonl"),
        ("tfds:no_such_set_of_pictures", (), "tfds:no_such_set_of_pictures"),
    ]:
        with pytest.raises(UserError) as error:
            items(where, *arguments)
        assert said in str(error.value)
        assert "\n" not in str(error.value)


def test_the_first_so_many_are_the_first_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK", 4)
    folder = folder_of(tmp_path, **{f"p{i:02d}": str(i) for i in range(11)})
    for limit in (1, 4, 5, 11, 20):
        source = sources.first(find(str(folder)), limit)
        assert source.items == min(limit, 11)
        assert [item.id for chunk in source.chunks for item in chunk.items()] == [f"p{i:02d}.png" for i in range(11)][
            :limit
        ]


def test_pictures_are_kept_by_numbers_that_a_table_has(tmp_path: Path) -> None:
    rows = [{"file_name": f"{i}.png", "caption": "c", "aesthetic": i, "nsfw": 0.1 * i} for i in range(8)]
    rows += [{"file_name": "8.png", "caption": "c"}, {"file_name": "9.png", "caption": "c", "aesthetic": "nan"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keep = tuple(sources.read_limit(text) for text in ("aesthetic>=3", "nsfw <= 0.55"))
    (chunk,) = sources.find(str(tmp_path), columns=sources.Columns(keep=keep)).chunks
    said = {}
    for item in chunk.items():
        with pytest.raises(Unreadable) as error:  # there are no pictures
            item.read()
        said[item.id] = str(error.value)
    assert [name for name, why in said.items() if why == "is missing"] == ["3.png", "4.png", "5.png"]
    assert said["2.png"] == "has not aesthetic>=3"
    assert said["7.png"] == "has not nsfw<=0.55"
    assert said["8.png"] == said["9.png"] == "has no number aesthetic"


@pytest.mark.parametrize("text", ["aesthetic", "aesthetic>5", ">=5", "a>=b", "a>=1e"])
def test_a_limit_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match="--keep .* such as aesthetic>=5"):
        sources.read_limit(text)


def test_a_folder_has_no_numbers_to_keep_pictures_by(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    keep = (sources.read_limit("aesthetic>=3"),)
    with pytest.raises(UserError, match="--keep aesthetic>=3: a source of kind folder has no columns"):
        sources.find(str(tmp_path), columns=sources.Columns(keep=keep))
