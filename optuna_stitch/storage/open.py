"""Open a storage by its URL, and serve one to others."""

from __future__ import annotations

import random
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import sqlalchemy
from optuna.storages import BaseStorage
from optuna.storages.journal import JournalStorage

from optuna_stitch.storage.buffered import BufferedStorage
from optuna_stitch.storage.journal import JournalFile
from optuna_stitch.storage.rdb import open_engine, open_rdb
from optuna_stitch.storage.retry import RETRY_TIMEOUT, START_TIMEOUT, reason, retry, way_out
from optuna_stitch.utils.errors import StudyError, StudyNotFoundError
from optuna_stitch.utils.machine import check_address

_JOURNAL = "journal:///"

_GRPC = "grpc://"

# How often opening is tried; where tables are there that were not a moment before, as long as a
# server is waited for.
_TRIES = 5

# What to install where a driver is missing.
_EXTRAS = {"psycopg": "postgresql", "pymysql": "mysql", "MySQLdb": "mysql", "grpc": "grpc"}


def open_storage(
    url: str, *, create: bool = True, retry_timeout: float = RETRY_TIMEOUT
) -> BufferedStorage:
    """Open a storage, and make its tables where it has none.

    Args:
        url: ``sqlite:///study.db``, ``postgresql://user@host/database`` or any other database URL
            of SQLAlchemy's; ``journal:///study.journal`` for a journal file (four slashes for an
            absolute path); ``grpc://host:port`` for Optuna's gRPC proxy. Paths of files may have
            any characters, and begin with ``~``.
        create: Whether to make the file or the tables where there are none; otherwise nothing is
            written, and an SQLite file may be read-only.
        retry_timeout: Seconds for which a storage that cannot be reached is tried again; on
            opening not more than 10.

    Returns:
        A storage for ``optuna.create_study(storage=...)``, which writes trials in one piece.

    Raises:
        StudyError: If it cannot be reached, or a file is no database, damaged, or read-only.
        StudyNotFoundError: If there is none and ``create`` is False.

    Example:
        >>> storage = st.open_storage(f"sqlite:///{tmp_path}/studies.db")
        >>> st.create_study(objective, study_name="digits", storage=storage).study_name
        'digits'
    """
    wait = min(START_TIMEOUT, retry_timeout)
    try:
        backend = retry(lambda: _open(url, wait, create=create), retry_timeout=wait)
    except StudyError:
        raise
    except ImportError as error:
        cause = error if error.name else error.__cause__  # Optuna wraps what a driver lacks
        missing = (getattr(cause, "name", None) or "of its driver").partition(".")[0]
        extra = _EXTRAS.get(missing)
        install = f"pip install 'optuna-stitch[{extra}]'" if extra else f"install {missing}"
        raise StudyError(
            f"The storage {hide_password(url)} needs the package {missing}: {install}."
        ) from error
    except Exception as error:  # every database driver has exceptions of its own
        raise StudyError(
            f"The storage {hide_password(url)} cannot be opened: {reason(error)}. "
            + way_out(
                error,
                "Check the URL (one is sqlite:///study.db), that the database runs, and that its "
                "folder exists.",
            )
        ) from error
    return BufferedStorage(backend, retry_timeout=retry_timeout)


def serve_proxy(storage: BufferedStorage, *, host: str = "127.0.0.1", port: int = 13000) -> None:
    """Serve Optuna's gRPC proxy of a storage until interrupted.

    Args:
        storage: What is behind it.
        host: Address to listen on; only this machine can reach the default.
        port: Port to listen on.

    Raises:
        StudyError: If the address cannot be listened on.
    """
    check_address("The proxy", host, port)
    with _experimental():
        optuna.storages.run_grpc_proxy_server(storage.backend, host=host, port=port)


def result_cache_engine(storage: BufferedStorage, folder: Path) -> sqlalchemy.Engine:
    """The database in which results are cached: the study's own, or one in a folder.

    Args:
        storage: The study's.
        folder: Where the database is kept if the storage has none.
    """
    found = rdb_of(storage)
    return found.engine if found else open_engine(f"sqlite:///{folder.as_posix()}/records.db")


def rdb_of(storage: BaseStorage) -> optuna.storages.RDBStorage | None:
    """The relational storage behind another, if there is one.

    Args:
        storage: One of `open_storage`, or of Optuna's.
    """
    if isinstance(storage, BufferedStorage):
        storage = storage.backend
    # Optuna puts a cache around it
    found = getattr(storage, "_backend", storage)
    return found if isinstance(found, optuna.storages.RDBStorage) else None


@contextmanager
def _experimental() -> Iterator[None]:
    """Use what Optuna calls experimental; that it may change is for us to follow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _open(url: str, wait: float, *, create: bool) -> BaseStorage:
    """A storage of Optuna's; a proxy may take some seconds to answer."""
    if url.startswith(_JOURNAL):
        path = Path(url.removeprefix(_JOURNAL)).expanduser()
        if not create and not path.is_file():
            raise StudyNotFoundError(f"There is no storage {path} yet.")
        return JournalStorage(JournalFile(path))
    if url.startswith(_GRPC):
        host, _, port = url.removeprefix(_GRPC).partition(":")
        with _experimental():
            proxy = optuna.storages.GrpcStorageProxy(host=host, port=int(port or 13000))
        proxy.wait_server_ready(timeout=wait)
        return proxy
    deadline, tries = time.monotonic() + wait, 0
    while True:
        try:
            return optuna.storages.get_storage(open_rdb(url, create=create))
        except sqlalchemy.exc.DatabaseError as error:
            if type(error) is sqlalchemy.exc.DatabaseError:
                raise  # of SQLite: the file is damaged
            tries += 1
            # another worker is making the tables just now
            being_made = "already exists" in str(error) and time.monotonic() < deadline
            if tries >= _TRIES and not being_made:
                raise
            time.sleep(random.uniform(0.1, 0.5))


def hide_password(url: str) -> str:
    """A storage's URL as it may be shown.

    Args:
        url: Of any storage.
    """
    if url.startswith((_JOURNAL, "sqlite")):
        return url
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # the latter of a port that is no number
        return repr(re.sub(r"(://[^:/@]*:).*@", r"\1***@", url))
