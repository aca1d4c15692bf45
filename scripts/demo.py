#!/usr/bin/env python3
"""The demo: start everything of examples/quickstart, ask two questions through every layer, stop.

    demo.py --strata target/release/strata --model PATH [--question TEXT] [--again TEXT]

Prints each streamed answer as it comes, its usage, and why the scheduler picked the replica. Uses the
standard library only, and leaves no process and no state behind.
"""

import argparse
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples" / "quickstart"
TENANT = "acme"
MODEL = "smollm2-135m"
# Long enough to fill blocks of the prefix cache, so that the second question finds its beginning there.
SYSTEM = (
    "You are a friendly physics teacher for curious beginners. You answer in plain words and short sentences. "
    "You never use formulas, and you never assume that your pupil knows a technical term. When a term cannot be "
    "avoided, you explain it with something from everyday life: a kitchen, a garden, a playground, a train. "
    "You answer only what you were asked, in one or two sentences, and you do not ask questions back."
)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(strata: pathlib.Path, state: pathlib.Path, port: int) -> tuple[subprocess.Popen, str]:
    up = subprocess.Popen(
        [strata, "up", "-f", FOLDER, "--state", state, "--listen", f"127.0.0.1:{port}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log: list[str] = []

    def relay() -> None:
        for line in up.stderr:
            log.append(line)
            if line.startswith("up: "):
                print("  " + line.rstrip(), flush=True)

    threading.Thread(target=relay, daemon=True).start()
    for line in up.stdout:
        if line.startswith("ready "):
            return up, line.split()[1]
    up.wait()
    sys.exit("strata up stopped before it was ready:\n" + "".join(log[-20:]))


def ask(base: str, key: str, messages: list[dict], question: str) -> None:
    messages.append({"role": "user", "content": question})
    url = urllib.parse.urlsplit(base)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=120)
    body = {
        "model": MODEL,
        "messages": messages,
        "max_tokens": 64,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = time.monotonic()
    connection.request(
        "POST",
        url.path + "/chat/completions",
        json.dumps(body),
        {"content-type": "application/json", "authorization": f"Bearer {key}"},
    )
    response = connection.getresponse()
    if response.status != 200:
        sys.exit(f"the request failed with {response.status}: {response.read().decode()}")
    first, usage, answer = None, None, ""
    print(f"\nyou:   {question}\nmodel: ", end="", flush=True)
    for raw in response:
        line = raw.decode().strip()
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        chunk = json.loads(line[len("data: ") :])
        if "error" in chunk:
            sys.exit(f"\nthe stream broke: {chunk['error']['message']}")
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            text = choice["delta"].get("content")
            if text:
                first = first or time.monotonic() - began
                print(text, end="", flush=True)
                answer += text
    messages.append({"role": "assistant", "content": answer})
    took = time.monotonic() - began
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    print("\n")
    print(f"usage:    {usage['prompt_tokens']} prompt tokens ({cached} cached), {usage['completion_tokens']} generated")
    print(f"time:     first token after {first * 1000:.0f} ms, all after {took * 1000:.0f} ms")
    print(f"replica:  {response.headers.get('x-strata-replica')}")
    print(f"decision: {response.headers.get('x-strata-decision')}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strata", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--question", default="What is gravity?")
    parser.add_argument("--again", default="And why does the moon not fall down?", help="the second question")
    args = parser.parse_args()
    os.environ["STRATA_MODELS"] = str(args.model.resolve().parent)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="strata-demo-") as state:
        print(f"starting examples/quickstart: {', '.join(sorted(p.name for p in FOLDER.glob('*.yaml')))}")
        up, base = start(args.strata.resolve(), pathlib.Path(state), free_port())
        try:
            print(f"ready:    {base} after {time.monotonic() - began:.1f} s")
            key = (pathlib.Path(state) / "keys" / TENANT).read_text().strip()
            messages = [{"role": "system", "content": SYSTEM}]
            ask(base, key, messages, args.question)
            ask(base, key, messages, args.again)
        finally:
            up.send_signal(signal.SIGINT)
            try:
                up.wait(timeout=90)
            except subprocess.TimeoutExpired:
                up.kill()
                raise
    print(f"\nstopped everything; {time.monotonic() - began:.1f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
