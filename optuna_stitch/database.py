"""Databases by their URL, opened so that several processes can work in one."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

import optuna
import sqlalchemy

from optuna_stitch.errors import first_line
from optuna_stitch.progress import console

# SQLite makes a writer wait this long, in seconds, for another before it gives up.
_BUSY_TIMEOUT = 300
# How long, in seconds, a database that went away is waited for.
PATIENCE = 120.0
_LONGEST_PAUSE = 5.0

T = TypeVar("T")


def engine_arguments(url: str) -> dict[str, Any]:
    """What an engine is made with besides its URL."""
    return {"connect_args": {"timeout": _BUSY_TIMEOUT}} if _is_sqlite(url) else {}


def with_driver(url: str) -> str:
    """A URL with a driver that we offer to install, where it names none.

    Which one SQLAlchemy takes by itself depends on its version.
    """
    drivers = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
    kind, separator, rest = url.partition("://")
    return f"{drivers.get(kind, kind)}{separator}{rest}"


def prepare(engine: sqlalchemy.Engine) -> None:
    """Let readers and a writer of an SQLite file work side by side, with no sync a commit.

    Other databases do so by themselves.
    """
    if engine.dialect.name != "sqlite":
        return

    def use_write_ahead_log(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    sqlalchemy.event.listen(engine, "connect", use_write_ahead_log)
    engine.dispose()


def open_engine(url: str) -> sqlalchemy.Engine:
    """An engine for a database of ours."""
    engine = sqlalchemy.create_engine(with_driver(url), **engine_arguments(url))
    prepare(engine)
    return engine


def patiently(call: Callable[[], T], *, patience: float = PATIENCE) -> T:
    """Call a database, and again while it cannot be reached, with growing pauses.

    Args:
        call: What to do; it may be done twice where only the answer was lost.
        patience: Seconds to go on.

    Raises:
        Exception: The call's own, if trying again does not help or the time is over.
    """
    begin = time.monotonic()
    pause, told = 0.1, False
    while True:
        try:
            return call()
        except Exception as error:
            waited = time.monotonic() - begin
            if not is_transient(error) or waited + pause > patience:
                raise
            if not told and pause >= 1:  # what is back in a moment is not worth a word
                told = True
                console.print(
                    f"The storage does not answer; trying again for {patience - waited:.0f} s.",
                    style="yellow",
                )
            time.sleep(pause * random.uniform(0.7, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)


def is_transient(error: BaseException) -> bool:
    """Whether a database's error may be gone a moment later: a server that is away, a lock."""
    if isinstance(error, optuna.exceptions.StorageInternalError):
        # the driver's own error says more
        return error.__cause__ is None or is_transient(error.__cause__)
    if isinstance(error, sqlalchemy.exc.DBAPIError):
        text = str(error).lower()
        if "sqlite3" in type(error.orig).__module__:
            return "locked" in text or "busy" in text
        if "password" in text or "does not exist" in text or "access denied" in text:
            return False
        return error.connection_invalidated or isinstance(
            error, (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError)
        )
    return _of_grpc(error) and "UNAVAILABLE" in str(error)


def is_of_storage(error: BaseException) -> bool:
    """Whether an error comes from a storage, rather than from what is done with it."""
    kinds = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)
    return isinstance(error, kinds) or _of_grpc(error)


def _of_grpc(error: BaseException) -> bool:
    # grpc is an extra, so that its exceptions are known by name
    return any(kind.__name__ == "RpcError" for kind in type(error).__mro__)


def reason(error: BaseException) -> str:
    """What a database's driver says, which Optuna wraps in an exception that says less."""
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def hide_password(url: str) -> str:
    """A database's URL as it may be shown."""
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return repr(url)


def _is_sqlite(url: str) -> bool:
    return sqlalchemy.make_url(url).get_backend_name() == "sqlite"
