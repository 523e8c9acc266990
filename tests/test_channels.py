"""Figure 10: distances by depth and channels of the latents, against numbers put in by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic import bench_config, write_run

import analysis
from analysis.channels import describe_channels
from sd3_jax.errors import UserError

DRAWN = {
    "sampler": "euler",
    "steps": 25,
    "guidance": 3.0,
    "shift": 1.0,
    "weights": "ema",
    "seed": 0,
    "prompt_list": "a",
}


def write(root: Path, channels: int, depth: int, value: float, seed: int = 0, **extra: object) -> None:
    config = bench_config(depth, seed, **{"model.latent_channels": channels})
    run = write_run(root, config, name=f"c{channels}-d{depth}-s{seed}")
    row = {"step": 2000, "name": "picture-frechet", "group": "overall", "value": value, "se": 0.01, "ceiling": 0.05}
    row |= {"n": 100} | DRAWN | extra
    with open(run / "evals.jsonl", "a") as file:
        file.write(json.dumps(row | {"step": 500, "value": 9.0}) + "\n")  # an earlier one
        file.write(json.dumps(row) + "\n")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for channels, values in ((4, (0.5, 0.4)), (16, (0.8, 0.42))):
        for depth, value in zip((3, 6), values, strict=True):
            write(tmp_path, channels, depth, value)
    write(tmp_path, 16, 3, 0.9, seed=1)
    return tmp_path


def test_cells_are_means_over_seeds_at_the_last_step(runs: Path) -> None:
    cells = analysis.load_channels(runs).set_index(["channels", "depth"])
    assert cells.loc[(4, 3), "value"] == 0.5
    assert cells.loc[(16, 3), "value"] == pytest.approx(0.85)
    assert cells.loc[(16, 3), "se"] == pytest.approx(0.1 / np.sqrt(2) / np.sqrt(2))  # of seeds: larger than of pictures
    assert cells.loc[(16, 6), "se"] == 0.01
    assert (cells["step"] == 2000).all()


def test_the_figure_says_how_the_gap_goes_with_depth(runs: Path, tmp_path: Path) -> None:
    drawing = analysis.figure10(analysis.load_channels(runs), tmp_path / "figure")
    first, last = drawing.numbers["gaps"]
    assert first["ratio"] == pytest.approx(0.85 / 0.5)
    assert last["ratio"] == pytest.approx(0.42 / 0.4)
    assert last["se"] == pytest.approx(last["ratio"] * np.hypot(0.01 / 0.42, 0.01 / 0.4))
    assert "the gap falls with depth" in describe_channels(drawing.numbers)[-1]
    assert json.loads((tmp_path / "figure.json").read_text())["cells"][0]["channels"] == 4
    lines = {len(line.get_xdata()) for line in drawing.figure.axes[0].get_lines()}
    assert 2 in lines


def test_other_settings_are_left_out_and_said(runs: Path) -> None:
    write(runs, 16, 4, 0.1, guidance=5.0)
    cells = analysis.load_channels(runs)
    assert 4 not in set(cells["depth"])
    assert any("guidance 5.0" in note for note in cells.attrs["notes"])
    with pytest.raises(UserError, match="latents of 16 channels alone"):
        analysis.load_channels(runs, {"guidance": 5.0})


def test_without_distances_it_says_what_makes_them(tmp_path: Path) -> None:
    write_run(tmp_path, bench_config(3))
    with pytest.raises(UserError, match="no distance of pictures .* sd3-jax evaluate"):
        analysis.load_channels(tmp_path)
