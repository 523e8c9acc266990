"""The paper's rivals: DiT and three sets of weights as MM-DiT must have them, CrossDiT and UViT against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d
from scipy.special import softmax

from sd3_jax.config import MeshConfig, ModelConfig
from sd3_jax.errors import UserError
from sd3_jax.overlays import resolve
from sd3_jax.training.step import init_params, make_model

SIZES = {"head_dim": 8, "latent_size": 8, "text_tokens": 5, "clip_tokens": 2, "text_dim": 20, "pooled_dim": 12}
RIVALS = {
    "DiT": ModelConfig(depth=3, weight_sets=1, time_dim=16, **SIZES),
    "three sets": ModelConfig(depth=3, weight_sets=3, time_dim=16, **SIZES),
    "CrossDiT": ModelConfig(depth=3, architecture="crossdit", time_dim=16, **SIZES),
    "UViT": ModelConfig(depth=3, architecture="uvit", patch=4, level_blocks=1, time_dim=16, **SIZES),
}
TWO_SETS = dataclasses.replace(RIVALS["DiT"], weight_sets=2)


def inputs(model: ModelConfig, batch: int = 2, height: int = 8, width: int = 8) -> tuple:
    key = jax.random.split(jax.random.key(1), 4)
    z = jax.random.normal(key[0], (batch, height, width, model.latent_channels))
    tokens = jax.random.normal(key[2], (batch, model.text_tokens, model.text_dim))
    return z, jax.random.uniform(key[1], (batch,)), tokens, jax.random.normal(key[3], (batch, model.pooled_dim))


fresh_params = jax.jit(lambda model: init_params(model, jax.random.key(0)), static_argnums=0)


def random_params(model: ModelConfig) -> dict:
    """Nothing left at zero or one, so that every parameter matters."""
    numbers = np.random.default_rng(2)

    def moved(path: tuple, x: jax.Array) -> jax.Array:
        scale = 0.5 / np.sqrt(np.prod(x.shape[-4 if "first" in str(path) else -2 : -1]))
        return x + (scale if path[-1].key == "kernel" else 0.1) * numbers.normal(size=x.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(moved, fresh_params(model))


def apply(model: ModelConfig, params: dict, arguments: tuple, mesh: MeshConfig | None = None) -> jax.Array:
    net = make_model(model, mesh or MeshConfig(dtype="float32"))
    return jax.jit(lambda params, arguments: net.apply({"params": params}, *arguments))(params, arguments)


def close(ours: jax.Array, theirs: np.ndarray, tolerance: float = 1e-5) -> bool:
    assert np.abs(theirs).max() > 0.1
    return bool(np.abs(np.asarray(ours) - theirs).max() < tolerance * np.abs(theirs).max())


# --- sets of weights: equal weights must make equal networks ---------------------------------------------------------


@pytest.mark.slow
def test_dit_is_mmdit_whose_sets_are_equal() -> None:
    """One set of weights given to both streams of an MM-DiT makes the same function (paper section 5.2.3)."""
    shared, arguments = random_params(RIVALS["DiT"]), inputs(TWO_SETS)
    both = fresh_params(TWO_SETS)
    for block in ("blocks", "last_block"):
        both[block] = {"image": shared[block]["joint"], "text": shared[block]["joint"]}
    text, e = both["last_block"]["text"], TWO_SETS.width
    cut = jax.tree.map(lambda x: x[..., : 2 * e], text["modulation"])  # the last texts: a shift and a scale
    both["last_block"]["text"] = {"qkv": text["qkv"], "modulation": cut}
    both |= {name: value for name, value in shared.items() if "block" not in name}
    assert close(apply(RIVALS["DiT"], shared, arguments), np.asarray(apply(TWO_SETS, both, arguments)))


def test_three_sets_of_which_two_are_equal_are_two() -> None:
    two, arguments = random_params(TWO_SETS), inputs(TWO_SETS)
    three = dict(two)
    for block in ("blocks", "last_block"):
        text = two[block]["text"]
        three[block] = {"image": two[block]["image"], "clip": text, "t5": text}
    assert jax.tree.structure(three) == jax.tree.structure(fresh_params(RIVALS["three sets"]))
    assert close(apply(RIVALS["three sets"], three, arguments), np.asarray(apply(TWO_SETS, two, arguments)))


def test_three_sets_tell_clip_from_t5() -> None:
    """Tokens of one encoder may change places with one another, not with those of the other."""
    model = RIVALS["three sets"]
    params, (z, t, tokens, pooled) = random_params(model), inputs(model)
    whole = np.asarray(apply(model, params, (z, t, tokens, pooled)))
    within = tokens[:, np.array([1, 0, 4, 2, 3])]
    across = tokens[:, np.array([2, 1, 0, 3, 4])]
    assert close(apply(model, params, (z, t, within, pooled)), whole)
    assert not close(apply(model, params, (z, t, across, pooled)), whole, 1e-3)


# --- CrossDiT and UViT, one example at a time, float64 ---------------------------------------------------------------


def _dense(p: dict, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p["bias"]


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _mlp(p: dict, x: np.ndarray, f) -> np.ndarray:
    return _dense(p["second"], f(_dense(p["first"], x)))


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def _attend(p: dict, name: str, x: np.ndarray, to: np.ndarray, model: ModelConfig) -> np.ndarray:
    q = _dense(p[f"{name}_q"], x).reshape(-1, model.heads, model.head_dim)
    k, v = (half.reshape(-1, model.heads, model.head_dim) for half in np.split(_dense(p[f"{name}_kv"], to), 2, -1))
    if model.qk_norm:
        q = q / np.sqrt((q**2).mean(-1, keepdims=True) + 1e-6) * p[f"{name}_norm_q"]["gain"]
        k = k / np.sqrt((k**2).mean(-1, keepdims=True) + 1e-6) * p[f"{name}_norm_k"]["gain"]
    heads = [softmax(q[:, i] @ k[:, i].T / np.sqrt(model.head_dim), axis=-1) @ v[:, i] for i in range(model.heads)]
    return _dense(p[f"{name}_out"], np.concatenate(heads, axis=-1))


def _blocks(params: dict, x: np.ndarray, text: np.ndarray, y: np.ndarray, model: ModelConfig) -> np.ndarray:
    for i in range(model.depth):
        p = jax.tree.map(lambda x, i=i: x[i], params["blocks"])
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = np.split(_dense(p["modulation"], y), 6)
        entering = _norm(x) * (1 + scale) + shift
        x = x + gate * _attend(p, "self", entering, entering, model)
        x = x + _attend(p, "cross", x, text, model)
        x = x + mlp_gate * _mlp(p["mlp"], _norm(x) * (1 + mlp_scale) + mlp_shift, _gelu)
    return x


def _conditions(params: dict, model: ModelConfig, t: float, pooled: np.ndarray) -> np.ndarray:
    half = model.time_dim // 2
    angle = 1000 * t * np.exp(-np.log(10000) * np.arange(half) / half)
    time = _mlp(params["time_embed"], np.concatenate([np.cos(angle), np.sin(angle)]), _silu)
    return _silu(time + _mlp(params["pooled_embed"], pooled, _silu))


def _positions(rows: int, columns: int, model: ModelConfig) -> np.ndarray:
    """Of an image's tokens, of the height and width that the model is made for."""
    quarter = model.width // 4
    frequency = 1 / 10000 ** (np.arange(quarter) / quarter)
    places = [(row, column) for row in range(rows) for column in range(columns)]
    return np.array([np.concatenate([f(at * frequency) for at in (c, r) for f in (np.sin, np.cos)]) for r, c in places])


def cross_dit(params: dict, model: ModelConfig, z: np.ndarray, t: float, tokens: np.ndarray, pooled: np.ndarray):
    rows = z.shape[0] // 2
    patches = z.reshape(rows, 2, rows, 2, -1).swapaxes(1, 2).reshape(rows * rows, -1)
    x = _dense(params["patch_embed"], patches) + _positions(rows, rows, model)
    y = _conditions(params, model, t, pooled)
    x = _blocks(params, x, _dense(params["text_embed"], tokens), y, model)
    shift, scale = np.split(_dense(params["final_modulation"], y), 2)
    out = _dense(params["final"], _norm(x) * (1 + scale) + shift)
    return out.reshape(rows, rows, 2, 2, -1).swapaxes(1, 2).reshape(z.shape)


def _convolve(p: dict, x: np.ndarray) -> np.ndarray:
    kernel = p["kernel"]
    planes = [
        sum(correlate2d(x[..., i], kernel[..., i, o], mode="same") for i in range(x.shape[-1]))
        for o in range(kernel.shape[-1])
    ]
    return np.stack(planes, axis=-1) + p["bias"]


def _res_block(p: dict, x: np.ndarray, y: np.ndarray, skip: np.ndarray | None = None) -> np.ndarray:
    x = x if skip is None else (x + skip) / np.sqrt(2)
    shift, scale = np.split(_dense(p["modulation"], y), 2)
    h = _convolve(p["first"], _silu(_norm(x)))
    return x + _convolve(p["second"], _silu(_norm(h) * (1 + scale) + shift))


def u_vit(params: dict, model: ModelConfig, z: np.ndarray, t: float, tokens: np.ndarray, pooled: np.ndarray):
    """Two levels of one block each (patch 4): 8 x 8, 4 x 4, and the transformer on 2 x 2."""
    y = _conditions(params, model, t, pooled)
    halve = lambda x: x.reshape(len(x) // 2, 2, len(x) // 2, 2, -1).mean((1, 3))  # noqa: E731
    double = lambda x: np.kron(x, np.ones((2, 2, 1)))  # noqa: E731
    full = _res_block(params["down_0_0"], _convolve(params["enter"], z), y)
    half = _res_block(params["down_1_0"], _dense(params["down_0"], halve(full)), y)
    x = _dense(params["down_1"], halve(half)).reshape(4, -1) + _positions(2, 2, model)
    x = _blocks(params, x, _dense(params["text_embed"], tokens), y, model).reshape(2, 2, -1)
    x = _res_block(params["up_1_0"], double(_dense(params["up_1"], x)), y, half)
    x = _res_block(params["up_0_0"], double(_dense(params["up_0"], x)), y, full)
    shift, scale = np.split(_dense(params["final_modulation"], y), 2)
    return _convolve(params["final"], _norm(x) * (1 + scale) + shift)


@pytest.mark.parametrize("name, reference", [("CrossDiT", cross_dit), ("UViT", u_vit)])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_equals_an_independent_implementation(name: str, reference, qk_norm: bool) -> None:
    model = dataclasses.replace(RIVALS[name], qk_norm=qk_norm)
    params, arguments = random_params(model), inputs(model)
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, *arguments))
    theirs = np.stack([reference(exact[0], model, *(x[i] for x in exact[1:])) for i in range(2)])
    assert close(apply(model, params, arguments), theirs)


# --- what all have in common ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RIVALS)
def test_a_fresh_rival_says_zero_and_learns_with_every_parameter(name: str) -> None:
    model = RIVALS[name]
    arguments = inputs(model)
    np.testing.assert_array_equal(apply(model, fresh_params(model), arguments), 0)
    gradients = jax.jit(jax.grad(lambda params: jnp.sum(apply(model, params, arguments) ** 2)))(random_params(model))
    still = [str(path) for path, g in jax.tree_util.tree_leaves_with_path(gradients) if not jnp.abs(g).max() > 1e-6]
    assert not still


@pytest.mark.parametrize("name", RIVALS)
def test_unroll_and_remat_change_nothing_but_the_program(name: str) -> None:
    model = RIVALS[name]
    params, arguments = random_params(model), inputs(model)
    plain = np.asarray(apply(model, params, arguments))
    for mesh in (MeshConfig(unroll=2, dtype="float32"), MeshConfig(remat="elementwise", dtype="float32")):
        assert close(apply(model, params, arguments, mesh), plain)


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_take_other_sizes_and_refuse_what_does_not_fit(name: str) -> None:
    model = dataclasses.replace(RIVALS[name], position_grid=4)
    params = random_params(model)
    assert apply(model, params, inputs(model, height=4, width=8)).shape == (2, 4, 8, 16)
    with pytest.raises(UserError, match="not made of patches"):
        apply(model, params, inputs(model, height=6, width=7))


@pytest.mark.parametrize(
    "overlay, message",
    [
        ({"model.weight_sets": 3, "model.clip_tokens": 154}, "leave none of T5's"),
        ({"model.weight_sets": 4}, "out of range"),
        ({"model.architecture": "dit"}, "'dit' is not one of mmdit, crossdit, uvit"),
        ({"model.architecture": "uvit", "model.patch": 1}, "1 is not 2, 4, 8"),
        (
            {"model.architecture": "uvit", "model.patch": 8, "model.depth": 1, "model.head_dim": 12},
            "multiple of model.patch 8",
        ),
        ({"model.architecture": "crossdit", "model.dual_attention": [0]}, "weights of their own"),
        ({"model.weight_sets": 1, "model.dual_attention": [0]}, "weights of their own"),
        ({"data.text_sequence": True, "data.text_parts": 1}, "takes two parts"),
        ({"data.text_sequence": True, "model.text_tokens": 80}, "other 3, of T5"),
    ],
)
def test_what_no_rival_can_be_is_refused(overlay: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve({"steps": 1, "model.time_dim": 16}, overlay)
