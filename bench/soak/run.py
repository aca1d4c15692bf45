#!/usr/bin/env python3
"""An engine under random load with random aborts and disconnects, and what must be true of it afterwards.

    run.py --strata target/release/strata --model PATH [--minutes 60] [--clients 24] [--blocks 160] [--seed 1]

The KV cache is small, so that sequences are preempted; prompts share beginnings, so that blocks are shared. Before
the load each question is asked alone, without the prefix cache, greedily. Then clients ask at random, streaming or
not; some leave in the middle, some abort by id. In the end:

- every answer that was read to its end equals the one given alone, and each that was cut is a beginning of it;
- nothing runs, nothing waits, and every block is free;
- memory in the last quarter is that of the second quarter, within 3% and 16 MiB;
- the idle engine uses no processor time to speak of.

Prints the figures as JSON; exit status 1 when one of these does not hold.
"""

import argparse
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

WORDS = "river bread moon chess bee glass wool map salt clock stone cloud paper tree wind".split()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def questions(rng: random.Random, count: int) -> list[dict]:
    """Prompts of three families that begin alike, from short to long, with some rule of sampling each."""
    heads = [" ".join(rng.choices(WORDS, k=n)) for n in (20, 90, 200)]
    asked = []
    for i in range(count):
        tail = " ".join(rng.choices(WORDS, k=rng.choice([3, 10, 60])))
        ask = {"prompt": f"{rng.choice(heads)} {tail}", "max_tokens": rng.choice([4, 24, 64, 160]), "temperature": 0}
        if i % 5 == 1:
            ask |= {"frequency_penalty": 0.5, "presence_penalty": 0.2}
        if i % 5 == 2:
            ask |= {"stop": [" the", "\n\n"], "min_tokens": 3}
        if i % 5 == 3:
            ask |= {"ignore_eos": True}
        asked.append(ask)
    return asked


class Engine:
    def __init__(self, args):
        self.port = free_port()
        command = [args.strata, "engine", "--model", args.model, "--listen", f"127.0.0.1:{self.port}",
                   "--served-model-name", "m", "--max-model-len", "1024", "--kv-cache-blocks", str(args.blocks),
                   "--max-sequences", "16", "--step-tokens", "256", *args.engine]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            try:
                if self.call("GET", "/ready")[0] == 200:
                    return
            except OSError:
                pass
            if time.monotonic() > deadline or self.process.poll() is not None:
                sys.exit("the engine did not become ready")
            time.sleep(0.05)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)

    def call(self, method: str, path: str, body=None, headers=None) -> tuple[int, bytes]:
        connection = self.connect()
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None,
                               {"content-type": "application/json", **(headers or {})})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        text = self.call("GET", "/metrics")[1].decode()
        return sum(float(l.rsplit(" ", 1)[1]) for l in text.splitlines() if l.startswith(name + "{"))

    def memory(self) -> int:
        """Bytes of this process's own, without files that are mapped."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return sum(int(l.split()[1]) * 1024 for l in status if l.startswith(("RssAnon:", "RssShmem:")))

    def processor_seconds(self) -> float:
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Load:
    def __init__(self, engine: Engine, asked: list[dict], answers: list[str], until: float):
        self.engine, self.asked, self.answers, self.until = engine, asked, answers, until
        self.lock = threading.Lock()
        self.counts = {"whole": 0, "left": 0, "aborted": 0}
        self.wrong: list[dict] = []

    def note(self, kind: str, case: int, text: str, whole: bool):
        want = self.answers[case]
        right = text == want if whole else want.startswith(text) or text in self.cut_short(case)
        with self.lock:
            self.counts[kind] += 1
            if not right:
                self.wrong.append({"case": self.asked[case], "want": want, "got": text, "kind": kind})

    def cut_short(self, case: int):
        """The answer and what may follow it when it ends within a stop string, which would have been cut off."""
        for stop in self.asked[case].get("stop", []):
            for taken in range(1, len(stop)):
                yield self.answers[case] + stop[:taken]

    def client(self, seed: int):
        rng = random.Random(seed)
        try:
            while time.monotonic() < self.until and len(self.wrong) < 10:
                self.ask(rng, f"soak-{seed}-{rng.getrandbits(64):x}")
        except Exception as error:  # noqa: BLE001: told at the end
            with self.lock:
                self.wrong.append({"error": repr(error)})

    def ask(self, rng: random.Random, name: str):
        case = rng.randrange(len(self.asked))
        fate = rng.choices(["whole", "left", "aborted"], [6, 2, 2])[0]
        stream = fate != "whole" or rng.random() < 0.5
        body = self.asked[case] | {"model": "m", "stream": stream, "priority": rng.choice([0, 0, 0, 1, -1])}
        connection = self.engine.connect()
        try:
            headers = {"content-type": "application/json", "x-strata-request-id": name}
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            if fate == "left" and rng.random() < 0.3:
                # Before the head of the answer.
                time.sleep(rng.random() * 0.2)
                return self.note("left", case, "", False)
            response = connection.getresponse()
            if response.status != 200:
                raise RuntimeError(f"{response.status}: {response.read()[:300]!r}")
            if not stream:
                text = json.loads(response.read())["choices"][0]["text"]
                return self.note("whole", case, text, True)
            text, left_after, done, finish = "", rng.randrange(1, 30), False, None
            for count, line in enumerate(response):
                if line.startswith(b"data: [DONE]"):
                    done = True
                elif line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise RuntimeError(event["error"]["message"])
                    for choice in event["choices"]:
                        text += choice["text"]
                        finish = choice["finish_reason"] or finish
                if fate == "left" and count > 2 * left_after:
                    break
                if fate == "aborted" and count == 2 * left_after:
                    self.engine.call("POST", f"/internal/v1/abort/{name}")
            self.note(fate, case, text, done and finish != "abort")
        finally:
            connection.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strata", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--blocks", type=int, default=160)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("engine", nargs="*", help="more options of the engine, after --")
    args = parser.parse_args()

    engine = Engine(args)
    try:
        return soak(engine, args)
    finally:
        engine.process.send_signal(signal.SIGTERM)
        engine.process.wait(timeout=60)


def soak(engine: Engine, args) -> int:
    asked = questions(random.Random(args.seed), args.questions)
    answers = []
    for i, ask in enumerate(asked):
        # A scope of its own: nothing is found in the cache.
        status, body = engine.call("POST", "/v1/completions", ask | {"model": "m", "cache_salt": f"alone-{i}"})
        if status != 200:
            sys.exit(f"{status}: {body!r}")
        answers.append(json.loads(body)["choices"][0]["text"])

    begun = time.monotonic()
    load = Load(engine, asked, answers, begun + 60 * args.minutes)
    clients = [threading.Thread(target=load.client, args=(args.seed * 1000 + n,)) for n in range(args.clients)]
    for thread in clients:
        thread.start()
    memory, least_free = [], 1.0
    while any(thread.is_alive() for thread in clients):
        memory.append(engine.memory())
        least_free = min(least_free, 1 - engine.metric("vllm:kv_cache_usage_perc"))
        time.sleep(min(5, args.minutes))
    for thread in clients:
        thread.join()

    deadline = time.monotonic() + 30
    names = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"]
    at_rest = {}
    while time.monotonic() < deadline:
        at_rest = {name: engine.metric(name) for name in names}
        if not any(at_rest.values()):
            break
        time.sleep(0.1)
    before = engine.processor_seconds()
    time.sleep(10)
    idle = (engine.processor_seconds() - before) / 10

    quarter = max(1, len(memory) // 4)
    second, last = max(memory[quarter : 2 * quarter] or memory), max(memory[-quarter:])
    figures = {
        "minutes": round((time.monotonic() - begun) / 60, 2),
        "requests": load.counts,
        "wrong": len(load.wrong),
        "preemptions": engine.metric("vllm:num_preemptions_total"),
        "prefix_hit_rate": round(
            engine.metric("vllm:prefix_cache_hits_total") / max(1, engine.metric("vllm:prefix_cache_queries_total")), 3
        ),
        "generated_tokens": engine.metric("vllm:generation_tokens_total"),
        "spec_accepted_tokens": engine.metric("vllm:spec_decode_num_accepted_tokens_total"),
        "least_share_of_blocks_free": round(least_free, 3),
        "at_rest": at_rest,
        "memory_mib": {"second_quarter": second >> 20, "last_quarter": last >> 20},
        "idle_processors": idle,
    }
    print(json.dumps(figures, indent=2))
    for wrong in load.wrong[:5]:
        print(json.dumps(wrong), file=sys.stderr)
    well = {
        "answers are those given alone": not load.wrong,
        "all blocks are free": not any(at_rest.values()),
        "memory is flat": last <= second * 1.03 + (16 << 20),
        "an idle engine rests": idle < 0.02,
    }
    for what, holds in well.items():
        if not holds:
            print(f"does not hold: {what}", file=sys.stderr)
    return 0 if all(well.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
