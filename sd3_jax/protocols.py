"""In which settings the paper's studies score pictures: what evaluate draws for them, and what their tables are of."""

from typing import Literal, NamedTuple


class Protocol(NamedTuple):
    """Settings of Euler's method, each drawn with every kind of weights."""

    samplers: tuple[tuple[int, float], ...]  # steps, guidance
    weights: tuple[Literal["ema", "raw"], ...]
    grid: str | None  # None: as asked for


PROTOCOLS = {
    # section 5.1
    "table1": Protocol(((50, 1.0), (50, 2.5), (50, 5.0), (5, 5.0), (10, 5.0), (25, 5.0)), ("ema", "raw"), "own"),
    "table6": Protocol(((5, 5.0), (10, 5.0), (20, 5.0), (50, 5.0)), ("ema",), None),
}
