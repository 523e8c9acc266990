"""ImageReward (Xu et al. 2023): BLIP's large vision and text networks with cross attention, and a linear head.

The folder holds the released ``ImageReward.pt`` as safetensors, and the vocabulary of ``bert-base-uncased``
(``vocab.txt``, or ``tokenizer.json`` and ``tokenizer_config.json``). The checkpoint is a plain dictionary of tensors,
and becomes safetensors with::

    python -c "import torch, safetensors.torch as s; t = torch.load('ImageReward.pt', map_location='cpu', \
weights_only=True); s.save_file({k: v.contiguous().clone() for k, v in t.items()}, 'FOLDER/model.safetensors')"
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sd3_jax.errors import UserError
from sd3_jax.evaluation import weights
from sd3_jax.evaluation.scorer import Images, Scorer
from sd3_jax.scorers import released

MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072  # of the head's output, over the authors' pictures
TOKENS = 35
HEAD = 64  # numbers of one head of attention, in BERT and in ViT of every size
# Of pretraining, which nothing of the reward depends on: projections for contrast; and a list of numbers.
_UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
_VISION = (
    (r"^embeddings\.class_embedding", "cls_token"),
    (r"^embeddings\.position_embedding", "pos_embed"),
    (r"^embeddings\.patch_embedding", "patch_embed.proj"),
    (r"^encoder\.layers", "blocks"),
    (r"self_attn\.projection", "attn.proj"),
    (r"self_attn\.qkv", "attn.qkv"),
    (r"layer_norm", "norm"),
    (r"^post_layernorm", "norm"),
)


def imagereward(folder: Path) -> Scorer:
    """The reward of a picture and its prompt: about 0 on average, 1 is one standard deviation; higher is better.

    Pictures: shorter edge to 224, bicubic, middle square. Prompts: 35 tokens, the first of which says the reward.
    """
    called = "ImageReward"
    _, library = weights.torch_and_transformers(called)
    file, tensors = released.tensors_of(folder, called)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_UNUSED)}
    part = {
        prefix: {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
        for prefix in ("blip.visual_encoder.", "blip.text_encoder.", "mlp.")
    }
    if left := sorted(tensors.keys() - {prefix + name for prefix, own in part.items() for name in own}):
        raise UserError(f"{file}: is not {called}: it has a tensor {left[0]}")

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise UserError(f"{file}: is not {called}: it has no tensor {name}")
        return tuple(tensors[name].shape)

    try:
        seeing, reading = _vision(library, shape, tensors), _text(library, shape, tensors)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"{file}: is not {called}: its tensors are of other shapes") from None

    def fill(kind: str, config: Any, prefix: str, theirs: Callable[[str], str], **options: Any) -> Any:
        def source(name: str) -> released.Theirs:
            return prefix + theirs(name), lambda tensor: tensor

        own = {prefix + name: tensor for name, tensor in part[prefix].items()}
        return released.filled(file, called, getattr(library, kind), config, own, source, **options)

    vision = fill("BlipVisionModel", seeing, "blip.visual_encoder.", _of_vision)
    text = fill("BlipTextModel", reading, "blip.text_encoder.", lambda name: name, add_pooling_layer=False)
    reward = released.head(file, called, part["mlp."], reading.hidden_size)
    tokenizer = weights.read(library.BertTokenizer, folder)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    tokens = released.tokens(tokenizer, folder, TOKENS, reading.vocab_size)

    def rate(images: Images, prompts: released.Prompts) -> Any:
        pixels = released.normalised([released.cropped(image, seeing.image_size) for image in images])
        said = tokens(prompts)
        seen = vision(pixel_values=pixels).last_hidden_state
        states = text(
            input_ids=said["input_ids"], attention_mask=said["attention_mask"], encoder_hidden_states=seen
        ).last_hidden_state
        return (reward(states[:, 0]) - MEAN) / DEVIATION

    return Scorer("imagereward", released.digest(folder), released.in_batches(rate))


def _of_vision(name: str) -> str:
    """BLIP's own name of a tensor of transformers' vision network."""
    for ours, theirs in _VISION:
        name = re.sub(ours, theirs, name)
    return name


def _vision(library: Any, shape: Callable[[str], tuple[int, ...]], tensors: Mapping[str, Any]) -> Any:
    """The vision network that the tensors' shapes say; the released one is ViT-L/16 of 224 pixels."""
    at = "blip.visual_encoder."
    width, _, patch, _ = shape(f"{at}patch_embed.proj.weight")
    _, places, _ = shape(f"{at}pos_embed")
    return library.BlipVisionConfig(
        hidden_size=width,
        intermediate_size=shape(f"{at}blocks.0.mlp.fc1.weight")[0],
        num_hidden_layers=_layers(tensors, rf"{re.escape(at)}blocks\.(\d+)\."),
        num_attention_heads=width // HEAD,
        image_size=patch * round((places - 1) ** 0.5),
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,  # timm's, in the released code; transformers' own BLIP has 1e-5
    )


def _text(library: Any, shape: Callable[[str], tuple[int, ...]], tensors: Mapping[str, Any]) -> Any:
    """The text network that the tensors' shapes say; the released one is BERT of 12 layers with two more tokens."""
    at = "blip.text_encoder."
    layer = f"{at}encoder.layer.0."
    vocabulary, width = shape(f"{at}embeddings.word_embeddings.weight")
    return library.BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=shape(f"{layer}crossattention.self.key.weight")[1],
        intermediate_size=shape(f"{layer}intermediate.dense.weight")[0],
        num_hidden_layers=_layers(tensors, rf"{re.escape(at)}encoder\.layer\.(\d+)\."),
        num_attention_heads=width // HEAD,
        max_position_embeddings=shape(f"{at}embeddings.position_embeddings.weight")[0],
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        is_decoder=True,  # so that it has cross attention; it is called as an encoder
    )


def _layers(tensors: Mapping[str, Any], pattern: str) -> int:
    return len({found[1] for found in map(re.compile(pattern).match, tensors) if found})
