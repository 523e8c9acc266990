"""The train step compiled for a TPU slice that is not there: what XLA itself says of a chip's memory.

The package ``libtpu`` holds the compiler and the shape of every slice, and needs no TPU. It disturbs whatever else
a process does with JAX, so each compilation is a process of its own (:func:`main`), which allocates no array.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from sd3_jax import config as configs
from sd3_jax import overlays
from sd3_jax.config import EvalConfig, RunConfig
from sd3_jax.errors import RunFailed, UserError
from sd3_jax.hardware import Hardware
from sd3_jax.layout import POLICIES
from sd3_jax.sweep.spec import Cell

_STEPS = 10**9  # a length that no schedule ends within; memory does not depend on it
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # else it asks the cloud which machine this is
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
}
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_USED = (
    re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm"),
    re.compile(r"HLO temporaries \(([\d.]+)([KMGT]?)\)"),  # those alone exceed it
)


class Compiled(NamedTuple):
    """One compilation of a step for a slice."""

    remat: str  # the policy, mesh.remat
    bytes: int | None  # of one chip; None where the compiler gave up without saying
    fits: bool
    seconds: float  # of wall clock, with tracing


def compilable(hardware: Hardware | None) -> Hardware:
    """The hardware, if a step can be compiled for it here. Raises UserError if not."""
    if hardware is None or not hardware.topology:
        given = f"not {hardware.name}, of which there is an estimate only" if hardware else "named with --hardware"
        raise UserError(f"--compile: is for TPU slices such as v5p-128, {given}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "--compile: the package libtpu, which is XLA's compiler for TPUs, is not installed: "
            "pip install 'jax[tpu]', or -e '.[tpu-plan]' in a checkout"
        )
    return hardware


def compile_cells(
    cells: Sequence[Cell], hardware: Hardware, say: Callable[[str], None] = lambda _: None
) -> dict[str, list[Compiled]]:
    """For each cell its own ``mesh.remat`` and, until one fits, those that keep less. Equal models share theirs.

    ``say`` is told of every compilation. Raises UserError where nothing can be compiled for this hardware, and
    RunFailed where the compiler breaks down.
    """
    compilable(hardware)
    done: dict[RunConfig, list[Compiled]] = {}
    found = {}
    for number, cell in enumerate(cells, 1):
        key = _what_matters(cell.config)
        if key not in done:
            done[key] = []
            for result in compile_policies(cell.config, hardware):
                used = "more than fits" if result.bytes is None else f"{result.bytes / 1e9:.1f} GB a chip"
                verdict = "fits" if result.fits else "does not fit"
                which = f"{cell.name} ({number} of {len(cells)}), mesh.remat {result.remat}"
                say(f"{hardware.name}: {which}: {used}, {verdict}; {result.seconds:.0f} s")
                done[key].append(result)
        found[cell.name] = done[key]
    return found


def compile_policies(config: RunConfig, hardware: Hardware) -> Iterator[Compiled]:
    """Compile with the policy of the configuration, then with each that keeps less, until one fits; as they end.

    Raises UserError for what the configuration has wrong, RunFailed where the compiler breaks down.
    """
    request = {
        "topology": f"{hardware.generation}:{hardware.topology}",
        "chips": hardware.chips,
        "config": configs.to_dict(config),
        "policies": POLICIES[POLICIES.index(config.mesh.remat) :],
    }
    environ = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    command, pipe = [sys.executable, "-m", "sd3_jax.sweep.compile"], subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as noise,  # of which a pipe would fill up
        subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=noise, text=True, env=environ | _ENVIRONMENT
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it ended early: what it said comes below
                child.stdin.write(json.dumps(request))
                child.stdin.close()
            for line in child.stdout:
                if line.startswith('{"error"'):
                    raise UserError(json.loads(line)["error"])
                if line.startswith('{"remat"'):
                    yield Compiled(**json.loads(line))
            if child.wait():
                noise.seek(0)
                said = [line for line in noise if "Error" in line] or [f"exit status {child.returncode}"]
                raise RunFailed(f"--compile: the compiler for {hardware.name} broke down: {said[-1].strip()[:300]}")
        finally:
            child.kill()


def step_memory(config: RunConfig, devices: Sequence[Any]) -> int:
    """Compile the train step of :mod:`sd3_jax.train` for these devices; bytes on each, as XLA counts them.

    Arguments (the state, which is given up, and a batch), results, temporaries and code. No array is made. Raises
    UserError for a mesh that does not fit, and jax.errors.JaxRuntimeError if the compiler finds the memory too small.
    """
    import jax
    import jax.numpy as jnp

    from sd3_jax.training import sharding, step

    mesh = sharding.make_mesh(config.mesh, config.batch, among=devices)
    state = jax.eval_shape(step.make_init(config, _STEPS), jnp.uint32(0))
    examples = step.example_shapes(config)
    train_step = step.jit_step(config, _STEPS, mesh, sharding.state_shardings(mesh, state))
    used = train_step.lower(state, examples).compile().memory_analysis()
    arguments = used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
    return arguments + used.temp_size_in_bytes + used.generated_code_size_in_bytes


def main() -> None:
    """The child process: a request as JSON on standard input, a line of JSON for each policy on standard output."""
    import jax
    from jax.experimental import topologies

    request = json.load(sys.stdin)
    config = overlays.resolve(request["config"])
    options: dict[str, Any] = {}
    if request["chips"] == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if request["topology"].startswith("v4:"):
        options["chip_config_name"] = "megacore"  # both cores of a chip are one device, as in v5p
    topology = topologies.get_topology_desc(request["topology"], "tpu", **options)
    # The backend here is the CPU, where "auto" means float32; on the slice it will mean bfloat16.
    dtype = "bfloat16" if config.mesh.dtype == "auto" else config.mesh.dtype
    for remat in request["policies"]:
        mesh = dataclasses.replace(config.mesh, remat=remat, dtype=dtype)
        began = time.monotonic()
        fits = True
        used: int | None
        try:
            used = step_memory(dataclasses.replace(config, mesh=mesh), topology.devices)
        except UserError as error:
            print(json.dumps({"error": str(error)}), flush=True)
            return
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            used, fits = _used(str(error)), False
        result = Compiled(remat, used, fits, round(time.monotonic() - began, 1))
        print(json.dumps(result._asdict()), flush=True)
        if fits:
            return


def _used(message: str) -> int | None:
    """What the compiler says, at least, that a program needs which does not fit, in bytes.

    >>> _used("Ran out of memory in memory space hbm. Used 40.50G of 31.25G hbm.")
    43486543872
    """
    found = next(filter(None, (pattern.search(message) for pattern in _USED)), None)
    return round(float(found[1]) * 1024 ** _UNITS[found[2]]) if found else None


def _what_matters(config: RunConfig) -> RunConfig:
    """The configuration without what the memory does not depend on."""
    rate = dataclasses.replace(config.optimizer, learning_rate=0.0, warmup_steps=0, drops=(), cooldown=0.0)
    length: dict[str, Any] = {"steps": _STEPS, "images": None, "flops": None, "keep_steps": (), "seed": 0}
    return dataclasses.replace(config, evaluation=EvalConfig(), optimizer=rate, **length)


if __name__ == "__main__":
    main()
