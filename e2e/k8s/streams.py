"""Streaming clients that go on until they are told to stop, and say of each stream whether it was whole.

A stream is whole when its last data line is `[DONE]`, its last choice has a finish reason, and the
tokens of its usage are as many as were asked for (`ignore_eos` makes the length known beforehand).
"""

import http.client
import json
import threading
import time
import urllib.parse
from dataclasses import dataclass, field


@dataclass
class Stream:
    """What one request came to."""

    status: int = 0
    began: float = 0.0
    ended: float = 0.0
    pieces: int = 0
    completion_tokens: int | None = None
    finish_reason: str | None = None
    done: bool = False
    replica: str | None = None
    error: str | None = None

    def is_whole(self, tokens: int) -> bool:
        return self.done and self.error is None and self.completion_tokens == tokens and self.finish_reason == "length"


@dataclass
class Load:
    """`clients` threads, each with one stream after the other, of `tokens` tokens each."""

    base_url: str
    key: str
    model: str
    clients: int = 4
    tokens: int = 48
    streams: list[Stream] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Load":
        for number in range(self.clients):
            thread = threading.Thread(target=self._run, args=(number,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        """Lets every open stream end by itself."""
        self._stop.set()
        deadline = time.monotonic() + 120
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        hanging = sum(thread.is_alive() for thread in self._threads)
        assert hanging == 0, f"{hanging} streams did not end within 120 s"

    def _run(self, number: int) -> None:
        turn = 0
        while not self._stop.is_set():
            turn += 1
            stream = one_stream(self.base_url, self.key, self.model, f"Client {number}, turn {turn}: count.", self.tokens)
            self.streams.append(stream)
            if stream.status != 200:
                # A refusal is recorded; asking again at once would only flood the log.
                self._stop.wait(0.2)

    def finished(self) -> int:
        return len(self.streams)

    def assert_whole(self) -> None:
        """No stream was refused, cut, or shorter than asked for."""
        broken = [s for s in self.streams if not s.is_whole(self.tokens)]
        assert self.streams, "no stream was finished at all"
        assert not broken, f"{len(broken)} of {len(self.streams)} streams are not whole, such as {broken[:3]}"


def one_stream(base_url: str, key: str, model: str, text: str, tokens: int, timeout: float = 120) -> Stream:
    """One chat completion, streamed, read to its end. Never raises: what went wrong is in `error`."""
    stream = Stream(began=time.monotonic())
    address = urllib.parse.urlsplit(base_url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=timeout)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    try:
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        connection.request("POST", f"{address.path}/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        stream.status = response.status
        stream.replica = response.getheader("x-strata-replica")
        if response.status != 200:
            stream.error = response.read(2000).decode(errors="replace")
            return stream
        for line in response:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                stream.done = True
                continue
            event = json.loads(data)
            if "error" in event:
                stream.error = json.dumps(event["error"])
            for choice in event.get("choices", []):
                stream.pieces += 1
                stream.finish_reason = choice.get("finish_reason") or stream.finish_reason
            if event.get("usage"):
                stream.completion_tokens = event["usage"]["completion_tokens"]
    except (OSError, http.client.HTTPException, ValueError) as error:
        stream.error = f"{type(error).__name__}: {error}"
    finally:
        stream.ended = time.monotonic()
        connection.close()
    return stream
