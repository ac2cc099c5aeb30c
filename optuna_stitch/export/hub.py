"""Put an exported network on the Hugging Face Hub, or on another endpoint with its API."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from optuna_stitch.utils.errors import ExportError, first_line


def check_push(repo: str) -> None:
    """Check what can be checked without asking the hub.

    Args:
        repo: Name of the repository, ``user/name``.

    Raises:
        ExportError: If it is no name, or there is no token.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ExportError(
            f"{repo!r} is no name of a repository; name one as `user/name`."
        ) from error
    if huggingface_hub.get_token() is None:
        raise ExportError(
            f"To push to {repo} the hub asks for a token with write access: `hf auth login`, or "
            "set HF_TOKEN."
        )


def push_folder(folder: Path, files: Collection[str], repo: str, *, private: bool = True) -> str:
    """Upload files of a folder as one commit.

    Args:
        folder: Where they are.
        files: Their names.
        repo: Name of the repository, ``user/name``; made if it is not there.
        private: Whether a new repository is private.

    Returns:
        The repository's address.

    Raises:
        ExportError: If the endpoint (``HF_ENDPOINT``) cannot be reached or refuses; the files
            stay where they are.
    """
    check_push(repo)
    api = huggingface_hub.HfApi()
    try:
        made = api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            # a format may be a folder
            allow_patterns=[part for file in sorted(files) for part in (file, f"{file}/*")],
            commit_message="Upload a stitched network",
        )
    except Exception as error:  # of the client, of whatever speaks HTTP for it, and of files
        raise ExportError(
            f"The network is in {folder}, but {repo} on {api.endpoint} could not be written "
            f"({first_line(error)}). See that your token may write there (`hf auth login`, or "
            f"HF_TOKEN) and that the endpoint is reached (HF_ENDPOINT); then: hf upload {repo} "
            f"{folder}"
        ) from error
    return str(made)
