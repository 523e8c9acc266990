"""The comparison of backbones of Esser et al. 2024 (section 5.2.3, Figure 4): the paper's setting at 256 px.

From the paper: DiT (one set of weights for image and text), MM-DiT with two sets and with three (CLIP's tokens, T5's
and the image's), CrossDiT, UViT, in the setting of its study of formulations: batch 1024, AdamW at 1e-4 after 1,000
steps of warm-up, rf/lognorm(0, 1), text encoders dropped with probability 0.464. Its outcome: DiT < UViT < CrossDiT <
MM-DiT; a third set of weights gains little.

Not given there, and chosen here: depth 15 for MM-DiT, the others' depths such that an image costs as many FLOPs within
4 %, and one budget in FLOPs for all (``sweeps/figure4.yaml``: 200,000 steps of MM-DiT). The paper's images, CC12M,
come through another door: captioned scenes stand in for them, with text as the paper's sequence, CLIP's 77 tokens and
then T5's, so that a third set of weights has something to be for. Never run at this scale; ``sweeps/figure4_cpu.yaml``
is the comparison in miniature.
"""

import ml_collections

from sd3_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """The setting that all backbones share."""
    config = default_config()
    config.model.depth = 15
    config.model.patch = 2
    config.model.latent_size = 32
    config.model.latent_channels = 16
    config.model.text_tokens = 154
    config.model.clip_tokens = 77
    config.model.text_dim = 4096
    config.model.pooled_dim = 2048
    config.data.image_size = 256
    config.data.downsample = 8
    config.data.text_sequence = True
    config.data.text_dropout = 0.464
    config.batch = 1024
    config.steps = 200_000
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 1000
    config.evaluation.every = 20_000
    config.evaluation.examples = 4096
    return config
