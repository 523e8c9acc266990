"""Frechet's distance: closed forms, invariances, its error, and what it sees in scenes."""

import numpy as np
import pytest
from scipy import linalg, ndimage
from tiny import tiny

from sd3_jax.data import captions
from sd3_jax.data.composition import TASKS
from sd3_jax.evaluation import fidelity, prompts, scene_judge, truth
from sd3_jax.evaluation.fidelity import Moments, frechet, merge, moments

RNG = np.random.default_rng(0)


def gaussian(mean, covariance, n=1000):
    """Moments that have exactly this mean and covariance."""
    return Moments(n, np.asarray(mean, float), np.asarray(covariance, float) * (n - 1))


def covariance(d, rank=None):
    factor = RNG.standard_normal((d, rank or d))
    return factor @ factor.T


# --- Gaussians ------------------------------------------------------------------------------------------------------


def test_equal_gaussians_are_at_zero():
    one = gaussian(RNG.standard_normal(20), covariance(20))
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)
    flat = gaussian(np.zeros(20), covariance(20, rank=5))  # fewer pictures than features
    assert frechet(flat, flat) == pytest.approx(0, abs=1e-5)


def test_a_shift_counts_by_its_square():
    shared, shift = covariance(8), RNG.standard_normal(8)
    assert frechet(gaussian(np.zeros(8), shared), gaussian(shift, shared)) == pytest.approx(shift @ shift)


def test_diagonal_covariances_differ_by_their_deviations():
    a, b = RNG.uniform(0, 3, 10), RNG.uniform(0, 3, 10)
    found = frechet(gaussian(np.zeros(10), np.diag(a**2)), gaussian(np.zeros(10), np.diag(b**2)))
    assert found == pytest.approx(np.sum((a - b) ** 2))


@pytest.mark.parametrize("d", [1, 7, 40])
def test_it_is_the_formula_with_scipys_square_root(d):
    s, t, apart = covariance(d), covariance(d), RNG.standard_normal(d)
    root = linalg.sqrtm(s @ t).real
    expected = apart @ apart + np.trace(s + t - 2 * root)
    one, other = gaussian(np.zeros(d), s), gaussian(apart, t)
    assert frechet(one, other) == pytest.approx(expected, rel=1e-6)
    assert frechet(other, one) == pytest.approx(expected, rel=1e-6)


def test_it_does_not_change_as_features_are_turned_and_grows_with_their_scale():
    one, other = RNG.standard_normal((50, 6)), RNG.standard_normal((60, 6)) @ covariance(6)
    turn = np.linalg.qr(RNG.standard_normal((6, 6)))[0]
    first = frechet(moments(one), moments(other))
    assert frechet(moments(one @ turn), moments(other @ turn)) == pytest.approx(first)
    assert frechet(moments(3 * one + 1), moments(3 * other + 1)) == pytest.approx(9 * first)


def test_moments_of_parts_are_those_of_the_whole():
    rows = 1e4 + RNG.standard_normal((101, 5)).astype(np.float32)
    whole, parts = moments(rows), merge(merge(moments(rows[:1]), moments(rows[1:40])), moments(rows[40:]))
    assert parts.n == whole.n == 101
    np.testing.assert_allclose(parts.mean, whole.mean)
    np.testing.assert_allclose(parts.covariance, np.cov(rows.astype(float).T), rtol=1e-6)
    np.testing.assert_allclose(parts.scatter, whole.scatter, rtol=1e-6)


# --- the distance and its error -------------------------------------------------------------------------------------


def test_the_mean_over_and_over_is_at_one_whatever_the_units():
    there = RNG.standard_normal((400, 10)) * RNG.uniform(0.1, 30, 10)
    same = np.repeat(there.mean(axis=0)[None], 50, axis=0)
    found = fidelity.distance(same, moments(there), np.arange(50), ["a"] * 50, blocks=(4, 6))
    assert found.value == pytest.approx(1)
    assert (found.n, found.prompts) == (50, 50)


def test_influences_are_derivatives():
    rows, other = RNG.standard_normal((80, 4)) @ covariance(4), moments(RNG.standard_normal((90, 4)) + 1)
    each = fidelity.influence(rows, other)
    at = frechet(moments(rows), other)
    repeats = 2000  # as many copies of all rows, and one row once more: a small weight
    for i in (0, 7):
        many = moments(rows)
        many = Moments(many.n * repeats, many.mean, many.scatter * repeats)
        base = frechet(many, other)
        change = frechet(merge(many, moments(rows[i : i + 1])), other) - base
        assert change * (many.n + 1) == pytest.approx(each[i], rel=0.02, abs=0.02 * at)


def test_the_error_is_the_scatter_of_fresh_prompts():
    there = moments(RNG.standard_normal((3000, 5)))
    values, errors = [], []
    for _ in range(200):
        own = np.repeat(RNG.standard_normal((60, 5)), 4, axis=0) * 0.8 + RNG.standard_normal((240, 5)) + 0.5
        found = fidelity.distance(own, there, np.repeat(np.arange(60), 4), np.repeat(["a", "b"], 120), blocks=(5,))
        values.append(found.value)
        errors.append(found.se)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.2)


# --- scenes ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes():
    """Six tasks' prompts, true scenes of them, and a function that scores pictures of the same prompts."""
    data = tiny().data
    asked = [prompt for prompt in prompts.scene_prompts(data, 48) if prompt.metadata["split"] == "seen"]
    words, images = tuple(tuple(p.words.tolist()) for p in asked), tuple(p.images for p in asked)
    known, ceiling = truth.reference(data, 16, words, images)
    number = np.repeat(np.arange(len(words)), images)
    tasks = [asked[index].metadata["tag"] for index in number]
    pictures = truth.draw_captions(data, None, np.array(words)[number], seed=5)[0]
    return (
        data,
        np.array(words)[number],
        pictures,
        ceiling,
        lambda images: fidelity.distance(fidelity.scene_features(images), known, number, tasks),
    )


def test_scenes_of_captions_are_what_they_say(scenes):
    data, words, pictures, _, _ = scenes
    found = scene_judge.find(pictures, data)
    assert all(scene_judge.judge(prompts.metadata(w), own)[1].correct for w, own in zip(words, found, strict=True))


def test_scenes_of_captions_are_distributed_as_those_of_training(scenes):
    data = scenes[0]
    task = TASKS[2]
    drawn, pictures, _ = truth.draw(data, None, task, "seen", 600)
    ours = truth.draw_captions(data, None, drawn, seed=3)[0]
    one, other = (moments(fidelity.scene_features(images)) for images in (pictures, ours))
    again = truth.draw_captions(data, None, drawn, seed=4)[0]
    assert frechet(one, other) < 1.3 * frechet(other, moments(fidelity.scene_features(again)))


def test_a_caption_that_training_never_has_is_drawn_too(scenes):
    words = captions.parse("a photo of a red square and a red ring")
    image = truth.draw_captions(scenes[0], None, words[None])[0]
    found = scene_judge.find(image, scenes[0])[0]
    assert sorted((one.color, one.shape) for one in found) == [("red", "ring"), ("red", "square")]


def blurred(pictures, amount):
    return ndimage.gaussian_filter(pictures.astype(np.float32), (0, amount, amount, 0)).round().astype(np.uint8)


def noisy(pictures, amount):
    noise = np.random.default_rng(1).standard_normal(pictures.shape)
    return np.clip(pictures + amount * noise, 0, 255).round().astype(np.uint8)


def share_of(change):
    def degrade(pictures, share):
        chosen = np.random.default_rng(2).random(len(pictures)) < share
        return np.where(chosen[:, None, None, None], change(pictures), pictures)

    return degrade


def empty(pictures):
    colour = np.median(pictures.reshape(len(pictures), -1, 3), axis=1).astype(np.uint8)
    return np.broadcast_to(colour[:, None, None], pictures.shape)


def few(pictures, share):
    """As many pictures, of ever fewer different ones."""
    kept = pictures[np.random.default_rng(3).permutation(len(pictures))[: round(len(pictures) * (1 - share))]]
    return kept[np.random.default_rng(4).integers(len(kept), size=len(pictures))]


@pytest.mark.parametrize(
    "degrade, amounts",
    [
        (blurred, (0.5, 0.8, 1.5)),
        (noisy, (6, 15, 40)),
        (share_of(lambda pictures: pictures[..., [2, 0, 1]]), (0.3, 0.6, 1.0)),  # wrong colours
        (share_of(empty), (0.25, 0.5, 1.0)),
        (few, (0.7, 0.9, 0.97)),  # modes dropped
    ],
    ids=["blur", "noise", "colours", "missing", "modes"],
)
def test_what_is_worse_is_farther(scenes, degrade, amounts):
    _, _, pictures, ceiling, score = scenes
    truths = score(pictures)
    assert truths.value == pytest.approx(ceiling.value, rel=0.25)
    values = [truths.value, *(score(degrade(pictures, amount)).value for amount in amounts)]
    assert values == sorted(values)
    assert values[-1] > truths.value + 4 * truths.se


def test_features_are_the_same_of_any_batch_and_of_any_size(scenes):
    pictures = scenes[2]
    whole = fidelity.scene_features(pictures[:9])
    assert whole.shape == (9, sum(fidelity.BLOCKS))
    np.testing.assert_allclose(whole[3:4], fidelity.scene_features(pictures[3:4]), rtol=1e-5, atol=1e-6)
    for side in (30, 64):  # neither a multiple of the patch, or of the thumbnail, need be
        flat = np.full((2, side, side, 3), 200, np.uint8)
        found = fidelity.scene_features(flat)
        np.testing.assert_allclose(found[:, : fidelity.BLOCKS[0]], np.tile(found[:1, :3], (2, 16)), atol=1e-5)
        np.testing.assert_allclose(found[:, fidelity.BLOCKS[0] :], 0, atol=1e-5)
