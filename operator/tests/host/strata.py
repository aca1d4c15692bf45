#!/usr/bin/env python3
"""A stand-in for the binary `strata`: answers probes, drains on SIGTERM, and notes what happens to it.

What it does is steered by files beside it: `fail` (exit with its text), `unready` (answer /ready with
503), `hold-routes` (the scheduler goes on naming the replicas it knew), `fail-fetch` (exit with its
text), `hold-fetch` (fetch, and tell of progress, while it is there). `GET /hold` streams until the file
`release` is there. Everything is noted in `events`, one line each.
"""

import ctypes
import http.server
import json
import os
import pathlib
import signal
import sys
import threading
import time

HERE = pathlib.Path(__file__).parent
COMPONENT, POD = sys.argv[1], os.environ["STRATA_POD"]


def note(what: str) -> None:
    with open(HERE / "events", "a") as events:
        events.write(f"{COMPONENT} {POD} {os.getpid()} {what}\n")


def argument(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 0.3  # of an idle connection, which would hold up the end
    known = None

    def do_GET(self):
        if self.path == "/hold":
            return self.hold()
        status, body = 200, b"{}"
        if self.path == "/ready" and (HERE / "unready").exists():
            status = 503
        elif self.path == "/progress":
            body = b'{"state":"fetching","bytes_done":1048576,"bytes_total":4194304,"bytes_per_s":1}'
        elif self.path == "/replicas":
            if self.headers["x-strata-hop-token"] != os.environ["STRATA_HOP_TOKEN"]:
                status = 401
            else:
                body = json.dumps(self.replicas()).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def replicas(self) -> dict:
        if Handler.known is None or not (HERE / "hold-routes").exists():
            Handler.known = json.loads(pathlib.Path(argument("--endpoints")).read_text())["models"]
        zero = dict.fromkeys(
            ["in_flight", "running", "waiting", "kv_usage", "prefix_queries", "prefix_hits", "requests"], 0
        )
        return {
            "models": {
                name: [{**replica, **zero, "ready": True} for replica in model["replicas"]]
                for name, model in Handler.known.items()
            }
        }

    def hold(self):
        note("stream begins")
        self.close_connection = True
        self.send_response(200)
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(b"first\n")
        while not (HERE / "release").exists():
            time.sleep(0.01)
        self.wfile.write(b"last\n")
        note("stream ends")

    def log_message(self, *args):
        pass


def release(server) -> None:
    while (HERE / "hold-fetch").exists():
        time.sleep(0.01)
    server.shutdown()


def main() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    note("starts")
    print(f"{COMPONENT} begins", flush=True)
    if COMPONENT == "engine" and (HERE / "fail").exists():
        sys.exit(f"error: {(HERE / 'fail').read_text()}")
    if COMPONENT == "fetch":
        note(f"token {os.environ.get('HF_TOKEN')}")
        if (HERE / "fail-fetch").exists():
            sys.exit(f"error: {(HERE / 'fail-fetch').read_text()}")
    host, port = os.environ["STRATA_LISTEN"].rsplit(":", 1)
    try:
        server = http.server.ThreadingHTTPServer((host, int(port)), Handler)
    except OSError as problem:
        sys.exit(f"error: {problem}")
    server.daemon_threads = False

    def stop(*_):
        note("TERM")
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    if COMPONENT == "fetch":
        threading.Thread(target=release, args=[server], daemon=True).start()
    server.serve_forever(poll_interval=0.01)
    server.server_close()
    note("ends")


main()
