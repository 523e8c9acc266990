"""Small scenes with objects anywhere, 32 px: what ``finetune_cpu`` starts from, on a CPU.

Three shapes and four colours; f = 4, so an image is 8 x 8 latent pixels of 16 channels, each a token. Queries and
keys are not normalised, as in the paper's study at 256 px.

Result: EMA validation loss 0.370 after 1,500 steps; pictures have the colours and about the places of their captions,
hardly their shapes. It shows how the two stages go together, not what they are worth.
"""

import ml_collections

from sd3_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """The setting of the first stage."""
    config = default_config()
    config.model.depth = 4
    config.model.head_dim = 16
    config.model.patch = 1
    config.model.latent_size = 8
    config.model.latent_channels = 16
    config.model.text_tokens = 6
    config.model.text_dim = 48
    config.model.pooled_dim = 48
    config.data.image_size = 32
    config.data.downsample = 4
    config.data.layout = "free"
    config.data.shapes = 3
    config.data.colors = 4
    config.batch = 64
    config.steps = 1500
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 50
    config.evaluation.examples = 128
    config.evaluation.first_step = 100
    config.evaluation.per_decade = 6
    config.checkpoint_seconds = 60.0
    return config
