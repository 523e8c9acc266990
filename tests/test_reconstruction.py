"""What autoencoders give back of pictures, against closed forms and window by window; and small ones trained here."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from sd3_jax.cli import main
from sd3_jax.data import frozen, learned
from sd3_jax.errors import RunFailed, UserError
from sd3_jax.evaluation import reconstruction

RNG = np.random.default_rng(0)
TRAINING = learned.Training(4, 2, width=16, blocks=1, steps=80, batch=16, learning_rate=3e-3)


def smooth(count: int, side: int = 16, seed: int = 0) -> np.ndarray:
    """Pictures of coarse noise, which few numbers describe."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (count, 4, 4, 3))
    return ndimage.zoom(coarse, (1, side / 4, side / 4, 1), order=1).round().astype(np.uint8)


def test_psnr_is_its_closed_form() -> None:
    true = RNG.integers(10, 240, (3, 8, 9, 3)).astype(np.uint8)
    np.testing.assert_allclose(reconstruction.psnr(true, true + np.uint8(5)), 20 * np.log10(255 / 5), rtol=1e-12)
    assert np.isfinite(reconstruction.psnr(true, true)).all()


def test_ssim_is_the_mean_over_windows_of_its_formula() -> None:
    true, kept = (RNG.integers(0, 256, (2, 14, 15, 3)).astype(np.uint8) for _ in range(2))
    offset = np.arange(-5, 6)
    window = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    for one, other, found in zip(true, kept, reconstruction.ssim(true, kept), strict=True):
        values = []
        for y in range(5, 9):
            for x in range(5, 10):
                for channel in range(3):
                    a, b = (p[y - 5 : y + 6, x - 5 : x + 6, channel].astype(float) for p in (one, other))
                    ma, mb = np.sum(window * a), np.sum(window * b)
                    va, vb, ab = (np.sum(window * (p - m) * (q - n)) for p, m, q, n in (
                        (a, ma, a, ma), (b, mb, b, mb), (a, ma, b, mb)))  # fmt: skip
                    values.append((2 * ma * mb + c1) * (2 * ab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
        assert found == pytest.approx(np.mean(values), abs=1e-9)
    np.testing.assert_allclose(reconstruction.ssim(true, true), 1)


def test_more_cosines_give_back_more_and_all_of_them_everything() -> None:
    images = RNG.integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)
    rows = reconstruction.rows([frozen.cosine_codec(c, 4) for c in (48, 4, 16)], images)
    assert [row["channels"] for row in rows] == [4, 16, 48]
    for name in ("psnr", "ssim"):
        assert rows[0][name] < rows[1][name] < rows[2][name]
    assert rows[0]["frechet"] > rows[1]["frechet"] > rows[2]["frechet"] == pytest.approx(0, abs=1e-6)
    # Orthonormal: what 16 of 48 equal parts keep of noise is a third of its variance, nearly.
    error = 255**2 / 10 ** (rows[1]["psnr"] / 10)
    assert error / images.astype(float).var() == pytest.approx(2 / 3, rel=0.05)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learned") / "ae"
    losses: list[float] = []
    params = learned.fit(smooth(64), TRAINING, lambda step, loss: losses.append(loss))
    learned.save(folder, TRAINING, params, "smooth pictures")
    assert losses[-1] < 0.25 * (smooth(64) / 127.5 - 1).var()
    return folder


def test_an_autoencoder_learns_pictures_like_those_it_saw(trained: Path) -> None:
    codec = frozen.load_codec(str(trained))
    new = smooth(32, seed=1)
    mean = np.broadcast_to(new.mean(axis=(0, 1, 2)).astype(np.uint8), new.shape)
    assert reconstruction.measure(codec, new).psnr > reconstruction.psnr(new, mean).mean() + 3


def test_an_autoencoder_that_diverges_is_not_kept() -> None:
    wild = dataclasses.replace(TRAINING, learning_rate=float("inf"), steps=3)
    with pytest.raises(RunFailed, match="is not finite after 3 steps"):
        learned.fit(smooth(8), wild)


def test_what_a_picture_becomes_depends_on_no_other_and_survives_the_disk(trained: Path, tmp_path: Path) -> None:
    codec, images = learned.load(trained), smooth(5, seed=2)
    latents = codec.encode(images)
    assert latents.shape == (5, 8, 8, 4)
    for i in range(5):
        np.testing.assert_array_equal(codec.encode(images[i : i + 1])[0], latents[i])
        np.testing.assert_array_equal(codec.decode(latents[i : i + 1])[0], codec.decode(latents)[i])
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in trained.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    assert learned.load(moved).described.digest == codec.described.digest


@pytest.mark.parametrize("how", ["no weights", "cut weights", "another size", "no configuration", "words", "negative"])
def test_a_broken_autoencoder_is_one_line(trained: Path, tmp_path: Path, how: str) -> None:
    for file in trained.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if how == "no weights":
        (tmp_path / learned.WEIGHTS).unlink()
    if how == "cut weights":
        (tmp_path / learned.WEIGHTS).write_bytes((tmp_path / learned.WEIGHTS).read_bytes()[:-9])
    if how == "another size":
        tree = json.loads((tmp_path / learned.CONFIG).read_text())
        (tmp_path / learned.CONFIG).write_text(json.dumps(tree | {"width": 24}))
    if how in ("words", "negative"):
        tree = json.loads((tmp_path / learned.CONFIG).read_text())
        (tmp_path / learned.CONFIG).write_text(json.dumps(tree | {"channels": "four" if how == "words" else -4}))
    if how == "no configuration":
        (tmp_path / learned.CONFIG).write_text("{")
    with pytest.raises(UserError) as error:
        learned.load(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_commands_train_one_and_put_it_beside_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, picture in enumerate(smooth(60)):
        Image.fromarray(picture).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"number {i}")

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert exit.value.code == 0, captured.err
        return captured.out

    size = ("--size", 16, "--hold-out", 0.3)
    made = tmp_path / "ae4"
    run("autoencoder", folder, made, "--channels", 4, "--downsample", 4, "--width", 16, "--steps", 5, *size)
    out = run("reconstruct", folder, made, "cosine:8x4", *size, "--out", tmp_path, "--json", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["channels"] for row in rows] == [4, 8]
    assert "28.62" in out  # the paper's
    with Image.open(tmp_path / "reconstructions.png") as page:
        assert page.width > 8 * 16
    with pytest.raises(SystemExit):
        main(["autoencoder", str(folder), str(folder / "0.txt" / "ae"), "--steps", "1000000", "--size", "16"])
    assert "Not a directory" in capsys.readouterr().err
    for wrong, said in (
        ((made, "cosine:8x5", *size), "--size 16: is no multiple of the 5 pixels of a latent of cosine:8x5"),
        (("cosine:8x4", "--size", 8), "--size 8: SSIM looks at windows of 11 pixels"),
    ):
        with pytest.raises(SystemExit) as refused:
            main([str(argument) for argument in ("reconstruct", folder, *wrong, "--out", tmp_path)])
        assert refused.value.code == 2
        assert said in capsys.readouterr().err
