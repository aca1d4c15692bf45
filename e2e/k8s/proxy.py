"""A proxy before the API server: writes down every call, and answers some of them itself, wrongly.

A process under test gets a proxy of its own, so that its calls are told apart from all others'.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field

from driver.api import Api

DROPPED = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


@dataclass
class Call:
    method: str
    path: str
    query: dict[str, list[str]]
    began: float
    ended: float = 0.0
    status: int = 0

    @property
    def is_watch(self) -> bool:
        return self.query.get("watch", [""])[0] in ("true", "1")

    @property
    def is_write(self) -> bool:
        return self.method != "GET"

    @property
    def resource(self) -> str:
        """`pods`, `deployments/scale`."""
        parts = [p for p in self.path.split("/") if p]
        parts = parts[3:] if parts[:1] == ["apis"] else parts[2:]
        if parts[:1] == ["namespaces"] and len(parts) > 2:
            parts = parts[2:]
        return "/".join(parts[::2]) if parts else ""

    @property
    def is_lease(self) -> bool:
        return self.resource == "leases"

    def __str__(self) -> str:
        return f"{self.method} {self.path} -> {self.status}"


@dataclass
class Fault:
    """Calls that match are answered with this instead. `times`: how often, or None for always."""

    matches: Callable[[Call], bool]
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    times: int | None = None
    hit: int = 0

    def answer(self) -> bytes:
        if self.body is not None:
            return self.body.encode()
        reason = {409: "Conflict", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}
        status = {
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": self.status,
            "reason": reason.get(self.status, ""), "message": f"injected {self.status}",
        }
        return json.dumps(status).encode()


class Proxy:
    def __init__(self, api: Api):
        self._server_url = urllib.parse.urlsplit(api.server)
        self._context = ssl.create_default_context(cafile=str(api.ca))
        self._lock = threading.Lock()
        self._streams: set[socket.socket] = set()
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self.drop_watches()

    def drop_watches(self) -> int:
        """Cuts every stream that is open. Says how many."""
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
        return len(streams)

    @contextlib.contextmanager
    def fault(self, matches: Callable[[Call], bool], status: int, **more):
        fault = Fault(matches, status, **more)
        with self._lock:
            self.faults.append(fault)
        try:
            yield fault
        finally:
            with self._lock:
                self.faults.remove(fault)

    def since(self, began: float) -> list[Call]:
        with self._lock:
            return [c for c in self.calls if c.began >= began]

    def writes(self, since: float = 0.0) -> list[Call]:
        """Writes of anything but the Lease."""
        return [c for c in self.since(since) if c.is_write and not c.is_lease]

    # For the handler

    def upstream(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(
            self._server_url.hostname, self._server_url.port, timeout=400, context=self._context
        )

    def begin(self, call: Call) -> Fault | None:
        with self._lock:
            self.calls.append(call)
            for fault in self.faults:
                if fault.matches(call) and (fault.times is None or fault.hit < fault.times):
                    fault.hit += 1
                    return fault
        return None

    def stream(self, connection: socket.socket, opened: bool) -> None:
        with self._lock:
            (self._streams.add if opened else self._streams.discard)(connection)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy
    # A small answer must not wait for the acknowledgement of its head.
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self._upstream = self.proxy.upstream()

    def finish(self) -> None:
        self._upstream.close()
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_args) -> None:
        pass

    def _pass(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        call = Call(self.command, url.path, urllib.parse.parse_qs(url.query), time.monotonic())
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        fault = self.proxy.begin(call)
        try:
            if fault:
                self._answer(call, fault.status, {"content-type": "application/json", **fault.headers}, fault.answer())
            else:
                self._forward(call, body)
        except (OSError, http.client.HTTPException):
            self.close_connection = True
        finally:
            call.ended = time.monotonic()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass  # noqa: N815

    def _answer(self, call: Call, status: int, headers: dict[str, str], body: bytes) -> None:
        call.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _forward(self, call: Call, body: bytes) -> None:
        headers = {k: v for k, v in self.headers.items() if k.lower() not in DROPPED}
        answer = self._ask(headers, body)
        kept = {k: v for k, v in answer.getheaders() if k.lower() not in DROPPED}
        if not call.is_watch:
            self._answer(call, answer.status, kept, answer.read())
            return
        call.status = answer.status
        self.proxy.stream(self.connection, True)
        try:
            self.send_response(answer.status)
            for name, value in {**kept, "transfer-encoding": "chunked"}.items():
                self.send_header(name, value)
            self.end_headers()
            while chunk := answer.read1(65536):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.write(b"0\r\n\r\n")
        finally:
            self.proxy.stream(self.connection, False)
            self._upstream.close()
            self.close_connection = True

    def _ask(self, headers: dict[str, str], body: bytes) -> http.client.HTTPResponse:
        for last in (False, True):
            try:
                self._upstream.request(self.command, self.path, body or None, headers)
                return self._upstream.getresponse()
            except (OSError, http.client.HTTPException):
                # The API server closed the idle connection.
                self._upstream.close()
                if last:
                    raise
        raise AssertionError("unreachable")
