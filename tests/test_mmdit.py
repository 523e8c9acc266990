"""MM-DiT against an independent implementation in NumPy, and the invariants of its initialisation."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from sd3_jax.config import ModelConfig
from sd3_jax.errors import UserError
from sd3_jax.models import layers
from sd3_jax.models.ends import grid
from sd3_jax.models.mmdit import Block, MMDiT, stacks
from sd3_jax.training.step import init_params

MODEL = ModelConfig(depth=3, head_dim=8, latent_size=6, text_tokens=5, text_dim=20, pooled_dim=12, time_dim=16)


def inputs(model: ModelConfig, batch: int = 2, height: int = 6, width: int = 6) -> tuple:
    key = jax.random.split(jax.random.key(1), 4)
    z = jax.random.normal(key[0], (batch, height, width, model.latent_channels))
    tokens = jax.random.normal(key[2], (batch, model.text_tokens, model.text_dim))
    return z, jax.random.uniform(key[1], (batch,)), tokens, jax.random.normal(key[3], (batch, model.pooled_dim))


def random_params(model: ModelConfig) -> dict:
    """Nothing left at zero or one, so that every parameter matters; matrices as large as initial ones, at any width."""
    numbers = np.random.default_rng(2)

    def moved(path: tuple, x: jax.Array) -> jax.Array:
        scale = 0.5 / np.sqrt(x.shape[-2]) if path[-1].key == "kernel" else 0.1
        return x + scale * numbers.normal(size=x.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(moved, fresh_params(model))


fresh_params = jax.jit(lambda model: init_params(model, jax.random.key(0)), static_argnums=0)


# --- the reference: float64, one example and one token at a time where that is clearest ------------------------------


def _dense(p: dict, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p["bias"]


def _mlp(p: dict, x: np.ndarray, f) -> np.ndarray:
    return _dense(p["second"], f(_dense(p["first"], x)))


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _norm(x: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * (1 + scale) + shift


def _heads(p: dict, x: np.ndarray, shift: np.ndarray, scale: np.ndarray, model: ModelConfig, which: str = "") -> list:
    e, d = model.width, model.head_dim
    qkv = _dense(p[f"{which}qkv"], _norm(x, shift, scale))
    parts = [qkv[:, i * e : (i + 1) * e].reshape(-1, model.heads, d) for i in range(3)]
    for i, name in enumerate(("norm_q", "norm_k")):
        if model.qk_norm:
            rms = np.sqrt((parts[i] ** 2).mean(-1, keepdims=True) + 1e-6)
            parts[i] = parts[i] / rms * p[which + name]["gain"]
    return parts


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    out = np.empty_like(q)
    for head in range(q.shape[1]):
        out[:, head] = softmax(q[:, head] @ k[:, head].T / np.sqrt(q.shape[2]), axis=-1) @ v[:, head]
    return out.reshape(len(q), -1)


def _block(p: dict, tokens: dict, y: np.ndarray, model: ModelConfig, last: bool) -> dict:
    """Tokens of both streams, which attend in the order of the dictionary."""
    parts = {name: np.split(m := _dense(p[name]["modulation"], y), len(m) // model.width) for name in tokens}
    triples = [_heads(p[name], x, *parts[name][:2], model) for name, x in tokens.items()]
    attended = _attention(*(np.concatenate(both) for both in zip(*triples, strict=True)))
    first, _ = tokens
    made = dict(tokens)
    for name, x in tokens.items():
        if not (last and name == "text"):
            mine = attended[: len(x)] if name == first else attended[-len(x) :]
            gate, shift, scale, mlp_gate, *dual = parts[name][2:]
            new = x + gate * _dense(p[name]["out"], mine)
            if dual:  # the image tokens among themselves, from what entered the block
                alone = _attention(*_heads(p[name], x, *dual[:2], model, "dual_"))
                new = new + dual[2] * _dense(p[name]["dual_out"], alone)
            made[name] = new + mlp_gate * _mlp(p[name]["mlp"], _norm(new, shift, scale), _gelu)
    return made


def reference(
    params: dict, model: ModelConfig, order: tuple, z: np.ndarray, t: float, tokens: np.ndarray, pooled: np.ndarray
) -> np.ndarray:
    """One example; blocks are walked one by one, patches cut by hand; ``order``: which tokens come first."""
    height, width, c = z.shape
    quarter = model.width // 4
    frequency = 1 / 10000 ** (np.arange(quarter) / quarter)
    image = []
    for row in range(height // 2):
        for column in range(width // 2):
            patch = z[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(-1)
            position = [f(at * frequency) for at in (column, row) for f in (np.sin, np.cos)]
            image.append(_dense(params["patch_embed"], patch) + np.concatenate(position))
    text = _dense(params["text_embed"], tokens)
    half = model.time_dim // 2
    angle = 1000 * t * np.exp(-np.log(10000) * np.arange(half) / half)
    time = _mlp(params["time_embed"], np.concatenate([np.cos(angle), np.sin(angle)]), _silu)
    y = _silu(time + _mlp(params["pooled_embed"], pooled, _silu))
    both = {name: {"image": np.array(image), "text": text}[name] for name in order}
    for stack in stacks(model):
        for i in range(len(stack.blocks)):
            both = _block(jax.tree.map(lambda x, i=i: x[i], params[stack.name]), both, y, model, False)
    image = _block(params["last_block"], both, y, model, True)["image"]
    shift, scale = np.split(_dense(params["final_modulation"], y), 2)
    out = _dense(params["final"], _norm(image, shift, scale))
    velocity = np.empty_like(z)
    for i, token in enumerate(out):
        row, column = divmod(i, width // 2)
        velocity[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = token.reshape(2, 2, c)
    return velocity


@pytest.mark.parametrize("qk_norm, height, dual", [(False, 6, ()), (True, 4, ()), (False, 4, (1,)), (True, 6, (0, 2))])
def test_equals_an_independent_implementation(qk_norm: bool, height: int, dual: tuple) -> None:
    """Which puts the image's tokens first, as diffusers does, or the text's, as the released code does."""
    model = dataclasses.replace(MODEL, qk_norm=qk_norm, dual_attention=dual)
    params, arguments = random_params(model), inputs(model, height=height)
    ours = np.asarray(jax.jit(MMDiT(model).apply)({"params": params}, *arguments))
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, *arguments))
    for order in (("image", "text"), ("text", "image")):
        theirs = np.stack([reference(exact[0], model, order, *(x[i] for x in exact[1:])) for i in range(2)])
        assert np.abs(theirs).max() > 0.1
        assert np.abs(ours - theirs).max() / np.abs(theirs).max() < 1e-5


def test_a_final_layer_of_zeros_says_zero_whatever_the_rest_is() -> None:
    params, arguments = random_params(MODEL), inputs(MODEL)
    params["final"] = jax.tree.map(jnp.zeros_like, params["final"])
    np.testing.assert_array_equal(jax.jit(MMDiT(MODEL).apply)({"params": params}, *arguments), 0)


@pytest.mark.parametrize("dual", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_a_block_whose_modulation_is_zero_is_the_identity_whatever_the_rest_is(last: bool, dual: bool) -> None:
    model = dataclasses.replace(MODEL, qk_norm=True, dual_attention=(0, 1, 2) if dual else ())
    params, e = random_params(model), model.width
    p = params["last_block"] if last else jax.tree.map(lambda x: x[0], params[stacks(model)[0].name])
    key = jax.random.split(jax.random.key(4), 3)
    image, text, y = (jax.random.normal(k, shape) for k, shape in zip(key, [(2, 9, e), (2, 5, e), (2, e)], strict=True))
    block = jax.jit(lambda p: Block(model, jnp.float32, last=last, dual=dual).apply({"params": p}, (image, text), y)[0])
    assert jnp.abs(block(p)[0] - image).max() > 0.1
    still = {name: {**p[name], "modulation": jax.tree.map(jnp.zeros_like, p[name]["modulation"])} for name in p}
    for after, before in zip(block(still), (image, text), strict=True):
        np.testing.assert_array_equal(after, before)


def test_a_fresh_model_says_zero_and_its_blocks_are_the_identity() -> None:
    params, arguments = fresh_params(MODEL), inputs(MODEL)
    apply = jax.jit(lambda model, params: MMDiT(model).apply({"params": params}, *arguments), static_argnums=0)
    np.testing.assert_array_equal(apply(MODEL, params), 0)
    # With a final layer that is not zero, the tokens that leave are those that entered: blocks change nothing.
    params["final"]["kernel"] = jax.random.normal(jax.random.key(3), params["final"]["kernel"].shape)
    without = dataclasses.replace(MODEL, depth=1, head_dim=MODEL.width)
    fewer = {name: value for name, value in params.items() if name != "blocks"}
    fewer["last_block"] = fresh_params(without)["last_block"]
    ours = apply(MODEL, params)
    assert jnp.abs(ours).max() > 0.1
    np.testing.assert_allclose(ours, apply(without, fewer), atol=1e-5)


@pytest.mark.slow
def test_unroll_and_remat_change_nothing_but_the_program() -> None:
    model = dataclasses.replace(MODEL, depth=4, dual_attention=(0, 1, 3))
    params, arguments = random_params(model), inputs(model)
    assert {name for name in params if "block" in name} == {"dual_blocks", "blocks", "last_block"}

    def gradient(**settings) -> dict:
        net = MMDiT(model, **settings)
        fresh = jax.eval_shape(net.init, jax.random.key(0), *arguments)["params"]
        assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)
        loss = lambda p: jnp.sum(net.apply({"params": p}, *arguments) ** 2)  # noqa: E731
        return jax.jit(jax.grad(loss), compiler_options={"xla_backend_optimization_level": 0})(params)

    plain = gradient()
    for settings in ({"unroll": 2, "remat": "elementwise"}, {"remat": "dots"}, {"remat": "full"}):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), gradient(**settings), plain)


@pytest.mark.slow
def test_each_remat_policy_keeps_less_than_the_one_before() -> None:
    model = dataclasses.replace(MODEL, depth=9, latent_size=16)
    arguments = inputs(model, batch=8, height=16, width=16)
    memory = []
    for remat in ("none", "elementwise", "dots", "full"):
        net = MMDiT(model, remat=remat)
        params = jax.eval_shape(net.init, jax.random.key(0), *arguments)["params"]
        loss = lambda p, net=net: jnp.sum(net.apply({"params": p}, *arguments) ** 2)  # noqa: E731
        memory.append(jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes)
    assert all(later < earlier for earlier, later in itertools.pairwise(memory)), memory
    assert memory[-1] < memory[0] / 4


def test_the_program_does_not_grow_with_depth() -> None:
    """Scanned: what is compiled for 38 blocks is what is compiled for 15, but for the number of turns."""

    def instructions(depth: int) -> int:
        model = dataclasses.replace(MODEL, depth=depth, head_dim=4)
        net, arguments = MMDiT(model, remat="full"), inputs(model)
        params = jax.eval_shape(net.init, jax.random.key(0), *arguments)["params"]
        loss = lambda p: jnp.sum(net.apply({"params": p}, *arguments) ** 2)  # noqa: E731
        return len(jax.jit(jax.grad(loss)).lower(params).as_text().splitlines())

    assert instructions(38) == instructions(15)


@pytest.mark.parametrize("depth", [3, 15])
def test_bfloat16_stays_close_to_float32(depth: int) -> None:
    model = dataclasses.replace(MODEL, depth=depth)
    params, arguments = random_params(model), inputs(model)
    exact = jax.jit(MMDiT(model).apply)({"params": params}, *arguments)
    rounded = jax.jit(MMDiT(model, jnp.bfloat16).apply)({"params": params}, *arguments)
    assert rounded.dtype == jnp.float32
    assert 0 < jnp.linalg.norm(exact - rounded) / jnp.linalg.norm(exact) < 2e-2


def test_patches_come_back_and_are_in_row_order() -> None:
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    tokens = layers.patchify(x, 2)
    assert tokens.shape == (2, 6, 12)
    np.testing.assert_array_equal(tokens[0, 1], x[0, :2, 2:4].reshape(-1))
    np.testing.assert_array_equal(layers.unpatchify(tokens, 2, 4, 6), x)


@pytest.mark.parametrize("order", [[3, 0, 6, 1, 5, 2, 4], [4, 5, 6, 0, 1, 2, 3]])  # any; the last three first
def test_attention_does_not_care_for_the_order_of_tokens(order: list[int]) -> None:
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 7, 2, 8))
    order = jnp.array(order)
    moved = layers.attention(q[:, order], k[:, order], v[:, order])
    np.testing.assert_allclose(moved, layers.attention(q, k, v)[:, order], atol=1e-6)


# --- positions -------------------------------------------------------------------------------------------------------


def paper_grid(rows: int, columns: int, pixels: int, longest: int, width: int) -> np.ndarray:
    """Section 5.3.2 to the letter: the whole extended grid of a target area of pixels^2, then its centre."""
    s, largest = pixels / 16, longest // 16
    axis = (np.arange(largest) - (largest - s) / 2) * 256 / pixels
    table = np.empty((largest, largest, width))
    frequency = 1 / 10000 ** (np.arange(width // 4) / (width // 4))
    for row, column in np.ndindex(largest, largest):
        angles = axis[column] * frequency, axis[row] * frequency
        table[row, column] = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)])
    top, left = (largest - rows) // 2, (largest - columns) // 2
    return table[top : top + rows, left : left + columns]


@pytest.mark.parametrize("rows, columns", [(64, 64), (48, 84), (84, 48), (96, 40), (33, 96)])
def test_buckets_are_cut_from_the_papers_extended_and_interpolated_grid(rows: int, columns: int) -> None:
    model = ModelConfig(depth=2, head_dim=4, latent_size=128, position_grid=96, position_base=16)
    theirs = paper_grid(rows, columns, pixels=1024, longest=1536, width=8)
    np.testing.assert_allclose(grid(model, rows, columns), theirs, atol=1e-6)


def test_a_square_at_the_first_resolution_has_whole_positions() -> None:
    model = ModelConfig(depth=2, head_dim=4)
    np.testing.assert_array_equal(grid(model, 16, 16), layers.positions(np.arange(16), np.arange(16), 8))
    finer = dataclasses.replace(model, latent_size=128, position_grid=192, position_base=16)
    quarters = np.arange(64) / 4  # 0 .. 15.75
    np.testing.assert_array_equal(grid(finer, 64, 64), layers.positions(quarters, quarters, 8))


@pytest.mark.parametrize("rows, columns", [(5, 7), (8, 2), (1, 1)])
def test_a_stored_table_is_cropped_in_its_middle(rows: int, columns: int) -> None:
    table = jnp.arange(8 * 8 * 3).reshape(8, 8, 3)
    cut = layers.crop(table, rows, columns)
    top, left = (8 - rows) // 2, (8 - columns) // 2
    for row, column in np.ndindex(rows, columns):
        np.testing.assert_array_equal(cut[row, column], table[top + row, left + column])


def test_a_fresh_table_is_the_computed_grid_and_is_not_trained() -> None:
    computed = dataclasses.replace(MODEL, position_grid=5, position_base=2)
    stored = dataclasses.replace(computed, position_table=True)
    params, arguments = random_params(computed), inputs(stored, height=4, width=10)
    table = fresh_params(stored)["position_table"]
    assert table.shape == (5, 5, MODEL.width)
    loss = lambda p, model: jnp.sum(MMDiT(model).apply({"params": p}, *arguments) ** 2)  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)({**params, "position_table": table}, stored)
    np.testing.assert_allclose(value, jax.jit(loss, static_argnums=1)(params, computed), rtol=1e-6)
    np.testing.assert_array_equal(gradient["position_table"], 0)


@pytest.mark.parametrize(
    "height, width, words", [(6, 8, "3 x 4 tokens, more than the 3 x 3"), (5, 6, "patches of 2 x 2")]
)
def test_a_latent_without_positions_is_refused(height: int, width: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        jax.eval_shape(MMDiT(MODEL).init, jax.random.key(0), *inputs(MODEL, height=height, width=width))
