"""Parents: trained networks by name, or modules of the user's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optuna_stitch.data.view import View, view_of
from optuna_stitch.models.adopt import adopt_module, first_channels, innermost, merge_adapters
from optuna_stitch.models.checkpoint import load_weights
from optuna_stitch.models.faithful import answer_of, check_capture, random_images, tolerance
from optuna_stitch.models.graph import NetworkGraph, capture_graph
from optuna_stitch.models.zoo import (
    Source,
    check_network,
    create_module,
    derived_arguments,
    own_view,
    random_head,
    resolve_network,
    source_of,
    torchvision_weights,
)
from optuna_stitch.utils.device import full, resolve_device
from optuna_stitch.utils.errors import ConfigError, UnknownNetworkError
from optuna_stitch.utils.memory import memory_for
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
        architecture: The name that makes it again with ``model_args``, where that is not `name`.
        fused: Whether it has the form that timm's ``reparameterize_model`` makes.
        class_names: What it tells apart, in the order of its labels, where that is known: from
            the data that `train_parent` trained it on, or as you set it.

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
    architecture: str = ""
    fused: bool = False
    class_names: tuple[str, ...] | None = None
    _checked: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.architecture = self.architecture or self.name
        self.module.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next((weight.device for weight in self.module.parameters()), torch.device("cpu"))

    def to(self, device: str | torch.device) -> Parent:
        """Move it, in place, as `torch.nn.Module.to` does.

        Args:
            device: Where to; see `resolve_device`.

        Raises:
            ConfigError: If there is no such device, or it is full.
        """
        wanted = resolve_device(device)
        with memory_for(ConfigError, full(wanted)):
            self.module.to(wanted)
        return self

    def graph(self) -> NetworkGraph:
        """Capture the network; the first time, compare both on a few random images.

        Raises:
            CaptureError: If it cannot be captured, or its graph would give other answers.
        """
        shape, device = self.view.input_size, self.device
        self.to("cpu")  # what is measured of a graph is the same for every device
        graph = capture_graph(self.module, shape, self.name, output=self.output)
        if not self._checked:
            check_capture(self.module, graph.module, shape, self.name, self.output)
            self._checked = True
        self.to(device)
        graph.to(device)
        return graph


def load_parent(
    network: str | Path | nn.Module,
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
        network: A name in timm's zoo (also ``local-dir:<folder>`` and ``hf-hub:<model>``),
            ``torchvision/<name>``, the path of a program saved by ``torch.export.save``
            (``.pt2``), or a module. A module stays as it is: its copy is taken, without what
            torch.compile, DataParallel or a moving average wrap around it, with adapters merged,
            in float32.
        pretrained: Whether the zoo fetches the weights that the name stands for.
        checkpoint: A file of weights: ``.safetensors``, or what torch saved, a ``state_dict`` or
            a dictionary with one. Where there are several, timm's choice.
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
        CaptureError: If a module is scripted, quantized, lazy, or else no graph can be made of it.
        ConfigError: If ``mean`` or ``std`` do not fit the number of channels.

    Example:
        >>> st.load_parent("test_vit", num_classes=10).view.input_size
        (3, 160, 160)
        >>> mine = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten())
        >>> st.load_parent(mine, input_size=32, name="mine").view.input_size
        (3, 32, 32)
    """
    arguments = dict(model_args or {})
    file = Path(checkpoint).expanduser() if checkpoint is not None else None
    weights: Any = None
    source: Source
    if isinstance(network, nn.Module):
        name = name or type(innermost(network)).__name__
        architecture, source, module = name, "module", adopt_module(network, name)
    elif isinstance(network, torch.export.ExportedProgram):
        raise UnknownNetworkError(
            "Save the exported program by `torch.export.save`, and give the path of its `.pt2`."
        )
    else:
        network = os.path.expanduser(str(network))
        if num_classes is not None:
            arguments["num_classes"] = num_classes
        check_network(network)
        name, source = network, source_of(network)
        architecture, arguments = resolve_network(network, arguments, file)
        if source == "torchvision":
            asked = arguments.pop("weights", None)
            weights = torchvision_weights(network, asked, file)
            pretrained = pretrained or (weights is not None and file is None)
        other = random_head(network, arguments) if pretrained and file is None else None
        if other is not None:
            console.print(f"{other} Train it before you stitch.", highlight=False)
        module = create_module(architecture, arguments, pretrained=pretrained, weights=weights)
        if source == "torchvision" and pretrained:
            arguments |= derived_arguments(module)
    loaded = load_weights(module, file, name) if file is not None else module
    channels = first_channels(loaded) if source == "module" else arguments.get("in_chans")
    if input_size is None:
        input_size = arguments.get("img_size")
    if isinstance(input_size, int):
        input_size = (channels or 3, input_size, input_size)
    elif input_size is not None and len(input_size) == 2:  # as timm's `img_size` may be
        input_size = (channels or 3, *input_size)
    fields: dict[str, Any] = {
        "channels": channels,
        "input_size": input_size,
        "mean": mean,
        "std": std,
        "interpolation": interpolation,
        "crop_pct": crop_pct,
    }
    if view is None and source == "module":
        view = view_of(loaded, **fields)
    elif view is None:
        view = own_view(name, loaded, weights=weights, **fields)
    if source == "module":
        loaded = merge_adapters(loaded, name, partial(_same, view))
    if source == "torchvision" and "segmentation" in type(loaded).__module__:
        output = output or "out"
    fused = loaded is not module and source != "module"
    return Parent(name, loaded, view, arguments, source, output, architecture, fused)


def _same(view: View, one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks give the same answers to random images."""
    images = random_images(2, view.input_size)
    with torch.no_grad():
        answers = [answer_of(module(images), None) for module in (one, other)]
    return tolerance(answers[0])(*answers)
