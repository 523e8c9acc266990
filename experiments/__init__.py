"""Experiments: each file returns the configuration of one family of runs from ``get_config()``."""
