"""Captioned scenes for one GPU: 64 px, objects placed freely, all eight shapes and ten colours.

With f = 4 and patch 2 an image is 64 tokens, a caption up to 32. Heads are 32 wide, with RMSNorm on queries and
keys. The rate is 2e-3 * 128 / width, as in ``scenes_cpu`` proportional to 1 / width.
"""

import ml_collections

from sd3_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """The setting that all depths share."""
    config = default_config()
    config.model.depth = 4
    config.model.head_dim = 32
    config.model.qk_norm = True
    config.model.patch = 2
    config.model.latent_size = 16
    config.model.latent_channels = 16
    config.model.text_tokens = 32
    config.model.text_dim = 96
    config.model.pooled_dim = 96
    config.data.image_size = 64
    config.data.downsample = 4
    config.data.layout = "free"
    config.data.shapes = 8
    config.data.colors = 10
    config.batch = 256
    config.steps = 8000
    config.optimizer.learning_rate = 2e-3
    config.optimizer.reference_width = 128
    config.optimizer.warmup_steps = 200
    config.evaluation.examples = 2048
    config.evaluation.first_step = 200
    return config
