"""Images for every stage: three disjoint splits, seen by each parent as it was trained to.

Stitches are fitted on ``train``, the search sees ``val`` only, and the reported front is evaluated
again on ``test``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import timm.data
import torch
from PIL import Image
from torch import Tensor

from optuna_stitch.datasets import VOC, Digits, Files, Noise
from optuna_stitch.errors import DataError, first_line
from optuna_stitch.networks.view import View

SPLITS = ("train", "val", "test")

# Transformed images are kept in memory up to this many bytes a split; beyond it they are decoded
# again in every pass.
_CACHE_BYTES = 1 << 30


class ImageDataset(Protocol):
    """What a data set must offer: a length, and (PIL image, label) by index.

    For segmentation the label is a PIL image of classes, 255 where nothing is asked.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int | Image.Image]: ...


@dataclass(frozen=True)
class Batch:
    """Some images, as every parent sees them.

    Args:
        images: One tensor ``(N, C, H, W)`` per view.
        targets: Labels ``(N,)``, or ``(N, H, W)`` for segmentation, int64.
    """

    images: tuple[Tensor, ...]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)


@dataclass
class Split:
    """Part of a data set, in a fixed order.

    Args:
        name: ``train``, ``val`` or ``test``.
        dataset: Where the images come from.
        indices: Which of them belong to this split.
        source: What identifies the data set, for `fingerprint`.
    """

    name: str
    dataset: ImageDataset
    indices: Sequence[int]
    source: str
    _cache: dict[View, Tensor] = field(default_factory=dict, repr=False)
    _targets: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def fingerprint(self) -> str:
        """A hash of which images these are."""
        text = json.dumps([self.source, list(map(int, self.indices))])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def take(self, images: int | None) -> Split:
        """The first so many images of this split (all, if None or more than there are)."""
        if images is None or images >= len(self):
            return self
        return Split(self.name, self.dataset, self.indices[:images], self.source)

    @property
    def targets(self) -> Tensor:
        """Labels ``(len(self),)`` in the split's order, where there is one an image."""
        if len(self._targets) != len(self):
            labels = [self._read(position)[1] for position in range(len(self))]
            self._targets = torch.tensor([int(label) for label in labels])  # type: ignore[arg-type]
        return self._targets

    def batches(
        self, views: Sequence[View], batch_size: int = 100, *, share: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Go through the split once, in order.

        Args:
            views: How the images are wanted; each is decoded once and transformed per view.
            batch_size: Number of images in a batch.
            share: (k, n) for every n-th batch only, from the k-th.

        Yields:
            Batches with one tensor per view.
        """
        needed = sum(4 * int(np.prod(view.input_size)) for view in set(views)) * len(self)
        kept = needed <= _CACHE_BYTES and share[1] == 1
        if kept:
            self._fill(views)
        for start in range(share[0] * batch_size, len(self), share[1] * batch_size):
            stop = min(start + batch_size, len(self))
            if kept:
                images = tuple(self._cache[view][start:stop] for view in views)
                yield Batch(images, self._targets[start:stop])
            else:
                yield self._load(views, range(start, stop))

    def pick(self, positions: Sequence[int], views: Sequence[View]) -> Batch:
        """Some of the images.

        Args:
            positions: Which, in the split's order.
            views: How they are wanted.
        """
        if all(view in self._cache for view in views):
            chosen = torch.tensor(positions)
            return Batch(tuple(self._cache[view][chosen] for view in views), self._targets[chosen])
        return self._load(views, positions)

    def _fill(self, views: Sequence[View]) -> None:
        missing = [view for view in dict.fromkeys(views) if view not in self._cache]
        if missing:
            everything = self._load(missing, range(len(self)))
            self._cache.update(zip(missing, everything.images, strict=True))
            self._targets = everything.targets

    def _load(self, views: Sequence[View], positions: Sequence[int]) -> Batch:
        transforms = [(view, view.transform()) for view in views]
        seen: list[list[Tensor]] = [[] for _ in views]
        targets: list[Tensor] = []
        for position in positions:
            image, target = self._read(position)
            if isinstance(target, Image.Image):
                targets.append(views[0].transform_mask(target))
            else:
                targets.append(torch.tensor(int(target)))
            for column, (view, transform) in zip(seen, transforms, strict=True):
                column.append(transform(image.convert(view.mode)))
        return Batch(tuple(torch.stack(column) for column in seen), torch.stack(targets))

    def _read(self, position: int) -> tuple[Image.Image, int | Image.Image]:
        index = self.indices[position]
        try:
            return self.dataset[index]
        except (OSError, ValueError) as error:
            raise DataError(
                f"Image {index} of the {self.name} split ({self.source}) cannot be read: {error}"
            ) from error


@dataclass(frozen=True)
class Data:
    """Three disjoint splits of labelled images.

    Args:
        train: For training parents and fitting stitches.
        val: For the search.
        test: For the report.
        classes: Number of classes.
    """

    train: Split
    val: Split
    test: Split
    classes: int


def load_data(
    dataset: str = "sklearn/digits",
    *,
    root: str | Path | None = None,
    class_map: str | Path | None = None,
    train: Mapping[str, Any] | None = None,
    val: Mapping[str, Any] | None = None,
    test: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Data:
    """Load a data set and divide it into three disjoint splits.

    Splits that name the same source (for ``sklearn/digits``, all three) share it out among
    themselves: the images are shuffled with ``seed`` and dealt in the order train, val, test.

    Args:
        dataset: ``sklearn/digits``; ``torch/voc`` (or ``torch/voc2007``, …) for segmentation; or
            what ``timm.data.create_dataset`` takes as a name, where the empty string reads a
            folder or an archive at ``root``.
        root: Where the data lie.
        class_map: timm's file of class names in the order of their labels.
        train: What differs for this split: ``dataset``, ``root``, ``class_map``, ``split`` (the
            data set's own name of a part) and ``images`` (how many to take; the rest, if absent).
        val: The same for the validation split.
        test: The same for the test split.
        seed: Decides which images are taken, and in which order.

    Returns:
        The splits.

    Raises:
        DataError: If a source cannot be read or has too few images.
    """
    shared = {"dataset": dataset, "root": root, "class_map": class_map, "split": None}
    wanted = {
        name: {**shared, **{key: value for key, value in (own or {}).items() if value is not None}}
        for name, own in zip(SPLITS, (train, val, test), strict=True)
    }
    sources: dict[str, tuple[ImageDataset, list[int]]] = {}
    splits: dict[str, Split] = {}
    for name, spec in wanted.items():
        count = spec.pop("images", None)
        if spec["dataset"].startswith("torch/voc"):
            spec["split"] = spec["split"] or name  # VOC has parts of the same names
        source = json.dumps({key: str(value) for key, value in spec.items() if value is not None})
        if source not in sources:
            opened = _open(name, **spec)
            order = np.random.default_rng(seed).permutation(len(opened))
            sources[source] = (opened, order.tolist())
        opened, left = sources[source]
        taken = left if count is None else left[:count]
        if not taken or (count is not None and len(taken) < count):
            raise DataError(
                f"The {name} split wants {count or 'some'} images, but only {len(left)} of "
                f"{source} are left; give its `images` a smaller number, or splits of its own."
            )
        sources[source] = (opened, left[len(taken) :])
        splits[name] = Split(name, opened, taken, f"{source} of {len(opened)} images")
    classes = _count_classes(splits)
    return Data(splits["train"], splits["val"], splits["test"], classes)


def _open(
    name: str,
    dataset: str,
    root: str | Path | None,
    class_map: str | Path | None,
    split: str | None,
) -> ImageDataset:
    if dataset == "sklearn/digits":
        return Digits()
    if dataset.startswith("noise/"):
        return Noise(dataset)
    if root is not None and not Path(root).exists():
        raise DataError(f"The {name} split's images are not at {root}: there is no such path.")
    arguments = {"split": split} if split else {}
    if dataset.startswith("torch/voc"):
        return VOC(dataset, root, str(split))
    try:
        opened: ImageDataset = timm.data.create_dataset(
            dataset, root=root, class_map=str(class_map) if class_map else "", **arguments
        )
    except Exception as error:  # timm's readers raise whatever their format's library raises
        raise DataError(
            f"The {name} split cannot be read as timm data set {dataset!r} at {root}: "
            f"{first_line(error)}."
        ) from error
    reader = getattr(opened, "reader", None)
    return opened if reader is None else Files(reader)


def _count_classes(splits: dict[str, Split]) -> int:
    """Number of classes by the data set's own list, else by its largest label."""
    dataset = splits["train"].dataset
    known = getattr(dataset, "class_count", None)
    if known is not None:
        return int(known)
    return max(int(split.targets.max()) for split in splits.values()) + 1
