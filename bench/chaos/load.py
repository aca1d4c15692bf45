"""A steady load of chats in OpenAI's wire format, streamed and not, and what came of each."""

import collections
import dataclasses
import http.client
import json
import random
import threading
import time

WORDS = "river stone lamp winter garden copper signal harbour violet engine paper field mirror autumn bridge".split()


@dataclasses.dataclass
class Outcome:
    """One request. Times are of `time.monotonic`."""

    began: float
    stream: bool
    first: float | None = None  # when the first token came, or the whole answer
    ended: float = 0.0
    status: int = 0  # 0: no answer at all
    error: str | None = None  # None when the answer is whole
    broke: bool = False  # the answer had begun when it failed
    replica: str = ""
    said_cached: int | None = None  # tokens that the scheduler said the replica has
    had_cached: int | None = None  # and that it had

    @property
    def latency(self) -> float:
        return self.ended - self.began


def text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(words))


class Load:
    """Requests at a steady rate whatever becomes of them, so that a slow replica does not quiet its clients."""

    def __init__(self, port: int, model: str, rate: float, tokens: tuple[int, ...], prompt_words: int, timeout: float):
        self.port, self.model, self.rate, self.tokens, self.timeout = port, model, rate, tokens, timeout
        self.chance = random.Random(11)
        self.shared = [text(self.chance, prompt_words) for _ in range(3)]
        self.words = prompt_words
        self.outcomes: list[Outcome] = []
        self.under_way: dict[threading.Thread, Outcome] = {}
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """No more requests; waits for those under way."""
        self.stopped.set()
        self.thread.join()
        for thread in list(self.under_way):
            thread.join()

    def run(self) -> None:
        due = time.monotonic()
        while not self.stopped.wait(max(0.0, due - time.monotonic())):
            # Half of the prompts begin alike, so that caches matter; half do not, so that all replicas are used.
            begin = self.chance.choice(self.shared) if self.chance.random() < 0.5 else text(self.chance, self.words)
            ask = {
                "model": self.model,
                "messages": [
                    {"role": "system", "content": begin},
                    {"role": "user", "content": text(self.chance, 12)},
                ],
                "max_tokens": self.chance.choice(self.tokens),
                "temperature": 0,
            }
            if self.chance.random() < 0.5:
                ask |= {"stream": True, "stream_options": {"include_usage": True}}
            outcome = Outcome(time.monotonic(), ask.get("stream", False))
            thread = threading.Thread(target=self.one, args=(ask, outcome), daemon=True)
            with self.lock:
                self.under_way[thread] = outcome
            thread.start()
            due += self.chance.expovariate(self.rate)

    def streaming(self) -> collections.Counter[str]:
        """How many streams have begun and not ended, by replica."""
        with self.lock:
            return collections.Counter(o.replica for o in self.under_way.values() if o.stream and o.first)

    def one(self, ask: dict, outcome: Outcome) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(ask), {"content-type": "application/json"})
            response = connection.getresponse()
            outcome.status = response.status
            outcome.replica = response.getheader("x-strata-replica", "")
            outcome.said_cached = said(response.getheader("x-strata-decision", ""))
            if response.status != 200:
                outcome.error = f"{response.status}: {response.read()[:200].decode(errors='replace')}"
            elif outcome.stream:
                self.read_stream(response, outcome)
            else:
                answer = json.loads(response.read())
                outcome.first = time.monotonic()
                outcome.had_cached = had(answer)
                if answer["choices"][0]["finish_reason"] not in ("length", "stop"):
                    outcome.error = f"finished by {answer['choices'][0]['finish_reason']}"
        except Exception as error:  # noqa: BLE001: whatever it is, it is an error that a client saw
            outcome.error = repr(error)
            outcome.broke = outcome.status == 200
        finally:
            connection.close()
            outcome.ended = time.monotonic()
            with self.lock:
                self.outcomes.append(outcome)
                del self.under_way[threading.current_thread()]

    @staticmethod
    def read_stream(response: http.client.HTTPResponse, outcome: Outcome) -> None:
        done = False
        for line in response:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                done = True
                continue
            piece = json.loads(data)
            if "error" in piece:
                outcome.error, outcome.broke = f"in the stream: {piece['error']['message']}", True
                return
            if outcome.first is None:
                outcome.first = time.monotonic()
            outcome.had_cached = had(piece) if piece.get("usage") else outcome.had_cached
        if not done:
            outcome.error, outcome.broke = "the stream ended without [DONE]", True


def said(decision: str) -> int | None:
    pairs = dict(p.split("=", 1) for p in decision.split(";")[0].split() if "=" in p)
    return int(pairs["cached_tokens"]) if "cached_tokens" in pairs else None


def had(answer: dict) -> int | None:
    return ((answer.get("usage") or {}).get("prompt_tokens_details") or {}).get("cached_tokens")


def percentile(values: list[float], share: float) -> float | None:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
