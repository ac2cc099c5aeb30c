"""Load files of weights as the tools of their authors write them, and never by unpickling."""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from timm.utils import reparameterize_model
from torch import Tensor, nn

from optuna_stitch.utils.errors import CheckpointError, first_line
from optuna_stitch.utils.progress import console

# Where a file holds several sets of weights, the first of these is taken: timm's order.
_TIMMS_ORDER = ("state_dict_ema", "model_ema", "state_dict", "model")

# What wrappers put into the keys of the parts that they wrap.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")

# So deep are dictionaries searched for weights, and so many keys of a kind are listed.
_DEEPEST, _LISTED = 4, 5


def load_weights(module: nn.Module, checkpoint: Path, name: str) -> nn.Module:
    """Load a file of weights into a module: all of them, or none.

    Of several sets of weights in a file timm's choice is taken (the moving average, where there is
    one), and said. Prefixes that wrappers leave in the keys are taken off.

    Args:
        module: The network, changed in place.
        checkpoint: A ``.safetensors`` file, or one that ``torch.load(weights_only=True)`` reads.
            Half precision becomes float32.
        name: The network's name, for errors.

    Returns:
        The network with the weights: ``module``, or its fused form (timm's
        ``reparameterize_model``) where the weights are those of a fused network.

    Raises:
        CheckpointError: If the file is missing, broken, holds several networks, or fits another
            architecture.
    """
    if not checkpoint.is_file():
        what = "that is a folder; name a file in it" if checkpoint.is_dir() else "no such file"
        raise CheckpointError(f"No checkpoint for {name} at {checkpoint}: {what}.")
    try:
        content = _read(checkpoint)
        sets = list(_weight_sets(content))
        if not sets:
            raise ValueError(f"it holds no state_dict, but {_kind(content)}")
    except Exception as error:  # each reader has exceptions of its own for a broken file
        reason = first_line(error).partition(". In PyTorch")[0]  # how to unpickle nevertheless
        raise CheckpointError(
            f"The checkpoint {checkpoint} for {name} cannot be read ({reason}). It "
            "must be a safetensors file or hold a state_dict; save it again, as "
            "`torch.save(model.state_dict(), ...)`, or fetch it anew."
        ) from error
    fitting = _fitting(sets, module)
    if not fitting and (fused := _fused(module)) is not None and _fitting(sets, fused):
        module, fitting = fused, _fitting(sets, fused)
        console.print(f"{name}: the weights are fused, and so is the network.", markup=False)
    chosen = _choose(fitting, checkpoint, name) if fitting else _closest(sets, module)
    try:
        # if no keys fit, the network may still know how to rename them
        module.load_state_dict(chosen.weights, strict=not fitting)
    except RuntimeError as error:
        raise CheckpointError(_misfit(chosen, module, content, checkpoint, name)) from error
    _say(chosen, content, checkpoint, name)
    return module


@dataclass(frozen=True)
class _Set:
    """Some of a file's tensors, which may be the weights of a network.

    Args:
        keys: Those that lead to them in the file.
        weights: By their names in the network.
        prefix: What was taken off the names in the file.
        others: Names of the tensors beside them, which do not have the prefix.
    """

    keys: tuple[str, ...]
    weights: dict[str, Tensor]
    prefix: str = ""
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        place = " → ".join(f"`{key}`" for key in self.keys)
        tensors = f"the tensors `{self.prefix}*`" if self.prefix else ""
        return f"{tensors} of {place}" if tensors and place else tensors or place

    @property
    def averaged(self) -> bool:
        """Whether a moving average is meant, by its name."""
        return any("ema" in key.lower() for key in (*self.keys, self.prefix))

    def without(self, prefix: str) -> _Set:
        """The tensors whose names begin with a prefix.

        Args:
            prefix: The prefix, with its dot.
        """
        inside = {k[len(prefix) :]: v for k, v in self.weights.items() if k.startswith(prefix)}
        others = tuple(key for key in self.weights if not key.startswith(prefix))
        return _Set(self.keys, inside, prefix, others)


class _StandIn:
    """Takes the place of whatever class a file names: it keeps what it is given, and does nothing.

    Settings and counters of many kinds lie beside weights. Their own classes are never looked up.
    """

    state: Any = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _DictStandIn:
    """The same for classes of dictionaries: torch puts items into plain ones only."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


class _ListStandIn:
    """The same for classes of lists."""

    def __new__(cls, *_: Any) -> Any:
        return []


# Of Python's own library, files of weights name these; what they name beside is no honest file.
_HARMLESS_MODULES = {
    *("argparse", "collections", "copyreg", "datetime", "decimal", "enum", "fractions"),
    *("functools", "pathlib", "types", "typing", "uuid"),
}
_HARMLESS_BUILTINS = {"bool", "dict", "float", "frozenset", "int", "list", "object", "range"}


def _read(checkpoint: Path) -> Any:
    """All that a file holds, with stand-ins for what are no tensors and no plain values."""
    if checkpoint.suffix == ".safetensors":
        return load_file(checkpoint)
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(str(checkpoint))
    except (ValueError, RuntimeError):  # a file of before torch 1.6, or a broken one
        named = ["argparse.Namespace"]
    kinds: dict[str, type] = dict.fromkeys(named, _StandIn)
    while True:
        stand_ins: list[Any] = [_stand_in(path, kind) for path, kind in kinds.items()]
        try:
            with torch.serialization.safe_globals(stand_ins):
                return torch.load(checkpoint, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            filled = re.search(r"only (.*) but got <class '(.*)'>", str(error))
            if filled is None or kinds.get(filled[2]) is not _StandIn:
                said = re.search(r"WeightsUnpickler error: (.*)", str(error))
                raise ValueError(_short(said[1] if said else str(error))) from error
            kinds[filled[2]] = _ListStandIn if "list" in filled[1] else _DictStandIn


def _stand_in(path: str, kind: type) -> type:
    """A class that is called like one that a file names.

    Raises:
        ValueError: If such a thing has no place among weights.
    """
    module, _, name = path.rpartition(".")
    top = module.partition(".")[0]
    harmless = name in _HARMLESS_BUILTINS if top == "builtins" else top in _HARMLESS_MODULES
    if top in sys.stdlib_module_names and not harmless:
        raise ValueError(f"it names {path}, which has no place among weights")
    return type(name, (kind,), {"__module__": module})


def _kind(content: Any) -> str:
    """What a file without weights holds instead."""
    if isinstance(content, dict):
        kinds = [f"`{key}` ({type(value).__name__})" for key, value in content.items()]
        return f"the keys {_some(kinds)}" if kinds else "nothing"
    return f"an object of the class {type(content).__qualname__}"


def _weight_sets(content: Any, keys: tuple[str, ...] = ()) -> Iterator[_Set]:
    """The sets of weights in a file; only that of timm's choice, where there is one."""
    if isinstance(content, _StandIn):
        content = _state_dict(content)
    if not isinstance(content, Mapping) or len(keys) > _DEEPEST:
        return
    for key in _TIMMS_ORDER:
        if found := list(_weight_sets(content.get(key), (*keys, key))):
            yield from found
            return
    tensors = {
        _unwrapped(key): value.float() if value.is_floating_point() else value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    if tensors:
        yield _Set(keys, tensors)
    for key, value in content.items():
        if isinstance(key, str):
            yield from _weight_sets(value, (*keys, key))


def _unwrapped(key: str) -> str:
    for wrapper in _WRAPPERS:
        key = key.replace(wrapper, "")
    return key


def _state_dict(module: _StandIn, prefix: str = "") -> dict[str, Tensor]:
    """The weights of a network that was saved whole, from the state that its parts had."""
    state = module.state if isinstance(module.state, Mapping) else {}
    hidden = state.get("_non_persistent_buffers_set", ())
    tensors = {**state.get("_parameters", {}), **state.get("_buffers", {})}
    found = {
        f"{prefix}{key}": value
        for key, value in tensors.items()
        if isinstance(value, Tensor) and key not in hidden
    }
    for key, part in state.get("_modules", {}).items():
        if isinstance(part, _StandIn):
            found |= _state_dict(part, f"{prefix}{key}.")
    return found


def _prefixes(weights: Iterable[str], expected: Mapping[str, Tensor]) -> dict[str, int]:
    """What may stand before a network's own keys, with how many keys that explains."""
    counts: dict[str, int] = {}
    for key in weights:
        parts = key.split(".")
        for place in range(len(parts)):
            if ".".join(parts[place:]) in expected:
                prefix = "".join(f"{part}." for part in parts[:place])
                counts[prefix] = counts.get(prefix, 0) + 1
    return counts


def _fitting(sets: Iterable[_Set], module: nn.Module) -> list[_Set]:
    """The sets that are the weights of a network, all of them and no others."""
    expected = _tensors_of(module)
    found = []
    for one in sets:
        for prefix, count in _prefixes(one.weights, expected).items():
            if 2 * count < len(expected):
                continue  # a layer of the network is named like the network
            inside = one.without(prefix)
            if not any(_differences(inside.weights, expected)):
                found.append(inside)
    return found


def _differences(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[list[str], list[str], list[str]]:
    """Keys that are missing, that the network lacks, and whose shapes differ."""
    present = {_memory(expected[key]) for key in weights if key in expected}
    missing = [
        key
        for key, tensor in expected.items()
        if key not in weights
        and not key.endswith("num_batches_tracked")  # which files of old lack
        and not (tensor.numel() and _memory(tensor) in present)  # tied to one that is there
    ]
    unknown = [key for key in weights if key not in expected]
    other = [k for k, v in weights.items() if k in expected and v.shape != expected[k].shape]
    return missing, unknown, other


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """A network's tensors by name, without what else its parts keep in a state_dict."""
    return {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}


def _memory(tensor: Tensor) -> tuple[int, torch.Size]:
    return tensor.data_ptr(), tensor.shape


def _fused(module: nn.Module) -> nn.Module | None:
    """A network of timm's in the form that it is deployed in; None where that is the same."""
    if not type(module).__module__.startswith("timm."):
        return None
    try:
        fused: nn.Module = reparameterize_model(module).eval().requires_grad_(False)
    except Exception:  # not every part that can be fused can be so before it was trained
        return None
    return None if fused.state_dict().keys() == module.state_dict().keys() else fused


def _choose(fitting: list[_Set], checkpoint: Path, name: str) -> _Set:
    """The one set that fits, or the moving average among several."""
    averaged = [one for one in fitting if one.averaged]
    if len(fitting) > 1 and len(averaged) == 1:
        return averaged[0]
    first, *others = fitting
    if all(_equal(first.weights, other.weights) for other in others):
        return first
    raise CheckpointError(
        f"The checkpoint {checkpoint} holds {len(fitting)} sets of weights that fit {name}: "
        f"{_some(map(str, fitting))}. Save the one that you want as a file of its own."
    )


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _closest(sets: Iterable[_Set], module: nn.Module) -> _Set:
    """The set, without a prefix, that has most of a network's keys."""
    expected = _tensors_of(module)
    best, most = next(iter(sets)), 0
    for one in sets:
        for prefix, count in _prefixes(one.weights, expected).items():
            if count > most:
                best, most = one.without(prefix), count
    return best


def _misfit(closest: _Set, module: nn.Module, content: Any, checkpoint: Path, name: str) -> str:
    """What does not fit, in a few lines, and what to do."""
    expected, weights = _tensors_of(module), closest.weights
    missing, unknown, other = _differences(weights, expected)
    fitting = sum(key in weights and key not in other for key in expected)
    place = f" ({closest})" if str(closest) else ""
    lines = [
        f"The checkpoint {checkpoint}{place} does not fit {name}: it has {fitting} of the "
        f"network's {len(expected)} tensors."
    ]
    if missing:
        lines.append(f"{len(missing)} are missing in the file: {_some(missing)}.")
    if unknown:
        lines.append(f"{len(unknown)} are not in the network: {_some(unknown)}.")
    shapes = [f"{k} {_shape(weights[k])} for {_shape(expected[k])}" for k in other]
    if shapes:
        lines.append(f"{len(shapes)} have another shape than in the network: {_some(shapes)}.")
    architecture = content.get("arch") if isinstance(content, Mapping) else None
    if isinstance(architecture, str):
        lines.append(f"The file says that it is of the architecture {_short(architecture)}.")
    changes = {
        tuple(
            (dim, was, now)
            for dim, (was, now) in enumerate(zip(weights[k].shape, expected[k].shape, strict=True))
            if was != now
        )
        if weights[k].dim() == expected[k].dim()
        else ()
        for k in other
    }
    single = next(iter(changes)) if len(changes) == 1 else ()
    if any("lora_" in key for key in (*unknown, *closest.others)):
        lines.append("It holds adapters: merge them (`merge_and_unload()`) and save that.")
    elif len(single) == 1 and single[0][0] == 0 and not missing and not unknown:
        lines.append(f"Give `num_classes: {single[0][1]}` (in `model_args`), as the file has.")
    elif len(single) == 1 and single[0][0] == 1 and not missing and not unknown:
        lines.append(f"Give `in_chans: {single[0][1]}` (in `model_args`), as the file has.")
    elif missing and fitting and not unknown and not other:
        lines.append("The file has a part of the network only; give one with all of it.")
    else:
        lines.append("Check the name, `num_classes` and `model_args`.")
    return "\n".join(lines)


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def _some(names: Iterable[str]) -> str:
    """The first few names, and how many there are beside."""
    every = list(names)
    shown = ", ".join(map(_short, every[:_LISTED]))
    return f"{shown} and {len(every) - _LISTED} more" if len(every) > _LISTED else shown


def _short(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:38]} … {name[-38:]}"


def _say(chosen: _Set, content: Any, checkpoint: Path, name: str) -> None:
    """Say which of a file's tensors were taken, where there is more in it than a state_dict."""
    if not chosen.keys and not chosen.prefix:
        return
    left = [key for key in chosen.others if key != "n_averaged"]
    level = content
    for key in chosen.keys:
        left += [other for other in level if other != key and any(_weight_sets(level[other]))]
        level = level[key]
    beside = f"; it also has {_some(f'`{key}`' for key in left)}" if left else ""
    console.print(
        f"{name} takes {chosen} of {checkpoint.name}{beside}.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
