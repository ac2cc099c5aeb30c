"""Let an interruption wait until a write and what we remember of it agree; take it once."""

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

# Whether the first interruption is the only one, and whether it was raised.
_once = False
_raised = False


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


@contextmanager
def interrupted_once() -> Iterator[None]:
    """Let only the first interruption of a ``with`` block raise, Ctrl-C or SIGTERM.

    What starts processes may tell them to end more than once: the terminal does, and who started
    them. The second would come while the first is obeyed. Who wants more kills. An interrupt that
    this process ignores stays ignored.
    """
    global _once, _raised
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _raise_once) for number in numbers}
    _once, _raised = True, False
    try:
        yield
    finally:
        _once = False
        for number, handler in before.items():
            signal.signal(number, handler)


def check_interrupt() -> None:
    """Raise an interruption that is held, for who waits inside `uninterrupted`.

    Raises:
        KeyboardInterrupt: If one is held.
    """
    if threading.current_thread() is threading.main_thread():
        _deliver()


def _raise_once(number: int, frame: FrameType | None) -> None:
    global _raised
    if not _raised:
        _raised = True
        raise KeyboardInterrupt


def _hold(number: int, frame: FrameType | None) -> None:
    global _pending
    if _once and (_pending or _raised):
        return
    if _pending:
        _deliver()
    _pending = True


def _deliver() -> None:
    global _pending, _raised
    if _pending:
        _pending, _raised = False, True
        raise KeyboardInterrupt
