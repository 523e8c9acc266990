"""Pictures from packages: what they are called, which are held out, what is left out, and what is refused."""

import functools
import gzip
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sd3_jax.cli import main
from sd3_jax.data import emoji, icons, packages
from sd3_jax.errors import UserError

pytest.importorskip("resvg_py")

RED = '<circle cx="18" cy="18" r="14" fill="#d22"/><rect x="12" y="12" width="9" height="9" fill="#fc3"/>'
BLACK = '<circle cx="18" cy="18" r="14"/>'


def archive(members: dict[str, bytes]) -> bytes:
    """A tarball as npm packs it, but with whatever names are given."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("package/link.svg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return gzip.compress(plain.getvalue(), mtime=0)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two made packages of emoji and their names, which stand for the pinned ones."""
    words = ["guide dog", "owl", "woman firefighter", "firefighter", "black dot", "nothing", "waving hand", "../escape"]
    codes = {f"{0x1F400 + i:x}": word for i, word in enumerate(words)}
    toned = "1f406-1f3ff"
    names = [{"label": word, "hexcode": code.upper(), "group": 3, "tags": []} for code, word in codes.items()]
    data = {
        "package/en/data.json": json.dumps(names).encode(),
        "package/meta/groups.json": json.dumps({"groups": {"3": "animals-nature"}}).encode(),
    }
    bodies = {word: {"body": RED} for word in [*words, "hand-dark-skin-tone"]} | {
        "black dot": {"body": BLACK},
        "nothing": {"body": ""},
    }
    chars = codes | {toned: "hand-dark-skin-tone"}
    icon_set = {
        "package/icons.json": json.dumps({"icons": bodies, "width": 36, "height": 36}).encode(),
        "package/chars.json": json.dumps(chars).encode(),
        "../../escaped.svg": b"<svg/>",
        "/tmp/escaped.svg": b"<svg/>",
    }
    folder = tmp_path / "packages"
    folder.mkdir()

    def pinned(name: str, members: dict[str, bytes]) -> packages.Package:
        blob = archive(members)
        (folder / f"{name}.tgz").write_bytes(blob)
        return packages.Package(name, "1.0.0", "MIT", f"{name}.tgz", packages.digest(blob, "sha512"))

    monkeypatch.setattr(emoji, "NAMES", pinned("names", data))
    reader = functools.partial(icons.iconify, "noto")
    other = functools.partial(icons.iconify, "twemoji")
    monkeypatch.setattr(emoji, "SOURCES", {"a": (pinned("a", icon_set), reader), "b": (pinned("b", icon_set), other)})
    return folder


RECIPE = emoji.Recipe(("a", "b"), held_out=0.5)


def rows(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "name, style, group, want",
    [
        ("guide dog", "fluent-flat", "animals & nature", "a flat icon of a guide dog, animals & nature"),
        ("octopus", "openmoji", "animals & nature", "an outlined icon of an octopus, animals & nature"),
        ("face with tears of joy", "noto", "", "a cartoon icon of a face with tears of joy"),
        ("person’s hat", "clipart", "", "a clip-art picture of a person’s hat"),
        ("jack-o-lantern", "fluent-3d", "", "a 3D icon of a jack-o-lantern"),
        ("hour", "noto", "", "a cartoon icon of an hour"),
        ("unicorn", "noto", "", "a cartoon icon of a unicorn"),
        ("ewe", "noto", "", "a cartoon icon of a ewe"),
        ("SOS button", "noto", "", "a cartoon icon of an SOS button"),
        ("NEW button", "noto", "", "a cartoon icon of a NEW button"),
        ("x-ray", "noto", "", "a cartoon icon of an x-ray"),
        ("8-ball", "noto", "", "a cartoon icon of an 8-ball"),
        ("eleven-thirty", "noto", "", "a cartoon icon of an eleven-thirty"),
        ("scissors", "noto", "", "a cartoon icon of scissors"),
        ("flag: Belgium", "twemoji", "flags", "a simple icon of the flag of Belgium, flags"),
        ("no bicycles", "noto", "", "a cartoon icon of no bicycles"),
    ],
)
def test_a_name_becomes_a_sentence_with_its_article(name: str, style: str, group: str, want: str) -> None:
    assert icons.sentence(name, style, group) == want


def test_a_concept_is_one_thing_in_every_package_whoever_does_it() -> None:
    for names in (
        ("firefighter", "woman firefighter", "man firefighter: dark skin tone"),
        ("person running", "woman running facing right"),
        ("guide dog", "Guide-dog 01", "a guide dog"),
    ):
        assert len({icons.concept(name) for name in names}) == 1, names
    assert len({icons.concept(name) for name in ("man", "woman", "dog face", "dog")}) == 4


def test_the_share_that_is_held_out_is_near_what_was_asked() -> None:
    share = np.mean([emoji.held_out(f"concept {i}", 0.05) for i in range(20_000)])
    assert abs(share - 0.05) < 0.006  # four deviations
    kept = [i for i in range(200) if emoji.held_out(f"concept {i}", 0.05)]
    assert all(emoji.held_out(f"concept {i}", 0.2) for i in kept)


def test_pictures_captions_and_what_is_left_out(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = emoji.make(out, RECIPE, tiny, workers=1)
    found = rows(out)
    assert {row["file_name"] for row in found} == {
        f"{style}/{name}.png"
        for style in ("noto", "twemoji")
        for name in ("escape", "firefighter", "guide-dog", "owl", "waving-hand", "woman-firefighter")
    }
    assert made.dropped == {
        f"{style}: {why}": 1
        for style in ("noto", "twemoji")
        for why in ("a black glyph", "a variant of skin tone", "empty")
    }
    assert sum(row["pictures"] for row in made.counts) == len(found) == 12
    for row in found:
        with Image.open(out / row["file_name"]) as picture:
            assert picture.size == (64, 64)
            assert picture.mode == "RGB"
            assert picture.getpixel((0, 0)) == (255, 255, 255)
            assert np.abs(np.subtract(picture.getpixel((32, 10)), (0xDD, 0x22, 0x22))).max() <= 1
    dog = next(row for row in found if row["file_name"] == "noto/guide-dog.png")
    assert dog["caption"] == "guide dog"
    assert dog["synthetic"] == "a cartoon icon of a guide dog, animals & nature"
    assert (dog["licence"], dog["source"], dog["style"]) == ("MIT", "a@1.0.0", "noto")


def test_no_concept_is_on_both_sides(tiny: Path, tmp_path: Path) -> None:
    emoji.make(tmp_path / "out", RECIPE, tiny, workers=1)
    sides: dict[str, set[str]] = {}
    for row in rows(tmp_path / "out"):
        sides.setdefault(row["concept"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in sides.values())
    assert {split for splits in sides.values() for split in splits} == {"train", "validation"}


def test_nothing_of_an_archive_leaves_the_folder(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "down" / "out"
    emoji.make(out, RECIPE, tiny, workers=1)
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert all(out in path.parents or tiny in path.parents for path in files)
    assert not any("escaped" in path.name or path.is_symlink() for path in files)


def test_a_broken_off_making_goes_on_and_gives_the_same_folder(tiny: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    emoji.make(whole, RECIPE, tiny, workers=1)

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        emoji.make(broken, RECIPE, tiny, stop, workers=1)
    assert not (broken / "metadata.jsonl").exists()
    first = next(broken.rglob("*.png"))
    before = first.stat().st_mtime_ns
    first.with_name(f".{first.name}.17298").write_bytes(b"half")
    emoji.make(broken, RECIPE, tiny, workers=1)
    assert first.stat().st_mtime_ns == before
    content = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in (whole, broken)]
    assert content[0] == content[1]


def test_a_package_that_is_not_what_was_pinned_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = tiny / "a.tgz"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match="is not a@1.0.0"):
        emoji.make(tmp_path / "out", RECIPE, tiny, workers=1)
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_client_fetches_once_and_what_it_brings_is_checked(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A made npm, which counts its calls: it copies the archive, or half of it."""
    client, calls, store = tmp_path / "bin" / "npm", tmp_path / "calls", tmp_path / "store"
    client.parent.mkdir()
    monkeypatch.setenv("PATH", f"{client.parent}:/usr/bin:/bin")
    package = emoji.SOURCES["a"][0]

    def write(how: str) -> None:
        client.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n{how}\n')
        client.chmod(0o755)

    write(f"head -c 100 {tiny}/a.tgz > a.tgz")
    with pytest.raises(UserError, match="is not a@1.0.0"):
        packages.fetch(package, store)
    write("echo no such version >&2; exit 1")
    with pytest.raises(UserError, match="npm failed .no such version.; a.tgz in"):
        packages.fetch(package, store)
    assert not list(store.iterdir())
    write(f"cp {tiny}/a.tgz .")
    for _ in range(2):
        assert packages.fetch(package, store) == (tiny / "a.tgz").read_bytes()
    assert calls.read_text().splitlines() == ["pack --ignore-scripts --silent a@1.0.0"] * 3


def test_a_debian_package_is_read_as_its_tar_is() -> None:
    tar, control = archive({"./usr/share/dog.svg": b"<svg/>"}), b"odd"
    parts = {b"debian-binary": b"2.0\n", b"control.tar.xz": control, b"data.tar.gz": tar}
    deb = b"!<arch>\n"
    for name, data in parts.items():
        deb += name.ljust(16) + b"0".ljust(32) + str(len(data)).encode().ljust(10) + b"`\n" + data
        deb += b"\n" * (len(data) % 2)
    package = packages.Package("p", "1", "MIT", "p_1_all.deb", packages.digest(deb, "sha256"))
    assert dict(packages.members(package, deb)) == {"usr/share/dog.svg": b"<svg/>"}
    for broken in (deb[:60], b"", deb[: len(deb) // 2]):
        with pytest.raises(UserError, match="p_1_all.deb: cannot be read"):
            dict(packages.members(package, broken))


def test_a_folder_holds_one_recipe(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    emoji.make(out, RECIPE, tiny, workers=1)
    with pytest.raises(UserError, match="another recipe"):
        emoji.make(out, replace(RECIPE, size=32), tiny, workers=1)
    with pytest.raises(UserError, match="not empty"):
        emoji.make(tiny.parent, RECIPE, tiny, workers=1)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--sources", "noto,apple"], "apple: choose of fluent"),
        (["--size", "4"], "size: 4 is not between"),
        (["--held-out", "1"], "held out: 1.0 is not a share"),
        ([], "needs npm, which is not installed, or emojibase-data-17.0.0.tgz"),
    ],
)
def test_what_cannot_be_made_is_one_line(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        main(["emoji", str(tmp_path / "out"), *arguments])
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "body, why",
    [
        ("<text>a</text>", "needs fonts"),
        ('<image href="/etc/passwd"/>', "shows another file"),
        ('<use href="other.svg#a"/>', "shows another file"),
        ("<g", "cannot be drawn"),
        ("", "empty"),
    ],
)
def test_svg_that_would_differ_by_machine_or_cannot_be_drawn(body: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        emoji.draw(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">{body}</svg>'.encode(), 64)


def test_a_drawing_keeps_its_shape_and_is_cut_to_what_is_drawn() -> None:
    """A red bar, 4 to 1, in the corner of a tall page: whole, in the middle, as wide as the margin leaves."""
    bar = '<rect width="80" height="20" fill="red"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="100pt" height="300pt">{bar}</svg>'
    picture = emoji.draw(svg.encode(), 64, crop=True)
    rows, columns = np.nonzero(picture[..., 1] < 128)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert abs(width - 64 * 8 / 9) <= 2
    assert abs(height - width / 4) <= 2
    assert abs(rows.mean() - 31.5) <= 1
    assert abs(columns.mean() - 31.5) <= 1


def test_titles_of_collections_give_way_to_names_of_files() -> None:
    names = icons.Names({}, {}, frozenset({"lemon", "half", "belgium", "dog"}))
    svg = (
        "<svg><dc:title>{}</dc:title><dc:creator><cc:Agent><dc:title>Jo Ganson</dc:title></cc:Agent></dc:creator>"
        '<cc:license rdf:resource="http://web.resource.org/cc/{}"/></svg>'
    )
    root = "usr/share/openclipart/svg"
    files = {
        f"{root}/food/lemon_half_ganson.svg": svg.format("Clipart by Nicu Buculei - jigsaw", "PublicDomain").encode(),
        f"{root}/signs_and_symbols/flags/europe/belgium.svg": svg.format("Belgium", "PublicDomain").encode(),
        f"{root}/animals/dog.svg": svg.format("Dog", "GPL").encode(),
        f"{root}/animals/cane.svg": svg.format("Cane", "PublicDomain").encode(),
        f"{root}/shapes/stars/dog.svg": svg.format("Dog", "PublicDomain").encode(),
    }
    found = {icon.key: (icon.name, icon.group, bool(icon.flaw)) for icon in icons.clipart(files, names)}
    assert found == {
        "food-lemon-half-ganson": ("lemon half", "food", False),
        "signs-and-symbols-flags-europe-belgium": ("flag: Belgium", "flags", False),
        "animals-dog": ("Dog", "animals", True),
        "animals-cane": ("", "animals", True),
        "shapes-stars-dog": ("Dog", "shapes", True),
    }
