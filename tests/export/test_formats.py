"""What is written computes what the extracted module computes."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm.data
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import optuna_stitch as st
from optuna_stitch.export import onnx
from optuna_stitch.export.card import Origin
from optuna_stitch.export.export import export_network
from optuna_stitch.export.source import write_code
from optuna_stitch.export.trace import trace
from optuna_stitch.utils.errors import ExportError

Network = Callable[..., Tensor]


def load_code(folder: Path) -> Any:
    return runpy.run_path(str(folder / "network.py"))["load_network"]()


def load_program(folder: Path) -> Network:
    return torch.export.load(folder / "network.pt2").module()


def load_onnx(folder: Path) -> Network:
    session = onnxruntime.InferenceSession(folder / "network.onnx")
    names = [one.name for one in session.get_inputs()]
    assert all(one.shape[0] == "batch" for one in session.get_inputs())

    def run(*images: Tensor) -> Tensor:
        given = {name: pixels.numpy() for name, pixels in zip(names, images, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return run


def some(supernetwork: st.Supernetwork, seed: int) -> st.Genotype:
    """A random genotype with a few switches that matter."""
    generator = np.random.default_rng(seed)
    count = len(supernetwork.switches)
    while True:
        on = frozenset(generator.choice(count, size=min(count, 3), replace=False).tolist())
        output = ("ensemble", "a", "b")[seed % 3]
        genotype = supernetwork.canonical(st.Genotype(output, on))
        if genotype.on:
            return genotype


def inputs_of(supernetwork: st.Supernetwork, genotype: st.Genotype) -> int:
    module: Any = supernetwork.extract(genotype)
    return sum(node.op == "placeholder" for node in module.graph.nodes)


def images_of(supernetwork: st.Supernetwork, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [
        torch.randn(count, *view.input_size, generator=generator) for view in supernetwork.views
    ]


@torch.no_grad()
def assert_same(written: Network, module: nn.Module, supernetwork: st.Supernetwork) -> None:
    for count in (1, 7):
        images = images_of(supernetwork, count)
        assert torch.equal(written(*images), module(*images))


@pytest.mark.parametrize("pair", ["supernetwork", "cnn_vit"])
@pytest.mark.parametrize("seed", range(4))
def test_code_and_program_are_bit_for_bit_the_network(
    pair: str,
    seed: int,
    request: pytest.FixtureRequest,
    data: st.Data,
    origin: Origin,
    tmp_path: Path,
) -> None:
    supernetwork = request.getfixturevalue(pair)
    genotype = some(supernetwork, seed)
    formats = ("python", "program")
    export_network(
        supernetwork, genotype, tmp_path, split=data.test, origin=origin, formats=formats
    )
    module = supernetwork.extract(genotype)
    assert_same(load_code(tmp_path), module, supernetwork)
    assert_same(load_program(tmp_path), module, supernetwork)


@pytest.mark.parametrize("pair", ["supernetwork", "cnn_vit"])
def test_onnx_answers_alike(
    pair: str, request: pytest.FixtureRequest, data: st.Data, origin: Origin, tmp_path: Path
) -> None:
    supernetwork = request.getfixturevalue(pair)
    genotype = some(supernetwork, 3)
    export_network(
        supernetwork, genotype, tmp_path, split=data.test, origin=origin, formats=["onnx"]
    )
    assert [path.name for path in tmp_path.glob("network.*")].count("network.onnx") == 1
    assert not (tmp_path / "network.onnx.data").exists()
    module, run = supernetwork.extract(genotype), load_onnx(tmp_path)
    with torch.no_grad():
        for batch in data.test.batches(supernetwork.views, 100):
            found, expected = run(*batch.images), module(*batch.images)
            assert (found - expected).abs().max() <= 1e-4
            assert torch.equal(found.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("output", ["a", "b", "ensemble"])
def test_parents_and_their_ensemble_are_networks_too(
    output: Any, supernetwork: st.Supernetwork, data: st.Data, origin: Origin, tmp_path: Path
) -> None:
    genotype = st.Genotype(output)
    export_network(supernetwork, genotype, tmp_path, split=data.test, origin=origin)
    assert_same(load_code(tmp_path), supernetwork.extract(genotype), supernetwork)
    parts = {name.partition(".")[0] for name in load_file(tmp_path / "network.safetensors")}
    assert parts == ({"a", "b"} if output == "ensemble" else {output})


def test_weights_are_those_that_are_used(supernetwork: st.Supernetwork) -> None:
    """Without any one of them the network cannot run."""
    genotype = some(supernetwork, 1)
    text, weights = write_code(
        trace(supernetwork, genotype), supernetwork.switches, title="t", answer="logits"
    )
    made: dict[str, Any] = {"__name__": "network", "__file__": "network.py"}
    exec(compile(text, "network.py", "exec"), made)
    images = images_of(supernetwork, 1)
    whole = made["Network"](weights)
    assert torch.equal(whole(*images), supernetwork.extract(genotype)(*images))
    trained = sum(parameter.numel() for parameter in whole.parameters())
    assert trained == supernetwork.parameters(genotype)
    for left_out in weights:
        part = made["Network"]({name: w for name, w in weights.items() if name != left_out})
        with pytest.raises(AttributeError):
            part(*images)


def test_names_and_comments_say_where_things_come_from(supernetwork: st.Supernetwork) -> None:
    switch = next(i for i, switch in enumerate(supernetwork.switches) if switch.into == "b")
    genotype = supernetwork.canonical(st.Genotype("b", frozenset([switch])))
    text, weights = write_code(
        trace(supernetwork, genotype), supernetwork.switches, title="t", answer="logits"
    )
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


def test_fine_tuning_leaves_batchnorm_statistics(
    supernetwork: st.Supernetwork, data: st.Data, origin: Origin, tmp_path: Path
) -> None:
    export_network(supernetwork, some(supernetwork, 0), tmp_path, split=data.test, origin=origin)
    network = load_code(tmp_path)
    (images,) = images_of(supernetwork, 7)
    evaluated = network(images)
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


@pytest.fixture(scope="module")
def two_views(a: st.Parent, b: st.Parent) -> st.Supernetwork:
    """Parents that see the same image in two sizes and colours."""
    grey = st.load_parent(
        "test_resnet", num_classes=10, view=st.View((1, 40, 40), (0.3,), (0.2,), "bilinear", 0.9),
        model_args={"in_chans": 1},
    )  # fmt: skip
    made = st.stitch(grey, b, points="all")
    for parameter in made.stitches.parameters():
        parameter.data.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    return made


def test_two_views_are_two_inputs(
    two_views: st.Supernetwork, data: st.Data, origin: Origin, tmp_path: Path
) -> None:
    # a stitch into a branch leaves the rest of what reads the other input
    singles = [
        two_views.canonical(st.Genotype("ensemble", frozenset([switch])))
        for switch in range(len(two_views.switches))
    ]
    genotype = next(genotype for genotype in singles if inputs_of(two_views, genotype) == 2)
    export_network(two_views, genotype, tmp_path, split=data.test, origin=origin, formats=["all"])
    module = two_views.extract(genotype)
    assert_same(load_code(tmp_path), module, two_views)
    assert_same(load_program(tmp_path), module, two_views)
    images = images_of(two_views, 7)
    assert (load_onnx(tmp_path)(*images) - module(*images)).abs().max() <= 1e-4

    config = json.loads((tmp_path / "config.json").read_text())
    assert "pretrained_cfg" not in config
    assert [one["name"] for one in config["inputs"]] == ["images_0", "images_1"]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8))
    for one, view in zip(config["inputs"], two_views.views, strict=True):
        fields = timm.data.resolve_data_config(pretrained_cfg=one["pretrained_cfg"])
        seen = timm.data.create_transform(**fields)(image.convert(view.mode))
        assert torch.equal(seen, view.transform()(image.convert(view.mode)))


@pytest.mark.parametrize("output", ["a", "b"])
def test_of_two_views_one_may_be_all_that_is_needed(
    output: Any, two_views: st.Supernetwork, data: st.Data, origin: Origin, tmp_path: Path
) -> None:
    genotype = st.Genotype(output)
    export_network(two_views, genotype, tmp_path, split=data.test, origin=origin)
    view = {"a": two_views.a, "b": two_views.b}[output].view
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == list(view.input_size)
    images = torch.randn(2, *view.input_size)
    assert torch.equal(load_code(tmp_path)(images=images), two_views.extract(genotype)(images))


class Tied(nn.Module):
    """One weight in two layers, one layer called twice, a constant, and sizes by the batch."""

    def __init__(self, name: str = "tied") -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.one = nn.Conv2d(8, 8, 1)
        self.two = nn.Conv2d(8, 8, 1)
        self.two.weight = self.one.weight
        self.norm = nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.register_buffer("shift", torch.rand(8, 1, 1), persistent=False)
        self.head = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.stem(images))
        x = x + self.two(self.one(x).relu())
        x = self.norm(x * self.scale + self.shift)
        count, channels = x.shape[:2]
        x = x.reshape(count * channels, -1).mean(1).reshape(count, channels)
        place = torch.arange(count, device=images.device)[:, None]
        return self.head(x + torch.full((), 0.25) * (place >= 0))


def tied_pair(b: st.Parent) -> st.Supernetwork:
    torch.manual_seed(0)
    made = st.stitch(st.load_parent(Tied(), view=b.view), b, points="all")
    for parameter in made.stitches.parameters():
        parameter.data.normal_(std=0.05)
    return made


def test_tied_weights_are_kept_once(
    b: st.Parent, data: st.Data, origin: Origin, tmp_path: Path
) -> None:
    supernetwork = tied_pair(b)
    genotype = st.Genotype("ensemble")
    export_network(
        supernetwork,
        genotype,
        tmp_path,
        split=data.test,
        origin=origin,
        formats=["python", "program"],
    )
    module = supernetwork.extract(genotype)
    assert_same(load_code(tmp_path), module, supernetwork)
    assert_same(load_program(tmp_path), module, supernetwork)
    names = [name for name in load_file(tmp_path / "network.safetensors") if name[0] == "a"]
    assert {"a.one.weight", "a.two.weight"} & set(names) in ({"a.one.weight"}, {"a.two.weight"})
    assert {"a.shift", "a.scale"} <= set(names)
    assert "a.shift" in dict(load_code(tmp_path).named_buffers())


def test_code_runs_on_any_device(
    b: st.Parent, cnn_vit: st.Supernetwork, data: st.Data, origin: Origin, tmp_path: Path
) -> None:
    """Nothing stays on the processor: a device without memory takes all of it."""
    for place, supernetwork in enumerate((tied_pair(b), cnn_vit)):
        folder, genotype = tmp_path / str(place), st.Genotype("ensemble")
        export_network(supernetwork, genotype, folder, split=data.test, origin=origin)
        network = load_code(folder).to("meta")
        assert network(torch.empty(3, 3, 32, 32, device="meta")).shape == (3, 10)
    assert "device=images.device" in (tmp_path / "0" / "network.py").read_text()


def test_batchnorms_downstream_of_stitches_keep_their_statistics(
    b: st.Parent, data: st.Data, origin: Origin, tmp_path: Path
) -> None:
    """One module called twice has statistics of its own at each call."""
    supernetwork = tied_pair(b)
    st.fit(supernetwork, data.train, recalibrate=32)
    into = [i for i, s in enumerate(supernetwork.switches) if s.into == "a"]
    genotype = supernetwork.canonical(st.Genotype("a", frozenset(into[:1])))
    assert genotype.on
    export_network(supernetwork, genotype, tmp_path, split=data.test, origin=origin)
    assert_same(load_code(tmp_path), supernetwork.extract(genotype), supernetwork)


@torch.library.custom_op("stitch_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return 2 * x


twice.register_fake(torch.empty_like)


class Foreign(Tied):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(torch.ops.stitch_tests.twice(images))


def test_an_operator_that_is_not_torchs_is_named(
    b: st.Parent, data: st.Data, origin: Origin, tmp_path: Path
) -> None:
    supernetwork = st.stitch(st.load_parent(Foreign(), view=b.view), b, points="all")
    with pytest.raises(ExportError, match=r"operator stitch_tests\.twice.*as `program`"):
        export_network(
            supernetwork, st.Genotype("a"), tmp_path / "to", split=data.test, origin=origin
        )
    assert list(tmp_path.iterdir()) == []
    export_network(
        supernetwork,
        st.Genotype("a"),
        tmp_path / "to",
        split=data.test,
        origin=origin,
        formats=["program"],
    )
    with pytest.raises(ExportError, match=r"cannot be converted to ONNX"):
        export_network(
            supernetwork,
            st.Genotype("a"),
            tmp_path / "onnx",
            split=data.test,
            origin=origin,
            formats=["onnx"],
        )
    assert [path.name for path in tmp_path.iterdir()] == ["to"]


def test_large_onnx_weights_lie_beside_the_model(
    supernetwork: st.Supernetwork,
    data: st.Data,
    origin: Origin,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnx, "_LARGEST", 1000)
    genotype = st.Genotype("b")
    export_network(
        supernetwork, genotype, tmp_path / "to", split=data.test, origin=origin, formats=["onnx"]
    )
    assert (tmp_path / "to" / "network.onnx.data").stat().st_size > 4 * 50_000
    images = images_of(supernetwork, 7)
    difference = load_onnx(tmp_path / "to")(*images) - supernetwork.extract(genotype)(*images)
    assert difference.abs().max() <= 1e-4


def test_nothing_is_said_on_the_way(
    supernetwork: st.Supernetwork,
    data: st.Data,
    origin: Origin,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    genotype = some(supernetwork, 2)
    export_network(
        supernetwork, genotype, tmp_path, split=data.test, origin=origin, formats=["all"]
    )
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert [str(warning.message) for warning in recwarn] == []
