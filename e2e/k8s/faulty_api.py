"""Between a client and the API server: passes everything on, and fails what a test says.

Plain HTTP towards the client, with its own token passed on, so that the API server sees who it is. Every
request is counted; a watch can be cut at will.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REASONS = {409: "Conflict", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}


class FaultyApi:
    """`fault(method, path)` gives a status to answer with in the API server's place, or None."""

    def __init__(self, server: str, ca: str, fault: Callable[[str, str], int | None] = lambda method, path: None):
        self.fault = fault
        self.injected: Counter[int] = Counter()
        self.passed: Counter[str] = Counter()
        self._server, self._context = urllib.parse.urlsplit(server), ssl.create_default_context(cafile=ca)
        self._watches: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._listener.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._listener.server_address[1]}"

    def __enter__(self) -> FaultyApi:
        threading.Thread(target=self._listener.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        self.drop_watches()

    def drop_watches(self) -> int:
        """Cuts every open watch in the middle; gives their number."""
        with self._lock:
            cut, self._watches = self._watches, set()
        for connection in cut:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        return len(cut)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Headers and body leave in one piece.
            wbufsize = -1

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                status = proxy.fault(self.command, self.path)
                if status:
                    proxy.injected[status] += 1
                    return self._refuse(status)
                query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
                watch = query.get("watch", ["false"])[0] == "true"
                proxy.passed["WATCH" if watch else self.command] += 1
                self._forward(body, watch)
                return None

            def _refuse(self, status: int) -> None:
                reason = REASONS[status]
                text = json.dumps(
                    {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "reason": reason,
                     "message": f"injected {reason}"}
                ).encode()  # fmt: skip
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(text)))
                if status == 429:
                    self.send_header("retry-after", "1")
                self.end_headers()
                self.wfile.write(text)

            def _forward(self, body: bytes, watch: bool) -> None:
                to = http.client.HTTPSConnection(
                    proxy._server.hostname, proxy._server.port, timeout=None if watch else 60, context=proxy._context
                )
                hop = {"host", "connection", "content-length", "accept-encoding", "transfer-encoding"}
                headers = {k: v for k, v in self.headers.items() if k.lower() not in hop}
                try:
                    to.request(self.command, self.path, body or None, headers)
                    answer = to.getresponse()
                    self.send_response(answer.status)
                    for name, value in answer.getheaders():
                        if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                            self.send_header(name, value)
                    if watch and answer.status == 200:
                        self._stream(answer)
                    else:
                        text = answer.read()
                        self.send_header("content-length", str(len(text)))
                        self.end_headers()
                        self.wfile.write(text)
                except (OSError, http.client.HTTPException):
                    self.close_connection = True
                finally:
                    to.close()

            def _stream(self, answer: http.client.HTTPResponse) -> None:
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                self.wfile.flush()
                with proxy._lock:
                    proxy._watches.add(self.connection)
                try:
                    while piece := answer.read1(65536):
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                        self.wfile.flush()
                    self.wfile.write(b"0\r\n\r\n")
                finally:
                    with proxy._lock:
                        proxy._watches.discard(self.connection)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

            def log_message(self, *_: object) -> None:
                pass

        return Handler
