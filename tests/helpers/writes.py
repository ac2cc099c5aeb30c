"""Count what is written durably."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """Counts commits that follow a write, of any engine, and syncs of files."""
    count = 0
    wrote: set[int] = set()
    fsync = os.fsync

    def execute(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip()[:6].upper() in ("INSERT", "UPDATE", "DELETE"):
            wrote.add(id(connection))

    def commit(connection: Any) -> None:
        nonlocal count
        count += id(connection) in wrote
        wrote.discard(id(connection))

    def sync(file: int) -> None:
        nonlocal count
        count += 1
        fsync(file)

    listeners = (("before_cursor_execute", execute), ("commit", commit))
    for event, listener in listeners:
        sqlalchemy.event.listen(sqlalchemy.Engine, event, listener)
    os.fsync = sync
    try:
        yield lambda: count
    finally:
        os.fsync = fsync
        for event, listener in listeners:
            sqlalchemy.event.remove(sqlalchemy.Engine, event, listener)
