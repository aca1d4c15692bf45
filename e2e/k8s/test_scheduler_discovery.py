"""The scheduler before a real API server: how soon a pod that goes is not routed to, with which rights.

Answers gateway-api-inference-extension#549, aibrix#553 and kthena#1589 (requests sent to, and streams cut
on, pods that go). The scheduler runs here as a process and the pods are objects alone: their address is
that of an engine which is a thread of this test.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import pathlib
import re
import statistics
import subprocess
import threading
import time

import pytest
import yaml
from conftest import note
from install import ROOT, model

pytestmark = pytest.mark.control_plane

NAMESPACE = "routing"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
ROUNDS = 100
FINALIZER = "e2e.strata.dev/stays"


class Engine(http.server.ThreadingHTTPServer):
    """Answers as an engine does; a stream goes on, piece by piece, until `let_go` is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.let_go = threading.Event()
        self.asked = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Engine

    def log_message(self, *_: object) -> None:
        pass

    def _say(self, body: dict | str) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(200)
        self.send_header("content-type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            entry = {"id": "tiny", "object": "model", "created": 1, "owned_by": "strata"}
            self._say({"object": "list", "data": [entry]})
        else:
            self._say("vllm:num_requests_waiting 0\n" if self.path == "/metrics" else {})

    def do_POST(self) -> None:
        self.server.asked += 1
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

        def piece(text: str) -> None:
            data = f"data: {text}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

        while not self.server.let_go.wait(0.02):
            piece('{"choices":[{"index":0,"delta":{"content":"x"}}]}')
        piece("[DONE]")
        self.wfile.write(b"0\r\n\r\n")


class Scheduler:
    """`strata scheduler --kubernetes` as a process, with the rights of the ServiceAccount alone."""

    def __init__(self, binary: pathlib.Path, kubeconfig: pathlib.Path, log: pathlib.Path):
        self.log = log
        self.process = subprocess.Popen(
            [str(binary), "scheduler", "--kubernetes", "--namespace", NAMESPACE, "--listen", "127.0.0.1:0"],
            env={"PATH": os.environ["PATH"], "KUBECONFIG": str(kubeconfig)},
            stdout=subprocess.DEVNULL,
            stderr=log.open("w"),
        )
        found = None
        end = time.monotonic() + 30
        while not found and time.monotonic() < end:
            found = re.search(r"scheduler listens.* address=127\.0\.0\.1:(\d+)", log.read_text())
            time.sleep(0.02)
        assert found, log.read_text()
        self.port = int(found[1])

    def get(self, path: str, connection: http.client.HTTPConnection | None = None) -> tuple[int, dict]:
        one = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        one.request("GET", path)
        answer = one.getresponse()
        body = answer.read()
        if connection is None:
            one.close()
        return answer.status, json.loads(body)

    def replicas(self, connection: http.client.HTTPConnection | None = None) -> list[dict]:
        return self.get("/replicas", connection)[1]["models"].get("tiny", [])

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@pytest.fixture(scope="module")
def account(kube, tmp_path_factory) -> pathlib.Path:
    """A kubeconfig of a ServiceAccount without any right, in a namespace with a model."""
    kube.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
    kube.namespace(NAMESPACE)
    tiny = model("tiny", "file:///models/tiny.gguf")
    tiny["spec"]["model"]["name"] = "tiny"
    kube.apply(tiny, namespace=NAMESPACE)
    kube.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "scheduler"}}, namespace=NAMESPACE)
    token = kube.kubectl("create", "token", "scheduler", "--namespace", NAMESPACE).strip()
    config = yaml.safe_load(kube.kubeconfig.read_text())
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    path = tmp_path_factory.mktemp("account") / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def role(kube, account) -> None:
    """The rights that a scheduler has: it reads two kinds in its namespace, and writes nothing."""
    rules = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
        {"apiGroups": ["strata.dev"], "resources": ["modeldeployments"], "verbs": ["list", "watch"]},
    ]
    group = "rbac.authorization.k8s.io"
    kube.apply(
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": "scheduler"}, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "scheduler"},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "scheduler"},
            "subjects": [{"kind": "ServiceAccount", "name": "scheduler"}],
        },
        namespace=NAMESPACE,
    )


@pytest.fixture(scope="module")
def engine():
    engine = Engine()
    yield engine
    engine.let_go.set()
    engine.shutdown()


@contextlib.contextmanager
def scheduler(strata_binary, kubeconfig, log):
    one = Scheduler(strata_binary, kubeconfig, log)
    try:
        yield one
    finally:
        one.stop()


def pod(kube, engine: Engine, name: str) -> str:
    """A ready engine pod that no node runs. Its finalizer keeps it when it is deleted, as a kubelet would."""
    labels = {
        "app.kubernetes.io/component": "engine",
        "strata.dev/model-deployment": "tiny",
        "strata.dev/track": "stable",
    }
    port = {"name": "http", "containerPort": engine.server_address[1]}
    kube.call("POST", PODS, {
        "metadata": {"name": name, "labels": labels, "finalizers": [FINALIZER]},
        "spec": {
            "schedulerName": "nobody",
            "containers": [{"name": "engine", "image": "none", "ports": [port]}],
        },
    })  # fmt: skip
    ready = {"type": "Ready", "status": "True"}
    kube.patch(f"{PODS}/{name}/status", {"status": {"podIP": "127.0.0.1", "conditions": [ready]}})
    return name


def gone(kube, name: str) -> None:
    kube.patch(f"{PODS}/{name}", {"metadata": {"finalizers": []}})
    kube.delete(f"{PODS}/{name}")


def ask(port: int) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    return connection.getresponse()


def test_it_waits_for_its_role_and_needs_no_other_right(kube, account, strata_binary, engine, tmp_path, request):
    with scheduler(strata_binary, account, tmp_path / "log") as one:
        kube.wait("the refusals to be logged", lambda: one.log.read_text().count("Role must allow list and watch") >= 2)
        assert one.get("/ready")[0] == 503, "a scheduler that knows no models would call each one unknown"
        assert one.get("/health")[0] == 200
        request.getfixturevalue("role")
        kube.wait("the scheduler to know its models", lambda: one.get("/ready")[0] == 200)
        assert one.get("/v1/models")[1]["data"][0]["id"] == "tiny", "a model without a pod is known"


def test_a_pod_that_is_deleted_gets_no_request(kube, account, role, strata_binary, engine, tmp_path, request):
    until_response, until_unrouted = [], []
    with scheduler(strata_binary, account, tmp_path / "log") as one:
        kube.wait("the scheduler to know its models", lambda: one.get("/ready")[0] == 200)
        polling = http.client.HTTPConnection("127.0.0.1", one.port, timeout=30)
        streams = []
        for number in range(ROUNDS):
            name = pod(kube, engine, f"tiny-engine-{number}")
            kube.wait("the pod to be routed to", lambda: any(r["ready"] for r in one.replicas(polling)))
            if number % 25 == 0:
                streams.append(ask(one.port))
                assert streams[-1].status == 200
            began = time.monotonic()
            deleting = threading.Thread(target=kube.delete, args=(f"{PODS}/{name}",))
            deleting.start()
            while one.replicas(polling):
                assert time.monotonic() < began + 30, f"{name} is still routed to"
            until_unrouted.append(time.monotonic() - began)
            deleting.join()
            until_response.append(time.monotonic() - began)
            gone(kube, name)
        asked = engine.asked
        assert asked == len(streams)
        engine.let_go.set()
        for stream in streams:
            assert stream.read().endswith(b"data: [DONE]\n\n"), "streams on pods that went are whole"
        engine.let_go.clear()

    def said(of: list[float]) -> str:
        of = sorted(of)
        return f"p50 {1000 * statistics.median(of):.1f} ms, p99 {1000 * of[-2]:.1f} ms, most {1000 * of[-1]:.1f} ms"

    note(request.config, f"measured: pod deletion sent to un-routed, over {ROUNDS}: {said(until_unrouted)}")
    note(request.config, f"measured: the same until both it and the API server's answer are there: {said(until_response)}")
    # A pod has 15 s from its deletion to its SIGTERM.
    assert statistics.median(until_unrouted) < 1 and max(until_unrouted) < 10


def test_the_last_state_outlives_the_api_server(kube, account, role, strata_binary, engine, tmp_path, request):
    if not kube.own:
        pytest.skip("only an API server of our own is ended")
    daemons = kube.own.daemons
    with scheduler(strata_binary, account, tmp_path / "log") as one:
        stays, goes = pod(kube, engine, "tiny-stays"), pod(kube, engine, "tiny-goes")
        kube.wait("both pods to be routed to", lambda: sum(r["ready"] for r in one.replicas()) == 2)
        entry = daemons.recorded()["kube-apiserver"]
        kube.delete(f"{PODS}/{goes}")
        kube.wait("the pod to be un-routed", lambda: [r["name"] for r in one.replicas()] == [stays])
        daemons.kill("kube-apiserver")
        kube.wait("the failure to be noticed", lambda: "the last state stays in force" in one.log.read_text())
        assert one.get("/ready")[0] == one.get("/health")[0] == 200
        engine.let_go.set()
        assert ask(one.port).read().endswith(b"data: [DONE]\n\n")
        engine.let_go.clear()
        daemons.start("kube-apiserver", entry["command"], **entry["env"])
        kube.wait("the API server to answer", lambda: kube.request("GET", "/readyz")[0] == 200)
        began = time.monotonic()
        comes = pod(kube, engine, "tiny-comes")
        names = kube.wait(
            "the new pod to be routed to",
            lambda: [n for n in ([r["name"] for r in one.replicas()],) if comes in n],
        )[0]
        note(request.config, f"measured: new pod to routed, API server just restarted: {time.monotonic() - began:.2f} s")
        assert sorted(names) == [comes, stays], "what went before stays gone"
        for name in (stays, goes, comes):
            gone(kube, name)
