"""GenEval's detector (Ghosh et al. 2023): Mask2Former for instances of COCO's 80 classes, CLIP for their colours.

The steps and thresholds are those of GenEval's evaluator; the rules are :mod:`sd3_jax.evaluation.geneval`'s. The
network is the one of transformers, whose training run was another than that of the mmdetection checkpoint which
GenEval published with: scores have a name of their own, :data:`NAME`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from sd3_jax.data import pretrained
from sd3_jax.errors import UserError
from sd3_jax.evaluation import coco, features, weights
from sd3_jax.evaluation import geneval as rules
from sd3_jax.evaluation.geneval import Box, Detection
from sd3_jax.evaluation.scorer import Images, Scorer

NAME = "geneval-mask2former-hf"
VERSION = 1  # of what is found of the same weights
LEAST, LEAST_COUNTING = 0.3, 0.9  # an object's confidence is above this
MOST = 16  # objects of a class
SIZE = {"shortest_edge": 800, "longest_edge": 1333}  # pixels that a picture is looked at with; folders say 384 x 384
LIKELIEST = 100  # pairs of a query and a class that are looked at
GREY = 0x99  # what an object is cut out onto
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
SPELLINGS = {  # of folders, where GenEval has other names for COCO's classes
    "mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard", "hair dryer": "hair drier",
    "tvmonitor": "tv", "tv monitor": "tv", "motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch",
    "pottedplant": "potted plant", "diningtable": "dining table", "cellphone": "cell phone",
}  # fmt: skip


class Instance(NamedTuple):
    """One object: its class, how sure that is, and the pixels that show it, at least one."""

    name: str
    score: float
    mask: Bool[np.ndarray, "H W"]


Find = Callable[[UInt8[np.ndarray, "H W 3"], float], list[Instance]]  # those surer than a threshold, surest first
Tell = Callable[[Images, str], list[str]]  # the colour of each cut-out of an object of a class


def geneval(mask2former: Path, clip: Path) -> Scorer:
    """GenEval's verdicts: ``{"correct", "reason", "objects": {class: [{"box", "score", ["color"]}]}}``.

    ``mask2former``: a folder of transformers with ``Mask2FormerForUniversalSegmentation`` for instances of COCO;
    ``clip``: one with a CLIP, GenEval's being ViT-L/14 of OpenAI. Raises UserError for other folders.
    """
    find, judge = load_mask2former(mask2former), features.load(f"clip={clip}")
    digests = pretrained.digest(weights.settling(mask2former)), judge.digest
    tell = color_teller(judge)

    def score(images: Images, prompts: Sequence[Mapping[str, Any]]) -> list[Any]:
        return [verdict(image, prompt, find, tell) for image, prompt in zip(images, prompts, strict=True)]

    return Scorer(NAME, f"{VERSION}:{':'.join(digests)}", score)


def verdict(image: UInt8[np.ndarray, "H W 3"], prompt: Mapping[str, Any], find: Find, tell: Tell) -> dict[str, Any]:
    """GenEval's judgement of one picture by its metadata. Colours are told where a clause asks for one."""
    if "include" not in prompt or "tag" not in prompt:
        raise UserError(f"{prompt.get('prompt')!r}: has no metadata of GenEval's, tag and include")
    found: dict[str, list[Instance]] = {}
    for one in find(image, LEAST_COUNTING if prompt["tag"] == "counting" else LEAST):
        found.setdefault(one.name, []).append(one)
    found = {name: own[:MOST] for name, own in found.items()}
    objects = {name: [Detection(box_of(one.mask), one.score) for one in own] for name, own in found.items()}
    for clause in prompt["include"]:
        name, count = clause["class"], clause["count"]
        if "color" in clause and len(found.get(name, ())) >= count:
            colors = tell([cut_out(image, one.mask) for one in found[name][:count]], name)
            told = [one._replace(color=color) for one, color in zip(objects[name], colors, strict=False)]
            objects[name] = told + objects[name][count:]
    correct, reason = rules.judge(prompt, objects)
    return {"correct": correct, "reason": reason, "objects": {n: list(map(_row, own)) for n, own in objects.items()}}


def box_of(mask: Bool[np.ndarray, "H W"]) -> Box:
    """The smallest box that holds a mask; its right and bottom are the first column and row beyond.

    >>> box_of(np.array([[0, 0, 0], [0, 1, 1]], bool))
    (1.0, 1.0, 3.0, 2.0)
    """
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def cut_out(image: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"]) -> UInt8[np.ndarray, "h w 3"]:
    """The picture within an object's box, grey where its mask is not."""
    left, top, right, bottom = map(int, box_of(mask))
    return np.where(mask[..., None], image, np.uint8(GREY))[top:bottom, left:right]


def color_teller(clip: features.Extractor) -> Tell:
    """CLIP's zero-shot classifier of GenEval's ten colours: cosines with the mean of three normed sentences each."""
    known: dict[str, Float[np.ndarray, "10 d"]] = {}

    def tell(images: Images, name: str) -> list[str]:
        if name not in known:
            assert clip.texts is not None
            said = [template.format(color=color, name=name) for color in coco.COLORS for template in TEMPLATES]
            each = normed(clip.texts(said)).reshape(len(coco.COLORS), len(TEMPLATES), -1)
            known[name] = normed(each.mean(axis=1))
        likeness = normed(clip.embed(images)) @ known[name].T
        return [coco.COLORS[best] for best in likeness.argmax(axis=1)]

    return tell


def normed(rows: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
    """Rows of length one."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def load_mask2former(folder: Path) -> Find:
    """The instances that a Mask2Former of COCO sees. Raises UserError for a folder of something else."""
    loaded = weights.load(folder, "mask2former", "Mask2FormerForUniversalSegmentation", ("mask2former",))
    names = class_names(folder, loaded.net.config.id2label)
    processor = weights.read(loaded.transformers.AutoImageProcessor, folder, backend="pil")
    torch, resize = loaded.torch, loaded.torch.nn.functional.interpolate

    def find(image: UInt8[np.ndarray, "H W 3"], least: float) -> list[Instance]:
        given = processor(images=[image], input_data_format="channels_last", size=SIZE, return_tensors="pt")
        given = given.to(loaded.device)
        with torch.inference_mode():
            out = loaded.net(pixel_values=given["pixel_values"], pixel_mask=given["pixel_mask"])
            belief = out.class_queries_logits[0].softmax(-1)[:, :-1]  # the last is "nothing"
            sure, pair = belief.flatten().topk(min(LIKELIEST, belief.numel()))
            sure, pair = sure[sure > least], pair[sure > least]  # a mask makes none surer
            if not len(pair):
                return []
            masks = out.masks_queries_logits[:, pair // len(names)]
            for size in (given["pixel_values"].shape[-2:], image.shape[:2]):
                masks = resize(masks, size=tuple(size), mode="bilinear", align_corners=False)
            shown = masks[0] > 0
            inside = (masks[0].sigmoid() * shown).sum((1, 2)) / (shown.sum((1, 2)) + 1e-6)
            scores = (sure * inside).tolist()
        seen = zip(scores, pair.tolist(), shown.cpu().numpy(), strict=True)
        found = [Instance(names[one % len(names)], score, mask) for score, one, mask in seen if score > least]
        return sorted(found, key=lambda one: -one.score)

    return find


def class_names(folder: Path, labels: Mapping[int, str]) -> list[str]:
    """GenEval's name of each class of a network. Raises UserError unless they are COCO's 80, each once."""
    own = [labels[index] for index in sorted(labels)]
    names = [SPELLINGS.get(label, label) for label in own]
    known = SPELLINGS.keys() | set(coco.CLASSES)
    if strangers := [label for label in own if label not in known]:
        raise UserError(f"{folder}: its class {strangers[0]!r} is none of the 80 of COCO's instances")
    if lacking := [name for name in coco.CLASSES if names.count(name) != 1]:
        number = names.count(lacking[0])
        raise UserError(
            f"{folder}: of its {len(names)} classes {number} are COCO's {lacking[0]!r}, where one should be"
        )
    return names


def _row(one: Detection) -> dict[str, Any]:
    color = {} if one.color is None else {"color": one.color}
    return {"box": list(one.box), "score": round(one.score, 6), **color}
