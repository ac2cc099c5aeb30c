"""One part of a data set: images are decoded once, then read in batches."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import weakref
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from optuna_stitch.data.decode import Decoded, decode
from optuna_stitch.data.view import View
from optuna_stitch.utils.device import free_memory, send
from optuna_stitch.utils.errors import DataError, ImageError, first_line
from optuna_stitch.utils.progress import console

# Pixels are kept in memory up to this many bytes per view, beyond it in a temporary file.
IN_MEMORY = 1 << 30

# Bytes of such a file that are written at once, where the system cannot reserve them.
_BLOCK = 1 << 24

# Pixels stay on an accelerator where they take at most this share of what is free there.
_DEVICE_SHARE = 1 / 8

# So many images of one class only have no labels.
_ENOUGH = 20

CPU = torch.device("cpu")

# The label of pixels that do not count.
_VOID = 255

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

    Images are decoded and transformed at their first use, ahead of it where there are loader
    processes. They are kept as 8-bit pixels, from which a network's input comes back bit for bit.

    Args:
        name: ``train``, ``val`` or ``test``.
        dataset: Where the images come from.
        indices: Indices in the data set of the images that belong to this split.
        source: What identifies the data set, for `fingerprint`.
        workers: How many loader processes decode images; 0 for none. If None, one for every core
            that this process may use where there are many images. Pixels are the same.
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
    workers: int | None = None
    _kept: dict[View, _Kept] = field(default_factory=dict, init=False, repr=False)
    _targets: Tensor = field(default_factory=lambda: torch.empty(0), init=False, repr=False)
    _said: set[str] = field(default_factory=set, init=False, repr=False)
    _remarks: dict[str, str] = field(default_factory=dict, init=False, repr=False)

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

        Raises:
            DataError: If that is none.
        """
        if images is not None and images < 1:
            raise DataError(f"{images} images cannot be taken; take 1 or more.")
        if images is None or images >= len(self):
            return self
        taken = replace(self.bare(), indices=self.indices[:images])
        taken._said = self._said
        return taken

    def bare(self) -> Split:
        """The same without what is decoded."""
        bare = replace(self)
        bare._said = self._said  # what was said once is not said again
        return bare

    @property
    def targets(self) -> Tensor:
        """Labels ``(len(self),)``, int64, in the split's order, where there is one per image."""
        if len(self._targets) != len(self):
            kept = next(iter(self._kept.values()), None)
            if kept is not None and kept.decoded.all():
                self._targets = torch.from_numpy(kept.labels.values)
            else:
                labels = [self.read(position)[1] for position in range(len(self))]
                self._targets = torch.tensor([int(label) for label in labels])  # type: ignore[arg-type]
        return self._targets

    def is_labelled(self, classes: int) -> bool:
        """Whether labels say something, where there is one per image.

        timm gives images without a label -1, and those of a folder without class folders all the
        same.

        Args:
            classes: How many there are.
        """
        seen = set(self.targets.tolist())
        return min(seen) >= 0 and not (len(seen) == 1 < classes and len(self) >= _ENOUGH)

    @property
    def labels_seen(self) -> tuple[int, int]:
        """The smallest and the largest label of the images that were read so far.

        Those of pixels that do not count are left out; (0, 0) where there is none.
        """
        bounds = [(0, 0), *(kept.bounds for kept in self._kept.values())]
        smallest, largest = zip(*bounds, strict=True)
        return min(smallest), max(largest)

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
        starts = range(shard[0] * batch_size, len(within), shard[1] * batch_size)
        batches = [within[start : start + batch_size] for start in starts]
        self._open(views)
        for kept in dict.fromkeys(self._kept[view] for view in views):
            kept.begin([position for batch in batches for position in batch])
        for positions in batches:
            yield self.pick(positions, views, device, masks_as)

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
        self._open(views)
        chosen: slice | NDArray[np.int64] = np.asarray(positions)
        if isinstance(positions, range) and positions.step == 1:  # needs no copy
            chosen = slice(positions.start, positions.stop)
        kept = [self._kept[view] for view in views]
        for some in dict.fromkeys(kept):
            some.need(chosen)
        images = tuple(
            view.normalize(some.pixels[view].on(device, chosen))
            for view, some in zip(views, kept, strict=True)
        )
        masks = self._kept[masks_as or views[0]].masks.get(masks_as or views[0])
        labels = kept[0].labels if masks is None else masks
        return Batch(images, labels.on(device, chosen).long())

    def _open(self, views: Sequence[View]) -> None:
        """Make room for the pixels of views that have none."""
        missing = [view for view in dict.fromkeys(views) if view not in self._kept]
        if missing:
            kept = _Kept(self, missing)
            self._kept.update(dict.fromkeys(missing, kept))

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
        if high > 255:
            self.remark(
                image.mode,
                f"The {self.name} split has images of 16 bits, such as {self.place_of(position)}; "
                f"those with values above 255 are scaled to 8 bits ({_WHITE:,} is white).",
            )
        scale = 255 / _WHITE if high > 255 else 1
        return Image.fromarray(np.rint(values * scale).astype(np.uint8))

    def remark(self, kind: str, text: str) -> None:
        """Say something of an image, once for its kind.

        A loader process leaves that to the one which it works for.

        Args:
            kind: Of which it is said.
            text: What to say.
        """
        if kind in self._said:
            return
        self._said.add(kind)
        if get_worker_info() is None:
            console.print(text, highlight=False)
        else:
            self._remarks[kind] = text

    def take_remarks(self) -> dict[str, str]:
        """What was left to be said, by kind."""
        left, self._remarks = self._remarks, {}
        return left


class _Kept:
    """Decoded images of a split, as some views see them, and their labels.

    Args:
        split: The images.
        views: How networks see them.
    """

    def __init__(self, split: Split, views: Sequence[View]) -> None:
        self._split = split
        self._views = list(views)
        count = len(split)
        self.decoded = np.zeros(count, bool)
        self.bounds = (0, 0)
        self.labels = _Column(np.zeros(count, np.int64), self.decoded)
        self.masks: dict[View, _Column] = {}
        self.pixels = {
            view: _Column(_array((count, *view.input_size)), self.decoded) for view in views
        }
        self._coming: Generator[Decoded, None, None] | None = None

    def begin(self, order: Sequence[int]) -> None:
        """Decode images that are still missing, in the order in which they will be needed.

        Args:
            order: Positions in the split.
        """
        left = [position for position in dict.fromkeys(order) if not self.decoded[position]]
        if left:
            self._end()
            # of the bare split: what it refers to must not keep this object
            self._coming = decode(self._split.bare(), self._views, left, self._split.workers)
            # Left to the garbage collector, the queues to the loader processes would end before
            # the processes are told to, and every one of them would be waited for.
            self._ended = weakref.finalize(self, self._coming.close)

    def need(self, chosen: slice | NDArray[np.int64]) -> None:
        """Return when some images are there.

        Args:
            chosen: Their positions.
        """
        while not self.decoded[chosen].all():
            item = None if self._coming is None else next(self._coming, None)
            if item is None:  # they are not among those that were announced
                positions = np.arange(len(self.decoded))
                self.begin([*positions[chosen].tolist(), *positions.tolist()])
            else:
                self._add(item)
                if self.decoded.all():
                    self._end()

    def _end(self) -> None:
        """End the loader processes."""
        if self._coming is not None:
            self._ended()
            self._coming = None

    def _add(self, item: Decoded) -> None:
        for kind, text in item.remarks.items():
            self._split.remark(kind, text)
        for view, pixels in zip(self._views, item.pixels, strict=True):
            self.pixels[view].values[item.position] = pixels
        for view, mask in zip(self._views, item.masks, strict=bool(item.masks)):
            if view not in self.masks:
                shape = (len(self.decoded), *view.input_size[1:])
                self.masks[view] = _Column(_array(shape), self.decoded)
            self.masks[view].values[item.position] = mask
        self.labels.values[item.position] = item.label
        said = item.masks[0][item.masks[0] != _VOID] if item.masks else np.array([item.label])
        if said.size:
            smallest, largest = self.bounds
            self.bounds = min(smallest, int(said.min())), max(largest, int(said.max()))
        self.decoded[item.position] = True


class _Column:
    """Values by image, on the processor and where they fit on devices.

    Args:
        values: ``(N, ...)``.
        decoded: Which of them are there, ``(N,)``.
    """

    def __init__(self, values: NDArray[Any], decoded: NDArray[np.bool_]) -> None:
        self.values = values
        self._decoded = decoded
        self._on: dict[torch.device, tuple[Tensor, NDArray[np.bool_]] | None] = {}

    def on(self, device: torch.device, chosen: slice | NDArray[np.int64]) -> Tensor:
        """Some of the values on a device.

        On an accelerator all stay there where they take a small share of its memory; otherwise
        every batch is sent from pinned memory, while the device computes.

        Args:
            device: Which.
            chosen: Positions of images that are decoded.
        """
        if device.type == "cpu":
            return torch.from_numpy(self.values[chosen])
        if device not in self._on:
            fits = self.values.nbytes <= _DEVICE_SHARE * (free_memory(device) or 0)
            shell = torch.from_numpy(self.values)
            self._on[device] = (
                (torch.empty_like(shell, device=device), np.zeros(len(self.values), bool))
                if fits
                else None
            )
        held = self._on[device]
        if held is None:
            return send(torch.from_numpy(np.ascontiguousarray(self.values[chosen])), device)
        values, sent = held
        new = np.flatnonzero(self._decoded & ~sent)
        if len(new):
            some = send(torch.from_numpy(self.values[new]), device)
            values.index_copy_(0, send(torch.from_numpy(new), device), some)
            sent[new] = True
        if isinstance(chosen, slice):
            return values[chosen]
        return values.index_select(0, send(torch.from_numpy(chosen), device))


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" if text.startswith("image ") else text


def _array(shape: tuple[int, ...]) -> NDArray[Any]:
    """An empty array of bytes: in memory, or in a file that vanishes with the process."""
    size = math.prod(shape)
    if size <= IN_MEMORY:
        return np.empty(shape, np.uint8)
    try:
        with tempfile.TemporaryFile() as file:
            # a mapped file without blocks of its own would kill the process on a full disk
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # as on macOS
                for start in range(0, size, _BLOCK):
                    file.write(bytes(min(_BLOCK, size - start)))
                file.flush()
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        raise DataError(
            f"There is no room for {size / 2**30:.1f} GiB of decoded images in "
            f"{tempfile.gettempdir()}: {error}. Take fewer `images`, or name a folder with more "
            "room in $TMPDIR."
        ) from error
