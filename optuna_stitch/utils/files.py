"""Keep what is dear to make, by the content of what made it, and write files whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """``$OPTUNA_STITCH_CACHE``, or a folder in the user's cache folder."""
    named = os.environ.get("OPTUNA_STITCH_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named) if named else base / "optuna_stitch"


def content_key(*made_of: Any) -> str:
    """A hash of values that JSON, or else their text, can tell apart."""
    text = json.dumps(made_of, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_whole(path: Path, write: Callable[[str], object]) -> None:
    """Write a file aside and rename it, so that an interruption leaves no half file.

    Args:
        path: Where it shall be; its folder is made.
        write: Writes it to the path that it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write(str(unfinished))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_whole(path, lambda unfinished: Path(unfinished).write_text(text, encoding="utf-8"))


# How the file of a program saved by `torch.export.save` ends.
PROGRAM = ".pt2"
