"""A small Hugging Face Hub with one repository of one file, which counts what it sends and can be made slow,
break off, stall, and refuse who shows no token."""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPOSITORY = "test/small"
COMMIT = "0" * 40
TOKEN = "hf_of-this-test"
PIECE = 256 * 1024


class Hub:
    """Serves `file` on `host`. `sent` is the number of its bytes that left."""

    def __init__(self, host: str, file: pathlib.Path):
        self.file, self.name, self.size = file, file.name, file.stat().st_size
        with file.open("rb") as opened:
            self.sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        self.sent, self.refused, self.broken = 0, 0, 0
        self.lock = threading.Lock()
        # All connections together; none is slowed down without it.
        self.bytes_per_s: int | None = None
        # So many more answers break off after a piece, or say nothing more after one.
        self.breaks, self.stalls = 0, 0
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer((host, 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://{host}:{self._server.server_address[1]}"
        self.uri = f"hf://{REPOSITORY}/{self.name}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def secret(self, name: str, token: str = TOKEN) -> dict:
        """The credentials of a model that is fetched from here."""
        entries = {"HF_TOKEN": token, "HF_ENDPOINT": self.url, "STRATA_ALLOW_HTTP": "true"}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": entries}

    def _take(self, what: str) -> bool:
        with self.lock:
            left = getattr(self, what)
            setattr(self, what, max(0, left - 1))
            return left > 0

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.do_GET(body=False)

            def do_GET(self, body: bool = True) -> None:
                path = urllib.parse.urlsplit(self.path).path
                if self.headers.get("authorization") != f"Bearer {TOKEN}":
                    hub.refused += 1
                    return self.tell(401, {"error": "Invalid credentials"})
                if path == f"/api/models/{REPOSITORY}/revision/main":
                    entry = {"rfilename": hub.name, "size": hub.size, "lfs": {"sha256": hub.sha256, "size": hub.size}}
                    return self.tell(200, {"sha": COMMIT, "siblings": [entry]})
                if path == f"/{REPOSITORY}/resolve/{COMMIT}/{hub.name}":
                    return self.send_file(body)
                return self.tell(404, {"error": "not found"})

            def tell(self, status: int, what: dict) -> None:
                text = json.dumps(what).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def send_file(self, body: bool) -> None:
                asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or "bytes=0-")
                first, last = int(asked[1]), int(asked[2] or hub.size - 1)
                self.send_response(206 if self.headers.get("range") else 200)
                self.send_header("content-length", str(last - first + 1))
                self.send_header("content-range", f"bytes {first}-{last}/{hub.size}")
                self.send_header("accept-ranges", "bytes")
                self.send_header("etag", f'"{hub.sha256}"')
                self.end_headers()
                if not body:
                    return
                breaks, stalls = hub._take("breaks"), hub._take("stalls")
                with hub.file.open("rb") as opened:
                    opened.seek(first)
                    left = last - first + 1
                    while left > 0:
                        piece = opened.read(min(PIECE, left))
                        left -= len(piece)
                        self.wfile.write(piece)
                        with hub.lock:
                            hub.sent += len(piece)
                        if breaks:
                            with hub.lock:
                                hub.broken += 1
                            self.close_connection = True
                            return
                        if stalls:
                            hub._closing.wait()
                            self.close_connection = True
                            return
                        hub.pace(len(piece))

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def pace(self, sent: int) -> None:
        if self.bytes_per_s:
            time.sleep(sent / self.bytes_per_s)
