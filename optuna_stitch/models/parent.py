"""Parents: trained networks by name, or modules of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from optuna_stitch.data.view import View, view_of
from optuna_stitch.models.checkpoint import load_weights
from optuna_stitch.models.graph import NetworkGraph, capture_graph
from optuna_stitch.models.zoo import (
    Source,
    create_module,
    own_view,
    random_head,
    source_of,
)
from optuna_stitch.utils.progress import console


@dataclass
class Parent:
    """A trained network, frozen, with what is needed to make its architecture again.

    Args:
        name: timm's name, ``torchvision/<name>``, the path of an exported program, or the user's
            own name for a module.
        module: The network, in eval mode.
        view: How it sees images.
        model_args: Arguments that its architecture was made with.
        source: Where the architecture comes from.
        output: Key of the output that counts, where the network returns a dictionary.

    Example:
        >>> parent = st.load_parent("test_resnet", num_classes=10, input_size=32)
        >>> parent.name, parent.view.input_size, parent.module.training
        ('test_resnet', (3, 32, 32), False)
    """

    name: str
    module: nn.Module
    view: View
    model_args: dict[str, Any] = field(default_factory=dict)
    source: Source = "timm"
    output: str | None = None

    def __post_init__(self) -> None:
        self.module.eval().requires_grad_(False)

    def graph(self) -> NetworkGraph:
        """Capture the network.

        Raises:
            CaptureError: If it cannot be captured.
        """
        return capture_graph(self.module, self.view.input_size, self.name, output=self.output)


def load_parent(
    network: str | nn.Module,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    model_args: Mapping[str, Any] | None = None,
    input_size: int | tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    interpolation: str | None = None,
    crop_pct: float | None = None,
    view: View | None = None,
    output: str | None = None,
    name: str | None = None,
) -> Parent:
    """Load a network by its name, or wrap a module of your own.

    Args:
        network: A name in timm's zoo, ``torchvision/<name>``, the path of a program saved by
            ``torch.export.save`` (``.pt2``), or a module.
        pretrained: Whether the zoo fetches the weights that the name stands for.
        checkpoint: A file of weights: ``.safetensors``, or a ``state_dict`` saved by torch.
        num_classes: Number of classes, where it differs from what the name stands for.
        model_args: Further arguments for the architecture.
        input_size: Side of the square input in pixels, or its shape (C, H, W). Where it is not
            given, what the network was trained with; likewise for the next four.
        mean: Mean by channel, of pixels in [0, 1].
        std: Standard deviation by channel, of pixels in [0, 1].
        interpolation: timm's name of the resampling filter.
        crop_pct: Share of the resized image's side that the crop keeps.
        view: Instead of the last five, all of them: another parent's, say.
        output: Key of the output that counts, where the network returns a dictionary
            (torchvision's segmentation networks: ``out``, which is the default there).
        name: Name for a module of your own; that of its class, if None.

    Returns:
        The parent, frozen and in eval mode.

    Raises:
        UnknownNetworkError: If there is no network of that name, or it does not take the
            arguments.
        CheckpointError: If weights are missing, broken, or fit another architecture.

    Example:
        >>> st.load_parent("test_vit", num_classes=10).view.input_size
        (3, 160, 160)
        >>> mine = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten())
        >>> st.load_parent(mine, input_size=32, name="mine").view.input_size
        (3, 32, 32)
    """
    arguments = dict(model_args or {})
    source: Source
    if isinstance(network, nn.Module):
        module, source = network, "module"
        name = name or type(network).__name__
    else:
        if num_classes is not None:
            arguments["num_classes"] = num_classes
        other = random_head(network, arguments) if pretrained and checkpoint is None else None
        if other is not None:
            console.print(f"{other} Train it before you stitch.", highlight=False)
        module = create_module(network, arguments, pretrained=pretrained)
        source, name = source_of(network), network
    if checkpoint is not None:
        load_weights(module, Path(checkpoint), name)
    if input_size is None:
        input_size = arguments.get("img_size")
    if isinstance(input_size, int):
        input_size = (int(arguments.get("in_chans", 3)), input_size, input_size)
    fields = {
        "input_size": input_size,
        "mean": mean,
        "std": std,
        "interpolation": interpolation,
        "crop_pct": crop_pct,
    }
    if view is None:
        view = (
            view_of(module, **fields) if source == "module" else own_view(name, module, **fields)
        )
    if source == "torchvision" and "segmentation" in type(module).__module__:
        output = output or "out"
    return Parent(name, module, view, arguments, source, output)
