"""A small hub on loopback that the genuine `huggingface_hub` client talks to, with faults to order.

    python tests/hub.py --root FOLDER [--xet | --part-size 20000000]

Two servers, since the client distinguishes its hub's origin from elsewhere: the hub (API, commits, `resolve`), and the
storage on another port that uploads and downloads are sent to, which must never see a token. Large files go through
LFS, in one part or several, or through Xet: the client's own code then writes a store in a local folder.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import secrets
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.png filter=lfs diff=lfs merge=lfs -text\n"
TOKENS = {"hf_alice_secret": "alice", "hf_bob_secret": "bob"}
MEMBERS = {"acme": ("alice",), "vidweights": ("alice",)}
_CHUNK = 1 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class File:
    """One file in a commit: its content, or, for a large one, the SHA-256 under which the storage has it."""

    size: int
    blob: str
    content: bytes | None = None
    sha256: str | None = None
    xet: str | None = None

    def entry(self, path: str) -> dict[str, Any]:
        """The file as a listing of a tree has it."""
        found: dict[str, Any] = {"type": "file", "path": path, "oid": self.blob, "size": self.size}
        if self.sha256 is not None:
            found["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return {**found, "xetHash": self.xet} if self.xet else found


@dataclass(frozen=True)
class Commit:
    """The files of a repository at one time."""

    oid: str
    parent: str | None
    files: Mapping[str, File]
    title: str


@dataclass
class Repository:
    """Commits, and the names that point to them: branches, and `refs/pr/N` for pull requests."""

    name: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        """The commit that a branch, a pull request or a hash means."""
        return self.commits.get(self.refs.get(revision, revision))


@dataclass
class Fault:
    """What goes wrong with the next requests whose `METHOD path` the pattern matches.

    Attributes:
        what: `status` (answer with it), `reset` (the request is never answered), `lost` (it is carried out, but the
            answer never comes), `cut` and `cut-reset` (after so many bytes of a body, sent or received, the connection
            is closed, or reset), `flip` (one bit of the body sent), `ignore-range`, `slow` (seconds for each MiB).
        times: how many requests it happens to.
    """

    what: str
    path: str
    times: int = 1
    status: int = 503
    after: int = 0
    seconds: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What was asked: which server, `METHOD path`, and the headers, in lower case."""

    server: str
    line: str
    headers: Mapping[str, str]


class Hub:
    """The state of both servers, and their addresses."""

    def __init__(self, root: Path, *, xet: bool = False, part_size: int | None = None) -> None:
        self.root = root
        self.xet = f"local://{root}/cas" if xet else None
        self.part_size = part_size
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, int] = {}
        self.faults: list[Fault] = []
        self.injected: list[Fault] = []
        self.requests: list[Request] = []
        self.lock = threading.RLock()
        self.signature = secrets.token_hex(8)
        self.url = self.storage = ""
        (root / "lfs").mkdir(parents=True, exist_ok=True)

    def fault(self, what: str, line: str) -> Fault | None:
        """The next fault of that kind for a request, used up by this call."""
        with self.lock:
            for found in self.faults:
                if found.what == what and found.times > 0 and re.search(found.path, line):
                    found.times -= 1
                    self.injected.append(found)
                    return found
        return None

    def commit(self, repository: Repository, ref: str, files: Mapping[str, File], title: str) -> Commit:
        """Add a commit, and let `ref` point to it."""
        oid = hashlib.sha1(secrets.token_bytes(20)).hexdigest()
        made = Commit(oid, repository.refs.get(ref), files, title)
        repository.commits[oid] = made
        repository.refs[ref] = oid
        return made

    def stored(self, sha256: str) -> Path:
        """Where the storage has a file."""
        return self.root / "lfs" / sha256

    def xet_file(self, sha256: str) -> tuple[str, int] | None:
        """The Xet hash and size of a file in the local store, from the shards that the client wrote."""
        for shard in sorted((self.root / "cas").glob("xet/xorbs/shards/*.mdb")):
            for xet, found, size in _shard_files(shard.read_bytes()):
                if found == sha256:
                    return xet, size
        return None

    def rebuilt(self, sha256: str) -> Path:
        """The file for a client without Xet; taken out of the Xet store when it is first asked for."""
        path = self.stored(sha256)
        found = None if path.exists() else self.xet_file(sha256)
        if found is not None:
            import hf_xet

            with hf_xet.XetSession().new_file_download_group(endpoint=self.xet) as group:
                group.start_download_file(hf_xet.XetFileInfo(*found), str(path))
        return path

    def head(self, name: str) -> Commit:
        """The newest commit of a repository."""
        found = self.repositories[name].at("main")
        assert found is not None
        return found


def git_blob(content: bytes) -> str:
    """The id that git gives these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _shard_files(shard: bytes) -> Iterator[tuple[str, str | None, int]]:
    """(Xet hash, SHA-256, size) of each file in a Xet shard: records of 48 bytes after a header of 48."""
    at = 48
    while shard[at : at + 32] != b"\xff" * 32:
        xet, flags, count = shard[at : at + 32], *struct.unpack_from("<II", shard, at + 32)
        sizes = [struct.unpack_from("<I", shard, at + 48 * entry + 36)[0] for entry in range(1, count + 1)]
        at += 48 * (1 + count * (2 if flags & 0x80000000 else 1))
        sha256 = None
        if flags & 0x40000000:
            sha256 = _xet_hex(shard[at : at + 32])
            at += 48
        yield _xet_hex(xet), sha256, sum(sizes)


def _xet_hex(value: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", value))


class _Cut(Exception):
    """The connection was cut on purpose."""


class _Handler(BaseHTTPRequestHandler):
    """What both servers share: the log, faults, bodies in and out."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub
    server_name: str
    routes: tuple[tuple[str, str, Callable[..., None]], ...]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle_one_request(self) -> None:
        with suppress(ConnectionError, _Cut):  # of a client that was killed, or a connection that was cut
            return super().handle_one_request()
        self.close_connection = True

    def answer(self) -> None:
        """Find the route of a request, and let its fault happen."""
        self.line = f"{self.command} {self.path}"
        self.left = int(self.headers.get("Content-Length") or 0)
        self.lost: Fault | None = None
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.hub.lock:
            self.hub.requests.append(Request(self.server_name, self.line, headers))
        if self.hub.fault("reset", self.line):
            self.reset()
        if fault := self.hub.fault("status", self.line):
            return self.refuse(fault.status, "injected", headers=fault.headers)
        self.lost = self.hub.fault("lost", self.line)
        path = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(path.query, keep_blank_values=True))
        for method, pattern, route in self.routes:
            found = re.fullmatch(pattern, path.path)
            if found and self.command in method.split():
                return route(self, *(urllib.parse.unquote(part) for part in found.groups()))
        return self.refuse(404, f"no such address: {self.line}")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def reset(self) -> None:
        """Reset the connection, as a router that lost its state does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        raise _Cut

    def received(self) -> Iterator[bytes]:
        """The body of the request."""
        cut, slow, done = self.hub.fault("cut-reset", self.line), self.hub.fault("slow", self.line), 0
        while self.left:
            if slow:
                time.sleep(slow.seconds)
            if cut and done >= cut.after:
                self.reset()
            data = self.rfile.read(min(self.left, _CHUNK, max(1, cut.after - done) if cut else _CHUNK))
            if not data:
                raise _Cut
            self.left -= len(data)
            done += len(data)
            yield data

    def body(self) -> bytes:
        return b"".join(self.received())

    def json_body(self) -> Any:
        return json.loads(self.body() or b"{}")

    def send(self, status: int, value: Any = b"", headers: Mapping[str, str] | None = None) -> None:
        """Answer with bytes, or with a value as JSON."""
        for _ in self.received():  # a body that nobody asked for would be taken for the next request
            pass
        if self.lost:
            self.reset()
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        named = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self.send(status, {"error": message}, named)

    def send_range(self, size: int, read: Callable[[int, int], bytes], headers: Mapping[str, str]) -> None:
        """Answer with a file, or the range of it that was asked for; the faults of bodies happen here."""
        start, status = 0, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted and not self.hub.fault("ignore-range", self.line):
            start, status = int(wanted[1]), 206
            if start >= size:
                return self.send(416, b"", {"Content-Range": f"bytes */{size}"})
        end = min(int(wanted[2]) + 1, size) if wanted and wanted[2] and status == 206 else size
        self.send_response(status)
        for name, text in {**headers, "Accept-Ranges": "bytes"}.items():
            self.send_header(name, text)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(start, end, read)
        return None

    def _send_body(self, start: int, end: int, read: Callable[[int, int], bytes]) -> None:
        faults = {what: self.hub.fault(what, self.line) for what in ("cut", "cut-reset", "flip", "slow")}
        cut = faults["cut"] or faults["cut-reset"]
        stop = end if cut is None else min(end, start + cut.after)
        at = start
        while at < stop:
            data = read(at, min(_CHUNK, stop - at))
            if faults["flip"] and at == start:
                data = bytes([data[0] ^ 1]) + data[1:]
            self.wfile.write(data)
            at += len(data)
            if faults["slow"]:
                time.sleep(faults["slow"].seconds)
        if cut is not None:
            self.wfile.flush()
            if cut is faults["cut-reset"]:
                time.sleep(0.05)  # a reset overtakes what was sent and not yet read
                self.reset()
            self.connection.shutdown(socket.SHUT_RDWR)
            raise _Cut


class _HubHandler(_Handler):
    server_name = "hub"

    def user(self) -> str | None:
        return TOKENS.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def may_write(self, name: str) -> bool:
        user, owner = self.user(), name.split("/", maxsplit=1)[0]
        return user is not None and (owner == user or user in MEMBERS.get(owner, ()))

    def repository(self, name: str, *, write: bool = False) -> Repository | None:
        """The repository of that name; if the user may not have it, the request is answered."""
        found = self.hub.repositories.get(name)
        if self.headers.get("Authorization") and self.user() is None:
            self.refuse(401, "Invalid credentials in Authorization header")
        elif found is None or (found.private and not self.may_write(name)):
            self.refuse(404 if self.user() else 401, "Repository not found", "RepoNotFound")
        elif write and not self.may_write(name):
            self.refuse(403 if self.user() else 401, "Forbidden: you must use a write token")
        else:
            return found
        return None

    def commit(self, name: str, revision: str, *, write: bool = False) -> tuple[Repository, Commit] | None:
        repository = self.repository(name, write=write)
        found = repository.at(revision) if repository else None
        if repository is not None and found is None:
            self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return (repository, found) if repository is not None and found is not None else None

    # --- about users and repositories -----------------------------------------------------------------------------

    def whoami(self) -> None:
        user = self.user()
        if user is None:
            return self.refuse(401, "Invalid credentials in Authorization header")
        orgs = [{"type": "org", "name": org} for org, members in MEMBERS.items() if user in members]
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        return self.send(200, {"type": "user", "name": user, "orgs": orgs, "auth": token})

    def create(self) -> None:
        asked, user = self.json_body(), self.user()
        name = f"{asked.get('organization') or user}/{asked['name']}"
        if user is None:
            return self.refuse(401, "Invalid username or password.")
        if not self.may_write(name):
            return self.refuse(403, f"You don't have the rights to create a model under the namespace {name}")
        with self.hub.lock:
            answer = {"url": f"{self.hub.url}/{name}", "name": name, "id": secrets.token_hex(12)}
            if name in self.hub.repositories:
                return self.send(409, {"error": "You already created this model repo", **answer})
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            made = self.hub.repositories[name] = Repository(name, private)
            first = File(len(ATTRIBUTES), git_blob(ATTRIBUTES), ATTRIBUTES)
            self.hub.commit(made, "main", {".gitattributes": first}, "initial commit")
        return self.send(200, answer)

    def info(self, name: str, revision: str = "main") -> None:
        found = self.commit(name, revision)
        if found is None:
            return
        repository, commit = found
        siblings: list[dict[str, Any]] = []
        for path, file in sorted(commit.files.items()):
            about: dict[str, Any] = {"rfilename": path}
            if "blobs" in self.query:
                about |= {"size": file.size, "blobId": file.blob}
                if file.sha256:
                    about["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": 134}
            siblings.append(about)
        facts = {"id": name, "sha": commit.oid, "private": repository.private, "tags": [], "siblings": siblings}
        self.send(200, facts, {"X-Repo-Commit": commit.oid})

    def tree(self, name: str, revision: str) -> None:
        if found := self.commit(name, revision):
            self.send(200, [file.entry(path) for path, file in sorted(found[1].files.items())])

    def paths_info(self, name: str, revision: str) -> None:
        if found := self.commit(name, revision):
            asked = urllib.parse.parse_qs(self.body().decode())["paths"]
            self.send(200, [found[1].files[path].entry(path) for path in asked if path in found[1].files])

    def refs(self, name: str) -> None:
        if repository := self.repository(name):
            listed = [
                {"name": ref, "ref": ref if ref.startswith("refs/") else f"refs/heads/{ref}", "targetCommit": oid}
                for ref, oid in repository.refs.items()
            ]
            pulls = [ref for ref in listed if ref["name"].startswith("refs/pr/")]
            branches = [ref for ref in listed if ref not in pulls]
            self.send(200, {"branches": branches, "tags": [], "converts": [], "pullRequests": pulls})

    # --- uploads --------------------------------------------------------------------------------------------------

    def validate_card(self) -> None:
        block = re.match(r"---\n(.*?)\n---\n", self.json_body()["content"], re.DOTALL)
        errors = []
        try:
            about = yaml.safe_load(block[1]) if block else {}
            if not isinstance(about.get("license", ""), str):
                errors.append({"message": '"license" must be a string'})
        except yaml.YAMLError as error:
            errors.append({"message": f"YAML Metadata Error: {error}"})
        self.send(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        found = self.commit(name, revision, write=True)
        if found is None:
            return
        answers = []
        for file in self.json_body()["files"]:
            large = file["path"].endswith((".safetensors", ".png")) or file["size"] > 10_000_000
            there = found[1].files.get(file["path"])
            known = {"oid": there.sha256 or there.blob} if there else {}
            answers.append(
                {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **known}
            )
        self.send(200, {"files": answers, "commitOid": found[1].oid})

    def batch(self, name: str) -> None:
        if self.repository(name, write=True) is None:
            return
        asked = self.json_body()
        parts = self.hub.part_size if "multipart" in asked["transfers"] else None
        objects = [self._upload(name, file["oid"], file["size"], parts) for file in asked["objects"]]
        self.send(200, {"transfer": "multipart" if parts else "basic", "objects": objects})

    def _upload(self, name: str, sha256: str, size: int, part_size: int | None) -> dict[str, Any]:
        about: dict[str, Any] = {"oid": sha256, "size": size}
        if self.hub.stored(sha256).exists():
            return about
        self.hub.uploads[sha256] = size
        sign = f"?signature={self.hub.signature}"
        upload: dict[str, Any] = {"href": f"{self.hub.storage}/put/{sha256}{sign}"}
        if part_size and size > part_size:
            count = -(-size // part_size)
            urls = {str(n): f"{self.hub.storage}/part/{sha256}/{n}{sign}" for n in range(1, count + 1)}
            href = f"{self.hub.storage}/complete/{sha256}{sign}"
            upload = {"href": href, "header": {"chunk_size": str(part_size), **urls}}
        verify = {"href": f"{self.hub.url}/{name}.git/info/lfs/objects/verify"}
        return {**about, "actions": {"upload": upload, "verify": verify}}

    def verify(self, name: str) -> None:
        if self.repository(name, write=True) is not None:
            path, asked = Path(), self.json_body()
            path = self.hub.stored(asked["oid"])
            whole = path.exists() and path.stat().st_size == asked["size"]
            self.send(200, {}) if whole else self.refuse(404, "the object was not uploaded")

    def xet_token(self, name: str, kind: str, revision: str) -> None:
        if self.repository(name, write=kind == "write") is None:
            return
        if self.hub.xet is None:
            return self.refuse(404, "this hub has no Xet")
        until = int(time.time()) + 3600
        headers = {
            "X-Xet-Cas-Url": self.hub.xet, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(until)
        }  # fmt: skip
        return self.send(200, {"casUrl": self.hub.xet, "accessToken": "xet", "exp": until}, headers)

    def make_commit(self, name: str, revision: str) -> None:
        repository = self.repository(name, write=True)
        if repository is None:
            return
        lines = [json.loads(line) for line in self.body().splitlines() if line.strip()]
        header, pull = lines[0]["value"], "create_pr" in self.query
        with self.hub.lock:
            base = repository.at(revision)
            if base is None:
                return self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            parent = repository.at(header.get("parentCommit") or base.oid)
            if parent is None or (parent.oid != base.oid and not pull):
                return self.refuse(412, "A commit has happened since. Please refresh and try again.")
            files = self._changed(dict(parent.files), lines[1:])
            if files is None:
                return self.refuse(400, "an LFS pointer pointed to a file that does not exist")
            number = sum(ref.startswith("refs/pr/") for ref in repository.refs) + 1
            made = self.hub.commit(repository, f"refs/pr/{number}" if pull else revision, files, header["summary"])
        url = f"{self.hub.url}/{name}"
        answer = {"success": True, "commitOid": made.oid, "commitUrl": f"{url}/commit/{made.oid}", "hookOutput": ""}
        return self.send(200, {**answer, "pullRequestUrl": f"{url}/discussions/{number}"} if pull else answer)

    def _changed(self, files: dict[str, File], lines: list[dict[str, Any]]) -> dict[str, File] | None:
        """The files after the operations of a commit; None if one is not in the storage."""
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
                files[value["path"]] = File(len(content), git_blob(content), content)
            elif line["key"] == "lfsFile":
                xet, stored = self.hub.xet_file(value["oid"]), self.hub.stored(value["oid"])
                if xet is None and not stored.exists():
                    return None
                size = xet[1] if xet else stored.stat().st_size
                pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{value['oid']}\nsize {size}\n"
                files[value["path"]] = File(
                    size, git_blob(pointer.encode()), sha256=value["oid"], xet=xet[0] if xet else None
                )
            else:
                files.pop(value["path"], None)
        return files

    # --- downloads ------------------------------------------------------------------------------------------------

    def resolve(self, name: str, revision: str, path: str) -> None:
        found = self.commit(name, revision)
        if found is None:
            return
        commit, file = found[1], found[1].files.get(path)
        headers = {"X-Repo-Commit": commit.oid}
        if file is None:
            return self.refuse(404, "Entry not found", "EntryNotFound", headers)
        if file.sha256 is None:
            place = f"/api/resolve-cache/models/{name}/{commit.oid}/{urllib.parse.quote(path, safe='')}"
            return self.send(307, b"", {**headers, "ETag": f'"{file.blob}"', "Location": place})
        place = f"{self.hub.storage}/get/{found[1].files[path].sha256}?signature={self.hub.signature}"
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size), "Location": place}
        if file.xet and self.hub.xet:
            token = f"{self.hub.url}/api/models/{name}/xet-read-token/{commit.oid}"
            headers |= {"X-Xet-Hash": file.xet, "Link": f'<{token}>; rel="xet-auth"'}
        return self.send(302, b"", headers)

    def resolved(self, name: str, revision: str, path: str) -> None:
        found = self.commit(name, revision)
        if found is None:
            return
        file = found[1].files[path]
        content = file.content or b""
        headers = {"ETag": f'"{file.blob}"', "X-Repo-Commit": found[1].oid}
        self.send_range(len(content), lambda at, count: content[at : at + count], headers)

    routes = (
        ("GET", r"/api/whoami-v2", whoami),
        ("POST", r"/api/validate-yaml", validate_card),
        ("POST", r"/api/repos/create", create),
        ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", batch),
        ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/verify", verify),
        ("GET", r"/api/models/([^/]+/[^/]+)", info),
        ("GET", r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", info),
        ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", tree),
        ("POST", r"/api/models/([^/]+/[^/]+)/paths-info/([^/]+)", paths_info),
        ("GET", r"/api/models/([^/]+/[^/]+)/refs", refs),
        ("POST", r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", preupload),
        ("GET", r"/api/models/([^/]+/[^/]+)/xet-(read|write)-token/([^/]+)", xet_token),
        ("POST", r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", make_commit),
        ("GET HEAD", r"/api/resolve-cache/models/([^/]+/[^/]+)/([^/]+)/([^/]+)", resolved),
        ("GET HEAD", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", resolve),
    )


class _StorageHandler(_Handler):
    server_name = "storage"

    def answer(self) -> None:
        self.line, self.left, self.lost = "", int(self.headers.get("Content-Length") or 0), None
        if self.headers.get("Authorization"):  # as S3 does
            self.hub.requests.append(Request("storage", f"TOKEN {self.command} {self.path}", {}))
            return self.refuse(400, "Only one auth mechanism allowed")
        if f"signature={self.hub.signature}" not in self.path:
            return self.refuse(403, "SignatureDoesNotMatch")
        return super().answer()

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def put(self, sha256: str, part: str | None = None) -> None:
        """Keep an upload, or a part of one; nothing is kept of one that is cut, or has another hash."""
        stage = self.hub.root / "lfs" / f".{sha256}-{secrets.token_hex(4)}"
        digest, md5, size = hashlib.sha256(), hashlib.md5(), 0
        try:
            with stage.open("xb") as out:
                for data in self.received():
                    out.write(data)
                    digest.update(data)
                    md5.update(data)
                    size += len(data)
            if part is None and (digest.hexdigest() != sha256 or size != self.hub.uploads[sha256]):
                return self.refuse(400, "BadDigest")
            stage.replace(self.hub.stored(sha256 if part is None else f"{sha256}.{part}"))
        finally:
            stage.unlink(missing_ok=True)
        return self.send(200, b"", {"ETag": f'"{md5.hexdigest()}"'})

    def complete(self, sha256: str) -> None:
        count = len(self.json_body()["parts"])
        stage, digest = self.hub.root / "lfs" / f".{sha256}-{secrets.token_hex(4)}", hashlib.sha256()
        with stage.open("xb") as out:
            for number in range(1, count + 1):
                part = self.hub.stored(f"{sha256}.{number}")
                out.write(part.read_bytes())
                digest.update(part.read_bytes())
                part.unlink()
        if digest.hexdigest() != sha256:
            stage.unlink()
            return self.refuse(400, "checksum mismatch")
        stage.replace(self.hub.stored(sha256))
        return self.send(200, {"success": True})

    def get(self, sha256: str) -> None:
        path = self.hub.rebuilt(sha256)
        if not path.exists():
            return self.refuse(404, "NoSuchKey")

        def read(at: int, count: int) -> bytes:
            file.seek(at)
            return file.read(count)

        with path.open("rb") as file:
            return self.send_range(path.stat().st_size, read, {"Content-Type": "binary/octet-stream"})

    routes = (
        ("PUT", r"/put/([0-9a-f]{64})", put),
        ("PUT", r"/part/([0-9a-f]{64})/(\d+)", put),
        ("POST", r"/complete/([0-9a-f]{64})", complete),
        ("GET HEAD", r"/get/([0-9a-f]{64})", get),
    )


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


@contextmanager
def running(root: Path, *, xet: bool = False, part_size: int | None = None) -> Iterator[Hub]:
    """A hub on two free ports of loopback; with `xet` it stores large files in a Xet store under `root`."""
    hub = Hub(root, xet=xet, part_size=part_size)
    servers = [
        _Server(("127.0.0.1", 0), type(base.__name__, (base,), {"hub": hub})) for base in (_HubHandler, _StorageHandler)
    ]
    # Two names of loopback: the 1.x client takes another port of the same host for the same place.
    hub.url, hub.storage = (
        f"http://{host}:{server.server_port}" for host, server in zip(("127.0.0.1", "localhost"), servers)
    )
    for server in servers:
        threading.Thread(target=partial(server.serve_forever, poll_interval=0.02), daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def main() -> None:
    """Serve until interrupted; the first line of output is the hub's address."""
    parser = argparse.ArgumentParser(description="A test hub on loopback.")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--xet", action="store_true")
    parser.add_argument("--part-size", type=int)
    options = parser.parse_args()
    with (
        running(options.root.resolve(), xet=options.xet, part_size=options.part_size) as hub,
        suppress(KeyboardInterrupt),
    ):
        print(hub.url, flush=True)  # noqa: T201
        threading.Event().wait()


if __name__ == "__main__":
    main()
