"""What the SD3 paper prints: its tables, as data (Esser et al. 2024, arXiv 2403.03206v1), and others' exponents.

Numbers are the publications' own, to the digits that they give; nothing here was read off a plot, and what was
computed says so. Figure 8 is a plot alone: the text prints no loss, exponent or correlation coefficient, so there are
none to compare with. How the best size grows with compute is printed by other publications (ALLOCATION).
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import NamedTuple

import pandas as pd

from sd3_jax import flops
from sd3_jax.config import ModelConfig

CONFIDENCE = {
    "T:P": "read in a full transcription of the paper, whose text and tables are clean there",
    "T:B": "read in Stability AI's post of 5 March 2024 on the paper",
    "P": "printed in the publication, and read there",
    "S": "read in several summaries or transcriptions of the publication, which agree",
    "C": "computed from constants that the publication prints",
}


class Source(NamedTuple):
    """Where numbers stand, and how they were read (a key of CONFIDENCE)."""

    where: str
    confidence: str


class Rank(NamedTuple):
    """Mean rank of a formulation, 1 the best, by non-dominated sorting on CLIP score and FID."""

    all: float  # over 24 settings: 6 samplers, averaged or raw weights, 2 data sets
    steps_5: float
    steps_50: float


class Quality(NamedTuple):
    """CLIP score (higher is better) and FID on CLIP features (lower is better) after 25 sampling steps."""

    imagenet_clip: float
    imagenet_fid: float
    cc12m_clip: float
    cc12m_fid: float


class Reconstruction(NamedTuple):
    """An autoencoder of downsampling 8: lower FID and perceptual distance, higher SSIM and PSNR (dB) are better."""

    fid: float
    perceptual: float
    ssim: float
    psnr: float


class GenEval(NamedTuple):
    """GenEval's shares of right pictures in [0, 1]; in TABLE_4 in per cent."""

    overall: float
    single_object: float
    two_objects: float
    counting: float
    colors: float
    position: float
    color_attribution: float


class Efficiency(NamedTuple):
    """Loss of CLIP score in per cent against 50 sampling steps, and the length of the path of 50 steps."""

    steps_5: float
    steps_10: float
    steps_20: float
    path_length: float


class Scaling(NamedTuple):
    """The scaling study of images; depths between 15 and 38, of which only these are certain to be in the figure."""

    depths: tuple[int, ...]
    image_size: int  # px
    steps: int
    batch: int
    validation_steps: int  # from one validation to the next
    dropped_rate: tuple[int, int]  # depth and step whose learning rate was adjusted
    largest_params: float
    largest_flops: float  # by a convention that the paper does not give: 3.6 times those that we count


class Allocation(NamedTuple):
    """How the best number of parameters grows with compute, N* ~ C^a; D* ~ C^(1 - a) where C is k N D."""

    a: float
    interval: tuple[float, float] | None  # of 80 %; None where none is printed
    of: str  # what the models are of
    source: Source


SOURCES = MappingProxyType(
    {
        "TABLE_1": Source("Table 1: global ranking of formulations", "T:P"),
        "TABLE_2": Source("Table 2: formulations at 25 sampling steps", "T:P"),
        "TABLE_3": Source("Table 3: reconstruction by channels of the autoencoder", "T:P"),
        "TABLE_4": Source("Table 4: original and half synthetic captions, GenEval, depth 15 after 250k steps", "T:P"),
        "TABLE_5": Source("Table 5: GenEval", "T:P"),
        "TABLE_6": Source("Table 6: sampling efficiency by depth", "T:P"),
        "FIGURE_8": Source("section 5.3, caption of Figure 8; depths: Table 6, Figure 12", "T:P"),
        "WITHOUT_T5": Source(
            "human preference, in the text: win rate of the model without T5 over that with it", "T:P"
        ),
        "SIZES": Source("parameters of the smallest and the largest depth", "T:B"),
    }
)

TABLE_1 = MappingProxyType(
    {
        "rf/lognorm(0.00, 1.00)": Rank(1.54, 1.25, 1.50),
        "rf/lognorm(1.00, 0.60)": Rank(2.08, 3.50, 2.00),
        "rf/lognorm(0.50, 0.60)": Rank(2.71, 8.50, 1.00),
        "rf/mode(1.29)": Rank(2.75, 3.25, 3.00),
        "rf/lognorm(0.50, 1.00)": Rank(2.83, 1.50, 2.50),
        "eps/linear": Rank(2.88, 4.25, 2.75),
        "rf/mode(1.75)": Rank(3.33, 2.75, 2.75),
        "rf/cosmap": Rank(4.13, 3.75, 4.00),
        "edm(0.00, 0.60)": Rank(5.63, 13.25, 3.25),
        "rf": Rank(5.67, 6.50, 5.75),
        "v/linear": Rank(6.83, 5.75, 7.75),
        "edm(0.60, 1.20)": Rank(9.00, 13.00, 9.00),
        "v/cos": Rank(9.17, 12.25, 8.75),
        "edm/cos": Rank(11.04, 14.25, 11.25),
        "edm/rf": Rank(13.04, 15.25, 13.25),
        "edm(-1.20, 1.20)": Rank(15.58, 20.25, 15.00),
    }
)

TABLE_2 = MappingProxyType(
    {
        "rf": Quality(0.247, 49.70, 0.217, 94.90),
        "edm(-1.20, 1.20)": Quality(0.236, 63.12, 0.200, 116.60),
        "eps/linear": Quality(0.245, 48.42, 0.222, 90.34),
        "v/cos": Quality(0.244, 50.74, 0.209, 97.87),
        "v/linear": Quality(0.246, 51.68, 0.217, 100.76),
        "rf/lognorm(0.50, 0.60)": Quality(0.256, 80.41, 0.233, 120.84),
        "rf/mode(1.75)": Quality(0.253, 44.39, 0.218, 94.06),
        "rf/lognorm(1.00, 0.60)": Quality(0.254, 114.26, 0.234, 147.69),
        "rf/lognorm(-0.50, 1.00)": Quality(0.248, 45.64, 0.219, 89.70),
        "rf/lognorm(0.00, 1.00)": Quality(0.250, 45.78, 0.224, 89.91),
    }
)

TABLE_3 = MappingProxyType(  # by channels
    {
        4: Reconstruction(2.41, 0.85, 0.75, 25.12),
        8: Reconstruction(1.56, 0.68, 0.79, 26.40),
        16: Reconstruction(1.06, 0.45, 0.86, 28.62),
    }
)

TABLE_4 = MappingProxyType(  # per cent, by captions
    {
        "original": GenEval(43.27, 95.00, 41.41, 33.44, 71.54, 6.50, 11.75),
        "50/50 original/CogVLM": GenEval(49.78, 93.75, 52.53, 41.56, 68.09, 18.00, 24.75),
    }
)

TABLE_5 = MappingProxyType(
    {
        "minDALL-E": GenEval(0.23, 0.73, 0.11, 0.12, 0.37, 0.02, 0.01),
        "SD v1.5": GenEval(0.43, 0.97, 0.38, 0.35, 0.76, 0.04, 0.06),
        "PixArt-alpha": GenEval(0.48, 0.98, 0.50, 0.44, 0.80, 0.08, 0.07),
        "SD v2.1": GenEval(0.50, 0.98, 0.51, 0.44, 0.85, 0.07, 0.17),
        "DALL-E 2": GenEval(0.52, 0.94, 0.66, 0.49, 0.77, 0.10, 0.19),
        "SDXL": GenEval(0.55, 0.98, 0.74, 0.39, 0.85, 0.15, 0.23),
        "SDXL Turbo": GenEval(0.55, 1.00, 0.72, 0.49, 0.80, 0.10, 0.18),
        "IF-XL": GenEval(0.61, 0.97, 0.74, 0.66, 0.81, 0.13, 0.35),
        "DALL-E 3": GenEval(0.67, 0.96, 0.87, 0.47, 0.83, 0.43, 0.45),
        "MM-DiT depth 18, 512 px": GenEval(0.58, 0.97, 0.72, 0.52, 0.78, 0.16, 0.34),
        "MM-DiT depth 24, 512 px": GenEval(0.62, 0.98, 0.74, 0.63, 0.67, 0.34, 0.36),
        "MM-DiT depth 30, 512 px": GenEval(0.64, 0.96, 0.80, 0.65, 0.73, 0.33, 0.37),
        "MM-DiT depth 38, 512 px": GenEval(0.68, 0.98, 0.84, 0.66, 0.74, 0.40, 0.43),
        "MM-DiT depth 38, 512 px, DPO": GenEval(0.71, 0.98, 0.89, 0.73, 0.83, 0.34, 0.47),
        "MM-DiT depth 38, 1024 px, DPO": GenEval(0.74, 0.99, 0.94, 0.72, 0.89, 0.33, 0.60),
    }
)

TABLE_6 = MappingProxyType(  # by depth
    {
        15: Efficiency(4.30, 0.86, 0.21, 191.13),
        30: Efficiency(3.59, 0.70, 0.24, 187.96),
        38: Efficiency(2.71, 0.14, 0.08, 185.96),
    }
)

FIGURE_8 = Scaling(
    depths=(15, 30, 38),
    image_size=256,
    steps=500_000,
    batch=4096,
    validation_steps=50_000,
    dropped_rate=(38, 300_000),
    largest_params=8e9,
    largest_flops=5e22,
)

WITHOUT_T5 = MappingProxyType({"aesthetics": 0.50, "prompt following": 0.46, "typography": 0.38})

SIZES = MappingProxyType({15: 450e6, 38: 8e9})  # by depth; the released architecture has 496,066,624 at depth 15

_HOFFMANN = "Hoffmann et al. 2022, Table 2: approach {}, 10th and 90th percentiles"
ALLOCATION = MappingProxyType(  # C = 6 N D in tokens, but for DeepSeek
    {
        "Hoffmann 2022, envelope": Allocation(0.50, (0.488, 0.502), "language", Source(_HOFFMANN.format(1), "S")),
        "Hoffmann 2022, isoFLOP": Allocation(0.49, (0.462, 0.534), "language", Source(_HOFFMANN.format(2), "S")),
        "Hoffmann 2022, parametric": Allocation(0.46, (0.454, 0.455), "language", Source(_HOFFMANN.format(3), "P")),
        "Besiroglu 2024, parametric": Allocation(
            0.3658 / (0.3478 + 0.3658),
            None,
            "language",
            Source("Besiroglu et al. 2024: alpha 0.3478, beta 0.3658, refitted to Hoffmann's third approach", "C"),
        ),
        "Porian 2024, tuned": Allocation(
            0.50, None, "language", Source("Porian et al. 2024: RefinedWeb, all corrections, tuned at each size", "P")
        ),
        "DeepSeek 2024, isoFLOP": Allocation(
            0.524, None, "language", Source("DeepSeek LLM 2024: size in FLOPs a token, without embeddings", "P")
        ),
        "Kaplan 2020": Allocation(
            0.73, None, "language", Source("Kaplan et al. 2020: without embeddings and the head's FLOPs", "P")
        ),
        "Liang 2024, isoFLOP": Allocation(
            0.5681, None, "images", Source("Liang et al. 2024: text and image tokens in one stream, 1e17 to 6e18", "S")
        ),
        "Liang 2024, cross-attention": Allocation(
            0.54, None, "images", Source("Liang et al. 2024: the variant that attends to text", "S")
        ),
    }
)


def beside(depths: Sequence[int] = (15, 18, 21, 24, 30, 38)) -> pd.DataFrame:
    """Parameters, and FLOPs of the scaling study, by depth: ours, counted exactly, and the paper's (nan: it says none).

    Columns: depth, params, paper_params, flops (3F x 500,000 steps of 4,096 images), paper_flops, why (they differ).
    """
    rows = []
    for depth in depths:
        model = ModelConfig(depth=depth)
        params = flops.parameters(model).total
        spent = FIGURE_8.steps * FIGURE_8.batch * flops.train_flops(model)
        row = {"depth": depth, "params": params, "paper_params": SIZES.get(depth, float("nan")), "flops": float(spent)}
        row |= {"paper_flops": FIGURE_8.largest_flops if depth == max(SIZES) else float("nan")}
        six_nd = 6 * params * (model.image_tokens + model.text_tokens) * FIGURE_8.steps * FIGURE_8.batch
        why = []
        if depth in SIZES:
            ratio = params / SIZES[depth]
            why.append(
                "parameters: the paper's number is rounded"
                if abs(ratio - 1) < 0.02
                else f"parameters: ours are those of the released blocks, {ratio:.2f} times what the post says"
            )
        if row["paper_flops"] > 0:
            why.append(
                f"FLOPs: the paper's, {row['paper_flops'] / spent:.1f} times ours, are by a convention that it does "
                f"not give; 6 N D would be {six_nd / spent:.1f} times ours"
            )
        rows.append(row | {"why": "; ".join(why)})
    return pd.DataFrame(rows)
