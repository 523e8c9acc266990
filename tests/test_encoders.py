"""The paper's frozen encoders against the released pipeline's code, on tiny random models that are saved to disk."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from test_likeness import draw_pictures
from tiny_torch import PROMPTS, randomise, save_encoders, texts_of

from sd3_jax.cli import main
from sd3_jax.data import examples, frozen
from sd3_jax.data.examples import Manifest
from sd3_jax.errors import UserError


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random encoders of the released architectures, where a pipeline's folder has them."""
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("sd3")
    save_encoders(folder)
    return folder


@pytest.fixture(scope="module")
def parts(pipeline: Path) -> list[frozen.TextEncoder]:
    return [frozen.load_text(f"{name}={pipeline}") for name in ("clip-l", "clip-g", "t5")]


def released(folder: Path) -> Any:
    """The pipeline itself, with encoders alone."""
    import diffusers

    return diffusers.StableDiffusion3Pipeline(transformer=None, scheduler=None, vae=None, **texts_of(folder))


def told(pipe: Any, prompts: Sequence[str], length: int = 77) -> tuple[np.ndarray, np.ndarray]:
    import torch

    with torch.no_grad():
        states, _, pooled, _ = pipe.encode_prompt(
            list(prompts), None, None, device="cpu", do_classifier_free_guidance=False, max_sequence_length=length
        )
    return states.numpy(), pooled.numpy()


def placed(parts: Sequence[frozen.TextEncoder], prompts: Sequence[str], kept: Sequence[bool]) -> tuple[Any, Any]:
    """What a network reads of prompts, by our encoders and our layout."""
    described, *shapes = frozen.arrange([part.part for part in parts])
    manifest = Manifest(frozen.cosine_codec(4, 8).described, described, *shapes, "float32", 64, ("original",), ())
    arrays = [tuple(map(jnp.asarray, part.encode(prompts))) for part in parts]
    return examples.place(arrays, jnp.tile(jnp.asarray(kept), (len(prompts), 1)), manifest)  # type: ignore[arg-type]


# --- against the released code --------------------------------------------------------------------------------------
@pytest.mark.parity
def test_states_and_pooled_vectors_are_the_released_pipelines(pipeline: Path, parts: list) -> None:
    tokens, pooled = placed(parts, PROMPTS, [True] * 3)
    states, vector = told(released(pipeline), PROMPTS)
    assert states.shape == (len(PROMPTS), 154, 96)
    np.testing.assert_allclose(tokens, states, atol=1e-5)
    np.testing.assert_allclose(pooled, vector, atol=1e-5)
    assert np.abs(states).mean() > 0.1  # and not for want of weights
    assert len({row.tobytes() for row in np.asarray(pooled)}) == 4  # different prompts, different vectors


@pytest.mark.parity
def test_a_longer_t5_is_the_released_pipelines(pipeline: Path, parts: list) -> None:
    longer = [*parts[:2], frozen.load_text(f"t5={pipeline}:120")]
    states, vector = told(released(pipeline), PROMPTS, 120)
    tokens, pooled = placed(longer, PROMPTS, [True] * 3)
    np.testing.assert_allclose(tokens, states, atol=1e-5)
    np.testing.assert_allclose(pooled, vector, atol=1e-5)


@pytest.mark.parity
def test_without_t5_its_tokens_are_zeros_as_in_the_released_pipeline(pipeline: Path, parts: list) -> None:
    pipe = released(pipeline)
    states, vector = told(pipe, PROMPTS)
    tokens, pooled = placed(parts, PROMPTS, [True, True, False])
    np.testing.assert_allclose(tokens[:, :77], states[:, :77], atol=1e-5)
    assert not np.any(tokens[:, 77:])
    np.testing.assert_allclose(pooled, vector, atol=1e-5)


@pytest.mark.parity
def test_what_a_caption_becomes_does_not_depend_on_its_company(parts: list) -> None:
    for part in parts:
        together = part.encode(PROMPTS)
        for i, prompt in enumerate(PROMPTS):
            for one, all_ in zip(part.encode([prompt]), together, strict=True):
                np.testing.assert_array_equal(one[0], all_[i])
        again = part.encode(PROMPTS)
        for one, other in zip(together, again, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parity
@pytest.mark.parametrize("name, channels", [("vae", 16), ("vae4", 4), ("vae8", 8)])
def test_latents_are_those_of_diffusers_with_the_folders_own_constants(
    pipeline: Path, name: str, channels: int
) -> None:
    import diffusers
    import torch

    source = str(pipeline if name == "vae" else pipeline / name)
    codec = frozen.load_codec(source)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 40, 3)).astype(np.uint8)
    stored = codec.encode(images)
    net = diffusers.AutoencoderKL.from_pretrained(pipeline / name)
    with torch.no_grad():
        given = net.encode(torch.from_numpy(images / 127.5 - 1).float().permute(0, 3, 1, 2)).latent_dist
        back = net.decode(given.mean).sample.permute(0, 2, 3, 1).numpy()
    moments = torch.cat([given.mean, given.logvar], dim=1).permute(0, 2, 3, 1).numpy()
    assert stored.shape == (3, 4, 5, 2 * channels)
    np.testing.assert_allclose(stored, moments, atol=1e-4)
    described = codec.described
    assert (described.channels, described.downsample, described.moments) == (channels, 8, True)
    expected = (given.mean.permute(0, 2, 3, 1).numpy() - (net.config.shift_factor or 0)) * net.config.scaling_factor
    np.testing.assert_allclose(examples.normalise(jnp.asarray(stored), None, described), expected, atol=1e-4)
    np.testing.assert_allclose(codec.decode(stored[..., :channels]), (back.clip(-1, 1) + 1) * 127.5, atol=1.01)


@pytest.mark.parity
def test_a_model_of_sentences_masks_its_padding(tmp_path: Path) -> None:
    import torch
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "story", "of", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = transformers.BertConfig(vocab_size=len(words), hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
                                     intermediate_size=32, max_position_embeddings=32)  # fmt: skip
    net = transformers.BertModel(config).eval()
    net.save_pretrained(tmp_path)
    encoder = frozen.load_text(f"sentence={tmp_path}:12")
    states, pooled = encoder.encode(["a cat", "a story of cats"])
    tokenizer = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    for text, own, vector in zip(["a cat", "a story of cats"], states, pooled, strict=True):
        asked = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            alone = net(**asked)[0][0].numpy()
        np.testing.assert_allclose(own[: len(alone)], alone, atol=1e-5)  # whatever padding follows
        np.testing.assert_allclose(vector, alone.mean(0), atol=1e-5)


@pytest.mark.parity
def test_a_model_of_sentences_may_lack_the_pooler_that_nothing_reads(tmp_path: Path) -> None:
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = transformers.BertConfig(vocab_size=len(words), hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=32, max_position_embeddings=32)  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    assert frozen.load_text(f"sentence={tmp_path}").part.tokens == 32


@pytest.mark.parity
def test_a_whole_clip_gives_its_large_model_unprojected_and_its_giant_one_projected_and_padded_with_zeros(
    pipeline: Path, tmp_path: Path
) -> None:
    import torch
    import transformers

    shutil.copytree(pipeline / "tokenizer", tmp_path / "clip")  # which pads with the end token
    text = transformers.CLIPTextConfig.from_pretrained(pipeline / "text_encoder").to_dict()
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
              "image_size": 32, "patch_size": 16}  # fmt: skip
    net = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    ).eval()
    randomise(torch, net)
    net.save_pretrained(tmp_path / "clip")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "clip")
    ids = tokenizer(PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    after = (ids == tokenizer.eos_token_id).cumsum(1) - (ids == tokenizer.eos_token_id).long() > 0
    for name, asked in (("clip-l", ids), ("clip-g", ids.masked_fill(after, 0))):
        encoder = frozen.load_text(f"{name}={tmp_path / 'clip'}")
        with torch.no_grad():
            given = net.text_model(asked, output_hidden_states=True)
            vector = given.pooler_output if name == "clip-l" else net.text_projection(given.pooler_output)
        states, pooled = encoder.encode(PROMPTS)
        np.testing.assert_allclose(states, given.hidden_states[-2], atol=1e-5)
        np.testing.assert_allclose(pooled, vector, atol=1e-5)
        assert encoder.part.pooled == pooled.shape[1] == {"clip-l": 32, "clip-g": 20}[name]


@pytest.mark.parity
def test_t5_without_a_tokenizer_json_reads_its_pieces_as_sentencepiece_does(pipeline: Path, tmp_path: Path) -> None:
    import sentencepiece
    import torch
    import transformers

    shutil.copytree(pipeline / "text_encoder_3", tmp_path / "t5")
    shutil.copy(pipeline / "tokenizer_3" / "spiece.model", tmp_path / "t5")
    encoder = frozen.load_text(f"t5={tmp_path / 't5'}")
    assert encoder.part.tokenizer.startswith("spiece.model ")
    pieces = sentencepiece.SentencePieceProcessor(str(tmp_path / "t5" / "spiece.model"))
    hard = [*PROMPTS, "two  spaces and ｗｉｄｅ letters ½", "a\ttab\nand a line"]
    ids = torch.tensor([([*pieces.encode(text)[:76], 1] + [0] * 77)[:77] for text in hard])
    net = transformers.T5EncoderModel.from_pretrained(tmp_path / "t5").eval()
    with torch.no_grad():
        states = net(ids)[0].numpy()
    np.testing.assert_allclose(encoder.encode(hard)[0], states, atol=1e-5)


@pytest.mark.parity
def test_a_set_knows_its_encoders_again_wherever_they_lie_and_no_others(
    pipeline: Path, parts: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described, *shapes = frozen.arrange([part.part for part in parts])
    codec = frozen.load_codec(str(pipeline))
    manifest = Manifest(codec.described, described, *shapes, "float16", 64, ("original",), ())
    assert [text.part.digest for text in frozen.texts_of(manifest)] == [part.part.digest for part in parts]
    assert frozen.codec_of(manifest).described.digest == codec.described.digest
    moved = tmp_path / "moved"
    shutil.copytree(pipeline, moved)
    lost = [dataclasses.replace(part, source=str(tmp_path / "lost")) for part in described]
    elsewhere = dataclasses.replace(manifest, parts=tuple(lost))
    monkeypatch.setenv("SD3_JAX_ENCODERS", str(moved))
    assert [text.part.digest for text in frozen.texts_of(elsewhere)] == [part.part.digest for part in parts]
    shutil.copy(pipeline / "tokenizer_2" / "tokenizer.json", moved / "tokenizer" / "tokenizer.json")
    with pytest.raises(UserError, match="clip-l has another tokenizer"):
        frozen.texts_of(elsewhere)
    shutil.copy(moved / "text_encoder" / "model.safetensors", moved / "text_encoder" / "saved")
    content = bytearray((moved / "text_encoder" / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (moved / "text_encoder" / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="has other weights"):
        frozen.texts_of(elsewhere)


@pytest.mark.parity
@pytest.mark.parametrize(
    "break_it, spec, message",
    [
        ("nothing", "clip-l={}/nowhere", "nowhere: is no folder"),
        ("pickle", "clip-l={}", "is a pickle, which could run anything: save it as safetensors"),
        ("no tokenizer", "clip-l={}", "holds no tokenizer of clip-l, which has tokenizer.json or vocab.json"),
        ("short", "t5={}", "text_encoder_3"),
        ("nothing", "clip-l={}:500", "tokens are 2 to 77"),
        ("nothing", "t5={}/text_encoder", "text_encoder"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(
    pipeline: Path, tmp_path: Path, break_it: str, spec: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "sd3"
    shutil.copytree(pipeline, folder)
    if break_it == "pickle":
        weights = folder / "text_encoder" / "model.safetensors"
        weights.rename(weights.with_name("pytorch_model.bin"))
    if break_it == "no tokenizer":
        shutil.rmtree(folder / "tokenizer")
        (folder / "tokenizer").mkdir()
    if break_it == "short":
        weights = folder / "text_encoder_3" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=message) as error:
        frozen.load_text(spec.format(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parity
def test_a_set_of_the_papers_encoders_is_prepared_trained_on_and_drawn_from(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_pictures(tmp_path / "pictures", 24)

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert ended.value.code == 0, captured.err
        return captured.out

    texts = [part for name in ("clip-l", "clip-g", "t5") for part in ("--text", f"{name}={pipeline}")]
    made, asked = tmp_path / "made.json", ("--size", 32, "--hold-out", 0.3, "--batch", 4)
    run("prepare", tmp_path / "pictures", tmp_path / "set", "--autoencoder", pipeline, *texts, *asked, "--json", made)
    settings = json.loads(made.read_text())["settings"]
    assert settings["model.text_tokens"] == 154
    assert settings["model.latent_channels"] == 16
    told = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    small = ("model.depth=2", "model.head_dim=8", "model.patch=1", "batch=8", "steps=2", "evaluation.first_step=1")
    told += [part for one in small for part in ("--set", one)]
    run("train", "scenes_cpu", "--run", tmp_path / "run", *told)
    few = ("--images-per-task", 2, "--sampler-steps", 2)
    out = Path(run("sample", tmp_path / "run", *few).strip())
    assert len(list(out.glob("*/samples/0000.png"))) == 2
    without = Path(run("sample", tmp_path / "run", *few, "--without", "t5").strip())
    assert without != out
    run("evaluate", tmp_path / "run", "--images-per-task", 1, "--sampler-steps", 2)
    assert "picture-frechet" in (tmp_path / "run" / "evals.jsonl").read_text()


# --- without torch --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "load, spec, message",
    [
        (frozen.load_text, "words:16", "--text words:16: is not of the form words:16x64"),
        (
            frozen.load_text,
            "bert=x",
            "is neither words:16x64 nor NAME=FOLDER, NAME one of clip-l, clip-g",
        ),
        (frozen.load_text, "words:0x64", "tokens are 1 to 4096"),
        (frozen.load_codec, "cosine:16", "is not of the form cosine:16x8"),
        (frozen.load_codec, "cosine:193x8", "channels 1 to 3"),
    ],
)
def test_a_name_that_means_nothing_is_one_line(load: Any, spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(spec)


def test_clips_parts_have_as_many_tokens() -> None:
    one = examples.Part("clip-l", "clip", "", "", 77, 4, 4)
    with pytest.raises(UserError, match=r"CLIP's parts stand side by side .* \[50, 77\]"):
        frozen.arrange([one, dataclasses.replace(one, name="clip-g", tokens=50)])
