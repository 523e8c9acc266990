"""Sweeps, as YAML: which cells of an experiment are run."""
