"""What the client of Weights & Biases needs of a server, on this machine: runs are made and taken up again,
rows of history come in. It keeps the rows as the real one does, by offset."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import socket
import threading


class WandbServer:
    """rows: run id → rows of history in order, as the client sent them. Usable in a with statement.

    command, trials: of a sweep, whose agent runs the command with the values of each: field → value.
    """

    def __init__(self, command: tuple[str, ...] = (), trials: tuple[dict, ...] = ()):
        self.rows: dict[str, list[dict]] = {}
        self._command, self._trials = command, [*enumerate(trials)]
        self.summaries: dict[str, dict] = {}
        self._connections: set[socket.socket] = set()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                server._connections.add(self.connection)

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                told = {}
                if self.path == "/graphql":
                    told = {"data": server._answer(json.loads(body))}
                elif self.path.endswith("/file_stream"):
                    server._take(self.path.split("/")[-2], json.loads(body).get("files") or {})
                answer = json.dumps(told).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_PUT = do_POST

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # clients that were killed
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.environment = {"WANDB_MODE": "online", "WANDB_BASE_URL": self.url, "WANDB_API_KEY": "0" * 40}
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def _answer(self, asked: dict) -> dict:
        """To GraphQL: only whether a run exists, and how far it has got, matters here."""
        run = asked.get("variables", {}).get("name")
        name = asked.get("operationName") or asked["query"].split("(")[0].split()[-1]
        if name == "Viewer":
            return {"viewer": {"id": "u", "entity": "someone", "username": "someone", "teams": {"edges": []}}}
        if name == "SweepWithRuns":
            config = {
                "method": "grid",
                "program": "",
                "command": [*self._command, "${args}"],
                "parameters": {},
            }
            sweep = {"id": "s", "name": "s", "state": "RUNNING", "config": json.dumps(config)}
            return {"project": {"sweep": sweep | {"runs": {"edges": []}}}}
        if name == "CreateAgent":
            return {"createAgent": {"agent": {"id": "a"}}}
        if name == "Heartbeat":
            tasks = []
            if self._trials:
                number, values = self._trials.pop(0)
                args = {field: {"value": value} for field, value in values.items()}
                tasks = [{"type": "run", "run_id": f"trial{number}", "program": "", "args": args}]
            return {"agentHeartbeat": {"agent": {"id": "a"}, "commands": json.dumps(tasks)}}
        if name == "UpsertBucket":
            self.rows.setdefault(run, [])
            project = {"id": "p", "name": "charlm", "entity": {"id": "e", "name": "someone"}}
            bucket = {"id": "b", "name": run, "displayName": run, "project": project}
            return {"upsertBucket": {"inserted": True, "bucket": bucket}}
        if name == "RunResumeStatus" and run in self.rows:
            tail = [json.dumps(row) for row in self.rows[run][-1:]]
            bucket = {"id": "b", "name": run, "displayName": run, "logLineCount": 0, "eventsLineCount": 0}
            bucket |= {"historyLineCount": len(self.rows[run]), "historyTail": json.dumps(tail)}
            bucket |= {"eventsTail": "[]", "config": "{}", "tags": [], "wandbConfig": '{"t": 1}'}
            bucket |= {"summaryMetrics": json.dumps(self.summaries.get(run, {}))}
            return {"model": {"id": "m", "name": "charlm", "bucket": bucket}}
        if name == "CreateRunFiles":
            files = asked["variables"]["files"]
            urls = [{"name": file, "uploadUrl": f"{self.url}/upload/{file}"} for file in files]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": urls}}
        return {}

    def _take(self, run: str, files: dict) -> None:
        history = files.get("wandb-history.jsonl")
        if history:
            at = history["offset"]
            self.rows[run][at : at + len(history["content"])] = map(json.loads, history["content"])
        for line in files.get("wandb-summary.json", {}).get("content", []):
            self.summaries[run] = json.loads(line)

    def close(self) -> None:
        """Gone: nobody answers any more, and what is connected is cut off."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> WandbServer:
        return self

    def __exit__(self, *_) -> None:
        self.close()
