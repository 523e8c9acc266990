"""A detector of whatever is named: OWLv2 (Minderer et al. 2023) of transformers.

It stands where T2I-CompBench has UniDet, whose 720 classes are fixed; scores with it have a name of their own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from sd3_jax.evaluation import weights
from sd3_jax.evaluation.compbench import Detect, intersection_over_union
from sd3_jax.evaluation.geneval import Detection

LEAST = 0.1  # an object's confidence is above this, as in the examples of transformers
APART = 0.5  # of two boxes of a noun that overlap by more the surer is kept, as UniDet does
SENTENCE = "a photo of a {}"  # that the network was taught to find things by


def load_owlv2(folder: Path) -> Detect:
    """Objects by their nouns, each of the noun that it is likest, the surest first; boxes in pixels of the picture.

    Raises UserError for a folder of something else.
    """
    loaded = weights.load(folder, "owlv2", "Owlv2ForObjectDetection", ("owlv2",))
    torch, net = loaded.torch, loaded.net
    tokenizer = weights.read(loaded.transformers.AutoTokenizer, folder)
    processor = weights.read(loaded.transformers.AutoImageProcessor, folder, backend="pil")
    length = net.config.text_config.max_position_embeddings

    def detect(image: UInt8[np.ndarray, "H W 3"], nouns: Sequence[str]) -> Mapping[str, Sequence[Detection]]:
        height, width = image.shape[:2]
        given = processor(images=[image], input_data_format="channels_last", return_tensors="pt").to(loaded.device)
        said = tokenizer(
            [SENTENCE.format(noun) for noun in nouns],
            padding="max_length",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        ).to(loaded.device)
        with torch.inference_mode():
            out = net(
                pixel_values=given["pixel_values"],
                input_ids=said["input_ids"],
                attention_mask=said["attention_mask"],
            )
            likeness, best = out.logits[0].max(-1)
            scores, places = likeness.sigmoid().cpu().numpy(), out.pred_boxes[0].cpu().numpy()
        middle, half = places[:, :2], places[:, 2:] / 2
        corners = np.concatenate([middle - half, middle + half], axis=1) * max(height, width)  # of the padded square
        corners = np.clip(corners, 0, [width, height] * 2)
        found: dict[str, list[Detection]] = {noun: [] for noun in nouns}
        for i in np.argsort(-scores, kind="stable"):
            left, top, right, bottom = corners[i].tolist()
            own, box = found[nouns[int(best[i])]], (left, top, right, bottom)
            if scores[i] <= LEAST or left >= right or top >= bottom:
                continue
            if all(intersection_over_union(box, one.box) <= APART for one in own):
                own.append(Detection(box, float(scores[i])))
        return found

    return detect
