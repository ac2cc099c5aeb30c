"""Load files of weights, all of them or none, and without unpickling objects."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from optuna_stitch.utils.errors import CheckpointError, first_line


def load_weights(module: nn.Module, checkpoint: Path, name: str) -> None:
    """Load a file of weights into a module.

    Args:
        module: The network, changed in place.
        checkpoint: A ``.safetensors`` file, or one that ``torch.load(weights_only=True)`` reads.
            Half precision becomes float32.
        name: The network's name, for errors.

    Raises:
        CheckpointError: If the file is missing, broken, or fits another architecture.
    """
    if not checkpoint.is_file():
        raise CheckpointError(f"No checkpoint for {name} at {checkpoint}: there is no such file.")
    try:
        weights = _read_weights(checkpoint)
    except Exception as error:  # each reader has exceptions of its own for a broken file
        raise CheckpointError(
            f"The checkpoint {checkpoint} for {name} cannot be read ({first_line(error)}). It "
            "must be a safetensors file or a plain state_dict; save it again, or fetch it anew."
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
