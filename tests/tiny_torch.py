"""Tiny random models of released architectures, saved to disk as their libraries save them, without a network."""

import json
from pathlib import Path
from typing import Any

PROMPTS = ["", "a cat", "a long story of " + "very " * 200 + "many words", "Ein Igel im Nebel, 東京の夜", "a cat"]


def save_clip_tokenizer(folder: Path, pad: str) -> int:
    """A tokenizer of single bytes, with CLIP's own special tokens; its size."""
    from transformers import CLIPTokenizer

    letters = [chr(i) for i in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]
    words = ["!", *[one for one in letters if one != "!"]]
    vocabulary = [*words, *(word + "</w>" for word in words), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=pad, model_max_length=77
    )
    tokenizer.save_pretrained(folder)
    return len(vocabulary)


def save_t5_tokenizer(folder: Path) -> int:
    """A tokenizer of pieces, trained on a few lines; its size."""
    import sentencepiece
    from transformers import T5TokenizerFast

    folder.mkdir(parents=True)
    text = folder / "text.txt"
    text.write_text("\n".join([*PROMPTS, *(f"the {a} {b}" for a in ("red", "old") for b in ("cat", "dog", "fog"))]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "spiece"), vocab_size=90, hard_vocab_limit=False, pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "spiece.model"))
    count = pieces.get_piece_size()
    words = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(count)]
    T5TokenizerFast(vocab=words, extra_ids=0, model_max_length=77).save_pretrained(folder)
    return count


def randomise(torch: Any, net: Any) -> None:
    """Weights of a size at which every path matters; fresh ones are near zero."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def save_encoders(folder: Path) -> None:
    """The text encoders, tokenizers and autoencoder of a pipeline of Stable Diffusion 3, and two more autoencoders."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(0)
    sizes: list[tuple[str, str, int, str, int]] = [
        ("text_encoder", "tokenizer", 32, "quick_gelu", 2),
        ("text_encoder_2", "tokenizer_2", 48, "gelu", 3),
    ]
    for own, words, width, activation, layers in sizes:
        pad = "!" if own == "text_encoder_2" else "<|endoftext|>"
        vocabulary = save_clip_tokenizer(folder / words, pad)
        config = transformers.CLIPTextConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=64, num_hidden_layers=layers,
            num_attention_heads=4, projection_dim=width, hidden_act=activation, max_position_embeddings=77,
            bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=1,
        )  # fmt: skip
        net = transformers.CLIPTextModelWithProjection(config)
        randomise(torch, net)
        net.save_pretrained(folder / own)
    vocabulary = save_t5_tokenizer(folder / "tokenizer_3")
    config = transformers.T5Config(
        vocab_size=vocabulary, d_model=96, d_kv=12, d_ff=64, num_layers=2, num_heads=8,
        feed_forward_proj="gated-gelu", dropout_rate=0.0,
    )  # fmt: skip
    net = transformers.T5EncoderModel(config)
    randomise(torch, net)
    net.save_pretrained(folder / "text_encoder_3")
    for channels, name in ((16, "vae"), (4, "vae4"), (8, "vae8")):
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 8, 8), latent_channels=channels, norm_num_groups=4, layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            shift_factor=0.0609 if channels == 16 else None, scaling_factor=1.5305, use_quant_conv=channels != 16,
            use_post_quant_conv=channels != 16,
        )  # fmt: skip
        vae.save_pretrained(folder / name)


def texts_of(folder: Path) -> dict[str, Any]:
    """The text encoders and tokenizers of a folder, by the names that a pipeline has for them."""
    import transformers

    return {
        name: getattr(transformers, kind).from_pretrained(folder / name)
        for name, kind in (
            ("text_encoder", "CLIPTextModelWithProjection"),
            ("text_encoder_2", "CLIPTextModelWithProjection"),
            ("text_encoder_3", "T5EncoderModel"),
            ("tokenizer", "CLIPTokenizer"),
            ("tokenizer_2", "CLIPTokenizer"),
            ("tokenizer_3", "T5TokenizerFast"),
        )
    }


def save_transformer(folder: Path) -> None:
    """What is lacking of a pipeline then: the network, its scheduler, and the index."""
    import diffusers
    import torch

    torch.manual_seed(1)
    net = diffusers.SD3Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=96, caption_projection_dim=32, pooled_projection_dim=80,
        pos_embed_max_size=8,
    )  # fmt: skip
    randomise(torch, net)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae")
    diffusers.StableDiffusion3Pipeline(
        transformer=net, scheduler=scheduler, vae=vae, **texts_of(folder)
    ).save_pretrained(folder)
