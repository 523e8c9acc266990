"""A process that has others at work is told to stop: none of them is forgotten."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sd3_jax.errors import Stopped


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP end the sweep as Ctrl-C does, unless the process was started to ignore them.

    Raises Stopped then: what a launcher stopped, it is to start again.
    """

    def interrupt(signum: int, frame: object) -> None:
        for number in previous:  # once is enough: a second would cut short how the cells are stopped
            signal.signal(number, signal.SIG_IGN)
        raise Stopped(f"stopped by {signal.Signals(signum).name}; the same command goes on")

    previous: dict[signal.Signals, Any] = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            previous[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """Whatever tells this process to stop does so at the end of the block: a child that it starts there is known.

    Between the start of a child and the moment when somebody can stop it, a signal would leave it at work alone.
    """
    waiting: list[int] = []
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    ours = {number: handler for number, handler in previous.items() if callable(handler)}  # else it stops by itself
    for number in ours:
        signal.signal(number, lambda signum, frame: waiting.append(signum))
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        if waiting:
            signal.raise_signal(waiting[0])
