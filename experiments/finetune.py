"""The second stage of Esser et al. 2024 (section 5.3.2): a model of 256 px goes on at 1024 px, in mixed aspect ratios.

From the paper: QK-norm, added to a model that was trained without it, since in mixed precision attention diverges at
high resolution; buckets of H W close to 1024^2; positions extended for the aspect ratio and interpolated to the scale
of 256 px; the timestep shift 3, for sampling too (``sd3-jax sample --shift 3``); AdamW with epsilon 1e-15.

Not given there, and chosen here: which buckets (nine, of sides that 64 divides, up to 1 : 2.4), the batch, the rate
and the length of the stage. The grid of positions is as wide as the released models', 192 tokens a side. The source
is a run of the experiment ``figure8`` of the same depth:

    sd3-jax train finetune --run runs/d15_1024 --set init_from=runs/figure8/d15-s0

At 512 px: data.image_size 512, model.latent_size 64, flow.shift 2 = sqrt(512^2 / 256^2), and buckets of that area.
"""

import ml_collections

from sd3_jax.config import default_config
from sd3_jax.experiments import load_experiment

BUCKETS = (
    (1024, 1024),
    (896, 1152),
    (832, 1216),
    (768, 1344),
    (640, 1536),
    (1152, 896),
    (1216, 832),
    (1344, 768),
    (1536, 640),
)


def get_config() -> ml_collections.ConfigDict:
    """The setting that all depths share."""
    config = default_config()
    config.update(load_experiment("figure8"))  # what is not named below is as in the first stage
    config.init_from = "runs/figure8/d15-s0"
    config.model.qk_norm = True
    config.model.latent_size = 128
    config.model.position_grid = 192
    config.model.position_base = 16  # tokens on a side at 256 px: here a step is 1/4
    config.flow.shift = 3.0
    config.data.image_size = 1024
    config.data.buckets = BUCKETS
    config.batch = 1024
    config.steps = 50_000
    config.optimizer.epsilon = 1e-15
    config.evaluation.every = 5_000
    return config
