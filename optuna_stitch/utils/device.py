"""Devices by name: the processor, or an accelerator that torch knows."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from optuna_stitch.utils.errors import ConfigError

# What may be asked for, besides a number behind it: ``cuda:1``.
KINDS = ("auto", "cpu", "cuda", "mps", "xpu")


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """The device that a name stands for, with its number where it is an accelerator.

    Args:
        name: ``auto`` for the accelerator that torch names, or the processor where there is none;
            ``cpu``, ``cuda`` (the first one), ``cuda:1``, ``mps`` or ``xpu``.

    Raises:
        ConfigError: If there is no such device, or torch was built without it.

    Example:
        >>> from optuna_stitch.utils.device import resolve_device
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if str(name) == "auto":
        if found is None:
            return torch.device("cpu")
        # of several processes that ``torchrun`` started, each has its own
        own = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device(found.type, own % torch.accelerator.device_count())
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"There is no device {str(name)!r}; choose one of {', '.join(KINDS)}, or cuda:1 for "
            "the second GPU."
        ) from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type not in KINDS:
        raise ConfigError(
            f"The device {str(name)!r} is not supported; choose one of {', '.join(KINDS)}."
        )
    if found is None or found.type != device.type:
        raise ConfigError(f"The device {str(name)!r} is not there: {_why_not(device.type)}")
    count = torch.accelerator.device_count()
    if device.index is not None and device.index >= count:
        raise ConfigError(
            f"The device {str(name)!r} is not there: this machine has {count} of them, "
            f"{device.type}:0 to {device.type}:{count - 1}."
        )
    return torch.device(device.type, device.index or 0)


def device_name(device: torch.device) -> str:
    """What people call a device: ``cuda:0 (NVIDIA H100)``.

    Args:
        device: Any that `resolve_device` returns.
    """
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "xpu":
        return f"{device} ({torch.xpu.get_device_name(device)})"
    return str(device)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on an accelerator, as far as it says so.

    Args:
        device: Any that `resolve_device` returns.
    """
    if device.type in ("cuda", "xpu"):
        module = torch.cuda if device.type == "cuda" else torch.xpu
        free: int = module.mem_get_info(device)[0]
        # what torch has reserved and does not use is free for torch
        return free + int(module.memory_reserved(device) - module.memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return None


def full(device: torch.device) -> str:
    """What is to be said where something does not fit on a device.

    Args:
        device: Any that `resolve_device` returns.
    """
    free = free_memory(device)
    left = "" if free is None else f" ({free / 2**30:.2f} GiB are free)"
    return (
        f"{device_name(device)} has no room for the networks{left}. End what else runs there, or "
        "choose another `device`."
    )


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was given.

    Args:
        device: Any that `resolve_device` returns.
    """
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


# NVIDIA's compute capabilities whose float64 is at least a third as fast as their float32; others
# have a thirtieth or less.
_FLOAT64 = ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0))


def sums_in_float64(device: torch.device) -> bool:
    """Whether a device computes in float64 at speed.

    Args:
        device: Any that `resolve_device` returns.
    """
    if device.type == "cuda":
        return (
            torch.version.hip is not None or torch.cuda.get_device_capability(device) in _FLOAT64
        )
    if device.type == "xpu":
        return bool(getattr(torch.xpu.get_device_properties(device), "has_fp64", False))
    return device.type == "cpu"


def send(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, copied while the processor goes on.

    Args:
        value: Of the processor, or of the device.
        device: Any that `resolve_device` returns.
    """
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)


def fetch(values: Sequence[Tensor]) -> list[Tensor]:
    """Tensors on the processor; a device is waited for once, not once for each.

    Args:
        values: All of one device, of any shapes.
    """
    if not values or values[0].device.type == "cpu":
        return list(values)
    found = [value.to("cpu", non_blocking=True) for value in values]
    synchronize(values[0].device)
    return found


def are_finite(values: Sequence[Any]) -> list[bool]:
    """Whether each value is no tensor of floats, or one without infinities and NaNs.

    A device is asked once for all of them.

    Args:
        values: Whatever operations return; tensors are all of one device.
    """
    said = [True] * len(values)
    places = [
        place
        for place, value in enumerate(values)
        if isinstance(value, Tensor) and value.is_floating_point()
    ]
    if not places:
        return said
    # one pass finds what is not finite; a sum too large for its type is looked at again
    sums = torch.stack([values[place].sum(dtype=torch.float32) for place in places]).tolist()
    for place, total in zip(places, sums, strict=True):
        said[place] = math.isfinite(total) or bool(values[place].isfinite().all())
    return said


@contextmanager
def float32_products(device: torch.device, *, exact: bool) -> Iterator[None]:
    """Let a GPU multiply float32 numbers as they are, or rounded to TF32, which is faster.

    Args:
        device: Where is computed; only CUDA devices round.
        exact: Whether to keep all of them.
    """
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    named = hasattr(matmul, "fp32_precision")  # from torch 2.9 on
    owners: list[Any] = [matmul, getattr(cudnn, "conv", cudnn) if named else cudnn]
    name = "fp32_precision" if named else "allow_tf32"
    value: Any = ("ieee" if exact else "tf32") if named else not exact
    before = [getattr(owner, name) for owner in owners]
    try:
        for owner in owners:
            setattr(owner, name, value)
        yield
    finally:
        for owner, own in zip(owners, before, strict=True):
            setattr(owner, name, own)


def _why_not(kind: str) -> str:
    if kind == "cuda" and torch.version.cuda is None and torch.version.hip is None:
        return (
            f"torch {torch.__version__} was built without CUDA. Install a build that has it, as "
            "pytorch.org/get-started says for your driver, or choose `device: cpu`."
        )
    built = {"cuda": "an NVIDIA or AMD GPU and its driver", "mps": "an Apple GPU"}
    return (
        f"torch finds none, for which it needs {built.get(kind, 'an Intel GPU and its driver')}. "
        "Choose `device: auto`, which takes what is there, or `device: cpu`."
    )
