"""Operations as programs: run a list of them, and free every value after its last use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from optuna_stitch.stitching.batch_norm import BatchNorm

# An operation by its place (or, in a program, by its step), and those whose values it reads.
Step = tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class Operation:
    """One step of the computation.

    Args:
        name: ``<parent>.<node>`` as in ``a.conv1``, ``input.<view>``, ``stitch.<index>``,
            ``ensemble`` or, of a pair of many parents, ``a+b``; ``heads`` or ``heads a+b``;
            ``both``.
        run: Computes the value from the values of ``inputs`` (an input's own, from the images).
        inputs: Operations it reads, in the order that ``run`` takes them.
        macs: Multiply-accumulates per image.
        elements: Numbers per image that the value consists of.
        node: The parent's node, where it is one.
        owner: A parent's letter, ``input``, ``stitch``, ``ensemble``, ``heads`` or ``both``.
        number: Index of the view or of the stitch, where it is one.
        weights: The parameters it uses.
        norm: What it normalizes by, where it is a BatchNorm.
    """

    name: str
    run: Callable[..., Any]
    inputs: tuple[int, ...]
    macs: int
    elements: int
    owner: str
    node: fx.Node | None = None
    number: int = 0
    weights: tuple[nn.Parameter, ...] = ()
    norm: BatchNorm | None = None


@dataclass(frozen=True)
class Resolved:
    """What one genotype computes.

    Args:
        steps: (operation, the operations whose values it reads), in order of computation.
        output: The operation whose value the subnetwork returns.
        used: The switches that are on and reach the output.
    """

    steps: list[Step]
    output: int
    used: frozenset[int]


_NOTHING: Mapping[int, Tensor] = {}

# Told of a step that is a BatchNorm and of its inputs, before it runs.
Observer = Callable[[int, BatchNorm, Sequence[Any]], None]

# A step, what runs it, the steps whose values it reads, and the steps whose values may then go.
_Line = tuple[int, Callable[..., Any], tuple[int, ...], list[int]]


class Program:
    """Operations in order of computation.

    Args:
        operations: All operations of the supernetwork.
        steps: (place of the operation, the steps whose values it reads), in order.
        outputs: The steps whose values are returned.

    Attributes:
        operations: The operation of every step.
        places: Its place in the supernetwork.
        reads: The steps whose values every step reads.
        paths: The stitches on the way to every step, one bit each. Place and path say which value
            it is: under any genotype, the same stitches lead to the same value.
        given: Steps whose values `run` is given.
        statistics: Mean and variance that steps were given by `normalize`.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        steps: Sequence[Step],
        outputs: Sequence[int],
    ) -> None:
        self.places = [place for place, _ in steps]
        self.operations = [operations[place] for place in self.places]
        self.reads = [reads for _, reads in steps]
        self.paths: list[int] = []
        for operation, reads in zip(self.operations, self.reads, strict=True):
            path = 1 << operation.number if operation.owner == "stitch" else 0
            for read in reads:
                path |= self.paths[read]
            self.paths.append(path)
        self.statistics: dict[int, tuple[Tensor, Tensor]] = {}
        self._runs = [operation.run for operation in self.operations]
        self._outputs = list(outputs)
        self._given: frozenset[int] = frozenset()
        self._lines: list[_Line] | None = None

    @property
    def steps(self) -> list[int]:
        """The steps that run or are given, in order."""
        return [line[0] for line in self._laid_out()]

    @property
    def stitched_norms(self) -> list[int]:
        """The steps that are BatchNorms downstream of a stitch, and run."""
        return [
            step
            for step in self.steps
            if self.operations[step].norm is not None
            and self.paths[step]
            and step not in self._given
        ]

    @property
    def given(self) -> frozenset[int]:
        """Steps whose values are known, so that what only they need does not run."""
        return self._given

    @given.setter
    def given(self, steps: frozenset[int]) -> None:
        self._given = steps
        self._lines = None

    @property
    def outputs(self) -> list[int]:
        """The steps whose values are returned; steps that none of them needs do not run."""
        return self._outputs

    @outputs.setter
    def outputs(self, outputs: Sequence[int]) -> None:
        self._outputs = list(outputs)
        self._lines = None

    @property
    def macs(self) -> int:
        """Multiply-accumulates per image of all steps that run."""
        return sum(self.operations[step].macs for step in self.steps if step not in self._given)

    @property
    def elements(self) -> int:
        """Numbers per image that are alive at once, at most; views count as values."""
        alive = largest = 0
        for step, _, _, freed in self._laid_out():
            alive += self.operations[step].elements
            largest = max(largest, alive)
            alive -= sum([self.operations[dead].elements for dead in freed])
        return largest

    def needed_by(self, outputs: Sequence[int]) -> set[int]:
        """The steps that run or are given for some outputs.

        Args:
            outputs: The steps whose values are wanted.
        """
        needed = set(outputs)
        for step, _, reads, _ in reversed(self._laid_out()):
            if step in needed:
                needed.update(reads)
        return needed

    def normalize(self, step: int, mean: Tensor, variance: Tensor) -> None:
        """Give a BatchNorm other statistics, ``(C,)`` each.

        Args:
            step: A BatchNorm.
            mean: ``(C,)``.
            variance: ``(C,)``.
        """
        norm = self.operations[step].norm
        assert norm is not None, step
        self.statistics[step] = mean, variance
        self.replace(step, norm.run(mean, variance), self.reads[step])

    def replace(self, step: int, run: Callable[..., Any], reads: tuple[int, ...]) -> None:
        """Compute a step's value in another way.

        Args:
            step: Which.
            run: Computes the value.
            reads: The steps whose values ``run`` takes; all of them come before.
        """
        self._runs[step] = run
        self.reads[step] = reads
        self._lines = None

    def run(self, images: Sequence[Tensor], given: Mapping[int, Tensor] = _NOTHING) -> list[Any]:
        """Compute the outputs on one batch.

        Args:
            images: One tensor ``(N, C, H, W)`` per view of the supernetwork.
            given: The values of the steps that are given.
        """
        values: list[Any] = [None] * len(self.operations)
        for step, run, reads, freed in self._laid_out():
            if len(reads) == 1:
                values[step] = run(values[reads[0]])
            elif reads:
                values[step] = run(*[values[read] for read in reads])
            else:
                values[step] = self._read(step, images, given)
            for dead in freed:
                values[dead] = None
        return [values[output] for output in self._outputs]

    def observe(
        self,
        images: Sequence[Tensor],
        observer: Observer,
        given: Mapping[int, Tensor] = _NOTHING,
    ) -> list[Any]:
        """Compute the outputs on one batch, and be told of every BatchNorm.

        Args:
            images: As for `run`.
            observer: Called before every BatchNorm; it may `normalize` that step.
            given: As for `run`.
        """
        values: dict[int, Any] = {}
        for step, _, reads, freed in self._laid_out():
            inputs = [values[read] for read in reads]
            norm = self.operations[step].norm
            if norm is not None and reads:
                observer(step, norm, inputs)
            # the observer may have changed what runs
            values[step] = self._runs[step](*inputs) if reads else self._read(step, images, given)
            for dead in freed:
                del values[dead]
        return [values[output] for output in self._outputs]

    def values(
        self, images: Sequence[Tensor], given: Mapping[int, Tensor] = _NOTHING
    ) -> Iterator[tuple[int, Any]]:
        """Every step with its value on one batch, in order.

        Args:
            images: As for `run`.
            given: As for `run`.
        """
        values: dict[int, Any] = {}
        for step, run, reads, freed in self._laid_out():
            values[step] = (
                run(*[values[read] for read in reads])
                if reads
                else self._read(step, images, given)
            )
            yield step, values[step]
            for dead in freed:
                del values[dead]

    def _read(self, step: int, images: Sequence[Tensor], given: Mapping[int, Tensor]) -> Any:
        """What reads no other value: images, what is given, or a constant."""
        if step in self._given:
            return given[step]
        operation = self.operations[step]
        return images[operation.number] if operation.owner == "input" else self._runs[step]()

    def _laid_out(self) -> list[_Line]:
        """The steps that the outputs need, each with what may be freed after it."""
        if self._lines is None:
            kept = bytearray(len(self.operations))
            for output in self._outputs:
                kept[output] = 1
            needed = bytearray(kept)
            lines: list[_Line] = []
            for step in range(len(self.operations) - 1, -1, -1):
                if not needed[step]:
                    continue
                reads = () if step in self._given else self.reads[step]
                freed: list[int] = []
                for read in reads:
                    if not needed[read]:  # from the end: nothing later reads it
                        needed[read] = 1
                        freed.append(read)
                lines.append((step, self._runs[step], reads, freed))
            lines.reverse()
            self._lines = lines
        return self._lines


def program_of(
    operations: Sequence[Operation], resolved: Resolved, outputs: Sequence[int] | None = None
) -> Program:
    """The program of one genotype.

    Args:
        operations: All operations of the supernetwork.
        resolved: What the genotype computes.
        outputs: Operations whose values are wanted; the genotype's own output, if None.
    """
    step_of = {place: step for step, (place, _) in enumerate(resolved.steps)}
    steps = [(place, tuple([step_of[read] for read in reads])) for place, reads in resolved.steps]
    wanted = [resolved.output] if outputs is None else outputs
    return Program(operations, steps, [step_of[place] for place in wanted])


def shared_program(operations: Sequence[Operation], subnetworks: Sequence[Resolved]) -> Program:
    """Compute several subnetworks together, each distinct value once.

    A value is identified by the operation that makes it and by the values it reads. Whatever
    several subnetworks have in common, anywhere, is therefore one value.

    Args:
        operations: All operations of the supernetwork.
        subnetworks: What each of them computes.

    Returns:
        A program with one output per subnetwork; equal subnetworks share one.
    """
    steps: list[Step] = []
    outputs: list[int] = []
    known: dict[Step, int] = {}
    step_of = [0] * len(operations)
    for resolved in subnetworks:
        for place, reads in resolved.steps:
            key = (place, tuple([step_of[read] for read in reads]))
            step = known.get(key)
            if step is None:
                step = known[key] = len(steps)
                steps.append(key)
            step_of[place] = step
        outputs.append(step_of[resolved.output])
    order = _depth_first(steps)
    place_of = [0] * len(order)
    for place, step in enumerate(order):
        place_of[step] = place
    ordered = [(steps[step][0], tuple([place_of[r] for r in steps[step][1]])) for step in order]
    return Program(operations, ordered, [place_of[output] for output in outputs])


def _depth_first(steps: Sequence[Step]) -> list[int]:
    """An order that ends what it began before it begins another branch, to keep few values alive.

    Of the steps that a value makes ready, the one with the shortest way to its end goes first.
    """
    readers: list[list[int]] = [[] for _ in steps]
    waiting = [0] * len(steps)
    for step, (_, reads) in enumerate(steps):
        distinct = set(reads) if len(reads) > 1 else reads
        waiting[step] = len(distinct)
        for read in distinct:
            readers[read].append(step)
    way = [0] * len(steps)
    for step in range(len(steps) - 1, -1, -1):
        if readers[step]:
            way[step] = 1 + max([way[reader] for reader in readers[step]])
    ready = [step for step, count in enumerate(waiting) if not count]
    ready.sort(key=way.__getitem__, reverse=True)
    order: list[int] = []
    while ready:
        step = ready.pop()
        order.append(step)
        freed = []
        for reader in readers[step]:
            waiting[reader] -= 1
            if not waiting[reader]:
                freed.append(reader)
        if len(freed) > 1:
            freed.sort(key=way.__getitem__, reverse=True)
        ready.extend(freed)
    return order
