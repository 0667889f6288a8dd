"""A web server for the tests that read files over HTTP."""

import functools
import http.server
import io
import re
import threading
from pathlib import Path

import datasets
import pytest


class Ranged(http.server.SimpleHTTPRequestHandler):
    """Static files, with single byte ranges: members of zip archives are read by them."""

    def log_message(self, *args):
        pass

    def send_head(self):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not wanted or not path.is_file():
            return super().send_head()
        whole = path.read_bytes()
        first = int(wanted[1])
        last = min(int(wanted[2] or len(whole) - 1), len(whole) - 1)
        part = whole[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(whole)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        return io.BytesIO(part)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder and the URL where it is served. The network is allowed; the hub stays out of reach."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    root = tmp_path / "site"
    root.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Ranged, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield root, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()
