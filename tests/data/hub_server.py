"""A small Hugging Face hub for one data set, on the loopback interface: as much of the protocol as a download asks for."""

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = 5  # files listed at a time, so that listings have pages


class HubServer:
    """Serves `files` (path -> bytes) of `repo`. Everything is an attribute that a test may change between calls."""

    def __init__(self, seconds=120):
        self.reset("owner/name", {})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.timer = threading.Timer(seconds, self.http.shutdown)
        self.timer.daemon = True
        self.timer.start()

    def reset(self, repo, files):
        self.repo, self.files, self.commit = repo, dict(files), COMMIT
        self.served = {}  # path -> other bytes than those listed
        self.absent, self.gated, self.broken = set(), False, False
        self.cut = {}  # path -> bytes after which the connection is cut, once
        self.fetched = []  # (path, Range header) of every GET of a file

    def close(self):
        self.timer.cancel()
        self.http.shutdown()
        self.http.server_close()


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._route(body=False)

    def do_GET(self):
        self._route(body=True)

    def _route(self, body):
        url, hub = urlparse(self.path), self.hub
        path, api = unquote(url.path), f"/api/datasets/{hub.repo}"
        resolve = f"/datasets/{hub.repo}/resolve/{hub.commit}/"
        if hub.broken:
            self._answer(200, b"<html>welcome to the hotel network</html>", {})
        elif hub.gated and hub.repo in path:
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif path in (api, f"{api}/revision/main"):
            self._json({"id": hub.repo, "sha": hub.commit})
        elif path == f"{api}/tree/{hub.commit}":
            self._tree(int(parse_qs(url.query).get("cursor", ["0"])[0]))
        elif path.startswith(resolve) and path[len(resolve) :] in hub.files.keys() - hub.absent:
            self._file(path[len(resolve) :], body)
        else:
            kind = "EntryNotFound" if path.startswith(resolve) else "RepoNotFound"
            self._answer(404, b"{}", {"X-Error-Code": kind})

    def _tree(self, first):
        names = sorted(self.hub.files)
        listing = [{"type": "directory", "path": "datasets", "oid": "0" * 40, "size": 0}] if first == 0 else []
        for name in names[first : first + PAGE]:
            data = self.hub.files[name]
            blob = hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()
            entry = {"type": "file", "path": name, "size": len(data), "oid": blob}
            if name.endswith(".bin"):
                sha256 = hashlib.sha256(data).hexdigest()
                entry |= {"oid": "1" * 40, "lfs": {"oid": sha256, "size": len(data), "pointerSize": 134}}
            listing.append(entry)
        more = f'<{self.hub.endpoint}{urlparse(self.path).path}?recursive=true&cursor={first + PAGE}>; rel="next"'
        self._json(listing, {"Link": more} if first + PAGE < len(names) else {})

    def _file(self, name, body):
        data = self.hub.served.get(name, self.hub.files[name])
        asked = self.headers.get("Range")
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": self.hub.commit,
            "Accept-Ranges": "bytes",
        }
        part, status = data, 200
        if asked:
            begin = int(asked.removeprefix("bytes=").rstrip("-"))
            part, status = data[begin:], 206
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        if body:
            self.hub.fetched.append((name, asked))
            if name in self.hub.cut:
                self._answer(status, part, headers, cut=self.hub.cut.pop(name))
                return
        self._answer(status, part, headers, body)

    def _json(self, value, headers=None):
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _answer(self, status, data, headers, body=True, cut=None):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET" and body:
            self.wfile.write(data[:cut])
        if cut is not None:
            self.wfile.flush()
            time.sleep(0.05)
            self.close_connection = True
