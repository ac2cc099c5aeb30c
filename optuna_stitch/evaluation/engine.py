"""Run many subnetworks over images: which kernels, and how many images at once."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from optuna_stitch.evaluation.activation_cache import Reuse
from optuna_stitch.evaluation.kernels import Folding, kernels_on, memory_on, precision
from optuna_stitch.evaluation.settings import Kernels
from optuna_stitch.stitching.program import Program, shared_program
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.stitching.supergraph import Supergraph
from optuna_stitch.utils.device import are_finite
from optuna_stitch.utils.errors import DataError
from optuna_stitch.utils.memory import AtOnce, is_out_of_memory
from optuna_stitch.utils.progress import console

# The share of the memory that values of earlier plans may take.
KEPT = 1 / 8

_BYTES = 4  # of a number


@contextmanager
def no_collection() -> Iterator[None]:
    """Hold the garbage collector back: planning makes many small objects, and no cycles.

    A full collection amid them looks through every object of the process, for longer than the
    planning takes.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class PlanMemoryError(DataError):
    """Memory does not suffice for a plan; one of several networks may be halved."""


@dataclass(frozen=True)
class Plan:
    """Subnetworks that are computed together.

    Args:
        subnetworks: What is computed.
        program: Computes them, one output each; BatchNorms have their parents' statistics.
    """

    subnetworks: list[Subnetwork]
    program: Program


def divide(
    supergraph: Supergraph,
    subnetworks: Sequence[Subnetwork],
    *,
    budget: float = math.inf,
    batch_size: int,
    kept: int = 0,
) -> list[Plan]:
    """Divide subnetworks among plans that stay within a memory budget.

    Subnetworks that share much stay together. A single one is never refused.

    Args:
        supergraph: The supernetwork's computation.
        subnetworks: What is to be computed.
        budget: Bytes of the values that are alive at once, and of what is kept.
        batch_size: Images per batch.
        kept: Numbers that are kept of each subnetwork, besides.

    Returns:
        As few plans as halving gives.
    """
    with no_collection():
        program = shared_program(supergraph.operations, [s.resolved for s in subnetworks])
    needed = _BYTES * (program.elements * batch_size + kept * len(subnetworks))
    if needed <= budget or len(subnetworks) == 1:
        return [Plan(list(subnetworks), program)]
    # subnetworks that end next to each other have most of their way in common
    ends = dict(zip(subnetworks, program.outputs, strict=True))
    ordered = sorted(subnetworks, key=ends.__getitem__)
    half = len(ordered) // 2
    return [
        part
        for some in (ordered[:half], ordered[half:])
        for part in divide(supergraph, some, budget=budget, batch_size=batch_size, kept=kept)
    ]


class Engine:
    """Answers of subnetworks, many at once.

    Args:
        supergraph: The computation of the supernetwork whose subnetworks run.
        kernels: How operations are computed.
        memory: GiB that the values of a plan may take; a plan over it is divided. What there is,
            if None.
        batch_size: Images per batch.

    Attributes:
        kernels: As given; what ``auto`` is on the supernetwork's device.
        memory: Likewise.
        batch_size: As given.
        at_once: How many images run at once; halved where memory runs out.
    """

    def __init__(
        self, supergraph: Supergraph, kernels: Kernels, memory: float | None, batch_size: int
    ) -> None:
        self.supergraph = supergraph
        self.kernels = kernels_on(supergraph.device, kernels)
        self.memory = memory_on(supergraph.device, memory)
        self.batch_size = batch_size
        self.at_once = AtOnce(batch_size, "images")
        self._fold = Folding(supergraph)
        self._said = False

    @property
    def budget(self) -> float:
        """Bytes that the values of one plan may take."""
        return self.memory * 2**30 * (1 - 2 * KEPT)  # both at once, old values and new

    @property
    def largest_batch(self) -> int:
        """Images of the largest batch that a plan runs: the calibration has batches too."""
        calibration = self.supergraph.calibration
        if calibration is None:
            return self.batch_size
        return max(self.batch_size, min(calibration.batch_size, len(calibration)))

    def halve(self, plan: Plan) -> list[Plan]:
        """Two halves of a plan that memory did not suffice for; later plans are as small.

        Args:
            plan: Of several subnetworks.
        """
        gibibytes = _BYTES * plan.program.elements * self.batch_size / 2**30
        self.memory = min(self.memory, gibibytes / (1 - 2 * KEPT)) / 2
        half = len(plan.subnetworks) // 2
        if not self._said:
            console.print(f"Memory ran out: going on with plans of {half} networks, or fewer.")
        self._said = True
        return [
            part
            for some in (plan.subnetworks[:half], plan.subnetworks[half:])
            for part in divide(
                self.supergraph, some, budget=self.budget, batch_size=self.largest_batch
            )
        ]

    def prepare(self, program: Program, reuse: Reuse | None = None) -> Program:
        """Give a plan's program its BatchNorm statistics and its kernels, in place.

        Args:
            program: The program.
            reuse: What of its values is known, and what is to be kept.

        Raises:
            PlanMemoryError: If memory does not suffice for a batch of the calibration. It is not
                halved, since the statistics of two halves are not those of the whole.
        """
        calibration = self.supergraph.calibration
        try:
            if reuse is None:
                self.supergraph.recalibrate(program)
            elif calibration is not None and (program.stitched_norms or reuse.steps):
                given = [reuse.calibration(number) for number in range(calibration.count)]
                for answers in self.supergraph.recalibrate(program, given):
                    reuse.add_calibration(answers[len(answers) - len(reuse.steps) :])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise PlanMemoryError(
                "Memory does not suffice for one network on a batch of the calibration. Make room "
                "on the device, or `fit` fewer images to `recalibrate`."
            ) from error
        if self.kernels != "plain":
            self._fold(program)
        return program

    def run(
        self,
        program: Program,
        images: Sequence[Tensor],
        given: Mapping[int, Tensor] | None = None,
        *,
        whole: bool = False,
    ) -> list[Tensor]:
        """What a plan's subnetworks answer on some images.

        Where memory runs out, the batch is halved, now and from then on.

        Args:
            program: From `prepare`.
            images: One tensor ``(N, C, H, W)`` per view.
            given: The values of the program's given steps.
            whole: Whether to leave the batch whole, where there is a plan to be halved.

        Returns:
            Logits by subnetwork, and what else the program returns.

        Raises:
            PlanMemoryError: If memory does not suffice for the whole batch, or for one image.
        """
        known = given or {}

        def some(part: slice) -> list[Tensor]:
            with precision(self.supergraph.device, self.kernels):
                return program.run(
                    self._laid_out(view[part] for view in images),
                    {step: value[part] for step, value in known.items()},
                )

        try:
            if whole and self.at_once.count >= len(images[0]):
                return some(slice(None))
            answers = self.at_once(some, len(images[0]))
            if len(answers) == 1:
                return answers[0]
            return [torch.cat(column) for column in zip(*answers, strict=True)]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise PlanMemoryError(
                "Memory does not suffice for one network on one image. Make room on the device, "
                "or give the evaluation a smaller `memory`, so that less is kept."
            ) from error

    def first_bad(
        self,
        program: Program,
        images: Sequence[Tensor],
        given: Mapping[int, Tensor],
        output: int,
    ) -> str:
        """The operation that makes the first value that is no finite number.

        Args:
            program: From `prepare`.
            images: As for `run`.
            given: As for `run`.
            output: The step whose value has such numbers.
        """
        wanted, program.outputs = program.outputs, [output]
        try:
            with precision(self.supergraph.device, self.kernels):
                for start in range(0, len(images[0]), self.at_once.count):
                    part = slice(start, start + self.at_once.count)
                    some = self._laid_out(view[part] for view in images)
                    known = {place: value[part] for place, value in given.items()}
                    for step, value in program.values(some, known):
                        if program.reads[step] and not are_finite([value])[0]:
                            return program.operations[step].name
        finally:
            program.outputs = wanted
        return program.operations[output].name

    def _laid_out(self, images: Iterable[Tensor]) -> list[Tensor]:
        if self.kernels == "plain":
            return list(images)
        layout = self.supergraph.memory_format
        return [image.contiguous(memory_format=layout) for image in images]
