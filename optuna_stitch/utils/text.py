"""Text for people."""

from __future__ import annotations

from collections.abc import Sequence


def shape_text(shape: Sequence[int]) -> str:
    """A shape as people write it: ``3×224×224``."""
    return "×".join(map(str, shape))
