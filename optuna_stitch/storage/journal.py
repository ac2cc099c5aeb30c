"""Optuna's journal file, for writers that are killed, disks that are full, and stale locks.

A journal is one JSON record a line, written under a lock that is a file beside it. Optuna's own
backend never recovers from half a line, which a kill or a full disk leaves: the next record is
appended to it, and from then on nobody can read on. Files and locks are those of
`optuna.storages.journal.JournalFileBackend`, so that both can work on the same journal.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages.journal import BaseJournalBackend

from optuna_stitch.utils.errors import StudyError
from optuna_stitch.utils.machine import is_running, machine_name
from optuna_stitch.utils.progress import console

# Seconds after which a lock is stale whose holder cannot be asked, as in Optuna.
_GRACE = 30.0

# Seconds between two tries to get the lock, which double from the first on.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.1

# Optuna's code for the record that begins a trial; trials are counted, and named by their place.
_CREATE_TRIAL = 4

# What every record begins with.
_OPENING = b'{"'

# What tells one state of a lock's file from another.
_Identity = tuple[int, int]


class JournalFile(BaseJournalBackend):
    """A journal file that is mended before it is written to.

    The unfinished line of a writer that was killed is cut off, under the lock. Where another
    program has appended to such a line already, the unfinished part is blanked, and what follows
    is read. Both lose at most the record that was unfinished. Reading alone changes nothing.

    Args:
        path: The file; it is made where there is none.

    Raises:
        StudyError: On reading and writing, if a line is no record.
        optuna.exceptions.StorageInternalError: If the file cannot be written.

    Example:
        >>> from optuna.storages.journal import JournalStorage
        >>> from optuna_stitch.storage.journal import JournalFile
        >>> storage = JournalStorage(JournalFile(tmp_path / "study.journal"))
        >>> optuna.create_study(storage=storage, study_name="digits").study_name
        'digits'
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._lock = _Lock(self._path)
        # how many records were read, and where the next one begins
        self._position = (0, 0)
        # how many bytes to blank, by where their line begins
        self._torn: dict[int, int] = {}
        if not self._path.exists():
            self._path.open("ab").close()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Read records; see `optuna.storages.journal.BaseJournalBackend`."""
        number, offset = self._position
        if number > log_number_from:
            number, offset = 0, 0
        with self._path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size  # others may write meanwhile
            file.seek(offset)
            for line in file:
                end = offset + len(line)
                if end > size or not line.endswith(b"\n"):
                    return  # being written, or left so: only a writer can tell
                record = _parse(line)
                if record is None:
                    if end == size:
                        return  # a shared folder may show a line before all of it
                    record = self._rescue(line, offset)
                offset, number = end, number + 1
                self._position = (number, offset)
                if number > log_number_from:
                    yield record

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write records; see `optuna.storages.journal.BaseJournalBackend`."""
        lines = [json.dumps(log, separators=(",", ":")) + "\n" for log in logs]
        try:
            with self._lock.held():
                self._mend()
                self._append("".join(lines).encode())
        except OSError as error:
            raise StorageInternalError(f"{self._path} cannot be written.") from error

    def _append(self, content: bytes) -> None:
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
        left = memoryview(content)
        end = os.fstat(file).st_size
        try:
            while left:
                left = left[os.write(file, left) :]
            os.fsync(file)
        finally:
            if left:  # the disk is full: nobody reads half a line
                with suppress(OSError):
                    os.ftruncate(file, end)
            os.close(file)

    def _mend(self) -> None:
        """Make the journal end with a whole line, and readable for everybody; under the lock."""
        with self._path.open("r+b") as file:
            for begin, length in self._torn.items():
                file.seek(begin)
                file.write(b" " * length)
            self._torn.clear()
            begin = file.seek(self._position[1])
            *lines, tail = file.read().split(b"\n")
            for line in lines:  # those that were not read, or held back
                if _parse(line) is None and _begin_of_record(line) is None:
                    raise self._no_record(line, begin)
                begin += len(line) + 1
            if not tail:
                return
            if _parse(tail) is not None:
                file.write(b"\n")
            elif _OPENING.startswith(tail.lstrip(b"\0")[: len(_OPENING)]):
                file.truncate(begin)
                self._say(begin, "ended in the middle of a record, which was cut off")
            else:
                raise self._no_record(tail, begin)

    def _rescue(self, line: bytes, offset: int) -> dict[str, Any]:
        """The record at the end of a line that begins with an unfinished one.

        Raises:
            StudyError: If there is none, or later records need the unfinished one.
        """
        begin = _begin_of_record(line)
        record = None if begin is None else _parse(line[begin:])
        if begin is None or record is None or self._is_missed(offset):
            raise self._no_record(line, offset)
        if offset not in self._torn:
            self._say(offset, "begins with an unfinished record, which is left out")
        self._torn[offset] = begin
        return record

    def _is_missed(self, offset: int) -> bool:
        """Whether a trial is missing of which records after a broken line speak."""
        trials = 0
        with self._path.open("rb") as file:
            while line := file.readline():
                record = _parse(line) or _parse(line[_begin_of_record(line) or 0 :]) or {}
                trials += record.get("op_code") == _CREATE_TRIAL
                if file.tell() > offset and record.get("trial_id", -1) >= trials:
                    return True
        return False

    def _line_at(self, offset: int) -> int:
        with self._path.open("rb") as file:
            return file.read(offset).count(b"\n") + 1

    def _say(self, offset: int, what: str) -> None:
        console.print(
            f"{self._path}, line {self._line_at(offset)} {what}: a program was killed there, or "
            "the disk was full. Nothing before it is lost; a trial that it belonged to is made "
            "again.",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )

    def _no_record(self, line: bytes, offset: int) -> StudyError:
        number = self._line_at(offset)
        shown = line.strip()[:60].decode(errors="replace")
        way_out = "Name another file."
        if number > 1:
            old, new = (shlex.quote(f"{self._path}{suffix}") for suffix in ("", ".mended"))
            way_out = (
                "Two programs may have written without its lock, or the disk failed. All that "
                f"was written before it can be kept: head -n {number - 1} {old} > {new}"
            )
        return StudyError(
            f"Line {number} of {self._path} is no record of Optuna's journal: {shown!r} ... "
            f"{way_out}"
        )


class _Lock:
    """A file beside a journal that is there while somebody writes.

    Unlike Optuna's, it ends when its holder was killed on this machine, also where the journal's
    path is relative or was moved.
    """

    def __init__(self, path: Path) -> None:
        self._path = f"{path}.lock"  # as Optuna calls it

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock for a ``with`` block."""
        mine = self._acquire()
        try:
            yield
        finally:
            if _identity(self._path) == mine:  # else somebody took it for stale
                with suppress(OSError):
                    os.unlink(self._path)

    def _acquire(self) -> _Identity | None:
        pause, since = _FIRST_PAUSE, time.monotonic()
        seen: _Identity | None = None
        while True:
            try:
                file = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                pass
            else:
                with suppress(OSError):  # on a full disk nobody knows whose it is
                    os.write(file, f"{machine_name()}\n{os.getpid()}".encode())
                os.close(file)
                return _identity(self._path)
            now, current = time.monotonic(), _identity(self._path)
            if current != seen:
                since, seen = now, current
            if current is not None and (now - since > _GRACE or self._is_left()):
                self._remove(current)
                continue
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _is_left(self) -> bool:
        """Whether its holder was a process of this machine that runs no more."""
        try:
            if not stat.S_ISREG(os.lstat(self._path).st_mode):
                return False  # Optuna's is a link
            machine, _, pid = Path(self._path).read_text(encoding="utf-8").partition("\n")
        except (OSError, UnicodeDecodeError):
            return False
        return machine == machine_name() and pid.isdigit() and not is_running(int(pid))

    def _remove(self, stale: _Identity) -> None:
        """Remove a stale lock, unless another was taken in the meantime."""
        aside = f"{self._path}{uuid.uuid4()}"
        with suppress(OSError):
            os.rename(self._path, aside)
            if _identity(aside) != stale:
                os.link(aside, self._path)
        with suppress(OSError):
            os.unlink(aside)


def _identity(path: str) -> _Identity | None:
    """What tells a file from a later one of the same name; None if there is none."""
    try:
        found = os.lstat(path)  # the link itself: what it leads to may be gone
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _parse(line: bytes) -> dict[str, Any] | None:
    """The record that a line is, if it is one."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "op_code" in record else None


def _begin_of_record(line: bytes) -> int | None:
    """Where in a line a record begins that ends with it."""
    begins = (match.start() for match in re.finditer(re.escape(_OPENING), line))
    return next((begin for begin in begins if _parse(line[begin:]) is not None), None)
