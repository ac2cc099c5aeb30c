"""How subnetworks are judged; importable without torch, for study files."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from optuna_stitch.stitching.settings import Confidence
from optuna_stitch.utils.settings import Settings

Kernels = Literal["auto", "plain", "fast", "float16", "bfloat16"]


class Racing(Settings):
    """When subnetworks stop early that cannot join the front; see `evaluation/racing.py`.

    Args:
        error_rate: Largest probability to stop a subnetwork that is not dominated.
        first: Images in the first block.
        growth: By what all images so far are multiplied with every further block.
        seed: Of the order of the images.

    Example:
        >>> st.Racing(error_rate=0.05).first
        100
    """

    error_rate: float = Field(0.01, gt=0, lt=1)
    first: int = Field(100, gt=0)
    growth: float = Field(2.0, gt=1)
    seed: int = 0


Answer = Literal["mean", "tuned"]


class CascadeSettings(Settings):
    """How cascades decide, and what they answer where both heads were asked.

    Args:
        confidence: How sure a first answer is: by its largest class ``probability``, by the
            ``margin`` to the second largest, by ``entropy``, or ``calibrated``: by a logistic
            regression on all three, tuned on the images that the search sees.
        answer: Both heads' class probabilities in the ``mean``, or with weights and temperatures
            ``tuned`` on the same images.

    Example:
        >>> from optuna_stitch.evaluation.settings import CascadeSettings
        >>> st.Evaluator(supernetwork, data.val, cascades=CascadeSettings(confidence="entropy"))
        ... # doctest: +ELLIPSIS
        <optuna_stitch.evaluation.evaluator.Evaluator object at ...>
    """

    confidence: Confidence = "margin"
    answer: Answer = "tuned"

    @property
    def is_tuned(self) -> bool:
        """Whether labels are needed."""
        return self.confidence == "calibrated" or self.answer == "tuned"


class EvaluationSettings(Settings):
    """How an `Evaluator` computes.

    Args:
        batch_size: Images per batch; if None, 50, or fewer where features are large, and on an
            accelerator as its memory allows, up to 256.
        kernels: ``plain`` computes as the extracted module does, bit for bit; ``fast`` is equal
            up to rounding, ``float16`` and ``bfloat16`` are less exact. ``auto`` is ``fast`` on
            the processor and ``float16`` on an accelerator, or ``bfloat16`` or ``fast`` where
            that overflows or moves accuracy by more than a point.
        memory: GiB for the values that are alive at once; what needs more runs one part after
            the other. If None, 4 on the processor, and most of what is free on an accelerator.
        racing: If given, subnetworks that cannot join the front of those judged so far are
            stopped early. It takes one metric that says right or wrong of every image, and costs.
        cascades: How cascades decide and answer.

    Example:
        >>> st.Evaluator(supernetwork, data.val, kernels="plain").settings.kernels
        'plain'
    """

    batch_size: int | None = Field(None, gt=0)
    kernels: Kernels = "auto"
    memory: float | None = Field(None, gt=0)
    racing: Racing | None = None
    cascades: CascadeSettings = CascadeSettings()


# What times operations.
LatencyRuntime = Literal["torch", "onnxruntime", "imported"]


class LatencySettings(Settings):
    """How operations are timed for ``latency_ms``.

    Args:
        batch_size: Images at once.
        threads: Number of threads; as torch is set, if None.
        runtime: ``torch`` runs every operation by itself; ``onnxruntime`` those together that
            always run together, as it runs exported networks; ``imported``: a table from another
            device, by `optuna-stitch latency import`.

    Example:
        >>> from optuna_stitch.evaluation.settings import LatencySettings
        >>> timed = st.Evaluator(
        ...     supernetwork, data.val, ["latency_ms"], latency=LatencySettings(batch_size=4)
        ... )
        >>> timed.evaluate([supernetwork.subnetwork({"output": "a"})])[0]["latency_ms"] > 0
        True
    """

    batch_size: int = Field(1, gt=0)
    threads: int | None = Field(None, gt=0)
    runtime: LatencyRuntime = "torch"
