"""What a label means: which folders are classes, and one list of them for all splits."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.data.readers.img_extensions import get_img_extensions
from timm.utils.misc import natural_key

from optuna_stitch.utils.errors import DataError, first_line
from optuna_stitch.utils.progress import console

# So many names are listed in a sentence.
_LISTED = 8

_MAP = (
    "write the names of the class folders into a text file, one a line, in the order of the "
    "labels that your networks were trained on, and give it as `class_map`"
)


@dataclass(frozen=True)
class ImageTree:
    """The folders of a folder or tar of images: each innermost one is a class, as timm reads it.

    Args:
        root: The folder or the tar.
        images: How many images each folder holds, by its path in the root.
        left_out: How many other files there are, by suffix.
        hidden: How many images each hidden folder holds.
        folders: All other folders.
    """

    root: Path
    images: dict[str, int]
    left_out: dict[str, int]
    hidden: dict[str, int]
    folders: frozenset[str]

    @staticmethod
    def read(
        root: Path, class_map: Sequence[str] = (), suffixes: Collection[str] = ()
    ) -> ImageTree:
        """List a folder or a tar.

        Args:
            root: The folder or the tar.
            class_map: Folders that count though their names begin with a dot.
            suffixes: Of images; timm's, if none are given.

        Raises:
            DataError: If it cannot be read, or holds no image.
        """
        images: Counter[str] = Counter()
        left_out: Counter[str] = Counter()
        hidden: Counter[str] = Counter()
        folders: set[str] = set()
        suffixes = suffixes or get_img_extensions(as_set=True)
        if not root.exists():
            raise DataError(f"There are no images at {root}: there is no such path.")
        if not root.is_dir() and not _is_tar(root):
            raise DataError(f"{root} is neither a folder of images nor a .tar; unpack it.")
        try:
            for folder, name in _files_of_tar(root) if _is_tar(root) else _files_of_folder(root):
                unseen = folder not in folders and is_hidden(folder, class_map)
                if not unseen:
                    folders.add(folder)
                suffix = os.path.splitext(name)[1].lower()
                if suffix in suffixes:
                    (hidden if unseen else images)[folder] += 1
                elif name and not unseen and not name.startswith("."):
                    left_out[suffix or "none"] += 1
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{root} cannot be read: {first_line(error)}.") from error
        tree = ImageTree(root, dict(images), dict(left_out), dict(hidden), frozenset(folders))
        if not images:
            raise DataError(
                f"{root} holds no image: images are {', '.join(sorted(suffixes))}."
                f"{tree._said_left_out()}"
            )
        return tree

    @property
    def base(self) -> str:
        """The folder in the root that holds the class folders: mostly the root itself.

        Who packs a folder into a tar often packs the folder itself, not only what it holds.
        """
        if not _is_tar(self.root):
            return ""
        return os.path.commonpath([f"/{os.path.dirname(folder)}" for folder in self.images])[1:]

    @property
    def empty(self) -> list[str]:
        """Folders beside the classes that hold no image."""
        beside = {f for f in self.folders if f and os.path.dirname(f) == self.base}
        return sorted(f for f in beside if not any(_inside(folder, f) for folder in self.images))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in timm's order, the natural one: 2 before 10."""
        names = sorted({_leaf(folder) for folder in self.images})
        return tuple(sorted(names, key=natural_key))

    @property
    def is_ambiguous(self) -> bool:
        """Whether the natural order of the classes is not the alphabetical one of torchvision."""
        keys = {str(natural_key(name)) for name in self.classes}  # ties have no order at all
        return list(self.classes) != sorted(self.classes) or len(keys) < len(self.classes)

    def check(self) -> None:
        """Check that every class is one folder, directly in the root.

        Raises:
            DataError: If images lie outside of class folders, or deeper than in one folder.
        """
        if "" in self.images:
            raise DataError(
                f"{self.images['']} images lie directly in {self.root}, in no class. Put each "
                "into the folder of its class, or leave them out by a `class_map`."
            )
        deep = sorted(folder for folder in self.images if os.path.dirname(folder) != self.base)
        if deep:
            raise DataError(
                f"The class folders in {self.root} are nested: {_listed(deep)}. timm takes the "
                "innermost folder for the class, torchvision the outermost. Point `root` at the "
                "folder that holds the class folders (of a folder with train, val and test: "
                "`train: {split: train}`, ...), or name the innermost folders in a `class_map`."
            )

    def check_order(self) -> None:
        """Check that there is one order of the classes, since their places are the labels.

        Raises:
            DataError: If the tools that networks are trained with order them differently, or
                whether a folder is a class is open.
        """
        if self.empty:
            raise DataError(
                f"In {self.root} no image is in {_listed(self.empty)}, so that every class behind "
                f"would get another label.{self._said_left_out()} Move what is no class away and "
                f"bring the images back, or {_MAP}."
            )
        if self.is_ambiguous:
            raise DataError(
                f"The {len(self.classes)} class folders in {self.root} have two orders: timm's "
                f"({_listed(self.classes)}) and torchvision's ({_listed(sorted(self.classes))}), "
                "and labels are places in it. For torchvision's, say `dataset: "
                f"torch/image_folder`; otherwise {_MAP}."
            )

    def report(self, split: str, names: Sequence[str]) -> None:
        """Say which files are left out by their suffix, and which classes have no image.

        Args:
            split: Name of the split, for people.
            names: Of its classes.
        """
        if self.left_out:
            console.print(f"The {split} split:{self._said_left_out()}", highlight=False)
        held = {part for folder in self.images for part in folder.split("/")}
        _say_absent(split, [name for name in names if name not in held], len(names))

    def report_folders(self, split: str, names: Sequence[str]) -> None:
        """Say which folders timm's reader leaves out, and which it takes though they are nested.

        Args:
            split: Name of the split, for people.
            names: Of its classes.
        """
        if self.hidden:
            console.print(
                f"The {split} split: {sum(self.hidden.values())} images in hidden folders are "
                f"left out: {_listed(sorted(self.hidden))}.",
                highlight=False,
            )
        others = sorted(folder for folder in self.images if _leaf(folder) not in names)
        if others:
            count = sum(self.images[folder] for folder in others)
            console.print(
                f"The {split} split: {count} images are left out, whose folders are not in the "
                f"class_map: {_listed([folder or str(self.root) for folder in others])}.",
                highlight=False,
            )
        deep = sorted(f for f in self.images if "/" in f and _leaf(f) in names)
        if deep:
            console.print(
                f"The {split} split: classes are the innermost folders of {_listed(deep)}.",
                highlight=False,
            )

    def _said_left_out(self) -> str:
        if not self.left_out:
            return ""
        by_count = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
        listed = _listed([f"{suffix} ({count})" for suffix, count in by_count])
        return f" {sum(self.left_out.values())} files are left out by their suffix: {listed}."


def folder_classes(
    split: str, tree: ImageTree, class_map: Sequence[str] | None, *, first: bool
) -> tuple[str, ...]:
    """The classes of a folder or tar of images in the order of their labels.

    What is not read is named on stderr.

    Args:
        split: Name of the split, for people.
        tree: The folder or tar.
        class_map: Names of folders in the order of the labels; None, if nobody said them.
        first: Whether its order decides that of other splits.

    Raises:
        DataError: If what its folders mean is open.
    """
    if class_map is None:
        tree.check()
        if first:
            tree.check_order()
        names = tree.classes
    else:
        names = tuple(class_map)
        if not {_leaf(folder) for folder in tree.images} & set(names):
            raise DataError(
                f"No folder in {tree.root} is in the class_map, which begins with "
                f"{_listed(names)}; there are {_listed(tree.classes)}."
            )
    tree.report(split, names)
    tree.report_folders(split, names)
    return names


def is_hidden(folder: str, class_map: Sequence[str] = ()) -> bool:
    """Whether a folder or one around it begins with a dot.

    Args:
        folder: Its path in the root.
        class_map: Names that count all the same.
    """
    return any(part.startswith(".") and part not in class_map for part in folder.split("/"))


def read_class_map(path: Path, root: Path | None) -> tuple[str, ...]:
    """Read the names of classes in the order of their labels.

    Args:
        path: A text file with a name a line.
        root: Where to look too, as timm does.

    Raises:
        DataError: If there is no such file, or it is no list of different names.
    """
    place = path if path.exists() or root is None else root / path
    try:
        lines = place.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"The class_map {path} cannot be read: {first_line(error)}. It must be a text file, "
            "with the name of a class a line in the order of the labels."
        ) from error
    names = [line.strip() for line in lines]
    twice = [name for name, count in Counter(names).items() if count > 1 or not name]
    if twice or not names:
        what = f"{twice[0]!r} twice" if twice and twice[0] else "an empty line"
        line = f" in line {len(names) - names[::-1].index(twice[0])}" if twice else ""
        raise DataError(
            f"The class_map {place} has {what}{line}; each line is the name of one class, and "
            "its place is the label."
        )
    return tuple(names)


def names_of(dataset: Any) -> tuple[str, ...] | None:
    """The classes that a data set names, in the order of its labels; None, if it does not.

    Args:
        dataset: With ``class_names``, or as torchvision and timm make them (``classes``, a
            ``reader`` with ``class_to_idx``), or a part of such a one.
    """
    names = getattr(dataset, "class_names", None) or getattr(dataset, "classes", None)
    if isinstance(names, list | tuple) and names:
        # ImageNet's have several names each
        return tuple(", ".join(n) if isinstance(n, tuple) else str(n) for n in names)
    for attribute in ("class_to_idx", "class_name_to_idx"):
        index = getattr(dataset, attribute, None)
        if index and sorted(index.values()) == list(range(len(index))):
            return tuple(sorted(index, key=index.__getitem__))
    for attribute in ("reader", "dataset"):  # of timm's data sets, and of torch's Subset
        if hasattr(dataset, attribute):
            return names_of(getattr(dataset, attribute))
    return None


def check_same_classes(train: Sequence[str], split: str, names: Sequence[str]) -> None:
    """Check that a split numbers the same classes in the same way.

    Args:
        train: Classes of the train split, in the order of the labels.
        split: Name of the other split.
        names: Its classes, in the order of its labels.

    Raises:
        DataError: If they differ.
    """
    if tuple(names) == tuple(train):
        return
    at = next(
        (n for n, (a, b) in enumerate(zip(train, names, strict=False)) if a != b),
        min(len(train), len(names)),
    )
    here, there = (some[at] if at < len(some) else "no class" for some in (names, train))
    raise DataError(
        f"The {split} split numbers its classes otherwise than the train split: label {at} is "
        f"{here} there, and {there} in train. Labels must mean the same in all splits: give every "
        "split one list of classes, of the networks' training."
    )


def shared_classes(
    train: Sequence[str], split: str, names: Sequence[str], *, mapped: bool
) -> tuple[str, ...]:
    """How a split's own classes are named in the list that all splits share.

    Args:
        train: Classes of the train split, in the order of the labels.
        split: Name of the other split.
        names: Its own classes, in the order of its own labels.
        mapped: Whether a ``class_map`` of its own says that order.

    Returns:
        The name in ``train`` of each of its classes.

    Raises:
        DataError: If one is no class of the train split.
    """
    numbers = {str(label) for label in range(len(train))}
    numbered = set(names) == numbers and not set(names) & set(train)
    if len(names) == len(train) and (mapped or numbered):
        # other names of the same labels: said by the map, or folders named by the labels
        if set(names) == set(train):
            check_same_classes(train, split, names)
        if not mapped:
            console.print(f"The {split} split: its folders are numbers, taken as the labels.")
            return tuple(train[int(name)] for name in names)
        return tuple(train)
    extra = [name for name in names if name not in set(train)]
    if extra:
        raise DataError(
            f"The {split} split has {len(extra)} classes that the train split has not: "
            f"{_listed(extra)} (train has {_listed(train)}). Labels are places in the train "
            f"split's list; add the missing ones there, or {_MAP}."
        )
    _say_absent(split, [name for name in train if name not in set(names)], len(train))
    return tuple(names)


def _say_absent(split: str, absent: Sequence[str], count: int) -> None:
    if absent:
        console.print(
            f"The {split} split has no images of {len(absent)} of {count} classes: "
            f"{_listed(absent)}.",
            highlight=False,
        )


def _files_of_folder(root: Path) -> Iterator[tuple[str, str]]:
    """Every file, and every folder with an empty name, as (folder in the root, name)."""
    for folder, _, names in os.walk(root, followlinks=True):
        inside = Path(folder).relative_to(root).as_posix()
        inside = "" if inside == "." else inside
        yield inside, ""
        for name in names:
            yield inside, name


def _files_of_tar(root: Path) -> Iterator[tuple[str, str]]:
    """The same of a tar; what lies in a tar within it is in a folder of that one's name."""
    with tarfile.open(root) as tar:
        yield from _members(tar, "")


def _members(tar: tarfile.TarFile, above: str) -> Iterator[tuple[str, str]]:
    for member in tar:
        path = os.path.join(above, os.path.normpath(member.path)).removesuffix("/.")
        folder, name = os.path.split(path)
        if member.isdir():
            yield "" if path == "." else path, ""
        elif member.isfile() and name.endswith(".tar"):
            with tarfile.open(fileobj=tar.extractfile(member)) as inner:
                yield from _members(inner, os.path.join(above, name.removesuffix(".tar")))
        elif member.isfile():
            yield folder, name


def _is_tar(root: Path) -> bool:
    return root.is_file() and root.suffix == ".tar"


def _inside(folder: str, outer: str) -> bool:
    return folder == outer or folder.startswith(f"{outer}/")


def _leaf(folder: str) -> str:
    return folder.rsplit("/", 1)[-1]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED])}{more}"
