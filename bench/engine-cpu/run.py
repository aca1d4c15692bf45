#!/usr/bin/env python3
"""Strata's engine beside llama.cpp's server and vLLM for CPU: the same weights, prompts and sampling.

    run.py --strata target/release/strata [--rounds 3] [--workloads single,shared-16] [--out FILE.json]

The engines take turns (A B C A B C): each is started by itself, warmed up, measured on every workload
and stopped before the next. One load generator, `strata bench serve`, drives all of them over HTTP, with
greedy sampling, `ignore_eos` and tokens counted by the server's usage. The machine's roofline is measured
at the beginning of each round. Prints Markdown tables; `--out` has everything as JSON.

On a machine that others use too, a run can be cut into pieces that add up: `--round N --engines NAME`
measures one engine's turn and adds it to `--out`; `--report` only prints what is there.

A run in which any request of any engine failed, or had other token counts than were asked for, is void:
it says so, writes nothing and exits 1. `engines.py` has each engine's flags, `peers.py` gets the peers.
"""

import argparse
import dataclasses
import http.client
import json
import math
import os
import pathlib
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import engines

CACHE = pathlib.Path.home() / ".cache" / "strata"
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


@dataclasses.dataclass(frozen=True)
class Workload:
    name: str
    says: str
    clients: int
    requests: int
    shared: int  # tokens that all prompts begin with
    own: int  # tokens of each prompt behind them
    output: int


WORKLOADS = [
    Workload("single", "1 client, prompts of 512 that share 384", 1, 6, 384, 128, 64),
    Workload("single-distinct", "1 client, distinct prompts of 512", 1, 6, 0, 512, 64),
    Workload("shared-16", "16 clients, prompts of 512 that share 384", 16, 32, 384, 128, 64),
    Workload("shared-64", "64 clients, prompts of 512 that share 384", 64, 128, 384, 128, 64),
    Workload("distinct-16", "16 clients, distinct prompts of 512", 16, 16, 0, 512, 64),
    Workload("distinct-64", "64 clients, distinct prompts of 512", 64, 64, 0, 512, 64),
]
# A prompt of 4,096 tokens comes while 8 sequences decode.
LONG = "long"
DECODES = Workload("decodes", "", 8, 8, 0, 64, 384)
LONG_PROMPT = Workload("prompt", "", 1, 1, 0, 4096, 8)
LONG_AFTER_S = 2.0
NAMES = [w.name for w in WORKLOADS] + [LONG]


class Void(Exception):
    """Something went wrong with an engine, so that nothing of this run counts."""


class Server:
    """One engine as a process with its children, from exec to its end."""

    def __init__(self, engine: engines.Engine, folder: pathlib.Path):
        self.engine = engine
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = folder / "server.log"
        command = [part.replace("{port}", str(self.port)) for part in engine.command]
        with open(self.log, "wb") as log:
            begun = time.monotonic()
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=os.environ | engine.environment,
                cwd=folder,
                start_new_session=True,
            )
        self.ready_s = self.wait_ready(begun)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_ready(self, begun: float, within: float = 600) -> float:
        while time.monotonic() - begun < within:
            if self.process.poll() is not None:
                raise Void(f"{self.engine.name} ended with {self.process.returncode} at start:\n{self.tail()}")
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", self.engine.ready_path)
                if connection.getresponse().status == 200:
                    return time.monotonic() - begun
            except OSError:
                pass
            finally:
                connection.close()
            time.sleep(0.01)
        self.stop()
        raise Void(f"{self.engine.name} was not ready within {within:.0f} s:\n{self.tail()}")

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def peak_bytes(self) -> int:
        """The sum over the process and its descendants of each one's own peak of resident memory."""
        total = 0
        for pid in descendants(self.process.pid):
            try:
                status = pathlib.Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            for line in status.splitlines():
                if line.startswith("VmHWM:"):
                    total += int(line.split()[1]) * 1024
        return total

    def stop(self) -> None:
        """Ends its session alone: it was made a leader at its start."""
        for sent in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, sent)
                self.process.wait(20)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue


def descendants(pid: int) -> list[int]:
    parents = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            # The name in parentheses may hold anything.
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        todo.extend(parents.get(one, []))
    return found


class Generator:
    """Runs `strata bench serve` against a server and checks that nothing failed."""

    def __init__(self, strata: pathlib.Path, server: Server, folder: pathlib.Path):
        self.strata = strata
        self.server = server
        self.folder = folder

    def start(self, workload: Workload, seed: int) -> subprocess.Popen:
        return subprocess.Popen(
            [
                *(str(self.strata), "bench", "serve", "--base-url", self.server.url),
                *("--num-prompts", str(workload.requests), "--max-concurrency", str(workload.clients)),
                *("--random-prefix-len", str(workload.shared), "--random-input-len", str(workload.own)),
                *("--random-output-len", str(workload.output), "--seed", str(seed)),
                *("--ignore-eos", "--temperature", "0"),
                *("--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,99"),
                *("--save-result", "--save-detailed"),
                *("--result-filename", str(self.folder / f"{workload.name}.json")),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def finish(self, child: subprocess.Popen, workload: Workload) -> dict:
        _, errors = child.communicate()
        name = self.server.engine.name
        if child.returncode != 0:
            raise Void(f"{name}, {workload.name}: {errors.decode().strip()}\n{self.server.tail()}")
        result = json.loads((self.folder / f"{workload.name}.json").read_text())
        wanted = {
            "failed": 0,
            "total_input_tokens": workload.requests * (workload.shared + workload.own),
            "total_output_tokens": workload.requests * workload.output,
        }
        for member, value in wanted.items():
            if result[member] != value:
                told = f"{name}, {workload.name}: {member} is {result[member]}, expected {value}"
                raise Void(f"{told} {result['error_counts']}\n{self.server.tail()}")
        return result

    def run(self, workload: Workload, seed: int) -> dict:
        return self.finish(self.start(workload, seed), workload)


def figures(result: dict) -> dict[str, float]:
    return {
        "output_tok_s": result["output_throughput"],
        "ttft_p50_ms": result["p50_ttft_ms"],
        "ttft_p99_ms": result["p99_ttft_ms"],
        "itl_p50_ms": result["p50_itl_ms"],
        "itl_p99_ms": result["p99_itl_ms"],
        "cached_share": result["total_cached_tokens"] / result["total_input_tokens"],
    }


def percentile(values: list[float], p: float) -> float:
    values = sorted(values)
    if not values:
        return math.nan
    at = (len(values) - 1) * p / 100
    low, high = math.floor(at), math.ceil(at)
    return values[low] + (values[high] - values[low]) * (at - low)


def long_beside_decodes(generator: Generator, seed: int) -> dict[str, float]:
    """The gaps of running decodes before a long prompt comes, and while it is read."""
    decodes = generator.start(DECODES, seed)
    time.sleep(LONG_AFTER_S)
    prompt = generator.finish(generator.start(LONG_PROMPT, seed + 1), LONG_PROMPT)
    beside = generator.finish(decodes, DECODES)
    begin = prompt["start_times"][0]
    end = begin + prompt["ttfts"][0]
    idle, busy = [], []
    for start, ttft, gaps in zip(beside["start_times"], beside["ttfts"], beside["itls"]):
        at = start + ttft
        for gap in gaps:
            if at + gap <= begin:
                idle.append(gap * 1000)
            elif at < end:
                busy.append(gap * 1000)
            at += gap
    return {
        "ttft_p50_ms": prompt["ttfts"][0] * 1000,
        "itl_idle_p50_ms": percentile(idle, 50),
        "itl_idle_p99_ms": percentile(idle, 99),
        "itl_beside_p50_ms": percentile(busy, 50),
        "itl_beside_p99_ms": percentile(busy, 99),
        "itl_beside_max_ms": max(busy, default=math.nan),
        "gaps_idle": len(idle),
        "gaps_beside": len(busy),
    }


def turn(engine: engines.Engine, strata: pathlib.Path, names: list[str], number: int) -> dict:
    """One engine's turn in a round."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        server = Server(engine, folder)
        try:
            generator = Generator(strata, server, folder)
            # What an engine sets up with its first requests is no part of what is compared.
            generator.run(Workload("warm-up", "", 4, 8, 0, 64, 16), 1_000_000 + number)
            measured = {}
            for index, workload in enumerate(WORKLOADS):
                if workload.name in names:
                    # The same prompts for every engine of the round, new ones in each round.
                    result = generator.run(workload, 1000 * number + 10 * index)
                    measured[workload.name] = figures(result)
            if LONG in names:
                measured[LONG] = long_beside_decodes(generator, 1000 * number + 900)
            memory = server.peak_bytes()
        finally:
            server.stop()
    return {"ready_s": server.ready_s, "peak_mb": memory / 1e6, "workloads": measured}


def roofline(strata: pathlib.Path) -> dict:
    command = [str(strata), "bench", "roofline", "--threads", str(engines.THREADS)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def add(results: dict, number: int, name: str, measured: dict) -> None:
    """Adds a turn, or what of it was measured by another piece of the run before."""
    known = results["rounds"].setdefault(str(number), {}).setdefault(name, measured)
    if known is not measured:
        known["workloads"].update(measured["workloads"])
        known["ready_s"] = min(known["ready_s"], measured["ready_s"])
        known["peak_mb"] = max(known["peak_mb"], measured["peak_mb"])


# Of a workload: the member, its heading, and whether more is better.
METRICS = [
    ("output_tok_s", "output tok/s", True),
    ("ttft_p50_ms", "TTFT p50 ms", False),
    ("ttft_p99_ms", "TTFT p99 ms", False),
    ("itl_p50_ms", "ITL p50 ms", False),
    ("itl_p99_ms", "ITL p99 ms", False),
]
LONG_METRICS = [
    ("ttft_p50_ms", "TTFT of the long prompt ms", False),
    ("itl_idle_p99_ms", "ITL p99 before ms", False),
    ("itl_beside_p50_ms", "ITL p50 beside ms", False),
    ("itl_beside_p99_ms", "ITL p99 beside ms", False),
]
WHOLE = [("ready_s", "ready s", False), ("peak_mb", "peak memory MB", False)]


def spread(values: list[float], digits: str) -> str:
    """The median, with the least and the most where there are several."""
    middle = format(statistics.median(values), digits)
    if len(values) == 1:
        return middle
    return f"{middle} ({format(min(values), digits)} to {format(max(values), digits)})"


def digits(values: list[float]) -> str:
    return ".0f" if statistics.median(values) >= 100 else ".1f" if statistics.median(values) >= 1 else ".2f"


def ratios(rounds: list[dict], name: str, read, more_is_better: bool) -> list[float]:
    """Of an engine to the better of the peers, round by round."""
    found = []
    for measured in rounds:
        peers = [read(turn) for peer, turn in measured.items() if not peer.startswith("strata")]
        peers = [value for value in peers if value is not None]
        own = read(measured[name]) if name in measured else None
        if own is not None and peers:
            best = max(peers) if more_is_better else min(peers)
            found.append(own / best)
    return found


def table(rounds: list[dict], names: list[str], metrics: list, read_of) -> list[str]:
    """Rows of engines, then rows of Strata's ratios to the better peer."""
    lines = ["| | " + " | ".join(heading for _, heading, _ in metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for name in names:
        cells = []
        for member, _, _ in metrics:
            values = [read_of(member)(r[name]) for r in rounds if name in r]
            values = [v for v in values if v is not None]
            cells.append(spread(values, digits(values)) if values else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name in (n for n in names if n.startswith("strata")):
        cells = []
        for member, _, more in metrics:
            found = ratios(rounds, name, read_of(member), more)
            cells.append(f"**{spread(found, '.2f')}**" if found else "")
        if any(cells):
            lines.append(f"| {name} / better peer | " + " | ".join(cells) + " |")
    return lines


def in_workload(workload: str):
    return lambda member: lambda turn: turn["workloads"].get(workload, {}).get(member)


def limits(rounds: list[dict], machine: list[dict], known: dict[str, engines.Engine]) -> list[str]:
    """What each engine reaches of what the machine can do."""
    best = {key: max((m[key] or 0) for m in machine) for key in machine[0] if key != "threads"}
    tiles = ""
    if best["int8_tiles_gop_per_s"]:
        tiles = (
            f"; on tiles (AMX) bf16 {best['bf16_tiles_gflop_per_s']:.0f} GFLOP/s, int8 "
            f"{best['int8_tiles_gop_per_s']:.0f} GOP/s"
        )
    lines = [
        f"Memory is read at {best['read_gb_per_s']:.0f} GB/s; peaks with {machine[0]['threads']} threads: f32 "
        f"{best['f32_gflop_per_s']:.0f} GFLOP/s, bf16 {best['bf16_gflop_per_s']:.0f} GFLOP/s, int8 "
        f"{best['int8_gop_per_s']:.0f} GOP/s{tiles}.",
        "",
        "| | decode, 1 client, tok/s | limit by bandwidth | share | prefill, 1 client, tok/s | limit by peak | share |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in engine_names(rounds):
        engine = known[name]
        turns = [r[name]["workloads"] for r in rounds if name in r]
        decode = [1000 / t["single"]["itl_p50_ms"] for t in turns if "single" in t]
        prefill = [512_000 / t["single-distinct"]["ttft_p50_ms"] for t in turns if "single-distinct" in t]
        cells = []
        read = best["read_gb_per_s"] * 1e9 / engine.weight_bytes
        # Two operations a weight; the head only for the last token.
        work = 2 * (engines.BODY_WEIGHTS + engines.HEAD_WEIGHTS / 512)
        peak = max(best[name] for name in engine.peaks)
        for values, limit in [(decode, read), (prefill, peak * 1e9 / work)]:
            share = f"{statistics.median(values) / limit:.0%}" if values else ""
            cells += [spread(values, ".0f") if values else "", f"{limit:.0f}", share]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def engine_names(rounds: list[dict]) -> list[str]:
    names = []
    for measured in rounds:
        names.extend(name for name in measured if name not in names)
    order = ["strata", "llama", "vllm"]
    return sorted(names, key=lambda n: ([i for i, o in enumerate(order) if n.startswith(o)], n))


def report(results: dict, known: dict[str, engines.Engine]) -> str:
    rounds = [measured for _, measured in sorted(results["rounds"].items(), key=lambda kv: int(kv[0]))]
    names = engine_names(rounds)
    lines = [
        f"{len(rounds)} round{'s' if len(rounds) > 1 else ''}. Medians over the rounds, in parentheses the least "
        "and the most. A ratio is taken within each round; of tok/s more is better, of times and memory less.",
        "",
        "### The machine, and what is reached of it",
        "",
        *limits(rounds, results["roofline"], known),
        "",
        "### The whole turn",
        "",
        *table(rounds, names, WHOLE, lambda member: lambda turn: turn.get(member)),
    ]
    for workload in WORKLOADS:
        if any(workload.name in t["workloads"] for r in rounds for t in r.values()):
            lines += ["", f"### {workload.says} ({workload.name})", ""]
            lines += table(rounds, names, METRICS, in_workload(workload.name))
    if any(LONG in t["workloads"] for r in rounds for t in r.values()):
        lines += ["", "### A prompt of 4,096 beside 8 running decodes (long)", ""]
        lines += table(rounds, names, LONG_METRICS, in_workload(LONG))
        lines += ["", "ITL p99 beside the prompt / before it:"]
        for name in names:
            found = [
                t["itl_beside_p99_ms"] / t["itl_idle_p99_ms"]
                for r in rounds
                if (t := r.get(name, {}).get("workloads", {}).get(LONG))
            ]
            if found:
                lines.append(f"- {name}: {spread(found, '.2f')}")
    return "\n".join(lines) + "\n"


def chosen(text: str | None, known: list[str], what: str) -> list[str]:
    names = text.split(",") if text else known
    for name in names:
        if name not in known:
            raise SystemExit(f"there is no {what} `{name}`; there are {', '.join(known)}")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strata", type=pathlib.Path, default=ROOT / "target" / "release" / "strata")
    parser.add_argument("--model", type=pathlib.Path, default=CACHE / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--peers", type=pathlib.Path, default=CACHE / "peers", help="what peers.py made")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--round", type=int, help="measure this round alone, and add it to --out")
    parser.add_argument("--engines", metavar="NAME,NAME", help="only these")
    parser.add_argument("--workloads", metavar="NAME,NAME", help=f"only these of {','.join(NAMES)}")
    parser.add_argument("--out", type=pathlib.Path, help="where to write the figures as JSON")
    parser.add_argument("--report", action="store_true", help="only print the tables of --out")
    args = parser.parse_args()
    if (args.round is not None or args.report) and not args.out:
        parser.error("--round and --report want --out")

    # Ended from outside, it still ends the server that it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside; nothing is written"))
    strata = args.strata.resolve()
    all_engines = engines.all_of(strata, args.model.resolve(), args.peers.resolve())
    known = {engine.name: engine for engine in all_engines}
    names = chosen(args.engines, list(known), "engine")
    workloads = chosen(args.workloads, NAMES, "workload")
    pieces = args.report or args.round is not None
    if pieces and args.out.is_file():
        results = json.loads(args.out.read_text())
    else:
        results = {"machine": platform.machine(), "threads": engines.THREADS, "roofline": [], "rounds": {}}

    if not args.report:
        for name in names:
            if not shutil.which(known[name].command[0]):
                raise SystemExit(f"{known[name].command[0]} is missing: run bench/engine-cpu/peers.py, or `make release`")
        try:
            for number in [args.round] if args.round is not None else range(args.rounds):
                results["roofline"].append(roofline(strata))
                for name in names:
                    print(f"round {number}: {name}", file=sys.stderr, flush=True)
                    add(results, number, name, turn(known[name], strata, workloads, number))
        except Void as void:
            print(f"the run is void: {void}", file=sys.stderr)
            return 1
        if args.out:
            args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(report(results, known))
    return 0


if __name__ == "__main__":
    sys.exit(main())
