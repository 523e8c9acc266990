"""Counts, bytes and hours as people read them."""

from collections.abc import Sequence


def duration(hours: float) -> str:
    """A time in the unit that suits it.

    >>> duration(20_486), duration(0.75), duration(0.001)
    ('20,500 h', '45 min', '3.6 s')
    """
    if hours * 60 >= 99.5:
        return f"{float(f'{hours:.3g}'):,g} h"
    return f"{hours * 60:.3g} min" if hours * 3600 >= 99.5 else f"{hours * 3600:.3g} s"


def count(number: float) -> str:
    """A count in words that fit a column.

    >>> count(496_066_624), count(2_048_000_000), count(640)
    ('496M', '2.05B', '640')
    """
    return _scaled(number, ("", "k", "M", "B", "T", "Q"))


def size(number: float) -> str:
    """Bytes in the nearest decimal unit.

    >>> size(16 * 8_056_617_792)
    '129 GB'
    """
    return _scaled(number, (" B", " kB", " MB", " GB", " TB", " PB"))


def _scaled(number: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:,.3g}{units[-1]}"
