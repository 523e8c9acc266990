"""A pipeline of diffusers in a local folder, drawn from as runs are: on a tiny random one, saved to disk."""

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_torch import save_encoders, save_transformer

from sd3_jax import systems
from sd3_jax.errors import UserError
from sd3_jax.evaluation import folders, pipelines, prompts
from sd3_jax.evaluation.generate import Sampler

pytestmark = pytest.mark.parity
SAMPLER = Sampler(steps=3, guidance=4.0, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    found = tmp_path_factory.mktemp("sd3")
    save_encoders(found)
    save_transformer(found)
    return found


def asked(tmp_path: Path, images: int = 2) -> list[prompts.Prompt]:
    path = tmp_path / "prompts.txt"
    path.write_text("a red cat\na dog in the fog\nthe old cat\n")
    return prompts.read_texts(path, images)


def test_a_picture_is_what_diffusers_draws_of_its_prompt_alone_from_its_own_noise(folder: Path, tmp_path: Path) -> None:
    import diffusers
    import torch

    out = tmp_path / "out"
    system = systems.find(folder, SAMPLER, out=out)
    drawn = system.pictures(asked(tmp_path), lambda done: None)
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    for number, text, index in ((0, "a red cat", 1), (2, "the old cat", 0)):
        noise = torch.Generator().manual_seed(zlib.crc32(f"5\0{text}\0{index}".encode()))
        alone = pipe(text, num_inference_steps=3, guidance_scale=4.0, generator=noise, output_type="np").images[0]
        image = folders.read_png(folders.image_path(drawn, number, index)).image
        assert np.abs(image / 255 - alone).max() < 0.51 / 255 + 1e-4
    assert json.loads((drawn / "settings.json").read_text())["sampler"] == "FlowMatchEulerDiscreteScheduler"


def test_only_what_is_missing_is_drawn_and_a_setting_has_a_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = systems.find(folder, SAMPLER, out=tmp_path / "out")
    drawn = system.pictures(asked(tmp_path), lambda done: None)
    path = folders.image_path(drawn, 1, 1)
    before = path.read_bytes()
    path.unlink()
    done: list[int] = []
    assert system.pictures(asked(tmp_path), done.append) == drawn
    assert done == [5, 1]
    assert path.read_bytes() == before
    monkeypatch.setattr(pipelines, "_load", None)  # nothing is loaded where nothing is lacking
    system.pictures(asked(tmp_path), done.append)
    other = systems.find(folder, Sampler(steps=3, guidance=4.0, seed=6), out=tmp_path / "out")
    with pytest.raises(TypeError):
        other.pictures(asked(tmp_path), done.append)


def test_without_t5_it_draws_other_pictures_and_needs_no_t5(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    for name in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(bare / name)
    found = [
        systems.find(path, Sampler(steps=3, guidance=4.0, seed=5, without=without), out=tmp_path / name).pictures(
            asked(tmp_path, images=1), lambda done: None
        )
        for path, without, name in ((folder, (), "with"), (folder, ("t5",), "without"), (bare, ("t5",), "bare"))
    ]
    whole, without, lacking = (folders.read_png(folders.image_path(path, 0, 0)).image for path in found)
    assert np.abs(whole.astype(int) - without).max() > 0
    assert (without == lacking).all()


def test_the_command_scores_a_pipeline(folder: Path, tmp_path: Path, sd3: Any) -> None:
    asked(tmp_path)
    ask = ["evaluate", str(folder), "--suite", "fidelity", "--prompts", str(tmp_path / "prompts.txt"), "--images", "1"]
    real = systems.find(folder, Sampler(steps=2, guidance=1.0), out=tmp_path / "real").pictures(
        asked(tmp_path), lambda done: None
    )
    status, _, err = sd3(
        *ask, "--real", str(real), "--sampler-steps", "3", "--out", str(tmp_path / "out"), "--json", "x.json"
    )
    assert status == 0, err
    rows = json.loads((tmp_path / "x.json").read_text())
    assert {"fd-scene", "kid-scene"} <= {row["name"] for row in rows}
    assert rows[0]["pipeline"] == "StableDiffusion3Pipeline"
    assert rows[0]["steps"] == 3
    assert rows[0]["n"] == 3


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        (Sampler(shift=3.0), "has its own scheduler"),
        (Sampler(without=("clip-l",)), "without clip-l: of a pipeline t5 alone"),
    ],
    ids=["shift", "clip"],
)
def test_what_a_pipeline_cannot_do_is_one_line(folder: Path, sampler: Sampler, said: str) -> None:
    with pytest.raises(UserError, match=said):
        systems.find(folder, sampler)


def test_a_folder_that_cannot_be_read_is_one_line(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    shutil.rmtree(broken / "transformer")
    with pytest.raises(UserError, match="broken: cannot be read as DiffusionPipeline"):
        systems.find(broken, SAMPLER, out=tmp_path / "out").pictures(asked(tmp_path), lambda done: None)
    assert not (tmp_path / "out").exists()
    (broken / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(UserError, match="is no pipeline of diffusers with a scheduler"):
        systems.find(broken, SAMPLER)
