"""A Hub that lists and serves whatever names it is told to, for models and data sets."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

REVISION = "0" * 39 + "1"


class HostileHub(ThreadingHTTPServer):
    """Every repository of it holds `files`; `asked` are the paths that were asked for."""

    def __init__(self, files: Mapping[str, bytes]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.asked = files, list[str]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def serve(files: Mapping[str, bytes]) -> Iterator[HostileHub]:
    server = HostileHub(files)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HostileHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, value: object, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(self.path).partition("?")[0]
        self.server.asked.append(path)
        if "/tree/" in path:
            folder = path.partition("/tree/")[2].partition("/")[2].strip("/")
            entries = self._entries(folder, "recursive=true" in self.path.lower())
            if entries or not folder:
                self._answer(entries)
            else:
                self._answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")
        elif path.startswith("/api/"):
            names = [{"rfilename": name} for name in self.server.files]
            about = {"private": False, "disabled": False, "gated": False, "tags": [], "downloads": 0, "likes": 0}
            self._answer({"id": "team/x", "modelId": "team/x", "sha": REVISION, "siblings": names, **about})
        elif (name := path.partition("/resolve/")[2].partition("/")[2]) in self.server.files:
            self._send(self.server.files[name])
        else:
            self._answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        wanted = json.loads(body).get("paths", []) if body.startswith(b"{") else []
        entries = [self._entry(name) for name in wanted if name in self.server.files]
        self._answer(entries if "paths-info" in self.path else {})

    def _send(self, content: bytes) -> None:
        about = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X_Repo_Commit": REVISION}
        if asked := self.headers.get("Range"):
            start, _, end = asked.removeprefix("bytes=").partition("-")
            part = content[int(start) : int(end) + 1 if end else None]
            about["Content_Range"] = f"bytes {start}-{int(start) + len(part) - 1}/{len(content)}"
            self._answer(part, 206, **about)
        else:
            self._answer(content, **about)

    def _entry(self, name: str) -> dict[str, Any]:
        content = self.server.files[name]
        return {"type": "file", "oid": hashlib.sha1(content).hexdigest(), "size": len(content), "path": name}

    def _entries(self, folder: str, recursive: bool) -> list[dict[str, Any]]:
        """What a folder holds; names that lead out of the repository stand in its root."""
        entries: dict[str, dict[str, Any]] = {}
        for name in self.server.files:
            if name.startswith("/") or ".." in name:
                if not folder or name.startswith(f"{folder}/"):
                    entries[name] = self._entry(name)
            elif not folder or name.startswith(f"{folder}/"):
                parts = name.removeprefix(folder).strip("/").split("/")
                for end in range(1, len(parts) if recursive else min(len(parts), 2)):
                    path = "/".join(filter(None, [folder, *parts[:end]]))
                    entries[path] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
                if recursive or len(parts) == 1:
                    entries[name] = self._entry(name)
        return list(entries.values())
