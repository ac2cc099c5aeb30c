"""Exports arrive on a hub byte for byte, and refusals say what to do."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest

from optuna_stitch.export.hub import push_folder
from optuna_stitch.utils.errors import ExportError


class Hub(ThreadingHTTPServer):
    """As much of the hub as a commit of small files needs."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.refuses = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self._chunks())
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.refuses:
            self._answer(403, {"error": "You may not write here"})
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._answer(200, {"url": f"{self.server.address}/me/net", "name": "me/net"})
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for f in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.files[entry["value"]["path"]] = content
            url = f"{self.server.address}/me/net/commit/0"
            self._answer(200, {"success": True, "commitOid": "0", "commitUrl": url})
        else:
            self._answer(404, {"error": self.path})

    def do_GET(self) -> None:
        self._answer(200, {"id": "me/net", "sha": "0", "siblings": [], "private": True})

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _answer(self, status: int, said: dict[str, Any]) -> None:
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "to"
    made.mkdir()
    (made / "README.md").write_text("---\nlicense: other\n---\n# Card\n")
    (made / "network.safetensors").write_bytes(bytes(range(256)) * 300)
    (made / "mine.txt").write_text("not an export's")
    return made


FILES = ("README.md", "network.safetensors", "network.onnx")


@pytest.mark.parametrize("private", [True, False])
def test_files_arrive_byte_for_byte(hub: Hub, folder: Path, private: bool) -> None:
    push_folder(folder, FILES, "me/net", private=private)
    expected = {name: (folder / name).read_bytes() for name in FILES if name != "network.onnx"}
    assert hub.files == expected
    (created,) = hub.created
    assert (created["organization"], created["name"]) == ("me", "net")
    assert created.get("private", created.get("visibility") == "private") is private
    assert hub.tokens == {"Bearer hf_secret"}


def test_a_token_is_needed(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ExportError, match=r"`hf auth login`, or set HF_TOKEN"):
        push_folder(folder, FILES, "me/net")
    assert hub.files == {}


def test_a_name_that_is_none(hub: Hub, folder: Path) -> None:
    with pytest.raises(ExportError, match=r"'me/net/x' is no name of a repository"):
        push_folder(folder, FILES, "me/net/x")
    assert hub.created == []


def test_a_hub_that_refuses(hub: Hub, folder: Path) -> None:
    hub.refuses = True
    with pytest.raises(ExportError, match=r"The network is in .*403.*HF_TOKEN.*hf upload me/net"):
        push_folder(folder, FILES, "me/net")
    assert (folder / "network.safetensors").stat().st_size == 256 * 300


def test_a_hub_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(ExportError, match=r"http://127.0.0.1:9 could not be written.*HF_ENDPOINT"):
        push_folder(folder, FILES, "me/net")
