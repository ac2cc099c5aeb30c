"""Export a subnetwork: a folder that anybody can load without this package."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from optuna_stitch.data.splits import Split
from optuna_stitch.diagram.drawing import draw_subnetwork
from optuna_stitch.diagram.segments import dissect
from optuna_stitch.export.card import (
    DRAWING,
    Origin,
    licence_of,
    timm_config,
    what_it_is,
    write_card,
)
from optuna_stitch.export.formats import FORMATS, Format, Subject, chosen
from optuna_stitch.export.trace import trace
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.utils.errors import ExportError


def check_folder(to: Path, *, force: bool) -> None:
    """Check that a folder may be written into.

    Args:
        to: The folder; it need not be there.
        force: Whether it may have files in it.

    Raises:
        ExportError: If it may not.
    """
    if to.exists() and not to.is_dir():
        raise ExportError(f"{to} is a file. Name a folder to export into.")
    held = sorted(path.name for path in to.iterdir()) if to.is_dir() else []
    if held and not force:
        more = f" and {len(held) - 3} more" if len(held) > 3 else ""
        raise ExportError(
            f"The folder {to} has files in it: {', '.join(held[:3])}{more}. Name another one, or "
            "replace what an export writes with `--force`; other files stay."
        )


@contextmanager
def staged(to: Path, replaceable: Collection[str], *, force: bool) -> Iterator[Path]:
    """Give a folder beside another one to write files into, and move them at the end.

    Args:
        to: Where the files shall be.
        replaceable: Names of files there that are removed if they are not written anew: those of
            an earlier export, which may be of another network.
        force: Whether there may be files there.

    Yields:
        The folder to write into.

    Raises:
        ExportError: If the files cannot be written.
    """
    check_folder(to, force=force)
    target = Path(os.path.abspath(to))
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
        aside.mkdir(parents=True)
        yield aside
        _move(aside, target, replaceable)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ExportError(
            f"The network cannot be written to {to}: {reason}. Make room, or name another folder."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _move(aside: Path, target: Path, replaceable: Collection[str]) -> None:
    if not target.exists():
        aside.rename(target)
        return
    written = [path.name for path in aside.iterdir()]
    for name in written:
        (aside / name).replace(target / name)
    for name in set(replaceable) - set(written):
        (target / name).unlink(missing_ok=True)


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
    check_folder(to, force=force)
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
