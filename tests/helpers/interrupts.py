"""Signals that interrupt, also where a background job of a shell made this process ignore them."""

from __future__ import annotations

import os
import signal
import weakref
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


class _Row:
    """As SQLAlchemy's, of which somebody wants to know when they are gone."""


def lose_interrupt() -> None:
    """Interrupt this process where Python drops the exception."""
    row = _Row()
    watched = weakref.ref(row, lambda _: os.kill(os.getpid(), signal.SIGINT))
    del row
    assert watched() is None
