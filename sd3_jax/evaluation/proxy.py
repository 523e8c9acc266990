"""``proxy-preference``: a stand-in for human preference, learnt from pairs of pictures whose order is known.

A small net r(image, caption) is fitted to P(first is preferred) = sigmoid(r_first - r_second) (Bradley and Terry,
1952) on pairs of procedural scenes for one caption (:mod:`sd3_jax.evaluation.pairs`). It is no human and says so in its
name; its report says what it can tell apart.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, Key
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sd3_jax import records
from sd3_jax.config import DataConfig, ModelConfig, scene_fields
from sd3_jax.data import autoencoder, captions, composition, rendering, scenes
from sd3_jax.data.captions import NAMES
from sd3_jax.errors import UserError
from sd3_jax.evaluation import pairs as known
from sd3_jax.evaluation.pairs import KINDS, Pairs, pairs, rounded

# --- the net and its training ---------------------------------------------------------------------------------

WIDTH, HIDDEN = 32, 128
STEPS, BATCH, HELD_OUT = 2000, 128, 64  # held out: batches
LEARNING_RATE, WARMUP, WEIGHT_DECAY, CLIP_NORM = 4e-3, 50, 1e-3, 1.0
_TRAINING, _TESTING = range(2)  # folds of pairs


class RewardNet(nn.Module):
    """r(image, caption): what each place shows, asked by the caption, and where on the whole it is shown."""

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"], words: Int[Array, "b 6"]) -> Float[Array, " b"]:
        """Of pictures in [-1, 1] and captions as indices in VOCABULARY (but of signs), with an embedding of its own.

        Places are pooled into the mean of each feature, its square, and its first moments along x and y: a count
        is right where (mean - expected)^2 is least, and a relation is a difference of moments. (Without squares the
        count was learnt in some runs only.)
        """
        table = self.param("words", nn.initializers.normal(0.3), (words.shape[1], len(NAMES), HIDDEN // 2))
        text = nn.relu(nn.Dense(HIDDEN)(table[jnp.arange(words.shape[1]), words].sum(axis=1)))
        x = nn.relu(nn.Conv(WIDTH, (4, 4), (4, 4))(images))
        while x.shape[1] > 4:
            x = nn.relu(nn.Conv(2 * WIDTH, (3, 3), (2, 2))(x))
        scale, shift = jnp.split(nn.Dense(4 * WIDTH)(text)[:, None, None], 2, axis=-1)
        x = nn.relu(nn.Dense(2 * WIDTH)(x) * (1 + scale) + shift)
        x = nn.relu(nn.Dense(2 * WIDTH)(x))
        at = (2 * jnp.arange(x.shape[1]) + 1) / x.shape[1] - 1
        mean, *moments = (each.mean(axis=(1, 2)) for each in (x, x * at[:, None], x * at[:, None, None]))
        x = jnp.concatenate([mean, *moments, jnp.square(3 * mean)], axis=1)
        scale, shift = jnp.split(nn.Dense(2 * HIDDEN)(text), 2, axis=-1)
        x = nn.relu(nn.Dense(HIDDEN)(x) * (1 + scale) + shift)
        return nn.Dense(1)(nn.relu(nn.Dense(HIDDEN)(x)))[:, 0]


def train_proxy(
    data: DataConfig, model: ModelConfig, seed: int = 0, steps: int = STEPS, batch: int = BATCH
) -> tuple[Any, dict[str, Any]]:
    """The net's parameters, and its accuracy on pairs that it was not trained on, as plain numbers.

    The loss is the negative log-likelihood, softplus(r_worse - r_better). The report has ``accuracy``, ``se`` and
    ``n`` over all kinds of pairs, and under ``kinds`` for each.
    """
    rate = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, min(WARMUP, steps // 2), steps)
    optim = optax.chain(optax.clip_by_global_norm(CLIP_NORM), optax.adamw(rate, weight_decay=WEIGHT_DECAY))

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(params: Any, state: Any, batch: Pairs) -> tuple[Any, Any, Float[Array, ""]]:
        loss = lambda params: jnp.mean(jax.nn.softplus(-_margins(params, batch)))  # noqa: E731
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optim.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    params = _init(jnp.uint32(seed), data.image_size)
    state = optim.init(params)
    console = Console(stderr=True)
    for step in track(range(steps), "proxy-preference", console=console, disable=not sys.stderr.isatty()):
        examples = pairs(fold_keys(seed, _TRAINING, step, batch), data, model.latent_channels)
        params, state, value = update(params, state, examples)
        jax.block_until_ready(value)  # batches would pile up
    right, kind = [], []
    for chunk in range(HELD_OUT):
        examples = pairs(fold_keys(seed, _TESTING, chunk, batch), data, model.latent_channels)
        right.append((1 + np.sign(_jitted_margins(params, examples))) / 2)
        kind.append(np.asarray(examples.kind))
    return jax.device_get(params), _report(np.concatenate(right), np.concatenate(kind))


@partial(jax.jit, static_argnums=3)
def fold_keys(seed: int, fold: int, step: int, batch: int) -> Key[Array, " b"]:
    """The keys of a batch of pairs. Training has the even numbers and the held-out test the odd: never the same."""
    return jax.vmap(lambda i: scenes.example_key(seed, scenes.PREFERENCE, 2 * step + fold, i))(jnp.arange(batch))


@partial(jax.jit, static_argnums=1)
def _init(seed: int, size: int) -> Any:
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), scenes.PREFERENCE)
    return RewardNet().init(key, jnp.zeros((1, size, size, 3)), jnp.zeros((1, captions.SLOTS), jnp.int32))["params"]


def _margins(params: Any, examples: Pairs) -> Float[Array, " b"]:
    """r_better - r_worse of each pair."""
    images = jnp.concatenate([examples.better, examples.worse])
    better, worse = jnp.split(_apply(params, images, jnp.tile(examples.words, (2, 1))), 2)
    return better - worse


def _apply(params: Any, images: Float[Array, "b H W 3"], words: Int[Array, "b 6"]) -> Float[Array, " b"]:
    return jnp.asarray(RewardNet().apply({"params": params}, images, words))


_jitted_margins = jax.jit(_margins)


def _report(right: Float[np.ndarray, " n"], kind: Int[np.ndarray, " n"]) -> dict[str, Any]:
    def share(right: np.ndarray) -> dict[str, Any]:
        mean, n = (float(right.mean()) if len(right) else float("nan")), len(right)
        return {"accuracy": mean, "se": float(np.sqrt(mean * (1 - mean) / max(n, 1))), "n": n}

    return {**share(right), "kinds": {name: share(right[kind == index]) for index, name in enumerate(KINDS)}}


# --- what is kept, and what is asked --------------------------------------------------------------------------


def load_or_train(
    path: Path, data: DataConfig, model: ModelConfig, seed: int = 0, steps: int = STEPS, batch: int = BATCH
) -> tuple[Any, dict[str, Any]]:
    """:func:`train_proxy`, kept as a safetensors file: trained anew if it is of another setting, or unreadable.

    The file is replaced whole, so two processes may do this at once. Raises UserError if it cannot be written.
    """
    mark = fingerprint(data, model, seed, steps, batch)
    kept = _load(path, mark)
    if kept is not None:
        return kept
    params, report = train_proxy(data, model, seed, steps, batch)
    note = json.dumps({"fingerprint": mark, "report": report})
    try:
        records.write_atomic(path, save(flatten_dict(params, sep="/"), metadata={"proxy": note}))
    except OSError as error:
        raise UserError(f"{path}: the proxy reward cannot be kept here ({error.strerror})") from None
    return params, report


def fingerprint(data: DataConfig, model: ModelConfig, seed: int, steps: int, batch: int) -> str:
    """Of all that the net depends on: the setting, the training, and the code that makes pairs and net."""
    sources = [Path(str(module.__file__)) for module in (autoencoder, captions, composition, rendering, scenes, known)]
    code = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (*sources, Path(__file__))]
    facts = [scene_fields(data), model.latent_channels, seed, steps, batch, code]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _load(path: Path, mark: str) -> tuple[Any, dict[str, Any]] | None:
    try:
        with safe_open(path, "numpy") as file:
            note = json.loads(file.metadata()["proxy"])
            if note["fingerprint"] != mark:
                return None
            return unflatten_dict({name: file.get_tensor(name) for name in file.keys()}, sep="/"), note["report"]  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def make_reward(params: Any, data: DataConfig, chunk: int = 256) -> Callable[[Any, Any], Float[np.ndarray, " b"]]:
    """``reward(images, words) -> r``: of pictures of 8 bits, or in [-1, 1], and the six words of their captions.

    ``chunk`` pictures at a time in one compiled program. Only the difference between two pictures for one caption
    means anything: pairs never say how the rewards of two captions compare. Raises UserError for other shapes.
    """
    square = (data.image_size, data.image_size, 3)
    params = jax.tree.map(jnp.asarray, params)

    @jax.jit
    def rate(images: Array, words: Int[Array, "b 6"]) -> Float[Array, " b"]:
        x = images / 127.5 - 1 if images.dtype == jnp.uint8 else rounded(images)
        return _apply(params, x, words)

    def reward(images: Any, words: Any) -> Float[np.ndarray, " b"]:
        images, words = np.asarray(images), np.asarray(words)
        if images.shape[1:] != square or words.shape != (len(images), captions.SLOTS):
            expected = f"(b, {', '.join(map(str, square))}) and (b, {captions.SLOTS})"
            raise UserError(f"pictures {images.shape} and captions {words.shape}: expected {expected}")
        padded = np.minimum(np.arange(-(-len(images) // chunk) * chunk), len(images) - 1).reshape(-1, chunk)
        rewards = [np.asarray(rate(images[rows], words[rows])) for rows in padded]
        return np.concatenate([np.zeros(0, np.float32), *rewards])[: len(images)]

    return reward
