"""Signals that interrupt, also where a background job of a shell made this process ignore them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let both signals raise `KeyboardInterrupt` here, and have their own meaning in children."""
    before = [signal.signal(number, signal.default_int_handler) for number in NUMBERS]
    try:
        yield
        assert {signal.getsignal(number) for number in NUMBERS} == {signal.default_int_handler}
    finally:
        for number, handler in zip(NUMBERS, before, strict=True):
            signal.signal(number, handler)
