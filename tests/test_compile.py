"""Memory before there is a chip: the estimate against compilers, policies in order, and what is refused."""

import dataclasses
import importlib.util
import io
import json
import sys
from types import SimpleNamespace

import jax
import pytest
from jax.experimental import topologies

from sd3_jax import hardware, layout
from sd3_jax.config import MeshConfig, RunConfig
from sd3_jax.errors import RunFailed, UserError
from sd3_jax.overlays import resolve
from sd3_jax.sweep import compile as compiler
from sd3_jax.sweep import plan as plans
from sd3_jax.sweep import plan_table, spec
from sd3_jax.sweep.compile import Compiled

FACTOR = 1.35  # as layout.estimate promises
SMALL = {
    "model.depth": 4,
    "model.latent_size": 16,
    "model.text_tokens": 32,
    "model.text_dim": 64,
    "model.pooled_dim": 64,
    "data.image_size": 128,
    "batch": 256,
    "steps": 5000,
    "mesh.fsdp": 4,
}


def small(**overlay) -> RunConfig:
    return resolve(SMALL, overlay)


def agree(compiled: int, estimated: int) -> bool:
    return 1 / FACTOR < compiled / estimated < FACTOR


SLOW = pytest.mark.slow


@pytest.mark.parametrize("remat", ["full", *(pytest.param(name, marks=SLOW) for name in layout.POLICIES[:-1])])
def test_the_estimate_agrees_with_the_compiler_on_eight_devices(remat):
    config = small(**{"mesh.remat": remat})
    assert agree(compiler.step_memory(config, jax.devices()), layout.estimate(config, 2, 4, number_bytes=4).total)


def test_no_device_holds_the_tokens_of_a_batch_that_is_not_its_own():
    mesh = layout.mesh_shape(MeshConfig(fsdp=4), 256, 8)
    config = small(**{"mesh.remat": "full"})
    whole = layout.estimate(config, 1, 1, number_bytes=4)
    own = layout.estimate(config, *mesh, number_bytes=4)
    assert compiler.step_memory(config, jax.devices()) < own.total + whole.kept


def test_policies_keep_less_and_less():
    totals = [layout.estimate(small(**{"mesh.remat": remat}), 2, 4).total for remat in layout.POLICIES]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == 4


def test_sharding_divides_the_state_and_the_batch():
    one, many = layout.estimate(small(), 1, 1), layout.estimate(small(), 2, 4)
    assert one.state == pytest.approx(4 * many.state, abs=4)
    assert one.batch == pytest.approx(8 * many.batch, abs=8)
    assert layout.estimate(small(), 8, 1).state == one.state


# --- the child process ------------------------------------------------------------------------------------------------


def child(monkeypatch, capsys, config: RunConfig, needs: dict[str, str | int]) -> tuple[list[dict], list[RunConfig]]:
    """What main() prints, and what it compiled, if each policy needs so many bytes or fails with that message."""
    asked = []

    def step_memory(config, devices):
        asked.append(config)
        if isinstance(needs[config.mesh.remat], str):
            raise jax.errors.JaxRuntimeError(needs[config.mesh.remat])
        return needs[config.mesh.remat]

    policies = layout.POLICIES[layout.POLICIES.index(config.mesh.remat) :]
    request = {"topology": "v5p:4x4x4", "chips": 64, "config": json.loads(json.dumps(dataclasses.asdict(config)))}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request | {"policies": policies})))
    monkeypatch.setattr(topologies, "get_topology_desc", lambda *_, **__: SimpleNamespace(devices=jax.devices()))
    monkeypatch.setattr(compiler, "step_memory", step_memory)
    compiler.main()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()], asked


def test_policies_are_tried_in_order_until_one_fits(monkeypatch, capsys):
    needs = {
        "none": "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 120.5G of 95.74G hbm.",
        "elementwise": "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (97.0G) exceeds (95.74G).",
        "dots": 50_000_000_000,
    }
    rows, asked = child(monkeypatch, capsys, small(), needs)
    assert [(row["remat"], row["fits"]) for row in rows] == [("none", False), ("elementwise", False), ("dots", True)]
    assert [row["bytes"] for row in rows] == [round(120.5 * 2**30), 97 * 2**30, 50_000_000_000]
    assert {config.mesh.dtype for config in asked} == {"bfloat16"}  # auto, on an accelerator


def test_a_policy_is_never_relaxed_and_another_failure_is_no_lack_of_memory(monkeypatch, capsys):
    rows, _ = child(monkeypatch, capsys, small(**{"mesh.remat": "full"}), {"full": "RESOURCE_EXHAUSTED: what?"})
    assert [(row["remat"], row["bytes"], row["fits"]) for row in rows] == [("full", None, False)]
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        child(monkeypatch, capsys, small(), {"none": "INTERNAL: bug"})


def test_a_compiler_that_breaks_down_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RunFailed, match="the compiler for v5p-128 broke down: exit status 1"):
        list(compiler.compile_policies(small(), hardware.find("v5p-128")))


# --- what becomes of it -----------------------------------------------------------------------------------------------


def cells(*names: str, **overlay) -> list[spec.Cell]:
    return [spec.Cell(name, small(seed=number, **overlay)) for number, name in enumerate(names)]


def test_equal_models_are_compiled_once(monkeypatch):
    calls, lines = [], []
    result = Compiled("none", 10**10, True, 1.0)
    monkeypatch.setattr(compiler, "compilable", lambda hardware: hardware)
    monkeypatch.setattr(compiler, "compile_policies", lambda config, _: calls.append(config) or iter([result]))
    found = compiler.compile_cells(
        [*cells("a", "b"), *cells("c", **{"model.depth": 5})], hardware.find("v5p-128"), lines.append
    )
    assert found == {"a": [result], "b": [result], "c": [result]}
    assert [config.model.depth for config in calls] == [4, 5]
    assert lines == [
        f"v5p-128: {name} ({number} of 3), mesh.remat none: 10.0 GB a chip, fits; 1 s"
        for name, number in (("a", 1), ("c", 3))
    ]


TOO_LARGE = Compiled("none", 120 * 10**9, False, 60.0)
REFUSED = {
    "fits": ([Compiled("none", 10**10, True, 1.0)], None),
    "next fits": (
        [TOO_LARGE, Compiled("elementwise", 60 * 10**9, True, 1.0)],
        "mesh.remat none needs 120 GB a chip, more than the 95 GB of v5p-8; elementwise fits (60 GB)",
    ),
    "unsaid": ([TOO_LARGE._replace(bytes=None)], "mesh.remat none needs more than the 95 GB of v5p-8, and nothing"),
    "nothing fits": ([TOO_LARGE, TOO_LARGE._replace(remat="full")], "nothing that keeps less fits; a larger mesh.fsdp"),
}


@pytest.mark.parametrize("compiled, words", REFUSED.values(), ids=REFUSED)
def test_a_cell_that_does_not_fit_is_refused_with_what_would(compiled, words):
    result = plans.plan(cells("a"), plans.speed("v5p-8"), {"a": compiled})
    if words is None:
        assert result.refusals == []
    else:
        assert result.refusals[0].startswith("a: mesh.remat none needs")
        assert words in result.refusals[0]
    assert plan_table.table(result, "").row_count == 2


def test_without_the_compiler_the_estimate_warns():
    large = cells("a", **{"model.depth": 30, "batch": 4096, "steps": 10**5})
    result = plans.plan(large, plans.speed("v6e-4"))
    assert result.refusals == []
    assert "more than the 32 GB of v6e-4, with mesh.remat none; --compile tells for certain" in result.warnings[0]
    assert "--compile" not in plans.plan(large, plans.speed("h100x4")).warnings[0]


MESHES = {
    "not a side": (
        "v5p-128",
        {"mesh.fsdp": 8},
        "data 8 x fsdp 8 does not lie .* 4x4x4 chips; fsdp: 1, 4, 16, 64",
    ),
    "flat": ("v6e-256", {"mesh.fsdp": 8}, "16x16 chips; fsdp: 1, 16, 256"),
    "too many": ("h100x2", {"mesh.fsdp": 4}, "mesh: data -1 x fsdp 4 does not fit 2 devices"),
    "batch": ("h100x8", {"batch": 100}, "batch: 100 is not divisible by the 8 devices"),
}


@pytest.mark.parametrize("name, fields, words", MESHES.values(), ids=MESHES)
def test_a_mesh_that_the_hardware_cannot_have_is_refused(name, fields, words):
    cell = spec.Cell("a", small(**fields))
    with pytest.raises(UserError, match=words):
        plans.mesh_on(cell.config, hardware.find(name))
    result = plans.plan([cell], plans.speed(name))
    assert len(result.refusals) == 1
    assert result.cells[0].mesh is None


def test_a_v5e_may_cut_its_sides():
    assert plans.mesh_on(small(**{"mesh.fsdp": 8}), hardware.find("v5e-256")) == (32, 8)


@pytest.mark.parametrize("name", [None, "h100x8"])
def test_only_tpus_are_compiled_for(name):
    with pytest.raises(UserError, match="--compile: is for TPU slices"):
        compiler.compilable(hardware.find(name) if name else None)


def test_without_libtpu_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"libtpu.* pip install 'jax\[tpu\]'"):
        compiler.compilable(hardware.find("v5p-128"))


# --- the real compiler ------------------------------------------------------------------------------------------------

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install -e '.[tpu-plan]'"
)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("name", ["v5p-8", "v6e-4"])
def test_a_step_compiles_for_a_slice_that_is_not_here(name):
    config = small(**{"mesh.remat": "full", "batch": 1024})
    (result,) = compiler.compile_policies(config, hardware.find(name))
    assert result.fits
    assert agree(result.bytes, layout.estimate(config, 1, 4).total)


@pytest.mark.slow
@needs_libtpu
def test_what_the_slice_cannot_hold_is_refused():
    config = small(**{"mesh.remat": "dots", "batch": 2**17})
    results = list(compiler.compile_policies(config, hardware.find("v6e-4")))
    assert [(result.remat, result.fits) for result in results] == [("dots", False), ("full", False)]
