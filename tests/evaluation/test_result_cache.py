from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch

import optuna_stitch as st
from optuna_stitch.evaluation.engine import Engine
from optuna_stitch.evaluation.result_cache import CachedResult, ResultCache
from optuna_stitch.stitching.genotype import Genotype, single_stitch_genotypes
from optuna_stitch.utils.errors import StudyError
from tests.helpers.networks import networks


def _url(folder: Path) -> str:
    return f"sqlite:///{folder}/records.db"


@pytest.fixture
def result_cache(tmp_path: Path) -> ResultCache:
    return ResultCache(_url(tmp_path), "network", "split", "fast")


def _record(**figures: float) -> CachedResult:
    outcomes = torch.rand(13, generator=torch.Generator().manual_seed(1)) < 0.5
    return CachedResult(figures, {"accuracy": outcomes, "top5": ~outcomes[:7]})


def test_records_come_back_as_they_were(result_cache: ResultCache, tmp_path: Path) -> None:
    genotypes = [Genotype("a"), Genotype("ensemble", frozenset([3, 12]))]
    written = _record(accuracy=1 / 3, top5=0.5)
    result_cache.keep(dict.fromkeys(genotypes, written))
    for again in (result_cache, ResultCache(_url(tmp_path), "network", "split", "fast")):
        found = again.find([*genotypes, Genotype("b")])
        assert set(found) == set(genotypes)
        for record in found.values():
            assert record.figures == written.figures
            for name, outcomes in written.outcomes.items():
                assert torch.equal(record.outcomes[name], outcomes)


@pytest.mark.parametrize(
    "other",
    [("other", "split", "fast"), ("network", "other", "fast"), ("network", "split", "plain")],
)
def test_records_of_something_else_are_not_found(
    result_cache: ResultCache, tmp_path: Path, other: tuple[str, str, Any]
) -> None:
    result_cache.keep({Genotype("a"): _record(accuracy=0.5)})
    assert not ResultCache(_url(tmp_path), *other).find([Genotype("a")])


def test_other_metrics_stand_beside_those_that_are_there(result_cache: ResultCache) -> None:
    genotype = Genotype("a")
    result_cache.keep({genotype: _record(accuracy=0.5)})
    result_cache.keep({genotype: _record(cross_entropy=1.5), Genotype("b"): _record(accuracy=0.1)})
    assert result_cache.find([genotype])[genotype].figures == {
        "accuracy": 0.5,
        "cross_entropy": 1.5,
    }
    assert Genotype("b") in result_cache.find([Genotype("b")])


def test_new_records_are_told_once(result_cache: ResultCache, tmp_path: Path) -> None:
    other = ResultCache(_url(tmp_path), "network", "split", "fast")
    other.keep({Genotype("a"): _record(accuracy=0.5)})
    assert [genotype for genotype, _ in result_cache.new()] == [Genotype("a")]
    assert not result_cache.new()
    other.keep({Genotype("b", frozenset([2])): _record(accuracy=0.5)})
    assert [genotype for genotype, _ in result_cache.new()] == [Genotype("b", frozenset([2]))]


def test_a_record_that_comes_late_is_told(result_cache: ResultCache, tmp_path: Path) -> None:
    """A server numbers rows before it commits them."""

    def keep(genotype: Genotype, number: int) -> None:
        result_cache.keep({genotype: _record(accuracy=0.5)})
        with sqlite3.connect(tmp_path / "records.db") as connection:
            connection.execute(
                f"UPDATE optuna_stitch_evaluations SET number = {number} "
                "WHERE number = (SELECT MAX(number) FROM optuna_stitch_evaluations)"
            )

    def told() -> list[Genotype]:
        return [genotype for genotype, _ in result_cache.new()]

    late = [Genotype("b", frozenset([place])) for place in range(3)]
    keep(Genotype("a"), 700)
    assert told() == [Genotype("a")]
    for genotype, number in zip(late, (699, 400, 5), strict=True):
        keep(genotype, number)
    assert told() == late[1::-1]  # no commit takes as long as the third
    assert not told()


def _work(url: str, seed: int) -> None:
    result_cache = ResultCache(url, "network", "split", "fast")
    for step in range(20):
        result_cache.keep(
            {
                Genotype("a", frozenset([(7 * seed + step + k) % 40])): _record(accuracy=0.5)
                for k in range(5)
            }
        )


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_workers_write_side_by_side(tmp_path: Path, count: int) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(_url(tmp_path), seed)) for seed in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    with sqlite3.connect(tmp_path / "records.db") as connection:
        rows = connection.execute("SELECT genotype FROM optuna_stitch_evaluations").fetchall()
    written = {(7 * seed + step) % 40 for seed in range(count) for step in range(24)}
    assert len(rows) == len(set(rows)) == len(written)


def test_what_is_remembered_costs_no_forward(
    supernetwork: st.Supernetwork,
    data: st.Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    genotypes = single_stitch_genotypes(supernetwork.switches)[:5]
    wanted = ["accuracy", "top5", "cross_entropy", "macs"]
    first = st.Evaluator(supernetwork, data.val, wanted, result_cache=_url(tmp_path))
    found = first.evaluate(networks(supernetwork, genotypes))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("forward")

    monkeypatch.setattr(Engine, "run", refuse)
    # a later run, with fewer metrics in another order
    again = st.Evaluator(supernetwork, data.val, ["macs", "accuracy"], result_cache=_url(tmp_path))
    remembered = again.evaluate(networks(supernetwork, genotypes))
    assert [e["accuracy"] for e in remembered] == [e["accuracy"] for e in found]
    assert [e["macs"] for e in remembered] == [e["macs"] for e in found]
    for other in (
        st.Evaluator(supernetwork, data.test, wanted, result_cache=_url(tmp_path)),
        st.Evaluator(supernetwork, data.val, wanted, result_cache=_url(tmp_path), kernels="plain"),
        st.Evaluator(supernetwork, data.val, [*wanted, "agreement"], result_cache=_url(tmp_path)),
    ):
        with pytest.raises(AssertionError, match="forward"):
            other.evaluate(networks(supernetwork, genotypes))


def test_a_users_metric_is_recorded_under_its_version(
    supernetwork: st.Supernetwork, data: st.Data, tmp_path: Path
) -> None:
    calls: list[int] = []

    def sure(logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        calls.append(len(logits))
        return logits.softmax(1).amax(1)

    for version, expected in ((None, 1), (None, 2), ("1", 3), ("1", 3), ("2", 4)):
        metric = st.ImageMetric("sure", sure, version=version)
        evaluator = st.Evaluator(
            supernetwork, data.val, [metric], result_cache=_url(tmp_path), batch_size=200
        )
        evaluator.evaluate(networks(supernetwork, [Genotype("a")]))
        assert len(calls) == expected


def test_races_are_against_what_others_found(
    supernetwork: st.Supernetwork, data: st.Data, tmp_path: Path
) -> None:
    st.Evaluator(supernetwork, data.val, result_cache=_url(tmp_path)).evaluate(
        networks(supernetwork, [Genotype("a"), Genotype("b")])
    )
    raced = st.Evaluator(
        supernetwork,
        data.val,
        result_cache=_url(tmp_path),
        racing=st.Racing(first=50),
        batch_size=25,
    )
    crossed = single_stitch_genotypes(supernetwork.switches)
    stopped = {
        g
        for g, e in zip(crossed, raced.evaluate(networks(supernetwork, crossed)), strict=True)
        if e.stopped
    }
    assert stopped
    # estimates are for this race only
    full = ResultCache(_url(tmp_path), supernetwork.content_hash(), data.val.fingerprint, "fast")
    assert not full.find([supernetwork.subnetwork(genotype).genotype for genotype in stopped])


def test_a_database_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="records of evaluations"):
        ResultCache(f"sqlite:///{tmp_path}/nothing/here.db", "network", "split", "fast")
    result_cache = ResultCache(_url(tmp_path), "network", "split", "fast")
    with sqlite3.connect(tmp_path / "records.db") as connection:
        connection.execute("DROP TABLE optuna_stitch_evaluations")
    for use in (
        lambda: result_cache.find([Genotype("a")]),
        result_cache.new,
        lambda: result_cache.keep({Genotype("a"): _record(accuracy=0.5)}),
    ):
        with pytest.raises(StudyError, match="nothing finished is lost"):
            use()
