"""Data sets as splits need them: images by index, labels that mean the same in every split."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from timm.utils.misc import natural_key

from optuna_stitch.utils.errors import DataError, first_line

# What names of data sets that are made up begin with.
NOISE = "noise/"


class Digits:
    """The 1,797 scanned digits that come with scikit-learn, 8 × 8 pixels each.

    Args:
        column: Which of two labels: ``digit``; or ``loop``, whether the ink of the scan encloses
            paper, which most 0, 6, 8 and 9 do, half of the 4, and few others.

    Raises:
        DataError: If there is no such label.
    """

    # Of 16 levels; darker pixels are ink.
    _INK = 6

    def __init__(self, column: str | None = None) -> None:
        from sklearn.datasets import load_digits

        if column not in (None, "digit", "loop"):
            raise DataError(f"sklearn/digits has the columns digit and loop, but no {column!r}.")
        digits = load_digits()
        self._images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        self.class_names = ("no loop", "loop") if column == "loop" else tuple("0123456789")
        self.class_count = len(self.class_names)
        self._labels = digits.target if column != "loop" else self._loops(digits.images)

    def _loops(self, images: NDArray[np.float64]) -> NDArray[np.int64]:
        """Whether paper is in several pieces: around the digit, and within."""
        papers = np.pad(images < self._INK, ((0, 0), (1, 1), (1, 1)), constant_values=True)
        return np.array([int(ndimage.label(paper)[1] > 1) for paper in papers])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self._images[index]), int(self._labels[index])


class Files:
    """Images as timm's readers and torchvision's data sets give them, and what their labels mean.

    timm's own data set skips an image that does not decode and returns the next one in its place,
    so that nobody notices that the image is another one.

    Args:
        reader: A reader of timm's, or a data set of torchvision's.
        class_names: Names in the order of the reader's labels; None, if it does not tell.
        kept: Which of the reader's images count; all, if None.
    """

    def __init__(
        self,
        reader: Any,
        class_names: Sequence[str] | None,
        kept: Sequence[int] | None = None,
    ) -> None:
        self.reader = reader
        self._kept = range(len(reader)) if kept is None else kept
        self.class_names = None if class_names is None else tuple(class_names)
        counted = getattr(reader, "class_count", None)
        self.class_count = counted if class_names is None else len(class_names)
        self._numbers: list[int] | None = None
        self._process = os.getpid()

    @property
    def is_renumbered(self) -> bool:
        """Whether labels are not those of the reader."""
        return self._numbers is not None

    def renumber(self, class_names: Sequence[str]) -> None:
        """Count labels in another list of classes, which has all of this one's and maybe more.

        Args:
            class_names: In the order of the labels.

        Raises:
            DataError: If two classes of this one have the same name.
        """
        twice = [name for name, n in Counter(self.class_names or ()).items() if n > 1]
        if twice:
            raise DataError(
                f"Two classes are named {twice[0]!r}, so that names do not tell labels apart."
            )
        place = {name: label for label, name in enumerate(class_names)}
        numbers = [place[name] for name in self.class_names or ()]
        if self._numbers is not None:
            numbers = [numbers[number] for number in self._numbers]
        self._numbers = None if numbers == list(range(len(numbers))) else numbers
        self.class_names, self.class_count = tuple(class_names), len(class_names)

    def filename(self, index: int) -> str:
        """Where an image comes from, for people."""
        index = self._kept[index]
        if hasattr(self.reader, "filename"):
            name = self.reader.filename(index, absolute=True)
        else:  # torchvision's data set of folders has samples
            name = getattr(self.reader, "samples", {index: (None,)})[index][0]
        root = getattr(self.reader, "root", None)
        packed = root is not None and os.path.isfile(root)
        return f"{name} in {root}" if packed else str(name or f"image {index}")

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if self._process != os.getpid():
            self._process = os.getpid()
            _open_tars_anew(self.reader)
        image, label = self.reader[self._kept[index]][:2]
        if not isinstance(image, Image.Image):
            image = Image.open(image)
            image.load()
        try:
            label = -1 if label is None else int(label)  # as timm marks what has no label
        except (TypeError, ValueError) as error:
            raise DataError(
                f"The label of {self.filename(index)} is {label!r}; it must be one whole number."
            ) from error
        if self._numbers is not None and 0 <= label < len(self._numbers):
            label = self._numbers[label]
        return image, label


def _open_tars_anew(reader: Any) -> None:
    """Let timm's readers forget the tars that they hold open.

    A process and its copies move one place that all of them read at, and get parts of each other's
    images.

    Args:
        reader: Any reader.
    """
    opened = getattr(reader, "tar_state", None)
    for state in opened.values() if isinstance(opened, dict) else filter(None, [opened]):
        for one in (*state.children.values(), state):
            one.reset()
    if hasattr(reader, "tarfile"):
        reader.tarfile = None


class Table:
    """A reader, as timm has them, of images and their labels in a CSV file.

    Args:
        path: The CSV file, in UTF-8: its first line names the columns, ``image`` among them, which
            has the images' paths.
        root: The folder that these are relative to; that of the file, if None.
        column: Which column has the labels; the only other one, if None.

    Attributes:
        class_names: What the column has, in the natural order: 2 before 10.

    Raises:
        DataError: If the file cannot be read, has no such columns, or a label is missing.
    """

    _IMAGE = "image"

    def __init__(self, path: Path, root: Path | None, column: str | None) -> None:
        self.root = root or path.parent
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(
                f"The labels in {path} cannot be read: {first_line(error)}. They must be a CSV "
                "file with a column `image` and one for each question."
            ) from error
        columns = [str(name) for name in rows[0]] if rows else []
        others = [name for name in columns if name != self._IMAGE]
        if self._IMAGE not in columns or not others:
            raise DataError(
                f"{path} has the columns {', '.join(columns) or 'none'}; it needs `image`, with "
                "paths of images, and one of labels."
            )
        if column is None and len(others) > 1:
            raise DataError(
                f"{path} has {len(others)} columns of labels, {', '.join(others)}; say which is "
                "meant by `column`."
            )
        column = column or others[0]
        if column not in others:
            raise DataError(
                f"{path} has no column {column!r} of labels; it has {', '.join(others)}."
            )
        labels = [(row[column] or "").strip() for row in rows]
        missing = [number for number, label in enumerate(labels) if not label]
        if missing:
            first = missing[0]
            raise DataError(
                f"{len(missing)} of {len(rows)} images in {path} have no label in the column "
                f"{column!r}, the first is {rows[first][self._IMAGE]} in line {first + 2}. Fill "
                "them in, or give the question a file of its own with the images that have one."
            )
        self.class_names = tuple(sorted(set(labels), key=lambda name: (natural_key(name), name)))
        place = {name: label for label, name in enumerate(self.class_names)}
        self._samples = [
            (row[self._IMAGE], place[label]) for row, label in zip(rows, labels, strict=True)
        ]

    def filename(self, index: int, *, absolute: bool = True) -> str:
        """Where an image comes from, for people."""
        return str((self.root / self._samples[index][0]).absolute())

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Path, int]:
        name, label = self._samples[index]
        return self.root / name, label


class Shards:
    """A reader, as timm has them, of the shards of a WebDataset: tars of ``x.jpg`` and ``x.cls``.

    timm's own reads shards from front to end only. Here the tars are indexed once, and images are
    read where they lie.

    Args:
        root: Folder of the shards, or one shard.
        split: Which shards: a pattern such as ``train-{000..009}.tar``, or a part that
            ``_info.json`` beside them names; all, if None.

    Attributes:
        class_count: The largest label and one.

    Raises:
        DataError: If there are no such shards, or a sample has no image or no label.
    """

    _IMAGES = (".jpg", ".jpeg", ".png", ".webp")
    _LABEL = ".cls"

    def __init__(self, root: str | Path | None, split: str | None) -> None:
        folder = Path(root or ".")
        self._samples: list[tuple[Path, tarfile.TarInfo, int]] = []
        for shard in [folder] if folder.is_file() else _shards_of(folder, split):
            try:
                with tarfile.open(shard, "r:") as tar:
                    self._index(tar, shard)
            except (OSError, tarfile.TarError) as error:
                said = first_line(error)
                raise DataError(f"The shard {shard} cannot be read: {said}.") from error
        if not self._samples:
            raise DataError(f"The shards in {folder} have no images.")
        self.class_count = max(label for _, _, label in self._samples) + 1

    def _index(self, tar: tarfile.TarFile, shard: Path) -> None:
        """Find the samples of a shard: files of one key, up to the first dot of their names."""
        samples: dict[str, dict[str, tarfile.TarInfo]] = {}
        for member in tar:
            folder, name = os.path.split(member.name)
            if member.isfile() and not name.startswith("."):
                key, _, suffix = name.partition(".")
                samples.setdefault(f"{folder}/{key}", {})[f".{suffix.lower()}"] = member
        for key, parts in samples.items():
            image = next((parts[suffix] for suffix in self._IMAGES if suffix in parts), None)
            if image is None or self._LABEL not in parts:
                wanted = f"image ({', '.join(self._IMAGES)})" if image is None else "label (.cls)"
                raise DataError(
                    f"The sample {key.lstrip('/')!r} in the shard {shard} has no {wanted}, but "
                    f"{', '.join(parts)}. Write shards with both, or unpack them into a folder "
                    "for each class."
                )
            text = _content(shard, parts[self._LABEL])
            try:
                label = int(text)
            except ValueError as error:
                raise DataError(
                    f"The label of {key.lstrip('/')!r} in the shard {shard} is no whole number: "
                    f"{text[:40]!r}."
                ) from error
            self._samples.append((shard, image, label))

    def filename(self, index: int, *, absolute: bool = True) -> str:
        """Where an image comes from, for people."""
        shard, member, _ = self._samples[index]
        return f"{member.name} in {shard}"

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        shard, member, label = self._samples[index]
        return io.BytesIO(_content(shard, member)), label


def _content(tar: Path, member: tarfile.TarInfo) -> bytes:
    with tar.open("rb") as file:
        file.seek(member.offset_data)
        return file.read(member.size)


def _shards_of(root: Path, split: str | None) -> list[Path]:
    """The tars that a split names, in its order."""
    if split is None:
        names = sorted(path.name for path in root.glob("*.tar"))
    elif ".tar" in split or ".." in split:
        names = _expanded(split.partition("|")[0])  # timm puts the number of images behind a bar
    else:
        names = _named_shards(root, split)
    missing = [name for name in names if not (root / name).is_file()]
    if missing or not names:
        raise DataError(
            f"There is no shard {missing[0] if missing else '*.tar'} in {root}. Name the shards "
            "of a part as `split`: train-{000..009}.tar."
        )
    return [root / name for name in names]


def _named_shards(root: Path, split: str) -> list[str]:
    for name in ("_info.json", "info.json"):
        if (root / name).is_file():
            try:
                parts = json.loads((root / name).read_text(encoding="utf-8"))["splits"]
                return [str(file) for file in parts[split]["filenames"]]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{root / name} names no shards of a part {split!r}: {first_line(error)}."
                ) from error
    raise DataError(
        f"Which shards in {root} are the part {split!r} is not said: there is no _info.json. Name "
        "them as `split`: train-{000..009}.tar."
    )


def _expanded(pattern: str) -> list[str]:
    """What braces stand for: ``{08..10}`` and ``{a,b}``, as in a shell."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    first, last, listed = found.groups()
    if listed is not None:
        values = listed.split(",")
    else:
        width = len(first) if first.startswith("0") else 0
        values = [f"{value:0{width}}" for value in range(int(first), int(last) + 1)]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [name for value in values for name in _expanded(f"{head}{value}{tail}")]


class VOC:
    """Pascal VOC's segmentation: 20 classes and background, 255 around objects.

    Args:
        name: ``torch/voc`` for 2012, or with a year: ``torch/voc2007``.
        root: Folder with ``VOCdevkit`` in it; the current one, if None.
        split: VOC's own name of a part: ``train``, ``val``, ``trainval``, ``test``.

    Raises:
        DataError: If the data are not there.
    """

    class_count = 21
    class_names = (
        *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
        *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
        *("sheep", "sofa", "train", "tvmonitor"),
    )

    def __init__(self, name: str, root: str | Path | None, split: str) -> None:
        from torchvision.datasets import VOCSegmentation

        year = name.removeprefix("torch/voc") or "2012"
        try:
            self._pairs = VOCSegmentation(root or ".", year=year, image_set=split, download=False)
        except Exception as error:
            raise DataError(
                f"Pascal VOC {year}, {split}, cannot be read at {root}: {first_line(error)}. The "
                "folder must hold VOCdevkit, as its archive unpacks."
            ) from error

    def filename(self, index: int) -> str:
        """Where an image comes from, for people."""
        return str(self._pairs.images[index])

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> tuple[Image.Image, Image.Image]:
        image, mask = self._pairs[index]
        return image, mask


class Noise:
    """Random images and labels, to try a study file out.

    Args:
        name: ``noise/<classes>``, or ``noise/<classes>/pixels`` with a label for every pixel.

    Raises:
        DataError: If the name is of another form.
    """

    _IMAGES, _SIDE = 100, 64

    def __init__(self, name: str) -> None:
        parts = name.split("/")
        if len(parts) < 2 or not parts[1].isdigit():
            raise DataError(f"{name!r} is no data set; say noise/10, or noise/21/pixels.")
        self.class_count = int(parts[1])
        self._pixels = parts[2:] == ["pixels"]

    def __len__(self) -> int:
        return self._IMAGES

    def __getitem__(self, index: int) -> tuple[Image.Image, int | Image.Image]:
        rng = np.random.default_rng(index)
        image = Image.fromarray(rng.integers(0, 256, (self._SIDE, self._SIDE, 3), dtype=np.uint8))
        if not self._pixels:
            return image, int(rng.integers(self.class_count))
        mask = rng.integers(0, self.class_count, (self._SIDE, self._SIDE), dtype=np.uint8)
        return image, Image.fromarray(mask)
