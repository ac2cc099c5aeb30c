"""Tune fitted stitches by gradients, on random subnetworks; optional, after the closed form.

Every step runs a few subnetworks on one batch as a single program: what the parents compute is
shared and needs no gradient. The subnetworks learn to answer as the parents' ensemble does, and,
as far as asked, as the labels say; of two jobs, as the parent of that answer does.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optuna_stitch.data.splits import Split
from optuna_stitch.stitching.genotype import (
    ENSEMBLE,
    Genotype,
    Output,
    Side,
    single_stitch_genotypes,
)
from optuna_stitch.stitching.program import Program
from optuna_stitch.stitching.recalibration import match_batch, statistics_of
from optuna_stitch.stitching.settings import Tuning
from optuna_stitch.stitching.supergraph import Supergraph
from optuna_stitch.utils.checkpoint import load_state, save_state, unreadable
from optuna_stitch.utils.device import send
from optuna_stitch.utils.distributed import all_reduce, rank, world_size
from optuna_stitch.utils.errors import FitError
from optuna_stitch.utils.memory import AtOnce, is_out_of_memory, memory_for
from optuna_stitch.utils.progress import console, progress_bar

T = TypeVar("T")

# One image in this many is held out, to put stitches back that got worse.
HELD_OUT = 5

# Thawed parents know already what they are to do.
_THAWED_RATE = 0.1


@dataclass(frozen=True)
class Tuned:
    """What tuning did to one stitch.

    Args:
        switch: Name of its switch.
        before: Divergence of its single-stitch network from the ensemble on held-out images, in
            nats; of two jobs, from the parent that it leads into.
        after: The same after tuning.
        kept: Whether the tuned stitch was kept; one that got worse was put back, unless the
            parents were thawed.
    """

    switch: str
    before: float
    after: float
    kept: bool


class Trainer:
    """The state of a tuning: weights, optimizer and step.

    Args:
        supergraph: The supernetwork's computation.
        parents: The modules of all parents, which learn too where they are thawed.
        split: Images to learn from.
        tuning: How.

    Attributes:
        step: How many steps are done.
    """

    def __init__(
        self,
        supergraph: Supergraph,
        parents: Sequence[nn.Module],
        split: Split,
        tuning: Tuning,
    ) -> None:
        self.step = 0
        self._graph = supergraph
        self._split = split
        self._tuning = tuning
        described = repr((supergraph.content_hash(), split.fingerprint, tuning.model_dump()))
        self._key = hashlib.sha256(described.encode()).hexdigest()[:16]
        # how much runs at once: fewer, where memory runs out
        self._networks = tuning.networks + len(parents) * tuning.thaw
        self._images = tuning.batch_size
        self._judged = AtOnce(len(supergraph.switches), "networks")
        self._read = AtOnce(supergraph.batch_size, "images")
        self._fitted = {k: v.clone() for k, v in supergraph.stitches.state_dict().items()}
        # of two jobs each parent teaches its own answer, and labels are only of one
        sides = supergraph.sides
        outputs: Sequence[Output] = sides if supergraph.two_jobs else (ENSEMBLE,)
        teachers = self._answers([Genotype(output) for output in outputs], range(len(split)))
        teachers = teachers if supergraph.two_jobs else teachers * len(sides)
        self._teachers = dict(zip(sides, teachers, strict=True))
        self._task = 0.0 if supergraph.two_jobs else tuning.task
        groups: list[dict[str, Any]] = [{"params": list(supergraph.stitches.parameters())}]
        if tuning.thaw:
            rate = _THAWED_RATE * tuning.learning_rate
            weights = [w for parent in parents for w in parent.parameters()]
            groups.append({"params": weights, "lr": rate})
        self._thawed = list(parents) if tuning.thaw else []
        self._optimizer = torch.optim.AdamW(
            groups, lr=tuning.learning_rate, weight_decay=tuning.weight_decay
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / tuning.steps)
        )
        positions = torch.arange(len(split))
        self._train = positions[positions % HELD_OUT != HELD_OUT - 1]
        self._held_out = positions[positions % HELD_OUT == HELD_OUT - 1].tolist()

    def parameters(self) -> list[nn.Parameter]:
        """All that learns."""
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def learn(self) -> float:
        """One step; returns its loss.

        Raises:
            FitError: If the loss is not finite.
        """
        tuning = self._tuning
        generator = torch.Generator().manual_seed(1_000_003 * tuning.seed + self.step)
        genotypes = [self._draw(generator) for _ in range(tuning.networks)]
        if tuning.thaw:
            genotypes += [Genotype(side) for side in self._teachers]
        batches: list[list[int]] = []
        for _ in range(tuning.accumulate):
            drawn = torch.randint(len(self._train), (tuning.batch_size,), generator=generator)
            batches.append(self._train[drawn][rank() :: world_size()].tolist())
        total = self._gradients(genotypes, batches)
        if not math.isfinite(total):
            raise FitError(
                f"The loss is not finite in step {self.step} of tuning; lower the learning rate."
            )
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        all_reduce(gradients)
        self._optimizer.step()
        self._schedule.step()
        self.step += 1
        return total

    def _gradients(self, genotypes: Sequence[Genotype], batches: Sequence[Sequence[int]]) -> float:
        """Gradients of a step's loss; returns the loss.

        Where memory runs out, fewer networks run at once, then fewer images: the gradients are
        those of all of them, but for what BatchNorms are matched on.

        Args:
            genotypes: The networks.
            batches: Positions of the images of each batch.
        """
        tuning = self._tuning
        while True:
            self._optimizer.zero_grad()
            losses: list[Tensor] = []
            try:
                for positions in batches:
                    for images in _parts(positions, self._images):
                        for some in _parts(genotypes, self._networks):
                            share = len(images) / (tuning.batch_size * tuning.accumulate)
                            loss = self._loss(some, images) * (share * len(some) / len(genotypes))
                            loss.backward()  # type: ignore[no-untyped-call]
                            losses.append(loss.detach())
                return float(torch.stack(losses).sum())
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self._networks == self._images == 1:
                    raise FitError(
                        "Memory does not suffice to tune one network on one image. Make room on "
                        "the device, or tune in `bfloat16`."
                    ) from error
            # begun again: some gradients may have been added, and others not
            if self._networks > 1:
                self._networks = min(self._networks, len(genotypes)) // 2
                console.print(f"Memory ran out: going on with {self._networks} networks at once.")
            else:
                self._images = min(self._images, max(map(len, batches))) // 2
                console.print(f"Memory ran out: going on with {self._images} images at once.")

    def _draw(self, generator: torch.Generator) -> Genotype:
        """A single-stitch network, each as likely; at times with further stitches on."""
        switches = self._graph.switches
        first = int(torch.randint(len(switches), (1,), generator=generator))
        on = {first}
        chance, *others = torch.rand(len(switches) + 1, generator=generator).tolist()
        if chance < self._tuning.several:
            on |= {index for index, draw in enumerate(others) if draw * len(switches) < 1}
        output: Output = switches[first].into
        return Genotype(output, frozenset(on))

    def _loss(self, genotypes: Sequence[Genotype], positions: Sequence[int]) -> Tensor:
        batch = self._split.pick(positions, self._graph.views, self._graph.device)
        wanted = {side: self._wanted(side, positions).softmax(1) for side in self._teachers}
        program = self._graph.program(genotypes)
        device = self._graph.device.type
        casting = torch.autocast(device, torch.bfloat16, enabled=self._tuning.bfloat16)
        with casting:
            answers = _run_matched(program, batch.images, self._graph)
        losses: list[Tensor] = []
        for genotype, logits in zip(genotypes, answers, strict=True):
            loss = F.cross_entropy(logits.float(), wanted[genotype.output])
            if self._task:
                loss = loss + self._task * F.cross_entropy(logits.float(), batch.targets)
            losses.append(loss)
        return torch.stack(losses).mean()

    def divergences(self, *, fitted: bool = False) -> list[float]:
        """Divergence of every single-stitch network from its teacher on the held-out images.

        Args:
            fitted: Whether to ask it of the stitches as they were fitted.
        """
        tuned = {k: v.clone() for k, v in self._graph.stitches.state_dict().items()}
        if fitted:
            self._graph.stitches.load_state_dict(self._fitted)
        singles = single_stitch_genotypes(self._graph.switches)
        answers = self._answers(singles, self._held_out)
        self._graph.stitches.load_state_dict(tuned)
        wanted = {
            side: self._wanted(side, self._held_out).log_softmax(1) for side in self._teachers
        }
        found = [
            F.kl_div(
                logits.log_softmax(1),
                wanted[single.output],
                log_target=True,
                reduction="batchmean",
            )
            for single, logits in zip(singles, answers, strict=True)
        ]
        divergences: list[float] = torch.stack(found).tolist()
        return divergences

    def _wanted(self, side: Side, positions: Sequence[int]) -> Tensor:
        """What is taught to networks of a side on some images."""
        taught = self._teachers[side]
        return taught.index_select(0, send(torch.tensor(positions), self._graph.device))

    def _answers(self, genotypes: Sequence[Genotype], positions: Sequence[int]) -> list[Tensor]:
        def some(part: slice) -> list[Tensor]:
            return self._answers_of(genotypes[part], positions)

        with memory_for(
            FitError,
            "Memory does not suffice to tune: one network on one image, or on a batch of the "
            "calibration, takes more. Make room on the device, or `recalibrate` on fewer images.",
        ):
            return [logits for part in self._judged(some, len(genotypes)) for logits in part]

    @torch.no_grad()
    def _answers_of(self, genotypes: Sequence[Genotype], positions: Sequence[int]) -> list[Tensor]:
        program = self._graph.program(genotypes)
        self._graph.recalibrate(program)

        def some(part: slice) -> list[Tensor]:
            batch = self._split.pick(positions[part], self._graph.views, self._graph.device)
            return program.run(batch.images)

        return [
            torch.cat(column) for column in zip(*self._read(some, len(positions)), strict=True)
        ]

    def finish(self, before: Sequence[float]) -> list[Tuned]:
        """Put back what got worse, and say what happened.

        Args:
            before: Divergences of the fitted stitches, in the switches' order.
        """
        self._graph.forget_statistics()  # thawed parents changed
        after = self.divergences()
        found: list[Tuned] = []
        for index, switch in enumerate(self._graph.switches):
            # thawed parents are not what the fitted stitch was fitted to
            kept = after[index] < before[index] or self._tuning.thaw
            found.append(Tuned(switch.name, before[index], after[index], kept))
            if not kept:
                prefix = f"{index}."
                state = self._fitted.items()
                own = {k.removeprefix(prefix): v for k, v in state if k.startswith(prefix)}
                self._graph.stitches[index].load_state_dict(own)
        return found

    def save(self, path: Path) -> None:
        """Write the state; only the first process does.

        Args:
            path: The file.

        Raises:
            FitError: If it cannot be written, for want of room perhaps.
        """
        if rank() > 0:
            return
        state = {
            "key": self._key,
            "step": self.step,
            "stitches": self._graph.stitches.state_dict(),
            "parents": [parent.state_dict() for parent in self._thawed],
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
        }
        save_state(path, state, "tuning")

    def load(self, path: Path) -> None:
        """Go on from a state that was written.

        Args:
            path: The file.

        Raises:
            FitError: If it cannot be read, or belongs to another tuning.
        """
        state = load_state(path, self._graph.device, "tuning")
        try:
            if state["key"] == self._key:
                self.step = state["step"]
                self._graph.stitches.load_state_dict(state["stitches"])
                for parent, own in zip(self._thawed, state["parents"], strict=True):
                    parent.load_state_dict(own)
                self._optimizer.load_state_dict(state["optimizer"])
                self._schedule.load_state_dict(state["schedule"])
        except Exception as error:  # a broken file can fail in any of the steps above
            raise unreadable(path, error, "tuning") from error
        if state["key"] != self._key:
            raise FitError(
                f"The checkpoint {path} belongs to another tuning: to other stitches, images or "
                "settings. Remove it, or choose another file."
            )


def _run_matched(
    program: Program, images: tuple[Tensor, ...], supergraph: Supergraph
) -> list[Tensor]:
    """Run a program with BatchNorms downstream of stitches matched on the batch itself."""
    if supergraph.calibration is None:
        return program.run(images)
    own = statistics_of(supergraph.parents_program(), images)
    return program.observe(images, match_batch(program, own))


def _parts(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


_CHECKPOINT_EVERY = 50


def tune_stitches(
    supergraph: Supergraph,
    parents: Sequence[nn.Module],
    split: Split,
    tuning: Tuning,
    *,
    checkpoint: Path | None = None,
    show_progress_bar: bool = False,
) -> list[Tuned]:
    """Tune the stitches of a fitted supernetwork in place; see `Supernetwork.tune`.

    In several processes started by ``torchrun``, each computes its share of every batch.

    Args:
        supergraph: The supernetwork's computation.
        parents: The modules of all parents.
        split: Images to learn from; the train split.
        tuning: How.
        checkpoint: A file to keep the progress in; if it exists and belongs to the same tuning,
            tuning goes on from there.
        show_progress_bar: Whether to show a progress bar.

    Returns:
        One entry per stitch, in the switches' order.

    Raises:
        FitError: If a parent labels pixels, there are too few images, labels shall be learned of
            two jobs, the checkpoint belongs to another tuning, the loss is not finite, or memory
            does not suffice for one network.
    """
    if any(supergraph.segments_of(side) for side in supergraph.sides):
        raise FitError("Tuning is for networks that label images; these label every pixel.")
    if supergraph.two_jobs and "task" in tuning.model_fields_set and tuning.task:
        raise FitError(
            "Labels are not learned from in tuning for two jobs: each parent teaches its own "
            "answer. Leave `task` out."
        )
    if len(split) < 2 * HELD_OUT:
        raise FitError(f"{len(split)} images are too few to tune on; give {2 * HELD_OUT}.")
    if tuning.batch_size < world_size():
        raise FitError(
            f"{world_size()} processes cannot share batches of {tuning.batch_size} images; start "
            "fewer, or tune with a larger `batch_size`."
        )
    trainer = Trainer(supergraph, parents, split, tuning)
    if checkpoint is not None and checkpoint.is_file():
        trainer.load(checkpoint)
    before = trainer.divergences(fitted=True)
    with (
        progress_bar(show_progress_bar=show_progress_bar) as progress,
        _learning([*parents, supergraph.stitches], trainer.parameters()),
    ):
        task = progress.add_task("Tune", total=tuning.steps, completed=trainer.step, note="")
        while trainer.step < tuning.steps:
            loss = trainer.learn()
            progress.update(task, advance=1, note=f"loss {loss:.3f}")
            last = trainer.step == tuning.steps
            if checkpoint is not None and (last or trainer.step % _CHECKPOINT_EVERY == 0):
                trainer.save(checkpoint)
    return trainer.finish(before)


@contextlib.contextmanager
def _learning(parts: Sequence[nn.Module], learn: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let some parameters have gradients, and no others, for a while."""
    before = [(weight, weight.requires_grad) for part in parts for weight in part.parameters()]
    learns = {id(weight) for weight in learn}
    for weight, _ in before:
        weight.requires_grad_(id(weight) in learns)
    try:
        yield
    finally:
        for weight, had in before:
            weight.requires_grad_(had)
            weight.grad = None
