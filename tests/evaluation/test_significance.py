from __future__ import annotations

import math

import pytest
import torch

from optuna_stitch.evaluation.significance import holm, mcnemar, wilson_interval


def test_wilson_by_its_formula() -> None:
    n, p, z = 250, 0.9, 1.959963984540054
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson_interval(225, n) == pytest.approx((middle - half, middle + half))
    assert wilson_interval(250, 250)[1] == 1.0


def test_mcnemar_by_the_binomial() -> None:
    first = torch.tensor([True] * 8 + [False] * 2 + [True] * 90)
    second = torch.tensor([False] * 8 + [True] * 2 + [True] * 90)
    tail = sum(math.comb(10, k) for k in (8, 9, 10)) / 2**10
    assert mcnemar(first, second) == pytest.approx(2 * tail)
    assert mcnemar(second, first) == mcnemar(first, second)
    assert mcnemar(first, first) == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
