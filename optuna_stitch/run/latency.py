"""Take the pieces of a run's supernetwork to a device, and the times that it measured back."""

from __future__ import annotations

from pathlib import Path

from optuna_stitch.evaluation.latency import Latencies, import_latencies
from optuna_stitch.evaluation.pieces import SCRIPT, write_pieces
from optuna_stitch.run.folder import RunFolder
from optuna_stitch.run.search import LATENCY
from optuna_stitch.utils.errors import ArtifactError, RunError


def export_latency(run: RunFolder, to: Path) -> Path:
    """Write a folder that times a run's supernetwork on another device.

    Args:
        run: The run; its supernetwork is built.
        to: The folder; it may not have files in it.

    Returns:
        The script in it, which needs onnxruntime and numpy.

    Raises:
        RunError: If there is no supernetwork yet, or the folder has files in it.
        ConfigError: If a package is missing, or an operator has no counterpart in ONNX.
    """
    supergraph = run.supernetwork.supergraph
    if to.is_file() or (to.is_dir() and any(to.iterdir())):
        raise RunError(f"{to} is there and not empty. Name a new folder for the pieces.")
    write_pieces(supergraph, to, run.study_file.evaluation.latency)
    return to / SCRIPT


def import_latency(run: RunFolder, table: Path) -> Latencies:
    """Let a run count with the times that another device measured.

    Args:
        run: The run; its search has not begun.
        table: What the script wrote.

    Raises:
        ArtifactError: If it is no such table, not whole, or of another supernetwork.
        RunError: If trials were counted with other times, or the folder is read-only.
    """
    run.check_writable()
    latencies = import_latencies(table, run.supernetwork.supergraph)
    wanted = run.study_file.evaluation.latency.batch_size
    if latencies.batch_size != wanted:
        raise ArtifactError(
            f"The table {table} is of {latencies.batch_size} images at once; the study file says "
            f"{wanted} (`evaluation: {{latency: {{batch_size: {wanted}}}}}`). Write the pieces "
            "anew with `optuna-stitch latency export`."
        )
    path = run.folder / LATENCY
    if path.exists() and Latencies.load(path) != latencies and _has_trials(run):
        raise RunError(
            f"The trials of {run.folder} were counted with other times. Begin another run with "
            "`--run`, and import the table before it searches."
        )
    latencies.save(path)
    return latencies


def _has_trials(run: RunFolder) -> bool:
    try:
        return bool(run.study.get_trials(deepcopy=False))
    except RunError:
        return False
