"""Databases by their URL, opened so that several processes can work in one."""

from __future__ import annotations

from typing import Any

import sqlalchemy

# SQLite makes a writer wait this long, in seconds, for another before it gives up.
_BUSY_TIMEOUT = 300


def connect_args(url: str) -> dict[str, Any]:
    """What a database's driver is given besides its URL."""
    return {"timeout": _BUSY_TIMEOUT} if _is_sqlite(url) else {}


def prepare(engine: sqlalchemy.Engine) -> None:
    """Let readers and a writer of an SQLite file work side by side, with one sync a commit.

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
    engine = sqlalchemy.create_engine(url, connect_args=connect_args(url))
    prepare(engine)
    return engine


def hide_password(url: str) -> str:
    """A database's URL as it may be shown."""
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return repr(url)


def _is_sqlite(url: str) -> bool:
    return sqlalchemy.make_url(url).get_backend_name() == "sqlite"
