"""How a network sees images: size, crop and normalization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import timm.data
import torch
from PIL import Image
from torch import Tensor, nn

from optuna_stitch.utils.device import send
from optuna_stitch.utils.errors import ConfigError
from optuna_stitch.utils.progress import console

# PIL's names of colour modes, by the number of channels.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

# timm's names of filters.
_INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming", "random")


@dataclass(frozen=True)
class View:
    """What turns a decoded image into a network's input; fields as in timm's ``pretrained_cfg``.

    Args:
        input_size: Shape (C, H, W) in pixels; C = 1 means greyscale, 3 means RGB, 4 means RGBA.
        mean: Mean by channel, of pixels in [0, 1]; where all are the same, one is enough.
        std: Standard deviation by channel, of pixels in [0, 1]; likewise.
        interpolation: timm's name of the resampling filter.
        crop_pct: Share of the resized image's side that the crop keeps.
        crop_mode: timm's name of the crop.

    Raises:
        ConfigError: If images have no such number of channels, or ``mean`` or ``std`` another, or
            there is no such filter.

    Example:
        >>> view = st.View((3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> st.load_parent("test_resnet", view=view).view.input_size
        (3, 32, 32)
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        channels = self.input_size[0]
        if channels not in _MODES:
            raise ConfigError(
                f"An image has 1 (grey), 3 (RGB) or 4 (RGBA) channels, not {channels} as in "
                f"`input_size` {tuple(self.input_size)}."
            )
        if self.interpolation not in _INTERPOLATIONS:
            raise ConfigError(
                f"There is no `interpolation` {self.interpolation!r}; choose one of "
                f"{', '.join(_INTERPOLATIONS)}."
            )
        for name in ("mean", "std"):
            values = tuple(getattr(self, name))
            if len(set(values)) == 1:
                values = values[:1] * channels
            if len(values) != channels:
                raise ConfigError(
                    f"`{name}` has {len(values)} numbers, {values}, for images of {channels} "
                    f"channel{'s' if channels > 1 else ''}. Give {channels}, as the network was "
                    "trained with."
                )
            object.__setattr__(self, name, values)

    def transform(self) -> Any:
        """timm's evaluation transform: a PIL image in, a float32 tensor (C, H, W) out."""
        return timm.data.create_transform(**asdict(self), is_training=False)

    def transform_mask(self, mask: Image.Image) -> Tensor:
        """Resize a mask of classes to the network's input.

        Args:
            mask: A PIL image whose pixels are classes.

        Returns:
            ``(H, W)``, int64: the class of the nearest pixel.
        """
        height, width = self.input_size[1:]
        resized = mask.resize((width, height), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(resized, dtype=np.int64))

    def pixels(self, images: Tensor) -> Tensor:
        """The 8-bit pixels that a network's input was made from.

        Args:
            images: ``(..., C, H, W)``, normalized, float32.

        Returns:
            ``(..., C, H, W)``, uint8.
        """
        mean, std = self._affine(images.device)
        return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def normalize(self, pixels: Tensor) -> Tensor:
        """The network's input, bit for bit as `transform` makes it: the inverse of `pixels`.

        Args:
            pixels: ``(..., C, H, W)``, uint8.

        Returns:
            ``(..., C, H, W)``, normalized, float32.
        """
        mean, std = self._affine(pixels.device)
        return pixels.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std)

    def _affine(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, std = (
            send(torch.tensor(values), device)[:, None, None] for values in (self.mean, self.std)
        )
        return mean, std

    @property
    def mode(self) -> str:
        """PIL's name of the input's colour mode."""
        return _MODES[self.input_size[0]]


def view_of(module: nn.Module, *, channels: int | None = None, **overrides: Any) -> View:
    """Ask a timm network how it sees images.

    Args:
        module: A network; where it has no ``pretrained_cfg``, timm's defaults hold.
        channels: Number of channels, where ``input_size`` is not given.
        **overrides: Fields of `View` to use instead of what the network says.
    """
    known = timm.data.resolve_model_data_config(module)
    if channels is not None:
        known["input_size"] = (channels, *known["input_size"][1:])
    given = {name: value for name, value in overrides.items() if value is not None}
    fields = {**known, **given}
    grey = {
        name: (round(sum(fields[name]) / len(fields[name]), 3),)
        for name in ("mean", "std")
        if fields["input_size"][0] == 1 and len(set(fields[name])) > 1 and name not in given
    }
    if grey:
        text = ", ".join(f"{name} {values[0]}" for name, values in grey.items())
        console.print(f"A network sees grey images with {text}: timm's for RGB, averaged.")
    return make_view({**fields, **grey})


def make_view(fields: Mapping[str, Any]) -> View:
    """A view from its fields by name.

    Args:
        fields: As JSON or timm hold them; names that are no fields of `View` are ignored.
    """
    wanted = {name: fields[name] for name in View.__dataclass_fields__ if name in fields}
    for name in ("input_size", "mean", "std"):
        if name in wanted:
            wanted[name] = tuple(wanted[name])
    return View(**wanted)
