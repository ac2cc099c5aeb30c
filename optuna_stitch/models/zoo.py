"""Where architectures come from: timm, torchvision, exported programs."""

from __future__ import annotations

import difflib
import fnmatch
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torchvision
from torch import nn

from optuna_stitch.data.view import View, view_of
from optuna_stitch.models.capture import ProgramModule
from optuna_stitch.utils.errors import CheckpointError, UnknownNetworkError, first_line
from optuna_stitch.utils.files import PROGRAM

# Where an architecture comes from: timm, torchvision, the file of an exported program, or the
# user's own code.
Source = Literal["timm", "torchvision", "program", "module"]

TORCHVISION = "torchvision/"


def source_of(network: str) -> Source:
    """Where a network comes from, by its name.

    Args:
        network: A name of timm's, ``torchvision/<name>``, or the path of an exported program.
    """
    if network.startswith(TORCHVISION):
        return "torchvision"
    return "program" if network.endswith(PROGRAM) else "timm"


def check_network(network: str) -> None:
    """Check that there is a network of a name, without making it.

    Args:
        network: A name of timm's, ``torchvision/<name>``, or the path of an exported program.

    Raises:
        UnknownNetworkError: If there is no such network.
        CheckpointError: If there is no file of that exported program.
    """
    source = source_of(network)
    if source == "program":
        if not Path(network).is_file():
            raise CheckpointError(f"There is no exported program at {network}.")
        return
    known = timm.is_model(network)
    if source == "torchvision":
        known = network.removeprefix(TORCHVISION) in torchvision.models.list_models()
    if not known:
        raise UnknownNetworkError(
            f"{source} knows no network named {network!r}.{nearest(network)}"
        )
    if source == "timm":
        try:
            timm.models.get_pretrained_cfg(network)
        except RuntimeError as error:  # no weights of that tag
            architecture = network.partition(".")[0]
            near = timm.list_pretrained(f"{architecture}.*")
            hint = f" There are {', '.join(near)}." if near else ""
            raise UnknownNetworkError(f"timm knows no weights named {network!r}.{hint}") from error


def zoo_outputs(network: str) -> int | None:
    """How many outputs a network has with its pretrained weights, without fetching them.

    Args:
        network: A name that `check_network` accepts.

    Returns:
        Their number, mostly that of the classes; 0 for features without a classifier. None if its
        zoo has no weights for the name, or does not say.
    """
    source = source_of(network)
    if source == "torchvision":
        weights = torchvision.models.get_model_weights(network.removeprefix(TORCHVISION))
        # an enumeration without members is true
        classes = weights.DEFAULT.meta.get("categories") if len(weights) else None
        return None if classes is None else len(classes)
    if source == "program" or not timm.models.is_model_pretrained(network):
        return None
    return int(timm.models.get_pretrained_cfg(network).num_classes)


def random_head(network: str, model_args: Mapping[str, Any]) -> str | None:
    """A sentence, where pretrained weights would come with a head that is not trained.

    Args:
        network: A name of a zoo's.
        model_args: Arguments for the architecture.
    """
    wanted = model_args.get("num_classes")
    if not wanted:  # as the weights have them, or no head at all
        return None
    check_network(network)
    outputs = zoo_outputs(network)
    if outputs is None or outputs == wanted:
        return None
    have = f"tell {outputs} classes apart, not {wanted}" if outputs else "have no classifier"
    return f"The pretrained weights of {network} {have}: its last layer would be random."


def create_module(
    network: str, model_args: Mapping[str, Any], *, pretrained: bool = False
) -> nn.Module:
    """Make a network by its name.

    Args:
        network: A name of timm's, ``torchvision/<name>``, or the path of an exported program.
        model_args: Arguments for the architecture.
        pretrained: Whether its zoo fetches the weights; otherwise they are random.

    Raises:
        UnknownNetworkError: If there is no such network, or it does not take the arguments.
        CheckpointError: If the weights cannot be fetched, or the program cannot be read.
    """
    check_network(network)
    source = source_of(network)
    if source == "program":
        return _load_program(Path(network))
    try:
        if source == "torchvision":
            return _create_torchvision(network, model_args, pretrained)
        module: nn.Module = timm.create_model(network, pretrained=pretrained, **model_args)
    except (TypeError, AssertionError) as error:
        raise UnknownNetworkError(
            f"{network} cannot be made with model_args {dict(model_args)}: {error}"
        ) from error
    except Exception as error:  # the hub's client and the network below it raise many kinds
        if not pretrained:
            raise
        raise CheckpointError(
            f"The pretrained weights of {network} could not be fetched ({first_line(error)}). "
            "Check the network connection, or give a local file as `checkpoint`."
        ) from error
    return module


def own_view(network: str, module: nn.Module, **overrides: Any) -> View:
    """How a network sees images, as its zoo says.

    Args:
        network: Its name.
        module: The network.
        **overrides: Fields of `View` to use instead of what the zoo says, where not None.
    """
    source = source_of(network)
    if source == "torchvision":
        known = _torchvision_fields(network.removeprefix(TORCHVISION))
    elif isinstance(module, ProgramModule):
        known = {"input_size": module.input_shape}
    else:
        known = {}
    given = {name: value for name, value in overrides.items() if value is not None}
    return view_of(module, **{**known, **given})


def nearest(network: str) -> str:
    """A sentence, with a space before it, that hints at names like this one.

    Args:
        network: A name that no zoo knows.
    """
    if source_of(network) == "torchvision":
        names = [f"{TORCHVISION}{name}" for name in torchvision.models.list_models()]
        near = difflib.get_close_matches(network, names, n=4, cutoff=0.5)
    else:
        near = difflib.get_close_matches(
            network.partition(".")[0], timm.list_models(), n=4, cutoff=0.5
        )
    if near:
        return f" Did you mean {', '.join(near)}?"
    return " `optuna-stitch zoo` lists those that are known."


def _create_torchvision(
    network: str, model_args: Mapping[str, Any], pretrained: bool
) -> nn.Module:
    name = network.removeprefix(TORCHVISION)
    builder = torchvision.models.get_model_builder(name)
    arguments = {"weights": "DEFAULT" if pretrained else None, **model_args}
    if "weights_backbone" in builder.__annotations__:
        # a detection or segmentation network would fetch its backbone otherwise
        arguments.setdefault("weights_backbone", None)
    module: nn.Module = torchvision.models.get_model(name, **arguments)
    return module


def _torchvision_fields(name: str) -> dict[str, Any]:
    """Fields of `View` from the transforms that come with a network's weights."""
    weights = list(torchvision.models.get_model_weights(name))
    if not weights:
        return {}
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    fields = {
        "mean": tuple(transforms.mean),
        "std": tuple(transforms.std),
        "interpolation": transforms.interpolation.value,
    }
    resized = transforms.resize_size[0]
    if hasattr(transforms, "crop_size"):
        size = transforms.crop_size[0]
        return {**fields, "input_size": (3, size, size), "crop_pct": size / resized}
    # segmentation: the whole image, so that every pixel of the mask counts
    return {
        **fields,
        "input_size": (3, resized, resized),
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }


def _load_program(path: Path) -> ProgramModule:
    try:
        with _never_unpickle():
            program = torch.export.load(path)
    except Exception as error:  # a broken archive fails in many ways
        raise CheckpointError(
            f"The exported program {path} cannot be read ({first_line(error)}). Save it again "
            "with torch.export.save, by a similar version of torch."
        ) from error
    return ProgramModule(program)


@contextmanager
def _never_unpickle() -> Iterator[None]:
    """Make torch load weights only, even where its own code asks for more."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def list_networks(pattern: str) -> list[str]:
    """Names of networks, as `load_parent` takes them.

    Args:
        pattern: A name with wildcards, ``*vit_tiny*``, ``torchvision/resnet*``; one with a dot,
            ``resnet50.*``, is matched against the names of timm's pretrained weights.

    Returns:
        The names that match, sorted.

    Raises:
        UnknownNetworkError: If there are none.
    """
    folder = TORCHVISION if pattern.startswith(TORCHVISION) else ""
    if folder:
        known = list_families()[TORCHVISION]
        found = fnmatch.filter(known, pattern)
    else:
        known = timm.list_models()
        found = timm.list_models(pattern, include_tags="." in pattern)
    if found:
        return found
    bare = re.sub(r"[*?\[\]]", "", pattern)
    wider = f"{folder}*{bare.removeprefix(folder)}*"
    inside = fnmatch.filter(known, wider)
    hint = f" {wider!r} matches {len(inside)}." if inside else nearest(bare)
    raise UnknownNetworkError(f"No network's name matches {pattern!r}.{hint}")


def list_families() -> dict[str, list[str]]:
    """Names of all networks by family: timm's modules, then ``torchvision/``."""
    families = {module: timm.list_models(module=module) for module in timm.list_modules()}
    models = torchvision.models
    names = [*models.list_models(module=models), *models.list_models(module=models.segmentation)]
    return {**families, TORCHVISION: [f"{TORCHVISION}{name}" for name in names]}
