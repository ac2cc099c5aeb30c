"""Let an interruption wait until a write and what we remember of it agree, and never lose one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Whether a block is open in the main thread, and whether an interruption came meanwhile.
_held = False
_pending = False

# Whether `heeding_interrupts` looks, and whether an interruption came meanwhile.
_heeding = False
_came = False


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
def heeding_interrupts() -> Iterator[None]:
    """Let no interruption of a ``with`` block be lost.

    Python drops `KeyboardInterrupt` where it is raised in a finalizer or the callback of a weak
    reference, of which SQLAlchemy has one for each row. What loops in a block calls
    `check_lost_interrupt`.

    Raises:
        KeyboardInterrupt: At the end of the block, if one was lost.
    """
    global _heeding, _came
    if _heeding or threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {
        number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))
    }

    def note(number: int, frame: FrameType | None) -> None:
        global _came
        _came = True
        before[number](number, frame)

    for number in before:
        signal.signal(number, note)
    _heeding, _came = True, False
    try:
        yield
        check_lost_interrupt()
    finally:
        _heeding = _came = False
        for number, handler in before.items():
            signal.signal(number, handler)


def check_lost_interrupt() -> None:
    """Raise an interruption that came in the block of `heeding_interrupts`, and did not end it.

    Raises:
        KeyboardInterrupt: If one came.
    """
    if _came and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


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
