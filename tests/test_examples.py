"""Encoded examples: what is packed is unpacked, and each part's states stand where the paper puts them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sd3_jax.data import examples, frozen
from sd3_jax.data.examples import Autoencoder, Caption, Example, Manifest, Part, Shard
from sd3_jax.errors import UserError

# SD3's layout at a quarter of a hundredth of its size: CLIP-L and CLIP-G side by side, then T5.
PARTS = (
    Part("clip-l", "clip", "a", "0", tokens=5, channels=3, pooled=3),
    Part("clip-g", "clip", "b", "1", tokens=5, channels=4, pooled=4, channel_start=3, pooled_start=3),
    Part("t5", "t5", "c", "2", tokens=6, channels=8, pooled=0, token_start=5),
)


def manifest(moments: bool = True) -> Manifest:
    autoencoder = Autoencoder("diffusers", "vae", "3", 2, 8, shift=0.5, scale=2.0, moments=moments)
    return Manifest(autoencoder, PARTS, 11, 8, 7, "float16", 16, ("original",), ())


def draw(seed: int, b: int = 2) -> list[tuple[np.ndarray, np.ndarray]]:
    numbers = np.random.RandomState(seed)
    return [
        (numbers.standard_normal((b, part.tokens, part.channels)), numbers.standard_normal((b, part.pooled)))
        for part in PARTS
    ]


def test_what_is_packed_is_unpacked_and_equal_examples_are_equal_bytes() -> None:
    arrays = {part.name: (x[0], y[0]) for part, (x, y) in zip(PARTS, draw(0), strict=True)}
    example = Example(
        "a/b.png", np.random.RandomState(1).standard_normal((2, 3, 4)), {"original": Caption("été", arrays)},
        (40, 60), (0, 10, 40, 40), "MIT",
    )  # fmt: skip
    record = examples.pack(example, "float16")
    assert record == examples.pack(example, "float16")
    read = examples.unpack(record, manifest())
    assert (read.id, read.size, read.crop, read.licence) == (example.id, example.size, example.crop, "MIT")
    assert read.captions["original"].text == "été"
    assert np.array_equal(read.latent, example.latent.astype(np.float16))
    for name, (states, pooled) in read.captions["original"].parts.items():
        assert np.array_equal(states, arrays[name][0].astype(np.float16))
        assert np.array_equal(pooled, arrays[name][1].astype(np.float16))


@pytest.mark.parametrize("record", [b"", b"\xc1", b"\x93\x01\x02\x03", b"\x00" * 20])
def test_bytes_that_are_no_record_are_refused(record: bytes) -> None:
    with pytest.raises(ValueError, match="not a record"):
        examples.unpack(record, manifest())


def test_parts_stand_where_the_paper_puts_them_and_a_dropped_part_is_zero() -> None:
    arrays = draw(2)
    kept = jnp.array([[True, True, True], [True, False, False]])
    tokens, pooled = examples.place([(jnp.asarray(x), jnp.asarray(y)) for x, y in arrays], kept, manifest())
    (l_states, l_pooled), (g_states, g_pooled), (t5, _) = arrays
    clip = np.concatenate([l_states, g_states, np.zeros((2, 5, 1))], axis=-1)
    expected = np.concatenate([clip, t5], axis=1)
    expected[1, :, 3:] = 0
    expected[1, 5:] = 0
    np.testing.assert_allclose(tokens, expected, rtol=1e-6)
    np.testing.assert_allclose(pooled[0], [*l_pooled[0], *g_pooled[0]], rtol=1e-6)
    np.testing.assert_allclose(pooled[1], [*l_pooled[1], *np.zeros(4)], rtol=1e-6)


def test_latents_are_drawn_from_their_moments() -> None:
    mean, log_variance = np.full((1, 2, 2, 2), 1.5), np.full((1, 2, 2, 2), np.log(0.25))
    stored = jnp.asarray(np.concatenate([mean, log_variance], axis=-1))
    noise = jax.random.normal(jax.random.key(0), (1, 2, 2, 2))
    drawn = examples.normalise(stored, noise, manifest().autoencoder)
    np.testing.assert_allclose(drawn, (1.5 + 0.5 * noise - 0.5) * 2, rtol=1e-6)
    np.testing.assert_allclose(examples.normalise(stored, None, manifest().autoencoder), 2.0, rtol=1e-6)
    sampled = examples.normalise(stored[..., :2], None, manifest(moments=False).autoencoder)
    np.testing.assert_allclose(sampled, 2.0, rtol=1e-6)


def test_a_manifest_comes_back_and_nonsense_is_refused(tmp_path: Path) -> None:
    path = tmp_path / examples.MANIFEST
    with pytest.raises(UserError, match="sd3-jax prepare"):
        examples.read_manifest(tmp_path)
    shards = (examples.Shard("train-00000.array_record", "train", (16, 16), 3, 100, 7),)
    whole = dataclasses.replace(manifest(), shards=shards, licences={"MIT": 3})
    path.write_text(json.dumps(examples.to_dict(whole)))
    read = examples.read_manifest(tmp_path)
    assert read == whole
    assert read.count("train") == 3
    assert read.sizes == ((16, 16),)
    moved = dataclasses.replace(whole, autoencoder=dataclasses.replace(whole.autoencoder, source="elsewhere"))
    assert moved.digest == whole.digest != dataclasses.replace(whole, shards=()).digest
    for text, said in (
        ("{", "not JSON"),
        ("[]", "not a manifest"),
        ('{"format": 2}', "format 2"),
        ('{"format": 1}', "not a man"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            examples.read_manifest(tmp_path)


@pytest.mark.parametrize("wrong", [None, "x", [], {}, 1.5, True])
@pytest.mark.parametrize(
    "where",
    [("image_size",), ("autoencoder", "downsample"), ("parts", 0, "tokens"), ("shards", 0, "examples"),
     ("shards", 0, "file"), ("shards", 0, "size", 1)],
)  # fmt: skip
def test_a_manifest_of_wrong_kinds_is_one_line(tmp_path: Path, where: tuple, wrong: Any) -> None:
    shard = Shard("a.array_record", "train", (24, 24), 3, 100, 7)
    tree = leaf = examples.to_dict(dataclasses.replace(manifest(), shards=(shard,)))
    for key in where[:-1]:
        leaf = leaf[key]
    if where[-1] == "file" and wrong == "x":
        return
    leaf[where[-1]] = wrong
    (tmp_path / examples.MANIFEST).write_text(json.dumps(tree))
    with pytest.raises(UserError, match="is of another kind"):
        examples.read_manifest(tmp_path)


def test_the_cosine_codec_loses_nothing_with_all_its_channels_and_only_detail_with_few() -> None:
    images = np.random.RandomState(0).randint(0, 256, (3, 16, 24, 3)).astype(np.uint8)
    whole = frozen.cosine_codec(channels=48, downsample=4)
    assert np.array_equal(whole.decode(whole.encode(images)), images)
    smooth = np.broadcast_to(images[:, :1, :1], images.shape)
    few = frozen.cosine_codec(channels=3, downsample=4)
    assert np.array_equal(few.decode(few.encode(smooth)), smooth)
    assert few.encode(images).shape == (3, 4, 6, 3)


def test_words_have_states_of_their_own_by_place_and_nothing_else_matters() -> None:
    encoder = frozen.word_encoder(tokens=4, channels=32)
    states, pooled = encoder.encode(["a red Cat", "A red cat!", "a cat red", ""])
    assert np.array_equal(states[0], states[1])
    assert np.array_equal(pooled[0], pooled[1])
    assert not np.allclose(states[0], states[2])
    np.testing.assert_allclose(pooled[0], pooled[2], rtol=1e-5)  # a bag of words
    assert np.array_equal(states[0][3], states[3][3])  # padding
    many, bags = frozen.word_encoder(tokens=1, channels=4096).encode(["one", "two words", "three"])
    assert many.std() == pytest.approx(1, abs=0.03)
    assert bags.std() == pytest.approx(1, abs=0.03)


def test_sd3s_encoders_stand_as_in_figure_2_whatever_is_left_out() -> None:
    large, giant, t5 = (Part(name, name.split("-")[0], "", "", 77, channels, pooled) for name, channels, pooled in (
        ("clip-l", 768, 768), ("clip-g", 1280, 1280), ("t5", 4096, 0)))  # fmt: skip
    parts, *sizes = frozen.arrange([large, giant, t5])
    assert sizes == [154, 4096, 2048]
    assert [(p.token_start, p.channel_start, p.pooled_start) for p in parts] == [
        (0, 0, 0),
        (0, 768, 768),
        (77, 0, 2048),
    ]
    assert frozen.arrange([large, giant])[1:] == (77, 2048, 2048)
    assert frozen.arrange([t5])[1:] == (77, 4096, 0)
