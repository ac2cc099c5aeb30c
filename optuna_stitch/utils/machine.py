"""Which machine this is, what of it this process may use, and whether a process still runs."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from optuna_stitch.utils.errors import StudyError


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
    cores = len(_affinity())
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


def check_address(what: str, host: str, port: int) -> None:
    """Raise if nothing can listen on an address.

    Args:
        what: Who would, at the beginning of a sentence.
        host: A name or number of this machine.
        port: From 0 to 65535.

    Raises:
        StudyError: If it is no address of this machine, or in use.
    """
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:  # the latter of a port beyond 65535
        why = getattr(error, "strerror", None) or error
        raise StudyError(
            f"{what} cannot listen on {host}:{port} ({why}); choose another `--port` or `--host`."
        ) from error


def core_mask() -> str:
    """The cores this process may use, by its affinity: bits of a hexadecimal number.

    Schedulers give processes of one machine cores of their own.
    """
    return hex(sum(1 << core for core in _affinity()))


def _affinity() -> set[int]:
    affinity = getattr(os, "sched_getaffinity", None)
    return set(range(os.cpu_count() or 1)) if affinity is None else affinity(0)


@contextmanager
def own_threads() -> Iterator[None]:
    """Let torch compute with no more threads than this process has cores, for a ``with`` block.

    torch does not know of a container's quota, and ``torchrun`` gives each process one thread
    where nobody says how many.
    """
    before = torch.get_num_threads()
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    share = max(1, usable_cores() // beside)
    if beside == 1 or os.environ.get("OMP_NUM_THREADS") != "1":
        share = min(before, share)
    torch.set_num_threads(share)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
