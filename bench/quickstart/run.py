#!/usr/bin/env python3
"""Two measurements on the real model, through every layer, with two engine replicas.

    run.py --strata target/release/strata --model PATH [--conversations 20] [--turns 5] [--rounds 3]

1. Conversations: the prefix hit rate that the engines report, prefix-aware routing beside round
   robin, in turns on the same work, each on freshly started engines. Prints both, their ratio and
   the spread over the rounds.
2. `kill -9` of one replica under load: requests that failed before they had begun to stream, and the
   time until the replica was ready again.
"""

import argparse
import concurrent.futures
import os
import pathlib
import signal
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "e2e" / "clients"))

from strata import MODEL, Up, model, tenant, wait_for  # noqa: E402
from test_lifecycle import Streams, replicas  # noqa: E402

TOPICS = ["rivers", "bread", "the moon", "chess", "bees", "glass", "wool", "maps", "salt", "clocks"]


def conversation(client, n: int, turns: int) -> list[float]:
    """One conversation of `turns` turns; the time to the first token of each."""
    topic = TOPICS[n % len(TOPICS)]
    system = f"You are teacher number {n}. " + f"You explain {topic} to beginners in short, plain sentences. " * 8
    messages = [{"role": "system", "content": system}]
    first = []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"Question {turn + 1}: tell me something new about {topic}."})
        began, text, seen = time.monotonic(), "", None
        stream = client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=24, temperature=0, stream=True
        )
        for chunk in stream:
            piece = chunk.choices[0].delta.content if chunk.choices else None
            if piece:
                seen = seen or time.monotonic() - began
                text += piece
        first.append(seen)
        messages.append({"role": "assistant", "content": text})
    return first


def hit_rate(strata, uri: str, policy: str, conversations: int, turns: int, workers: int) -> tuple[float, float]:
    """(share of prompt tokens found in the engines' prefix caches, p50 of the time to first token)."""
    with tempfile.TemporaryDirectory() as folder:
        routing = {"policy": policy}
        up = Up(strata, pathlib.Path(folder), [model(MODEL, uri, replicas=2, routing=routing), tenant("acme", ["*"])])
        try:
            client = up.client("acme")
            with concurrent.futures.ThreadPoolExecutor(workers) as pool:
                firsts = pool.map(lambda n: conversation(client, n, turns), range(conversations))
                ttft = statistics.median(t for times in firsts for t in times)
            engines = up.status()["replicas"]
            queries = sum(e["prefix_queries"] for e in engines)
            hits = sum(e["prefix_hits"] for e in engines)
            return hits / queries, ttft
        finally:
            up.stop()


def kill(strata, uri: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        up = Up(strata, pathlib.Path(folder), [model(MODEL, uri, replicas=2), tenant("acme", ["*"])])
        try:
            streams = Streams(up, up.key("acme"), clients=8)
            streams.wait_for_more(16)
            before = len(streams.ended)
            name, pid = next(iter(replicas(up).items()))
            killed = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            wait_for("the replica to be back", lambda: replicas(up).get(name, pid) != pid, 120)
            back = time.monotonic() - killed
            streams.wait_for_more(16)
            ended = streams.stop()
        finally:
            up.stop()
    bad = [e for e in ended if e[0] != "whole"]
    unbegun = [e for e in bad if not e[2]]
    print(f"kill -9 under load: {len(ended)} requests ({before} before the kill), "
          f"failed before streaming {len(unbegun)}, cut in mid-stream {len(bad) - len(unbegun)}, "
          f"replica ready again after {back:.2f} s")
    for how, pieces, _ in bad[:8]:
        print(f"  {how} after {pieces} pieces")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strata", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--conversations", type=int, default=20)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    strata, uri = args.strata.resolve(), f"file://{args.model.resolve()}"
    work = (args.conversations, args.turns, args.workers)
    results: dict[str, list[tuple[float, float]]] = {"PrefixAware": [], "RoundRobin": []}
    for _ in range(args.rounds):
        for policy, rows in results.items():
            rows.append(hit_rate(strata, uri, policy, *work))
    for policy, rows in results.items():
        rates, ttfts = zip(*rows)
        print(f"{policy:12} prefix hit rate {statistics.mean(rates):.3f} ({min(rates):.3f} to {max(rates):.3f}), "
              f"TTFT p50 {statistics.mean(ttfts) * 1000:.0f} ms ({min(ttfts) * 1000:.0f} to {max(ttfts) * 1000:.0f})")
    ratios = [a[0] / b[0] for a, b in zip(*results.values())]
    print(f"hit rate, prefix-aware over round robin: {statistics.mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    kill(strata, uri)
    return 0


if __name__ == "__main__":
    sys.exit(main())
