"""Train one found network to its end: polished, then distilled from both parents, labels beside.

A finished network is a subnetwork of a supernetwork of its own, with the same genotype: copies of
both parents and of the stitches, of which it has trained what it uses. Whatever takes a subnetwork
takes it too.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from optuna_stitch.data.load import Data
from optuna_stitch.data.pair import DataPair, SplitPair
from optuna_stitch.data.splits import Split
from optuna_stitch.models.parent import Parent
from optuna_stitch.stitching.augment import blended, moved
from optuna_stitch.stitching.genotype import BOTH, ENSEMBLE, Genotype, Output, Side
from optuna_stitch.stitching.polish import Polish, polish
from optuna_stitch.stitching.settings import Finishing
from optuna_stitch.stitching.subnetwork import Finished, Subnetwork
from optuna_stitch.stitching.supergraph import Supergraph, mean_of_probabilities
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.utils.checkpoint import load_state, save_state, unreadable
from optuna_stitch.utils.device import are_finite
from optuna_stitch.utils.distributed import all_reduce, rank, world_size
from optuna_stitch.utils.errors import FitError
from optuna_stitch.utils.files import content_key
from optuna_stitch.utils.memory import memory_for
from optuna_stitch.utils.progress import console, progress_bar
from optuna_stitch.utils.settings import settings_of

# Steps in which the learning rate rises, and those after which it is settled how many fit into a
# time; the first ones take longer than others.
_WARM_UP = 20
_TIMED = (3, 9)

# How often it may go back to the last good state with half the rate.
_RETRIES = 3

# Seconds between checkpoints within an epoch.
_EVERY = 60.0

# On how many batches statistics of BatchNorms are measured.
_SETTLED = 16

# The label of pixels that do not count.
_VOID = 255


def finish(
    network: Subnetwork | Parent,
    data: Data | DataPair,
    settings: Finishing | None = None,
    *,
    teacher: Supernetwork | None = None,
    steps: int | None = None,
    checkpoint: str | Path | None = None,
    show_progress_bar: bool = False,
    **options: Any,
) -> Subnetwork:
    """Train a found network to answer as the ensemble of both parents does.

    First it is polished: layers that follow its stitches are refitted in closed form; see
    `Polish`. ``epochs=0`` does nothing else.

    Where images have labels, these are learned from as well. Of two jobs each head learns from its
    own parent; a cascade learns its first answer and that of both heads at once. In several
    processes started by ``torchrun``, each computes its share of every batch.

    Parents are finished likewise, as subnetworks without stitches: what distillation is worth
    without stitching. So is any other network, a `Parent`: all of its layers learn at the
    full rate.

    Args:
        network: The network, which stays as it is.
        data: Images: it learns on the train split, and validation images say when to end.
        settings: How; see `Finishing`.
        teacher: Of a network that is no subnetwork, whose parents teach it.
        steps: How many steps it may take, in place of what the settings say; so a control has
            exactly as many as what it is compared with.
        checkpoint: A file to keep the progress in; if it exists and belongs to the same work, it
            goes on from there, to the same bits.
        show_progress_bar: Whether to show a progress bar.
        **options: Fields of `Finishing`, in place of ``settings``: ``epochs=5``.

    Returns:
        A subnetwork of the same genotype, whose `Subnetwork.finished` says what was done.

    Raises:
        ConfigError: If an option is unknown or has a wrong value.
        FitError: If there are fewer images than a batch has, labels shall be learned of two jobs,
            the checkpoint belongs to other work or cannot be written, memory does not suffice, or
            the loss is not finite, also at an eighth of the learning rate.

    Example:
        >>> crossing = {"output": "b", supernetwork.switches[0].name: "on"}
        >>> subnetwork = supernetwork.subnetwork(crossing)
        >>> finished = st.finish(subnetwork, data, epochs=1)
        >>> finished.params == subnetwork.params, finished.finished.steps
        (True, 4)
    """
    settings = settings_of(Finishing, settings, options)
    if isinstance(network, Parent):
        if teacher is None:
            raise FitError(f"Nothing teaches {network.name}: give a supernetwork as `teacher`.")
        student, teaches, rate = alone(network), teacher.supergraph, 1.0
    else:
        student, rate = network, settings.parents_rate
        teaches = network.supergraph if teacher is None else teacher.supergraph
    settles = settings.batch_norms == "settled" or (
        settings.batch_norms == "auto" and isinstance(network, Parent)
    )
    work = _Finisher(student, teaches, data, settings, rate, steps, settles=settles)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.is_file():
        work.load(path)
    return work.run(path, show_progress_bar=show_progress_bar)


def alone(parent: Parent) -> Subnetwork:
    """A network as a subnetwork of a supernetwork that has nothing else.

    Args:
        parent: The network.
    """
    graph = parent.graph()
    views: dict[Side, Any] = {"a": parent.view, "b": parent.view}
    return Subnetwork.of(Supergraph({"a": graph, "b": graph}, views, (), ()), Genotype("a"))


def twin(subnetwork: Subnetwork, *, statistics: bool = True) -> Subnetwork:
    """The same network in a supernetwork of its own, which no other shares.

    Args:
        subnetwork: The network.
        statistics: Whether its BatchNorms shall have the statistics that fit its stitches.

    Raises:
        FitError: If it uses one BatchNorm at several places, with different statistics.
    """
    graph = subnetwork.supergraph
    # at once: parents may share weights, or be one
    modules = copy.deepcopy({side: own.module for side, own in graph.graphs.items()})
    copied = Supergraph(
        {side: replace(own, module=modules[side]) for side, own in graph.graphs.items()},
        graph.view_of,
        graph.switches,
        [copy.deepcopy(stitch) for stitch in graph.stitches],
        two_jobs=graph.two_jobs,
    )
    found = replace(Subnetwork.of(copied, subnetwork.genotype), exit=subnetwork.exit)
    if not statistics:
        return found
    program = subnetwork.program()
    with torch.no_grad():
        graph.recalibrate(program)
        held: set[int] = set()
        for step, (mean, variance) in program.statistics.items():
            norm = copied.operations[program.places[step]].norm
            assert norm is not None
            if id(norm.mean) in held:
                raise FitError(
                    "This network uses one BatchNorm at several places, which need statistics of "
                    "their own downstream of a stitch; it cannot be finished."
                )
            held.add(id(norm.mean))
            norm.mean.copy_(mean)
            norm.variance.copy_(variance)
    return found


class _Finisher:
    """The state of a training: weights, their average, the best of it, optimizer, step.

    Args:
        subnetwork: What is trained, on a copy.
        teacher: Whose parents teach.
        data: The images.
        settings: How.
        rate: What share of the learning rate all but stitches have.
        steps: How many steps it may take, if that is known.
        settles: Whether BatchNorms see batches, and are settled at the end.
    """

    def __init__(
        self,
        subnetwork: Subnetwork,
        teacher: Supergraph,
        data: Data | DataPair,
        settings: Finishing,
        rate: float,
        steps: int | None,
        *,
        settles: bool,
    ) -> None:
        self._settings, self._settles = settings, settles
        self._teacher = teacher
        self._train, self._val = _together(data.train), _together(data.val)
        self._check(settings)
        self._twin = twin(subnetwork)
        graph = self._graph = self._twin.supergraph
        self._device = graph.device
        self._label_weight = self._labels(settings)
        self._views = tuple(dict.fromkeys([*teacher.views, *graph.views]))
        outputs: Sequence[Output] = teacher.sides if teacher.two_jobs else (ENSEMBLE,)
        self._teaches = teacher.program([Genotype(output) for output in outputs])
        self._module = _Heads(self._twin)
        learns = self._learning(rate)
        self._optimizer = torch.optim.AdamW(
            learns, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._rates = [group["lr"] for group in learns]
        self._average = self._averaged()
        self._epoch_steps = max(1, len(self._train) // settings.batch_size)
        self._planned = steps or (
            None if settings.minutes and settings.epochs else settings.epochs * self._epoch_steps
        )
        self._polish = Polish(self._twin, subnetwork.supergraph)
        self._refitted: dict[str, Any] = {}
        self._step, self._halved, self._since = 0, 0, 0
        self._before = self._best_loss = self._best_step = math.nan
        self._best: dict[str, Tensor] = {}
        self._good: dict[str, Any] = {}
        self._seconds, self._begun = 0.0, time.monotonic()
        self._key = content_key(
            *(teacher.content_hash(), subnetwork.supergraph.content_hash()),
            *(repr(subnetwork.genotype), self._train.fingerprint, self._val.fingerprint),
            *(settings.model_dump(), rate, steps),
        )

    def _check(self, settings: Finishing) -> None:
        images = len(self._train)
        if not settings.epochs:
            return
        if images < settings.batch_size:
            raise FitError(
                f"The train split has {images} images, fewer than a batch of "
                f"{settings.batch_size}: give more, or a smaller `batch_size`."
            )
        if settings.batch_size < 2 * world_size():
            raise FitError(
                f"{world_size()} processes cannot share batches of {settings.batch_size} images, "
                "at least two each; start fewer, or give a larger `batch_size`."
            )

    def _labels(self, settings: Finishing) -> float:
        """The weight of labels, as far as there are any."""
        if self._teacher.two_jobs:
            if "labels" in settings.model_fields_set and settings.labels:
                raise FitError(
                    "Labels are not learned from in two jobs: each parent teaches its own answer. "
                    "Leave `labels` out."
                )
            return 0.0
        if not settings.labels or self._teacher.segments:
            return settings.labels
        for split in (self._train, self._val):
            self._pick(split, range(1), self._teacher.views)  # decodes; labels come with that
            if not split.is_labelled(self._teacher.classes):
                console.print(
                    f"The {split.name} split has no labels: the parents alone teach.",
                    highlight=False,
                )
                return 0.0
        return settings.labels

    def _learning(self, rate: float) -> list[dict[str, Any]]:
        """What learns, at which rate; whether its BatchNorms see batches from here on."""
        graph, steps = self._graph, self._twin.resolved.steps
        whole = self._settings.trains == "all" or not self._twin.on
        reached: set[int] = set()
        for place, reads in steps:
            if whole or graph.operations[place].owner == "stitch" or reached & set(reads):
                reached.add(place)
        stitches, others = dict[int, nn.Parameter](), dict[int, nn.Parameter]()
        for place in reached:
            operation = graph.operations[place]
            group = stitches if operation.owner == "stitch" else others
            group.update((id(weight), weight) for weight in operation.weights)
        for weight in (*stitches.values(), *others.values()):
            weight.requires_grad_(weight.is_floating_point())
        norms = {
            id(norm.normalizer)
            for place in reached
            if self._settles and (norm := graph.operations[place].norm) is not None
        }
        self._norms = [
            name
            for name, part in self._module.named_modules()
            if isinstance(part, _BatchNorm) and id(part) in norms
        ]
        groups = [(list(stitches.values()), 1.0), (list(others.values()), rate)]
        return [
            {"params": some, "lr": share * self._settings.learning_rate}
            for some, share in groups
            if some
        ]

    def run(self, checkpoint: Path | None, *, show_progress_bar: bool) -> Subnetwork:
        """Train until the steps or the time are over, or validation images gain no more.

        Args:
            checkpoint: Where to keep the progress.
            show_progress_bar: Whether to show a progress bar.
        """
        too_large = (
            f"Memory does not suffice to finish a network in batches of "
            f"{self._settings.batch_size} images on {self._device}; give a smaller `batch_size`."
        )
        self._begun = time.monotonic()
        with (
            memory_for(FitError, too_large),
            progress_bar(show_progress_bar=show_progress_bar) as progress,
        ):
            if not self._best:
                self._judge_first(progress)
            trains = self._planned != 0
            task = progress.add_task("Finish", total=self._planned, note="", visible=trains)
            saved = time.monotonic()
            for loss in self._steps():
                note = f"loss {loss:.3f}, val {self._best_loss:.3f}"
                progress.update(task, completed=self._step, total=self._planned, note=note)
                over = self._over()
                if self._at_epoch() or over or time.monotonic() - saved > _EVERY:
                    self._keep(checkpoint)
                    saved = time.monotonic()
        return self._finished()

    def _steps(self) -> Iterator[float]:
        """Do steps, and judge after each epoch; yields each step's loss."""
        start = 0.0
        while not self._over():
            if self._planned is None and self._step == _TIMED[0]:
                start = time.monotonic()
            loss = self._learn()
            good = math.isfinite(loss)
            if good and (self._at_epoch() or self._step == self._planned):
                good = self._judge()
            if not good:
                self._go_back()
                continue
            if self._planned is None and self._step >= _TIMED[1]:
                self._plan((time.monotonic() - start) / (_TIMED[1] - _TIMED[0]))
            yield loss

    def _over(self) -> bool:
        patience = self._settings.patience
        waited = patience is not None and self._since >= patience
        return waited or (self._planned is not None and self._step >= self._planned)

    def _at_epoch(self) -> bool:
        return self._step % self._epoch_steps == 0

    def _plan(self, seconds: float) -> None:
        """Settle how many steps fit into the time; the first process says it.

        Args:
            seconds: What one takes.
        """
        settings = self._settings
        assert settings.minutes is not None
        each = seconds + self._judging / self._epoch_steps
        left = 60 * settings.minutes - self._spent() - self._judging
        steps = self._step + max(0, int(left / each)) if rank() == 0 else 0
        said = torch.tensor(steps, device=self._device)
        all_reduce([said])
        self._planned = max(self._step, min(int(said), settings.epochs * self._epoch_steps))

    def _spent(self) -> float:
        return self._seconds + time.monotonic() - self._begun

    def _factor(self) -> float:
        """The share of their learning rate that all have at this step."""
        risen = min(1.0, (self._step + 1) / _WARM_UP) * 0.5**self._halved
        if self._planned is None or self._step < _WARM_UP:
            return risen
        done = (self._step - _WARM_UP) / max(1, self._planned - _WARM_UP)
        return risen * (0.5 + 0.5 * math.cos(math.pi * done))

    def _learn(self) -> float:
        """One step; returns its loss, over all processes."""
        settings = self._settings
        epoch, place = divmod(self._step, self._epoch_steps)
        order = torch.randperm(len(self._train), generator=self._generator(epoch, 0))
        start = place * settings.batch_size
        chosen = order[start : start + settings.batch_size][rank() :: world_size()]
        share = len(chosen) / settings.batch_size
        images, targets = self._pick(self._train, chosen.tolist(), self._views)
        generator = self._generator(self._step, 1 + rank())
        images, targets = moved(
            images, targets, generator, flip=settings.flip, shift=settings.shift
        )
        mixed, others = blended(images, generator) if settings.mixup else (images, None)
        self._set_modes(self._module)
        factor = self._factor()
        for group, own in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = own * factor
        self._optimizer.zero_grad()
        loss = self._loss(self._module, mixed, targets, others) * share
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [
            p.grad for g in self._optimizer.param_groups for p in g["params"] if p.grad is not None
        ]
        said = loss.detach().reshape(1)
        all_reduce([said, *gradients])
        self._optimizer.step()
        self._average.update_parameters(self._module)
        self._step += 1
        return float(said)

    def _averaged(self) -> AveragedModel:
        """The average of the weights from now on."""
        return AveragedModel(self._module, multi_avg_fn=self._average_in)

    def _average_in(
        self, averaged: Sequence[Tensor], current: Sequence[Tensor], count: Any
    ) -> None:
        """Let the average move faster at first, when it knows few weights."""
        kept = min(self._settings.average, (1 + self._step) / (10 + self._step))
        update = get_ema_multi_avg_fn(kept)  # type: ignore[no-untyped-call]
        update(averaged, current, count)

    def _generator(self, *numbers: int) -> torch.Generator:
        text = json.dumps([self._settings.seed, *numbers])
        seed = int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)
        return torch.Generator().manual_seed(seed)

    def _set_modes(self, module: nn.Module) -> None:
        """Let BatchNorms see batches, where they shall; nothing is dropped at random."""
        module.eval()
        parts = dict(module.named_modules())
        for name in self._norms:
            parts[name].train()

    def _loss(
        self,
        module: nn.Module,
        images: Sequence[Tensor],
        targets: Tensor,
        others: tuple[Tensor, Tensor] | None = None,
        taught: list[Tensor] | None = None,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            module: What answers.
            images: By view.
            targets: Labels.
            others: Of blended images, which other each has, and how much is left of its own.
            taught: What teachers answer, where that is known.
        """
        settings = self._settings
        by_view = dict(zip(self._views, images, strict=True))
        half = settings.precision == "bfloat16" or (
            settings.precision == "auto" and self._device.type != "cpu"
        )
        with torch.autocast(self._device.type, torch.bfloat16, enabled=half):
            if taught is None:
                with torch.no_grad():
                    taught = self._teaches.run([by_view[view] for view in self._teacher.views])
            heads = module(*(by_view[view] for view in self._graph.views))
        heads = {side: logits.float() for side, logits in heads.items()}
        answers = self._answers(heads)
        wanted = taught if self._teacher.two_jobs else taught * len(answers)
        warmth, weight = settings.temperature, self._label_weight
        losses = []
        for answer, teaching in zip(answers, wanted, strict=True):
            soft = (teaching.float() / warmth).softmax(1)
            loss = (1 - weight) * warmth**2 * F.cross_entropy(answer / warmth, soft)
            if weight:
                said = F.cross_entropy(answer, targets, ignore_index=_VOID)
                if others is not None:
                    rows, kept = others
                    other = F.cross_entropy(answer, targets[rows], ignore_index=_VOID)
                    said = kept * said + (1 - kept) * other
                loss = loss + weight * said
            losses.append(loss)
        return torch.stack(losses).mean()

    def _answers(self, heads: Mapping[Side, Tensor]) -> list[Tensor]:
        """All that is answered; of a cascade its first answer, and that of both heads."""
        if len(heads) == 1 or self._twin.output == BOTH:
            return list(heads.values())
        mean = mean_of_probabilities(*heads.values())
        first = self._twin.genotype.first
        return [mean] if first is None else [heads[first], mean]

    def _pick(
        self, split: Split, positions: Sequence[int], views: Sequence[Any]
    ) -> tuple[list[Tensor], Tensor]:
        batch = split.pick(positions, views, self._teacher.device, self._teacher.view_of["a"])
        layout = self._teacher.memory_format
        return [some.contiguous(memory_format=layout) for some in batch.images], batch.targets

    def _judge_first(self, progress: Progress) -> None:
        """Judge the network as it was found, and polished."""
        begin = time.monotonic()
        self._before = self._validate(self._module)
        self._judging = time.monotonic() - begin
        if not math.isfinite(self._before):
            raise FitError("The network's answers, or its teachers', are no finite numbers.")
        self._best_loss, self._best_step = self._before, 0
        if self._settings.polish and self._polish.layers:
            self._refit(progress)
        self._best = _copied(self._module.state_dict())
        self._good = copy.deepcopy(self._state())

    def _refit(self, progress: Progress) -> None:
        """Polish the network, and take what came of it where validation images gain."""
        found = _copied(self._module.state_dict())
        wanted = min(self._settings.polish, len(self._train))
        seed = self._settings.seed
        images, layers = polish(self._polish, self._batches, wanted, seed, progress)
        loss = self._validate(self._module) if images else math.inf
        if images:
            self._refitted = {
                "refitted": layers,
                "refitted_on": images,
                "refitted_loss": loss if math.isfinite(loss) else None,
            }
        if loss < self._before:
            self._best_loss = loss
            self._average = self._averaged()
        else:
            self._module.load_state_dict(found)

    def _batches(self, images: int) -> list[list[Tensor]]:
        """The first train images by batch and view."""
        size = self._graph.batch_size
        return [
            self._pick(self._train, range(start, min(start + size, images)), self._graph.views)[0]
            for start in range(0, images, size)
        ]

    def _judge(self) -> bool:
        """Settle and judge the averaged weights; whether they are finite numbers."""
        module = self._average.module
        self._settle(module)
        loss = self._validate(module)
        if not math.isfinite(loss) or not all(are_finite(list(self._module.parameters()))):
            return False
        self._since += 1
        if loss < self._best_loss:
            self._best_loss, self._best_step, self._since = loss, self._step, 0
            self._best = _copied(module.state_dict())
        return True

    @torch.no_grad()
    def _settle(self, module: nn.Module) -> None:
        """Measure the statistics of BatchNorms that saw batches anew, on train images.

        As ``torch.optim.swa_utils.update_bn`` does, but for what it does to all other layers.
        """
        parts = dict(module.named_modules())
        norms = [parts[name] for name in self._norms]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        self._set_modes(module)
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the average over all batches
        count = 0
        size = self._settings.batch_size
        starts = range(0, len(self._train) - size + 1, size)[:_SETTLED]
        for start in starts[rank() :: world_size()]:
            positions = range(start, start + size)
            images, _ = self._pick(self._train, positions, self._graph.views)
            module(*images)
            count += 1
        share = count / len(starts)
        held = [value for norm in norms for value in (norm.running_mean, norm.running_var)]
        if world_size() > 1:
            for value in held:
                value.mul_(share)
            all_reduce(held)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        module.eval()

    @torch.no_grad()
    def _validate(self, module: nn.Module) -> float:
        """The loss on validation images."""
        module.eval()
        total = torch.zeros((), dtype=torch.float64)
        size = self._teacher.batch_size
        for start in range(rank() * size, len(self._val), world_size() * size):
            positions = range(start, min(start + size, len(self._val)))
            images, targets = self._pick(self._val, positions, self._views)
            total += len(positions) * float(self._loss(module, images, targets))
        total = total.to(self._device, torch.float32)
        all_reduce([total])
        return float(total) / len(self._val)

    def _state(self) -> dict[str, Any]:
        return {
            "key": self._key,
            "step": self._step,
            "planned": self._planned,
            "halved": self._halved,
            "since": self._since,
            "seconds": self._spent(),
            "judging": self._judging,
            "losses": [self._before, self._best_loss, self._best_step],
            "refitted": self._refitted,
            "module": self._module.state_dict(),
            "average": self._average.state_dict(),
            "best": self._best,
            "optimizer": self._optimizer.state_dict(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self._module.load_state_dict(state["module"])
        self._average.load_state_dict(state["average"])
        # a copy: the optimizer goes on in the tensors that it is given
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._step, self._planned = state["step"], state["planned"]
        self._halved, self._since = state["halved"], state["since"]
        self._judging, self._best = state["judging"], state["best"]
        self._before, self._best_loss, self._best_step = state["losses"]
        self._refitted = state["refitted"]

    def _keep(self, path: Path | None) -> None:
        """Keep a state that is good, in memory and in the checkpoint."""
        if not all(are_finite([*self._module.state_dict().values()])):
            return  # the next loss tells
        state = self._state()
        self._good = copy.deepcopy(state)
        if path is not None and rank() == 0:
            save_state(path, state, "finishing")

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Args:
            path: The file.

        Raises:
            FitError: If it cannot be read, or belongs to other work.
        """
        state = load_state(path, self._device, "finishing")
        if state["key"] != self._key:
            raise FitError(
                f"The checkpoint {path} belongs to other work: to another network, images or "
                "settings. Remove it, or choose another file."
            )
        try:
            self._restore(state)
            self._seconds = state["seconds"]
        except Exception as error:  # a broken file can fail in any of the steps above
            raise unreadable(path, error, "finishing") from error
        self._good = copy.deepcopy(self._state())

    def _go_back(self) -> None:
        """Go on from the last good state with half the rate."""
        step, halved = self._step, self._halved + 1
        if halved > _RETRIES:
            raise FitError(
                f"The loss is not finite after {step} steps, for the {halved}th time: also at "
                f"1/{2**_RETRIES} of the learning rate {self._settings.learning_rate:g}. The "
                "network stays as it was. Give a lower `learning_rate`; are the images right?"
            )
        self._restore(self._good)
        self._halved = self._good["halved"] = halved
        console.print(
            f"The loss is not finite after {step} steps: going on from step {self._step} with "
            f"{1 / 2**halved:g} of the learning rate.",
            highlight=False,
        )

    def _finished(self) -> Subnetwork:
        """The network with the best weights."""
        self._module.load_state_dict(self._best)
        self._module.eval().requires_grad_(False)
        settings, train = self._settings, self._train
        said = Finished(
            settings=settings.model_dump(),
            steps=self._step,
            planned=self._planned or self._step,
            best_step=int(self._best_step),
            images=len(train),
            loss_before=self._before,
            loss=self._best_loss,
            labels=self._label_weight,
            seconds=round(self._spent(), 1),
            halved=self._halved,
            **self._refitted,
        )
        return replace(self._twin, finished=said)


class _Heads(nn.Module):
    """All heads of a network that have a say; see `Subnetwork.heads_module`."""

    def __init__(self, subnetwork: Subnetwork) -> None:
        super().__init__()
        self.network = subnetwork.heads_module()

    def forward(self, *images: Tensor) -> dict[Side, Tensor]:
        """Logits by side; images by view of the supernetwork."""
        found: dict[Side, Tensor] = self.network(*images)
        return found


def _together(split: Split | SplitPair) -> Split:
    return split.together if isinstance(split, SplitPair) else split


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
