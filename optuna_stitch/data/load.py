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
from torchvision.datasets.folder import IMG_EXTENSIONS

from optuna_stitch.data.classes import (
    ImageTree,
    check_same_classes,
    folder_classes,
    is_hidden,
    names_of,
    read_class_map,
    shared_classes,
)
from optuna_stitch.data.datasets import NOISE, VOC, Digits, Files, Noise, Shards, Table
from optuna_stitch.data.splits import ImageDataset, Split
from optuna_stitch.utils.errors import DataError, ImageError, first_line
from optuna_stitch.utils.progress import console

SPLITS = ("train", "val", "test")

# torchvision's reader of folders, which numbers them in alphabetical order.
_IMAGE_FOLDER = ("torch/image_folder", "torch/folder")

# Names of a part's folder that stand for each other, as timm has them.
_SYNONYMS = (("train", "training"), ("val", "valid", "validation", "eval", "evaluation"))


@dataclass(frozen=True)
class Data:
    """Three disjoint splits of labelled images.

    Args:
        train: For training parents and fitting stitches.
        val: For the search.
        test: For the report.
        classes: Number of classes.
        class_names: Their names in the order of their labels, where the data set knows them.

    Raises:
        DataError: If the data sets of the splits name their classes, and in different orders.

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

    def __post_init__(self) -> None:
        known = names_of(self.train.dataset)
        for split in (self.val, self.test):
            names = names_of(split.dataset)
            if known is not None and names is not None:
                check_same_classes(known, split.name, names)


def load_data(
    dataset: str = "sklearn/digits",
    *,
    root: str | Path | None = None,
    class_map: str | Path | None = None,
    labels: str | Path | None = None,
    column: str | None = None,
    train: Mapping[str, Any] | None = None,
    val: Mapping[str, Any] | None = None,
    test: Mapping[str, Any] | None = None,
    unreadable: Literal["stop", "skip"] = "stop",
    workers: int | None = None,
    seed: int = 0,
) -> Data:
    """Load a data set and divide it into three disjoint splits.

    Splits of the same source (for ``sklearn/digits``, all three) divide it among themselves: the
    images are shuffled with ``seed`` and dealt in the order train, val, test.

    Args:
        dataset: ``sklearn/digits``; ``torch/voc`` (or ``torch/voc2007``, …) for segmentation; or
            what ``timm.data.create_dataset`` takes as a name and reads at random, where the empty
            string reads a folder or a tar at ``root`` with a folder for each class. The tars of
            ``wds/`` are indexed.
        root: Folder or tar of the data; ``~`` is the home folder.
        class_map: A text file with a class name a line, in the order of the labels. Without it,
            the train split's data set says the order, for all splits.
        labels: A CSV file with a column ``image``, of paths relative to ``root``, and one or more
            of labels; in place of folders named for their classes.
        column: Which of several labels: a column of the CSV file; of ``sklearn/digits``
            ``digit`` or ``loop``.
        train: What differs for the train split: ``dataset``, ``root``, ``class_map``, ``labels``,
            ``column``, ``split`` (the data set's own name of a part) and ``images`` (their
            number; all that are left, if absent).
        val: What differs for the validation split.
        test: What differs for the test split.
        unreadable: What to do with images that do not decode: ``stop`` at the first one that is
            used, or ``skip`` them; to skip them, every image that is dealt is read once.
        workers: How many loader processes decode images; see `Split`.
        seed: Decides which images are taken, and in which order.

    Returns:
        The three splits.

    Raises:
        DataError: If a source cannot be read or has too few images, or if it is open which class
            a label is: classes that the train split has not, nested folders, an order that is
            not the same for timm and torchvision.

    Example:
        >>> digits = st.load_data(train={"images": 300}, val={"images": 200}, seed=1)
        >>> digits.train.targets[:2].dtype
        torch.int64
    """
    if unreadable not in ("stop", "skip"):
        raise DataError(f"`unreadable` is stop or skip, not {unreadable!r}.")
    shared = {
        "dataset": dataset,
        "root": root,
        "class_map": class_map,
        "split": None,
        "labels": labels,
        "column": column,
    }
    wanted = {
        name: {**shared, **{key: value for key, value in (own or {}).items() if value is not None}}
        for name, own in zip(SPLITS, (train, val, test), strict=True)
    }
    sources: dict[str, tuple[ImageDataset, list[int]]] = {}
    splits: dict[str, Split] = {}
    classes: tuple[str, ...] | None = None
    for name, spec in wanted.items():
        count = spec.pop("images", None)
        unknown = spec.keys() - shared.keys()
        if unknown or (count is not None and count < 1):
            wrong = f"{min(unknown)!r}" if unknown else f"{count} `images`"
            raise DataError(
                f"The {name} split cannot have {wrong}; what may differ for it is "
                f"{', '.join(shared)}, and a number of images from 1."
            )
        for key in ("root", "class_map", "labels"):
            spec[key] = None if spec[key] is None else Path(spec[key]).expanduser()
        if spec["dataset"].startswith("torch/voc"):
            spec["split"] = spec["split"] or name  # VOC has parts of the same names
        said = {key: str(value) for key, value in spec.items() if value is not None}
        source = json.dumps(said)
        if source not in sources:
            opened = _open(name, **spec)
            if name == SPLITS[0]:
                classes = names_of(opened)
            else:
                _share_classes(classes, name, opened, mapped=spec["class_map"] is not None)
            order = np.random.default_rng(seed).permutation(len(opened))
            sources[source] = (opened, order.tolist())
        opened, left = sources[source]
        if unreadable == "skip":
            left = _readable(Split(name, opened, left, source), count)
        taken = left if count is None else left[:count]
        if not taken or (count is not None and len(taken) < count):
            what = spec["dataset"] or str(spec["root"])
            if count is None:
                raise DataError(
                    f"No image of {what} is left for the {name} split: those before it take all "
                    f"{len(opened)}. Give these a number of `images`, or the {name} split images "
                    "of its own."
                )
            raise DataError(
                f"The {name} split wants {count} images, but only {len(left)} of {what} are left; "
                "give its `images` a smaller number, or images of its own."
            )
        sources[source] = (opened, left[len(taken) :])
        described = f"{source} of {len(opened)} images"
        if getattr(opened, "is_renumbered", False):  # figures of other labels do not hold
            described += ", labels of the train split"
        origin = json.dumps(
            {key: said[key] for key in ("dataset", "root", "split") if key in said}
        )
        splits[name] = Split(name, opened, taken, described, origin, workers)
    return Data(splits["train"], splits["val"], splits["test"], _count_classes(splits), classes)


def _share_classes(
    classes: tuple[str, ...] | None, name: str, opened: ImageDataset, *, mapped: bool
) -> None:
    """Let a split's labels be places in the list of the train split's classes."""
    names = names_of(opened)
    if names == classes:
        return
    if names is None or classes is None:
        unnamed, other = (name, SPLITS[0]) if names is None else (SPLITS[0], name)
        console.print(
            f"The {unnamed} split does not name its classes, but the {other} split does; the "
            "labels of both are taken as they are.",
            highlight=False,
        )
        return
    shared = shared_classes(classes, name, names, mapped=mapped)
    if isinstance(opened, Files):
        opened.class_names = shared
        opened.renumber(classes)
    else:
        check_same_classes(classes, name, names)


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
        except ImageError as error:
            skipped.append(f"{split.place_of(position)} ({first_line(error.__cause__ or error)})")
    if skipped:
        console.print(
            f"{len(skipped)} images of the {split.name} split do not decode and are left out: "
            f"{'; '.join(skipped[:5])}{' and more' if len(skipped) > 5 else ''}",
            highlight=False,
        )
    return kept


def _open(
    name: str,
    dataset: str,
    root: Path | None,
    class_map: Path | None,
    split: str | None,
    labels: Path | None,
    column: str | None,
) -> ImageDataset:
    if labels is not None:
        if dataset:
            raise DataError(
                f"The {name} split's `labels` are for images in a folder; its data set is "
                f'{dataset!r}. Give it the empty name "", or leave `labels` out.'
            )
        mapped = None if class_map is None else read_class_map(class_map, root)
        table = Table(labels, root, column)
        return _named(Files(table, table.class_names), mapped, name)
    if dataset == "sklearn/digits":
        if root is not None or class_map is not None or split is not None:
            raise DataError(
                f"The {name} split is sklearn/digits, without `root`, `class_map` or `split`. "
                'For a folder of images give the data set the empty name, `dataset: ""`.'
            )
        return Digits(column)
    if column is not None:
        raise DataError(
            f"The {name} split has no file of `labels`, of which {column!r} could be a `column`."
        )
    if dataset.startswith(NOISE):
        return Noise(dataset)
    if root is not None and not root.exists():
        raise DataError(f"The {name} split's images are not at {root}: there is no such path.")
    if dataset.startswith("torch/voc"):
        return VOC(dataset, root, str(split))
    kind = dataset.partition("/")[0].lower() if "/" in dataset else ""
    if kind not in ("", "torch", "hfds", "hfids", "tfds", "wds"):
        raise DataError(
            f"There is no data set {dataset!r}. There are sklearn/digits, torch/..., hfds/..., "
            'wds/..., and the empty name "" for a folder or tar of images at `root`.'
        )
    if kind in ("hfids", "tfds"):
        raise DataError(
            f"The {name} split's data set {dataset!r} can only be read from front to end, but "
            "splits need images at random. Say hfds/ in place of hfids/, or give the images as a "
            "folder for each class."
        )
    mapped = None if class_map is None else read_class_map(class_map, root)
    if kind == "wds":
        return _named(Files(Shards(root, split), None), mapped, name)
    if dataset.lower() in _IMAGE_FOLDER or not kind:
        if root is None:
            raise DataError(f"The {name} split has no `root`: say where its images are.")
        return _open_folders(name, dataset, _part(name, root, split), mapped)
    opened = _create(name, dataset, root, split=split)
    return _named(Files(getattr(opened, "reader", opened), names_of(opened)), mapped, name)


def _open_folders(
    name: str, dataset: str, root: Path, class_map: tuple[str, ...] | None
) -> ImageDataset:
    """A folder or tar with a folder for each class."""
    if dataset.lower() in _IMAGE_FOLDER:
        tree = ImageTree.read(root, suffixes=IMG_EXTENSIONS)
        options = {} if name == SPLITS[0] else {"allow_empty": True}  # others may lack a class
        opened = _create(name, dataset, root, search_split=False, **options)
        tree.report(name, opened.classes)
        hidden = [folder for folder in opened.classes if is_hidden(folder)]
        if hidden and class_map is None:
            raise DataError(
                f"For torchvision the hidden folder {root / hidden[0]} is a class. Remove it, or "
                "give the classes as a `class_map`."
            )
        return _named(Files(opened, opened.classes), class_map, name)
    tree = ImageTree.read(root, class_map or ())
    names = folder_classes(name, tree, class_map, first=name == SPLITS[0])
    options = {"cache_tarinfo": False} if root.is_file() else {}  # the cache is a pickle
    labels = {folder: label for label, folder in enumerate(names)}
    reader = _create(name, dataset, root, class_map=labels, search_split=False, **options).reader
    if not tree.hidden:
        return Files(reader, names)
    files = enumerate(reader.filenames())
    kept = [place for place, file in files if not is_hidden(str(Path(file).parent), names)]
    return Files(reader, names, kept)


def _create(name: str, dataset: str, root: Path | None, **arguments: Any) -> Any:
    arguments = {key: value for key, value in arguments.items() if value is not None}
    try:
        return timm.data.create_dataset(
            dataset, root=None if root is None else str(root), **arguments
        )
    except Exception as error:  # timm's readers raise whatever their format's library raises
        raise DataError(
            f"The {name} split cannot be read as timm data set {dataset!r}"
            f"{'' if root is None else f' at {root}'}: {first_line(error)}."
        ) from error


def _part(name: str, root: Path, split: str | None) -> Path:
    """The folder of a part within a root."""
    if split is None:
        return root
    for names in ((split,), *(some for some in _SYNONYMS if split in some)):
        for part in names:
            if (root / part).is_dir():
                return root / part
    raise DataError(
        f"The {name} split wants the part {split!r}, but {root} has no folder of that name."
    )


def _named(opened: Files, class_map: tuple[str, ...] | None, name: str) -> Files:
    """A data set whose labels are places in a class map, where there is one."""
    if class_map is None or opened.class_names == class_map:
        return opened
    if opened.class_names is None:
        counted = opened.class_count or 0
        if counted > len(class_map):
            raise DataError(
                f"The {name} split has the label {counted - 1}, but the class_map "
                f"names {len(class_map)} classes; the first is label 0."
            )
        opened.class_names, opened.class_count = class_map, len(class_map)
        return opened
    missing = [some for some in opened.class_names if some not in class_map]
    if missing:
        raise DataError(
            f"The {name} split's data set has the class {missing[0]!r}, which is not in the "
            "class_map. It must name all classes, in the order of the labels."
        )
    opened.renumber(class_map)
    return opened


def _count_classes(splits: dict[str, Split]) -> int:
    """Number of classes by the data sets' own lists, else by the largest label."""
    known = [getattr(split.dataset, "class_count", None) for split in splits.values()]
    if known[0] is not None and names_of(splits["train"].dataset) is not None:
        return int(known[0])
    if None not in known:  # counted in each split by itself
        return max(int(count) for count in known if count is not None)
    return max(int(split.targets.max()) for split in splits.values()) + 1
