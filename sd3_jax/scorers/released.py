"""Released weights of judges: their tensors by name, put into networks of transformers with none missing or left over.

Whatever is wrong with a folder is a UserError of one line. Weights are safetensors alone: nothing is unpickled.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from sd3_jax.data import pretrained
from sd3_jax.errors import UserError
from sd3_jax.evaluation import weights
from sd3_jax.evaluation.scorer import BATCH, Images

RULES = 1  # raised whenever a score of the same weights may change
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # of the pixels that CLIP was trained on
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
_WIDTHS = dict(zip((0, 2, 4, 6, 7), (1024, 128, 64, 16, 1), strict=True))  # of a head's layers; dropout is between

Prompts = Sequence[Mapping[str, Any]]  # the metadata of each picture's prompt
Theirs = tuple[str, Callable[[Any], Any]]  # the released name of a tensor of ours, and ours of it


def digest(folder: Path) -> str:
    """Of a folder's weights, configuration and vocabulary, and of the version of these rules."""
    return f"{RULES}:{pretrained.digest(weights.settling(folder))}"


def tensors_of(folder: Path, called: str) -> tuple[Path, dict[str, Any]]:
    """The only file of weights of a folder, and its tensors by name, those of floating point in float32."""
    torch, _ = weights.torch_and_transformers(called)
    files = weights.files_of(folder, called)
    if len(files) > 1:
        raise UserError(f"{folder}: holds {len(files)} files of weights; those of {called} are one")
    import safetensors.torch

    try:
        found = safetensors.torch.load_file(files[0])
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{files[0]}: cannot be read ({error})") from None
    return files[0], {name: x.to(torch.float32) if x.is_floating_point() else x for name, x in found.items()}


def filled(
    file: Path,
    called: str,
    kind: Any,
    config: Any,
    tensors: Mapping[str, Any],
    theirs: Callable[[str], Theirs],
    **options: Any,
) -> Any:
    """A network of transformers' class ``kind`` with the tensors of a file, which are exactly its own.

    ``theirs``: where a tensor of the network is in the file.
    """
    import torch

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in kind(config, **options).state_dict().items()}
    sources = {name: theirs(name) for name in shapes}
    named = {name for name, _ in sources.values()}
    if lacking := sorted(named - tensors.keys()):
        raise UserError(f"{file}: is not {called}: it has no tensor {lacking[0]}")
    if left := sorted(tensors.keys() - named):
        raise UserError(f"{file}: is not {called}: it has a tensor {left[0]}")
    own = {name: change(tensors[source]) for name, (source, change) in sources.items()}
    for name, tensor in own.items():
        if tensor.shape != shapes[name]:
            shape, source = "x".join(map(str, tensors[sources[name][0]].shape)), sources[name][0]
            raise UserError(f"{file}: is not {called}: its tensor {source} of {shape} does not fit the others")
    net = kind.from_pretrained(None, config=config, state_dict=own, dtype=torch.float32, **options)
    return net.to(weights.device(torch)).eval()


def head(file: Path, called: str, tensors: Mapping[str, Any], width: int) -> Callable[[Any], Any]:
    """The layers from ``width`` numbers to 1024, 128, 64, 16 and 1, which are linear and have nothing in between.

    ``tensors``: those of the file that are of the head, named ``layers.0.weight`` and so on, exactly.
    """
    import torch

    expected: dict[str, tuple[int, ...]] = {}
    for layer, out in _WIDTHS.items():
        expected |= {f"layers.{layer}.weight": (out, width), f"layers.{layer}.bias": (out,)}
        width = out
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wrong := sorted({name for name, _ in found.items() ^ expected.items()}):
        raise UserError(f"{file}: is not {called}: it has {found.get(wrong[0], 'no tensor')} for the head's {wrong[0]}")
    own = {name: tensor.to(weights.device(torch)) for name, tensor in tensors.items()}

    def run(x: Any) -> Any:
        for layer in _WIDTHS:
            x = torch.nn.functional.linear(x, own[f"layers.{layer}.weight"], own[f"layers.{layer}.bias"])
        return x[..., 0]

    return run


def tokens(tokenizer: Any, folder: Path, length: int, vocabulary: int) -> Callable[[Prompts], Any]:
    """What a tokenizer makes of prompts: always ``length`` numbers, so that no prompt depends on its company."""
    import torch

    if len(tokenizer) != vocabulary:
        raise UserError(f"{folder}: its tokenizer has {len(tokenizer)} tokens, its network {vocabulary}")

    def run(prompts: Prompts) -> Any:
        texts = [str(prompt["prompt"]) for prompt in prompts]
        given = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return given.to(weights.device(torch))

    return run


def in_batches(rate: Callable[[Images, Prompts], Any]) -> Callable[[Images, Prompts], list[float]]:
    """A function of any number of pictures, from one of a few that says a number of torch for each."""
    import torch

    def run(images: Images, prompts: Prompts) -> list[float]:
        found: list[float] = []
        for i in range(0, len(images), BATCH):
            with torch.inference_mode():
                found += rate(images[i : i + BATCH], prompts[i : i + BATCH]).double().tolist()
        return found

    return run


def normalised(squares: Sequence[Float[np.ndarray, "h w 3"]]) -> Any:
    """Pixels of 0 to 255 as CLIP takes them: a tensor [b, 3, h, w]."""
    import torch

    pixels = (np.stack(squares) / 255 - MEAN) / DEVIATION
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32)).to(weights.device(torch))


def cropped(image: UInt8[np.ndarray, "H W 3"], side: int) -> Float[np.ndarray, "side side 3"]:
    """The middle square of a picture whose shorter edge was made ``side`` long, bicubic: torchvision's, of Pillow."""
    height, width = image.shape[:2]
    short = min(height, width)
    new = int(side * height / short), int(side * width / short)
    resized = np.asarray(Image.fromarray(image).resize(new[::-1], Image.Resampling.BICUBIC), np.float32)
    top, left = (round((edge - side) / 2) for edge in new)
    return resized[top : top + side, left : left + side]
