"""What happens to stores: kills, full disks, stale locks, moved folders, odd paths, thieves."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.distributions import FloatDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

import optuna_stitch as st
from optuna_stitch.search.study import CONTENT
from optuna_stitch.storage import journal
from optuna_stitch.storage.open import open_storage, rdb_of
from optuna_stitch.utils.errors import RunError, StudyError, StudyNotFoundError
from tests.helpers.commands import call
from tests.helpers.runs import TINY
from tests.helpers.storages import KINDS, storage_url


def _x(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0, 1)


def _study(storage: str | optuna.storages.BaseStorage) -> optuna.Study:
    storage = open_storage(storage) if isinstance(storage, str) else storage
    return optuna.create_study(storage=storage, study_name="s", load_if_exists=True)


def _plain(path: Path) -> list[FrozenTrial]:
    """The trials of a journal as Optuna alone reads it."""
    storage = JournalStorage(JournalFileBackend(str(path)))
    return optuna.load_study(storage=storage, study_name="s").trials


def _complete(trials: list[FrozenTrial]) -> list[dict[str, Any]]:
    return [trial.params for trial in trials if trial.state == TrialState.COMPLETE]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A journal of five trials, as Optuna writes it: a line begins each, one has its parameter."""
    path = tmp_path / "study.journal"
    _study(JournalStorage(JournalFileBackend(str(path)))).optimize(_x, n_trials=5)
    assert len(path.read_bytes().splitlines()) == 1 + 3 * 5
    return path


@pytest.mark.parametrize("left", [-1, -2, -40, 1, 9])
def test_half_a_line_at_the_end_costs_one_record(
    left: int, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *lines, last = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines) + last[:left])
    before = log.read_bytes()
    reading = optuna.load_study(storage=open_storage(f"journal:///{log}"), study_name="s")
    assert len(_complete(reading.trials)) == 4
    assert log.read_bytes() == before
    kept = 5 if left == -1 else 4  # where only the line break is missing, nothing is lost
    for wanted in (kept + 2, kept + 4):
        study = _study(f"journal:///{log}")
        study.optimize(_x, n_trials=2)
        assert len(_complete(study.trials)) == wanted
        assert _complete(_plain(log)) == _complete(study.trials)
    said = f"{log}, line 16 ended in the middle of a record"
    assert (said in capsys.readouterr().err) is (kept == 4)


def test_what_a_power_failure_leaves_is_cut_off(log: Path) -> None:
    log.write_bytes(log.read_bytes() + b"\0" * 3000)
    study = _study(f"journal:///{log}")
    study.optimize(_x, n_trials=1)
    assert len(study.trials) == len(_plain(log)) == 6


def test_what_another_program_appended_to_half_a_line_is_read(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = JournalStorage(JournalFileBackend(str(log)))
    study = optuna.load_study(storage=storage, study_name="s")
    log.write_bytes(log.read_bytes()[:-25])
    study.set_user_attr("a", 1)  # Optuna appends to the half line, and does not see its own record
    with pytest.raises(json.JSONDecodeError):
        study.set_user_attr("b", 2)
    with pytest.raises(json.JSONDecodeError):
        _plain(log)
    before = log.read_bytes()
    found = optuna.load_study(storage=open_storage(f"journal:///{log}"), study_name="s")
    assert found.user_attrs == {"a": 1, "b": 2}
    assert len(_complete(found.trials)) == 4
    assert log.read_bytes() == before
    assert f"{log}, line 16 begins with an unfinished record" in capsys.readouterr().err
    found.optimize(_x, n_trials=1)
    assert len(_complete(_plain(log))) == 5  # it is mended for Optuna too


@pytest.mark.parametrize("damage", ["interleaved", "no text", "a trial is missing", "a note"])
def test_a_line_that_is_no_record_is_named_and_left(damage: str, log: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    if damage == "interleaved":  # two programs wrote without the lock
        lines[3:5] = [lines[3][:30] + lines[4][:-1] + lines[3][30:], lines[4][-1:]]
    elif damage == "no text":
        lines[3] = b"\xff\xfe" * 20 + b"\n"
    elif damage == "a note":
        lines[3] = b"do not touch\n"
    else:  # whose number the next trial would have
        lines[4:5] = [lines[4][:50]]
    log.write_bytes(b"".join(lines))
    before = log.read_bytes()
    for create in (False, True):
        with pytest.raises(StudyError, match=rf"Line [45] of {re.escape(str(log))} is no record"):
            open_storage(f"journal:///{log}", create=create)
    assert log.read_bytes() == before


@pytest.mark.parametrize("content", [b"my thesis", b"my thesis\n", b"SQLite format 3\0\n\0\1"])
def test_a_file_that_is_no_journal_is_left_alone(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "thesis").write_bytes(content)
    with pytest.raises(StudyError, match=r"Line 1 of .*Name another file"):
        _study(f"journal:///{tmp_path}/thesis")
    assert (tmp_path / "thesis").read_bytes() == content


def test_a_full_disk_leaves_a_whole_journal(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = _study(f"journal:///{log}")
    before, write = log.read_bytes(), os.write

    def fill(file: int, content: Any) -> int:
        if len(content) < 100:
            raise OSError(28, "No space left on device")
        return write(file, content[: len(content) // 2])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", fill)
        with pytest.raises(StorageInternalError) as caught:
            study.optimize(_x, n_trials=1)
    assert isinstance(caught.value.__cause__, OSError)
    assert log.read_bytes() == before
    study.optimize(_x, n_trials=1)
    assert len(_plain(log)) == 6


@pytest.mark.timeout(60)
@pytest.mark.parametrize("holder", ["a dangling link", "a killed process"])
def test_a_stale_lock_ends(holder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    url = "journal:///run/study.journal"
    _study(url).optimize(_x, n_trials=1)
    if holder == "a dangling link":  # Optuna's lock of a relative path leads nowhere
        os.symlink("run/study.journal", "run/study.journal.lock")
        monkeypatch.setattr(journal, "_GRACE", 0.1)
    else:
        holder_of_lock = os.fork()
        if holder_of_lock == 0:
            try:
                journal._Lock(Path("run/study.journal"))._acquire()
            finally:  # whatever happens, no second test run begins here
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(holder_of_lock, 0)
        assert Path("run/study.journal.lock").exists()
        monkeypatch.setattr(journal, "_GRACE", 1e9)  # it is not waited for
    study = _study(url)
    study.optimize(_x, n_trials=1)
    assert len(study.trials) == 2
    assert [path.name for path in Path("run").iterdir()] == ["study.journal"]


@pytest.mark.timeout(60)
def test_the_lock_of_the_living_holds(log: Path) -> None:
    study, written = _study(f"journal:///{log}"), threading.Event()

    def write() -> None:
        study.set_user_attr("late", True)
        written.set()

    writer = threading.Thread(target=write)
    with journal._Lock(log).held():
        writer.start()
        assert not written.wait(0.5)
    writer.join()
    assert _study(f"journal:///{log}").user_attrs == {"late": True}


@pytest.mark.parametrize("name", ["a?b/?x=1/100%/a%20b#c", "a b&=1/{/{ü}"])
def test_sqlite_files_lie_where_their_path_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / name
    folder.mkdir(parents=True)
    _study(f"sqlite:///{folder}/study.db").optimize(_x, n_trials=1)
    relative = open_storage(f"sqlite:///{name}/study.db", create=False)
    assert len(optuna.load_study(storage=relative, study_name="s").trials) == 1
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name.partition("-")[0] for path in files} == {"study.db"}
    assert {path.parent for path in files} == {folder}


def test_home_and_parameters_in_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _study("sqlite:///~/study.db?timeout=60")
    _study("journal:///~/study.journal")
    names = {"study.db", "study.journal"}
    assert names <= {path.name for path in tmp_path.iterdir()}


def _damage(path: Path) -> None:
    _study(optuna.storages.RDBStorage(f"sqlite:///{path}.whole"))
    content = bytearray(Path(f"{path}.whole").read_bytes())
    content[100:] = b"\xff" * (len(content) - 100)
    path.write_bytes(content)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a text": (lambda path: path.write_text("no database at all"), "is not an SQLite database"),
    "a folder": (lambda path: path.mkdir(), "it is no file"),
    "damaged": (_damage, "malformed.*is damaged.*recover"),
    "no folder": (lambda path: path.parent.rmdir(), "the folder .* does not exist"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_wrong_with_a_database_is_told_apart(kind: str, tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    path = tmp_path / "place" / "study.db"
    make, message = BROKEN[kind]
    make(path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StudyError) as caught:
        open_storage(f"sqlite:///{path}", create=False)
    assert isinstance(caught.value, StudyNotFoundError) is (kind == "no folder")
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(StudyError, match=message):
        open_storage(f"sqlite:///{path}")


_WRITE_AND_LEAVE = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("CREATE TABLE another (x)")
connection.commit()
connection.close()
"""


def test_a_database_that_is_opened_again_keeps_the_log_of_its_first_reader(
    tmp_path: Path,
) -> None:
    """A process that looks into the file by itself would give up SQLite's locks on it."""
    path = tmp_path / "study.db"
    study = _study(open_storage(f"sqlite:///{path}"))
    for create in (True, False):
        open_storage(f"sqlite:///{path}", create=create)
    subprocess.run([sys.executable, "-c", _WRITE_AND_LEAVE, str(path)], check=True)
    assert Path(f"{path}-wal").exists()  # the last one to leave deletes it; we are still there
    study.optimize(_x, n_trials=1)
    assert len(optuna.load_study(study_name=None, storage=f"sqlite:///{path}").trials) == 1


@contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    """Take the right to write into a folder, also from root."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in which, unlike in `tmp_path`, any user can see what there is."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(os.name != "posix", reason="needs Unix permissions: run it on Linux or macOS")
@pytest.mark.parametrize("state", ["closed", "with a log", "of Optuna alone", "a journal"])
def test_a_store_in_a_read_only_place_is_read(state: str, place: Path) -> None:
    run = place / "run"
    run.mkdir()
    url = f"sqlite:///{run}/study.db"
    if state == "a journal":
        url = f"journal:///{run}/study.journal"
        _study(url).optimize(_x, n_trials=3)
    elif state == "of Optuna alone":
        _study(optuna.storages.RDBStorage(url)).optimize(_x, n_trials=3)
    else:
        study = _study(f"sqlite:///{place}/study.db")
        study.optimize(_x, n_trials=3)
        if state == "closed":
            rdb_of(study._storage).engine.dispose()  # type: ignore[union-attr]
        for path in place.glob("study.db*"):
            if not path.name.endswith("-shm"):  # a copy has none
                shutil.copy(path, run)
    assert (run / "study.db-wal").exists() is (state == "with a log")
    before = sorted(place.rglob("*"))
    with _read_only(run):
        found = optuna.load_study(storage=open_storage(url, create=False), study_name="s")
        assert len(found.trials) == 3
        with pytest.raises(StorageInternalError):
            found.set_user_attr("x", 1)
        if state != "a journal":
            with pytest.raises(StudyError, match="is read-only: a search has to write it"):
                open_storage(url)
    assert sorted(place.rglob("*")) == before


def _begin(folder: Path | str, file: str = "mine.yaml") -> st.Run:
    """A run whose study has three trials, without the network that they would be of."""
    Path(file).write_text(TINY, encoding="utf-8")
    run = st.Run.start(file, folder)
    study = optuna.create_study(
        storage=run.storage, study_name=run.name, directions=["maximize", "minimize"]
    )
    study.set_user_attr(CONTENT, "0")
    for value in range(3):
        study.add_trial(create_trial(values=[value, value]))
    return run


@pytest.mark.parametrize("kind", ["of an earlier version", "journal"])
def test_a_run_is_the_same_wherever_its_folder_is(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tests.field.test_stores.TINY", TINY + _STORAGE.get(kind, ""))
    assert _begin("runs/one").name == "one"
    if kind == "of an earlier version":  # which called the study as its folder was called
        kept = yaml.safe_load(Path("runs/one/study.yaml").read_text(encoding="utf-8"))
        assert kept["study"].pop("name") == "one"
        Path("runs/one/study.yaml").write_text(yaml.safe_dump(kept), encoding="utf-8")
    Path("runs/one").rename("two")
    assert len(st.Run.open("two").study.trials) == 3
    assert st.Run.start("mine.yaml", "two").name == "one"
    assert len(st.Run.open("mine.yaml", "two").study.trials) == 3
    monkeypatch.chdir("two")
    assert len(st.Run.open(".").study.trials) == 3
    assert optuna.get_all_study_names(st.Run.open(".").storage) == ["one"]


_STORAGE = {"journal": '  storage: "journal:///{run}/study.journal"\n'}


def test_a_run_begun_in_the_current_folder_is_called_like_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run = _begin(".", "../mine.yaml")
    assert run.name == "here"
    assert len(st.Run.start("../mine.yaml", ".").study.trials) == 3
    assert optuna.get_all_study_names(run.storage) == ["here"]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs Unix permissions: run it on Linux or macOS")
def test_a_network_is_exported_from_a_read_only_place(
    place: Path, finished_once: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = place / "run", place / "out"
    shutil.copytree(finished_once, run)
    out.mkdir()
    out.chmod(0o777)
    monkeypatch.chdir(place)
    before = sorted(run.rglob("*"))
    best = st.Run.open(finished_once).study.best_trials[-1].number
    assert call("export", str(finished_once), "--trial", f"{best}", "--to", "warm") == 0
    with _read_only(run):
        assert call("export", "run", "--trial", f"{best}", "--to", "out/network") == 0
        assert call("compare", "run", "--to", "out/compared") == 0
    assert sorted(run.rglob("*")) == before
    files = {path.name: path.read_bytes() for path in (place / "warm").glob("*.safetensors")}
    assert files
    for name, content in files.items():
        assert (out / "network" / name).read_bytes() == content


@pytest.mark.skipif(os.name != "posix", reason="needs Unix permissions: run it on Linux or macOS")
def test_a_report_is_not_computed_where_it_cannot_be_written(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("tests.field.test_stores.TINY", TINY + _STORAGE["journal"])
    _begin("one")
    with _read_only(Path("one")):
        with pytest.raises(RunError, match="The folder one is read-only"):
            st.Run.open("one").report()
        assert len(st.Run.open("one").study.trials) == 3


@pytest.mark.parametrize(
    "kind",
    [
        "journal",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "journal"),
    ],
)
def test_a_worker_whose_trials_were_given_to_others_goes_on(
    kind: str,
    supernetwork: st.Supernetwork,
    data: st.Data,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    objective = st.Objective(supernetwork, data.val.take(10))
    evaluate = objective.evaluate
    with storage_url(kind) as url:
        study = st.create_study(objective, study_name="s", storage=url, population=5)
        taken: list[int] = []

        def starve(subnetworks: Any) -> Any:
            """Another worker takes this one for dead, and fails the trials that it signed."""
            if not taken:
                other = optuna.load_study(study_name="s", storage=open_storage(url))
                for trial in other.get_trials(states=(TrialState.RUNNING,)):
                    other.tell(trial.number, state=TrialState.FAIL)
                    taken.append(trial.number)
            return evaluate(subnetworks)

        monkeypatch.setattr(objective, "evaluate", starve)
        st.optimize(study, objective, n_trials=5, batch=3)
        trials = optuna.load_study(study_name="s", storage=open_storage(url)).trials
    assert len(taken) == 3
    assert [t.state for t in trials if t.number in taken] == [TrialState.FAIL] * 3
    assert sum(t.state == TrialState.COMPLETE for t in trials) == 5
    assert not any(t.state == TrialState.RUNNING for t in trials)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("took this one for dead and finished 3 of its trials") == 1


def test_a_trial_that_is_taken_before_it_is_signed_is_passed_over(
    supernetwork: st.Supernetwork, data: st.Data, tmp_path: Path
) -> None:
    objective = st.Objective(supernetwork, data.val.take(10))
    url = f"journal:///{tmp_path}/study.journal"

    class Slow(optuna.samplers.RandomSampler):
        taken = False

        def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
            other = optuna.load_study(study_name="s", storage=open_storage(url))
            for found in other.get_trials(states=(TrialState.RUNNING,)):
                if not Slow.taken:
                    Slow.taken = True
                    other.tell(found.number, state=TrialState.FAIL)

    study = st.create_study(
        objective, study_name="s", storage=url, population=4, sampler=Slow(seed=0)
    )
    st.optimize(study, objective, n_trials=5, batch=2)
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.FAIL) == 1
    assert states.count(TrialState.COMPLETE) == 5


def test_giving_back_enqueues_only_what_is_still_ones_own(
    supernetwork: st.Supernetwork, data: st.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = st.Objective(supernetwork, data.val.take(10))
    study = st.create_study(
        objective, study_name="s", storage=f"journal:///{tmp_path}/study.journal", population=4
    )

    def interrupted(_: Any) -> None:
        other = optuna.load_study(
            study_name="s", storage=open_storage(f"journal:///{tmp_path}/study.journal")
        )
        running = other.get_trials(states=(TrialState.RUNNING,))
        other.tell(running[0].number, state=TrialState.FAIL)
        raise KeyboardInterrupt

    monkeypatch.setattr(objective, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        st.optimize(study, objective, n_trials=2, batch=2)
    failed = [t.number for t in study.trials if t.state == TrialState.FAIL]
    again = [t.user_attrs["retry_of"] for t in study.trials if "retry_of" in t.user_attrs]
    assert len(failed) == 2
    assert again == failed[1:]


def test_a_storage_answers_with_the_truth_about_a_trial_that_was_taken(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = _study(url)
    trial = study.ask({"x": FloatDistribution(0, 1)})
    study._storage.write([trial])  # type: ignore[attr-defined]
    _study(url).tell(0, state=TrialState.FAIL)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        trial.set_user_attr("late", True)
    assert study._storage.get_trial(trial._trial_id).state == TrialState.FAIL
    assert [t.state for t in study.trials] == [TrialState.FAIL]


def test_commands_of_a_broken_store_say_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tests.field.test_stores.TINY", TINY + _STORAGE["journal"])
    _begin("one")
    log = Path("one/study.journal")
    log.write_text("no record\n" + log.read_text(encoding="utf-8"), encoding="utf-8")
    assert call("report", "one") == 2
    assert "Line 1 of one/study.journal is no record" in capsys.readouterr().err
