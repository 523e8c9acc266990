"""Networks in Flax Linen: from noisy latents, time and text to a velocity."""
