"""Spans as OpenTelemetry's own decoder reads them, from an engine that is called by its port."""

from __future__ import annotations

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


def test_a_span_for_each_request_that_is_sampled(strata, uri, collector):
    url, requests = collector
    process = subprocess.Popen(
        [strata, "engine", "--model", uri, "--served-model-name", "m", "--listen", "127.0.0.1:0",
         "--kv-cache-blocks", "256", "--otlp-traces-endpoint", url],
        stderr=subprocess.PIPE,
        text=True,
        env={"OTEL_SERVICE_NAME": "engine-of-a-test", "OTEL_EXPORTER_OTLP_HEADERS": "x-key=k",
             "OTEL_BSP_SCHEDULE_DELAY": "100"},
    )
    try:
        base = None
        for line in process.stderr:
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            if "engine ready" in line and found:
                base = found.group()
                break
        assert base
        threading.Thread(target=process.stderr.read, daemon=True).start()
        usage = ask(base, f"00-{TRACE}-{PARENT}-01")["usage"]
        wait_for("the first span", lambda: requests)
        ask(base, f"00-{TRACE}-{PARENT}-00")
        ask(base, None)
    finally:
        process.terminate()
        assert process.wait(30) == 0
    spans = [
        (attributes(resource.resource.attributes), span)
        for _, _, _, request in requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
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
