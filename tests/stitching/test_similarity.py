from __future__ import annotations

import torch

import optuna_stitch as st
from optuna_stitch.stitching.matching import LinearCKA, linear_cka, match, select_points


def test_cka_by_its_properties() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 6, 4, 4)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6))
    turned = 3 * torch.einsum("nchw,cd->ndhw", x, rotation) + 1
    assert abs(linear_cka(x, turned) - 1) < 1e-5
    assert linear_cka(x, torch.randn(50, 6, 4, 4)) < 0.1
    assert linear_cka(x, torch.zeros(50, 2, 4, 4)) == 0


def test_a_network_is_most_like_itself(a: st.Parent, data: st.Data) -> None:
    graph = a.graph()
    points = select_points(graph, "dominators")
    similarity = LinearCKA((a.view, a.view), data.train.take(24))
    found = similarity(graph, graph, points, points)
    assert (abs(found.diagonal() - 1) < 1e-6).all()
    assert (found <= 1 + 1e-6).all()
    pairs = match(graph, graph, points="dominators", similarity=similarity)
    assert all(pair.a == pair.b for pair in pairs)
    assert len(pairs) == len(points)


def test_similarity_changes_what_is_matched(a: st.Parent, b: st.Parent, data: st.Data) -> None:
    plain = st.stitch(a, b, points="all")
    weighed = st.stitch(a, b, points="all", similar_on=data.train.take(24))
    assert plain.matches != weighed.matches
