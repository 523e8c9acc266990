"""Notebooks, shipped as package data: they call ``analysis`` and hold no logic of their own."""
