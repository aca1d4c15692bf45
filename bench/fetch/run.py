#!/usr/bin/env python3
"""`strata fetch` beside curl: one large file over loopback, wall time and peak memory of each.

The server sends by sendfile(2), so that neither waits for it. curl writes the file; `curl + sync +
sha256sum` does what a fetch does besides: force it to the disk, and check it. Prints a table and the
ratios; fails when the fetch's memory grows with the file.
"""

import argparse
import hashlib
import os
import pathlib
import re
import shutil
import socketserver
import statistics
import subprocess
import tempfile
import threading
import time

MIB = 1 << 20


class Files(socketserver.StreamRequestHandler):
    def handle(self):
        while request := self.rfile.readline():
            headers = {}
            while (line := self.rfile.readline().strip()) != b"":
                name, value = line.split(b":", 1)
                headers[name.strip().lower()] = value.strip().decode()
            path = self.server.folder / request.split()[1].decode().lstrip("/")
            size = path.stat().st_size
            first, last, status = 0, size - 1, "200 OK"
            if found := re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get(b"range", "")):
                first, last, status = int(found[1]), min(int(found[2] or size), size - 1), "206 Partial Content"
            self.wfile.write(
                f"HTTP/1.1 {status}\r\nETag: \"{size}\"\r\nAccept-Ranges: bytes\r\nContent-Length: {last + 1 - first}\r\n"
                f"Content-Range: bytes {first}-{last}/{size}\r\n\r\n".encode()
            )
            with open(path, "rb") as file:
                while first <= last:
                    sent = os.sendfile(self.connection.fileno(), file.fileno(), first, last + 1 - first)
                    if sent == 0:
                        return
                    first += sent


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def handle_error(self, request, address):
        pass  # A client that has what it wants hangs up.


def measured(command: list[str]) -> tuple[float, int]:
    """Seconds, and the peak of its memory in bytes."""
    start = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak, status = 0, pathlib.Path(f"/proc/{child.pid}/status")
    # Not the system's own account at the end, which begins with this process's memory before exec.
    while child.poll() is None:
        try:
            if found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text()):
                peak = int(found[1]) * 1024
        except OSError:
            pass
        time.sleep(0.005)
    took = time.monotonic() - start
    if child.returncode != 0:
        raise SystemExit(f"{command[0]} failed: {child.stderr.read().decode()}")
    return took, peak


def made(path: pathlib.Path, size: int) -> str:
    """A file of noise; its SHA-256."""
    block, digest = os.urandom(MIB), hashlib.sha256()
    with open(path, "wb") as file:
        for index in range(size // MIB):
            part = index.to_bytes(8, "little") + block[8:]
            file.write(part)
            digest.update(part)
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strata", type=pathlib.Path, default=pathlib.Path("target/release/strata"))
    parser.add_argument("--mib", type=int, default=1024, help="size of the large file")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dir", type=pathlib.Path, help="where to write [default: a temporary folder]")
    args = parser.parse_args()
    os.environ.pop("HTTPS_PROXY", None)

    with tempfile.TemporaryDirectory(dir=args.dir) as temporary:
        root = pathlib.Path(temporary)
        source, to = root / "source", root / "to"
        source.mkdir()
        sums = {f"{mib}.bin": made(source / f"{mib}.bin", mib * MIB) for mib in (args.mib // 8, args.mib)}
        server = Server(("127.0.0.1", 0), Files)
        server.folder = source
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_address[1]}"
        small, large = sums

        def curl(name: str) -> list[str]:
            return ["curl", "-sS", "--noproxy", "*", "-o", str(to / name), f"{base}/{name}"]

        def curl_checked(name: str) -> list[str]:
            check = f"echo '{sums[name]}  {to / name}' | sha256sum -c --quiet"
            return ["bash", "-ec", f"curl -sS --noproxy '*' -o {to / name} {base}/{name}; sync {to / name}; {check}"]

        def fetch(name: str, connections: int) -> list[str]:
            uri = f"{base}/{name}#sha256={sums[name]}"
            return [str(args.strata), "fetch", "--uri", uri, "--to", str(to), "--connections", str(connections)]

        ways = {
            "curl": curl(large),
            "curl + sync + sha256sum": curl_checked(large),
            "strata fetch, 1 connection": fetch(large, 1),
            "strata fetch, 4 connections": fetch(large, 4),
        }
        seconds, memory = {way: [] for way in ways}, {way: 0 for way in ways}
        # Taken in turn, so that the machine's moods meet all of them.
        for _ in range(args.runs):
            for way, command in ways.items():
                shutil.rmtree(to, ignore_errors=True)
                to.mkdir()
                took, peak = measured(command)
                seconds[way].append(took)
                memory[way] = max(memory[way], peak)
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir()
        _, of_small = measured(fetch(small, 4))

        print(f"{args.mib} MiB, median of {args.runs} (least to most), peak memory")
        for way, taken in seconds.items():
            median = statistics.median(taken)
            # Of a pipeline only the shell's would be known.
            peak = "" if "+" in way else f"  {memory[way] / MIB:6.1f} MiB"
            spread = f"({min(taken):.2f} to {max(taken):.2f})"
            print(f"  {way:28} {median:6.2f} s {spread}  {args.mib / median:7.0f} MiB/s{peak}")
        of_large = memory["strata fetch, 4 connections"]
        print(f"memory for {args.mib // 8} MiB: {of_small / MIB:.1f} MiB; for {args.mib} MiB: {of_large / MIB:.1f} MiB")
        ratio = statistics.median(seconds["curl + sync + sha256sum"]) / statistics.median(seconds["strata fetch, 4 connections"])
        print(f"times as fast as curl + sync + sha256sum: {ratio:.2f}")
        if of_large > of_small + 32 * MIB:
            raise SystemExit("its memory grows with the file")


if __name__ == "__main__":
    main()
