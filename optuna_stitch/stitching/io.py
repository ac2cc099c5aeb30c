"""Save a supernetwork as one folder that any worker can load: safetensors and JSON, no pickle."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from optuna_stitch.data.view import make_view
from optuna_stitch.models.graph import NetworkGraph
from optuna_stitch.models.parent import Parent
from optuna_stitch.models.zoo import create_module
from optuna_stitch.stitching.genotype import Side
from optuna_stitch.stitching.layer import Stitch
from optuna_stitch.stitching.matching import Match
from optuna_stitch.stitching.recalibration import Calibration
from optuna_stitch.stitching.supergraph import SIDES
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.utils.errors import ArtifactError, OptunaStitchError, first_line
from optuna_stitch.utils.files import write_text, write_whole

# Raise it when a folder written before can no longer be read.
FORMAT = 2

_WEIGHTS = "supernetwork.safetensors"

_DESCRIPTION = "supernetwork.json"

# All of a saved supernetwork, in the order in which it is written.
FILES = (_WEIGHTS, _DESCRIPTION)


def is_saved(folder: str | Path) -> bool:
    """Whether a folder holds a complete supernetwork; the description is written last."""
    return (Path(folder) / _DESCRIPTION).is_file()


def save_supernetwork(supernetwork: Supernetwork, folder: str | Path) -> None:
    """Save a supernetwork.

    Args:
        supernetwork: What to save.
        folder: Where; made if it does not exist.

    Raises:
        ArtifactError: If it cannot be written.
    """
    folder = Path(folder)
    parents = {"a": supernetwork.a, "b": supernetwork.b}
    modules = {"a": supernetwork.a.module, "b": supernetwork.b.module}
    weights = {
        # a copy each, since tied weights may not share memory in a safetensors file
        f"{part}.{key}": value.detach().clone().contiguous()
        for part, module in {**modules, "stitches": supernetwork.stitches}.items()
        for key, value in module.state_dict().items()
    }
    calibration = supernetwork.calibration
    if calibration is not None:
        weights |= {
            f"calibration.{view}": images for view, images in enumerate(calibration.pixels)
        }
    description = {
        "format": FORMAT,
        "content": supernetwork.content_hash(),
        "parents": {side: _describe(parents[side]) for side in SIDES},
        "matches": [[match.a.node, match.b.node] for match in supernetwork.matches],
        "kept": list(supernetwork.kept),
        "switches": [switch.name for switch in supernetwork.switches],
        "stitches": [
            {"kernel": stitch.kernel, "rank": stitch.rank, "everywhere": stitch.everywhere}
            for stitch in supernetwork.laid
        ],
        "calibration": calibration and {"batch_size": calibration.batch_size},
    }
    try:
        write_whole(folder / _WEIGHTS, lambda unfinished: save_file(weights, unfinished))
        text = json.dumps(description, indent=2) + "\n"
        write_text(folder / _DESCRIPTION, text)
    except Exception as error:  # safetensors wraps a full disk in an exception of its own
        raise ArtifactError(f"The supernetwork cannot be written to {folder}: {error}") from error


def load_supernetwork(
    folder: str | Path, *, a: Parent | None = None, b: Parent | None = None
) -> Supernetwork:
    """Load a saved supernetwork.

    Args:
        folder: Where it was saved.
        a: Parent a, where it is a module of your own; its weights come from the folder.
        b: Parent b, likewise.

    Returns:
        The supernetwork, with the content it was saved with.

    Raises:
        ArtifactError: If it is missing, broken, or was changed since.
    """
    folder = Path(folder)
    try:
        description = json.loads((folder / _DESCRIPTION).read_text())
        weights = load_file(folder / _WEIGHTS)
        if description["format"] != FORMAT:
            raise ArtifactError(
                f"{folder} is of format {description['format']}, this version reads {FORMAT}; "
                "build the supernetwork again."
            )
        given = {"a": a, "b": b}
        parents = {
            side: given[side] or _make(side, description["parents"][side]) for side in SIDES
        }
        for side in SIDES:
            parents[side].module.load_state_dict(_part(f"{side}.", weights))
        graphs: dict[Side, NetworkGraph] = {side: parents[side].graph() for side in SIDES}
        points = {side: {point.node: point for point in graphs[side].points} for side in SIDES}
        matches = [
            Match(points["a"][of_a], points["b"][of_b]) for of_a, of_b in description["matches"]
        ]
        kept = description["kept"]
        supernetwork = Supernetwork(parents["a"], parents["b"], graphs, matches, kept)
        supernetwork.lay(
            [
                Stitch(plain.source, plain.target, **shape)
                for plain, shape in zip(supernetwork.laid, description["stitches"], strict=True)
            ]
        )
        supernetwork.stitches.load_state_dict(_part("stitches.", weights))
        if description["calibration"] is not None:
            pixels = [weights[f"calibration.{view}"] for view in range(len(supernetwork.views))]
            batch_size = description["calibration"]["batch_size"]
            supernetwork.calibration = Calibration(supernetwork.views, pixels, batch_size)
    except OptunaStitchError:
        raise
    except Exception as error:  # a broken file can fail in any of the steps above
        raise ArtifactError(
            f"The supernetwork in {folder} cannot be loaded ({first_line(error)}); build it again."
        ) from error
    if supernetwork.content_hash() != description["content"]:
        raise ArtifactError(
            f"The supernetwork in {folder} is not the one that was saved: its content hash is "
            f"{supernetwork.content_hash()}, not {description['content']}. Build it again."
        )
    return supernetwork


def _part(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name begins so, by the rest of their name."""
    return {key[len(prefix) :]: v for key, v in weights.items() if key.startswith(prefix)}


def _describe(parent: Parent) -> dict[str, Any]:
    return {
        "name": parent.name,
        "source": parent.source,
        "model_args": parent.model_args,
        "view": asdict(parent.view),
        "output": parent.output,
    }


def _make(side: Side, description: dict[str, Any]) -> Parent:
    name, source = description["name"], description["source"]
    if source == "module":
        raise ArtifactError(
            f"Parent {side}, {name}, is a module of your own: no name can bring its architecture "
            f"back. Load the supernetwork from Python and pass it as `{side}=`."
        )
    module = create_module(name, description["model_args"])
    view = make_view(description["view"])
    arguments, output = description["model_args"], description["output"]
    return Parent(name, module, view, arguments, source, output)
