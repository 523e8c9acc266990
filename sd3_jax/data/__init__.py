"""Where training examples come from: captioned pictures as latents and text embeddings."""
