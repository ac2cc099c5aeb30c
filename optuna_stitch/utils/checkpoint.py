"""The state of a training in a file, which is never unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from optuna_stitch.utils.errors import FitError, first_line
from optuna_stitch.utils.files import write_whole


def save_state(path: Path, state: dict[str, Any], doing: str) -> None:
    """Write the state of a training, whole or not at all.

    Args:
        path: The file.
        state: With ``key``, which says what it belongs to, and ``step``.
        doing: What is interrupted if it cannot be written: ``tuning``.

    Raises:
        FitError: If it cannot be written, for want of room perhaps.
    """
    try:
        write_whole(path, lambda unfinished: torch.save(state, unfinished))
    except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
        raise FitError(
            f"The checkpoint {path} cannot be written after step {state['step']} of {doing} "
            f"({first_line(error)}); make room, then go on from the one before."
        ) from error


def load_state(path: Path, device: torch.device, doing: str) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Args:
        path: The file.
        device: Where its tensors shall be.
        doing: As for `save_state`.

    Raises:
        FitError: If it cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location=device)
        _ = state["key"], state["step"]
    except Exception as error:  # a broken file can fail in any step
        raise unreadable(path, error, doing) from error
    return state


def unreadable(path: Path, error: BaseException, doing: str) -> FitError:
    """What is said of a broken checkpoint.

    Args:
        path: The file.
        error: Why.
        doing: As for `save_state`.
    """
    return FitError(
        f"The checkpoint {path} cannot be read ({first_line(error)}); remove it to begin {doing} "
        "from the start."
    )
