"""How parameters learn: shardings, the optimizer, one pure step, checkpoints."""
