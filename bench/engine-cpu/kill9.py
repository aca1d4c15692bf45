#!/usr/bin/env python3
"""What the disk tier saves after a kill -9: the time to the first token of a long prompt.

    kill9.py --strata target/release/strata [--rounds 5] [--tokens 4096] [--out FILE.json]

Each round: an engine with an encrypted disk tier reads a prompt that it has not seen; when its blocks are
on disk the engine is killed by SIGKILL and started again on the same folder. The same prompt then comes
from disk, and a prompt of the same length that nobody has seen is computed; which of them first changes
from round to round. Before both, a short prompt has every page of the weights read. The blocks' files are
written out and dropped from the page cache before the second start, so that they come from the disk.

Prints both times, their ratio and its spread over the rounds. Exits 1 when a prompt that was on disk is
computed after all (`cached_tokens` of 0), when one that was not is said to be cached, or when the answer
after the restart is not the one before.
"""

import argparse
import http.client
import json
import os
import pathlib
import random
import signal
import statistics
import sys
import tempfile
import time

import engines
from run import CACHE, Server, Void

BLOCK = 16
OUTPUT = 8
# Ids of plain text in the model's vocabulary.
FIRST_ID, LAST_ID = 1000, 40_000
WARM_UP = 64
ON_DISK_WITHIN_S = 60


def engine(strata: pathlib.Path, model: pathlib.Path, folder: pathlib.Path, key: pathlib.Path) -> engines.Engine:
    plain = engines.strata("strata-disk", strata, model, (5.0, 8.5))
    disk = ["--kv-disk-cache", str(folder), "--kv-disk-size", "4", "--kv-disk-key-file", str(key)]
    return engines.Engine(plain.name, plain.command + disk, plain.ready_path, plain.environment, plain.bits, plain.peak)


def prompt(random_: random.Random, tokens: int) -> list[int]:
    return [random_.randint(FIRST_ID, LAST_ID) for _ in range(tokens)]


def ask(server: Server, tokens: list[int]) -> dict:
    """One greedy answer: seconds to its first token, its text, and what of the prompt was cached."""
    body = {
        "prompt": tokens,
        "max_tokens": OUTPUT,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    connection.request("GET", "/v1/models")
    body["model"] = json.loads(connection.getresponse().read())["data"][0]["id"]
    begun = time.monotonic()
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise Void(f"the engine answers {response.status}: {response.read()[:500]!r}\n{server.tail()}")
    first, text, usage = None, "", None
    for line in response:
        if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
            continue
        chunk = json.loads(line[6:])
        if "error" in chunk:
            raise Void(f"the stream failed: {chunk['error']}\n{server.tail()}")
        usage = chunk.get("usage") or usage
        if chunk["choices"]:
            first = first or time.monotonic() - begun
            text += chunk["choices"][0]["text"]
    connection.close()
    if first is None or usage is None or usage["completion_tokens"] != OUTPUT or usage["prompt_tokens"] != len(tokens):
        raise Void(f"the answer is not whole: {usage}\n{server.tail()}")
    return {"ttft_s": first, "text": text, "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"]}


def on_disk(folder: pathlib.Path) -> list[pathlib.Path]:
    return list(folder.glob("strata-kv-*/??/" + "[0-9a-f]" * 64))


def wait_on_disk(folder: pathlib.Path, blocks: int) -> None:
    end = time.monotonic() + ON_DISK_WITHIN_S
    while len(on_disk(folder)) < blocks:
        if time.monotonic() > end:
            raise Void(f"{len(on_disk(folder))} of {blocks} blocks are on disk after {ON_DISK_WITHIN_S} s")
        time.sleep(0.02)


def drop_from_page_cache(folder: pathlib.Path) -> None:
    for path in on_disk(folder):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def round_(number: int, arguments: argparse.Namespace, folder: pathlib.Path) -> dict:
    random_ = random.Random(arguments.seed + number)
    disk, key = folder / "disk", folder / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    kept, fresh = prompt(random_, arguments.tokens), prompt(random_, arguments.tokens)
    described = engine(arguments.strata, arguments.model, disk, key)
    server = Server(described, folder)
    try:
        ask(server, prompt(random_, WARM_UP))
        before = ask(server, kept)
        # Blocks of the prompt that are full, and those of the warm-up.
        wait_on_disk(disk, arguments.tokens // BLOCK + WARM_UP // BLOCK)
    finally:
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    drop_from_page_cache(disk)
    server = Server(described, folder)
    try:
        ask(server, prompt(random_, WARM_UP))
        order = ["disk", "computed"] if number % 2 == 0 else ["computed", "disk"]
        answers = {name: ask(server, kept if name == "disk" else fresh) for name in order}
    finally:
        server.stop()
    from_disk, computed = answers["disk"], answers["computed"]
    if from_disk["cached_tokens"] == 0:
        raise Void(f"cached_tokens is 0: nothing came from disk after the restart\n{server.tail()}")
    if computed["cached_tokens"] != 0 or before["cached_tokens"] != 0:
        raise Void("a prompt that was never seen is said to be cached")
    if from_disk["text"] != before["text"]:
        raise Void(f"the answer changed with the restart: {before['text']!r}, then {from_disk['text']!r}")
    return {
        "ready_s": server.ready_s,
        "disk_s": from_disk["ttft_s"],
        "computed_s": computed["ttft_s"],
        "ratio": computed["ttft_s"] / from_disk["ttft_s"],
        "cached_tokens": from_disk["cached_tokens"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strata", type=pathlib.Path, required=True)
    model = CACHE / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    parser.add_argument("--model", type=pathlib.Path, default=model)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.rounds < 1 or not BLOCK < arguments.tokens <= engines.CONTEXT - OUTPUT:
        parser.error(f"--rounds must be at least 1, --tokens {BLOCK + 1} to {engines.CONTEXT - OUTPUT}")
    arguments.strata, arguments.model = arguments.strata.resolve(), arguments.model.resolve()
    rounds = []
    print("| round | ready s | TTFT from disk ms | TTFT computed ms | ratio | cached tokens |")
    print("|---|---|---|---|---|---|")
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory(prefix="strata-kill9-") as folder:
            try:
                row = round_(number, arguments, pathlib.Path(folder))
            except Void as void:
                print(f"round {number + 1} is void: {void}", file=sys.stderr)
                return 1
        rounds.append(row)
        print(
            f"| {number + 1} | {row['ready_s']:.2f} | {row['disk_s'] * 1e3:.1f} | {row['computed_s'] * 1e3:.1f} "
            f"| {row['ratio']:.1f} | {row['cached_tokens']} of {arguments.tokens} |",
            flush=True,
        )
    median = {name: statistics.median(row[name] for row in rounds) for name in ("disk_s", "computed_s", "ratio")}
    ratios = [row["ratio"] for row in rounds]
    print(
        f"\nMedian of {len(rounds)}: {median['disk_s'] * 1e3:.1f} ms from disk, {median['computed_s'] * 1e3:.1f} ms "
        f"computed, {median['ratio']:.1f} times ({min(ratios):.1f} to {max(ratios):.1f})."
    )
    if arguments.out:
        arguments.out.write_text(json.dumps({"tokens": arguments.tokens, "rounds": rounds}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
