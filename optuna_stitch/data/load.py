"""Images for every stage, in three disjoint splits.

Stitches are fitted on ``train``, the search sees ``val`` only, and the reported front is evaluated
again on ``test``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm.data

from optuna_stitch.data.datasets import VOC, Digits, Files, Noise
from optuna_stitch.data.splits import ImageDataset, Split
from optuna_stitch.utils.errors import DataError, first_line
from optuna_stitch.utils.progress import console

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Data:
    """Three disjoint splits of labelled images.

    Args:
        train: For training parents and fitting stitches.
        val: For the search.
        test: For the report.
        classes: Number of classes.
        class_names: Their names in the order of their labels, where the data set knows them.

    Example:
        >>> digits = st.load_data("sklearn/digits", train={"images": 300}, val={"images": 200})
        >>> len(digits.train), len(digits.val), len(digits.test), digits.classes
        (300, 200, 1297, 10)
    """

    train: Split
    val: Split
    test: Split
    classes: int
    class_names: tuple[str, ...] | None = None


def load_data(
    dataset: str = "sklearn/digits",
    *,
    root: str | Path | None = None,
    class_map: str | Path | None = None,
    train: Mapping[str, Any] | None = None,
    val: Mapping[str, Any] | None = None,
    test: Mapping[str, Any] | None = None,
    unreadable: Literal["stop", "skip"] = "stop",
    seed: int = 0,
) -> Data:
    """Load a data set and divide it into three disjoint splits.

    Splits of the same source (for ``sklearn/digits``, all three) divide it among themselves: the
    images are shuffled with ``seed`` and dealt in the order train, val, test.

    Args:
        dataset: ``sklearn/digits``; ``torch/voc`` (or ``torch/voc2007``, …) for segmentation; or
            what ``timm.data.create_dataset`` takes as a name, where the empty string reads a
            folder or an archive at ``root``.
        root: Folder or archive of the data.
        class_map: timm's file of class names in the order of their labels.
        train: What differs for the train split: ``dataset``, ``root``, ``class_map``, ``split``
            (the data set's own name of a part) and ``images`` (their number; all that are left,
            if absent).
        val: What differs for the validation split.
        test: What differs for the test split.
        unreadable: What to do with images that do not decode: ``stop`` at the first one that is
            used, or ``skip`` them; to skip them, every image that is dealt is read once.
        seed: Decides which images are taken, and in which order.

    Returns:
        The three splits.

    Raises:
        DataError: If a source cannot be read or has too few images.

    Example:
        >>> digits = st.load_data(train={"images": 300}, val={"images": 200}, seed=1)
        >>> digits.train.targets[:2].dtype
        torch.int64
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
        if unreadable == "skip":
            left = _readable(Split(name, opened, left, source), count)
        taken = left if count is None else left[:count]
        if not taken or (count is not None and len(taken) < count):
            raise DataError(
                f"The {name} split wants {count or 'some'} images, but only {len(left)} of "
                f"{source} are left; give its `images` a smaller number, or splits of its own."
            )
        sources[source] = (opened, left[len(taken) :])
        splits[name] = Split(name, opened, taken, f"{source} of {len(opened)} images")
    classes = _count_classes(splits)
    names = getattr(splits["train"].dataset, "class_names", None)
    return Data(splits["train"], splits["val"], splits["test"], classes, names)


def _readable(split: Split, count: int | None) -> list[int]:
    """Indices of images that decode, checked until there are ``count`` of them."""
    kept: list[int] = []
    skipped: list[str] = []
    for position, index in enumerate(split.indices):
        if count is not None and len(kept) >= count:
            kept.extend(split.indices[position:])
            break
        try:
            split.read(position)
            kept.append(index)
        except DataError as error:
            skipped.append(str(error.__cause__))
    if skipped:
        console.print(
            f"{len(skipped)} images of the {split.name} split do not decode and are left out: "
            f"{'; '.join(skipped[:5])}{' and more' if len(skipped) > 5 else ''}"
        )
    return kept


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
