"""Aspect-ratio buckets: which is drawn when, scenes that are not square, what a step costs, pictures of any size."""

import collections
import dataclasses
import functools
import json
import math
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cli import assert_one_line, sd3, tree  # noqa: F401  (sd3 is a fixture)
from test_resume import final_state, history
from test_scenes import geneval_relations
from tiny import tiny, write_checkpoints

from sd3_jax import flops, records
from sd3_jax.config import DataConfig, MeshConfig, ModelConfig, RunConfig
from sd3_jax.data import scenes
from sd3_jax.data.buckets import bucket_of
from sd3_jax.data.composition import RELATIONS, SHAPES, TASKS
from sd3_jax.errors import UserError
from sd3_jax.evaluation import folders, generate, prompts, validation
from sd3_jax.models.mmdit import MMDiT
from sd3_jax.overlays import resolve
from sd3_jax.sweep import plan
from sd3_jax.sweep.spec import cells
from sd3_jax.train import train
from sd3_jax.training import sharding
from sd3_jax.training.step import make_draw, make_init, make_model, make_step

BUCKETS = [[40, 40], [32, 48], [48, 32]]
FREE = {"data.layout": "free", "data.image_size": 40, "model.latent_size": 5, "model.position_grid": 7}
SIZES = [(48, 80), (128, 32)]
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")


def bucketed(**overlay) -> RunConfig:
    return tiny(**FREE, **{"data.buckets": BUCKETS}, **overlay)


# --- which bucket -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_every_cycle_of_steps_draws_each_bucket_once(count: int) -> None:
    for start in (0, 7 * count, 3 * 10**9 * count):
        assert sorted(bucket_of(3, start + i, count) for i in range(count)) == list(range(count))


def test_the_order_is_a_function_of_seed_and_step_and_changes_with_both() -> None:
    order = lambda seed, cycle: tuple(bucket_of(seed, 5 * cycle + i, 5) for i in range(5))  # noqa: E731
    assert [bucket_of(1, step, 5) for step in (13, 2, 13)] == [order(1, 2)[3], order(1, 0)[2], order(1, 2)[3]]
    assert len({order(0, cycle) for cycle in range(60)}) > 30
    assert len({order(seed, 0) for seed in range(60)}) > 30
    first = collections.Counter(order(0, cycle)[0] for cycle in range(2000))
    assert all(abs(number - 400) < 4.5 * math.sqrt(2000 * 0.2 * 0.8) for number in first.values())


@pytest.mark.slow
def test_a_step_draws_its_whole_batch_in_its_bucket_again_and_again() -> None:
    config = bucketed()
    draw = make_draw(config, sharding.make_mesh(config.mesh, config.batch))
    for step in (0, 1, 2, 17):
        height, width = BUCKETS[bucket_of(0, step, 3)]
        one, other = draw(jnp.uint32(0), np.int32(step)), draw(jnp.uint32(0), np.int32(step))
        assert one.batch.x0.shape == one.eps.shape == (16, height // 8, width // 8, 16)
        jax.tree.map(np.testing.assert_array_equal, one, other)


# --- scenes that are not square ---------------------------------------------------------------------------------------


@functools.lru_cache
def drawn(size: tuple[int, int]):
    """1,500 scenes, their pictures, and the share of each pixel that each object covers, when drawn alone in white."""
    data = DataConfig(image_size=64, downsample=8)

    @jax.jit
    def make(example):
        keys = jax.vmap(lambda i: scenes.example_key(0, scenes.TRAIN, 0, i))(example)
        many = jax.vmap(lambda key: scenes.draw(key, data, size=size))(keys)
        black = many._replace(rgb=jnp.ones_like(many.rgb), background=jnp.zeros_like(many.background))

        def alone(slot):
            only = black._replace(present=black.present & (jnp.arange(4) == slot))
            image = jax.vmap(lambda scene: scenes.render(scene, data, size))(only)
            ground = 2 * 125 / 255 - 1
            return (image[..., 0] - ground) / (1 - ground)

        return many, jnp.moveaxis(jax.lax.map(alone, jnp.arange(4)), 0, 1)

    return jax.tree.map(np.asarray, make(jnp.arange(1500)))


@sizes
def test_objects_lie_inside_the_canvas_and_no_two_touch(size: tuple[int, int]) -> None:
    many, covered = drawn(size)
    assert covered.shape[2:] == size
    extent = np.array([size[1], size[0]]) / min(size)
    low, high = many.center - many.radius[..., None], many.center + many.radius[..., None]
    assert (low[many.present] > 0).all()
    assert (high < extent)[many.present].all()
    for a in range(4):
        for b in range(a):
            both = many.present[:, a] & many.present[:, b]
            apart = np.maximum(low[:, a] - high[:, b], low[:, b] - high[:, a]).max(-1)
            assert (apart[both] * min(size) > 1).all()  # pixels, along one of the axes
    touched = covered > 1e-5
    assert (touched.sum(1) <= 1).all()
    np.testing.assert_array_equal(touched.any((2, 3)), many.present)
    assert not touched[:, :, [0, -1]].any()
    assert not touched[..., [0, -1]].any()


@sizes
def test_objects_are_found_all_over_the_canvas(size: tuple[int, int]) -> None:
    many, _ = drawn(size)
    place = many.center[many.present] * min(size) / np.array([size[1], size[0]])
    assert (np.histogramdd(place, bins=(3, 3), range=((0, 1), (0, 1)))[0] > 0.03 * len(place)).all()


@sizes
def test_relations_hold_for_the_boxes_of_rendered_pixels(size: tuple[int, int]) -> None:
    many, covered = drawn(size)
    for i in np.nonzero(many.task == TASKS.index("position"))[0]:
        boxes = [(np.nonzero(m.any(0))[0], np.nonzero(m.any(1))[0]) for m in covered[i, :2] > 0.5]
        boxes = [(x.min(), y.min(), x.max() + 1, y.max() + 1) for x, y in boxes]
        assert geneval_relations(*boxes) == {RELATIONS[many.relation[i]]}


@sizes
def test_round_shapes_stay_round(size: tuple[int, int]) -> None:
    """Against a disc counted in a grid of 16 x 16 points a pixel, where the scene says that it is."""
    many, covered = drawn(size)
    scene, slot = np.nonzero(many.present & (many.shape == SHAPES.index("circle")))
    fine = 16
    y, x = ((np.arange(side * fine) + 0.5) / fine for side in size)
    for i, k in list(zip(scene, slot, strict=True))[:40]:
        cx, cy, r = *(many.center[i, k] * min(size)), many.radius[i, k] * min(size)
        disc = (x[None] - cx) ** 2 + (y[:, None] - cy) ** 2 < r**2
        share = disc.reshape(size[0], fine, size[1], fine).mean((1, 3))
        # The outline is softer than a pixel is wide, so only pixels at the edge may differ.
        assert np.abs(covered[i, k] - share).max() < 0.25
        assert covered[i, k].sum() == pytest.approx(np.pi * r**2, rel=0.02)


def test_a_square_canvas_is_what_it_was_without_a_size() -> None:
    data = DataConfig(image_size=64, downsample=8)
    keys = jax.random.split(jax.random.key(0), 500)
    draw = lambda size: jax.jit(jax.vmap(lambda key: scenes.draw(key, data, size=size)))(keys)  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, draw(None), draw((64, 64)))


def test_a_batch_of_a_bucket_is_encoded_patch_by_patch() -> None:
    data, model = (
        DataConfig(image_size=64, downsample=8),
        ModelConfig(depth=2, text_tokens=8, text_dim=24, pooled_dim=24),
    )
    keys = jax.random.split(jax.random.key(1), 3)
    batch = jax.jit(lambda keys: scenes.batch(keys, data, model, 0.0, (48, 80)))(keys)
    assert batch.x0.shape == (3, 6, 10, 16)
    split = jax.vmap(jax.random.split)(keys)
    paint = jax.jit(jax.vmap(lambda key: scenes.render(scenes.draw(key, data, size=(48, 80)), data, (48, 80))))
    images = paint(split[:, 0])
    patches = images.reshape(3, 6, 8, 10, 8, 3).swapaxes(2, 3).reshape(-1, 8, 8, 3)
    np.testing.assert_allclose(scenes.encode(patches, data, 16).reshape(3, 6, 10, 16), batch.x0, rtol=1e-5, atol=1e-5)
    back = scenes.decode(batch.x0, data)
    assert back.shape == (3, 48, 80, 3)
    assert np.square(back - images).mean() < 0.1 * np.var(images)


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_flops_are_the_mean_over_the_buckets_and_exact_after_a_cycle() -> None:
    config, model = bucketed(), tiny(**FREE).model
    tokens = [5 * 5, 4 * 6, 6 * 4]
    spent = sum(16 * 3 * flops.forward_flops(model, tokens[bucket_of(0, step, 3)]).total for step in range(6, 9))
    assert 3 * 16 * flops.image_flops(config) == spent
    assert flops.image_flops(tiny(**FREE)) == flops.train_flops(model) != flops.image_flops(config)
    assert flops.image_flops(config, flops.exact_train_flops) < flops.image_flops(config)


def test_budgets_and_plan_count_in_the_mean() -> None:
    cost = 16 * flops.image_flops(bucketed())
    config = bucketed(flops=5.5 * cost)
    assert flops.total_steps(config) == 5
    (cell,) = plan.plan(cells({}, {}, [_as_entry(config)]), plan.speed(flops_per_second=1e9)).cells
    assert (cell.steps, cell.flops) == (5, 5 * cost)


def _as_entry(config: RunConfig) -> dict:
    flat = json.loads(json.dumps(dataclasses.asdict(config)))
    return {
        f"{section}.{key}" if isinstance(value, dict) else section: [inner if isinstance(value, dict) else value]
        for section, value in flat.items()
        for key, inner in (value.items() if isinstance(value, dict) else [("", value)])
        if (inner if isinstance(value, dict) else value) is not None
    }


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_goes_on_equals_one_that_was_not_interrupted(tmp_path: Path) -> None:
    cost = 16 * flops.image_flops(bucketed())
    budgets = {"evaluation.budgets": [2.5 * cost]}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    summary = train(bucketed(steps=4, **budgets), whole)
    train(bucketed(steps=2, **budgets), broken)
    train(bucketed(steps=4, **budgets), broken)
    late = lambda run: [row for row in history(run) if row["step"] > 2]  # noqa: E731
    assert late(broken) == late(whole)
    for ours, theirs in zip(final_state(broken), final_state(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # And the records count in the mean over the buckets.
    assert summary["flops"] == pytest.approx(4 * cost)
    rows = history(whole)
    assert [row["flops"] for row in rows if row["split"] == "train"] == pytest.approx([cost * k for k in range(1, 5)])
    assert {row["step"] for row in rows if row.get("budgets")} == {2}
    life = records.read_rows(whole / "lives.jsonl")[0][0]
    assert life["flops_per_image"] == flops.image_flops(bucketed())


@pytest.mark.slow
def test_one_device_and_eight_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "SMALL", 64)
    config = bucketed()
    found = []
    for mesh_config, devices in ((MeshConfig(), 1), (MeshConfig(data=2, fsdp=4), 8)):
        mesh = sharding.make_mesh(mesh_config, config.batch, jax.devices()[:devices])
        init = make_init(config, 8)
        shardings = sharding.state_shardings(mesh, jax.eval_shape(init, jnp.uint32(0)))
        state = jax.jit(init, out_shardings=shardings)(jnp.uint32(0))
        draw, step = make_draw(config, mesh), jax.jit(make_step(config, 8), out_shardings=(shardings, None))
        losses = []
        for i in range(6):
            state, metrics = step(state, draw(jnp.uint32(0), np.int32(i)))
            losses.append(float(metrics["loss"]))
        found.append(losses)
    assert len(set(np.round(found[0], 4))) == 6
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


def test_validation_stays_on_the_square_image() -> None:
    scores = []
    for config in (bucketed(), tiny(**FREE)):
        mesh = sharding.make_mesh(config.mesh, config.batch)
        params = jax.jit(make_init(config, 8))(jnp.uint32(1)).params
        scores.append(validation.make_eval(config, make_model(config.model, config.mesh), mesh)(params))
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    "overlay, words",
    [
        ({"data.buckets": [[40, 40, 40]]}, ["data.buckets: [40, 40, 40]", "[height, width]"]),
        ({"data.buckets": [[36, 44]]}, ["data.buckets: [36, 44]", "multiple", "8 pixels"]),
        ({"data.buckets": [[0, 40]]}, ["data.buckets: [0, 40]", "multiple"]),
        ({"data.buckets": [[48, 48]]}, ["data.buckets: [48, 48]: 2,304 pixels", "within 20%", "1,600"]),
        ({"data.buckets": [[24, 64]]}, ["data.buckets: [24, 64]", "tokens on a side (8)", "(7)"]),
        ({"data.buckets": [[24, 56]]}, ["data.buckets: [24, 56]", "at least 32"]),
        ({"data.buckets": [[32, 48], [32, 48]]}, ["data.buckets", "twice"]),
        ({"data.buckets": [[32, 48]], "model.position_grid": 0}, ["tokens on a side (6)", "(5)"]),
        ({"data.buckets": [[32, 48]], "data.layout": "grid", "data.grid": 5}, ["data.layout free", "grid"]),
        ({"data.buckets": [32, 48]}, ["data.buckets[0]: 32 is not a list"]),
        ({"data.buckets": [["a", 48]]}, ["data.buckets[0][0]: 'a'"]),
    ],
)
def test_buckets_that_cannot_be_are_one_line(overlay: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        tiny(**(FREE | overlay))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_buckets_are_part_of_what_a_run_is() -> None:
    config = bucketed()
    assert resolve(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    with pytest.raises(UserError, match="twice"):
        cells({}, {"steps": 1}, [{"model.depth": 2}, {"model.depth": 2, "data.buckets": [[]]}])


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    write_checkpoints(run_dir, bucketed(**{"model.position_base": 3}), (8,))
    return run_dir


def test_a_picture_of_any_size_is_eulers_method_at_the_papers_positions(run: Path, tmp_path: Path) -> None:
    """Step by step in Python with positions by the paper's formula, against what is drawn."""
    config, few = records.load_config(run), generate.Sampler(steps=3, guidance=2.0, seed=5, shift=1.5)
    asked = prompts.scene_prompts(config.data, 1)[:2]
    out = generate.sample(run, 8, asked, few, tmp_path / "out", size=(32, 56))
    mesh = sharding.make_mesh(config.mesh, config.batch)
    params = jax.device_get(generate.load_weights(run, config, mesh, 8, "ema"))
    # The net is told its table: 7 x 7 extended positions at a step of 3/5, of which 4 x 7 are the middle ones.
    axis = (np.arange(7) - (7 - 5) / 2) * 3 / 5
    angles = np.concatenate([np.sin(x := axis[:, None] * 10000.0 ** (-np.arange(4) / 4)), np.cos(x)], axis=1)
    table = np.zeros((7, 7, 16), np.float32)
    table[..., :8], table[..., 8:] = angles[None], angles[:, None]
    stored = dataclasses.replace(config.model, position_table=True)
    apply = jax.jit(MMDiT(stored).apply)
    told = {"params": {**params, "position_table": jnp.asarray(table)}}
    for folder, prompt in enumerate(asked):
        key = scenes.example_key(5, scenes.EVALUATION, zlib.crc32(prompt.text.encode()), 0)
        z = jax.random.normal(key, (1, 4, 7, 16))
        text = scenes.embed_captions(prompt.words[None], jnp.zeros((1, 3), bool), config.model, 3)
        nothing = scenes.unconditional(config.model, 1)
        times = [1.5 * u / (1 + 0.5 * u) for u in (1, 2 / 3, 1 / 3, 0)]
        for now, then in zip(times, times[1:], strict=False):
            yes, no = (apply(told, z, jnp.full(1, now), *states) for states in (text, nothing))
            z = z + (then - now) * (no + 2.0 * (yes - no))
        expected = np.clip((np.asarray(scenes.decode(z, config.data))[0] + 1) * 127.5, 0, 255)
        image = folders.read_png(folders.image_path(out, folder, 0))[0]
        assert image.shape == (32, 56, 3)
        assert np.abs(image - expected).max() < 0.51


@pytest.mark.slow
def test_the_command_draws_the_size_it_is_told_and_refuses_others(sd3, run: Path) -> None:  # noqa: F811
    few = ("--images-per-task", "1", "--sampler-steps", "1")
    code, out, err = sd3("sample", str(run), "--size", "32x56", *few)
    assert code == 0, err
    assert "-32x56-" in out
    picture = folders.read_png(folders.image_path(Path(out.strip()), 0, 0))[0]
    assert picture.shape == (32, 56, 3)
    code, square, err = sd3("sample", str(run), "--size", "40x40", *few)
    assert code == 0, err
    assert sd3("sample", str(run), *few)[1] == square  # the default: the same folder, and nothing is drawn twice
    before = tree(run)
    for size, *words in (
        ("32", "--size", "'32'", "48x80"),
        ("32x56x3", "--size"),
        ("-8x40", "--size"),
        ("36x40", "size: 36x40", "8 pixels"),
        ("0x40", "size: 0x40"),
        ("32x64", "tokens on a side (8)", "(7)"),
    ):
        assert_one_line(*sd3("sample", str(run), "--size", size, *few), *words)
    assert_one_line(
        *sd3("sample", str(run), "--size", "32x48", "--out", out.strip(), *few), "size: [32, 56] -> [32, 48]"
    )
    assert_one_line(*sd3("sample", str(run), "--out", out.strip(), *few), "size: [32, 56] -> None")
    assert tree(run) == before
