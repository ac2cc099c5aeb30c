"""The code that is written: what it holds, what it is called, and how it behaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optuna_stitch as st
from optuna_stitch.export.source import inline_regions, write_code
from optuna_stitch.export.trace import trace
from optuna_stitch.stitching.genotype import Genotype
from tests.helpers.exports import Tied, assert_same, images_of, small_pair, some


def network_of(text: str, weights: dict[str, Tensor]) -> Any:
    """The network that a file of code makes of weights."""
    made: dict[str, Any] = {"__name__": "network", "__file__": "network.py"}
    exec(compile(text, "network.py", "exec"), made)
    return made["Network"](weights)


@pytest.mark.parametrize("output", [pytest.param("a", marks=pytest.mark.slow), "b", "ensemble"])
def test_parents_and_their_ensemble_are_networks_too(
    output: Any, supernetwork: st.Supernetwork
) -> None:
    subnetwork = supernetwork.subnetwork({"output": output})
    text, weights = write_code(trace(subnetwork))
    assert_same(network_of(text, weights), subnetwork, images_of(supernetwork, 7))
    parts = {name.partition(".")[0] for name in weights}
    assert parts == ({"a", "b"} if output == "ensemble" else {output})


def test_weights_are_those_that_are_used() -> None:
    """Without any one of them the network cannot run."""
    supernetwork = small_pair(Tied)
    subnetwork = some(supernetwork, 1)
    text, weights = write_code(trace(subnetwork))
    images = images_of(supernetwork, 1)
    whole = network_of(text, weights)
    assert torch.equal(whole(*images), subnetwork.extract()(*images))
    assert sum(parameter.numel() for parameter in whole.parameters()) == subnetwork.parameters
    for left_out in weights:
        part = network_of(text, {name: w for name, w in weights.items() if name != left_out})
        with pytest.raises(AttributeError):
            part(*images)


def test_names_and_comments_say_where_things_come_from(supernetwork: st.Supernetwork) -> None:
    switch = next(i for i, switch in enumerate(supernetwork.switches) if switch.into == "b")
    subnetwork = supernetwork.subnetwork(Genotype("b", frozenset([switch])))
    text, weights = write_code(trace(subnetwork, title='From "a"\nto b'))
    assert text.startswith('"""From \'a\' to b.\n')
    lines = [line.strip() for line in text.splitlines()]
    crossing = lines.index(f"# stitch {switch}: {supernetwork.switches[switch].name}")
    sections = [
        (place, line) for place, line in enumerate(lines) if line.startswith(("# a", "# b"))
    ]
    assert {line[2] for place, line in sections if place < crossing} == {"a"}
    assert {line[2] for place, line in sections if place > crossing} == {"b"}
    parents = {"a": supernetwork.a.module, "b": supernetwork.b.module}
    for name in weights:
        side, _, path = name.partition(".")
        if side in parents:
            assert path in parents[side].state_dict()
    assert f"stitches.{switch}.weight" in weights


def test_fine_tuning_leaves_batchnorm_statistics(supernetwork: st.Supernetwork) -> None:
    network = network_of(*write_code(trace(some(supernetwork, 0))))
    (images,) = images_of(supernetwork, 7)
    evaluated = network.eval()(images)
    assert torch.equal(network.train()(images), evaluated)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    nn.functional.cross_entropy(network(images), torch.arange(7)).backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    after = network.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    buffers = {name for name, _ in network.named_buffers()}
    assert any(name.endswith("running_mean") for name in buffers)
    assert not moved & buffers
    assert len(moved) > 0.9 * (len(after) - len(buffers))
    assert not torch.equal(network(images), evaluated)


def test_code_runs_on_any_device(unfitted: st.Supernetwork) -> None:
    """Nothing stays on the processor: a device without memory takes all of it."""
    for supernetwork, output in ((small_pair(Tied), "ensemble"), (unfitted, "b")):
        text, weights = write_code(trace(supernetwork.subnetwork({"output": output})))
        network = network_of(text, weights).to("meta")
        assert network(torch.empty(3, 3, 32, 32, device="meta")).shape == (3, 10)
        if supernetwork is not unfitted:
            assert "device=images.device" in text


def test_batchnorms_downstream_of_stitches_keep_their_statistics(data: st.Data) -> None:
    """One module called twice has statistics of its own at each call."""
    supernetwork = small_pair(Tied)
    supernetwork.fit(data.train, recalibrate=32)
    into = [i for i, s in enumerate(supernetwork.switches) if s.into == "a"]
    subnetwork = supernetwork.subnetwork(Genotype("a", frozenset(into[:1])))
    assert subnetwork.on
    network = network_of(*write_code(trace(subnetwork)))
    assert_same(network, subnetwork, images_of(supernetwork, 7))


class Regions(nn.Module):
    """Parts without gradients and without autocast, one inside the other."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = (x * self.weight).sum(1, keepdim=True)
            with torch.autocast("cpu", enabled=False):
                low, high = torch.aminmax(scale * x, dim=1, keepdim=True)
        return (x - low) * scale + high.cos()


def test_regions_become_part_of_one_graph() -> None:
    module = Regions()
    x = torch.rand(4, 3)
    program = torch.export.export(module, (x,), strict=False)
    regions = [n for n in program.graph.nodes if "wrap_with" in str(n.target)]
    assert regions
    graph = inline_regions(program.graph_module)
    assert not [n for n in graph.nodes if "wrap_with" in str(n.target)]
    flat = torch.fx.GraphModule(program.graph_module, graph)
    (answer,) = flat(module.weight, x)
    assert torch.equal(answer, module(x))
    kept = {n.target for n in graph.nodes if n.op == "call_function"}
    assert {torch.ops.aten.cos.default, torch.ops.aten.aminmax.default} <= kept
