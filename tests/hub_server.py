"""A Hub small enough for a test: one process, one repository per name, files in memory, as far as upload and download
need the protocol."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class Hub(ThreadingHTTPServer):
    """Repositories by name: `files[repo][path]`, `commits[repo]`; `fail_lfs` cuts uploads of large files off."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, int] = {}
        self.large: dict[str, bytes] = {}
        self.private: dict[str, bool] = {}
        self.fail_lfs = False
        self.refuse = 0  # an HTTP status with which every request is answered
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def revision(self, repo: str) -> str:
        return f"{self.commits[repo]:040x}"


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, value: object = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = value if isinstance(value, bytes) else json.dumps({} if value is None else value).encode()
        self.send_response(status)
        for name, content in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, content)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionError("the client has gone in the middle of a request")
        return body

    def do_POST(self) -> None:
        body = self._body()
        path = unquote(self.path)
        self.server.requests.append(path)
        if self.server.refuse:
            self._answer({"error": "refused"}, self.server.refuse)
        elif path == "/api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted['organization']}/{wanted['name']}"
            url = {"url": f"{self.server.url}/{repo}"}
            if repo in self.server.files:
                self._answer(url, 409)
                return
            self.server.files[repo], self.server.commits[repo] = {}, 0
            self.server.private[repo] = wanted.get("private", False) or wanted.get("visibility") == "private"
            self._answer(url)
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            self._preupload(path.split("/api/models/")[1].rpartition("/preupload")[0], json.loads(body)["files"])
        elif path.endswith("/info/lfs/objects/batch"):
            self._lfs_batch(json.loads(body)["objects"])
        elif path.endswith("/commit/main"):
            self._commit(path.split("/api/models/")[1].rpartition("/commit")[0], body)
        else:
            self._answer()  # an LFS verification

    def _preupload(self, repo: str, files: list[dict]) -> None:
        stored = self.server.files[repo]
        answers = []
        for file in files:
            mode = "lfs" if file["path"].endswith((".safetensors", ".onnx")) else "regular"
            oid = _oid(stored[file["path"]], mode) if file["path"] in stored else None
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer({"files": answers})

    def _lfs_batch(self, objects: list[dict]) -> None:
        answers = []
        for wanted in objects:
            action = {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}
            has = wanted["oid"] in self.server.large
            answers.append({**wanted, "authenticated": True, **({} if has else {"actions": action})})
        self._answer({"transfer": "basic", "objects": answers})

    def do_PUT(self) -> None:
        body = self._body()
        if self.server.fail_lfs:
            self._answer({"error": "cut off"}, 403)
            return
        assert hashlib.sha256(body).hexdigest() == self.path.removeprefix("/lfs/")
        self.server.large[hashlib.sha256(body).hexdigest()] = body
        self._answer()

    def _commit(self, repo: str, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.server.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.server.files[repo][value["path"]] = self.server.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                del self.server.files[repo][value["path"]]
        self.server.commits[repo] += 1
        revision = self.server.revision(repo)
        self._answer({"commitOid": revision, "commitUrl": f"{self.server.url}/{repo}/commit/{revision}"})

    def do_GET(self) -> None:
        if self.server.refuse:
            self._answer({"error": "refused"}, self.server.refuse)
            return
        path = unquote(self.path).partition("?")[0]
        self.server.requests.append(path)
        if path.startswith("/api/models/") and "/tree/" in path:
            files = self.server.files.get(path.removeprefix("/api/models/").partition("/tree/")[0], {})
            about = {"type": "file", "oid": "0" * 40}
            self._answer([{**about, "path": name, "size": len(content)} for name, content in files.items()])
            return
        if path.startswith("/api/models/"):
            repo = path.removeprefix("/api/models/").partition("/revision/")[0]
            siblings = [{"rfilename": name} for name in self.server.files.get(repo, {})]
            sha = self.server.revision(repo)
            about = {"id": repo, "modelId": repo, "sha": sha, "siblings": siblings, "tags": []}
            self._answer(about | {"private": self.server.private.get(repo, False)})
            return
        repo, _, rest = path.lstrip("/").partition("/resolve/")
        content = self.server.files.get(repo, {}).get(rest.partition("/")[2])
        if content is None:
            self._answer({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": self.server.revision(repo)}
        self._answer(content, headers=headers)

    do_HEAD = do_GET  # noqa: N815 - http.server's name


def _oid(content: bytes, mode: str) -> str:
    if mode == "lfs":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
