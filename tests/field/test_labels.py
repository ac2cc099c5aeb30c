"""A label means the class that the networks were trained with, whatever folders a split has."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

import optuna_stitch as st
from optuna_stitch.data.splits import Split
from optuna_stitch.utils.errors import DataError
from tests.helpers.commands import call

# The colour of an image says its class, whatever label it gets.
COLOURS = {"ant": 10, "bee": 60, "cow": 110, "dog": 160}


def _image(name: str) -> Image.Image:
    return Image.new("RGB", (8, 8), (COLOURS.get(name, 200),) * 3)


def _folder(root: Path, classes: Sequence[str], each: int = 2) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(each):
            _image(Path(name).name).save(root / name / f"{number}.png")
    return root


def _tar(path: Path, classes: Sequence[str], each: int = 2, above: str = "") -> Path:
    with tarfile.open(path, "w") as tar:
        for name in classes:
            for number in range(each):
                _add(tar, f"{above}{name}/{number}.png", _png(_image(name)))
    return path


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _map(path: Path, names: Sequence[str]) -> Path:
    path.write_text("\n".join(names) + "\n", encoding="utf-8")
    return path


def _labels(split: Split) -> dict[int, int]:
    """What label each colour has."""
    images = [split.read(position) for position in range(len(split))]
    found = {(np.asarray(image)[0, 0, 0].item(), label) for image, label in images}
    assert len(dict(found)) == len(found), "one class has two labels"
    return dict(found)  # type: ignore[arg-type]


def _is_right(split: Split, names: Sequence[str], order: Sequence[str]) -> bool:
    return _labels(split) == {COLOURS[name]: order.index(name) for name in names}


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("kind", ["folders", "tars", "image_folder", "mixed"])
def test_a_class_that_a_split_lacks_shifts_no_label(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {"train": "ant bee cow dog", "val": "ant cow dog", "test": "bee dog"}
    specs: dict[str, Mapping[str, object]] = {}
    for part, classes in parts.items():
        if kind == "tars" or (kind == "mixed" and part == "val"):
            specs[part] = {"root": _tar(tmp_path / f"{part}.tar", classes.split())}
        else:
            specs[part] = {"root": _folder(tmp_path / part, classes.split())}
    dataset = "torch/image_folder" if kind == "image_folder" else ""
    if kind in ("folders", "image_folder"):
        (tmp_path / "val" / "bee").mkdir()  # is there, and holds nothing
    data = st.load_data(dataset, **specs)  # type: ignore[arg-type]
    assert data.classes == 4
    assert data.class_names == ("ant", "bee", "cow", "dog")
    for part, classes in parts.items():
        assert _is_right(getattr(data, part), classes.split(), data.class_names)
    said = _said(capsys)
    assert "The val split has no images of 1 of 4 classes: bee." in said
    assert "The test split has no images of 2 of 4 classes: ant, cow." in said


def test_the_study_file_counts_likewise(tmp_path: Path) -> None:
    for part, classes in (("train", "ant bee cow"), ("val", "ant cow"), ("test", "bee cow")):
        _folder(tmp_path / "images" / part, classes.split())
    file = tmp_path / "study.yaml"
    file.write_text(
        "parents: {a: {network: test_resnet, random_weights: true},"
        " b: {network: test_vit, random_weights: true}}\n"
        'data: {dataset: "", root: images, train: {split: train}, val: {split: validation},'
        " test: {split: test}}\n"
    )
    data = st.Run.start(file, tmp_path / "run").data
    assert _is_right(data.val, ["ant", "cow"], ["ant", "bee", "cow"])
    assert _is_right(data.test, ["bee", "cow"], ["ant", "bee", "cow"])


def test_a_part_that_is_not_there(tmp_path: Path) -> None:
    root = _folder(tmp_path, ["train/ant", "train/bee"])
    with pytest.raises(DataError, match=r"the part 'val', but .* no folder of that name"):
        st.load_data("", root=root, train={"split": "train"}, val={"split": "val"})


@pytest.mark.parametrize("dataset", ["", "torch/image_folder"])
def test_a_class_that_train_lacks_is_refused(dataset: str, tmp_path: Path) -> None:
    train, val = tmp_path / "train", tmp_path / "val"
    _folder(train, ["ant", "cow"])
    _folder(val, ["ant", "bee", "cow"])
    with pytest.raises(DataError, match=r"val split has 1 classes .* not: bee .*class_map"):
        st.load_data(dataset, root=val, train={"root": train})
    names = _map(tmp_path / "classes.txt", ["ant", "bee", "cow"])
    data = st.load_data(
        dataset, root=val, train={"root": train}, val={"images": 3}, class_map=names
    )
    for split in (data.train, data.val, data.test):
        seen = _labels(split)
        assert seen.items() <= {COLOURS[n]: i for i, n in enumerate(("ant", "bee", "cow"))}.items()


@pytest.mark.parametrize(
    ("dataset", "packed"), [("", False), ("", True), ("torch/image_folder", False)]
)
def test_the_class_map_says_the_order(dataset: str, packed: bool, tmp_path: Path) -> None:
    order = ["dog", "ant", "cow"]
    root = _tar(tmp_path / "x.tar", order, 4) if packed else _folder(tmp_path / "x", order, 4)
    names = _map(tmp_path / "classes.txt", order)
    data = st.load_data(
        dataset, root=root, class_map=names, train={"images": 4}, val={"images": 4}
    )
    assert data.class_names == tuple(order)
    seen = {**_labels(data.train), **_labels(data.val), **_labels(data.test)}
    assert seen == {COLOURS[name]: label for label, name in enumerate(order)}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("ant\nbee\nant\n", "'ant' twice in line 3"),
        ("ant\n\nbee\n", "an empty line in line 2"),
        ("wasp\nfly\n", "No folder .* class_map, which begins with wasp, fly; there are ant, bee"),
        (b"\x80\x04}q\x00", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_class_maps_that_do_not_fit(
    content: str | bytes | None, reason: str, tmp_path: Path
) -> None:
    root, names = _folder(tmp_path / "x", ["ant", "bee"]), tmp_path / "classes.txt"
    if content is not None:
        names.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=reason):
        st.load_data("", root=root, class_map=names, train={"images": 1})


def test_folders_that_the_class_map_lacks_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _folder(tmp_path / "x", ["ant", "bee", "cow"], 3)
    names = _map(tmp_path / "classes.txt", ["cow", "ant"])
    data = st.load_data("", root=root, class_map=names, train={"images": 2}, val={"images": 2})
    assert sum(map(len, (data.train, data.val, data.test))) == 6
    assert "3 images are left out, whose folders are not in the class_map: bee." in _said(capsys)


@pytest.mark.parametrize(
    "classes",
    [
        [str(number) for number in range(1, 11)],
        ["ant", "Bee", "cow"],  # natural order does not see capitals
        ["1", "01", "2"],
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_two_orders_of_the_classes_are_refused(
    classes: list[str], packed: bool, tmp_path: Path
) -> None:
    root = tmp_path / "x.tar" if packed else tmp_path / "x"
    (_tar if packed else _folder)(root, classes)
    with pytest.raises(DataError, match=r"two orders: timm's .* torchvision's .*class_map"):
        st.load_data("", root=root, train={"images": 1}, val={"images": 1})
    names = _map(tmp_path / "classes.txt", classes)
    part = {"images": 1}
    assert st.load_data("", root=root, train=part, val=part, class_map=names).class_names == tuple(
        classes
    )


def test_torchvision_orders_as_torchvision(tmp_path: Path) -> None:
    classes = [str(number) for number in range(1, 12)]
    root = _folder(tmp_path / "x", classes)
    part = {"images": 5}
    data = st.load_data("torch/image_folder", root=root, train=part, val=part)
    assert data.class_names == tuple(ImageFolder(str(root)).classes) == tuple(sorted(classes))
    names = _map(tmp_path / "natural.txt", classes)
    data = st.load_data("torch/folder", root=root, train=part, val=part, class_map=names)
    known = timm.data.create_dataset("", root=str(root)).reader.class_to_idx
    assert {name: label for label, name in enumerate(data.class_names or ())} == known
    labels = dict(ImageFolder(str(root)).samples)
    for split in (data.train, data.val, data.test):
        for position in range(len(split)):
            place = split.place_of(position)
            assert place in labels
            assert split.read(position)[1] == known[Path(place).parent.name]


def test_numbered_folders_are_labels_where_train_has_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"n{number:04}" for number in range(12)]
    train = _folder(tmp_path / "train", names)
    val = _folder(tmp_path / "val", [str(number) for number in range(12)])
    data = st.load_data("", root=train, train={"images": 9}, val={"root": val})
    for position in range(len(data.val)):
        assert data.val.read(position)[1] == int(Path(data.val.place_of(position)).parent.name)
    assert "its folders are numbers, taken as the labels" in _said(capsys)
    others = _folder(tmp_path / "others", [str(number) for number in range(1, 10)])
    shifted = _folder(tmp_path / "shifted", [str(number) for number in range(9)])
    with pytest.raises(DataError, match=r"val split has 1 classes .* not: 0 "):
        st.load_data("", root=others, train={"images": 9}, val={"root": shifted})


@pytest.mark.parametrize(
    ("folders", "reason"),
    [
        (["pets/ant", "pets/bee", "farm/cow"], "nested: farm/cow, pets/ant, pets/bee"),
        (["ant", "ant/more", "bee"], "nested: ant/more"),
        (["train/ant", "train/bee", "val/ant"], r"nested: .*split: train"),
        (["ant", "bee", "."], "2 images lie directly in"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_nested_folders_are_refused(
    folders: list[str], reason: str, packed: bool, tmp_path: Path
) -> None:
    root = tmp_path / "x"
    for name in folders:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(2):
            _image(name).save(root / name / f"{number}.png")
    if packed:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            tar.add(root, ".")
        root = tmp_path / "x.tar"
    with pytest.raises(DataError, match=reason):
        st.load_data("", root=root, train={"images": 1}, val={"images": 1})


def test_a_class_map_reads_innermost_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _folder(tmp_path / "x", ["pets/ant", "pets/bee", "farm/cow"])
    names = _map(tmp_path / "classes.txt", ["cow", "bee", "ant"])
    part = {"images": 2}
    data = st.load_data("", root=root, class_map=names, train=part, val=part)
    assert _labels(data.train).items() <= {110: 0, 60: 1, 10: 2}.items()
    assert "innermost folders of farm/cow, pets/ant, pets/bee" in _said(capsys)


@pytest.mark.parametrize("above", ["", "images/", "./images/"])
def test_a_folder_that_was_packed_whole(above: str, tmp_path: Path) -> None:
    root = _tar(tmp_path / "x.tar", ["ant", "bee"], above=above)
    data = st.load_data("", root=root, train={"images": 1}, val={"images": 1})
    assert data.class_names == ("ant", "bee")


def test_tars_in_a_tar_are_classes(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as outer:
        for name in ("ant", "bee"):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w") as inner:
                for number in range(2):
                    _add(inner, f"{number}.png", _png(_image(name)))
            _add(outer, f"{name}.tar", file.getvalue())
    data = st.load_data("", root=tmp_path / "x.tar", train={"images": 2}, val={"images": 1})
    assert data.class_names == ("ant", "bee")
    assert _labels(data.train).items() <= {10: 0, 60: 1}.items()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("hidden", [".cache", ".cache/ant", "bee/.thumbs"])
def test_hidden_folders_are_no_classes(
    hidden: str, packed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _folder(tmp_path / "x", ["ant", "bee", hidden])
    if packed:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            tar.add(root, ".")
        root = tmp_path / "x.tar"
    data = st.load_data("", root=root, train={"images": 2}, val={"images": 1})
    assert data.class_names == ("ant", "bee")
    assert sum(map(len, (data.train, data.val, data.test))) == 4
    for split in (data.train, data.val, data.test):
        assert _labels(split).items() <= {10: 0, 60: 1}.items()
    assert f"2 images in hidden folders are left out: {hidden}." in _said(capsys)


def test_a_hidden_folder_is_a_class_for_torchvision(tmp_path: Path) -> None:
    root = _folder(tmp_path / "x", [".cache", "ant"])
    with pytest.raises(DataError, match=r"hidden folder .*\.cache is a class"):
        st.load_data("torch/image_folder", root=root)


@pytest.mark.parametrize("packed", [False, True])
def test_files_that_are_left_out_are_counted(
    packed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _folder(tmp_path / "x", ["ant", "bee"])
    for name in ("a.webp", "b.webp", "c.tif", ".DS_Store"):
        (root / "ant" / name).write_bytes(b"")
    if packed:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            tar.add(root, ".")
        root = tmp_path / "x.tar"
    st.load_data("", root=root, train={"images": 2}, val={"images": 1})
    assert "3 files are left out by their suffix: .webp (2), .tif (1)." in _said(capsys)


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    root = _folder(tmp_path / "x", ["ant", "cow"])
    (root / "bee").mkdir()
    (root / "bee" / "1.webp").write_bytes(b"")
    part = {"images": 1}
    with pytest.raises(DataError, match=r"no image is in bee.*suffix: \.webp \(1\).*class_map"):
        st.load_data("", root=root, train=part, val=part)
    names = _map(tmp_path / "classes.txt", ["ant", "bee", "cow"])
    data = st.load_data("", root=root, train=part, val=part, class_map=names)
    for split in (data.train, data.val, data.test):
        assert _labels(split).items() <= {10: 0, 110: 2}.items()


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_other_archives(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"neither a folder of images nor a \.tar"):
        st.load_data("", root=tmp_path / name)


@pytest.mark.parametrize("kind", ["torch", "timm"])
def test_data_sets_as_objects_must_agree(kind: str, tmp_path: Path) -> None:
    splits = {}
    for part, classes in (("train", "ant bee cow"), ("val", "ant cow"), ("test", "ant bee cow")):
        root = str(_folder(tmp_path / part, classes.split()))
        dataset = ImageFolder(root) if kind == "torch" else timm.data.create_dataset("", root=root)
        splits[part] = Split(part, dataset, range(len(dataset)), part)
    with pytest.raises(DataError, match=r"val split numbers .* label 1 is cow there, and bee in"):
        st.Data(splits["train"], splits["val"], splits["test"], 3)
    assert st.Data(splits["train"], splits["test"], splits["test"], 3).classes == 3


def _shard(path: Path, labels: Sequence[object], first: int = 0) -> Path:
    with tarfile.open(path, "w") as tar:
        for number, label in enumerate(labels, start=first):
            image = Image.new("RGB", (8, 8), (number,) * 3)
            _add(tar, f"{number:04}.png", _png(image))
            _add(tar, f"{number:04}.cls", str(label).encode())
            _add(tar, f"{number:04}.json", json.dumps({"key": number}).encode())
    return path


def test_shards_of_a_webdataset(tmp_path: Path) -> None:
    labels = [3, 0, 2, 0, 1, 1]
    for shard in range(3):
        _shard(tmp_path / f"train-{shard:02}.tar", labels[2 * shard : 2 * shard + 2], 2 * shard)
    _shard(tmp_path / "val-00.tar", [1, 0])
    train = {"split": "train-{00..02}.tar|6"}
    data = st.load_data(
        "wds/",
        root=tmp_path,
        train=train,
        val={"split": "val-{00,00}.tar"},
        test=train | {"split": "train-02.tar"},
    )
    assert (len(data.train), data.classes) == (6, 4)
    for position in range(6):
        image, label = data.train.read(position)
        number = np.asarray(image)[0, 0, 0]
        assert label == labels[number]
        assert (
            data.train.place_of(position)
            == f"{number:04}.png in {tmp_path}/train-0{number // 2}.tar"
        )
    (batch,) = data.val.batches([st.View((3, 8, 8))])
    assert sorted(batch.targets.tolist()) == [0, 0, 1, 1]
    shared = st.load_data("wds/", root=tmp_path, train={"images": 3}, val={"images": 3})
    assert [len(split) for split in (shared.train, shared.val, shared.test)] == [3, 3, 2]
    names = _map(tmp_path / "classes.txt", ["ant", "bee", "cow", "dog", "elk"])
    assert (
        st.load_data(
            "wds/", root=tmp_path, train={"images": 3}, val={"images": 3}, class_map=names
        ).classes
        == 5
    )


def test_a_class_map_that_is_too_short_for_labels(tmp_path: Path) -> None:
    names = _map(tmp_path / "classes.txt", ["ant", "bee"])
    root = _shard(tmp_path / "x.tar", [0, 2, 1])
    with pytest.raises(DataError, match="the label 2, but the class_map names 2 classes"):
        st.load_data("wds/", root=root, class_map=names)


def test_parts_of_a_webdataset_by_name(tmp_path: Path) -> None:
    _shard(tmp_path / "a.tar", [0, 1, 0])
    info = {"splits": {"train": {"filenames": ["a.tar"]}}}
    (tmp_path / "_info.json").write_text(json.dumps(info))
    part = {"split": "train", "images": 1}
    data = st.load_data("wds/x", root=tmp_path, train=part, val=part, test=part)
    assert data.train.indices != data.val.indices
    with pytest.raises(DataError, match="names no shards of a part 'val'"):
        st.load_data("wds/x", root=tmp_path, train=part, val={"split": "val"})
    (tmp_path / "_info.json").unlink()
    with pytest.raises(DataError, match=r"there is no _info\.json"):
        st.load_data("wds/x", root=tmp_path, train=part)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"1.png": b"", "1.json": b""}, r"'1' in the shard .* has no label \(\.cls\)"),
        ({"1.cls": b"3"}, "has no image"),
        ({"1.png": b"", "1.cls": b"cat"}, "is no whole number: b'cat'"),
        ({}, "have no images"),
    ],
)
def test_shards_that_are_none(files: dict[str, bytes], reason: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in files.items():
            _add(tar, name, content)
    with pytest.raises(DataError, match=reason):
        st.load_data("wds/", root=tmp_path)
    with pytest.raises(DataError, match=r"no shard b\.tar"):
        st.load_data("wds/", root=tmp_path, train={"split": "b.tar"})


def test_labels_without_names_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _shard(tmp_path / "x.tar", [0, 1])
    train = {"root": _folder(tmp_path / "train", ["ant", "bee"]), "images": 2}
    val = {"dataset": "wds/", "root": tmp_path / "x.tar"}
    data = st.load_data("", train=train, val=val, test={"root": train["root"]})
    assert data.class_names == ("ant", "bee")
    assert "val split does not name its classes, but the train split does" in _said(capsys)


def test_a_prefix_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set 'sklearn/digit'"):
        st.load_data("sklearn/digit", root=tmp_path)


@pytest.mark.parametrize("name", ["tfds/mnist", "hfids/user/images"])
def test_streams_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="only be read from front to end"):
        st.load_data(name)


def test_labels_of_a_torchvision_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pairs:
        classes = ("ant", "bee")

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Image.Image, object]:
            return _image(self.classes[index % 2]), torch.tensor(index % 2)

    monkeypatch.setattr(timm.data, "create_dataset", lambda *_, **__: Pairs())
    part = {"images": 1}
    data = st.load_data("torch/cifar10", root=tmp_path, train=part, val=part)
    assert data.class_names == ("ant", "bee")
    names = _map(tmp_path / "classes.txt", ["bee", "cow", "ant"])
    data = st.load_data("torch/cifar10", root=tmp_path, train=part, val=part, class_map=names)
    assert data.classes == 3
    for split in (data.train, data.val, data.test):
        assert _labels(split).items() <= {10: 2, 60: 0}.items()
    names = _map(tmp_path / "classes.txt", ["ant"])
    with pytest.raises(DataError, match="has the class 'bee', which is not in the class_map"):
        st.load_data("torch/cifar10", root=tmp_path, class_map=names)


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _folder(tmp_path / "images", ["ant", "bee"])
    _map(tmp_path / "classes.txt", ["bee", "ant"])
    part = {"images": 1}
    data = st.load_data("", root="~/images", class_map="~/classes.txt", train=part, val=part)
    assert data.class_names == ("bee", "ant")
    file = tmp_path / "elsewhere" / "study.yaml"
    file.parent.mkdir()
    file.write_text(
        "parents: {a: {network: test_resnet, random_weights: true},"
        " b: {network: test_vit, random_weights: true}}\n"
        'data: {dataset: "", root: ~/images, class_map: ~/classes.txt, train: {images: 1},'
        " val: {images: 1}}\n"
    )
    assert st.Run.start(file, tmp_path / "run").data.class_names == ("bee", "ant")


def test_init_asks_for_the_order_where_there_are_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _folder(tmp_path / "images", [str(number) for number in range(1, 11)])
    assert call("init", "test_resnet", "test_vit", "--data", "images", "--to", "x.yaml") == 0
    lines = Path("x.yaml").read_text().splitlines()
    assert any(line.startswith("  class_map: classes.txt") for line in lines)
