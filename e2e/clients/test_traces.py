"""Spans as OpenTelemetry's own decoder reads them, from an engine that is called by its port."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import subprocess
import threading
import urllib.request

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from strata import wait_for

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "a sentence that nobody else may read"


@pytest.fixture
def collector():
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            requests.append((self.path, dict(self.headers), body, ExportTraceServiceRequest.FromString(body)))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()


def value(any_value):
    kind = any_value.WhichOneof("value")
    if kind == "array_value":
        return [value(one) for one in any_value.array_value.values]
    return getattr(any_value, kind)


def attributes(pairs) -> dict:
    return {pair.key: value(pair.value) for pair in pairs}


def ask(base: str, traceparent: str | None) -> dict:
    body = {"model": "m", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 4, "temperature": 0}
    headers = {"content-type": "application/json"} | ({"traceparent": traceparent} if traceparent else {})
    request = urllib.request.Request(f"{base}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


@contextlib.contextmanager
def serving(ready: str, command: list, env: dict):
    """A component at the address that it logs in its `ready` line, ended as by SIGTERM."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
    try:
        for line in process.stderr:
            found = re.search(r"127\.0\.0\.1:\d+", line)
            if ready in line and found:
                break
        else:
            raise AssertionError(f"{command} ended before it was ready")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield f"http://{found.group()}"
    finally:
        process.terminate()
        assert process.wait(30) == 0


def engine(strata, uri, url: str, **env: str):
    command = [strata, "engine", "--model", uri, "--served-model-name", "m", "--listen", "127.0.0.1:0",
               "--kv-cache-blocks", "256", "--otlp-traces-endpoint", url]
    return serving("engine ready", command, {"OTEL_BSP_SCHEDULE_DELAY": "100"} | env)


def spans_of(requests) -> list:
    """Each span with its resource's attributes."""
    return [
        (attributes(resource.resource.attributes), span)
        for _, _, _, request in requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def is_ready(base: str) -> bool:
    try:
        with urllib.request.urlopen(f"{base}/ready", timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def streamed(base: str, content: str) -> dict:
    """Asks for a stream, and returns the usage that its last event but one has."""
    body = {"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": 4, "temperature": 0,
            "stream": True, "stream_options": {"include_usage": True}}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{base}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        events = [line[6:] for line in response.read().decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return json.loads(events[-2])["usage"]


def test_a_span_for_each_request_that_is_sampled(strata, uri, collector):
    url, requests = collector
    headers = {"OTEL_SERVICE_NAME": "engine-of-a-test", "OTEL_EXPORTER_OTLP_HEADERS": "x-key=k"}
    with engine(strata, uri, url, **headers) as base:
        usage = ask(base, f"00-{TRACE}-{PARENT}-01")["usage"]
        wait_for("the first span", lambda: requests)
        ask(base, f"00-{TRACE}-{PARENT}-00")
        ask(base, None)
    spans = spans_of(requests)
    assert len(spans) == 2, "one is not sampled, and the last is sent at the end"
    assert all(path == "/v1/traces" and headers["x-key"] == "k" for path, headers, _, _ in requests)
    resource, span = spans[0]
    assert resource["service.name"] == "engine-of-a-test"
    assert (span.name, span.kind, span.status.code) == ("llm_request", Span.SPAN_KIND_SERVER, Status.STATUS_CODE_UNSET)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert spans[1][1].parent_span_id == b"" and spans[1][1].trace_id.hex() != TRACE
    told = attributes(span.attributes)
    assert told["gen_ai.usage.prompt_tokens"] == usage["prompt_tokens"]
    assert told["gen_ai.usage.completion_tokens"] == usage["completion_tokens"] == 4
    assert told["gen_ai.response.finish_reasons"] == ["length"]
    assert 0 < told["gen_ai.latency.time_to_first_token"] < told["gen_ai.latency.e2e"]
    assert told["gen_ai.latency.e2e"] <= (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9 + 1e-3
    assert not any(SECRET.encode() in body for _, _, body, _ in requests)
    # No field that the decoder does not know.
    assert all(request.SerializeToString() == body for _, _, body, request in requests)


def test_one_trace_from_the_scheduler_to_the_engine(strata, uri, collector):
    url, requests = collector
    with engine(strata, uri, url) as replica:
        command = [strata, "scheduler", "--replicas", replica, "--listen", "127.0.0.1:0",
                   "--otlp-traces-endpoint", url]
        with serving("scheduler listens", command, {"OTEL_BSP_SCHEDULE_DELAY": "100"}) as base:
            wait_for("a ready replica", lambda: is_ready(base))
            usage = ask(base, f"00-{TRACE}-{PARENT}-01")["usage"]
            ask(base, f"00-{TRACE}-{PARENT}-00")
            wait_for("both sides' spans", lambda: len(spans_of(requests)) >= 4)
    spans = {span.name: (resource, span) for resource, span in spans_of(requests)}
    assert sorted(spans) == ["ask_replica", "choose_replica", "llm_request", "route_request"]
    assert len(spans_of(requests)) == 4, "the other request is not sampled"
    for name, (_, span) in sorted(spans.items(), key=lambda item: item[1][1].start_time_unix_nano):
        milliseconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
        print(f"{spans[name][0]['service.name']} {name} {span.span_id.hex()} < {span.parent_span_id.hex()} "
              f"{milliseconds:.2f} ms {attributes(span.attributes)}")
    whole, choice, attempt, answer = (
        spans[name][1] for name in ("route_request", "choose_replica", "ask_replica", "llm_request")
    )
    assert all(span.trace_id.hex() == TRACE for _, span in spans.values())
    assert whole.parent_span_id.hex() == PARENT
    assert choice.parent_span_id == attempt.parent_span_id == whole.span_id
    assert answer.parent_span_id == attempt.span_id
    assert (spans["llm_request"][0]["service.name"], spans["route_request"][0]["service.name"]) == (
        "strata-engine", "strata-scheduler")
    assert (whole.kind, attempt.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT)
    told = attributes(whole.attributes)
    assert told["gen_ai.usage.prompt_tokens"] == usage["prompt_tokens"]
    assert told["gen_ai.usage.completion_tokens"] == usage["completion_tokens"]
    assert told["gen_ai.request.id"] == attributes(answer.attributes)["gen_ai.request.id"]
    # One clock: the engine's part lies within the attempt's.
    assert attempt.start_time_unix_nano <= answer.start_time_unix_nano
    assert answer.end_time_unix_nano <= attempt.end_time_unix_nano + 1_000_000
    assert not any(SECRET.encode() in body for _, _, body, _ in requests)


def test_what_was_thought_of_the_cache_is_what_the_engine_had(strata, uri, collector):
    url, _ = collector
    with engine(strata, uri, url) as replica:
        command = [strata, "scheduler", "--replicas", replica, "--listen", "127.0.0.1:0"]
        with serving("scheduler listens", command, {}) as base:
            wait_for("a ready replica", lambda: is_ready(base))
            openings = [f"Conversation {n} is about rivers, towns, and what was built there. " * 12 for n in range(3)]
            cached = 0
            for turn in range(5):
                for opening in openings:
                    content = opening + " ".join(f"Question {n} was asked." for n in range(turn + 1))
                    cached += streamed(base, content)["prompt_tokens_details"]["cached_tokens"]
            text = urllib.request.urlopen(f"{base}/metrics", timeout=10).read().decode()
    lines = [line for line in text.splitlines() if line.startswith("strata_scheduler_cache_")]
    print("\n".join(lines))
    values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}
    tokens = lambda what: values[f'strata_scheduler_cache_{what}_tokens_total{{model_name="m"}}']
    assert tokens("actual") == cached > 0
    within = values['strata_scheduler_cache_predictions_total{model_name="m",outcome="within_block"}']
    assert sum(v for name, v in values.items() if "predictions_total" in name) == 15
    assert within >= 13, values
    # The scheduler counts in blocks of 256 bytes, four of the engine's.
    assert 0.7 < tokens("predicted") / tokens("actual") < 1.3, values
