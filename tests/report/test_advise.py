"""Advice on pairs says what their answers say, by a count of its own."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import optuna_stitch as st
from optuna_stitch.utils.errors import ConfigError, DataError
from tests.helpers.commands import call

FEW = {"images": 120, "fit_images": 60, "depths": 2}


@pytest.fixture(scope="module")
def advice(a: st.Parent, b: st.Parent, data: st.Data) -> st.Advice:
    return st.advise([a, b], data, **FEW)  # type: ignore[arg-type]


def _probabilities(parent: st.Parent, data: st.Data) -> tuple[Tensor, Tensor]:
    split = data.val.take(FEW["images"])
    batches = list(split.batches([parent.view], 40))
    with torch.no_grad():
        answers = [parent.module(batch.images[0]).softmax(dim=1) for batch in batches]
    return torch.cat(answers), torch.cat([batch.targets for batch in batches])


def test_overlap_is_what_the_parents_answer(
    advice: st.Advice, a: st.Parent, b: st.Parent, data: st.Data
) -> None:
    (of_a, labels), (of_b, _) = _probabilities(a, data), _probabilities(b, data)
    right = [answers.argmax(dim=1) == labels for answers in (of_a, of_b)]
    both = (of_a + of_b).argmax(dim=1) == labels
    pair, count = advice.best, len(labels)
    assert pair.images == count == 120
    assert pair.both_wrong.value == pytest.approx(int((~right[0] & ~right[1]).sum()) / count)
    assert pair.oracle.value == pytest.approx(int((right[0] | right[1]).sum()) / count)
    assert pair.ensemble_accuracy.value == pytest.approx(int(both.sum()) / count)
    better = max(int(some.sum()) for some in right)
    assert pair.ensemble_gain.value == pytest.approx((int(both.sum()) - better) / count)
    for found in (pair.both_wrong, pair.oracle, pair.ensemble_gain, pair.gain):
        assert found is not None
        assert found.interval[0] <= found.value <= found.interval[1]


@pytest.mark.slow
def test_crossings_are_single_stitch_networks_at_spread_depths(
    advice: st.Advice, a: st.Parent, b: st.Parent, data: st.Data
) -> None:
    found = advice.best.crossings
    assert len(found) == 4
    assert len({crossing.depth for crossing in found}) == 2
    supernetwork = st.stitch(a, b).keep([crossing.stitch for crossing in found])
    supernetwork.fit(data.train.take(FEW["fit_images"]), recalibrate=32)
    evaluator = st.Evaluator(supernetwork, data.val.take(FEW["images"]))
    for crossing in found:
        single = supernetwork.subnetwork({"output": crossing.into, crossing.stitch: "on"})
        evaluation = evaluator.evaluate([single])[0]
        assert crossing.accuracy.value == pytest.approx(evaluation["accuracy"], abs=0.02)
        assert crossing.macs == evaluation["macs"]


def test_the_table_of_cascades_has_their_ends(advice: st.Advice) -> None:
    pair = advice.best
    table = pair.table()
    assert set(table["kind"]) == {"parent", "plain", "stitched"}
    plain = table[table["kind"] == "plain"]
    whole = plain[plain["threshold"] == 1]
    assert (whole["macs"] == pair.a.macs + pair.b.macs).all()
    assert (whole["accuracy"] == pair.ensemble_accuracy.value).all()
    stitched = table[table["kind"] == "stitched"]
    assert set(stitched["stitch"]) == {crossing.stitch for crossing in pair.crossings}
    assert (stitched["worst_macs"] < pair.a.macs + pair.b.macs).all()
    budgets = pair.budgets()
    assert budgets["plain"].is_monotonic_increasing
    assert math.isclose(
        budgets["plain"].iloc[-1], table[table["kind"] != "stitched"]["accuracy"].max()
    )


def test_a_pair_of_one_network_twice_gains_nothing(a: st.Parent, data: st.Data) -> None:
    again = st.load_parent(a.module, view=a.view, name="again")
    pair = st.advise([a, again], data, **FEW, crossed=0).best  # type: ignore[arg-type]
    assert pair.both_wrong.value == pytest.approx(1 - pair.a.accuracy.value)
    assert pair.ensemble_gain.value == 0
    assert pair.gain is None
    assert "worth a study" in pair.sentence


def _leaning(parent: st.Parent) -> st.Parent:
    """A network that answers nearly as another one does, with a liking for one class."""
    module = copy.deepcopy(parent.module)
    list(module.parameters())[-1].data[0] += 0.5
    return st.load_parent(module, view=parent.view, name="leaning")


def test_of_a_list_all_pairs_are_ranked_without_what_guesses(
    a: st.Parent, b: st.Parent, data: st.Data, capsys: pytest.CaptureFixture[str]
) -> None:
    blind = copy.deepcopy(b.module)
    for weight in list(blind.parameters())[-2:]:
        weight.data.zero_()
    parents = [a, b, _leaning(a), st.load_parent(blind, view=b.view, name="blind")]
    advice = st.advise(parents, data, images=100, crossed=0)
    assert "blind is no better than guessing" in " ".join(capsys.readouterr().err.split())
    assert len(advice.left_out) == 1
    gains = [pair.ensemble_gain.value for pair in advice.pairs]
    assert gains == sorted(gains, reverse=True)
    assert {pair.name for pair in advice.pairs} == {
        "test_resnet × test_efficientnet",
        "test_resnet × leaning",
        "test_efficientnet × leaning",
    }
    assert len(advice.table()) == 3
    assert "leaning" in advice._repr_html_()
    with pytest.raises(DataError, match="blind is no better than guessing"):
        st.advise(parents[2:], data, images=100)


@pytest.mark.slow
def test_only_the_most_promising_pairs_are_crossed(
    a: st.Parent, b: st.Parent, data: st.Data
) -> None:
    advice = st.advise([a, b, _leaning(a)], data, **FEW, crossed=1)  # type: ignore[arg-type]
    assert [bool(pair.crossings) for pair in advice.pairs] == [True, False, False]


def test_bad_input_is_named(a: st.Parent, b: st.Parent, data: st.Data) -> None:
    with pytest.raises(ConfigError, match="test_resnet is there twice"):
        st.advise([a, a], data)
    with pytest.raises(DataError, match="tells 1000 classes apart, the data have 10"):
        st.advise([st.load_parent("test_resnet"), b], data)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "Say which images"),
        (["a", "b", "--data", "none.yaml"], "no study file at none.yaml"),
        (["resnet18", "resnet34", "--data", "sklearn/digits"], "resnet18=weights.safetensors"),
        (["resnot", "resnet34", "--data", "sklearn/digits"], "'resnot'"),
        (["a", "b", "--data", "no/data"], "There is no data set 'no/data'"),
    ],
)
def test_bad_input_of_the_command(
    arguments: list[str],
    expected: str,
    workplace: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("advise", *arguments) == 2
    assert expected in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in workplace.iterdir()) == ["tiny.yaml"]


@pytest.mark.slow
def test_the_command_takes_parents_of_a_study_file(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = "input_size: 32, train: {epochs: 4, learning_rate: 0.004}"
    Path("pair.yaml").write_text(
        f"parents:\n  a: {{network: test_resnet, {recipe}}}\n"
        f"  b: {{network: test_efficientnet, {recipe}}}\n"
        "data: {train: {images: 300}, val: {images: 200}}\n"
    )
    few = ["--images", "100", "--fit-images", "60", "--depths", "1"]
    assert call("advise", "--data", "pair.yaml", *few, "--csv", "pairs.csv") == 0
    out = " ".join(capsys.readouterr().out.split())
    for part in ("test_resnet × test_efficientnet", "Single crossings", "worth a study"):
        assert part in out
    left = sorted(path.name for path in Path().iterdir())
    assert left == ["pair.yaml", "pairs.csv", "tiny.yaml"]
