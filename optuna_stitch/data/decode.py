"""Decode images ahead of their use, in loader processes where that pays."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from optuna_stitch.data.view import View
from optuna_stitch.utils.errors import DataError, first_line
from optuna_stitch.utils.machine import usable_cores

if TYPE_CHECKING:
    from optuna_stitch.data.splits import Split

# Fewer images are decoded before the processes have started.
_FEW = 512

# More processes decode faster than most disks and devices take images.
_MOST_PROCESSES = 8

_CHUNK = 8  # images that a process hands over at once


@dataclass(frozen=True)
class Decoded:
    """One image as networks see it.

    Args:
        position: In the split.
        pixels: By view, ``(C, H, W)``.
        masks: Classes by view, ``(H, W)``, where pixels are labelled.
        label: Of the image, where it has one.
        remarks: What is to be said once of such images, by their kind.
    """

    position: int
    pixels: list[NDArray[np.uint8]]
    masks: list[NDArray[np.uint8]]
    label: int
    remarks: dict[str, str]


def loader_processes(images: int, wanted: int | None) -> int:
    """How many processes decode images; 0 for this one.

    Args:
        images: How many are to be decoded.
        wanted: As asked for. If None, one for every core that this process may use, up to eight;
            none for few images, on one core, and where processes start slowly.
    """
    if wanted is not None:
        return min(wanted, images)
    cores = usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(cores, _MOST_PROCESSES) if images >= _FEW and cores > 1 and _forks() else 0


def decode(
    split: Split, views: Sequence[View], order: Sequence[int], wanted: int | None
) -> Generator[Decoded, None, None]:
    """Decode images of a split in some order.

    With loader processes, some images ahead of the one that is asked for.

    Args:
        split: The images, without those that are decoded already: processes take it along.
        views: How networks see them.
        order: Their positions in the split.
        wanted: Number of loader processes, as for `loader_processes`.

    Raises:
        DataError: If an image does not decode, or the loader processes cannot do their work.
    """
    processes = loader_processes(len(order), wanted)
    if not processes:
        images = _Images(split, views, order)
        for place in range(len(order)):
            yield _checked(images[place])
        return
    try:
        loader = DataLoader(
            _Images(split, views, order),
            _CHUNK,
            num_workers=processes,
            collate_fn=list,
            prefetch_factor=4,
            multiprocessing_context="fork" if _forks() else None,
        )
        for chunk in loader:
            for item in chunk:
                yield _checked(item)
    except (RuntimeError, OSError) as error:
        why = _why_not(str(error))
        if why is None:
            raise
        raise DataError(
            f"The {processes} loader processes of the {split.name} split cannot decode images: "
            f"{why} ({first_line(error)}). Decode in one process with `data: {{workers: 0}}`, or "
            "take fewer `workers`."
        ) from error


class _Images(Dataset[Decoded | DataError]):
    """What loader processes read: images by place in an order.

    Args:
        split: The images.
        views: How networks see them.
        order: Their positions in the split.
    """

    def __init__(self, split: Split, views: Sequence[View], order: Sequence[int]) -> None:
        self._split = split
        self._views = views
        self._order = order
        self._transforms: list[Any] = [view.transform() for view in views]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, place: int) -> Decoded | DataError:
        position = int(self._order[place])
        try:
            image, target = self._split.read(position)
        except DataError as error:
            # raised where the image is wanted: what another process raises comes with a traceback
            return error
        pixels = []
        for view, transform in zip(self._views, self._transforms, strict=True):
            try:
                pixels.append(view.pixels(transform(image.convert(view.mode))).numpy())
            except Exception as error:  # timm's transforms raise many kinds
                return DataError(
                    f"{self._split.place_of(position)} of the {self._split.name} split, "
                    f"{image.mode} of {image.width} × {image.height} pixels, cannot be seen as "
                    f"{view.mode} of {view.input_size[2]} × {view.input_size[1]}: "
                    f"{first_line(error)}."
                )
        remarks = self._split.take_remarks()
        if isinstance(target, Image.Image):
            masks = [view.transform_mask(target).numpy().astype(np.uint8) for view in self._views]
            return Decoded(position, pixels, masks, 0, remarks)
        return Decoded(position, pixels, [], int(target), remarks)


def _checked(item: Decoded | DataError) -> Decoded:
    if isinstance(item, DataError):
        raise item
    return item


def _forks() -> bool:
    """Whether processes start as copies of this one: at once, and without an importable script."""
    return sys.platform == "linux"


def _why_not(said: str) -> str | None:
    """Why loader processes failed; None where it is not them."""
    if any(text in said for text in ("shared memory", "shm", "Bus error", "No space left")):
        return (
            "there is too little shared memory; a container has more with `--shm-size 2g` "
            "(docker), or an emptyDir of medium Memory at /dev/shm (Kubernetes)"
        )
    if "DataLoader worker" in said:
        return "one of them ended, as where the system kills processes for want of memory"
    return None
