"""What the trials of a study say: settings, values, and which settings are taken."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from .space import Row, Space, violations_of

Key = Callable[[Mapping[str, Any]], Hashable]

_REMEMBERED = 50_000  # keys of rows, which may be dear to compute


class Archive:
    """All trials of a study over one search space, each converted once.

    Trials with equal keys are the same setting: the first that was finished counts.

    Args:
        space: The search space; trials outside of it are passed over.
        directions: Of the objectives.
        key: Says which settings are the same.

    Attributes:
        rows: Distinct settings that have values, ``(n, d)``.
        losses: Their values, ``(n, m)``, all to be minimized.
        violations: How much they violate constraints, ``(n,)``.
        changes: How often constraints of finished trials turned out to have changed, which they
            do where the study is seen through something that steers the search.
        exhausted: Settings all of whose neighbours are taken, by their rows; what is taken stays
            so.
    """

    def __init__(
        self, space: Space, directions: Sequence[StudyDirection], key: Key | None
    ) -> None:
        self.space = space
        self._signs = np.array([-1 if d == StudyDirection.MAXIMIZE else 1 for d in directions])
        self._key = key
        self._keys: dict[bytes, Hashable] = {}
        self._place_of: dict[Hashable, int] = {}
        self._lost: set[Hashable] = set()
        self._running: dict[int, tuple[Hashable, Row] | None] = {}
        self._seen = 0
        self.exhausted: set[bytes] = set()
        self.changes = 0
        self._taken: set[Hashable] = set()
        self._rows: list[Row] = []
        self._losses: list[NDArray[np.float64]] = []
        self._violations: list[float] = []
        self._judged: list[FrozenTrial] = []
        self._proposed: dict[int, Row] = {}
        self.rows = np.empty((0, len(space)))
        self.losses = np.empty((0, len(directions)))
        self.violations = np.empty(0)

    def update(self, trials: Sequence[FrozenTrial], asking: int) -> None:
        """Take in what is new.

        Args:
            trials: All of the study, by number.
            asking: Number of the trial that a setting is sought for.
        """
        running, self._running = self._running, {}
        open_numbers = dict.fromkeys([*running, *range(self._seen, len(trials))])
        self._seen = max(self._seen, len(trials))
        before = len(self._rows)
        for number in open_numbers:
            if number == asking:
                self._running[number] = None
            elif number >= len(trials):  # another thread has seen more
                self._running[number] = running[number]
            else:
                self._take(trials[number])
        changed = self._look_again(trials, before)
        self.changes += changed
        if changed or len(self._rows) > before:
            self.rows = np.array(self._rows)
            self.losses = np.array(self._losses)
            self.violations = np.array(self._violations)
        self._taken = {held[0] for held in self._running.values() if held is not None}

    def _look_again(self, trials: Sequence[FrozenTrial], count: int) -> bool:
        """Read constraints of the first trials anew where the storage has other objects for them.

        Returns:
            Whether any is another now.
        """
        changed = False
        for place, known in enumerate(self._judged[:count]):
            trial = trials[known.number] if known.number < len(trials) else known
            if trial is not known:
                violation = violations_of(_constraints(trial))
                changed = changed or violation != self._violations[place]
                self._violations[place], self._judged[place] = violation, trial
        return changed

    def _take(self, trial: FrozenTrial) -> None:
        if trial.state == TrialState.WAITING:
            params: Mapping[str, Any] = trial.system_attrs.get("fixed_params", {})
        else:
            params = trial.params
        row = self.space.code(params)
        if not trial.state.is_finished():
            if row is None:  # its parameters are not written down yet
                row = self._proposed.get(trial.number)
            self._running[trial.number] = None if row is None else (self.key(row), row)
            return
        self._proposed.pop(trial.number, None)
        if row is None:
            return
        key = self.key(row)
        if trial.state != TrialState.COMPLETE or np.isnan(trial.values).any():
            self._lost.add(key)
        elif key not in self._place_of:
            self._place_of[key] = len(self._rows)
            self._rows.append(row)
            self._losses.append(self._signs * np.array(trial.values, float))
            self._violations.append(violations_of(_constraints(trial)))
            self._judged.append(trial)

    def propose(self, number: int, row: Row) -> None:
        """Remember what is proposed for a trial, until its parameters are written down."""
        self._proposed[number] = row
        self._running[number] = None

    @property
    def keyed(self) -> bool:
        """Whether different settings may be the same."""
        return self._key is not None

    @property
    def running(self) -> NDArray[np.float64]:
        """Settings that are being judged, ``(r, d)``."""
        rows = [held[1] for held in self._running.values() if held is not None]
        return np.array(rows).reshape(-1, len(self.space))

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, row: Row) -> Hashable:
        """What names a row's setting."""
        code = row.tobytes()
        if self._key is None:
            return code
        if code not in self._keys:
            if len(self._keys) >= _REMEMBERED:
                self._keys.clear()
            self._keys[code] = self._key(self.space.params(row))
        return self._keys[code]

    def place(self, key: Hashable) -> int | None:
        """Where a setting stands among those that have values."""
        return self._place_of.get(key)

    def taken(self, key: Hashable) -> bool:
        """Whether a setting has been asked for, whatever became of it."""
        return key in self._place_of or key in self._taken or key in self._lost


def _constraints(trial: FrozenTrial) -> Mapping[str, float] | Sequence[float] | None:
    named = getattr(trial, "constraints", None)  # since Optuna 5
    return named if named else trial.system_attrs.get("constraints")
