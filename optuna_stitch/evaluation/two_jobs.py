"""Judge subnetworks that answer two questions: each answer by itself, on its own images.

The answer of a depends only on the switches that reach it, and so does that of b. Both are
therefore judged as the networks of one answer that they are: what many subnetworks share in one
answer is computed once, and remembered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy

from optuna_stitch.data.pair import SplitPair
from optuna_stitch.evaluation.accumulator import Evaluation
from optuna_stitch.evaluation.deviation import EXACTNESS, Deviation
from optuna_stitch.evaluation.evaluator import Evaluator
from optuna_stitch.evaluation.latency import Latencies
from optuna_stitch.evaluation.metrics import (
    RETAINED,
    Cost,
    LearnedMetric,
    SideMetric,
    StudyMetric,
    check_sides,
    quality_metric,
    resolve_metrics,
)
from optuna_stitch.evaluation.settings import EvaluationSettings, LatencySettings
from optuna_stitch.stitching.genotype import BOTH, SIDES, Side
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.utils.errors import ConfigError, StudyError
from optuna_stitch.utils.settings import settings_of


class TwoJobEvaluator:
    """Figures of subnetworks of parents with two jobs.

    Args:
        supernetwork: Whose subnetworks.
        split: Images to judge them on, of both jobs.
        metrics: Costs; ``retained``; and names of metrics with a side, such as ``accuracy_a``, or
            your own as `SideMetric`.
        settings: As for `Evaluator`; there are no races.
        result_cache: As for `Evaluator`.
        latency: As for `Evaluator`.
        **options: As for `Evaluator`.

    Attributes:
        sides: What judges each answer, by side.

    Raises:
        ConfigError: If the parents have one job, a metric has no side, is unknown or for another
            task, or networks shall race.
        DataError: If a parent cannot take the images of the other's job.

    Example:
        >>> both = st.stitch(a, b, points="blocks", outputs=["both"])
        >>> fits = both.fit(data.train, images=50)
        >>> pair = st.DataPair(data, data)
        >>> evaluator = st.TwoJobEvaluator(both, pair.val, ["retained", "accuracy_b", "macs"])
        >>> (whole,) = evaluator.evaluate([both.subnetwork({"output": "both"})])
        >>> whole["retained"], whole["macs"] == a.graph().macs + b.graph().macs
        (1.0, True)
    """

    def __init__(
        self,
        supernetwork: Supernetwork,
        split: SplitPair,
        metrics: Sequence[str | StudyMetric] = (RETAINED.name, "macs"),
        settings: EvaluationSettings | None = None,
        *,
        result_cache: str | sqlalchemy.Engine | None = None,
        latency: LatencySettings | Latencies | None = None,
        **options: Any,
    ) -> None:
        if not supernetwork.two_jobs:
            raise ConfigError(
                f"{supernetwork.a.name} and {supernetwork.b.name} have one job: give one split; "
                "or, for two jobs, give `stitch` the outputs `both`."
            )
        self.settings = settings = settings_of(EvaluationSettings, settings, options)
        if settings.racing is not None:
            raise ConfigError("Races are not there for two jobs. Leave `racing` out.")
        self.supernetwork = supernetwork
        self.split = split
        self.metrics = resolve_metrics(metrics)
        check_sides(self.metrics)
        supergraph = supernetwork.supergraph
        split.check_views(supergraph.view_of)
        self._costs = [metric for metric in self.metrics if isinstance(metric, Cost)]
        self._quality = {
            side: quality_metric(segments=supergraph.segments_of(side)) for side in SIDES
        }
        learned: dict[Side, dict[str, LearnedMetric]] = {side: {} for side in SIDES}
        for metric in self.metrics:
            if isinstance(metric, SideMetric):
                learned[metric.side][metric.metric.name] = metric.judged
        self._retains = RETAINED in self.metrics
        if self._retains:
            for side, quality in self._quality.items():
                learned[side].setdefault(quality.name, quality)
        self.sides = {
            side: Evaluator(
                supernetwork,
                split.of(side),
                list(learned[side].values()),
                settings,
                result_cache=result_cache if learned[side] else None,
                latency=latency if side == SIDES[0] else None,
                side=side,
            )
            for side in SIDES
        }

    def evaluate(
        self, subnetworks: Sequence[Subnetwork], *, show_progress_bar: bool = False
    ) -> list[Evaluation]:
        """Judge subnetworks.

        Args:
            subnetworks: Of this supernetwork, with the output ``both``.
            show_progress_bar: Whether to show a progress bar, over batches of images.

        Returns:
            One entry per subnetwork.

        Raises:
            DataError: As `Evaluator.evaluate` says.
            StudyError: As `Evaluator.evaluate` says.
        """
        if any(subnetwork.output != BOTH for subnetwork in subnetworks):
            raise StudyError(f"Networks of parents with two jobs answer with {BOTH!r}.")
        wanted = list(subnetworks)
        if self._retains:
            wanted.append(self.supernetwork.subnetwork({"output": BOTH}))
        parts = {
            side: [subnetwork.part(side) for subnetwork in wanted]
            if self.sides[side].metrics
            else []
            for side in SIDES
        }
        self.settle()
        found = {
            side: self.sides[side].evaluate(parts[side], show_progress_bar=show_progress_bar)
            for side in SIDES
        }
        alone = {side: found[side].pop() for side in SIDES} if self._retains else {}
        empty = [Evaluation({}, 0)] * len(subnetworks)
        both = {side: found[side] or empty for side in SIDES}
        return [
            self._joined(subnetwork, {"a": a, "b": b}, alone)
            for subnetwork, a, b in zip(subnetworks, both["a"], both["b"], strict=True)
        ]

    def _joined(
        self,
        subnetwork: Subnetwork,
        parts: Mapping[Side, Evaluation],
        alone: Mapping[Side, Evaluation],
    ) -> Evaluation:
        """What is known of a subnetwork, from its two answers.

        Args:
            subnetwork: It.
            parts: What is known of its answers.
            alone: What is known of the parents', where that is needed.
        """
        costs = self.costs(subnetwork)
        figures: dict[str, float] = {}
        for metric in self.metrics:
            if isinstance(metric, SideMetric):
                figures[metric.name] = parts[metric.side][metric.metric.name]
            elif isinstance(metric, Cost):
                figures[metric.name] = costs[metric.name]
            else:
                figures[metric.name] = self._retained(parts, alone)
        failed = next((part.failed for part in parts.values() if part.failed), "")
        if failed:
            figures = dict.fromkeys(figures, math.nan) | costs
        return Evaluation(figures, max(part.images for part in parts.values()), failed=failed)

    def _retained(
        self, parts: Mapping[Side, Evaluation], alone: Mapping[Side, Evaluation]
    ) -> float:
        return min(
            RETAINED.share(parts[side][quality.name], alone[side][quality.name])
            for side, quality in self._quality.items()
        )

    def settle(self, known: Deviation | None = None) -> Deviation | None:
        """Find out how far figures in 16 bits are from float32; see `Evaluator.settle`.

        Both answers are computed by the kernels that the more delicate one needs.

        Args:
            known: What another process found for the same study.

        Returns:
            How far; None where kernels compute in float32 as they were asked to.
        """
        judges = [judge for judge in self.sides.values() if judge.metrics]
        found = [deviation for judge in judges if (deviation := judge.settle(known)) is not None]
        if not found:
            return None
        settled = max(found, key=lambda each: (EXACTNESS.index(each.kernels), each.accuracy))
        for judge in judges:
            judge.adopt(settled)
        return settled

    def costs(self, subnetwork: Subnetwork) -> dict[str, float]:
        """The figures that need no images.

        Args:
            subnetwork: Whose costs.
        """
        return {metric.name: float(metric.compute(subnetwork)) for metric in self._costs}

    def tune_exits(self, subnetworks: Sequence[Subnetwork]) -> list[Subnetwork]:
        """The same subnetworks: of two jobs there are no cascades.

        Args:
            subnetworks: Any.
        """
        return list(subnetworks)

    def knows_curve(self, subnetwork: Subnetwork) -> bool:
        """No: of two jobs there are no cascades.

        Args:
            subnetwork: Any.
        """
        return False
