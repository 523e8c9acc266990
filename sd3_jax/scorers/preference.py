"""What networks trained on people's choices say of a picture and its prompt: PickScore, HPSv2, LAION's aesthetics.

Each is a function of a local folder; :mod:`imagereward` is another. All compute in float32, a prompt or picture alike
whatever its company, and cut prompts that are too long as the released code does.
"""

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from sd3_jax.errors import UserError
from sd3_jax.evaluation import weights
from sd3_jax.evaluation.scorer import Images, Scorer
from sd3_jax.scorers import released


def pickscore(folder: Path) -> Scorer:
    """PickScore (Kirstain et al. 2023): exp(logit_scale) times the cosine of CLIP's embeddings; about 15 to 25.

    The folder is ``yuvalkirstain/PickScore_v1`` with the tokenizer and ``preprocessor_config.json`` of
    ``laion/CLIP-ViT-H-14-laion2B-s32B-b79K`` in it.
    """
    loaded = weights.load(folder, "PickScore", "CLIPModel", ("clip",))
    net = loaded.net
    pixels = _pixels(loaded.transformers, folder)
    words = net.config.text_config
    tokenizer = weights.read(loaded.transformers.AutoTokenizer, folder)
    tokens = released.tokens(tokenizer, folder, words.max_position_embeddings, words.vocab_size)

    def rate(images: Images, prompts: released.Prompts) -> Any:
        said = tokens(prompts)
        text = net.get_text_features(input_ids=said["input_ids"], attention_mask=said["attention_mask"])
        return net.logit_scale.exp() * _cosines(net.get_image_features(pixel_values=pixels(images)), text)

    return Scorer("pickscore", released.digest(folder), released.in_batches(rate))


# --- LAION's aesthetics ---------------------------------------------------------------------------------------------


def aesthetics(folder: Path) -> Scorer:
    """LAION's aesthetic predictor v2 (linear, MSE): about 1 to 10, of the picture alone; prompts are not read.

    The folder is ``shunk031/aesthetics-predictor-v2-sac-logos-ava1-l14-linearMSE``, ``model.safetensors`` included:
    CLIP ViT-L/14's image embedding, of length 1, through a linear head.
    """
    called = "LAION's aesthetic predictor v2"
    kinds = ("aesthetics_predictor", "clip_vision_model")
    loaded = weights.load(folder, called, "CLIPVisionModelWithProjection", kinds)
    net = loaded.net
    file, tensors = released.tensors_of(folder, called)
    layers = {name: tensor for name, tensor in tensors.items() if name.startswith("layers.")}
    aesthetic = released.head(file, called, layers, net.config.projection_dim)
    pixels = _pixels(loaded.transformers, folder)

    def rate(images: Images, prompts: released.Prompts) -> Any:
        embedded = net(pixel_values=pixels(images)).image_embeds
        return aesthetic(embedded / embedded.norm(dim=-1, keepdim=True))

    return Scorer("aesthetics", released.digest(folder), released.in_batches(rate))


# --- HPSv2 ----------------------------------------------------------------------------------------------------------

# OpenCLIP's names of a tower's parts. Its own package would do, but breaks where torchvision is not of torch's build.
_TOWER = (
    (r"^embeddings\.class_embedding", "class_embedding"),
    (r"^embeddings\.patch_embedding", "conv1"),
    (r"^embeddings\.token_embedding", "token_embedding"),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^pre_layrnorm", "ln_pre"),
    (r"^post_layernorm", "ln_post"),
    (r"^final_layer_norm", "ln_final"),
    (r"^encoder\.layers", "transformer.resblocks"),
    (r"self_attn\.[qkv]_proj\.", "attn.in_proj_"),
    (r"self_attn\.out_proj", "attn.out_proj"),
    (r"layer_norm", "ln_"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
)


def hpsv2(folder: Path) -> Scorer:
    """HPSv2 or 2.1 (Wu et al. 2023): the cosine of OpenCLIP's embeddings, which tables print times 100.

    Compare scores of one prompt and one version alone. The folder is as OpenCLIP has it: ``open_clip_config.json`` and
    ``vocab.json`` and ``merges.txt`` of ``laion/CLIP-ViT-H-14-laion2B-s32B-b79K``, and the released weights, after::

        python -c "import torch, safetensors.torch as s; t = torch.load('HPS_v2.1_compressed.pt', map_location='cpu', \
weights_only=True)['state_dict']; s.save_file({k: v.contiguous().clone() for k, v in t.items()}, \
'FOLDER/open_clip_model.safetensors')"

    Pictures: longer edge to 224, bicubic, black on both sides, as the released code does with torchvision 0.17 or newer
    (earlier ones make pictures small without smoothing them).
    """
    called = "HPSv2"
    _, library = weights.torch_and_transformers(called)
    try:
        import ftfy
    except ImportError:
        raise UserError(f"{called}: needs ftfy: pip install 'sd3_jax[scorers]'") from None
    file, tensors = released.tensors_of(folder, called)
    config = _of_open_clip(library, folder)
    net = released.filled(file, called, library.CLIPModel, config, tensors, _theirs)
    side, words = config.vision_config.image_size, config.text_config
    tokenizer = _of_merges(library, folder)
    tokens = released.tokens(tokenizer, folder, words.max_position_embeddings, words.vocab_size)

    def rate(images: Images, prompts: released.Prompts) -> Any:
        cleaned = [{"prompt": html.unescape(html.unescape(ftfy.fix_text(str(row["prompt"]))))} for row in prompts]
        text = net.get_text_features(input_ids=tokens(cleaned)["input_ids"])
        pixels = released.normalised([_padded(image, side) for image in images])
        return _cosines(net.get_image_features(pixel_values=pixels), text)

    return Scorer("hpsv2", released.digest(folder), released.in_batches(rate))


def _of_open_clip(library: Any, folder: Path) -> Any:
    """OpenCLIP's configuration of a ViT and a transformer, as transformers says it."""
    path = folder / "open_clip_config.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        vision, text = dict(said["vision_cfg"]), dict(said["text_cfg"])
        other = said.keys() - {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
        shared = {"hidden_act": "quick_gelu" if said.get("quick_gelu") else "gelu"}
        width, words = vision.pop("width", 768), text.pop("width", 512)
        config = library.CLIPConfig(
            projection_dim=said["embed_dim"],
            vision_config={
                **shared,
                "hidden_size": width,
                "num_hidden_layers": vision.pop("layers", 12),
                "num_attention_heads": width // vision.pop("head_width", 64),
                "intermediate_size": int(width * vision.pop("mlp_ratio", 4)),
                "patch_size": vision.pop("patch_size", 16),
                "image_size": vision.pop("image_size", 224),
            },
            text_config={
                **shared,
                "hidden_size": words,
                "num_hidden_layers": text.pop("layers", 12),
                "num_attention_heads": text.pop("heads", 8),
                "intermediate_size": int(words * text.pop("mlp_ratio", 4)),
                "max_position_embeddings": text.pop("context_length", 77),
                "vocab_size": text.pop("vocab_size", 49408),
                "eos_token_id": 2,  # transformers' way to say: the text ends at its highest token, as OpenCLIP has it
            },
        )
    except OSError:
        raise UserError(f"{folder}: has no open_clip_config.json, so it is no folder of OpenCLIP") from None
    except Exception:  # of many kinds, for whatever else JSON may hold
        raise UserError(f"{path}: is no configuration of OpenCLIP's ViT and transformer") from None
    if other := sorted([*other, *vision, *text]):
        raise UserError(f"{path}: HPSv2 is a plain ViT-H-14 of OpenCLIP, which has no {other[0]}")
    return config


def _of_merges(library: Any, folder: Path) -> Any:
    """CLIP's tokenizer as OpenCLIP has it; a folder's own settings may make a mark that pads, such as "!", special."""
    files = [folder / "vocab.json", folder / "merges.txt"]
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: no such file; it is CLIP's vocabulary")
    try:
        return library.CLIPTokenizer(*map(str, files), pad_token="<|endoftext|>")
    except Exception:  # of many kinds, for whatever a file may hold
        raise UserError(f"{folder}: its vocab.json and merges.txt are not those of a tokenizer of CLIP") from None


def _theirs(name: str) -> released.Theirs:
    """Where OpenCLIP has a tensor of transformers' CLIPModel; queries, keys and values are one tensor there."""
    if name in ("visual_projection.weight", "text_projection.weight"):
        return ("visual.proj" if name.startswith("visual") else "text_projection"), lambda tensor: tensor.T
    tower, _, rest = name.partition(".")
    third = re.search(r"self_attn\.([qkv])_proj", rest)
    for ours, theirs in _TOWER:
        rest = re.sub(ours, theirs, rest)
    own = {"vision_model": f"visual.{rest}", "text_model": rest}.get(tower, name)
    if third:
        return own, lambda tensor: tensor.chunk(3)["qkv".index(third[1])]
    return own, lambda tensor: tensor


def _padded(image: UInt8[np.ndarray, "H W 3"], side: int) -> Float[np.ndarray, "side side 3"]:
    """A picture whose longer edge was made ``side`` long, bicubic, in the middle of a black square.

    The released code resizes numbers, not bytes: they are not rounded, and may pass 0 and 255 by a little.
    """
    height, width = image.shape[:2]
    scale = side / max(height, width)
    tall, wide = (max(round(edge * scale), 1) for edge in (height, width))
    channels = (Image.fromarray(channel) for channel in np.moveaxis(image.astype(np.float32), 2, 0))
    resized = [np.asarray(channel.resize((wide, tall), Image.Resampling.BICUBIC)) for channel in channels]
    square = np.zeros((side, side, 3), np.float32)
    top, left = (side - tall) // 2, (side - wide) // 2
    square[top : top + tall, left : left + wide] = np.stack(resized, axis=-1)
    return square


# --- CLIP -----------------------------------------------------------------------------------------------------------


def _pixels(library: Any, folder: Path) -> Callable[[Images], Any]:
    """Pictures as a folder's own processor prepares them, with Pillow."""
    import torch

    processor = weights.read(library.AutoImageProcessor, folder, backend="pil")

    def run(images: Images) -> Any:
        shown = [Image.fromarray(image) for image in images]
        return processor(images=shown, return_tensors="pt")["pixel_values"].to(weights.device(torch))

    return run


def _cosines(*embedded: Any) -> Any:
    """Of each row of the first with that of the second; transformers 5 wraps what earlier ones gave bare."""
    image, text = (getattr(given, "pooler_output", given) for given in embedded)
    return (image / image.norm(dim=-1, keepdim=True) * (text / text.norm(dim=-1, keepdim=True))).sum(-1)
