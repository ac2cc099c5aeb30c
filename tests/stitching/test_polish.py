"""What follows stitches, refitted in closed form."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d, Conv2dSame, StdConv2d
from torch import Tensor, nn

import optuna_stitch as st
from optuna_stitch.stitching.finish import twin
from optuna_stitch.stitching.finished import load_finished, save_finished
from optuna_stitch.stitching.following import _HEARD
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.polish import Polish
from optuna_stitch.stitching.refit import Layer, Refit
from tests.helpers.networks import small_pair, small_parents


class _Plain(nn.Module):
    """Layers in a row: what one reads wrong the next can make good."""

    def __init__(self, *, shared: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv = nn.Conv2d(6, 6, 1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.last = self.conv if shared else nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.conv(self.stem(images))).relu()
        logits: Tensor = self.head(self.last(x).relu().mean((2, 3)))
        return logits


def _twins(**options: bool) -> st.Supernetwork:
    """A network and itself, stitched at all points."""
    torch.manual_seed(0)
    module = _Plain(**options)
    norm = module.norm
    norm.register_buffer("running_mean", torch.randn(6))
    norm.register_buffer("running_var", torch.rand(6) + 0.5)
    return st.stitch(*small_parents([module, copy.deepcopy(module)]), points="all")


def _crossing(supernetwork: st.Supernetwork, output: str, **more: Any) -> st.Subnetwork:
    """A network that crosses into b at its stem, by a random map."""
    torch.manual_seed(1)
    (number,) = [
        number
        for number, switch in enumerate(supernetwork.switches)
        if (switch.into, switch.target) == ("b", "stem")
    ]
    stitch = supernetwork.stitches[number]
    with torch.no_grad():
        stitch.weight.copy_(torch.randn_like(stitch.weight))
        stitch.bias.normal_()
    return supernetwork.subnetwork(Genotype(output, frozenset([number]), **more))


def _images(count: int = 60) -> list[tuple[Tensor]]:
    images = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    return [(some,) for some in images.split(25)]


@pytest.mark.parametrize("output", ["b", "ensemble"])
def test_the_next_layer_makes_good_what_can_be_undone(output: str) -> None:
    supernetwork = _twins()
    found = _crossing(supernetwork, output)
    content, own = supernetwork.content_hash(), twin(found)
    refits = Polish(own, found.supergraph).run(_images())
    assert [*refits] == ["b.conv", "b.last", "b.head"]
    assert refits["b.conv"].before < 0.5
    assert all(refit.after > 0.999 for refit in refits.values())
    parent = supernetwork.subnetwork({"output": output})
    with torch.no_grad():
        wanted, bad, good = (
            network.extract()(torch.cat([images for (images,) in _images(9)]))
            for network in (parent, found, own)
        )
    assert (good - wanted).norm() < 0.02 * (bad - wanted).norm()
    assert content == supernetwork.content_hash()  # what it was found in stays
    assert (own.macs, own.parameters) == (found.macs, found.parameters)


def test_layers_that_do_not_follow_a_stitch_alone_stay() -> None:
    assert Polish(twin(_twins().subnetwork({"output": "b"})), _twins().supergraph).layers == 0
    shared = _twins(shared=True)
    found = _crossing(shared, "b")
    polish = Polish(twin(found), shared.supergraph)
    assert [*polish.run(_images())] == ["b.head"]


class _Residual(nn.Module):
    """A block whose shortcut a stitch makes wrong, and a head that cannot make that good."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.branch = nn.Conv2d(6, 6, 1)
        self.norm = norm
        self.drop = nn.Dropout(0.5)
        self.head = StdConv2d(6, 10, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = x + self.drop(self.norm(self.branch(x)))
        return self.head(x).relu().mean((2, 3))


@pytest.mark.parametrize("norm", [nn.Identity(), nn.BatchNorm2d(6), nn.ReLU()])
def test_a_branch_makes_good_what_its_shortcut_lacks(norm: nn.Module) -> None:
    torch.manual_seed(0)
    if isinstance(norm, nn.BatchNorm2d):
        nn.init.uniform_(norm.weight, 0.5, 2)
    module = _Residual(norm)
    supernetwork = st.stitch(*small_parents([module, copy.deepcopy(module)]), points="all")
    found = _crossing(supernetwork, "b")
    own = twin(found)
    Polish(own, found.supergraph).run(_images())
    parent = supernetwork.subnetwork({"output": "b"})
    with torch.no_grad():
        wanted, bad, good = (
            network.extract()(torch.cat([images for (images,) in _images(9)]))
            for network in (parent, found, own)
        )
    left = float((good - wanted).norm() / (bad - wanted).norm())
    # a branch that ends in an activation is not what is added up
    assert (left > 0.2) == isinstance(norm, nn.ReLU), left


class _Scaled(nn.Conv2d):
    """More than its weights say."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "pointwise": lambda: nn.Conv2d(8, 6, 1),
    "neighbours": lambda: nn.Conv2d(8, 6, 3, padding=1),
    "strides": lambda: nn.Conv2d(8, 6, 3, stride=2, padding=1),
    "dilation": lambda: nn.Conv2d(8, 6, (3, 1), padding=(2, 0), dilation=2),
    "no padding": lambda: nn.Conv2d(8, 6, 2, stride=2),
    "by name": lambda: nn.Conv2d(8, 6, 3, padding="same"),
    "groups": lambda: nn.Conv2d(8, 6, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
    "as in TensorFlow": lambda: Conv2dSame(8, 6, 3, stride=2),
    "fully connected": lambda: nn.Linear(8, 6),
    "tokens": lambda: nn.Linear(8, 6, bias=False),
}


def _read(name: str) -> list[Tensor]:
    shape = {"fully connected": (500, 8), "tokens": (40, 9, 8)}.get(name, (40, 8, 9, 11))
    features = torch.randn(*shape, generator=torch.Generator().manual_seed(3))
    return [*features.split(len(features) // 2 + 1)]


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_learns_what_another_one_does(name: str) -> None:
    torch.manual_seed(0)
    layer, other, generator = LAYERS[name](), LAYERS[name](), torch.Generator().manual_seed(0)
    read = _read(name)
    wanted, counts = [other(feature) for feature in read], [len(feature) for feature in read]
    said = Layer.of(layer).refit(read, wanted, counts, generator, centred=True)
    assert said.before < 0.9
    assert said.after > 0.999
    assert said.ridge is not None
    for feature, target in zip(read, wanted, strict=True):
        # without a bias, what is missing on average is the next layer's
        difference = layer(feature) - target
        assert difference.norm() < 0.02 * target.norm()
    # what it does already stays
    assert Layer.of(other).refit(read, wanted, counts, generator, centred=True).ridge is None


@torch.no_grad()
@pytest.mark.parametrize(
    ("heard", "activation"),
    [((0.0, float("inf")), nn.ReLU()), ((0.0, 3.0), nn.Hardtanh(0.0, 3.0))],
)
def test_answers_are_right_where_an_activation_hears_them(
    heard: tuple[float, float], activation: nn.Module
) -> None:
    torch.manual_seed(0)
    other, start, read = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1), _read("")
    low, high = heard
    # no linear map answers this, but where it is heard
    wanted = []
    for feature in read:
        answers = 3 * other(feature)
        beyond = (answers >= high).float() - (answers <= low).float()
        wanted.append(answers + 3 * beyond * torch.rand_like(answers))
    errors = []
    for bounds in (None, [(torch.tensor(low), torch.tensor(high))] * len(read)):
        layer, generator = copy.deepcopy(start), torch.Generator().manual_seed(0)
        counts = [len(feature) for feature in read]
        said = Layer.of(layer).refit(read, wanted, counts, generator, centred=True, heard=bounds)
        assert (said.lacking is None) == (bounds is None)
        answers = torch.cat([layer(feature) for feature in read])
        errors.append((activation(answers) - activation(torch.cat(wanted))).square().mean())
        assert bounds is None or said.after > 0.9
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("activation", _HEARD, ids=lambda some: getattr(some, "__name__", some))
def test_activations_hear_what_lies_between_their_bounds(activation: Any) -> None:
    low, high = _HEARD[activation]
    if isinstance(activation, str):
        compute = getattr(Tensor, activation)
    else:
        compute = activation() if isinstance(activation, type) else activation
    values = torch.linspace(-8, 8, 321)
    told = compute(values.clone())
    for beyond in (told[values < low], told[values > high]):
        assert not len(beyond) or torch.equal(beyond, beyond[:1].expand_as(beyond))
    inside = told[(values >= low) & (values <= high)]
    assert (inside.diff() != 0).all()


class _Blocks(nn.Module):
    """Convolutions, each with something else behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        for name in ("plain", "six", "branch", "smooth", "last"):
            setattr(self, name, nn.Conv2d(6, 6, 1, bias=False))
        self.norm = nn.BatchNorm2d(6)
        self.norm_six = BatchNormAct2d(6, act_layer=nn.ReLU6)
        self.norm_branch = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = self.norm(self.plain(x)).relu()
        x = self.norm_six(self.six(x))
        x = (x + self.norm_branch(self.branch(x))).relu()
        x = nn.functional.silu(self.smooth(x))
        logits: Tensor = self.head(self.last(x).mean((2, 3)))
        return logits


@torch.no_grad()
def test_what_follows_a_layer_is_known() -> None:
    torch.manual_seed(0)
    module = _Blocks()
    for norm in (module.norm, module.norm_six, module.norm_branch):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.uniform_(-2, 2)
        norm.bias.normal_()
    supernetwork = st.stitch(*small_parents([module, copy.deepcopy(module)]), points="all")
    found = _crossing(supernetwork, "b")
    polish = Polish(twin(found), found.supergraph)
    following = {
        found.supergraph.operations[place].name: said for place, said in polish._following.items()
    }
    infinite = float("inf")
    heard = {name: said.heard for name, said in following.items()}
    assert heard == {
        "b.plain": (0.0, infinite),
        "b.six": (0.0, 6.0),
        "b.branch": (0.0, infinite),
        "b.smooth": None,
        "b.last": None,
        "b.head": None,
    }
    assert [name for name, said in following.items() if said.own is not None] == ["b.branch"]
    # outside its bounds the activation answers the same for all, inside it does not
    answers, added = 4 * torch.randn(2, 6, 5, 5), torch.randn(2, 6, 5, 5)
    after: dict[str, Callable[[Tensor], Tensor]] = {
        "b.plain": lambda y: module.norm.eval()(y).relu(),
        "b.six": lambda y: module.norm_six.eval()(y),
        "b.branch": lambda y: (module.norm_branch.eval()(y) + added).relu(),
    }
    for name, compute in after.items():
        low, high = following[name].bounds(added if name == "b.branch" else None)
        clipped = answers.clamp(low.expand_as(answers), high.expand_as(answers))
        torch.testing.assert_close(compute(clipped), compute(answers), rtol=1e-4, atol=1e-4)
        changes = (compute(answers + 0.01) - compute(answers)).abs() > 1e-4
        inside = (answers > low) & (answers < high)
        assert (changes != inside).float().mean() < 0.02


@torch.no_grad()
def test_polishing_says_what_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = _Blocks()
    supernetwork = st.stitch(*small_parents([module, copy.deepcopy(module)]), points="all")
    found = _crossing(supernetwork, "b")
    # a stitch that forgets half of what it reads, so that answers cannot be right everywhere
    supernetwork.stitches[min(found.on)].weight[:, 3:] = 0
    said = []
    for rounds in (0, 3):
        monkeypatch.setattr("optuna_stitch.stitching.refit._ROUNDS", rounds)
        own = twin(found)
        said.append(Polish(own, found.supergraph).run(_images(200)))
    assert said[1]["b.plain"].after > said[0]["b.plain"].after
    assert said[0]["b.plain"].lacking is None  # and its size is made good by its BatchNorm
    lacking = said[1]["b.plain"].lacking
    assert lacking is not None
    (norm,) = (o.norm for o in own.supergraph.operations if o.name == "b.norm")
    assert norm is not None
    assert module.norm.running_mean is not None
    torch.testing.assert_close(norm.mean, module.norm.running_mean - lacking)
    torch.testing.assert_close(norm.variance, module.norm.running_var)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["more", "standardized", "reflected", "no numbers"])
def test_what_is_no_linear_map_of_its_weights_stays(kind: str) -> None:
    made: dict[str, Callable[[], nn.Module]] = {
        "more": lambda: _Scaled(8, 6, 1),
        "standardized": lambda: StdConv2d(8, 6, 3, padding=1),
        "reflected": lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"),
        "no numbers": lambda: nn.Conv2d(8, 6, 1),
    }
    layer = made[kind]()
    weights = copy.deepcopy(layer.state_dict())
    read = _read("")
    wanted = [torch.randn_like(layer(feature)) for feature in read]
    counts = [len(feature) for feature in read]
    if kind == "no numbers":
        read[1][0, 0, 0, 0] = float("nan")
    said = Layer.of(layer).refit(read, wanted, counts, torch.Generator(), centred=True)
    assert said == Refit(0.0, 0.0, None)
    assert all(torch.equal(value, weights[name]) for name, value in layer.state_dict().items())


def _data(data: st.Data) -> st.Data:
    return dataclasses.replace(data, train=data.train.take(60), val=data.val.take(40))


def test_finishing_may_be_polishing_alone(
    a: st.Parent, b: st.Parent, data: st.Data, tmp_path: Path
) -> None:
    supernetwork = st.stitch(a, b, points="blocks")
    supernetwork.fit(data.train, images=40, recalibrate=20, kernel=1, rank_loss=None, budget=0.01)
    number = next(n for n, s in enumerate(supernetwork.switches) if s.into == "b")
    found = supernetwork.subnetwork(Genotype("b", frozenset([number])))
    done = st.finish(found, _data(data), epochs=0)
    said = done.finished
    assert said is not None
    assert (said.steps, said.planned, said.refitted_on) == (0, 0, 60)
    assert said.refitted > 3
    assert said.is_polished
    assert said.loss == said.refitted_loss < said.loss_before
    assert f"{said.refitted} layers that follow its stitches were refitted" in said.text
    assert "trained for" not in said.text
    save_finished(done, tmp_path / "polished.safetensors")
    again = load_finished(tmp_path / "polished.safetensors", found)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        answers = [network.extract()(images) for network in (found, done, again)]
    assert torch.equal(answers[1], answers[2])
    assert not torch.allclose(answers[0], answers[1])
    assert again.finished == said
    # where nothing is gained, it stays
    parent = st.finish(supernetwork.subnetwork({"output": "b"}), _data(data), epochs=0)
    assert parent.finished is not None
    assert parent.finished.text == "Nothing of it was trained."


def test_what_validation_images_lose_by_is_put_back(
    data: st.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    supernetwork = small_pair()
    supernetwork.fit(data.train.take(40), recalibrate=10)
    found = supernetwork.subnetwork(Genotype("b", frozenset([2])))

    def spoil(work: Polish, *_: object) -> dict[str, Refit]:
        for value in work._changing():
            value.mul_(-3)
        return {"b.conv": Refit(0.5, 0.6, 1.0)}

    monkeypatch.setattr(Polish, "run", spoil)
    done = st.finish(found, _data(data), epochs=0)
    assert done.finished is not None
    assert not done.finished.is_polished
    assert "put back: validation images gained nothing" in done.finished.text
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(done.extract()(images), twin(found).extract()(images))


def test_memory_that_runs_out_takes_fewer_images(
    data: st.Data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    supernetwork = small_pair()
    supernetwork.fit(data.train.take(40), recalibrate=10)
    found, run = supernetwork.subnetwork(Genotype("b", frozenset([2]))), Polish.run
    counts: list[int] = []

    def scarce(work: Polish, batches: Sequence[Sequence[Tensor]], *rest: Any) -> Any:
        counts.append(sum(len(images) for (images,) in batches))
        if counts[-1] > 20:
            for value in work._changing():
                value.zero_()
            raise torch.OutOfMemoryError("out of memory")
        return run(work, batches, *rest)

    monkeypatch.setattr(Polish, "run", scarce)
    monkeypatch.setattr(Polish, "largest", 50)
    done = st.finish(found, _data(data), epochs=0)
    assert counts == [50, 25, 12]
    assert "room to polish on 12 images" in capsys.readouterr().err
    assert done.finished is not None
    assert done.finished.refitted_on == 12
    monkeypatch.setattr(Polish, "largest", 9)
    done = st.finish(found, _data(data), epochs=0)
    assert "not polished: 9 images are too few" in " ".join(capsys.readouterr().err.split())
    assert done.finished is not None
    assert done.finished.refitted == 0


@pytest.mark.parametrize("kind", ["cascade", "segments", "two jobs", "vit"])
def test_all_that_is_found_can_be_polished(
    kind: str, a: st.Parent, vit: st.Parent, data: st.Data
) -> None:
    images, more = data, {}
    output: str = {"cascade": "a then both", "two jobs": "both"}.get(kind, "b")
    if kind == "vit":
        supernetwork = st.stitch(a, vit, points="blocks")
    elif kind == "two jobs":
        one = small_pair()
        supernetwork = st.stitch(one.a, one.b, points="all", outputs=["both"])
        images = st.DataPair(data, data)  # type: ignore[assignment]
    else:
        supernetwork = small_pair(segments=kind == "segments")
    if kind == "segments":
        images = st.load_data("noise/5/pixels", train={"images": 40}, val={"images": 20})
    if kind == "cascade":
        more = {"threshold": 0.3}
    supernetwork.fit(images.train, images=40, recalibrate=10, kernel=1)
    into_b = next(n for n, s in enumerate(supernetwork.switches) if s.into == "b")
    found = supernetwork.subnetwork(Genotype(output, frozenset([into_b]), **more))
    done = st.finish(found, images, epochs=0, polish=40)
    assert done.finished is not None
    assert done.finished.refitted >= 1
    assert done.finished.refitted_loss is not None  # a finite number
