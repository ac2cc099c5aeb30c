"""A parent that only guesses is named before anything is built on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

import optuna_stitch as st
from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.chance import agreement_of_images
from optuna_stitch.utils.errors import DataError
from tests.helpers.commands import call

NAMES = ("ant", "bee", "cow", "dog", "elk")
LEVELS = torch.linspace(0.1, 0.9, len(NAMES))
VIEW = st.View((3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)


class Reader(nn.Module):
    """Knows a class by how red an image is, exactly; or reads another channel.

    Args:
        answers: Which class it answers, by what it sees.
        channel: Which channel it reads; green is noise.
        pixels: Whether it labels every pixel.
    """

    def __init__(
        self, answers: Sequence[int] = range(5), *, channel: int = 0, pixels: bool = False
    ) -> None:
        super().__init__()
        self.see = nn.Conv2d(3, 4, 1)
        self.answer = nn.Conv2d(4, len(NAMES), 1)
        self.end = (
            nn.Identity() if pixels else nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        )
        with torch.no_grad():
            self.see.weight.zero_()[:, channel] = 1
            self.see.bias.zero_()  # type: ignore[union-attr]
            # the largest of 2 c x - c² is that of the nearest c
            for seen, answer in enumerate(answers):
                self.answer.weight[answer] = LEVELS[seen] / 2
                self.answer.bias[answer] = -(LEVELS[seen] ** 2)  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.answer(self.see(x).relu()))


class Always(Reader):
    """Answers one class."""

    def __init__(self, *, pixels: bool = False) -> None:
        super().__init__(pixels=pixels)
        with torch.no_grad():
            self.answer.bias[1] = 100  # type: ignore[index]


class Images:
    """Red says the class, by image or by pixel; green says nothing."""

    class_names = NAMES

    def __init__(self, *, pixels: bool) -> None:
        rng = np.random.default_rng(0)
        self.labels = rng.integers(len(NAMES), size=(200, 8, 8))
        if not pixels:
            self.labels[:] = self.labels[:, :1, :1]
        else:  # mostly background, as photographs are
            self.labels[:, :, :5] = 0
        self.green = rng.integers(len(NAMES), size=(200, 8, 8))
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int | Image.Image]:
        label = self.labels[index]
        levels = (LEVELS.numpy() * 255).round().astype(np.uint8)
        channels = [levels[label], levels[self.green[index]], np.zeros((8, 8), np.uint8)]
        image = Image.fromarray(np.stack(channels, axis=2))
        return image, Image.fromarray(label.astype(np.uint8)) if self.pixels else int(label[0, 0])


def _split(images: int = 200, *, pixels: bool = False) -> Split:
    return Split("val", Images(pixels=pixels), range(images), "made up")


def _pair(b: nn.Module, *, pixels: bool = False) -> st.Supernetwork:
    parents = [
        st.load_parent(module, view=VIEW, name=name)
        for module, name in ((Reader(pixels=pixels), "knows"), (b, "other"))
    ]
    return st.stitch(*parents, points="all")


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("pixels", [False, True])
def test_what_is_known_is_said(pixels: bool, capsys: pytest.CaptureFixture[str]) -> None:
    found = st.check_parents(_pair(Reader(pixels=pixels), pixels=pixels), _split(pixels=pixels))
    assert found["a"].quality == found["b"].quality == 1
    said = _said(capsys)
    words = "mean IoU" if pixels else "accuracy"
    assert f"Parent a, knows: {words} 100.00% on 200 val images (guessing: " in said
    assert "order" not in said
    if not pixels:
        share = np.bincount(Images(pixels=False).labels[:, 0, 0]) / 200
        assert found["a"].guessing == pytest.approx((share**2).sum())


CHANCE: dict[str, Callable[[bool], nn.Module]] = {
    "noise": lambda pixels: Reader(channel=1, pixels=pixels),
    "one class": lambda pixels: Always(pixels=pixels),
    "another order": lambda pixels: Reader([1, 2, 3, 4, 0], pixels=pixels),
}


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("kind", CHANCE)
def test_a_parent_at_chance_stops(
    kind: str, pixels: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    supernetwork = _pair(CHANCE[kind](pixels), pixels=pixels)
    split = _split(pixels=pixels)
    with pytest.raises(DataError, match="no better than guessing") as stopped:
        st.check_parents(supernetwork, split)
    text = str(stopped.value)
    assert text.startswith(f"Parent b, other: {'mean IoU' if pixels else 'accuracy'} ")
    for reason in ("order", "class_map", "3×8×8", "weights", "the head is random", "check: false"):
        assert reason in text
    right = "100.0% would be right with ant as bee, bee as cow, cow as dog, dog as elk and 1 more"
    assert (right in text) == (kind == "another order")
    assert "Parent a, knows: " in _said(capsys)
    found = st.check_parents(supernetwork, split, stop=())
    assert found["b"].at_chance
    assert not found["a"].at_chance


@pytest.mark.parametrize("pixels", [False, True])
def test_two_classes_that_are_swapped_are_said(
    pixels: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = Reader([0, 2, 1, 3, 4], pixels=pixels)
    found = st.check_parents(_pair(swapped, pixels=pixels), _split(pixels=pixels))
    assert found["b"].order == {1: 2, 2: 1}
    assert "100.0% would be right (bee as cow, cow as bee): check the order" in _said(capsys)


@pytest.mark.parametrize("pixels", [False, True])
def test_few_images_are_no_evidence(pixels: bool, capsys: pytest.CaptureFixture[str]) -> None:
    st.check_parents(_pair(Always(pixels=pixels), pixels=pixels), _split(2, pixels=pixels))
    assert _said(capsys).count("too few, or too much alike, to tell it from guessing.") == 2


def test_answers_that_are_no_numbers() -> None:
    broken = Reader()
    broken.answer.bias.data[0] = torch.nan  # type: ignore[union-attr]
    with pytest.raises(DataError, match="Parent b, other, gives answers that are no finite"):
        st.check_parents(_pair(broken), _split())


def test_another_number_of_classes() -> None:
    split = _split()
    split.dataset.class_names = NAMES[:4]  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="tell 5 classes apart, the val split has 4"):
        st.check_parents(_pair(Reader()), split)


def test_guesses_seldom_pass_and_weak_networks_do() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (300,), generator=draw)
    weak = labels.clone()
    weak[torch.arange(300) % 5 > 0] = 3  # right for a fifth of the images, else one class
    assert not agreement_of_images(weak, labels).at_chance
    passed = sum(
        not agreement_of_images(torch.randint(10, (300,), generator=draw), labels).at_chance
        for _ in range(200)
    )
    assert passed <= 8  # 2 are expected; more than 8 come once in 4,000 times


def _study_file(folder: Path, b: nn.Module) -> Path:
    images = Images(pixels=False)
    for index in range(120):
        image, label = images[index]
        (folder / "images" / NAMES[label]).mkdir(parents=True, exist_ok=True)  # type: ignore[index]
        image.save(folder / "images" / NAMES[label] / f"{index}.png")  # type: ignore[index]
    view = {"mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "nearest", "crop_pct": 1}
    parents: dict[str, object] = {}
    for side, module in (("a", Reader()), ("b", b)):
        dynamic = ({0: torch.export.Dim("batch")},)
        example = (torch.rand(2, 3, 8, 8),)
        program = torch.export.export(module.eval(), example, dynamic_shapes=dynamic)
        torch.export.save(program, folder / f"{side}.pt2")
        parents[side] = {"network": f"{side}.pt2", **view}
    content = {
        "parents": parents,
        "data": {"dataset": "", "root": "images", "train": {"images": 40}, "val": {"images": 60}},
        "stitching": {"points": "all"},
        "fit": {"images": 20, "recalibrate": 4},
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_the_study_file_stops_or_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    file = _study_file(tmp_path, Reader([1, 2, 3, 4, 0]))
    run = tmp_path / "run"
    assert call("build", str(file), "--run", str(run)) == 2
    said = _said(capsys)
    assert "a.pt2: accuracy 100.00% on 60 val images" in said
    assert said.count("b.pt2: accuracy 0.00% on 60 val images") == 2
    assert "That is no better than guessing. Likely reasons:" in said
    assert "ant as bee" in said
    assert not (run / "supernetwork.json").exists()
    # in the same folder
    file.write_text(file.read_text().replace("parents:\n", "parents:\n  check: false\n"))
    assert st.Run.start(file, run).build().classes == 5
    assert "b.pt2: accuracy 0.00% on 60 val images" in _said(capsys)


def test_pretrained_weights_of_other_classes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "a: {{network: {0}, pretrained: true, model_args: {{num_classes: 10}}}}"
    for network in ("resnet50.a1_in1k", "torchvision/resnet18", "vit_small_patch16_224.dino"):
        file = tmp_path / f"{network.replace('/', '-')}.yaml"
        b = "b: {network: test_resnet, random_weights: true, model_args: {num_classes: 10}}"
        data = "data: {train: {images: 10}, val: {images: 10}}"
        file.write_text(f"parents:\n  {text.format(network)}\n  {b}\n{data}\n")
        assert call("build", str(file), "--run", str(tmp_path / file.stem)) == 2
        assert f"pretrained weights of {network} " in _said(capsys)
    with pytest.raises(st.OptunaStitchError, match="expected value 1000 but got 10"):
        st.load_parent("torchvision/resnet18", pretrained=True, num_classes=10)
    capsys.readouterr()
    made = timm.create_model("test_resnet", num_classes=10)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: made)
    st.load_parent("resnet50.a1_in1k", pretrained=True, num_classes=1000)
    assert not capsys.readouterr().err
    st.load_parent("resnet50.a1_in1k", pretrained=True, num_classes=10)
    assert "tell 1000 classes apart, not 10: its last layer would be random" in _said(capsys)
