"""The paper's frozen encoders: autoencoders of diffusers, CLIP, T5 and models of sentences (extra ``encoders``).

The only file here that imports torch, transformers' models or diffusers, and only when something is loaded. What comes
out is what diffusers' ``StableDiffusion3Pipeline`` computes (``tests/test_encoders.py``):

- CLIP: the states before the last layer, without the final norm. The pooled vector is the final norm's at the end
  token, and goes through ``text_projection`` where the folder is of a ``CLIPTextModelWithProjection``, as all of Stable
  Diffusion 3's are (CLIP-L's is the identity), and for CLIP-G. Of a whole CLIP-L it does not (paper section 4).
  CLIP-G is padded with token 0, CLIP-L as its tokenizer says (with the end token).
- T5: the last states, padded with token 0, nothing masked, no pooled vector.
- ``sentence``, any encoder like BERT: the last states, in which padding is masked; the pooled vector is their mean over
  the words.

Weights are read from safetensors alone, never from a pickle, and nothing of a folder is executed. Every computation
has the same shapes whatever is asked for, so what a picture or a caption becomes does not depend on its company.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from sd3_jax.data.examples import Autoencoder, Part
from sd3_jax.data.frozen import ImageCodec, Running, TextEncoder
from sd3_jax.errors import UserError

LENGTH = 77  # tokens of each encoder, unless told otherwise (paper section 4)


@dataclass(frozen=True)
class _Kind:
    """Where a pipeline keeps an encoder, and which files its tokenizer is read from: the first that are there."""

    kind: str
    folder: str = ""  # in a pipeline of Stable Diffusion 3
    tokenizer: str = ""
    files: tuple[tuple[str, ...], ...] = ()


_CLIP_FILES, _T5_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt")), (("tokenizer.json",), ("spiece.model",))
_KINDS = {
    "clip-l": _Kind("clip", "text_encoder", "tokenizer", _CLIP_FILES),
    "clip-g": _Kind("clip", "text_encoder_2", "tokenizer_2", _CLIP_FILES),
    "t5": _Kind("t5", "text_encoder_3", "tokenizer_3", _T5_FILES),
    "sentence": _Kind("sentence", files=(("tokenizer.json",), ("vocab.txt",))),
}
NAMES = tuple(_KINDS)
_VAE = _Kind("diffusers", "vae")


class _Found(NamedTuple):
    """What an encoder is loaded from."""

    weights: Path
    tokenizer: Path  # a folder; that of the weights for an autoencoder


class _Text(NamedTuple):
    """A text encoder of torch: ids and mask in, states and pooled vector out, and their numbers of channels."""

    run: Callable[[Any, Any], tuple[Any, Any]]
    channels: int
    pooled: int
    longest: int  # positions that it has; 0: any number


def autoencoder(source: str, running: Running, moments: bool = True) -> ImageCodec:
    """The AutoencoderKL of a diffusers folder, a pipeline's folder, or a hub id, with the folder's own constants.

    ``moments``: records have the mean and log-variance of each latent; else its mean. Raises UserError for a folder
    that holds none, or whose weights are not safetensors.
    """
    torch, library = _torch("diffusers"), _torch("diffusers", "diffusers")
    found = _find(source, _VAE)
    config = _config(found.weights)
    if config.get("_class_name") != "AutoencoderKL":
        raise UserError(f"{found.weights}: holds {config.get('_class_name', 'no autoencoder')}, not an AutoencoderKL")
    digest = _digest(found.weights, "diffusion_pytorch_model")
    device, dtype = _where(torch, running)
    net = _load(library.AutoencoderKL, found.weights, torch_dtype=dtype).to(device).eval()
    f = 2 ** (len(net.config.block_out_channels) - 1)
    described = Autoencoder(
        "diffusers",
        source,
        digest,
        net.config.latent_channels,
        f,
        float(net.config.shift_factor or 0.0),
        float(net.config.scaling_factor or 1.0),
        moments,
    )

    def encode(images: UInt8[np.ndarray, "b H W 3"]) -> Float[np.ndarray, "b h w _"]:
        pixels = torch.from_numpy(images.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
        given = net.encode(pixels.to(device, dtype)).latent_dist
        latent = torch.cat([given.mean, given.logvar], dim=1) if moments else given.mean
        return latent.permute(0, 2, 3, 1).float().cpu().numpy()

    def decode(latents: Float[np.ndarray, "b h w c"]) -> UInt8[np.ndarray, "b H W 3"]:
        z = torch.from_numpy(np.ascontiguousarray(latents, np.float32)).permute(0, 3, 1, 2)
        pixels = net.decode(z.to(device, dtype)).sample.permute(0, 2, 3, 1).float().cpu().numpy()
        return np.round((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8)

    one_by_one = _in_batches(torch, running.batch_on(device))
    return ImageCodec(described, one_by_one(encode), one_by_one(decode))


def text(name: str, source: str, length: int | None, running: Running) -> TextEncoder:
    """One of ``NAMES``, from a folder with its tokenizer in it or beside it, a pipeline's folder, or a hub id.

    ``length``: tokens; 77 unless given, or as many as the encoder has positions for. Longer captions are cut off.
    Raises UserError for a folder that holds no such encoder, or whose weights are not safetensors.
    """
    torch, library = _torch("transformers"), _torch("transformers", "transformers")
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    found = _find(source, _KINDS[name])
    digest = _digest(found.weights, "model")
    files = _tokenizer_files(found.tokenizer, name)
    device, dtype = _where(torch, running)
    encoder = _TEXTS[_KINDS[name].kind](library, found.weights, name, device, dtype)
    tokenizer = _tokenizer(library, found.tokenizer, name)
    longest = encoder.longest or length or LENGTH
    if length is not None and not 2 <= length <= longest:
        raise UserError(f"--text {name}={source}:{length}: tokens are 2 to {encoder.longest or 'any number'}")
    tokens = length or min(LENGTH, longest)
    described = Part(
        name, _KINDS[name].kind, source, digest, tokens, encoder.channels, encoder.pooled, tokenizer=_describe(files)
    )

    def encode(texts: Sequence[str]) -> tuple[Float[np.ndarray, "b tokens channels"], Float[np.ndarray, "b pooled"]]:
        asked = tokenizer(list(texts), padding="max_length", max_length=tokens, truncation=True, return_tensors="pt")
        states, pooled = encoder.run(asked.input_ids.to(device), asked.attention_mask.to(device))
        return states.float().cpu().numpy(), pooled.float().cpu().numpy()

    return TextEncoder(described, _in_batches(torch, running.batch_on(device))(encode))


# --- the text encoders ------------------------------------------------------------------------------------------
def _clip(library: Any, folder: Path, name: str, device: Any, dtype: Any) -> _Text:
    projected = name == "clip-g" or "CLIPTextModelWithProjection" in (_config(folder).get("architectures") or ())
    net = library.CLIPTextModelWithProjection if projected else library.CLIPTextModel
    config = _load(library.CLIPTextConfig, folder)
    config.projection_dim = _config(folder).get("projection_dim", config.projection_dim)  # that of the whole CLIP
    net = _load(net, folder, dtype=dtype, config=config).to(device).eval()

    def run(ids: Any, mask: Any) -> tuple[Any, Any]:
        given = net(ids, output_hidden_states=True)
        return given.hidden_states[-2], given.text_embeds if projected else given.pooler_output

    channels = net.config.hidden_size
    return _Text(
        run, channels, net.config.projection_dim if projected else channels, net.config.max_position_embeddings
    )


def _t5(library: Any, folder: Path, name: str, device: Any, dtype: Any) -> _Text:
    net = _load(library.T5EncoderModel, folder, dtype=dtype).to(device).eval()

    def run(ids: Any, mask: Any) -> tuple[Any, Any]:
        states = net(ids)[0]
        return states, states[:, 0, :0]

    return _Text(run, net.config.d_model, 0, 0)


def _sentence(library: Any, folder: Path, name: str, device: Any, dtype: Any) -> _Text:
    net = _load(library.AutoModel, folder, unused="pooler.", dtype=dtype, trust_remote_code=False).to(device).eval()

    def run(ids: Any, mask: Any) -> tuple[Any, Any]:
        states = net(input_ids=ids, attention_mask=mask)[0]
        weight = mask[..., None].to(states.dtype)
        return states, (states * weight).sum(1) / weight.sum(1)

    channels = net.config.hidden_size
    return _Text(run, channels, channels, getattr(net.config, "max_position_embeddings", 0))


_TEXTS: dict[str, Callable[..., _Text]] = {"clip": _clip, "t5": _t5, "sentence": _sentence}


def _tokenizer(library: Any, folder: Path, name: str) -> Any:
    classes = {"clip": library.CLIPTokenizer, "t5": library.T5TokenizerFast}
    tokenizer = _load(classes.get(_KINDS[name].kind, library.AutoTokenizer), folder)
    if name == "clip-g":  # some folders of it say otherwise, but it was trained, and is used, with zeros
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    if tokenizer.pad_token is None:
        raise UserError(f"{folder}: its tokenizer has no token for padding")
    return tokenizer


# --- folders and files ------------------------------------------------------------------------------------------
def _find(source: str, kind: _Kind) -> _Found:
    """The folders of an encoder: ``source`` itself, or where a pipeline keeps it; from the hub if it is no folder."""
    root = Path(source).expanduser()
    if not root.is_dir():
        root = _download(source, kind)
    if kind.folder and (root / kind.folder / "config.json").is_file():
        return _Found(root / kind.folder, root / (kind.tokenizer or kind.folder))
    if not (root / "config.json").is_file():
        raise UserError(
            f"{root}: holds no config.json of an encoder" + f", nor one in {kind.folder}/" * bool(kind.folder)
        )
    beside = root.parent / root.name.replace("text_encoder", "tokenizer")
    inside = any(all((root / name).is_file() for name in files) for files in kind.files)
    return _Found(root, root if inside or not beside.is_dir() else beside)


def _download(source: str, kind: _Kind) -> Path:
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
        raise UserError(f"{source}: is no folder, and the hub does not give it ({_line(error)})") from None
    return Path(folder)


def _config(folder: Path) -> dict[str, Any]:
    try:
        tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise UserError(f"{folder / 'config.json'}: is not the configuration of an encoder")
    return tree


def _digest(folder: Path, stem: str) -> str:
    """SHA-256 of the bytes of the files of weights, in the order of their names."""
    total = hashlib.sha256()
    for path in _weights(folder, stem):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                total.update(block)
    return total.hexdigest()[:16]


def _weights(folder: Path, stem: str) -> list[Path]:
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


def _tokenizer_files(folder: Path, name: str) -> list[Path]:
    """The files that a tokenizer is read from."""
    for files in _KINDS[name].files:
        if all((folder / file).is_file() for file in files):
            return [folder / file for file in files]
    expected = " or ".join(" and ".join(files) for files in _KINDS[name].files)
    raise UserError(f"{folder}: holds no tokenizer of {name}, which has {expected}")


def _describe(files: Sequence[Path]) -> str:
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    return f"{'+'.join(path.name for path in files)} {digest[:16]}"


# --- torch ------------------------------------------------------------------------------------------------------
def _torch(wanted: str, module: str = "torch") -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"encoders of {wanted} need torch and diffusers: pip install 'sd3_jax[encoders]'; cosine:16x8 and "
            "words:16x64 need neither"
        ) from None


def _where(torch: Any, running: Running) -> tuple[Any, Any]:
    """The device and the dtype of what is computed; float32 is float32, on a GPU too."""
    name = running.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {running.device}: cannot be used ({_line(error)})") from None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    return device, getattr(torch, running.dtype)


def _load(net: Any, folder: Path, unused: str = "", **options: Any) -> Any:
    """``net.from_pretrained(folder)``. Raises UserError, in one line, for whatever the libraries find wrong with it.

    ``unused``: what weights begin with that may lack, since nothing that we read depends on them.
    """
    weights = "dtype" in options or "torch_dtype" in options
    if weights:
        options |= {"use_safetensors": True, "output_loading_info": True}
    try:
        loaded = net.from_pretrained(str(folder), local_files_only=True, **options)
    except Exception as error:  # they raise all sorts of things for files that are damaged
        raise UserError(f"{folder}: is no {net.__name__} ({_line(error)})") from None
    if not weights:
        return loaded
    made, info = loaded
    if lacking := sorted(key for key in info.get("missing_keys", ()) if not (unused and key.startswith(unused))):
        raise UserError(f"{folder}: is no {net.__name__}: its weights lack {lacking[0]} (and {len(lacking) - 1} more)")
    return made


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def _in_batches(torch: Any, batch: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function of rows run on ``batch`` of them at a time, the last filled up: all have the same shapes."""

    def wrap(compute: Callable[..., Any]) -> Callable[..., Any]:
        def parts(rows: Sequence[Any]) -> Iterator[Any]:
            for start in range(0, max(len(rows), 1), batch):
                own = rows[start : start + batch]
                filled = [*own, *[own[-1]] * (batch - len(own))]
                with torch.inference_mode():
                    given = compute(np.stack(filled) if isinstance(rows, np.ndarray) else filled)
                yield tuple(x[: len(own)] for x in given) if isinstance(given, tuple) else given[: len(own)]

        def whole(rows: Sequence[Any]) -> Any:
            found = list(parts(rows))
            if isinstance(found[0], tuple):
                return tuple(np.concatenate(one) for one in zip(*found, strict=True))
            return np.concatenate(found)

        return whole

    return wrap
