"""Progress bars with the time left, alike in every stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

# Progress and remarks go to stderr, results to stdout; both without emoji, since names may have
# what rich takes for one: `hub:package:Class`.
console = Console(stderr=True, emoji=False)


def results() -> Console:
    """Where results go: stdout as it is now, which a caller may have redirected."""
    return Console(emoji=False)


@contextmanager
def progress_bar(*, show_progress_bar: bool) -> Iterator[Progress]:
    """Open a group of progress bars.

    Args:
        show_progress_bar: Whether anything is shown.

    Yields:
        The group. ``add_task`` needs a ``note``, a text at the end of the bar.
    """
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("·"),
        TimeRemainingColumn(),
        TextColumn("left  {task.fields[note]}"),
        console=console,
        disable=not show_progress_bar,
    ) as progress:
        yield progress


def track(
    items: Iterable[T],
    description: str,
    *,
    total: int | None = None,
    show_progress_bar: bool,
) -> Iterator[T]:
    """Go through items under a progress bar.

    Args:
        items: What to go through.
        description: Stands before the bar.
        total: Number of items; their length, if None.
        show_progress_bar: Whether anything is shown.

    Yields:
        The items.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar(show_progress_bar=show_progress_bar) as progress:
        task = progress.add_task(description, total=total, note="")
        for item in items:
            yield item
            progress.advance(task)
