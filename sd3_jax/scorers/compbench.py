"""T2I-CompBench's categories (Huang et al. 2023) as judges, with networks from local folders.

=============================  ========================================================================
color, shape, texture          BLIP for visual questions, as the benchmark has it: ``compbench/color``
non_spatial                    CLIP, the benchmark's being ViT-B/32 of OpenAI: ``compbench/non_spatial``
spatial, 3d_spatial, numeracy  OWLv2 where the benchmark has UniDet: ``compbench-owlv2/spatial``
complex                        all three: ``compbench-owlv2/complex``
=============================  ========================================================================
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sd3_jax.data import pretrained
from sd3_jax.errors import UserError
from sd3_jax.evaluation import compbench, compbench_prompts, features, weights
from sd3_jax.evaluation.compbench import Senses
from sd3_jax.evaluation.compbench_files import CATEGORIES
from sd3_jax.evaluation.scorer import Images, Scorer
from sd3_jax.scorers.answers import load_blip
from sd3_jax.scorers.depth import load_dpt
from sd3_jax.scorers.open_vocabulary import load_owlv2

FOLDERS = {"answer": "blip", "detect": "owlv2", "depth": "dpt", "similarity": "clip"}  # a sense, and what it is
_VIT_B_32 = {"patch_size": 32, "hidden_size": 768, "num_hidden_layers": 12, "hidden_act": "quick_gelu"}


def compbench_scorer(category: str, folders: Mapping[str, Path]) -> Scorer:
    """The scores of a category, 0 to 1, of pictures by the metadata that ``compbench_files.read_category`` reads.

    ``folders``: of transformers, by name: "blip", "owlv2", "dpt", "clip"; those that the category needs. Raises
    UserError for a category that is none, a folder that is not named, and a folder of something else.
    """
    if category not in CATEGORIES:
        raise UserError(f"{category!r} is no category of T2I-CompBench: {', '.join(CATEGORIES)}")
    needs = compbench.NEEDS[category]
    if lacking := [FOLDERS[need] for need in needs if FOLDERS[need] not in folders]:
        wanted = ", ".join(FOLDERS[need] for need in needs)
        raise UserError(f"compbench/{category}: needs folders of {wanted}; there is none of {lacking[0]}")
    paths = {need: folders[FOLDERS[need]] for need in needs}
    senses = Senses(**{need: _loaded(need, path) for need, path in paths.items()})
    parse = compbench_prompts.parser()

    def score(images: Images, prompts: Sequence[Mapping[str, Any]]) -> list[Any]:
        return [compbench.score(category, *pair, senses, parse) for pair in zip(images, prompts, strict=True)]

    digests = [pretrained.digest(weights.settling(path)) for path in paths.values()]
    read = [] if category in ("numeracy", "non_spatial") else [parse.name]
    return Scorer(_name(category, folders), ":".join([str(compbench.VERSION), *read, *digests]), score)


def load_similarity(folder: Path) -> compbench.Similarity:
    """The cosine of a picture and a text, by the CLIP of a folder of transformers."""
    clip = features.load(f"clip={folder}")

    def similarity(image: np.ndarray, text: str) -> float:
        assert clip.texts is not None
        one, other = clip.embed([image])[0], clip.texts([text])[0]
        return float(one @ other / np.sqrt((one @ one) * (other @ other)))

    return similarity


_LOAD: dict[str, Callable[[Path], Any]] = {
    "answer": load_blip,
    "detect": load_owlv2,
    "depth": load_dpt,
    "similarity": load_similarity,
}


@functools.cache
def _loaded(need: str, folder: Path) -> Any:
    """A sense, once for all categories that need it."""
    return _LOAD[need](folder)


def _name(category: str, folders: Mapping[str, Path]) -> str:
    """The benchmark's own name where what looks at pictures is its own, else one of another."""
    if "detect" in compbench.NEEDS[category]:
        return f"compbench-owlv2/{category}"
    if category == "non_spatial" and not _is_vit_b_32(folders["clip"]):
        return f"compbench-clip/{category}"
    return f"compbench/{category}"


def _is_vit_b_32(folder: Path) -> bool:
    said = weights.torch_and_transformers("clip")[1].CLIPConfig.from_pretrained(str(folder)).vision_config
    return all(getattr(said, key) == value for key, value in _VIT_B_32.items())
