"""Scaling laws of text-to-image rectified-flow transformers, in JAX and Flax."""

__version__ = "0.1.0"
