"""Errors that a user can cause and mend.

Each carries one message that names the thing, the place and the way out. The command line prints
it and exits with code 2; from Python they are ordinary exceptions.
"""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The type of an error and the first line of its message, without a full stop.

    Args:
        error: An error of another library.
    """
    text = str(error).strip()
    line = text.splitlines()[0].rstrip(". ") if text else ""
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


class OptunaStitchError(Exception):
    """Base of every error whose message is meant for the user.

    Example:
        >>> try:
        ...     st.load_parent("resnet51")
        ... except st.OptunaStitchError as error:
        ...     print(error)
        timm knows no network named 'resnet51'. Did you mean ...?
    """


class UnknownNetworkError(OptunaStitchError):
    """No zoo has a network of this name."""


class CheckpointError(OptunaStitchError):
    """A checkpoint is missing, broken or does not fit its architecture."""


class CaptureError(OptunaStitchError):
    """A network cannot be captured as a graph."""


class MatchError(OptunaStitchError):
    """Two networks cannot be stitched together."""


class DataError(OptunaStitchError):
    """A data set is missing, too small, or does not fit the parents."""


class ImageError(DataError):
    """An image does not decode."""


class FitError(OptunaStitchError):
    """A stitch cannot be fitted on the features it is given."""


class ConfigError(OptunaStitchError):
    """A study file or a setting has a wrong name or value."""


class StudyError(OptunaStitchError):
    """A study or its storage cannot be used."""


class StudyNotFoundError(StudyError):
    """There is no such study, or its start was interrupted."""


class RunError(OptunaStitchError):
    """A run folder is missing, incomplete, or belongs to another study."""


class ArtifactError(OptunaStitchError):
    """A saved supernetwork is missing, broken, or made by an incompatible version."""


class ExportError(OptunaStitchError):
    """A network cannot be exported, or what was exported is not the same network."""
