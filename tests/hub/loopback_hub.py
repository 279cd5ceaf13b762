"""A Hub on this machine, for the real client: what huggingface_hub 2.4 asks when it pushes, tags and downloads.

It can be told to misbehave at a request: `hub.fault("POST .*/tag/", status=500)`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from loopback_store import Blob, HubError, Repo, Store, card_problems

TOKEN = "hf_" + "loopbackWriterABCDEFGHIJKLMNOPQRST"
READER_TOKEN = "hf_" + "loopbackReaderABCDEFGHIJKLMNOPQRST"
_PART_BYTES = 2**20


@dataclass(frozen=True)
class Request:
    """One request as it came in; `bytes_sent` is the size of its body."""

    line: str
    token: str | None
    body: bytes = field(repr=False)

    @property
    def bytes_sent(self) -> int:
        return len(self.body)


@dataclass
class Fault:
    """How to misbehave at requests whose line, such as `POST /api/models/org/name/tag/abc`, matches."""

    pattern: str
    status: int | None = None
    message: str = "the server says no"
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    corrupt: bool = False
    times: int | None = None
    page: bytes | None = None
    """Answer with this and status 200, as a proxy or a captive portal does."""
    after_requests: int = 0
    """Behave at so many requests of all kinds before."""
    after: bool = False
    """Do what was asked, and only then fail: the answer is what gets lost."""
    call: Callable[[], None] | None = None

    def applies(self, line: str) -> bool:
        if self.times == 0 or not re.search(self.pattern, line):
            return False
        if self.times is not None:
            self.times -= 1
        return True


class LoopbackHub:
    """The server, in a thread of this process; use it as a context manager."""

    def __init__(self) -> None:
        self.store = Store()
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.multipart_over = 8 * 2**20
        self.users: dict[str, dict[str, Any]] = {
            TOKEN: {"name": "writer", "orgs": ["org", "other"]},
            READER_TOKEN: {"name": "reader", "orgs": []},
        }
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, self))
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fault(self, pattern: str, **how: Any) -> Fault:
        self.faults.append(Fault(pattern, **how))
        return self.faults[-1]

    def repo(self, name: str) -> Repo:
        return self.store.repo(name)

    def files(self, name: str, revision: str) -> dict[str, bytes]:
        return {path: blob.content for path, blob in self.repo(name).find(revision).tree.items()}

    def large_bytes_sent(self) -> int:
        return sum(request.bytes_sent for request in self.requests if request.line.startswith("PUT /lfs/"))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet: in two the second waits 40 ms for the client's acknowledgement

    def __init__(self, hub: LoopbackHub, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def log_message(self, *args: Any) -> None:
        pass

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._read_chunks()
        authorization = self.headers.get("Authorization") or ""
        request = Request(f"{self.command} {self.path}", authorization.removeprefix("Bearer ") or None, body)
        self.hub.requests.append(request)
        fault = next((fault for fault in self.hub.faults if self._applies(fault, request)), None)
        if fault is not None and fault.page is not None:
            self._send(200, fault.page, {"Content-Type": "text/html"})
            return
        if fault is not None and not fault.corrupt and not (fault.cut and self.command == "GET"):
            self._fail(fault, request)
            return
        status, headers, content = self._answer(request)
        if fault is not None and fault.corrupt:
            content = bytes(byte ^ 1 for byte in content)
        self._send(status, content, headers, cut=fault is not None and fault.cut)

    def _applies(self, fault: Fault, request: Request) -> bool:
        return len(self.hub.requests) > fault.after_requests and fault.applies(request.line)

    def _answer(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        try:
            with self.hub.store.lock:
                return _Answer(self.hub, request).find()
        except HubError as error:
            code = {"X-Error-Code": error.code} if error.code else {}
            return error.status, code, json.dumps(error.body).encode()

    def _fail(self, fault: Fault, request: Request) -> None:
        if fault.after:
            self._answer(request)
        if fault.call is not None:
            fault.call()
        if fault.status is None:
            self.close_connection = True
        else:
            self._send(fault.status, json.dumps({"error": fault.message}).encode(), fault.headers)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _handle  # noqa: N815  (the names that http.server calls)

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        start = 0
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted and status == 200 and self.command == "GET":
            start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers = {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"}
            status, content = 206, content[start : end + 1]
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            **headers,
            "Content-Length": str(len(content)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.wfile.flush()
            self.close_connection = True

    def _read_chunks(self) -> bytes:
        chunks = []
        while size := int(self.rfile.readline().strip(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)


class _Answer:
    """What is answered to one request: status, headers, content."""

    def __init__(self, hub: LoopbackHub, request: Request) -> None:
        self.hub, self.store, self.request = hub, hub.store, request
        self.verb, _, target = request.line.partition(" ")
        self.path, self.query = urlsplit(target).path, parse_qs(urlsplit(target).query)

    def find(self) -> tuple[int, dict[str, str], bytes]:
        for pattern, method in _ROUTES:
            match = re.fullmatch(pattern, f"{self.verb} {self.path}")
            if match:
                answer = getattr(self, method)(*map(unquote, match.groups()))
                return answer if isinstance(answer, tuple) else (200, {}, json.dumps(answer).encode())
        raise HubError(404, f"not served here: {self.request.line}")

    @property
    def json(self) -> Any:
        return json.loads(self.request.body)

    @property
    def user(self) -> dict[str, Any]:
        if self.request.token not in self.hub.users:
            raise HubError(401, "Invalid username or password.")
        return self.hub.users[self.request.token]

    def writable(self, name: str) -> Repo:
        if name.partition("/")[0] not in (self.user["name"], *self.user["orgs"]):
            raise HubError(403, f"You don't have the rights to write to {name}")
        return self.store.repo(name)

    def readable(self, name: str) -> Repo:
        repo = self.store.repo(name)
        if repo.private and self.request.token not in self.hub.users:
            raise HubError(401, "Repository not found", "RepoNotFound")
        return repo

    def whoami(self) -> Any:
        return {"type": "user", "name": self.user["name"], "orgs": [{"name": org} for org in self.user["orgs"]]}

    def create_repo(self) -> Any:
        wanted = self.json
        owner = wanted.get("organization") or self.user["name"]
        if owner not in (self.user["name"], *self.user["orgs"]):
            raise HubError(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        repo = self.store.create(f"{owner}/{wanted['name']}", private=wanted.get("visibility") == "private")
        return {"url": f"{self.hub.endpoint}/{repo.name}", "name": repo.name}

    def validate(self) -> Any:
        problems = [{"message": problem} for problem in card_problems(self.json["content"])]
        content = json.dumps({"errors": problems, "warnings": []}).encode()
        return (400 if problems else 200), {}, content

    def preupload(self, name: str, revision: str) -> Any:
        return {"files": self.store.preupload(self.writable(name), revision, self.json["files"])}

    def lfs_batch(self, name: str) -> Any:
        self.writable(name)
        return {"transfer": "basic", "objects": [self._lfs_object(each) for each in self.json["objects"]]}

    def _lfs_object(self, wanted: dict[str, Any]) -> Any:
        oid, size = wanted["oid"], wanted["size"]
        if oid in self.store.large:
            return {"oid": oid, "size": size}
        place = f"{self.hub.endpoint}/lfs/{oid}"
        upload: dict[str, Any] = {"href": place}
        if size > self.hub.multipart_over:
            parts = range(1, -(-size // _PART_BYTES) + 1)
            header = {"chunk_size": str(_PART_BYTES), **{str(part): f"{place}/{part}" for part in parts}}
            upload = {"href": f"{place}/complete", "header": header}
        verify = {"href": f"{self.hub.endpoint}/verify-lfs"}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    def lfs_put(self, oid: str) -> Any:
        self.store.arrived[oid] = self.request.body
        return 200, {}, b""

    def lfs_put_part(self, oid: str, part: str) -> Any:
        self.store.arrived[f"{oid}/{int(part):06d}"] = self.request.body
        return 200, {"ETag": f'"{hashlib.md5(self.request.body).hexdigest()}"'}, b""

    def lfs_complete(self, oid: str) -> Any:
        parts = sorted(key for key in self.store.arrived if key.startswith(f"{oid}/"))
        self.store.arrived[oid] = b"".join(self.store.arrived.pop(part) for part in parts)
        return {}

    def lfs_verify(self) -> Any:
        oid, size = self.json["oid"], self.json["size"]
        content = self.store.arrived.pop(oid, None) or self.store.large.get(oid, b"")
        if len(content) != size or hashlib.sha256(content).hexdigest() != oid:
            raise HubError(422, "the uploaded file has another sha256 than announced")
        self.store.large[oid] = content
        return {}

    def commit(self, name: str, branch: str) -> Any:
        lines = [json.loads(line) for line in self.request.body.splitlines() if line]
        sha = self.store.commit(self.writable(name), branch, lines)
        return {"commitOid": sha, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{sha}", "success": True}

    def create_branch(self, name: str, branch: str) -> Any:
        repo = self.writable(name)
        self.store.create_branch(repo, branch, self.json.get("startingPoint") or "main")
        return {}

    def delete_branch(self, name: str, branch: str) -> Any:
        self.store.delete_branch(self.writable(name), branch)
        return {}

    def create_tag(self, name: str, revision: str) -> Any:
        self.store.create_tag(self.writable(name), self.json["tag"], revision)
        return {}

    def delete_tag(self, name: str, tag: str) -> Any:
        self.store.delete_tag(self.writable(name), tag)
        return {}

    def refs(self, name: str) -> Any:
        repo = self.readable(name)
        kinds = (("branches", "heads", repo.branches), ("tags", "tags", repo.tags))
        answer: dict[str, Any] = {"converts": []}
        for key, folder, refs in kinds:
            answer[key] = [
                {"name": ref, "ref": f"refs/{folder}/{ref}", "targetCommit": sha} for ref, sha in refs.items()
            ]
        return answer

    def commits(self, name: str, revision: str) -> Any:
        when = "2026-11-01T00:00:00.000Z"
        history = self.readable(name).history(revision)
        return [
            {"id": each.sha, "title": each.message, "message": "", "authors": [], "date": when} for each in history
        ]

    def info(self, name: str, revision: str = "main") -> Any:
        repo = self.readable(name)
        commit = repo.find(revision)
        siblings = [{"rfilename": path} for path in commit.tree]
        return {
            "id": name,
            "modelId": name,
            "sha": commit.sha,
            "private": repo.private,
            "siblings": siblings,
            "tags": [],
            "pipeline_tag": None,
        }

    def tree(self, name: str, revision: str) -> Any:
        return [_entry(path, blob) for path, blob in self.readable(name).find(revision).tree.items()]

    def tree_below(self, name: str, revision: str, folder: str) -> Any:
        entries = [entry for entry in self.tree(name, revision) if entry["path"].startswith(f"{folder}/")]
        if not entries:
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        return entries

    def paths_info(self, name: str, revision: str) -> Any:
        paths = self.json["paths"]
        return [entry for entry in self.tree(name, revision) if entry["path"] in paths]

    def resolve(self, name: str, revision: str, path: str) -> Any:
        commit = self.readable(name).find(revision)
        if path not in commit.tree:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        blob = commit.tree[path]
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{blob.etag}"', "Content-Type": "application/octet-stream"}
        if blob.is_lfs:
            headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.content))}
        return 200, headers, blob.content


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.oid}
    if blob.is_lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 130}
    return entry


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = [
    (r"GET /api/whoami-v2", "whoami"),
    (r"POST /api/repos/create", "create_repo"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"POST /api/models/{_NAME}/preupload/([^/]+)", "preupload"),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", "lfs_batch"),
    (r"PUT /lfs/(\w+)", "lfs_put"),
    (r"PUT /lfs/(\w+)/(\d+)", "lfs_put_part"),
    (r"POST /lfs/(\w+)/complete", "lfs_complete"),
    (r"POST /verify-lfs", "lfs_verify"),
    (rf"POST /api/models/{_NAME}/commit/([^/]+)", "commit"),
    (rf"POST /api/models/{_NAME}/branch/([^/]+)", "create_branch"),
    (rf"DELETE /api/models/{_NAME}/branch/([^/]+)", "delete_branch"),
    (rf"POST /api/models/{_NAME}/tag/([^/]+)", "create_tag"),
    (rf"DELETE /api/models/{_NAME}/tag/([^/]+)", "delete_tag"),
    (rf"GET /api/models/{_NAME}/refs", "refs"),
    (rf"GET /api/models/{_NAME}/commits/([^/]+)", "commits"),
    (rf"GET /api/models/{_NAME}/tree/([^/]+)", "tree"),
    (rf"GET /api/models/{_NAME}/tree/([^/]+)/(.+)", "tree_below"),
    (rf"POST /api/models/{_NAME}/paths-info/([^/]+)", "paths_info"),
    (rf"GET /api/models/{_NAME}/revision/([^/]+)", "info"),
    (rf"GET /api/models/{_NAME}", "info"),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)", "resolve"),
]
