"""Show a study in optuna-dashboard."""

from __future__ import annotations

import socket

import optuna
import optuna_dashboard

from optuna_stitch.errors import StudyError


def serve_dashboard(
    storage: optuna.storages.BaseStorage, *, host: str = "127.0.0.1", port: int = 8080
) -> None:
    """Serve optuna-dashboard until interrupted.

    Args:
        storage: With the studies to show.
        host: Address to listen on; only this machine can reach the default.
        port: Port to listen on.

    Raises:
        StudyError: If the address cannot be listened on.
    """
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise StudyError(
            f"The dashboard cannot listen on {host}:{port} ({error.strerror}); choose another "
            "`--port`."
        ) from error
    optuna_dashboard.run_server(storage, host=host, port=port)
