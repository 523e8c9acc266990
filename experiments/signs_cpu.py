"""Signs to be spelt, small enough for a laptop: 32 px, one letter of 5 x 7 pixels for each of four text tokens.

``data.words: 32`` makes one scene in seven a sign. At f = 4 with all 48 channels the autoencoder loses nothing, and a
token is one latent pixel: 8 x 8 tokens of 48 numbers, which need a width of 64. Three words are held out; their
letters are seen at their places, in other words.

After 1,200 steps there are plates, with scribble for ink: scene-sign-soft is 0. With eight words, three shapes, three
colours and one background (``--set steps=2400 --set data.words=8 --set data.shapes=3 --set data.colors=3 --set
data.backgrounds=1``, 21 minutes on a shared core) letters begin to be read: scene-sign-soft 0.19, chance 0.05, while
no word is right in full; scene-geneval 0.02 (64 pictures of each task).
"""

import ml_collections

from sd3_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """The setting that all depths share."""
    config = default_config()
    config.model.depth = 4
    config.model.head_dim = 16
    config.model.qk_norm = True
    config.model.patch = 1
    config.model.latent_size = 8
    config.model.latent_channels = 48
    config.model.text_tokens = 6
    config.model.text_dim = 48
    config.model.pooled_dim = 48
    config.data.image_size = 32
    config.data.downsample = 4
    config.data.layout = "grid"
    config.data.grid = 4
    config.data.shapes = 4
    config.data.colors = 10
    config.data.words = 32
    config.batch = 64
    config.steps = 1200
    config.optimizer.learning_rate = 4e-3
    config.optimizer.reference_width = 64
    config.optimizer.warmup_steps = 50
    config.evaluation.examples = 256
    config.evaluation.first_step = 100
    config.checkpoint_seconds = 60.0
    return config
