"""Try a storage again while it cannot be reached, and know its errors from others."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

import optuna
import sqlalchemy

from optuna_stitch.utils.errors import first_line
from optuna_stitch.utils.interrupt import check_interrupt
from optuna_stitch.utils.progress import console

# Seconds for which a storage that cannot be reached is tried again, unless told otherwise.
RETRY_TIMEOUT = 120.0

# The same at the first contact: a server that does not answer then is mostly a wrong URL, or one
# that is starting too.
START_TIMEOUT = 10.0

# Seconds between two tries, which double from the first on.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0

T = TypeVar("T")


def retry(call: Callable[[], T], *, retry_timeout: float = RETRY_TIMEOUT) -> T:
    """Call a storage, and again while it cannot be reached, with growing pauses.

    Args:
        call: What to do; it may be done twice where only the answer was lost.
        retry_timeout: Seconds after which the last error is raised.

    Returns:
        What the call returns.

    Raises:
        Exception: The call's own, if trying again does not help or the time is over.

    Example:
        >>> answers = iter([optuna.exceptions.StorageInternalError("away"), "here"])
        >>> def call():
        ...     answer = next(answers)
        ...     if isinstance(answer, Exception):
        ...         raise answer
        ...     return answer
        >>> retry(call, retry_timeout=1.0)
        'here'
    """
    begin = time.monotonic()
    pause, told = _FIRST_PAUSE, False
    while True:
        try:
            return call()
        except Exception as error:
            waited = time.monotonic() - begin
            if not is_transient(error) or waited + pause > retry_timeout:
                raise
            if not told and pause >= 1:  # what is back in a moment is not worth a word
                told = True
                left = retry_timeout - waited
                console.print(
                    f"The storage does not answer; trying again for {left:.0f} s.", style="yellow"
                )
            time.sleep(pause * random.uniform(0.7, 1.0))
            check_interrupt()
            pause = min(2 * pause, _LONGEST_PAUSE)


def is_transient(error: BaseException) -> bool:
    """Whether an error may be gone a moment later: of a server that is away, or a lock.

    Args:
        error: Any error.
    """
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


def is_storage_error(error: BaseException) -> bool:
    """Whether an error comes from a storage, rather than from what is done with it.

    Args:
        error: Any error.
    """
    kinds = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)
    return isinstance(error, kinds) or _of_grpc(error)


def _of_grpc(error: BaseException) -> bool:
    # grpc is an extra, so that its exceptions are known by name
    return any(kind.__name__ == "RpcError" for kind in type(error).__mro__)


def reason(error: BaseException) -> str:
    """What a database's driver says, in one line; Optuna wraps it in an exception that says less.

    Args:
        error: Of a storage.
    """
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def way_out(error: BaseException, otherwise: str) -> str:
    """What can be done about an error of a storage, in a sentence.

    Args:
        error: Of a storage.
        otherwise: What to say if the error tells nothing special.
    """
    text = f"{error} {error.__cause__}".lower()
    if "malformed" in text or "not a database" in text:
        return (
            "The database is damaged. Put back a copy of it, or rescue what is left: "
            "sqlite3 study.db .recover | sqlite3 rescued.db"
        )
    if "readonly" in text or "read-only" in text or "permission denied" in text:
        return "It is read-only here. Copy it to where you may write."
    if "is full" in text or "no space left" in text:
        return "Make room on the disk, and run the same command again; finished trials are kept."
    return otherwise
