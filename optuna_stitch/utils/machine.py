"""Which machine this is, and whether a process of it still runs."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine_name() -> str:
    """A name for the machine or container within which process ids are unique."""
    parts = [platform.node()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            link = Path(path)
            text = os.readlink(link) if link.is_symlink() else link.read_text(encoding="utf-8")
        except OSError:
            continue  # not Linux
        parts.append(text.strip())
    return "/".join(parts)


def is_running(pid: int) -> bool:
    """Whether a process of this machine runs; True where that cannot be asked.

    Args:
        pid: Its id.
    """
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:  # one that ended keeps its id until its parent has asked how
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True  # not Linux
    return not state.rpartition(")")[2].lstrip().startswith("Z")
