"""The cache folder, keys by content, and files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """Where trained parents and measured graphs are kept between runs.

    Returns:
        ``$OPTUNA_STITCH_CACHE``, or else ``optuna_stitch`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """
    named = os.environ.get("OPTUNA_STITCH_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named) if named else base / "optuna_stitch"


def content_key(*made_of: Any) -> str:
    """A hash of values.

    Args:
        *made_of: Values that JSON, or else their text, tells apart.

    Returns:
        16 hexadecimal digits; the same in every process.
    """
    text = json.dumps(made_of, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_whole(path: Path, write: Callable[[str], object]) -> None:
    """Write a file under another name and rename it, so that an interruption leaves no half file.

    Args:
        path: The file; its folder is made if there is none.
        write: Takes a path, and writes the file there.

    Raises:
        OSError: If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write(str(unfinished))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Args:
        path: The file; its folder is made if there is none.
        text: What it shall hold, written as UTF-8.

    Raises:
        OSError: If it cannot be written.
    """
    write_whole(path, lambda unfinished: Path(unfinished).write_text(text, encoding="utf-8"))


def is_writable(path: Path) -> bool:
    """Whether this process may write a file, or into a folder.

    Args:
        path: One that is there.
    """
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


# What timm puts before the name of a folder that holds a network.
LOCAL = "local-dir:"

# Suffix of programs that `torch.export.save` wrote.
PROGRAM = ".pt2"
