"""Networks of others, read from local folders by transformers: safetensors alone, and nothing of a folder is run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sd3_jax.errors import UserError


class Loaded(NamedTuple):
    """A network of torch in float32, on the device that it runs on, and the library that it is of."""

    torch: Any
    transformers: Any
    net: Any
    device: Any


def settling(folder: Path) -> list[Path]:
    """The files of a folder that settle what comes out of it: weights, configuration, vocabulary."""
    kinds = (".safetensors", ".json", ".txt", ".model")
    return [path for path in sorted(folder.iterdir()) if path.suffix in kinds]


def files_of(folder: Path, called: str) -> list[Path]:
    """The files of weights of a folder, in the order of their names. Raises UserError if there are none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; {called} is read from a local one")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: has no weights as .safetensors; a pickle (.bin, .pt, .pth) is not read, convert it")
    return files


def torch_and_transformers(called: str) -> tuple[Any, Any]:
    """The two libraries, quiet, with float32 that is float32. Raises UserError where they are not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        raise UserError(f"{called}: needs torch: pip install 'sd3_jax[scorers]'") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    return torch, transformers


def load(folder: Path, called: str, auto: str, kinds: Sequence[str], unused: str = "", **options: Any) -> Loaded:
    """The network of a folder, by transformers' class ``auto``, whose ``model_type`` is one of ``kinds``.

    ``called``: what it is to be, for errors. ``unused``: what tensors' names may begin with that the folder lacks,
    since nothing that is read depends on them. Raises UserError, in one line, for whatever is wrong with the folder.
    """
    torch, transformers = torch_and_transformers(called)
    files_of(folder, called)
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError):
        raise UserError(f"{folder}: has no config.json of transformers") from None
    if found not in kinds:
        raise UserError(f"{folder}: holds a model of type {found}, not {called} ({', '.join(kinds)})")
    net, said = read(
        getattr(transformers, auto),
        folder,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
        **options,
    )
    lacking = sorted(map(str, [*said["missing_keys"], *said["mismatched_keys"]]))
    if lacking := [name for name in lacking if not (unused and name.startswith(unused))]:
        raise UserError(f"{folder}: its weights are not those of its config.json: {lacking[0]} is not there")
    return Loaded(torch, transformers, net.to(device(torch)).eval(), device(torch))


def device(torch: Any) -> Any:
    """Where networks of torch run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def read(kind: Any, folder: Path, **options: Any) -> Any:
    """``kind.from_pretrained(folder)``: a network, tokenizer or processor. Raises UserError for whatever is wrong."""
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, **options)
    except Exception as error:  # of many kinds, for what a folder may lack
        said = " ".join(str(error).split())[:160]
        raise UserError(f"{folder}: cannot be read as {kind.__name__} ({said})") from None
