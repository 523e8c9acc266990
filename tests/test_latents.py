"""Training on prepared sets: batches are functions of (seed, step), and what is damaged or does not fit is said."""

import dataclasses
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pytest
from prepared import SQUARE, encoded, example, noise_set, rewrite
from test_group import finish, launch, losses
from test_resume import final_state

from sd3_jax import records
from sd3_jax.config import MeshConfig, RunConfig, fingerprint
from sd3_jax.data import examples, latents
from sd3_jax.data.latents import Prepared, Rows
from sd3_jax.errors import UserError
from sd3_jax.evaluation import validation
from sd3_jax.sweep.run import prepare
from sd3_jax.sweep.spec import Cell
from sd3_jax.train import train
from sd3_jax.training import encoded as sets
from sd3_jax.training import sharding
from sd3_jax.training.step import init_params, make_model

ALL = np.arange(16)


def numbers(rows: Rows) -> list[int]:
    """Which examples these are."""
    return rows.latent[:, 0, 0, 0].astype(int).tolist()


def test_an_epoch_is_a_permutation_and_the_next_another(tmp_path: Path) -> None:
    manifest = noise_set(tmp_path, train=32)
    config = encoded(tmp_path, manifest)
    read = latents.batches(config, Prepared(tmp_path, manifest, "train"), ALL, 0, config.seed)
    first, second, third = (numbers(a) + numbers(b) for a, b in zip(*[islice(read, 6)] * 2, strict=True))
    assert sorted(first) == sorted(second) == sorted(third) == list(range(1, 33))
    assert first != second != third
    other = latents.batches(config, Prepared(tmp_path, manifest, "train"), ALL, 0, config.seed + 1)
    assert numbers(next(other)) not in (first[:16], second[:16])


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_together_read_what_one_reads_from_any_step_on(tmp_path: Path, hosts: int) -> None:
    sizes = [SQUARE, (16, 32), (32, 16)]
    manifest = noise_set(tmp_path, sizes=sizes)
    config = encoded(tmp_path, manifest, **{"data.buckets": sizes, "data.synthetic": 0.5, "model.position_grid": 4})
    prepared = Prepared(tmp_path, manifest, "train")
    whole = list(islice(latents.batches(config, prepared, ALL, 0, 3), 12))
    assert Counter(rows.latent.shape[1:3] for rows in whole) == {(3, 3): 4, (2, 4): 4, (4, 2): 4}
    for start in (0, 5):
        parts = [latents.batches(config, prepared, own, start, 3) for own in np.split(ALL, hosts)]
        for expected in whole[start:]:
            together = jax.tree.map(lambda *x: np.concatenate(x), *[next(part) for part in parts])
            jax.tree.map(np.testing.assert_array_equal, together, expected)


def test_synthetic_captions_come_as_often_as_asked_and_where_there_is_none_the_other(tmp_path: Path) -> None:
    manifest = noise_set(tmp_path, train=400, validation=0)
    config = encoded(tmp_path, manifest, batch=400, **{"data.synthetic": 0.25})
    read = latents.batches(config, Prepared(tmp_path, manifest, "train"), np.arange(400), 0, 0)
    said = [np.sign(rows.parts[2][0][:, 0, 0].astype(float)) for rows in islice(read, 4)]
    assert np.mean(np.stack(said) < 0) == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 1600))
    assert not np.array_equal(said[0], said[1])  # an example has not the same one in every epoch
    lone = tmp_path / "lone"
    rows = latents.collate([(example(7, kinds=("original",)), "synthetic")], manifest)
    assert rows.parts[2][0][0, 0, 0] == 7
    single = noise_set(lone, kinds=("original",))
    with pytest.raises(UserError, match=r"data\.synthetic: .*lone has captions of one kind alone \(original\)"):
        latents.check_fits(encoded(lone, single, **{"data.synthetic": 0.5}), Prepared(lone, single, "train"))


def test_what_the_device_makes_of_rows_is_what_they_say(tmp_path: Path) -> None:
    manifest = noise_set(tmp_path)
    config = encoded(tmp_path, manifest, **{"data.text_dropout": 0.5})
    mesh = sharding.make_mesh(MeshConfig(), config.batch)
    draw = sets.make_draw(config, mesh, Prepared(tmp_path, manifest, "train"))
    drawn = [draw(np.uint32(5), np.int32(step)) for step in range(20)]
    again = draw(np.uint32(5), np.int32(7))  # not in order
    jax.tree.map(np.testing.assert_array_equal, again, drawn[7])
    read = latents.batches(config, Prepared(tmp_path, manifest, "train"), ALL, 0, 5)
    kept = []
    for one, rows in zip(drawn, read, strict=False):
        mean, log_variance = np.split(rows.latent.astype(np.float32), 2, axis=-1)
        noise = ((np.asarray(one.batch.x0) / 0.9 + 0.1) - mean) / np.exp(log_variance / 2)
        noise[:, 0, 0, 0] = 0  # where the number stands, which is large
        assert abs(noise).max() < 6
        assert noise.std() == pytest.approx(1, abs=0.1)
        (large, large_pooled), (giant, giant_pooled), (t5, _) = rows.parts
        tokens = np.asarray(one.batch.tokens)
        clip, below = tokens[:, :3], tokens[:, 3:]
        own = np.stack([abs(clip[..., :4]).max((1, 2)) > 0, abs(clip[..., 4:10]).max((1, 2)) > 0])
        np.testing.assert_allclose(clip[..., :4], large * own[0][:, None, None], rtol=1e-6)
        np.testing.assert_allclose(clip[..., 4:10], giant * own[1][:, None, None], rtol=1e-6)
        assert not clip[..., 10:].any()
        third = abs(below).max((1, 2)) > 0
        np.testing.assert_allclose(below, t5 * third[:, None, None], rtol=1e-6)
        pooled = np.concatenate([large_pooled * own[0][:, None], giant_pooled * own[1][:, None]], axis=1)
        np.testing.assert_allclose(one.batch.pooled, pooled, rtol=1e-6)
        kept.append(np.stack([*own, third]))
    table = np.concatenate(kept, axis=1)  # [3, 320]: independent halves
    np.testing.assert_allclose(table.mean(axis=1), 0.5, atol=4 * 0.5 / np.sqrt(320))
    np.testing.assert_allclose(np.corrcoef(table) - np.eye(3), 0, atol=4 / np.sqrt(320))


def test_the_same_pictures_are_the_same_batch_on_every_mesh(tmp_path: Path) -> None:
    manifest = noise_set(tmp_path)
    found = []
    for devices in (1, 8):
        config = encoded(tmp_path, manifest)
        mesh = sharding.make_mesh(MeshConfig(), config.batch, jax.devices()[:devices])
        found.append(sets.make_draw(config, mesh, Prepared(tmp_path, manifest, "train"))(np.uint32(0), np.int32(3)))
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.slow
def test_a_run_on_a_prepared_set_learns_resumes_and_knows_its_set(tmp_path: Path) -> None:
    data = tmp_path / "a" / "noise"
    manifest = noise_set(data)
    config = encoded(data, manifest, steps=8)
    train(config, tmp_path / "whole")
    assert fingerprint(config) == fingerprint(encoded(tmp_path / "noise", manifest))  # known by name
    train(encoded(data, manifest, steps=5), tmp_path / "run")
    moved = tmp_path / "b" / "noise"
    data.parent.rename(moved.parent)
    train(encoded(moved, manifest, steps=8), tmp_path / "run")
    for ours, theirs in zip(final_state(tmp_path / "run"), final_state(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    rows, _ = records.read_rows(tmp_path / "run" / "metrics.jsonl")
    waits = [row["data_wait"] for row in rows if row["split"] == "train"]
    assert all(0 <= wait <= 1 for wait in waits)
    lives, _ = records.read_rows(tmp_path / "run" / "lives.jsonl")
    assert {life["data"] for life in lives} == {manifest.digest}
    assert examples.read_manifest(tmp_path / "run", "data_manifest.json") == manifest
    rewrite(moved, manifest, shards=manifest.shards[1:])
    with pytest.raises(UserError, match=f"began with other examples .set {manifest.digest}."):
        train(encoded(moved, manifest, steps=9), tmp_path / "run")


@pytest.mark.slow
def test_a_run_whose_directory_was_lost_knows_its_set_from_where_its_checkpoints_are(tmp_path: Path) -> None:
    manifest = noise_set(tmp_path / "set")
    overlay = {"checkpoint_root": str(tmp_path / "bucket")}
    train(encoded(tmp_path / "set", manifest, steps=2, **overlay), tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    rewrite(tmp_path / "set", manifest, shards=manifest.shards[1:])
    with pytest.raises(UserError, match=f"began with other examples .set {manifest.digest}."):
        train(encoded(tmp_path / "set", manifest, steps=3, **overlay), tmp_path / "run")


def test_a_run_that_is_to_go_on_without_its_set_stays_as_it_was(tmp_path: Path) -> None:
    manifest = noise_set(tmp_path / "set")
    summary = train(encoded(tmp_path / "set", manifest, steps=2), tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    (tmp_path / "set").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="holds no prepared set"):
        train(encoded(tmp_path / "set", manifest, steps=3), tmp_path / "run")
    after = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    assert after == before
    assert train(encoded(tmp_path / "set", manifest, steps=2), tmp_path / "run") == summary  # it needs none


def test_a_damaged_record_stops_a_run_with_its_name(tmp_path: Path) -> None:
    manifest = noise_set(tmp_path / "set")
    config = encoded(tmp_path / "set", manifest, steps=8)
    path = tmp_path / "set" / manifest.shards[0].file
    broken = bytearray(path.read_bytes())
    broken[500] ^= 1
    path.write_bytes(broken)
    with pytest.raises(
        UserError, match=r"train-00000.*record \d+ is damaged; copy the file again, or delete it[^\n]*again$"
    ):
        train(config, tmp_path / "run")
    path.write_bytes(broken[:-1])
    with pytest.raises(UserError, match=r"train-00000.* bytes, and the manifest says"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    "overlay, message",
    [
        ({"model.text_dim": 24}, r"do not fit; --set model.text_dim=12$"),
        ({"data.image_size": 32, "model.latent_size": 4}, "--set data.image_size=24 --set model.latent_size=3"),
        (
            {"data.buckets": [[16, 32]], "model.position_grid": 4},
            r"no pictures of 16x32 .* --set data.buckets=\[\[24,24\]\]",
        ),
        ({"evaluation.examples": 21}, "has 20 examples of split validation; --set evaluation.examples=20"),
        ({"data.path": "nowhere"}, "nowhere: holds no prepared set"),
        ({"data.validation": "nowhere"}, "nowhere: holds no prepared set"),
    ],
)
def test_a_set_that_does_not_fit_is_one_line_with_what_to_set(tmp_path: Path, overlay: dict, message: str) -> None:
    manifest = noise_set(tmp_path / "set")
    with pytest.raises(UserError, match=message):
        train(encoded(tmp_path / "set", manifest, **overlay), tmp_path / "run")


def test_a_set_with_nothing_held_out_needs_another_that_was_encoded_alike(tmp_path: Path) -> None:
    manifest = noise_set(tmp_path / "set", validation=0)
    with pytest.raises(UserError, match="holds nothing out"):
        train(encoded(tmp_path / "set", manifest), tmp_path / "run")
    noise_set(tmp_path / "coco", train=20, validation=0)
    config = encoded(tmp_path / "set", manifest, **{"data.validation": str(tmp_path / "coco")})
    held = sets.find(config, tmp_path).held
    assert (held.folder, held.split) == (tmp_path / "coco", "train")
    rewrite(
        tmp_path / "coco", held.manifest, autoencoder=dataclasses.replace(manifest.autoencoder, shift=0.7, scale=3.0)
    )
    held = sets.find(config, tmp_path / "other").held
    assert held.manifest.autoencoder == manifest.autoencoder  # losses are told of what is trained on, not of itself
    other = rewrite(tmp_path / "coco", manifest, autoencoder=dataclasses.replace(manifest.autoencoder, digest="b"))
    assert other != manifest
    with pytest.raises(UserError, match="coco: its autoencoder is another"):
        sets.find(config, tmp_path)
    rewrite(tmp_path / "coco", manifest, parts=manifest.parts[:2])
    with pytest.raises(UserError, match="coco: its text encoders are others"):
        sets.find(config, tmp_path)


@pytest.mark.slow
def test_the_loss_of_a_model_that_says_zero_is_the_targets_size_whatever_the_chunks(tmp_path: Path) -> None:
    """v = 0 has the loss E||eps - x0||^2 at every level; of every level, or of one in turn."""
    sizes = [SQUARE, (16, 32)]
    manifest = noise_set(tmp_path, sizes=sizes, validation=200)
    overlay = {"data.buckets": sizes, "model.position_grid": 4, "evaluation.examples": 390}

    def score(**more) -> dict[str, float]:
        config = encoded(tmp_path, manifest, **overlay, **more)
        mesh = sharding.make_mesh(MeshConfig(), config.batch)
        held = Prepared(tmp_path, manifest, "validation")
        params = jax.jit(lambda: init_params(config.model, jax.random.key(0)))()  # the final layer is zero
        return validation.make_eval(config, make_model(config.model, config.mesh), mesh, held)(params)

    every, robin = score(), score(batch=48, **{"evaluation.levels": "round-robin"})
    chosen = latents.choose(Prepared(tmp_path, manifest, "validation"), 390, 0)
    ranks = np.concatenate([group.rank for group in chosen])
    assert sorted(ranks) == list(range(390))
    second = []  # E x0^2 of each example in closed form: the square of its mean, and its variance
    for group, size in zip(chosen, sorted(sizes), strict=True):
        count = 200
        first = {SQUARE: 1001, (16, 32): 1201}[size]
        table = [n for part in range(2) for n in range(first + part, first + count, 2)]  # in the order of the shards
        start = 0 if size == SQUARE else 200
        for i in group.record - start:
            mean, log_variance = np.split(example(table[i], size).latent.astype(np.float16).astype(float), 2, axis=-1)
            second.append(0.9**2 * np.mean((mean - 0.1) ** 2 + np.exp(log_variance)))
    second = np.array(second)[np.argsort(ranks)]
    np.testing.assert_allclose([every[f"loss_t{k}"] for k in range(9)], 1 + second.mean(), rtol=1e-3)
    for k in range(8):
        assert robin[f"loss_t{k}"] == pytest.approx(1 + second[k::8].mean(), rel=3e-3)
    assert robin["loss"] == pytest.approx(np.mean([robin[f"loss_t{k}"] for k in range(8)]), rel=1e-6)
    assert "loss_t8" not in robin


def test_fewer_examples_are_the_first_of_more_each_with_the_same_rank(tmp_path: Path) -> None:
    manifest = noise_set(tmp_path, sizes=[SQUARE, (16, 32)], validation=50)
    few, more = (
        {int(rank): int(record) for group in latents.choose(Prepared(tmp_path, manifest, "validation"), count, 3)
         for rank, record in zip(*group, strict=True)}
        for count in (20, 100)
    )  # fmt: skip
    assert sorted(more.values()) == list(range(100))
    assert few == {rank: more[rank] for rank in range(20)}


def test_the_error_of_one_level_in_turn_covers() -> None:
    generator = np.random.default_rng(0)
    level, each = np.arange(8) * 0.3, []
    for _ in range(400):
        row = validation.summarize_robin((level[np.arange(160) % 8] + generator.normal(size=160)).astype(np.float32))
        each.append((row["loss"] - level.mean()) / row["loss_se"])
    assert np.std(each) == pytest.approx(1, abs=0.15)


def test_scenes_take_no_field_of_a_prepared_set_and_a_prepared_set_needs_a_folder() -> None:
    from tiny import tiny

    for key, value in (("path", "x"), ("validation", "x"), ("synthetic", 0.5)):
        with pytest.raises(UserError, match=rf"data\.{key}: is of data\.source encoded"):
            tiny(**{f"data.{key}": value})
    with pytest.raises(UserError, match=r"data\.path: data\.source encoded needs"):
        tiny(**{"data.source": "encoded"})
    with pytest.raises(UserError, match=r"evaluation\.examples: 15 .* at least 16"):
        tiny(**{"evaluation.levels": "round-robin", "evaluation.examples": 15})


@pytest.mark.slow
def test_processes_read_their_own_rows_and_another_number_of_them_goes_on(tmp_path: Path) -> None:
    """Real groups: two processes begin, one of all devices goes on, and the losses are those of one process alone."""
    manifest = noise_set(tmp_path / "set")
    overlay = {"mesh.data": 2, "mesh.fsdp": 2, "data.synthetic": 0.5}

    def config(steps: int) -> RunConfig:
        return encoded(tmp_path / "set", manifest, steps=steps, **overlay)

    finish(launch(config(8), tmp_path / "one", 1, 4))
    finish(launch(config(5), tmp_path / "two", 2, 2))
    finish(launch(config(8), tmp_path / "two", 1, 4))
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
    lives, _ = records.read_rows(tmp_path / "two" / "lives.jsonl")
    assert [life["processes"] for life in lives] == [2, 1]


def test_a_sweep_whose_set_is_not_there_starts_no_cell(tmp_path: Path) -> None:
    manifest = noise_set(tmp_path / "set")
    config = encoded(tmp_path / "set", manifest)
    (tmp_path / "set").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="d02-s0: .*set: holds no prepared set"):
        prepare([Cell("d02-s0", config, None)], tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
