"""The gateway before a real API server, with no more rights than the chart gives it.

Answers litellm#25553 and #32247 (a key that was taken back goes on working) and litellm#35273 (a store
that is away takes the gateway with it).
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import http.server
import json
import os
import socket
import subprocess
import threading
import time

import pytest
import yaml
from conftest import note
from install import ROOT, model, policy, tenant

pytestmark = pytest.mark.control_plane

NAMESPACE, MODELS = "strata", "team-a"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:strata-gateway"
HOP_TOKEN = "a-token-of-this-test"
SERVED = "smollm2-135m"
KEY = "sk-strata-e2e_s3cret"
REPEATS = 20


def key_secret(secret: str = "s3cret", **labels: str) -> dict:
    digest = hashlib.sha256(f"e2e{secret}".encode()).hexdigest()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "acme-key", "labels": labels or {"strata.dev/api-key": "true"}},
        "data": {k: base64.b64encode(v.encode()).decode() for k, v in {"id": "e2e", "hash": f"v1${digest}"}.items()},
    }


KEYED = tenant("acme", apiKeys=[{"name": "git", "secretRef": {"name": "acme-key"}}])


class Scheduler(http.server.BaseHTTPRequestHandler):
    """Lists one model and answers what it is asked."""

    protocol_version = "HTTP/1.1"

    def _answer(self, body: dict) -> None:
        payload = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def do_GET(self) -> None:
        entry = {"id": SERVED, "object": "model", "created": 1, "owned_by": "strata", "max_model_len": 2048}
        self._answer({"object": "list", "data": [entry]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}})

    def log_message(self, *_: object) -> None:
        pass


def own_address() -> str:
    """This machine's address; the API server takes no loopback address as an endpoint."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        # Sends nothing: it only chooses the address that would be used.
        s.connect(("198.51.100.1", 9))
        return s.getsockname()[0]


def slice_of(port: int, ready: bool = True) -> dict:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "strata-scheduler-1", "labels": {"kubernetes.io/service-name": "strata-scheduler"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": port}],
        "endpoints": [{"addresses": [own_address()], "conditions": {"ready": ready}}],
    }


class Gateway:
    """The binary as a process of this machine, as the chart's ServiceAccount."""

    def __init__(self, binary, kube, folder):
        self.port = self._free_port()
        self._asked = 0
        self.log = (folder / "gateway.log").open("wb")
        environment = {
            **os.environ,
            "KUBECONFIG": str(self._kubeconfig(kube, folder)),
            "STRATA_NAMESPACE": NAMESPACE,
            "STRATA_HOP_TOKEN": HOP_TOKEN,
            "STRATA_LOG": "debug",
        }
        command = [binary, "gateway", "--kubernetes", f"--listen=127.0.0.1:{self.port}", "--state", folder / "state"]
        self.process = subprocess.Popen(command, env=environment, stderr=self.log)

    @staticmethod
    def _free_port() -> int:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            return s.getsockname()[1]

    @staticmethod
    def _kubeconfig(kube, folder):
        path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/strata-gateway/token"
        token = kube.call("POST", path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}})
        config = yaml.safe_load(kube.kubeconfig.read_text())
        for user in config["users"]:
            user["user"] = {"token": token["status"]["token"]}
        where = folder / "kubeconfig"
        where.write_text(yaml.safe_dump(config))
        return where

    def ask(self, path: str, key: str | None = KEY, body: dict | None = None, **headers: str) -> tuple[int, str]:
        # From another address each time: who comes with bad keys again and again is slowed down.
        self._asked = (self._asked + 1) % 250
        source = (f"127.0.1.{self._asked + 1}", 0)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30, source_address=source)
        try:
            if key:
                headers["authorization"] = f"Bearer {key}"
            payload = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", path, payload, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def knows(self) -> bool:
        return self.ask("/internal/v1/whoami")[0] == 200

    def chat(self) -> int:
        body = {"model": SERVED, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        return self.ask("/v1/chat/completions", body=body)[0]

    def status(self) -> dict:
        code, text = self.ask("/internal/v1/status", key=None, **{"x-strata-hop-token": HOP_TOKEN})
        assert code == 200, text
        return json.loads(text)


@pytest.fixture(scope="module")
def scheduler():
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), Scheduler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


@pytest.fixture(scope="module")
def gateway(kube, strata_binary, scheduler, tmp_path_factory):
    if not kube.own:
        pytest.skip("schedulers of another cluster are not on this machine")
    for definition in sorted((ROOT / "crds").glob("*.yaml")):
        kube.kubectl("apply", "--server-side", "-f", str(definition))
    kube.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    for namespace in (NAMESPACE, MODELS):
        kube.namespace(namespace)
    rules = yaml.safe_load((ROOT / "charts/strata/files/rbac-gateway.yaml").read_text())
    subject = [{"kind": "ServiceAccount", "name": "strata-gateway", "namespace": NAMESPACE}]
    named = {"metadata": {"name": "strata-gateway"}}
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1", **named}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "name": "strata-gateway"}
    kube.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", **named},
        {**rbac, "kind": "Role", "rules": rules["own"]},
        {**rbac, "kind": "RoleBinding", "subjects": subject, "roleRef": {**reference, "kind": "Role"}},
        {**rbac, "kind": "ClusterRole", "rules": rules["models"]},
        {**rbac, "kind": "ClusterRoleBinding", "subjects": subject, "roleRef": {**reference, "kind": "ClusterRole"}},
        namespace=NAMESPACE,
    )
    kube.apply(key_secret(), KEYED, namespace=NAMESPACE)
    kube.apply(model("small", "pvc://models/a.gguf"), slice_of(scheduler), namespace=MODELS)
    gateway = Gateway(strata_binary, kube, tmp_path_factory.mktemp("gateway"))
    try:
        kube.wait("the gateway to be ready", lambda: gateway.ask("/ready", key=None)[0] == 200, 30)
        yield gateway
    finally:
        gateway.process.terminate()
        gateway.process.wait(30)


def until_refused(gateway: Gateway, began: float) -> float:
    """Seconds from `began` until a request was begun that was refused."""
    while True:
        asked = time.monotonic()
        if not gateway.knows():
            return asked - began
        assert asked - began < 30, "the key goes on working"


def test_a_request_goes_through(gateway):
    assert gateway.ask("/v1/chat/completions", key=None, body={})[0] == 401
    assert gateway.chat() == 200
    listed = json.loads(gateway.ask("/v1/models")[1])["data"]
    assert [(m["id"], m["max_model_len"]) for m in listed] == [(SERVED, 2048)]


def test_litellm_25553_what_is_taken_back_ends_within_a_second(gateway, kube, request):
    at = f"/api/v1/namespaces/{NAMESPACE}/secrets/acme-key"
    tenant_at = kube.path("Tenant", NAMESPACE, "acme")
    ways = {
        "Secret deleted": lambda: kube.delete(at),
        "Secret's label removed": lambda: kube.patch(at, {"metadata": {"labels": {"strata.dev/api-key": None}}}),
        "hash overwritten": lambda: kube.patch(at, {"data": {"hash": base64.b64encode(b"gone").decode()}}),
        "Tenant deleted": lambda: kube.delete(tenant_at),
        "key taken out of the Tenant": lambda: kube.patch(tenant_at, {"spec": {"apiKeys": None}}),
    }

    def give() -> None:
        kube.delete(at)
        kube.delete(tenant_at)
        kube.apply(key_secret(), KEYED, namespace=NAMESPACE)

    for way, take_back in ways.items():
        took = []
        for _ in range(REPEATS // len(ways)):
            give()
            kube.wait(f"the key to work before: {way}", gateway.knows, 30)
            began = time.monotonic()
            take_back()
            took.append(until_refused(gateway, began))
        note(request.config, f"measured {way} until refused: {max(took) * 1000:.0f} ms at most of {len(took)}")
        assert max(took) < 1, (way, took)
    give()
    kube.wait("the key to work again", gateway.knows, 30)


def test_a_scheduler_that_is_not_ready_gets_nothing(gateway, kube, scheduler):
    kube.apply(slice_of(scheduler, ready=False), namespace=MODELS)
    kube.wait("requests to be refused", lambda: gateway.chat() == 503, 10)
    kube.apply(slice_of(scheduler), namespace=MODELS)
    kube.wait("requests to be served", lambda: gateway.chat() == 200, 10)


def test_the_status_speaks_of_what_is_in_force(gateway, kube):
    kube.apply(
        policy("base", budget={"tokens": 100000, "period": "Month"}),
        policy("base-too", budget={"tokens": 5, "period": "Month"}),
        tenant("lost", apiKeys=[{"name": "a", "secretRef": {"name": "nowhere"}}]),
        namespace=NAMESPACE,
    )

    def settled():
        found = gateway.status()
        return found if [p["name"] for p in found["policies"]] == ["base", "base-too"] else None

    found = kube.wait("the policies to be in force", settled, 10)
    acme, lost = found["tenants"]
    generation = kube.get(kube.path("Tenant", NAMESPACE, "acme"))["metadata"]["generation"]
    assert (acme["name"], acme["generation"], acme["inForce"]) == ("acme", generation, True)
    assert acme["usage"][0]["usedTokens"] >= 5 and acme["usage"][0]["policy"] == "base"
    assert "Secret nowhere" in lost["problems"][0]
    younger = found["policies"][1]["overridden"][0]
    assert (younger["limit"], younger["by"], younger["tie"]) == ("spec.budget", "base", True)


def test_litellm_35273_the_api_server_may_be_away(gateway, kube):
    daemons = kube.own.daemons
    entry = daemons.recorded()["kube-apiserver"]
    daemons.kill("kube-apiserver")
    for _ in range(5):
        assert gateway.chat() == 200
    assert gateway.ask("/health", key=None)[0] == 200
    assert gateway.ask("/ready", key=None)[0] == 200
    daemons.start("kube-apiserver", entry["command"], **entry["env"])
    kube.wait("the API server", lambda: kube.request("GET", "/readyz")[0] == 200, 60)
    kube.delete(f"/api/v1/namespaces/{NAMESPACE}/secrets/acme-key")
    kube.wait("what happens after that to be seen", lambda: not gateway.knows(), 20)
    kube.apply(key_secret(), namespace=NAMESPACE)
    kube.wait("the key to work again", gateway.knows, 30)


def test_it_reads_what_it_must_and_logs_no_secret(gateway, kube):
    entries = [json.loads(line) for line in kube.own.audit_log.read_text().splitlines()]
    own = [e for e in entries if e.get("user", {}).get("username") == ACCOUNT]
    assert own, "the audit log knows the gateway"
    for entry in own:
        assert entry["verb"] in ("list", "watch"), entry
        assert entry.get("responseStatus", {}).get("code", 200) < 400 or entry["verb"] == "watch", entry
        if entry["objectRef"]["resource"] == "secrets":
            assert entry["objectRef"]["namespace"] == NAMESPACE
            assert "labelSelector=strata.dev%2Fapi-key%3Dtrue" in entry["requestURI"], entry
        if entry["objectRef"]["resource"] in ("tenants", "quotapolicies"):
            assert entry["objectRef"]["namespace"] == NAMESPACE
    gateway.log.flush()
    logged = open(gateway.log.name, encoding="utf-8", errors="replace").read()
    digest = hashlib.sha256(b"e2es3cret").hexdigest()
    for secret in ("s3cret", digest, base64.b64encode(f"v1${digest}".encode()).decode(), HOP_TOKEN):
        assert secret not in logged
