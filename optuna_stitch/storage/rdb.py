"""Relational databases: an engine for a URL, and Optuna's storage with fewer statements.

Optuna writes, checks and reads every parameter of a trial by itself, which at 200 switches takes
a tenth of a second. This is the one module that overrides methods which Optuna does not document.
Should they go away, Optuna's own are called as ever, and a test says so.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from optuna_stitch.utils.errors import StudyError, StudyNotFoundError
from optuna_stitch.utils.files import is_writable

try:
    from optuna.storages._rdb import models
    from optuna.storages._rdb.storage import _create_scoped_session
except ImportError:  # a later Optuna, which calls none of the methods that use them
    models = None  # type: ignore[assignment]

_FROM_ARRAYS = sqlalchemy.text(
    "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) "
    "SELECT :trial_id, name, value, (CAST(:choices AS text[]))[choice] "
    "FROM unnest(CAST(:names AS text[]), CAST(:values AS float8[]), CAST(:chosen AS int[])) "
    "AS param(name, value, choice)"
)

# SQLite makes a writer wait this long, in seconds, for another before it gives up.
_BUSY_TIMEOUT = 300

# Seconds for which a running trial is not read again.
_FRESH = 1.0

# The URL of an SQLite file. A question mark may be part of its path, or begin parameters.
_SQLITE = re.compile(
    r"sqlite(?:\+pysqlite)?:///(?!file:|:memory:)"
    r"(?P<path>.+?)(?P<parameters>\?\w+=[^?&=/]*(?:&\w+=[^?&=/]*)*)?"
)

# Databases limit how many values one query may name.
_AT_ONCE = 500


def open_engine(url: str) -> sqlalchemy.Engine:
    """An engine for a database, in which several processes can work at once.

    Args:
        url: A database URL of SQLAlchemy's.
    """
    engine = _engine(url)
    prepare(engine)
    return engine


def _engine(url: str, *, read_only: bool = False) -> sqlalchemy.Engine:
    url, arguments = _connection(url, read_only=read_only)
    return sqlalchemy.create_engine(url, **arguments)


def _has_studies(url: str, *, read_only: bool) -> bool:
    """Whether a database, or an SQLite file that is there, has Optuna's tables."""
    engine = _engine(url, read_only=read_only)
    try:
        return sqlalchemy.inspect(engine).has_table("studies")
    finally:
        engine.dispose()


def _connection(url: str, *, read_only: bool) -> tuple[str, dict[str, Any]]:
    """How SQLAlchemy reaches a database: a URL, and what else it needs to be told.

    Which driver it takes by itself depends on its version, so that one which we offer to install
    is named. The path of an SQLite file may hold what means something else in URLs.
    """
    found = _SQLITE.fullmatch(url)
    if found is None:
        kind, separator, rest = url.partition("://")
        kind = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}.get(kind, kind)
        timeout = {"timeout": _BUSY_TIMEOUT} if kind.startswith("sqlite") else {}
        return f"{kind}{separator}{rest}", {"connect_args": timeout}
    path, parameters = Path(found["path"]).expanduser(), found["parameters"]
    if parameters and not read_only:
        return f"sqlite:///{path.as_posix()}{parameters}", {}
    place = f"{path.absolute().as_uri()}?mode=ro" if read_only else str(path)
    connect = partial(
        sqlite3.connect, place, timeout=_BUSY_TIMEOUT, check_same_thread=False, uri=read_only
    )
    return f"sqlite:///{quote(path.as_posix())}", {"creator": connect}


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite database; None of other databases, and of one in memory.

    Args:
        url: A database URL of SQLAlchemy's.
    """
    found = _SQLITE.fullmatch(url)
    return None if found is None else Path(found["path"]).expanduser()


def check_sqlite(path: Path, *, create: bool) -> None:
    """Raise if a file cannot be opened as an SQLite database, with what is wrong with it.

    Args:
        path: The file.
        create: Whether to make it where there is none, and to write; otherwise it is read.

    Raises:
        StudyError: If it is no database, cannot be read, or has to be written and cannot be.
        StudyNotFoundError: If there is none and ``create`` is False.
    """
    if not path.exists():
        if not create:
            raise StudyNotFoundError(f"There is no storage {path} yet.")
        if not path.parent.is_dir():
            raise StudyError(
                f"The database {path} cannot be opened: the folder {path.parent} does not exist. "
                "Make it, or name another in `study: {storage: ...}`."
            )
    elif not path.is_file():
        raise StudyError(f"The database {path} cannot be opened: it is no file. Name a file.")
    else:
        if not os.access(path, os.R_OK):
            raise StudyError(f"The database {path} cannot be read. See who owns it.")
        try:
            # by SQLite itself: closing any other handle gives up all locks that this process has
            # on the file, and the log of its open connections may be deleted
            place = f"{path.absolute().as_uri()}?immutable=1"
            with closing(sqlite3.connect(place, uri=True)) as connection:
                connection.execute("PRAGMA schema_version")
        except sqlite3.OperationalError:
            pass  # who opens it for good will say what is wrong
        except sqlite3.DatabaseError as error:
            # what another process is writing can look malformed, since no lock is waited for
            if "not a database" in str(error):
                raise StudyError(
                    f"{path} is not an SQLite database, but some other kind of file, or damaged "
                    "from its first byte on. Name another file, or put back a copy of the "
                    "database."
                ) from error
    if create and not _may_write(path):
        raise StudyError(
            f"The database {path} is read-only: a search has to write it, and the folder that it "
            "is in. Copy the folder to where you may write. To read it, `export` and `compare` "
            "will do, or from Python `load_study`."
        )


def _may_write(path: Path) -> bool:
    """Whether a file, or one to be made, and its folder may be written, as SQLite needs it."""
    return is_writable(path.parent) and (not path.exists() or is_writable(path))


def prepare(engine: sqlalchemy.Engine, *, read_only: bool = False) -> None:
    """Let readers and a writer of an SQLite file work side by side, with no sync per commit.

    Other databases do so by themselves, and one in memory has one user.

    Args:
        engine: Of any database; its connections are opened anew.
        read_only: Whether to refuse to write instead.
    """
    if engine.dialect.name != "sqlite" or engine.url.database in (None, "", ":memory:"):
        return
    settings = ["query_only=ON"] if read_only else ["journal_mode=WAL", "synchronous=NORMAL"]

    def set_up(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        for setting in settings:
            cursor.execute(f"PRAGMA {setting}")
        cursor.close()

    sqlalchemy.event.listen(engine, "connect", set_up)
    engine.dispose()


def open_rdb(url: str, *, create: bool) -> OneStatementStorage:
    """Open a database as a storage; a file that may only be read is read.

    Args:
        url: A database URL of SQLAlchemy's.
        create: Whether to make what is not there, and to write.

    Raises:
        StudyError: As `check_sqlite` says.
        StudyNotFoundError: If there are no studies and ``create`` is False.
    """
    path = sqlite_file(url)
    if path is not None:
        check_sqlite(path, create=create)
    if create:
        return OneStatementStorage(url)
    if path is not None and not _may_write(path):
        return _open_read_only(url, path)
    return _open_existing(url)


def _open_existing(url: str, *, read_only: bool = False) -> OneStatementStorage:
    if not _has_studies(url, read_only=read_only):
        raise StudyNotFoundError("There is no storage of studies in this database yet.")
    return OneStatementStorage(url, read_only=read_only)


def _open_read_only(url: str, path: Path) -> OneStatementStorage:
    try:
        return _open_existing(url, read_only=True)
    except sqlalchemy.exc.OperationalError:
        # SQLite wants to write a log beside it, or to go through that of its last writer
        folder = tempfile.TemporaryDirectory()
        copy = Path(folder.name) / "study.db"
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
        with closing(sqlite3.connect(copy)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
        storage = _open_existing(f"sqlite:///{copy}", read_only=True)
        storage.copied_to = folder  # which goes with the storage
        return storage


class OneStatementStorage(optuna.storages.RDBStorage):
    """`optuna.storages.RDBStorage` that writes a trial given in one piece by few statements.

    Trials are read by few queries too.

    Args:
        url: A database URL of SQLAlchemy's.
        read_only: Whether to refuse to write.
    """

    copied_to: tempfile.TemporaryDirectory[str] | None = None

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        # parameters whose choices Optuna has compared with the study's, and these as JSON
        self._checked: dict[tuple[int, str], tuple[BaseDistribution, str]] = {}
        # unfinished trials by id, and when they were read
        self._lately: dict[int, tuple[float, FrozenTrial]] = {}
        url, arguments = _connection(url, read_only=read_only)
        super().__init__(url, engine_kwargs=arguments)
        prepare(self.engine, read_only=read_only)

    @staticmethod
    def _fill_storage_url_template(template: str) -> str:
        return template  # a path may have braces

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Any
    ) -> Any:
        if template_trial is None or models is None:
            return super()._get_prepared_new_trial(study_id, template_trial, session)
        distributions = template_trial.distributions
        unknown = {
            name: distribution
            for name, distribution in distributions.items()
            if not self._knows(study_id, name, distribution)
        }
        # Optuna writes the rest, and sees to it that a study's choices do not change
        rest = copy.copy(template_trial)
        rest.params = {name: template_trial.params[name] for name in unknown}
        rest.distributions = unknown
        trial = super()._get_prepared_new_trial(study_id, rest, session)
        rows = [
            (name, distributions[name].to_internal_repr(value), self._checked[study_id, name][1])
            for name, value in template_trial.params.items()
            if name not in unknown
        ]
        if rows:
            self._insert(session, int(trial.trial_id), rows)
        for name, found in unknown.items():
            text = optuna.distributions.distribution_to_json(found)
            self._checked[study_id, name] = (found, text)
        return trial

    def _knows(self, study_id: int, name: str, distribution: BaseDistribution) -> bool:
        known, _ = self._checked.get((study_id, name), (None, ""))
        return known is distribution or known == distribution

    def _insert(self, session: Any, trial_id: int, rows: list[tuple[str, float, str]]) -> None:
        """Write parameters of a trial."""
        if self.engine.dialect.name == "postgresql":
            # as arrays, since its driver would send a statement for every row
            choices = list(dict.fromkeys(choice for _, _, choice in rows))
            values = {
                "trial_id": trial_id,
                "names": [name for name, _, _ in rows],
                # a choice is stored as its place, an integer; arrays hold one type
                "values": [float(value) for _, value, _ in rows],
                "choices": choices,
                "chosen": [choices.index(choice) + 1 for _, _, choice in rows],
            }
            session.execute(_FROM_ARRAYS, values)
            return
        names = ("param_name", "param_value", "distribution_json")
        session.execute(
            models.TrialParamModel.__table__.insert(),
            [{"trial_id": trial_id, **dict(zip(names, row, strict=True))} for row in rows],
        )

    def delete_study(self, study_id: int) -> None:
        """Delete a study; see `optuna.storages.BaseStorage.delete_study`."""
        super().delete_study(study_id)
        # SQLite gives the ids of a study and its trials to the next ones
        self._checked = {key: found for key, found in self._checked.items() if key[0] != study_id}
        self._lately.clear()

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Finish or claim a trial; see `optuna.storages.BaseStorage.set_trial_state_values`.

        Of several workers that claim a trial one may get it. Optuna locks the trial's row for
        that; SQLite has no such locks, so that the file is locked here before the trial is read.
        """
        if self.engine.dialect.name != "sqlite":
            return super().set_trial_state_values(trial_id, state, values)
        session = self.scoped_session()
        try:
            session.execute(sqlalchemy.text("BEGIN IMMEDIATE"))
            return super().set_trial_state_values(trial_id, state, values)
        except BaseException:
            session.rollback()  # also what Optuna leaves open, where the trial is finished
            raise

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Read one trial; see `optuna.storages.BaseStorage.get_trial`."""
        if models is None:
            return super().get_trial(trial_id)
        found = self._read([trial_id])
        if not found:
            raise KeyError(f"No trial has the id {trial_id}.")
        return found[0]

    def _get_trials(
        self,
        study_id: int,
        states: Any,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        if models is None:
            return super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)
        table = models.TrialModel.__table__
        wanted = table.c.trial_id > trial_id_greater_than
        older = [number for number in included_trial_ids if number <= trial_id_greater_than]
        if older:
            wanted |= table.c.trial_id.in_(older)
        query = sqlalchemy.select(table.c.trial_id, table.c.state)
        query = query.where(table.c.study_id == study_id, wanted).order_by(table.c.trial_id)
        if states is not None:
            query = query.where(table.c.state.in_(states))
        with _create_scoped_session(self.scoped_session) as session:
            rows = list(session.execute(query))
            if not rows:
                models.StudyModel.find_or_raise_by_id(study_id, session)
        found = {number: self._kept(number, state) for number, state in rows}
        missing = [number for number, trial in found.items() if trial is None]
        now = time.monotonic()
        for start in range(0, len(missing), _AT_ONCE):
            for trial in self._read(missing[start : start + _AT_ONCE]):
                found[trial._trial_id] = trial
                if trial.state.is_finished():
                    self._lately.pop(trial._trial_id, None)
                else:
                    self._lately[trial._trial_id] = (now, trial)
        return [trial for trial in found.values() if trial is not None]

    def _kept(self, number: int, state: TrialState) -> FrozenTrial | None:
        """What was read of an unfinished trial, if it has not changed since.

        Every sampler reads those of all workers for every trial, several times. One that waits
        does not change; one that runs has its parameters from its start, if we wrote it.
        """
        read_at, trial = self._lately.get(number, (0.0, None))
        if trial is None or trial.state != state:
            return None
        if state == TrialState.RUNNING and time.monotonic() - read_at > _FRESH:
            return None
        return trial

    def _read(self, numbers: list[int]) -> list[FrozenTrial]:
        """Some trials, with all their parameters from one query."""
        trial, param = models.TrialModel, models.TrialParamModel.__table__
        columns = (param.c.trial_id, param.c.param_name, param.c.param_value)
        query = sqlalchemy.select(*columns, param.c.distribution_json)
        query = query.where(param.c.trial_id.in_(numbers)).order_by(param.c.param_id)
        params: dict[int, list[Any]] = {number: [] for number in numbers}
        related = (trial.values, trial.user_attributes, trial.system_attributes)
        # the thread's own session: Optuna reads a trial in the middle of a transaction too, for
        # whose lock another connection would wait
        with _create_scoped_session(self.scoped_session) as session:
            rows = session.query(trial).filter(trial.trial_id.in_(numbers))
            for relation in (*related, trial.intermediate_values):
                rows = rows.options(sqlalchemy.orm.selectinload(relation))
            frozen: list[FrozenTrial] = []
            for row in rows.order_by(trial.trial_id):
                # Optuna's own conversion, given a trial without parameters
                sqlalchemy.orm.attributes.set_committed_value(row, "params", [])
                frozen.append(self._build_frozen_trial_from_trial_model(row))
            for number, *rest in session.execute(query):
                params[number].append(rest)
        for found in frozen:
            mine = params[found._trial_id]
            found.distributions = {name: _from_json(text) for name, _, text in mine}
            found.params = {
                name: found.distributions[name].to_external_repr(value) for name, value, _ in mine
            }
        return frozen


@lru_cache(maxsize=4096)
def _from_json(text: str) -> BaseDistribution:
    return json_to_distribution(text)
