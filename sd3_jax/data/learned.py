"""Autoencoders that were trained here: trained on pictures, saved as safetensors, and used as any frozen one.

::

    DIR/config.json          channels, downsample, width, blocks, and how it was trained
    DIR/model.safetensors    its parameters
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.errors
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
import safetensors.numpy
from jaxtyping import Array, Float, UInt8

from sd3_jax import records
from sd3_jax.data.examples import Autoencoder
from sd3_jax.data.frozen import ImageCodec
from sd3_jax.errors import RunFailed, UserError
from sd3_jax.models.codec import Codec, loss

KIND = "sd3_jax"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
Report = Callable[[int, float], None]  # steps that are done, and the loss of the last


@dataclass(frozen=True)
class Training:
    """How an autoencoder is made: its size, and how long it learns."""

    channels: int = 16
    downsample: int = 8
    width: int = 128
    blocks: int = 2
    steps: int = 2000
    batch: int = 64
    learning_rate: float = 1e-3  # falls as a cosine to zero
    noise: float = 0.05  # of the latents' deviation, while training
    seed: int = 0

    @property
    def model(self) -> Codec:
        """The network."""
        return Codec(self.channels, self.downsample, self.width, self.blocks)


def is_here(folder: Path) -> bool:
    """Whether a folder holds one of ours."""
    try:
        return json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("kind") == KIND
    except (OSError, ValueError, AttributeError):
        return False


def fit(images: UInt8[np.ndarray, "n H W 3"], training: Training, report: Report = lambda step, loss: None) -> Any:
    """Parameters of an autoencoder of these pictures, float32.

    Raises UserError for sides that do not divide, and RunFailed for a loss that is not finite.
    """
    n, height, width, _ = images.shape
    if height % training.downsample or width % training.downsample:
        raise UserError(f"pictures of {height}x{width}: a side is no multiple of downsample {training.downsample}")
    model = training.model
    key = jax.random.key(training.seed)
    params = jax.jit(model.init)(key, jnp.zeros((1, height, width, 3)))["params"]
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(training.learning_rate, training.steps))
    )

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, batch: UInt8[np.ndarray, "b H W 3"], key: Any) -> Any:
        value, gradient = jax.value_and_grad(partial(loss, model))(params, batch / 127.5 - 1, key, training.noise)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    order = np.random.RandomState(training.seed)
    for number in range(training.steps):
        chosen = order.randint(0, n, training.batch)
        params, state, value = step(params, state, images[chosen], jax.random.fold_in(key, number))
        if number % 20 == 19 or number == training.steps - 1:
            if not np.isfinite(value):
                raise RunFailed(f"the autoencoder's loss is not finite after {number + 1} steps, and it is not saved")
            report(number + 1, float(value))
    return params


def save(folder: Path, training: Training, params: Any, origin: str) -> None:
    """Write an autoencoder; its weights first, so that a folder with a configuration is whole."""
    flat = {name: np.asarray(leaf) for name, leaf in flax.traverse_util.flatten_dict(params, sep=".").items()}
    folder.mkdir(parents=True, exist_ok=True)
    records.write_atomic(folder / WEIGHTS, safetensors.numpy.save(flat))
    records.write_atomic(
        folder / CONFIG, json.dumps({"kind": KIND, **asdict(training), "origin": origin}, indent=1) + "\n"
    )


def load(folder: Path) -> ImageCodec:
    """An autoencoder as it was saved. Raises UserError for a folder that holds none, or a broken one."""
    try:
        tree = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        training = Training(**{key: value for key, value in tree.items() if key not in ("kind", "origin")})
        content = (folder / WEIGHTS).read_bytes()
        flat = safetensors.numpy.load(content)
    except (OSError, ValueError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder}: is not an autoencoder of sd3-jax autoencoder ({error})") from None
    model = training.model
    params = flax.traverse_util.unflatten_dict(flat, sep=".")
    try:
        size = jnp.zeros((1, training.downsample, training.downsample, 3))
        wanted = jax.eval_shape(model.init, jax.random.key(0), size)["params"]
    except (TypeError, ValueError, AttributeError, ArithmeticError, flax.errors.FlaxError) as error:
        why = " ".join(str(error).split())[:80]
        raise UserError(f"{folder}: its {CONFIG} describes no autoencoder ({why})") from None
    shapes = jax.tree.map(lambda leaf: leaf.shape, (wanted, params))
    if shapes[0] != shapes[1]:
        raise UserError(f"{folder}: its weights are not those of its {CONFIG}")

    # One at a time: what a picture becomes then depends on no other, and on no batch.
    @jax.jit
    def encode(images: UInt8[np.ndarray, "b H W 3"]) -> Float[Array, "b h w c"]:
        one = lambda image: model.apply({"params": params}, image[None] / 127.5 - 1, method="encode")[0]  # noqa: E731
        return jax.lax.map(one, images)

    @jax.jit
    def decode(latents: Float[np.ndarray, "b h w c"]) -> UInt8[Array, "b H W 3"]:
        one = lambda z: model.apply({"params": params}, z[None], method="decode")[0]  # noqa: E731
        return jnp.round((jnp.clip(jax.lax.map(one, latents), -1, 1) + 1) * 127.5).astype(jnp.uint8)

    described = Autoencoder(
        KIND, str(folder), hashlib.sha256(content).hexdigest()[:16], training.channels, training.downsample,
        shift=0.0, scale=0.0, moments=False,
    )  # fmt: skip
    return ImageCodec(
        described, lambda images: np.asarray(encode(images)), lambda z: np.asarray(decode(jnp.asarray(z)))
    )
