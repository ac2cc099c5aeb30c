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
from timm.models._hub import load_model_config_from_hf, load_model_config_from_path
from torch import nn

from optuna_stitch.data.view import View, view_of
from optuna_stitch.models.capture import ProgramModule
from optuna_stitch.utils.errors import CheckpointError, UnknownNetworkError, first_line
from optuna_stitch.utils.files import LOCAL, PROGRAM
from optuna_stitch.utils.progress import console

# Where an architecture comes from: timm, torchvision, the file of an exported program, or the
# user's own code.
Source = Literal["timm", "torchvision", "program", "module"]

TORCHVISION = "torchvision/"

# Names of timm's that stand for a `config.json`, in a folder or on the hub.
_CONFIGURED = (LOCAL, "hf-hub:", "hf_hub:")

# Fields of a `config.json` that say nothing of the network, and may be thousands of names.
_LABELS = ("label_names", "label_descriptions")

# Arguments of torchvision's networks that their builders derive from the weights.
_DERIVED = ("image_size", "transform_input", "aux_logits")


def source_of(network: str) -> Source:
    """Where a network comes from, by its name.

    Args:
        network: A name of timm's, ``torchvision/<name>``, or the path of an exported program.
    """
    if network.startswith(TORCHVISION):
        return "torchvision"
    return "program" if network.endswith(PROGRAM) else "timm"


def resolve_network(
    network: str, model_args: Mapping[str, Any], checkpoint: Path | None = None
) -> tuple[str, dict[str, Any]]:
    """The architecture that a name stands for, with the arguments that make it.

    Where a checkpoint tells which of timm's weights it has, by a ``config.json`` beside it or by
    its name, the arguments say how these weights see images.

    Args:
        network: A name that `check_network` accepts.
        model_args: Arguments for the architecture, which come before what is found.
        checkpoint: A file of weights for it.

    Raises:
        CheckpointError: If there is no ``config.json`` where the name says.
    """
    if network.startswith(_CONFIGURED):
        return _configured(network, model_args)
    if checkpoint is None or source_of(network) != "timm" or "." in network:
        return network, dict(model_args)
    try:
        architecture, arguments = _configured(f"{LOCAL}{checkpoint.parent}", model_args)
    except CheckpointError:  # there is none, or one of another tool
        architecture = ""
    if architecture == network and "pretrained_cfg" not in model_args:
        _say(f"{network} is as {checkpoint.parent / 'config.json'} says.")
        return network, arguments
    for tagged in timm.list_pretrained(f"{network}.*"):
        file = Path(timm.models.get_pretrained_cfg(tagged).url or "").name
        places = (checkpoint.stem, *(part.rpartition("--")[2] for part in checkpoint.parts))
        if tagged in places or file == checkpoint.name:
            _say(f"{network} is taken for {tagged}, after the name of its checkpoint.")
            return tagged, dict(model_args)
    return network, dict(model_args)


def _configured(network: str, model_args: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The architecture and the arguments in a ``config.json``."""
    source, _, place = network.partition(":")
    load = load_model_config_from_path if f"{source}:" == LOCAL else load_model_config_from_hf
    try:
        config, architecture, own_args = load(place)
    except Exception as error:  # of the hub's client, of the file system, of JSON
        raise CheckpointError(
            f"{network} has no config.json that can be read ({first_line(error)}). Name a folder "
            "that timm's `save_for_hf` wrote, or a model of timm's on the Hugging Face Hub."
        ) from error
    config = {key: value for key, value in config.items() if key not in _LABELS}
    return architecture, {"pretrained_cfg": config, **own_args, **model_args}


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


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
    if network.startswith(_CONFIGURED):
        network, _ = resolve_network(network, {})
    known = timm.is_model(network)
    if source == "torchvision":
        known = network.removeprefix(TORCHVISION) in torchvision.models.list_models()
    if not known and Path(network).is_file():
        raise UnknownNetworkError(
            f"{network} is a file, and no program of torch.export ({PROGRAM}). Name the "
            "architecture as `network`, and the file as `checkpoint`."
        )
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
    config = None if source == "program" else timm_config(network)
    return None if config is None or not config.has_weights else int(config.num_classes)


def timm_config(network: str) -> Any:
    """What timm says of a network and the weights of its name: a ``PretrainedCfg``.

    Args:
        network: A name of timm's.

    Returns:
        None if timm has no weights for it.
    """
    network, arguments = resolve_network(network, {})
    config = arguments.get("pretrained_cfg")
    if config is None:
        return timm.models.get_pretrained_cfg(network)
    return timm.models.resolve_pretrained_cfg(network, config)


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
    network: str, model_args: Mapping[str, Any], *, pretrained: bool = False, weights: Any = None
) -> nn.Module:
    """Make a network by its name.

    Args:
        network: A name of timm's, ``torchvision/<name>``, or the path of an exported program.
        model_args: Arguments for the architecture.
        pretrained: Whether its zoo fetches the weights; otherwise they are random.
        weights: Which of torchvision's; its default ones, if None.

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
            chosen = (weights or "DEFAULT") if pretrained else None
            return _create_torchvision(network, {"weights": chosen, **model_args})
        with _never_unpickle():
            network, arguments = resolve_network(network, model_args)
            module: nn.Module = timm.create_model(network, pretrained=pretrained, **arguments)
    except (TypeError, AssertionError) as error:
        raise UnknownNetworkError(
            f"{network} cannot be made with model_args {dict(model_args)}: {error}"
        ) from error
    except Exception as error:  # the hub's client and the network below it raise many kinds
        if source == "torchvision" and isinstance(
            error, ValueError
        ):  # other than its weights have
            raise UnknownNetworkError(f"{network} cannot be made so: {error}") from error
        if not pretrained:
            raise UnknownNetworkError(
                f"{network} cannot be made with model_args {dict(model_args)}: "
                f"{first_line(error)}."
            ) from error
        raise CheckpointError(
            f"The pretrained weights of {network} could not be fetched ({first_line(error)}). "
            "Check the network connection, or give a local file as `checkpoint`."
        ) from error
    return module


def own_view(network: str, module: nn.Module, *, weights: Any = None, **overrides: Any) -> View:
    """How a network sees images, as its zoo says.

    Args:
        network: Its name.
        module: The network.
        weights: torchvision's weights whose transforms count; its default ones, if None.
        **overrides: Fields of `View` to use instead of what the zoo says, where not None.
    """
    source = source_of(network)
    if source == "torchvision":
        known = _torchvision_fields(network.removeprefix(TORCHVISION), weights)
    elif isinstance(module, ProgramModule):
        known = {"input_size": module.input_shape}
    else:
        known = {}
    given = {name: value for name, value in overrides.items() if value is not None}
    return view_of(module, **{**known, **given})


def torchvision_weights(network: str, asked: Any, checkpoint: Path | None) -> Any:
    """Which of torchvision's weights a network has, since each sees images in its own way.

    Args:
        network: ``torchvision/<name>``.
        asked: Their name, or they themselves; None, if none were asked for.
        checkpoint: A file of weights, which may be called like torchvision's own.

    Returns:
        The weights; None where nothing tells.

    Raises:
        UnknownNetworkError: If there are no such weights.
    """
    known = torchvision.models.get_model_weights(network.removeprefix(TORCHVISION))
    if asked is not None:
        try:
            return known.verify(asked)
        except (KeyError, TypeError, ValueError) as error:
            names = ", ".join(weights.name for weights in known)
            raise UnknownNetworkError(
                f"{network} has no weights {str(asked)!r}. There are {names or 'none'}."
            ) from error
    if checkpoint is None:
        return None
    for weights in known:
        if Path(weights.url).name == checkpoint.name:
            return weights
    views = {tuple(_torchvision_fields("", weights).items()) for weights in known}
    if len(views) > 1:
        _say(
            f"{network} sees images as torchvision's {known.DEFAULT.name}. If {checkpoint.name} "
            f"began with other weights ({', '.join(weights.name for weights in known)}), name "
            "them: `model_args: {weights: ...}`."
        )
    return None


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
    if "/" in network and source_of(network) == "timm":
        return f" A model of the hub is `hf-hub:{network}`, a folder `{LOCAL}{network}`."
    if near:
        return f" Did you mean {', '.join(near)}?"
    return " `optuna-stitch zoo` lists those that are known."


def _create_torchvision(network: str, arguments: dict[str, Any]) -> nn.Module:
    name = network.removeprefix(TORCHVISION)
    builder = torchvision.models.get_model_builder(name)
    if "weights_backbone" in builder.__annotations__:
        # a detection or segmentation network would fetch its backbone otherwise
        arguments.setdefault("weights_backbone", None)
    module: nn.Module = torchvision.models.get_model(name, **arguments)
    return module


def derived_arguments(module: nn.Module) -> dict[str, Any]:
    """Arguments that torchvision's builders change to what the weights need.

    Args:
        module: A network that was made with weights.
    """
    return {name: getattr(module, name) for name in _DERIVED if hasattr(module, name)}


def _torchvision_fields(name: str, weights: Any) -> dict[str, Any]:
    """Fields of `View` from the transforms that come with a network's weights."""
    if weights is None:
        known = torchvision.models.get_model_weights(name)
        if not len(known):  # an enumeration without members is true
            return {}
        weights = known.DEFAULT
    transforms = weights.transforms()
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
