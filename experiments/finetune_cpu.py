"""The second stage in small: a model of 32 px (``free_cpu``) goes on at 48 px, in five aspect ratios.

As in the paper (``finetune``): QK-norm is added, positions are interpolated, buckets have the area of the square
image, and the shift is sqrt(48^2 / 32^2) = 1.5. The run that it starts from is found from the working directory:

    sd3-jax train free_cpu --run runs/free_cpu
    sd3-jax train finetune_cpu --run runs/finetune_cpu
"""

import ml_collections

from sd3_jax.config import default_config
from sd3_jax.experiments import load_experiment


def get_config() -> ml_collections.ConfigDict:
    """The setting of the second stage."""
    config = default_config()
    config.update(load_experiment("free_cpu"))  # what is not named below is as in the first stage
    config.init_from = "runs/free_cpu"
    config.model.qk_norm = True
    config.model.latent_size = 12
    config.model.position_grid = 16
    config.model.position_base = 8  # tokens on a side at 32 px: here a step is 2/3
    config.flow.shift = 1.5
    config.data.image_size = 48
    config.data.buckets = ((48, 48), (40, 56), (56, 40), (36, 64), (64, 36))
    config.steps = 300
    config.optimizer.learning_rate = 1e-3
    config.evaluation.first_step = 10
    return config
