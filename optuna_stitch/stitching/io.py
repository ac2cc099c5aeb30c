"""A saved supernetwork: one folder of safetensors and JSON, that any worker can load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from timm.utils import reparameterize_model
from torch import Tensor, nn

from optuna_stitch.data.view import make_view
from optuna_stitch.models.parent import Parent
from optuna_stitch.models.zoo import create_module
from optuna_stitch.stitching.genotype import Side
from optuna_stitch.utils.errors import ArtifactError, OptunaStitchError, first_line
from optuna_stitch.utils.files import write_text, write_whole

# Raise it when a folder written before can no longer be read.
FORMAT = 2

_WEIGHTS = "supernetwork.safetensors"
_DESCRIPTION = "supernetwork.json"

# All of a saved supernetwork, in the order in which it is written.
FILES = (_WEIGHTS, _DESCRIPTION)


def is_saved(folder: str | Path) -> bool:
    """Whether a folder holds a complete supernetwork; the description is written last.

    Args:
        folder: Any folder; it need not exist.
    """
    return (Path(folder) / _DESCRIPTION).is_file()


def write_supernetwork(
    folder: Path, weights: dict[str, Tensor], description: dict[str, Any]
) -> None:
    """Write the files of a supernetwork, each whole or not at all.

    Args:
        folder: Where; made if it does not exist.
        weights: Tensors by name.
        description: What JSON can hold of the rest.

    Raises:
        ArtifactError: If they cannot be written.
    """
    try:
        write_whole(folder / _WEIGHTS, lambda unfinished: save_file(weights, unfinished))
        text = json.dumps({"format": FORMAT, **description}, indent=2) + "\n"
        write_text(folder / _DESCRIPTION, text)
    except Exception as error:  # safetensors wraps a full disk in an exception of its own
        raise ArtifactError(f"The supernetwork cannot be written to {folder}: {error}") from error


def read_supernetwork(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_supernetwork` wrote: the weights and the description.

    Args:
        folder: Where it lies.

    Raises:
        ArtifactError: If it is of another format.
    """
    description: dict[str, Any] = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
    weights = load_file(folder / _WEIGHTS)
    if description["format"] != FORMAT:
        raise ArtifactError(
            f"{folder} is of format {description['format']}, this version reads {FORMAT}; "
            "build the supernetwork again."
        )
    return weights, description


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Turn whatever a broken file makes fail into an error that names the folder.

    Args:
        folder: Where the files lie.

    Raises:
        ArtifactError: In place of any other exception.
    """
    try:
        yield
    except OptunaStitchError:
        raise
    except Exception as error:  # a broken file can fail in any step
        raise ArtifactError(
            f"The supernetwork in {folder} cannot be loaded ({first_line(error)}); build it again."
        ) from error


def named_weights(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """All tensors of some modules, by the module's name and their own.

    Args:
        modules: By name.
    """
    return {
        # a copy each, since tied weights may not share memory in a safetensors file
        f"{part}.{key}": value.detach().clone().contiguous().cpu()
        for part, module in modules.items()
        for key, value in module.state_dict().items()
    }


def weights_of(part: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one module, by their own names; see `named_weights`.

    Args:
        part: The module's name.
        weights: Tensors by both names.
    """
    prefix = f"{part}."
    return {key[len(prefix) :]: v for key, v in weights.items() if key.startswith(prefix)}


def describe_parent(parent: Parent) -> dict[str, Any]:
    """What brings a parent's architecture back, as JSON holds it.

    Args:
        parent: The parent.
    """
    return {
        "name": parent.name,
        "architecture": parent.architecture,
        "fused": parent.fused,
        "source": parent.source,
        "model_args": parent.model_args,
        "view": asdict(parent.view),
        "output": parent.output,
        "class_names": parent.class_names,
    }


def make_parent(side: Side, description: dict[str, Any]) -> Parent:
    """Make a parent's architecture again, with random weights.

    Args:
        side: Which parent, for errors.
        description: What `describe_parent` said.

    Raises:
        ArtifactError: If it is a module of the user's own.
    """
    name, source = description["name"], description["source"]
    if source == "module":
        raise ArtifactError(
            f"Parent {side}, {name}, is a module of your own: no name can bring its architecture "
            f"back. Load the supernetwork from Python and pass it as `{side}=`."
        )
    # folders of version 0.1 have neither
    architecture, fused = description.get("architecture", name), description.get("fused", False)
    module = create_module(architecture, description["model_args"])
    if fused:
        module = reparameterize_model(module)
    view = make_view(description["view"])
    arguments, output = description["model_args"], description["output"]
    names = description.get("class_names")  # not in folders of version 0.2
    names = None if names is None else tuple(names)
    return Parent(name, module, view, arguments, source, output, architecture, fused, names)
