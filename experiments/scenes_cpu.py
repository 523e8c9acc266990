"""Small captioned scenes that a laptop learns in minutes: 24 px, one object to a cell of a 3 x 3 grid.

With f = 4 and patch 2 an image is 9 tokens of 8 x 8 pixels, so that one object lies under one token, and a
caption is 6 words. Heads are 16 wide, with RMSNorm on queries and keys. The best learning rate falls with the
width at this scale (``sweeps/lr_check_cpu.yaml``), so the rate is 4e-3 * 64 / width.
"""

import ml_collections

from sd3_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """The setting that all depths share."""
    config = default_config()
    config.model.depth = 4
    config.model.head_dim = 16
    config.model.qk_norm = True
    config.model.patch = 2
    config.model.latent_size = 6
    config.model.latent_channels = 16
    config.model.text_tokens = 6
    config.model.text_dim = 48
    config.model.pooled_dim = 48
    config.data.image_size = 24
    config.data.downsample = 4
    config.data.layout = "grid"
    config.data.grid = 3
    config.data.shapes = 4
    config.data.colors = 10
    config.batch = 64
    config.steps = 2000
    config.optimizer.learning_rate = 4e-3
    config.optimizer.reference_width = 64
    config.optimizer.warmup_steps = 50
    config.evaluation.examples = 512
    config.evaluation.first_step = 50
    return config
