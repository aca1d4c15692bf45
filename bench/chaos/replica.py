"""A stand-in for an engine replica, with faults: `run.py replica`.

It serves /health, /v1/models, /metrics under vLLM's names and POST /v1/chat/completions, streamed or not. An answer is
words that take their time. It prints the port that it took, and obeys:

    PUT /chaos {"fault": NAME}   one of FAULTS; "none" ends it
    GET /chaos                   what it was asked since it began: requests, and the time since the last scrape

SIGTERM ends it when its answers are done.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time

# What each does; `first` and `token` are seconds.
FAULTS = {
    "none": {},
    "slow-tokens": {"token": 1.0},
    "slow-first": {"first": 5.0},
    "says-idle": {"metrics": "idle", "first": 3.0},
    "says-busy": {"metrics": "busy"},
    "says-nan": {"metrics": "nan"},
    "says-garbage": {"metrics": "garbage"},
    "says-negative": {"metrics": "negative"},
    "says-huge": {"metrics": "huge"},
    "counts-huge": {"metrics": "huge-counts"},
    "fails-500": {"status": 500},
    "metrics-hang": {"metrics": "hang"},
}
MAX_SEQUENCES = 16
TOKENS_A_SECOND = 4000.0


class Replica:
    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.fault = FAULTS["none"]
        self.slots = asyncio.Semaphore(MAX_SEQUENCES)
        self.running = self.waiting = self.requests = self.looks = 0
        self.prompt_tokens = self.generated = self.gaps = self.finished = 0
        self.gap_seconds = self.prefill_seconds = 0.0
        self.begun, self.looked = time.time(), time.monotonic()
        self.leaving = asyncio.Event()
        self.busy: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not self.leaving.is_set():
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                self.busy.add(writer)
                first, *lines = head.split("\r\n")
                method, path, _ = first.split(" ", 2)
                headers = {n.strip().lower(): v.strip() for n, v in (l.split(":", 1) for l in lines if ":" in l)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                await self.answer(writer, method, path, body)
                self.busy.discard(writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.busy.discard(writer)
            writer.close()

    async def answer(self, writer, method: str, path: str, body: bytes) -> None:
        path = path.split("?")[0]
        if path == "/v1/chat/completions" and method == "POST":
            self.requests += 1
            await self.chat(writer, json.loads(body))
        elif path == "/metrics":
            self.looks, self.looked = self.looks + 1, time.monotonic()
            if self.fault.get("metrics") == "hang":
                await asyncio.sleep(3600)
            await self.send(writer, 200, self.metrics(), "text/plain; version=0.0.4")
        elif path == "/health":
            await self.send(writer, 503 if self.leaving.is_set() else 200, b"")
        elif path == "/v1/models":
            model = {"id": self.args.model, "object": "model", "created": int(self.begun), "owned_by": "chaos"}
            await self.send(writer, 200, {"object": "list", "data": [model]})
        elif path == "/internal/v1/events" and self.args.tells:
            await self.tell(writer)
        elif path == "/chaos" and method == "PUT":
            self.fault = FAULTS[json.loads(body)["fault"]]
            await self.send(writer, 200, {})
        elif path == "/chaos":
            since = time.monotonic() - self.looked
            await self.send(writer, 200, {"requests": self.requests, "looks": self.looks, "since_last_look": since})
        else:
            await self.send(writer, 404, error("there is no such route"))

    async def tell(self, writer) -> None:
        """As a Strata engine does: what it has cached, then what changes, and its load."""
        holds, part, number = [f"{random.getrandbits(64):016x}" for _ in range(self.args.tells)], 500, 0
        stored = lambda some: [{"hash": h, "tokens": 64, "medium": "device"} for h in some]  # noqa: E731
        await self.write(writer, head(200, "text/event-stream", "transfer-encoding: chunked"))
        for at in range(0, len(holds), part):
            ends = {"first": at == 0, "last": at + part >= len(holds)}
            named = {"type": "snapshot", "engine": f"{self.begun}", "sequence": 0}
            await self.write(writer, event(named | ends | {"stored": stored(holds[at : at + part])}))
        while not self.leaving.is_set():
            await asyncio.sleep(1)
            number += 1
            fresh, old = [f"{random.getrandbits(64):016x}" for _ in range(20)], holds[:20]
            holds = holds[20:] + fresh
            removed = [{"hash": h, "medium": "device"} for h in old]
            changes = {"type": "blocks", "sequence": number, "stored": stored(fresh), "removed": removed}
            load = {"type": "load", "running": self.running, "waiting": self.waiting, "waiting_tokens": 0}
            blocks = {"free_blocks": 4096 - 256 * self.running, "total_blocks": 4096}
            await self.write(writer, event(changes) + event(load | blocks))

    async def chat(self, writer, ask: dict) -> None:
        if "status" in self.fault:
            await self.send(writer, self.fault["status"], error("the engine failed"))
            return
        tokens = ask.get("max_tokens", 16)
        prompt = sum(len(m["content"].split()) for m in ask["messages"])
        began = time.monotonic()
        self.waiting += 1
        async with self.slots:
            self.waiting -= 1
            self.running += 1
            try:
                stream = ask.get("stream", False)
                if stream:
                    await self.write(writer, head(200, "text/event-stream", "transfer-encoding: chunked"))
                await asyncio.sleep(self.fault.get("first", self.args.first + prompt / TOKENS_A_SECOND))
                self.prompt_tokens += prompt
                self.prefill_seconds += time.monotonic() - began
                for n in range(tokens):
                    if n:
                        gap = time.monotonic()
                        await asyncio.sleep(self.fault.get("token", self.args.token))
                        self.gap_seconds += time.monotonic() - gap
                        self.gaps += 1
                    self.generated += 1
                    if stream:
                        await self.write(writer, event(self.chunk({"content": f"word{n} "}, None)))
                self.finished += 1
                usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
                if stream:
                    last = event(self.chunk({}, "length")) + event("[DONE]") + b"0\r\n\r\n"
                    await self.write(writer, last)
                else:
                    text = "".join(f"word{n} " for n in range(tokens))
                    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
                    kind = {"id": "chatcmpl-chaos", "object": "chat.completion", "created": int(time.time())}
                    whole = kind | {"model": self.args.model, "choices": [choice], "usage": usage}
                    await self.send(writer, 200, whole)
            finally:
                self.running -= 1

    def chunk(self, delta: dict, end: str | None) -> dict:
        return {"id": "chatcmpl-chaos", "object": "chat.completion.chunk", "created": int(time.time()),
                "model": self.args.model, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]}

    def metrics(self) -> bytes:
        """The honest metrics, or the same names with what the fault says."""
        lie = self.fault.get("metrics")
        if lie == "garbage":
            return b"<html>\x00\xff\xfe 502 }{ vllm:num_requests_running{ 1e\nvllm:num_requests_waiting{a=\"} x\n" * 50
        usage = min(1.0, self.running / MAX_SEQUENCES)
        values = {
            "vllm:num_requests_running": self.running,
            "vllm:num_requests_waiting": self.waiting,
            "vllm:kv_cache_usage_perc": usage,
            "vllm:prompt_tokens_total": self.prompt_tokens,
            "vllm:generation_tokens_total": self.generated,
            "vllm:prefix_cache_queries_total": self.prompt_tokens,
            "vllm:prefix_cache_hits_total": 0,
            "vllm:inter_token_latency_seconds_sum": self.gap_seconds,
            "vllm:inter_token_latency_seconds_count": self.gaps,
            "vllm:request_prompt_tokens_sum": self.prompt_tokens,
            "vllm:request_prompt_tokens_count": self.finished,
            "vllm:request_prefill_time_seconds_sum": self.prefill_seconds,
            "process_start_time_seconds": self.begun,
        }
        gauges = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"]
        label = f'{{model_name="{self.args.model}",engine="0"}}'
        second = label.replace('"0"', '"1"')
        lines = []
        huge = lie in ("huge", "huge-counts")
        for name, value in values.items():
            if lie == "idle" and name in gauges:
                value = 0
            elif lie == "busy" and name in gauges:
                value = {"vllm:num_requests_running": 256, "vllm:num_requests_waiting": 500}.get(name, 1)
            elif lie == "nan":
                value = "NaN"
            elif lie == "negative":
                value = -5
            elif huge and (lie == "huge" or name not in gauges):
                # Two ranks, so that what adds up series leaves the range of a double. Counts still grow.
                value = self.looks * 1e300 if name.endswith("_count") else 1.7e308
                lines.append(f"{name}{second} {value!r}")
            lines.append(f"{name}{label} {value}")
        blocks = 10**30 if huge else 4096
        lines.append(f'vllm:cache_config_info{{block_size="16",num_gpu_blocks="{blocks}"}} 1')
        if huge:
            lines += ["strata:waiting_tokens 1.7e308"] * 2 + ["strata:prefill_tokens_per_second 1.7e308"] * 2
        return ("\n".join(lines) + "\n").encode()

    async def send(self, writer, status: int, body, kind: str = "application/json") -> None:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        await self.write(writer, head(status, kind, f"content-length: {len(body)}") + body)

    async def write(self, writer, data: bytes) -> None:
        writer.write(data)
        await writer.drain()

    async def leave(self) -> None:
        """Lets answers end, then goes."""
        while any(not w.is_closing() for w in self.busy) and self.running + self.waiting:
            await asyncio.sleep(0.05)


def head(status: int, kind: str, *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} chaos", f"content-type: {kind}", *lines, "", ""]).encode()


def event(data: dict | str) -> bytes:
    text = f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()
    return f"{len(text):x}\r\n".encode() + text + b"\r\n"


def error(message: str) -> dict:
    return {"error": {"message": message, "type": "server_error", "param": None, "code": None}}


async def run(args: argparse.Namespace) -> None:
    replica = Replica(args)
    server = await asyncio.start_server(replica.serve, "127.0.0.1", args.port)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, replica.leaving.set)
    print(server.sockets[0].getsockname()[1], flush=True)
    await replica.leaving.wait()
    server.close()
    await replica.leave()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="run.py replica")
    parser.add_argument("--model", default="chaos")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tells", type=int, default=0, help="blocks that it tells of, as Strata engines do")
    parser.add_argument("--first", type=float, default=0.1, help="seconds until the first token")
    parser.add_argument("--token", type=float, default=0.02, help="seconds between two tokens")
    asyncio.run(run(parser.parse_args(arguments)))
    sys.stdout.flush()
    os._exit(0)
