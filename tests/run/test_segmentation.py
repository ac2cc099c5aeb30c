from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex

import optuna_stitch as st
from optuna_stitch.evaluation.accumulator import Confusions
from optuna_stitch.evaluation.metrics import mean_iou_of, resolve_metrics
from optuna_stitch.evaluation.significance import interval_of, paired_p_value
from optuna_stitch.report.evaluate import FrontEvaluator
from optuna_stitch.search.space import enqueue_starts
from optuna_stitch.utils.errors import ConfigError, DataError, MatchError
from tests.helpers.networks import SmallNetwork


def _parent(name: str) -> st.Parent:
    torch.manual_seed(0)
    return st.load_parent(f"torchvision/{name}", input_size=64, num_classes=5)


@pytest.fixture(scope="module")
def supernetwork() -> st.Supernetwork:
    return st.stitch(_parent("deeplabv3_mobilenet_v3_large"), _parent("lraspp_mobilenet_v3_large"))


@pytest.fixture(scope="module")
def noise() -> st.Data:
    part = {"images": 12}
    return st.load_data("noise/5/pixels", train=part, val=part, test=part)


@pytest.mark.slow
def test_from_parents_to_a_front(supernetwork: st.Supernetwork, noise: st.Data) -> None:
    assert supernetwork.segments
    assert supernetwork.classes == 5
    supernetwork.fit(noise.train)
    objective = st.Objective(supernetwork, noise.val, ["mean_iou", "macs"])
    study = optuna.create_study(directions=objective.directions)
    enqueue_starts(study, supernetwork, population=6)
    study.optimize(objective, n_trials=6)
    front = st.evaluate_front(study, objective, noise.test)
    assert front.metric == "mean_iou"
    assert {"duo", "cascade"} <= {entry.kind for entry in front.baselines}
    assert front.predictions() is None
    for entry in front.entries:
        assert entry.quality == entry.test["mean_iou"]
        assert entry.interval[0] <= entry.quality <= entry.interval[1]
    with pytest.raises(ConfigError, match="label every pixel"):
        st.Evaluator(supernetwork, noise.val, ["accuracy"])


@pytest.mark.slow
def test_mean_iou_from_confusions_is_torchmetrics(
    supernetwork: st.Supernetwork, noise: st.Data
) -> None:
    names = ["mean_iou", "pixel_accuracy", "macs"]
    evaluator = st.Evaluator(supernetwork, noise.val, names, kernels="plain")
    subnetworks = [supernetwork.subnetwork({"output": output}) for output in ("a", "ensemble")]
    on_test = FrontEvaluator(supernetwork, noise.val, resolve_metrics(names))
    entries = on_test.evaluate(subnetworks)
    table = st.Front(entries, names[:1], pd.DataFrame(), len(noise.val)).by_class()
    assert table["pixels"].sum() == 12 * 64 * 64
    for subnetwork, entry in zip(subnetworks, entries, strict=True):
        assert table[entry.name].mean() == pytest.approx(entry.quality)
        figures = evaluator.evaluate([subnetwork])[0].figures
        assert entry.test == pytest.approx(figures, abs=1e-6)
        found = entry.result
        assert found is not None
        reference = MulticlassJaccardIndex(5, ignore_index=255)
        (logits,) = evaluator.logits([subnetwork])
        batch = next(noise.val.batches(supernetwork.views, len(noise.val)))
        assert batch.targets.shape == (12, 64, 64)
        reference.update(logits, batch.targets)
        assert found.figure == pytest.approx(float(reference.compute()), abs=1e-6)


def test_the_paired_bootstrap_tells_what_can_be_told() -> None:
    rng = np.random.default_rng(0)

    def network(hits: int) -> Confusions:
        """Two classes; of 100 pixels each, about so many are right."""
        matrices = np.zeros((80, 2, 2))
        for image in range(80):
            for label in range(2):
                right = rng.binomial(100, hits / 100)
                matrices[image, label] = 100 - right
                matrices[image, label, label] = right
        return Confusions(matrices, mean_iou_of)

    good, same, bad = network(80), network(80), network(60)
    assert paired_p_value(good, bad) < 0.01
    assert paired_p_value(good, same) > 0.01
    assert paired_p_value(good, good) == 1
    interval = interval_of(good)
    assert interval is not None
    assert interval[0] < good.figure < interval[1]
    assert good.figure == pytest.approx(0.8 / 1.2, abs=0.02)


def test_pixels_and_images_do_not_mix_in_one_job() -> None:
    labels_images = st.load_parent("test_resnet", num_classes=5, input_size=64)
    labels_pixels = st.load_parent(SmallNetwork(4, segments=True), input_size=64, name="small")
    with pytest.raises(MatchError, match=r"labels of 64×64 pixels.*one label per image"):
        st.stitch(labels_pixels, labels_images, outputs=["a", "ensemble"])


def test_pascal_voc(tmp_path: Path) -> None:
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True)
    for split, names in (("train", ["t1", "t2"]), ("val", ["v1"]), ("trainval", ["v2"])):
        (base / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            Image.new("RGB", (30, 20), "red").save(base / "JPEGImages" / f"{name}.jpg")
            mask = Image.new("P", (30, 20), 3)
            mask.putpalette([value for value in range(256) for _ in range(3)])
            mask.putpixel((0, 0), 255)
            mask.save(base / "SegmentationClass" / f"{name}.png")
    data = st.load_data("torch/voc", root=tmp_path, test={"split": "trainval"})
    assert (len(data.train), len(data.val), len(data.test), data.classes) == (2, 1, 1, 21)
    batch = next(data.train.batches([st.View((3, 20, 30), crop_mode="squash")]))
    assert batch.targets.shape == (2, 20, 30)
    assert batch.targets.unique().tolist() == [3, 255]
    with pytest.raises(DataError, match=r"Pascal VOC 2007, train, cannot be read"):
        st.load_data("torch/voc2007", root=tmp_path)
