"""Take a module of the user's own: unwrapped, copied, in float32, or refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from optuna_stitch.utils.errors import CaptureError, first_line
from optuna_stitch.utils.progress import console

_WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel, ModelEmaV2, ModelEmaV3)


def adopt_module(module: nn.Module, name: str) -> nn.Module:
    """Copy a module, without what was wrapped around it for training.

    Args:
        module: The user's own, which stays as it is.
        name: What to call it.

    Returns:
        The copy: in float32, on the CPU, in eval mode.

    Raises:
        CaptureError: If no graph of it can be captured, by what it is made of.
    """
    while (inside := _inside(module)) is not None:
        if hooks := hooks_of(module):
            raise CaptureError(
                f"{name} has the hook {hooks[0]} on its {type(module).__name__}, which a graph "
                "cannot hold. Do in the network's own `forward` what the hook does."
            )
        module = inside
    for path, reason in _reasons(module):
        raise CaptureError(f"{f'{path} of {name}' if path else name} {reason}")
    # tensors that were computed from parameters (by weight_norm, say) cannot be copied as they are
    computed = {
        id(value): value.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        copied = copy.deepcopy(module, computed).eval()
    except Exception as error:  # whatever its attributes raise
        raise CaptureError(
            f"{name} cannot be copied ({first_line(error)}). Take off the attribute that holds "
            "something other than tensors and settings."
        ) from error
    for path, part in list(copied.named_modules()):
        if part.training and isinstance(part, (_BatchNorm, _DropoutNd)):
            raise CaptureError(
                f"{path} of {name} is in train mode even after `eval()`. A `train` method of its "
                "own must pass the mode on."
            )
        if path and (inside := _inside(part)) is not None:
            copied.set_submodule(path, inside)
    return _plain(copied, name)


def merge_adapters(
    module: nn.Module, name: str, same: Callable[[nn.Module, nn.Module], bool]
) -> nn.Module:
    """Merge adapters (of PEFT, say) into the weights that they adapt.

    Args:
        module: Any module; one with adapters has a method ``merge_and_unload``.
        name: What to call it.
        same: Whether two networks give the same answers.

    Returns:
        The merged network; the module itself, where there is nothing to merge.

    Raises:
        CaptureError: If the merged network is another one.
    """
    if not hasattr(module, "merge_and_unload"):
        return module
    try:
        copied: Any = copy.deepcopy(module)
        merged: nn.Module = copied.merge_and_unload().eval()
        exact = same(module, merged)
    except Exception as error:  # adapters raise what they like
        raise CaptureError(
            f"The adapters of {name} cannot be merged ({first_line(error)}). Merge them yourself, "
            "and give the network that results."
        ) from error
    if not exact:
        raise CaptureError(
            f"Merged with its adapters, {name} gives other answers. Give a network without "
            "adapters, or a module that computes what they do."
        )
    console.print(f"{name}: its adapters are merged into its weights.", markup=False)
    return merged


def innermost(module: nn.Module) -> nn.Module:
    """The network inside of whatever was wrapped around it.

    Args:
        module: Any module.
    """
    inside = _inside(module)
    return module if inside is None else innermost(inside)


def hooks_of(module: nn.Module) -> list[str]:
    """Names of the hooks that run around a module's forward.

    Args:
        module: Any module.
    """
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return [f"`{getattr(hook, '__qualname__', type(hook).__qualname__)}`" for hook in hooks]


def first_channels(module: nn.Module) -> int | None:
    """How many channels a network's first convolution reads, where these can be colours.

    Args:
        module: Any network.

    Returns:
        None if it has none, or reads anything else.
    """
    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    return first.in_channels if first is not None and first.in_channels in (1, 3, 4) else None


def _inside(module: nn.Module) -> nn.Module | None:
    """What a wrapper wraps; None if the module is no wrapper."""
    if isinstance(module, _WRAPPERS):
        inside: nn.Module = module.module
        return inside
    return dict(module.named_children()).get("_orig_mod")  # of torch.compile


def _reasons(module: nn.Module) -> Iterator[tuple[str, str]]:
    """What cannot become part of a graph: its path and the reason, with the way out."""
    for path, part in module.named_modules():
        kind = type(part)
        if isinstance(part, torch.jit.ScriptModule):
            yield (
                path,
                "is scripted or traced by torch.jit. Give the module that it was made from.",
            )
        elif "quantized" in kind.__module__ or kind.__module__.startswith("bitsandbytes"):
            yield path, f"is quantized ({kind.__name__}). Give the network in float32."
        elif "ao.quantization" in kind.__module__ or ".qat." in kind.__module__:
            yield (
                path,
                f"prepares a quantization ({kind.__name__}). Give the network in float32.",
            )
        elif kind.__name__ == "FullyShardedDataParallel":
            yield path, "is sharded over processes. Give the whole network, loaded in one process."
    for path, tensor in chain(module.named_parameters(), module.named_buffers()):
        if is_lazy(tensor):
            yield path, "has no shape yet. Run the module once on a batch of images, or train it."
        elif tensor.is_meta:
            yield path, "is on the meta device, without numbers. Load the weights first."
        elif type(tensor.data) is not Tensor:
            yield path, f"is a {type(tensor.data).__name__}. Give the network with plain tensors."
        elif tensor.is_quantized or "float8" in str(tensor.dtype) or _is_coded(tensor):
            yield path, f"is quantized ({tensor.dtype}). Give the network in float32."


def _is_coded(tensor: Tensor) -> bool:
    """Whether these are weights in a code of whole numbers."""
    return isinstance(tensor, nn.Parameter) and not (
        tensor.is_floating_point() or tensor.is_complex()
    )


def _plain(module: nn.Module, name: str) -> nn.Module:
    """A module in float32 and on the CPU, as images are; said where it was not."""
    tensors = [*module.parameters(), *module.buffers()]
    types = {t.dtype for t in tensors if t.is_floating_point()} - {torch.float32}
    devices = {t.device.type for t in tensors} - {"cpu"}
    changes: list[Any] = [*types, *devices]
    if not changes:
        return module
    console.print(
        f"{name} has tensors in {', '.join(sorted(map(str, changes)))}: a copy in float32 on the "
        "CPU is taken.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return module.float().cpu()
