"""Run the command line inside the tests' own process."""

from __future__ import annotations

import sys

from optuna_stitch.cli.app import main


def call(*arguments: str) -> int:
    """Run ``optuna-stitch`` with these arguments; its exit code."""
    argv = sys.argv
    sys.argv = ["optuna-stitch", *arguments]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = argv
    return 0
