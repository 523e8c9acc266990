"""Judges whose networks run in torch (extra ``scorers``): each a function from folders of weights to a Scorer."""
