"""Load trained networks by name: what becomes a parent."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from optuna_stitch.errors import CheckpointError, UnknownNetworkError
from optuna_stitch.networks.graph import NetworkGraph, capture_graph
from optuna_stitch.networks.view import View, view_of


@dataclass
class Parent:
    """A trained network, frozen, with what is needed to make its architecture again.

    Args:
        name: timm's name, or what the user calls their own module.
        module: The network, in eval mode.
        view: How it sees images.
        model_args: Arguments its architecture was made with.
        source: ``timm`` for networks that a name brings back, ``module`` for a user's own.
    """

    name: str
    module: nn.Module
    view: View
    model_args: dict[str, Any] = field(default_factory=dict)
    source: str = "timm"

    def __post_init__(self) -> None:
        self.module.eval().requires_grad_(False)

    def graph(self) -> NetworkGraph:
        """Capture the network.

        Raises:
            CaptureError: If it cannot be captured.
        """
        return capture_graph(self.module, self.view.input_size, self.name)


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
    name: str | None = None,
) -> Parent:
    """Load a network by timm's name, or wrap a module of your own.

    Args:
        network: A name in timm's zoo, or a module.
        pretrained: Whether timm fetches the weights that the name stands for.
        checkpoint: A file of weights: ``.safetensors``, or a ``state_dict`` saved by torch.
        num_classes: Number of classes, where it differs from what the name stands for.
        model_args: Further arguments for ``timm.create_model``.
        input_size: Side of the square input in pixels, or its shape (C, H, W). What the network
            was trained with, if not given; so are the next four.
        mean: Mean by channel.
        std: Standard deviation by channel.
        interpolation: Name of the resampling filter.
        crop_pct: Share of the resized image that the crop keeps.
        view: All of the last five at once; another parent's, say.
        name: What to call a module of your own.

    Returns:
        The parent, frozen and in eval mode.

    Raises:
        UnknownNetworkError: If timm has no network of that name.
        CheckpointError: If weights are missing, broken, or fit another architecture.
    """
    arguments = dict(model_args or {})
    if isinstance(network, nn.Module):
        module, source = network, "module"
        name = name or type(network).__name__
    else:
        if num_classes is not None:
            arguments["num_classes"] = num_classes
        module, source = create_module(network, arguments, pretrained=pretrained), "timm"
        name = network
    if checkpoint is not None:
        load_weights(module, Path(checkpoint), name)
    if input_size is None:
        input_size = arguments.get("img_size")
    if isinstance(input_size, int):
        input_size = (int(arguments.get("in_chans", 3)), input_size, input_size)
    view = view or view_of(
        module,
        input_size=input_size,
        mean=mean,
        std=std,
        interpolation=interpolation,
        crop_pct=crop_pct,
    )
    return Parent(name, module, view, arguments, source)


def load_weights(module: nn.Module, checkpoint: Path, name: str) -> None:
    """Load a file of weights into a module, strictly, without unpickling objects.

    Args:
        module: The architecture.
        checkpoint: A ``.safetensors`` file, or one that ``torch.load(weights_only=True)`` reads.
        name: The network, for errors.

    Raises:
        CheckpointError: If the file is missing, broken, or fits another architecture.
    """
    if not checkpoint.is_file():
        raise CheckpointError(f"No checkpoint for {name} at {checkpoint}: there is no such file.")
    try:
        weights = _read_weights(checkpoint)
    except Exception as error:  # each reader has exceptions of its own for a broken file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(
            f"The checkpoint {checkpoint} for {name} cannot be read ({reason}). It must be a "
            "safetensors file or a plain state_dict; save it again, or fetch it anew."
        ) from error
    floats = {
        key: value.float() if value.is_floating_point() else value
        for key, value in weights.items()
    }
    try:
        module.load_state_dict(floats)
    except RuntimeError as error:
        details = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise CheckpointError(
            f"The checkpoint {checkpoint} does not fit {name}: {details} "
            "Check the name, `num_classes` and `model_args`."
        ) from error


def _read_weights(checkpoint: Path) -> dict[str, Tensor]:
    if checkpoint.suffix == ".safetensors":
        return load_file(checkpoint)
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)
    for key in ("state_dict_ema", "state_dict", "model"):
        if isinstance(weights, dict) and isinstance(weights.get(key), dict):
            weights = weights[key]
            break
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError("it holds no state_dict")
    return weights


def create_module(
    name: str, model_args: Mapping[str, Any], *, pretrained: bool = False
) -> nn.Module:
    """Make an architecture of timm's.

    Args:
        name: timm's name.
        model_args: Arguments for ``timm.create_model``.
        pretrained: Whether timm fetches the weights; otherwise they are random.

    Raises:
        UnknownNetworkError: If timm has no such network, or it does not take the arguments.
        CheckpointError: If the weights cannot be fetched.
    """
    if not timm.is_model(name):
        raise UnknownNetworkError(f"timm knows no network named {name!r}.{_nearest(name)}")
    try:
        module: nn.Module = timm.create_model(name, pretrained=pretrained, **model_args)
    except (TypeError, AssertionError) as error:
        raise UnknownNetworkError(
            f"{name} cannot be made with model_args {dict(model_args)}: {error}"
        ) from error
    except Exception as error:  # the hub's client and the network below it raise many kinds
        if not pretrained:
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(
            f"The pretrained weights of {name} could not be fetched ({type(error).__name__}: "
            f"{reason}). Check the network connection, or give a local file as `checkpoint`."
        ) from error
    return module


def _nearest(name: str) -> str:
    known = timm.list_models()
    near = difflib.get_close_matches(name.partition(".")[0], known, n=4, cutoff=0.5)
    return f" Did you mean {', '.join(near)}?" if near else " See timm.list_models('*')."
