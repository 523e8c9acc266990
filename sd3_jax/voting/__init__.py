"""Blind votes of people on pairs of pictures: the ballot, the page, its server, the votes, the results."""
