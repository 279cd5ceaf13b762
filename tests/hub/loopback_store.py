"""What the loopback Hub keeps: repositories with commits, branches and tags, and large files by their hash."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from dataclasses import dataclass, field
from typing import Any

import yaml

LFS_SUFFIXES = (".safetensors", ".png", ".parquet")
LFS_BYTES = 10 * 2**20
_LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "openrail", "gpl-3.0", "bsd-3-clause"}
_LICENSES |= {"other", "unknown", "cc0-1.0", "llama3", "gemma"}
_REPO_ID = re.compile(r"([\w.-]+/)?[\w.-]+")


class HubError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: str) -> None:
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message, **more}


@dataclass(frozen=True)
class Blob:
    content: bytes
    is_lfs: bool = False

    @property
    def oid(self) -> str:
        """What git calls the file: for a large one, its pointer."""
        content = self.content
        if self.is_lfs:
            content = f"version https://git-lfs\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()
        return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.oid


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    message: str
    tree: dict[str, Blob]


@dataclass
class Repo:
    name: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.branches["main"] = self.add(
            {".gitattributes": Blob(b"*.safetensors filter=lfs\n")}, None, "initial commit"
        )

    def add(self, tree: dict[str, Blob], parent: str | None, message: str) -> str:
        named = "".join(f"{path} {tree[path].oid}\n" for path in sorted(tree))
        sha = hashlib.sha1(f"{parent}\n{message}\n{len(self.commits)}\n{named}".encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, message, tree)
        return sha

    def find(self, revision: str) -> Commit:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def history(self, revision: str) -> list[Commit]:
        commits = [self.find(revision)]
        while (parent := commits[-1].parent) is not None:
            commits.append(self.commits[parent])
        return commits


class Store:
    """All repositories of one server; every method is one transaction."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.arrived: dict[str, bytes] = {}  # large files, and parts of them, that nobody has verified
        self.lock = threading.RLock()

    def repo(self, name: str) -> Repo:
        if name not in self.repos:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return self.repos[name]

    def create(self, name: str, *, private: bool) -> Repo:
        if name in self.repos:
            raise HubError(409, "You already created this model repo", url=f"http://127.0.0.1/{name}")
        return self.repos.setdefault(name, Repo(name, private))

    def preupload(self, repo: Repo, revision: str, files: list[dict[str, Any]]) -> list[dict[str, Any]]:
        tree = repo.find(revision).tree
        modes = []
        for file in files:
            is_lfs = file["path"].endswith(LFS_SUFFIXES) or file["size"] > LFS_BYTES
            old = tree.get(file["path"])
            oid = None if old is None else old.sha256 if old.is_lfs else old.oid
            mode = "lfs" if is_lfs else "regular"
            modes.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return modes

    def commit(self, repo: Repo, branch: str, lines: list[dict[str, Any]]) -> str:
        if branch not in repo.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head, header = repo.branches[branch], lines[0]["value"]
        if header.get("parentCommit") not in (None, head):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(repo.commits[head].tree)
        for line in lines[1:]:
            self._apply(tree, line["key"], line["value"])
        repo.branches[branch] = repo.add(tree, head, header["summary"])
        return repo.branches[branch]

    def _apply(self, tree: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            tree[path] = Blob(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in self.large:
                raise HubError(400, f"LFS pointer pointed to a file that does not exist: {path}")
            tree[path] = Blob(self.large[value["oid"]], is_lfs=True)
        elif key == "deletedFile":
            if path not in tree:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            del tree[path]
        else:
            raise HubError(400, f"unknown operation {key}")

    def create_branch(self, repo: Repo, name: str, start: str) -> None:
        if name in repo.branches or name in repo.tags:
            raise HubError(409, f"Reference already exists: {name}")
        repo.branches[name] = repo.find(start).sha

    def delete_branch(self, repo: Repo, name: str) -> None:
        if name == "main":
            raise HubError(403, "Cannot delete the main branch")
        if repo.branches.pop(name, None) is None:
            raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")

    def create_tag(self, repo: Repo, name: str, revision: str) -> None:
        if name in repo.tags or name in repo.branches:
            raise HubError(409, f"Tag reference exists already: {name}")
        repo.tags[name] = repo.find(revision).sha

    def delete_tag(self, repo: Repo, name: str) -> None:
        if repo.tags.pop(name, None) is None:
            raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")


def card_problems(content: str) -> list[str]:
    """What the Hub says of a card's front matter; the rules are those of its model card specification."""
    match = re.match(r"---\r?\n(.*?)\r?\n---", content, re.DOTALL)
    if match is None:
        return ["empty or missing yaml metadata in repo card"]
    try:
        metadata = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"]
    problems = []
    license_id = metadata.get("license")
    if license_id is not None and license_id not in _LICENSES:
        problems.append(f'"license" must be one of {sorted(_LICENSES)}')
    if license_id == "other" and not metadata.get("license_name"):
        problems.append('"license_name" is required when "license" is "other"')
    for key, pattern in (
        ("language", r"[a-z]{2,3}|code|multilingual"),
        ("datasets", _REPO_ID),
        ("base_model", _REPO_ID),
    ):
        values = metadata.get(key)
        for value in values if isinstance(values, list) else [] if values is None else [values]:
            if not isinstance(value, str) or not re.fullmatch(pattern, value):
                problems.append(f'"{key}" with value {value!r} is not valid')
    if not all(isinstance(tag, str) for tag in metadata.get("tags", [])):
        problems.append('"tags" must be an array of strings')
    return problems + _model_index_problems(metadata.get("model-index"))


def _model_index_problems(index: Any) -> list[str]:
    problems = []
    for number, model in enumerate(index or []):
        where = f"model-index[{number}]"
        if not isinstance(model.get("name"), str):
            problems.append(f'"{where}.name" is required')
        for place, result in enumerate(model.get("results", [])):
            for path in ("task.type", "dataset.type", "dataset.name"):
                outer, inner = path.split(".")
                if not isinstance(result.get(outer, {}).get(inner), str):
                    problems.append(f'"{where}.results[{place}].{path}" is required')
            for metric in result.get("metrics") or [{}]:
                if not isinstance(metric.get("type"), str) or "value" not in metric:
                    problems.append(f'"{where}.results[{place}].metrics" needs type and value')
    return problems
