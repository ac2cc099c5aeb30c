from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import optuna_stitch as st
from optuna_stitch.utils.errors import DataError

VIEW = st.View((3, 16, 16))


def test_splits_are_disjoint_and_together_all_there_is() -> None:
    data = st.load_data("sklearn/digits", train={"images": 600}, val={"images": 500})
    parts = [set(split.indices) for split in (data.train, data.val, data.test)]
    assert [len(part) for part in parts] == [600, 500, 697]
    assert len(set.union(*parts)) == 1797
    assert data.classes == 10


def test_seeds_decide_the_splits() -> None:
    prints = {
        st.load_data(train={"images": 9}, val={"images": 9}, seed=seed).train.fingerprint
        for seed in (0, 0, 1)
    }
    assert len(prints) == 2


def test_too_many_images_are_refused() -> None:
    with pytest.raises(DataError, match="The val split wants 1000 images, but only 797"):
        st.load_data(train={"images": 1000}, val={"images": 1000})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train": {"images": 0}}, "train split cannot have 0 `images`"),
        ({"val": {"images": -5}}, "val split cannot have -5 `images`"),
        (
            {"val": {"image": 5}},
            "val split cannot have 'image'; what may differ for it is dataset",
        ),
        ({"root": "images"}, r'sklearn/digits, without `root`.*`dataset: ""`'),
        ({"unreadable": "ignore"}, "`unreadable` is stop or skip"),
        ({}, "No image of sklearn/digits is left for the val split: .* take all 1797"),
    ],
)
def test_what_a_split_cannot_have(options: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        st.load_data(**options)


def _folder(root: Path, images: int) -> Path:
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for index in range(images):
            pixels = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{index}.png")
    return root


def test_folders_of_images(tmp_path: Path) -> None:
    root = _folder(tmp_path / "all", 6)
    data = st.load_data("", root=root, train={"images": 4}, val={"images": 4})
    assert (len(data.train), len(data.val), len(data.test)) == (4, 4, 4)
    assert data.classes == 2
    batch = next(data.train.batches([VIEW]))
    assert batch.images[0].shape == (4, 3, 16, 16)


def test_folders_of_their_own(tmp_path: Path) -> None:
    roots = {name: {"root": _folder(tmp_path / name, 3)} for name in ("train", "val", "test")}
    data = st.load_data("", **roots)
    assert [len(split) for split in (data.train, data.val, data.test)] == [6, 6, 6]


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such path"):
        st.load_data("", root=tmp_path / "nothing")


def test_an_image_that_does_not_decode(tmp_path: Path) -> None:
    root = _folder(tmp_path / "all", 3)
    (root / "cat" / "1.png").write_bytes(b"no image")
    data = st.load_data("", root=root, train={"images": 4}, val={"images": 1})
    broken = [
        split
        for split in (data.train, data.val, data.test)
        if any("1.png" in data.train.dataset.reader.filename(i) for i in split.indices)  # type: ignore[attr-defined]
    ]
    with pytest.raises(DataError, match="cannot be read"):
        [list(split.batches([VIEW])) for split in broken]


def test_images_that_do_not_decode_can_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _folder(tmp_path / "all", 6)
    for name in ("1.png", "4.png"):
        (root / "cat" / name).write_bytes(b"no image")
    parts = {"train": {"images": 4}, "val": {"images": 3}}
    data = st.load_data("", root=root, unreadable="skip", **parts)  # type: ignore[arg-type]
    assert (len(data.train), len(data.val), len(data.test)) == (4, 3, 3)
    for split in (data.train, data.val, data.test):
        assert sum(len(batch) for batch in split.batches([VIEW])) == len(split)
    said = " ".join(capsys.readouterr().err.split())
    assert "do not decode and are left out" in said
    with pytest.raises(DataError, match="wants 11 images, but only 10"):
        st.load_data("", root=root, unreadable="skip", train={"images": 11})
