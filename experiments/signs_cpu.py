"""Signs to be spelt, small enough for a laptop: 32 px, one letter of 5 x 7 pixels for each of four text tokens.

``data.words: 32`` makes one scene in seven a sign. At f = 4 with all 48 channels the autoencoder loses nothing, and a
token is one latent pixel: 8 x 8 tokens of 48 numbers, which need a width of 64. Three words are held out; their
letters are seen at their places, in other words.

After 1,200 steps there are plates, with scribble for ink: scene-sign-soft is 0. Words are learnt where there are fewer
of them, eight, with three shapes, three colours and one background: ``--set model.depth=6 --set steps=5000 --set
data.words=8 --set data.shapes=3 --set data.colors=3 --set data.backgrounds=1``, 1.0e14 FLOPs. A third of the signs are
then spelt right: scene-sign 0.33 +- 0.10 (chance 0.01), scene-sign-soft 0.69 +- 0.06 (chance 0.14); of the word that
was held out no sign is right, and 0.31 of its letters are; scene-geneval 0.38 (``evaluate --images-per-task 64``). At
3,800 steps they were 0.16 and 0.47, of depth 4 at 2,400 steps 0 and 0.19.
"""

import ml_collections

from sd3_jax.config import default_config
from sd3_jax.experiments import load_experiment


def get_config() -> ml_collections.ConfigDict:
    """The setting that all depths share."""
    config = default_config()
    config.update(load_experiment("scenes_cpu"))  # what is not named below is as there
    config.model.head_dim = 16
    config.model.latent_size = 8
    config.model.latent_channels = 48
    config.data.image_size = 32
    config.data.downsample = 4
    config.data.grid = 4
    config.data.words = 32
    return config
