"""``python -m sd3_jax.cli``."""

from sd3_jax.cli import main

main()
