"""A Hugging Face hub on loopback: a real HTTP server over a folder, with faults on demand.

    with LoopbackHub(folder, [Fault("a.parquet", drop_after=1000), Fault("a.parquet", status=500)]) as hub:
        run_command("python", "prepare/fineweb.py", **hub.environment(tmp_path))
        assert hub.ranges("a.parquet") == [None, None, "bytes=1000-"]

folder/datasets/OWNER/NAME/... are the files of a dataset repository, folder/models/[OWNER/]NAME/... those of a model,
and everything in the folder is also served under its plain path. Large-file suffixes behave as LFS files do: the hub
states their sha256 and redirects to a content server, which has another host name.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub.utils import close_session

LFS_SUFFIXES = (".parquet", ".bin", ".safetensors", ".gz", ".zst")
CLOSED = "http://127.0.0.1:9"  # no process listens there


@dataclass
class Fault:
    """What goes wrong with the next `times` requests of `method` whose path contains `where`.

    status: the answer instead (and Retry-After in seconds). drop_after: the connection breaks after N bytes of a
    file's body. corrupt: the first byte of it is wrong. delay: seconds before each kB of it.
    """

    where: str
    status: int | None = None
    retry_after: int | None = None
    drop_after: int | None = None
    corrupt: bool = False
    delay: float = 0.0
    times: int = 1
    method: str = "GET"


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    host: str


class LoopbackHub:
    """Serves `folder` from __enter__ until stop(); `requests` records every request. `page`: entries in a tree page."""

    def __init__(self, folder: Path, faults: Sequence[Fault] = (), page: int = 1000) -> None:
        self.folder, self.faults, self.page = folder, list(faults), page
        self.requests: list[Seen] = []
        self.commits: set[str] = set()  # those that were requested; all have the newest one's files
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.daemon_threads = True
        self.server.hub = self
        self.port = self.server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """From now on connections are refused."""
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def environment(self, home: Path) -> dict[str, str]:
        """For a subprocess: this hub, an empty cache under `home`, and no way to any other machine."""
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), CLOSED)
        direct = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
        hub = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home / "hf_home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        return proxies | direct | hub | {"HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}

    def adopt(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        """The same for this process, until the test ends."""
        for name, value in self.environment(home).items():
            monkeypatch.setenv(name, value)
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", self.endpoint)
        template = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_URL_HOSTS", frozenset({"127.0.0.1"}))
        close_session()  # the client takes its proxies from the environment when it is made

    def ranges(self, where: str) -> list[str | None]:
        """The Range headers of the GET requests for bodies whose path contains `where`, in order."""
        return [
            seen.range
            for seen in self.requests
            if seen.method == "GET" and where in seen.path and "/resolve/" not in seen.path and "/api/" not in seen.path
        ]

    def files(self, repo: Path) -> dict[str, Path]:
        """The files of a repository by their paths in it, sorted."""
        return {str(path.relative_to(repo)): path for path in sorted(repo.rglob("*")) if path.is_file()}

    def commit(self, repo: Path) -> str:
        """The sha of the newest commit."""
        listing = json.dumps([(name, path.stat().st_size) for name, path in self.files(repo).items()])
        sha = hashlib.sha1(listing.encode()).hexdigest()
        self.commits.add(sha)
        return sha

    def take_fault(self, method: str, path: str, in_body: bool) -> Fault | None:
        """The first fault that is due for this request, one use of it spent."""
        with self.lock:
            for fault in self.faults:
                due = fault.times > 0 and fault.method == method and fault.where in path
                if due and (fault.status is None) == in_body:
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that was killed
            super().handle()

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        path = unquote(url.path)
        headers = self.headers
        seen = Seen(self.command, path, headers.get("Range"), headers.get("Authorization"), headers.get("Host", ""))
        with hub.lock:
            hub.requests.append(seen)
        if fault := hub.take_fault(self.command, path, in_body=False):
            extra = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            return self.answer(fault.status, b"as the test wants it", extra)
        if match := re.fullmatch(r"/api/(datasets|models)/(.+?)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", path):
            return self.api(*match.groups(), query=parse_qs(url.query))
        if match := re.fullmatch(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)", path):
            return self.resolve((match[1] or "models/").rstrip("/"), *match.groups()[1:])
        file = hub.folder / path.removeprefix("/cdn").lstrip("/")
        return self.send(file) if file.is_file() else self.answer(404, b"absent")

    def do_POST(self) -> None:
        """Making a model repository, and a commit of files, for those who send a token."""
        hub, path, body = self.server.hub, self.path, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with hub.lock:
            authorization = self.headers.get("Authorization")
            hub.requests.append(Seen("POST", path, None, authorization, self.headers.get("Host", "")))
        if not authorization:
            return self.answer(401, b"{}")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            (hub.folder / "models" / name).mkdir(parents=True, exist_ok=True)
            return self.json({"url": f"{hub.endpoint}/{name}", "id": name})
        name, what = re.fullmatch(r"/api/models/(.+)/(preupload|commit)/main", path.partition("?")[0]).groups()
        if what == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return self.json({"files": [{**file, "shouldIgnore": False, "oid": None} for file in files]})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                (hub.folder / "models" / name / line["value"]["path"]).write_bytes(content)
        url = f"{hub.endpoint}/{name}/commit/0"
        self.json({"success": True, "commitOid": "0" * 40, "commitUrl": url, "hookOutput": "", "pullRequestUrl": None})

    def repo(self, kind: str, name: str, revision: str | None) -> tuple[Path, str] | None:
        """A repository's folder and commit; else None, and 404 has been answered."""
        folder = self.server.hub.folder / kind / name
        commit = self.server.hub.commit(folder)
        if not folder.is_dir():
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision in (None, "main"):
            return folder, commit
        elif revision in {commit, *self.server.hub.commits}:
            return folder, revision
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        return None

    def api(self, kind: str, name: str, what: str | None, revision: str | None, path: str | None, query: dict) -> None:
        """/api/datasets/NAME[/revision/REV] and /api/datasets/NAME/tree/REV[/FOLDER]."""
        found = self.repo(kind, name, revision)
        if found is None:
            return
        folder, commit = found
        if what != "tree":
            siblings = [{"rfilename": file} for file in self.server.hub.files(folder)]
            return self.json({"id": name, "sha": commit, "private": False, "tags": [], "siblings": siblings})
        top = folder / (path or "")
        if not top.is_dir():
            return self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        entries = sorted(top.rglob("*") if query.get("recursive") == ["true"] else top.iterdir())
        start = int(query.get("cursor", ["0"])[0])
        end = start + self.server.hub.page
        extra = {}
        if end < len(entries):
            link = f"{self.server.hub.endpoint}{urlsplit(self.path).path}?cursor={end}"
            extra["Link"] = f'<{link}>; rel="next"'
        self.json([self.entry(folder, entry) for entry in entries[start:end]], extra)

    def entry(self, folder: Path, path: Path) -> dict:
        name = str(path.relative_to(folder))
        if path.is_dir():
            return {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
        oid, size = _git_blob(path), path.stat().st_size
        lfs = {"lfs": {"oid": _sha256(path), "size": size, "pointerSize": 134}} if _is_lfs(path) else {}
        return {"type": "file", "oid": oid, "size": size, "path": name} | lfs

    def resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        found = self.repo(kind, name, revision)
        if found is None:
            return
        folder, commit = found
        file = folder / path
        if not file.is_file():
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        if not _is_lfs(file):
            return self.send(file, {"ETag": f'"{_git_blob(file)}"', "X-Repo-Commit": commit})
        self.answer(302, b"", {
            "Location": f"http://localhost:{self.server.hub.port}/cdn/{kind}/{name}/{quote(path)}",
            "X-Repo-Commit": commit,
            "X-Linked-Etag": f'"{_sha256(file)}"',
            "X-Linked-Size": str(file.stat().st_size),
        })  # fmt: skip

    def send(self, file: Path, extra: dict[str, str] | None = None) -> None:
        """A file, or the range of it that is requested."""
        body = file.read_bytes()
        size, start, status = len(body), 0, 200
        extra = {"Accept-Ranges": "bytes"} | (extra or {})
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(match[1]), min(int(match[2] or size - 1), size - 1)
            if start >= size:
                return self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
            body, status = body[start : end + 1], 206
            extra["Content-Range"] = f"bytes {start}-{end}/{size}"
        fault = self.server.hub.take_fault(self.command, unquote(self.path), in_body=True)
        if fault and fault.corrupt:
            body = bytes([body[0] ^ 1]) + body[1:]
        self.answer(status, body, extra, fault)

    def json(self, value: object, extra: dict[str, str] | None = None) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"} | (extra or {}))

    def answer(self, status: int, body: bytes, extra: dict[str, str] | None = None, fault: Fault | None = None) -> None:
        self.send_response(status)
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.drop_after is not None:
            body, self.close_connection = body[: fault.drop_after], True
        delay = fault.delay if fault else 0
        step = 1000 if delay else max(1, len(body))
        for start in range(0, len(body), step):
            time.sleep(delay)
            self.wfile.write(body[start : start + step])


def _is_lfs(path: Path) -> bool:
    return path.name.endswith(LFS_SUFFIXES)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _git_blob(path: Path) -> str:
    return hashlib.sha1(b"blob %d\0" % path.stat().st_size + path.read_bytes()).hexdigest()
