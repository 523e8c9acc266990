"""Detectors and answerers of others: each code path runs on a tiny random checkpoint that is saved to disk, beside a
direct computation; the rules around them run on what is made up."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_encoders import randomise, save_clip_tokenizer

from sd3_jax.errors import UserError
from sd3_jax.evaluation import coco, features, upstream
from sd3_jax.scorers import detector
from sd3_jax.scorers.detector import Instance

RNG = np.random.default_rng(0)
PICTURES = [
    np.asarray(Image.fromarray(RNG.integers(0, 256, (5, 7, 3)).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC))
    for size in ((64, 48), (80, 80), (37, 61))
]
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def error(call: Callable[..., Any], *given: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def prepared(image: np.ndarray, size: tuple[int, int], mean: list[float], std: list[float], how: str) -> np.ndarray:
    """A picture resized with Pillow to (height, width), and normalised: 1 3 h w."""
    filtering = getattr(Image.Resampling, how)
    resized = np.asarray(Image.fromarray(image).resize(size[::-1], filtering), np.float32) / 255
    return ((resized - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)[None]


def enlarged(rows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Linear interpolation of the last two axes between the middles of pixels, edges held."""
    for axis, number in zip((-2, -1), size, strict=True):
        own = rows.shape[axis]
        at = np.clip((np.arange(number) + 0.5) * own / number - 0.5, 0, own - 1)
        low = np.floor(at).astype(int)
        share = (at - low).reshape(-1, *(1,) * (-axis - 1))
        rows = rows.take(low, axis) * (1 - share) + rows.take(np.minimum(low + 1, own - 1), axis) * share
    return rows


# --- GenEval's rules around a detector ------------------------------------------------------------------------------


def strip(left: int, right: int) -> np.ndarray:
    mask = np.zeros((8, 40), bool)
    mask[2:6, left:right] = True
    return mask


def seen(*found: Instance) -> detector.Find:
    return lambda image, least: [one for one in found if one.score > least]


def no_colour(images: Sequence[np.ndarray], name: str) -> list[str]:
    raise AssertionError("nobody asked for a colour")


BLANK = np.zeros((8, 40, 3), np.uint8)


def test_an_object_needs_more_confidence_where_objects_are_counted() -> None:
    find = seen(
        Instance("cup", 0.95, strip(0, 5)), Instance("cup", 0.5, strip(10, 15)), Instance("cup", 0.3, strip(20, 25))
    )
    (single,) = [row for row in coco.geneval_prompts() if row["prompt"] == "a photo of a cup"]
    found = detector.verdict(BLANK, single, find, no_colour)
    assert found["correct"] is True
    assert found["objects"] == {"cup": [{"box": [0, 2, 5, 6], "score": 0.95}, {"box": [10, 2, 15, 6], "score": 0.5}]}
    two = {"tag": "counting", "prompt": "a photo of two cups", "include": [{"class": "cup", "count": 2}]}
    two["exclude"] = [{"class": "cup", "count": 3}]
    found = detector.verdict(BLANK, two, find, no_colour)
    assert (found["correct"], found["reason"]) == (False, "expected cup>=2, found 1")
    many = seen(*(Instance("cup", 0.99 - i / 1000, strip(i, i + 1)) for i in range(20)))
    assert len(detector.verdict(BLANK, single, many, no_colour)["objects"]["cup"]) == 16


def test_colours_are_told_of_the_surest_objects_of_what_a_clause_asks_for() -> None:
    asked: list[tuple[str, list[tuple[int, ...]]]] = []

    def tell(images: Sequence[np.ndarray], name: str) -> list[str]:
        asked.append((name, [image.shape for image in images]))
        return ["red"] * len(images)

    prompt = {"tag": "color_attr", "prompt": "a photo of a red cup and a blue dog", "include": [
        {"class": "cup", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "color": "blue"}]}  # fmt: skip
    cup, other, dog = (Instance(*one) for one in (("cup", 0.9, strip(0, 6)), ("cup", 0.8, strip(8, 10)),
                                                  ("dog", 0.7, strip(20, 40))))  # fmt: skip
    found = detector.verdict(BLANK, prompt, seen(cup, other, dog), tell)
    assert asked == [("cup", [(4, 6, 3)]), ("dog", [(4, 20, 3)])]
    assert found["objects"]["cup"] == [
        {"box": [0, 2, 6, 6], "score": 0.9, "color": "red"}, {"box": [8, 2, 10, 6], "score": 0.8},
    ]  # fmt: skip
    assert found["reason"] == "expected blue dog>=1, found 0 blue; and 1 red"
    asked.clear()
    detector.verdict(BLANK, prompt, seen(dog), tell)
    assert [name for name, _ in asked] == ["dog"]


def test_an_object_is_cut_out_onto_grey() -> None:
    image = RNG.integers(0, 256, (8, 40, 3)).astype(np.uint8)
    mask = strip(3, 7) & ~strip(4, 5)
    cut = detector.cut_out(image, mask)
    assert cut.shape == (4, 4, 3)
    np.testing.assert_array_equal(cut[:, 1], 0x99)
    np.testing.assert_array_equal(cut[:, [0, 2, 3]], image[2:6, [3, 5, 6]])


def test_classes_are_cocos_each_once_however_they_are_spelled() -> None:
    folder = Path("weights")
    spelled = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard", "tv": "tv monitor"}
    labels = dict(enumerate(spelled.get(name, name) for name in coco.CLASSES))
    assert detector.class_names(folder, labels) == list(coco.CLASSES)
    assert "'wall' is none of the 80" in error(detector.class_names, folder, labels | {3: "wall"})
    assert "0 are COCO's 'person'" in error(detector.class_names, folder, labels | {0: "cup"})
    assert "0 are COCO's 'toothbrush'" in error(detector.class_names, folder, dict(list(labels.items())[:-1]))


def test_results_are_read_back_under_the_judges_own_name(tmp_path: Path) -> None:
    prompts = coco.geneval_prompts()[:6]
    rows = []
    for i, prompt in enumerate(prompts):
        name = prompt["include"][0]["class"] if i % 2 else "nothing"
        said = detector.verdict(BLANK, prompt, seen(Instance(name, 0.9, strip(0, 5))), no_colour)
        rows.append(upstream.result_row(f"{i:05d}/samples/0000.png", prompt, said, detector.NAME))
    upstream.write_results(tmp_path / "results.jsonl", rows)
    found = upstream.read_results(tmp_path / "results.jsonl")
    assert found.correct.tolist() == [False, True] * 3
    assert found.prompts == prompts
    scores = upstream.score_rows(found)
    assert {(row["name"], row["judge"]) for row in scores} == {("geneval-mask2former-hf",) * 2}
    assert scores[0]["value"] == 0.5
    assert json.loads(rows[0]["details"]) == {"nothing": [[0, 2, 5, 6, 0.9]]}
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    theirs = {key: value for key, value in json.loads(lines[0]).items() if key != "judge"}
    (tmp_path / "theirs.jsonl").write_text(json.dumps(theirs) + "\n")
    assert upstream.score_rows(upstream.read_results(tmp_path / "theirs.jsonl"))[0]["name"] == "geneval"
    (tmp_path / "both.jsonl").write_text(lines[0] + "\n" + json.dumps(theirs) + "\n")
    assert "different judges" in error(upstream.read_results, tmp_path / "both.jsonl")


# --- Mask2Former and CLIP -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights") / "clip"
    words = save_clip_tokenizer(folder, "<|endoftext|>")
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": words - 2, "eos_token_id": words - 1}
    net = transformers.CLIPModel(transformers.CLIPConfig(
        text_config={**small, **ends, "vocab_size": words}, projection_dim=12,
        vision_config={**small, "image_size": 28, "patch_size": 7},
    ))  # fmt: skip
    for _ in range(8):
        randomise(torch, net)
    net.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    import transformers
    from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

    torch.manual_seed(1)
    backbone = transformers.SwinConfig(
        embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4, image_size=64,
        out_features=[f"stage{k}" for k in (1, 2, 3, 4)],
    )  # fmt: skip
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, hidden_dim=32, feature_size=32, mask_feature_size=32, encoder_layers=1,
        decoder_layers=3, num_attention_heads=2, dim_feedforward=16, encoder_feedforward_dim=16, num_queries=12,
        id2label=dict(enumerate("mouse" if name == "computer mouse" else name for name in coco.CLASSES)),
    )  # fmt: skip
    net = transformers.Mask2FormerForUniversalSegmentation(config)
    randomise(torch, net)
    with torch.no_grad():  # sure of what it sees, and of different things in different places
        net.class_predictor.weight.mul_(6)
        net.model.transformer_module.queries_features.weight.mul_(3)
    folder = tmp_path_factory.mktemp("mask2former")
    net.save_pretrained(folder)
    Mask2FormerImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


def instances(net: Any, image: np.ndarray, size: tuple[int, int], least: float) -> list[tuple[str, float, np.ndarray]]:
    """Pair by pair, in NumPy: the likeliest hundred, each scored by its class and by its mask's mean belief."""
    import torch

    with torch.no_grad():
        out = net(torch.from_numpy(prepared(image, size, IMAGENET_MEAN, IMAGENET_STD, "BILINEAR")))
    logits = out.class_queries_logits[0].numpy().astype(float)
    belief = np.exp(logits - logits.max(1, keepdims=True))
    belief = (belief / belief.sum(1, keepdims=True))[:, :80]
    found = []
    for pair in np.argsort(-belief.ravel())[:100]:
        query, label = divmod(int(pair), 80)
        mask = enlarged(enlarged(out.masks_queries_logits[0, query].numpy().astype(float), size), image.shape[:2])
        inside = 1 / (1 + np.exp(-mask[mask > 0]))
        score = belief[query, label] * (inside.mean() if inside.size else 0)
        if score > least:
            found.append((coco.CLASSES[label], score, mask > 0))
    return sorted(found, key=lambda one: -one[1])


@pytest.mark.parity
def test_instances_are_the_likeliest_pairs_of_queries_and_classes(mask2former: Path) -> None:
    import transformers

    net = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(mask2former).eval()
    find = detector.load_mask2former(mask2former)
    numbers = []
    for image, size in zip(PICTURES, ((64, 96), (64, 64), (96, 64)), strict=True):
        for least in (0.3, 0.02):
            found, expected = find(image, least), instances(net, image, size, least)
            assert [one.name for one in found] == [name for name, _, _ in expected]
            np.testing.assert_allclose([one.score for one in found], [score for _, score, _ in expected], rtol=1e-3)
            for one, (_, _, mask) in zip(found, expected, strict=True):
                assert np.mean(one.mask != mask) < 1e-3
            numbers.append(len(found))
    assert max(numbers[::2]) > 0
    assert min(numbers[1::2]) > 2
    assert len({one.mask.sum() for one in find(PICTURES[0], 0.02)}) > 2  # and masks differ


@pytest.mark.parity
def test_a_colour_is_the_one_whose_three_sentences_are_likest(clip: Path) -> None:
    import torch
    import transformers

    net = transformers.CLIPModel.from_pretrained(clip).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(clip)
    small = RNG.integers(0, 256, (24, 2, 2, 3)).astype(np.uint8)
    crops = [np.asarray(Image.fromarray(one).resize((28, 28), Image.Resampling.NEAREST)) for one in small]
    pixels = np.concatenate([prepared(crop, (28, 28), CLIP_MEAN, CLIP_STD, "BICUBIC") for crop in crops])
    expected = []
    with torch.no_grad():
        seen_ = net.visual_projection(net.vision_model(torch.from_numpy(pixels)).pooler_output).numpy()
        classes = []
        for color in coco.COLORS:
            total = np.zeros(12)
            for said in (
                f"a photo of a {color} dog",
                f"a photo of a {color}-colored dog",
                f"a photo of a {color} object",
            ):
                given = tokenizer(said, return_tensors="pt")
                text = net.text_projection(net.text_model(given["input_ids"]).pooler_output)[0].numpy()
                total += text / np.sqrt(text @ text)
            classes.append(total / np.sqrt(total @ total))
    expected = [coco.COLORS[int(np.argmax([row @ one for one in classes]))] for row in seen_]
    told = detector.color_teller(features.load(f"clip={clip}"))
    assert told(crops, "dog") == expected
    assert [told([crop], "dog")[0] for crop in crops] == expected
    assert len(set(expected)) > 1


@pytest.mark.parity
def test_genevals_scorer_judges_pictures_of_any_size(mask2former: Path, clip: Path) -> None:
    scorer = detector.geneval(mask2former, clip)
    assert scorer.name == "geneval-mask2former-hf"
    find = detector.load_mask2former(mask2former)
    name = find(PICTURES[1], 0.3)[0].name
    prompts = [row for row in coco.geneval_prompts() if row["tag"] == "colors"][:2]
    prompts.append({"tag": "colors", "prompt": f"a photo of a red {name}", "include": [
        {"class": name, "count": 1, "color": "red"}]})  # fmt: skip
    values = scorer.score([PICTURES[0], PICTURES[2], PICTURES[1]], prompts)
    assert json.loads(json.dumps(values)) == values
    assert set(values[0]) == {"correct", "reason", "objects"}
    color = values[2]["objects"][name][0]["color"]
    assert values[2]["correct"] is (color == "red")
    assert "tag and include" in error(scorer.score, PICTURES[:1], [{"prompt": "a cat"}])
    other = detector.geneval(mask2former, clip)
    assert other.digest == scorer.digest


@pytest.mark.parity
def test_a_folder_of_something_else_is_one_line(clip: Path, mask2former: Path, tmp_path: Path) -> None:
    assert "of type clip, not mask2former" in error(detector.geneval, clip, clip)
    assert "of type mask2former, not clip" in error(detector.geneval, mask2former, mask2former)
    assert "no such folder" in error(detector.geneval, tmp_path / "nowhere", clip)
