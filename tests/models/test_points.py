from __future__ import annotations

import timm

from optuna_stitch.models.graph import capture_graph


def test_points_of_a_residual_network() -> None:
    graph = capture_graph(timm.create_model("resnet18"), (3, 224, 224), "resnet18")
    by_name = {point.name: point for point in graph.points}
    assert len(by_name) == len(graph.points)
    blocks = [point.name for point in graph.points if point.block]
    assert blocks == [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert by_name["layer1.0"].dominator
    assert not by_name["layer1.0.conv1"].dominator  # the shortcut goes around it
    assert str(by_name["layer2.1"].layout) == "NCHW 128×28×28"
    assert graph.points[0].depth == 0
    assert graph.points[-1].depth == 1
    assert graph.classes == 1000
    assert graph.excluded == {"x": "is the image itself", "fc": "is what the network returns"}


def test_token_layouts() -> None:
    name = "vit_tiny_patch16_224"
    graph = capture_graph(timm.create_model(name), (3, 224, 224), name)
    by_name = {point.name: point for point in graph.points}
    assert str(by_name["blocks.3"].layout) == "NLC 192×1+14×14"
    assert by_name["blocks.3"].block
    assert by_name["blocks.3"].dominator
    assert not by_name["blocks.3.mlp"].dominator
