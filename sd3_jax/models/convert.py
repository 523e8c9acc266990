"""Parameters both ways: our tree, stacked over the scanned blocks, and tensors by the names of the released code.

Two styles of names are known: those of diffusers' ``SD3Transformer2DModel``, which are read and written, and those of
the reference single files (``joint_blocks``), which are read. The differences that are no matter of names: torch holds
a matrix as [out, in]; diffusers has queries, keys and values apart, and (scale, shift) where the final modulation and
that of the last text stream are (shift, scale) here and in the reference.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sd3_jax.config import ModelConfig
from sd3_jax.errors import UserError
from sd3_jax.models.mmdit import MMDiT, stacks

Style = Literal["diffusers", "reference"]
Shapes = dict[str, tuple[int, ...]]
Read = Callable[[str], np.ndarray]  # one tensor by its name

# Our layer: the tensors that hold it, joined along their outputs.
_ENDS: dict[Style, dict[str, tuple[str, ...]]] = {
    "diffusers": {
        "position_table": ("pos_embed.pos_embed",),
        "patch_embed": ("pos_embed.proj",),
        "text_embed": ("context_embedder",),
        "time_embed.first": ("time_text_embed.timestep_embedder.linear_1",),
        "time_embed.second": ("time_text_embed.timestep_embedder.linear_2",),
        "pooled_embed.first": ("time_text_embed.text_embedder.linear_1",),
        "pooled_embed.second": ("time_text_embed.text_embedder.linear_2",),
        "final_modulation": ("norm_out.linear",),
        "final": ("proj_out",),
    },
    "reference": {
        "position_table": ("pos_embed",),
        "patch_embed": ("x_embedder.proj",),
        "text_embed": ("context_embedder",),
        "time_embed.first": ("t_embedder.mlp.0",),
        "time_embed.second": ("t_embedder.mlp.2",),
        "pooled_embed.first": ("y_embedder.mlp.0",),
        "pooled_embed.second": ("y_embedder.mlp.2",),
        "final_modulation": ("final_layer.adaLN_modulation.1",),
        "final": ("final_layer.linear",),
    },
}
_BLOCK: dict[Style, dict[str, tuple[str, ...]]] = {
    "diffusers": {
        "image.modulation": ("norm1.linear",),
        "image.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "image.norm_q": ("attn.norm_q",),
        "image.norm_k": ("attn.norm_k",),
        "image.out": ("attn.to_out.0",),
        "image.mlp.first": ("ff.net.0.proj",),
        "image.mlp.second": ("ff.net.2",),
        "image.dual_qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
        "image.dual_norm_q": ("attn2.norm_q",),
        "image.dual_norm_k": ("attn2.norm_k",),
        "image.dual_out": ("attn2.to_out.0",),
        "text.modulation": ("norm1_context.linear",),
        "text.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "text.norm_q": ("attn.norm_added_q",),
        "text.norm_k": ("attn.norm_added_k",),
        "text.out": ("attn.to_add_out",),
        "text.mlp.first": ("ff_context.net.0.proj",),
        "text.mlp.second": ("ff_context.net.2",),
    },
    "reference": {
        f"{ours}.{layer}": (f"{theirs}.{name}",)
        for ours, theirs in (("image", "x_block"), ("text", "context_block"))
        for layer, name in {
            "modulation": "adaLN_modulation.1",
            "qkv": "attn.qkv",
            "norm_q": "attn.ln_q",
            "norm_k": "attn.ln_k",
            "out": "attn.proj",
            "mlp.first": "mlp.fc1",
            "mlp.second": "mlp.fc2",
            "dual_qkv": "attn2.qkv",
            "dual_norm_q": "attn2.ln_q",
            "dual_norm_k": "attn2.ln_k",
            "dual_out": "attn2.proj",
        }.items()
    },
}
_BLOCKS: dict[Style, str] = {"diffusers": "transformer_blocks", "reference": "joint_blocks"}


class Piece(NamedTuple):
    """One layer's array of one block: where it lies in our tree, and the tensors that hold it."""

    path: tuple[str, ...]
    place: int | None  # in the stack of its leaf
    names: tuple[str, ...]
    shape: tuple[int, ...]  # ours, without the stack
    kind: Literal["matrix", "patch", "vector", "table"]
    patch: int  # latent pixels on a side of a token, for the patch embedding
    swapped: bool  # (scale, shift) there, (shift, scale) here


def parameter_shapes(model: ModelConfig) -> Any:
    """The tree of our parameters, as shapes."""
    z = jnp.zeros((1, model.latent_size, model.latent_size, model.latent_channels))
    text = jnp.zeros((1, model.text_tokens, model.text_dim)), jnp.zeros((1, model.pooled_dim))
    return jax.eval_shape(lambda: MMDiT(model).init(jax.random.key(0), z, jnp.zeros(1), *text)["params"])


def pieces(model: ModelConfig, style: Style = "diffusers") -> dict[tuple[str, ...], list[Piece]]:
    """For each leaf of our tree, what it is made of, one piece a block."""
    blocks = {stack.name: list(stack.blocks) for stack in stacks(model)}
    found = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(parameter_shapes(model)):
        path = tuple(key.key for key in keys)
        make = functools.partial(_piece, path, style=style, model=model)
        if path[0] in blocks:
            found[path] = [make(i, block, leaf.shape[1:]) for i, block in enumerate(blocks[path[0]])]
        else:
            found[path] = [make(None, model.depth - 1 if path[0] == "last_block" else None, leaf.shape)]
    return found


def _piece(
    path: tuple[str, ...],
    place: int | None,
    block: int | None,
    shape: tuple[int, ...],
    style: Style,
    model: ModelConfig,
) -> Piece:
    if path[0] == "position_table":
        return Piece(path, place, _ENDS[style]["position_table"], shape, "table", model.patch, False)
    suffix = {"kernel": "weight", "gain": "weight", "bias": "bias"}[path[-1]]
    layer = ".".join(path[:-1] if block is None else path[1:-1])
    stems = _ENDS[style][layer] if block is None else _BLOCK[style][layer]
    prefix = "" if block is None else f"{_BLOCKS[style]}.{block}."
    swapped = style == "diffusers" and (
        path[0] == "final_modulation" or path[:3] == ("last_block", "text", "modulation")
    )
    kind: Any = "patch" if layer == "patch_embed" and len(shape) == 2 else "matrix" if len(shape) == 2 else "vector"
    return Piece(path, place, tuple(f"{prefix}{stem}.{suffix}" for stem in stems), shape, kind, model.patch, swapped)


def tensor_shape(piece: Piece) -> tuple[int, ...]:
    """Of each of the piece's tensors."""
    if piece.kind == "table":
        return 1, piece.shape[0] * piece.shape[1], piece.shape[2]
    if piece.kind == "patch":
        return piece.shape[1], piece.shape[0] // piece.patch**2, piece.patch, piece.patch
    return (piece.shape[-1] // len(piece.names), *piece.shape[:-1])


def expected(model: ModelConfig, style: Style = "diffusers") -> Shapes:
    """Every tensor of a model, with its shape."""
    every = (piece for leaf in pieces(model, style).values() for piece in leaf)
    return {name: tensor_shape(piece) for piece in every for name in piece.names}


def check(found: Mapping[str, tuple[int, ...]], model: ModelConfig, style: Style = "diffusers") -> None:
    """Raises UserError that names every tensor that is missing, extra, or of another shape."""
    wanted = expected(model, style)
    missing = [f"{name} {list(shape)}" for name, shape in wanted.items() if name not in found]
    extra = [f"{name} {list(shape)}" for name, shape in found.items() if name not in wanted]
    wrong = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name]) != shape
    ]
    said = [f"{what}: {', '.join(names)}" for what, names in
            (("missing", missing), ("extra", extra), ("of another shape", wrong)) if names]  # fmt: skip
    if said:
        raise UserError(f"not the tensors of a model of depth {model.depth} and width {model.width}; {'; '.join(said)}")


def from_tensors(read: Read, model: ModelConfig, style: Style = "diffusers") -> dict[str, Any]:
    """Our parameters, float32, reading tensors one by one; :func:`check` first."""
    tree: dict[str, Any] = {}
    for path, parts in pieces(model, style).items():
        stacked = parts[0].place is not None
        leaf = _empty((len(parts), *parts[0].shape) if stacked else parts[0].shape)
        for piece in parts:
            _fill(leaf[piece.place] if stacked else leaf, piece, read)
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def _empty(shape: tuple[int, ...]) -> np.ndarray:
    """Float32 at an address that JAX can take over without a copy, which for a large model is half the memory."""
    size = 4 * math.prod(shape)
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(np.float32).reshape(shape)


def to_tensors(params: Any, model: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor in diffusers' names, one by one, in the order of :func:`expected`."""
    for path, parts in pieces(model).items():
        leaf = np.asarray(functools.reduce(lambda node, key: node[key], path, params))
        for piece in parts:
            yield from _split(leaf if piece.place is None else leaf[piece.place], piece)


def _fill(ours: np.ndarray, piece: Piece, read: Read) -> None:
    """Write what the piece's tensors hold into its place in our tree."""
    part = ours.shape[-1] // len(piece.names)
    for i, name in enumerate(piece.names):
        tensor = read(name)
        if piece.kind == "table":
            ours[...] = tensor.reshape(piece.shape)
            continue
        if piece.kind == "patch":  # (e, channel, row, column) to (row, column, channel) by e
            tensor = tensor.transpose(2, 3, 1, 0).reshape(piece.shape)
        elif piece.kind == "matrix":
            tensor = tensor.T
        if piece.swapped:
            tensor = np.roll(tensor, part // 2, axis=-1)
        ours[..., i * part : (i + 1) * part] = tensor


def _split(ours: np.ndarray, piece: Piece) -> Iterator[tuple[str, np.ndarray]]:
    """The inverse of :func:`_fill`."""
    shape = tensor_shape(piece)
    if piece.swapped:
        ours = np.roll(ours, ours.shape[-1] // 2, axis=-1)
    for name, part in zip(piece.names, np.split(ours, len(piece.names), axis=-1), strict=True):
        if piece.kind == "patch":
            size = piece.patch
            part = part.reshape(size, size, -1, part.shape[-1]).transpose(3, 2, 0, 1)
        elif piece.kind == "matrix":
            part = part.T
        yield name, np.ascontiguousarray(part.reshape(shape))


def style_of(names: Mapping[str, Any]) -> Style | None:
    """Whose names these are, by their blocks; None if neither's."""
    return next((style for style, blocks in _BLOCKS.items() if any(n.startswith(f"{blocks}.") for n in names)), None)


def infer_model(found: Shapes, style: Style) -> ModelConfig:
    """The configuration that a file of weights alone implies. Shapes do not say ``latent_size``: taken as 1024 px.

    Raises UserError where the shapes are not those of one of this family.
    """
    ends, block, blocks = _ENDS[style], _BLOCK[style], _BLOCKS[style]

    def shape(layer: str, suffix: str, dimensions: int) -> tuple[int, ...]:
        name = ends[layer][0] + suffix
        if len(found.get(name, ())) != dimensions:
            raise UserError(f"not an MM-DiT: {name} is {list(found[name]) if name in found else 'missing'}")
        return found[name]

    numbers = {int(m[1]) for name in found if (m := re.match(rf"{blocks}\.(\d+)\.", name))}
    depth = max(numbers) + 1
    width, channels, patch, _ = shape("patch_embed", ".weight", 4)
    side = round(shape("position_table", "", 3)[1] ** 0.5)
    dual = block["image.dual_out"][0]
    if width % depth:
        raise UserError(f"width {width} is not a multiple of {depth} heads: as many heads as blocks is all we have")
    return ModelConfig(
        depth=depth,
        head_dim=width // depth,
        patch=patch,
        latent_size=min(128, side * patch),
        latent_channels=channels,
        text_dim=shape("text_embed", ".weight", 2)[1],
        pooled_dim=shape("pooled_embed.first", ".weight", 2)[1],
        time_dim=shape("time_embed.first", ".weight", 2)[1],
        qk_norm=any(block["image.norm_q"][0] in name for name in found),
        dual_attention=tuple(sorted(i for i in numbers if f"{blocks}.{i}.{dual}.weight" in found)),
        position_grid=side,
        position_table=True,
    )
