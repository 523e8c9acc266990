import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sd3_jax.config import DataConfig, ModelConfig
from sd3_jax.data import autoencoder, scenes
from sd3_jax.data.captions import sentence
from sd3_jax.data.composition import BACKGROUND_RGB, COLOR_RGB, held_out_pairs, held_out_relations
from sd3_jax.data.rendering import CROSS_HALF, DIAMOND_HALF, RING_HOLE, SQUARE_HALF, STAR_INNER
from sd3_jax.data.scenes import COLORS, RELATIONS, SHAPES, TASKS
from sd3_jax.errors import UserError

GRID = DataConfig(image_size=24, downsample=8, shapes=4, layout="grid", grid=3)
FREE = DataConfig(image_size=64, downsample=4, layout="free")
MODEL = ModelConfig(depth=2, patch=1, latent_size=3, text_tokens=8, text_dim=64, pooled_dim=50)
layouts = pytest.mark.parametrize("data", [GRID, FREE], ids=["grid", "free"])


MOST = 6000  # scenes drawn at once for all tests of a setting, so that each is compiled once


@jax.jit
def keys_of(example):
    return jax.vmap(lambda i: scenes.example_key(0, scenes.TRAIN, 0, i))(example)


@functools.lru_cache
def drawn(data, split):
    many = jax.jit(jax.vmap(lambda key: scenes.draw(key, data, split)))(keys_of(jnp.arange(MOST)))
    return jax.tree.map(np.asarray, many)


def draw(data, n, split="seen", task=None):
    many = drawn(data, split)
    chosen = np.arange(MOST) if task is None else np.nonzero(many.task == TASKS.index(task))[0]
    assert len(chosen) >= n
    return jax.tree.map(lambda x: x[chosen[:n]], many)


@functools.lru_cache
def renderer(data):
    return jax.jit(jax.vmap(lambda scene: scenes.render(scene, data)))


def one(many, i):
    return scenes.Scene(*(field[i] for field in many))


def geneval_relations(box_a, box_b):
    """GenEval's relative_position on boxes (x1, y1, x2, y2), written from its description."""
    (ax, ay), (bx, by) = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (box_a, box_b)]
    found, distance = set(), math.hypot(ax - bx, ay - by)
    for offset, size, names in (
        (ax - bx, box_a[2] - box_a[0] + box_b[2] - box_b[0], ("left of", "right of")),
        (ay - by, box_a[3] - box_a[1] + box_b[3] - box_b[1], ("above", "below")),
    ):
        revised = max(abs(offset) - 0.1 * size, 0) / distance
        if revised > 0.5:
            found.add(names[int(offset > 0)])
    return found


def solo_coverage(many, data):
    """How much of each pixel every object covers when drawn alone, white on its background: [b, 4, H, W]."""
    ground = (2 * BACKGROUND_RGB / 255 - 1)[many.background][:, None, None]
    white = np.ones_like(many.rgb)
    images = [
        renderer(data)(many._replace(present=many.present & (np.arange(4) == slot), rgb=white)) for slot in range(4)
    ]
    return np.stack([((image - ground) / (1 - ground)).mean(-1) for image in images], axis=1)


@layouts
def test_position_scenes_satisfy_their_relation_and_no_other(data):
    for split in ("seen", "unseen"):
        many = draw(data, 400, split, task="position")
        low, high = many.center - many.radius[..., None], many.center + many.radius[..., None]
        boxes = np.concatenate([low, high], axis=-1)
        for i in range(400):
            assert geneval_relations(*boxes[i, :2]) == {RELATIONS[many.relation[i]]}


@layouts
def test_relations_hold_for_the_boxes_of_rendered_pixels(data):
    many = draw(data, 400, task="position")
    for i, masks in enumerate(solo_coverage(many, data)[:, :2] > 0.5):
        boxes = [(np.nonzero(m.any(0))[0], np.nonzero(m.any(1))[0]) for m in masks]
        boxes = [(x.min(), y.min(), x.max() + 1, y.max() + 1) for x, y in boxes]
        assert geneval_relations(*boxes) == {RELATIONS[many.relation[i]]}


@layouts
def test_objects_are_apart_inside_the_canvas_and_as_many_as_present(data):
    many = draw(data, 400)
    covered = solo_coverage(many, data)
    touched = covered > 1e-5
    assert (touched.sum(1) <= 1).all()  # no pixel shows two objects
    np.testing.assert_array_equal(touched.any((2, 3)), many.present)
    assert (covered.max((2, 3))[many.present] > 0.75).all()
    # The widest pixels of an object, and the soft edge with them, end before the border or at it.
    reach = np.abs(many.center - 0.5).max(-1) + many.radius
    assert (reach[many.present] <= 0.5).all()
    if data.layout == "free":
        assert not touched[:, :, [0, -1]].any(axis=(0, 1, 2, 3))
        assert not touched[..., [0, -1]].any()
    else:
        cell = np.round(many.center * data.grid - 0.5).astype(int)
        rows = (np.arange(24) // 8)[None, None]
        inside = (rows == cell[..., 1:])[..., :, None] & (rows == cell[..., :1])[..., None, :]
        assert not touched[~inside].any()


@layouts
def test_picture_is_each_object_painted_over_the_background(data):
    many = draw(data, 400)
    covered = solo_coverage(many, data)[..., None]
    ground = (BACKGROUND_RGB / 255)[many.background][:, None, None, None]
    expected = 2 * (ground + covered * (many.rgb[:, :, None, None] - ground) - ground).sum(1) + 2 * ground[:, 0] - 1
    np.testing.assert_allclose(renderer(data)(many), expected, atol=1e-5)
    assert np.abs(many.rgb * 255 - COLOR_RGB[many.color]).max() <= data.color_jitter + 1e-3


def test_everything_occurs_as_often_as_stated():
    many = draw(dataclasses.replace(GRID, held_out=0.0), MOST)

    def uniform(values, size):
        share = np.bincount(values, minlength=size) / len(values)
        return np.abs(share - 1 / size).max() < 4.5 * math.sqrt((1 - 1 / size) / size / len(values))

    assert uniform(many.task, 6)
    assert uniform(many.background, 4)
    assert uniform(many.relation[many.relation >= 0], 4)
    assert uniform(many.present.sum(1)[many.task == 2] - 2, 3)
    for slot in (0, 1):
        chosen = many.present[:, slot]
        assert uniform(many.shape[chosen, slot], 4)
        assert uniform(many.color[chosen, slot], 10)
    cell = np.round(many.center * 3 - 0.5).astype(int) @ [1, 3]
    assert uniform(cell[many.task == 0, 0], 9)
    np.testing.assert_array_equal(many.relation >= 0, many.task == TASKS.index("position"))
    np.testing.assert_array_equal(
        many.present.sum(1)[many.task != 2], np.array([1, 2, 0, 1, 2, 2])[many.task[many.task != 2]]
    )


@layouts
def test_objects_of_a_task_differ_where_its_caption_tells_them_apart(data):
    many = draw(data, 3000)
    two = np.isin(many.task, [TASKS.index(name) for name in ("two_object", "position", "color_attr")])
    assert (many.shape[two, 0] != many.shape[two, 1]).all()
    named = many.task == TASKS.index("color_attr")
    assert (many.color[named, 0] != many.color[named, 1]).all()
    counted = many.task == TASKS.index("counting")
    for field in (many.shape, many.color):
        assert (field[counted] == field[counted, :1]).all()


@layouts
def test_held_out_pairs_and_statements_are_never_seen_and_always_in_unseen(data):
    pairs, statements = held_out_pairs(data.shapes, data.colors, 0.1), held_out_relations(data.shapes, 0.1)
    assert pairs.sum() == round(0.1 * pairs.size)
    seen, unseen = draw(data, 6000), draw(data, 1500, "unseen")

    def facts(many):
        new_pairs = pairs[many.shape, many.color]
        said = many.relation >= 0
        new_statement = np.zeros(len(said), bool)
        new_statement[said] = statements[many.relation[said], many.shape[said, 0], many.shape[said, 1]]
        return new_pairs & many.present, new_statement

    new_pairs, new_statement = facts(seen)
    assert not new_pairs.any()
    assert not new_statement.any()
    new_pairs, new_statement = facts(unseen)
    position = unseen.task == TASKS.index("position")
    assert set(unseen.task) == {3, 4, 5}
    np.testing.assert_array_equal(new_statement, position)
    np.testing.assert_array_equal(new_pairs.any(1), ~position)


def test_every_split_leaves_every_shape_color_and_relation_in_training():
    for share in (0.0, 0.05, 0.1, 0.25, 0.4, 0.5):
        for shapes in range(2, len(SHAPES) + 1):
            kept = ~held_out_relations(shapes, share) & ~np.eye(shapes, dtype=bool)
            assert kept.any((1, 2)).all()
            assert kept.any((0, 2)).all()
            np.testing.assert_array_equal(kept[0], kept[1].T)  # a left of b is b right of a
            np.testing.assert_array_equal(kept[2], kept[3].T)
            for colors in range(2, len(COLORS) + 1):
                kept = ~held_out_pairs(shapes, colors, share)
                assert kept.any(0).all(), (share, shapes, colors)
                assert kept.any(1).all()


@layouts
def test_captions_say_what_is_there(data):
    many = draw(data, 400)
    color, shape = "|".join(COLORS), "|".join(SHAPES)
    noun = rf"(?:an? )(?:({color}) )?({shape})"
    grammar = re.compile(rf"a photo of (?:{noun}(?: (and|{'|'.join(RELATIONS)}) {noun})?|(two|three|four) (\w+))")
    for i in range(400):
        scene = one(many, i)
        text = scenes.caption(scene)
        match = grammar.fullmatch(text)
        assert match, text
        first_color, first, joint, second_color, second, count, plural = match.groups()
        names, colors = [SHAPES[k] for k in scene.shape], [COLORS[k] for k in scene.color]
        task = TASKS[scene.task]
        assert (count is not None) == (task == "counting")
        if count:
            assert ("two", "three", "four").index(count) + 2 == scene.present.sum()
            assert plural == (names[0] + "es" if names[0] == "cross" else names[0] + "s")
            continue
        assert first == names[0]
        assert scene.present.sum() == 1 + (second is not None)
        assert second in (None, names[1])
        assert joint == {"position": RELATIONS[scene.relation], "two_object": "and", "color_attr": "and"}.get(task)
        named = task in ("colors", "color_attr")
        assert first_color == (colors[0] if named else None)
        assert second_color == (colors[1] if named and second else None)


def test_captions_in_english():
    word = scenes.VOCABULARY.index
    assert sentence(np.array([word("three"), 0, word("cross"), 0, 0, 0])) == "a photo of three crosses"
    spoken = [word(w) for w in ("a", "orange", "star", "and", "blue", "heart")]
    assert sentence(np.array(spoken)) == "a photo of an orange star and a blue heart"


@layouts
def test_a_scene_is_a_function_of_its_key_alone(data):
    few = np.array([700, 0, 11])
    for ours, theirs in zip(draw(data, MOST), scenes_of(keys_of(few), data), strict=True):
        np.testing.assert_allclose(ours[few], theirs, rtol=1e-6)


@functools.partial(jax.jit, static_argnums=1)
def scenes_of(keys, data):
    return jax.vmap(lambda key: scenes.draw(key, data))(keys)


@jax.jit
def batch(keys, dropout):
    return scenes.batch(keys, GRID, MODEL, dropout)


def test_an_example_does_not_depend_on_its_batch():
    keys = keys_of(np.arange(4000))
    whole, again, few = (batch(some, 0.464) for some in (keys, keys, keys[:3]))
    for ours, repeat, part in zip(whole, again, few, strict=True):
        np.testing.assert_array_equal(ours, repeat)
        np.testing.assert_allclose(ours[:3], part, rtol=1e-6, atol=1e-6)  # a latent sums 192 pixels
    assert len({np.asarray(x).tobytes() for x in whole.x0}) == 4000
    assert [x.shape for x in whole] == [(4000, 3, 3, 16), (4000, 8, 64), (4000, 50)]


def test_example_keys_differ_in_every_argument_and_may_be_traced():
    spoken = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (2**32 - 1, 2, 10**9, 5)]
    keys = [jax.random.key_data(scenes.example_key(*numbers)) for numbers in spoken]
    assert len({tuple(map(int, key)) for key in keys}) == len(spoken)
    traced = jax.jit(lambda step, i: scenes.example_key(3, scenes.VALIDATION, step, i))(7, 9)
    assert (jax.random.key_data(traced) == jax.random.key_data(scenes.example_key(3, scenes.VALIDATION, 7, 9))).all()
    assert len({scenes.TRAIN, scenes.VALIDATION, scenes.EVALUATION}) == 3


HEART_SCALE = 0.25 + math.sqrt(2) / 4
STAR_OUTER = 1 / math.sin(2 * math.pi / 5)
AREAS = {  # of the shape inscribed in [-1, 1]^2
    "circle": math.pi,
    "square": 4 * SQUARE_HALF**2,
    "triangle": math.sqrt(3),
    "ring": math.pi * (1 - RING_HOLE**2),
    "cross": 8 * CROSS_HALF - 4 * CROSS_HALF**2,
    "diamond": 2 * DIAMOND_HALF,
    "star": 5 * STAR_INNER * STAR_OUTER**2 * math.sin(math.pi / 5),
    "heart": (0.5 + math.pi / 8) / HEART_SCALE**2,
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_have_their_areas_and_centred_boxes(name):
    data = DataConfig(image_size=512)
    scene = one(draw(FREE, 1), 0)
    scene = scene._replace(
        present=np.arange(4) == 0,
        shape=np.full(4, SHAPES.index(name)),
        center=np.full((4, 2), 0.5, np.float32),
        radius=np.full(4, 0.4, np.float32),
    )
    covered = solo_coverage(jax.tree.map(lambda x: np.asarray(x)[None], scene), data)[0, 0]
    assert covered.sum() / (0.4 * 512) ** 2 == pytest.approx(AREAS[name], rel=0.005)
    rows, columns = np.nonzero((covered > 0.5).any(1))[0], np.nonzero((covered > 0.5).any(0))[0]
    assert rows[0] + rows[-1] == pytest.approx(511, abs=3)  # a pixel or two are lost at sharp tips
    assert columns[0] + columns[-1] == pytest.approx(511, abs=1)
    assert max(np.ptp(rows), np.ptp(columns)) <= 0.8 * 512 + 1
    upright = {"triangle": np.argmin, "heart": np.argmax}  # which end is the wider
    if name in upright:
        widths = [(covered[: len(covered) // 2]).sum(), (covered[len(covered) // 2 :]).sum()]
        assert upright[name](widths) == 0


def test_colors_and_backgrounds_are_far_apart():
    linear = np.concatenate([COLOR_RGB, BACKGROUND_RGB]) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    assert distance[:10, :10][~np.eye(10, dtype=bool)].min() > 38
    assert distance[:10, 10:].min() > 38
    assert distance[10:, 10:][~np.eye(4, dtype=bool)].min() > 12


@pytest.mark.parametrize("f, channels", [(1, 3), (2, 5), (4, 16), (8, 16), (4, 48), (8, 192)])
@pytest.mark.parametrize("layout", ["grid", "free"])
def test_autoencoder_is_an_orthogonal_projection(f, channels, layout):
    data = DataConfig(image_size=3 * f, downsample=f, layout=layout, shapes=4)
    matrix = autoencoder.basis(data, channels)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(channels), atol=1e-12)
    x = jax.random.normal(jax.random.key(0), (2, 4 * f, 3 * f, 3))
    z = scenes.encode(x, data, channels)
    assert z.shape == (2, 4, 3, channels)
    projected = scenes.decode(z, data)
    np.testing.assert_allclose(scenes.encode(projected, data, channels), z, atol=1e-4)
    residual, moved = np.asarray(x - projected), np.asarray(projected - scenes.decode(jnp.zeros_like(z), data))
    assert abs((residual * moved).mean()) < 1e-5  # what is lost is orthogonal to what is kept
    if channels == 3 * f * f:
        np.testing.assert_allclose(projected, x, atol=1e-5)


@pytest.mark.parametrize("data, kept", [(GRID, 1 - 1e-9), (FREE, 0.985)], ids=["grid", "free"])
def test_latents_are_standard_and_keep_the_picture(data, kept):
    images = renderer(data)(draw(data, 400))
    z = scenes.encode(images, data, 16)
    assert abs(z.mean()) < 0.1
    assert 0.85 < z.std() < 1.1
    lost = np.square(images - scenes.decode(z, data)).mean() / np.var(images, axis=0).mean()
    assert lost < 1 - kept


def every_caption(data):
    words = [jax.vmap(scenes.caption_words)(draw(data, MOST, split)) for split in ("seen", "unseen")]
    return np.unique(np.concatenate(words), axis=0)


def test_embeddings_tell_captions_apart_and_have_unit_scale():
    words = every_caption(GRID)[::3]
    nothing = jnp.zeros((len(words), 3), bool)
    tokens, pooled = jax.jit(lambda w: scenes.embed_captions(w, nothing, MODEL, 3))(words)
    assert tokens.shape == (len(words), 8, 64)
    assert pooled.shape == (len(words), 50)
    for states in (tokens.reshape(len(words), -1), pooled):
        states = np.asarray(states, np.float64)
        square = np.square(states).sum(1)
        apart = square[:, None] + square[None] - 2 * states @ states.T
        assert apart[~np.eye(len(words), dtype=bool)].min() > 5  # one changed word is many standard deviations
    wide = dataclasses.replace(MODEL, text_dim=1024, pooled_dim=1024)
    for states in scenes.embed_captions(words, nothing, wide, 3):
        assert abs(states.mean()) < 0.05
        assert states.std() == pytest.approx(1, abs=0.1)


def test_a_token_knows_its_word_and_its_slot_linearly():
    word, slot = map(np.ravel, np.meshgrid(np.arange(len(scenes.VOCABULARY)), np.arange(6)))
    words = np.zeros((len(word), 6), int)
    words[np.arange(len(word)), slot] = word
    wide = dataclasses.replace(MODEL, text_dim=192)
    tokens, _ = scenes.embed_captions(words, np.zeros((len(word), 3), bool), wide, 3)
    states = np.asarray(tokens)[np.arange(len(word)), slot]
    for labels in (word, slot):
        one_hot = np.eye(labels.max() + 1)[labels]
        read = states @ np.linalg.lstsq(states, one_hot, rcond=None)[0]
        np.testing.assert_array_equal(read.argmax(1), labels)


def test_a_dropped_part_is_zero_and_leaves_the_others_alone():
    words = every_caption(GRID)[:8]
    dropped = np.array([[(i >> part) & 1 for part in range(3)] for i in range(8)], bool)
    whole = scenes.embed_captions(words, np.zeros_like(dropped), MODEL, 3)
    for states, full in zip(scenes.embed_captions(words, dropped, MODEL, 3), whole, strict=True):
        slices = np.array_split(np.arange(full.shape[-1]), 3)
        for example in range(8):
            for part, channels in enumerate(slices):
                expected = full[example][..., channels] * (not dropped[example, part])
                np.testing.assert_array_equal(states[example][..., channels], expected)
    for nothing, states in zip(
        scenes.unconditional(MODEL, 1), scenes.embed_captions(words, dropped, MODEL, 3), strict=True
    ):
        np.testing.assert_array_equal(nothing[0], states[7])


def test_parts_are_dropped_independently_at_the_rate():
    keys = keys_of(np.arange(4000))
    first_of_part = [0, 17, 34]
    dropped = np.asarray(batch(keys, 0.464).pooled)[:, first_of_part] == 0
    np.testing.assert_allclose(dropped.mean(0), 0.464, atol=0.03)
    assert dropped.all(1).mean() == pytest.approx(0.464**3, abs=0.02)
    assert (np.asarray(batch(keys, 0.0).pooled) != 0).all()


def test_unseen_needs_something_held_out():
    with pytest.raises(UserError, match="leaves nothing unseen"):
        scenes.draw(jax.random.key(0), dataclasses.replace(GRID, held_out=0.0), "unseen")
    with pytest.raises(UserError, match="counting has no unseen"):
        scenes.draw(jax.random.key(0), GRID, "unseen", task=TASKS.index("counting"))
    only = jax.jit(lambda key: scenes.draw(key, GRID, task=TASKS.index("counting")))(jax.random.key(5))
    assert only.task == TASKS.index("counting")
    assert only.present.sum() >= 2
