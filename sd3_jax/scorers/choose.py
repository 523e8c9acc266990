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
CLIP_B32 = "clip-b32"  # CompBench's CLIP; GenEval's is another
NAMES = ("mask2former", "clip", "blip", "owlv2", "dpt", CLIP_B32, *PREFERENCE)


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


def compbench(found: Mapping[str, Path]) -> dict[str, Scorer]:
    """The judges of CompBench's categories whose weights are there. Raises UserError if there is none."""
    from sd3_jax.evaluation.compbench import NEEDS
    from sd3_jax.scorers import compbench as judges

    there = {name: found[name] for name in ("blip", "owlv2", "dpt") if name in found}
    if clip := found.get(CLIP_B32, found.get("clip")):
        there["clip"] = clip
    chosen = [name for name, needs in NEEDS.items() if all(judges.FOLDERS[need] in there for need in needs)]
    if not chosen:
        raise UserError(
            f"suite compbench: needs --scorer NAME=FOLDER (or {FOLDER}): blip for attributes, owlv2 for places and "
            f"numbers, dpt besides for depth, {CLIP_B32} for what is no relation of places"
        )
    return {name: judges.compbench_scorer(name, there) for name in chosen}


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
