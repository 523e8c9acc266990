"""Detectors and answerers of others: each code path runs on a tiny random checkpoint that is saved to disk, beside a
direct computation; the rules around them run on what is made up."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from scipy.interpolate import RegularGridInterpolator
from tiny_torch import randomise, save_clip_tokenizer

from sd3_jax import records
from sd3_jax.cli import main
from sd3_jax.errors import UserError
from sd3_jax.evaluation import coco, compbench, compbench_files, compbench_prompts, features, upstream
from sd3_jax.evaluation.compbench import Senses
from sd3_jax.evaluation.compbench_prompts import Parsed, Parser, Word
from sd3_jax.scorers import answers, detector, open_vocabulary
from sd3_jax.scorers import compbench as judges
from sd3_jax.scorers import depth as depths
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
    frame = pd.read_json(tmp_path / "results.jsonl", orient="records", lines=True)  # as summary_scores.py reads it
    assert frame.groupby("tag", sort=False)["correct"].mean().tolist() == [row["value"] for row in scores[1:]]
    assert frame.groupby("metadata")["correct"].any().sum() == 3
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
        net.class_predictor.weight.mul_(10)
        net.model.transformer_module.queries_features.weight.mul_(3)
    folder = tmp_path_factory.mktemp("mask2former")
    net.save_pretrained(folder)
    Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def instances(net: Any, image: np.ndarray, size: tuple[int, int]) -> list[tuple[str, float, np.ndarray]]:
    """Pair by pair, in NumPy: the likeliest hundred, each scored by its class and by its mask's mean belief."""
    import torch

    with torch.no_grad():
        out = net(torch.from_numpy(prepared(image, size, IMAGENET_MEAN, IMAGENET_STD, "BILINEAR")))
    logits = out.class_queries_logits[0].numpy().astype(float)
    belief = np.exp(logits - logits.max(1, keepdims=True))
    belief = (belief / belief.sum(1, keepdims=True))[:, :80]
    logits = out.masks_queries_logits[0].numpy().astype(float)
    masks = [enlarged(enlarged(one, size), image.shape[:2]) for one in logits]
    inside = [np.mean(1 / (1 + np.exp(-mask[mask > 0]))) if (mask > 0).any() else 0.0 for mask in masks]
    found = []
    for pair in np.argsort(-belief.ravel())[:100]:
        query, label = divmod(int(pair), 80)
        found.append((coco.CLASSES[label], belief[query, label] * inside[query], masks[query] > 0))
    return sorted(found, key=lambda one: -one[1])


@pytest.mark.parity
def test_instances_are_the_likeliest_pairs_of_queries_and_classes(mask2former: Path) -> None:
    import transformers

    net = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(mask2former).eval()
    find = detector.load_mask2former(mask2former)
    numbers = []
    for image, size in zip(PICTURES, ((800, 1088), (800, 800), (1344, 800)), strict=True):
        every = instances(net, image, size)
        for least in (0.3, 0.02):
            found, expected = find(image, least), [one for one in every if one[1] > least]
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


# --- what T2I-CompBench's categories look with ----------------------------------------------------------------------

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    import transformers
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "yes", "a", "the", "red", "blue", "big", "cup", "dog"]
    words += ["hat", "on", "?"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    ends = {"bos_token_id": len(words), "pad_token_id": 0, "sep_token_id": 3, "eos_token_id": 2}
    net = transformers.BlipForQuestionAnswering(transformers.BlipConfig(
        text_config={**SMALL, **ends, "encoder_hidden_size": 16, "vocab_size": len(words) + 2},
        vision_config={**SMALL, "image_size": 64, "patch_size": 16}, projection_dim=12,
    ))  # fmt: skip
    for _ in range(3):
        randomise(torch, net)
    net.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    import transformers
    from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("weights") / "owlv2"
    words = save_clip_tokenizer(folder, "!")
    net = transformers.Owlv2ForObjectDetection(transformers.Owlv2Config(
        text_config={**SMALL, "vocab_size": words, "max_position_embeddings": 32, "eos_token_id": words - 1},
        vision_config={**SMALL, "image_size": 96, "patch_size": 16}, projection_dim=16,
    ))  # fmt: skip
    randomise(torch, net)
    with torch.no_grad():  # boxes stay near where they are looked for
        net.box_head.dense2.weight.mul_(0.02)
    net.save_pretrained(folder)
    Owlv2ImageProcessorPil(size={"height": 96, "width": 96}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    import transformers
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("dpt")
    backbone = transformers.BitConfig(
        embedding_size=32, hidden_sizes=[32, 32, 64], depths=[1, 1, 1], num_groups=8, layer_type="bottleneck",
        embedding_dynamic_padding=True, global_padding="same", out_features=["stage1", "stage2", "stage3"],
    )  # fmt: skip
    net = transformers.DPTForDepthEstimation(transformers.DPTConfig(
        **{**SMALL, "num_hidden_layers": 4}, is_hybrid=True, backbone_config=backbone, image_size=64, patch_size=16,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[32, 32, 16, 16], fusion_hidden_size=16,
        backbone_featmap_shape=[1, 64, 4, 4], reassemble_factors=[1, 1, 1, 0.5], neck_ignore_stages=[0, 1],
    ))  # fmt: skip
    randomise(torch, net)
    net.save_pretrained(folder)
    said = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    DPTImageProcessorPil(size={"height": 48, "width": 48}, keep_aspect_ratio=True, **said).save_pretrained(folder)
    tensors = {k: x for k, x in load_file(folder / "model.safetensors").items() if "layers.0.residual_layer1" not in k}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})  # as the released ones lack them
    return folder


@pytest.mark.parity
def test_p_yes_is_yes_against_no_as_the_answers_first_word(blip: Path) -> None:
    import torch
    import transformers

    net = transformers.BlipForQuestionAnswering.from_pretrained(blip).eval()
    words = (blip / "vocab.txt").read_text().split()
    start, ask = len(words), len(words) + 1
    answer = answers.load_blip(blip)
    asked = {
        "A red cup?": "a red cup ?",
        "the Big (blue) hat: on a dog?": "the big blue hat on a dog ?",
        "dog?": "dog ?",
    }
    found = [answer(image, list(asked)) for image in PICTURES]
    for image, row in zip(PICTURES, found, strict=True):
        pixels = torch.from_numpy(prepared(image, (480, 480), CLIP_MEAN, CLIP_STD, "BICUBIC"))
        for said, value in zip(asked.values(), row, strict=True):
            ids = torch.tensor([[ask, *(words.index(word) for word in said.split()), words.index("[SEP]")]])
            with torch.no_grad():
                seen_ = net.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
                read = net.text_encoder(ids, encoder_hidden_states=seen_).last_hidden_state
                logits = net.text_decoder(torch.tensor([[start]]), encoder_hidden_states=read).logits[0, 0].numpy()
            yes, no = np.exp(logits[words.index("yes")]), np.exp(logits[words.index("no")])
            assert value == pytest.approx(yes / (yes + no), abs=1e-4)
    assert np.ptp(found) > 0.02
    assert answer(PICTURES[0], ["dog?"])[0] == pytest.approx(found[0][2], abs=1e-5)  # whoever else is asked


def shared(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union."""
    width, height = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    return width * height / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - width * height)


@pytest.mark.parity
def test_what_is_named_is_found_where_transformers_finds_it(owlv2: Path) -> None:
    import torch
    import transformers

    net = transformers.Owlv2ForObjectDetection.from_pretrained(owlv2).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(owlv2, backend="pil")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(owlv2)
    detect = open_vocabulary.load_owlv2(owlv2)
    nouns = ["dog", "red cup", "hat"]
    said = tokenizer([f"a photo of a {noun}" for noun in nouns], padding="max_length", max_length=32, truncation=True,
                     return_tensors="pt")  # fmt: skip
    square = np.asarray(Image.fromarray(PICTURES[0]).resize((96, 96)))
    hidden = 0
    for image in (*PICTURES, square):
        pixels = processor(images=[Image.fromarray(image)], return_tensors="pt")["pixel_values"]
        if image is square:
            np.testing.assert_allclose(pixels, prepared(image, (96, 96), CLIP_MEAN, CLIP_STD, "BICUBIC"), atol=1e-5)
        with torch.no_grad():
            out = net(pixel_values=pixels, input_ids=said["input_ids"], attention_mask=said["attention_mask"])
        height, width = image.shape[:2]
        (expected,) = processor.post_process_object_detection(out, 0.1, [(height, width)])
        expected = {key: value.numpy() for key, value in expected.items()}
        expected["boxes"] = expected["boxes"].clip(0, np.array([width, height] * 2))
        found = detect(image, nouns)
        assert sum(map(len, found.values())) > 2
        for label, noun in enumerate(nouns):
            there = (expected["labels"] == label) & (expected["boxes"][:, :2] < expected["boxes"][:, 2:]).all(1)
            own = sorted(zip(expected["scores"][there], expected["boxes"][there], strict=True), key=lambda one: -one[0])
            kept = list[Any]()
            for one in own:
                kept += [one] if all(shared(one[1], other) <= 0.5 for _, other in kept) else []
            assert [one.score for one in found[noun]] == pytest.approx([score for score, _ in kept], rel=1e-4)
            for placed, (_, box) in zip(found[noun], kept, strict=True):
                np.testing.assert_allclose(placed.box, box, atol=1e-2)
            hidden += len(own) - len(kept)
    assert hidden > 0
    assert sum(bool(own) for own in found.values()) > 1


@pytest.mark.parity
def test_nearness_is_what_the_network_sees_in_a_square_stretched_over_the_picture(dpt: Path) -> None:
    import torch
    import transformers

    net = transformers.DPTForDepthEstimation.from_pretrained(dpt).eval()
    net.dpt.embeddings.image_size = (480, 480)
    depth = depths.load_dpt(dpt)
    for image in PICTURES:
        with torch.no_grad():
            pixels = torch.from_numpy(prepared(image, (480, 480), [0.5] * 3, [0.5] * 3, "BILINEAR"))
            near = net(pixel_values=pixels).predicted_depth[0].numpy().astype(float)
        near = (near - near.min()) / (near.max() - near.min())
        rows, columns = (np.linspace(0, 479, number) for number in image.shape[:2])
        expected = RegularGridInterpolator((np.arange(480), np.arange(480)), near)(
            tuple(np.meshgrid(rows, columns, indexing="ij"))
        )
        found = depth(image)
        assert found.shape == image.shape[:2]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert found.std() > 0.01


@pytest.mark.parity
@pytest.mark.parametrize("category", compbench_files.CATEGORIES)
def test_a_categorys_scorer_is_its_rule_over_its_networks(
    category: str, blip: Path, owlv2: Path, dpt: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(prompt: str) -> Parsed:
        words = [Word(word, "ADJ" if word == "red" else "NOUN") for word in prompt.split()]
        return Parsed(prompt, tuple(words), ("a red dog", "the cup"))

    monkeypatch.setattr(compbench_prompts, "parser", lambda: Parser("words", parse))
    folders = {"blip": blip, "owlv2": owlv2, "dpt": dpt, "clip": clip}
    scorer = judges.compbench_scorer(category, folders)
    others = {"non_spatial": "compbench-clip", **dict.fromkeys(("color", "shape", "texture"), "compbench")}
    assert scorer.name == f"{others.get(category, 'compbench-owlv2')}/{category}"
    assert ("words" in scorer.digest) is (category not in ("numeracy", "non_spatial"))
    said = {"prompt": "red dog in front of cup" if category == "3d_spatial" else "red dog on the left of cup",
            "objects": {"dog": 2, "cup": 1}, "parts": ["spatial", "action"]}  # fmt: skip
    values = scorer.score(PICTURES, [said] * 3)
    senses = Senses(answers.load_blip(blip), open_vocabulary.load_owlv2(owlv2), depths.load_dpt(dpt),
                    judges.load_similarity(clip))  # fmt: skip
    expected = [compbench.score(category, image, said, senses, Parser("words", parse)) for image in PICTURES]
    assert values == pytest.approx(expected, abs=1e-6)
    assert json.loads(json.dumps(values)) == values
    if category == "non_spatial":
        extractor = features.load(f"clip={clip}")
        one, other = extractor.embed(PICTURES[:1])[0], extractor.texts([said["prompt"]])[0]  # type: ignore[misc]
        assert values[0] == pytest.approx(one @ other / np.linalg.norm(one) / np.linalg.norm(other), abs=1e-5)


@pytest.mark.parity
def test_what_a_category_lacks_is_one_line(blip: Path, owlv2: Path, clip: Path, tmp_path: Path) -> None:
    assert "no category" in error(judges.compbench_scorer, "colour", {})
    assert "needs folders of owlv2, dpt; there is none of dpt" in error(
        judges.compbench_scorer, "3d_spatial", {"owlv2": owlv2}
    )
    for category, folders, kinds in (
        ("color", {"blip": clip}, "of type clip, not blip"), ("spatial", {"owlv2": blip}, "of type blip, not owlv2"),
        ("3d_spatial", {"owlv2": owlv2, "dpt": clip}, "of type clip, not dpt"),
        ("non_spatial", {"clip": owlv2}, "of type owlv2, not clip"),
        ("numeracy", {"owlv2": tmp_path / "nowhere"}, "no such folder"),
    ):  # fmt: skip
        assert kinds in error(judges.compbench_scorer, category, folders)
    shutil.copytree(blip, tmp_path / "blip")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "blip" / name).unlink()
    (tmp_path / "blip" / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no"]))
    assert "words are not those of BLIP" in error(answers.load_blip, tmp_path / "blip")


def test_a_question_is_read_as_blip_was_taught() -> None:
    assert answers.plain('A "Red" cup: (big); the best!?') == "a red cup big the best?"
    assert answers.plain(" ".join("abc" for _ in range(60))).count("abc") == 50


# --- as a user has it -----------------------------------------------------------------------------------------------


def run(*said: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(one) for one in said])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parity
def test_a_folders_results_are_what_its_scores_are_of(mask2former: Path, clip: Path, tmp_path: Path) -> None:
    for number, prompt in enumerate(coco.geneval_prompts()[:3]):
        folder = tmp_path / f"{number:05d}" / "samples"
        folder.mkdir(parents=True)
        (folder.parent / "metadata.jsonl").write_text(json.dumps(prompt) + "\n")
        Image.fromarray(PICTURES[number]).save(folder / "0000.png")
    judged = ("--suite", "geneval", "--scorer", f"mask2former={mask2former}", "--scorer", f"clip={clip}")
    assert run("evaluate", tmp_path, *judged) == 2  # since the other 550 prompts have no pictures
    scores, _ = records.read_scores(tmp_path / "evals.jsonl")
    found = upstream.read_results(tmp_path / "geneval" / "results.jsonl")
    again = upstream.score_rows(found)
    assert [(row["name"], row["group"], row["value"]) for row in scores] == [
        (row["name"], row["group"], row["value"]) for row in again
    ]
    assert {row["name"] for row in scores} == {"geneval-mask2former-hf"}


@pytest.mark.parity
def test_a_category_is_scored_from_upstreams_files_and_into_them(blip: Path, tmp_path: Path, capsys: Any) -> None:
    lists, folder = tmp_path / "dataset", tmp_path / "drawn" / "color" / "samples"
    lists.mkdir()
    folder.mkdir(parents=True)
    prompts = ["a red cup and a blue dog", "a big hat and a dog"]
    for category in ("color", "shape", "texture"):
        (lists / f"{category}_val.txt").write_text("\n".join(prompts if category == "color" else prompts[:1]))
        (tmp_path / "drawn" / category / "samples").mkdir(exist_ok=True, parents=True)
        for number in range(4 if category == "color" else 2):
            path = (
                tmp_path / "drawn" / category / "samples" / compbench_files.picture_name(prompts[number // 2], number)
            )
            Image.fromarray(PICTURES[number % 3]).save(path)
    asked = ("evaluate", tmp_path / "drawn", "--suite", "compbench", "--compbench", lists, "--images", 2)
    assert run(*asked, "--scorer", f"blip={blip}") == 0
    answered = compbench_files.read_answers(tmp_path / "drawn" / "compbench" / "color" / "vqa_result.json")
    answer = answers.load_blip(blip)
    for number, value in answered.items():
        asked_ = [f"{phrase}?" for phrase in prompts[number // 2].split(" and ")]
        assert value == pytest.approx(np.prod(answer(PICTURES[number % 3], asked_)), abs=1e-6)
    scores, _ = records.read_scores(tmp_path / "drawn" / "evals.jsonl")
    (color,) = [row["value"] for row in scores if (row["name"], row["group"]) == ("compbench", "color")]
    assert color == pytest.approx(np.mean([answered[number] for number in range(4)]), abs=1e-6)
    (lists / "color_val.txt").write_text("A man in a red hat sits on a dog.\n")
    capsys.readouterr()
    if compbench_prompts.parser().name == "templates:1":
        assert run(*asked, "--scorer", f"blip={blip}") == 2
        assert "is of no template" in capsys.readouterr().err
