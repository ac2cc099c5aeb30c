from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_stitch.search.space import STATE_CHOICES
from optuna_stitch.storage import rdb
from optuna_stitch.storage.buffered import BufferedStorage, buffered_storage
from optuna_stitch.storage.open import open_storage, rdb_of
from optuna_stitch.storage.retry import is_transient, retry
from optuna_stitch.utils.errors import StudyError
from tests.helpers.storages import storage_url, storages
from tests.helpers.writes import counted

SPACE: dict[str, BaseDistribution] = {
    **{f"a.{i} -> b.{i}": STATE_CHOICES for i in range(200)},
    "output": CategoricalDistribution(("a", "b", "ensemble")),
}


@pytest.fixture(params=storages())
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with storage_url(request.param) as found:
        yield found


def _study(storage: BaseStorage, seed: int = 0) -> optuna.Study:
    return optuna.create_study(
        study_name="test",
        storage=storage,
        directions=["maximize", "minimize"],
        sampler=optuna.samplers.RandomSampler(seed=seed),
        load_if_exists=True,
    )


def _facts(trial: FrozenTrial) -> dict[str, Any]:
    """All of a trial that does not depend on when it was made."""
    return {
        "number": trial.number,
        "state": trial.state,
        "values": trial.values,
        "params": trial.params,
        "distributions": trial.distributions,
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
        "intermediate_values": trial.intermediate_values,
        "started": trial.datetime_start is not None,
        "ended": trial.datetime_complete is not None,
    }


def test_trials_are_written_in_few_pieces_and_read_as_ordinary_ones(url: str) -> None:
    study = _study(open_storage(url))
    storage = buffered_storage(study)
    assert storage is not None
    warm = study.ask(SPACE)  # a study's first trial has its choices compared
    storage.write([warm])
    study.tell(warm, [0.0, 0.0])
    with counted() as writes:
        trial = study.ask(SPACE)
        trial.set_user_attr("worker", "me")
        before = writes()
        storage.write([trial])
        running = _study(open_storage(url)).get_trials(states=(TrialState.RUNNING,))
        study.tell(trial, [0.5, 2.0])
        written = writes()
    assert before == 0  # only this process knows of it until it is whole
    if not url.startswith("grpc"):  # which writes in another process
        assert 1 <= written <= 3
    assert [t.params for t in running] == [trial.params]
    (_, read) = _study(open_storage(url)).get_trials()
    assert read.params == trial.params
    assert read.distributions == SPACE
    assert (read.number, read.state, read.values) == (1, TrialState.COMPLETE, [0.5, 2.0])
    assert read.user_attrs == {"worker": "me"}


@pytest.mark.parametrize("kind", storages("sqlite", "postgresql"))
def test_our_statements_write_what_optuna_would_write(kind: str) -> None:
    """Fails where Optuna changes what `rdb` overrides; then see what it does now."""
    templates = [
        create_trial(
            params=dict.fromkeys(SPACE, "on") | {"output": "b"},
            distributions=SPACE,
            values=[1.0, float("inf")],
            user_attrs={"x": [1, 2]},
            system_attrs={"y": "z"},
        ),
        create_trial(
            state=TrialState.RUNNING,
            params=dict.fromkeys(list(SPACE)[:50], "off"),
            distributions=dict(list(SPACE.items())[:50]),
        ),
        create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": {"output": "a"}}),
        create_trial(values=[3.0, 4.0], intermediate_values={1: 0.5}),
    ]
    with storage_url(kind) as url:
        ours = open_storage(url)
        assert isinstance(rdb_of(ours), rdb.OneStatementStorage)
        study = _study(ours)
        for template in [*templates, *templates]:  # the second time the choices are known
            study.add_trial(template)
        theirs = optuna.storages.RDBStorage(str(rdb_of(ours).url))  # type: ignore[union-attr]
        other = optuna.create_study(
            study_name="theirs", storage=theirs, directions=["maximize", "minimize"]
        )
        for template in [*templates, *templates]:
            other.add_trial(template)
        expected = [_facts(trial) for trial in other.get_trials()]
        plain = optuna.load_study(study_name="test", storage=theirs)
        assert [_facts(trial) for trial in plain.get_trials()] == expected
        assert list(plain.trials[0].params) == list(SPACE)  # in the order they were asked
        fresh = optuna.load_study(study_name="test", storage=open_storage(url))
        assert [_facts(trial) for trial in fresh.get_trials()] == expected
        by_ours = optuna.load_study(study_name="theirs", storage=open_storage(url))
        assert [_facts(trial) for trial in by_ours.get_trials()] == expected


def test_the_methods_that_we_override_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise Optuna has others now, and all is right, but as slow as ever."""
    called: set[str] = set()
    for name in ("_get_prepared_new_trial", "_get_trials", "get_trial"):
        original = getattr(rdb.OneStatementStorage, name)
        assert hasattr(optuna.storages.RDBStorage, name)

        def spy(*args: Any, _name: str = name, _original: Any = original, **kw: Any) -> Any:
            called.add(_name)
            return _original(*args, **kw)

        monkeypatch.setattr(rdb.OneStatementStorage, name, spy)
    study = _study(open_storage(f"sqlite:///{tmp_path}/study.db"))
    study.add_trial(
        create_trial(
            params={"output": "a"}, distributions={"output": SPACE["output"]}, values=[1, 2]
        )
    )
    study.tell(study.ask(), [1, 2])
    assert study.trials[0].params == {"output": "a"}
    study._storage.get_trial(study.trials[0]._trial_id)
    fresh = rdb_of(open_storage(f"sqlite:///{tmp_path}/study.db"))
    assert fresh is not None
    fresh.get_trial(1)
    assert called == {"_get_prepared_new_trial", "_get_trials", "get_trial"}


def test_choices_of_a_study_cannot_change(tmp_path: Path) -> None:
    study = _study(open_storage(f"sqlite:///{tmp_path}/study.db"))
    for choices in (("off", "on"), ("off", "on"), ("no", "yes")):
        found = CategoricalDistribution(choices)
        trial = create_trial(params={"x": choices[0]}, distributions={"x": found}, values=[1, 2])
        if choices == ("no", "yes"):
            with pytest.raises(ValueError, match="dynamic value space"):
                study.add_trial(trial)
        else:
            study.add_trial(trial)
    assert len(study.trials) == 2


def test_optimize_needs_one_write_a_trial(url: str) -> None:
    study = _study(open_storage(url))

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        on = sum(trial.suggest_categorical(name, ("off", "on")) == "on" for name in SPACE)
        trial.set_user_attr("on", on)
        return on, trial.number

    plain = _study(optuna.storages.InMemoryStorage())
    plain.optimize(objective, n_trials=3)
    study.optimize(objective, n_trials=1)
    with counted() as writes:
        study.optimize(objective, n_trials=2)
        if not url.startswith("grpc"):
            assert writes() == 2
    read = _study(open_storage(url)).get_trials()
    assert [_facts(trial) for trial in read] == [_facts(trial) for trial in plain.trials]


def test_samplers_propose_the_same_as_on_a_plain_storage(tmp_path: Path) -> None:
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        on = [trial.suggest_categorical(name, ("off", "on")) == "on" for name in list(SPACE)[:12]]
        return sum(on), -sum(on[::2])

    found = []
    for storage in (open_storage(f"sqlite:///{tmp_path}/a.db"), optuna.storages.InMemoryStorage()):
        study = _study(storage)
        study.sampler = optuna.samplers.NSGAIISampler(population_size=6, seed=3)
        study.optimize(objective, n_trials=30)
        found.append([_facts(trial) for trial in study.trials])
    assert found[0] == found[1]


@pytest.mark.timeout(240, func_only=True)  # no lock is waited for
def test_a_finished_trial_is_not_claimed_and_locks_nobody_out(url: str) -> None:
    study = _study(open_storage(url))
    study.tell(study.ask(SPACE), [1, 2])
    finished = study.trials[0]._trial_id
    for state in (TrialState.RUNNING, TrialState.FAIL):
        with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
            study._storage.set_trial_state_values(finished, state)
    with pytest.raises(KeyError):
        optuna.load_study(study_name="another", storage=study._storage)
    other = _study(open_storage(url))  # with connections of its own
    other.tell(other.ask(SPACE), [3, 4])
    assert len(study.trials) == 2


@pytest.mark.parametrize("kind", storages("sqlite", "postgresql"))
def test_many_open_a_new_storage_at_once(kind: str) -> None:
    for _ in range(3):
        with storage_url(kind) as url, ThreadPoolExecutor(6) as pool:
            studies = list(pool.map(lambda _, url=url: _study(open_storage(url)), range(6)))
            assert {study._study_id for study in studies} == {studies[0]._study_id}


@pytest.mark.parametrize("kind", storages("sqlite", "postgresql"))
def test_of_many_that_claim_a_trial_one_gets_it(kind: str) -> None:
    with storage_url(kind) as url:
        study = _study(open_storage(url))
        for _ in range(40):
            study.enqueue_trial({"output": "a"})
        waiting = [trial._trial_id for trial in study.trials]

        def claim(_: int) -> list[bool]:
            storage = open_storage(url)
            return [storage.set_trial_state_values(i, TrialState.RUNNING) for i in waiting]

        with ThreadPoolExecutor(4) as pool:
            claims = list(pool.map(claim, range(4)))
    assert [sum(got) for got in zip(*claims, strict=True)] == [1] * 40


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (sqlalchemy.exc.OperationalError("x", {}, Exception("server closed")), True),
        (sqlalchemy.exc.OperationalError("x", {}, Exception("password is wrong")), False),
        (sqlalchemy.exc.IntegrityError("x", {}, Exception("twice")), False),
        (optuna.exceptions.StorageInternalError("x"), True),
        (ValueError("x"), False),
    ],
)
def test_what_is_tried_again(error: Exception, transient: bool) -> None:
    assert is_transient(error) is transient
    calls = 0

    def call() -> int:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise error
        return calls

    if transient:
        assert retry(call) == 3
    else:
        with pytest.raises(type(error)):
            retry(call)
        assert calls == 1


def test_trying_again_ends() -> None:
    def call() -> None:
        raise sqlalchemy.exc.OperationalError("x", {}, Exception("gone"))

    with pytest.raises(sqlalchemy.exc.OperationalError):
        retry(call, retry_timeout=0.3)


def test_a_full_disk_is_said_at_once_and_loses_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    storage = open_storage(url)
    study = _study(storage)
    trial = study.ask(SPACE)
    study.tell(trial, [1, 2])
    engine = rdb_of(storage).engine  # type: ignore[union-attr]

    @sqlalchemy.event.listens_for(engine, "connect")
    def full(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA max_page_count=1")  # as many as there are already

    engine.dispose()

    def fill() -> None:
        for _ in range(50):
            study.tell(study.ask(SPACE), [1, 2])

    with pytest.raises(optuna.exceptions.StorageInternalError) as caught:
        fill()
    assert "full" in str(caught.value.__cause__)
    assert _study(open_storage(url)).trials[0].params == trial.params


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [
        ("postgresql://user:secret@localhost/x", "psycopg", "postgresql"),
        ("mysql://user:secret@localhost/x", "pymysql", "mysql"),
        ("grpc://localhost:1", "grpc", "grpc"),
    ],
)
def test_a_missing_driver_is_named(
    url: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    if package == "grpc":
        monkeypatch.setattr(optuna.storages, "GrpcStorageProxy", _needs_grpc)
    with pytest.raises(StudyError, match=rf"optuna-stitch\[{extra}\]") as caught:
        open_storage(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["grpc://host:abc", "postgresql://me:sec/r@et@host:port/x"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(StudyError, match="cannot be opened") as caught:
        open_storage(url)
    assert "et@" not in str(caught.value)


def _needs_grpc(**_: Any) -> None:
    import grpc  # noqa: F401


try:
    from optuna.testing.pytest_storages import StorageTestCase
except ImportError:

    @pytest.mark.skip(reason="needs optuna.testing.pytest_storages: pip install 'optuna>=5'")
    def test_conformance() -> None: ...

else:

    class TestConformance(StorageTestCase):  # type: ignore[misc]
        """Optuna's own tests of storages."""

        @pytest.fixture(
            params=[
                "sqlite",
                *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("memory", "journal")),
            ]
        )
        def storage(self, request: pytest.FixtureRequest) -> Iterator[BaseStorage]:
            if request.param == "memory":
                yield BufferedStorage(optuna.storages.InMemoryStorage())
            else:
                with storage_url(request.param) as url:
                    yield open_storage(url)
