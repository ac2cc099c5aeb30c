"""The supernetwork: frozen parents, the stitches between them, and the switches."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from optuna_stitch.data.pair import SplitPair
from optuna_stitch.data.splits import Split
from optuna_stitch.data.view import View
from optuna_stitch.models.graph import NetworkGraph
from optuna_stitch.models.layouts import Layout
from optuna_stitch.models.parent import Parent
from optuna_stitch.stitching.fit import StitchFit, fit_stitches
from optuna_stitch.stitching.genotype import (
    BOTH,
    LETTERS,
    SIDES,
    Genotype,
    Output,
    Side,
    Switch,
    outputs_of,
)
from optuna_stitch.stitching.io import (
    describe_parent,
    loading,
    make_parent,
    named_weights,
    read_supernetwork,
    weights_of,
    write_supernetwork,
)
from optuna_stitch.stitching.layer import Stitch, Stitches
from optuna_stitch.stitching.matching import LinearCKA, Match, match_all
from optuna_stitch.stitching.recalibration import Calibration
from optuna_stitch.stitching.settings import FitSettings, PointKind, Tuning
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.stitching.supergraph import Supergraph
from optuna_stitch.stitching.tune import Tuned, tune_stitches
from optuna_stitch.utils.device import full, resolve_device
from optuna_stitch.utils.errors import ArtifactError, ConfigError, MatchError
from optuna_stitch.utils.memory import memory_for
from optuna_stitch.utils.settings import settings_of

_MACS = ["macs_into_b", "macs_into_a"]

_HEADS = {
    "point_a": "point in a",
    "layout_a": "layout in a",
    "point_b": "point in b",
    "layout_b": "layout in b",
    "macs_into_b": "a → b, M MACs",
    "macs_into_a": "b → a, M MACs",
}

_HEADS_OF_MANY = {
    "point_a": "point in the first",
    "layout_a": "layout in the first",
    "point_b": "point in the second",
    "layout_b": "layout in the second",
    "macs_into_b": "first → second, M MACs",
    "macs_into_a": "second → first, M MACs",
}


class Supernetwork:
    """Two parents, or more, with stitches in both directions at every match.

    Every stitch has a switch, ``off`` (the parent's own feature) or ``on`` (the stitched one); an
    output switch picks parent a, parent b or their ensemble, the mean of their probabilities. Of
    parents with *two jobs*, which answer different questions, it has one value, ``both``. As made
    by `stitch`, stitches are zero: call `fit`.

    Of more than two parents several stitches may lead into one point. Each has its own switch;
    the first one that is on, in the switches' order, replaces the point's feature, and the others
    have no effect then: genotypes that differ in these only are the same subnetwork.

    Args:
        a: Parent a.
        b: Parent b.
        graphs: All of them captured, by side.
        matches: Pairs of points, in the order of all networks.
        kept: Which stitches there are, ``2 m`` for ``a -> b`` at match m and ``2 m + 1`` for
            ``b -> a``; all, if None.
        two_jobs: Whether the parents answer different questions.
        others: Parents c, d and so on.

    Attributes:
        parents: All of them by side, in the order of their letters.
        supergraph: What the switches make of all parents; `fit` puts a new one in its place.

    Example:
        >>> supernetwork = st.stitch(a, b, points="blocks")
        >>> fits = supernetwork.fit(data.train, images=100)
        >>> len(fits) == len(supernetwork.switches)
        True
        >>> supernetwork.subnetwork({"output": "ensemble"}).stitches
        []
    """

    def __init__(
        self,
        a: Parent,
        b: Parent,
        graphs: dict[Side, NetworkGraph],
        matches: Sequence[Match],
        kept: Sequence[int] | None = None,
        *,
        two_jobs: bool = False,
        others: Sequence[Parent] = (),
    ) -> None:
        self.parents: dict[Side, Parent] = dict(zip(LETTERS, (a, b, *others), strict=False))
        self.matches = tuple(matches)
        self.kept = tuple(range(2 * len(self.matches)) if kept is None else kept)
        ends = [_both_ways(match) for match in self.matches]
        sides = [ends[number // 2][number % 2] for number in self.kept]
        self.supergraph = Supergraph(
            graphs,
            self._views(),
            [switch for switch, _, _ in sides],
            [Stitch(source, target) for _, source, target in sides],
            two_jobs=two_jobs,
        )

    @staticmethod
    def around(subnetwork: Subnetwork, a: Parent, b: Parent, *others: Parent) -> Supernetwork:
        """What a subnetwork is of, for one that was finished: it has weights of its own.

        Args:
            subnetwork: Any.
            a: Parent a, as it was.
            b: Parent b, as it was.
            *others: Further ones, likewise.
        """
        graph = subnetwork.supergraph
        found = Supernetwork(a, b, graph.graphs, (), two_jobs=graph.two_jobs, others=others)
        found.supergraph = graph
        return found

    @property
    def a(self) -> Parent:
        """Parent a."""
        return self.parents["a"]

    @property
    def b(self) -> Parent:
        """Parent b."""
        return self.parents["b"]

    @property
    def sides(self) -> tuple[Side, ...]:
        """The parents' letters, in order."""
        return tuple(self.parents)

    @property
    def title(self) -> str:
        """The parents' names, ``resnet18 × vit_tiny``."""
        return " × ".join(parent.name for parent in self.parents.values())

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.supergraph.device

    def to(self, device: str | torch.device) -> Supernetwork:
        """Move parents, stitches and calibration images, in place, as `torch.nn.Module.to` does.

        Fitting, tuning and evaluation run where the supernetwork is. Subnetworks that were made
        before, and supernetworks that share its parents (see `keep`), must be made anew.

        Args:
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or ``xpu``; see
                `resolve_device`.

        Returns:
            This one.

        Raises:
            ConfigError: If there is no such device, or it is full; all stays where it is then.

        Example:
            >>> supernetwork.to("cpu").device
            device(type='cpu')
        """
        wanted = resolve_device(device)
        if wanted == self.device:
            return self
        try:
            with memory_for(ConfigError, full(wanted)):
                self._move(wanted)
        except ConfigError:
            self._move(self.device)
            raise
        return self

    def _move(self, device: torch.device) -> None:
        for parent in self.parents.values():
            parent.module.to(device)
        for graph in self.graphs.values():
            graph.to(device)
        calibration = self.calibration and self.calibration.to(device)
        self._lay([stitch.to(device) for stitch in self.stitches], calibration)

    def _views(self) -> dict[Side, View]:
        return {side: parent.view for side, parent in self.parents.items()}

    def _lay(self, stitches: Sequence[Stitch], calibration: Calibration | None) -> None:
        """Put stitches in place of those there are, in the switches' order."""
        old = self.supergraph
        self.supergraph = Supergraph(
            old.graphs,
            self._views(),
            old.switches,
            stitches,
            calibration,
            two_jobs=old.two_jobs,
        )

    @property
    def two_jobs(self) -> bool:
        """Whether the parents answer different questions, so that networks answer both."""
        return self.supergraph.two_jobs

    @property
    def graphs(self) -> dict[Side, NetworkGraph]:
        """The captured parents by side."""
        return self.supergraph.graphs

    @property
    def switches(self) -> tuple[Switch, ...]:
        """One per stitch: for each match ``a -> b``, then ``b -> a``."""
        return self.supergraph.switches

    @property
    def stitches(self) -> Stitches:
        """In the switches' order."""
        return self.supergraph.stitches

    @property
    def calibration(self) -> Calibration | None:
        """Images that BatchNorm statistics are estimated on downstream of stitches.

        None where BatchNorms keep their parents' own.
        """
        return self.supergraph.calibration

    @calibration.setter
    def calibration(self, calibration: Calibration | None) -> None:
        self.supergraph.calibration = calibration

    @property
    def views(self) -> tuple[View, ...]:
        """The distinct ways in which the parents see images; batches hold one tensor for each."""
        return self.supergraph.views

    @property
    def classes(self) -> int:
        """Number of classes; of parents with two jobs, that of a."""
        return self.supergraph.classes

    @property
    def segments(self) -> bool:
        """Whether the parents label every pixel; of parents with two jobs, whether a does."""
        return self.supergraph.segments

    @property
    def batch_size(self) -> int:
        """How many images at once keep the largest feature within a quarter of a GiB."""
        return self.supergraph.batch_size

    def subnetwork(self, params: Mapping[str, Any] | Genotype) -> Subnetwork:
        """The network that a trial's parameters stand for.

        Args:
            params: ``off`` or ``on`` by the switch's name; for ``output`` ``a``, ``b``,
                ``ensemble``, ``a then both`` or ``b then both``; for these two a ``threshold``
                from 0 to 1, see `Genotype`; of parents with two jobs ``both``, of more parents
                also others, see `outputs_of`. Switches that are
                not named are off. Or a genotype.

        Raises:
            StudyError: If a parameter is no switch of this supernetwork, or has no such value.
        """
        if not isinstance(params, Genotype):
            params = Genotype.of(params, self.switches, self.sides)
        return Subnetwork.of(self.supergraph, params)

    def fit(
        self,
        split: Split | SplitPair,
        settings: FitSettings | None = None,
        *,
        show_progress_bar: bool = False,
        **options: Any,
    ) -> list[StitchFit]:
        """Fit all stitches in closed form, in one pass over unlabelled images.

        In several processes started by ``torchrun``, each reads its share of the images, and all
        end with the same stitches. Subnetworks made before keep the stitches they were made with.

        Args:
            split: Unlabelled images; the train split, so that the search's images stay unseen. Of
                two data sets the images of both serve.
            settings: How; see `FitSettings`.
            show_progress_bar: Whether to show a progress bar.
            **options: Fields of `FitSettings`, in place of ``settings``: ``images=500``.

        Returns:
            One entry per stitch, in the switches' order.

        Raises:
            ConfigError: If an option is unknown or has a wrong value.
            FitError: If there are too few images, features are not finite, or the memory does not
                hold the sums of a single stitch.
        """
        stitches, fits, calibration = fit_stitches(
            self.supergraph,
            split.together if isinstance(split, SplitPair) else split,
            settings_of(FitSettings, settings, options),
            show_progress_bar=show_progress_bar,
        )
        self._lay(stitches, calibration)
        return fits

    def tune(
        self,
        split: Split | SplitPair,
        settings: Tuning | None = None,
        *,
        checkpoint: Path | None = None,
        show_progress_bar: bool = False,
        **options: Any,
    ) -> list[Tuned]:
        """Tune the fitted stitches by gradients; optional, after `fit`.

        In several processes started by ``torchrun``, each computes its share of every batch.

        Args:
            split: Images to learn from; the train split. Of two jobs each answer learns from its
                parent alone, on the images of both.
            settings: How; see `Tuning`.
            checkpoint: A file to keep the progress in; if it exists and belongs to the same
                tuning, tuning goes on from there.
            show_progress_bar: Whether to show a progress bar.
            **options: Fields of `Tuning`, in place of ``settings``: ``steps=2000``.

        Returns:
            One entry per stitch, in the switches' order.

        Raises:
            ConfigError: If an option is unknown or has a wrong value.
            FitError: If a parent labels pixels, there are too few images, labels shall be learned
                of two jobs, the checkpoint belongs to another tuning, or the loss is not finite.
        """
        return tune_stitches(
            self.supergraph,
            [parent.module for parent in self.parents.values()],
            split.together if isinstance(split, SplitPair) else split,
            settings_of(Tuning, settings, options),
            checkpoint=checkpoint,
            show_progress_bar=show_progress_bar,
        )

    def keep(self, switches: Sequence[int | str]) -> Supernetwork:
        """The same with some of the stitches only.

        Args:
            switches: Indices or names of the switches to keep.

        Returns:
            A supernetwork that shares everything with this one.

        Raises:
            MatchError: If none is kept, or there is no switch of such a name or index.
        """
        if not switches:
            raise MatchError("No stitch is kept, so that there is nothing to search; keep more.")
        index_of = {switch.name: index for index, switch in enumerate(self.switches)}
        known = {*index_of, *index_of.values()}
        unknown = [switch for switch in switches if switch not in known]
        if unknown:
            raise MatchError(
                f"{unknown[0]!r} is no switch, by name or by index from 0 to {len(index_of) - 1}; "
                "see `supernetwork.switches`."
            )
        places = sorted({s if isinstance(s, int) else index_of[s] for s in switches})
        numbers = [self.kept[place] for place in places]
        used = sorted({number // 2 for number in numbers})
        kept = [2 * used.index(number // 2) + number % 2 for number in numbers]
        matches = [self.matches[place] for place in used]
        a, b, *others = self.parents.values()
        smaller = Supernetwork(
            a, b, self.graphs, matches, kept, two_jobs=self.two_jobs, others=others
        )
        stitches = list(self.stitches)
        smaller._lay([stitches[place] for place in places], self.calibration)
        return smaller

    def save(self, folder: str | Path) -> None:
        """Save it as a folder that any worker can load.

        Args:
            folder: Where; made if it does not exist.

        Raises:
            ArtifactError: If it cannot be written.
        """
        modules = {side: parent.module for side, parent in self.parents.items()}
        weights = named_weights({**modules, "stitches": self.stitches})
        calibration = self.calibration
        if calibration is not None:
            pixels = calibration.pixels
            weights |= {f"calibration.{view}": some.cpu() for view, some in enumerate(pixels)}
        description = {
            "content": self.content_hash(),
            "parents": {s: describe_parent(parent) for s, parent in self.parents.items()},
            "matches": [[match.a.node, match.b.node] for match in self.matches],
            **({"sides": [m.sides for m in self.matches]} if len(self.parents) > 2 else {}),
            "kept": list(self.kept),
            "two_jobs": self.two_jobs,
            "switches": [switch.name for switch in self.switches],
            "stitches": [stitch.form for stitch in self.stitches],
            "calibration": calibration and {"batch_size": calibration.batch_size},
        }
        write_supernetwork(Path(folder).expanduser(), weights, description)

    @staticmethod
    def load(
        folder: str | Path,
        *,
        a: Parent | None = None,
        b: Parent | None = None,
        **others: Parent,
    ) -> Supernetwork:
        """Load a saved supernetwork.

        Args:
            folder: Where it was saved.
            a: Parent a, where it is a module of your own; its weights come from the folder.
            b: Parent b, likewise.
            **others: Further parents by their letters, likewise.

        Returns:
            The supernetwork, with the content it was saved with.

        Raises:
            ArtifactError: If it is missing, broken, or was changed since.
        """
        folder = Path(folder).expanduser()
        given: dict[Side, Parent | None] = {"a": a, "b": b, **others}
        with loading(folder):
            weights, description = read_supernetwork(folder)
            parents = {
                side: given.get(side) or make_parent(side, described)
                for side, described in description["parents"].items()
            }
            unknown = sorted(given.keys() - parents.keys())
            if unknown:
                raise ArtifactError(
                    f"The supernetwork in {folder} has no parent {unknown[0]}, only "
                    f"{', '.join(parents)}."
                )
            for side, parent in parents.items():
                parent.module.load_state_dict(weights_of(side, weights))
            graphs = {side: parent.graph() for side, parent in parents.items()}
            points = {s: {point.node: point for point in g.points} for s, g in graphs.items()}
            pairs = description["matches"]
            sides = description.get("sides", [SIDES] * len(pairs))  # of more than two parents
            matches = [
                Match(points[one][of_one], points[other][of_other], (one, other))
                for (one, other), (of_one, of_other) in zip(sides, pairs, strict=True)
            ]
            kept = description["kept"]
            two_jobs = description.get("two_jobs", False)  # not in folders of version 0.2
            a, b, *more = parents.values()
            loaded = Supernetwork(a, b, graphs, matches, kept, two_jobs=two_jobs, others=more)
            stitches = [
                Stitch(plain.source, plain.target, **shape)
                for plain, shape in zip(loaded.stitches, description["stitches"], strict=True)
            ]
            calibration = None
            if description["calibration"] is not None:
                pixels = [weights[f"calibration.{view}"] for view in range(len(loaded.views))]
                batch_size = description["calibration"]["batch_size"]
                calibration = Calibration(loaded.views, tuple(pixels), batch_size)
            loaded._lay(stitches, calibration)
            loaded.stitches.load_state_dict(weights_of("stitches", weights))
        found = loaded.content_hash()
        if found != description["content"]:
            raise ArtifactError(
                f"The supernetwork in {folder} is not the one that was saved: its content hash is "
                f"{found}, not {description['content']}. Build it again."
            )
        return loaded

    def content_hash(self) -> str:
        """A hash of all that figures depend on: weights, matches, views, calibration images."""
        return self.supergraph.content_hash()

    def match_table(self) -> pd.DataFrame:
        """The matches with what their stitches cost.

        Returns:
            A row per match, by ``match``, from 1: ``point_a``, ``layout_a``, ``point_b``,
            ``layout_b``, ``macs_into_b`` and ``macs_into_a`` (multiply-accumulates per image of
            the stitch ``a -> b`` and of ``b -> a``; missing where there is no such stitch). Of
            more than two parents, ``parents`` says between which, as in ``a, c``; what is said of
            a and b holds for the first and the second of these.
        """
        stitches = dict(zip(self.kept, self.stitches, strict=True))
        rows = []
        for place, pair in enumerate(self.matches):
            ways = [stitches.get(2 * place + way) for way in range(2)]
            macs = [stitch.macs if stitch else None for stitch in ways]
            points = [str(part) for end in (pair.a, pair.b) for part in (end.name, end.layout)]
            rows.append([*points, *macs])
        index = pd.RangeIndex(1, len(rows) + 1, name="match")
        table = pd.DataFrame(rows, index=index, columns=list(_HEADS))
        if len(self.parents) > 2:
            table.insert(0, "parents", [", ".join(pair.sides) for pair in self.matches])
        return table.astype(dict.fromkeys(_MACS, "Int64"))

    def _repr_html_(self) -> str:
        """The parents and the table of matches, for notebooks, which style tables themselves."""
        table = self.match_table()
        stitches = int(table[_MACS].count().sum())
        shown = table.reset_index()
        for column in _MACS:
            macs_of = table[column]
            shown[column] = [f"{macs / 1e6:,.3f}" if pd.notna(macs) else "–" for macs in macs_of]
        with pd.option_context("display.max_colwidth", None):
            heads = _HEADS if len(self.parents) == 2 else _HEADS_OF_MANY
            rows = shown.rename(columns=heads).to_html(index=False, border=0)
        return (
            f"<div><b>{html.escape(self.title)}</b></div>\n"
            f"<div>{len(table)} matches, {stitches} stitches</div>\n"
            f'<div style="max-height: 30em; overflow: auto">\n{rows}\n</div>'
        )


def stitch(
    a: Parent,
    b: Parent,
    *others: Parent,
    points: PointKind = "auto",
    resize: bool = True,
    similar_on: Split | None = None,
    outputs: Sequence[Output] | None = None,
) -> Supernetwork:
    """Match the layers of two or more trained networks and lay stitches between them, both ways.

    Parents that tell the same classes apart have one job. Parents of which one labels images and
    the other pixels, with other numbers of classes, or with other names of classes where both
    know theirs (see `Parent`), have **two jobs**: their subnetworks answer both questions.

    With **more than two parents**, which have one job, stitches lead between every two of them,
    and matches keep one order for all (see `match_all`). Networks answer with the head of one
    parent, the ensemble of two (``a+b``) or of all, or a cascade of two (``a then a+b``).

    Args:
        a: Parent a.
        b: Parent b, which moves to where parent a is.
        *others: Parents c, d and so on, likewise; eight in all at most.
        points: Which points may be matched: ``all``, the ``dominators`` that everything flows
            through, or the outputs of ``blocks``. ``auto`` takes the dominators, or all points
            where those give few matches.
        resize: Whether grids of different size may be matched.
        similar_on: A few images; if given, pairs are weighed by the linear CKA of their features
            on these, besides their depth.
        outputs: What networks shall answer with; ``("both",)`` makes two jobs also of parents with
            the same classes, any others make one. If None, the parents say.

    Returns:
        The supernetwork; its stitches are still to be fitted, by `Supernetwork.fit`.

    Raises:
        CaptureError: If a parent cannot be captured.
        MatchError: If the parents name the same classes in different orders, answer what is no
            labels, cannot have the one job that they shall have, or have no compatible points.
        ConfigError: If ``both`` is asked for beside other outputs, or there is no such output.
    """
    device = a.device
    if len(others) > len(LETTERS) - 2:
        raise MatchError(f"{2 + len(others)} parents are more than {len(LETTERS)}; give fewer.")
    parents = dict(zip(LETTERS, (a, b, *others), strict=False))
    known = (*outputs_of(list(parents)), BOTH)
    for output in outputs or ():
        if output not in known:
            raise ConfigError(f"There is no output {output!r}; there are {', '.join(known)}.")
    graphs = {side: parent.to("cpu").graph() for side, parent in parents.items()}
    similarities = None
    if similar_on is not None:
        similarities = {
            (one, other): LinearCKA((parents[one].view, parents[other].view), similar_on)
            for one, other in combinations(parents, 2)
        }
    shapes = {side: graph.costs[graph.output.name].shape for side, graph in graphs.items()}
    for parent, shape in zip(parents.values(), shapes.values(), strict=True):
        if shape is not None and len(shape) not in (2, 4):
            raise MatchError(
                f"{parent.name} returns {'×'.join(map(str, shape[1:]))} numbers for an image. "
                "Logits are one for each class, or classes × height × width for pixels."
            )
    two_jobs = False
    for one, other in combinations(parents, 2):
        both = parents[one], parents[other]
        if _have_two_jobs(both, (shapes[one] or (), shapes[other] or ()), outputs):
            if others:
                raise MatchError(
                    f"Parents {one}, {both[0].name}, and {other}, {both[1].name}, have two jobs, "
                    f"which only two parents can have; there are {len(parents)}. Give two, or "
                    "parents that tell the same classes apart."
                )
            two_jobs = True
    matches = match_all(graphs, points=points, resize=resize, similarities=similarities)
    return Supernetwork(a, b, graphs, matches, two_jobs=two_jobs, others=others).to(device)


def _have_two_jobs(
    parents: tuple[Parent, Parent],
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    outputs: Sequence[Output] | None,
) -> bool:
    """Whether two parents answer different questions, or shall.

    Args:
        parents: Both.
        shapes: Of their answers, ``(N, classes, ...)``.
        outputs: What networks shall answer with, if that is said.
    """
    if outputs is not None and BOTH in outputs:
        if set(outputs) != {BOTH}:
            raise ConfigError(f"The output {BOTH!r} stands alone; it is beside {list(outputs)}.")
        return True
    a, b = parents
    if shapes[0][1] != shapes[1][1] or len(shapes[0]) != len(shapes[1]):
        if outputs is None:
            return True
        raise MatchError(
            f"{a.name} returns {_answer(shapes[0])}, and {b.name} {_answer(shapes[1])}: they have "
            f"two jobs, so that networks can answer with {BOTH!r} only."
        )
    if shapes[0] != shapes[1]:
        raise MatchError(
            f"{a.name} returns {_answer(shapes[0])}, and {b.name} {_answer(shapes[1])}; both must "
            "label the same pixels. Give them one `input_size`; or, if they shall have two jobs, "
            f"`outputs` of {BOTH!r}."
        )
    of_a, of_b = a.class_names, b.class_names
    if of_a is None or of_b is None or of_a == of_b or outputs is not None:
        return False
    if sorted(of_a) == sorted(of_b):
        pairs = zip(of_a, of_b, strict=True)
        place = next(label for label, (one, other) in enumerate(pairs) if one != other)
        raise MatchError(
            f"{a.name} and {b.name} tell the same classes apart, in different orders: label "
            f"{place} is {of_a[place]} for {a.name} and {of_b[place]} for {b.name}. They "
            "can be stitched as one job once the rows of one last layer are put in the other's "
            f"order; as two jobs, with `outputs` of {BOTH!r}."
        )
    return True


def _both_ways(match: Match) -> tuple[tuple[Switch, Layout, Layout], ...]:
    """The switches of a match, ``a -> b`` and ``b -> a``, each with what it maps between."""
    (one, p), (other, q) = match.points.items()
    there, back = f"{one}.{p.name} -> {other}.{q.name}", f"{other}.{q.name} -> {one}.{p.name}"
    return (
        (Switch(there, p.node, q.node, other, one), p.layout, q.layout),
        (Switch(back, q.node, p.node, one, other), q.layout, p.layout),
    )


def _answer(shape: tuple[int, ...] | None) -> str:
    sizes = shape[2:] if shape else ()
    classes = f"{shape[1] if shape else 0} classes"
    if sizes:
        return f"labels of {'×'.join(map(str, sizes))} pixels in {classes}"
    return f"one label per image of {classes}"
