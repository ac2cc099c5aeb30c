"""Judge subnetworks on a split: the one door, for a single trial as for many."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy
import torch
from torch import Tensor

from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.accumulator import Evaluation
from optuna_stitch.evaluation.activation_cache import ActivationCache
from optuna_stitch.evaluation.cascades import Curve, tune_exit, untuned_exit, with_share
from optuna_stitch.evaluation.deviation import Deviation, settle_kernels
from optuna_stitch.evaluation.engine import Engine, Plan, PlanMemoryError, divide
from optuna_stitch.evaluation.kernels import SIXTEEN_BITS, SMALL_BATCH, batch_on, memory_on
from optuna_stitch.evaluation.latency import Latencies, measure_latency, use_latencies
from optuna_stitch.evaluation.metrics import (
    Cost,
    ImageMetric,
    Metric,
    StudyMetric,
    cached_name,
    metrics_of_one_job,
)
from optuna_stitch.evaluation.racing import Race, Rival
from optuna_stitch.evaluation.result_cache import CachedResult, ResultCache, cacheable
from optuna_stitch.evaluation.runner import Measured, Rivals, Runner
from optuna_stitch.evaluation.settings import (
    EvaluationSettings,
    Kernels,
    LatencySettings,
    Racing,
)
from optuna_stitch.stitching.cascade import Exit
from optuna_stitch.stitching.genotype import Genotype, Side
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.utils.errors import ConfigError, StudyError
from optuna_stitch.utils.progress import progress_bar
from optuna_stitch.utils.settings import settings_of
from optuna_stitch.utils.text import listed_text

_V = TypeVar("_V")

# A cascade has lost a race where it has with its own threshold and with these.
_RACED = (0.1, 0.25, 0.5, 0.75)


class Evaluator:
    """Figures of subnetworks on one split, each subnetwork computed once.

    Args:
        supernetwork: Whose subnetworks.
        split: Images to judge them on.
        metrics: Names of known metrics, or metrics of your own.
        settings: How to compute; see `EvaluationSettings`.
        result_cache: URL or engine of a database, in which figures are remembered for other
            processes and later runs.
        latency: What ``latency_ms`` counts with: how operations are to be timed on this machine,
            or times that were measured before. For one image, if None.
        side: Of parents with two jobs, whose answers are judged: subnetworks have the output ``a``
            or ``b`` then. `TwoJobEvaluator` judges both.
        **options: Fields of `EvaluationSettings`, in place of ``settings``: ``kernels="plain"``.

    Raises:
        ConfigError: If a metric is unknown, is for another task, or cannot be raced, or an option
            is unknown or has a wrong value.
        StudyError: If the database cannot be used.

    Example:
        >>> evaluator = st.Evaluator(supernetwork, data.val, ["accuracy", "macs"])
        >>> parent = supernetwork.subnetwork({"output": "a"})
        >>> evaluation = evaluator.evaluate([parent])[0]
        >>> evaluation["macs"] == parent.macs, evaluation.images
        (True, 200)
    """

    def __init__(
        self,
        supernetwork: Supernetwork,
        split: Split,
        metrics: Sequence[str | StudyMetric] = ("accuracy", "macs"),
        settings: EvaluationSettings | None = None,
        *,
        result_cache: str | sqlalchemy.Engine | None = None,
        latency: LatencySettings | Latencies | None = None,
        side: Side | None = None,
        **options: Any,
    ) -> None:
        if supernetwork.two_jobs and side is None:
            raise ConfigError(
                f"{supernetwork.a.name} and {supernetwork.b.name} have two jobs: judge both by "
                "`TwoJobEvaluator`, or say whose answers are judged by `side`."
            )
        self._side: Side = side or "a"
        self.supernetwork = supernetwork
        self.split = split
        self.metrics = metrics_of_one_job(metrics)
        self.settings = settings = settings_of(EvaluationSettings, settings, options)
        self._supergraph = supergraph = supernetwork.supergraph
        for metric in self.metrics:
            dense = supergraph.segments_of(self._side)
            if isinstance(metric, (ImageMetric, Metric)) and dense:
                names = f"{listed_text([p.name for p in supernetwork.parents.values()])} label"
                if supernetwork.two_jobs:
                    names = f"parent {side}, {supergraph.graphs[self._side].name}, labels"
                raise ConfigError(
                    f"The metric {metric.name!r} judges one label per image, but {names} every "
                    "pixel; use mean_iou or pixel_accuracy."
                )
        if latency is not None:
            if isinstance(latency, LatencySettings):
                latency = measure_latency(supergraph, latency)
            use_latencies(supergraph, latency)
        self._learned = [metric for metric in self.metrics if not isinstance(metric, Cost)]
        self._costs = [metric for metric in self.metrics if isinstance(metric, Cost)]
        memory = memory_on(supergraph.device, settings.memory)
        size = settings.batch_size or batch_on(supergraph, memory)
        self._engine = Engine(supergraph, settings.kernels, memory, size)
        # networks are compared after as many images on every device
        block = min(size, SMALL_BATCH)
        self._race = self._start(settings.racing, block) if settings.racing is not None else None
        self._runner = Runner(
            self._engine, split, self._learned, self._race, settings.cascades, self._side
        )
        self._deviation: Deviation | None = None
        self._known: dict[Genotype, Evaluation] = {}
        self._curves: dict[Genotype, Measured] = {}  # of cascades, without a threshold
        self._result_cache = (
            ResultCache(
                result_cache,
                supergraph.content_hash(),
                split.fingerprint,
                self._engine.kernels,
                cascades=settings.cascades,
            )
            if result_cache is not None
            else None
        )

    def evaluate(
        self, subnetworks: Sequence[Subnetwork], *, show_progress_bar: bool = False
    ) -> list[Evaluation]:
        """Judge subnetworks.

        What was judged in an earlier call is not computed again. What is finished when an
        interruption comes is kept.

        Args:
            subnetworks: Of this supernetwork.
            show_progress_bar: Whether to show a progress bar, over batches of images.

        Returns:
            One entry per subnetwork.

        Raises:
            DataError: If an image has a label that the parents have no class for, does not
                decode, or memory does not suffice.
            StudyError: If the result cache's database fails, or a subnetwork is not one of this
                supernetwork, or was made before its stitches were fitted.
        """
        for subnetwork in subnetworks:
            if subnetwork.supergraph is not self._supergraph:
                raise StudyError(
                    "A subnetwork is of another supernetwork than this evaluator's, or was made "
                    "before the stitches were fitted; make both anew."
                )
        distinct = {subnetwork.genotype: subnetwork for subnetwork in subnetworks}
        if self._learned and self._unknown(distinct):
            self.settle()
        self._recall(list({subnetwork.heads for subnetwork in self._unknown(distinct)}))
        # one of those that differ in their threshold only stands for all of them; of one that
        # lost a race, what others would give is not known
        while new := {subnetwork.heads: subnetwork for subnetwork in self._unknown(distinct)}:
            self._measure(list(new.values()), show_progress_bar)
        return [self._known[subnetwork.genotype] for subnetwork in subnetworks]

    def settle(self, known: Deviation | None = None) -> Deviation | None:
        """Find out how far figures in 16 bits are from float32, before any are computed.

        Parents, ensemble and a few stitched networks are compared on some of the images, once for
        a supernetwork, and the console is told. Where ``kernels`` are ``auto`` and float16
        overflows or moves accuracy by more than a point, bfloat16 is taken, or float32.

        Args:
            known: What another process found for the same study.

        Returns:
            How far; None where kernels compute in float32 as they were asked to.
        """
        if self._deviation is None and self._engine.kernels in SIXTEEN_BITS:
            asked = self.settings.kernels
            if known is None or known.asked != asked:
                known = settle_kernels(
                    self._supergraph,
                    self.split,
                    self._engine.kernels,
                    asked=asked,
                    memory=self.settings.memory,
                    batch_size=self._engine.batch_size,
                    side=self._side,
                )
            self.adopt(known)
        return self._deviation

    def adopt(self, known: Deviation) -> None:
        """Compute by kernels of which is known how far they are from float32.

        Args:
            known: What `settle` found, here or elsewhere.
        """
        self._deviation, self._engine.kernels = known, known.kernels
        if self._result_cache is not None:
            self._result_cache.computed_by(known.kernels)

    def _unknown(self, distinct: Mapping[Genotype, Subnetwork]) -> list[Subnetwork]:
        """Those of which nothing is known, after known curves told what they tell."""
        for genotype, subnetwork in distinct.items():
            if genotype not in self._known and subnetwork.heads in self._curves:
                self._learn(subnetwork, self._curves[subnetwork.heads])
        return [s for genotype, s in distinct.items() if genotype not in self._known]

    @torch.no_grad()
    def tune_exits(self, subnetworks: Sequence[Subnetwork]) -> list[Subnetwork]:
        """Give cascades an exit: when the first answer is enough, as this split's images tell.

        Args:
            subnetworks: Any; those that are no cascades are returned as they are.

        Returns:
            The same subnetworks, in their order.

        Raises:
            DataError: If an image has a label that the parents have no class for, does not
                decode, or memory does not suffice.
        """
        cascades = {s.heads: s for s in subnetworks if s.is_cascade}
        if not cascades:
            return list(subnetworks)
        settings = self.settings.cascades
        sure: dict[Genotype, Tensor] = {}
        tuned: dict[Genotype, Exit] = {}
        if self._supergraph.segments:  # nothing is tuned with labels, and answers are large
            tuned = {g: untuned_exit(_first(s), settings) for g, s in cascades.items()}
            parts: dict[Genotype, list[Tensor]] = {genotype: [] for genotype in cascades}
            for _, answers in self.answers(list(cascades.values())):
                for genotype, heads in zip(cascades, answers, strict=True):
                    found = tuned[genotype]
                    parts[genotype].append(found.sure(heads[:, found.first]))
            sure = {genotype: torch.cat(some) for genotype, some in parts.items()}
        else:
            kept = self.logits(list(cascades.values()))
            for (genotype, subnetwork), heads in zip(cascades.items(), kept, strict=True):
                found = tune_exit(heads, self.split.targets, _first(subnetwork), settings)
                tuned[genotype], sure[genotype] = found, found.sure(heads[:, found.first])
        return [
            subnetwork
            if subnetwork.threshold is None
            else subnetwork.with_exit(
                with_share(tuned[subnetwork.heads], sure[subnetwork.heads], subnetwork.threshold)
            )
            for subnetwork in subnetworks
        ]

    def knows_curve(self, subnetwork: Subnetwork) -> bool:
        """Whether it is a cascade of which other thresholds can be judged without images.

        Args:
            subnetwork: Any.
        """
        measured = self._curves.get(subnetwork.heads)
        return measured is not None and measured.curve is not None

    @property
    def kernels(self) -> Kernels:
        """How operations are computed: never ``auto``."""
        return self._engine.kernels

    @property
    def batch_size(self) -> int:
        """Images per batch."""
        return self._engine.batch_size

    @property
    def activation_cache(self) -> ActivationCache:
        """Values at points that are kept from one plan to the next."""
        return self._runner.activation_cache

    def logits(self, subnetworks: Sequence[Subnetwork]) -> list[Tensor]:
        """What subnetworks answer on the whole split, ``(len(split), classes, ...)`` each.

        Of cascades it is what both heads answer, ``(len(split), 2, classes, ...)``.

        Args:
            subnetworks: Whose logits.
        """
        kept: list[list[Tensor]] = [[] for _ in subnetworks]
        for _, answers in self.answers(subnetworks):
            for column, logits in zip(kept, answers, strict=True):
                column.append(logits)
        return [torch.cat(column) for column in kept]

    def answers(self, subnetworks: Sequence[Subnetwork]) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """What subnetworks answer, batch by batch.

        Args:
            subnetworks: Whose answers.

        Returns:
            An iterator over the batch's labels, ``(N,)`` or ``(N, H, W)``, and logits of each
            subnetwork, ``(N, classes)`` or ``(N, classes, H, W)``; of cascades those of both
            heads, ``(N, 2, classes, ...)``.

        Raises:
            DataError: If an image has a label that the parents have no class for.
        """
        self.settle()
        return self._runner.answers(subnetworks)

    def costs(self, subnetwork: Subnetwork) -> dict[str, float]:
        """The figures that need no images.

        Args:
            subnetwork: Whose costs.
        """
        return {metric.name: float(metric.compute(subnetwork)) for metric in self._costs}

    def _measure(self, subnetworks: Sequence[Subnetwork], show_progress_bar: bool) -> None:
        """Find out the figures of subnetworks that are not known yet."""
        if not subnetworks:
            return
        if not self._learned:
            for subnetwork in subnetworks:
                self._known[subnetwork.genotype] = Evaluation(self.costs(subnetwork), 0)
            return
        keeps = any(isinstance(metric, Metric) for metric in self._learned)
        heads = 2 if any(subnetwork.is_cascade for subnetwork in subnetworks) else 1
        keeps = keeps or (heads == 2 and self.settings.cascades.is_tuned)
        classes = self._supergraph.classes_of(self._side)
        kept = heads * len(self.split) * classes if keeps else 0
        plans = divide(
            self._supergraph,
            subnetworks,
            budget=self._engine.budget,
            batch_size=self._engine.largest_batch,
            kept=kept,
        )
        batches = math.ceil(len(self.split) / self._engine.batch_size)
        found: dict[Genotype, Measured]
        with progress_bar(show_progress_bar=show_progress_bar) as progress:
            task = progress.add_task(
                f"Evaluate {len(subnetworks)} networks", total=batches * len(plans), note=""
            )
            done = 0
            while plans:
                plan, found = plans.pop(0), {}
                rivals = [self._rivals(subnetwork) for subnetwork in plan.subnetworks]
                exhausted = False
                try:
                    for subnetwork, measured in self._runner(
                        plan, rivals, lambda: progress.advance(task)
                    ):
                        found[subnetwork.heads] = measured
                        self._learn(subnetwork, measured)
                except PlanMemoryError:
                    exhausted, alone = True, len(plan.subnetworks) == 1
                    if not self.activation_cache.give_way(wholly=alone) and alone:
                        raise
                finally:  # also on Ctrl-C: what is finished is kept
                    self._record(found)
                if exhausted:  # out of the clause above, which holds what was begun
                    plans[:0] = self._smaller(plan, found)
                else:
                    done += 1
                progress.update(
                    task, completed=batches * done, total=batches * (done + len(plans))
                )

    def _smaller(self, plan: Plan, found: Mapping[Genotype, Measured]) -> list[Plan]:
        """What is left of a plan that memory did not suffice for."""
        left = [subnetwork for subnetwork in plan.subnetworks if subnetwork.heads not in found]
        if len(left) > 1:
            return self._engine.halve(Plan(left, plan.program))
        return divide(self._supergraph, left, batch_size=self._engine.largest_batch)

    def _learn(self, subnetwork: Subnetwork, measured: Measured) -> None:
        """Keep what is known of a subnetwork now, and let others race against it."""
        if subnetwork.is_cascade and not measured.stopped:
            self._curves[subnetwork.heads] = measured
            measured = measured.at(subnetwork.threshold)
        costs = self.costs(subnetwork)
        figures = {**{metric.name: math.nan for metric in self.metrics}, **costs}
        figures.update(measured.figures)
        self._known[subnetwork.genotype] = Evaluation(
            figures, measured.images, measured.stopped, measured.failed
        )
        if self._race is not None and self._race.metric in measured.outcomes:
            outcomes = measured.outcomes[self._race.metric]
            self._race.join(Rival(tuple(costs.values()), outcomes, subnetwork.is_cascade))

    def _recall(self, genotypes: Sequence[Genotype]) -> None:
        """Take from the records what they have."""
        if self._result_cache is None or not genotypes:
            return
        names = {metric.name: cached_name(metric) for metric in self._learned}
        found = self._result_cache.find(genotypes)
        if self._race is not None:  # rivals that other workers found
            found.update(self._result_cache.new())
        for genotype, record in found.items():
            measured = self._recalled(record, names)
            if genotype in self._known or measured is None:
                continue
            if genotype.first is None:
                self._learn(Subnetwork.of(self._supergraph, genotype), measured)
            else:
                self._curves[genotype] = measured

    def _recalled(self, record: CachedResult, names: Mapping[str, str | None]) -> Measured | None:
        """What a record says by our metrics; None where it does not say all.

        Args:
            record: By the metrics' recorded names.
            names: The recorded names by the metrics' own.
        """
        images, curve = len(self.split), record.curve
        if curve is not None:
            first, both = _renamed(curve.first, names), _renamed(curve.both, names)
            if len(first) < len(names):
                return None
            return Measured({}, {}, images, curve=Curve(curve.ranks, first, both))
        figures = _renamed(record.figures, names)
        if len(figures) < len(names):
            return None
        return Measured(figures, _renamed(record.outcomes, names), images, failed=record.failed)

    def _record(self, found: Mapping[Genotype, Measured]) -> None:
        """Write down full evaluations, by the metrics that others know too."""
        if self._result_cache is None:
            return
        names = {
            recorded: metric.name
            for metric in self._learned
            if (recorded := cached_name(metric)) is not None
        }
        results: dict[Genotype, CachedResult] = {}
        for genotype, measured in found.items():
            if measured.stopped:
                continue  # what is known of it depends on whom it raced against
            curve = measured.curve
            if curve is not None:
                if not cacheable(curve):
                    continue
                first, both = _renamed(curve.first, names), _renamed(curve.both, names)
                curve = Curve(curve.ranks, first, both)
            results[genotype] = CachedResult(
                _renamed(measured.figures, names),
                _renamed(measured.outcomes, names),
                measured.failed,
                curve,
            )
        self._result_cache.keep(results)

    def _rivals(self, subnetwork: Subnetwork) -> Rivals:
        """Whom a subnetwork has to beat; nobody where it may win with some threshold."""
        if self._race is None:
            return {}
        own = subnetwork.threshold
        thresholds = [None] if own is None else dict.fromkeys([own, *_RACED])
        found: dict[float | None, Rival] = {}
        for threshold in thresholds:
            one = subnetwork if threshold == own else subnetwork.with_threshold(threshold or 0.0)
            costs = tuple(self.costs(one).values())
            rival = self._race.rival(costs, is_cascade=one.is_cascade)
            if rival is None:
                return {}
            found[threshold] = rival
        return found

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


def _first(subnetwork: Subnetwork) -> int:
    """The number of the head that a cascade asks first."""
    assert subnetwork.first_head is not None, subnetwork
    return subnetwork.first_head


def _renamed(values: Mapping[str, _V], names: Mapping[str, str | None]) -> dict[str, _V]:
    """The values of other names, by ours, where there are any.

    Args:
        values: By their names.
        names: Those names by ours.
    """
    return {
        own: values[other] for own, other in names.items() if other is not None and other in values
    }
