"""Starting from weights: the parameters of another run, or released ones, as those of a new run's first step.

The paper's high-resolution stage (section 5.3.2): a model of 256 px goes on at a higher resolution, with positions
interpolated, queries and keys normalised although it was trained without, and the optimizer fresh. So between source
and target may differ what is no parameter (resolution and grid of positions, text tokens, mesh, data, flow), a stored
table of positions, and gains of QK-norm that the source lacks: these start at one. Everything else must fit.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from sd3_jax import bucket, convert, records
from sd3_jax import config as configs
from sd3_jax.config import ModelConfig, RunConfig
from sd3_jax.errors import UserError
from sd3_jax.evaluation import generate
from sd3_jax.models import convert as names
from sd3_jax.models import ends, tensors
from sd3_jax.training import checkpoint, sharding
from sd3_jax.training.step import init_params

TABLE = "position_table"
GAINS = ("norm_q.gain", "norm_k.gain")  # how the names of QK-norm's parameters end
NAMED = 4  # differences of a kind that an error names; a deep model of another width has hundreds
SAME = ("architecture", "weight_sets", "patch", "dual_attention")  # may differ without a trace in names and shapes


class Source(NamedTuple):
    """Weights that a run can start from; nothing but their description has been read."""

    model: ModelConfig
    origin: dict[str, Any]  # what the records say of it
    read: Callable[[Mesh], Any]  # the parameters, sharded where they come from a run


def find(config: RunConfig) -> Source:
    """The source that ``init_from`` names, which fits ``config.model``.

    Raises UserError, in one line, for what is missing or broken, and for another model: naming the first few
    parameters that are missing, extra, or of another shape, and counting the others.
    """
    path = Path(config.init_from)
    if not path.exists():
        raise UserError(f"init_from: {path}: no such file or directory, seen from {Path.cwd().name}/")
    try:
        source = _of_run(path, config) if convert.is_run(path) else _of_file(path, config)
        _check(source.model, config.model)
    except UserError as error:
        raise UserError(f"init_from: {'' if str(path) in str(error) else f'{path}: '}{error}") from None
    return source


def _of_run(path: Path, config: RunConfig) -> Source:
    own = records.load_config(path)
    saved = checkpoint.saved_steps(bucket.checkpoints(path, own))
    if not saved:
        raise UserError(f"{path}: has no checkpoint to start from")
    step = config.init_step or saved[-1]
    if step not in saved:
        raise UserError(f"{path}: has no checkpoint of init_step {step}; there are {', '.join(map(str, saved))}")
    said = {"init_step": step, "init_weights": config.init_weights, "init_identity": configs.fingerprint(own)}
    return Source(
        own.model,
        {"init_from": config.init_from, **said},
        lambda mesh: generate.load_weights(path, own, mesh, step, config.init_weights),
    )


def _of_file(path: Path, config: RunConfig) -> Source:
    if config.init_step:
        raise UserError(f"{path}: init_step {config.init_step}: only runs have steps")
    found, style, own = convert.open_weights(path, {})
    read = lambda mesh: names.from_tensors(lambda name: tensors.read(found[name]), own.model, style)  # noqa: E731
    return Source(own.model, {"init_from": config.init_from}, read)


def _check(source: ModelConfig, target: ModelConfig) -> None:
    """Raises UserError that says in what the models differ and may not: of each kind the first few, and how many."""
    have, want = ({name: leaf.shape for name, leaf in _named(_shapes(model)).items()} for model in (source, target))
    have.pop(TABLE, None)
    want.pop(TABLE, None)
    new = GAINS if target.qk_norm and not source.qk_norm else ()
    missing = [f"{name} {list(shape)}" for name, shape in want.items() if name not in have and not name.endswith(new)]
    extra = [f"{name} {list(shape)}" for name, shape in have.items() if name not in want]
    wrong = [
        f"{name} {list(have[name])} instead of {list(shape)}"
        for name, shape in want.items()
        if have.get(name, shape) != shape
    ]
    other = [
        f"model.{key} {a} instead of {b}" for key in SAME if (a := getattr(source, key)) != (b := getattr(target, key))
    ]
    groups = (("of another kind", other), ("missing", missing), ("extra", extra), ("of another shape", wrong))
    said = [f"{what}: {_first(which)}" for what, which in groups if which]
    if said:
        raise UserError(
            f"not the weights of a model of depth {target.depth} and width {target.width}; {'; '.join(said)}"
        )


def _first(differences: list[str]) -> str:
    rest = len(differences) - NAMED
    return ", ".join(differences[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def parameters(source: Source, model: ModelConfig, mesh: Mesh) -> Any:
    """The source's parameters as those of ``model``, float32, each leaf put on the mesh as training holds it.

    Raises UserError for a checkpoint that cannot be read.
    """
    shapes = _shapes(model)
    found = _named(source.read(mesh))
    stored = found.pop(TABLE, None)

    def leaf(path: Any, shape: jax.ShapeDtypeStruct, at: Any) -> Array:
        name = _name(path)
        if name == TABLE:
            return jax.device_put(_table(stored, source.model, model), at)
        if name in found:
            return jax.device_put(found.pop(name), at)
        return jax.jit(lambda: jnp.ones(shape.shape, shape.dtype), out_shardings=at)()  # a gain of QK-norm

    return jax.tree_util.tree_map_with_path(leaf, shapes, sharding.state_shardings(mesh, shapes))


def _table(stored: Any, source: ModelConfig, target: ModelConfig) -> Float[Array, "m m e"]:
    """A table that only repeats the source's formula is left for the target's; another is released, and kept."""
    computed = ends.grid(target, target.largest_side, target.largest_side)
    if stored is None or stored.shape != computed.shape:
        return computed
    repeats = np.array_equal(stored, ends.grid(source, source.largest_side, source.largest_side))
    return computed if repeats else stored


def _shapes(model: ModelConfig) -> Any:
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def _named(params: Any) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _name(path: Any) -> str:
    return ".".join(key.key for key in path)
