"""The digits study, run once in the cache folder: something to look at without a study file."""

from __future__ import annotations

from pathlib import Path

from optuna_stitch.run.run import Run
from optuna_stitch.utils.errors import RunError
from optuna_stitch.utils.files import cache_folder

_STUDY = "digits.yaml"

# Beside this module in an installed package, among the other study files in a clone.
_PLACES = (Path(__file__).parent, Path(__file__).parents[2] / "studies")

# What `report` writes last but one, of what the demo shows.
_PAGE = "front.html"


def demo(*, show_progress_bar: bool = False) -> tuple[Run, Path]:
    """Build, search and report the digits study where that was not done, or not to its end.

    Args:
        show_progress_bar: Whether to show progress bars.

    Returns:
        The run, in the cache folder, and the page with its front.

    Raises:
        RunError: If the package was installed without the study file.
    """
    from optuna_stitch import __version__

    files = [place / _STUDY for place in _PLACES]
    file = next((path for path in files if path.is_file()), None)
    if file is None:
        raise RunError(f"{files[0]} is missing: install the package anew.")
    # of each version its own: another one may ask for another study
    run = Run.start(file, cache_folder() / "demo" / __version__ / "digits")
    page = run.folder / _PAGE
    if not (page.is_file() and (run.folder / "report.md").is_file()):
        run.build(show_progress_bar=show_progress_bar)
        run.search(show_progress_bar=show_progress_bar)
        run.report(show_progress_bar=show_progress_bar)
    return run, page
