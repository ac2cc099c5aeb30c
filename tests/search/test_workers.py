"""Several real processes on one study, killed and cut off."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

import optuna_stitch as st
from optuna_stitch.search import heartbeat
from optuna_stitch.search.heartbeat import WORKER, Heartbeat
from optuna_stitch.search.space import distributions
from optuna_stitch.search.worker import RETRIES, RETRY_OF, optimize
from optuna_stitch.storage.buffered import BufferedStorage, buffered_storage
from optuna_stitch.storage.open import open_storage
from optuna_stitch.utils.errors import StudyError
from tests.helpers.interrupts import interruptible
from tests.helpers.storages import (
    KINDS,
    failing,
    interruptible_storage,
    storage_url,
    storages,
)
from tests.helpers.working import NAME, sampler, workers

COUNT = 4

# many processes wait for two cores
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def saved(supernetwork: st.Supernetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("supernetwork")
    supernetwork.save(folder)
    return folder


def _trials(storage: BaseStorage) -> list[FrozenTrial]:
    try:
        return optuna.load_study(study_name=NAME, storage=storage).get_trials(deepcopy=False)
    except KeyError:
        return []


def _wait(condition: Callable[[], bool], seconds: float = 1200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.2)


def _check(trials: list[FrozenTrial], supernetwork: st.Supernetwork, wanted: int) -> None:
    """Every trial is finished exactly once, or failed and was tried again."""
    states = Counter(trial.state for trial in trials)
    # one that was killed may have asked for trials that it had not signed yet
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    assert not any(WORKER in trial.user_attrs for trial in running)
    assert wanted <= states[TrialState.COMPLETE] <= wanted + 8 * COUNT
    assert [trial.number for trial in trials] == list(range(len(trials)))
    space = distributions(supernetwork)
    retried = Counter(t.user_attrs[RETRY_OF] for t in trials if RETRY_OF in t.user_attrs)
    assert set(retried.values()) <= {1}  # none was tried again by two
    for trial in trials:
        if trial in running:
            continue
        assert trial.params.keys() == space.keys()
        if trial.state == TrialState.FAIL and trial.user_attrs.get(RETRIES, 0) < 3:
            (again,) = (t for t in trials if t.user_attrs.get(RETRY_OF) == trial.number)
            assert again.params == trial.params
        elif trial.state == TrialState.COMPLETE:
            assert trial.number not in retried
            assert trial.user_attrs[WORKER]
    starts = {tuple(trial.params.items()) for trial in trials[:20]}
    assert len(starts) == 20  # the study was prepared once


def _is_complete(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [("sqlite", 100), *(pytest.param(kind, 400, marks=pytest.mark.slow) for kind in KINDS)],
)
def test_four_workers_one_of_which_is_killed(
    kind: str, wanted: int, saved: Path, supernetwork: st.Supernetwork
) -> None:
    with (
        storage_url(kind) as url,
        workers(COUNT, saved, url, until=wanted, batch=8) as processes,
    ):
        storage = open_storage(url)
        # in the middle of its work: some of its trials run
        _wait(lambda: sum(map(_is_complete, _trials(storage))) > 10)
        processes[1].kill()
        processes[1].join()
        _wait(lambda: all(not process.is_alive() for process in processes))
        assert [process.exitcode for process in processes] == [0, -9, 0, 0]
        trials = _trials(storage)
    _check(trials, supernetwork, wanted)
    # one that hardly gets a processor beside others may have come too late
    assert len({trial.user_attrs[WORKER] for trial in trials if _is_complete(trial)}) > 1


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP: run it on Linux or macOS"
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_that_was_taken_for_dead_comes_back(
    kind: str, saved: Path, supernetwork: st.Supernetwork
) -> None:
    wanted = 240
    with (
        storage_url(kind) as url,
        workers(COUNT, saved, url, until=wanted, batch=8, grace=2.0) as processes,
    ):
        storage = open_storage(url)
        starved = processes[1]
        assert starved.pid is not None

        def has(state: TrialState) -> bool:
            signed = (t for t in _trials(storage) if t.state == state)
            return any(f"-{starved.pid}-" in t.user_attrs.get(WORKER, "") for t in signed)

        for _ in range(100):
            _wait(lambda: has(TrialState.RUNNING))
            os.kill(starved.pid, signal.SIGSTOP)
            try:
                if has(TrialState.RUNNING):  # else it has just finished its batch
                    _wait(lambda: has(TrialState.FAIL), seconds=40)
                    break
            except AssertionError:
                continue  # it holds a lock for which the others wait
            finally:
                os.kill(starved.pid, signal.SIGCONT)
        _wait(lambda: all(not process.is_alive() for process in processes))
        assert [process.exitcode for process in processes] == [0] * COUNT
        trials = _trials(storage)
    _check(trials, supernetwork, wanted)
    # another threshold may have been enqueued too late to be tried
    assert not [trial for trial in trials if trial.state == TrialState.RUNNING]


@pytest.mark.parametrize("kind", storages("sqlite", "postgresql"))
@pytest.mark.slow
def test_a_server_that_is_away_for_a_while(kind: str, saved: Path) -> None:
    # more than two workers do before the storage is away
    wanted, seconds = (300, 2.0) if kind == "sqlite" else (200, 20.0)
    with (
        interruptible_storage(kind) as (url, away),
        workers(2, saved, url, remember=True, until=wanted, batch=8, grace=60.0) as processes,
    ):
        storage = open_storage(url)
        _wait(lambda: len(_trials(storage)) > 20)
        with away():
            time.sleep(seconds)  # as long as it is away
            assert [process.exitcode for process in processes] == [None, None]
        _wait(lambda: all(not process.is_alive() for process in processes))
        assert [process.exitcode for process in processes] == [0, 0]
        trials = _trials(storage)
    states = Counter(trial.state for trial in trials)
    assert states[TrialState.RUNNING] == 0
    assert wanted <= states[TrialState.COMPLETE] <= wanted + 16


@pytest.fixture
def objective(supernetwork: st.Supernetwork, data: st.Data) -> st.Objective:
    return st.Objective(supernetwork, data.val.take(30))


def _open(objective: st.Objective, storage: str | BaseStorage) -> optuna.Study:
    return st.create_study(
        objective,
        study_name=NAME,
        storage=storage,
        sampler=sampler(0),
        load_if_exists=True,
        population=6,
    )


@pytest.mark.parametrize("kind", storages("sqlite", "postgresql"))
def test_a_storage_that_stays_away_ends_the_search_clearly(
    kind: str, objective: st.Objective
) -> None:
    with interruptible_storage(kind) as (url, away):
        storage = open_storage(url, retry_timeout=0.5)
        study = _open(objective, storage)
        optimize(study, objective, n_trials=4, batch=2)
        with (
            # SQLite itself would wait for a lock
            failing(storage) if kind == "sqlite" else away(),
            pytest.raises(StudyError, match="Finished trials are kept; run the same command"),
        ):
            optimize(study, objective, n_trials=4, batch=2)
        optimize(_open(objective, url), objective, until=8, batch=2)
        trials = _trials(open_storage(url))
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) == 8


def test_another_version_is_refused_while_it_works(
    objective: st.Objective, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _open(objective, f"sqlite:///{tmp_path}/study.db")
    with Heartbeat(study) as other:
        monkeypatch.setattr("optuna_stitch.search.heartbeat.__version__", "9.9")
        with pytest.raises(StudyError, match=r"this is 9\.9") as caught:
            optimize(study, objective, n_trials=1)
        assert f"{other.name} works on the study" in str(caught.value)
        assert f"with optuna_stitch {st.__version__}, this" in str(caught.value)
    optimize(study, objective, n_trials=1)  # it has left


def test_a_worker_elsewhere_is_dead_when_it_was_silent_for_the_grace_period(
    objective: st.Objective, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: now))
    study = _open(objective, f"sqlite:///{tmp_path}/study.db")
    storage = buffered_storage(study)
    assert storage is not None
    beat = {"beat": 1, "machine": "elsewhere", "pid": 1, "version": st.__version__}
    study.set_user_attr("worker:elsewhere-1", beat)
    asked = [study.ask(distributions(objective.supernetwork)) for _ in range(2)]
    asked[0].set_user_attr(WORKER, "elsewhere-1")  # the other is signed by nobody
    storage.write(asked)
    running = study.get_trials(states=(TrialState.RUNNING,))
    long, short = Heartbeat(study, grace=60.0), Heartbeat(study, grace=6.0)
    for seconds in (0, 5):
        now += seconds
        for watching in (long, short):
            assert watching.alive() == ["elsewhere-1"]
            assert watching.abandoned(running) == []
    now += 2
    assert len(short.abandoned(running)) == 2
    assert short.alive() == []
    assert long.abandoned(running) == []
    study.set_user_attr("worker:elsewhere-1", beat | {"beat": 2})
    assert short.alive() == ["elsewhere-1"]


def test_trials_of_the_living_are_left_alone(objective: st.Objective, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    other = _open(objective, url)
    with Heartbeat(other, grace=60.0) as alive:
        asked = other.ask(distributions(objective.supernetwork))
        asked.set_user_attr(WORKER, alive.name)
        storage = buffered_storage(other)
        assert storage is not None
        storage.write([asked])
        optimize(_open(objective, url), objective, n_trials=8, batch=4)
        (running,) = [t for t in other.get_trials() if t.state == TrialState.RUNNING]
        assert running.params == asked.params
    optimize(_open(objective, url), objective, until=10, batch=4)  # it left without finishing
    again = [t for t in other.get_trials() if t.params == asked.params]
    assert [t.state for t in again[:2]] == [TrialState.FAIL, TrialState.COMPLETE]


def test_a_trial_that_ends_every_worker_is_given_up(
    objective: st.Objective, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _open(objective, f"sqlite:///{tmp_path}/study.db")
    optimize(study, objective, until=6, batch=3)

    def end(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(objective, "evaluate", end)
        for _ in range(8):
            with pytest.raises(KeyboardInterrupt):
                optimize(study, objective, n_trials=1, batch=1)
    failed = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    tries = Counter(tuple(trial.params.items()) for trial in failed)
    assert max(tries.values()) == 4
    assert sum(trial.state == TrialState.RUNNING for trial in study.trials) == 0


class _Interrupted(InMemoryStorage):
    """Interrupts this process once, right after a trial was written, claimed or told."""

    after: str | None = None

    def _done(self, what: str) -> None:
        if what == self.after:
            self.after = None
            os.kill(os.getpid(), signal.SIGINT)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = super().create_new_trial(study_id, template_trial)
        if template_trial is not None and template_trial.state == TrialState.RUNNING:
            self._done("written")
        return trial_id

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        done = super().set_trial_state_values(trial_id, state, values)
        self._done("told" if state.is_finished() else "claimed")
        return done


@pytest.mark.parametrize("after", ["written", "claimed", "told"])
def test_an_interruption_leaves_no_trial_running(after: str, objective: st.Objective) -> None:
    backend = _Interrupted()
    study = _open(objective, BufferedStorage(backend))
    if after == "written":  # trials that were enqueued are claimed instead
        optimize(study, objective, n_trials=6, batch=3)
    backend.after = after
    with interruptible(), pytest.raises(KeyboardInterrupt):
        optimize(study, objective, n_trials=60, batch=3)
    assert backend.after is None
    assert not study.get_trials(states=(TrialState.RUNNING,))
