"""An answer whose engine is killed in its middle, and that goes on at another, as a client sees it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import urllib.request

import pytest
from strata import wait_for

PROMPT = "Write a long story about a lighthouse keeper and the sea, with many details."


class Process:
    """A component at the address that it logs when it is ready."""

    def __init__(self, ready: str, *command):
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            found = re.search(r"127\.0\.0\.1:\d+", line)
            if ready in line and found:
                self.base = f"http://{found.group()}"
                break
        else:
            raise AssertionError(f"{command} ended before it was ready")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)


@pytest.fixture
def engines(strata, uri):
    command = [strata, "engine", "--model", uri, "--served-model-name", "m", "--listen", "127.0.0.1:0",
               "--kv-cache-blocks", "256"]
    pair = [Process("engine ready", *command) for _ in range(2)]
    yield pair
    for engine in pair:
        engine.kill()


@pytest.fixture
def scheduler(strata, engines):
    replicas = ",".join(engine.base for engine in engines)
    command = [strata, "scheduler", "--replicas", replicas, "--listen", "127.0.0.1:0", "--continuation"]
    process = Process("scheduler listens", *command)
    wait_for("two ready replicas", lambda: replicas_ready(process.base) == 2)
    yield process
    process.kill()


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read()


def replicas_ready(base: str) -> int:
    try:
        return json.loads(get(f"{base}/ready"))["ready_replicas"]
    except OSError:
        return 0


def stream(base: str, path: str, prompt: dict, in_the_middle=lambda replica: None, tokens: int = 160):
    """The events of a greedy answer. Calls the hook with who answers when a quarter has come."""
    body = prompt | {"model": "m", "max_tokens": tokens, "temperature": 0, "stream": True,
                     "stream_options": {"include_usage": True}, "ignore_eos": True}
    request = urllib.request.Request(f"{base}{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    events = []
    with urllib.request.urlopen(request, timeout=300) as response:
        for line in response:
            if line.startswith(b"data: "):
                events.append(line[6:].decode().strip())
                if len(events) == tokens // 4:
                    in_the_middle(response.headers.get("x-strata-replica"))
    return events


def words(events: list[str]) -> str:
    choices = [json.loads(event)["choices"] for event in events[:-1]]
    said = [choice[0].get("delta", choice[0]) for choice in choices if choice]
    return "".join(piece.get("content") or piece.get("text") or "" for piece in said)


@pytest.mark.parametrize(
    ("path", "prompt"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}]}),
        ("/v1/completions", {"prompt": "The lighthouse keeper looked at the sea and"}),
    ],
)
def test_a_killed_engine_is_not_seen(engines, scheduler, path, prompt):
    unbroken = stream(engines[0].base, path, prompt)
    killed = []

    def kill(replica: str):
        engine = next(engine for engine in engines if engine.base.endswith(replica))
        engine.kill()
        killed.append(replica)

    events = stream(scheduler.base, path, prompt, kill)
    assert killed and events[-1] == "[DONE]", events[-1]
    assert words(events) == words(unbroken)
    usage, wanted = (json.loads(one[-2])["usage"] for one in (events, unbroken))
    counted = ["prompt_tokens", "completion_tokens", "total_tokens"]
    assert [usage[name] for name in counted] == [wanted[name] for name in counted]
    chunks = [json.loads(event) for event in events[:-1]]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert sum(bool(chunk["choices"] and chunk["choices"][0].get("delta", {}).get("role")) for chunk in chunks) <= 1
    metrics = get(f"{scheduler.base}/metrics").decode()
    lines = [line for line in metrics.splitlines() if line.startswith("strata_scheduler_continuations_total")]
    print(path, killed, "killed;", len(events), "events,", usage, lines)
    assert lines == ['strata_scheduler_continuations_total{model_name="m",outcome="continued"} 1']
