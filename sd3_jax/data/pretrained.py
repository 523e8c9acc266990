"""Where the weights and tokenizers of frozen encoders are: folders, pipelines' folders, the hub. No torch is needed.

Weights are read from safetensors alone, never from a pickle, and nothing of a folder is executed.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sd3_jax.errors import UserError


@dataclass(frozen=True)
class Kind:
    """Where a pipeline keeps an encoder, and which files its tokenizer is read from: the first that are there."""

    kind: str
    folder: str = ""  # in a pipeline of Stable Diffusion 3
    tokenizer: str = ""
    files: tuple[tuple[str, ...], ...] = ()


_CLIP_FILES, _T5_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt")), (("tokenizer.json",), ("spiece.model",))
KINDS = {
    "clip-l": Kind("clip", "text_encoder", "tokenizer", _CLIP_FILES),
    "clip-g": Kind("clip", "text_encoder_2", "tokenizer_2", _CLIP_FILES),
    "t5": Kind("t5", "text_encoder_3", "tokenizer_3", _T5_FILES),
    "sentence": Kind("sentence", files=(("tokenizer.json",), ("vocab.txt",))),
}
NAMES = tuple(KINDS)
VAE = Kind("diffusers", "vae")


class Found(NamedTuple):
    """What an encoder is loaded from."""

    weights: Path
    tokenizer: Path  # a folder; that of the weights for an autoencoder


def find(source: str, kind: Kind) -> Found:
    """The folders of an encoder: ``source`` itself, or where a pipeline keeps it; from the hub if it is no folder.

    Raises UserError for a folder without one, and for what the hub does not have.
    """
    root = Path(source).expanduser()
    if not root.is_dir():
        root = _download(source, kind)
    if kind.folder and (root / kind.folder / "config.json").is_file():
        return Found(root / kind.folder, root / (kind.tokenizer or kind.folder))
    if not (root / "config.json").is_file():
        raise UserError(
            f"{root}: holds no config.json of an encoder" + f", nor one in {kind.folder}/" * bool(kind.folder)
        )
    beside = root.parent / root.name.replace("text_encoder", "tokenizer")
    inside = any(all((root / name).is_file() for name in files) for files in kind.files)
    return Found(root, root if inside or not beside.is_dir() else beside)


def _download(source: str, kind: Kind) -> Path:
    """The folder of the hub's cache with what this encoder needs of a repository."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    huggingface_hub.logging.set_verbosity_error()  # it tells each attempt; what comes of them is said below
    names = ("config.json", "*.safetensors", "*.safetensors.index.json")
    words = ("tokenizer*.json", "vocab.*", "merges.txt", "spiece.model", "special_tokens_map.json")
    try:
        try:
            huggingface_hub.hf_hub_download(source, "model_index.json")
            wanted = [f"{kind.folder}/{name}" for name in names] + [f"{kind.tokenizer}/{name}" for name in words]
        except LocalEntryNotFoundError:  # offline, and not in the cache
            wanted = [*names, *words]
        except EntryNotFoundError:
            wanted = [*names, *words]
        folder = huggingface_hub.snapshot_download(
            source, allow_patterns=wanted, ignore_patterns=["*.fp16*", "*.bf16*"]
        )
    except (OSError, ValueError, HFValidationError) as error:
        raise UserError(f"{source}: is no folder, and the hub does not give it ({first_line(error)})") from None
    return Path(folder)


def configuration(folder: Path) -> dict[str, Any]:
    """What a folder's config.json says. Raises UserError for anything but a JSON object."""
    try:
        tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise UserError(f"{folder / 'config.json'}: is not the configuration of an encoder")
    return tree


def digest(files: Sequence[Path]) -> str:
    """Of the bytes of files, in the order that they are given in: sixteen hex digits of SHA-256."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                total.update(block)
    return total.hexdigest()[:16]


def weights(folder: Path, stem: str) -> list[Path]:
    """The files that transformers and diffusers read weights from. Raises UserError where they would read a pickle."""
    index = folder / f"{stem}.safetensors.index.json"
    names = [f"{stem}.safetensors"]
    if not (folder / names[0]).is_file() and index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            wrong = [name for name in names if Path(name).name != name]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            wrong = [index.name]
        if wrong:
            raise UserError(f"{index}: does not name the files of weights beside it")
    lacking = [name for name in names if not (folder / name).is_file()]
    if lacking:
        pickles = sorted(path.name for ending in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{ending}"))
        said = f"; {pickles[0]} is a pickle, which could run anything: save it as safetensors" if pickles else ""
        raise UserError(f"{folder}: {lacking[0]} is not there{said}")
    return [folder / name for name in names]


def tokenizer_files(folder: Path, name: str) -> list[Path]:
    """The files that a tokenizer is read from. Raises UserError where they are not there."""
    for files in KINDS[name].files:
        if all((folder / file).is_file() for file in files):
            return [folder / file for file in files]
    expected = " or ".join(" and ".join(files) for files in KINDS[name].files)
    raise UserError(f"{folder}: holds no tokenizer of {name}, which has {expected}")


def describe(files: Sequence[Path]) -> str:
    """What records say of a tokenizer: its files and their digest."""
    return f"{'+'.join(path.name for path in files)} {digest(files)}"


def first_line(error: BaseException) -> str:
    """What a library says of an error, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
