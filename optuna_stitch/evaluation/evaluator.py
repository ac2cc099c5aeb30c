"""Judge subnetworks on a split: the one door, for a single trial as for many."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import sqlalchemy
import torch
from torch import Tensor

from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.accumulator import Evaluation
from optuna_stitch.evaluation.engine import Engine, no_collection
from optuna_stitch.evaluation.kernels import KERNELS, Kernels
from optuna_stitch.evaluation.metrics import (
    AnyMetric,
    Cost,
    ImageMetric,
    Metric,
    cached_name,
    resolve_metrics,
)
from optuna_stitch.evaluation.racing import Race, Racing, Rival
from optuna_stitch.evaluation.result_cache import CachedResult, ResultCache
from optuna_stitch.evaluation.runner import Measured, Runner
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.utils.errors import ConfigError
from optuna_stitch.utils.progress import progress_bar

# More images at once do not run faster, and their values leave a processor's cache.
_BATCH = 50


class Evaluator:
    """Figures of subnetworks on one split, each subnetwork computed once.

    Args:
        supernetwork: Whose subnetworks.
        split: Images to judge them on.
        metrics: Names of known metrics, or metrics of your own.
        batch_size: Images per batch; if None, 50, or fewer where features are large.
        kernels: ``plain`` computes as the extracted module does, bit for bit; ``fast`` is equal
            up to rounding, ``bfloat16`` less exact.
        memory: GiB for the values that are alive at once; what needs more runs one part after
            the other.
        racing: If given, subnetworks that cannot join the front of those judged so far are
            stopped early. It takes one metric that says right or wrong of every image, and costs.
        records: URL or engine of a database, in which figures are remembered for other processes
            and later runs.

    Raises:
        ConfigError: If a metric is unknown, is for another task, or cannot be raced.
        StudyError: If the database cannot be used.
    """

    def __init__(
        self,
        supernetwork: Supernetwork,
        split: Split,
        metrics: Sequence[str | AnyMetric] = ("accuracy", "macs"),
        *,
        batch_size: int | None = None,
        kernels: Kernels = "fast",
        memory: float = 4.0,
        racing: Racing | None = None,
        result_cache: str | sqlalchemy.Engine | None = None,
    ) -> None:
        self.supernetwork = supernetwork
        self.split = split
        self.metrics = resolve_metrics(metrics)
        if kernels not in KERNELS:
            raise ConfigError(f"There are no kernels {kernels!r}; known are {', '.join(KERNELS)}.")
        for metric in self.metrics:
            if isinstance(metric, (ImageMetric, Metric)) and supernetwork.segments:
                raise ConfigError(
                    f"The metric {metric.name!r} judges one label an image, but "
                    f"{supernetwork.a.name} and {supernetwork.b.name} label every pixel; use "
                    "mean_iou or pixel_accuracy."
                )
        self._learned = [metric for metric in self.metrics if not isinstance(metric, Cost)]
        self._costs = [metric for metric in self.metrics if isinstance(metric, Cost)]
        size = batch_size or min(_BATCH, supernetwork.batch_size)
        self._engine = Engine(supernetwork, kernels, memory, size)
        self._race = self._start(racing, size) if racing is not None else None
        self._runner = Runner(self._engine, split, self._learned, self._race)
        self._known: dict[Genotype, Evaluation] = {}
        self._result_cache = (
            ResultCache(result_cache, supernetwork.content_hash(), split.fingerprint, kernels)
            if result_cache is not None
            else None
        )

    def evaluate(
        self, genotypes: Sequence[Genotype], *, show_progress_bar: bool = False
    ) -> list[Evaluation]:
        """Judge subnetworks.

        Genotypes that are the same subnetwork, now or in an earlier call, are computed once. What
        is finished when an interruption comes is not computed again.

        Args:
            genotypes: The subnetworks.
            show_progress_bar: Whether to show a progress bar, over batches of images.

        Returns:
            One entry per genotype.

        Raises:
            DataError: If an image has a label that the parents have no class for, does not
                decode, or memory does not suffice.
            StudyError: If the records' database fails.
        """
        with no_collection():
            canonical = [self.supernetwork.canonical(genotype) for genotype in genotypes]
        self._recall([g for g in dict.fromkeys(canonical) if g not in self._known])
        new = [genotype for genotype in dict.fromkeys(canonical) if genotype not in self._known]
        self._measure(new, show_progress_bar)
        return [self._known[genotype] for genotype in canonical]

    @property
    def batch_size(self) -> int:
        """Images per batch."""
        return self._engine.batch_size

    def logits(self, genotypes: Sequence[Genotype]) -> list[Tensor]:
        """What subnetworks answer on the whole split, ``(len(split), classes, ...)`` each."""
        kept: list[list[Tensor]] = [[] for _ in genotypes]
        for _, answers in self.answers(genotypes):
            for column, logits in zip(kept, answers, strict=True):
                column.append(logits)
        return [torch.cat(column) for column in kept]

    def answers(self, genotypes: Sequence[Genotype]) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """What subnetworks answer, batch by batch.

        Args:
            genotypes: The subnetworks.

        Returns:
            An iterator over the batch's labels, ``(N,)`` or ``(N, H, W)``, and logits of each
            genotype, ``(N, classes)`` or ``(N, classes, H, W)``.

        Raises:
            DataError: If an image has a label that the parents have no class for.
        """
        return self._runner.answers(genotypes)

    def costs(self, genotype: Genotype) -> dict[str, float]:
        """The figures that need no images."""
        costs = self._costs
        return {
            metric.name: float(metric.compute(self.supernetwork, genotype)) for metric in costs
        }

    def _measure(self, genotypes: Sequence[Genotype], show_progress_bar: bool) -> None:
        """Find out the figures of subnetworks that are not known yet."""
        if not genotypes:
            return
        if not self._learned:
            for genotype in genotypes:
                self._known[genotype] = Evaluation(self.costs(genotype), 0)
            return
        keeps = any(isinstance(metric, Metric) for metric in self._learned)
        kept = len(self.split) * self.supernetwork.classes if keeps else 0
        plans = self._engine.divide(genotypes, kept)
        batches = math.ceil(len(self.split) / self._engine.batch_size)
        with progress_bar(show_progress_bar=show_progress_bar) as progress:
            task = progress.add_task(
                f"Evaluate {len(genotypes)} networks", total=batches * len(plans), note=""
            )
            for number, plan in enumerate(plans):
                rivals = [self._rival(genotype) for genotype in plan.genotypes]
                found: dict[Genotype, Measured] = {}
                try:
                    for genotype, measured in self._runner(
                        plan, rivals, lambda: progress.advance(task)
                    ):
                        found[genotype] = measured
                        self._learn(genotype, measured)
                finally:  # also on Ctrl-C: what is finished is kept
                    self._record(found)
                progress.update(task, completed=batches * (number + 1))

    def _learn(self, genotype: Genotype, measured: Measured) -> None:
        """Keep what is known of a subnetwork now, and let others race against it."""
        costs = self.costs(genotype)
        figures = {**{metric.name: math.nan for metric in self.metrics}, **costs}
        figures.update(measured.figures)
        self._known[genotype] = Evaluation(
            figures, measured.images, measured.stopped, measured.failed
        )
        if self._race is not None and self._race.metric in measured.outcomes:
            outcomes = measured.outcomes[self._race.metric]
            self._race.join(Rival(tuple(costs.values()), outcomes))

    def _recall(self, genotypes: Sequence[Genotype]) -> None:
        """Take from the records what they have."""
        if self._result_cache is None or not genotypes:
            return
        names = {metric.name: cached_name(metric) for metric in self._learned}
        found = self._result_cache.find(genotypes)
        if self._race is not None:  # rivals that other workers found
            found.update(self._result_cache.new())
        for genotype, record in found.items():
            known = {
                name: record.figures[recorded]
                for name, recorded in names.items()
                if recorded in record.figures
            }
            if genotype not in self._known and len(known) == len(names):
                outcomes = {
                    name: record.outcomes[recorded]
                    for name, recorded in names.items()
                    if recorded in record.outcomes
                }
                measured = Measured(known, outcomes, len(self.split), failed=record.failed)
                self._learn(genotype, measured)

    def _record(self, found: Mapping[Genotype, Measured]) -> None:
        """Write down full evaluations, by the metrics that others know too."""
        if self._result_cache is None:
            return
        names = {metric.name: cached_name(metric) for metric in self._learned}
        result_cache: dict[Genotype, CachedResult] = {}
        for genotype, measured in found.items():
            if measured.stopped:
                continue  # what is known of it depends on whom it raced against
            named = {name: recorded for name, recorded in names.items() if recorded is not None}
            result_cache[genotype] = CachedResult(
                {recorded: measured.figures[name] for name, recorded in named.items()},
                {
                    recorded: measured.outcomes[name]
                    for name, recorded in named.items()
                    if name in measured.outcomes
                },
                measured.failed,
            )
        self._result_cache.keep(result_cache)

    def _rival(self, genotype: Genotype) -> Rival | None:
        if self._race is None:
            return None
        return self._race.rival(tuple(self.costs(genotype).values()))

    def _start(self, racing: Racing, batch_size: int) -> Race:
        learned = [metric.name for metric in self._learned]
        if len(learned) != 1 or not isinstance(self._learned[0], ImageMetric):
            raise ConfigError(
                f"A race takes one metric that says right or wrong of every image, as accuracy "
                f"does, and costs; these are {[metric.name for metric in self.metrics]}. Leave "
                "`racing` out."
            )
        if any(cost.direction == "maximize" for cost in self._costs):
            raise ConfigError("A race takes costs that are to be small. Leave `racing` out.")
        return Race(racing, learned[0], len(self.split), batch_size)
