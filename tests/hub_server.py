"""A stand-in for the hub, on loopback: the requests that huggingface_hub makes of huggingface.co, and what it answers.

Repositories of models and data sets with branches and commits, small files inside the commit (NDJSON), large ones by
the LFS batch protocol, ``resolve`` with redirects, ETags and ranges, private repositories, errors by ``X-Error-Code``.
It counts what is sent and can hold back, or break off, an answer. Run it with HF_HUB_DISABLE_XET=1: the store of Xet is
a service of its own.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_test"
LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "other")  # the hub has more
LARGE = (".safetensors", ".parquet", ".png")  # as .gitattributes of a new repository has them


@dataclass
class Repository:
    private: bool
    commits: dict = field(default_factory=dict)  # checksum -> {path: content}
    branches: dict = field(default_factory=dict)  # name -> checksum

    def commit(self, branch, files):
        parent = self.branches.get(branch, "")
        sha = hashlib.sha1(repr((parent, branch, sorted(files.items()), len(self.commits))).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha


@dataclass(repr=False)
class Hub:
    address: str = ""
    store: str = ""  # of large files; another host, as that of the hub is
    repositories: dict = field(default_factory=dict)  # (kind, name) -> Repository
    objects: dict = field(default_factory=dict)  # what was uploaded, by SHA-256
    puts: list = field(default_factory=list)  # SHA-256 of every upload of a large file, in order
    ranges: list = field(default_factory=list)  # headers of downloads that went on in the middle
    requests: list = field(default_factory=list)  # (method, path)
    stall: int | None = None  # after so many uploads the next is read and not kept, and nothing is answered any more
    lock: threading.Lock = field(default_factory=threading.Lock)
    stalled: threading.Event = field(default_factory=threading.Event)
    breaks: int = 0  # so many downloads of large files end in the middle

    @contextmanager
    def serving(self):
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        server.daemon_threads, server.block_on_close = True, False
        self.address, self.store = (f"http://{host}:{server.server_address[1]}" for host in ("127.0.0.1", "localhost"))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def oid(path, content):
    return hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else git_oid(content)


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code):
        said = f"{code} is why. More is said."
        self.answer(status, {"error": said}, X_Error_Code=code, X_Error_Message=said)

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def handle_request(self):
        self.hub.requests.append((self.command, urlsplit(self.path).path))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        body = self.body() if self.command in ("POST", "PUT") else b""
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if parts[0] == "storage":
            return self.storage(parts[1], body)
        if parts[:2] == ["api", "validate-yaml"]:
            return self.validate(json.loads(body)["content"])
        if self.command in ("POST", "PUT") and not known:
            return self.refuse(401, "Unauthorized")
        if parts[:3] == ["api", "repos", "create"]:
            return self.create(json.loads(body))
        if parts[0] == "api":
            kind, name, verb, rest = parts[1].removesuffix("s"), "/".join(parts[2:4]), parts[4:5], parts[5:]
        else:
            kind, parts = ("dataset", parts[1:]) if parts[0] == "datasets" else ("model", parts)
            name, verb, rest = "/".join(parts[:2]).removesuffix(".git"), parts[2:3], parts[3:]
        repository = self.hub.repositories.get((kind, name))
        if repository is None or (repository.private and not known):
            return self.refuse(404 if known else 401, "RepoNotFound")
        return getattr(self, "on_" + (verb or ["revision"])[0])(repository, kind, name, rest or ["main"], body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def validate(self, card):
        licence = re.search(r"^license: (.*)$", card.split("---\n")[1], re.MULTILINE)
        wrong = licence is not None and licence[1] not in LICENCES
        errors = [{"message": f'"license" must be one of [{", ".join(LICENCES)}]'}] * wrong
        self.answer(400 if wrong else 200, {"errors": errors, "warnings": []})

    def create(self, asked):
        key = asked.get("type", "model"), f"{asked['organization']}/{asked['name']}"
        there = key in self.hub.repositories
        if not there:
            private = asked.get("visibility") == "private" or asked.get("private") is True
            self.hub.repositories[key] = Repository(private)
            self.hub.repositories[key].commit("main", {".gitattributes": b""})
        prefix = "datasets/" if key[0] == "dataset" else ""
        self.answer(409 if there else 200, {"url": f"{self.hub.address}/{prefix}{key[1]}", "error": "exists"})

    def on_branch(self, repository, kind, name, rest, body):
        if rest[0] in repository.branches:
            return self.refuse(409, "RefExists")
        repository.branches[rest[0]] = repository.branches[json.loads(body or b"{}").get("startingPoint", "main")]
        self.answer(201)

    def found(self, repository, revision):
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            self.refuse(404, "RevisionNotFound")
            return None, {}
        return sha, repository.commits[sha]

    def on_revision(self, repository, kind, name, rest, body):
        sha, files = self.found(repository, rest[0])
        if sha:
            siblings = [{"rfilename": path} for path in files]
            about = {"id": name, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []}
            self.answer(200, about)

    def on_tree(self, repository, kind, name, rest, body):
        sha, files = self.found(repository, rest[0])
        if sha is None:
            return
        entries = []
        for path, content in sorted(files.items()):
            entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
            if path.endswith(LARGE):
                entry["lfs"] = {"oid": oid(path, content), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        # A page at a time, as the hub does.
        page = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        more = {}
        if page + 4 < len(entries):
            address = f"{self.hub.address}{urlsplit(self.path).path}?recursive=True&cursor={page + 4}"
            more = {"Link": f'<{address}>; rel="next"'}
        self.answer(200, entries[page : page + 4], **more)

    def on_preupload(self, repository, kind, name, rest, body):
        _, files = self.found(repository, rest[0])
        modes = [
            {
                "path": path,
                "uploadMode": "lfs" if path.endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": oid(path, files[path]) if path in files else None,
            }
            for path in (one["path"] for one in json.loads(body)["files"])
        ]
        self.answer(200, {"files": modes})

    def on_info(self, repository, kind, name, rest, body):
        """POST NAME.git/info/lfs/objects/batch: where what is not here yet is put."""
        assert rest == ["lfs", "objects", "batch"]
        objects = []
        for one in json.loads(body)["objects"]:
            if one["oid"] not in self.hub.objects:
                one["actions"] = {"upload": {"href": f"{self.hub.store}/storage/{one['oid']}"}}
            objects.append(one)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def storage(self, sha, body):
        if self.command == "PUT":
            assert hashlib.sha256(body).hexdigest() == sha
            with self.hub.lock:  # uploads come at the same time
                held = self.hub.stall is not None and len(self.hub.puts) >= self.hub.stall
                if not held:
                    self.hub.puts.append(sha)
            if held:
                self.hub.stalled.set()
                return threading.Event().wait(30)  # until the client is gone
            self.hub.objects[sha] = body
            return self.answer(200)
        content, asked = self.hub.objects[sha], self.headers.get("Range")
        if asked is not None:
            self.hub.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").split("-")[0])
            where = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.answer(206, content[start:], Content_Range=where, ETag=f'"{sha}"')
        if self.command == "GET" and self.hub.breaks:
            self.hub.breaks -= 1
            self.answer(200, content[: len(content) // 2], Content_Length=len(content), ETag=f'"{sha}"')
            self.close_connection = True
            return None
        return self.answer(200, content, ETag=f'"{sha}"')

    def on_commit(self, repository, kind, name, rest, body):
        files = dict(self.found(repository, rest[0])[1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                assert line["key"] == "header"
        sha = repository.commit(rest[0], files)
        prefix = "datasets/" if kind == "dataset" else ""
        self.answer(200, {"commitUrl": f"{self.hub.address}/{prefix}{name}/commit/{sha}", "commitOid": sha})

    def on_resolve(self, repository, kind, name, rest, body):
        sha, files = self.found(repository, rest[0])
        path = "/".join(rest[1:])
        if sha is None:
            return None
        if path not in files:
            return self.refuse(404, "EntryNotFound")
        content = files[path]
        if path.endswith(LARGE):
            etag = oid(path, content)
            linked = {"X_Linked_Etag": f'"{etag}"', "X_Linked_Size": len(content)}
            return self.answer(302, Location=f"{self.hub.store}/storage/{etag}", X_Repo_Commit=sha, **linked)
        return self.answer(200, content, ETag=f'"{git_oid(content)}"', X_Repo_Commit=sha)
