"""Compare what was written with the network that it shall be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from optuna_stitch.data.pair import SplitPair
from optuna_stitch.data.splits import Split
from optuna_stitch.export.formats import FORMATS
from optuna_stitch.export.onnx_file import Answer
from optuna_stitch.export.targets import CALIBRATION
from optuna_stitch.export.trace import Traced
from optuna_stitch.stitching.subnetwork import CascadeModule
from optuna_stitch.utils.errors import ExportError

_OTHER = "Nothing was written; choose another format."

# On how many images the two are compared.
_IMAGES = 64


@dataclass(frozen=True)
class Images:
    """Images to compare on.

    Args:
        pixels: ``(N, C, H, W)`` by input.
        kind: What to call them.
    """

    pixels: Sequence[Tensor]
    kind: str

    def rows(self, start: int, stop: int) -> list[Tensor]:
        """Some of them, by input.

        Args:
            start: The first.
            stop: The one after the last.
        """
        return [pixels[start:stop] for pixels in self.pixels]


def images_of(traced: Traced, split: Split | SplitPair | None) -> Images:
    """The images to compare on.

    Args:
        traced: The network.
        split: Where to take them from; random ones, if None.
    """
    views = list(traced.views.values())
    count = min(_IMAGES, traced.subnetwork.supergraph.batch_size)
    if isinstance(split, SplitPair):
        split = split.take(count).together
    if split is not None:
        return Images(split.pick(range(min(count, len(split))), views).images, split.name)
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randn(count, *view.input_size, generator=generator) for view in views]
    return Images(pixels, "random")


def calibration_of(traced: Traced, split: Split | SplitPair) -> list[Tensor]:
    """Train images by which a format chooses its ranges, by input.

    Args:
        traced: The network.
        split: Where to take them from, evenly spread over it.
    """
    images = split.together if isinstance(split, SplitPair) else split
    chosen = torch.linspace(0, len(images) - 1, min(CALIBRATION, len(images))).long().tolist()
    return list(images.pick(chosen, list(traced.views.values())).images)


def check_format(name: str, folder: Path, traced: Traced, images: Images) -> None:
    """Compare what was written with the extracted module.

    One image alone and all together. Of a cascade the surest and the least sure one are alone.
    Of a format without a tolerance only the kind of its answers is compared; `prove` judges them.

    Args:
        name: Which format.
        folder: Where its files are.
        traced: What they shall be.
        images: The images.

    Raises:
        ExportError: If a logit differs by more than the format allows.
    """
    form = FORMATS[name]
    written, *singles = form.networks(folder).values()
    alone = [(place, place + 1) for place in _alone(traced, images)]
    rows = sorted({*alone, (0, len(images.pixels[0]))}, key=lambda row: row[1] - row[0])
    for start, stop in rows:
        given = images.rows(start, stop)
        for network in [written, *(singles if stop - start == 1 else [])]:
            if form.tolerance is None:
                _check_answers(name, network, traced, given)
                continue
            difference = _difference(network, traced, given, form.tolerance)
            if difference > form.tolerance:
                raise ExportError(
                    f"As {name} the network's logits differ from the extracted network's by up to "
                    f"{difference:.2g} on {stop - start} {images.kind} images; "
                    f"{form.tolerance:g} is allowed. {_OTHER}"
                )


@torch.no_grad()
def _check_answers(
    name: str, network: Callable[..., Answer], traced: Traced, given: Sequence[Tensor]
) -> None:
    """Raise where answers are of another kind than they shall be, or no finite numbers."""
    found, expected = network(*given), traced.module(*given)
    if not isinstance(found, dict):
        found, expected = {"": found}, {"": expected}
    for key, logits in expected.items():
        same = key in found and found[key].shape == logits.shape
        if not same or found[key].dtype != logits.dtype:
            raise ExportError(f"As {name} the network gives answers of another shape. {_OTHER}")
        if logits.isfinite().all() and not found[key].isfinite().all():
            raise ExportError(
                f"As {name} the network gives answers that are no finite numbers, as where values "
                f"are too large for 16 bits. {_OTHER}"
            )


@torch.no_grad()
def _alone(traced: Traced, images: Images) -> set[int]:
    """The places of the images that are looked at alone."""
    module = traced.module
    if not isinstance(module, CascadeModule):
        return {0}
    sure = module.exit.sure(module.first(*images.pixels)[0])
    return {int(sure.argmax()), int(sure.argmin())}


def _difference(
    network: Callable[..., Answer], traced: Traced, given: Sequence[Tensor], tolerance: float
) -> float:
    """The largest difference of a logit from the extracted module's.

    A cascade may have an image go on or not where a difference that is allowed decides it.
    """
    module = traced.module
    with torch.no_grad():
        found, expected = network(*given), module(*given)
    if isinstance(expected, dict) or isinstance(found, dict):
        if not isinstance(found, dict) or not isinstance(expected, dict):
            return math.inf
        if found.keys() != expected.keys():
            return math.inf
        return max(_largest(found[name], expected[name]) for name in expected)
    decides = isinstance(module, CascadeModule) and tolerance > 0
    if not decides or found.shape != expected.shape:
        return _largest(found, expected)
    assert isinstance(module, CascadeModule)
    near = _near(module, given, tolerance)
    with torch.no_grad():
        sides = [
            CascadeModule(module.first, module.rest, replace(module.exit, threshold=threshold))
            for threshold in (-math.inf, math.inf)
        ]
        either = [side(*given) for side in sides]
    differences = [_largest(found[~near], expected[~near])]
    differences += [
        min(_largest(found[[row]], answers[[row]]) for answers in either)
        for row in near.nonzero()[:, 0].tolist()
    ]
    return max(differences)


def _near(module: CascadeModule, given: Sequence[Tensor], tolerance: float) -> Tensor:
    """Which images are so near to the threshold that the tolerance may decide, ``(N,)`` bool."""
    with torch.no_grad():
        logits: Tensor = module.first(*given)[0]
    logits.requires_grad_()
    sure = module.exit.sure(logits)
    (slopes,) = torch.autograd.grad(sure.sum(), logits)
    reach = tolerance * slopes.abs().flatten(1).sum(dim=1)
    distance: Tensor = (sure.detach() - module.exit.threshold).abs()
    return distance <= reach


def _largest(found: Tensor, expected: Tensor) -> float:
    """The largest difference; infinite where one is no number and the other is."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return math.inf
    differing = (found != expected) & ~(found.isnan() & expected.isnan())
    differences = (found - expected)[differing].abs().nan_to_num(math.inf)
    return differences.amax().item() if len(differences) else 0.0
