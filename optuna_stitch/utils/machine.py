"""Which machine this is, what of it this process may use, and whether a process still runs."""

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


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """How many cores this process may use: by its affinity, and by its container's quota.

    Args:
        cgroup: Where the system says what the container may use.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    for quota, period in (
        ("cpu.max", None),  # "200000 100000", or "max 100000"
        ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"),
    ):
        try:
            said = (cgroup / quota).read_text(encoding="utf-8").split()
            if period is not None:
                said += (cgroup / period).read_text(encoding="utf-8").split()
            allowed = float(said[0]) / float(said[1])
        except (OSError, ValueError, IndexError):
            continue
        if allowed > 0:
            cores = min(cores, max(1, round(allowed)))
    return cores


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
