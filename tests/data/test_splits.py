from __future__ import annotations

import gc
import multiprocessing
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import optuna_stitch as st
from optuna_stitch.data import splits
from optuna_stitch.data.decode import decode, loader_processes
from optuna_stitch.utils.errors import DataError, ImageError

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


def test_a_system_that_cannot_reserve_room(
    split: st.Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = next(split.bare().batches([VIEW]))
    monkeypatch.setattr(splits, "IN_MEMORY", 10)
    monkeypatch.setattr(splits, "_BLOCK", 1000)
    monkeypatch.delattr("os.posix_fallocate")  # as on macOS
    assert torch.equal(next(split.bare().batches([VIEW])).images[0], expected.images[0])


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


def _pngs(root: Path, count: int, *, bits: int = 8, side: int = 20) -> Path:
    for number in range(count):
        name = root / f"{'ab'[number % 2]}/{number}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, 2**bits, (side, side))
        Image.fromarray(values.astype(np.uint8 if bits == 8 else np.uint16)).save(name)
    return root


def _split_of(root: Path, workers: int, of: Path | None = None) -> st.Split:
    count = len(list((of or root).rglob("*.png")))
    half = {"images": count // 3}
    return st.load_data("", root=root, train=half, val=half, workers=workers).train


def test_pixels_are_the_same_however_many_processes_decode(tmp_path: Path) -> None:
    root = _pngs(tmp_path, 60)
    alone, together = (_split_of(root, workers) for workers in (0, 2))
    views = [VIEW, st.View((1, 8, 8), mean=(0.0,), std=(1.0,))]
    order = [7, 3, 19, 0, 11]
    for split in (alone, together):  # before the whole, in an order of its own
        next(split.batches(views[:1], within=order))
    for one, other in zip(alone.batches(views, 6), together.batches(views, 6), strict=True):
        assert all(map(torch.equal, one.images, other.images))
        assert torch.equal(one.targets, other.targets)


def test_processes_read_a_tar_each_for_itself(tmp_path: Path) -> None:
    root = _pngs(tmp_path / "images", 60, side=90)
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(root, "images")
    alone, together = _split_of(root, 0), _split_of(tmp_path / "images.tar", 2, of=root)
    together.read(0)  # the tar is open before the processes are
    held = together.dataset.reader.tar_state.tf.fileobj.fileno()  # type: ignore[attr-defined]
    place = os.lseek(held, 0, os.SEEK_CUR)
    for one, other in zip(alone.batches([VIEW]), together.batches([VIEW]), strict=True):
        assert torch.equal(one.images[0], other.images[0])
        assert torch.equal(one.targets, other.targets)
    assert os.lseek(held, 0, os.SEEK_CUR) == place  # which copies of a process share


def test_images_are_decoded_as_they_are_needed(split: st.Split) -> None:
    read: list[int] = []
    split.dataset = _Counted(split.dataset, read)
    batches = split.batches([VIEW], 5, shard=(1, 2))
    next(batches)
    assert read == list(split.indices[5:10])
    list(batches)
    assert read == [*split.indices[5:10], *split.indices[15:20]]
    list(split.batches([VIEW], 7))
    assert sorted(read) == sorted(split.indices)


class _Counted:
    def __init__(self, dataset: Any, read: list[int]) -> None:
        self.dataset, self.read = dataset, read

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return self.dataset[index]


def test_a_broken_image_is_named_by_whichever_process_reads_it(tmp_path: Path) -> None:
    root = _pngs(tmp_path, 30)
    split = _split_of(root, 2)
    broken = Path(split.place_of(6))
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ImageError, match=re.escape(str(broken))):
        list(split.batches([VIEW], 4))


def test_a_split_that_is_given_up_ends_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells them to end: those that are left to the garbage collector wait for seconds."""
    told: list[_Told] = []

    class _Told:
        def __init__(self, *arguments: Any) -> None:
            self._images = decode(*arguments)

        def __next__(self) -> Any:
            return next(self._images)

        def close(self) -> None:
            told.append(self)
            self._images.close()

    monkeypatch.setattr(splits, "decode", _Told)
    before = {*multiprocessing.active_children()}
    root = _pngs(tmp_path, 60)
    split = _split_of(root, 2)
    next(split.batches([VIEW], 4))
    started = {*multiprocessing.active_children()} - before
    assert len(started) == 2
    del split
    gc.collect()
    assert len(told) == 1
    split = _split_of(root, 2)
    batches = split.batches([VIEW], 4)
    next(batches)
    started |= {*multiprocessing.active_children()} - before
    assert len(list(batches)) == 4
    assert len(told) == 2  # also while the split is there
    for process in started:
        process.join(60)
        assert process.exitcode is not None


def test_what_is_said_of_images_is_said_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    list(_split_of(_pngs(tmp_path, 60, bits=16), 2).batches([VIEW]))
    assert " ".join(capfd.readouterr().err.split()).count("images of 16 bits, such as") == 1


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("unable to open shared memory object </torch_1>", "--shm-size"),
        ("DataLoader worker (pid 7) is killed by signal: Bus error", "--shm-size"),
        ("DataLoader worker (pid(s) 7) exited unexpectedly", "want of memory"),
    ],
)
def test_loader_processes_that_fail(
    said: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr("torch.utils.data.DataLoader.__iter__", fail)
    with pytest.raises(DataError, match=r"data: {workers: 0}") as stopped:
        list(_split_of(_pngs(tmp_path, 30), 2).batches([VIEW]))
    assert why in str(stopped.value)


def test_how_many_processes_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optuna_stitch.data.decode.usable_cores", lambda: 4)
    monkeypatch.setattr("sys.platform", "linux")
    assert loader_processes(10_000, None) == 4
    assert loader_processes(100, None) == 0
    assert loader_processes(100, 3) == 3
    assert loader_processes(10_000, 0) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert loader_processes(10_000, None) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert loader_processes(10_000, None) == 0
