"""Go on with less at once where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from optuna_stitch.utils.errors import OptunaStitchError
from optuna_stitch.utils.progress import console

T = TypeVar("T")

# The processor's allocator, and libraries of GPUs, have no error of their own.
_SAID = ("can't allocate memory", "not enough memory", "error: out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a device, or of the machine, does not suffice.

    Args:
        error: Any.
    """
    said = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(text in said for text in _SAID)
    )


@contextmanager
def memory_for(error: type[OptunaStitchError], text: str) -> Iterator[None]:
    """Raise an error that says what to do where memory does not suffice.

    Args:
        error: Its type.
        text: What it says.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as reason:
        if not is_out_of_memory(reason):
            raise
        raise error(text) from reason


class AtOnce:
    """How many things are computed at once: halved where memory runs out, from then on.

    Args:
        count: How many at first.
        what: What they are called, in the plural.

    Attributes:
        count: How many now.

    Example:
        >>> from optuna_stitch.utils.memory import AtOnce
        >>> at_once = AtOnce(4, "images")
        >>> at_once(lambda part: part, 6)
        [slice(0, 4, None), slice(4, 6, None)]
    """

    def __init__(self, count: int, what: str) -> None:
        self.count = count
        self._what = what

    def __call__(self, work: Callable[[slice], T], total: int) -> list[T]:
        """Work on all, a part at a time.

        What a part has begun when memory runs out is begun again with its halves.

        Args:
            work: Takes the part: which of all things it is about.
            total: How many things there are.

        Returns:
            What each part gave, in order.

        Raises:
            Exception: What ``work`` raised, memory running out for a single thing included.
        """
        found: list[T] = []
        start, before = 0, self.count
        while start < total:
            size = min(self.count, total - start)
            try:
                found.append(work(slice(start, start + size)))
                start += size
                continue
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
            # out of the clause above, so that nothing is held of what was begun
            self.count = size // 2
        if self.count < before:
            console.print(f"Memory ran out: going on with {self.count} {self._what} at once.")
        return found
