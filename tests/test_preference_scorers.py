"""Judges of preference: each one's code runs on a tiny checkpoint of its architecture, beside its formula by hand."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from tiny_torch import randomise, save_clip_tokenizer

from sd3_jax.errors import UserError
from sd3_jax.evaluation.scorer import Scorer
from sd3_jax.scorers import choose, imagereward, preference, released

pytestmark = pytest.mark.parity

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, (*size, 3)).astype(np.uint8) for size in ((40, 56), (64, 64), (300, 31), (17, 90))]
PROMPTS = [
    {"prompt": text} for text in ("", "a red cat", "Ein Igel, 東京", "a story of " + "very " * 60 + "many words")
]
SIDE, WIDTH, PATCH = 28, 64, 7  # of tiny networks
MAKERS: dict[str, Callable[[Path], Scorer]] = {
    "pickscore": preference.pickscore,
    "hpsv2": preference.hpsv2,
    "imagereward": imagereward.imagereward,
    "aesthetics": preference.aesthetics,
}


def error(name: str, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        MAKERS[name](folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


# --- tiny checkpoints -----------------------------------------------------------------------------------------------


def linear(name: str, out: int, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def norm(name: str, width: int = WIDTH) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def drawn(shapes: dict[str, tuple[int, ...]], seed: int = 1) -> dict[str, np.ndarray]:
    """Tensors of a size at which every path matters."""
    rng = np.random.default_rng(seed)
    scale = {name: 0.3 if len(shape) < 2 else np.prod(shape[1:]) ** -0.5 for name, shape in shapes.items()}
    return {name: np.asarray(scale[name] * rng.standard_normal(shape), np.float32) for name, shape in shapes.items()}


def save_processor(folder: Path) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(folder)  # fmt: skip


def vision_config() -> dict[str, int]:
    small = {"hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {**small, "image_size": SIDE, "patch_size": PATCH}


def save_pickscore(folder: Path) -> None:
    import torch
    import transformers

    vocabulary = save_clip_tokenizer(folder, "<|endoftext|>")
    torch.manual_seed(0)
    text = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.CLIPConfig(
        text_config={
            **text, "vocab_size": vocabulary, "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1,
        },
        vision_config=vision_config(), projection_dim=24,
    )  # fmt: skip
    net = transformers.CLIPModel(config)
    randomise(torch, net)
    net.save_pretrained(folder)
    save_processor(folder)


def save_aesthetics(folder: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(1)
    net = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(**vision_config(), projection_dim=24)
    )
    randomise(torch, net)
    net.save_pretrained(folder)
    save_processor(folder)
    said = json.loads((folder / "config.json").read_text())
    said |= {"model_type": "aesthetics_predictor", "architectures": ["AestheticsPredictorV2Linear"]}
    (folder / "config.json").write_text(json.dumps(said))
    save_head(folder / "model.safetensors", load_file(folder / "model.safetensors"), "", 24)


def save_head(path: Path, tensors: dict[str, np.ndarray], prefix: str, width: int) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, out in zip((0, 2, 4, 6, 7), (1024, 128, 64, 16, 1), strict=True):
        shapes |= linear(f"{prefix}layers.{layer}", out, width)
        width = out
    save_file({**tensors, **drawn(shapes, 2)}, path, metadata={"format": "pt"})


def save_hpsv2(folder: Path, vocabulary: int = 0) -> None:
    """As OpenCLIP names its tensors; without a ``vocabulary`` with a tokenizer of single bytes."""
    vocabulary = vocabulary or save_clip_tokenizer(folder, "!")
    widths = {"visual.transformer": WIDTH, "transformer": 48}
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (), "positional_embedding": (77, 48), "text_projection": (48, 24),
        "token_embedding.weight": (vocabulary, 48), "visual.class_embedding": (WIDTH,), "visual.proj": (WIDTH, 24),
        "visual.conv1.weight": (WIDTH, 3, PATCH, PATCH), "visual.positional_embedding": (17, WIDTH),
    }  # fmt: skip
    shapes |= norm("ln_final", 48) | norm("visual.ln_pre") | norm("visual.ln_post")
    for at, width in widths.items():
        for block in (f"{at}.resblocks.0", f"{at}.resblocks.1"):
            shapes |= norm(f"{block}.ln_1", width) | norm(f"{block}.ln_2", width)
            shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
            shapes |= linear(f"{block}.attn.out_proj", width, width)
            shapes |= linear(f"{block}.mlp.c_fc", 4 * width, width) | linear(f"{block}.mlp.c_proj", width, 4 * width)
    folder.mkdir(exist_ok=True)
    halves = {name: np.asarray(tensor, np.float16) for name, tensor in drawn(shapes).items()}
    save_file(halves, folder / "open_clip_model.safetensors")
    said = {
        "embed_dim": 24,
        "vision_cfg": {
            "image_size": SIDE, "layers": 2, "width": WIDTH, "head_width": 32, "patch_size": PATCH, "mlp_ratio": 4.0,
        },
        "text_cfg": {"context_length": 77, "vocab_size": vocabulary, "width": 48, "heads": 4, "layers": 2},
    }  # fmt: skip
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": said, "preprocess_cfg": {}}))


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "of", "very", "many", "##s", ",", "ein"]


def save_imagereward(folder: Path) -> None:
    """As ImageReward names its tensors: BLIP's vision and text, two projections that nothing uses, and the head."""
    at, to, text = "blip.visual_encoder", "blip.text_encoder", 128
    shapes: dict[str, tuple[int, ...]] = {
        f"{at}.cls_token": (1, 1, WIDTH), f"{at}.pos_embed": (1, 17, WIDTH),
        f"{at}.patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH), f"{at}.patch_embed.proj.bias": (WIDTH,),
        f"{to}.embeddings.word_embeddings.weight": (len(WORDS) + 2, text),
        f"{to}.embeddings.position_embeddings.weight": (40, text),
    }  # fmt: skip
    shapes |= norm(f"{at}.norm") | norm(f"{to}.embeddings.LayerNorm", text)
    for block in (f"{at}.blocks.0", f"{at}.blocks.1"):
        shapes |= norm(f"{block}.norm1") | norm(f"{block}.norm2")
        shapes |= linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH) | linear(f"{block}.attn.proj", WIDTH, WIDTH)
        shapes |= linear(f"{block}.mlp.fc1", 4 * WIDTH, WIDTH) | linear(f"{block}.mlp.fc2", WIDTH, 4 * WIDTH)
    for layer in (f"{to}.encoder.layer.0", f"{to}.encoder.layer.1"):
        for kind, width in (("attention", text), ("crossattention", WIDTH)):
            shapes |= linear(f"{layer}.{kind}.self.query", text, text)
            shapes |= linear(f"{layer}.{kind}.self.key", text, width) | linear(
                f"{layer}.{kind}.self.value", text, width
            )
            shapes |= linear(f"{layer}.{kind}.output.dense", text, text) | norm(
                f"{layer}.{kind}.output.LayerNorm", text
            )
        shapes |= linear(f"{layer}.intermediate.dense", 96, text) | linear(f"{layer}.output.dense", text, 96)
        shapes |= norm(f"{layer}.output.LayerNorm", text)
    shapes |= linear("blip.vision_proj", 16, WIDTH) | linear("blip.text_proj", 16, text)
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    places = {f"{to}.embeddings.position_ids": np.arange(40)[None]}
    save_head(folder / "model.safetensors", drawn(shapes) | places, "mlp.", text)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("torch")
    root = tmp_path_factory.mktemp("judges")
    for save in (save_pickscore, save_aesthetics, save_hpsv2, save_imagereward):
        save(root / save.__name__.removeprefix("save_"))
    return {name: root / name for name in MAKERS}


@pytest.fixture(scope="module")
def judges(folders: dict[str, Path]) -> dict[str, Scorer]:
    return {name: MAKERS[name](folder) for name, folder in folders.items()}


# --- formulas by hand -----------------------------------------------------------------------------------------------


def squares(pictures: list[np.ndarray], half: Callable[[int], int] = lambda spare: spare // 2) -> Any:
    """Shorter edge, bicubic; middle, whose first place ``half`` says (transformers rounds it down); CLIP's numbers."""
    import torch

    found = []
    for image in pictures:
        height, width = (int(SIDE * edge / min(image.shape[:2])) for edge in image.shape[:2])
        resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC), float) / 255
        top, left = half(height - SIDE), half(width - SIDE)
        found.append((resized[top : top + SIDE, left : left + SIDE] - released.MEAN) / released.DEVIATION)
    return torch.from_numpy(np.stack(found).transpose(0, 3, 1, 2)).float()


def test_pickscore_is_clips_logit_of_each_pair(folders, judges):
    import torch
    import transformers

    net = transformers.CLIPModel.from_pretrained(folders["pickscore"]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["pickscore"])
    texts = [prompt["prompt"] for prompt in PROMPTS]
    said = tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        logits = net(pixel_values=squares(PICTURES), **said).logits_per_image.numpy()
    assert net.logit_scale.exp() > 5
    assert np.ptp(np.diag(logits)) > 0.1
    np.testing.assert_allclose(judges["pickscore"].score(PICTURES, PROMPTS), np.diag(logits), rtol=1e-4, atol=1e-4)


def test_aesthetics_is_a_linear_function_of_the_embeddings_direction(folders, judges):
    import torch
    import transformers

    tensors = load_file(folders["aesthetics"] / "model.safetensors")
    net = transformers.CLIPVisionModelWithProjection.from_pretrained(folders["aesthetics"]).eval()
    with torch.no_grad():
        x = net(pixel_values=squares(PICTURES)).image_embeds.double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(judges["aesthetics"].score(PICTURES, PROMPTS), by_hand(tensors, "", x), rtol=1e-4)


def by_hand(tensors: dict[str, np.ndarray], prefix: str, x: np.ndarray) -> np.ndarray:
    """The head's five layers."""
    for layer in (0, 2, 4, 6, 7):
        x = x @ tensors[f"{prefix}layers.{layer}.weight"].T.astype(float) + tensors[f"{prefix}layers.{layer}.bias"]
    return x[:, 0]


class Hand:
    """The layers of a checkpoint by name, in double precision."""

    def __init__(self, path: Path) -> None:
        import torch

        self.torch, self.functional = torch, torch.nn.functional
        self.of = {name: torch.from_numpy(x.astype(np.float64)) for name, x in load_file(path).items()}

    def linear(self, name: str, x: Any) -> Any:
        return x @ self.of[f"{name}.weight"].T + self.of[f"{name}.bias"]

    def norm(self, name: str, x: Any, eps: float) -> Any:
        x = x - x.mean(-1, keepdim=True)
        return (
            x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * self.of[f"{name}.weight"] + self.of[f"{name}.bias"]
        )

    def attend(self, q: Any, k: Any, v: Any, heads: int, seen: Any) -> Any:
        """Softmax attention in ``heads`` parts; ``seen[..., i, j]`` says whether i sees j."""
        q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
        logits = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~seen, -self.torch.inf)
        return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)

    def patches(self, name: str, pixels: Any) -> Any:
        return self.functional.conv2d(pixels.double(), self.of[name], stride=PATCH).flatten(2).transpose(1, 2)


def open_clip_block(hand: Hand, at: str, x: Any, heads: int, seen: Any) -> Any:
    y = hand.norm(f"{at}.ln_1", x, 1e-5)
    q, k, v = (y @ hand.of[f"{at}.attn.in_proj_weight"].T + hand.of[f"{at}.attn.in_proj_bias"]).chunk(3, -1)
    x = x + hand.linear(f"{at}.attn.out_proj", hand.attend(q, k, v, heads, seen))
    y = hand.functional.gelu(hand.linear(f"{at}.mlp.c_fc", hand.norm(f"{at}.ln_2", x, 1e-5)))
    return x + hand.linear(f"{at}.mlp.c_proj", y)


def padded(pictures: list[np.ndarray]) -> Any:
    """HPSv2's pictures as the released code prepares them: numbers are resized by torch, smoothing where smaller."""
    import torch

    found = []
    for image in pictures:
        height, width = image.shape[:2]
        scale = SIDE / max(height, width)
        size = round(height * scale), round(width * scale)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].double() / 255
        resized = torch.nn.functional.interpolate(pixels, size=size, mode="bicubic", antialias=True)[0]
        tall, wide = SIDE - size[0], SIDE - size[1]
        found.append(
            torch.nn.functional.pad(resized, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2))
        )  # fmt: skip
    mean, std = (torch.from_numpy(x).double()[:, None, None] for x in (released.MEAN, released.DEVIATION))
    return (torch.stack(found) - mean) / std


def test_hpsv2_is_openclips_cosine(folders, judges):
    import torch

    hand = Hand(folders["hpsv2"] / "open_clip_model.safetensors")
    x = hand.patches("visual.conv1.weight", padded(PICTURES))
    x = torch.cat([hand.of["visual.class_embedding"].expand(len(x), 1, -1), x], 1)
    x = hand.norm("visual.ln_pre", x + hand.of["visual.positional_embedding"], 1e-5)
    for block in range(2):
        x = open_clip_block(hand, f"visual.transformer.resblocks.{block}", x, 2, torch.ones(17, 17, dtype=torch.bool))
    image = hand.norm("visual.ln_post", x[:, 0], 1e-5) @ hand.of["visual.proj"]

    texts = ["", "A  red cat!", "don't: 8K", "very " * 60]
    number = json.loads((folders["hpsv2"] / "vocab.json").read_text())
    rows = torch.zeros(len(texts), 77, dtype=torch.long)
    for row, text in zip(rows, texts, strict=True):
        words = re.findall(r"'t|[a-z]+|[0-9]|[^a-z\s]+", text.lower())
        own = [number[letter] for word in words for letter in (*word[:-1], word[-1] + "</w>")][:75]
        row[: len(own) + 2] = torch.tensor([number["<|startoftext|>"], *own, number["<|endoftext|>"]])
    x = hand.of["token_embedding.weight"][rows] + hand.of["positional_embedding"]
    for block in range(2):
        before = torch.ones(77, 77, dtype=torch.bool).tril()
        x = open_clip_block(hand, f"transformer.resblocks.{block}", x, 4, before)
    ends = hand.norm("ln_final", x, 1e-5)[torch.arange(len(rows)), rows.argmax(-1)]
    expected = torch.cosine_similarity(image, ends @ hand.of["text_projection"]).numpy()
    assert np.ptp(expected) > 0.05
    found = judges["hpsv2"].score(PICTURES, [{"prompt": text} for text in texts])
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_hpsv2_is_what_open_clip_itself_says(tmp_path):
    try:
        import open_clip
    except Exception as error:  # not installed, or for another torch
        pytest.skip(f"open_clip cannot be imported: {error}")
    import torch
    import transformers

    theirs = open_clip.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    folder = tmp_path / "hps"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({names.get(word, word): i for word, i in theirs.encoder.items()}))
    merges = "\n".join(" ".join(pair) for pair in theirs.bpe_ranks)
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges + "\n")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    transformers.CLIPTokenizer(*files, pad_token="!").save_pretrained(folder)
    save_hpsv2(folder, theirs.vocab_size)
    said = [
        "“Curly” quotes &amp; ﬁne   ligatures",
        "Don't: 1024x1024, 8K!!",
        "naïve café 東京",
        "ＦＵＬＬ width",
        "x " * 90,
    ]
    prompts = [*PROMPTS, *({"prompt": text} for text in said)]
    pictures = [PICTURES[i % len(PICTURES)] for i in range(len(prompts))]
    net = open_clip.create_model(f"local-dir:{folder}").eval()
    with torch.no_grad():
        image = net.encode_image(padded(pictures).float(), normalize=True)
        text = net.encode_text(theirs([prompt["prompt"] for prompt in prompts]), normalize=True)
    expected = (image * text).sum(-1).numpy()
    np.testing.assert_allclose(preference.hpsv2(folder).score(pictures, prompts), expected, atol=2e-6)


def bert_attention(hand: Hand, at: str, x: Any, other: Any, seen: Any) -> Any:
    q, k, v = hand.linear(f"{at}.self.query", x), *(hand.linear(f"{at}.self.{own}", other) for own in ("key", "value"))
    y = hand.linear(f"{at}.output.dense", hand.attend(q, k, v, 2, seen))
    return hand.norm(f"{at}.output.LayerNorm", x + y, 1e-12)


def test_imagereward_is_blip_with_cross_attention_and_its_head(folders, judges):
    import torch

    path = folders["imagereward"] / "model.safetensors"
    hand, at, to = Hand(path), "blip.visual_encoder", "blip.text_encoder"
    x = hand.patches(f"{at}.patch_embed.proj.weight", squares(PICTURES, lambda spare: round(spare / 2)))
    x = x + hand.of[f"{at}.patch_embed.proj.bias"]
    x = torch.cat([hand.of[f"{at}.cls_token"].expand(len(x), 1, -1), x], 1) + hand.of[f"{at}.pos_embed"]
    for block in (f"{at}.blocks.0", f"{at}.blocks.1"):
        q, k, v = hand.linear(f"{block}.attn.qkv", hand.norm(f"{block}.norm1", x, 1e-6)).chunk(3, -1)
        seen = torch.ones(17, 17, dtype=torch.bool)
        x = x + hand.linear(f"{block}.attn.proj", hand.attend(q, k, v, 1, seen))
        y = hand.functional.gelu(hand.linear(f"{block}.mlp.fc1", hand.norm(f"{block}.norm2", x, 1e-6)))
        x = x + hand.linear(f"{block}.mlp.fc2", y)
    image = hand.norm(f"{at}.norm", x, 1e-6)

    words = {"": [], "a red cats [ENC]": [5, 6, 7, 11, 15], "Red, zzz": [6, 12, 1], "very " * 60: [9] * 33}
    rows = torch.tensor([[2, *own, 3] + [0] * (33 - len(own)) for own in words.values()])
    real = (rows != 0)[:, None, None]
    y = hand.of[f"{to}.embeddings.word_embeddings.weight"][rows]
    y = hand.norm(f"{to}.embeddings.LayerNorm", y + hand.of[f"{to}.embeddings.position_embeddings.weight"][:35], 1e-12)
    for layer in (f"{to}.encoder.layer.0", f"{to}.encoder.layer.1"):
        y = bert_attention(hand, f"{layer}.attention", y, y, real)
        y = bert_attention(hand, f"{layer}.crossattention", y, image, torch.tensor(True))
        z = hand.linear(f"{layer}.output.dense", hand.functional.gelu(hand.linear(f"{layer}.intermediate.dense", y)))
        y = hand.norm(f"{layer}.output.LayerNorm", y + z, 1e-12)
    expected = (by_hand(load_file(path), "mlp.", y[:, 0].numpy()) - 0.16717362830052426) / 1.0333394966054072
    assert np.ptp(expected) > 0.01
    found = judges["imagereward"].score(PICTURES, [{"prompt": text} for text in words])
    np.testing.assert_allclose(found, expected, atol=3e-6)


def test_pictures_are_prepared_as_torchvision_does():
    try:
        from torchvision import transforms
        from torchvision.transforms import InterpolationMode
    except Exception as error:  # not installed, or for another torch
        pytest.skip(f"torchvision cannot be imported: {error}")
    prepare = transforms.Compose([transforms.Resize(SIDE, InterpolationMode.BICUBIC), transforms.CenterCrop(SIDE)])
    odd = [RNG.integers(0, 256, (*size, 3)).astype(np.uint8) for size in ((29, 28), (28, 31), (1, 9), (513, 300))]
    for image in [*PICTURES, *odd]:
        expected = np.asarray(prepare(Image.fromarray(image)), np.float32)
        np.testing.assert_array_equal(released.cropped(image, SIDE), expected)


# --- what holds of each ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_a_score_is_of_its_own_picture_and_prompt_alone(judges, name):
    score = judges[name].score
    found = score(PICTURES, PROMPTS)
    assert all(isinstance(value, float) and np.isfinite(value) for value in found)
    assert json.loads(json.dumps(found)) == found
    assert score(PICTURES, PROMPTS) == found
    others = [PICTURES[0], *(np.full((50, 50, 3), shade, np.uint8) for shade in (0, 99, 255))]
    assert score(others, [PROMPTS[0], *reversed(PROMPTS[:3])])[0] == found[0]
    alone = [score([image], [prompt])[0] for image, prompt in zip(PICTURES, PROMPTS, strict=True)]
    np.testing.assert_allclose(alone, found, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(score(PICTURES * 9, PROMPTS * 9), found * 9, rtol=1e-5, atol=1e-5)  # 36: two batches
    assert score([], []) == []
    turned = score(PICTURES, PROMPTS[::-1])
    assert (turned == found) == (name == "aesthetics")
    assert score([np.zeros((1, 1, 3), np.uint8)], [{"prompt": "a cat"}])[0] is not None


@pytest.mark.parametrize("name", MAKERS)
def test_the_digest_is_of_weights_and_words(folders, judges, tmp_path, name):
    shutil.copytree(folders[name], tmp_path / "copy")
    assert MAKERS[name](tmp_path / "copy").digest == judges[name].digest
    assert judges[name].name == name
    assert len({judge.digest for judge in judges.values()}) == len(MAKERS)
    [file] = (tmp_path / "copy").glob("*.safetensors")
    tensors = load_file(file)
    changed = next(key for key in sorted(tensors) if key.endswith("bias"))
    tensors[changed] = tensors[changed] + tensors[changed].dtype.type(1)
    save_file(tensors, file, metadata={"format": "pt"})
    assert MAKERS[name](tmp_path / "copy").digest != judges[name].digest


@pytest.mark.parametrize("name", MAKERS)
def test_another_folder_is_one_line(folders, tmp_path, name):
    for other, folder in folders.items():
        if other != name:
            assert str(folder) in error(name, folder)
    assert "no such folder" in error(name, tmp_path / "nowhere")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    assert "a pickle" in error(name, tmp_path)


@pytest.mark.parametrize("name", MAKERS)
def test_lacking_tensors_and_broken_files_are_one_line(folders, tmp_path, name):
    shutil.copytree(folders[name], tmp_path / "less")
    [file] = (tmp_path / "less").glob("*.safetensors")
    tensors = load_file(file)
    lacking = {"pickscore": "visual_projection.weight", "hpsv2": "visual.ln_post.bias", "aesthetics": "layers.4.bias",
               "imagereward": "blip.text_encoder.encoder.layer.1.crossattention.self.key.bias"}[name]  # fmt: skip
    save_file({key: x for key, x in tensors.items() if key != lacking}, file, metadata={"format": "pt"})
    assert lacking in error(name, tmp_path / "less")
    save_file(tensors | {lacking: np.zeros((3, 3), np.float32)}, file, metadata={"format": "pt"})
    assert error(name, tmp_path / "less")
    if name != "pickscore":
        save_file(tensors | {"layers.1.weight": np.zeros(3, np.float32)}, file, metadata={"format": "pt"})
        assert "layers.1.weight" in error(name, tmp_path / "less")
    file.write_bytes(b"no such thing")
    assert "cannot be read" in error(name, tmp_path / "less")


@pytest.mark.parametrize("name, file", [
    ("pickscore", "preprocessor_config.json"), ("aesthetics", "preprocessor_config.json"),
    ("pickscore", "tokenizer.json"), ("hpsv2", "vocab.json"), ("hpsv2", "merges.txt"), ("imagereward", "vocab.txt"),
    ("hpsv2", "open_clip_config.json"), ("pickscore", "config.json"),
])  # fmt: skip
def test_a_folder_without_its_words_or_settings_is_one_line(folders, tmp_path, name, file):
    shutil.copytree(folders[name], tmp_path / "less")
    for path in (file, *(("vocab.json", "merges.txt") if file == "tokenizer.json" else ())):
        (tmp_path / "less" / path).unlink(missing_ok=path != file)
    assert str(tmp_path) in error(name, tmp_path / "less")


@pytest.mark.parametrize("change, words", [
    ({"vision_cfg": {"timm_model_name": "resnet50"}}, "timm_model_name"), ({"embed_dim": "many"}, "configuration"),
    ({"text_cfg": None}, "configuration"), ({"embed_dim": 23}, "visual.proj"), ({"custom_text": True}, "custom_text"),
])  # fmt: skip
def test_another_model_of_open_clip_is_one_line(folders, tmp_path, change, words):
    shutil.copytree(folders["hpsv2"], tmp_path / "other")
    path = tmp_path / "other" / "open_clip_config.json"
    said = json.loads(path.read_text())
    for key, value in change.items():
        said["model_cfg"][key] = said["model_cfg"][key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(said))
    assert words in error("hpsv2", tmp_path / "other")


def test_judges_are_chosen_by_name(folders, judges):
    chosen = choose.preference(folders)
    assert [judge.name for judge in chosen] == list(choose.PREFERENCE) == list(MAKERS)
    assert [judge.digest for judge in chosen] == [judge.digest for judge in judges.values()]
