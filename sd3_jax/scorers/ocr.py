"""Spelling as RapidOCR reads it: PP-OCR's detector and recogniser, whose weights the package holds."""

import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sd3_jax.data import pretrained
from sd3_jax.errors import UserError
from sd3_jax.evaluation import typography
from sd3_jax.evaluation.scorer import Scorer

VERSION = 1  # of the rules here and of typography's
SIDE = 512  # pixels: smaller pictures are made so large, on their longer side
# Which of the package's networks are run. No classifier turns text upside down: a prompt asks for text to be read.
NETWORKS = {"Det": "PP-OCRv6_det_small.onnx", "Rec": "PP-OCRv6_rec_small.onnx"}


def ocr() -> Scorer:
    """What is read in a picture, and how well that says what its prompt asks for; null where it asks for no text.

    A value is ``{"read": [lines in reading order], "exact": bool, "similarity": 0 to 1, "words": 0 to 1}``
    (:func:`sd3_jax.evaluation.typography.spelling`). Nothing is downloaded.

    Raises UserError where rapidocr or its networks are not installed.
    """
    try:
        import onnxruntime
        import rapidocr
    except ImportError:
        raise UserError("ocr: needs rapidocr and onnxruntime: pip install 'sd3_jax[scorers]'") from None
    folder = importlib.resources.files(rapidocr).joinpath("models")
    with importlib.resources.as_file(folder) as here:
        files = {part: here / name for part, name in NETWORKS.items()}
        if missing := [path for path in files.values() if not path.is_file()]:
            raise UserError(
                f"ocr: {missing[0]} is not there: another rapidocr is needed (3.10)"
            )  # or it would fetch it
        digest = pretrained.digest(list(files.values()))
        onnxruntime.set_default_logger_severity(3)
        paths = {f"{part}.model_path": str(path) for part, path in files.items()}
        engine = rapidocr.RapidOCR(params={"Global.log_level": "critical", "Global.use_cls": False, **paths})

    def score(
        images: Sequence[UInt8[np.ndarray, "H W 3"]], metadata: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any] | None]:
        values: list[dict[str, Any] | None] = []
        for image, said in zip(images, metadata, strict=True):
            asked = typography.requested(said)
            if not asked:
                values.append(None)
                continue
            read = _read(engine, image)
            values.append({"read": read, **typography.spelling(asked, read)._asdict()})
        return values

    return Scorer("ocr", f"{VERSION}:{digest}", score)


def _read(engine: Any, image: UInt8[np.ndarray, "H W 3"]) -> list[str]:
    """The lines of a picture, in reading order."""
    height, width = image.shape[:2]
    if (factor := SIDE / max(height, width)) > 1:
        size = round(width * factor), round(height * factor)
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    found = engine(image[..., ::-1])  # as OpenCV has colours
    if found.txts is None:
        return []
    corners = [np.asarray(box) for box in found.boxes]
    boxes = [(*(float(x) for x in one.min(axis=0)), *(float(x) for x in one.max(axis=0))) for one in corners]
    return [found.txts[index] for index in typography.reading_order(boxes)]  # type: ignore[arg-type]
