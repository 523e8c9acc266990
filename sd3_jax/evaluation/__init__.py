"""How good a model is: measurements in which everything but the weights is fixed."""
