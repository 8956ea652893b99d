"""A hub of our own on this machine: the requests that huggingface_hub makes, answered from memory."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


class Hub:
    """Repositories: by their names, by branch or tag, the files.

    Attributes
    ----------
    repositories : dict
        ``{"org/name": {"main": {"config.json": b"{}"}}}``.
    requests : list of str
        Every request so far, as ``GET /path``.
    cards : list of str
        The model cards that were sent to be checked.
    """

    def __init__(self, address: str = "") -> None:
        self.address = address
        self.repositories: dict[str, dict[str, Files]] = {}
        self.requests: list[str] = []
        self.cards: list[str] = []
        self.blobs: Files = {}

    def add(self, name: str, folder: Path, revision: str = "main") -> None:
        files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        self.repositories.setdefault(name, {})[revision] = files

    def find(self, name: str, revision: str) -> tuple[str, Files] | None:
        """The commit that a branch, tag or commit is, and its files."""
        for branch, files in self.repositories[name].items():
            commit = sha(f"{name} {branch} {sorted((path, sha(data)) for path, data in files.items())}")
            if revision in (branch, commit):
                return commit, files
        return None


def sha(data: str | bytes) -> str:
    return hashlib.sha1(data.encode() if isinstance(data, str) else data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self) -> None:
        self.data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append(f"{self.command} /{path}")
        words = path.split("/")
        if path == "api/validate-yaml":
            self.hub.cards.append(json.loads(self.data)["content"])
            self.say({"errors": [], "warnings": []})
        elif path == "api/repos/create":
            self.create()
        elif words[0] == "blobs":
            self.hub.blobs[words[1]] = self.data
            self.say({})
        elif words[:2] == ["api", "models"]:
            self.about(f"{words[2]}/{words[3]}", words[4:])
        elif path.endswith("/info/lfs/objects/batch"):
            self.lfs()
        elif words[2:3] == ["resolve"]:
            self.file(f"{words[0]}/{words[1]}", words[3], "/".join(words[4:]))
        else:
            self.refuse(404, "EntryNotFound")

    def create(self) -> None:
        asked = json.loads(self.data)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if asked.get("organization") == "strangers":
            self.refuse(403, "", "You don't have the rights to create a model under this namespace")
            return
        known = name in self.hub.repositories
        self.hub.repositories.setdefault(name, {"main": {}})
        self.say({"url": f"{self.hub.address}/{name}"}, 409 if known else 200)

    def about(self, name: str, words: list[str]) -> None:
        if name not in self.hub.repositories:
            self.refuse(404, "RepoNotFound")
            return
        what, revision = words[0] if words else "revision", words[1] if len(words) > 1 else "main"
        if what == "branch":
            self.hub.repositories[name].setdefault(revision, {})
            self.say({})
            return
        found = self.hub.find(name, revision)
        if found is None:
            self.refuse(404, "RevisionNotFound")
            return
        commit, files = found
        if what == "revision":
            self.say({"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]})
        elif what == "tree":
            self.say([{"type": "file", "path": p, "size": len(data), "oid": sha(data)} for p, data in files.items()])
        elif what == "preupload":
            asked = json.loads(self.data)["files"]
            mode = {True: "lfs", False: "regular"}
            self.say({"files": [
                {"path": a["path"], "uploadMode": mode[a["path"].endswith(".safetensors")], "shouldIgnore": False}
                for a in asked
            ]})  # fmt: skip
        elif what == "commit":
            for line in map(json.loads, self.data.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.hub.blobs[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            commit, _ = self.hub.find(name, revision) or ("", {})
            self.say({"commitUrl": f"{self.hub.address}/{name}/commit/{commit}", "commitOid": commit})

    def lfs(self) -> None:
        objects = json.loads(self.data)["objects"]
        upload = [
            {**each, "actions": {"upload": {"href": f"{self.hub.address}/blobs/{each['oid']}"}}} for each in objects
        ]
        self.say({"transfer": "basic", "objects": upload})

    def file(self, name: str, revision: str, path: str) -> None:
        found = self.hub.find(name, revision) if name in self.hub.repositories else None
        if found is None or path not in found[1]:
            self.refuse(404, "EntryNotFound")
            return
        self.say(found[1][path], headers={"X-Repo-Commit": found[0], "ETag": f'"{sha(found[1][path])}"'})

    def refuse(self, status: int, code: str, message: str = "not here") -> None:
        self.say({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    def say(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...
