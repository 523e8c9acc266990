"""The scaling study of Esser et al. 2024 (section 5.3, Figure 8): MM-DiT at 256 px, one dial, the depth.

From the paper: 256 px, latents of 16 channels at f = 8, patch 2, 154 text tokens, batch 4096, 500,000 steps,
rf/lognorm(0, 1), width 64 * depth with as many heads as blocks, the same hyper-parameters for all depths,
validation every 50,000 steps, each of the text encoders dropped with probability 0.464.

Not given there for this study, and chosen here: the rate 1e-4 with 1,000 steps of warm-up, AdamW and its betas
(those of the paper's smaller study, appendix B.3; weight decay 0.01 is torch's default), gradients
clipped at norm 1, and the power-function average of the weights in place of one with decay 0.99 every 100 steps.
The paper's images are not public: captioned scenes at 256 px stand in for them, so losses are not comparable
with the paper's, while parameters, FLOPs and the plan are.
"""

import ml_collections

from sd3_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """The setting that all depths share."""
    config = default_config()
    config.model.depth = 15
    config.model.patch = 2
    config.model.latent_size = 32
    config.model.latent_channels = 16
    config.model.text_tokens = 154
    config.model.text_dim = 4096
    config.model.pooled_dim = 2048
    config.data.image_size = 256
    config.data.downsample = 8
    config.data.text_dropout = 0.464
    config.batch = 4096
    config.steps = 500_000
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 1000
    config.optimizer.ema = "power"
    config.evaluation.every = 50_000
    config.evaluation.examples = 4096
    config.mesh.remat = "full"
    return config
