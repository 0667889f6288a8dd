"""As much of the Hugging Face Hub as one push and one load need, in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

SHA = "0123456789abcdef0123456789abcdef01234567"  # of the only commit


class Hub:
    """A server with one user, whose token is `right`; a token `wrong` may write nothing."""

    def __enter__(self) -> Hub:
        self.repos: dict[str, dict[str, bytes]] = {}  # name → path → content
        self.created: list[dict] = []  # the bodies of create
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def _send(self, status: int, content: bytes | dict = b"", **headers: str) -> None:
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/validate-yaml":
                return self._send(200, {"errors": [], "warnings": []})
            if self.headers.get("Authorization") != "Bearer right":
                return self._send(403, {"error": "You don't have the rights"}, X_Error_Message="no rights")
            if self.path == "/api/repos/create":
                request = json.loads(body)
                hub.created.append(request)
                name = f"{request['organization']}/{request['name']}"
                exists = name in hub.repos
                hub.repos.setdefault(name, {})
                return self._send(409 if exists else 200, {"url": f"{hub.url}/{name}"})
            name = re.match("/api/models/([^/]+/[^/]+)/", self.path)[1]
            if "/preupload/" in self.path:
                files = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
                return self._send(200, {"files": [f | {"shouldIgnore": False} for f in files]})
            for line in body.splitlines():
                part = json.loads(line)
                if part["key"] == "file":
                    hub.repos[name][part["value"]["path"]] = base64.b64decode(part["value"]["content"])
            return self._send(200, {"commitUrl": f"{hub.url}/{name}/commit/{SHA}", "commitOid": SHA})

        def do_GET(self):
            if found := re.match("/api/models/([^/]+/[^/?]+)", self.path):
                if found[1] not in hub.repos:
                    return self._send(404, X_Error_Code="RepoNotFound")
                if "/tree/" in self.path:
                    files = hub.repos[found[1]].items()
                    tree = [{"type": "file", "path": p, "size": len(c), "oid": SHA} for p, c in files]
                    return self._send(200, json.dumps(tree).encode())
                siblings = [{"rfilename": path} for path in hub.repos[found[1]]]
                return self._send(200, {"id": found[1], "sha": SHA, "siblings": siblings})
            found = re.match(f"/([^/]+/[^/]+)/resolve/{SHA}/(.+)", self.path)
            if not found:
                return self._send(404)
            content = hub.repos[found[1]][found[2]]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            return self._send(200, content, ETag=etag, X_Repo_Commit=SHA)

        do_HEAD = do_GET

    return Handler
