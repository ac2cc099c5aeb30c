"""Let an interruption wait until a write and what we remember of it agree."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Whether a block is open in the main thread, and whether an interruption came meanwhile.
_held = False
_pending = False


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C, and what else ends this process by an exception, until a ``with`` block ends.

    Python raises `KeyboardInterrupt` between any two instructions: after a database has a trial,
    and before this process knows of it. What waits in a block calls `check_interrupt`; a second
    Ctrl-C is not held. Threads other than the main one are never interrupted, so nothing is held
    there.

    Raises:
        KeyboardInterrupt: At the end of the outermost block, if an interruption was held.
    """
    global _held
    if _held or threading.current_thread() is not threading.main_thread():
        yield
        return
    # a handler that is no function ends the process, or does nothing: neither can be held
    before = {
        number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))
    }
    for number in before:
        signal.signal(number, _hold)
    _held = True
    try:
        yield
    finally:
        _held = False
        for number, handler in before.items():
            signal.signal(number, handler)
        _deliver()


def check_interrupt() -> None:
    """Raise an interruption that is held, for who waits inside `uninterrupted`.

    Raises:
        KeyboardInterrupt: If one is held.
    """
    if threading.current_thread() is threading.main_thread():
        _deliver()


def _hold(number: int, frame: FrameType | None) -> None:
    global _pending
    if _pending:
        _deliver()
    _pending = True


def _deliver() -> None:
    global _pending
    if _pending:
        _pending = False
        raise KeyboardInterrupt
