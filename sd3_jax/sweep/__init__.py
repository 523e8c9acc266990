"""Sweeps: a YAML file becomes a list of cells, which are costed, run and resumed one by one."""
