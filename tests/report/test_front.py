from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from optuna.trial import TrialState
from PIL import Image
from rich.console import Console
from sklearn.metrics import balanced_accuracy_score
from torch.nn import functional as F

import optuna_stitch as st
from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.metrics import Unit, resolve_metrics
from optuna_stitch.report.baselines import tune_duo
from optuna_stitch.report.document import Pictures, write_report
from optuna_stitch.report.entries import Entry, PairedComparison
from optuna_stitch.report.evaluate import mark_front
from optuna_stitch.report.front import Front
from optuna_stitch.report.interactive import draw_front, draw_switches
from optuna_stitch.report.plots import (
    gained_by,
    switch_shares,
    write_front,
    write_gained,
    write_switches,
)
from optuna_stitch.report.tables import front_table, rich_table, worth_showing
from optuna_stitch.stitching.cascade import Exit
from optuna_stitch.utils.errors import DataError, StudyError
from tests.report.recompute import largest_difference


def test_figures_agree_with_raw_predictions(
    front: st.Front, supernetwork: st.Supernetwork, shown: Split, tmp_path: Path
) -> None:
    """Subnetworks run one by one as plain modules, then every figure from what they answer."""
    images = next(shown.batches(supernetwork.views, len(shown))).images
    predictions = front.predictions()
    assert predictions is not None
    assert (predictions["label"] == shown.targets.numpy()).all()
    assert predictions.index.tolist() == list(shown.indices)
    for entry in front.entries:
        if entry.subnetwork is not None:
            guesses = entry.subnetwork.extract()(*images).argmax(1)
            assert (predictions[entry.name] == guesses.numpy()).all(), entry.name
    predictions.to_csv(tmp_path / "predictions.csv")
    front.table().to_csv(tmp_path / "front.csv", index=False)
    assert largest_difference(tmp_path) < 1e-12
    (tmp_path / "predictions.csv").write_text(
        (tmp_path / "predictions.csv").read_text().replace(",1,", ",2,", 5)
    )
    assert largest_difference(tmp_path) > 1e-4  # the script can tell


def test_baselines_are_tuned_on_validation_images(
    front: st.Front, supernetwork: st.Supernetwork, data: st.Data, shown: Split
) -> None:
    """The duo and the cascades again, from the parents' logits."""
    a, b = (_logits(supernetwork, side, shown) for side in ("a", "b"))
    duo = tune_duo(supernetwork, data.val)
    by_name = {entry.name: entry for entry in front.entries}
    logits = duo.weights[0] * a + duo.weights[1] * b
    assert torch.equal(logits.argmax(1), by_name["duo"].guesses)
    assert by_name["duo"].test["macs"] == by_name["ensemble"].test["macs"]
    both = by_name["ensemble"].test["macs"]
    cascades = [entry for entry in front.baselines if entry.kind == "cascade"]
    assert cascades
    on_val = [_logits(supernetwork, side, data.val) for side in ("a", "b")]
    for entry in cascades:
        assert entry.subnetwork is not None
        found, threshold = entry.subnetwork.exit, entry.subnetwork.threshold
        assert found is not None

        def unsure(heads: list[torch.Tensor], found: Exit = found) -> torch.Tensor:
            logits = heads[found.first] / found.temperatures[found.first]
            two = logits.double().softmax(1).topk(2).values
            return two[:, 0] - two[:, 1] < found.threshold

        # the threshold lets that share of the validation images go on
        assert float(unsure(on_val).double().mean()) == pytest.approx(threshold, abs=0.01)
        mean = found.weight * (a / found.temperatures[0]).softmax(1)
        mean += (1 - found.weight) * (b / found.temperatures[1]).softmax(1)
        first = (a, b)[found.first].argmax(1)
        assert torch.equal(torch.where(unsure([a, b]), mean.argmax(1), first), entry.guesses)
        share = float(unsure([a, b]).double().mean())
        assert entry.share == share
        cheap = by_name[("parent a", "parent b")[found.first]].test["macs"]
        assert entry.test["macs"] == pytest.approx(cheap + share * (both - cheap))
        assert entry.worst["macs"] == both
        low, high = entry.intervals["macs"]
        assert low < entry.test["macs"] < high
        assert f"{found.threshold:.3f}" in entry.recipe


def test_the_duo_is_the_best_weighing_on_validation_images(
    supernetwork: st.Supernetwork, data: st.Data
) -> None:
    duo = tune_duo(supernetwork, data.val)
    a, b = (_logits(supernetwork, side, data.val) for side in ("a", "b"))

    def loss(of_a: float, of_b: float) -> float:
        return float(F.cross_entropy(of_a * a + of_b * b, data.val.targets))

    best = loss(*duo.weights)
    for step in (-0.05, 0.05):
        assert best <= loss(duo.weights[0] + step, duo.weights[1]) + 1e-6
        assert best <= loss(duo.weights[0], duo.weights[1] + step) + 1e-6


def test_baselines_come_first_and_the_front_is_what_nothing_dominates(front: st.Front) -> None:
    kinds = [entry.kind for entry in front.entries]
    assert kinds[:4] == ["parent", "parent", "ensemble", "duo"]
    assert kinds == sorted(kinds, key=lambda kind: kind == "stitched")
    assert "cascade" in kinds
    assert front.stitched
    points = [(-entry.test["accuracy"], entry.test["macs"]) for entry in front.entries]
    for entry, point in zip(front.entries, points, strict=True):
        dominated = any(
            other[0] <= point[0] and other[1] <= point[1] and other != point for other in points
        )
        assert entry.on_front != dominated
        fixed = [other for e, other in zip(front.entries, points, strict=True) if not e.is_cascade]
        dominated = any(
            other[0] <= point[0] and other[1] <= point[1] and other != point for other in fixed
        )
        assert entry.on_fixed_front != (dominated or entry.is_cascade)
    assert front.front == [entry for entry in front.entries if entry.on_front]
    assert front.fixed_front == [entry for entry in front.entries if entry.on_fixed_front]
    assert front.stitched_fixed_front == [e for e in front.fixed_front if e.kind == "stitched"]
    assert set(map(id, front.stitched_fronts)) == {
        id(entry) for entry in (*front.stitched_front, *front.stitched_fixed_front)
    }
    for entry in front.stitched:
        expected = {(True, True): "both", (True, False): "average", (False, True): "fixed"}
        assert entry.fronts == expected.get((entry.on_front, entry.on_fixed_front), "")
    for entry in front.stitched:
        rivals = [comparison.baseline for comparison in entry.comparisons]
        assert rivals[:4] == ["parent a", "parent b", "ensemble", "duo"]
        assert len(rivals) == 5
        assert rivals[4].startswith("cascade")


@pytest.mark.slow
def test_other_networks_and_other_objectives(
    study: optuna.Study,
    supernetwork: st.Supernetwork,
    a: st.Parent,
    data: st.Data,
    shown: Split,
) -> None:
    """A baseline that is a parent again has its figures; every figure has its interval."""
    names = ["cross_entropy", "calibration_error", "agreement", "latency_ms"]
    objective = st.Objective(supernetwork, data.val, ["accuracy", "macs", *names])
    wider = optuna.create_study(directions=objective.directions)
    for trial in study.trials[:4]:
        wider.enqueue_trial(trial.params)
    wider.optimize(objective, n_trials=4)
    front = st.evaluate_front(wider, objective, shown, others=[a, a])
    by_name = {entry.name: entry for entry in front.entries}
    assert [entry.name for entry in front.entries if entry.kind == "other"] == [
        "test_resnet",
        "test_resnet #2",
    ]
    again, parent = by_name["test_resnet"], by_name["parent a"]
    for name in ("accuracy", "macs", "cross_entropy", "calibration_error", "agreement"):
        assert again.test[name] == pytest.approx(parent.test[name])
    assert again.test["latency_ms"] > 0
    evaluator = st.Evaluator(supernetwork, shown, names[:3], kernels="plain")
    for entry in front.entries:
        assert set(entry.intervals) >= {"accuracy", *names[:3]}
        for name, (low, high) in entry.intervals.items():
            assert low <= high, name
            if name in ("accuracy", "agreement", "cross_entropy"):
                assert low <= entry.test[name] <= high, name
        if entry.subnetwork is not None and not entry.is_cascade:
            figures = evaluator.evaluate([entry.subnetwork])[0].figures
            assert {name: entry.test[name] for name in figures} == pytest.approx(figures)
    logits = _logits(supernetwork, "a", shown)
    losses = F.cross_entropy(logits, shown.targets, reduction="none").numpy()
    half = 1.96 * losses.std() / len(losses) ** 0.5
    low, high = parent.intervals["cross_entropy"]
    assert high - low == pytest.approx(2 * half, rel=0.15)


def test_another_network_must_know_the_same_classes(
    study: optuna.Study, objective: st.Objective, shown: Split
) -> None:
    other = st.load_parent("test_resnet", num_classes=7, input_size=32)
    with pytest.raises(DataError, match="test_resnet tells 7 classes apart, the parents 10"):
        st.evaluate_front(study, objective, shown, others=[other])


def test_some_trials_only(study: optuna.Study, objective: st.Objective, shown: Split) -> None:
    asked = next(t.number for t in study.trials if "on" in t.params.values())
    some = st.evaluate_front(study, objective, shown, only=[asked])
    assert [entry.trial for entry in some.stitched] == [asked]
    assert some.entry(asked).quality > 0
    with pytest.raises(StudyError, match="Trial 999 is not in this report; on the front are"):
        some.entry(999)
    with pytest.raises(StudyError, match="no complete trial 999"):
        st.evaluate_front(study, objective, shown, only=[999])


def test_the_table_as_a_file(front: st.Front, tmp_path: Path) -> None:
    front.table().to_csv(tmp_path / "front.csv", index=False)
    read = pd.read_csv(tmp_path / "front.csv")
    assert list(read["name"]) == [entry.name for entry in front.entries]
    assert {"test_accuracy", "test_accuracy_low", "test_macs", "val_accuracy"} <= set(read)
    stitches = ["; ".join(entry.stitches) for entry in front.stitched]
    assert read["stitches"].dropna().tolist() == stitches
    assert read["on_fixed_front"].tolist() == [entry.on_fixed_front for entry in front.entries]
    rows = read.set_index("name")
    for entry in front.entries:
        row = rows.loc[entry.name]
        assert row["worst_macs"] >= row["test_macs"]
        assert (row["worst_macs"] > row["test_macs"]) == entry.is_cascade
        assert row["share"] == entry.share or (np.isnan(row["share"]) and not entry.is_cascade)
        subnetwork = entry.subnetwork
        if subnetwork is not None and subnetwork.exit is not None:
            assert row["threshold"] == subnetwork.threshold
            assert row["confidence"] == subnetwork.exit.confidence
            assert row["confidence_threshold"] == pytest.approx(subnetwork.exit.threshold)
        else:
            assert np.isnan(row["threshold"])


def test_tables_say_average_and_worst_cost_and_how_many_go_on(front: st.Front) -> None:
    head, _, *lines = (line.strip("|").split("|") for line in front_table(front).splitlines())
    names = [name.strip() for name in head]
    rows = [dict(zip(names, (cell.strip() for cell in line), strict=True)) for line in lines]
    assert {"cascade", "stitched"} <= {entry.kind for entry in front.entries if entry.is_cascade}
    for entry, row in zip(worth_showing(front), rows, strict=True):
        assert row["front"] == entry.fronts
        assert row["M MACs"] == f"{entry.test['macs'] / 1e6:.4g}"
        assert row["worst"] == (f"{entry.worst['macs'] / 1e6:.4g}" if entry.is_cascade else "")
        assert row["go on"] == ("" if entry.share is None else f"{100 * entry.share:.0f}")
    static = replace(front, entries=[entry for entry in front.entries if not entry.is_cascade])
    assert "worst" not in front_table(static).splitlines()[0]
    assert "| yes |" in front_table(static)


def test_the_terminal_has_room_for_the_table(front: st.Front) -> None:
    """Of 80 columns; parents that differ by 60 points are rarer elsewhere than in tests."""
    shown = [
        replace(e, comparisons=[c for c in e.comparisons if c.baseline != "parent a"])
        for e in worth_showing(front)
    ]
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(rich_table(replace(front, entries=shown)))
    assert isinstance(console.file, io.StringIO)
    assert "…" not in console.file.getvalue()


def test_plots(marked: st.Front, supernetwork: st.Supernetwork, tmp_path: Path) -> None:
    front = marked
    write_front(front, "Title", tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    write_front(front, "Title", tmp_path / "front.svg")
    drawn = (tmp_path / "front.svg").read_text()
    assert ">Title</text>" in drawn
    assert ">ensemble</text>" in drawn
    figure = draw_front(front, "Title")
    names = {trace.name for trace in figure.data}
    assert {"all trials (validation)", "parents", "duo: weighted ensemble"} <= names
    assert {"cascades of the parents", "stitched", "stitched cascades"} <= names
    assert {"front at fixed cost (test)", "front at average cost (test)"} <= names
    assert all(f">{name}</text>" in drawn for name in names)
    traces = [trace for trace in figure.data if str(trace.name).startswith("stitched")]
    assert len({trace.marker.symbol for trace in traces}) == 2
    entries = sorted(front.stitched, key=lambda entry: (entry.is_cascade, not entry.on_a_front))
    hovers = [hover for trace in traces for hover in trace.customdata]
    for entry, shown in zip(entries, hovers, strict=True):
        assert f"<b>{entry.name}</b>" in shown
        assert all(name.replace(">", "&gt;") in shown for name in entry.stitches[:8])
        assert ("at worst" in shown) == ("go on" in shown) == entry.is_cascade
        assert ("on no front" in shown) != entry.on_a_front
    shares = switch_shares(front, supernetwork)
    on = [entry.subnetwork.on for entry in front.stitched_fronts if entry.subnetwork]
    assert shares["share"].tolist() == [
        pytest.approx(sum(i in each for each in on) / max(len(on), 1)) for i in range(len(shares))
    ]
    write_switches(shares, tmp_path / "switches.png")
    assert len(draw_switches(shares).data) == 2


def test_the_line_of_a_plot_is_what_nothing_is_cheaper_and_better_than() -> None:
    points = [(0.90, 50.0), (0.95, 100.0), (0.95, 80.0), (0.89, 60.0), (0.95, 80.0), (0.97, 90.0)]
    entries = [_entry("parent b", accuracy, macs) for accuracy, macs in points]
    front = Front(entries, ["accuracy", "macs"], pd.DataFrame(), 500)
    line = next(trace for trace in draw_front(front, "").data if trace.name == "front (test)")
    assert list(line.x) == pytest.approx([50e-6, 80e-6, 90e-6])
    assert list(line.y) == pytest.approx([90, 95, 97])


def test_cascades_are_on_the_line_at_average_cost_only() -> None:
    cascade = _entry("trial 7", 0.96, 70.0, share=0.5, worst=120.0, parent_a=(0.01, 0.5))
    static = [_entry("parent a", 0.95, 100.0), _entry("parent b", 0.90, 50.0)]
    drawn = draw_front(_front([*static, cascade]), "")
    lines = {trace.name: trace for trace in drawn.data if trace.mode == "lines"}
    assert list(lines["front at fixed cost (test)"].y) == pytest.approx([90, 95])
    assert list(lines["front at average cost (test)"].y) == pytest.approx([90, 96])
    assert list(lines["front at average cost (test)"].x) == pytest.approx([50e-6, 70e-6])


def test_the_report(marked: st.Front) -> None:
    front = marked
    drawn = {entry.trial: "drawn.svg" for entry in front.stitched_fronts if entry.trial}
    pictures = Pictures("front.png", "history.png", None, None, drawn)
    report = write_report(
        front,
        pictures,
        title="Title",
        facts=[("data", "digits")],
        commands=["true"],
        export="export {trial}",
    )
    assert "There are two fronts, " in report
    assert front.optimism is not None
    way, points = "higher" if front.optimism > 0 else "lower", abs(100 * front.optimism)
    assert f"was {way} than on the test images by {points:.1f} points" in report
    cascade = next(entry for entry in front.stitched_front if entry.is_cascade)
    assert cascade.share is not None
    assert f"at worst, {100 * cascade.share:.0f}% of the images go on: the head of b" in report
    assert report.startswith(f"# Title\n\n{front.headline}\n\n![")
    assert "| data | digits |" in report
    assert rich_table(front).row_count == len(worth_showing(front))


def test_notebooks_show_headline_plot_and_table(front: st.Front) -> None:
    shown = front._repr_html_()
    assert front.headline.split(" (")[0] in shown
    assert "<svg" in shown
    assert "parent a" in shown


def test_figures_are_shown_in_the_units_of_their_metrics(
    study: optuna.Study, supernetwork: st.Supernetwork, data: st.Data, shown: Split
) -> None:
    """Also of metrics of one's own, which have their units with them."""
    unit = Unit("lit switches", "switches", 0.5, "switches that are on (halves)")
    lit = st.Cost("lit", lambda subnetwork: len(subnetwork.on), unit=unit)
    objective = st.Objective(supernetwork, data.val, ["accuracy", lit])
    own = optuna.create_study(directions=objective.directions)
    stitched = next(trial for trial in study.trials if "on" in trial.params.values())
    for trial in (*study.trials[:3], stitched):
        own.enqueue_trial(trial.params)
    own.optimize(objective, n_trials=4)
    front = st.evaluate_front(own, objective, shown.take(100), only=[3])
    assert draw_front(front, "").layout.xaxis.title.text == unit.title
    row = front_table(front).splitlines()[-1]
    assert "| switches |" in front_table(front).splitlines()[0]
    assert "| 2 |" in row


def test_images_that_change(front: st.Front, data: st.Data, shown: Split, tmp_path: Path) -> None:
    entry = max(front.stitched, key=lambda e: e.quality)
    said = gained_by(front, entry)
    predictions = front.predictions()
    assert said is not None
    assert predictions is not None
    right = {name: predictions[name] == predictions["label"] for name in predictions}
    both = right["parent a"] & right["parent b"]
    neither = ~right["parent a"] & ~right["parent b"]
    own = right[entry.name]
    assert said.gained == np.flatnonzero(own & neither).tolist()
    assert said.lost == np.flatnonzero(~own & both).tolist()
    places = [*said.gained, *said.lost, 0, 1][:14]
    path = tmp_path / "some.png"
    write_gained(front, entry, places, shown, path, class_names=data.class_names)
    assert path.stat().st_size > 1000


def test_accuracy_by_class(front: st.Front, data: st.Data, shown: Split) -> None:
    table = front.by_class(data.class_names)
    assert table["class"].tolist() == list(data.class_names or ())
    assert table["images"].sum() == len(shown)
    predictions = front.predictions()
    assert predictions is not None
    for entry in front.entries:
        right = predictions[entry.name] == predictions["label"]
        assert table[entry.name].tolist() == right.groupby(predictions["label"]).mean().tolist()
        balanced = balanced_accuracy_score(predictions["label"], predictions[entry.name])
        assert table[entry.name].mean() == pytest.approx(balanced)


def test_without_complete_trials(objective: st.Objective, shown: Split) -> None:
    empty = optuna.create_study(directions=objective.directions)
    with pytest.raises(StudyError, match="no complete trial to report \\(it has none at all\\)"):
        st.evaluate_front(empty, objective, shown)
    empty.ask()
    empty.tell(empty.ask(), state=TrialState.FAIL)
    with pytest.raises(StudyError, match="it has 1 running, 1 fail"):
        st.evaluate_front(empty, objective, shown)


def test_with_one_trial_only(objective: st.Objective, shown: Split) -> None:
    single = optuna.create_study(directions=objective.directions)
    single.optimize(objective, n_trials=1)
    front = st.evaluate_front(single, objective, shown)
    assert [e.name for e in front.entries[:4]] == ["parent a", "parent b", "ensemble", "duo"]
    assert len(front.stitched) <= 1
    assert front.headline


@pytest.mark.parametrize("label", [-1, 3])
def test_a_test_split_without_labels(
    study: optuna.Study, objective: st.Objective, data: st.Data, label: int
) -> None:
    class Unlabelled:
        def __len__(self) -> int:
            return len(data.test)

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return data.test.read(index)[0], label

    split = Split("test", Unlabelled(), range(len(data.test)), "a folder")
    with pytest.raises(DataError, match=r"The test split \(a folder\) has no labels"):
        st.evaluate_front(study, objective, split)


def _logits(supernetwork: st.Supernetwork, side: str, split: Split) -> torch.Tensor:
    """What a parent answers as a plain module."""
    module = supernetwork.subnetwork({"output": side}).extract()
    return torch.cat([module(*batch.images) for batch in split.batches(supernetwork.views, 50)])


def _entry(
    name: str,
    accuracy: float,
    macs: float,
    share: float | None = None,
    worst: float | None = None,
    **comparisons: tuple[float, float],
) -> Entry:
    kinds = {"ensemble": "ensemble", "duo": "duo", "cascade": "cascade", "parent": "parent"}
    return Entry(
        name=name,
        kind="stitched" if comparisons else kinds[name.split()[0]],
        test={"accuracy": accuracy, "macs": macs},
        metric="accuracy",
        intervals={"accuracy": (accuracy, accuracy)},
        trial=0,
        on_front=True,
        share=share,
        worst={"macs": macs if worst is None else worst},
        comparisons=[
            PairedComparison(key.replace("_", " "), *value) for key, value in comparisons.items()
        ],
    )


def _front(entries: list[Entry]) -> Front:
    """These entries, marked by what is on either front."""
    mark_front(entries, resolve_metrics(["accuracy", "macs"]))
    return Front(entries, ["accuracy", "macs"], pd.DataFrame(), 500)


@pytest.mark.parametrize(
    ("accuracy", "macs", "p_value", "expected"),
    [
        (0.97, 80.0, 0.001, "has a higher accuracy than parent a"),
        (0.97, 80.0, 0.001, "and needs 20% fewer multiply-accumulates"),
        (0.97, 99.0, 0.001, "and costs no more"),
        (0.951, 80.0, 0.8, "needs 20% fewer multiply-accumulates than parent a; its accuracy"),
        (0.951, 80.0, 0.8, "cannot tell from chance (p = 0.8)"),
        (0.89, 30.0, 0.8, "needs 40% fewer multiply-accumulates than parent b; its"),
        (0.87, 30.0, 0.8, "than parent b, the cheapest alternative, and its accuracy is 3.0 "),
        (0.87, 30.0, 0.8, "3.0 points lower (87.0% against 90.0%)"),
        (0.93, 30.0, 0.8, "3.0 points higher (93.0% against 90.0%)"),
        (0.93, 80.0, 0.8, "A stitched network lies on the front, but none is clearly better"),
        (0.09, 10.0, 0.0, "A stitched network lies on the front, but none is clearly better"),
    ],
)
def test_the_headline_says_what_the_tests_bear_out(
    accuracy: float, macs: float, p_value: float, expected: str
) -> None:
    found = _entry("trial 7", accuracy, macs, parent_a=(accuracy - 0.95, p_value))
    entries = [_entry("parent a", 0.95, 100.0), _entry("parent b", 0.90, 50.0), found]
    front = Front(entries, ["accuracy", "macs"], pd.DataFrame(), 500)
    assert expected in front.headline
    assert front.finding.entry is found


def test_a_dominated_network_makes_no_headline() -> None:
    """However significant: a duo that is as good at no more cost is what one would take."""
    found = _entry("trial 7", 0.97, 100.0, parent_a=(0.02, 0.001))
    found.on_front = False
    base = [_entry("parent a", 0.95, 100.0), _entry("duo", 0.98, 100.0)]
    base[0].on_front = False
    front = Front([*base, found], ["accuracy", "macs"], pd.DataFrame(), 500)
    assert front.headline == (
        "No stitched network is worth its cost: the duo is at least as good and costs no more."
    )


def test_the_headline_when_nothing_was_found() -> None:
    entries = [_entry("parent a", 0.95, 100.0), _entry("parent b", 0.90, 50.0)]
    front = Front(entries, ["accuracy", "macs"], pd.DataFrame(), 500)
    assert front.headline == (
        "No stitched network is worth its cost: parent a and parent b are at least as good and "
        "cost no more."
    )


PARENTS = {"parent a": (0.95, 100.0), "parent b": (0.90, 50.0), "ensemble": (0.96, 150.0)}


def _with_parents(*more: Entry) -> Front:
    return _front([*(_entry(name, *figures) for name, figures in PARENTS.items()), *more])


def test_each_front_has_its_sentence() -> None:
    static = _entry("trial 3", 0.97, 80.0, parent_a=(0.02, 0.001), ensemble=(0.01, 0.2))
    cascade = _entry(
        "trial 7", 0.98, 60.0, 0.3, 105.0, parent_a=(0.03, 0.0001), ensemble=(0.02, 0.004)
    )
    front = _with_parents(static, cascade)
    assert front.headline == (
        "At fixed cost, a stitched network (trial 3) has a higher accuracy than parent a (97.0% "
        "against 95.0%, p = 0.001 after correction) and needs 20% fewer multiply-accumulates. On "
        "average, a stitched cascade (trial 7) has a higher accuracy than the ensemble (98.0% "
        "against 96.0%, p = 0.004 after correction) and needs 60% fewer multiply-accumulates, at "
        "worst 30% fewer than both parents."
    )
    assert front.finding.entry is static


@pytest.mark.parametrize(
    ("worst", "expected"),
    [
        (105.0, ", at worst 30% fewer than both parents."),
        (150.4, ", at worst as many as both parents."),
        (165.0, ", at worst 10% more than both parents."),
    ],
)
def test_the_headline_says_what_a_cascade_costs_at_worst(worst: float, expected: str) -> None:
    cascade = _entry("trial 7", 0.98, 60.0, 0.3, worst, ensemble=(0.02, 0.004))
    assert _with_parents(cascade).headline.endswith(expected)


def test_a_finding_on_one_front_only() -> None:
    cascade = _entry("trial 7", 0.98, 60.0, 0.3, 105.0, ensemble=(0.02, 0.004))
    front = _with_parents(cascade)
    assert front.headline.startswith(
        "At fixed cost, no stitched network is worth its cost. On average, a stitched cascade "
    )
    assert front.finding.entry is cascade
    static = _entry("trial 3", 0.97, 80.0, parent_a=(0.02, 0.001))
    front = _with_parents(static, _entry("cascade 20%", 0.98, 70.0, 0.2, 150.0))
    assert front.headline.startswith("At fixed cost, a stitched network (trial 3) has a higher ")
    assert front.headline.endswith("On average, no stitched network is worth its cost.")
    assert front.finding.entry is static
    lying = _entry("trial 9", 0.985, 160.0, 0.5, 165.0, ensemble=(0.025, 0.2))
    front = _with_parents(static, lying, _entry("cascade 20%", 0.98, 70.0, 0.2, 150.0))
    assert front.headline.endswith("On average, no stitched network is clearly worth its cost.")


def test_a_plain_cascade_is_a_rival_on_average_only() -> None:
    """It is as good and costs less: at fixed cost, it is no alternative."""
    compared = {"parent_a": (0.02, 0.001), "cascade 20%": (0.002, 0.7)}
    static = _entry("trial 3", 0.97, 80.0, **compared)
    front = _with_parents(static, _entry("cascade 20%", 0.968, 70.0, 0.2, 150.0))
    fixed, average = front.headline.removesuffix(".").split(". On average, ")
    assert "cascade" not in fixed
    assert average.endswith(
        "; a cascade of the parents (20%) costs no more and is not told apart from it (96.8%, p = "
        "0.7)"
    )


def test_the_same_finding_on_both_fronts_is_said_once() -> None:
    static = _entry("trial 3", 0.97, 80.0, parent_a=(0.02, 0.001))
    front = _with_parents(static, _entry("cascade 20%", 0.93, 70.0, 0.2, 150.0))
    assert front.headline == (
        "Both at fixed cost and on average, a stitched network (trial 3) has a higher accuracy "
        "than parent a (97.0% against 95.0%, p = 0.001 after correction) and needs 20% fewer "
        "multiply-accumulates."
    )


def test_a_cascade_that_is_as_good_and_cheaper() -> None:
    cascade = _entry("trial 7", 0.951, 70.0, 0.3, 120.0, parent_a=(0.001, 0.9))
    assert _with_parents(cascade).headline.endswith(
        "On average, a stitched cascade (trial 7) needs 30% fewer multiply-accumulates than "
        "parent a (at worst 20% fewer than both parents); its accuracy of 95.1% differs from "
        "that one's 95.0% by +0.1 points, which 500 test images cannot tell from chance (p = 0.9)."
    )


def test_to_be_better_than_what_nobody_would_take_is_no_finding() -> None:
    """Parent a is poor and dear; parent b costs hardly more than the network, and is as good."""
    found = _entry("trial 7", 0.90, 49.0, parent_a=(0.4, 0.0001), parent_b=(-0.001, 0.9))
    front = _front([_entry("parent a", 0.5, 100.0), _entry("parent b", 0.901, 50.0), found])
    assert front.headline.startswith(
        "A stitched network lies on the front, but none is clearly better"
    )


def test_better_than_one_baseline_but_not_told_apart_from_a_cheaper_one() -> None:
    found = _entry("trial 7", 0.97, 80.0, parent_a=(0.02, 0.001), parent_b=(0.005, 0.4))
    front = _front([_entry("parent a", 0.95, 100.0), _entry("parent b", 0.965, 50.0), found])
    assert front.headline.endswith(
        "and needs 20% fewer multiply-accumulates; parent b costs no more and is not told apart "
        "from it (96.5%, p = 0.4)."
    )


def test_the_headline_when_neither_front_has_a_finding() -> None:
    plain = [_entry("cascade 20%", 0.93, 70.0, 0.2, 150.0), _entry("cascade 40%", 0.94, 80.0, 0.4)]
    assert _with_parents(*plain).headline == (
        "No stitched network is worth its cost, be it at fixed cost or on average: parent a, "
        "parent b, the ensemble and cascades of the parents are at least as good and cost no more."
    )
    useless = _entry("trial 7", 0.97, 155.0, ensemble=(0.01, 0.4))
    assert _with_parents(*plain, useless).headline == (
        "A stitched network lies on the front, but none is clearly better than the parents and "
        "their combinations at the same cost, or clearly cheaper at the same accuracy, be it at "
        "fixed cost or on average."
    )
