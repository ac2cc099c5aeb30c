from __future__ import annotations

import pytest
import torch

from optuna_stitch.models.layouts import Layout, resample

LAYOUTS = [
    (Layout("NCHW", 4, (3, 5)), (2, 4, 3, 5)),
    (Layout("NHWC", 4, (3, 5)), (2, 3, 5, 4)),
    (Layout("NLC", 4, (3, 5), prefix=2), (2, 17, 4)),
    (Layout("NLC", 4, (3, 5)), (2, 15, 4)),
    (Layout("NC", 4, (1, 1)), (2, 4)),
]


@pytest.mark.parametrize(("layout", "shape"), LAYOUTS)
def test_join_undoes_split(layout: Layout, shape: tuple[int, ...]) -> None:
    feature = torch.randn(shape)
    grid, prefix = layout.split(feature)
    assert grid.shape == (2, 4, *layout.grid)
    assert (prefix is None) == (layout.prefix == 0)
    assert torch.equal(layout.join(grid, prefix), feature)


def test_resample_is_linear_and_keeps_constants() -> None:
    x, y = torch.randn(2, 1, 3, 4, 6, dtype=torch.float64)
    for size in [(2, 3), (8, 12), (2, 12), (4, 6), (1, 1), (3, 5)]:
        together = resample(2 * x + y, size)
        assert together.shape[-2:] == size
        assert torch.allclose(together, 2 * resample(x, size) + resample(y, size))
        assert torch.allclose(resample(torch.ones_like(x), size), torch.ones(1, 3, *size).double())
