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

Every computation has the same shapes whatever is asked for, so what a picture or a caption becomes does not depend on
its company.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from sd3_jax.data import pretrained
from sd3_jax.data.examples import Autoencoder, Part
from sd3_jax.data.frozen import ImageCodec, Running, TextEncoder
from sd3_jax.errors import UserError

LENGTH = 77  # tokens of each encoder, unless told otherwise (paper section 4)


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
    found = pretrained.find(source, pretrained.VAE)
    config = pretrained.configuration(found.weights)
    if config.get("_class_name") != "AutoencoderKL":
        raise UserError(f"{found.weights}: holds {config.get('_class_name', 'no autoencoder')}, not an AutoencoderKL")
    files = pretrained.weights(found.weights, "diffusion_pytorch_model")
    device, dtype = _where(torch, running)
    net = _load(library.AutoencoderKL, found.weights, torch_dtype=dtype).to(device).eval()
    f = 2 ** (len(net.config.block_out_channels) - 1)
    described = Autoencoder(
        "diffusers",
        source,
        pretrained.digest(files),
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
    """One of ``pretrained.NAMES``, from a folder with its tokenizer in or beside it, a pipeline's folder, or a hub id.

    ``length``: tokens; 77 unless given, or as many as the encoder has positions for. Longer captions are cut off.
    Raises UserError for a folder that holds no such encoder, or whose weights are not safetensors.
    """
    torch, library = _torch("transformers"), _torch("transformers", "transformers")
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    kind = pretrained.KINDS[name]
    found = pretrained.find(source, kind)
    digest = pretrained.digest(pretrained.weights(found.weights, "model"))
    words = pretrained.describe(pretrained.tokenizer_files(found.tokenizer, name))
    device, dtype = _where(torch, running)
    encoder = _TEXTS[kind.kind](library, found.weights, name, device, dtype)
    tokenizer = _tokenizer(library, found.tokenizer, name)
    longest = encoder.longest or length or LENGTH
    if length is not None and not 2 <= length <= longest:
        raise UserError(f"--text {name}={source}:{length}: tokens are 2 to {encoder.longest or 'any number'}")
    tokens = length or min(LENGTH, longest)
    described = Part(name, kind.kind, source, digest, tokens, encoder.channels, encoder.pooled, tokenizer=words)

    def encode(texts: Sequence[str]) -> tuple[Float[np.ndarray, "b tokens channels"], Float[np.ndarray, "b pooled"]]:
        asked = tokenizer(list(texts), padding="max_length", max_length=tokens, truncation=True, return_tensors="pt")
        states, pooled = encoder.run(asked.input_ids.to(device), asked.attention_mask.to(device))
        return states.float().cpu().numpy(), pooled.float().cpu().numpy()

    return TextEncoder(described, _in_batches(torch, running.batch_on(device))(encode))


# --- the text encoders ------------------------------------------------------------------------------------------
def _clip(library: Any, folder: Path, name: str, device: Any, dtype: Any) -> _Text:
    said = pretrained.configuration(folder)
    projected = name == "clip-g" or "CLIPTextModelWithProjection" in (said.get("architectures") or ())
    net = library.CLIPTextModelWithProjection if projected else library.CLIPTextModel
    config = _load(library.CLIPTextConfig, folder)
    config.projection_dim = said.get("projection_dim", config.projection_dim)  # that of the whole CLIP
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
    tokenizer = _load(classes.get(pretrained.KINDS[name].kind, library.AutoTokenizer), folder)
    if name == "clip-g":  # some folders of it say otherwise, but it was trained, and is used, with zeros
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    if tokenizer.pad_token is None:
        raise UserError(f"{folder}: its tokenizer has no token for padding")
    return tokenizer


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
        raise UserError(f"--device {running.device}: cannot be used ({pretrained.first_line(error)})") from None
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
        raise UserError(f"{folder}: is no {net.__name__} ({pretrained.first_line(error)})") from None
    if not weights:
        return loaded
    made, info = loaded
    if lacking := sorted(key for key in info.get("missing_keys", ()) if not (unused and key.startswith(unused))):
        raise UserError(f"{folder}: is no {net.__name__}: its weights lack {lacking[0]} (and {len(lacking) - 1} more)")
    return made


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
