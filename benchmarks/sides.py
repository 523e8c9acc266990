"""The two sides of train_step.py: each sets itself up in the process that it is called in, and times its steps."""

import importlib.metadata
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sd3_jax import platform
from sd3_jax.config import RunConfig
from sd3_jax.errors import RunFailed, UserError

SPREAD = 0.02  # standard deviation of what is added to our initial parameters
OUT_OF_MEMORY = ("out of memory", "RESOURCE_EXHAUSTED", "ALLOC_FAILED")  # torch, XLA; cuBLAS and cuDNN in either


@dataclass(frozen=True)
class Task:
    """What either side is to measure."""

    config: RunConfig
    steps: int  # that are timed
    warmup: int  # that are not, after the first
    cpu: bool
    compiled: bool  # the peer's blocks


@dataclass(frozen=True)
class Measured:
    """What a side's process found."""

    device: str
    software: str
    dtype: str  # of matmuls
    parameters: int
    first_seconds: float  # tracing, compiling and the first step
    step_seconds: list[float]  # of each timed step
    peak_bytes: int  # on the device; on CPU, of the whole process
    loss: float  # after the last step


def step_seconds(step: Callable[[], Any], wait: Callable[[Any], Any], warmup: int, steps: int) -> list[float]:
    """Seconds between the ends of consecutive steps, with one more step always in flight.

    ``step`` dispatches and returns something for ``wait`` to wait for.
    """
    ends = []
    pending = step()
    for _ in range(max(warmup, 1) + steps):
        pending, finished = step(), pending
        wait(finished)
        ends.append(time.perf_counter())
    wait(pending)
    return np.diff(ends)[-steps:].tolist()


def numbers(config: RunConfig) -> dict[str, np.ndarray]:
    """A batch of random numbers: x0 and eps [b h w c], t [b], tokens [b m text_dim], pooled [b pooled_dim], float32."""
    model, b = config.model, config.batch
    random = np.random.default_rng(config.seed)
    latent = (b, model.latent_size, model.latent_size, model.latent_channels)
    text = (b, model.text_tokens, model.text_dim)
    shapes = {"x0": latent, "eps": latent, "tokens": text, "pooled": (b, model.pooled_dim)}
    made = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return made | {"t": random.random(b, np.float32)}


def process_bytes() -> int:
    """The most memory that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def ours(task: Task) -> Measured:
    """Our side, as ``sd3_jax.train`` sets it up, on one device."""
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # the old name; XLA refuses both
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.95")  # not three quarters: torch too may take what is there
    platform.prepare()
    import jax
    import jax.numpy as jnp

    from sd3_jax.data.scenes import Batch
    from sd3_jax.training import sharding
    from sd3_jax.training.step import Examples, TrainState, compute_dtype, make_init, make_step

    device = jax.devices()[0]
    if not task.cpu and device.platform == "cpu":
        raise UserError("JAX finds no accelerator here: install jax[cuda13], or measure a small shape with --cpu")
    config = task.config
    total = 10**9  # a length that no schedule ends within
    mesh = sharding.make_mesh(config.mesh, config.batch, among=[device])
    init = make_init(config, total)

    def start(seed: Any) -> TrainState:
        """No parameter at zero, as adaLN-zero would have it: matmuls of zeros take less power, and so less time."""
        state = init(seed)
        leaves, tree = jax.tree.flatten(state.params)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        pairs = zip(leaves, keys, strict=True)
        params = jax.tree.unflatten(tree, [p + SPREAD * jax.random.normal(key, p.shape) for p, key in pairs])
        return state._replace(params=params, ema=jax.tree.map(jnp.copy, params))

    shardings = sharding.state_shardings(mesh, jax.eval_shape(init, jnp.uint32(0)))
    state = jax.jit(start, out_shardings=shardings)(jnp.uint32(config.seed))
    batch = jax.device_put(numbers(config), sharding.batch_sharding(mesh))
    examples = Examples(Batch(batch["x0"], batch["tokens"], batch["pooled"]), batch["eps"], batch["t"])
    jax.block_until_ready((state, examples))
    train_step = jax.jit(
        make_step(config, total),
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )

    def step() -> Any:
        nonlocal state
        state, metrics = train_step(state, examples)
        return metrics["loss"]

    began = time.perf_counter()
    step().block_until_ready()
    first = time.perf_counter() - began
    seconds = step_seconds(step, jax.block_until_ready, task.warmup, task.steps)
    memory = device.memory_stats() or {}
    return Measured(
        device.device_kind,
        f"jax {jax.__version__}",
        jnp.dtype(compute_dtype(config.mesh)).name,
        sum(p.size for p in jax.tree.leaves(state.params)),
        first,
        seconds,
        process_bytes() if device.platform == "cpu" else memory.get("peak_bytes_in_use", 0),
        float(step()),
    )


def peer(task: Task) -> Measured:
    """Diffusers' side: its model of the same size, in its own layout (channels first, times 1000)."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # sd3_jax.convert imports JAX, which must take nothing of this GPU
    import torch
    from diffusers import SD3Transformer2DModel

    from sd3_jax.convert import describe

    if not task.cpu and not torch.cuda.is_available():
        raise UserError("torch finds no GPU here: install its build for CUDA, or measure a small shape with --cpu")
    device = torch.device("cpu" if task.cpu else "cuda")
    config = task.config
    torch.manual_seed(config.seed)
    arguments = {key: value for key, value in describe(config.model).items() if not key.startswith("_")}
    with device:
        net = SD3Transformer2DModel(**arguments).train()
    if config.mesh.remat == "full":  # all that diffusers has; the other policies are ours alone
        net.enable_gradient_checkpointing()
    if task.compiled:
        torch._dynamo.config.fail_on_recompile_limit_hit = True  # never a block uncompiled in silence
        for block in net.transformer_blocks:
            block.compile()
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.optimizer.learning_rate, fused=True)
    batch = {name: torch.from_numpy(array).to(device) for name, array in numbers(config).items()}
    x0, eps = (batch[name].permute(0, 3, 1, 2).contiguous() for name in ("x0", "eps"))
    t, tokens, pooled = batch["t"], batch["tokens"], batch["pooled"]

    def update() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        at = t[:, None, None, None]
        with torch.autocast(device.type, torch.bfloat16, enabled=not task.cpu):
            velocity = net((1 - at) * x0 + at * eps, tokens, pooled, 1000 * t, return_dict=False)[0]
        loss = torch.mean(torch.square(velocity.float() - (eps - x0)))
        loss.backward()
        optimizer.step()
        return loss.detach()

    def step() -> Any:
        update()
        if task.cpu:
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def wait(event: Any) -> None:
        if event is not None:
            event.synchronize()

    began = time.perf_counter()
    wait(step())
    first = time.perf_counter() - began
    seconds = step_seconds(step, wait, task.warmup, task.steps)
    return Measured(
        "cpu" if task.cpu else torch.cuda.get_device_name(),
        f"torch {torch.__version__}, diffusers {importlib.metadata.version('diffusers')}",
        "float32" if task.cpu else "bfloat16",
        sum(p.numel() for p in net.parameters()),
        first,
        seconds,
        process_bytes() if task.cpu else torch.cuda.max_memory_allocated(),
        float(update()),
    )


SIDES: dict[str, Callable[[Task], Measured]] = {"ours": ours, "peer": peer}


def measure(side: str, task: Task) -> Measured:
    """One side, in this process. Raises UserError for what is not installed, RunFailed where memory runs out."""
    try:
        return SIDES[side](task)
    except RuntimeError as error:
        if any(words in str(error) for words in OUT_OF_MEMORY):
            raise RunFailed(
                f"{side}: out of memory at batch {task.config.batch}: less --batch, or --remat full"
            ) from None
        raise
