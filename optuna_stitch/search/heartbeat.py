"""Who works on a study, and whose trials are left behind.

Optuna's heartbeats live in relational storages only, and belong to `Study.optimize`. These are
attributes of the study, so that journals and the gRPC proxy have them too. A worker is taken for
dead where its beat has not changed for a while by the reader's own clock, so that clocks of
machines need not agree.
"""

from __future__ import annotations

import os
import platform
import secrets
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import optuna
from optuna.trial import FrozenTrial

import optuna_stitch
from optuna_stitch.storage.retry import is_transient
from optuna_stitch.utils.errors import StudyError

# Of trials, who works on them; of studies, a worker's beat by its name.
WORKER = "worker"

_PREFIX = "worker:"

_BEATS_IN_GRACE = 6


class Heartbeat:
    """One worker of a study, alive as long as its ``with`` block runs.

    Args:
        study: What it works on.
        grace: Seconds without a beat after which a worker is taken for dead.

    Raises:
        StudyError: On entering, if another version of this package works on the study.
    """

    def __init__(self, study: optuna.Study, *, grace: float = 60.0) -> None:
        self.name = f"{platform.node()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._study = study
        self._grace = grace
        self._beats = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, daemon=True)
        # what was seen of a worker, or a trial of none, and when by this process's clock
        self._seen: dict[str, tuple[Any, float]] = {}

    def __enter__(self) -> Heartbeat:
        self._check_versions()
        self._beat()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=5.0)
        if error is not None and is_transient(error):
            return  # the storage is gone, and was waited for; others will miss the beat
        try:
            self._write({"left": True})
        except Exception:
            if error is None:
                raise  # else `error` says more

    def alive(self) -> list[str]:
        """Names of all workers that are alive, this one included."""
        return self._alive_of(self._study.user_attrs)

    def _alive_of(self, beats: dict[str, Any]) -> list[str]:
        return [
            key.removeprefix(_PREFIX)
            for key, value in beats.items()
            if key.startswith(_PREFIX) and self._is_alive(key, value)
        ]

    def abandoned(self, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """Which running trials nobody works on any more.

        Args:
            trials: Of the study, that run and are not this worker's.
        """
        running = list(trials)
        if not running:
            return []
        beats = self._study.user_attrs
        alive = set(self._alive_of(beats))
        return [
            trial
            for trial in running
            if (owner := trial.user_attrs.get(WORKER)) not in alive
            # one that no worker signed may be about to be signed, or be an optimize loop's
            and (_PREFIX + str(owner) in beats or self._is_old(f"trial:{trial.number}", None))
        ]

    def _is_alive(self, key: str, value: Any) -> bool:
        if key == _PREFIX + self.name:
            return True
        if "left" in value or (value["machine"] == _machine() and not _runs(value["pid"])):
            return False
        return not self._is_old(key, value)

    def _is_old(self, key: str, value: Any) -> bool:
        """Whether this has not changed for the grace period."""
        now = time.monotonic()
        if key not in self._seen or self._seen[key][0] != value:
            self._seen[key] = (value, now)
        return now - self._seen[key][1] > self._grace

    def _check_versions(self) -> None:
        beats = self._study.user_attrs
        mine = optuna_stitch.__version__
        for name in self._alive_of(beats):
            theirs = beats[_PREFIX + name]["version"]
            if theirs != mine:
                raise StudyError(
                    f"The worker {name} works on the study {self._study.study_name!r} with "
                    f"optuna_stitch {theirs}, this is {mine}. Install the same version, or wait "
                    "until that worker has ended."
                )

    def _beat_on(self) -> None:
        while not self._stop.wait(self._grace / _BEATS_IN_GRACE):
            try:
                self._beat()
            except Exception:  # the search itself meets the storage too, and says what it has
                continue

    def _beat(self) -> None:
        self._beats += 1
        self._write(
            {
                "beat": self._beats,
                "machine": _machine(),
                "pid": os.getpid(),
                "version": optuna_stitch.__version__,
            }
        )

    def _write(self, value: dict[str, Any]) -> None:
        self._study.set_user_attr(_PREFIX + self.name, value)


def _machine() -> str:
    """What tells apart the machines, and the containers, whose processes have numbers."""
    parts = [platform.node()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            link = Path(path)
            parts.append(os.readlink(link) if link.is_symlink() else link.read_text().strip())
        except OSError:
            continue  # not Linux
    return "/".join(parts)


def _runs(pid: int) -> bool:
    """Whether a process of this machine runs; where none can be asked, its beat will tell."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
