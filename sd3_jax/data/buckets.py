"""Which aspect ratio a training step draws: one bucket for its whole batch, so that a batch is one array."""

import functools

import numpy as np

LARGEST = 2**32  # what the seed of NumPy's generator holds


def bucket_of(seed: int, step: int, count: int) -> int:
    """The bucket, of ``count``, of the update after ``step`` others: a seeded permutation of all of them each cycle.

    After every ``count`` steps each has been drawn equally often. A function of the numbers alone, whatever mesh,
    life or length of the run.

    >>> [bucket_of(0, step, 3) for step in range(6)]
    [0, 2, 1, 0, 2, 1]
    """
    cycle, place = divmod(step, count)
    return _order(seed, cycle, count)[place]


@functools.lru_cache(maxsize=8)
def _order(seed: int, cycle: int, count: int) -> tuple[int, ...]:
    # On the host: asking the device would wait for the steps that are in flight. NumPy never changes this stream
    # (NEP 19).
    numbers = np.random.RandomState([seed, *divmod(cycle, LARGEST)])
    return tuple(int(bucket) for bucket in numbers.permutation(count))
