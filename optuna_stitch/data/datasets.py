"""Data sets that timm does not read in the way that splits need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from optuna_stitch.utils.errors import DataError, first_line


class Digits:
    """The 1,797 scanned digits that come with scikit-learn, 8 × 8 pixels each."""

    class_count = 10
    class_names = tuple("0123456789")

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self._images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        self._labels = digits.target

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self._images[index]), int(self._labels[index])


class Files:
    """Images as timm's readers find them.

    timm's own data set skips an image that does not decode and returns the next one in its place,
    so that nobody notices that the image is another one.

    Args:
        reader: A reader of timm's.
    """

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        index = getattr(reader, "class_to_idx", None)
        self.class_count = max(index.values()) + 1 if index else None
        names = {label: str(name) for name, label in (index or {}).items()}
        # a class map may lack some labels
        self.class_names = (
            tuple(names.get(label, str(label)) for label in range(self.class_count))
            if self.class_count
            else None
        )

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        file, label = self.reader[index][:2]
        image = Image.open(file)
        image.load()
        return image, int(label)


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
