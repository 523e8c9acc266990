"""Which judges a suite is scored by, of those whose weights are at hand.

Weights are folders given by name, or those of these names in the folder that ``SD3_JAX_SCORERS`` says.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from sd3_jax.errors import UserError
from sd3_jax.evaluation.scorer import Scorer

FOLDER = "SD3_JAX_SCORERS"
PREFERENCE = ("pickscore", "hpsv2", "imagereward", "aesthetics")
NAMES = ("mask2former", "clip", *PREFERENCE)


def folders(given: Mapping[str, Path]) -> dict[str, Path]:
    """Where weights are, by name. Raises UserError for the name of no judge."""
    if unknown := [name for name in given if name not in NAMES]:
        raise UserError(f"--scorer {unknown[0]}: is not one of {', '.join(NAMES)}")
    root = Path(os.environ[FOLDER]) if os.environ.get(FOLDER) else None
    there = {name: root / name for name in NAMES if root is not None and (root / name).is_dir()}
    return there | dict(given)


def geneval(found: Mapping[str, Path]) -> Scorer:
    """GenEval's rules with Mask2Former and CLIP. Raises UserError where a folder is lacking, or another model's."""
    from sd3_jax.scorers import detector

    lacking = [name for name in ("mask2former", "clip") if name not in found]
    if lacking:
        raise UserError(
            f"suite geneval: needs --scorer {lacking[0]}=FOLDER (or {FOLDER}); results of GenEval's own evaluator are "
            "read by: sd3-jax geneval results.jsonl --record FOLDER"
        )
    return detector.geneval(found["mask2former"], found["clip"])


def preference(found: Mapping[str, Path]) -> list[Scorer]:
    """The judges of preference whose weights are there. Raises UserError if there is none."""
    from sd3_jax.scorers import imagereward
    from sd3_jax.scorers import preference as judges

    makers: dict[str, Callable[[Path], Scorer]] = {
        "pickscore": judges.pickscore,
        "hpsv2": judges.hpsv2,
        "imagereward": imagereward.imagereward,
        "aesthetics": judges.aesthetics,
    }
    chosen = [makers[name](found[name]) for name in PREFERENCE if name in found]
    if not chosen:
        raise UserError(f"suite preference: needs --scorer NAME=FOLDER of one of {', '.join(PREFERENCE)} (or {FOLDER})")
    return chosen


def typography() -> Scorer:
    """OCR, whose weights come with its package. Raises UserError where it is not installed."""
    from sd3_jax.scorers import ocr

    return ocr.ocr()
