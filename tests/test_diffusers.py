"""Beside diffusers itself, where make test-parity has installed it: the fixtures, and folders that both load."""

import jax
import numpy as np
import parity
import pytest
from test_convert import trained, weights_of  # noqa: F401  (trained is a fixture)
from test_parity import distance, stored, tensors

from sd3_jax import convert as converting
from sd3_jax import records
from sd3_jax.models.mmdit import MMDiT

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def library():
    """Diffusers' model, and the script of the fixtures, which import torch."""
    import make_fixtures
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel, make_fixtures


def test_the_fixtures_are_what_diffusers_says_today(library) -> None:
    for file, made in library[1].make().items():
        kept = stored(file.removeprefix("parity_"))
        assert made.keys() == kept.keys()
        for name, array in made.items():
            if array.dtype.kind == "f":
                np.testing.assert_allclose(array, kept[name], rtol=0, atol=1e-5 * max(np.abs(kept[name]).max(), 1e-9))
            else:
                assert array == kept[name]


@pytest.mark.parametrize("weights, shard_bytes", [("ema", 10**9), ("raw", 30_000)])
def test_diffusers_loads_a_trained_run(library, trained, tmp_path, weights: str, shard_bytes: int) -> None:  # noqa: F811
    import torch

    converting.to_diffusers(trained, tmp_path / "folder", None, weights, shard_bytes=shard_bytes)
    net, report = library[0].from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert not any(report.values()), report
    model = records.load_config(trained).model
    converting.to_run(tmp_path / "folder", tmp_path / "run", {})
    z, t, tokens, pooled = (
        parity.uniform(name, shape)
        for name, shape in (("z", (2, 3, 3, 16)), ("t", (2,)), ("tokens", (2, 6, 24)), ("pooled", (2, 24)))
    )
    ours = jax.jit(MMDiT(model).apply)({"params": weights_of(tmp_path / "run")}, z, abs(t), tokens, pooled)
    with torch.no_grad():
        theirs = library[1].velocity(net, z, 1000 * abs(t), tokens, pooled).numpy()
    if weights == "ema":  # raw weights are those of a fresh model, whose velocity is zero
        assert distance(np.asarray(ours), theirs) < 1e-5
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(np.abs(theirs).max(), 1e-9))


@pytest.mark.parametrize("case", parity.MODELS)
@pytest.mark.parametrize("shard_size", ["10GB", "200KB"])
def test_what_diffusers_saves_becomes_a_run_and_comes_back(library, tmp_path, case: str, shard_size: str) -> None:
    import torch

    net = library[1].reference(parity.MODELS[case])
    net.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors(case).items()})
    net.save_pretrained(tmp_path / "theirs", max_shard_size=shard_size)
    converting.to_run(tmp_path / "theirs", tmp_path / "run", {"model.text_tokens": 77})
    model = records.load_config(tmp_path / "run").model
    arguments = parity.inputs(case, "77")
    ours = jax.jit(MMDiT(model).apply)({"params": weights_of(tmp_path / "run")}, *arguments)
    assert distance(np.asarray(ours), stored(case)["velocity 77"]) < 1e-5
    converting.to_diffusers(tmp_path / "run", tmp_path / "back", None, "ema")
    back = library[0].from_pretrained(tmp_path / "back").state_dict()
    assert back.keys() == net.state_dict().keys()
    for name, tensor in net.state_dict().items():
        assert torch.equal(back[name], tensor), name
