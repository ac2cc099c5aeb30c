"""One part of a data set: images are decoded once, then read in batches."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from optuna_stitch.data.view import View
from optuna_stitch.utils.device import free_memory
from optuna_stitch.utils.errors import DataError, ImageError, first_line
from optuna_stitch.utils.progress import console

# Pixels are kept in memory up to this many bytes per view, beyond it in a temporary file.
IN_MEMORY = 1 << 30

# Pixels stay on an accelerator where they take at most this share of what is free there.
_DEVICE_SHARE = 1 / 4

CPU = torch.device("cpu")

# PIL's modes that it turns into grey and RGB; those of more than 8 bits, and the largest of 16.
_PLAIN = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_WHITE = 65535


class ImageDataset(Protocol):
    """What a data set must offer: a length, and (PIL image, label) by index.

    For segmentation the label is a PIL image of classes, 255 where pixels do not count.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int | Image.Image]: ...


@dataclass(frozen=True)
class Batch:
    """A few images, as every parent sees them.

    Args:
        images: One tensor ``(N, C, H, W)`` per view, normalized, float32.
        targets: Labels ``(N,)``, or ``(N, H, W)`` for segmentation, int64.
    """

    images: tuple[Tensor, ...]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)


@dataclass
class Split:
    """Part of a data set, in a fixed order.

    Images are decoded and transformed at their first use. They are kept as 8-bit pixels, from
    which a network's input comes back bit for bit.

    Args:
        name: ``train``, ``val`` or ``test``.
        dataset: Where the images come from.
        indices: Indices in the data set of the images that belong to this split.
        source: What identifies the data set, for `fingerprint`.
        origin: What identifies its images, whatever their labels; the source, if empty.

    Example:
        >>> few = data.val.take(50)
        >>> len(few), few.targets.shape
        (50, torch.Size([50]))
        >>> batch = next(few.batches([st.View((3, 32, 32))], batch_size=8))
        >>> batch.images[0].shape
        torch.Size([8, 3, 32, 32])
    """

    name: str
    dataset: ImageDataset
    indices: Sequence[int]
    source: str
    origin: str = ""
    _pixels: dict[View, NDArray[np.uint8]] = field(default_factory=dict, init=False, repr=False)
    _masks: dict[View, NDArray[np.uint8]] = field(default_factory=dict, init=False, repr=False)
    _on_device: dict[tuple[View, torch.device], Tensor] = field(
        default_factory=dict, init=False, repr=False
    )
    _targets: Tensor = field(default_factory=lambda: torch.empty(0), init=False, repr=False)
    _said: set[str] = field(default_factory=set, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def fingerprint(self) -> str:
        """A hash of the data set and of which of its images these are."""
        text = json.dumps([self.source, list(map(int, self.indices))])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def take(self, images: int | None) -> Split:
        """The first images of this split.

        Args:
            images: Their number; all, if None or more than there are.
        """
        if images is None or images >= len(self):
            return self
        few = self.indices[:images]
        taken = Split(self.name, self.dataset, few, self.source, self.origin)
        taken._said = self._said
        return taken

    @property
    def targets(self) -> Tensor:
        """Labels ``(len(self),)``, int64, in the split's order, where there is one per image."""
        if len(self._targets) != len(self):
            labels = [self.read(position)[1] for position in range(len(self))]
            self._targets = torch.tensor([int(label) for label in labels])  # type: ignore[arg-type]
        return self._targets

    def batches(
        self,
        views: Sequence[View],
        batch_size: int = 100,
        *,
        shard: tuple[int, int] = (0, 1),
        within: Sequence[int] | None = None,
        device: torch.device = CPU,
        masks_as: View | None = None,
    ) -> Iterator[Batch]:
        """Go through the split once, in order.

        Args:
            views: How networks see the images; each image is decoded once, and transformed once
                per view.
            batch_size: Number of images in a batch; the last may have fewer.
            shard: Rank r and world size w: only every w-th batch, from the r-th.
            within: Positions to go through, instead of all.
            device: Where the batches are to be.
            masks_as: In whose size masks are wanted, where pixels are labelled; the first of
                the views, if None.

        Yields:
            Batches with one tensor per view.

        Raises:
            DataError: If an image does not decode, or there is no room for the pixels.
        """
        within = range(len(self)) if within is None else within
        for start in range(shard[0] * batch_size, len(within), shard[1] * batch_size):
            yield self.pick(within[start : start + batch_size], views, device, masks_as)

    def pick(
        self,
        positions: Sequence[int],
        views: Sequence[View],
        device: torch.device = CPU,
        masks_as: View | None = None,
    ) -> Batch:
        """Some of the images, as a batch.

        Args:
            positions: Their positions in the split.
            views: How networks see them.
            device: Where the batch is to be.
            masks_as: As for `batches`.

        Raises:
            DataError: If an image does not decode, or there is no room for the pixels.
        """
        self._decode(views)
        chosen: slice | NDArray[np.int64] = np.asarray(positions)
        if isinstance(positions, range) and positions.step == 1:  # needs no copy
            chosen = slice(positions.start, positions.stop)
        images = tuple(view.normalize(self._read(view, chosen, device)) for view in views)
        masks = self._masks.get(masks_as or views[0])
        if masks is None:
            return Batch(images, self._targets[chosen].to(device))
        return Batch(images, torch.from_numpy(masks[chosen]).to(device).long())

    def _read(self, view: View, chosen: slice | NDArray[np.int64], device: torch.device) -> Tensor:
        """Pixels of some images on a device, 8 bits a channel.

        On an accelerator the whole split stays there where it takes a small share of its memory;
        otherwise every batch is sent from pinned memory, while the device computes.
        """
        pixels = self._pixels[view]
        if device.type == "cpu":
            return torch.from_numpy(pixels[chosen])
        kept = self._on_device.get((view, device))
        if kept is None and pixels.nbytes <= _DEVICE_SHARE * (free_memory(device) or 0):
            kept = self._on_device[view, device] = torch.from_numpy(pixels).to(device)
        if kept is not None:
            if isinstance(chosen, slice):
                return kept[chosen]
            return kept[torch.from_numpy(chosen).to(device)]
        some = torch.from_numpy(np.ascontiguousarray(pixels[chosen]))
        if device.type == "cuda":
            some = some.pin_memory()
        return some.to(device, non_blocking=True)

    def read(self, position: int) -> tuple[Image.Image, int | Image.Image]:
        """One image as it is stored, in at most 8 bits a channel, and its label.

        Args:
            position: Its position in the split.

        Raises:
            ImageError: If it does not decode.
            DataError: If it or its label is of a wrong kind.
        """
        try:
            image, target = self.dataset[self.indices[position]]
            for part in (image, target):
                if isinstance(part, Image.Image):
                    part.load()  # some data sets leave that for later
            if isinstance(image, Image.Image) and image.mode not in (*_PLAIN, *_DEEP):
                image = image.convert("RGB")  # as far as PIL can
        except DataError:
            raise
        except Exception as error:  # decoders raise many kinds, SyntaxError among them
            raise ImageError(
                f"{_capital(self.place_of(position))} of the {self.name} split ({self.source}) "
                f"cannot be read: {first_line(error)}. Repair it, or leave such images out with "
                "`unreadable: skip`."
            ) from error
        if not isinstance(image, Image.Image):
            raise DataError(
                f"The {self.name} split's data set gives {type(image).__name__} for an image; it "
                "must give PIL images, without a transform."
            )
        return self._eight_bits(image, position), target

    def place_of(self, position: int) -> str:
        """Where an image comes from, for people.

        Args:
            position: Its position in the split.
        """
        index = self.indices[position]
        filename = getattr(self.dataset, "filename", None)
        samples = getattr(self.dataset, "samples", None)  # torchvision's folders
        if filename is not None:
            return str(filename(index))
        return f"image {index}" if samples is None else str(samples[index][0])

    def key_of(self, position: int) -> tuple[str, str]:
        """What tells an image from all others, whatever its label is here.

        Args:
            position: Its position in the split.
        """
        place = self.place_of(position)
        if os.sep in place:
            return "", place
        return self.origin or self.source, str(self.indices[position])

    def _eight_bits(self, image: Image.Image, position: int) -> Image.Image:
        """Scale an image of 16 bits, which PIL would cut off at 255: white, nearly everywhere.

        Values up to 255 are taken for 8 bits that somebody kept in 16, as PIL does.
        """
        if image.mode not in _DEEP:
            return image
        values = np.asarray(image)
        low, high = (float(bound) for bound in (values.min(), values.max()))
        if image.mode == "F" or low < 0 or high > _WHITE:
            raise ImageError(
                f"{_capital(self.place_of(position))} of the {self.name} split has values from "
                f"{low:g} to {high:g} (PIL's mode {image.mode}), of which nobody knows what is "
                "white. Save it with 8 or 16 bits a channel, or leave such images out with "
                "`unreadable: skip`."
            )
        if high > 255 and image.mode not in self._said:
            console.print(
                f"The {self.name} split has images of 16 bits, such as {self.place_of(position)}; "
                f"those with values above 255 are scaled to 8 bits ({_WHITE:,} is white).",
                highlight=False,
            )
            self._said.add(image.mode)
        scale = 255 / _WHITE if high > 255 else 1
        return Image.fromarray(np.rint(values * scale).astype(np.uint8))

    def _decode(self, views: Sequence[View]) -> None:
        """Decode and transform all images for the views that have no pixels yet."""
        missing = [view for view in dict.fromkeys(views) if view not in self._pixels]
        if not missing:
            return
        transforms = [view.transform() for view in missing]
        pixels = [_array((len(self), *view.input_size)) for view in missing]
        masks: list[NDArray[np.uint8]] = []
        labels: list[int] = []
        for position in range(len(self)):
            image, target = self.read(position)
            for place, (view, transform) in enumerate(zip(missing, transforms, strict=True)):
                seen = self._seen(image, view, transform, position)
                pixels[place][position] = view.pixels(seen).numpy()
                if isinstance(target, Image.Image):
                    if position == 0:
                        masks.append(_array((len(self), *view.input_size[1:])))
                    masks[place][position] = view.transform_mask(target).numpy()
            if not isinstance(target, Image.Image):
                labels.append(int(target))
        self._pixels.update(zip(missing, pixels, strict=True))
        if masks:
            self._masks.update(zip(missing, masks, strict=True))
        else:
            self._targets = torch.tensor(labels)

    def _seen(self, image: Image.Image, view: View, transform: Any, position: int) -> Tensor:
        """An image as a network sees it."""
        try:
            seen: Tensor = transform(image.convert(view.mode))
        except Exception as error:  # timm's transforms raise many kinds
            raise DataError(
                f"{_capital(self.place_of(position))} of the {self.name} split, {image.mode} of "
                f"{image.width} × {image.height} pixels, cannot be seen as {view.mode} of "
                f"{view.input_size[2]} × {view.input_size[1]}: {first_line(error)}."
            ) from error
        return seen


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" if text.startswith("image ") else text


def _array(shape: tuple[int, ...]) -> NDArray[Any]:
    """An empty array of bytes: in memory, or in a file that vanishes with the process."""
    if np.prod(shape) <= IN_MEMORY:
        return np.empty(shape, np.uint8)
    try:
        with tempfile.TemporaryFile() as file:
            # a mapped file without blocks of its own would kill the process on a full disk
            os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)))
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        raise DataError(
            f"There is no room for {np.prod(shape) / 2**30:.1f} GiB of decoded images in "
            f"{tempfile.gettempdir()}: {error}. Take fewer `images`, or name a folder with more "
            "room in $TMPDIR."
        ) from error
