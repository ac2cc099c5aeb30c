from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import optuna_stitch as st
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.supergraph import mean_of_probabilities
from optuna_stitch.utils.errors import ArtifactError, MatchError, StudyError
from tests.helpers.networks import networks


def test_with_all_switches_off_a_parent_is_itself(
    supernetwork: st.Supernetwork, images: Tensor
) -> None:
    with torch.no_grad():
        a, b = supernetwork.a.module(images), supernetwork.b.module(images)
        assert torch.equal(supernetwork.subnetwork({"output": "a"}).extract()(images), a)
        assert torch.equal(supernetwork.subnetwork({"output": "b"}).extract()(images), b)
        both = supernetwork.subnetwork({"output": "ensemble"}).extract()(images)
    assert torch.equal(both, mean_of_probabilities(a, b))
    assert torch.allclose(both.softmax(1), (a.softmax(1) + b.softmax(1)) / 2, atol=1e-6)


def test_costs_count_only_what_the_output_needs(supernetwork: st.Supernetwork) -> None:
    graphs = supernetwork.graphs
    assert supernetwork.subnetwork(Genotype("a")).macs == graphs["a"].macs
    assert supernetwork.subnetwork(Genotype("b")).macs == graphs["b"].macs
    assert (
        supernetwork.subnetwork(Genotype("ensemble")).macs == graphs["a"].macs + graphs["b"].macs
    )
    assert supernetwork.subnetwork(Genotype("a")).parameters == graphs["a"].parameters
    into_b = next(i for i, switch in enumerate(supernetwork.switches) if switch.into == "b")
    unreachable = Genotype("a", frozenset([into_b]))
    assert supernetwork.subnetwork(unreachable).genotype == Genotype("a")
    assert supernetwork.subnetwork(unreachable).macs == graphs["a"].macs


def test_crossing_by_hand(supernetwork: st.Supernetwork, images: Tensor) -> None:
    """The last match's a -> b: all of a up to the point, the stitch, then the rest of b."""
    supernetwork = supernetwork.keep(range(len(supernetwork.switches)))
    supernetwork.calibration = None
    index = len(supernetwork.switches) - 2
    switch = supernetwork.switches[index]
    assert switch.into == "b"
    kept: dict[str, Tensor] = {}

    class Read(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            kept[n.name] = value  # type: ignore[assignment]
            return value

    class Replace(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            return supernetwork.stitches[index](kept[switch.source]) if n.name == target else value

    target = switch.target
    with torch.no_grad():
        Read(supernetwork.graphs["a"].module).run(images)
        expected = Replace(supernetwork.graphs["b"].module).run(images)
        genotype = Genotype("b", frozenset([index]))
        assert torch.equal(supernetwork.subnetwork(genotype).extract()(images), expected)
    macs = supernetwork.subnetwork(genotype).macs
    assert macs < supernetwork.graphs["a"].macs + supernetwork.graphs["b"].macs


def test_params_and_genotypes_are_the_same_thing(supernetwork: st.Supernetwork) -> None:
    genotype = Genotype("ensemble", frozenset([0, 3]))
    params = supernetwork.subnetwork(genotype).params
    assert len(params) == len(supernetwork.switches) + 1
    assert params[supernetwork.switches[3].name] == "on"
    assert supernetwork.subnetwork(params).genotype == genotype
    with pytest.raises(StudyError, match="no switch"):
        supernetwork.subnetwork({"output": "a", "a.nothing -> b.nowhere": "on"})
    with pytest.raises(StudyError, match="cannot be 'maybe'"):
        supernetwork.subnetwork({**params, supernetwork.switches[0].name: "maybe"})
    with pytest.raises(StudyError, match="lack 'output'"):
        supernetwork.subnetwork({})


def test_names_are_unique_and_readable(supernetwork: st.Supernetwork) -> None:
    names = [switch.name for switch in supernetwork.switches]
    assert len(set(names)) == len(names)
    for pair in supernetwork.matches:
        assert f"a.{pair.a.name} -> b.{pair.b.name}" in names
        assert f"b.{pair.b.name} -> a.{pair.a.name}" in names


@pytest.mark.slow
def test_tokens_and_grids_cross(cnn_vit: st.Supernetwork, images: Tensor) -> None:
    kinds = {(pair.a.layout.kind, pair.b.layout.kind) for pair in cnn_vit.matches}
    assert ("NCHW", "NLC") in kinds
    with torch.no_grad():
        for index, switch in enumerate(cnn_vit.switches):
            crossed = cnn_vit.subnetwork(Genotype(switch.into, frozenset([index])))
            logits = crossed.extract()(images)
            assert logits.shape == (5, 10)
            assert logits.isfinite().all()


def test_some_of_the_stitches_can_be_kept(
    supernetwork: st.Supernetwork, images: Tensor, tmp_path: Path
) -> None:
    chosen = [1, 4, len(supernetwork.switches) - 2]
    smaller = supernetwork.keep(chosen)
    assert smaller.switches == tuple(supernetwork.switches[switch] for switch in chosen)
    assert len(smaller.matches) == 3
    smaller.save(tmp_path)
    for kept in (smaller, st.Supernetwork.load(tmp_path)):
        for place, switch in enumerate(chosen):
            into = supernetwork.switches[switch].into
            with torch.no_grad():
                whole = Genotype(into, frozenset([switch]))
                part = Genotype(into, frozenset([place]))
                expected = supernetwork.subnetwork(whole).extract()(images)
                found = kept.subnetwork(part).extract()(images)
            assert torch.equal(found, expected)
    assert supernetwork.keep([1, 1]).switches == (supernetwork.switches[1],)
    with pytest.raises(MatchError, match="No stitch is kept"):
        supernetwork.keep([])
    for wrong in (-1, len(supernetwork.switches), "a -> b"):
        with pytest.raises(MatchError, match=f"{wrong!r} is no switch"):
            supernetwork.keep([wrong])


def test_parents_that_see_images_differently(a: st.Parent, data: st.Data) -> None:
    other = st.load_parent("test_efficientnet", num_classes=10, input_size=48, mean=(0.1,) * 3)
    supernetwork = st.stitch(a, other)
    assert supernetwork.views == (a.view, other.view)
    batch = next(data.test.batches(supernetwork.views, 20))
    with torch.no_grad():
        alone = other.module(batch.images[1])
        assert torch.equal(
            supernetwork.subnetwork({"output": "b"}).extract()(batch.images[1]), alone
        )
        both = supernetwork.subnetwork({"output": "ensemble"}).extract()(*batch.images)
        assert torch.equal(both, mean_of_probabilities(a.module(batch.images[0]), alone))
        evaluator = st.Evaluator(supernetwork, data.test.take(20), kernels="plain")
        evaluated = evaluator.logits(networks(supernetwork, [Genotype("b")]))
        assert torch.equal(evaluated[0], alone)


def test_parents_of_different_classes(a: st.Parent) -> None:
    other = st.load_parent("test_efficientnet", num_classes=7, input_size=32)
    with pytest.raises(MatchError, match=r"of 10 classes, .*of 7 classes: they have two jobs"):
        st.stitch(a, other, outputs=["a", "b", "ensemble"])


def test_saved_and_loaded_it_is_the_same(
    supernetwork: st.Supernetwork, images: Tensor, tmp_path: Path
) -> None:
    supernetwork.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "supernetwork.json",
        "supernetwork.safetensors",
    ]
    loaded = st.Supernetwork.load(tmp_path)
    assert loaded.content_hash() == supernetwork.content_hash()
    assert loaded.switches == supernetwork.switches
    genotype = Genotype("ensemble", frozenset([1, 4]))
    with torch.no_grad():
        expected = supernetwork.subnetwork(genotype).extract()(images)
        assert torch.equal(loaded.subnetwork(genotype).extract()(images), expected)


@pytest.mark.parametrize("name", ["supernetwork.json", "supernetwork.safetensors"])
@pytest.mark.parametrize("content", [None, b"broken"])
def test_a_broken_artifact_is_refused(
    supernetwork: st.Supernetwork, tmp_path: Path, name: str, content: bytes | None
) -> None:
    supernetwork.save(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match="build it again"):
        st.Supernetwork.load(tmp_path)


def test_a_changed_artifact_is_refused(supernetwork: st.Supernetwork, tmp_path: Path) -> None:
    supernetwork.save(tmp_path)
    weights = load_file(tmp_path / "supernetwork.safetensors")
    weights["stitches.0.bias"] += 1
    save_file(weights, tmp_path / "supernetwork.safetensors")
    with pytest.raises(ArtifactError, match="not the one that was saved"):
        st.Supernetwork.load(tmp_path)


def test_a_module_of_ones_own(b: st.Parent, data: st.Data, images: Tensor, tmp_path: Path) -> None:
    def make() -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, stride=2),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            torch.nn.Linear(8, 10),
        )

    own = st.load_parent(make(), input_size=32, name="mine")
    supernetwork = st.stitch(own, b)
    supernetwork.fit(data.train.take(50))
    with torch.no_grad():
        assert torch.equal(
            supernetwork.subnetwork({"output": "a"}).extract()(images), own.module(images)
        )
    supernetwork.save(tmp_path)
    with pytest.raises(ArtifactError, match=r"mine, is a module of your own"):
        st.Supernetwork.load(tmp_path)
    again = st.load_parent(make(), input_size=32, name="mine")
    loaded = st.Supernetwork.load(tmp_path, a=again)
    assert loaded.content_hash() == supernetwork.content_hash()
