"""Export a subnetwork: a folder that anybody can load without this package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from optuna_stitch.errors import ExportError
from optuna_stitch.results.export.card import (
    DRAWING,
    Origin,
    licence_of,
    what_it_is,
    write_card,
)
from optuna_stitch.results.export.formats import FORMATS, Format, Subject, chosen
from optuna_stitch.results.export.staging import refuse_full, staged
from optuna_stitch.results.export.timm_config import timm_config
from optuna_stitch.results.export.tracing import trace
from optuna_stitch.results.pictures.segments import dissect
from optuna_stitch.results.pictures.subnetwork_drawing import draw_subnetwork
from optuna_stitch.splits import Split
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.supernetwork import Supernetwork

CONFIG = "config.json"
CARD = "README.md"
# All that an export may write, the card last.
FILES = (
    *(name for form in FORMATS.values() for name in form.files),
    CONFIG,
    DRAWING,
    CARD,
)
# On how many images what is written is compared with the extracted module.
_IMAGES = 64


def export_network(
    supernetwork: Supernetwork,
    genotype: Genotype,
    to: str | Path,
    *,
    split: Split,
    origin: Origin,
    formats: Sequence[str] = ("python",),
    force: bool = False,
) -> Path:
    """Write a subnetwork into a folder, in formats that need none of us to run.

    Beside the network: ``config.json`` for timm's transform, a drawing, and a model card. What is
    written is loaded again and compared with the extracted module on test images.

    Args:
        supernetwork: What it is part of.
        genotype: Which subnetwork.
        to: The folder; made if it is not there.
        split: Images to check on: the test split.
        origin: Where the network comes from, for its card.
        formats: ``python``: one file of code and one of weights, bit for bit the same network;
            ``program``: by ``torch.export.save``, likewise; ``onnx``: up to 1e-4; ``all``.
        force: Whether to replace files of an earlier export.

    Returns:
        The folder.

    Raises:
        ExportError: If a format is unknown or cannot hold this network, the folder cannot be
            written or has files in it, or what was written computes something else.
    """
    to, wanted = Path(to), chosen(formats)
    refuse_full(to, force=force)
    genotype = supernetwork.canonical(genotype)
    parts = dissect(supernetwork, genotype)
    traced = trace(supernetwork, genotype)
    views = list(traced.views.values())
    few = min(_IMAGES, len(split), supernetwork.batch_size)
    images = split.pick(range(few), views).images
    shape = supernetwork.graphs["a"].costs[supernetwork.graphs["a"].output.name].shape or ()
    subject = Subject(
        traced,
        supernetwork.switches,
        what_it_is(origin, parts),
        f"logits ({', '.join(['N', *map(str, shape[1:])])})",
    )
    config = timm_config(
        f"{origin.ancestors['a'].name}--{origin.ancestors['b'].name}--trial-{origin.trial}",
        supernetwork.classes,
        traced.views,
        class_names=origin.class_names,
        licence=licence_of(origin, parts),
    )
    card = write_card(origin, parts, traced.views, wanted, segments=supernetwork.segments)
    drawing = draw_subnetwork(supernetwork, genotype, title=f"Trial {origin.trial}")
    with staged(to, FILES, force=force) as folder:
        for name in wanted:
            FORMATS[name].write(subject, folder)
            _check(name, FORMATS[name], folder, traced.module, images)
        (folder / CONFIG).write_text(config, encoding="utf-8")
        drawing.write(folder / DRAWING)
        (folder / CARD).write_text(card, encoding="utf-8")
    return to


def _check(
    name: str, form: Format, folder: Path, module: nn.Module, images: Sequence[Tensor]
) -> None:
    """Compare what was written with the extracted module, one image alone and all together."""
    written = form.load(folder)
    for count in sorted({1, len(images[0])}):
        given = [pixels[:count] for pixels in images]
        with torch.no_grad():
            difference = _difference(written(*given), module(*given))
        if difference > form.tolerance:
            raise ExportError(
                f"As {name} the network's logits differ from the extracted network's by up to "
                f"{difference:.2g} on {count} test images; {form.tolerance:g} is allowed. Nothing "
                "was written; choose another format."
            )


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference; infinite where one is no number and the other is."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return math.inf
    differing = (found != expected) & ~(found.isnan() & expected.isnan())
    differences = (found - expected)[differing].abs().nan_to_num(math.inf)
    return differences.amax().item() if len(differences) else 0.0
