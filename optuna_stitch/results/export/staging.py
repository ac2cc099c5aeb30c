"""Write a folder of files whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from optuna_stitch.errors import ExportError


def refuse_full(to: Path, *, force: bool) -> None:
    """Check that a folder may be written into.

    Args:
        to: The folder; it need not be there.
        force: Whether it may have files in it.

    Raises:
        ExportError: If it may not.
    """
    if to.exists() and not to.is_dir():
        raise ExportError(f"{to} is a file. Name a folder to export into.")
    held = sorted(path.name for path in to.iterdir()) if to.is_dir() else []
    if held and not force:
        more = f" and {len(held) - 3} more" if len(held) > 3 else ""
        raise ExportError(
            f"The folder {to} has files in it: {', '.join(held[:3])}{more}. Name another one, or "
            "replace what an export writes with `--force`; other files stay."
        )


@contextmanager
def staged(to: Path, replaceable: Collection[str], *, force: bool) -> Iterator[Path]:
    """Give a folder beside another one to write files into, and move them at the end.

    Args:
        to: Where the files shall be.
        replaceable: Names of files there that are removed if they are not written anew: those of
            an earlier export, which may be of another network.
        force: Whether there may be files there.

    Yields:
        The folder to write into.

    Raises:
        ExportError: If the files cannot be written.
    """
    refuse_full(to, force=force)
    target = Path(os.path.abspath(to))
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
        aside.mkdir(parents=True)
        yield aside
        _move(aside, target, replaceable)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ExportError(
            f"The network cannot be written to {to}: {reason}. Make room, or name another folder."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _move(aside: Path, target: Path, replaceable: Collection[str]) -> None:
    if not target.exists():
        aside.rename(target)
        return
    written = [path.name for path in aside.iterdir()]
    for name in written:
        (aside / name).replace(target / name)
    for name in set(replaceable) - set(written):
        (target / name).unlink(missing_ok=True)
