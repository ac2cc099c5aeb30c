"""Which workers of a study are alive, and which trials the dead ones left behind.

Optuna's heartbeats exist in relational storages only, and belong to `Study.optimize`. These are
attributes of the study, so that journals and the gRPC proxy have them too. A worker counts as dead
if its beat has not changed for a while by the reader's own clock, so that clocks of machines need
not agree.
"""

from __future__ import annotations

import os
import platform
import secrets
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from optuna_stitch import __version__
from optuna_stitch.storage.retry import is_transient
from optuna_stitch.utils.errors import StudyError
from optuna_stitch.utils.machine import core_mask, is_running, machine_name

# The attribute of a trial that names the worker which works on it.
WORKER = "worker"

# What the attributes of a study begin with that hold a worker's last beat.
_BEAT_OF = "worker:"

# A worker that is slow for a moment misses a beat or two, and is not taken for dead.
_BEATS_IN_GRACE = 6


class Heartbeat:
    """The sign of life that a worker gives to the other workers of its study.

    It beats in a thread of its own as long as the ``with`` block runs.

    Args:
        study: What the worker works on.
        grace: Seconds without a beat after which another worker counts as dead.

    Raises:
        StudyError: On entering, if another version of this package works on the study.

    Example:
        >>> other = Heartbeat(study)
        >>> with Heartbeat(study) as heartbeat:
        ...     other.alive() == [heartbeat.name]
        True
        >>> other.alive()
        []
    """

    def __init__(self, study: optuna.Study, *, grace: float = 60.0) -> None:
        self.name = f"{platform.node()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._study = study
        self._grace = grace
        self._beats = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, daemon=True)
        # the last beat of a worker, or a trial that names none, and when it was first seen
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
            return  # the storage was waited for and is gone; others will miss the beat
        try:
            self._write({"left": True})
        except Exception:
            if error is None:
                raise  # else `error` says more

    def alive(self) -> list[str]:
        """Names of all workers that are alive, this one included."""
        return self._alive_in(self._study.user_attrs)

    def here(self) -> int:
        """How many workers that are alive share this one's cores, this one included."""
        machine, cores = machine_name(), core_mask()
        attrs = self._study.user_attrs
        beats = [attrs[_BEAT_OF + name] for name in self._alive_in(attrs)]
        sharing = [
            beat
            for beat in beats
            if beat.get("machine") == machine
            and int(beat.get("cores", cores), 16) & int(cores, 16)
        ]
        return max(1, len(sharing))

    def _alive_in(self, attrs: dict[str, Any]) -> list[str]:
        """Names of the workers whose beats, among the attributes of a study, are alive."""
        return [
            key.removeprefix(_BEAT_OF)
            for key, beat in attrs.items()
            if key.startswith(_BEAT_OF) and self._is_alive(key, beat)
        ]

    def abandoned(self, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """Which running trials no worker works on any more.

        Args:
            trials: Trials of the study that run, none of them this worker's.
        """
        running = list(trials)
        if not running:
            return []
        attrs = self._study.user_attrs
        alive = set(self._alive_in(attrs))
        return [
            trial
            for trial in running
            if (worker := trial.user_attrs.get(WORKER)) not in alive
            # one that names no worker may be about to, or belong to `study.optimize`
            and (_BEAT_OF + str(worker) in attrs or self._is_old(f"trial:{trial.number}", None))
        ]

    def _is_alive(self, key: str, beat: Any) -> bool:
        if key == _BEAT_OF + self.name:
            return True
        if "left" in beat or (beat["machine"] == machine_name() and not is_running(beat["pid"])):
            return False
        return not self._is_old(key, beat)

    def _is_old(self, key: str, value: Any) -> bool:
        """Whether this has not changed for the grace period, by this process's clock."""
        now = time.monotonic()
        if key not in self._seen or self._seen[key][0] != value:
            self._seen[key] = (value, now)
        return now - self._seen[key][1] > self._grace

    def _check_versions(self) -> None:
        attrs = self._study.user_attrs
        for name in self._alive_in(attrs):
            version = attrs[_BEAT_OF + name]["version"]
            if version != __version__:
                raise StudyError(
                    f"The worker {name} works on the study {self._study.study_name!r} with "
                    f"optuna_stitch {version}, this is {__version__}. Install the same version, "
                    "or wait until that worker has ended."
                )

    def _beat_on(self) -> None:
        while not self._stop.wait(self._grace / _BEATS_IN_GRACE):
            try:
                self._beat()
            except Exception:  # the search meets the storage too, and says what is wrong with it
                continue

    def _beat(self) -> None:
        self._beats += 1
        self._write(
            {
                "beat": self._beats,
                "machine": machine_name(),
                "cores": core_mask(),
                "pid": os.getpid(),
                "version": __version__,
            }
        )

    def _write(self, beat: dict[str, Any]) -> None:
        self._study.set_user_attr(_BEAT_OF + self.name, beat)
