#!/usr/bin/env python3
"""What a router costs a request: direct, nginx, Strata's scheduler, smg, sglang-router and vllm-router.

    run.py --strata target/release/strata --tool target/release/strata-routing-cost
           [--rounds 3] [--seconds 6] [--workloads 4k-32,64k-32] [--routers nginx,strata] [--out FILE.json]
    run.py --memory-minutes 10 ...   peak memory while every prompt is another one
    run.py --report FILE.json        print the tables of what was measured before

Four mock replicas in one process stand behind each router, one load generator before it; in each round
all workloads go through every router, in another order each time. A router's CPU time is its own: of its
process and all children, between the first and the last moment that counts. `--out` is added to, round by
round, so that a run can be cut into pieces.

A turn in which any request failed, an answer was not that of its request, or a stream's chunks were not
whole and in order is void: it says so, is written down as void and makes this exit 1.

`--quiet COMMAND` is run with "begin" before and "end" after each measured interval: on a machine with
other work it may hold that up for so long.
"""

import argparse
import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import routers

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CACHE = pathlib.Path.home() / ".cache" / "strata"
TICKS = os.sysconf("SC_CLK_TCK")
REPLICAS = 4
MODEL = "mock"


@dataclasses.dataclass(frozen=True)
class Workload:
    name: str
    says: str
    bytes: int
    connections: int
    stream: bool = False


WORKLOADS = [
    Workload("4k-32", "4 KB, 32 connections", 4096, 32),
    Workload("4k-512", "4 KB, 512 connections", 4096, 512),
    Workload("64k-32", "64 KB, 32 connections", 65536, 32),
    Workload("64k-512", "64 KB, 512 connections", 65536, 512),
    Workload("1m-32", "1 MB, 32 connections", 1 << 20, 32),
    Workload("4k-32-stream", "4 KB, 32 connections, streamed", 4096, 32, True),
    Workload("4k-512-stream", "4 KB, 512 connections, streamed", 4096, 512, True),
    Workload("64k-32-stream", "64 KB, 32 connections, streamed", 65536, 32, True),
]
DIRECT = "direct"
# As they stand in a table.
NAMES = [DIRECT, "nginx", "strata", "smg", "sglang-router", "vllm-router"]


class Void(Exception):
    """Something went wrong, so that nothing of this turn counts."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found, todo = [], [pid]
    while todo:
        pid = todo.pop()
        found.append(pid)
        for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                todo.extend(int(child) for child in task.read_text().split())
    return found


def cpu_seconds(pid: int) -> float:
    total = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))  # its own, and that of children that have ended
    return total / TICKS


def memory_mb(pid: int, kind: str) -> float:
    """Resident memory of the tree: `VmRSS` now, `VmHWM` the sum of each one's peak."""
    total = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            for line in pathlib.Path(f"/proc/{each}/status").read_text().splitlines():
                if line.startswith(kind + ":"):
                    total += int(line.split()[1])
    return total / 1024


def stop(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Replicas:
    def __init__(self, tool: pathlib.Path):
        ports = ",".join(["0"] * REPLICAS)
        self.process = subprocess.Popen(
            [tool, "replicas", "--ports", ports], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.addresses = [self.process.stdout.readline().strip() for _ in range(REPLICAS)]
        if not all(self.addresses):
            raise SystemExit("the mock replicas did not start")

    @property
    def urls(self) -> list[str]:
        return [f"http://{address}" for address in self.addresses]

    def seen(self) -> dict[str, int]:
        host, port = self.addresses[0].split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request("GET", "/seen")
        seen = json.loads(connection.getresponse().read())
        connection.close()
        return seen

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(10)


class Started:
    """One router as a process with its children, ready when a request has gone through it."""

    def __init__(self, router: routers.Router, folder: pathlib.Path):
        self.router = router
        self.port = free_port()
        fill = {"{port}": str(self.port), "{PORT}": str(self.port), "{folder}": str(folder), "{FOLDER}": str(folder)}
        fill["{other}"] = str(free_port())

        def filled(text: str) -> str:
            for name, value in fill.items():
                text = text.replace(name, value)
            return text

        for name, text in router.files.items():
            (folder / name).write_text(filled(text))
        self.log = folder / "router.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [filled(part) for part in router.command],
                stdout=log,
                stderr=log,
                cwd=folder,
                env=os.environ | router.environment,
                start_new_session=True,
            )
        try:
            self.wait_ready()
        except BaseException:
            stop(self.process)
            raise

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def wait_ready(self, within: float = 60) -> None:
        body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "#0123456789abcdef#"}]})
        begun, said = time.monotonic(), ""
        answered = 0
        while time.monotonic() - begun < within:
            if self.process.poll() is not None:
                raise Void(f"{self.router.name} ended with {self.process.returncode} at start:\n{self.tail()}")
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                headers = {"Content-Type": "application/json"}
                connection.request("POST", "/v1/chat/completions", body, headers)
                response = connection.getresponse()
                said = response.read().decode(errors="replace")
                # Several: a router may know one replica and not yet the others.
                answered = answered + 1 if response.status == 200 else 0
                if answered >= 20:
                    return
            except OSError as error:
                said, answered = str(error), 0
            finally:
                connection.close()
            time.sleep(0.1)
        raise Void(f"{self.router.name} was not ready within {within:.0f} s: {said[:300]}\n{self.tail()}")

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


def quietly(command: str | None, what: str) -> None:
    if command:
        subprocess.run([command, what], check=True)


def send(tool: pathlib.Path, to: list[str], workload: Workload, args, seed: int, pid: int | None, seconds: float) -> dict:
    """One measured interval. With the CPU time that the router's processes took in it."""
    command = [
        *(tool, "load", "--to", ",".join(to), "--connections", str(workload.connections)),
        *("--bytes", str(workload.bytes), "--seconds", str(seconds), "--warm-up", str(args.warm_up)),
        *("--seed", str(seed)),
        *(["--stream"] if workload.stream else []),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    cpu = {}
    summary = None
    try:
        for line in process.stdout:
            if line.strip() in ("begins", "ends"):
                cpu[line.strip()] = cpu_seconds(pid) if pid else 0.0
            else:
                summary = json.loads(line)
    finally:
        if process.poll() is None and summary is None:
            process.kill()
        process.wait()
    if summary is None:
        raise Void("the load generator ended without a summary")
    summary["cpu_s"] = cpu["ends"] - cpu["begins"]
    return summary


def check(summary: dict, before: dict, after: dict) -> None:
    if summary["errors"]:
        raise Void(f"{summary['errors']} errors, the first: {summary['first_error']}")
    if after["broken"] != before["broken"]:
        raise Void(f"{after['broken'] - before['broken']} requests reached a replica broken")
    if not summary["requests"]:
        raise Void("no request was answered in the time that counts")


def turn(args, replicas: Replicas, router: routers.Router | None, workload: Workload, seed: int) -> dict:
    """One router under one workload."""
    name = router.name if router else DIRECT
    with tempfile.TemporaryDirectory() as folder:
        started = None
        row = {"router": name, "workload": workload.name}
        try:
            if router:
                started = Started(router, pathlib.Path(folder))
            to = [started.address] if started else replicas.addresses
            pid = started.process.pid if started else None
            before = replicas.seen()
            quietly(args.quiet, "begin")
            try:
                summary = send(args.tool, to, workload, args, seed, pid, args.seconds)
            finally:
                quietly(args.quiet, "end")
            check(summary, before, replicas.seen())
            row |= summary
            row["cpu_us"] = 1e6 * summary["cpu_s"] / summary["requests"]
            row["peak_mb"] = memory_mb(pid, "VmHWM") if pid else 0.0
        except Void as void:
            row["void"] = str(void)
        finally:
            if started:
                stop(started.process)
    return row


def memory(args, replicas: Replicas, chosen: list[routers.Router], out: dict) -> None:
    """Resident memory while every prompt is another one."""
    workload = Workload("memory", "", args.memory_bytes, 32)
    for router in chosen:
        with tempfile.TemporaryDirectory() as folder:
            row = {"router": router.name, "bytes": args.memory_bytes, "seconds": [], "mb": [], "requests": 0}
            started = None
            try:
                started = Started(router, pathlib.Path(folder))
                begun = time.monotonic()
                seed = random.getrandbits(40) << 20
                while time.monotonic() - begun < 60 * args.memory_minutes:
                    before = replicas.seen()
                    summary = send(args.tool, [started.address], workload, args, seed, started.process.pid, 10)
                    check(summary, before, replicas.seen())
                    seed += 1 << 32
                    row["requests"] += summary["requests"]
                    row["seconds"].append(round(time.monotonic() - begun))
                    row["mb"].append(round(memory_mb(started.process.pid, "VmRSS"), 1))
                row["peak_mb"] = memory_mb(started.process.pid, "VmHWM")
            except Void as void:
                row["void"] = str(void)
            finally:
                if started:
                    stop(started.process)
        print(json.dumps(row | {"mb": row["mb"][-1:], "seconds": row["seconds"][-1:]}), flush=True)
        out.setdefault("memory", []).append(row)
        save(args.out, out)


def save(path: pathlib.Path | None, out: dict) -> None:
    if path:
        part = path.with_suffix(".part")
        part.write_text(json.dumps(out, indent=1))
        part.rename(path)


def spread(values: list[float], digits: int = 0) -> str:
    def shown(value: float) -> str:
        return f"{value:,.{digits}f}"

    middle = shown(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({shown(min(values))} to {shown(max(values))})"


def report(out: dict) -> None:
    turns = out.get("turns", [])
    for workload in WORKLOADS:
        of = {}
        for row in turns:
            if row["workload"] == workload.name and "void" not in row:
                of.setdefault(row["router"], []).append(row)
        if not of:
            continue

        def middle(name: str, key) -> float | None:
            return statistics.median(map(key, of[name])) if name in of else None

        direct = {at: middle(DIRECT, lambda row, at=at: row["latency"][at]) for at in ("p50", "p99")}
        cpu = {name: middle(name, lambda row: row["cpu_us"]) for name in of if name != DIRECT}
        best = min((cpu[name] for name in ("smg", "sglang-router", "vllm-router") if name in cpu), default=None)
        rounds = max(len(rows) for rows in of.values())
        print(f"\n**{workload.says}**, {rounds} rounds\n")
        print("| | CPU µs a request | / nginx | best router / it | p50 ms, added | p99 ms, added | first byte p50 ms | requests/s | peak MB |")
        print("|---|---|---|---|---|---|---|---|---|")
        for name in (name for name in NAMES if name in of):
            rows = of[name]

            def added(at: str, name: str = name) -> str:
                own = middle(name, lambda row: row["latency"][at])
                more = "" if name == DIRECT or direct[at] is None else f", {(own - direct[at]) / 1000:+.2f}"
                return f"{own / 1000:.2f}{more}"

            routed = name != DIRECT
            cells = [
                name,
                spread([row["cpu_us"] for row in rows], 1) if routed else "",
                f"{cpu[name] / cpu['nginx']:.2f}" if routed and "nginx" in cpu else "",
                f"{best / cpu[name]:.1f}" if routed and best else "",
                added("p50"),
                added("p99"),
                f"{middle(name, lambda row: row['first_byte']['p50']) / 1000:.2f}",
                spread([row["rps"] for row in rows]),
                f"{max(row['peak_mb'] for row in rows):.0f}" if routed else "",
            ]
            print("| " + " | ".join(cells) + " |")
    if out.get("memory"):
        print("\n| | requests | MB after a minute | at the end | peak |\n|---|---|---|---|---|")
        for row in out["memory"]:
            if "void" not in row and row["mb"]:
                early = next((mb for at, mb in zip(row["seconds"], row["mb"]) if at >= 60), row["mb"][0])
                print(f"| {row['router']} | {row['requests']:,} | {early:.0f} | {row['mb'][-1]:.0f} | {row['peak_mb']:.0f} |")
    void = [row for row in turns + out.get("memory", []) if "void" in row]
    for row in void:
        print(f"\nvoid: {row['router']}, {row.get('workload', 'memory')}: {row['void']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strata", type=pathlib.Path, default=ROOT / "target" / "release" / "strata")
    parser.add_argument("--tool", type=pathlib.Path, default=ROOT / "target" / "release" / "strata-routing-cost")
    parser.add_argument("--peers", type=pathlib.Path, default=CACHE / "peers", help="where peers.py put the routers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6, help="that count, of each turn")
    parser.add_argument("--warm-up", type=float, default=2, help="seconds before them")
    parser.add_argument("--workloads", default=",".join(w.name for w in WORKLOADS))
    parser.add_argument("--routers", help="some of direct, nginx, strata, smg, sglang-router, vllm-router")
    parser.add_argument("--memory-minutes", type=float, help="watch memory for so long, and measure nothing else")
    parser.add_argument("--memory-bytes", type=int, default=4096, help="of a body, for that")
    parser.add_argument("--quiet", help="a command that is told `begin` and `end` of each measured interval")
    parser.add_argument("--out", type=pathlib.Path, help="JSON that is added to")
    parser.add_argument("--report", type=pathlib.Path, help="only print the tables of this file")
    args = parser.parse_args()
    if args.report:
        report(json.loads(args.report.read_text()))
        return 0
    args.tool = args.tool.resolve()
    for needed in (args.strata, args.tool):
        if not needed.is_file():
            parser.error(f"{needed} is missing: build it with `cargo build --release`")
    names = args.workloads.split(",")
    if unknown := set(names) - {w.name for w in WORKLOADS}:
        parser.error(f"there are no workloads {', '.join(sorted(unknown))}")
    out = json.loads(args.out.read_text()) if args.out and args.out.is_file() else {"turns": []}

    replicas = Replicas(args.tool)
    try:
        everyone = [None, *routers.all_of(args.strata, args.peers, replicas.urls)]
        named = {router.name if router else DIRECT: router for router in everyone}
        wanted = args.routers.split(",") if args.routers else list(named)
        if unknown := set(wanted) - set(named):
            parser.error(f"there are no routers {', '.join(sorted(unknown))}")
        for name in wanted:
            router = named[name]
            if router and not shutil.which(router.command[0]):
                parser.error(f"{router.command[0]} is missing: run bench/routing-cost/peers.py")
        if args.memory_minutes:
            memory(args, replicas, [named[name] for name in wanted if name != DIRECT], out)
        else:
            for _ in range(args.rounds):
                for workload in (w for w in WORKLOADS if w.name in names):
                    order = random.sample(wanted, len(wanted))
                    seed = random.getrandbits(40) << 20
                    for name in order:
                        row = turn(args, replicas, named[name], workload, seed)
                        out["turns"].append(row)
                        save(args.out, out)
                        said = row.get("void") or f"{row['cpu_us']:.1f} us, {row['rps']:.0f}/s, p99 {row['latency']['p99']} us"
                        print(f"{workload.name} {name}: {said}", file=sys.stderr, flush=True)
    finally:
        replicas.close()
    report(out)
    return 1 if any("void" in row for row in out["turns"] + out.get("memory", [])) else 0


if __name__ == "__main__":
    sys.exit(main())
