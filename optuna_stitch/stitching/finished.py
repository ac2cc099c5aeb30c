"""Finished networks in files: what was learned, and how."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from optuna_stitch.stitching.finish import twin
from optuna_stitch.stitching.subnetwork import Finished, Subnetwork
from optuna_stitch.utils.errors import ArtifactError, FitError, first_line
from optuna_stitch.utils.files import write_whole


def save_finished(subnetwork: Subnetwork, path: Path, **facts: str) -> None:
    """Write what a finished network has learned.

    Args:
        subnetwork: What `finish` returned.
        path: The file.
        **facts: What is to be known of it besides.

    Raises:
        FitError: If it cannot be written, for want of room perhaps.
    """
    assert subnetwork.finished is not None, subnetwork
    weights = {
        name: value.detach().clone().contiguous().cpu()
        for name, value in subnetwork.heads_module().state_dict().items()
    }
    said = {"finished": json.dumps(asdict(subnetwork.finished)), **facts}
    try:
        write_whole(path, lambda unfinished: save_file(weights, unfinished, metadata=said))
    except (OSError, SafetensorError) as error:
        raise FitError(
            f"The finished network cannot be written to {path} ({first_line(error)}); make room, "
            "then run the same again."
        ) from error


def facts_of(path: Path) -> dict[str, str]:
    """What `save_finished` was given of a network.

    Args:
        path: The file.

    Raises:
        ArtifactError: If it is broken.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found: dict[str, str] = file.metadata()
            _ = found["finished"]
    except Exception as error:  # a broken file can fail in any step
        raise _broken(path, error) from error
    return found


def load_finished(path: Path, subnetwork: Subnetwork) -> Subnetwork:
    """Read what `save_finished` wrote.

    Args:
        path: The file.
        subnetwork: The network as it was found; it stays as it is.

    Raises:
        ArtifactError: If the file is broken, or of another network.
    """
    facts = facts_of(path)
    found = twin(subnetwork, statistics=False)
    try:
        found.heads_module().load_state_dict(load_file(path))
        said = Finished(**json.loads(facts["finished"]))
    except Exception as error:  # a broken file can fail in any step
        raise _broken(path, error) from error
    return replace(found, finished=said)


def _broken(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"The finished network in {path} cannot be loaded ({first_line(error)}); remove the file, "
        "and finish it again."
    )
