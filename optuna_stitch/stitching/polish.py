"""Refit what follows stitches, in closed form, so that it makes the most of what they give.

A layer downstream of a stitch was trained on its parent's own features, and reads features that
only resemble them. Layer after layer, convolutions and fully connected layers get the weights
that best reproduce what they answer in their parent, on the same images, from what they read
here: ridge regression of what is missing, so that weights stay where nothing is gained. What one
layer could not make good the next ones try, which read through other activations; a chain of
linear fits is no linear fit. Where answers are added to a shortcut, they also make up for what
that lacks; where an activation follows that is flat in places, they are right where it hears
them, see `refit`. BatchNorms get statistics that fit, as in `recalibration`. The network costs
what it did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from optuna_stitch.stitching.following import Following, Step
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.moments import EVERY
from optuna_stitch.stitching.recalibration import Statistics, channel_statistics, matched
from optuna_stitch.stitching.refit import Layer, Refit
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.stitching.supergraph import Supergraph
from optuna_stitch.utils.device import float32_products, free_memory
from optuna_stitch.utils.distributed import all_reduce, world_size
from optuna_stitch.utils.memory import is_out_of_memory
from optuna_stitch.utils.progress import console

# Bytes of values that are held at once on a processor, and their share of what is free elsewhere.
_MEMORY, _SHARE = 4 << 30, 1 / 2

# The normal equations grow with the square of what a layer reads, their solution with its cube.
_WIDEST = 2304

# A value: whether it is the network's own rather than a parent's, and its operation.
_Key = tuple[bool, int]


class Polish:
    """Refit a network's layers downstream of stitches.

    Args:
        network: The network, in a supernetwork of its own, whose weights change; see `twin`.
        original: The supernetwork that it was found in, with the parents.
    """

    def __init__(self, network: Subnetwork, original: Supergraph) -> None:
        self._own, self._original = network.supergraph, original
        self._reads = dict(network.resolved.steps)
        self._stitched: set[int] = set()
        for place, reads in network.resolved.steps:
            owner = self._own.operations[place].owner
            if owner == "stitch" or (owner in self._own.sides and self._stitched & {*reads}):
                self._stitched.add(place)
        raw = [dict(original.resolve(Genotype(side)).steps) for side in original.sides]
        self._raw_reads = {place: reads for steps in raw for place, reads in steps.items()}
        after = [p for p in self._stitched if self._own.operations[p].owner != "stitch"]
        self._layers = {p: module for p in after if (module := self._layer(p)) is not None}
        self._norms = {p for p in after if self._own.operations[p].norm is not None}
        self._readers: dict[int, list[int]] = {}
        for place, reads in network.resolved.steps:
            for read in {*reads}:
                self._readers.setdefault(read, []).append(place)
        self._following = {place: self._following_of(place) for place in self._layers}
        self._events = self._ordered()
        self._last = {key: n for n, event in enumerate(self._events) for key in self._uses(event)}

    @property
    def layers(self) -> int:
        """How many layers there are to be refitted."""
        return len(self._layers)

    @property
    def bytes(self) -> int:
        """Bytes per image of the values that are held at once."""
        alive = largest = 0
        for number, event in enumerate(self._events):
            alive += self._elements(event)
            largest = max(largest, alive)
            alive -= sum(self._elements(key) for key in self._ending(number))
        return 4 * largest

    @property
    def largest(self) -> int:
        """How many images memory has room for."""
        free = free_memory(self._own.device)
        memory = _MEMORY if free is None else _SHARE * free
        return int(memory / max(self.bytes, 1))

    def _elements(self, key: _Key) -> int:
        return self._own.operations[key[1]].elements

    def _layer(self, place: int) -> nn.Module | None:
        """The module that an operation calls, where its weights can be refitted."""
        operation = self._own.operations[place]
        if operation.node is None or operation.node.op != "call_module":
            return None
        graph = self._own.graphs[operation.owner]
        module = graph.module.get_submodule(str(operation.node.target))
        if not isinstance(module, (nn.Conv2d, nn.Linear)) or place not in self._raw_reads:
            return None
        users = [p for p in self._reads if self._own.operations[p].weights]
        uses = sum(
            any(weight is module.weight for weight in self._own.operations[p].weights)
            for p in users
        )
        return module if uses == 1 and module.weight[0].numel() <= _WIDEST else None

    def _following_of(self, layer: int) -> Following:
        """What is done with a layer's answers."""
        steps: list[Step] = []
        place = layer
        while len(readers := self._readers.get(place, [])) == 1:
            before, place = place, readers[0]
            operation, reads = self._original.operations[place], self._reads[place]
            node, raw = operation.node, self._raw_reads.get(place, ())
            if node is None or (operation.weights and operation.norm is None):
                break
            calls: Any = node.target
            if node.op == "call_module":
                calls = self._original.graphs[operation.owner].module.get_submodule(str(calls))
            added = None
            if len(reads) > 1:
                others = [n for n, read in enumerate(reads) if read != before]
                if len(others) != 1 or not raw:
                    break
                own = reads[others[0]]
                if own not in self._stitched or own >= layer:  # not known before the layer
                    break
                added = own, raw[others[0]]
            steps.append(Step(place, calls, operation.norm, operation.run, added))
        return Following.of(steps)

    def _ordered(self) -> list[_Key]:
        """What is computed, in order: a parent's own value before the network's."""
        wanted: set[_Key] = {(True, place) for place in (*self._layers, *self._norms)}
        order = sorted({*self._reads, *self._raw_reads}, reverse=True)
        events: list[_Key] = []
        for place in order:
            for own in (True, False):
                if (own, place) in wanted:
                    events.append((own, place))
                    wanted.update(self._uses((own, place)))
        return events[::-1]

    def _inputs(self, event: _Key) -> list[_Key]:
        own, place = event
        if not own:
            return [(False, read) for read in self._raw_reads[place]]
        return [(read in self._stitched, read) for read in self._reads[place]]

    def _uses(self, event: _Key) -> list[_Key]:
        """What has to be known before an event: what it reads, and what it is compared with."""
        own, place = event
        uses = self._inputs(event)
        if own and place in self._layers:
            uses.append((False, place))
            following = self._following[place]
            if following.own is not None and following.raw is not None:
                uses += [(True, following.own), (False, following.raw)]
        if own and place in self._norms:
            uses.append((False, self._raw_reads[place][0]))
        return uses

    def _ending(self, number: int) -> list[_Key]:
        """The values that nothing needs after an event."""
        return [key for key in {*self._uses(self._events[number])} if self._last[key] == number]

    @torch.no_grad()
    def run(
        self, batches: Sequence[Sequence[Tensor]], seed: int = 0, told: Callable[[], object] = int
    ) -> dict[str, Refit]:
        """Refit all layers, in place.

        Args:
            batches: Images by view, ``(N, C, H, W)`` each; all of their values at a layer are
                held at once.
            seed: Draws positions.
            told: Called after every layer.

        Returns:
            What became of each layer, by its operation's name, in the order of computation.
        """
        generator = torch.Generator().manual_seed(seed)
        values: dict[_Key, list[Any]] = {}
        lacking: dict[int, Tensor] = {}
        found: dict[str, Refit] = {}
        with float32_products(self._own.device, exact=True):
            for number, event in enumerate(self._events):
                own, place = event
                operation = (self._own if own else self._original).operations[place]
                inputs = [values[key] for key in self._inputs(event)]
                if own and place in self._layers:
                    said = found[operation.name] = self._refit(place, values, batches, generator)
                    norm = self._following[place].norm
                    if norm is not None and said.lacking is not None:
                        lacking[norm] = said.lacking
                    told()
                if own and place in self._norms:
                    raw = values[False, self._raw_reads[place][0]]
                    self._normalize(place, inputs[0], raw, lacking.get(place))
                ending = [values[key] for key in self._ending(number)]
                made: list[Any] = []
                for batch, images in enumerate(batches):
                    if operation.owner == "input":
                        made.append(images[operation.number])
                    else:
                        made.append(operation.run(*[value[batch] for value in inputs]))
                    for value in ending:
                        value[batch] = None
                values[event] = made
                for key in self._ending(number):
                    del values[key]
        self._agree()
        return found

    def _refit(
        self,
        place: int,
        values: Mapping[_Key, Sequence[Tensor]],
        batches: Sequence[Sequence[Tensor]],
        generator: torch.Generator,
    ) -> Refit:
        """Refit a layer to answer as in its parent, and what a shortcut lacks besides."""
        following, wanted = self._following[place], values[False, place]
        added: Sequence[Tensor | None] = [None] * len(batches)
        if following.own is not None and following.raw is not None:
            added, raw = values[True, following.own], values[False, following.raw]
            wanted = [
                target + following.lacking(one - other)
                for target, one, other in zip(wanted, raw, added, strict=True)
            ]
        read = values[self._inputs((True, place))[0]]
        return Layer.of(self._layers[place]).refit(
            *(read, wanted, [len(images[0]) for images in batches], generator),
            centred=self._is_centred(place),
            heard=map(following.bounds, added) if following.heard else None,
            sized=following.own is not None,
        )

    def _is_centred(self, place: int) -> bool:
        """Whether something makes good what a layer's answers miss on average."""
        readers = {*self._readers.get(place, [])}
        return self._layers[place].bias is not None or (bool(readers) and readers <= self._norms)

    def _normalize(
        self,
        place: int,
        read: Sequence[Tensor],
        raw: Sequence[Tensor],
        lacking: Tensor | None,
    ) -> None:
        """Give a BatchNorm statistics that fit what it reads.

        Args:
            place: The BatchNorm.
            read: What it reads, by batch.
            raw: What it reads in its parent.
            lacking: ``(C,)``, what is to be added to what it reads; None where that shall vary as
                it does in its parent.
        """
        norm, parents = self._own.operations[place].norm, self._original.operations[place].norm
        assert norm is not None
        assert parents is not None
        if lacking is None:
            statistics = matched(parents, _statistics(read), _statistics(raw))
        else:
            statistics = parents.mean - lacking, parents.variance
        norm.mean.copy_(statistics[0])
        norm.variance.copy_(statistics[1])

    def state(self) -> list[Tensor]:
        """Copies of all that `run` changes."""
        return [value.clone() for value in self._changing()]

    def restore(self, state: Sequence[Tensor]) -> None:
        """Put back what `state` copied.

        Args:
            state: The copies.
        """
        for value, before in zip(self._changing(), state, strict=True):
            value.copy_(before)

    def _changing(self) -> list[Tensor]:
        norms = [self._own.operations[place].norm for place in sorted(self._norms)]
        held = [value for norm in norms if norm for value in (norm.mean, norm.variance)]
        layers = [self._layers[place] for place in sorted(self._layers)]
        return held + [weight.data for layer in layers for weight in layer.parameters()]

    def _agree(self) -> None:
        """Give all processes the same weights: on other hardware they may differ by rounding."""
        if world_size() > 1:
            together = self._changing()
            all_reduce(together)
            for value in together:
                value.div_(world_size())


def polish(
    work: Polish,
    images: Callable[[int], Sequence[Sequence[Tensor]]],
    wanted: int,
    seed: int,
    progress: Progress,
) -> tuple[int, int]:
    """Refit on as many images as memory has room for.

    Args:
        work: What is refitted; where memory runs out for good, its weights are of no use.
        images: So many of them, by batch and view.
        wanted: How many at most.
        seed: Draws positions.
        progress: Takes a task.

    Returns:
        On how many images it was refitted, and how many layers have other weights; twice 0 where
        there are too few images, which is said.
    """
    count = min(wanted, work.largest)
    begun = work.state()
    while count >= 2 * EVERY:
        if count < wanted:
            console.print(f"Memory has room to polish on {count} images.", highlight=False)
        task = progress.add_task("Polish", total=work.layers, note="")
        try:
            refits = work.run(images(count), seed, partial(progress.advance, task))
            return count, sum(refit.ridge is not None for refit in refits.values())
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # out of the clause above, so that nothing is held of what was begun
        work.restore(begun)
        count //= 2
    console.print(
        f"The network is not polished: {count} images are too few, of {2 * EVERY} at least.",
        highlight=False,
    )
    return 0, 0


def _statistics(values: Sequence[Tensor]) -> Statistics:
    """As `channel_statistics`, over all batches."""
    images = sum(map(len, values))
    mean = square = torch.zeros((), device=values[0].device)
    for value in values:
        own, variance = channel_statistics(value)
        share = len(value) / images
        mean, square = mean + share * own, square + share * (variance + own.square())
    return mean, (square - mean.square()).clamp_min(0)
