"""Data of two jobs: what each parent is judged on, and all images together to fit on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations

from PIL import Image

from optuna_stitch.data.load import SPLITS, Data
from optuna_stitch.data.splits import Split
from optuna_stitch.data.view import View
from optuna_stitch.utils.errors import DataError

# `a` or `b`: of two jobs there are two parents.
Side = str

# PIL's modes that say how opaque a pixel is.
_OPAQUE = ("RGBA", "LA", "PA", "La", "RGBa")


@dataclass(frozen=True)
class SplitPair:
    """The same split of both jobs' data.

    Args:
        a: What the answers of parent a are judged on.
        b: What those of parent b are.

    Example:
        >>> pair = st.DataPair(data, data).val
        >>> len(pair.a), len(pair.together)  # the same images, each once
        (200, 200)
    """

    a: Split
    b: Split

    @property
    def name(self) -> str:
        """``train``, ``val`` or ``test``."""
        return self.a.name

    def of(self, side: Side) -> Split:
        """The split of one job.

        Args:
            side: Whose.
        """
        return self.a if side == "a" else self.b

    def take(self, images: int | None) -> SplitPair:
        """The first images of both.

        Args:
            images: Their number of each; all, if None or more than there are.
        """
        return SplitPair(self.a.take(images), self.b.take(images))

    @cached_property
    def together(self) -> Split:
        """The images of both, each once and in turn, without labels."""
        places: dict[object, tuple[Split, int]] = {}
        for position in range(max(len(self.a), len(self.b))):
            for split in (self.a, self.b):
                if position < len(split):
                    places.setdefault(split.key_of(position), (split, position))
        source = f"images of {self.a.fingerprint} and {self.b.fingerprint}"
        return Split(self.name, _Unlabelled(list(places.values())), range(len(places)), source)

    def check_views(self, views: Mapping[Side, View]) -> None:
        """Check that both parents can take the images of both jobs.

        Args:
            views: How each parent sees images.

        Raises:
            DataError: If one wants to know how opaque pixels are, which images do not say.
        """
        for side, view in views.items():
            if view.mode != "RGBA":
                continue
            for task in ("a", "b"):
                split = self.of(task)
                image, _ = split.read(0)
                if image.mode not in _OPAQUE:
                    raise DataError(
                        f"Parent {side} sees images of 4 channels (RGBA), but those of {task}'s "
                        f"{split.name} split, such as {split.place_of(0)}, are {image.mode}. "
                        "Networks that answer both questions show every image to both parents: "
                        "give images with 4 channels, or another parent."
                    )


class _Unlabelled:
    """Images of several splits, without labels.

    Args:
        places: Which images: a split, and a position in it.
    """

    def __init__(self, places: list[tuple[Split, int]]) -> None:
        self._places = places

    def filename(self, index: int) -> str:
        """Where an image comes from, for people."""
        split, position = self._places[index]
        return split.place_of(position)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        split, position = self._places[index]
        return split.dataset[split.indices[position]][0], 0


@dataclass(frozen=True)
class DataPair:
    """The data of parents with two jobs: three splits for each.

    Both may be of the same images with two labels each, or of different images. What one job holds
    back for validation or for the test, the other may not have in another split.

    Args:
        a: What parent a answers.
        b: What parent b answers.

    Raises:
        DataError: If an image is in different splits of the two.

    Example:
        >>> splits = {"train": {"images": 300}, "val": {"images": 200}}
        >>> loops = st.load_data("sklearn/digits", column="loop", **splits)
        >>> pair = st.DataPair(data, loops)
        >>> pair.a.class_names[:3], pair.b.class_names
        (('0', '1', '2'), ('no loop', 'loop'))
        >>> len(pair.train.together)
        300
    """

    a: Data
    b: Data

    def __post_init__(self) -> None:
        if self.a is self.b:
            return
        keys = {
            (side, name): {split.key_of(position): position for position in range(len(split))}
            for side in ("a", "b")
            for name in SPLITS
            for split in [getattr(self.of(side), name)]
        }
        for one, other in permutations(SPLITS, 2):
            both = keys["a", one].keys() & keys["b", other].keys()
            if both:
                split: Split = getattr(self.a, one)
                place = split.place_of(keys["a", one][min(both, key=str)])
                raise DataError(
                    f"{len(both)} images are in a's {one} split and in b's {other} split, such as "
                    f"{place}. Networks that answer both questions would be judged on images that "
                    "they were made with. Give both jobs the same `seed` and numbers of `images`, "
                    "or splits of different images."
                )

    def of(self, side: Side) -> Data:
        """The data of one job.

        Args:
            side: Whose.
        """
        return self.a if side == "a" else self.b

    @cached_property
    def train(self) -> SplitPair:
        """For training parents and fitting stitches."""
        return SplitPair(self.a.train, self.b.train)

    @cached_property
    def val(self) -> SplitPair:
        """For the search."""
        return SplitPair(self.a.val, self.b.val)

    @cached_property
    def test(self) -> SplitPair:
        """For the report."""
        return SplitPair(self.a.test, self.b.test)
