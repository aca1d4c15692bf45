#!/usr/bin/env python3
"""What the scheduler thinks a replica has cached, beside what the engine says that it had: on real engines.

    real.py --strata target/release/strata --model FILE.gguf [--replicas 2] [--conversations 24] [--turns 6]

Engines with small caches, so that blocks are evicted all the time, behind two schedulers that take turns.
Half way one scheduler is killed and started anew. Conversations that begin with one of three system
prompts are played side by side, at random; every answer's `cached_tokens` is compared with the decision's.
Prints how many agree within one block of 16 tokens, and within one byte block of 256 bytes (64 tokens), and
the engines' own hit rate, for our policy and for round robin. Exits 1 when a request fails.
"""

import argparse
import concurrent.futures
import http.client
import json
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

WORDS = "river stone lamp winter garden copper signal harbour violet engine paper field mirror autumn bridge".split()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Process:
    def __init__(self, folder: pathlib.Path, *command: str):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"{command[1]}-{self.port}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*command, "--listen", f"127.0.0.1:{self.port}"], stdout=log, stderr=log, start_new_session=True
            )

    def wait_ready(self, path: str, within: float = 60) -> None:
        end = time.monotonic() + within
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                if call(self.url, "GET", path)[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.02)
        raise SystemExit(f"not ready:\n{self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def call(url: str, method: str, path: str, body: dict | None = None) -> tuple[int, dict, bytes]:
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=120)
    try:
        text = json.dumps(body) if body is not None else None
        connection.request(method, path, text, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def metric(url: str, name: str) -> float:
    lines = call(url, "GET", "/metrics")[2].decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(words))


class Run:
    def __init__(self, args: argparse.Namespace, policy: str, folder: pathlib.Path):
        self.args, self.policy, self.folder = args, policy, folder
        self.engines = [
            Process(folder, args.strata, "engine", "--model", args.model, "--kv-cache-blocks", str(args.blocks),
                    "--threads", "1")
            for _ in range(args.replicas)
        ]
        for engine in self.engines:
            engine.wait_ready("/ready")
        self.model = json.loads(call(self.engines[0].url, "GET", "/v1/models")[2])["data"][0]["id"]
        self.schedulers = [self.scheduler() for _ in range(2)]
        self.agreed = {16: 0, 64: 0}
        self.told = self.asked = 0
        self.lock = threading.Lock()

    def scheduler(self) -> Process:
        urls = ",".join(engine.url for engine in self.engines)
        process = Process(self.folder, self.args.strata, "scheduler", "--replicas", urls, "--policy", self.policy)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                if metric(process.url, "strata_scheduler_telling_replicas") == len(self.engines):
                    return process
            except OSError:
                pass
            time.sleep(0.02)
        raise SystemExit(f"replicas are not followed:\n{process.log.read_text()[-2000:]}")

    def turn(self, history: list[dict], turn: int) -> None:
        with self.lock:
            self.asked += 1
            url = self.schedulers[self.asked % 2].url
        body = {"model": self.model, "messages": history, "max_tokens": 24, "temperature": 0}
        for _ in range(3):
            try:
                status, headers, answer = call(url, "POST", "/v1/chat/completions", body)
                break
            except OSError:
                # The one that was killed in this moment.
                url = next(s.url for s in self.schedulers if s.url != url)
        else:
            raise RuntimeError("no scheduler answers")
        if status != 200:
            raise RuntimeError(f"{status}: {answer[:300]!r}")
        said = json.loads(answer)
        history.append({"role": "assistant", "content": said["choices"][0]["message"]["content"]})
        had = said["usage"].get("prompt_tokens_details", {}).get("cached_tokens", 0)
        decision = headers["x-strata-decision"]
        thought = next((p for p in decision.replace(";", " ").split() if p.startswith("cached_tokens=")), None)
        with self.lock:
            if thought is not None:
                self.told += 1
                for block in self.agreed:
                    self.agreed[block] += abs(int(thought.split("=")[1]) - had) <= block
                if self.args.verbose and abs(int(thought.split("=")[1]) - had) > 64:
                    print(f"  turn {turn}: had {had}, {decision}", file=sys.stderr)

    def play(self) -> None:
        chance = random.Random(7)
        systems = [text(chance, 120) for _ in range(3)]
        histories = [[{"role": "system", "content": systems[i % 3]}] for i in range(self.args.conversations)]
        order = [i for i in range(self.args.conversations) for _ in range(self.args.turns)]
        chance.shuffle(order)
        # A conversation's turns follow each other: only different ones run side by side.
        left, half, done = order.copy(), len(order) // 2, 0
        with concurrent.futures.ThreadPoolExecutor(self.args.side_by_side) as pool:
            while done < len(order):
                batch = list(dict.fromkeys(left))[: self.args.side_by_side]
                for i in batch:
                    left.remove(i)
                    histories[i].append({"role": "user", "content": text(chance, 30)})
                futures = [pool.submit(self.turn, histories[i], len(histories[i])) for i in batch]
                if self.policy == "prefix" and done < half <= done + len(batch):
                    self.schedulers[1].kill()
                    self.schedulers[1] = self.scheduler()
                for future in futures:
                    future.result()
                done += len(batch)

    def report(self) -> None:
        queries = sum(metric(e.url, "vllm:prefix_cache_queries_total") for e in self.engines)
        hits = sum(metric(e.url, "vllm:prefix_cache_hits_total") for e in self.engines)
        line = f"{self.policy}: {self.asked} requests, engines' own hit rate {hits / queries:.3f}"
        if self.told:
            line += "".join(f", {n / self.told:.1%} within {block} tokens" for block, n in self.agreed.items())
        print(line, flush=True)

    def stop(self) -> None:
        for process in [*self.schedulers, *self.engines]:
            process.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strata", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--conversations", type=int, default=24)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--blocks", type=int, default=400, help="of 16 tokens, in each engine's cache")
    parser.add_argument("--side-by-side", type=int, default=4)
    parser.add_argument("--verbose", action="store_true", help="show each decision that was off by more than 64 tokens")
    args = parser.parse_args()
    for policy in ["prefix", "round-robin"]:
        with tempfile.TemporaryDirectory() as folder:
            run = Run(args, policy, pathlib.Path(folder))
            try:
                run.play()
                run.report()
            finally:
                run.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
