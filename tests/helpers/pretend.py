"""An accelerator that is not there: tensors that are on ``cuda:0``, with their values on the CPU.

As under torch's ``FakeTensorMode``, by whose means it works, tensors on a GPU exist on a machine
without one, and mixing them with those of the CPU fails as on a real one. Here they have values
too, so that what is computed can be compared with the CPU's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda", 0)

# What may take tensors of two devices: all it does is to copy from one to the other.
_COPIES = {
    torch.ops.aten._to_copy.default,
    torch.ops.aten.copy_.default,
    torch.ops.aten.set_.source_Tensor,
}

# What a GPU reads of the CPU: positions.
_INDEXED = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put_.default,
    torch.ops.aten.index_put.default,
}

# What makes a program wait for a GPU: the result, or its size, is a number that the CPU asks for.
_WAITS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.bincount.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.equal.default,
}

# Names of what waited, while `waits` counts.
_waited: list[list[str]] = []

_NO_GRAPH = {"is_capturing.return_value": False}


class OnDevice(Tensor):
    """A tensor that says it is on the device; ``value`` is what it holds."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor, requires_grad: bool = False) -> OnDevice:
        shell = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        made: OnDevice = Tensor._make_subclass(cls, shell, requires_grad)
        made.value = value
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def __getitem__(self, key: Any) -> Tensor:
        if isinstance(key, list):
            key = torch.tensor(key)
        found: Tensor = super().__getitem__(key)
        return found

    def tolist(self) -> Any:
        _count("tolist")
        return self.value.tolist()

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=DEVICE)

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.value!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> OnDevice:
        twin = OnDevice(self.value.clone(), self.requires_grad)
        if getattr(self, "_is_param", False):  # by which torch tells parameters of other classes
            twin._is_param = True  # type: ignore[attr-defined]
        return twin

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    # torch then starts no CUDA of its own
    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    wanted = kwargs.get("device")
    tensors = [value for value in _flat((*args, *kwargs.values())) if isinstance(value, Tensor)]
    there = [value for value in tensors if isinstance(value, OnDevice)]
    if not there and wanted is None:
        return func(*args, **kwargs)
    here = [value for value in tensors if not isinstance(value, OnDevice)]
    if there and func not in _COPIES:
        indexed = func in _INDEXED and isinstance(tensors[0], OnDevice)
        if not indexed and any(value.dim() for value in here):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"cuda:0 and cpu! ({func})"
            )
    target = bool(there) if wanted is None else torch.device(wanted).type != "cpu"
    found = func(*map(_inner, args), **{key: _inner(value) for key, value in kwargs.items()})
    if (there or target) and _has_to_wait(func, args, kwargs, tensors, there):
        _count(str(func))
    known = {id(value.value): value for value in there} | {id(value): value for value in here}

    def give(value: Tensor) -> Tensor:
        if id(value) in known:  # what works in place returns what it was given
            return known[id(value)]
        return OnDevice(value) if target else value

    if isinstance(found, Tensor):
        return give(found)
    return tree.tree_map_only(Tensor, give, found)


def _has_to_wait(
    func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor], there: list[OnDevice]
) -> bool:
    """Whether a GPU would be waited for."""
    if func in _INDEXED:
        return any(value.dtype in (torch.bool, torch.uint8) for value in tensors[1:2]) or any(
            not isinstance(value, OnDevice) for value in tensors[1:]
        )
    if func in _COPIES:
        wanted = kwargs.get("device")
        to_device = bool(there) if wanted is None else torch.device(wanted).type != "cpu"
        crosses = any(isinstance(value, OnDevice) != to_device for value in tensors)
        at_once = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        return crosses and not at_once
    return func in _WAITS


def _count(name: str) -> None:
    for names in _waited:
        names.append(name)


@contextmanager
def waits() -> Iterator[list[str]]:
    """Count what makes a program wait for the device.

    Yields:
        The names of the operations, in order; it grows.
    """
    names: list[str] = []
    _waited.append(names)
    try:
        yield names
    finally:
        _waited.remove(names)


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _inner(value: Any) -> Any:
    """What the CPU is given in place of something on the device."""
    if isinstance(value, OnDevice):
        return value.value
    if isinstance(value, torch.device):
        return torch.device("cpu")
    if isinstance(value, (list, tuple)):
        return type(value)(map(_inner, value))
    return value


class _Event:
    """A mark on the device's own clock."""

    def __init__(self, **_: Any) -> None:
        self.at = 0.0

    def record(self, stream: object) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, later: _Event) -> float:
        return 1e3 * (later.at - self.at)


def _no_grad(mode: bool = True) -> AbstractContextManager[None]:
    return torch.no_grad() if mode else nullcontext()


@contextmanager
def accelerator(
    gigabytes: float = 8.0, count: int = 1, capability: tuple[int, int] = (9, 0)
) -> Iterator[torch.device]:
    """A machine that has accelerators, for a while; the first one can be used.

    Args:
        gigabytes: Its free memory.
        count: How many there are.
        capability: As NVIDIA numbers it; (9, 0) computes in float64 at speed, (8, 9) does not.
    """
    before = torch._C._only_lift_cpu_tensors()
    swap = torch.__future__.get_overwrite_module_params_on_conversion()
    free = int(gigabytes * 2**30)
    with (
        mock.patch("torch.accelerator.is_available", return_value=True),
        mock.patch("torch.accelerator.current_accelerator", return_value=torch.device("cuda")),
        mock.patch("torch.accelerator.device_count", return_value=count),
        mock.patch("torch.accelerator.synchronize", side_effect=lambda *_: _count("synchronize")),
        # an optimizer asks it
        mock.patch("torch.accelerator.current_stream", return_value=mock.Mock(**_NO_GRAPH)),
        mock.patch("torch.cuda.mem_get_info", return_value=(free, free)),
        mock.patch("torch.cuda.memory_reserved", return_value=0),
        mock.patch("torch.cuda.memory_allocated", return_value=0),
        mock.patch("torch.cuda.get_device_capability", return_value=capability),
        mock.patch("torch.cuda.Event", _Event),
        mock.patch("torch.inference_mode", _no_grad),  # whose tensors cannot be wrapped
        mock.patch("torch.cuda.current_stream"),
        mock.patch("torch.cuda.get_rng_state"),
        mock.patch("torch.cuda.set_rng_state"),
        mock.patch("torch.cuda.get_device_name", return_value="a GPU that is not there"),
        mock.patch("torch.Tensor.pin_memory", lambda tensor: tensor),
        torch.backends.cudnn.flags(enabled=False),  # whose kernels are for GPUs alone
    ):
        torch._C._set_only_lift_cpu_tensors(True)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with _Mode():
                yield DEVICE
        finally:
            torch._C._set_only_lift_cpu_tensors(before)
            torch.__future__.set_overwrite_module_params_on_conversion(swap)
