from __future__ import annotations

import os

import pytest
import torch

import optuna_stitch as st
from optuna_stitch.data import splits
from optuna_stitch.utils.errors import DataError

VIEW = st.View((3, 16, 16))


@pytest.fixture
def split() -> st.Split:
    return st.load_data(train={"images": 25}, val={"images": 9}).train


def test_batches_hold_every_view_in_order(split: st.Split) -> None:
    views = [VIEW, st.View((1, 8, 8), mean=(0.0,), std=(1.0,))]
    batches = list(split.batches(views, batch_size=10))
    assert [len(batch) for batch in batches] == [10, 10, 5]
    assert batches[0].images[0].shape == (10, 3, 16, 16)
    assert batches[0].images[1].shape == (10, 1, 8, 8)
    targets = torch.cat([batch.targets for batch in batches])
    assert torch.equal(targets, split.targets)
    image, label = split.dataset[split.indices[3]]
    assert label == int(targets[3])
    assert torch.equal(VIEW.transform()(image.convert("RGB")), batches[0].images[0][3])


@pytest.mark.parametrize("kept", ["in memory", "in a file"])
def test_what_is_kept_of_images_is_their_every_bit(
    kept: str, split: st.Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserved: list[int] = []
    reserve = os.posix_fallocate

    def spy(file: int, start: int, size: int) -> None:
        reserved.append(size)
        reserve(file, start, size)

    monkeypatch.setattr("os.posix_fallocate", spy)
    if kept == "in a file":
        monkeypatch.setattr(splits, "IN_MEMORY", 10)
    view = st.View((3, 16, 16), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    seen = [view.transform()(split.read(place)[0].convert("RGB")) for place in range(20)]
    (batch,) = split.take(20).batches([view])
    assert torch.equal(batch.images[0], torch.stack(seen))
    assert torch.equal(view.normalize(view.pixels(batch.images[0])), batch.images[0])
    assert reserved == ([20 * 3 * 16 * 16] if kept == "in a file" else [])


def test_a_disk_without_room_for_images(split: st.Split, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(splits, "IN_MEMORY", 10)
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(DataError, match=r"No space left.*TMPDIR"):
        next(split.batches([VIEW]))


def test_every_rank_reads_batches_of_its_own(split: st.Split) -> None:
    whole = list(split.batches([VIEW], batch_size=4))
    parts = [list(split.batches([VIEW], batch_size=4, shard=(rank, 3))) for rank in range(3)]
    assert [len(part) for part in parts] == [3, 2, 2]
    for place, batch in enumerate(whole):
        assert torch.equal(parts[place % 3][place // 3].images[0], batch.images[0])


def test_some_positions_only(split: st.Split) -> None:
    order = [7, 3, 19, 0, 24]
    batches = list(split.batches([VIEW], batch_size=2, within=order))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    targets = torch.cat([batch.targets for batch in batches])
    assert torch.equal(targets, split.targets[order])
