from __future__ import annotations

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor

import optuna_stitch as st
from optuna_stitch.evaluation.accumulator import (
    Accumulator,
    Confusions,
    Hits,
    Labels,
    Logits,
    Scores,
    Streamed,
)
from optuna_stitch.evaluation.metrics import (
    METRICS,
    VOID,
    AnyMetric,
    Cost,
    LearnedMetric,
    StreamedMetric,
    accuracy,
    balanced_accuracy,
    calibration_error,
    cross_entropy,
    resolve_metrics,
)

CLASSES = 4


def _metrics(*names: str | AnyMetric) -> list[LearnedMetric]:
    return [metric for metric in resolve_metrics(names) if not isinstance(metric, Cost)]


def _accumulate(
    metrics: list[LearnedMetric], logits: Tensor, targets: Tensor, *, per_image: bool = False
) -> Accumulator:
    accumulator = Accumulator(metrics, CLASSES, per_image=per_image)
    for some, labels in zip(logits.split(7), targets.split(7), strict=True):
        accumulator.update(some, {metric.name: labels for metric in metrics})
    return accumulator


@pytest.fixture
def answers() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(30, CLASSES, generator=rng), torch.randint(CLASSES, (30,), generator=rng)


@pytest.fixture
def pixels() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    targets = torch.randint(CLASSES, (9, 6, 5), generator=rng)
    targets[0, :3] = VOID
    return torch.randn(9, CLASSES, 6, 5, generator=rng), targets


def test_figures_are_those_of_all_answers_at_once(answers: tuple[Tensor, Tensor]) -> None:
    metrics = _metrics("accuracy", "cross_entropy", "calibration_error")
    accumulator = _accumulate(metrics, *answers)
    assert accumulator.figures() == pytest.approx(
        {
            "accuracy": float(accuracy(*answers).double().mean()),
            "cross_entropy": float(cross_entropy(*answers).double().mean()),
            "calibration_error": float(calibration_error(*answers)),
        }
    )
    kinds = [type(result) for result in accumulator.results().values()]
    assert kinds == [Hits, Scores, Logits]
    assert accumulator.guesses is None  # not asked for


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_balanced_accuracy_is_that_of_scikit_learn(answers: tuple[Tensor, Tensor]) -> None:
    logits, targets = answers
    for labels in (targets, targets.where(targets > 1, torch.tensor(CLASSES - 1))):
        found = balanced_accuracy(logits, labels)
        assert float(found) == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))
    assert float(balanced_accuracy(torch.eye(3)[[0, 0, 0, 0]], torch.tensor([0, 0, 0, 2]))) == 0.5


def test_what_single_images_say_is_known_after_every_batch(answers: tuple[Tensor, Tensor]) -> None:
    logits, targets = answers
    accumulator = Accumulator(_metrics("accuracy"), CLASSES, per_image=True)
    for end in range(10, 31, 10):
        some = slice(end - 10, end)
        accumulator.update(logits[some], {"accuracy": targets[some]})
        assert torch.equal(accumulator.by_image("accuracy"), accuracy(logits, targets)[:end])
        assert accumulator.guesses is not None
        assert torch.equal(accumulator.guesses, logits[:end].argmax(1))


def test_figures_of_pixels_are_the_same_streamed_and_from_confusions(
    pixels: tuple[Tensor, Tensor],
) -> None:
    metrics = _metrics("mean_iou", "pixel_accuracy")
    streamed = _accumulate(metrics, *pixels).results()
    confused = _accumulate(metrics, *pixels, per_image=True)
    assert confused.guesses is None
    for name, result in confused.results().items():
        assert isinstance(result, Confusions)
        assert result.matrices.shape == (9, CLASSES, CLASSES)
        assert result.matrices.sum() == 9 * 30 - 15
        assert isinstance(streamed[name], Streamed)
        assert result.figure == pytest.approx(streamed[name].figure, abs=1e-6)


def test_metrics_of_ones_own_of_pixels_are_streamed(pixels: tuple[Tensor, Tensor]) -> None:
    known = METRICS["mean_iou"]
    assert isinstance(known, StreamedMetric)
    own = StreamedMetric("own", known.make)
    result = _accumulate([own], *pixels, per_image=True).results()["own"]
    assert isinstance(result, Streamed)
    assert result.figure == _accumulate([known], *pixels).figures()["mean_iou"]


def test_networks_are_mixed_by_image(
    answers: tuple[Tensor, Tensor], pixels: tuple[Tensor, Tensor]
) -> None:
    logits, targets = answers
    chosen = torch.arange(30) % 3 == 0
    first, second = (Hits(accuracy(some, targets)) for some in (logits, -logits))
    mixed = accuracy(torch.where(chosen[:, None], logits, -logits), targets)
    assert torch.equal(first.where(chosen, second).right, mixed)
    logits, targets = pixels
    chosen = chosen[:9]
    metrics = _metrics("mean_iou")
    both = torch.where(chosen[:, None, None, None], logits, -logits)
    found = [
        _accumulate(metrics, some, targets, per_image=True).results()["mean_iou"]
        for some in (logits, -logits, both)
    ]
    a, b, c = (result for result in found if isinstance(result, Confusions))
    assert a.where(chosen, b).figure == c.figure


def test_answers_that_are_no_finite_numbers_are_told(answers: tuple[Tensor, Tensor]) -> None:
    logits, targets = answers
    accumulator = Accumulator(_metrics("accuracy"), CLASSES)
    assert accumulator.finite
    accumulator.update(logits, {"accuracy": targets})
    broken = logits.clone()
    broken[3, 1] = torch.nan
    accumulator.update(broken, {"accuracy": targets})
    accumulator.update(logits, {"accuracy": targets})
    assert not accumulator.finite
    assert len(accumulator.by_image("accuracy")) == len(targets)


def test_a_reference_answers_in_place_of_labels(
    supernetwork: st.Supernetwork, data: st.Data
) -> None:
    evaluator = st.Evaluator(supernetwork, data.val, [], kernels="plain")
    asked: list[st.Subnetwork] = []

    def answers(subnetworks: list[st.Subnetwork]) -> object:
        asked.extend(subnetworks)
        return evaluator.answers(subnetworks)

    metrics = _metrics("accuracy", "agreement")
    labels = Labels(metrics, supernetwork.supergraph, answers)  # type: ignore[arg-type]
    assert asked == []
    targets = data.val.targets
    ensemble = supernetwork.subnetwork({"output": "ensemble"})
    guesses = evaluator.logits([ensemble])[0].argmax(1)
    for positions in (range(10, 20), [5, 3, 150]):
        batch = labels.batch(targets[list(positions)], positions)
        assert torch.equal(batch["accuracy"], targets[list(positions)])
        assert torch.equal(batch["agreement"], guesses[list(positions)])
    assert asked == [ensemble]  # once for all batches
