"""A stand-in for the Hugging Face Hub: repositories, commits, LFS uploads and tokens over HTTP on the loopback."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qsl, unquote

FIRST_COMMIT = "0" * 40


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {FIRST_COMMIT: {}})  # in their order

    def resolve(self, revision: str) -> str | None:
        return list(self.commits)[-1] if revision == "main" else revision if revision in self.commits else None


class LocalHub(ThreadingHTTPServer):
    """Serves until `close`; `with LocalHub({"token": "owner"}) as hub`.

    Attributes:
        url: what HF_ENDPOINT has to be.
        repositories: by "owner/name"; those of data sets by "datasets/owner/name".
        objects: LFS contents by SHA-256.
        requests: each "METHOD path" so far.
        refuse: requests that match this pattern are answered by 403.
        stall: requests that match this pattern set `stalled` and are never answered.
    """

    daemon_threads = True

    def __init__(self, tokens: dict[str, str]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.tokens = tokens
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.refuse = self.stall = "(?!)"
        self.stalled, self.closed = threading.Event(), threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_) -> None:
        self.closed.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_) -> None:
        pass  # a client that was killed


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer with content waits 40 ms for the client to acknowledge its header
    server: LocalHub

    def _answer(self) -> None:
        hub, request = self.server, f"{self.command} {unquote(self.path.split('?')[0])}"
        hub.requests.append(request)
        if re.search(hub.stall, request):
            hub.stalled.set()
            hub.closed.wait()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            if re.search(hub.refuse, request):
                raise _Refused(403, "Forbidden")
            route, match = next((r, m) for r, pattern in _ROUTES.items() if (m := re.fullmatch(pattern, request)))
            content, headers = getattr(self, route)(body, **match.groupdict())
            self._send(200, content, headers)
        except _Refused as error:
            headers = {"X-Error-Code": error.code} if error.code else {}
            self._send(error.status, {"error": str(error)}, headers | {"X-Error-Message": str(error)})
        except StopIteration:
            self._send(404, {"error": f"no route for {request}"}, {"X-Error-Code": "EntryNotFound"})

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _send(self, status: int, content, headers: dict[str, str]) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass

    def _user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.server.tokens:
            raise _Refused(401, "Invalid username or password.")
        return self.server.tokens.get(token)

    def _repository(self, repo: str, write: bool = False) -> Repository:
        user, found = self._user(), self.server.repositories.get(repo)
        owner = repo.split("/")[-2]
        if found is None or (found.private and user != owner):
            raise _Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user != owner:
            raise _Refused(403 if user else 401, f"You may not write to {repo}")
        return found

    def _files(self, repo: str, revision: str | None) -> tuple[str, dict[str, bytes]]:
        found = self._repository(repo)
        commit = found.resolve(revision or "main")
        if commit is None:
            raise _Refused(404, "Invalid revision", "RevisionNotFound")
        return commit, found.commits[commit]

    def create(self, body):
        request, user = json.loads(body), self._user()
        if user is None:
            raise _Refused(401, "Invalid username or password.")
        if request.get("organization", user) != user:
            raise _Refused(403, f"You may not write to {request['organization']}")
        repo = f"{'datasets/' if request.get('type') == 'dataset' else ''}{user}/{request['name']}"
        if repo not in self.server.repositories:
            self.server.repositories[repo] = Repository(
                request.get("private") or request.get("visibility") == "private"
            )
        return {"url": f"{self.server.url}/{repo}"}, {}

    def validate_yaml(self, body):
        return {"errors": [], "warnings": []}, {}

    def preupload(self, body, repo, revision):
        self._repository(repo, write=True)
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith((".safetensors", ".parquet")) else "regular"}
            for f in json.loads(body)["files"]
        ]
        return {"files": [file | {"shouldIgnore": False, "oid": None} for file in files]}, {}

    def lfs_batch(self, body, repo):
        self._repository(repo, write=True)
        objects = [{"oid": o["oid"], "size": o["size"]} for o in json.loads(body)["objects"]]
        for o in objects:
            if o["oid"] not in self.server.objects:
                o["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{o['oid']}"}}
        return {"transfer": "basic", "objects": objects}, {}

    def lfs_upload(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refused(400, "The content is not what was announced")
        self.server.objects[oid] = body
        return b"", {}

    def commit(self, body, repo, revision):
        found = self._repository(repo, write=True)
        files = dict(found.commits[found.resolve("main")])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        commit = hashlib.sha1(body + str(len(found.commits)).encode()).hexdigest()
        found.commits[commit] = files
        url = f"{self.server.url}/{repo}/commit/{commit}"
        return {"success": True, "commitOid": commit, "commitUrl": url}, {}

    def info(self, body, repo, revision=None):
        commit, files = self._files(repo, revision)
        name = repo.removeprefix("datasets/")
        return {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]}, {}

    def tree(self, body, repo, revision, folder=""):
        _, files = self._files(repo, revision)
        entries = _entries(files)
        inside = {path: entry for path, entry in entries.items() if path.startswith(f"{folder}/" if folder else "")}
        if "recursive=True" not in self.path:
            inside = {path: entry for path, entry in inside.items() if str(PurePosixPath(path).parent) in (folder, ".")}
        return list(inside.values()), {}

    def paths_info(self, body, repo, revision):
        _, files = self._files(repo, revision)
        asked = [value for name, value in parse_qsl(body.decode()) if name == "paths"]
        return [entry for path, entry in _entries(files).items() if path in asked], {}

    def resolve(self, body, repo, revision, path):
        commit, files = self._files(repo, revision)
        if path not in files:
            raise _Refused(404, f"No {path} at {commit}", "EntryNotFound")
        return files[path], {"ETag": f'"{hashlib.sha256(files[path]).hexdigest()}"', "X-Repo-Commit": commit}


def _entries(files: dict[str, bytes]) -> dict[str, dict]:
    """What the hub says of files and folders, by path."""
    folders = {str(folder) for path in files for folder in list(PurePosixPath(path).parents)[:-1]}
    entries = {
        path: {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest()} for path in folders
    }
    for path, content in files.items():
        oid = hashlib.sha1(content).hexdigest()
        entries[path] = {"type": "file", "path": path, "size": len(content), "oid": oid}
    return entries


_REPO, _REVISION = r"(?P<repo>(?:datasets/)?[\w.-]+/[\w.-]+)", r"(?P<revision>[^/]+)"
_API_REPO = r"(?:models/(?=[\w.-]+/[\w.-]+)|(?=datasets/))" + _REPO
_ROUTES = {
    "create": "POST /api/repos/create",
    "validate_yaml": "POST /api/validate-yaml",
    "preupload": f"POST /api/{_API_REPO}/preupload/{_REVISION}",
    "lfs_batch": f"POST /{_REPO}.git/info/lfs/objects/batch",
    "lfs_upload": "PUT /lfs/(?P<oid>[0-9a-f]{64})",
    "commit": f"POST /api/{_API_REPO}/commit/{_REVISION}",
    "info": f"GET /api/{_API_REPO}(/revision/{_REVISION})?",
    "tree": f"GET /api/{_API_REPO}/tree/{_REVISION}/?(?P<folder>.*)",
    "paths_info": f"POST /api/{_API_REPO}/paths-info/{_REVISION}",
    "resolve": f"(GET|HEAD) /{_REPO}/resolve/{_REVISION}/(?P<path>.+)",
}
