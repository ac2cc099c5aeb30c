"""The supernetwork: two frozen parents, the stitches between them, and the switches."""

from __future__ import annotations

import hashlib
import html
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from optuna_stitch.data.splits import Split
from optuna_stitch.data.view import View
from optuna_stitch.models.capture import TRACED_BATCH
from optuna_stitch.models.graph import NetworkGraph
from optuna_stitch.models.layouts import Layout
from optuna_stitch.models.parent import Parent
from optuna_stitch.stitching.genotype import Genotype, Side, Switch
from optuna_stitch.stitching.layer import Stitch
from optuna_stitch.stitching.matching import LinearCKA, Match, PointKind, match
from optuna_stitch.stitching.program import Program, program_of
from optuna_stitch.stitching.recalibration import Calibration, recalibrate
from optuna_stitch.stitching.subnetwork import extract
from optuna_stitch.stitching.supergraph import SIDES, Supergraph
from optuna_stitch.utils.errors import MatchError, first_line
from optuna_stitch.utils.progress import console

_MACS = ["macs_into_b", "macs_into_a"]

_HEADS = {
    "point_a": "point in a",
    "layout_a": "layout in a",
    "point_b": "point in b",
    "layout_b": "layout in b",
    "macs_into_b": "a → b, M MACs",
    "macs_into_a": "b → a, M MACs",
}


def match_table(matches: Sequence[Match], stitches: Mapping[int, Stitch]) -> pd.DataFrame:
    """A row for each match.

    Args:
        matches: In topological order of both networks.
        stitches: By number, ``2 m`` for ``a -> b`` at match m and ``2 m + 1`` for ``b -> a``.

    Returns:
        By ``match``, from 1: ``point_a``, ``layout_a``, ``point_b``, ``layout_b``,
        ``macs_into_b`` and ``macs_into_a`` (multiply-accumulates per image of the stitch
        ``a -> b`` and of ``b -> a``; missing where there is no such stitch).
    """
    rows = []
    for place, pair in enumerate(matches):
        ways = [stitches.get(2 * place + way) for way in range(2)]
        macs = [stitch.macs if stitch else None for stitch in ways]
        points = [str(part) for end in (pair.a, pair.b) for part in (end.name, end.layout)]
        rows.append([*points, *macs])
    index = pd.RangeIndex(1, len(rows) + 1, name="match")
    table = pd.DataFrame(rows, index=index, columns=list(_HEADS))
    return table.astype(dict.fromkeys(_MACS, "Int64"))


def as_html(a: str, b: str, table: pd.DataFrame) -> str:
    """What notebooks show of a supernetwork: its parents, and its table of matches.

    Args:
        a: Name of parent a.
        b: Name of parent b.
        table: See `match_table`.

    Returns:
        HTML without colours of its own, since notebooks style tables.
    """
    stitches = int(table[_MACS].count().sum())
    shown = table.reset_index()
    for column in _MACS:
        shown[column] = [f"{macs / 1e6:,.3f}" if pd.notna(macs) else "–" for macs in table[column]]
    with pd.option_context("display.max_colwidth", None):
        rows = shown.rename(columns=_HEADS).to_html(index=False, border=0)
    return (
        f"<div><b>{html.escape(a)} × {html.escape(b)}</b></div>\n"
        f"<div>{len(table)} matches, {stitches} stitches</div>\n"
        f'<div style="max-height: 30em; overflow: auto">\n{rows}\n</div>'
    )


_LARGEST_BATCH = 100

_FEATURE_BYTES = 1 << 28


class Supernetwork:
    """Two parents with stitches in both directions at every match.

    Every stitch has a switch, ``off`` (the parent's own feature) or ``on`` (the stitched one); an
    output switch picks parent a, parent b or their ensemble, the mean of their probabilities. As
    made, stitches are zero: see `fit`.

    Args:
        a: Parent a.
        b: Parent b.
        graphs: Both captured, by side.
        matches: Pairs of points, in the order of both networks.
        kept: Which stitches there are, ``2 m`` for ``a -> b`` at match m and ``2 m + 1`` for
            ``b -> a``; all, if None.

    Attributes:
        switches: One per stitch: for each match ``a -> b``, then ``b -> a``.
        stitches: In the switches' order.
        supergraph: What a genotype computes.
        calibration: Images that BatchNorm statistics are estimated on downstream of stitches; None
            where BatchNorms keep their parents' own.
    """

    def __init__(
        self,
        a: Parent,
        b: Parent,
        graphs: dict[Side, NetworkGraph],
        matches: Sequence[Match],
        kept: Sequence[int] | None = None,
    ) -> None:
        self.a = a
        self.b = b
        self.graphs = graphs
        self.matches = tuple(matches)
        self.kept = tuple(range(2 * len(self.matches)) if kept is None else kept)
        self.calibration: Calibration | None = None
        ends = [_both_ways(match) for match in self.matches]
        sides = [ends[number // 2][number % 2] for number in self.kept]
        self.switches = tuple(switch for switch, _, _ in sides)
        self.lay([Stitch(source, target) for _, source, target in sides])

    def lay(self, stitches: Sequence[Stitch]) -> None:
        """Put stitches in place of those there are, in the switches' order."""
        self.laid = tuple(stitches)
        self.stitches = nn.ModuleList(stitches)
        views: dict[Side, View] = {"a": self.a.view, "b": self.b.view}
        self.supergraph = Supergraph(self.graphs, views, self.switches, self.laid)

    def keep(self, switches: Sequence[int]) -> Supernetwork:
        """The same with some of the stitches only.

        Args:
            switches: Indices of the switches to keep.

        Returns:
            A supernetwork that shares everything with this one.

        Raises:
            MatchError: If none is kept.
        """
        if not switches:
            raise MatchError("No stitch is kept, so that there is nothing to search; keep more.")
        numbers = [self.kept[switch] for switch in sorted(switches)]
        used = sorted({number // 2 for number in numbers})
        kept = [2 * used.index(number // 2) + number % 2 for number in numbers]
        matches = [self.matches[place] for place in used]
        smaller = Supernetwork(self.a, self.b, self.graphs, matches, kept)
        smaller.lay([self.laid[switch] for switch in sorted(switches)])
        smaller.calibration = self.calibration and self.calibration.again()
        return smaller

    @property
    def views(self) -> tuple[View, ...]:
        """The distinct ways in which the parents see images; batches hold one tensor for each."""
        return self.supergraph.views

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.graphs["a"].classes

    @property
    def segments(self) -> bool:
        """Whether the parents label every pixel instead of the image."""
        shape = self.graphs["a"].costs[self.graphs["a"].output.name].shape
        return shape is not None and len(shape) == 4

    @property
    def batch_size(self) -> int:
        """How many images at once keep the largest feature within a quarter of a GiB."""
        largest = max(
            math.prod(cost.shape) // TRACED_BATCH
            for graph in self.graphs.values()
            for cost in graph.costs.values()
            if cost.shape is not None
        )
        return max(1, min(_LARGEST_BATCH, _FEATURE_BYTES // (4 * largest)))

    @cached_property
    def memory_format(self) -> torch.memory_format:
        """How images lie in memory: channels last, which is faster, where both parents take it."""
        shapes = [view.input_size for view in self.views]
        program = program_of(self.supergraph, self.supergraph.resolve(Genotype("ensemble")))
        images = [torch.zeros(2, *s).contiguous(memory_format=torch.channels_last) for s in shapes]
        try:
            with torch.no_grad():
                program.run(images)
        except RuntimeError as error:
            # a network may rely on where numbers lie, with `Tensor.view`
            console.print(f"Channels stay first in memory: {first_line(error)}")
            return torch.contiguous_format
        return torch.channels_last

    def genotype(self, params: Mapping[str, Any] | Genotype) -> Genotype:
        """The genotype of a trial's parameters.

        Raises:
            StudyError: If a parameter is no switch of this supernetwork.
        """
        return params if isinstance(params, Genotype) else Genotype.of(params, self.switches)

    def params(self, genotype: Genotype) -> dict[str, str]:
        """A genotype as a trial's parameters."""
        return genotype.params(self.switches)

    def canonical(self, genotype: Genotype) -> Genotype:
        """The same subnetwork with every switch off that cannot reach the output."""
        return Genotype(genotype.output, self.supergraph.resolve(genotype).used)

    def macs(self, genotype: Genotype) -> int:
        """Multiply-accumulates per image, counted over what the output needs."""
        return self.supergraph.macs(self.supergraph.resolve(genotype))

    def parameters(self, genotype: Genotype) -> int:
        """Number of parameters of all that the output needs, stitches included."""
        return self.supergraph.parameters(self.supergraph.resolve(genotype))

    def weight_bytes(self, genotype: Genotype) -> int:
        """Bytes of all parameters that the output needs, as they are stored."""
        return self.supergraph.weight_bytes(self.supergraph.resolve(genotype))

    def activation_bytes(self, genotype: Genotype) -> int:
        """Bytes per image of the values that are alive at once, at most, in 32 bits a number.

        Every value is freed after its last use; views count as values of their own.
        """
        return 4 * program_of(self.supergraph, self.supergraph.resolve(genotype)).elements

    def extract(self, params: Mapping[str, Any] | Genotype) -> nn.Module:
        """Take a subnetwork out as a plain module that needs none of us to run.

        Args:
            params: A trial's parameters, or a genotype.

        Returns:
            A module with only what it uses. It takes one tensor of images per view that it needs
            (one, where both parents see images alike) and returns logits ``(N, classes)``.

        Raises:
            StudyError: If a parameter is no switch of this supernetwork.
        """
        resolved = self.supergraph.resolve(self.genotype(params))
        modules = {side: self.graphs[side].module for side in SIDES}
        program = program_of(self.supergraph, resolved)
        with torch.no_grad():
            self.recalibrate(program)
        statistics = {program.places[step]: own for step, own in program.statistics.items()}
        return extract(self.supergraph, resolved, modules, self.stitches, statistics)

    def recalibrate(
        self, program: Program, given: Sequence[Mapping[int, Tensor]] | None = None
    ) -> list[list[Any]]:
        """Estimate BatchNorm statistics downstream of stitches, where there are images for it.

        Args:
            program: What to change, in place.
            given: For every calibration batch the values of the program's given steps.

        Returns:
            What the program returns on every calibration batch, where it keeps values; nothing
            where there is nothing to estimate.
        """
        if self.calibration is None or not (program.stitched_norms or given is not None):
            return []
        layout = self.memory_format
        return recalibrate(program, self.supergraph, self.calibration, layout, given)

    def features(self, nodes: Sequence[tuple[Side, str]]) -> Program:
        """A program that returns raw features of the parents.

        Args:
            nodes: The sides and nodes that are wanted.
        """
        resolved = self.supergraph.resolve(Genotype("ensemble"))
        wanted = [self.supergraph.raw(side, node) for side, node in nodes]
        return program_of(self.supergraph, resolved, wanted)

    def match_table(self) -> pd.DataFrame:
        """The matches with what their stitches cost; see `match_table.match_table`."""
        return match_table(self.matches, dict(zip(self.kept, self.laid, strict=True)))

    def _repr_html_(self) -> str:
        return as_html(self.graphs["a"].name, self.graphs["b"].name, self.match_table())

    def content_hash(self) -> str:
        """A hash of all that figures depend on: weights, matches, views, calibration images."""
        digest = hashlib.sha256()
        for side in SIDES:
            digest.update(repr((self.graphs[side].name, self.views)).encode())
            _update(digest, self.graphs[side].module)
        digest.update(repr([switch.name for switch in self.switches]).encode())
        _update(digest, self.stitches)
        if self.calibration is not None:
            for pixels in self.calibration.pixels:
                digest.update(pixels.numpy().tobytes())
        return digest.hexdigest()[:16]


def stitch(
    a: Parent,
    b: Parent,
    *,
    points: PointKind = "auto",
    resize: bool = True,
    similar_on: Split | None = None,
) -> Supernetwork:
    """Match the layers of two trained networks and lay stitches between them, both ways.

    Args:
        a: Parent a.
        b: Parent b.
        points: Which points may be matched: ``all``, the ``dominators`` that everything flows
            through, or the outputs of ``blocks``. ``auto`` takes the dominators, or all points
            where those give few matches.
        resize: Whether grids of different size may be matched.
        similar_on: A few images; if given, pairs are weighed by the linear CKA of their features
            on these, besides their depth.

    Returns:
        The supernetwork; its stitches are still to be fitted.

    Raises:
        CaptureError: If a parent cannot be captured.
        MatchError: If the parents differ in their classes or have no compatible points.
    """
    graphs: dict[Side, NetworkGraph] = {"a": a.graph(), "b": b.graph()}
    classes = {side: graphs[side].classes for side in SIDES}
    if classes["a"] != classes["b"]:
        raise MatchError(
            f"{a.name} tells {classes['a']} classes apart and {b.name} {classes['b']}; both "
            "parents must be trained on the same classes."
        )
    similarity = LinearCKA((a.view, b.view), similar_on) if similar_on is not None else None
    shapes = {side: graphs[side].costs[graphs[side].output.name].shape for side in SIDES}
    if shapes["a"] != shapes["b"]:
        raise MatchError(
            f"{a.name} returns {_answer(shapes['a'])} and {b.name} {_answer(shapes['b'])}; both "
            "must label images, or the same pixels. Give them one `input_size`."
        )
    matches = match(graphs["a"], graphs["b"], points=points, resize=resize, similarity=similarity)
    return Supernetwork(a, b, graphs, matches)


def _both_ways(match: Match) -> tuple[tuple[Switch, Layout, Layout], ...]:
    """The switches of a match, ``a -> b`` and ``b -> a``, each with what it maps between."""
    a, b = match.a, match.b
    return (
        (Switch(f"a.{a.name} -> b.{b.name}", a.node, b.node, "b"), a.layout, b.layout),
        (Switch(f"b.{b.name} -> a.{a.name}", b.node, a.node, "a"), b.layout, a.layout),
    )


def _answer(shape: tuple[int, ...] | None) -> str:
    sizes = shape[2:] if shape else ()
    return f"labels of {'×'.join(map(str, sizes))} pixels" if sizes else "one label an image"


def _update(digest: Any, module: nn.Module) -> None:
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
