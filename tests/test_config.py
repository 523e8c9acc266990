"""The schema's three doors lead to one room, and bad input gets one clear line."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from sd3_jax import config as configs
from sd3_jax.config import YOUNGER, RunConfig, default_config, difference, fingerprint, identity, to_dict
from sd3_jax.errors import UserError
from sd3_jax.overlays import parse_assignments, resolve
from sd3_jax.records import load_config


def test_three_doors_one_run() -> None:
    experiment = default_config()
    experiment.model.depth = 4
    experiment.flops = 1e19
    experiment.optimizer.drops = ((300.0, 0.5),)
    by_file = resolve(experiment)
    by_flags = resolve(parse_assignments(["model.depth=4", "flops=1e19", "optimizer.drops=[[300, 0.5]]"]))
    by_yaml = resolve(yaml.safe_load("model: {depth: 4}\nflops: 1e19\noptimizer.drops: [[300, 0.5]]"))
    assert by_file == by_flags == by_yaml
    assert by_file.model.depth == 4
    assert by_file.optimizer.drops == ((300.0, 0.5),)


@pytest.mark.parametrize("text", ["1e15", "1.0e15", "1.0e+15", "1000000000000000"])
def test_numbers_that_yaml_reads_as_strings(text: str) -> None:
    assert resolve(yaml.safe_load(f"flops: {text}")).flops == 1e15
    assert resolve({"steps": 1}, yaml.safe_load("optimizer.learning_rate: 3e-4")).optimizer.learning_rate == 3e-4


def test_a_later_length_replaces_an_earlier_one() -> None:
    config = resolve({"steps": 10}, {"flops": 1e19})
    assert (config.steps, config.images, config.flops) == (None, None, 1e19)


def test_a_configuration_survives_its_dictionary() -> None:
    config = resolve({"steps": 7, "optimizer.drops": [[3, 0.5]], "evaluation.budgets": [1e12], "keep_steps": [4]})
    assert resolve(configs.to_dict(config)) == config


@pytest.mark.parametrize(
    "overlay, words",
    [
        ({"model.dept": 4}, ["model.dept", "did you mean model.depth?"]),
        ({"depth": 4}, ["unknown key depth", "model.depth"]),
        ({"optimiser.learning_rate": 1}, ["optimiser", "optimizer"]),
        ({"model.depth": True}, ["model.depth", "True"]),
        ({"model.depth": 2.5}, ["model.depth", "2.5", "whole"]),
        ({"model.depth": 0}, ["model.depth", "0", "1 to"]),
        ({"model.depth": "four"}, ["model.depth", "four"]),
        ({"model": 4}, ["model", "section"]),
        ({"model.depth.x": 4}, ["model.depth"]),
        ({"model.qk_norm": 1}, ["model.qk_norm", "true or false"]),
        ({"flow.density": "normal"}, ["flow.density", "normal", "logit-normal"]),
        ({"optimizer.learning_rate": float("nan")}, ["optimizer.learning_rate", "nan"]),
        ({"optimizer.drops": [[3]]}, ["optimizer.drops", "[step, factor]"]),
        ({"optimizer.drops": 3}, ["optimizer.drops", "list"]),
        ({"data.image_size": 64}, ["model.latent_size", "8"]),
        ({"data.image_size": 252}, ["data.image_size", "252"]),
        ({"model.patch": 3}, ["model.patch", "3"]),
        ({"model.latent_channels": 300}, ["model.latent_channels", "192"]),
        ({"images": 10}, ["steps", "images"]),
        ({"steps": 10**400}, ["steps"]),
        ({"optimizer.learning_rate": 10**400}, ["optimizer.learning_rate"]),
        ({"model.text_tokens": 5}, ["model.text_tokens: 5", "at least 6"]),
        ({"data.layout": "grid", "data.grid": 7}, ["data.grid: 7"]),
        ({"data.layout": "grid", "data.image_size": 40, "data.grid": 8}, ["model.latent_size"]),
        (
            {"data.layout": "grid", "data.image_size": 40, "data.grid": 8, "model.latent_size": 5, "model.patch": 1},
            ["cells of 5 pixels", "at most 6 cells"],
        ),
        ({"data.image_size": 24, "model.latent_size": 3, "model.patch": 1}, ["data.image_size: 24", "at least 32"]),
        ({"batch": 12, "mesh.fsdp": 8}, ["batch: 12", "fsdp 8"]),
    ],
)
def test_bad_input_is_one_line_that_names_key_and_value(overlay: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        resolve({"steps": 10} | overlay)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_no_length_is_an_error() -> None:
    with pytest.raises(UserError, match="exactly one of steps, images and flops"):
        resolve({})


@pytest.mark.parametrize("text", ["!!int abc", "2020-13-45", "!!bool x", "{a: 1, a: 2}", "[1", "!!python/name:os.x"])
def test_values_that_are_no_yaml_are_one_line(text: str) -> None:
    with pytest.raises(UserError, match="broken YAML") as caught:
        parse_assignments([f"seed={text}"])
    assert "\n" not in str(caught.value)


def test_set_without_equals_sign() -> None:
    with pytest.raises(UserError, match="key=value"):
        parse_assignments(["model.depth"])


def test_identity_ignores_how_and_how_long_but_nothing_else() -> None:
    config = resolve({"steps": 10})
    same = resolve({"steps": 20, "mesh.fsdp": 4, "log_every": 1, "checkpoint_seconds": 1})
    assert configs.fingerprint(config) == configs.fingerprint(same)
    assert configs.difference(same, config) == []
    started = resolve({"steps": 10, "init_from": "runs/a", "init_weights": "raw", "init_step": 3})
    for spec in dataclasses.fields(RunConfig):
        assert (spec.name in configs.FREE) != any(key.startswith(spec.name) for key in configs.identity(started))
    other = resolve({"steps": 10, "optimizer.learning_rate": 2e-4})
    assert configs.difference(other, config) == ["optimizer.learning_rate: 0.0001 -> 0.0002"]


def test_fields_younger_than_the_records_leave_old_runs_what_they_were() -> None:
    """Fingerprints as they were written before the fields existed; a config.json without them means the defaults."""
    assert fingerprint(resolve({"steps": 1})) == "de0c914d"
    for run in sorted((Path(__file__).parent.parent / "experiments" / "results" / "figure8_cpu").iterdir()):
        written = json.loads((run / "lives.jsonl").read_text().splitlines()[0])["identity"]
        assert fingerprint(load_config(run)) == written
    for field in YOUNGER:
        assert field not in identity(resolve({"steps": 1}))


def test_dual_attention_is_part_of_what_a_run_is() -> None:
    plain, dual = resolve({"steps": 1}), resolve({"steps": 1, "model.dual_attention": [0, 2]})
    assert dual.model.dual_attention == (0, 2)
    assert fingerprint(plain) != fingerprint(dual)
    assert difference(dual, plain) == ["model.dual_attention: () -> (0, 2)"]
    assert difference(plain, dual) == ["model.dual_attention: (0, 2) -> ()"]
    assert resolve(json.loads(json.dumps(to_dict(dual)))) == dual


@pytest.mark.parametrize(
    "overlay, words",
    [
        ({"model.dual_attention": [15]}, "each from 0 to model.depth - 1 = 14"),
        ({"model.dual_attention": [3, 1]}, "ascending"),
        ({"model.dual_attention": [1, 1]}, "ascending"),
        ({"model.dual_attention": [-1]}, "out of range"),
        ({"model.dual_attention": 3}, "not a list"),
        ({"model.position_grid": 15}, "at least model.latent_size / model.patch = 16"),
        ({"model.position_table": 1}, "true or false"),
    ],
)
def test_models_that_cannot_be(overlay: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolve({"steps": 1}, overlay)
